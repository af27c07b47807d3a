"""Every recipe trains, every choice of every group composes, and a run folder holds what the design lists."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from sklearn.linear_model import Lasso
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framework.recipes.build import build
from framework.recipes.cli import CONF
from framework.recipes.train import run
from tests.recipes.conftest import Proxtrain

# The recipe that trains no network has tests of its own.
RECIPES = sorted({path.stem for path in Path(CONF, "recipe").rglob("*.yaml")} - {"phase_transition"})
DATA_ROOT = os.environ.get("DATA_ROOT", "")
HAS_IMAGES = bool(DATA_ROOT) and Path(DATA_ROOT, "FashionMNIST").is_dir()
needs_images = pytest.mark.skipif(not HAS_IMAGES, reason="DATA_ROOT names no folder with FashionMNIST")

SMALL = {"fashion_mnist": ["trainer.limit_train_batches=20", "trainer.limit_val_batches=2"]}


def configure(recipe: str, folder: Path, *overrides: str) -> DictConfig:
    """The configuration that the command line would compose, for a run in ``folder``."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(
            "train",
            [f"recipe={recipe}", f"hydra.runtime.output_dir={folder}", "trainer.enable_progress_bar=false", *overrides],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.recipe_name = recipe
        del config["hydra"]
    return config


@pytest.mark.draws
@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=needs_images) if r == "fashion_mnist" else r for r in RECIPES]
)
def test_every_recipe_trains_for_two_epochs_and_leaves_a_whole_run_folder(recipe: str, tmp_path: Path) -> None:
    config = configure(
        recipe, tmp_path, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1", *SMALL.get(recipe, [])
    )
    metrics = run(config, tmp_path)

    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {"config.yaml", "summary.json", "metrics.csv", "checkpoints/last.ckpt"} <= files
    # Which state on a path of penalties is the best, no validation says.
    assert ("checkpoints/best.ckpt" in files) == (not recipe.startswith("sparse"))
    pictures = [Path(file) for file in files if file.startswith("plots/")]
    assert len(pictures) >= 2
    assert all((tmp_path / picture).stat().st_size > 5000 for picture in pictures)

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["recipe"] == recipe
    assert summary["stopped_because"] == "max_epochs"
    assert (summary["epochs"], summary["seed"]) == (2, 0)
    assert summary["steps"] == summary["closure_evaluations"] > 0
    assert summary["metrics"] == metrics

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss", "train/objective", "val/loss", "grad_norm", "closure_evaluations"} <= set(
        events.Tags()["scalars"]
    )
    assert any(tag.startswith("lr/") for tag in events.Tags()["scalars"])
    assert {picture.stem for picture in pictures} == set(events.Tags()["images"])
    assert "_hparams_/session_start_info" in events.summary_metadata
    for tag in events.Tags()["scalars"]:
        # Where a step goes back, TensorBoard takes the run for restarted and drops what it has drawn.
        assert (steps := [event.step for event in events.Scalars(tag)]) == sorted(steps)
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]]


def test_the_summary_and_the_hparams_tab_agree_as_of_the_end_of_the_run(tmp_path: Path) -> None:
    # Steps are logged at 0 and 3 of 5, where the optimizer had evaluated less.
    overrides = ["optimizer=lbfgs", "trainer.max_epochs=5", "trainer.log_every_n_steps=3"]
    metrics = run(configure("sine", tmp_path, *overrides), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["closure_evaluations"] == metrics["closure_evaluations"] == summary["metrics"]["closure_evaluations"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in metrics.items():
        last = events.Scalars(name)[-1]
        assert last.value == pytest.approx(value)
        assert [event.step for event in events.Scalars(name)].count(last.step) == 1
    assert events.Scalars("closure_evaluations")[-1].step == summary["steps"]


@pytest.mark.parametrize("optimizer", sorted(path.stem for path in Path(CONF, "optimizer").glob("[!c]*.yaml")))
def test_every_optimizer_lowers_the_loss_of_the_toy_regression(optimizer: str, tmp_path: Path) -> None:
    several = {"scipy": 1, "lbfgs": 2, "sparsa": 5, "exhaustive_search": 10, "random_search": 100}
    epochs = several.get(optimizer, 30)
    overrides = [f"optimizer={optimizer}", "logger=none", f"trainer.max_epochs={epochs}", "trainer.log_every_n_steps=1"]
    trainer, module, data = build(configure("toy_regression", tmp_path, *overrides), tmp_path)
    before = trainer.validate(module, data.val)[0]["val/loss"]
    trainer.fit(module, data.train, data.val)
    assert trainer.validate(module, data.val)[0]["val/loss"] < before / 2


@needs_images
def test_one_cycle_goes_with_an_optimizer_without_momentum(tmp_path: Path) -> None:
    config = configure("fashion_mnist", tmp_path, "optimizer=adagrad", "logger=none", *SMALL["fashion_mnist"])
    trainer, module, data = build(config, tmp_path)
    trainer.fit(module, data.train, data.val)
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-3 * trainer.optimizer.defaults["lr"]


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("toy_regression", ("optimizer=scipy", "optimizer.method=trust-ncg", "optimizer.maxiter=20")),
        ("xor", ("optimizer=scipy", "optimizer.method=BFGS")),
        (
            "xor",
            ("optimizer=scipy", "optimizer.method=dual_annealing", "optimizer.maxiter=5", "optimizer.bounds=[-5,5]"),
        ),
        ("sine", ("optimizer=scipy", "optimizer.method=Newton-CG", "optimizer.maxiter=20")),
        ("sine", ("optimizer=lbfgs", "trainer.max_epochs=5")),
        ("xor", ("optimizer=lbfgs", "trainer.max_epochs=5")),
        pytest.param("fashion_mnist", ("model=linear", "optimizer=scipy", "optimizer.maxiter=10"), marks=needs_images),
        pytest.param("fashion_mnist", ("model=linear", "optimizer=lbfgs", "trainer.max_epochs=1"), marks=needs_images),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_recipe_is_trained_on_all_its_data_at_once(recipe: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    trainer, module, data = build(
        configure(recipe, tmp_path, *overrides, "logger=none", *SMALL.get(recipe, [])), tmp_path
    )
    before = trainer.validate(module, data.val)[0]["val/loss"]
    trainer.fit(module, data.train, data.val)
    assert trainer.validate(module, data.val)[0]["val/loss"] < before / 2
    assert trainer.global_step == trainer.current_epoch < trainer.closure_evaluations


def test_a_minimization_by_scipy_leaves_a_whole_run_folder_with_its_iterations(tmp_path: Path) -> None:
    overrides = ["optimizer=scipy", "optimizer.maxiter=7", "optimizer.options={maxcor: 20, gtol: 1e-9}"]
    metrics = run(configure("sine", tmp_path, *overrides), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"], summary["stopped_because"]) == (1, 1, "max_epochs")
    assert summary["closure_evaluations"] > 7
    assert metrics["val/loss"] > 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = events.Scalars("iteration/objective")
    assert [event.step for event in values] == list(range(1, 8))
    assert values[-1].value == pytest.approx(metrics["iteration/objective"])
    assert len(events.Scalars("iteration/closure_evaluations")) == 7
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.method=lbfgs"], "unknown method 'lbfgs': did you mean 'L-BFGS-B'"),
        (["optimizer.options={banana: 1}"], "L-BFGS-B refuses its arguments: Unknown solver options: banana"),
        (["optimizer.method=brute", "optimizer.bounds=[0,1]"], "brute does not take maxiter"),
        (["optimizer.method=CG", "optimizer.bounds=[0,1]"], "cannot handle bounds"),
        (["penalty=l1"], "MinimizeWrapper needs a smooth objective.*penalty L1.*SpaRSA"),
        (["learning_rates={1: 1e-4}"], "learning_rates with MinimizeWrapper, which has none"),
    ],
)
def test_what_scipy_cannot_do_is_refused_at_fit(overrides: list[str], message: str, tmp_path: Path) -> None:
    config = configure("toy_regression", tmp_path, "optimizer=scipy", *overrides, "logger=none")
    trainer, module, data = build(config, tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, data.train, data.val)


def torch_one_cycle(max_lr: float, steps: int) -> float:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


@pytest.mark.parametrize("scheduler", sorted(path.stem for path in Path(CONF, "scheduler").glob("*.yaml")))
def test_every_scheduler_follows_its_torch_class(scheduler: str, tmp_path: Path) -> None:
    config = configure("toy_regression", tmp_path, f"scheduler={scheduler}", "logger=none", "trainer.max_epochs=6")
    trainer, module, data = build(config, tmp_path)
    trainer.fit(module, data.train, data.val)
    rate = trainer.optimizer.param_groups[0]["lr"]
    expected = {
        "none": 0.01,
        "step": 0.005,
        "exponential": 0.01 * 0.95**6,
        "plateau": 0.01,
        "cosine": 0.0,
        "one_cycle": torch_one_cycle(0.01, 6 * 8),
    }
    assert rate == pytest.approx(expected[scheduler], abs=1e-12)


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize("penalty", ["l1", "elastic_net", "group_l1", "harder", "scad", "mcp"])
def test_a_penalty_is_added_for_an_ordinary_optimizer_and_logged(model: str, penalty: str, tmp_path: Path) -> None:
    overrides = [
        f"model={model}",
        f"penalty={penalty}",
        "penalty.happy_lambda=0.1",
        "logger=none",
        "trainer.max_epochs=1",
    ]
    trainer, module, data = build(configure("toy_regression", tmp_path, *overrides), tmp_path)
    trainer.fit(module, data.train, data.val)
    metrics = trainer.callback_metrics
    assert metrics["train/penalty"] > 0
    assert metrics["train/objective"] == pytest.approx(metrics["train/loss"] + metrics["train/penalty"])
    assert any(name.startswith("sparsity/") for name in metrics)


@pytest.mark.parametrize("optimizer", ["ista", "fista", "sparsa", "prox_adam"])
def test_a_proximal_optimizer_applies_the_penalty_itself_and_makes_exact_zeros(optimizer: str, tmp_path: Path) -> None:
    overrides = [f"optimizer={optimizer}", "penalty=l1", "penalty.happy_lambda=0.2", "logger=none", "lr=0.01"]
    config = configure("toy_regression", tmp_path, *overrides, "trainer.max_epochs=30", "trainer.log_every_n_steps=1")
    trainer, module, data = build(config, tmp_path)
    trainer.fit(module, data.train, data.val)
    metrics = trainer.callback_metrics
    assert metrics["sparsity/network/penalized"] > 0.1
    assert metrics["train/objective"] == pytest.approx(metrics["train/loss"] + metrics["train/penalty"])
    assert metrics["train/objective"] < 20


@pytest.mark.parametrize("optimizer", ["ista", "fista", "sparsa"])
def test_a_proximal_optimizer_on_all_the_data_ends_at_the_lasso(optimizer: str, tmp_path: Path) -> None:
    overrides = [f"optimizer={optimizer}", "model=linear", "penalty=l1", "penalty.happy_lambda=0.2", "logger=none"]
    trainer, module, data = build(configure("toy_regression", tmp_path, *overrides, "data.batch_size=80"), tmp_path)
    trainer.fit(module, data.train, data.val)
    assert str(trainer.stopped_because).startswith("stationarity")
    assert trainer.global_step < 250
    X, y = (tensor.double().numpy() for tensor in data.train.tensors)
    # scikit-learn halves the mean of squares.
    lasso = Lasso(alpha=0.2 / 2, tol=1e-12).fit(X, y)
    weight, bias = (parameter.item() for parameter in module.network.parameters())
    assert (weight, bias) == pytest.approx((lasso.coef_[0], lasso.intercept_[0]), abs=1e-4)


def test_the_sparse_example_of_the_readme_prunes_the_network_and_fits_better(tmp_path: Path) -> None:
    sparse = ["optimizer=sparsa", "penalty=l1", "penalty.happy_lambda=0.002", "data.batch_size=200"]
    pruned = run(configure("sine", tmp_path / "sparse", *sparse, "logger=none"), tmp_path / "sparse")
    dense = run(configure("sine", tmp_path / "dense", "logger=none"), tmp_path / "dense")
    summary = json.loads((tmp_path / "sparse" / "summary.json").read_text())
    assert summary["stopped_because"].startswith("stationarity")
    assert pruned["sparsity/network/penalized"] > 0.99
    assert pruned["val/loss"] < dense["val/loss"] / 2


def test_a_user_optimizer_class_is_taken_by_its_target(tmp_path: Path) -> None:
    overrides = ["optimizer=sgd", "optimizer._target_=tests.recipes.optimizers.CustomOptimizer", "logger=none"]
    drop = ["~optimizer.momentum", "~optimizer.nesterov", "~optimizer.weight_decay", "~optimizer.fused"]
    config = configure("toy_regression", tmp_path, *overrides, *drop, "trainer.max_epochs=20")
    trainer, module, data = build(config, tmp_path)
    before = trainer.validate(module, data.val)[0]["val/loss"]
    trainer.fit(module, data.train, data.val)
    assert type(trainer.optimizer).__name__ == "CustomOptimizer"
    assert trainer.validate(module, data.val)[0]["val/loss"] < before / 2


def test_parameters_get_learning_rates_of_their_own(tmp_path: Path) -> None:
    config = configure("toy_regression", tmp_path, "learning_rates={1: 1e-4}", "logger=none", "trainer.max_epochs=1")
    trainer, module, data = build(config, tmp_path)
    trainer.fit(module, data.train, data.val)
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [1e-4, 0.01]
    assert {"lr/1", "lr/network"} <= set(trainer.callback_metrics)


def test_a_run_that_is_continued_ends_like_one_that_was_not(tmp_path: Path) -> None:
    def weights(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        trainer, module, data = build(configure("toy_regression", tmp_path / name, *overrides), tmp_path / name)
        trainer.fit(module, data.train, data.val, ckpt_path=CHECKPOINT if name == "second" else None)
        return module.state_dict()

    CHECKPOINT = tmp_path / "first/checkpoints/last.ckpt"
    whole = weights("whole", "trainer.max_epochs=6", "logger=none")
    weights("first", "trainer.max_steps=21", "logger=none")
    continued = weights("second", "trainer.max_epochs=6", "logger=none")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileExistsError, match="holds another run"):
        run(configure("toy_regression", tmp_path), tmp_path)


@needs_images
@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("model=mlp",), ("model=cnn", "data.augment=true")])
def test_fashion_mnist_learns_in_a_fraction_of_an_epoch(overrides: tuple[str, ...], tmp_path: Path) -> None:
    limits = [
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=1",
        "trainer.num_sanity_val_steps=0",
        "trainer.limit_train_batches=100",
        "data.batch_size=32",
    ]
    trainer, module, data = build(
        configure("fashion_mnist", tmp_path, *overrides, *limits, "scheduler=none", "logger=none"), tmp_path
    )
    trainer.fit(module, data.train, data.val)
    assert trainer.validate(module, data.val)[0]["val/accuracy"] > 0.65


def test_a_run_ends_with_its_metrics_its_best_checkpoint_and_how_to_look_at_it(proxtrain: Proxtrain) -> None:
    done = proxtrain("epochs=10", "trainer.enable_model_summary=false", "trainer.enable_progress_bar=false")
    first, *middle, last = done.stdout.splitlines()
    assert first == last == f"run folder: {done.folder}"
    metrics = json.loads((done.folder / "summary.json").read_text())["metrics"]
    assert middle == [
        f"val/loss {metrics['val/loss']:.5g}, train/objective {metrics['train/objective']:.5g}",
        "best checkpoint: checkpoints/best.ckpt",
        f"to look at it: proxtrain-tensorboard {done.folder}",
    ]
