"""What a run shows in TensorBoard besides curves: text, graph, histograms, pictures with a slider, a row of its own."""

import csv
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import Status

from framework.recipes.dashboard import hyperparameters
from framework.recipes.train import run
from tests.recipes.test_recipes import configure
from tests.test_dashboard import layouts, row, values

QUIET = ("trainer.enable_model_summary=false", "trainer.enable_progress_bar=false")


def events(folder):
    return EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0, "histograms": 0}).Reload()


def texts(folder, name):
    tag = f"run/{name}/text_summary"
    return [value.tensor.string_val[0].decode() for value in values(folder / "tensorboard", tag)]


def image_steps(folder, tag):
    return [event.step for event in events(folder).Images(tag)]


def start(folder):
    return row(folder / "tensorboard")["session_start_info"].session_start_info


def test_a_run_says_what_it_is(proxtrain):
    folder = proxtrain("optimizer=sgd", "trainer.max_epochs=10", "optimizer.momentum=0.5", *QUIET).folder
    (command,), (configuration,), (model,) = (texts(folder, name) for name in ("command", "configuration", "model"))
    assert command.startswith("```\nproxtrain \\\n  optimizer=sgd \\\n  trainer.max_epochs=10")
    assert OmegaConf.create(configuration.strip("`\n")).optimizer.momentum == 0.5
    assert "network.1  Linear" in model
    found = start(folder)
    assert found.group_name.startswith("optimizer=sgd, toy_regression, trainer.max_epochs=10, optimizer.momentum=0.5, ")
    assert found.group_name.endswith(folder.name)


def test_a_row_has_what_was_in_effect(tmp_path):
    overrides = ["optimizer=adam", "optimizer.lr=0.5", "trainer.max_epochs=10", "model.hidden=[7]", "penalty=l1"]
    found = hyperparameters(configure("toy_regression", tmp_path, *overrides))
    assert {key: found[key] for key in ("recipe", "optimizer", "lr", "model", "penalty", "happy_lambda")} == {
        "recipe": "toy_regression",
        "optimizer": "Adam",
        "lr": 0.5,
        "model": "MLP",
        "penalty": "L1",
        "happy_lambda": 0.001,
    }
    assert (found["model/hidden"], found["batch_size"]) == ([7], 10)
    assert not {"epochs", "ckpt_path", "mlp", "task", "val_every"} & found.keys()
    plain = hyperparameters(configure("toy_regression", tmp_path))
    assert plain["penalty"] == "none"
    assert "happy_lambda" not in plain


def test_the_columns_that_one_compares_come_first(proxtrain):
    folder = proxtrain("seed=3", "epochs=2", *QUIET).folder
    experiment = row(folder / "tensorboard")["experiment"].experiment
    shown = {column.name for column in experiment.hparam_infos if column.differs}
    assert shown == {"seed", "optimizer", "lr", "penalty", "model"}
    metrics = [metric.name.tag for metric in experiment.metric_infos]
    assert metrics == ["val/loss", "train/loss_epoch", "closure_evaluations", "epoch"]
    assert events(folder).Scalars("epoch")[-1].value == 2


def test_an_optimizer_without_a_learning_rate_leaves_the_column_to_others(proxtrain):
    folder = proxtrain("optimizer=sparsa", "penalty=l1", "epochs=1", *QUIET).folder
    columns = row(folder / "tensorboard")["experiment"].experiment.hparam_infos
    assert {column.name for column in columns if column.differs} == {"optimizer", "lr", "penalty", "model", "recipe"}
    assert "lr" not in start(folder).hparams


def test_pictures_are_drawn_while_it_trains_and_change_nothing(proxtrain):
    folder = proxtrain("epochs=9", "val_every=3", *QUIET).folder
    assert image_steps(folder, "fit") == [8, 16, 32, 64, 72]
    assert image_steps(folder, "loss") == [72]
    without = proxtrain("epochs=9", "val_every=3", "logger.pictures=false", *QUIET).folder
    assert image_steps(without, "fit") == [72]
    assert (folder / "metrics.csv").read_bytes() == (without / "metrics.csv").read_bytes()


def test_the_path_of_a_function_is_drawn_as_far_as_it_has_come(proxtrain):
    folder = proxtrain("recipe=function", "epochs=3", *QUIET).folder
    assert image_steps(folder, "path") == [1, 2, 3]


def test_the_first_layer_of_a_sparse_network_is_drawn_after_each_stage(proxtrain):
    path = [f"callbacks.penalty_path.{option}" for option in ("window=1", "max_epochs=2")]
    stages = "callbacks.penalty_path.stages=[{share: 0.1}, {share: 0.5}]"
    folder = proxtrain("recipe=sparse_mlp", "data.num_samples=60", "trainer.max_epochs=6", stages, *path, *QUIET).folder
    assert image_steps(folder, "first_layer") == [2, 4, 6]
    assert (folder / "plots" / "first_layer.png").exists()
    titles = [title for title, _ in layouts(folder / "tensorboard")[-1]]
    assert {"sparsity: share of exact zeros", "lambda along the path", "f, g and f + g"} <= set(titles)


def test_graph_and_histograms_are_there_on_request(proxtrain):
    folder = proxtrain("model.dropout=0.5", "epochs=2", "logger.graph=true", "logger.histograms=8", *QUIET).folder
    found = events(folder)
    assert found.Tags()["graph"]
    assert [event.step for event in found.Histograms("parameters/network.1.weight")] == [0, 8]
    without = proxtrain("model.dropout=0.5", "epochs=2", *QUIET).folder
    assert not events(without).Tags()["graph"]

    def losses(run):
        with (run / "metrics.csv").open() as file:
            return [line["train/loss_epoch"] for line in csv.DictReader(file)]

    assert [loss for loss in losses(folder) if loss] == [loss for loss in losses(without) if loss]


def test_a_run_that_failed_has_its_row_with_the_metrics_as_of_then(tmp_path: Path):
    config = configure("toy_regression", tmp_path, "optimizer=sgd", "optimizer.lr=1e6", "logger.pictures=false")
    with pytest.raises(ValueError, match="diverged"):
        run(config, tmp_path)
    found = row(tmp_path / "tensorboard")
    assert found["session_start_info"].session_start_info.hparams["lr"].number_value == 1e6
    assert found["session_end_info"].session_end_info.status == Status.Value("STATUS_FAILURE")
    last = events(tmp_path).Scalars("train/loss")[-1]
    assert last.step > 0
    assert not math.isfinite(last.value)


def test_a_run_that_goes_on_shows_everything_once(proxtrain):
    whole = proxtrain("epochs=8", "lr=0.02", *QUIET).folder
    folder = proxtrain("epochs=8", "lr=0.02", *QUIET, "trainer.max_steps=20").folder
    assert proxtrain(f"resume={folder}", "trainer.max_steps=-1").code == 0
    assert image_steps(folder, "fit") == image_steps(whole, "fit") == [8, 16, 32, 64]
    assert layouts(folder / "tensorboard") == layouts(whole / "tensorboard")
    assert start(folder).hparams == start(whole).hparams
    # What was changed is told, at the step of the change.
    assert len(texts(folder, "configuration")) == 2
    assert len(texts(whole, "configuration")) == 1
    (folder / "summary.json").unlink()
    assert proxtrain(f"resume={folder}").code == 0
    assert len(texts(folder, "configuration")) == 2
