"""How often an optimizer evaluates the objective in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class EvaluationsPerStep(Callback):
    """Log ``evaluations_per_step``, the mean over each epoch, while the optimizer is one that evaluates more than once.

    Nothing is done at a step.
    """

    def __init__(self) -> None:
        self._steps = self._evaluations = 0

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._steps = self._evaluations = 0

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.batch_idx:
            return  # stopped in the middle of an epoch; a resumed run trains the rest of it
        steps = trainer.global_step - self._steps
        if steps and trainer.closure.reevaluates:
            module.log("evaluations_per_step", (trainer.closure_evaluations - self._evaluations) / steps)
        self._steps, self._evaluations = trainer.global_step, trainer.closure_evaluations

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "evaluations": self._evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps, self._evaluations = state_dict["steps"], state_dict["evaluations"]
