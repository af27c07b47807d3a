"""The iterations that an optimizer makes within one step: shown, logged, heard by callbacks, and a chance to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Iterations:
    """What an optimizer that has an attribute ``on_iteration`` calls after every iteration within a step.

    The optimizer calls ``on_iteration(iteration, value)`` with the parameters at its best point so far, of that value,
    and ends its step there when that raises `StopIteration`. Each iteration is logged, at its number in the run, as
    ``iteration/objective`` (the value) and ``iteration/closure_evaluations``; then the hook ``on_optimizer_iteration``
    fires; then the step is ended if the run is over: time is up, a callback stopped it, or at Ctrl-C or SIGTERM.

    Args:
        trainer: Whose run it is. A function that its optimizer called before is called first, as before.

    Attributes:
        cut_short: Whether a step was ended so; a run that is continued takes it again, from the best point.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.cut_short = False
        self._trainer = trainer
        self._given: Callable[[int, float], object] | None = None
        optimizer: Any = trainer.optimizer
        if hasattr(optimizer, "on_iteration"):
            given = optimizer.on_iteration
            self._given = given._given if isinstance(given, Iterations) else given
            optimizer.on_iteration = self

    def __call__(self, iteration: int, value: float) -> None:
        trainer = self._trainer
        if self._given is not None:
            self._given(iteration, value)
        trainer.progress.iterations += 1
        values = {"iteration/objective": value, "iteration/closure_evaluations": float(trainer.closure_evaluations)}
        trainer.log_metrics(trainer.metrics.log_iteration(values), trainer.progress.iterations)
        trainer.metrics.muted = False  # what a hook logs is no repetition
        trainer.call("on_optimizer_iteration", iteration, value)
        if trainer.is_over():
            self.cut_short = True
            raise StopIteration
