"""Options of the trainer that switch something for the time of its runs, or are refused."""

import os
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins import CheckpointIO, Precision, TorchCheckpointIO
from torch import nn
from torch.optim import LBFGS, SGD

from framework import Trainer
from framework.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar
from tests.modules import Regressor, assert_close, assert_same, at_step, callback_of, make_loader, make_trainer
from tests.twins import make_lightning_trainer, momentum, twins_with

# --------------------------------------------------------------------------------------------------- at least so long


class StopsAt(pl.Callback):
    """Asks for the end after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.should_stop = True


@pytest.mark.parametrize("step", [1, 3, 4, 7])
@pytest.mark.parametrize(
    "options", [{}, {"min_steps": 5}, {"min_epochs": 2}, {"min_steps": 2, "min_epochs": 1}, {"min_epochs": 3}]
)
def test_a_run_goes_on_to_its_minimum(tmp_path, step, options):
    ours, theirs = twins_with(type("Plain", (), {}))
    trainer = make_trainer(tmp_path, callbacks=StopsAt(step), max_epochs=5, **options)
    trainer.fit(ours, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_lightning_trainer(tmp_path, callbacks=[StopsAt(step)], max_epochs=5, **options)
        other.fit(theirs, make_loader())
    assert trainer.global_step == other.global_step
    assert_close(ours, theirs, 1e-12)
    assert trainer.stopped_because == "should_stop"


def test_early_stopping_waits_for_the_minimum_also_in_a_continued_run(tmp_path):
    def fit(**options):
        callbacks = [EarlyStopping("val/loss", patience=1, min_delta=1e9), ModelCheckpoint(tmp_path)]
        trainer = make_trainer(tmp_path, callbacks=callbacks, max_epochs=9, min_epochs=5)
        module = Regressor()
        trainer.fit(module, make_loader(), make_loader(), **options)
        return module, trainer

    module, trainer = fit()
    assert trainer.current_epoch == 5
    assert trainer.stopped_because.startswith("early_stopping")
    save = at_step(5, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    make_trainer(tmp_path, callbacks=[EarlyStopping("val/loss", patience=1, min_delta=1e9), save], max_epochs=3).fit(
        Regressor(), make_loader(), make_loader()
    )
    resumed, again = fit(ckpt_path=tmp_path / "some.ckpt")
    assert again.current_epoch == 5
    assert_same(module, resumed)


def test_limits_and_signals_do_not_wait(tmp_path):
    trainer = make_trainer(tmp_path, min_steps=4, max_steps=4, callbacks=StopsAt(1), max_epochs=-1)
    trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 4
    interrupt = at_step(2, lambda trainer: trainer._stop.interrupt("SIGINT"))
    trainer = make_trainer(tmp_path, min_epochs=3, max_epochs=4, callbacks=interrupt)
    trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 2
    trainer = make_trainer(tmp_path, min_epochs=2, max_epochs=4, max_time={"seconds": 0})
    trainer.fit(Regressor(), make_loader())
    assert (trainer.current_epoch, trainer.stopped_because) == (2, "max_time")


@pytest.mark.parametrize("options", [{"min_steps": 5, "max_steps": 4}, {"min_epochs": 3, "max_epochs": 2}])
def test_a_minimum_beyond_the_limit_is_refused(options):
    with pytest.raises(ValueError, match=r"min_\w+=\d is more than max_\w+=\d, which ends the run before"):
        Trainer(accelerator="cpu", **options)


# -------------------------------------------------------------------------------------------------- switches of torch


def flags():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_anomaly_enabled(),
        "CUBLAS_WORKSPACE_CONFIG" in os.environ,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (False, False, False, False, False)),
        ({"deterministic": True}, (True, False, False, False, True)),
        ({"deterministic": "warn", "benchmark": True}, (True, True, True, False, True)),
        ({"benchmark": False, "detect_anomaly": True}, (False, False, False, True, False)),
    ],
)
def test_switches_are_set_during_a_run_and_as_before_afterwards(tmp_path, options, expected):
    before, seen = flags(), []

    def fail(*_):
        seen.append(flags())
        raise KeyError("on purpose")

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_epoch_end=fail), **options)
    with pytest.raises(KeyError):
        trainer.fit(Regressor(), make_loader())
    assert seen == [expected]
    assert flags() == before
    watch = callback_of(on_validation_batch_end=lambda *_: seen.append(flags()))
    make_trainer(tmp_path, callbacks=watch, **options).validate(Regressor(), make_loader(20), verbose=False)
    assert seen == [expected] * 2
    assert flags() == before


@pytest.mark.parametrize("optimize", [momentum, lambda module: LBFGS(module.parameters())])
def test_an_anomaly_names_where_it_came_from(tmp_path, optimize):
    class Anomalous(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) + (self.net[0].weight * 0).abs().sqrt().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the traceback of the forward pass comes as a warning
        with pytest.raises(RuntimeError, match="'AbsBackward0' returned nan"):
            make_trainer(tmp_path, detect_anomaly=True).fit(Anomalous(optimize), make_loader())


def test_a_deterministic_run_is_as_any_other(tmp_path):
    module, twin = Regressor(), Regressor()
    make_trainer(tmp_path, deterministic=True).fit(module, make_loader())
    make_trainer(tmp_path).fit(twin, make_loader())
    assert_same(module, twin)


# ------------------------------------------------------------------------------------------------------------ barebones


def test_barebones_leaves_out_all_but_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Logs(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("score", 1.0)
            return self.loss(batch)

    module, twin = Logs(), Regressor()
    trainer = Trainer(accelerator="cpu", barebones=True, max_epochs=2)
    with pytest.warns(UserWarning, match=r"log\('score'\) has no effect with Trainer\(barebones=True\)") as seen:
        trainer.fit(module, make_loader(), make_loader())
    assert len([one for one in seen if "log(" in str(one.message)]) == 1
    assert not list(tmp_path.iterdir())
    assert not any(isinstance(callback, ModelCheckpoint | ModelSummary | ProgressBar) for callback in trainer.callbacks)
    assert "score" not in trainer.callback_metrics
    make_trainer(tmp_path).fit(twin, make_loader())
    assert_same(module, twin)


@pytest.mark.parametrize(
    "option",
    [
        {"logger": True},
        {"enable_checkpointing": True},
        {"enable_progress_bar": True},
        {"enable_model_summary": True},
        {"num_sanity_val_steps": 1},
        {"log_every_n_steps": 5},
        {"fast_dev_run": True},
        {"detect_anomaly": True},
    ],
)
def test_what_contradicts_barebones_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"barebones=True leaves out what {name}={option[name]} asks for"):
        Trainer(accelerator="cpu", barebones=True, **option)


# --------------------------------------------------------------------------------------------------------------- others


def test_a_precision_plugin_is_used(tmp_path):
    class Halved(Precision):
        """Trains on half of every input."""

        precision = "32-true"

        def convert_input(self, data):
            return [data[0] / 2, data[1]]

    class Half(Regressor):
        def loss(self, batch):
            return nn.functional.mse_loss(self.net(batch[0] / 2), batch[1])

    module, twin = Regressor(), Half()
    make_trainer(tmp_path, plugins=Halved()).fit(module, make_loader())
    make_trainer(tmp_path).fit(twin, make_loader())
    assert_close(module, twin, 1e-12)


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            pl.plugins.MixedPrecision("bf16-mixed", "cpu"),
            "MixedPrecision of lightning.pytorch, which needs its trainer",
        ),
        ([TorchCheckpointIO()], "TorchCheckpointIO, which has no effect: checkpoints are written by the tr"),
    ],
)
def test_a_plugin_without_effect_is_refused(plugin, message):
    assert issubclass(TorchCheckpointIO, CheckpointIO)
    with pytest.raises(ValueError, match=message):
        Trainer(accelerator="cpu", plugins=plugin)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"deterministic": "yes"}, "deterministic='yes'; it must be True, False, 'warn' or None"),
        ({"benchmark": 1}, "benchmark=1; it must be True, False or None"),
        ({"min_epochs": -1}, "min_epochs=-1; it must be an integer >= 0, or None"),
        ({"barebones": "no"}, "barebones='no'; it must be True or False"),
        ({"sync_batchnorm": None}, "sync_batchnorm=None; it must be True or False"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Trainer(accelerator="cpu", logger=False, **option)


def test_hyperparameters_need_not_be_logged(tmp_path):
    class Kept(Regressor):
        def __init__(self, width=3):
            super().__init__(lambda module: SGD(module.parameters(), lr=0.1))
            self.save_hyperparameters()

    from lightning.fabric.loggers import Logger

    class Notes(Logger):
        name = version = "notes"

        def __init__(self):
            self.seen = []

        def log_metrics(self, metrics, step=None): ...

        def log_hyperparams(self, params, *args, **kwargs):
            self.seen.append(dict(params))

    logger = Notes()
    for logs in (False, True):
        make_trainer(tmp_path, logger=logger, enable_autolog_hparams=logs).fit(Kept(), make_loader())
    assert logger.seen == [{"width": 3}]
