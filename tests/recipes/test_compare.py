"""The table and the pictures at the end of a sweep, and ``proxtrain-compare``."""

import csv
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework import Callback, Module, Trainer
from framework.recipes.compare import AfterSweep, Run, choose_metric, differences, figure, find_runs, main
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
    folders = [proxtrain(*command, *QUIET, "logger=csv").folder for command in commands]
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


def test_the_table_of_a_sweep_has_first_what_the_sweeper_takes_for_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, loss in enumerate((2.0, 3.0, 1.0)):
        write_run(tmp_path / str(job), {"train/loss": loss}, optimized_metric="train/loss")
    sweep = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"direction": "maximize"}}
    AfterSweep().on_multirun_start(OmegaConf.create({"hydra": sweep}))
    AfterSweep.report()
    assert [float(row["train/loss"]) for row in read(tmp_path / "comparison.csv")] == [3, 2, 1]
    assert "highest train/loss first" in capsys.readouterr().out


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
