"""Hessian-vector products of any loss that a closure evaluates.

The gradient is computed with its own graph, and each product differentiates it once more (Pearlmutter, 1994,
"Fast exact multiplication by the Hessian"): H v = d(g . v)/dw. The memory is that of a few gradients, and a
product costs about as much as one evaluation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from framework.objective.vector import flatten


class _KeepGraph(TorchFunctionMode):
    """A mode in which `loss.backward()` also keeps differentiable gradients of `params`, besides accumulating them.

    `torch.autograd.grad` with respect to them does the same, for closures that assign `.grad` themselves.

    `backward(create_graph=True)` would tie each parameter to its own graph through `.grad`, a reference cycle; here
    `.grad` gets a plain copy, as without the mode. Parameters other than `params` get no gradient, and hooks that run
    after accumulation, such as those with which DDP synchronizes gradients, do not run.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        super().__init__()
        self.params = list(params)
        self.gradients: list[Tensor | None] = [None] * len(self.params)
        self.returned: list[Tensor | None] = [None] * len(self.params)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DIFFERENTIATE:
            return func(*args, **kwargs)
        if func is not torch.autograd.grad:
            # torch passes everything but the differentiated tensors by name.
            return self.backward(args[0], kwargs.get("gradient", kwargs.get("grad_tensors")))
        if kwargs.get("create_graph"):
            return func(*args, **kwargs)
        gradients = func(*args, **{**kwargs, "create_graph": True, "retain_graph": True})
        return self.grad(args[1], gradients)

    def backward(self, loss: Any, weight: Any = None) -> None:
        gradients = torch.autograd.grad(loss, self.params, weight, create_graph=True, allow_unused=True)
        for index, (param, gradient) in enumerate(zip(self.params, gradients, strict=True)):
            if gradient is None:
                continue
            self.gradients[index] = _sum(self.gradients[index], gradient)
            plain = gradient.detach().clone()
            param.grad = plain if param.grad is None else param.grad + plain

    def grad(self, inputs: Any, gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        positions = {id(param): index for index, param in enumerate(self.params)}
        for tensor, gradient in zip([inputs] if isinstance(inputs, Tensor) else inputs, gradients, strict=True):
            index = positions.get(id(tensor))
            if index is not None and gradient is not None:
                self.returned[index] = _sum(self.returned[index], gradient)
        return tuple(None if gradient is None else gradient.detach().clone() for gradient in gradients)

    def use_assigned(self) -> None:
        """Keep the returned gradients if nothing was backpropagated and they were assigned as they were."""
        if any(gradient is not None for gradient in self.gradients):
            return
        for param, gradient in zip(self.params, self.returned, strict=True):
            if gradient is not None and (param.grad is None or not torch.equal(param.grad, gradient)):
                return
        self.gradients = self.returned


_DIFFERENTIATE = {Tensor.backward, torch.autograd.backward, torch.autograd.grad}


def _sum(before: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if before is None else before + gradient


class HessianVectorProduct:
    """The Hessian of one evaluated loss, as a function from a vector to the product with it.

    Valid while the parameters keep the values they were evaluated at. Made by `hessian_vector_product`.

    Attributes:
        value: What the evaluated function returned.
    """

    def __init__(self, value: Any, params: list[Tensor], gradients: list[Tensor | None]) -> None:
        self.value = value
        self._params = params
        # One vector: to differentiate many tensors costs more than to differentiate a network of a few hundred weights.
        with torch.enable_grad():  # optimizers ask for products within no_grad
            self._gradient = flatten(
                [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True)]
            )

    def __call__(self, vector: Tensor) -> Tensor:
        """Compute the product with a vector (n,), or with all rows of a stack (k, n) at once, in the vector's dtype."""
        gradient = self._gradient
        if not gradient.requires_grad:
            return torch.zeros_like(vector)
        is_stack = vector.dim() == 2
        try:
            products = torch.autograd.grad(
                gradient,
                self._params,
                vector.to(gradient),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=is_stack,
            )
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise RuntimeError(
                f"the loss has no second derivative: {error}. Compute that part with plain operations, or use a method "
                "that needs no curvature, such as L-BFGS-B"
            ) from error
        # A parameter on which the gradient does not depend has rows of zeros.
        filled = [
            param.new_zeros(vector.shape[:-1] + param.shape) if product is None else product
            for product, param in zip(products, self._params, strict=True)
        ]
        if is_stack:
            return torch.cat([product.flatten(1).to(gradient.device) for product in filled], dim=1).to(vector)
        return flatten(filled).to(vector)


def hessian_vector_product(evaluate: Callable[[], Any], params: Sequence[Tensor]) -> HessianVectorProduct:
    """Evaluate a loss once and return its Hessian over `params`, as a function from a vector to the product with it.

    Args:
        evaluate: A closure that calls `loss.backward()`, once or for several micro-batches (the Hessian is then that of
            their sum, and all their graphs are kept); or one that assigns `.grad` from `torch.autograd.grad`; or a
            function that returns the loss and leaves `.grad` alone.
        params: The parameters, in the order of the vector's values.

    Returns:
        A function from (n,) to (n,), or from (k, n) to (k, n); its `value` is what `evaluate` returned.

    Raises:
        ValueError: If `evaluate` neither calls `backward` nor returns a loss that depends on a parameter.
    """
    # Fused attention kernels have no second derivative.
    with torch.enable_grad(), _KeepGraph(params) as kept, sdpa_kernel(SDPBackend.MATH):
        value = evaluate()
    kept.use_assigned()
    if all(gradient is None for gradient in kept.gradients):
        if not (isinstance(value, Tensor) and value.requires_grad):
            raise ValueError(
                "no gradient reached a parameter: call `loss.backward()` in the closure, on a loss that depends on the "
                "optimizer's parameters, with gradients enabled"
            )
        kept.gradients = list(torch.autograd.grad(value, kept.params, create_graph=True, allow_unused=True))
    return HessianVectorProduct(value.detach() if isinstance(value, Tensor) else value, kept.params, kept.gradients)


def hessian(product: Callable[[Tensor], Tensor], size: int, *, chunk_size: int = 64) -> Tensor:
    """Compute the Hessian (n, n), float64 on the CPU, from products with `chunk_size` unit vectors at a time.

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
