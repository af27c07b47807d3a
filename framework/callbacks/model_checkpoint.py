"""Keep the last and the best state of a run on disk."""

from __future__ import annotations

import copy
import math
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.callbacks.monitor import Monitor
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer

FIRST_SAVE = timedelta(seconds=10)
# What saves at the ends of epochs, and copies in memory, may cost of the time.
SHARE = 0.01


class ModelCheckpoint(Monitor):
    """Write ``last.ckpt`` now and then and at the end of the run, ``best.ckpt`` whenever a metric improves.

    ``last.ckpt`` is written first after ten seconds, then at every ``train_time_interval``, and after a validation if
    the last save took less than 1 % of the time since. When an exception or a second Ctrl-C ends the run, the
    parameters may be anywhere within a step: then it is written from a copy of the state before one of the last steps.
    Copies are made as often as takes 1 % of the time: for a small model every few steps.

    Args:
        dirpath: The folder; default: ``checkpoints`` in the folder of the first logger.
        monitor: The metric that decides which epoch is the best; None for no ``best.ckpt``.
        mode: "min" if less is better, "max" if more is.
        save_last: Whether to write ``last.ckpt``.
        train_time_interval: How much training a crash of the machine may cost. (Lightning writes at the end of every
            epoch, which takes longer than a short epoch.)
        every_n_train_steps: Write ``last.ckpt`` also after every so many optimizer steps.
        save_on_exception: Whether to keep the copy, in the memory of the CPU, and write it when the run fails.

    Attributes:
        last_model_path, best_model_path: Where they were written; empty before.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        *,
        monitor: str | None = None,
        mode: str = "min",
        save_last: bool = True,
        train_time_interval: timedelta = timedelta(minutes=1),
        every_n_train_steps: int | None = None,
        save_on_exception: bool = True,
    ) -> None:
        super().__init__(monitor, mode)
        self.dirpath = dirpath
        self.save_last = save_last
        self.train_time_interval = train_time_interval
        self.every_n_train_steps = every_n_train_steps
        self.save_on_exception = save_on_exception
        self.last_model_path = ""
        self.best_model_path = ""
        self._had_best = False
        self._copy: dict[str, Any] | None = None

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder that the checkpoints of a trainer's run are in."""
        return Path(self.dirpath or trainer.log_dir / "checkpoints")

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._folder = self.folder(trainer)
        existing = next((path for path in (self._folder, *self._folder.parents) if path.exists()), None)
        if existing is not None and not existing.is_dir():
            raise ValueError(
                f"ModelCheckpoint would write to the folder {self._folder}, but {existing} is a file: pass another "
                "dirpath, or move the file"
            )
        best = self._folder / "best.ckpt"
        self.best_model_path = str(best) if self._had_best and best.exists() else ""
        self._validated = False
        self._save_seconds = 0.02  # a guess, until one is measured
        now = self._saved_at = trainer.clock()
        self._save_due = now + min(FIRST_SAVE, self.train_time_interval).total_seconds()
        self._copy_due = math.inf
        if self.save_last and self.save_on_exception:
            self._keep_copy(trainer)
            self._copy_due = now  # the first one takes longer than the others

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        steps, now = self.every_n_train_steps, trainer.clock()
        if self.save_last and ((steps and trainer.global_step % steps == 0) or now >= self._save_due):
            self._save_last(trainer)
        elif now >= self._copy_due:
            self._keep_copy(trainer)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self.save_last and trainer.clock() >= self._save_due:
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self.monitor is not None:
            value = self.new_value(trainer)
            if value is not None and self.improves(value):
                self.best_model_path = str(self._folder / "best.ckpt")
                self._save(trainer, self.best_model_path)
        validated, self._validated = self._validated, False
        if self.save_last and validated and self._save_seconds <= SHARE * (trainer.clock() - self._saved_at):
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self.save_last:
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        copy, self._copy = self._copy, None
        if copy is None:
            return
        path = self._folder / "last.ckpt"
        try:
            trainer.save_checkpoint(path, copy)
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            self.last_model_path = str(path)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._copy = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Only whether there was one: the folder is this run's, wherever the file comes from.
        self._had_best = self.is_of_same_metric(state_dict) and bool(state_dict["best_model_path"])

    def _save_last(self, trainer: Trainer) -> None:
        self.last_model_path = str(self._folder / "last.ckpt")
        self._save(trainer, self.last_model_path)
        self._save_due = self._saved_at + self.train_time_interval.total_seconds()

    def _save(self, trainer: Trainer, path: str) -> None:
        started = time.monotonic()
        trainer.save_checkpoint(path)
        self._saved_at = trainer.clock()
        self._save_seconds = trainer.fabric.broadcast(time.monotonic() - started)
        if path == self.last_model_path:
            self._copy = None

    def _keep_copy(self, trainer: Trainer) -> None:
        """Copy the state to the memory of the CPU."""
        started = time.monotonic()
        self._copy = _copied(trainer.dump_checkpoint())
        seconds = trainer.fabric.broadcast(time.monotonic() - started)
        self._copy_due = trainer.clock() + seconds / SHARE


def _copied(part: Any) -> Any:
    """Copy a part of a state, tensors to the CPU; numbers, strings and tuples of them stay what they are."""
    if isinstance(part, Tensor):
        return part.detach().to("cpu", copy=True)
    if isinstance(part, dict):
        copied = copy.copy(part)  # what a module's state_dict knows besides its entries is kept
        copied.update({key: _copied(value) for key, value in part.items()})
        return copied
    if isinstance(part, list):
        return [_copied(value) for value in part]
    if isinstance(part, tuple) and not all(isinstance(value, int | float) for value in part):
        return tuple(_copied(value) for value in part)
    return part
