"""Functions to minimize for demonstration, each with its usual starting point and its minimum.

Each maps points of shape (..., n) to values (...), so that a whole grid can be evaluated at once. Each is at least 0,
and 0 where all n coordinates equal the function's `minimizer`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def square(x: Tensor) -> Tensor:
    """Compute the sum of x_i^2; for a single number, its square."""
    return x.square().sum(-1)


def squared_sum(x: Tensor) -> Tensor:
    """Compute (x_1 + ... + x_n)^2, which is 0 on a whole plane and changes only in the direction (1, ..., 1)."""
    return x.sum(-1).square()


def rosenbrock(x: Tensor) -> Tensor:
    """Compute the sum over i < n of 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2, a curved, flat valley (Rosenbrock, 1960)."""
    here, after = x[..., :-1], x[..., 1:]
    return (100 * (after - here.square()).square() + (1 - here).square()).sum(-1)


def rastrigin(x: Tensor) -> Tensor:
    """Compute the sum of x_i^2 + 10 (1 - cos(2 pi x_i)): a local minimum near every integer point (Rastrigin, 1974)."""
    return (x.square() + 10 * (1 - (2 * math.pi * x).cos())).sum(-1)


@dataclass(frozen=True)
class ToyFunction:
    """A function, its usual starting point, and its minimizer.

    Attributes:
        value: Maps points (..., n) to values (...).
        start: The usual starting point, n numbers.
        minimizer: The value has its minimum, 0, where all coordinates equal this number.
    """

    value: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    minimizer: float


FUNCTIONS = {
    "square": ToyFunction(square, start=(2.0,), minimizer=0.0),
    "squared_sum": ToyFunction(squared_sum, start=(1.0, 2.0, 3.0, 4.0, 5.0), minimizer=0.0),
    "rosenbrock": ToyFunction(rosenbrock, start=(-1.2, 1.0), minimizer=1.0),
    "rastrigin": ToyFunction(rastrigin, start=(2.2, -1.3), minimizer=0.0),
}
