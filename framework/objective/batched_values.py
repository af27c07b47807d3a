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
    """Compute what ``evaluate`` returns, (k,), with ``params`` of the module at k points, in one `vmap`.

    Random draws are the same for all points. Anything else that holds a parameter, such as a penalty, also sees its
    value at each point.

    Args:
        module: The module whose parameters ``evaluate`` reads.
        evaluate: A function that returns a scalar.
        params: Some parameters of the module.
        candidates: For each of them, a stack (k, *shape).

    Raises:
        RuntimeError: If the module does something that `vmap` does not allow, such as ``.item()`` or writing into
            buffers, or fails on its own: then evaluating one point at a time raises the same error.
    """
    names: dict[Tensor, str] = {param: f"module.{name}" for name, param in module.named_parameters()}
    evaluation = _Evaluation(module, evaluate)

    def value(*point: Tensor) -> Tensor:
        with _Substituted(params, point):
            return functional_call(evaluation, dict(zip((names[param] for param in params), point, strict=True)), ())

    return vmap(value, randomness="same")(*candidates)


class _Evaluation(nn.Module):
    """A module whose forward is ``evaluate()``, as `functional_call` requires."""

    def __init__(self, module: nn.Module, evaluate: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.forward = evaluate


class _Substituted(TorchFunctionMode):
    """A mode in which operations on some tensors use others in their place."""

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
    """Warn that a module is evaluated at one point at a time, and why `stacked_values` failed."""
    warnings.warn(
        f"{type(module).__name__} is evaluated at one point after the other, because torch.func.vmap failed on several "
        f"at once: {failure.strip().partition(chr(10))[0]}",
        RuntimeWarning,
        stacklevel=3,
    )
