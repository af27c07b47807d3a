"""The distance of the parameters from a stationary point of f + g, logged and used to stop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.callbacks.penalty_path import PenaltyPath
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Stationarity(Callback):
    """A stopping rule on ``stationarity_gap``, the largest distance of -grad f to the subgradients of g, which it logs.

    The gap is 0 at a stationary (KKT) point, whatever the optimizer; see `framework.optim.stationarity_gap`. It is
    measured on all the training data at the current point, which counts as one closure evaluation and does not change
    buffers or random draws. With a `PenaltyPath` it waits for the final phase: before that, the target point differs.

    Args:
        tol: Stop when the gap is at most this; 0 only for an exact stationary point.
        every_n_epochs: Measure after every nth epoch.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, tol: float = 1e-6, *, every_n_epochs: int = 1) -> None:
        if not (math.isfinite(tol) and tol >= 0):
            raise ValueError(f"Stationarity: tol={tol!r}; it must be a finite number >= 0")
        if every_n_epochs < 1:
            raise ValueError(f"Stationarity: every_n_epochs={every_n_epochs!r}; it must be at least 1")
        self.tol = tol
        self.every_n_epochs = every_n_epochs
        self._gap = math.inf  # the last one that was measured

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._gap = math.inf

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_stationary(trainer)  # already, in the run that is continued

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.epochs_completed % self.every_n_epochs or any(
            isinstance(callback, PenaltyPath) and not callback.is_final for callback in trainer.callbacks
        ):
            return
        self._gap = trainer.stationarity_gap()
        module.log("stationarity_gap", self._gap)
        self._stop_if_stationary(trainer)

    def _stop_if_stationary(self, trainer: Trainer) -> None:
        if self._gap <= self.tol:
            trainer.stop(f"stationarity: the gap is {self._gap:.2g}")

    def state_dict(self) -> dict[str, Any]:
        return {"gap": self._gap}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._gap = state_dict["gap"]
