"""``proxtrain resume=FOLDER``, folders that no two runs share, exit codes, and several processes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework.callbacks import Timer
from tests.forked import CONTEXT, Forked
from tests.recipes import tasks

ROOT = Path(__file__).parents[2]
QUIET = ("trainer.enable_model_summary=false", "trainer.enable_progress_bar=false")


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    """Return the content of every file of a run."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_goes_on_in_its_own_folder(proxtrain):
    whole = proxtrain("epochs=6", "lr=0.02", *QUIET).folder
    folder = proxtrain("epochs=3", "lr=0.02", *QUIET).folder
    resumed = proxtrain(f"resume={folder}/", "epochs=6")
    assert (resumed.code, resumed.folder) == (0, folder)
    assert "resuming from last.ckpt: epoch 3, step 24" in resumed.stdout
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    metrics, expected = (json.loads((path / "summary.json").read_text())["metrics"] for path in (folder, whole))
    assert metrics == expected
    config = OmegaConf.load(folder / "config.yaml")
    assert (config.epochs, config.lr) == (6, 0.02)
    # It remembers what was given anew.
    assert "nothing to resume" in proxtrain(f"resume={folder}").stdout
    assert proxtrain(f"resume={folder}", "epochs=7").code == 0
    assert rows(folder)[-1]["step"] == "56"


def test_the_seconds_of_a_continued_run_are_those_of_all_its_parts(proxtrain, monkeypatch):
    with monkeypatch.context() as long_ago:
        long_ago.setattr(Timer, "state_dict", lambda self: {"time_elapsed": {"train": 1000.0}})
        folder = proxtrain("epochs=2", *QUIET).folder
    assert 0 < json.loads((folder / "summary.json").read_text())["seconds"] < 1000
    proxtrain(f"resume={folder}", "epochs=3")
    assert 1000 < json.loads((folder / "summary.json").read_text())["seconds"] < 2000


def test_a_finished_run_says_so_and_stays_as_it_is(proxtrain):
    folder = proxtrain("epochs=3", *QUIET).folder
    before = files(folder)
    resumed = proxtrain(f"resume={folder}")
    assert resumed.code == 0
    assert f"nothing to resume in {folder}: all of its 3 epochs are done; to go on, raise epochs=3" in resumed.stdout
    assert files(folder) == before


def test_a_start_that_is_refused_changes_nothing(proxtrain):
    folder = proxtrain("epochs=3", *QUIET).folder
    before = files(folder)
    refused = proxtrain(f"resume={folder}", "epochs=6", "model.hidden=[7]")
    assert refused.code == 1
    assert "last.ckpt is from another model" in refused.stderr
    assert files(folder) == before
    assert proxtrain(f"resume={folder}", "epochs=6").code == 0


def test_a_run_that_stopped_itself_goes_on_when_something_is_changed(proxtrain):
    stopping = [f"callbacks.early_stopping.{option}" for option in ("patience=1", "min_delta=9")]
    folder = proxtrain("callbacks=early_stopping", "epochs=50", "val_every=1", *stopping, *QUIET).folder
    done = json.loads((folder / "summary.json").read_text())["epochs"]
    assert done < 50
    assert "it stopped because of early_stopping" in proxtrain(f"resume={folder}").stdout
    assert proxtrain(f"resume={folder}", "callbacks.early_stopping.patience=4").code == 0
    assert json.loads((folder / "summary.json").read_text())["epochs"] > done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resume=nowhere"], "there is no such folder; pass a run folder"),
        (["resume=."], "is not a run folder: it has no .hydra/overrides.yaml"),
        (["resume=sweep"], "is not a run folder: it holds those of a sweep:"),
        (["resume=sweep/0", "-m", "lr=1,2"], "resume=FOLDER continues one run"),
        (["resume=sweep/0", "resume=sweep/1"], "resume=FOLDER continues one run"),
    ],
)
def test_what_cannot_be_resumed_is_named(proxtrain, tmp_path, arguments, said):
    (tmp_path / "sweep" / "0" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweep" / "0" / ".hydra" / "overrides.yaml").write_text("[]\n")
    refused = proxtrain(*arguments)
    assert refused.code == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_job_of_a_sweep_goes_on(proxtrain, tmp_path):
    proxtrain("-m", "epochs=2", "lr=0.01,0.02", "hydra.sweep.dir=sweep", *QUIET)
    resumed = proxtrain("resume=sweep/1", "epochs=3")
    assert (resumed.code, resumed.folder) == (0, tmp_path / "sweep" / "1")
    assert OmegaConf.load(tmp_path / "sweep" / "1" / "config.yaml").lr == 0.02
    assert not (tmp_path / "outputs").exists()


def test_two_starts_into_one_folder_do_not_share_it(proxtrain):
    first = proxtrain("epochs=2", "hydra.run.dir=mine", *QUIET)
    before = files(first.folder)
    second = proxtrain("epochs=3", "hydra.run.dir=mine", *QUIET)
    assert second.code == 1
    assert "holds another run; continue it by resume=" in second.stderr
    assert files(first.folder) == before


def command(*arguments, torchrun=False):
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    start = [sys.executable]
    if torchrun:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        start += ["--rdzv-endpoint", "localhost:0"]
    return {
        "args": [*start, "-m", "framework.recipes.cli", *arguments],
        "env": {**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


@pytest.mark.slow
def test_ten_runs_that_start_at_the_same_moment_have_folders_of_their_own(tmp_path):
    together, printed = CONTEXT.Barrier(10), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=tasks.claim_folders, args=(tmp_path, together, printed)) for _ in range(10)]
    for process in processes:
        process.start()
    claimed = [printed.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert len({own for own, _ in claimed}) == len(list((tmp_path / "runs").iterdir())) == 10
    assert [shared for _, shared in claimed].count(True) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_ends_the_command_with_its_code_and_the_run_goes_on(proxtrain, tmp_path, number):
    arguments = ("epochs=100000", "hydra.run.dir=run", *QUIET)
    started = Forked(tasks.proxtrain, *arguments, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(started.process.pid, number)
    assert started.end() == 128 + number, started.printed
    steps = int(rows(tmp_path / "run")[-1]["step"])
    ended = proxtrain("resume=run", f"trainer.max_steps={steps + 30}")
    assert ended.code == 0, ended.stderr
    assert "resuming from last.ckpt" in ended.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_because"]) == (steps + 30, "max_steps")


SEVERAL = ("trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=5", *QUIET)


@pytest.mark.slow
def test_two_processes_leave_the_summary_of_one_with_the_combined_batch(tmp_path, proxtrain):
    one = proxtrain("epochs=3", "data.batch_size=10", "hydra.run.dir=one", *QUIET).folder
    ended = subprocess.run(**command("-m", "epochs=3,4", *SEVERAL, "hydra.sweep.dir=two"), cwd=tmp_path, timeout=200)
    assert ended.returncode == 0, ended.stderr
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "two" / "0", one))
    assert ours.keys() == theirs.keys()
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-4)
    assert [ours[key] for key in ("steps", "epochs", "closure_evaluations")] == [24, 3, 24]
    assert json.loads((tmp_path / "two" / "1" / "summary.json").read_text())["epochs"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    compared = [f"comparison.{suffix}" for suffix in ("csv", "md", "png")]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["0", "1", *compared, "multirun.yaml"]


@pytest.mark.slow
def test_torchrun_starts_the_command(tmp_path):
    ended = subprocess.run(**command("epochs=2", *SEVERAL, torchrun=True), cwd=tmp_path, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("run folder: ") == 2
    (folder,) = (tmp_path / "outputs" / "toy_regression").iterdir()
    assert json.loads((folder / "summary.json").read_text())["steps"] == 16
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_relative_paths_are_those_of_the_folder_in_which_the_run_began(proxtrain, tmp_path):
    table = "a,b,price\n" + "\n".join(f"{k % 5},{k % 7},{2 * (k % 5)}" for k in range(40))
    (tmp_path / "table.csv").write_text(table)
    options = ("recipe=sparse_linear", "data.csv=table.csv", "data.target=price", *QUIET)
    whole = proxtrain(*options, "trainer.max_epochs=4", "hydra.run.dir=whole").folder
    proxtrain(*options, "trainer.max_epochs=3", "hydra.run.dir=run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "table.csv").write_text(table.replace("price", "cost"))
    assert proxtrain("resume=../run", "trainer.max_epochs=4", cwd=other).code == 0
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.filterwarnings("ignore:.*the logs of another run")
def test_a_run_from_a_checkpoint_that_was_killed_before_it_saved_begins_there_again(proxtrain, tmp_path):
    proxtrain("epochs=3", "hydra.run.dir=first", *QUIET)
    start = f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt"
    whole = proxtrain("epochs=5", start, "hydra.run.dir=whole", *QUIET).folder
    folder = proxtrain("epochs=5", start, "hydra.run.dir=killed", *QUIET).folder
    shutil.rmtree(folder / "checkpoints")
    (folder / "summary.json").unlink()
    assert proxtrain("resume=killed").code == 0
    assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_report_that_a_killed_run_did_not_write_is_written(proxtrain):
    folder = proxtrain("epochs=3", *QUIET).folder
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    assert proxtrain(f"resume={folder}").code == 0
    again = json.loads((folder / "summary.json").read_text())
    assert again["metrics"] == summary["metrics"]
    assert (again["steps"], again["stopped_because"]) == (summary["steps"], "max_epochs")


def test_a_folder_may_have_an_apostrophe(proxtrain):
    proxtrain("epochs=2", r"hydra.run.dir='it\'s'", *QUIET)
    resumed = proxtrain("resume=it's", "epochs=3")
    assert (resumed.code, resumed.folder.name) == (0, "it's")


def test_a_setting_that_the_checkpoint_overrules_is_named(proxtrain):
    folder = proxtrain("epochs=2", *QUIET).folder
    with pytest.warns(UserWarning, match=r"lr=0\.5 of group network has no effect: the run goes on with lr=0\.01"):
        proxtrain(f"resume={folder}", "epochs=3", "optimizer.lr=0.5")


@pytest.mark.slow
def test_a_job_of_several_processes_that_fails_leaves_the_sweep_going(tmp_path):
    rates = ("optimizer=sgd", "optimizer.lr=1e30,0.002", "epochs=2", "hydra.sweep.dir=sweep")
    ended = subprocess.run(**command("-m", *SEVERAL, *rates), cwd=tmp_path, timeout=200)
    assert ended.returncode == 1, ended.stderr
    assert not (tmp_path / "sweep" / "0" / "summary.json").exists()
    assert json.loads((tmp_path / "sweep" / "1" / "summary.json").read_text())["epochs"] == 2
    assert "has diverged" in ended.stderr
