"""The iterations that an optimizer makes within one step: shown, logged, passed to callbacks, and a chance to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class InnerIterations:
    """The function that an optimizer with an attribute ``on_iteration`` calls after every iteration within a step.

    The optimizer calls ``on_iteration(iteration, value)`` with the parameters at its best point so far, which has that
    value, and ends its step there if the call raises `StopIteration`.

    Args:
        optimizer: The optimizer. If its ``on_iteration`` was already set, that function is still called, first.
        report: Called with the iteration and the value: logs them and fires the hook.
        is_over: Tells whether the run, and with it the step, is over.

    Attributes:
        cut_short: Whether a step was ended this way; a continued run takes it again, from the best point.
    """

    def __init__(self, optimizer: Optimizer, report: Callable[[int, float], None], is_over: Callable[[], bool]) -> None:
        self.cut_short = False
        self._report, self._is_over = report, is_over
        self._given: Callable[[int, float], object] | None = None
        self._optimizer: Any = optimizer
        if hasattr(self._optimizer, "on_iteration"):
            given = self._optimizer.on_iteration
            self._given = given._given if isinstance(given, InnerIterations) else given
            self._optimizer.on_iteration = self

    def release(self) -> None:
        """Give the optimizer back the function that it called before: the run is over."""
        if getattr(self._optimizer, "on_iteration", None) is self:
            self._optimizer.on_iteration = self._given

    def __call__(self, iteration: int, value: float) -> None:
        if self._given is not None:
            self._given(iteration, value)
        self._report(iteration, value)
        if self._is_over():
            self.cut_short = True
            raise StopIteration
