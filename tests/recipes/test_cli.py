"""The command itself, as a user sees it."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from framework import __version__
from framework.recipes.cli import CONF
from tests.forked import Forked
from tests.recipes import tasks
from tests.recipes.conftest import Proxtrain
from tests.recipes.test_recipes import HAS_IMAGES


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(CONF).parent), "OMP_NUM_THREADS": "1"}


def test_the_default_recipe_prints_its_folder_first_and_last(proxtrain: Proxtrain, tmp_path: Path) -> None:
    done = proxtrain("trainer.max_epochs=2")
    lines = done.stdout.strip().splitlines()
    assert done.code == 0, done.stderr
    assert lines[0] == lines[-1]
    assert done.folder.parent == tmp_path / "outputs" / "toy_regression"
    assert (done.folder / "summary.json").exists()
    assert (done.folder / ".hydra" / "config.yaml").exists()


def test_help_and_the_version_need_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from framework.recipes.cli import main
for argument in sys.argv[1:]:
    sys.argv = ["proxtrain", argument]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code or argument == "optimizer=adm"
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "--help", "--version", "optimizer=adm"],
        cwd=tmp_path,
        env=environment(),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0


def test_help_lists_every_choice_of_every_group(proxtrain: Proxtrain) -> None:
    done = proxtrain("--help")
    assert done.code == 0
    # A list may go on in the next line.
    text = re.sub(r",\n +", ", ", done.stdout)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    for folder in sorted(Path(CONF).iterdir()):
        if not folder.is_dir() or folder.name == "hydra":
            continue
        for choice in folder.glob("*.yaml"):
            has_a_line = folder.name in ("recipe", "sweep")
            listed = lines.get(choice.stem, "") if has_a_line else lines[folder.name]
            assert choice.stem in listed.replace(",", " ").split(), f"{folder.name}={choice.stem} is not in --help"


def test_the_installed_command_knows_its_version() -> None:
    command = Path(sys.executable).with_name("proxtrain")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"proxtrain {__version__}\n"


def test_a_sweep_gives_every_run_a_folder_of_its_own(proxtrain: Proxtrain, tmp_path: Path) -> None:
    done = proxtrain("-m", "recipe=xor", "seed=0,1", "trainer.max_epochs=2", "logger=none")
    assert done.code == 0, done.stderr
    summaries = sorted(tmp_path.glob("outputs/xor/*/*/summary.json"))
    assert [summary.parent.name for summary in summaries] == ["0", "1"]


# ------------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recipe=toy_regresion", "Could not find 'recipe/toy_regresion': did you mean toy_regression?"),
        ("optimizer=adm", "Could not find 'optimizer/adm': did you mean adam? The choices for optimizer are adadelta,"),
        ("optimzer.lr=1", "Could not override 'optimzer.lr'. To append to your config use +optimzer.lr=1"),
    ],
)
def test_a_mistake_in_composing_ends_with_one_paragraph_and_no_run_folder(
    arguments: str, message: str, proxtrain: Proxtrain, tmp_path: Path
) -> None:
    done = proxtrain(*shlex.split(arguments))
    assert done.code == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("recipe=fashion_mnist data.root=nowhere", "DATA_ROOT"),
        ("recipe=sparse_mlp data.csv=nowhere.csv data.target=y", "data.csv=nowhere.csv: there is no such file"),
        (
            "model=cnn",
            "model=cnn takes images of shape (channels, height, width), but one input here has the shape (1,)",
        ),
        ("model=function", "model=function takes no inputs"),
        ("mlp.hidden=large", "hidden=large; pass a list of positive integers, such as hidden=[100]"),
        ("mlp.hidden=32", "hidden=32; pass a list of positive integers, such as hidden=[100]"),
        ("model=sparse_mlp mlp.hidden=[]", "hidden=[]: model=sparse_mlp needs a hidden layer"),
        ("mlp.activation=Relu", "activation=Relu is not a module of torch.nn: did you mean ReLU?"),
        ("mlp.dropout=2", "dropout probability has to be between 0 and 1"),
        ("loss=cross_entropy", "loss CrossEntropyLoss compares classes, but the targets are numbers; use loss=mse"),
        ("loss=output", "loss=output makes outputs small and looks at no targets"),
        ("recipe=function penalty=l1", "penalty L1 has no effect: it acts on weights of two dimensions or more"),
        (
            "learning_rates='{7: 1e-4}'",
            "learning_rates={'7': 0.0001}: the network has no layer 7 with parameters to train",
        ),
        ("learning_rates='{1: fast}'", "learning_rates={1: fast}; pass a number"),
        ("model=sparse_mlp learning_rates='{1: 1}'", "a SparseMLP network declares its own parameter groups"),
        ("optimizer=lbfgs learning_rates='{1: 1}'", "learning_rates with LBFGS, which has one learning rate for all"),
        ("optimizer._target_=nowhere.Adam", "No module named 'nowhere'"),
        ("optimizer._target_=torch.optim.Adm", "Error loading 'torch.optim.Adm'"),
        ("+optimizer.beta=3", "Adam does not take optimizer.beta; it takes params, lr, betas"),
        ("+model.depth=3", "model: MLP.__init__() got an unexpected keyword argument 'depth'"),
        ("optimizer.lr=-1", "Invalid learning rate: -1"),
        ("trainer.accelerator=abacus", "trainer: "),
        ("trainer.gradient_clip_val=1 optimizer=lbfgs", "gradient_clip_val"),
        ("ckpt_path=nowhere.ckpt", "nowhere.ckpt"),
        ("optimizer=scipy optimizer.method=newton", "unknown method 'newton': did you mean 'Newton-CG'?"),
        ("optimizer=sgd '~optimizer.lr' scheduler=one_cycle", "Interpolation key 'optimizer.lr' not found"),
        ("penalty=l1 penalty.happy_lambda=large", "penalty.happy_lambda=large; pass a number, or auto"),
    ],
)
def test_a_mistake_is_one_paragraph_and_leaves_no_finished_run(
    arguments: str, message: str, proxtrain: Proxtrain, tmp_path: Path
) -> None:
    done = proxtrain(*shlex.split(arguments), "trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")
    assert done.code == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.skipif(not HAS_IMAGES, reason="DATA_ROOT names no folder with FashionMNIST")
@pytest.mark.parametrize("arguments", ["recipe=xor data=fashion_mnist", "recipe=fashion_mnist loss=l2"])
def test_numbers_cannot_be_compared_with_classes(arguments: str, proxtrain: Proxtrain) -> None:
    done = proxtrain(*shlex.split(arguments))
    assert done.code == 1
    assert "compares numbers, but the targets are 10 classes; use loss=cross_entropy" in done.stderr


def test_a_mistake_has_its_traceback_where_the_environment_asks_for_it(
    proxtrain: Proxtrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="model=cnn takes images"):
        proxtrain("model=cnn")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


@pytest.mark.parametrize(
    ("arguments", "bug"),
    [
        ("loss._target_=tests.recipes.broken.RaisingLoss", "a bug of its author's"),
        ("loss._target_=tests.recipes.broken.UnbuildableLoss", "another bug of its author's"),
        ("task=framework.recipes.data.read_tensor", "positional argument"),
    ],
)
def test_a_bug_keeps_its_traceback(arguments: str, bug: str, proxtrain: Proxtrain) -> None:
    with pytest.raises(Exception, match=bug):
        proxtrain(*shlex.split(arguments), "trainer.enable_progress_bar=false")


# ------------------------------------------------------------------------------------------------------------- signals


ENDLESS = {
    "epochs": ["trainer.max_epochs=-1"],
    "minimization": [
        *["optimizer=scipy", "optimizer.method=Nelder-Mead", "optimizer.maxiter=1000000000"],
        "optimizer.options={maxfev: 1000000000, xatol: 0, fatol: 0}",
    ],
}


@pytest.mark.parametrize("overrides", ENDLESS.values(), ids=ENDLESS)
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_a_summary(overrides: list[str], tmp_path: Path) -> None:
    command = Forked(tasks.proxtrain, *overrides, "hydra.run.dir=run", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.csv"
    for _ in range(3000):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    os.kill(command.process.pid, signal.SIGINT)
    assert command.end() == 130, command.printed
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert '"interrupted by SIGINT"' in (tmp_path / "run" / "summary.json").read_text()
