"""Histograms of the parameters and their gradients in TensorBoard, and the norm of each gradient."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.callback import Callback
from framework.fabric import precision_of
from framework.loggers import is_tensorboard
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Histograms(Callback):
    """Log how the values of each parameter and of its gradient are distributed, at steps 0, n, 2n, ...

    Both are those at the point before the step, the gradients of the whole group of batches and not clipped.
    TensorBoard shows ``parameters/<name>`` and ``gradients/<name>`` as histograms; ``grad_norm/<name>``, the 2-norm of
    the gradient of each parameter, goes to all loggers. A parameter without a gradient has no norm.

    Args:
        every_n_steps: Log at every so many-th optimizer step; nothing is computed in between.
        parameters: Whether to log histograms of the parameters.
        gradients: Whether to log histograms and norms of the gradients.
    """

    def __init__(self, every_n_steps: int = 50, parameters: bool = True, gradients: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Histograms: every_n_steps={every_n_steps!r}; it must be a positive integer")
        if not (parameters or gradients):
            raise ValueError("Histograms: parameters=False and gradients=False leave nothing to log: drop the callback")
        self.every_n_steps = every_n_steps
        self.parameters = parameters
        self.gradients = gradients
        self._next_step = 0

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._next_step = 0

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self._next_step < trainer.global_step:  # continued, by a run that did not log them before
            self._next_step = -(-trainer.global_step // self.every_n_steps) * self.every_n_steps
        if trainer.fast_dev_run:
            return
        if not any(is_tensorboard(logger) for logger in trainer.loggers):
            what = "norms of gradients" if self.gradients and trainer.loggers else "nothing"
            warnings.warn(
                f"Histograms logs {what}: only a TensorBoardLogger shows histograms, and the trainer has none",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"next_step": self._next_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._next_step = state_dict["next_step"]

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        if trainer.global_step != self._next_step:
            return
        self._next_step += self.every_n_steps  # a step may evaluate more than once: the first evaluation counts
        if not (trainer.loggers and trainer.fabric.is_global_zero):
            return
        named = list(module.named_parameters())
        histograms: dict[str, Tensor] = {}
        if self.parameters:
            histograms |= {f"parameters/{name}": parameter for name, parameter in named}
        if self.gradients:
            scaler = getattr(precision_of(trainer.fabric), "scaler", None)
            scale = 1.0 if scaler is None else float(scaler.get_scale())  # that of fp16, not yet taken out
            gradients = {name: p.grad.detach().to_dense() / scale for name, p in named if p.grad is not None}
            histograms |= {f"gradients/{name}": gradient for name, gradient in gradients.items()}
            norms = {f"grad_norm/{name}": float(torch.linalg.vector_norm(g)) for name, g in gradients.items()}
            trainer.log_metrics(norms)
        tensorboards: list[Any] = [logger for logger in trainer.loggers if is_tensorboard(logger)]
        for logger in tensorboards:
            for tag, values in histograms.items():
                _add(logger.experiment, tag, values, trainer.global_step)


def _add(writer: Any, tag: str, values: Tensor, step: int) -> None:
    """Add a histogram of the values that are finite, if there are any."""
    values = torch.view_as_real(values) if values.is_complex() else values
    values = values.detach().cpu().double()
    if (finite := values[values.isfinite()]).numel():
        writer.add_histogram(tag, finite, step)
