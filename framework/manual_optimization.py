"""What a `Module` calls in manual optimization, where `training_step` itself calls the optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class ManualOptimization:
    """The part of a `Module` for ``automatic_optimization = False``.

    Then `training_step` gets its optimizers by ``self.optimizers()``, calls `manual_backward` instead of
    ``loss.backward()``, and steps optimizers and schedulers; what it returns is only logged, as ``train/loss``. Every
    step that it takes counts as one of ``trainer.global_step``. An optimizer that evaluates again and again sees the
    same function in each call of the closure that it is given: it may drop the gradients, compute the loss, call
    `manual_backward` and return the loss.

    Attributes:
        automatic_optimization: Whether the trainer calls the optimizer.
    """

    automatic_optimization: bool = True
    _requires_grad: dict[nn.Parameter, bool] | None = None

    @property
    def trainer(self) -> Any:
        raise NotImplementedError

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of a loss to those in the parameters; further arguments are those of `Tensor.backward`.

        Raises:
            RuntimeError: If optimization is automatic.
        """
        if self.automatic_optimization:
            raise RuntimeError(
                "manual_backward was called, but the trainer goes backward itself: set "
                "self.automatic_optimization = False in __init__, or return the loss from training_step"
            )
        self.trainer.manual_backward(loss, *args, **kwargs)

    def toggle_optimizer(self, optimizer: Optimizer) -> None:
        """Let only the parameters of this optimizer require gradients, until `untoggle_optimizer`."""
        if self._requires_grad is not None:
            raise RuntimeError("toggle_optimizer was called twice: call untoggle_optimizer in between")
        self._requires_grad = {param: param.requires_grad for one in self.trainer.optimizers for param in _params(one)}
        own = set(_params(optimizer))
        for param in self._requires_grad.keys() - own:
            param.requires_grad = False

    def untoggle_optimizer(self, optimizer: Optimizer) -> None:
        """Undo `toggle_optimizer`."""
        for param, requires_grad in (self._requires_grad or {}).items():
            param.requires_grad = requires_grad
        self._requires_grad = None

    @contextmanager
    def toggled_optimizer(self, optimizer: Optimizer) -> Iterator[None]:
        """Let, within, only the parameters of this optimizer require gradients."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)


def _params(optimizer: Optimizer) -> list[nn.Parameter]:
    return [param for group in optimizer.param_groups for param in group["params"]]
