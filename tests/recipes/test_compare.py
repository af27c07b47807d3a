"""The table and the pictures at the end of a sweep, and ``proxtrain-compare``."""

import csv
import itertools
import json
import os
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
from omegaconf import OmegaConf

from framework import Callback, Module, Trainer
from framework.recipes.compare import (
    ERROR,
    AfterSweep,
    Run,
    choose_metric,
    differences,
    figure,
    figure_of_a_setting,
    find_runs,
    main,
    over_seeds,
)
from tests.recipes.conftest import Proxtrain

QUIET = ("trainer.enable_progress_bar=false", "trainer.enable_model_summary=false")


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.draws
def test_a_sweep_ends_with_a_table_best_first_and_with_what_failed(proxtrain: Proxtrain, tmp_path: Path) -> None:
    done = proxtrain("-m", "optimizer.lr=0.001,-1,0.05", "epochs=10", *QUIET, "logger=csv")
    assert done.code == 1
    (sweep,) = tmp_path.glob("outputs/toy_regression/*")
    rows = read(sweep / "comparison.csv")
    assert [Path(row["run"]).name for row in rows] == ["2", "0", "1"]
    for row in rows[:2]:
        summary = json.loads((sweep / Path(row["run"]).name / "summary.json").read_text())
        assert float(row["val/loss"]) == summary["metrics"]["val/loss"]
        assert float(row["seconds"]) == summary["seconds"]
        assert int(row["evaluations"]) == summary["closure_evaluations"] == 80
    assert [float(row["optimizer.lr"]) for row in rows] == [0.05, 0.001, -1]
    assert rows[2]["failed"] == "Invalid learning rate: -1"
    assert "3 runs, 1 without a result, lowest val/loss first" in done.stdout
    text = (sweep / "comparison.md").read_text()
    assert text.strip() in done.stdout
    assert "/1: Invalid learning rate: -1" in text
    assert (sweep / "comparison.png").stat().st_size > 10_000


def test_a_job_that_is_refused_before_it_begins_is_in_the_table_too(proxtrain: Proxtrain, tmp_path: Path) -> None:
    arguments = ("optimizer=adam,random_search", "lr=0.01", "epochs=1", "logger=csv", *QUIET, "hydra.sweep.dir=sweep")
    refused = "lr=0.01 has no effect: optimizer=random_search does not read it; drop it"
    done = proxtrain("-m", *arguments)
    assert (done.code, done.stderr.splitlines()[-1]) == (1, f"error: {refused}")
    rows = read(tmp_path / "sweep" / "comparison.csv")
    assert [(row["run"], row["optimizer"], row["failed"]) for row in rows] == [
        ("sweep/0", "Adam", ""),
        ("sweep/1", "RandomSearch", refused),
    ]
    # Once it is right, it goes on in its folder.
    with pytest.warns(UserWarning, match="training starts from the beginning"):
        assert proxtrain("resume=sweep/1", "~lr").code == 0
    assert [run.error for run in find_runs([tmp_path / "sweep"])] == [None, None]


def test_parts_are_named_by_their_class(proxtrain: Proxtrain, tmp_path: Path) -> None:
    assert proxtrain("-m", "optimizer=adam,lbfgs", "epochs=10", *QUIET).code == 0
    (sweep,) = tmp_path.glob("outputs/toy_regression/*")
    runs = find_runs([sweep])
    assert differences(runs) == {"optimizer": ["Adam", "LBFGS"]}

    axes = figure(runs, "val/loss").axes
    assert [axis.get_xlabel() for axis in axes] == ["optimizer steps", "evaluations", "seconds"] * 2
    against = {axis.get_xlabel(): axis.lines for axis in axes[3:]}
    adam, lbfgs = against["evaluations"]
    assert [adam.get_label(), lbfgs.get_label()] == ["Adam", "LBFGS"]
    assert adam.get_xdata()[-1] == 80
    for line, run in zip((adam, lbfgs), runs, strict=True):
        assert line.get_ydata()[-1] == pytest.approx(run.metrics["val/loss"])
        assert line.get_xdata()[-1] <= run.summary["closure_evaluations"]
    assert all(0 <= x <= 60 for line in against["seconds"] for x in line.get_xdata())


def test_any_runs_are_compared(proxtrain: Proxtrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = ("epochs=2", "lr=0.01"), ("epochs=4", "model=linear"), ("recipe=xor", "epochs=2")
    # Runs of two recipes that start in one second have folders of one name.
    folders = [
        proxtrain(*command, *QUIET, "logger=csv", f"hydra.run.dir={name}").folder
        for command, name in zip(commands, ("first", "second", "third"), strict=True)
    ]
    (folders[2] / "summary.json").unlink()
    main([*map(str, folders), "--metric", "train/objective", "-o", str(tmp_path / "compared")])
    rows = {Path(row["run"]).name: row for row in read(tmp_path / "compared" / "comparison.csv")}
    first, second, third = (rows[folder.name] for folder in folders)
    assert (first["model"], second["model"], third["recipe_name"]) == ("MLP", "Linear", "xor")
    assert (first["epochs"], second["epochs"]) == ("2", "4")
    assert (first["lr"], second["lr"]) == ("0.01", "0.01")
    assert third["failed"] == "no summary: still running, or killed"
    assert "lowest train/objective first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "is no run folder and holds none"),
        (["--metric", "val/f1"], "no run has the metric val/f1, but closure_evaluations"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, proxtrain: Proxtrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty" if not arguments else proxtrain("epochs=1", *QUIET, "logger=csv").folder
    folder.mkdir(exist_ok=True)
    with pytest.raises(SystemExit):
        main([str(folder), *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def write_run(folder: Path, metrics: dict[str, float], **settings: object) -> Path:
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(settings), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"metrics": metrics}))
    return folder


def test_a_run_given_in_several_ways_is_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "a b" / "0", {"val/loss": 1.0})
    monkeypatch.chdir(tmp_path)
    same = [folder, Path("a b/0"), tmp_path, Path("a b/../a b")]
    assert [run.folder for run in find_runs(same)] == [folder]


def test_the_best_is_what_the_runs_took_for_it(tmp_path: Path) -> None:
    checkpoint = {"model_checkpoint": {"monitor": "val/f1", "mode": "max"}}
    metrics = {"val/loss": 1.0, "val/f1": 0.5, "val/accuracy": 0.5, "train/loss": 2.0}
    write_run(tmp_path / "runs" / "0", metrics, callbacks=checkpoint)
    runs = find_runs([tmp_path])
    assert choose_metric(runs) == choose_metric(runs, "val/f1") == ("val/f1", "max")
    assert choose_metric(runs, "val/f1", "min") == ("val/f1", "min")
    assert choose_metric(runs, "val/accuracy") == ("val/accuracy", "max")
    assert choose_metric(runs, "train/loss") == ("train/loss", "min")
    write_run(tmp_path / "swept", metrics, callbacks=checkpoint, optimized_metric="train/loss")
    assert choose_metric(find_runs([tmp_path / "swept"])) == ("train/loss", "min")


def test_what_a_sweeper_takes_for_best_comes_first_in_the_table_of_its_sweep_and_in_later_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = OmegaConf.create({"hydra": {"sweeper": {"direction": "maximize"}}})
    for job, loss in enumerate((2.0, 3.0, 1.0)):
        folder = write_run(tmp_path / str(job), {"train/loss": loss, "val/loss": -loss}, optimized_metric="train/loss")
        (folder / ".hydra").mkdir()
        OmegaConf.save(recorded, folder / ".hydra" / "hydra.yaml")
    AfterSweep().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    AfterSweep.report()
    assert [float(row["train/loss"]) for row in read(tmp_path / "comparison.csv")] == [3, 2, 1]
    assert "highest train/loss first" in capsys.readouterr().out
    some = [str(tmp_path / job) for job in ("2", "1")]
    main([*some, "-o", str(tmp_path / "later")])
    assert [float(row["train/loss"]) for row in read(tmp_path / "later" / "comparison.csv")] == [3, 1]
    # Another metric has a direction of its own.
    main([*some, "-o", str(tmp_path / "later"), "--metric", "val/loss"])
    assert [float(row["val/loss"]) for row in read(tmp_path / "later" / "comparison.csv")] == [-3, -1]


def write_sweep(folder: Path) -> dict[tuple[float, int], list[float]]:
    """Write runs for three rates, two widths and three seeds, one of which failed; return the losses."""
    generator = np.random.default_rng(0)
    losses: dict[tuple[float, int], list[float]] = {}
    for job, (seed, lr, width) in enumerate(itertools.product(range(3), (0.1, 0.2, 0.3), (10, 20))):
        metrics = {"val/loss": generator.uniform(1, 2), "train/loss_epoch": generator.uniform(0, 1)}
        run = write_run(folder / str(job), metrics, lr=lr, width=width, seed=seed)
        if (seed, lr, width) == (2, 0.1, 20):
            (run / "summary.json").unlink()
            (run / ERROR).write_text("has diverged\n")
        else:
            losses.setdefault((lr, width), []).append(metrics["val/loss"])
    return losses


def test_runs_for_several_seeds_are_summed_up_by_their_means(tmp_path: Path) -> None:
    losses = write_sweep(tmp_path)
    runs = find_runs([tmp_path])
    rows = over_seeds(runs, "val/loss", "min")
    assert {(row["lr"], row["width"]) for row in rows} == losses.keys()
    assert [row["val/loss"] for row in rows] == sorted(row["val/loss"] for row in rows)
    assert over_seeds(runs, "val/loss", "max") == rows[::-1]
    for row in rows:
        values = losses[row["lr"], row["width"]]
        assert row["val/loss"] == pytest.approx(np.mean(values))
        assert row["std"] == pytest.approx(np.std(values, ddof=1))
        assert (row["runs"], row["failed runs"]) == ((2, 1) if (row["lr"], row["width"]) == (0.1, 20) else (3, None))
    # Nothing is repeated in the runs of one seed; in those that differ in nothing else, one thing is.
    assert over_seeds(runs[:6], "val/loss", "min") == []
    (row,) = over_seeds(runs[::6], "val/loss", "min")
    assert row == {"runs": 3, "val/loss": row["val/loss"], "std": row["std"], "train/loss_epoch": ANY}


def test_a_comparison_of_seeds_prints_the_means_and_writes_every_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path)
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    written = (tmp_path / "comparison.md").read_text()
    means, runs, *reasons = written.strip().split("\n\n")
    assert reasons == ["Without a result:", f"- {os.path.relpath(tmp_path)}/13: has diverged"]
    counted = "18 runs, 1 without a result, lowest val/loss first"
    assert printed.startswith("\n\n".join([means, *reasons, counted]))
    assert [len(means.splitlines()), len(runs.splitlines())] == [2 + 6, 2 + 18]
    assert len(read(tmp_path / "comparison.csv")) == 18
    assert not (tmp_path / "comparison.png").exists()  # no run has logged its way
    assert (tmp_path / "setting.png").exists()


@pytest.mark.draws
@pytest.mark.parametrize("diverged", [np.inf, np.nan])
def test_runs_that_diverged_have_a_mean_and_come_last(diverged: float, tmp_path: Path) -> None:
    for job, (lr, seed) in enumerate(itertools.product((0.1, 0.2, 0.3), (0, 1))):
        loss = float(diverged) if (lr, seed) == (0.1, 1) else lr
        write_run(tmp_path / str(job), {"val/loss": loss}, lr=lr, seed=seed)
    main([str(tmp_path)])
    assert (tmp_path / "setting.png").exists()
    *rows, last = over_seeds(find_runs([tmp_path]), "val/loss", "min")
    assert [(row["lr"], row["val/loss"], row["std"]) for row in rows] == [(0.2, 0.2, 0), (0.3, 0.3, 0)]
    assert last["lr"] == 0.1
    np.testing.assert_equal([last["val/loss"], last["std"]], [diverged, np.nan])


def test_a_setting_of_several_numbers_is_drawn_with_the_means_over_seeds(tmp_path: Path) -> None:
    losses = write_sweep(tmp_path)
    runs = find_runs([tmp_path])
    picture = figure_of_a_setting(runs, "val/loss")
    assert picture is not None
    (axis,) = picture.axes
    assert axis.get_xlabel() == "lr"
    curves = [line for line in axis.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 3]
    for width, curve in zip((10, 20), curves, strict=True):
        assert list(curve.get_xdata()) == [0.1, 0.2, 0.3]
        assert list(curve.get_ydata()) == pytest.approx([np.mean(losses[lr, width]) for lr in (0.1, 0.2, 0.3)])
    drawn = [line for line in axis.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in drawn) == 17
    shown = {text.get_text() for text in picture.legends[0].get_texts()}
    assert shown == {"val/loss", "train/loss_epoch", "width 10", "width 20"}
    assert figure_of_a_setting([run for run in runs if run.settings["lr"] < 0.3], "val/loss") is None
    for run in runs:
        if run.settings["lr"] == 0.3:
            run.summary = {}  # of two numbers and one that has no result
    assert figure_of_a_setting(runs, "val/loss") is None


def test_a_continued_run_that_fails_is_no_longer_finished(proxtrain: Proxtrain) -> None:
    folder = proxtrain("epochs=1", *QUIET, "logger=none").folder
    failing = "+callbacks.fails={_target_: tests.recipes.test_compare.Fails}"
    assert Run.read(folder).error is None
    assert proxtrain(f"resume={folder}", "epochs=3", "lr=-1").code == 1  # refused: the run is as it was
    assert Run.read(folder).error is None
    with pytest.raises(RuntimeError, match="in the middle"):
        proxtrain(f"resume={folder}", "epochs=3", failing)
    assert Run.read(folder).settings["epochs"] == 3
    assert Run.read(folder).error == "RuntimeError: in the middle"
    assert proxtrain(f"resume={folder}", "epochs=3", "lr=-1").code == 1  # refused again
    assert Run.read(folder).error == "RuntimeError: in the middle"
    assert proxtrain(f"resume={folder}", "epochs=3", "+callbacks.fails=null").code == 0
    assert Run.read(folder).error is None
    assert not (folder / "error.txt").exists()


class Fails(Callback):
    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        raise RuntimeError("in the middle")


def test_a_job_that_has_hardly_begun_has_no_result_yet(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    assert Run.read(tmp_path).error == "no summary: still running, or killed"
