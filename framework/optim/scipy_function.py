"""A closure over parameters as functions of a float64 numpy vector, which scipy calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds
from torch import Tensor

from framework.objective.curvature import hessian
from framework.objective.vector import ParameterVector
from framework.optim.function import ClosureFunction


class ScipyFunction:
    """The value, gradient, Hessian and Hessian products at any point x (n,), and the best point seen.

    The closure runs in the parameters' own dtype, on their device; x and the results are numpy float64. One evaluation
    serves both the value and the gradient at the same x, and with `keep_graph` the products as well.

    Args:
        closure: As for `ClosureFunction`.
        vector: The parameters.
        keep_graph: Whether products will be needed, so that an evaluation keeps its graph.
        bounds: Lower and upper bounds (n,) that the best point must respect.
        track_best: False if the lowest value may be infeasible (constraints): then only `accept` changes the best
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
        self.function = ClosureFunction(closure, vector, keep_graph=keep_graph)
        self.bounds = bounds
        self.track_best = track_best
        self.start = _as_numpy(self.function.x)
        self.best_x = self.start.copy()  # not the array that scipy is given
        self.best_value = math.inf
        self.best_loss: Any = None
        self._x = self.best_x
        self._bytes = self._x.tobytes()
        self._point = self.function.x  # the same as a tensor
        self._loss: Any = None  # at x, as are the value and the gradient
        self._value: float | None = None
        self._gradient: np.ndarray | None = None

    @property
    def num_evaluations(self) -> int:
        """How many times the closure was evaluated."""
        return self.function.num_evaluations

    def evaluate(self, x: np.ndarray) -> float:
        """Compute the value at x; its gradient comes with it and is kept for `gradient`."""
        self.move(x)
        value, gradient = self.function.gradient(self._point)
        value = self._finish(value)
        self._gradient = _as_numpy(gradient)
        if not np.isfinite(self._gradient).all() and math.isfinite(value):
            raise ValueError(f"the loss is {value} but its gradient is not finite{self._where()}")
        return value

    def value(self, x: np.ndarray) -> float:
        """Compute the value alone at x: by `closure.value()` if there is one, otherwise by calling the closure.

        Gradients that the call computes anyway are kept for `gradient`.
        """
        self.move(x)
        value = self._finish(self.function.value(self._point))
        if not hasattr(self.function.closure, "value"):
            gradient = self.function.vector.read_gradients()
            self._gradient = None if gradient is None else _as_numpy(gradient)
        return value

    @property
    def has_gradient(self) -> bool:
        """Whether the closure computes gradients: it does if it has a `value` method, or has left some."""
        return hasattr(self.function.closure, "value") or self.function.vector.read_gradients() is not None

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Compute the gradient at x (n,)."""
        self.move(x)
        if self._gradient is None:
            self.evaluate(x)
        assert self._gradient is not None
        return self._gradient

    def product(self, x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Compute the Hessian at x times `direction` (n,)."""
        return self._checked(self._product_at(x)(torch.as_tensor(direction, dtype=torch.float64)))

    def hessian(self, x: np.ndarray) -> np.ndarray:
        """Compute the Hessian at x (n, n)."""
        return self._checked(hessian(self._product_at(x), len(self.start)))

    def _product_at(self, x: np.ndarray) -> Callable[[Tensor], Tensor]:
        self.move(x)
        if self._gradient is None and self.function.keep_graph:
            self.evaluate(x)
        return self.function.hessian_product(self._point)

    def _checked(self, tensor: Tensor) -> np.ndarray:
        curvature = tensor.numpy()
        if not np.isfinite(curvature).all():
            if self._value == math.inf:
                return np.zeros(curvature.shape)  # at a trial point that is rejected anyway
            raise ValueError(f"the Hessian is not finite{self._where()}")
        return curvature

    def move(self, x: np.ndarray) -> None:
        """Put the parameters at x; forget what was computed elsewhere."""
        # scipy reuses its arrays: only values tell. Comparing bytes takes a tenth of np.array_equal's time.
        if x.tobytes() != self._bytes:
            self._x = np.array(x, dtype=np.float64)
            self._bytes = self._x.tobytes()
            self._point = torch.from_numpy(self._x)
            self._loss = self._value = self._gradient = None
        self.function.move(self._point)

    def accept(self, x: np.ndarray) -> None:
        """Make x the best point, whatever its value."""
        self.move(x)
        if self._loss is None:
            self.value(x)
        self._accept(float(self._loss))

    def _accept(self, value: float) -> None:
        self.best_x, self.best_value, self.best_loss = self._x, value, self._loss
        self.function.accept(self._point)

    def _finish(self, value: float) -> float:
        """Check a value and remember the best point."""
        at_start = self.num_evaluations == 1 and np.array_equal(self._x, self.start)
        if value == -math.inf or (at_start and not math.isfinite(value)):
            raise ValueError(f"the loss is {value}{self._where()}")
        if math.isnan(value):
            value = math.inf  # scipy backs off from inf, but NaN poisons it silently
        self._loss, self._value = self.function.loss, value
        if self.track_best and value < self.best_value and self._is_within_bounds():
            self._accept(value)
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
