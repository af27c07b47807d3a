"""Stop when a metric no longer improves."""

from __future__ import annotations

import math
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Any

from framework.callbacks.monitor import Monitor
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class EarlyStoppingReason(Enum):
    """Why `EarlyStopping` ended a run."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


class EarlyStopping(Monitor):
    """End training when a metric has not improved for a while.

    Looks at every new value of the metric, at the end of an epoch, after a validation within an epoch, or after an
    iteration within a step: then, with ``monitor="iteration/objective"``, it ends a minimization by scipy at the best
    point. A run that it has ended ends again at once when it is continued, unless other arguments let it go on.

    Args:
        monitor: The name of the metric, such as "val/loss".
        min_delta: By how much a value must be better than the best one to count.
        patience: Stop at this many values in a row without improvement.
        verbose: Print each improvement, and why the run is stopped.
        mode: "min" if less is better, "max" if more is.
        strict: Whether a metric that was never logged is an error, or a warning at the end.
        check_finite: Stop at once when the metric is NaN or infinite.
        stopping_threshold: Stop at once when the metric is better than this.
        divergence_threshold: Stop at once when the metric is worse than this.
        check_on_train_epoch_end: Look at the end of every epoch (True), or only after a validation (False). Default: at
            the end of every epoch, unless the trainer validates within epochs.
        log_rank_zero_only: With several processes, print on rank zero alone.

    Attributes:
        best_score: The best value so far; infinite before the first.
        wait_count: How many values in a row were no improvement.
        stopped_epoch: The index of the epoch in which the run was stopped; 0 if it was not.
        stopping_reason, stopping_reason_message: Why, as an `EarlyStoppingReason` and in words.

    Raises:
        ValueError: If ``mode`` is neither "min" nor "max".
    """

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        super().__init__(monitor, mode, min_delta, strict=strict, on_train_epoch_end=check_on_train_epoch_end)
        if log_rank_zero_only and not verbose:
            warnings.warn(
                "EarlyStopping: log_rank_zero_only=True has no effect without verbose=True, since nothing is printed",
                stacklevel=2,
            )
        self.patience = patience
        self.verbose = verbose
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self._start()

    def _start(self) -> None:
        self.wait_count = 0
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._value: float | None = None  # the last one it looked at

    @property
    def best_score(self) -> float:
        return self.sign * math.inf if self.best is None else self.best

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage == "fit":
            self._start()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_due(trainer, self.stopped_epoch)  # already, in the run that is continued

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        self.look(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if not (self._seen or trainer.interrupted or trainer.fast_dev_run):
            warnings.warn(
                f"EarlyStopping never looked at {self.monitor!r}: the run ended before it was logged (max_epochs="
                f"{trainer.max_epochs}, check_val_every_n_epoch={trainer.check_val_every_n_epoch}"
                f"{', check_on_train_epoch_end=False' if self.on_epoch_end is False else ''})",
                stacklevel=2,
            )

    def look(self, trainer: Trainer) -> None:
        value = self.new_value(trainer)
        if value is None or trainer.fast_dev_run:
            return
        before, self._value = self.best, value
        if self.improves(value):
            self.wait_count = 0
            by = "" if before is None else f" by {abs(value - before):.3g}"
            self._print(trainer, f"{self.monitor} improved{by}: the best is now {value:.5g}")
        else:
            self.wait_count += 1
        self._stop_if_due(trainer, trainer.current_epoch)

    def _stop_if_due(self, trainer: Trainer, epoch: int) -> None:
        self.stopping_reason, because = self._judge()
        self.stopping_reason_message = because and f"{self.monitor} {because}"
        self.stopped_epoch = epoch if because else 0
        if because:
            self._print(trainer, f"{self.stopping_reason_message}: the run is stopped")
            trainer.stop(f"early_stopping: {self.stopping_reason_message}")

    def _judge(self) -> tuple[EarlyStoppingReason, str | None]:
        """Return whether the last value, or the number of those without improvement, asks for the end; and in words."""
        value, sign = self._value, self.sign
        if value is None:
            return EarlyStoppingReason.NOT_STOPPED, None
        if self.check_finite and not math.isfinite(value):
            return EarlyStoppingReason.NON_FINITE_METRIC, f"is {value}"
        if self.stopping_threshold is not None and sign * value < sign * self.stopping_threshold:
            return EarlyStoppingReason.STOPPING_THRESHOLD, f"reached {value:g}"
        if self.divergence_threshold is not None and sign * value > sign * self.divergence_threshold:
            return EarlyStoppingReason.DIVERGENCE_THRESHOLD, f"went beyond {self.divergence_threshold:g} to {value:g}"
        if self.wait_count >= max(1, self.patience):
            because = f"is no better than {self.best} after {self.wait_count} checks"
            return EarlyStoppingReason.PATIENCE_EXHAUSTED, because
        return EarlyStoppingReason.NOT_STOPPED, None

    def _print(self, trainer: Trainer, message: str) -> None:
        fabric = trainer.fabric
        if self.verbose and (fabric.is_global_zero or not self.log_rank_zero_only):
            print(f"[rank {fabric.global_rank}] {message}" if fabric.world_size > 1 else message)

    def state_dict(self) -> dict[str, Any]:
        own = {"wait_count": self.wait_count, "value": self._value, "stopped_epoch": self.stopped_epoch}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.is_of_same_metric(state_dict):
            self.wait_count = state_dict["wait_count"]
            self._value, self.stopped_epoch = state_dict["value"], state_dict["stopped_epoch"]
