"""A function of a module's parameters at several points at once, where the module allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode


def stacked_values(
    module: nn.Module, evaluate: Callable[[], Tensor], params: Sequence[Tensor], candidates: Sequence[Tensor]
) -> Tensor:
    """What ``evaluate`` returns, (k,), with ``params`` of the module at k points, by one `vmap`.

    Random draws are the same for all points.

    Args:
        module: Whose parameters ``evaluate`` reads.
        evaluate: Returns a scalar.
        params: Some parameters of the module.
        candidates: For each of them a stack (k, *shape).

    Raises:
        RuntimeError: The module does what `vmap` does not allow, such as ``.item()``, or writes into buffers, or
            somebody besides the module holds one of the parameters, and would read it at another point.
    """
    names: dict[Tensor, str] = {param: f"module.{name}" for name, param in module.named_parameters()}
    evaluation = _Evaluation(module, evaluate)

    def value(*point: Tensor) -> Tensor:
        with _Refused(params):
            return functional_call(evaluation, dict(zip((names[param] for param in params), point, strict=True)), ())

    return vmap(value, randomness="same")(*candidates)


class _Evaluation(nn.Module):
    """A module whose call is ``evaluate()``, as `functional_call` wants it."""

    def __init__(self, module: nn.Module, evaluate: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.forward = evaluate


class _Refused(TorchFunctionMode):
    """While active, no operation may take one of these tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.refused = {id(tensor) for tensor in tensors}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if any(id(argument) in self.refused for argument in _leaves([args, list(kwargs.values())])):
            raise RuntimeError("a parameter is held by others than its module")
        return func(*args, **kwargs)


def _leaves(nested: Any) -> Iterator[Any]:
    if isinstance(nested, list | tuple):
        for part in nested:
            yield from _leaves(part)
    else:
        yield nested
