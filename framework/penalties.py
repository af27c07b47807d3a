"""Penalties g(x; lam): their value, their proximal map and the distance to their subdifferential.

One convention holds everywhere: penalties are sums (never means) over entries or groups, and the weight `lam`
multiplies the whole penalty (`SCAD` and `MCP`, as published, take their length from it too). It is a number, a 0-d
tensor, or a tensor of the parameter's shape. In the last case each entry has its own weight, so `lam * mask` penalizes
the entries of the mask and leaves the others alone: their prox is `u` itself.

Penalties hold no tensors: they compare by value, print as they are constructed, and belong to no device.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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

    Groups of several inputs, such as the columns of a category in one-hot code, are listed: `groups=[[0, 1, 2], [5,
    6]]` drops the inputs 0 to 2 together, 5 and 6 together, and each other one alone. Of a vector they are the entries.

    There is no factor sqrt(group size): all groups of a matrix have the same size, and without the factor the quantile
    universal threshold of the first layer is that of `L1` (the groups' gradient norm at W_1 = 0 has the same maximum
    over unit-norm output weights). Listed groups may have it, `sqrt_size=True`: the norm of a group of d inputs then
    counts sqrt(d) times, as usual (Yuan & Lin 2006), so that large groups are not favored. With an elementwise `lam`
    the penalty is sum ||lam * w||_2 over groups.

    Args:
        groups: "columns", "rows", or lists of inputs, which must not overlap.
        sqrt_size: Whether a listed group counts as often as the root of its number of inputs.

    Raises:
        ValueError: If `groups` is none of these, or `sqrt_size` is set for groups of equal sizes. Later, if a
            parameter has fewer inputs than the groups name.
    """

    groups: Literal["columns", "rows"] | Sequence[Sequence[int]] = "columns"
    sqrt_size: bool = False

    def __post_init__(self) -> None:
        if self.groups in ("columns", "rows"):
            if self.sqrt_size:
                raise ValueError(
                    f"GroupL1: sqrt_size=True with groups={self.groups!r}, which all have the same size, would only "
                    "change the weight; drop it, or list groups of inputs"
                )
            return
        try:
            listed = (
                () if isinstance(self.groups, str) else tuple(tuple(int(i) for i in group) for group in self.groups)
            )
        except (TypeError, ValueError):
            listed = ()
        inputs = [i for group in listed for i in group]
        if not all(listed) or not inputs or min(inputs) < 0 or len(set(inputs)) < len(inputs):
            raise ValueError(
                f'GroupL1: groups={self.groups!r} is unknown; pass "columns" (features), "rows" (neurons), or lists '
                "of the features that belong together, none of them twice, such as [[0, 1, 2], [5, 6]]"
            )
        object.__setattr__(self, "groups", listed)  # hashable, and equal however it was given

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        if self._is_entrywise(param):
            return L1().value(param, lam)
        if _is_elementwise(lam):
            return self.value(lam * param, 1.0)
        groups = self._groups(param)
        square = groups.total(param.square())
        # A norm has no second derivative at 0; a constant in its place keeps Hessian products finite.
        norm = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())
        return lam * (norm * groups.counted_once).sum()

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        if self._is_entrywise(u):
            return L1().prox(u, step, lam)
        groups = self._groups(u)
        if _is_elementwise(step) or _is_elementwise(lam):
            return _group_prox_in_metric(u, step, lam * groups.factor, groups)
        t, norm = step * lam * groups.factor, groups.norm(u)
        return torch.where(norm <= t, 0.0, u * ((norm - t) / norm)) + 0.0  # -0 + 0 is +0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        if self._is_entrywise(param):
            return L1().subgradient_gap(param, grad, lam)
        groups = self._groups(param)
        lam_in_group = lam * groups.factor
        norm = groups.norm(lam_in_group * param)
        # g is the support function of its subdifferential at 0, so (Moreau) the distance to it is the norm of a prox.
        slope = lam_in_group * (lam_in_group * param) / norm
        gap = torch.where(norm == 0, self.prox(-grad, 1.0, lam), grad + slope)
        return _largest(groups.norm(gap))

    def largest_gradient(self, gradient: Tensor) -> Tensor:
        """Compute the least `lam` at which zero is stationary: the largest norm of a group over what the group counts.

        Args:
            gradient: Of the smooth part at zero, shape (..., outputs, inputs), for columns or listed groups.

        Returns:
            One number for each of the leading dimensions.

        Raises:
            ValueError: If the groups name inputs that do not exist.
        """
        if isinstance(self.groups, str):
            return torch.linalg.vector_norm(gradient, dim=-2).amax(-1)
        num_inputs = gradient.shape[-1]
        _labels(self.groups, num_inputs)  # refuses inputs that do not exist
        alone = sorted(set(range(num_inputs)).difference(*self.groups))
        norms = [
            torch.linalg.vector_norm(gradient[..., group], dim=(-2, -1)) / (len(group) ** 0.5 if self.sqrt_size else 1)
            for group in map(list, self.groups)
        ]
        if alone:
            norms.append(torch.linalg.vector_norm(gradient[..., alone], dim=-2).amax(-1))
        return torch.stack(norms).amax(0)

    def _is_entrywise(self, param: Tensor) -> bool:
        return param.ndim < 2 and self.groups in ("columns", "rows")

    def _groups(self, param: Tensor) -> Any:
        if self.groups in ("columns", "rows"):
            kept = 1 if self.groups == "columns" else 0
            return _EqualGroups(tuple(dim for dim in range(param.ndim) if dim != kept))
        return _ListedGroups(self, param)


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


@dataclass(frozen=True)
class SCAD(Penalty):
    """The smoothly clipped absolute deviation, the sum of p(|w|) with the slope

        p'(x) = lam for x <= lam,   (a lam - x) / (a - 1) up to a lam,   0 beyond:

    the lasso for small weights, and a constant, which shrinks nothing, for large ones. `lam` is the slope at 0, so the
    weight that makes the null model stationary is that of `L1`, and also the length of the first part: it is in the
    units of w, as it is where the features have variance 1 and the loss is half the mean square.
    Source: Fan & Li 2001, eq. 2.7 to 2.8.

    For `step` < a - 1 the prox is continuous. Longer steps make its problem non-convex: then it is the better one of
    the soft threshold and u itself, and jumps.

    Args:
        a: The end of the concave part in units of lam, > 2; 3.7 is the paper's.

    Raises:
        ValueError: If `a` is not a finite number above 2.
    """

    a: float = 3.7

    def __post_init__(self) -> None:
        if not 2 < self.a < math.inf:
            raise ValueError(f"SCAD: a={self.a!r}; it must be finite and above 2, 3.7 is usual")

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        a, x = self.a, param.abs()
        end = a * lam
        concave = (2 * end * _minimum(x, end) - _minimum(x, end).square() - lam * lam) / (2 * (a - 1))
        return torch.where(x <= lam, lam * x, concave).sum()

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        a, x, t = self.a, u.abs(), step * lam
        # Where the step is shorter than a - 1, three pieces; the other formulas hold but for where they are not used.
        middle = torch.copysign(((a - 1) * x - a * t) / _nonzero(a - 1 - step), u)
        convex = torch.where(x <= lam + t, _soft(u, t), torch.where(x > a * lam, u, middle))
        # Else the soft threshold and u cost the same at `jump`, by whether the former is still 0 there.
        jump = _where(step < a + 1, (a + 1 + step) / 2, (step * (a + 1)) ** 0.5) * lam
        jumping = torch.where(x > jump, u, _soft(u, t))
        return _where(step < a - 1, convex, jumping) + 0.0  # -0 + 0 is +0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        slope = _minimum(((self.a * lam - param.abs()) / (self.a - 1)).clamp_min(0), lam)
        return _largest(torch.where(param == 0, _soft(grad, lam), grad + slope * _sign(param)).abs())


@dataclass(frozen=True)
class MCP(Penalty):
    """The minimax concave penalty, the sum of p(|w|) with the slope p'(x) = max(lam - x / gamma, 0).

    The slope falls from lam at 0 to nothing at gamma lam, so large weights are not shrunk. As in `SCAD`, lam is the
    weight that makes the null model stationary, and a length in the units of w.
    Source: Zhang 2010, eq. 2.1 and 2.2.

    For `step` < gamma the prox is the firm threshold, continuous: 0 up to step lam, u beyond gamma lam, a line between.
    Longer steps make its problem non-convex: then it is the hard threshold at lam sqrt(gamma step).

    Args:
        gamma: Where the penalty is constant, in units of lam, > 0; near 0 it is a hard threshold, and large is `L1`.

    Raises:
        ValueError: If `gamma` is not a finite number above 0.
    """

    gamma: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"MCP: gamma={self.gamma!r}; it must be finite and above 0, 3 is usual")

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        x = _minimum(param.abs(), self.gamma * lam)
        return (lam * x - x.square() / (2 * self.gamma)).sum()

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        gamma, x, t = self.gamma, u.abs(), step * lam
        firm = torch.where(x > gamma * lam, u, _soft(u, t) / _nonzero(1 - step / gamma))
        jump = (gamma * step) ** 0.5 * lam
        hard = torch.where(x > jump, u, _soft(u, jump))  # 0, or NaN
        return _where(step < gamma, firm, hard) + 0.0  # -0 + 0 is +0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        slope = (lam - param.abs() / self.gamma).clamp_min(0)
        return _largest(torch.where(param == 0, _soft(grad, lam), grad + slope * _sign(param)).abs())


@dataclass(frozen=True)
class Weighted(Penalty):
    """Another penalty with a weight for each feature: lam times ``weights[j]`` for the inputs j of a layer.

    The inputs are dimension 1 of a weight, as in `nn.Linear`, or the entries of a vector. A weight of 0 leaves a
    feature unpenalized. With 1 / |w| of an earlier fit this is the adaptive lasso (Zou 2006).

    Args:
        penalty: What is weighted.
        weights: One number per input, finite and >= 0, not all 0.

    Raises:
        ValueError: If the weights are no such numbers. Later, if a parameter has another number of inputs.
    """

    penalty: Penalty
    weights: Sequence[float]

    def __post_init__(self) -> None:
        weights = tuple(float(weight) for weight in self.weights)
        if not any(weights) or not all(0 <= weight < math.inf for weight in weights):
            raise ValueError(
                f"Weighted: weights={self.weights!r}; pass one finite number >= 0 for each feature, not all of them 0"
            )
        object.__setattr__(self, "weights", weights)

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        return self.penalty.value(param, self._lam(param, lam))

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        return self.penalty.prox(u, step, self._lam(u, lam))

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        return self.penalty.subgradient_gap(param, grad, self._lam(param, lam))

    def _lam(self, param: Tensor, lam: float | Tensor) -> Tensor:
        dim = _input_dim(param)
        if param.ndim == 0 or param.shape[dim] != len(self.weights):
            raise ValueError(
                f"Weighted has {len(self.weights)} weights, but a penalized parameter has shape {tuple(param.shape)}; "
                "pass one weight for each of its inputs (dimension 1), and penalize no other parameters"
            )
        weights = _tensor(self.weights, param.dtype, param.device)
        return (lam * _along(weights, param)).expand(param.shape)


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


def _minimum(x: Tensor, high: float | Tensor) -> Tensor:
    return torch.minimum(x, high.to(x)) if isinstance(high, Tensor) else x.clamp_max(high)


def _nonzero(x: Any) -> Any:
    """Replace 0, the divisor of what is not used."""
    if isinstance(x, Tensor):
        return torch.where(x == 0, 1.0, x)
    return x or 1.0


def _where(condition: Any, x: Any, other: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, x, other)
    return x if condition else other


def _input_dim(param: Tensor) -> int:
    return 1 if param.ndim > 1 else 0


def _along(values: Tensor, param: Tensor) -> Tensor:
    """Shape one value per input so that they broadcast to a parameter."""
    return values.view([-1 if dim == _input_dim(param) else 1 for dim in range(param.ndim)])


@lru_cache(maxsize=64)
def _tensor(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor of a setting, once, so that nothing waits for its way to the device."""
    return torch.tensor(values, dtype=dtype, device=device)


class _EqualGroups:
    """Groups over some dimensions: reductions keep them, with size 1."""

    factor = counted_once = 1.0

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = dims

    def total(self, x: Tensor) -> Tensor:
        return x.sum(self.dims, keepdim=True)

    def norm(self, x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=self.dims, keepdim=True)

    def largest(self, x: Tensor) -> Tensor:
        return x.amax(self.dims, keepdim=True)


class _ListedGroups:
    """Groups of inputs of a parameter: a reduction gives each input its group's.

    Attributes:
        factor: sqrt(d) for each input of a group of d, or 1.0; broadcasts to the parameter.
        counted_once: What weighs the values that inputs share so that each group counts once, with its factor.
    """

    def __init__(self, penalty: GroupL1, param: Tensor) -> None:
        num_inputs = param.shape[_input_dim(param)] if param.ndim else 0
        labels, sizes = _labels(penalty.groups, num_inputs)
        self.labels = _tensor(labels, torch.long, param.device)
        self.num_groups = len(set(labels))
        size = _along(_tensor(sizes, param.dtype, param.device), param)
        self.factor: Any = size.sqrt() if penalty.sqrt_size else 1.0
        self.counted_once = self.factor / size
        self.dims = [dim for dim in range(param.ndim) if dim != _input_dim(param)]

    def total(self, x: Tensor) -> Tensor:
        per_input = x.sum(self.dims) if self.dims else x
        totals = per_input.new_zeros(self.num_groups).index_add(0, self.labels, per_input)
        return _along(totals[self.labels], x)

    def norm(self, x: Tensor) -> Tensor:
        return self.total(x.square()).sqrt()

    def largest(self, x: Tensor) -> Tensor:
        per_input = x.amax(self.dims) if self.dims else x
        start = per_input.new_zeros(self.num_groups)
        return _along(start.scatter_reduce(0, self.labels, per_input, "amax", include_self=False)[self.labels], x)


@lru_cache(maxsize=64)
def _labels(groups: tuple[tuple[int, ...], ...], num_inputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return for each input the number of its group, those that are not listed alone, and the size of its group.

    Raises:
        ValueError: If a group has an input that does not exist.
    """
    if max(max(group) for group in groups) >= num_inputs:
        raise ValueError(
            f"GroupL1: groups={groups!r} names inputs beyond the {num_inputs} of a penalized parameter, counted from 0"
        )
    listed = {i: group for group in groups for i in group}
    every = [*groups, *((i,) for i in range(num_inputs) if i not in listed)]
    of_input = {i: (number, len(group)) for number, group in enumerate(every) for i in group}
    labels, sizes = zip(*(of_input[i] for i in range(num_inputs)), strict=True)
    return labels, sizes


def _is_elementwise(x: float | Tensor) -> bool:
    return isinstance(x, Tensor) and x.ndim > 0


def _weighted_sum(rho: Tensor, lam: float | Tensor) -> Tensor:
    return (lam * rho).sum() if _is_elementwise(lam) else lam * rho.sum()


def _largest(gap: Tensor) -> Tensor:
    return gap.max() if gap.numel() else gap.new_zeros(())


def _group_prox_in_metric(u: Tensor, step: float | Tensor, lam: float | Tensor, groups: Any) -> Tensor:
    """Compute the prox of sum ||lam * x||_2 over groups when step or lam varies within a group.

    With a = lam u and w = step lam^2, a group is 0 if sum (a / w)^2 <= 1; otherwise x = u v / (v + w), where v > 0
    solves S(v) = sum a^2 / (v + w)^2 = 1. Entries with lam = 0 have w = 0, hence x = u.
    """

    total, largest = groups.total, groups.largest

    def newton(v: Tensor) -> tuple[Tensor, Tensor]:
        """Take a Newton step on 1 / sqrt(S(v)) = 1, concave in v: from either side it lands left of the root."""
        c = (a / (v + w_or_1)).square()
        S = total(c)
        return v + S * (S.sqrt() - 1) / total(c / (v + w_or_1)), S

    a = (lam * u).abs()
    w = (step * lam * lam) * torch.ones_like(u)
    w_or_1 = torch.where(w == 0, 1.0, w)
    zero = total((a / w_or_1).square()) <= 1
    # The factors of u depend on ratios only: in units of the largest entry, no square leaves the range of its type.
    unit = _nonzero(largest(a))
    a, w_or_1 = a / unit, w_or_1 / unit

    norm = total(a.square()).sqrt()
    low = torch.maximum(largest(a - w_or_1), norm - largest(w_or_1)).clamp_min(0)
    high = norm + largest(-w_or_1)
    low = torch.maximum(low, newton(low)[0])
    # Bisecting the bracket in logarithms bounds the work whatever the spread of w; Newton then doubles the digits.
    for _ in range(8):
        middle = low.sqrt() * high.sqrt()
        step_from_middle, S = newton(middle)
        low, high = torch.maximum(low, step_from_middle), torch.where(S < 1, middle, high)
    for _ in range(5):
        low = newton(low)[0]
    return torch.where(w == 0, u, torch.where(zero, 0.0, u * (low / (low + w_or_1)) + 0.0))
