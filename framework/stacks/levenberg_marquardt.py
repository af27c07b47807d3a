"""The last digits of a stack of networks: batched Levenberg-Marquardt steps on the weights that are not zero."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from framework.optim.arguments import check_positive
from framework.penalties import Harder, Penalty
from framework.stacks.networks import (
    ACTIVATIONS,
    SparseNetworks,
    check_data,
    hidden_outputs,
    objectives,
    simplified,
    slopes,
    unit_rows,
    weights_of,
    with_ones,
)

# After a step that lowers the objective, the damping is divided by the first, else multiplied by the second.
LESS, MORE = 3.0, 10.0
MIN_DAMPING, MAX_DAMPING = 1e-6, 1e6
# A network is done after so many steps that lower its objective by less than the tolerance, without one between that
# lowers it by more; or when the damping is at its maximum: then no step lowers it, however short.
PATIENCE = 8


class Finished(NamedTuple):
    """The result of `levenberg_marquardt`.

    Attributes:
        networks: The stack, in float64.
        objectives: Of each network, shape (B,).
        converged: Whether the objective of each decreased no more, shape (B,), booleans.
        num_iterations: How many steps each tried, shape (B,).
    """

    networks: SparseNetworks
    objectives: Tensor
    converged: Tensor
    num_iterations: Tensor


class _Model(NamedTuple):
    """A quadratic model of the objective of each network in its free parameters, and where those are.

    Of the first layer, K entries of each network are free at most; those of a network with fewer are filled up by
    entries that must not move. Then come v and c: M = K + H + 1 coordinates.
    """

    entries: Tensor  # Where the entries of the first layer are in a row of parameters, (B, K).
    is_free: Tensor  # (B, M)
    is_penalized: Tensor  # (B, K)
    gradient: Tensor  # (B, M)
    hessian: Tensor  # (B, M, M)


@torch.no_grad()
def levenberg_marquardt(
    networks: SparseNetworks,
    X: Tensor,
    Y: Tensor,
    happy_lambda: float | Tensor,
    penalty: Penalty | None = None,
    *,
    tolerance: float = 1e-8,
    max_iterations: int = 300,
) -> Finished:
    """Minimize ||f(X) - y||_2 + g(W; lam) of every network over what is not zero, in float64.

    Weights that are zero stay zero; a weight that would change its sign becomes zero, and stays so; a unit that has
    lost all features, or puts out the same at every sample, moves to the intercept. With r = f(X) - y, d = r / ||r||, J
    the derivatives of f(X) and h = J d those of the loss, a step s solves

        (A + mu D) s = -(h + lam rho'(|w|) sign w),   A = (J J^T - h h^T) / ||r||,   D = diag A,

    the Gauss-Newton model of the norm with the penalty majorized by an L1 penalty. It is taken where it lowers the
    objective. A network whose objective decreases no more leaves the batch: with ReLU the gap (`gaps`) does not vanish
    at a minimum where a unit has its kink at a sample, so the decrease decides.

    Sources: Marquardt 1963 (the damping); Zou & Li 2008 (majorization).

    Args:
        networks: Where to start, of any dtype; they are not changed.
        X: The design, shape (N, P), float64.
        Y: One response for each network, shape (B, N), float64.
        happy_lambda: The weight lam: a number, or one for each network, shape (B,).
        penalty: g, `L1` or `Harder`; by default `Harder(0.1)`.
        tolerance: A network is done after 8 steps in a row none of which lowers its objective by more than this
            fraction.
        max_iterations: The maximum number of steps tried.

    Raises:
        ValueError: If X or Y is not float64, shapes do not fit, the data are not finite, or an argument is out of
            range.
    """
    penalty = Harder() if penalty is None else penalty
    check_positive(tolerance=tolerance, max_iterations=max_iterations)
    if {X.dtype, Y.dtype} != {torch.float64}:
        raise ValueError(f"levenberg_marquardt: X and Y are {X.dtype} and {Y.dtype}; pass float64")
    slopes(penalty, Y.new_zeros(1))  # Refuses a penalty before anything is computed.
    networks = networks.with_parameters(networks.parameters.double())
    check_data(networks, X, Y)
    lam_B11 = weights_of(happy_lambda, networks)
    lam_B, X_QN = lam_B11[:, 0, 0], with_ones(X).T.contiguous()
    networks = simplified(networks, X_QN)
    value_B = objectives(networks, X, Y, lam_B, penalty)
    damping_B = torch.full_like(value_B, 1e-2)
    quiet_B, iterations_B = torch.zeros(2, len(networks), dtype=torch.int64, device=X.device)
    live = torch.arange(len(networks), device=X.device)
    for _ in range(max_iterations):
        here = networks[live]
        model = _quadratic_model(here, X_QN, Y[live], lam_B11[live], penalty)
        there = _moved(here, model, _damped_step(model, damping_B[live]))
        before, after = value_B[live], objectives(there, X, Y[live], lam_B[live], penalty)
        is_better = after < before  # Not where it is NaN.
        networks.parameters[live[is_better]] = simplified(there[is_better], X_QN).parameters
        value_B[live] = torch.where(is_better, after, before)
        damping = torch.where(is_better, damping_B[live] / LESS, damping_B[live] * MORE)
        damping_B[live] = damping.clamp(MIN_DAMPING, MAX_DAMPING)
        quiet = torch.where(before - after > tolerance * before, 0, quiet_B[live] + 1)
        quiet_B[live] = torch.where(is_better, quiet, quiet_B[live])
        iterations_B[live] += 1
        live = live[(quiet_B[live] < PATIENCE) & (damping_B[live] < MAX_DAMPING)]
        if not len(live):
            break
    converged = torch.ones(len(networks), dtype=torch.bool, device=X.device)
    converged[live] = False
    return Finished(networks, objectives(networks, X, Y, lam_B, penalty), converged, iterations_B)


def _quadratic_model(networks: SparseNetworks, X_QN: Tensor, Y_BN: Tensor, lam_B11: Tensor, penalty: Penalty) -> _Model:
    first_BHQ, width = networks.first, networks.num_features + 1
    is_used_BH = (networks.weight != 0).any(2)
    is_active_BHQ = first_BHQ != 0
    is_active_BHQ[:, :, -1] = is_used_BH
    is_active = is_active_BHQ.flatten(1)
    count = int(is_active.sum(1).max())
    index_BK = is_active.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    is_active_BK = is_active.gather(1, index_BK)
    unit_BK, feature_BK = index_BK // width, index_BK % width
    is_penalized_BK = is_active_BK & (feature_BK < width - 1)

    z_BHN, u_BH = hidden_outputs(networks, X_QN), unit_rows(networks.output)
    prediction_BN = torch.bmm(u_BH[:, None], z_BHN)[:, 0]
    residual_BN = prediction_BN + networks.intercept[:, None] - Y_BN
    norm_B1 = residual_BN.norm(dim=1, keepdim=True).clamp_min(torch.finfo(Y_BN.dtype).tiny)
    # v has unit norm, see `simplified`. A unit without features matters only through that norm.
    j_v_BHN = z_BHN - u_BH[:, :, None] * prediction_BN[:, None]
    slope_BHN = ACTIVATIONS[networks.activation].slope_in_place(z_BHN)
    rows = torch.arange(len(networks), device=Y_BN.device)[:, None]
    j_first_BKN = slope_BHN[rows, unit_BK] * X_QN[feature_BK] * (u_BH.gather(1, unit_BK) * is_active_BK)[:, :, None]
    J_BMN = torch.cat([j_first_BKN, j_v_BHN, torch.ones_like(residual_BN)[:, None]], 1)

    h_BM1 = torch.bmm(J_BMN, (residual_BN / norm_B1)[:, :, None])
    hessian_BMM = (torch.bmm(J_BMN, J_BMN.mT) - h_BM1 * h_BM1.mT) / norm_B1[:, :, None]
    w_BK = first_BHQ.flatten(1).gather(1, index_BK)
    gradient_BM = h_BM1[:, :, 0].clone()
    gradient_BM[:, :count] += lam_B11[:, 0] * slopes(penalty, w_BK.abs()) * w_BK.sign() * is_penalized_BK
    is_free_BM = torch.cat([is_active_BK, is_used_BH | (u_BH != 0), is_used_BH.new_ones(len(networks), 1)], 1)
    return _Model(index_BK, is_free_BM, is_penalized_BK, gradient_BM, hessian_BMM)


def _damped_step(model: _Model, damping_B: Tensor) -> Tensor:
    """Solve (A + mu D) s = -gradient, shape (B, M); a coordinate that is not free stays.

    D is the diagonal of A, but at least a millionth of its largest entry: so damping shortens steps in directions with
    hardly any curvature too.
    """
    diagonal_BM = model.hessian.diagonal(dim1=1, dim2=2)
    least_B1 = 1e-6 * diagonal_BM.amax(1, keepdim=True).clamp_min(torch.finfo(diagonal_BM.dtype).tiny)
    added_BM = damping_B[:, None] * diagonal_BM.maximum(least_B1)
    is_free_BM = model.is_free
    matrix = model.hessian * (is_free_BM[:, :, None] & is_free_BM[:, None])
    matrix += torch.diag_embed(torch.where(is_free_BM, added_BM, 1.0))
    return torch.linalg.solve_ex(matrix, torch.where(is_free_BM, -model.gradient, 0.0))[0]


def _moved(networks: SparseNetworks, model: _Model, step_BM: Tensor) -> SparseNetworks:
    """Take a step; a weight that would change its sign becomes 0."""
    count = model.entries.shape[1]
    there = networks.with_parameters(networks.parameters.clone())
    w_BK = networks.parameters.gather(1, model.entries)
    moved_BK = w_BK + step_BM[:, :count]
    moved_BK = torch.where(model.is_penalized & (moved_BK * w_BK < 0), 0.0, moved_BK)
    there.parameters.scatter_(1, model.entries, moved_BK)
    there.parameters[:, -there.hidden - 1 :].add_(step_BM[:, count:])
    return there
