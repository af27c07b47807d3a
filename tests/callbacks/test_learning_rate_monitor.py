"""Learning rates under Lightning's names: the same values at the same steps, each once."""

from collections import Counter
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.loggers import Logger
from torch.optim import SGD, Adagrad, Adam
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from framework.callbacks import LearningRateMonitor, ModelCheckpoint
from framework.loggers import CSVLogger
from framework.optim import ISTA, MinimizeWrapper
from tests.callbacks.pairs import BATCHES, fit_ours, fit_theirs
from tests.modules import Penalized, Regressor, at_step, make_loader, make_trainer

SCORES = [0.0] * 4


class Recorder(Logger):
    """Keeps what it gets of the learning rates: (step, name, value)."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, float]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.rows += [(step, name, float(value)) for name, value in metrics.items() if not name.startswith("train/")]

    def log_hyperparams(self, *args: Any) -> None: ...

    def monitored(self) -> list[tuple[int, str, float]]:
        return sorted(row for row in self.rows if row[1].startswith(("lr-", "mine")))


class TheirRecorder(Recorder, pl.loggers.Logger):
    """The same for Lightning."""


def groups(module: Any, **options: Any) -> list[dict[str, Any]]:
    return [{"params": [module.layer.weight], **options}, {"params": [module.layer.bias], "lr": 0.5}]


def by_step(module: Any) -> Any:
    optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 2, 0.5), "interval": "step"}}


def by_epoch(module: Any) -> Any:
    optimizer = Adam(groups(module, weight_decay=0.1), lr=0.1, betas=(0.8, 0.9))
    return [optimizer], [ExponentialLR(optimizer, 0.5)]


def named(module: Any) -> Any:
    optimizer = SGD([{**group, "name": name} for group, name in zip(groups(module), "ab", strict=True)], lr=0.1)
    return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.5), "name": "mine"}]


def one_named(module: Any) -> Any:
    return SGD([{"params": list(module.parameters()), "name": "all"}], lr=0.1)


@pytest.mark.parametrize("optimize", [by_step, by_epoch, named, one_named, None])
@pytest.mark.parametrize("interval", [None, "step", "epoch"])
def test_what_is_logged_is_what_lightning_logs(tmp_path, optimize, interval):
    options = {"logging_interval": interval, "log_momentum": True, "log_weight_decay": True}
    ours, theirs = Recorder(), TheirRecorder()
    shared = {"optimize": optimize, "log_every_n_steps": 1}
    fit_ours(tmp_path, LearningRateMonitor(**options), SCORES, logger=ours, **shared)
    fit_theirs(tmp_path, pl.callbacks.LearningRateMonitor(**options), SCORES, logger=theirs, **shared)
    # Without a scheduler Lightning logs the first step of an epoch twice.
    assert ours.monitored() == sorted(set(theirs.monitored()))
    assert ours.monitored()
    assert max(Counter((step, name) for step, name, _ in ours.rows).values()) == 1


def test_steps_are_those_that_are_logged(tmp_path):
    logger = Recorder()
    fit_ours(tmp_path, LearningRateMonitor("step"), SCORES, logger=logger, log_every_n_steps=5)
    assert [step for step, _, _ in logger.monitored()] == [0, 5, 10]
    assert [step for step, name, _ in logger.rows if name == "lr/0"] == [0, 5, 10]


def test_a_value_is_as_before_the_step(tmp_path):
    logger = Recorder()
    fit_ours(tmp_path, LearningRateMonitor(), SCORES, logger=logger, optimize=by_step, log_every_n_steps=1)
    ours, theirs = ([row[::2] for row in logger.rows if row[1] == name] for name in ("lr-SGD", "lr/0"))
    assert ours == theirs


@pytest.mark.parametrize("step", [2, 3, 4, 6, 7])
@pytest.mark.parametrize("interval", [None, "epoch", "step"])
def test_a_continued_run_logs_what_the_uninterrupted_one_does(tmp_path, step, interval):
    def fit(folder: str, *before: Any, **options: Any) -> bytes:
        logger = CSVLogger(tmp_path / folder, name="", version="")
        options |= {"logger": logger, "log_every_n_steps": 2, "before": before}
        fit_ours(tmp_path, LearningRateMonitor(interval), SCORES, **options)
        return (tmp_path / folder / "metrics.csv").read_bytes()

    save = at_step(step, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    whole = fit("whole")
    fit("parts", save, max_steps=step + 1)
    assert fit("parts", ckpt_path=tmp_path / "some.ckpt") == whole


def test_without_a_logger_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"LearningRateMonitor has no logger .*: pass Trainer\(logger=True\), or drop"):
        fit_ours(tmp_path, LearningRateMonitor(), SCORES)
    fit_ours(tmp_path, LearningRateMonitor(), SCORES, fast_dev_run=True)


def test_a_wrong_interval_is_refused():
    with pytest.raises(ValueError, match="logging_interval='batch'; it must be 'step', 'epoch' or None"):
        LearningRateMonitor("batch")


def test_groups_of_one_name_are_refused(tmp_path):
    def optimize(module: Any) -> Any:
        return SGD([{**group, "name": "same"} for group in groups(module)], lr=0.1)

    with pytest.raises(ValueError, match=r"two parameter groups of SGD have one name .*: give each its own"):
        fit_ours(tmp_path, LearningRateMonitor(), SCORES, optimize=optimize, logger=Recorder())


@pytest.mark.parametrize(
    ("optimize", "option", "message"),
    [
        (lambda m: Adagrad(m.parameters()), "log_momentum", "Adagrad has no momentum: log_momentum=True logs 0 for it"),
        (lambda m: ISTA(m.param_groups(), None), "log_weight_decay", "ISTA has no weight_decay: log_weight_decay=True"),
        (
            lambda m: MinimizeWrapper(m.parameters(), {"method": "L-BFGS-B", "options": {"maxiter": 2}}),
            "log_momentum",
            "MinimizeWrapper has no learning rate, so there is nothing to log",
        ),
    ],
)
def test_what_an_optimizer_does_not_have_is_named(tmp_path, optimize, option, message):
    kind = Penalized if "ISTA" in message else Regressor
    logger = Recorder()
    trainer = make_trainer(
        tmp_path, callbacks=LearningRateMonitor(**{option: True}), logger=logger, accumulate_grad_batches="epoch"
    )
    with pytest.warns(UserWarning, match=message):
        trainer.fit(kind(optimize), make_loader())
    assert bool(logger.monitored()) == ("nothing" not in message)


def test_it_costs_nothing_on_steps_that_are_not_logged(tmp_path):
    callbacks = [LearningRateMonitor(), ModelCheckpoint(tmp_path)]
    logger = Recorder()
    trainer = make_trainer(tmp_path, callbacks=callbacks, logger=logger, max_epochs=2)
    trainer.fit(Regressor(lambda m: SGD(m.parameters(), lr=torch.tensor(0.1))), make_loader())
    assert [step for step, _, _ in logger.monitored()] == [0, BATCHES]
