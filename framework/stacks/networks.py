"""A stack of sparse networks with one hidden layer, and their objectives and gradients on one design.

Shapes: B networks, H hidden units, P features, Q = P + 1 with the bias, N samples, D = H Q + H + 1 parameters each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from framework.layers import NormalizedLinear, Sigma, sigma
from framework.penalties import L1, Harder, Penalty


class _Activation(NamedTuple):
    module: type[nn.Module]
    in_place: Callable[[Tensor], Tensor]
    slope_in_place: Callable[[Tensor], Tensor]  # The derivative, as a function of the output.
    is_homogeneous: bool  # Whether act(t z) = t act(z) for t > 0.


def _sigma_slope(output: Tensor) -> Tensor:
    """Compute sigma' from sigma: below -0.5 it is sigmoid(z) = 1 - exp(-softplus(z)) at z = 20 (1 + x)."""
    return torch.where(output > -0.5, 1.0, -torch.expm1(-20 * (output + 1)))


ACTIVATIONS = {
    "ReLU": _Activation(nn.ReLU, torch.relu_, Tensor.sign_, is_homogeneous=True),
    "Sigma": _Activation(Sigma, sigma, _sigma_slope, is_homogeneous=False),
}


@dataclass(frozen=True)
class SparseNetworks:
    """B networks f(x) = c + sum_h u_h act(w_h . x + a_h) with u = v / ||v||_2, whose W the penalty is on.

    These are `nn.Linear`, an activation and a `NormalizedLinear` with one output, B times. All parameters of a network
    lie in one row, so that an optimizer moves them by one operation; `first`, `output` and `intercept` are views of it.

    Attributes:
        parameters: Of each network, shape (B, D): [w_h, a_h] for each h, then v, then c.
        num_features: P.
        hidden: H.
        activation: "ReLU", or "Sigma" (`framework.layers.Sigma`).

    Raises:
        ValueError: If there is no such activation, or the shapes contradict each other.
    """

    parameters: Tensor
    num_features: int
    hidden: int
    activation: str = "ReLU"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"SparseNetworks: activation={self.activation!r} has no gradient by hand; pass one of "
                f"{', '.join(ACTIVATIONS)}, or train the networks one by one"
            )
        expected = self.hidden * (self.num_features + 2) + 1
        if self.parameters.ndim != 2 or self.parameters.shape[1] != expected:
            raise ValueError(
                f"SparseNetworks: parameters have shape {tuple(self.parameters.shape)}; pass (networks, {expected}) "
                f"for hidden={self.hidden} and num_features={self.num_features}"
            )

    @classmethod
    def random(
        cls,
        num_networks: int,
        num_features: int,
        hidden: int,
        activation: str = "ReLU",
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> SparseNetworks:
        """Draw every parameter as `nn.Linear` does: uniform within +-1 / sqrt(number of inputs of its layer).

        Raises:
            ValueError: If a size is below 1.
        """
        if min(num_networks, num_features, hidden) < 1:
            raise ValueError(
                f"SparseNetworks: num_networks={num_networks}, num_features={num_features}, hidden={hidden}; each must "
                "be >= 1"
            )
        unit = torch.rand(num_networks, hidden * (num_features + 2) + 1, generator=generator, dtype=dtype) * 2 - 1
        networks = cls(unit, num_features, hidden, activation)
        networks.first.div_(math.sqrt(num_features))
        unit[:, -hidden - 1 :].div_(math.sqrt(hidden))
        return networks

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, rows: slice | Tensor) -> SparseNetworks:
        """Return some of the networks: a view for a slice, copies for indices or a mask."""
        return self.with_parameters(self.parameters[rows])

    def with_parameters(self, parameters: Tensor) -> SparseNetworks:
        """Return networks of the same kind with other parameters."""
        return SparseNetworks(parameters, self.num_features, self.hidden, self.activation)

    @property
    def first(self) -> Tensor:
        """The first layer with its biases in the last column, shape (B, H, Q)."""
        return self.parameters[:, : -self.hidden - 1].unflatten(1, (self.hidden, self.num_features + 1))

    @property
    def weight(self) -> Tensor:
        """What the penalty is on, W, shape (B, H, P)."""
        return self.first[:, :, :-1]

    @property
    def output(self) -> Tensor:
        """The output layer before it is normalized, v, shape (B, H)."""
        return self.parameters[:, -self.hidden - 1 : -1]

    @property
    def intercept(self) -> Tensor:
        """The bias of the output layer, c, shape (B,)."""
        return self.parameters[:, -1]

    def selected(self) -> Tensor:
        """Tell which features each network uses, shape (B, P), booleans."""
        return (self.weight != 0).any(1)

    def predict(self, X: Tensor) -> Tensor:
        """Compute the outputs, shape (B, N), for samples of shape (N, P)."""
        hidden_BHN, unit_BH = hidden_outputs(self, with_ones(X).T), unit_rows(self.output)
        return torch.bmm(unit_BH[:, None], hidden_BHN)[:, 0] + self.intercept[:, None]

    def network(self, row: int) -> nn.Sequential:
        """Make an ordinary network, with copies of the parameters of one."""
        linear = nn.Linear(self.num_features, self.hidden, dtype=self.parameters.dtype)
        normalized = NormalizedLinear(self.hidden, 1, dtype=self.parameters.dtype)
        with torch.no_grad():
            linear.weight.copy_(self.weight[row])
            linear.bias.copy_(self.first[row, :, -1])
            normalized.weight.copy_(self.output[row, None])
            normalized.bias.copy_(self.intercept[row, None])
        return nn.Sequential(linear, ACTIVATIONS[self.activation].module(), normalized)


def with_ones(X: Tensor) -> Tensor:
    """Return X with a column of ones behind it, for the bias, shape (N, Q)."""
    return torch.cat([X, X.new_ones(len(X), 1)], 1)


def unit_rows(v_BH: Tensor) -> Tensor:
    """Return each row at unit norm, a zero row as zeros, as `NormalizedLinear` does."""
    square = v_BH.square().sum(1, keepdim=True)
    return v_BH / torch.where(square > 0, square, 1.0).sqrt()


def hidden_outputs(networks: SparseNetworks, X_QN: Tensor) -> Tensor:
    """Compute what the hidden units put out, shape (B, H, N), by one matrix product for the whole stack."""
    first_BHQ = networks.first
    preactivation = first_BHQ.reshape(-1, first_BHQ.shape[2]) @ X_QN
    return ACTIVATIONS[networks.activation].in_place(preactivation).view(*first_BHQ.shape[:2], X_QN.shape[1])


def losses_and_gradients(
    networks: SparseNetworks, X_NQ: Tensor, X_QN: Tensor, Y_BN: Tensor, out: SparseNetworks
) -> Tensor:
    """Compute ||f(X) - y||_2 of each network, shape (B,), and write its gradient into ``out``.

    With d = (f(X) - y) / ||f(X) - y||_2, s the slopes of the hidden units and z their outputs,

        dL/dw_h = u_h sum_n d_n s_hn x_n,   dL/dv = (I - u u^T) z d / ||v||,   dL/dc = sum_n d_n.

    A network without a residual gets a zero gradient.
    """
    first_BHQ, v_BH = networks.first, networks.output
    num, hidden, width = first_BHQ.shape
    norm_B1 = v_BH.norm(dim=1, keepdim=True)
    norm_B1 = torch.where(norm_B1 > 0, norm_B1, 1.0)
    u_BH = v_BH / norm_B1
    z_BHN = hidden_outputs(networks, X_QN)
    d_BN = torch.bmm(u_BH[:, None], z_BHN)[:, 0].add_(networks.intercept[:, None]).sub_(Y_BN)
    loss_B = d_BN.norm(dim=1)
    d_BN.div_(torch.where(loss_B > 0, loss_B, 1.0)[:, None])

    grad_u_BH = torch.bmm(z_BHN, d_BN[:, :, None])[:, :, 0]
    torch.div(grad_u_BH - (grad_u_BH * u_BH).sum(1, keepdim=True) * u_BH, norm_B1, out=out.output)
    torch.sum(d_BN, 1, out=out.intercept)
    slope_BHN = ACTIVATIONS[networks.activation].slope_in_place(z_BHN)  # The outputs are not needed any more.
    grad_BHQ = (slope_BHN.mul_(d_BN[:, None]).view(num * hidden, -1) @ X_NQ).view(num, hidden, width)
    torch.mul(grad_BHQ, u_BH[:, :, None], out=out.first)
    return loss_B


def slopes(penalty: Penalty, magnitude: Tensor) -> Tensor:
    """Compute rho'(|w|) elementwise; at 0 from the right.

    As rho is concave there, lam rho'(|w_k|) |w| lies above lam rho(w) up to a constant and touches it at w_k: an L1
    penalty of these weights majorizes the penalty (Zou & Li 2008, eq. 2.6).

    Raises:
        ValueError: If the penalty is neither `L1` nor `Harder`.
    """
    if isinstance(penalty, L1):
        return torch.ones_like(magnitude)
    if isinstance(penalty, Harder):
        q = magnitude ** (1 - penalty.nu)
        return (1 + penalty.nu * q) / (1 + q).square_()
    raise ValueError(f"{penalty} has no majorizing L1 penalty here; use L1 or Harder")


def weights_of(happy_lambda: float | Tensor, networks: SparseNetworks) -> Tensor:
    """Return the weight of the penalty of each network, shape (B, 1, 1), from one number or one for each.

    Raises:
        ValueError: If there is not one for each, or one is negative or not finite.
    """
    like = networks.parameters
    lam_B = torch.as_tensor(happy_lambda, dtype=like.dtype, device=like.device)
    if lam_B.shape not in ((), (len(networks),)) or not bool((lam_B.isfinite() & (lam_B >= 0)).all()):
        raise ValueError(
            f"happy_lambda={happy_lambda}; pass a finite number >= 0, or one for each of the {len(networks)} networks"
        )
    return lam_B.expand(len(networks))[:, None, None]


def check_data(networks: SparseNetworks, X: Tensor, Y: Tensor) -> None:
    """Check that there is one response for each network, on a design that fits them.

    Raises:
        ValueError: If shapes or dtypes do not fit, or the data are not finite.
    """
    if X.shape != (len(X), networks.num_features) or Y.shape != (len(networks), len(X)):
        raise ValueError(
            f"X and Y have shapes {tuple(X.shape)} and {tuple(Y.shape)}; pass (samples, {networks.num_features}) and "
            f"({len(networks)}, samples): one response for each network"
        )
    if {X.dtype, Y.dtype} != {networks.parameters.dtype}:
        raise ValueError(
            f"X and Y are {X.dtype} and {Y.dtype}, but the networks' parameters are {networks.parameters.dtype}; pass "
            "one floating-point type"
        )
    if not (X.isfinite().all() and Y.isfinite().all()):
        raise ValueError("X or Y has NaN or infinite entries; check the data")


def objectives(
    networks: SparseNetworks, X: Tensor, Y: Tensor, happy_lambda: float | Tensor, penalty: Penalty
) -> Tensor:
    """Compute ||f(X) - y||_2 + g(W; lam) of each network, shape (B,).

    Args:
        networks: The stack.
        X: The design, shape (N, P), of the parameters' dtype.
        Y: One response for each network, shape (B, N).
        happy_lambda: The weight lam of the penalty: a number, or one for each network, shape (B,).
        penalty: g.

    Raises:
        ValueError: If shapes or dtypes do not fit, the data are not finite, or a weight is negative.
    """
    check_data(networks, X, Y)
    lam_B11 = weights_of(happy_lambda, networks)
    values = [penalty.value(weight, lam) for weight, lam in zip(networks.weight, lam_B11[:, 0, 0], strict=True)]
    return torch.linalg.vector_norm(networks.predict(X) - Y, dim=1) + torch.stack(values)


def gaps(networks: SparseNetworks, X: Tensor, Y: Tensor, happy_lambda: float | Tensor, penalty: Penalty) -> Tensor:
    """Compute how far each network is from stationary, shape (B,): the largest over its parameters.

    For W it is the distance of the negative gradient to the subdifferential of g, for the others |gradient|. Where a
    unit has its kink at a sample, a minimum need not have a gap of 0.

    Args:
        networks: The stack.
        X: The design, shape (N, P), of the parameters' dtype.
        Y: One response for each network, shape (B, N).
        happy_lambda: The weight lam of the penalty: a number, or one for each network, shape (B,).
        penalty: g.

    Raises:
        ValueError: As `objectives`.
    """
    check_data(networks, X, Y)
    gradient = networks.with_parameters(torch.empty_like(networks.parameters))
    X_NQ = with_ones(X)
    losses_and_gradients(networks, X_NQ, X_NQ.T.contiguous(), Y, gradient)
    lam_B = weights_of(happy_lambda, networks)[:, 0, 0]
    penalized = torch.stack(
        [penalty.subgradient_gap(*each) for each in zip(networks.weight, gradient.weight, lam_B, strict=True)]
    )
    rest = torch.cat([gradient.first[:, :, -1], gradient.output, gradient.intercept[:, None]], 1)
    return torch.maximum(penalized, rest.abs().amax(1))


def simplified(networks: SparseNetworks, X_QN: Tensor) -> SparseNetworks:
    """Return networks that compute the same on a design, with units out of the way that put out a constant there.

    Such a unit has no features, or is off at every sample. Its constant moves to the intercept, and its weights and
    bias become 0, where it puts out nothing. Where the activation is homogeneous, its share of ||v|| goes to the
    first layer. Both lower the penalty.
    """
    networks = networks.with_parameters(networks.parameters.clone())
    first_BHQ, v_BH = networks.first, networks.output
    z_BHN = hidden_outputs(networks, X_QN)
    is_idle_BH = z_BHN.amax(2) - z_BHN.amin(2) <= 1e-12
    networks.intercept.add_((z_BHN[:, :, 0] * unit_rows(v_BH) * is_idle_BH).sum(1))
    first_BHQ.masked_fill_(is_idle_BH[:, :, None], 0.0)
    v_BH.copy_(unit_rows(v_BH))
    if ACTIVATIONS[networks.activation].is_homogeneous:
        used_BH = v_BH.masked_fill(is_idle_BH, 0.0)
        norm_B1 = used_BH.norm(dim=1, keepdim=True)
        scale_B1 = torch.where(norm_B1 > 0, norm_B1, 1.0)
        first_BHQ.mul_(scale_B1[:, :, None])
        v_BH.copy_(torch.where(norm_B1 > 0, used_BH / scale_B1, v_BH))
    return networks
