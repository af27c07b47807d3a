"""The recipe phase_transition: its solver against another one, its figures against the published ones, its folder."""

import csv
import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from framework.callbacks import Stage
from framework.callbacks.penalty_path import HARDER_LASSO
from framework.data import linear_recovery
from framework.happy_lambda import HappyLambdaLinear
from framework.penalties import L1, Harder
from recipes import phase_transition
from recipes.cli import CONF
from recipes.phase_transition import PUBLISHED, follow_path, measure_recovery
from recipes.train import run

SIMULATION = linear_recovery()


@pytest.fixture(scope="module")
def happy_lambda() -> float:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return HappyLambdaLinear(SIMULATION.X, 10_000).run()


def configure(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(
            "train",
            ["recipe=phase_transition", f"hydra.runtime.output_dir={folder}", *overrides],
            return_hydra_config=True,
        )
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.recipe_name = "phase_transition"
        del config["hydra"]
    return config


def centred_targets(s: int, replicates: int) -> torch.Tensor:
    Y = SIMULATION.targets(s)[:replicates]
    return Y - Y.mean(1, keepdim=True)


def test_the_harder_path_ends_at_a_stationary_point(happy_lambda):
    X, Y = SIMULATION.X, centred_targets(8, 5)
    W, _ = follow_path(X, Y, *phase_transition.PATHS["harder"], happy_lambda, tolerance=1e-6)
    assert phase_transition.largest_gap(X, Y, W, Harder(0.1), happy_lambda) < 1e-6 * happy_lambda


def test_the_harder_penalty_follows_the_published_schedule_but_for_its_start_without_a_penalty():
    penalty, stages = phase_transition.PATHS["harder"]
    assert (Stage(0.0, 0.9), *stages) == HARDER_LASSO
    assert (stages[-1].share, stages[-1].nu) == (1.0, penalty.nu)


def test_a_fit_that_does_not_converge_is_told(happy_lambda, monkeypatch):
    monkeypatch.setattr(phase_transition, "MAX_ITERATIONS", 3)
    with pytest.warns(RuntimeWarning, match="5 of 5 fits are further than tolerance=1e-06 from stationary after 3"):
        follow_path(SIMULATION.X, centred_targets(4, 5), L1(), [Stage(1.0)], happy_lambda, tolerance=1e-6)


@pytest.mark.parametrize("s", [0, 1, 2, 3, 4, 5, 6])
def test_the_lasso_recovers_as_often_as_published(s, happy_lambda):
    point = measure_recovery(SIMULATION, s, "l1", happy_lambda, replicates=200, tolerance=1e-6)
    assert point.pesr == pytest.approx(PUBLISHED["l1"][s], abs=0.05)
    assert point.gap <= 1e-6


def test_the_harder_penalty_recovers_where_the_lasso_does_not(happy_lambda):
    lasso, harder = (
        measure_recovery(SIMULATION, 8, name, happy_lambda, replicates=10, tolerance=1e-6) for name in ("l1", "harder")
    )
    assert lasso.pesr == 0
    assert harder.pesr >= 0.8
    assert lasso.tpr < harder.tpr
    assert harder.fdr < 0.1


def test_the_recipe_leaves_a_whole_run_folder(tmp_path):
    config = configure(tmp_path, "replicates=2", "sparsities=[0,2]")
    metrics = run(config, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} >= {"config.yaml", "metrics.csv", "plots", "tensorboard"}
    assert (tmp_path / "plots" / "phase_transition.png").stat().st_size > 5000
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"] == metrics
    assert summary["closure_evaluations"] > 0
    with (tmp_path / "phase_transition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["penalty"], row["s"]) for row in rows] == [("l1", "0"), ("harder", "0"), ("l1", "2"), ("harder", "2")]
    assert [float(row["pesr"]) for row in rows] == [metrics[f"pesr/{row['penalty']}/{row['s']}"] for row in rows]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["phase_transition"]
    assert [event.step for event in events.Scalars("pesr/harder")] == [0, 2]
    with pytest.raises(FileExistsError):
        run(config, tmp_path)


def test_another_shape_is_not_compared_with_the_published_figures(tmp_path):
    shape = ["data.num_samples=30", "data.num_features=40", "data.num_replicates=2", "data.sparsities=[1,2]"]
    run(configure(tmp_path, *shape, "replicates=2", "penalties=[l1]", "logger=none"), tmp_path)
    with (tmp_path / "phase_transition.csv").open() as file:
        assert [row["published"] for row in csv.DictReader(file)] == ["", ""]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=adam", "trains no network and has no use for optimizer"),
        ("penalties=[l1,lasso]", r"penalties has \['lasso'\]; choose from \['harder', 'l1'\]"),
        ("penalties=[]", "name at least one"),
        ("sparsities=[2,2]", "each only once"),
        ("sparsities=[0,7]", "with 7 true coefficients were drawn"),
        ("replicates=201", "pass a number from 1 to data.num_replicates=200"),
    ],
)
def test_what_the_recipe_cannot_do_is_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, override, "logger=none"), tmp_path)
