"""A closure over parameters as the functions of a float64 vector that scipy calls."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds
from torch import Tensor

from framework.objective.curvature import hessian, hessian_vector_product
from framework.objective.vector import ParameterVector
from framework.optim.arguments import as_number


class Objective:
    """Value, gradient, Hessian and its products at any point x (n,), and the best point seen.

    The closure runs in the parameters' own dtype and on their device; x and what is returned are numpy float64. One
    evaluation serves the value and the gradient at the same x, and with `keep_graph` the products too.

    Args:
        closure: zeroes gradients, evaluates, backpropagates and returns the loss. Optional methods: `value()`, the loss
            alone; `hvp()`, at the current point a function from (n,) or (k, n) to Hessian-vector products.
        vector: the parameters.
        keep_graph: whether products will be asked for, so that an evaluation keeps its graph.
        bounds: lower and upper bounds (n,) that the best point must respect.
        track_best: False where the lowest value may be infeasible (constraints): then only `accept` moves the best
            point.
    """

    def __init__(
        self,
        closure: Callable[[], Any],
        vector: ParameterVector,
        *,
        keep_graph: bool = False,
        bounds: Bounds | None = None,
        track_best: bool = True,
    ) -> None:
        self.closure = closure
        self.vector = vector
        self.keep_graph = keep_graph and not hasattr(closure, "hvp")
        self.bounds = bounds
        self.track_best = track_best
        self.num_evaluations = 0
        self.start = _as_numpy(vector.read())
        self.best_x = self.start.copy()  # not the array that scipy is given
        self.best_value = math.inf
        self.best_loss: Any = None
        self._x = self.best_x
        self._loss: Any = None
        self._gradient: np.ndarray | None = None
        self._product: Callable[[Tensor], Tensor] | None = None

    def evaluate(self, x: np.ndarray) -> float:
        """The value at x; its gradient comes with it and is kept for `gradient`."""
        self.move(x)
        self._product = None  # frees the previous graph before the next is built
        if self.keep_graph:
            self._product = product = hessian_vector_product(self.closure, self.vector.params)
            loss = product.value
        else:
            with torch.enable_grad():
                loss = self.closure()
        value = self._finish(loss)
        gradients = self.vector.read_gradients()
        if gradients is None:
            raise ValueError(
                "the closure left no gradient on any parameter: it must call `loss.backward()`, and the loss must "
                "depend on the optimizer's parameters"
            )
        self._gradient = _as_numpy(gradients)
        if not np.isfinite(self._gradient).all() and math.isfinite(value):
            raise ValueError(f"the loss is {value} but its gradient is not finite{self._where()}")
        return value

    def value(self, x: np.ndarray) -> float:
        """The value at x alone: by `closure.value()` where there is one, else by `evaluate`."""
        if not hasattr(self.closure, "value"):
            return self.evaluate(x)
        self.move(x)
        return self._finish(self.closure.value())

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """The gradient at x (n,)."""
        self.move(x)
        if self._gradient is None:
            self.evaluate(x)
        assert self._gradient is not None
        return self._gradient

    def product(self, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """The Hessian at x times `direction` (n,)."""
        products = self._products_at(x)
        return self._checked(products(torch.as_tensor(direction, dtype=torch.float64)))

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """The Hessian at x (n, n)."""
        return self._checked(hessian(self._products_at(x), len(self.vector)))

    def _products_at(self, x: np.ndarray) -> Callable[[Tensor], Tensor]:
        self.move(x)
        if self._product is None and hasattr(self.closure, "hvp"):
            self._product = self.closure.hvp()
        elif self._product is None:
            self.evaluate(x)
        assert self._product is not None
        return self._product

    def _checked(self, curvature: Tensor) -> np.ndarray:
        if not curvature.isfinite().all():
            raise ValueError(f"the Hessian is not finite{self._where()}")
        return curvature.numpy()

    def move(self, x: np.ndarray) -> None:
        """Puts the parameters at x; what was computed elsewhere is forgotten."""
        if not np.array_equal(x, self._x):
            self._x = np.array(x, dtype=np.float64)  # scipy reuses its arrays
            self._loss = self._gradient = self._product = None
            self.vector.write(torch.from_numpy(self._x))

    def accept(self, x: np.ndarray) -> None:
        """Makes x the best point, whatever its value."""
        self.move(x)
        if self._loss is None:
            self.value(x)
        self.best_x, self.best_value, self.best_loss = self._x, float(self._loss), self._loss

    def restore_best(self) -> None:
        """Puts the parameters at the best point seen: the start if no value was finite."""
        # Also where they are thought to be there: an interrupt may have come in the middle of a move.
        self._x = self.best_x
        self._loss = self._gradient = self._product = None
        self.vector.write(torch.from_numpy(self.best_x))

    def _finish(self, loss: Any) -> float:
        """Counts an evaluation, remembers the best point and returns the loss as a number."""
        self.num_evaluations += 1
        value = as_number(loss)
        # scipy's line searches step back from inf, but NaN poisons them silently.
        if math.isnan(value) or value == -math.inf or (value == math.inf and self.num_evaluations == 1):
            raise ValueError(f"the loss is {value}{self._where()}")
        self._loss = loss.detach() if isinstance(loss, Tensor) else loss
        if self.track_best and value < self.best_value and self._is_within_bounds():
            self.best_x, self.best_value, self.best_loss = self._x, value, self._loss
        return value

    def _is_within_bounds(self) -> bool:
        if self.bounds is None:
            return True
        return bool((self.bounds.lb <= self._x).all() and (self._x <= self.bounds.ub).all())

    def _where(self) -> str:
        seen = (
            "the starting point" if math.isinf(self.best_value) else f"the best point seen, of loss {self.best_value}"
        )
        return (
            f" at evaluation {self.num_evaluations}; the parameters are left at {seen}. Check the data and the "
            "starting point, bound the parameters, or scale the loss so that the first steps are shorter"
        )


def _as_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
