"""A closure as a function of one vector, used by every optimizer here that evaluates more than once per step.

Shapes: n is the number of values in all parameters together, k the number of points in a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from framework.objective.curvature import hessian_vector_product
from framework.objective.vector import ParameterVector, unflatten
from framework.optim.arguments import as_number


class ClosureFunction:
    """The value, the gradient and the Hessian of what a closure evaluates, at any point x (n,).

    Asking for a value at a point moves the parameters there. Used as a context manager, the function leaves them at
    the accepted point on exit, whatever happens inside::

        with ClosureFunction(closure, vector) as function:
            if function.value(point) < function.value(function.x):
                function.accept(point)

    Args:
        closure: Zeroes the gradients, evaluates, backpropagates and returns the loss. It may offer cheaper calls, which
            are then used: `value()`, the loss alone; `values(points)`, the losses (k,) at points given as one stack
            (k, *shape) for each parameter; `hvp()`, which returns a function from (n,) or (k, n) to products with the
            Hessian at the current point. A closure that is only asked for values need not backpropagate.
        vector: The parameters.
        keep_graph: Whether products with the Hessian will be needed, so that an evaluation keeps its graph.

    Attributes:
        x: The accepted point; the starting point until `accept` is called.
        loss: What the closure last returned, detached.
        num_evaluations: How many times the closure was evaluated.
    """

    def __init__(self, closure: Callable[[], Any], vector: ParameterVector, *, keep_graph: bool = False) -> None:
        self.closure: Any = closure
        self.vector = vector
        self.keep_graph = keep_graph and not hasattr(closure, "hvp")
        self.x = vector.read()
        self.loss: Any = None
        self.num_evaluations = 0
        self._at: Tensor | None = self.x  # where the parameters are; None if that is not certain
        self._product: Callable[[Tensor], Tensor] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def evaluate(self, x: Tensor) -> float:
        """Compute the value at x; the closure leaves the gradient at x in the parameters."""
        self.move(x)
        self._product = None  # free the previous graph before the next one is built
        with torch.enable_grad():
            if not self.keep_graph:
                return self._number(self.closure())
            self._product = product = hessian_vector_product(self.closure, self.vector.params)
            return self._number(product.value)

    def gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Compute the value at x and the gradient there (n,).

        Raises:
            ValueError: If the closure leaves no gradient.
        """
        value = self.evaluate(x)
        gradient = self.vector.read_gradients()
        if gradient is None:
            raise ValueError(
                "the closure left no gradient on any parameter: it must call `loss.backward()`, and the loss must "
                "depend on the optimizer's parameters"
            )
        return value, gradient

    def value(self, x: Tensor) -> float:
        """Compute the value at x, without gradients if the closure can."""
        if not hasattr(self.closure, "value"):
            return self.evaluate(x)
        self.move(x)
        return self._number(self.closure.value())

    def values(self, points: Tensor) -> Tensor:
        """Compute the values (k,), float64 on the CPU, at points (k, n); all at once if the closure can."""
        if not hasattr(self.closure, "values"):
            return torch.tensor([self.value(point) for point in points], dtype=torch.float64)
        self._at = None  # the closure may move the parameters
        self.num_evaluations += len(points)
        return self.closure.values(unflatten(points, self.vector.params)).detach().to("cpu", torch.float64)

    def hessian_product(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the Hessian at x, as a function from a vector (n,) or a stack (k, n) to the products with it."""
        self.move(x)
        if self._product is None and hasattr(self.closure, "hvp"):
            self._product = self.closure.hvp()
        elif self._product is None:
            self.evaluate(x)
        assert self._product is not None, "products need keep_graph=True, or a closure with hvp()"
        return self._product

    def accept(self, x: Tensor) -> None:
        """Make x the point that `restore` returns to."""
        self.x = x

    def restore(self) -> None:
        """Put the parameters at the accepted point."""
        self.move(self.x)

    def move(self, x: Tensor) -> None:
        """Put the parameters at x."""
        if x is not self._at:
            self._at = self._product = None  # an interrupt may arrive in the middle of the write
            self.vector.write(x)
            self._at = x

    def _number(self, loss: Any) -> float:
        self.num_evaluations += 1
        self.loss = loss.detach() if isinstance(loss, Tensor) else loss
        return as_number(loss)
