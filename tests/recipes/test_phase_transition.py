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
from framework.recipes import phase_transition
from framework.recipes.cli import CONF
from framework.recipes.phase_transition import DIRECT, PATHS, describe, follow_path
from framework.recipes.recovery_report import Recovery
from framework.recipes.train import run

SIMULATION = linear_recovery()


def measure(s: int, name: str, happy_lambda: float, replicates: int, *paths: str, ceiling: bool = False) -> Recovery:
    return phase_transition.measure_recovery(
        SIMULATION,
        s,
        name,
        happy_lambda,
        paths=paths or ("published",),
        ceiling=ceiling,
        replicates=replicates,
        tolerance=1e-6,
    )


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


@pytest.mark.parametrize("path", PATHS)
def test_each_path_ends_at_a_stationary_point_of_the_full_penalty(path, happy_lambda):
    X, Y = SIMULATION.X, centred_targets(8, 3)
    start = torch.zeros(3, X.shape[1], dtype=X.dtype)
    W, evaluations = follow_path(X, Y, Harder(), PATHS[path], happy_lambda, start=start, tolerance=1e-6)
    fits = describe(X, Y, W, Harder(), happy_lambda, evaluations)
    assert fits.gaps.max() < 1e-6
    for w, y, objective, gap in zip(W.clone().requires_grad_(), Y, fits.objectives, fits.gaps, strict=True):
        loss = (y - X @ w).norm()
        (gradient,) = torch.autograd.grad(loss, w)
        assert objective == pytest.approx(float((loss + Harder().value(w, happy_lambda)).detach()))
        assert gap == pytest.approx(
            float(Harder().subgradient_gap(w.detach(), gradient, happy_lambda)) / happy_lambda, abs=1e-9
        )


def test_the_published_path_is_the_published_schedule_but_for_its_start_without_a_penalty():
    assert (Stage(0.0, 0.9), *PATHS["published"]) == HARDER_LASSO
    assert all((path[-1].share, path[-1].nu) == (1.0, Harder().nu) for path in PATHS.values())


def test_a_fit_that_does_not_converge_is_told(happy_lambda, monkeypatch):
    monkeypatch.setattr(phase_transition, "MAX_ITERATIONS", 3)
    Y, start = centred_targets(4, 5), torch.zeros(5, 250, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="5 of 5 fits are further than tolerance=1e-06 from stationary after 3"):
        follow_path(SIMULATION.X, Y, L1(), DIRECT, happy_lambda, start=start, tolerance=1e-6)


# Of the published table: HarderLASSO, arXiv 2411.17180.
LASSO = {0: 0.955, 1: 0.945, 2: 0.930, 3: 0.900, 4: 0.630, 5: 0.185, 6: 0.025}


@pytest.mark.parametrize("s", LASSO)
def test_the_lasso_recovers_the_replicates_that_the_published_fits_did(s, happy_lambda):
    point = measure(s, "l1", happy_lambda, 200, ceiling=True)
    assert point.published == pytest.approx(LASSO[s])
    assert point.wins + point.losses <= 4  # the published weight is another Monte Carlo estimate of the threshold
    assert point.both + point.wins == round(200 * point.pesr)
    assert point.gap <= 1e-6
    assert point.ceiling is None  # a convex minimum does not depend on the start


@pytest.mark.slow
def test_beyond_six_features_too_the_replicates_are_the_published_ones(happy_lambda):
    point = measure(16, "harder", happy_lambda, 20)
    assert point.published == 0.65
    assert point.wins + point.losses <= 3  # under the draws of another order it was 8


def test_the_harder_penalty_recovers_where_the_lasso_does_not_up_to_what_the_truth_allows(happy_lambda):
    lasso, harder = (measure(8, name, happy_lambda, 10, ceiling=True) for name in ("l1", "harder"))
    assert lasso.pesr == 0
    assert 0.8 <= harder.pesr <= harder.ceiling <= 1
    assert lasso.tpr < harder.tpr
    assert harder.fdr < 0.1
    assert harder.below <= 10 - harder.above


@pytest.mark.draws
def test_the_recipe_leaves_a_whole_run_folder(tmp_path, capsys):
    config = configure(tmp_path, "replicates=2", "sparsities=[0,2]")
    metrics = run(config, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} >= {"config.yaml", "metrics.csv", "plots", "tensorboard"}
    assert (tmp_path / "plots" / "phase_transition.png").stat().st_size > 5000
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["metrics"] == metrics
    assert summary["closure_evaluations"] > 0
    assert "s=2: l1 1.000 (published 1.000; only here 0, only there 0, p=1), harder" in capsys.readouterr().out
    with (tmp_path / "phase_transition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["penalty"], row["s"]) for row in rows] == [("l1", "0"), ("harder", "0"), ("l1", "2"), ("harder", "2")]
    assert all(0 <= float(row["published"]) <= 1 for row in rows)
    paired = [{key: float(row[key]) for key in ("both", "wins", "losses", "p_value")} for row in rows]
    assert summary["paired"] == {f"{row['penalty']}/{row['s']}": p for row, p in zip(rows, paired, strict=True)}
    assert summary["ceiling"] == {f"harder/{row['s']}": float(row["ceiling"]) for row in rows[1::2]}
    assert [float(row["pesr"]) for row in rows] == [metrics[f"pesr/{row['penalty']}/{row['s']}"] for row in rows]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["images"] == ["phase_transition"]
    assert [event.step for event in events.Scalars("pesr/harder")] == [0, 2]
    with pytest.raises(FileExistsError):
        run(config, tmp_path)


@pytest.mark.parametrize("other", ["data.seed=43", "data.num_features=240", "data.num_replicates=3"])
def test_other_draws_are_not_compared_with_the_published_fits(other, tmp_path):
    overrides = [other, "sparsities=[1,2]", "replicates=2", "penalties=[l1]", "logger=none"]
    run(configure(tmp_path, *overrides), tmp_path)
    with (tmp_path / "phase_transition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row[key] for row in rows for key in ("published", "both", "wins", "losses", "p_value")} == {""}
    assert json.loads((tmp_path / "summary.json").read_text())["paired"] == {}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=adam", "has a solver of its own and no use for optimizer"),
        ("penalties=[l1,lasso]", r"penalties has \['lasso'\]; choose from \['harder', 'l1'\]"),
        ("penalties=[]", "name at least one"),
        ("paths=[coarse]", r"paths has \['coarse'\]; choose from \["),
        ("paths=[]", r"paths=\[\]; name at least one, and each only once"),
        ("sparsities=[2,2]", "each only once"),
        ("sparsities=[0,7]", "with 7 true coefficients were drawn"),
        ("replicates=201", "pass a number from 1 to data.num_replicates=200"),
    ],
)
def test_what_the_recipe_cannot_do_is_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, override, "logger=none"), tmp_path)
