"""Stop when a metric no longer improves."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from framework.callbacks.monitor import Monitor
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class EarlyStopping(Monitor):
    """End training when a metric has not improved for a while.

    Looks at every new value of the metric, at the end of an epoch, or after an iteration within a step: then, with
    ``monitor="iteration/objective"``, it ends a minimization by scipy at the best point.

    Args:
        monitor: The name of the metric, such as "val/loss".
        min_delta: By how much a value must be better than the best one to count.
        patience: Stop at this many values in a row without improvement.
        mode: "min" if less is better, "max" if more is.
        check_finite: Stop at once when the metric is NaN or infinite.
        stopping_threshold: Stop at once when the metric is better than this.
    """

    def __init__(
        self,
        monitor: str,
        *,
        min_delta: float = 0.0,
        patience: int = 3,
        mode: str = "min",
        check_finite: bool = True,
        stopping_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = patience
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.wait_count = 0

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        self.wait_count = 0

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_patience_is_over(trainer)  # already, in the run that is continued

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        self._look(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if not (self._seen or trainer.interrupted or trainer.fast_dev_run):
            warnings.warn(
                f"EarlyStopping never looked at {self.monitor!r}: the run ended before it was logged (max_epochs="
                f"{trainer.max_epochs}, check_val_every_n_epoch={trainer.check_val_every_n_epoch})",
                stacklevel=2,
            )

    def _look(self, trainer: Trainer) -> None:
        value = self.new_value(trainer)
        if value is None or trainer.fast_dev_run:
            return
        self.wait_count = 0 if self.improves(value) else self.wait_count + 1
        sign = 1 if self.mode == "min" else -1
        if self.check_finite and not math.isfinite(value):
            trainer.stop(f"early_stopping: {self.monitor} is {value}")
        elif self.stopping_threshold is not None and sign * value < sign * self.stopping_threshold:
            trainer.stop(f"early_stopping: {self.monitor} reached {value:g}")
        else:
            self._stop_if_patience_is_over(trainer)

    def _stop_if_patience_is_over(self, trainer: Trainer) -> None:
        if self.wait_count >= max(1, self.patience):
            trainer.stop(f"early_stopping: {self.monitor} is no better than {self.best} after {self.wait_count} checks")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wait_count": self.wait_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.wait_count = state_dict["wait_count"] if self.is_of_same_metric(state_dict) else 0
