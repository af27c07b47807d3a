"""Hessian-vector products of whatever loss a closure evaluates.

The gradient is computed with its own graph, and each product differentiates it once more (Pearlmutter, 1994,
"Fast exact multiplication by the Hessian"): H v = d(g . v)/dw. The memory is that of a few gradients, and a
product costs about as much as one evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from framework.objective.vector import flatten, unflatten


class _KeepGraph(TorchFunctionMode):
    """While active, `loss.backward()` keeps differentiable gradients of `params` besides accumulating them.

    `backward(create_graph=True)` would tie each parameter to its own graph through `.grad`, a reference cycle; here
    `.grad` gets a plain copy, as without the mode. Parameters other than `params` get no gradient, and hooks that run
    after accumulation, such as those by which DDP synchronizes gradients, do not run.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = list(params)
        self.gradients: list[Tensor | None] = [None] * len(self.params)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.backward or func is torch.autograd.backward:
            # torch passes everything but the differentiated tensors by name.
            return self.backward(args[0], kwargs.get("gradient", kwargs.get("grad_tensors")))
        return func(*args, **kwargs)

    def backward(self, loss: Any, weight: Any = None) -> None:
        gradients = torch.autograd.grad(loss, self.params, weight, create_graph=True, allow_unused=True)
        for index, (param, gradient) in enumerate(zip(self.params, gradients, strict=True)):
            if gradient is None:
                continue
            kept = self.gradients[index]
            self.gradients[index] = gradient if kept is None else kept + gradient
            plain = gradient.detach().clone()
            param.grad = plain if param.grad is None else param.grad + plain


class HessianVectorProduct:
    """The Hessian of one evaluated loss as a function from a vector to its product.

    Valid while the parameters keep the values they were evaluated at. Made by `hessian_vector_product`.

    Attributes:
        value: what the evaluated function returned.
    """

    def __init__(self, value: Any, params: list[Tensor], gradients: list[Tensor | None]) -> None:
        self.value = value
        self._params = params
        self._gradients = gradients

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector (n,), or with each row of a stack (k, n) at once, like `vector` in all respects."""
        first = self._params[0]
        directions = unflatten(vector.to(first.device, first.dtype), self._params)
        # A gradient without a graph is constant: its rows of the Hessian are zero.
        pairs = [
            (gradient, direction)
            for gradient, direction in zip(self._gradients, directions, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(vector)
        products = torch.autograd.grad(
            [gradient for gradient, _ in pairs],
            self._params,
            [direction for _, direction in pairs],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=vector.dim() == 2,
        )
        filled = [torch.zeros_like(d) if p is None else p for p, d in zip(products, directions, strict=True)]
        if vector.dim() == 2:
            return torch.cat([product.flatten(1).to(first.device) for product in filled], dim=1).to(vector)
        return flatten(filled).to(vector)


def hessian_vector_product(evaluate: Callable[[], Any], params: Sequence[Tensor]) -> HessianVectorProduct:
    """Evaluates a loss once and returns its Hessian, over `params`, as a function from a vector to their product.

    Args:
        evaluate: a closure that calls `loss.backward()`, once or for several micro-batches (the Hessian is then that of
            their sum, and all their graphs are kept); or a function that returns the loss and leaves `.grad` alone.
        params: the parameters, in the order of the vector's values.

    Returns:
        A function from (n,) to (n,), or from (k, n) to (k, n); its `value` is what `evaluate` returned.

    Raises:
        ValueError: if `evaluate` neither calls `backward` nor returns a loss that depends on a parameter.
    """
    with torch.enable_grad(), _KeepGraph(params) as kept:
        value = evaluate()
    if all(gradient is None for gradient in kept.gradients):
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError(
                "no gradient reached a parameter: call `loss.backward()` in the closure, on a loss that depends on the "
                "optimizer's parameters, with gradients enabled"
            )
        kept.gradients = list(torch.autograd.grad(value, kept.params, create_graph=True, allow_unused=True))
    return HessianVectorProduct(value.detach() if isinstance(value, Tensor) else value, kept.params, kept.gradients)


def hessian(product: Callable[[Tensor], Tensor], size: int, *, chunk_size: int = 64) -> Tensor:
    """The Hessian (n, n), float64 on the CPU, from products with `chunk_size` unit vectors at a time.

    Chunks of 64 take a third of the time of `torch.autograd.functional.hessian` (scripts/benchmark_minimize.py); larger
    ones gain little and hold that many copies of every intermediate.
    """
    rows = []
    for start in range(0, size, chunk_size):
        count = min(chunk_size, size - start)
        units = torch.zeros(count, size, dtype=torch.float64)
        units[range(count), range(start, start + count)] = 1.0
        rows.append(product(units))
    return torch.cat(rows)
