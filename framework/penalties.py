"""Penalties g(x; lam): their value, their proximal map and the distance to their subdifferential.

One convention holds everywhere: penalties are sums (never means) over entries or groups, and the weight `lam`
multiplies the whole penalty. It is a number, a 0-d tensor, or a tensor of the parameter's shape. In the last case each
entry has its own weight, so `lam * mask` penalizes the entries of the mask and leaves the others alone: their prox is
`u` itself.

Penalties hold no tensors: they compare by value, print as they are constructed, and belong to no device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


class Penalty(ABC):
    """A non-smooth penalty g(x; lam), which proximal optimizers apply by its prox and all others differentiate."""

    @abstractmethod
    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        """Compute g(param; lam), a 0-d tensor, differentiable with gradient 0 where `param` is 0."""

    @abstractmethod
    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        """Compute argmin_x sum_i (x_i - u_i)^2 / (2 step_i) + g(x; lam).

        `step` is positive: a number, or a tensor that broadcasts to u's shape (the inverse of a diagonal metric). Zeros
        in the result are exact and positive, NaN in `u` stays NaN, and nothing waits for the device.
        """

    @abstractmethod
    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        """Compute how far `-grad` is from the subdifferential of g at `param`: 0 at a stationary point of f + g.

        Returns a 0-d tensor: the largest, over entries, of min |grad_i + xi_i| over subgradients xi; for groups, the
        largest Euclidean distance over groups.
        """


@dataclass(frozen=True)
class L1(Penalty):
    """The lasso penalty, lam * sum |w|. Its prox is soft thresholding at step * lam."""

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        return _weighted_sum(param.abs(), lam)

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        return _soft(u, step * lam)

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        return _largest(torch.where(param == 0, _soft(grad, lam), grad + lam * _sign(param)).abs())


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """The elastic net, lam * sum (l1_ratio |w| + (1 - l1_ratio) w^2 / 2), in scikit-learn's convention.

    Args:
        l1_ratio: The share of the L1 norm, in [0, 1]; 1 is `L1`, 0 is ridge.

    Raises:
        ValueError: If `l1_ratio` is outside [0, 1].
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


@dataclass(frozen=True)
class GroupL1(Penalty):
    """The group lasso, lam * sum over groups of ||w_group||_2, which zeroes whole groups at once.

    The weight of `nn.Linear` has shape (out, in). `groups="columns"` makes one group per input (all entries with the
    same index along dimension 1: a zero column drops a feature); `groups="rows"` one group per neuron (dimension 0).
    Further dimensions, such as a convolution's kernel, belong to the group. With fewer than two dimensions each entry
    is its own group, as in `L1`.

    There is no factor sqrt(group size): all groups of a matrix have the same size, and without the factor the quantile
    universal threshold of the first layer is that of `L1` (the groups' gradient norm at W_1 = 0 has the same maximum
    over unit-norm output weights). With an elementwise `lam` the penalty is sum ||lam * w||_2 over groups.

    Raises:
        ValueError: If `groups` is neither "columns" nor "rows".
    """

    groups: Literal["columns", "rows"] = "columns"

    def __post_init__(self) -> None:
        if self.groups not in ("columns", "rows"):
            raise ValueError(
                f'GroupL1: groups={self.groups!r} is unknown; pass "columns" (features) or "rows" (neurons)'
            )

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        if param.ndim < 2:
            return L1().value(param, lam)
        if _is_elementwise(lam):
            return self.value(lam * param, 1.0)
        square = param.square().sum(self._dims(param))
        # A norm has no second derivative at 0; a constant in its place keeps Hessian products finite.
        return lam * torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt()).sum()

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        if u.ndim < 2:
            return L1().prox(u, step, lam)
        if _is_elementwise(step) or _is_elementwise(lam):
            return _group_prox_in_metric(u, step, lam, self._dims(u))
        t, norm = step * lam, self._norm(u)
        return torch.where(norm <= t, 0.0, u * ((norm - t) / norm)) + 0.0  # -0 + 0 is +0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        if param.ndim < 2:
            return L1().subgradient_gap(param, grad, lam)
        norm = self._norm(lam * param)
        # g is the support function of its subdifferential at 0, so (Moreau) the distance to it is the norm of a prox.
        gap = torch.where(norm == 0, self.prox(-grad, 1.0, lam), grad + lam * (lam * param) / norm)
        return _largest(self._norm(gap))

    def _dims(self, param: Tensor) -> tuple[int, ...]:
        kept = 1 if self.groups == "columns" else 0
        return tuple(dim for dim in range(param.ndim) if dim != kept)

    def _norm(self, param: Tensor) -> Tensor:
        return torch.linalg.vector_norm(param, dim=self._dims(param), keepdim=True)


@dataclass(frozen=True)
class Harder(Penalty):
    """The harder penalty, lam * sum rho(w), rho(w) = |w| / (1 + |w|^(1 - nu)): half the lasso (nu = 1) to nearly hard.

    It is concave on each side of 0, so large weights hardly shrink. The slope at 0 is +-1 for every nu < 1: the
    subdifferential there is lam * [-1, 1], and the weight that makes the null model stationary is that of `L1`. For
    nu = 1, rho(w) = |w| / 2 and the interval is half as wide.

    With t = step * lam, the prox is 0 for |u| <= phi and jumps to kappa there; above, it is the larger root of
    x - |u| + t rho'(x) = 0. Since phi < t, a long step may leave a stationary zero for a better point.
    Source: HarderLASSO, arXiv 2411.17180.

    Args:
        nu: The shape, in (0, 1]; lower is closer to hard thresholding.

    Raises:
        ValueError: If `nu` is outside (0, 1].
    """

    nu: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.nu <= 1:
            raise ValueError(
                f"Harder: nu={self.nu!r} is outside (0, 1]; pass 1 for half the lasso, 0.1 for nearly hard"
            )

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        a = param.abs()
        # The clamp keeps both derivatives of the power finite at 0, where the gradient would otherwise be 0 * inf.
        q = a.clamp_min(torch.finfo(a.dtype).tiny ** 0.5) ** (1 - self.nu)
        return _weighted_sum(a / (1 + q), lam)

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        nu, t = self.nu, step * lam
        if nu == 1:
            return _soft(u, t / 2)
        if not isinstance(t, Tensor):
            return u.clone() if t == 0 else self._threshold(u, t)
        return torch.where(t == 0, u, self._threshold(u, t.clamp_min(torch.finfo(t.dtype).tiny)))

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        slope_at_0 = 0.5 if self.nu == 1 else 1.0
        q = param.abs() ** (1 - self.nu)
        rho_prime = _sign(param) * (1 + self.nu * q) / (1 + q).square()
        return _largest(torch.where(param == 0, _soft(grad, lam * slope_at_0), grad + lam * rho_prime).abs())

    def _threshold(self, u: Tensor, t: float | Tensor) -> Tensor:
        """Compute the prox for t > 0, with m = 1 - nu and s = 1 / (1 + x^m)."""
        nu, m, a = self.nu, 1 - self.nu, u.abs()
        kappa, phi = self._jump(t)
        q = kappa**m
        # x - a + t rho'(x) is convex for x > 0: from the right of the larger root, Newton descends to it and never
        # passes it. Both a and the Newton step from kappa lie there; near kappa the slope is as small as nu / 2, and a
        # is a poor start.
        x = torch.minimum(a, kappa + (a - phi) * (2 * (1 + q) / (nu + (2 - nu) * q)))
        # The root is at least kappa; kappa itself may underflow, and 0 has no finite slope.
        kappa = _clamp_min(kappa, torch.finfo(u.dtype).tiny)
        x = _clamp_min(x, kappa)
        for _ in range(_NEWTON_STEPS):
            s = 1 / (1 + x**m)
            rho_1 = s * (nu + m * s)
            rho_2 = m * s * (s - 1) * (nu + 2 * m * s) / x
            x = _clamp_min(x - (x - a + t * rho_1) / (1 + t * rho_2), kappa)
        return torch.where(a <= phi, 0.0, torch.copysign(x, u))

    def _jump(self, t: float | Tensor) -> tuple[Any, Any]:
        """Compute kappa, the root of kappa^nu + 2 kappa + kappa^(2 - nu) = 2 t (1 - nu), and phi.

        In z = log kappa the equation is nu z + 2 log(1 + e^((1 - nu) z)) = log(2 t (1 - nu)): convex, with slopes
        between nu and 2 - nu, and the start lies to the right of the root, so Newton converges for every t.
        """
        fn: Any = torch if isinstance(t, Tensor) else math
        nu = self.nu
        c = fn.log(t) + math.log(2 * (1 - nu))
        z = c - math.log(4)
        for _ in range(_NEWTON_STEPS):
            q = fn.exp((1 - nu) * z)
            z = z - (nu * z + 2 * fn.log1p(q) - c) / (nu + 2 * (1 - nu) * q / (1 + q))
        kappa = fn.exp(z)
        return kappa, kappa / 2 + t / (1 + fn.exp((1 - nu) * z))


# Enough for float64 from every start, as measured over nu in [0.02, 1) and t in [1e-8, 1e7].
_NEWTON_STEPS = 5


def _soft(u: Tensor, t: float | Tensor) -> Tensor:
    # u - u is +0 and NaN - NaN is NaN: exact positive zeros, in two kernels.
    clamp: Callable[..., Tensor] = u.clamp
    return u - clamp(-t, t)


def _sign(x: Tensor) -> Tensor:
    # Only used where x is not 0; torch.sign would make NaN a 0.
    return x / x.abs()


def _clamp_min(x: Any, low: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clamp_min(low)
    return max(x, low)


def _is_elementwise(x: float | Tensor) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0


def _weighted_sum(rho: Tensor, lam: float | Tensor) -> Tensor:
    return (lam * rho).sum() if _is_elementwise(lam) else lam * rho.sum()


def _largest(gap: Tensor) -> Tensor:
    return gap.max() if gap.numel() else gap.new_zeros(())


def _group_prox_in_metric(u: Tensor, step: float | Tensor, lam: float | Tensor, dims: tuple[int, ...]) -> Tensor:
    """Compute the prox of sum ||lam * x||_2 over groups when step or lam varies within a group.

    With a = lam u and w = step lam^2, a group is 0 if sum (a / w)^2 <= 1; otherwise x = u v / (v + w), where v > 0
    solves S(v) = sum a^2 / (v + w)^2 = 1. Entries with lam = 0 have w = 0, hence x = u.
    """

    def total(x: Tensor) -> Tensor:
        return x.sum(dims, keepdim=True)

    def newton(v: Tensor) -> tuple[Tensor, Tensor]:
        """Take a Newton step on 1 / sqrt(S(v)) = 1, concave in v: from either side it lands left of the root."""
        c = (a / (v + w_or_1)).square()
        S = total(c)
        return v + S * (S.sqrt() - 1) / total(c / (v + w_or_1)), S

    a = (lam * u).abs()
    w = (step * lam * lam) * torch.ones_like(u)
    w_or_1 = torch.where(w == 0, 1.0, w)
    zero = total((a / w_or_1).square()) <= 1

    norm = total(a.square()).sqrt()
    low = torch.maximum((a - w_or_1).amax(dims, keepdim=True), norm - w_or_1.amax(dims, keepdim=True)).clamp_min(0)
    high = norm - w_or_1.amin(dims, keepdim=True)
    low = torch.maximum(low, newton(low)[0])
    # Bisecting the bracket in logarithms bounds the work whatever the spread of w; Newton then doubles the digits.
    for _ in range(8):
        middle = low.sqrt() * high.sqrt()
        step_from_middle, S = newton(middle)
        low, high = torch.maximum(low, step_from_middle), torch.where(S < 1, middle, high)
    for _ in range(5):
        low = newton(low)[0]
    return torch.where(w == 0, u, torch.where(zero, 0.0, u * (low / (low + w_or_1)) + 0.0))
