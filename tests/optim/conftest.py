"""Small problems in float64 that the optimizer tests share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor


@dataclass
class Linear:
    """f(w) = ||y - X w - b||^2 / 2, or its root: a closure of this package's kind that counts its evaluations."""

    X: Tensor
    y: Tensor
    root: bool = False
    w: Tensor = field(init=False)
    b: Tensor = field(init=False)
    num_calls: int = 0

    def __post_init__(self) -> None:
        self.w = torch.zeros(self.X.shape[1], dtype=self.X.dtype, requires_grad=True)
        self.b = torch.zeros((), dtype=self.X.dtype, requires_grad=True)

    @property
    def lambda_max(self) -> float:
        return float((self.X.T @ self.y).abs().max())

    def loss(self) -> Tensor:
        r = self.y - self.X @ self.w - self.b
        return r.norm() if self.root else r @ r / 2

    def __call__(self) -> Tensor:
        self.num_calls += 1
        self.w.grad = self.b.grad = None
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def value(self) -> Tensor:
        self.num_calls += 1
        with torch.no_grad():
            return self.loss()


@pytest.fixture
def linear() -> Callable[..., Linear]:
    """Make a 40 x 60 design with five non-zero coefficients and an intercept."""

    def make(root: bool = False, dtype: torch.dtype = torch.float64) -> Linear:
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(40, 60, generator=generator, dtype=torch.float64)
        noise = torch.randn(40, generator=generator, dtype=torch.float64)
        y = X[:, :5] @ torch.tensor([3.0, -2.0, 1.0, -1.0, 2.0], dtype=torch.float64) + 1.5 + 0.5 * noise
        return Linear(X.to(dtype), y.to(dtype), root)

    return make
