"""Which curves share a chart in TensorBoard, and a run's row among others, also of runs that failed or went on."""

from contextlib import suppress

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from framework.dashboard import layout
from framework.loggers import TensorBoardLogger
from tests.modules import Penalized, at_step, make_loader, make_trainer


def values(folder, prefix):
    """Return what the event files of a folder hold, in order, under the tags that begin so."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return [value for event in events for value in event.summary.value if value.tag.startswith(prefix)]


def layouts(folder):
    """Return the charts of each layout in a folder, in order, as pairs of title and tags."""
    found = [Layout.FromString(value.tensor.string_val[0]) for value in values(folder, "custom_scalars")]
    return [
        [(chart.title, list(chart.multiline.tag)) for category in one.category for chart in category.chart]
        for one in found
    ]


def row(folder):
    """Return what a folder says of its row in the HParams tab, by tag; each tag is there once."""
    found = {}
    for value in values(folder, "_hparams_/"):
        assert value.tag not in found
        found[value.tag.removeprefix("_hparams_/")] = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    return found


class Tuned(Penalized):
    def __init__(self, rate=0.05):
        super().__init__()
        self.save_hyperparameters()


def train(folder, *callbacks, ckpt_path=None, max_epochs=3):
    logger = TensorBoardLogger(folder, name="", version="tb")
    trainer = make_trainer(folder, logger=logger, log_every_n_steps=2, max_epochs=max_epochs, callbacks=list(callbacks))
    trainer.fit(Tuned(), make_loader(), make_loader(), ckpt_path=ckpt_path)
    return folder / "tb"


def fail(trainer):
    raise ValueError("on purpose")


# ------------------------------------------------------------------------------------------------------------ charts


def test_training_and_validation_share_a_chart_and_losses_come_first():
    tags = [
        "val/accuracy",
        "train/accuracy",
        "val/loss",
        "train/loss",
        "train/loss_epoch",
        "val/alone",
        "lr/a",
        "lr-SGD",
    ]
    charts = layout(tags)
    assert list(charts["Losses"].items()) == [
        ("loss: training and validation", ["val/loss$", "train/loss_epoch$"]),
        ("accuracy: training and validation", ["val/accuracy$", "train/accuracy$"]),
    ]
    assert charts["Optimization"] == {"learning rates": ["lr[/-].+$"]}


def test_names_in_lightnings_style_and_a_prefix_are_known():
    charts = layout(["a.b-val_loss", "a.b-train_loss_epoch", "a.b-grad_norm"], "a.b-")
    assert charts["Losses"] == {"loss: training and validation": [r"a\.b\-val_loss$", r"a\.b\-train_loss_epoch$"]}
    assert charts["Optimization"] == {"gradient norm": [r"a\.b\-grad_norm$"]}


def test_a_run_whose_curves_share_nothing_has_no_charts():
    assert layout(["a", "b"]) == {}


def test_the_last_layout_shows_what_was_logged(tmp_path):
    *_, last = layouts(train(tmp_path))
    assert [title for title, _ in last] == [
        "loss: training and validation",
        "f, g and f + g",
        "sparsity: share of exact zeros",
        "evaluations",
        "learning rates",
        "gradient norm",
    ]
    assert dict(last)["f, g and f + g"] == ["train/penalty$", "train/loss$", "train/objective$"]


# --------------------------------------------------------------------------------------------------------------- rows


def test_a_row_has_its_hyperparameters_and_an_end(tmp_path):
    found = row(train(tmp_path))
    assert found["session_start_info"].session_start_info.hparams["rate"].number_value == 0.05
    assert found["session_end_info"].session_end_info.status == Status.Value("STATUS_SUCCESS")


def test_a_run_that_failed_has_a_row(tmp_path):
    with pytest.raises(ValueError, match="on purpose"):
        train(tmp_path, at_step(4, fail))
    found = row(tmp_path / "tb")
    assert "rate" in found["session_start_info"].session_start_info.hparams
    assert found["session_end_info"].session_end_info.status == Status.Value("STATUS_FAILURE")


@pytest.mark.parametrize("first", [1, 5])
def test_a_run_that_goes_on_says_everything_once(tmp_path, first):
    whole = train(tmp_path / "whole")
    saving = at_step(first, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    with suppress(ValueError):
        train(tmp_path / "parts", saving, at_step(7, fail))
    parts = train(tmp_path / "parts", ckpt_path=tmp_path / "some.ckpt")
    assert layouts(parts) == layouts(whole)
    assert row(parts) == row(whole)


def test_hyperparameters_of_several_calls_are_one_row(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tb", prefix="p")
    logger.log_hyperparams({"net": {"width": 3}, "on": True}, ["loss"])
    logger.log_hyperparams({"lr": 0.1, "rule": "sgd"}, ["accuracy"], first=["lr"], name="mine")
    logger.finalize("success")
    found = row(tmp_path / "tb")
    start = found["session_start_info"].session_start_info
    assert (start.group_name, start.hparams["on"].bool_value, start.hparams["net/width"].number_value) == (
        "mine",
        True,
        3,
    )
    experiment = found["experiment"].experiment
    assert [metric.name.tag for metric in experiment.metric_infos] == ["p-loss", "p-accuracy"]
    assert [column.name for column in experiment.hparam_infos if column.differs] == ["lr"]
