"""The recipe phase_transition with networks: its folder, continued runs, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, open_dict

from framework.data import network_recovery
from framework.penalties import Harder
from framework.recipes.network_recovery import FITS, FitsFile, true_networks
from framework.recipes.recovery_report import read_published
from framework.recipes.train import run
from framework.stacks import AdamStage, SparseNetworks, gaps
from tests.recipes.conftest import Proxtrain
from tests.recipes.test_phase_transition import configure

SMALL = (
    "model=sparse_mlp",
    "model.hidden=[6]",
    "data.num_samples=60",
    "data.num_features=8",
    "data.num_replicates=5",
    "data.sparsities=[0,2]",
    "replicates=5",
    "draws=200",
    "penalties=[harder]",
)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Paths of few steps, in chunks of two fits."""
    stages = (AdamStage(0.0, 5, 0.1), AdamStage(0.3, 10, 0.1), AdamStage(1.0, 30, 0.1, 0.01))
    monkeypatch.setattr("framework.recipes.network_recovery.network_path", lambda: stages)
    monkeypatch.setattr("framework.recipes.network_recovery.CHUNK_SIZE", 2)


def small(folder: Path, *overrides: str) -> DictConfig:
    return configure(folder, *SMALL, *overrides)


def files(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in (FITS, "phase_transition.csv", "metrics.csv")}


def test_a_run_leaves_its_fits_a_table_and_a_picture(tmp_path, capsys):
    metrics = run(small(tmp_path, "logger=csv"), tmp_path)
    with (tmp_path / FITS).open() as file:
        fits = list(csv.DictReader(file))
    keys = [(fit["penalty"], int(fit["s"]), fit["start"], int(fit["replicate"])) for fit in fits]
    assert keys == sorted(("harder", s, start, i) for s in (0, 2) for start in ("oracle", "random") for i in range(5))
    with (tmp_path / "phase_transition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["s"], row["replicates"], row["published"]) for row in rows] == [("0", "5", ""), ("2", "5", "")]
    truth = network_recovery([2], num_samples=60, num_features=8, num_replicates=5).support(2)
    found = [fit["found"].split() for fit in fits if fit["s"] == "2" and fit["start"] == "random"]
    exact = sum(
        true.nonzero().flatten().tolist() == list(map(int, each)) for true, each in zip(truth, found, strict=True)
    )
    assert float(rows[1]["pesr"]) == exact / 5 == metrics["pesr/harder/2"]
    assert (tmp_path / "plots" / "phase_transition.png").exists()
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == metrics
    assert "s=2: harder" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_was_and_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(small(whole, "logger=csv"), whole)

    config = small(killed, "logger=csv")
    add, calls = FitsFile.add, 0

    def die(self, fits):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("killed")
        add(self, fits)

    monkeypatch.setattr(FitsFile, "add", die)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, killed)
    monkeypatch.setattr(FitsFile, "add", add)
    made = FitsFile(killed / FITS).fits
    assert 0 < len(made) < 20
    assert not (killed / "summary.json").exists()
    with open_dict(config):
        config.resume = str(killed)
    run(config, killed)
    assert files(killed) == files(whole)
    assert FitsFile(killed / FITS).fits.items() >= made.items()


def test_a_finished_run_can_be_given_more_replicates(tmp_path):
    config = small(tmp_path, "logger=none", "replicates=2", "ceiling=false")
    run(config, tmp_path)
    before = FitsFile(tmp_path / FITS).fits
    with open_dict(config):
        config.resume, config.replicates, config.ceiling = str(tmp_path), 3, True
    run(config, tmp_path)
    after = FitsFile(tmp_path / FITS).fits
    assert len(before) == 4
    assert len(after) == 12
    assert after.items() >= before.items()


def test_results_do_not_depend_on_the_number_of_threads(tmp_path):
    folders = [tmp_path / str(threads) for threads in (1, 2)]
    for threads, folder in enumerate(folders, 1):
        torch.set_num_threads(threads)
        run(small(folder, "logger=csv", "ceiling=false"), folder)
        assert torch.get_num_threads() == threads
    assert files(folders[0]) == files(folders[1])


@pytest.mark.parametrize("change", ["seed=1", "data.seed=1", "model.hidden=[7]", "draws=100"])
def test_a_run_is_not_continued_with_other_fits(change, tmp_path):
    run(small(tmp_path, "logger=none", "replicates=1", "ceiling=false"), tmp_path)
    summary = (tmp_path / "summary.json").read_text()
    config = small(tmp_path, "logger=none", "replicates=1", "ceiling=false", change)
    with open_dict(config):
        config.resume = str(tmp_path)
    with pytest.raises(ValueError, match=f"keeps the fits of another {change.partition('=')[0].partition('.')[0]}"):
        run(config, tmp_path)
    assert (tmp_path / "summary.json").read_text() == summary


def test_an_oracle_starts_at_the_truth():
    simulation = network_recovery([0, 4], num_samples=60, num_features=8, num_replicates=3)
    like = SparseNetworks.random(1, 8, 6)
    networks = true_networks(like, simulation.pairs[4])
    residual = simulation.targets(4) - networks.predict(simulation.X.float()).double()
    # Units without features take a thousandth of the norm.
    torch.testing.assert_close(residual, simulation.noise, rtol=0, atol=1e-3)
    assert torch.equal(networks.selected(), simulation.support(4))
    null = true_networks(like, simulation.pairs[0])
    assert not null.selected().any()
    assert gaps(null, simulation.X.float(), simulation.targets(0).float(), 100.0, Harder()).isfinite().all()


def test_the_published_fits_of_networks_are_those_of_the_published_table():
    published = {s: float(read_published("network")["harder", s].double().mean()) for s in range(0, 21, 2)}
    table = {0: 0.99, 2: 1, 4: 1, 6: 1, 8: 1, 10: 0.935, 12: 0.655, 14: 0.21, 16: 0.02, 18: 0, 20: 0}
    assert published == pytest.approx(table)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer=adam", "no use for optimizer"),
        ("model.hidden=[6,6]", r"model=sparse_mlp with one hidden layer.*pass model=sparse_mlp model.hidden=\[20\]"),
        ("model.activation=Tanh", "model.activation=Tanh; this recipe knows ReLU, Sigma"),
        ("penalties=[harder,lasso]", r"penalties has \['lasso'\]; choose from \['harder', 'l1'\]"),
        ("sparsities=[0,0]", "each only once"),
        ("sparsities=[4]", "with 4 true features were drawn"),
        ("replicates=6", "pass a number from 1 to data.num_replicates=5"),
        ("data.sparsities=[8]", "takes 8 hidden units for s=8, but model.hidden=.*; pass ceiling=false, more units"),
    ],
)
def test_what_the_recipe_cannot_do_with_networks_is_refused(override, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(small(tmp_path, override, "logger=none"), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "model=sparse_mlp tolerance=1e-5",
            "tolerance=1e-5 has no effect: networks do not read it; drop it, or choose",
        ),
        (
            "model=sparse_mlp paths=[published]",
            "has no effect: networks do not read it; drop it, or choose model=linear",
        ),
        ("mlp.hidden=[30]", "mlp.hidden=[30] has no effect: model=linear does not read it; drop it"),
        ("model.bias=false", "model.bias=false has no effect: the fits have an intercept; drop it"),
        ("model=cnn", "Could not find 'data/cnn_recovery'"),
    ],
)
def test_what_neither_model_reads_is_refused_by_name(arguments, message, proxtrain: Proxtrain):
    done = proxtrain("recipe=phase_transition", *arguments.split())
    assert done.code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
