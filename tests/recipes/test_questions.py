"""The ready sweeps: each runs, in a tiny form, and ends with its comparison."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from framework.recipes.cli import CONF
from framework.recipes.data import fashion_mnist
from tests.recipes.conftest import Proxtrain
from tests.recipes.test_recipes import DATA_ROOT, needs_images

SWEEPS = sorted(path.stem for path in Path(CONF, "sweep").glob("*.yaml"))
QUIET = ("trainer.enable_model_summary=false", "trainer.enable_progress_bar=false", "logger=csv")
IMAGES = ("trainer.max_steps=2", "trainer.limit_val_batches=1", "val_every=1", "data.val_batch_size=100")
# What makes each short: fewer values of what is swept, one seed, a few steps.
TINY = {
    "mlp_or_cnn": ("model=linear,mlp", *IMAGES),
    "overfit": ("mlp.dropout=0,0.5", "seed=0", *IMAGES),
    "augmentation": ("data.augment=false,true", "epochs=10", "seed=0", *IMAGES),
    "how_few_points": ("data.num_samples=5,80", "data.noise=3", "seed=0", "trainer.max_steps=8", "val_every=1"),
    "sgd_or_adam": ("optimizer=sgd,adam", "optimizer.lr=0.001", "seed=0", "epochs=1", "val_every=1"),
    "random_or_gradient": ("optimizer=sgd,random_search", "model.dimensions=25", "seed=0", "epochs=3", "val_every=1"),
}


def test_each_sweep_has_a_tiny_form() -> None:
    assert sorted(TINY) == SWEEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=needs_images) if n in ("mlp_or_cnn", "overfit", "augmentation") else n for n in SWEEPS],
)
def test_a_ready_sweep_runs_and_ends_with_its_comparison(name: str, proxtrain: Proxtrain, tmp_path: Path) -> None:
    params = OmegaConf.load(Path(CONF, "sweep", f"{name}.yaml")).hydra.sweeper.params
    given = {key: value for key, _, value in (setting.partition("=") for setting in TINY[name])}
    # Every value that the tiny form takes is one of the sweep's.
    swept = {key: given[key].split(",") for key in params}
    assert all({*values} <= {*str(params[key]).split(",")} for key, values in swept.items() if key != "seed")

    done = proxtrain(f"sweep={name}", *TINY[name], *QUIET, "hydra.sweep.dir=sweep")
    assert done.code == 0, done.stderr
    paths = [tmp_path / "sweep" / str(job) / ".hydra" / "overrides.yaml" for job in range(2)]
    jobs = [map(str.lower, OmegaConf.load(path)) for path in paths]  # where false is False
    combinations = itertools.product(*([f"{key}={value}" for value in values] for key, values in swept.items()))
    assert [{*wanted} <= {*job} for wanted, job in zip(combinations, jobs, strict=True)] == [True, True]
    with (tmp_path / "sweep" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert all(row["val/loss"] for row in rows)
    assert "2 runs, " in done.stdout


@needs_images
def test_fewer_images_are_the_first_of_all() -> None:
    every, some = (fashion_mnist(root=DATA_ROOT, num_samples=number).train.tensors for number in (None, 100))
    assert [len(every[0]), len(some[0])] == [60_000, 100]
    assert all(torch.equal(few, many[:100]) for few, many in zip(some, every, strict=True))
    for number in (0, 60_001):
        with pytest.raises(ValueError, match=f"data.num_samples={number}; pass a number from 1 to 60000, or null"):
            fashion_mnist(root=DATA_ROOT, num_samples=number)
