"""Penalties g(x; lam): their value, their proximal map and the distance to their subdifferential.

One convention everywhere: the weight `lam` multiplies the whole penalty, sums (never means) over entries or groups, and
is a number, a 0-d tensor, or a tensor of the parameter's shape. In the last case each entry carries its own weight, so
`lam * mask` penalizes the entries of the mask and leaves the others alone: their prox is `u` itself.

Penalties hold no tensors: they compare by value, print as they are constructed, and belong to no device.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Penalty(ABC):
    """Computes a non-smooth penalty g(x; lam): what proximal optimizers apply and any other one differentiates."""

    @abstractmethod
    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        """Computes g(param; lam), a 0-d tensor, differentiable with gradient 0 where `param` is 0."""

    @abstractmethod
    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        """Computes argmin_x sum_i (x_i - u_i)^2 / (2 step_i) + g(x; lam).

        `step` is positive: a number, or a tensor of u's shape (the inverse of a diagonal metric). Zeros in the result
        are exact and positive, NaN in `u` stays NaN, and nothing waits for the device.
        """

    @abstractmethod
    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        """Computes how far `-grad` is from the subdifferential of g at `param`: 0 at a stationary point of f + g.

        A 0-d tensor: the largest over entries of min |grad_i + xi_i| over subgradients xi; for groups, the largest over
        groups of the Euclidean distance.
        """


@dataclass(frozen=True)
class L1(Penalty):
    """Computes lam * sum |w|, the lasso penalty. Its prox is soft thresholding at step * lam."""

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        return _weighted_sum(param.abs(), lam)

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        return _soft(u, step * lam)

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        return _largest(torch.where(param == 0, _soft(grad, lam), grad + lam * _sign(param)).abs())


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """Computes lam * sum (l1_ratio |w| + (1 - l1_ratio) w^2 / 2), the elastic net in scikit-learn's convention.

    Args:
        l1_ratio: The share of the L1 norm, in [0, 1]; 1 is `L1`, 0 is ridge.

    Raises:
        ValueError: `l1_ratio` is outside [0, 1].
    """

    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.l1_ratio <= 1:
            raise ValueError(
                f"ElasticNet: l1_ratio={self.l1_ratio!r} is outside [0, 1]; pass 1 for the lasso, 0 for ridge"
            )

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        return _weighted_sum(self.l1_ratio * param.abs() + (1 - self.l1_ratio) / 2 * param.square(), lam)

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        t = step * lam
        return _soft(u, t * self.l1_ratio) / (1 + t * (1 - self.l1_ratio)) + 0.0  # -0 + 0 is +0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        return L1().subgradient_gap(param, grad + lam * (1 - self.l1_ratio) * param, lam * self.l1_ratio)


def _soft(u: Tensor, t: float | Tensor) -> Tensor:
    # u - u is +0 and NaN - NaN is NaN: exact zeros, without sign, in two kernels.
    clamp: Callable[..., Tensor] = u.clamp
    return u - clamp(-t, t)


def _sign(x: Tensor) -> Tensor:
    # Only used where x is not 0; torch.sign would make NaN a 0.
    return x / x.abs()


def _is_elementwise(x: float | Tensor) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0


def _weighted_sum(rho: Tensor, lam: float | Tensor) -> Tensor:
    return (lam * rho).sum() if _is_elementwise(lam) else lam * rho.sum()


def _largest(gap: Tensor) -> Tensor:
    return gap.max() if gap.numel() else gap.new_zeros(())
