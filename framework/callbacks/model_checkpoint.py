"""Keep the last and the best state of a run on disk."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.callbacks.monitor import Monitor
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class ModelCheckpoint(Monitor):
    """Write ``last.ckpt`` now and then and at the end of the run, ``best.ckpt`` whenever a metric improves.

    Args:
        dirpath: The folder; default: ``checkpoints`` in the folder of the first logger.
        monitor: The metric that decides which epoch is the best; None for no ``best.ckpt``.
        mode: "min" if less is better, "max" if more is.
        save_last: Whether to write ``last.ckpt``.
        train_time_interval: How much training a crash may cost: ``last.ckpt`` is this old at most. (Lightning writes at
            the end of every epoch, which takes longer than a short epoch.)
        every_n_train_steps: Write ``last.ckpt`` also after every so many optimizer steps.

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
    ) -> None:
        super().__init__(monitor, mode)
        self.dirpath = dirpath
        self.save_last = save_last
        self.train_time_interval = train_time_interval
        self.every_n_train_steps = every_n_train_steps
        self.last_model_path = ""
        self.best_model_path = ""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._folder = Path(self.dirpath or trainer.log_dir / "checkpoints")
        self._due = time.monotonic() + self.train_time_interval.total_seconds()

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        steps = self.every_n_train_steps
        if self.save_last and ((steps and trainer.global_step % steps == 0) or time.monotonic() >= self._due):
            self._save_last(trainer)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self.save_last and time.monotonic() >= self._due:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self.monitor is None:
            return
        value = self.new_value(trainer)
        if value is not None and self.improves(value):
            self.best_model_path = str(self._folder / "best.ckpt")
            trainer.save_checkpoint(self.best_model_path)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self.save_last:
            self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best_model_path": self.best_model_path}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["monitor"] == self.monitor:
            self.best_model_path = state_dict["best_model_path"]

    def _save_last(self, trainer: Trainer) -> None:
        self.last_model_path = str(self._folder / "last.ckpt")
        trainer.save_checkpoint(self.last_model_path)
        self._due = time.monotonic() + self.train_time_interval.total_seconds()
