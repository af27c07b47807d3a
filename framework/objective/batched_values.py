"""A function of a module's parameters at several points at once, where the module allows it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode


def stacked_values(
    module: nn.Module, evaluate: Callable[[], Tensor], params: Sequence[Tensor], candidates: Sequence[Tensor]
) -> Tensor:
    """Compute what ``evaluate`` returns, (k,), with ``params`` of the module at k points, by one `vmap`.

    Random draws are the same for all points. Also who holds a parameter besides its module, such as a penalty, sees it
    at the point.

    Args:
        module: Whose parameters ``evaluate`` reads.
        evaluate: Returns a scalar.
        params: Some parameters of the module.
        candidates: For each of them a stack (k, *shape).

    Raises:
        RuntimeError: If the module does what `vmap` does not allow, such as ``.item()`` or writing into buffers, or
            fails by itself: at one point after the other the same error comes again.
    """
    names: dict[Tensor, str] = {param: f"module.{name}" for name, param in module.named_parameters()}
    evaluation = _Evaluation(module, evaluate)

    def value(*point: Tensor) -> Tensor:
        with _Substituted(params, point):
            return functional_call(evaluation, dict(zip((names[param] for param in params), point, strict=True)), ())

    return vmap(value, randomness="same")(*candidates)


class _Evaluation(nn.Module):
    """A module whose call is ``evaluate()``, as `functional_call` wants it."""

    def __init__(self, module: nn.Module, evaluate: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.forward = evaluate


class _Substituted(TorchFunctionMode):
    """While active, operations on some tensors are made on others in their place."""

    def __init__(self, tensors: Sequence[Tensor], substitutes: Sequence[Tensor]) -> None:
        super().__init__()
        self.substitutes = {id(tensor): other for tensor, other in zip(tensors, substitutes, strict=True)}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = {name: self._substitute(value) for name, value in (kwargs or {}).items()}
        return func(*self._substitute(args), **kwargs)

    def _substitute(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return type(value)(self._substitute(part) for part in value)
        return self.substitutes.get(id(value), value)


def warn_one_by_one(module: nn.Module, failure: str) -> None:
    """Warn that a module is evaluated at one point after the other, and how `stacked_values` failed."""
    warnings.warn(
        f"{type(module).__name__} is evaluated at one point after the other, as torch.func.vmap could not take several "
        f"at once: {failure.strip().partition(chr(10))[0]}",
        RuntimeWarning,
        stacklevel=3,
    )
