"""A run folder as a trained module, and the commands that test, predict and export it."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import framework
from framework import Trainer
from framework.data import TensorLoader, cubic, cubic_function
from framework.recipes.data import Data, read_tensor
from framework.recipes.trained import run_export, run_predict, run_test
from framework.supervised import Supervised
from tests.recipes.conftest import Proxtrain

QUIET = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")


@pytest.fixture
def toy(proxtrain: Proxtrain) -> Path:
    """A finished run, whose best checkpoint is not its last."""
    done = proxtrain(*QUIET, "epochs=12", "lr=0.05", "logger=csv", "model.dropout=0.1")
    assert done.code == 0, done.stderr
    return done.folder


def read(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def test_the_best_or_the_last_weights_are_loaded(toy: Path) -> None:
    best, last = framework.load(toy), framework.load(toy, "last")
    assert not best.training
    assert best.recipe.recipe_name == "toy_regression"
    for module, name in ((best, "best"), (last, "last")):
        saved = torch.load(toy / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        torch.testing.assert_close(module.state_dict(), saved, rtol=0, atol=0)
    assert not torch.equal(best.network[1].weight, last.network[1].weight)
    by_path = framework.load(toy, toy / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(by_path.state_dict(), last.state_dict(), rtol=0, atol=0)


def test_the_best_has_the_name_that_the_run_gave_it(proxtrain: Proxtrain) -> None:
    named = "callbacks.model_checkpoint.filename='{epoch}-of-12'"
    keep = "callbacks.model_checkpoint.save_top_k=3"
    done = proxtrain(*QUIET, "epochs=12", "lr=0.05", "logger=csv", f"+{named}", f"+{keep}")
    assert done.code == 0, done.stderr
    history = read(done.folder / "metrics.csv")
    losses = [float(loss) for loss in history["val/loss"] if loss]
    x = torch.linspace(-1, 3, 50)[:, None]
    with torch.no_grad():
        loss = float((framework.load(done.folder)(x) - cubic_function(x)).square().mean())
    assert loss == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("filename", ["best", "{epoch}", "{epoch}-{val/loss:.3f}"])
def test_checkpoints_of_weights_alone_are_loaded_with_the_data(proxtrain: Proxtrain, filename: str) -> None:
    options = ["+callbacks.model_checkpoint.save_weights_only=true", "val_every=1"]
    if filename != "best":
        options += [f"+callbacks.model_checkpoint.{option}" for option in (f"filename='{filename}'", "save_top_k=2")]
    done = proxtrain(*QUIET, "epochs=4", "lr=0.05", "logger=none", *options)
    assert done.code == 0, done.stderr
    name = done.stdout.split("best checkpoint: ")[1].splitlines()[0]
    if filename != "best":  # nothing in a file says which is better
        with pytest.raises(ValueError, match=r"not which of them is the best: pass the path of one \(epoch=2"):
            framework.load(done.folder)
    best = framework.load(done.folder, "best" if filename == "best" else done.folder / name)
    saved = torch.load(done.folder / name, weights_only=True)["state_dict"]
    torch.testing.assert_close(best.state_dict(), saved, rtol=0, atol=0)


def test_weights_of_64_bits_stay_so(proxtrain: Proxtrain, tmp_path: Path) -> None:
    done = proxtrain(*QUIET, "epochs=2", "val_every=1", "logger=none", "trainer.precision=64-true")
    assert done.code == 0, done.stderr
    module = framework.load(done.folder)
    saved = torch.load(done.folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(module.state_dict(), saved, rtol=0, atol=0)
    inputs = torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    torch.save(inputs, tmp_path / "inputs.pt")
    run_predict([str(done.folder), str(tmp_path / "inputs.pt"), "-o", str(tmp_path / "outputs.pt")])
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), module(inputs).detach(), rtol=1e-12, atol=0)
    run_export([str(done.folder), str(tmp_path / "network.pt2")])
    found = torch.export.load(tmp_path / "network.pt2").module()(inputs)
    torch.testing.assert_close(found, module(inputs), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "nowhere", FileNotFoundError, "there is no such folder"),
        (lambda folder: folder, ValueError, "is no folder of a run that trained a model"),
    ],
)
def test_what_is_no_run_folder_is_refused(
    make: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        framework.load(make(tmp_path))


def test_a_run_without_a_checkpoint_is_refused(toy: Path) -> None:
    for path in (toy / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="the run ended before it saved one"):
        framework.load(toy)


# ------------------------------------------------------------------------------------------------------------ commands


def test_the_best_model_is_tested_on_the_data_of_its_recipe(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_test([str(toy)])
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in read(toy / "metrics.csv")["val/loss"] if loss]
    found = float(printed.split("test/loss")[1].split()[0])
    assert found == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("header", [True, False])
def test_predictions_are_the_modules_outputs(toy: Path, tmp_path: Path, header: bool) -> None:
    path = tmp_path / "inputs.csv"
    path.write_text(("x\n" if header else "") + "0.5\n1\n2.5\n")
    run_predict([str(toy), str(path)])
    found = [float(value) for value in read(tmp_path / "inputs_predictions.csv")["prediction"]]
    with torch.no_grad():
        expected = framework.load(toy)(torch.tensor([[0.5], [1.0], [2.5]]))[:, 0]
    assert found == pytest.approx(expected.tolist(), rel=1e-6)

    torch.save(torch.tensor([[0.5], [1.0], [2.5]]), tmp_path / "inputs.pt")
    run_predict([str(toy), str(tmp_path / "inputs.pt"), "-o", str(tmp_path / "outputs.pt")])
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt")[:, 0], expected)


def test_a_table_is_standardized_as_in_training_and_predicted_in_its_own_units(
    proxtrain: Proxtrain, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, (60, 3))
    y = 10 + 2 * x[:, 0] - x[:, 2]
    table = tmp_path / "table.csv"
    rows = np.column_stack([x[:, 0], y, x[:, 1:]])
    np.savetxt(table, rows, delimiter=",", header="first,yield,second,third", comments="")
    done = proxtrain(
        *QUIET, "recipe=sparse_linear", f"data.csv={table}", "data.target=yield", "penalty.happy_lambda=1e-6",
        "loss=mse", "logger=none",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    new = tmp_path / "new.csv"
    new.write_text("third,unused,first,second\n1,7,2,3\n4,7,5,6\n")
    run_predict([str(done.folder), str(new)])
    found = [float(value) for value in read(tmp_path / "new_predictions.csv")["yield"]]
    assert found == pytest.approx([10 + 2 * 2 - 1, 10 + 2 * 5 - 4], rel=1e-3)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_an_exported_network_gives_the_same_outputs_for_any_number_of_samples(
    toy: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"network.{suffix}"
    if suffix == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
    run_export([str(toy), str(path)])
    for count in (1, 5, 80):
        inputs = torch.linspace(-1, 3, count)[:, None]
        if suffix == "onnx":
            [found] = onnxruntime.InferenceSession(path).run(None, {"input": inputs.numpy()})
        else:
            found = torch.export.load(path).module()(inputs).detach().numpy()
        with torch.no_grad():
            np.testing.assert_allclose(found, framework.load(toy)(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        (run_predict, ["nowhere.csv"], "nowhere.csv: there is no such file"),
        (run_predict, ["words.csv"], "words.csv: the columns 1 have entries that are missing or no numbers"),
        (run_predict, ["wide.csv"], r"wide.csv has samples of shape (2,); the model takes (1,)"),
        (run_predict, ["inputs.xls"], "inputs.xls: pass a .csv, a .pt"),
        (run_predict, ["inputs.csv", "-o", "out.xls"], "--output out.xls: pass a .csv"),
        (run_predict, ["inputs.csv", "--checkpoint", "no.ckpt"], "there is no checkpoint no.ckpt"),
        (run_export, ["network.h5"], "pass a name that ends in .pt2 (torch.export) or .onnx"),
    ],
)
def test_a_mistake_is_one_line(
    run: Callable[[Sequence[str]], None],
    arguments: list[str],
    message: str,
    toy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "words.csv").write_text("x\none\ntwo\n")
    (tmp_path / "wide.csv").write_text("1,2\n3,4\n")
    (tmp_path / "inputs.csv").write_text("1\n")
    (tmp_path / "inputs.xls").write_text("1\n")
    with pytest.raises(SystemExit):
        run([str(toy), *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_images_are_read_from_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    from framework.data.fashion_mnist import MEAN, STD
    from framework.recipes.data import ImageData

    data = ImageData((), None, (1, 28, 28), 10, num_classes=10)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(np.stack([pixels] * 3, 2)).resize((56, 56), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    names, inputs = data.read_inputs(tmp_path)
    assert names == ["a.png", "b.png"]
    assert inputs.shape == (2, 1, 28, 28)
    torch.testing.assert_close(inputs[1, 0], torch.from_numpy((pixels / 255 - MEAN) / STD).float())
    logits = torch.eye(10)[[3, 9]] * 5
    columns = data.columns(logits)
    assert columns["class"] == ["Dress", "Ankle boot"]
    assert columns["probability"] == pytest.approx(logits.softmax(1).max(1).values.tolist())
    torch.save(torch.from_numpy(pixels)[None, None], tmp_path / "images.pt")
    torch.testing.assert_close(data.read_inputs(tmp_path / "images.pt")[1][0], inputs[1])

    for dtype in (torch.int64, torch.float32):  # pixels are known by their values
        torch.save(torch.from_numpy(pixels).to(dtype)[None, None], tmp_path / "images.pt")
        torch.testing.assert_close(data.read_inputs(tmp_path / "images.pt")[1][0], inputs[1])
    np.savetxt(tmp_path / "images.csv", pixels.reshape(1, -1), fmt="%d", delimiter=",")
    torch.testing.assert_close(data.read_inputs(tmp_path / "images.csv")[1][0], inputs[1])
    torch.save(inputs, tmp_path / "normalized.pt")
    torch.testing.assert_close(data.read_inputs(tmp_path / "normalized.pt")[1], inputs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ufeff1,2\n\n3,4\n", [[1, 2], [3, 4]]),  # as Excel saves it
        ("\ufeffa,b\n1,2\n", [[1, 2]]),
        ("1,\n3,4\n", "the columns 2 have entries that are missing"),  # so that is no line of names
        ("1;2,5\n3;4\n", [[1, 2.5], [3, 4]]),
        ("a,b\n", "holds no samples"),
    ],
)
def test_no_line_of_a_table_is_dropped(text: str, expected: list[list[float]] | str, tmp_path: Path) -> None:
    (path := tmp_path / "table.csv").write_text(text, encoding="utf-8")
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_tensor(path)
    else:
        assert read_tensor(path).tolist() == expected


def test_a_convolutional_network_is_exported_for_evaluation(tmp_path: Path) -> None:
    from framework.recipes.networks import CNN
    from framework.recipes.trained import _export_program

    network = CNN((1, 8, 8), 3).eval()
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(_export_program(network, images, tmp_path / "cnn.pt2"), network(images))


def random_data() -> Data:
    """Data as a user may make them, drawn from the global generator."""
    x, y = torch.randn(2, 60, 1).unbind()
    return Data(TensorLoader(x[:40], y[:40], batch_size=40), TensorLoader(x[40:], y[40:], batch_size=20), (1,), 1)


def test_data_drawn_at_random_are_those_of_the_run(proxtrain: Proxtrain, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("data=custom", f"data._target_={__name__}.random_data")
    done = proxtrain(*QUIET, *own, "epochs=1", "val_every=1", "logger=csv")
    assert done.code == 0, done.stderr
    torch.manual_seed(5)
    run_test([str(done.folder)])
    [loss] = [float(loss) for loss in read(done.folder / "metrics.csv")["val/loss"] if loss]
    assert float(capsys.readouterr().out.split("test/loss")[1].split()[0]) == pytest.approx(loss, rel=1e-4)


def test_the_weight_of_the_penalty_is_that_of_the_whole_run(proxtrain: Proxtrain) -> None:
    done = proxtrain(*QUIET, "recipe=sparse_linear", "epochs=2", "logger=none")  # within the path of weaker penalties
    assert done.code == 0, done.stderr
    computed = float(done.stdout.split("happy_lambda: ")[1].split()[0])
    assert framework.load(done.folder).happy_lambda == pytest.approx(computed, rel=1e-5)


def test_a_tensor_is_read_only_from_a_tensors_file(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "dict.pt")
    with pytest.raises(ValueError, match="holds a dict; save a tensor"):
        read_tensor(tmp_path / "dict.pt")


# ------------------------------------------------------------------------------------------------------------- wrapped


def test_checkpoints_of_compiled_networks_load_into_plain_ones_and_back(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def wrapped() -> Supervised:
        return Supervised(torch.compile(network(), backend="eager"), nn.functional.mse_loss)  # type: ignore[arg-type]

    def plain() -> Supervised:
        return Supervised(network(), nn.functional.mse_loss)

    def fit(module: Supervised, epochs: int, ckpt_path: Path | None = None) -> Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        trainer.fit(module, TensorLoader(*cubic(), batch_size=40), ckpt_path=ckpt_path)
        return trainer

    for name, make, other in (("wrapped.ckpt", wrapped, plain), ("plain.ckpt", plain, wrapped)):
        first = make()
        trainer = fit(first, 1)
        trainer.save_checkpoint(tmp_path / name)
        loaded, continued = other(), other()
        trainer.predict(loaded, TensorLoader(*cubic(), batch_size=40), ckpt_path=tmp_path / name)
        for own, saved in zip(loaded.state_dict().values(), first.state_dict().values(), strict=True):
            torch.testing.assert_close(own, saved, rtol=0, atol=0)
        fit(continued, 2, tmp_path / name)
        fit(whole := make(), 2, tmp_path / name)
        for own, expected in zip(continued.state_dict().values(), whole.state_dict().values(), strict=True):
            torch.testing.assert_close(own, expected, rtol=0, atol=0)
