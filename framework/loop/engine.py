"""A module and its optimizer as Fabric places them: device and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from framework.fabric import precision_of
from framework.loop.overrides import accepts
from framework.module import Module


class Engine:
    """What a run calls instead of the module and the optimizer themselves.

    Full precision needs none of Fabric's wrappers, which cost as much as a small step: there, the engine uses the raw
    module, optimizer and ``loss.backward()``. Several processes are no matter of the module: see `Processes`.

    Attributes:
        device: Where the module is and batches should live.
        backward: Adds the gradients of a loss to those in the parameters.
        grad_scaler: The gradient scaler for fp16, otherwise None.
        precision: Its name, such as "32-true".
        profiler: What is told of every call; None for nobody.
    """

    def __init__(self, fabric: Any, module: Module, profiler: Any = None) -> None:
        self.profiler = profiler
        self.device = fabric.device
        self._fabric, self._module = fabric, module
        self._precision = precision_of(fabric)
        self._plain = self._precision is None
        if not self._plain:
            self._precision.convert_module(module)
        fabric.to_device(module)
        self.backward: Callable[..., None] = self.timed("backward", Tensor.backward if self._plain else fabric.backward)
        self.precision: str = "32-true" if self._plain else self._precision.precision
        self.grad_scaler = getattr(self._precision, "scaler", None)

    def wrap(self, optimizer: Optimizer) -> Any:
        """Return the optimizer to step, wrapped if necessary."""
        wrapped = optimizer if self._plain else self._fabric.setup_optimizers(optimizer)
        if self.profiler is None:
            return wrapped
        from framework.profiler import Timed

        return Timed(wrapped, "step", self.profiler, "optimizer_step")

    def forward(self, name: str) -> Callable[..., Any]:
        """Return a step method of the module, such as "training_step", to be called with a batch and its indices."""
        method: Callable[..., Any] = getattr(self._module, name)
        if accepts(method, 1) and not accepts(method, 2):
            method = _ignoring_indices(method)
        if self._plain:
            return self.timed(name, method)
        from lightning.fabric.plugins import MixedPrecision

        precision = self._precision
        # Autocast decides per operation; Fabric would round all floats of a batch, targets too, to half precision.
        convert = (lambda batch: batch) if isinstance(precision, MixedPrecision) else precision.convert_input

        def forward(batch: Any, *indices: int) -> Any:
            with precision.forward_context():
                return method(convert(batch), *indices)

        return self.timed(name, forward)

    def backward_by(self, method: Callable[..., None]) -> Callable[..., None]:
        """Return the backward pass by a method of the module, which is given the scaled loss if there is a scaler."""
        scaler = self.grad_scaler
        return self.timed("backward", method if scaler is None else lambda loss: method(scaler.scale(loss)))

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Undo the scaling of gradients by the gradient scaler, if there is one."""
        if not self._plain:
            self._precision.unscale_gradients(optimizer)

    def timed(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed if there is a profiler."""
        if self.profiler is None:
            return function
        from framework.profiler import timed

        return timed(self.profiler, action, function)


def _ignoring_indices(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda batch, *_: method(batch)
