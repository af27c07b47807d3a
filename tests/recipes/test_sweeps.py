"""Sweeps by Hydra's plugins: jobs at the same time, on a cluster, and values that a sweeper chooses."""

import json
import os
import signal
import time

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from framework.recipes.cli import CONF
from tests.forked import Forked
from tests.recipes import tasks

QUIET = ("logger=csv", "trainer.enable_model_summary=false", "trainer.enable_progress_bar=false")
OPTUNA = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "epochs=3", *QUIET)


def optuna(test):
    """Mark a test of Optuna's sweeper, which needs Optuna 2 and its warnings."""
    for warning in ("DeprecationWarning", "FutureWarning", "UserWarning:optuna"):
        test = pytest.mark.filterwarnings(f"ignore::{warning}")(test)
    return pytest.mark.slow(test)


def test_an_unknown_metric_to_optimize_is_refused_by_name(proxtrain):
    refused = proxtrain("epochs=2", "optimized_metric=val/los", *QUIET)
    assert refused.code == 1
    assert "optimized_metric=val/los: the run has no such metric, but closure_evaluations, " in refused.stderr


@pytest.fixture
def joblib():
    """Joblib without workers of a test before, which work in that one's folder."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    joblib = pytest.importorskip("joblib")
    joblib.externals.loky.get_reusable_executor().shutdown()
    yield joblib
    joblib.externals.loky.get_reusable_executor().shutdown()


@pytest.mark.slow
def test_joblib_runs_jobs_at_the_same_time_each_in_its_folder(proxtrain, tmp_path, joblib):
    one = proxtrain("epochs=2", "lr=0.02", *QUIET).folder
    arguments = ("-m", "hydra/launcher=joblib", "epochs=2", "lr=0.01,0.02", *QUIET)
    assert proxtrain(*arguments).code == 0
    (sweep,) = {path.parent.parent for path in tmp_path.glob("outputs/*/*/*/summary.json")}
    folders = [sweep / job for job in ("0", "1")]
    assert [OmegaConf.load(folder / "config.yaml").lr for folder in folders] == [0.01, 0.02]
    metrics = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (*folders, one)]
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)
    assert all((folder / "checkpoints" / "last.ckpt").exists() for folder in folders)


@pytest.mark.slow
def test_jobs_at_the_same_time_share_the_cores(proxtrain, tmp_path, monkeypatch, joblib):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert proxtrain("-m", *launcher, "task=tests.recipes.tasks.note_threads", "seed=0,1").code == 0
    counts = [int(path.read_text()) for path in tmp_path.rglob("threads.txt")]
    assert counts == [max(joblib.cpu_count() // 2, 1)] * 2


@pytest.mark.slow
def test_ctrl_c_ends_jobs_at_the_same_time_with_the_code_of_an_interruption(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "epochs=-1", "seed=0,1", *QUIET)
    command = Forked(tasks.proxtrain, *arguments, "hydra.sweep.dir=sweep", cwd=tmp_path)
    for _ in range(3000):
        if len([path for path in tmp_path.glob("sweep/*/metrics.csv") if path.stat().st_size]) == 2:
            break
        time.sleep(0.1)
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does
    assert command.end() == 130, command.printed


@optuna
def test_optuna_minimizes_the_metric_that_a_run_returns(proxtrain, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = ("hydra.sweeper.n_trials=3", "hydra.sweeper.direction=minimize", "hydra.sweep.dir=sweep")
    assert proxtrain(*OPTUNA, *sweeper, "lr=interval(0.001,0.1)", "optimized_metric=train/loss_epoch").code == 0
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    jobs = [tmp_path / "sweep" / job for job in ("0", "1", "2")]
    losses = [json.loads((job / "summary.json").read_text())["metrics"]["train/loss_epoch"] for job in jobs]
    assert found.best_value == min(losses)
    best = jobs[losses.index(min(losses))]
    assert found.best_params.lr == OmegaConf.load(best / "config.yaml").lr


@optuna
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "hydra/sweeper=optuna needs a value to optimize; name a final metric, such as optimized_metric=val/loss"),
        (["optimized_metric=val/los"], "optimized_metric=val/los: the run has no such metric, but closure_evaluations"),
        (["optimized_metric=val/loss", "optimizer.lr=-1"], "Invalid learning rate: -1"),
    ],
)
def test_a_mistake_in_a_trial_is_one_paragraph_and_ends_the_sweep(arguments, message, proxtrain, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    refused = proxtrain(*OPTUNA, "hydra.sweeper.n_trials=3", "seed=range(0,3)", "hydra.sweep.dir=sweep", *arguments)
    assert refused.code == 1
    assert f"error: {message}" in refused.stderr.splitlines()[-1]
    assert not (tmp_path / "sweep" / "1").exists()


@optuna
def test_a_stored_study_goes_on_in_another_sweep(proxtrain, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    storage = ("hydra.sweeper.storage=sqlite:///study.db", "hydra.sweeper.study_name=study")
    arguments = ("lr=interval(0.001,0.1)", "optimized_metric=train/loss_epoch", "hydra.sweeper.n_trials=1")
    for sweep in ("first", "second"):
        assert proxtrain(*OPTUNA, *storage, *arguments, f"hydra.sweep.dir={sweep}").code == 0
    from optuna import load_study

    study = load_study(study_name="study", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 2


def test_a_sweep_on_a_slurm_cluster_composes():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    options = ["timeout_min=60", "gpus_per_node=1", "cpus_per_task=8"]
    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = ["hydra/launcher=submitit_slurm", *(f"hydra.launcher.{option}" for option in options), "lr=0.02"]
        config = compose("train", overrides, return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert [launcher.timeout_min, launcher.gpus_per_node, launcher.cpus_per_task] == [60, 1, 8]
    assert config.optimizer.lr == 0.02
