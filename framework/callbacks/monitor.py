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

    Args:
        monitor: The name of the metric, such as "val/loss".
        mode: "min" if less is better, "max" if more is.
        min_delta: By how much a value must be better than the best one to count.

    Attributes:
        best: The best value so far; None before the first.
    """

    after_module = True

    def __init__(self, monitor: str | None, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} of {type(self).__name__}; it must be 'min' or 'max'")
        self.monitor = monitor
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None
        self._seen = 0

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            # Another fit is another run; a checkpoint to continue from is read after this.
            self.best, self._seen = None, 0

    def new_value(self, trainer: Trainer) -> float | None:
        """Return the value of the metric if it is news.

        Raises:
            ValueError: If the metric was never logged; those that were are named.
        """
        assert self.monitor is not None
        news = trainer.metrics.news(self.monitor, self._seen, type(self).__name__)
        if news is None:
            return None
        self._seen, value = news
        return value

    def improves(self, value: float) -> bool:
        """Whether the value is better than all before; then it becomes the best."""
        if not math.isfinite(value):
            return False
        sign = 1 if self.mode == "min" else -1
        better = self.best is None or sign * value < sign * self.best - self.min_delta
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
