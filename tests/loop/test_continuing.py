"""Runs that were stopped anywhere and continued, against uninterrupted ones: parameters and logs, bitwise."""

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from lightning.fabric.loggers import Logger
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Sampler, TensorDataset
from torchmetrics import MeanSquaredError

from framework.callbacks import EarlyStopping, ModelCheckpoint
from framework.data import TensorLoader
from framework.optim import MinimizeWrapper
from tests.modules import (
    NoisyDataset,
    Regressor,
    add_noise,
    assert_same,
    assert_unchanged,
    at_step,
    callback_of,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    seed_all,
    watch,
)


class Rows(Logger):
    """A logger that keeps its rows in memory; given those of another, it goes on in its "folder"."""

    name, version = "rows", 0

    def __init__(self, rows: list[Any] | None = None) -> None:
        self.rows = [] if rows is None else rows

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any) -> None: ...

    def state_dict(self) -> dict[str, int]:
        return {"rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        del self.rows[state["rows"] :]


class Logging(Regressor):
    """Logs in all the ways there are."""

    def __init__(self, optimize: Any = None) -> None:
        super().__init__(optimize or plateau, make_net(nn.BatchNorm1d(5), nn.Dropout(0.3)))
        self.error = MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        X, y = batch
        prediction = self.net(X)
        loss = nn.functional.mse_loss(prediction, y)
        self.error(prediction.float(), y.float())
        self.log("train/error", self.error, on_step=False, on_epoch=True)
        self.log("train/mean", loss, on_step=True, on_epoch=True)
        self.log("train/sum", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        if batch_idx % 2:
            self.log("train/odd", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("train/after", self.net[0].weight.abs().sum())

    def on_train_epoch_end(self) -> None:
        self.log("norm", self.net[0].weight.norm())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch) + 0.01 * torch.rand(()), on_step=True, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        self.trainer.log_metrics({"by/hand": float(self.net[0].weight.sum())})


def plateau(module: Any) -> Any:
    optimizer = Adam(module.param_groups(), lr=0.05)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "norm"}}


def make_sgd(module: Any) -> Any:
    return SGD(module.param_groups(), lr=0.05, momentum=0.9)


def shuffled(num_samples: int = 20, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(
        TensorDataset(*regression_data(num_samples)), batch_size=4, shuffle=True, generator=generator, **options
    )


LOADERS = {
    "own_generator": shuffled,
    "global_generator": lambda: DataLoader(NoisyDataset(*regression_data()), batch_size=4, shuffle=True),
    "tensor_loader": lambda: TensorLoader(*regression_data(), batch_size=4, shuffle=True, transform=add_noise),
}


def fit(root: Any, loader: Any, *callbacks: Any, rows: Any = None, module: Any = Logging, **options: Any) -> Any:
    """Train as if in a new process; return the trainer and the rows that were logged."""
    ckpt_path = options.pop("ckpt_path", None)
    seed_all(0 if ckpt_path is None else 99)  # the checkpoint must override the seed
    logger = Rows(rows)
    watching = [callback_of(on_train_end=lambda trainer, module: trainer.log_metrics({"end": 1.0}))]
    options = {"max_epochs": 4, "log_every_n_steps": 2, **options}
    trainer = make_trainer(root, callbacks=[*watching, *callbacks], logger=logger, **options)
    trainer.fit(module(), loader(), make_loader(), ckpt_path=ckpt_path)
    return trainer, logger.rows


def assert_same_runs(continued: Any, whole: Any) -> None:
    (trainer, rows), (other, expected) = continued, whole
    assert_same(trainer.module, other.module)
    assert (trainer.global_step, trainer.current_epoch) == (other.global_step, other.current_epoch)
    assert trainer.closure_evaluations == other.closure_evaluations
    ours, theirs = trainer.optimizer.state_dict(), other.optimizer.state_dict()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert len(rows) == len(expected)
    for row, other_row in zip(rows, expected, strict=True):
        assert row == other_row


# ------------------------------------------------------------------------------------------------ limits and stops


# Five batches: the third step over two of them has one. The loader's generator draws once more at the end.
@pytest.mark.parametrize(
    ("accumulate", "steps"), [(1, 1), (1, 4), (1, 5), (1, 6), (1, 10), (2, 2), (2, 3), (5, 1), (5, 2)]
)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_that_a_limit_ended_goes_on_as_if_there_had_been_none(tmp_path, loader, steps, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    whole = fit(tmp_path, LOADERS[loader], **options)
    _, rows = fit(tmp_path, LOADERS[loader], ModelCheckpoint(tmp_path), max_steps=steps, **options)
    continued = fit(tmp_path, LOADERS[loader], rows=rows, ckpt_path=tmp_path / "last.ckpt", **options)
    assert_same_runs(continued, whole)


@pytest.mark.parametrize("step", [3, 5, 8, 10])
def test_a_run_that_a_callback_stopped_within_an_epoch_goes_on(tmp_path, step):
    whole = fit(tmp_path, shuffled)
    stopping = at_step(step, lambda trainer: trainer.stop("enough"))
    stopped, rows = fit(tmp_path, shuffled, stopping, ModelCheckpoint(tmp_path, monitor="val/loss_epoch"))
    assert (stopped.global_step, stopped.stopped_because) == (step, "enough")
    assert rows[-1][1] == {"end": 1.0}
    assert_same_runs(fit(tmp_path, shuffled, rows=rows, ckpt_path=tmp_path / "last.ckpt"), whole)


def test_a_finished_run_goes_on_with_more_epochs_as_if_it_had_had_them(tmp_path):
    whole = fit(tmp_path, shuffled, max_epochs=5)
    _, rows = fit(tmp_path, shuffled, ModelCheckpoint(tmp_path), max_epochs=2)
    continued = fit(tmp_path, shuffled, rows=rows, max_epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)


# ------------------------------------------------------------------------------------------------ saved in any hook

BETWEEN_STEPS = {
    "on_train_batch_end": 9,
    "on_train_epoch_end": 2,
    "on_train_epoch_start": 3,
    "on_validation_start": 2,
    "on_validation_batch_end": 5,
    "on_validation_epoch_end": 2,
    "on_validation_end": 2,
}


@pytest.mark.parametrize("after_module", [False, True])
@pytest.mark.parametrize(("hook", "call"), BETWEEN_STEPS.items())
def test_what_is_saved_in_any_hook_goes_on_without_gaps_and_doubles(tmp_path, hook, call, after_module):
    calls = []

    def save_and_die(trainer, *_):
        if trainer.sanity_checking:
            return
        calls.append(hook)
        if len(calls) == call:
            trainer.save_checkpoint(tmp_path / "some.ckpt")
            if not (tmp_path / "some.ckpt").exists():
                assert hook in ("on_train_batch_end", "on_train_epoch_end")
                calls.append("written when the hooks were called on everybody")
            else:
                raise KeyboardInterrupt
        elif len(calls) > call:
            raise KeyboardInterrupt

    whole = fit(tmp_path, shuffled)
    rows: list[Any] = []
    with suppress(KeyboardInterrupt):
        fit(tmp_path, shuffled, callback_of(**{hook: save_and_die}, after_module=after_module), rows=rows)
    assert calls.count(hook) <= call + 1
    assert_same_runs(fit(tmp_path, shuffled, rows=rows, ckpt_path=tmp_path / "some.ckpt"), whole)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_after_backward", "on_before_optimizer_step"])
def test_a_checkpoint_within_a_step_is_refused(tmp_path, hook):
    saving = callback_of(**{hook: lambda trainer, *_: trainer.save_checkpoint(tmp_path / "some.ckpt")})
    with pytest.raises(RuntimeError, match=r"within a step.*on_train_batch_end"):
        fit(tmp_path, shuffled, saving)
    assert not (tmp_path / "some.ckpt").exists()


# ------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("hook", [*BETWEEN_STEPS, "on_validation_batch_start", "on_train_batch_start"])
def test_a_signal_in_any_hook_loses_and_doubles_nothing(tmp_path, hook, accumulate):
    calls = []

    def kill(trainer, *_):
        if not trainer.sanity_checking:
            calls.append(hook)
            if len(calls) == BETWEEN_STEPS.get(hook, 5):
                os.kill(os.getpid(), signal.SIGINT)

    options = {"accumulate_grad_batches": accumulate}
    whole = fit(tmp_path, shuffled, **options)
    stopped, rows = fit(tmp_path, shuffled, callback_of(**{hook: kill}), ModelCheckpoint(tmp_path), **options)
    assert stopped.interrupted
    assert_same_runs(fit(tmp_path, shuffled, rows=rows, ckpt_path=tmp_path / "last.ckpt", **options), whole)


# ------------------------------------------------------------------------------------------------------- loaders


class Counting:
    """Batches that depend on how often they were read: a private state, which it can save."""

    def __init__(self) -> None:
        self.reads = self.position = self.start = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[Any]:
        batches = list(zip(*(part.split(4) for part in regression_data()), strict=True))
        start, self.start = self.start, 0
        self.reads += start == 0
        for self.position in range(start + 1, 6):
            X, y = batches[self.position - 1]
            yield X * self.reads, y
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"reads": self.reads, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.reads, self.start = state["reads"], state["position"]


class Hiding(Counting):
    """The same without a way to save it."""

    state_dict = load_state_dict = property()  # type: ignore[assignment]


@pytest.mark.parametrize("steps", [2, 5, 7, 10])
def test_a_loaders_own_state_is_saved(tmp_path, steps):
    whole = fit(tmp_path, Counting)
    _, rows = fit(tmp_path, Counting, ModelCheckpoint(tmp_path), max_steps=steps)
    assert_same_runs(fit(tmp_path, Counting, rows=rows, ckpt_path=tmp_path / "last.ckpt"), whole)


@pytest.mark.parametrize("steps", [2, 3, 5, 6])
def test_a_loaders_own_state_is_saved_where_a_limit_cuts_its_epochs(tmp_path, steps):
    whole = fit(tmp_path, Counting, limit_train_batches=3)
    _, rows = fit(tmp_path, Counting, ModelCheckpoint(tmp_path), limit_train_batches=3, max_steps=steps)
    continued = fit(tmp_path, Counting, rows=rows, limit_train_batches=3, ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)


def test_a_minimization_that_was_stopped_is_taken_up_on_its_own_batch(tmp_path):
    def minimizing(module):
        return MinimizeWrapper(module.parameters(), {"method": "BFGS", "options": {"maxiter": 5}})

    def train(*callbacks, **options):
        seen = watch("on_train_batch_start", lambda trainer, module, batch, index: (index, float(batch[0].sum())))
        trainer = make_trainer(tmp_path, callbacks=[seen, *callbacks], max_epochs=1)
        with pytest.warns(RuntimeWarning, match="a whole minimization"):
            trainer.fit(Regressor(minimizing), Counting(), **options)
        return dict(seen.seen)

    whole = train()
    stop = callback_of(
        on_optimizer_iteration=lambda trainer, *_: trainer.stop("enough") if trainer.global_step == 2 else None
    )
    train(stop, ModelCheckpoint(tmp_path))
    assert train(ckpt_path=tmp_path / "last.ckpt") == {index: whole[index] for index in (2, 3, 4)}


def test_a_loader_that_hides_its_state_is_named_when_a_run_continues(tmp_path):
    fit(tmp_path, Hiding, ModelCheckpoint(tmp_path), max_steps=7)
    with pytest.warns(UserWarning, match="a Hiding without state_dict"):
        fit(tmp_path, Hiding, ckpt_path=tmp_path / "last.ckpt")


class Backwards(Sampler):
    """A user's sampler, which may remember anything."""

    def __init__(self) -> None:
        self.memory = 0

    def __iter__(self) -> Iterator[int]:
        return iter(range(19, -1, -1))

    def __len__(self) -> int:
        return 20


def test_a_sampler_that_may_hide_a_state_is_named_when_a_run_continues(tmp_path):
    def loader():
        return DataLoader(TensorDataset(*regression_data()), batch_size=4, sampler=Backwards())

    fit(tmp_path, loader, ModelCheckpoint(tmp_path), max_steps=7)
    with pytest.warns(UserWarning, match="the DataLoader has a Backwards"):
        fit(tmp_path, loader, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_batches_to_overfit_on_are_the_same_when_a_run_continues(tmp_path, loader, steps):
    whole = fit(tmp_path, LOADERS[loader], overfit_batches=2)
    _, rows = fit(tmp_path, LOADERS[loader], ModelCheckpoint(tmp_path), overfit_batches=2, max_steps=steps)
    continued = fit(tmp_path, LOADERS[loader], rows=rows, overfit_batches=2, ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)


@pytest.mark.parametrize("steps", [2, 5, 7])
def test_workers_that_persist_leave_the_order_as_it_was(tmp_path, steps):
    made = []

    def loader():
        data = TensorDataset(*regression_data())
        made.append(DataLoader(data, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True))
        return made[-1]

    whole = fit(tmp_path, loader)
    _, rows = fit(tmp_path, loader, ModelCheckpoint(tmp_path), max_steps=steps)
    with pytest.warns(UserWarning, match="persistent_workers") if steps >= 5 else nullcontext():
        continued = fit(tmp_path, loader, rows=rows, ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)
    for used in made:
        used._iterator = None  # ends its workers; the garbage collector would wait five seconds for each


# ---------------------------------------------------------------------------------------------------- fingerprint


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches=1; this run has accumulate_grad_batches=2"),
        ({"precision": "bf16-mixed"}, "precision=32-true; this run has precision=bf16-mixed"),
        ({"limit_train_batches": 4}, "num_batches=5; this run has num_batches=4"),
        ({"loader": lambda: shuffled(24)}, "num_samples=20; this run has num_batches=6, num_samples=24"),
        ({"loader": lambda: make_loader(5)}, "num_batches=5, batch_size=4; this run has num_batches=4, batch_size=5"),
    ],
)
def test_other_batches_are_refused_within_an_epoch_and_named_between_epochs(tmp_path, change, name):
    change = {"loader": shuffled, "module": lambda: Logging(make_sgd), **change}
    loader = change.pop("loader")
    for steps in (7, 5):
        fit(tmp_path, shuffled, ModelCheckpoint(tmp_path / str(steps)), module=change["module"], max_steps=steps)
    module = Logging(make_sgd)
    with (
        assert_unchanged(module),
        pytest.raises(ValueError, match="within an epoch, after 2 batches, with") as error,
    ):
        fit(tmp_path, loader, **(change | {"module": lambda: module}), ckpt_path=tmp_path / "7" / "last.ckpt")
    assert all(part in str(error.value) for part in name.split("; this run has "))
    with pytest.warns(UserWarning, match="this run goes on with"):
        fit(tmp_path, loader, **change, ckpt_path=tmp_path / "5" / "last.ckpt")


# --------------------------------------------------------------------------------------------------------- errors


def test_the_first_error_is_raised_and_everything_is_closed_whatever_else_fails(tmp_path):
    closed = []

    class Closing(Rows):
        def finalize(self, status: str) -> None:
            closed.append(status)
            raise OSError("cannot close")

    def fail(message: str) -> Any:
        def hook(*_: Any) -> None:
            raise ValueError(message)

        return hook

    seen = callback_of(teardown=lambda *_: closed.append("callback"))
    failing = callback_of(on_train_batch_start=fail("first"), on_exception=fail("second"), teardown=fail("third"))
    trainer = make_trainer(tmp_path, callbacks=[failing, seen], logger=[Closing(), Closing()])
    with pytest.raises(ValueError, match="first") as error:
        trainer.fit(Regressor(), make_loader())
    notes = " ".join(error.value.__notes__)
    assert all(said in notes for said in ("ValueError: second", "ValueError: third", "OSError: cannot close"))
    assert closed == ["callback", "failed", "failed"]
    trainer = make_trainer(tmp_path, callbacks=[callback_of(teardown=fail("only")), seen])
    with pytest.raises(ValueError, match="only"):
        trainer.fit(Regressor(), make_loader())
    trainer.callbacks.clear()
    trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 6


def test_early_stopping_and_its_best_value_are_those_of_the_uninterrupted_run(tmp_path):
    def stopping() -> EarlyStopping:
        return EarlyStopping("val/loss_epoch", patience=1, min_delta=0.05)

    whole = fit(tmp_path, shuffled, stopping(), max_epochs=20)
    _, rows = fit(tmp_path, shuffled, stopping(), ModelCheckpoint(tmp_path), max_steps=8)
    continued = fit(tmp_path, shuffled, stopping(), rows=rows, max_epochs=20, ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)
    assert copy.copy(continued[0].callbacks[1].state_dict()) == whole[0].callbacks[1].state_dict()


# ------------------------------------------------------------------------------------- settings of a continued run


def fit_with(folder, configure, *callbacks, ckpt_path=None, **options):
    trainer = make_trainer(folder, callbacks=[*callbacks, ModelCheckpoint(folder)], **{"max_epochs": 2, **options})
    trainer.fit(Regressor(configure), make_loader(), make_loader(), ckpt_path=ckpt_path)
    return trainer


def stepped(**options):
    """Return what configures SGD with a scheduler that halves the rate."""

    def configure(module):
        optimizer = SGD(module.parameters(), **{"lr": 0.1, **options})
        return [optimizer], [StepLR(optimizer, 1, options.get("dampening") or 0.5)]

    return configure


def test_options_that_the_checkpoint_overrules_are_named(tmp_path):
    fit_with(tmp_path, lambda m: SGD(m.parameters(), lr=0.1))
    said = r"lr=0\.5 and momentum=0\.9 of group 0 has no effect: the run goes on with lr=0\.1 and momentum=0"
    with pytest.warns(UserWarning, match=said):
        trainer = fit_with(
            tmp_path, lambda m: SGD(m.parameters(), lr=0.5, momentum=0.9), ckpt_path="last", max_epochs=3
        )
    assert trainer.optimizer.param_groups[0]["lr"] == 0.1


def test_a_rate_that_a_scheduler_or_a_hook_has_changed_is_no_other_setting(tmp_path):
    halve = callback_of(on_train_epoch_end=lambda trainer, _: trainer.optimizer.param_groups[0].update(lr=0.01))
    fit_with(tmp_path, stepped(), halve)
    fit_with(tmp_path, stepped(), halve, ckpt_path="last", max_epochs=3)  # warnings are errors


def test_a_changed_scheduler_is_named(tmp_path):
    def cosine(length):
        def configure(module):
            optimizer = SGD(module.parameters(), lr=0.1)
            return [optimizer], [CosineAnnealingLR(optimizer, length)]

        return configure

    fit_with(tmp_path, cosine(2))
    with pytest.warns(UserWarning, match="T_max=4 of scheduler CosineAnnealingLR has no effect: .* with T_max=2"):
        fit_with(tmp_path, cosine(4), ckpt_path="last", max_epochs=4)


@pytest.mark.filterwarnings("ignore:total_steps")
def test_a_scheduler_whose_steps_are_over_is_refused_before_training(tmp_path):
    def one_cycle(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=int(module.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    fit_with(tmp_path, one_cycle)
    with pytest.raises(
        ValueError, match=r"the OneCycleLR of .*last\.ckpt is one for 6 steps, but the run would take 9"
    ):
        fit_with(tmp_path, one_cycle, ckpt_path="last", max_epochs=3)


def test_the_same_parameters_in_another_order_are_refused(tmp_path):
    fit_with(tmp_path, lambda m: SGD(m.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="other parameters in the groups of its optimizer, or in another order"):
        fit_with(tmp_path, lambda m: SGD([*m.parameters()][::-1], lr=0.1), ckpt_path="last", max_epochs=3)


# --------------------------------------------------------------------------------- hooks and validation, made again


def test_what_an_epoch_start_logs_counts_once_in_a_continued_epoch(tmp_path):
    class Starting(Logging):
        def on_train_epoch_start(self) -> None:
            self.log("starts", 1.0, reduce_fx="sum")
            self.log("at", float(self.trainer.global_step))

    whole = fit(tmp_path, shuffled, module=lambda: Starting(make_sgd))
    _, rows = fit(tmp_path, shuffled, ModelCheckpoint(tmp_path), module=lambda: Starting(make_sgd), max_steps=7)
    continued = fit(tmp_path, shuffled, rows=rows, module=lambda: Starting(make_sgd), ckpt_path=tmp_path / "last.ckpt")
    assert_same_runs(continued, whole)


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_checkpoint_of_the_middle_of_validation_has_the_metrics_of_before(tmp_path, sanity):
    class Measured(Logging):
        def __init__(self, configure: Any) -> None:
            super().__init__(configure)
            self.val_error = MeanSquaredError()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.val_error.update(self.net(batch[0]).float(), batch[1].float())
            self.log("val/error", self.val_error)

    def save(trainer: Any, *args: Any) -> None:
        if args[-1] == 1 and trainer.current_epoch == 1 and not trainer.sanity_checking:
            trainer.save_checkpoint(tmp_path / "middle.ckpt")

    saving = callback_of(on_validation_batch_end=save)
    options = {"module": lambda: Measured(make_sgd), "num_sanity_val_steps": sanity}
    trainer, _ = fit(tmp_path, shuffled, saving, **options)
    continued, _ = fit(tmp_path, shuffled, **options, ckpt_path=tmp_path / "middle.ckpt")
    assert continued.callback_metrics == trainer.callback_metrics


def test_a_run_that_goes_on_makes_no_sanity_check(tmp_path):
    fit_with(tmp_path, make_sgd)
    checks = watch("on_sanity_check_start", lambda *_: None)
    fit_with(tmp_path, make_sgd, checks, ckpt_path="last", max_epochs=3)
    assert checks.seen == []


def test_early_stopping_on_another_metric_begins_to_count(tmp_path):
    class Flat(Regressor):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("val/flat", 1.0)

    epochs = []
    for monitor, ckpt_path in (("val/flat", None), ("val/loss", "last")):
        stopping = EarlyStopping(monitor, patience=2)
        trainer = make_trainer(tmp_path, callbacks=[stopping, ModelCheckpoint(tmp_path)], max_epochs=8)
        trainer.fit(Flat(make_sgd), make_loader(), make_loader(), ckpt_path=ckpt_path)
        epochs.append(trainer.current_epoch)
    assert epochs == [3, 8]
