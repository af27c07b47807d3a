"""What early stopping and checkpoints share: a metric that they watch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Monitor(Callback):
    """A callback that looks at a metric whenever it has a new value.

    It looks at the end of an epoch; after each validation instead, if the trainer validates within epochs
    (``val_check_interval``).

    Args:
        monitor: The name of the metric, such as "val/loss".
        mode: "min" if less is better, "max" if more is.
        min_delta: By how much a value must be better than the best one to count.
        strict: Whether a metric that was never logged is an error.
        on_train_epoch_end: Always look at the end of an epoch (True), or only after a validation (False).

    Attributes:
        best: The best value so far; None before the first.
    """

    after_module = True

    def __init__(
        self,
        monitor: str | None,
        mode: str,
        min_delta: float = 0.0,
        *,
        strict: bool = True,
        on_train_epoch_end: bool | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} of {type(self).__name__}; it must be 'min' or 'max'")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self.strict = strict
        self.on_epoch_end = on_train_epoch_end
        self.best: float | None = None
        self._seen = 0
        self._validated = self._is_fitting = False

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._is_fitting = stage == "fit"
        if self._is_fitting:
            # Another fit is another run; a checkpoint to continue from is read after this.
            self.best, self._seen, self._validated = None, 0, False

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.sanity_checking or not self._is_fitting:
            return
        self._validated = True
        if self._is_after_validation(trainer) and trainer.validates_within_epochs:
            self.look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        validated, self._validated = self._validated, False
        if not self._is_after_validation(trainer) or (validated and not trainer.validates_within_epochs):
            self.look(trainer)

    def _is_after_validation(self, trainer: Trainer) -> bool:
        """Whether to look after validations alone."""
        if self.on_epoch_end is None:
            return trainer.validates_within_epochs
        return not self.on_epoch_end

    def look(self, trainer: Trainer) -> None:
        """Do what there is to do at this moment, with the metric's new value if it has one."""
        raise NotImplementedError

    def new_value(self, trainer: Trainer) -> float | None:
        """Return the value of the metric if it is news.

        Raises:
            ValueError: If the metric was never logged; those that were are named.
        """
        assert self.monitor is not None
        news = trainer.metrics.news(self.monitor, self._seen, type(self).__name__, strict=self.strict)
        if news is None:
            return None
        self._seen, value = news
        return value

    @property
    def sign(self) -> int:
        """1 if less is better, -1 if more is."""
        return 1 if self.mode == "min" else -1

    def improves(self, value: float) -> bool:
        """Whether the value is better than all before; then it becomes the best."""
        if not math.isfinite(value):
            return False
        better = self.best is None or self.sign * value < self.sign * self.best - self.min_delta
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode, "best": self.best, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.is_of_same_metric(state_dict):
            self.best, self._seen = state_dict["best"], state_dict["seen"]

    def is_of_same_metric(self, state_dict: dict[str, Any]) -> bool:
        """Tell whether a state is that of the same metric, judged alike: it says nothing of another one."""
        return (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode)
