"""Validation within epochs: when it happens, against Lightning, and that nothing else changes."""

import csv
import math
import signal
import warnings
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanSquaredError

import framework.callbacks
from framework import Callback
from framework.callbacks import EarlyStopping
from framework.loggers import CSVLogger
from tests.modules import (
    NoisyDataset,
    Regressor,
    Stream,
    assert_close,
    assert_same,
    callback_of,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    seed_all,
)
from tests.twins import make_lightning_trainer, momentum, twins_with


class Notes:
    """Notes how far training is at each validation; dropout, so that its mode matters."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[Any] = []

    def on_validation_start(self):
        self.seen.append((self.current_epoch, self.global_step))

    def on_train_epoch_end(self):
        self.seen.append("epoch")

    def training_step(self, batch, batch_idx):
        assert self.training
        loss = self.loss(batch)
        self.log("train", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        assert not self.training
        self.log("val/loss", self.loss(batch))


def train_both(root, batch_size=2, val=None, optimize=None, **options):
    """Train the twins on 20 samples; return them and their trainers."""
    ours, theirs = twins_with(Notes, optimize)
    val = val or make_loader
    trainer = make_trainer(root, num_sanity_val_steps=0, **options)
    trainer.fit(ours, make_loader(batch_size), val())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_lightning_trainer(root, **options)
        other.fit(theirs, make_loader(batch_size), val())
    assert_close(ours, theirs, 1e-12)
    return ours, theirs, trainer, other


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2, None])
@pytest.mark.parametrize("interval", [1, 3, 4, 10, 0.1, 0.25, 0.3, 0.5, 0.99, 1.0])
def test_validation_happens_when_it_does_under_lightning(tmp_path, interval, every):
    if every is None and isinstance(interval, float):
        return  # refused by both
    options = {"val_check_interval": interval, "check_val_every_n_epoch": every, "max_epochs": 4}
    ours, theirs, trainer, other = train_both(tmp_path, **options)
    assert ours.seen == theirs.seen
    assert len(ours.seen) > 4
    assert trainer.callback_metrics["val/loss"] == pytest.approx(float(other.callback_metrics["val/loss"]))
    assert trainer.callback_metrics["train"] == pytest.approx(float(other.callback_metrics["train"]))


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 13, "check_val_every_n_epoch": None},
        {"val_check_interval": 2, "limit_train_batches": 5},
        {"val_check_interval": 0.5, "limit_train_batches": 0.6},
        {"val_check_interval": 3, "overfit_batches": 4},
        {"val_check_interval": 3, "max_steps": 6, "max_epochs": -1},
        {"val_check_interval": 5, "fast_dev_run": 3},
        {"val_check_interval": 0.25, "val": lambda: [make_loader(), make_loader(3)]},
        {"val_check_interval": 4, "limit_val_batches": 1},
    ],
)
def test_other_settings_are_respected(tmp_path, options):
    ours, theirs, _, _ = train_both(tmp_path, **{"max_epochs": 3, **options})
    assert ours.seen == theirs.seen
    assert ours.seen


@pytest.mark.parametrize("interval", [1, 2, 3, 5, 0.25, 0.5])
@pytest.mark.parametrize("size", [2, 3])
def test_validation_waits_for_the_end_of_a_group(tmp_path, interval, size):
    """Ten batches in groups: Lightning validates in the middle of a group, on gradients that no step has used yet."""
    ours, _ = twins_with(Notes)
    options = {"val_check_interval": interval, "accumulate_grad_batches": size, "num_sanity_val_steps": 0}
    make_trainer(tmp_path, max_epochs=1, **options).fit(ours, make_loader(2), make_loader())
    in_batches = max(1, int(10 * interval)) if isinstance(interval, float) else interval
    expected, since = [], 0
    for step, end in enumerate([*range(size, 10, size), 10], 1):
        since += size if end < 10 or 10 % size == 0 else 10 % size
        if since >= in_batches:
            expected.append((0, step))
            since %= in_batches
    assert [entry for entry in ours.seen if entry != "epoch"] == expected


def test_a_stream_without_length_is_validated_on_within_it(tmp_path):
    ours, _ = twins_with(Notes)
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    make_trainer(tmp_path, max_epochs=3, **options).fit(ours, Stream(), make_loader())
    assert ours.seen == [(0, 2), "epoch", (1, 4), (1, 6), "epoch", (2, 8), "epoch"]


@pytest.mark.parametrize("optimize", [lambda m: LBFGS(m.parameters(), max_iter=3), lambda m: SGD(m.parameters(), 0.1)])
def test_validation_within_epochs_changes_nothing_of_training(tmp_path, optimize):
    def fit(**options):
        seed_all(0)
        module = type("Noted", (Notes, Regressor), {})(optimize, make_net(torch.nn.Dropout(0.3)))
        data = torch.utils.data.DataLoader(NoisyDataset(*regression_data()), batch_size=3, shuffle=True)
        trainer = make_trainer(tmp_path, num_sanity_val_steps=0, **options)
        trainer.fit(module, data, data)
        return module, trainer

    module, trainer = fit(val_check_interval=2)
    twin, other = fit(limit_val_batches=0)
    assert_same(module, twin)
    assert trainer.callback_metrics["train"] == other.callback_metrics["train"]
    assert trainer.callback_metrics["train/loss_epoch"] == other.callback_metrics["train/loss_epoch"]


def test_monitors_look_after_every_validation_as_under_lightning(tmp_path):
    class Scored(Notes):
        def validation_step(self, batch, batch_idx):
            self.log("score", float((self.global_step * 7) % 10))

    made = []
    for source, make, module in zip(
        (framework.callbacks, pl.callbacks), (make_trainer, make_lightning_trainer), twins_with(Scored), strict=True
    ):
        folder = tmp_path / source.__name__
        stopping = source.EarlyStopping("score", patience=4)
        checkpoint = source.ModelCheckpoint(folder, "{step}", "score", save_top_k=2)
        options = {"num_sanity_val_steps": 0, "val_check_interval": 3, "max_epochs": 3, "enable_checkpointing": True}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = make(tmp_path, callbacks=[stopping, checkpoint], **options)
            trainer.fit(module, make_loader(2), make_loader())
        scores = float(stopping.best_score), float(checkpoint.best_model_score)
        files = sorted(path.name for path in folder.glob("step*"))
        made.append((trainer.global_step, stopping.wait_count, *scores, files))
    assert made[0] == made[1]


def test_a_plateau_scheduler_is_stepped_at_the_end_of_an_epoch(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val/loss"}

    _, _, trainer, other = train_both(tmp_path, optimize=optimize, val_check_interval=3, max_epochs=4)
    assert trainer.optimizer.param_groups[0]["lr"] == other.optimizers[0].param_groups[0]["lr"]


# --------------------------------------------------------------------------------------------------------- continuing


def run(folder, *, stop_at=None, hook="on_train_batch_end", interval=3, every=1, **options):
    """Train for three epochs of ten batches, logging to a CSV file; save and stop at the nth call of a hook."""
    module = type("Noted", (Notes, Regressor), {})(lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9))
    count = 0

    def at_hook(trainer, *_):
        nonlocal count
        count += 1
        if count == stop_at:
            trainer.save_checkpoint(folder / "some.ckpt")
            raise KeyboardInterrupt

    callbacks = [EarlyStopping("val/loss", patience=20), callback_of(after_module=True, **{hook: at_hook})]
    trainer = make_trainer(
        folder,
        callbacks=callbacks,
        max_epochs=3,
        num_sanity_val_steps=0,
        val_check_interval=interval,
        check_val_every_n_epoch=every,
        log_every_n_steps=1,
        logger=CSVLogger(folder, flush_logs_every_n_steps=1),
    )
    seed_all(1)
    with suppress(KeyboardInterrupt):
        trainer.fit(module, make_loader(2, shuffle=True), make_loader(), **options)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return module, trainer, rows, callbacks[0]


@pytest.mark.parametrize(("interval", "every"), [(3, 1), (4, None)])
@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_validation_start", "on_validation_batch_end", "on_validation_end"]
)
def test_a_run_that_was_saved_anywhere_ends_as_the_uninterrupted_one(tmp_path, hook, interval, every):
    (tmp_path / "whole").mkdir()
    whole, trainer, rows, stopping = run(tmp_path / "whole", interval=interval, every=every)
    for stop_at in (2, 3, 6):
        folder = tmp_path / f"{hook}{stop_at}"
        folder.mkdir()
        run(folder, stop_at=stop_at, hook=hook, interval=interval, every=every)
        resumed, again, others, other = run(folder, interval=interval, every=every, ckpt_path=folder / "some.ckpt")
        assert_same(whole, resumed)
        assert others == rows
        assert again.callback_metrics == trainer.callback_metrics
        assert (other.wait_count, other.best) == (stopping.wait_count, stopping.best)


class Watched(Notes):
    """Logs torchmetrics in training and in validation, and a score that goes up and down."""

    def __init__(self, *args):
        super().__init__(*args)
        self.train_error, self.error = MeanSquaredError(), MeanSquaredError()

    def training_step(self, batch, batch_idx):
        self.train_error.update(self.net(batch[0]).detach().float(), batch[1].float())
        self.log("train/error", self.train_error, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.error.update(self.net(batch[0]).float(), batch[1].float())
        self.log("val/error", self.error)
        self.log("score", float((self.global_step * 7) % 10), on_step=True, on_epoch=True)


class Counting(Callback):
    """Counts batches of validation, in a list that is part of its state as it is."""

    def __init__(self):
        self.counts: list[int] = []

    def on_validation_batch_end(self, trainer, *_):
        self.counts.append(trainer.global_step)

    def state_dict(self):
        return {"counts": self.counts}

    def load_state_dict(self, state_dict):
        self.counts = list(state_dict["counts"])


def watched(folder, how, stop_at, hook, patience, **options):
    """Train; end the run at the nth call of a hook, and save what is left of it then. Return what it ended with."""
    count, ckpt_path = 0, options.pop("ckpt_path", None)

    def at_hook(trainer, *_):
        nonlocal count
        count += 1
        if count == stop_at and how == "signal":
            signal.raise_signal(signal.SIGINT)
        elif count == stop_at:
            raise KeyError("here")

    def save(trainer, *_):
        trainer.save_checkpoint(folder / "some.ckpt")

    score = "score_step" if patience == 3 else "score"
    callbacks = [
        stopping := EarlyStopping(score, patience=patience),
        counting := Counting(),
        callback_of(**{hook: at_hook, "on_exception": save}),
        checkpoint := framework.callbacks.ModelCheckpoint(folder / "kept", "{step}", "score", save_top_k=2),
    ]
    module = type("Module", (Watched, Regressor), {})(momentum)
    logger = CSVLogger(folder, flush_logs_every_n_steps=1)
    settings = {"max_epochs": 3, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "logger": logger, **options}
    trainer = make_trainer(folder, callbacks=callbacks, **settings)
    seed_all(1)
    loaders = make_loader(2, shuffle=True), make_loader()
    with suppress(KeyError):
        trainer.fit(module, *loaders, ckpt_path=ckpt_path)
        if count >= (stop_at or math.inf):
            save(trainer)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    kept = sorted(path.name for path in (folder / "kept").glob("*"))
    decisions = stopping.wait_count, stopping.stopped_epoch, stopping.best, checkpoint.best, kept
    progress = {name: value for name, value in vars(trainer.progress).items() if name != "epoch_rng"}
    state = trainer.global_step, progress, trainer.callback_metrics
    return module, (decisions, counting.counts, state, rows)


@pytest.mark.parametrize(
    ("options", "patience"),
    [
        ({"val_check_interval": 3}, 2),
        ({"val_check_interval": 5}, 3),
        ({"val_check_interval": 1.0}, 20),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 8}, 20),
        ({"val_check_interval": 5, "max_steps": 20}, 20),
        ({"val_check_interval": 4, "accumulate_grad_batches": 4}, 2),
        ({"val_check_interval": 1, "accumulate_grad_batches": "epoch"}, 20),
    ],
)
@pytest.mark.parametrize("how", ["signal", "error"])
def test_a_run_that_ends_within_a_validation_makes_it_again_when_continued(tmp_path, how, options, patience):
    """What its hooks did until then does not count: in the first validation, one in the middle and the last."""
    (tmp_path / "whole").mkdir()
    module, whole = watched(tmp_path / "whole", how, None, "on_validation_start", patience, **options)
    num_validations = len(whole[1]) // 3  # of three batches
    for hook, stop_at in (
        ("on_validation_end", 1),
        ("on_validation_start", (num_validations + 1) // 2),
        ("on_validation_batch_end", 3 * num_validations - 1),
    ):
        folder = tmp_path / hook
        folder.mkdir()
        watched(folder, how, stop_at, hook, patience, **options)
        again, resumed = watched(folder, how, None, hook, patience, ckpt_path=folder / "some.ckpt", **options)
        assert_same(module, again)
        assert resumed == whole


def test_a_signal_in_the_validation_that_is_made_again_lets_no_step_slip_in(tmp_path):
    options = {"val_check_interval": 3}
    (tmp_path / "whole").mkdir()
    module, whole = watched(tmp_path / "whole", "signal", None, "on_validation_start", 20, **options)
    watched(tmp_path, "signal", 2, "on_validation_batch_end", 20, **options)
    for _ in range(2):
        watched(tmp_path, "signal", 1, "on_validation_start", 20, ckpt_path=tmp_path / "some.ckpt", **options)
    again, resumed = watched(
        tmp_path, "signal", None, "on_validation_start", 20, ckpt_path=tmp_path / "some.ckpt", **options
    )
    assert_same(module, again)
    assert resumed == whole


@pytest.mark.parametrize("interval", [1, 10, 0.5])
def test_monitors_look_after_each_validation_and_without_any_after_each_epoch(tmp_path, interval):
    """Lightning takes 1 for 1.0, and looks at the ends of epochs; without validation data it never stops."""

    def looks(val, **options):
        stopping = EarlyStopping("train", patience=99)
        seen: list[int] = []
        stopping.look = lambda trainer: seen.append(trainer.global_step)  # type: ignore[method-assign]
        options = {"callbacks": stopping, "num_sanity_val_steps": 0, "val_check_interval": interval, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it never looked
            make_trainer(tmp_path, max_epochs=2, **options).fit(twins_with(Notes)[0], make_loader(2), val)
        return seen

    in_batches = int(10 * interval) if isinstance(interval, float) else interval
    assert looks(make_loader()) == list(range(in_batches, 21, in_batches))
    assert looks(None) == looks(make_loader(), limit_val_batches=0) == [10, 20]


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "loader", "message"),
    [
        ({"val_check_interval": 0}, None, "val_check_interval=0; it must be a number of training batches"),
        ({"val_check_interval": 1.5}, None, "val_check_interval=1.5; it must be a number of training batches"),
        ({"val_check_interval": 11}, None, "val_check_interval=11 is more than the 10 batches of an epoch"),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": None}, None, "it must be an integer"),
        ({"val_check_interval": 0.5}, Stream(), "is a fraction of an epoch, whose length is unknown"),
    ],
)
def test_an_interval_that_makes_no_sense_is_refused(tmp_path, options, loader, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options).fit(Regressor(), loader or make_loader(2), make_loader())


def test_the_whole_epoch_as_one_step_is_validated_on_at_its_end(tmp_path):
    ours, _ = twins_with(Notes)
    options = {"val_check_interval": 3, "accumulate_grad_batches": "epoch", "num_sanity_val_steps": 0}
    make_trainer(tmp_path, max_epochs=2, **options).fit(ours, make_loader(2), make_loader())
    assert ours.seen == [(0, 1), "epoch", (1, 2), "epoch"]
    assert math.isfinite(ours.trainer.callback_metrics["val/loss"])
