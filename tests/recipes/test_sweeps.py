"""Sweeps by Hydra's plugins: jobs at the same time, on a cluster, and values that a sweeper chooses."""

import json

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from recipes.cli import CONF

QUIET = ("logger=csv", "trainer.enable_model_summary=false", "trainer.enable_progress_bar=false")


def test_an_unknown_metric_to_optimize_is_refused_by_name(proxtrain):
    refused = proxtrain("epochs=2", "optimized_metric=val/los", *QUIET)
    assert refused.code == 1
    assert "optimized_metric=val/los: the run has no such metric, but closure_evaluations, " in refused.stderr


@pytest.mark.slow
def test_joblib_runs_jobs_at_the_same_time_each_in_its_folder(proxtrain, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    one = proxtrain("epochs=2", "lr=0.02", *QUIET).folder
    arguments = ("-m", "hydra/launcher=joblib", "epochs=2", "lr=0.01,0.02", "hydra.sweep.dir=sweep", *QUIET)
    assert proxtrain(*arguments).code == 0
    folders = [tmp_path / "sweep" / job for job in ("0", "1")]
    assert [OmegaConf.load(folder / "config.yaml").lr for folder in folders] == [0.01, 0.02]
    metrics = [json.loads((folder / "summary.json").read_text())["metrics"] for folder in (*folders, one)]
    assert metrics[1] == pytest.approx(metrics[2], rel=1e-4)
    assert all((folder / "checkpoints" / "last.ckpt").exists() for folder in folders)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Optuna 2, which the sweeper needs
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:optuna")
def test_optuna_minimizes_the_metric_that_a_run_returns(proxtrain, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweeper = [
        f"hydra.sweeper.{option}" for option in ("n_trials=3", "n_jobs=1", "direction=minimize", "sampler.seed=1")
    ]
    arguments = ("hydra/sweeper=optuna", *sweeper, "lr=interval(0.001,0.1)", "optimized_metric=train/loss_epoch")
    assert proxtrain("-m", *arguments, "epochs=3", "hydra.sweep.dir=sweep", *QUIET).code == 0
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    jobs = [tmp_path / "sweep" / job for job in ("0", "1", "2")]
    losses = [json.loads((job / "summary.json").read_text())["metrics"]["train/loss_epoch"] for job in jobs]
    assert found.best_value == min(losses)
    best = jobs[losses.index(min(losses))]
    assert found.best_params.lr == OmegaConf.load(best / "config.yaml").lr


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
