"""How far the parameters are from a stationary point of f + g, logged, and reason enough to stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.callbacks.penalty_path import PenaltyPath
from framework.loop.metrics import Metrics
from framework.module import Module
from framework.objective.closure import Closure, declared_groups
from framework.objective.replay import Replay
from framework.optim.proximal import stationarity_gap

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Stationarity(Callback):
    """Logs ``stationarity_gap``, the largest distance of -grad f to the subgradients of g, and stops once it is small.

    0 at a stationary (KKT) point, whatever the optimizer; see `framework.optim.proximal.stationarity_gap`. It is
    measured on all the training data at the current point, which counts as one closure evaluation, and changes neither
    buffers nor random draws. With a `PenaltyPath` it waits for the final phase: before, the point to reach is another.

    Args:
        tol: Stop when the gap is at most this; 0 for an exact stationary point only.
        every_n_epochs: How often to measure.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, tol: float = 1e-6, *, every_n_epochs: int = 1) -> None:
        if not (math.isfinite(tol) and tol >= 0):
            raise ValueError(f"Stationarity: tol={tol!r}; it must be a finite number from 0 on")
        if every_n_epochs < 1:
            raise ValueError(f"Stationarity: every_n_epochs={every_n_epochs!r}; it must be at least 1")
        self.tol = tol
        self.every_n_epochs = every_n_epochs

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.epochs_completed % self.every_n_epochs or any(
            isinstance(callback, PenaltyPath) and not callback.is_final for callback in trainer.callbacks
        ):
            return
        gap = measure_gap(trainer, module)
        module.log("stationarity_gap", gap)
        if gap <= self.tol:
            trainer.stop(f"stationarity: the gap is {gap:.2g}")


def measure_gap(trainer: Trainer, module: Module) -> float:
    """Evaluates the gradient of f on all the training data and returns the stationarity gap; waits for the device."""
    generators = trainer.train_batches.generators()
    replay, muted = Replay(module, generators), trainer.metrics.muted
    gradients = [(p, p.grad) for p in module.parameters()]
    closure = Closure(
        module,
        trainer.optimizer,
        Metrics(),
        forward=trainer.engine.forward("training_step"),
        backward=trainer.engine.backward,
    )
    closure.handles_penalty = True  # the gradient of f alone, whatever the optimizer is given
    trainer.metrics.muted = True
    closure.begin(trainer.train_batches, 0)
    closure()
    trainer.metrics.muted = muted
    trainer.closure.evaluations += 1
    gap = float(stationarity_gap(_weighted_groups(trainer, module), module.penalty))
    replay.restore()
    for parameter, gradient in gradients:
        parameter.grad = gradient
    return gap


def _weighted_groups(trainer: Trainer, module: Module) -> list[dict[str, Any]]:
    """All parameters, in groups that each say whether they are penalized and by how much."""
    weights = {"happy_lambda": module.happy_lambda or 0.0 if module.penalty is not None else 0.0}
    return [{"penalized": False, **weights, **group} for group in declared_groups(module, trainer.optimizer)]
