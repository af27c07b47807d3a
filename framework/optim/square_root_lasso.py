"""The square-root lasso and its non-convex relatives, for many responses on one design at once."""

from typing import NamedTuple

import torch
from torch import Tensor

from framework.optim.arguments import check_positive
from framework.penalties import L1, GroupL1, Penalty, Weighted


class SquareRootLassoFits(NamedTuple):
    """The result of `square_root_lasso`.

    Attributes:
        weights: W, shape (R, P).
        converged: Whether each row is stationary within the tolerance, shape (R,).
        num_gradients: How many gradients all rows took together.
    """

    weights: Tensor
    converged: Tensor
    num_gradients: int


@torch.no_grad()
def square_root_lasso(
    X: Tensor,
    Y: Tensor,
    happy_lambda: float,
    penalty: Penalty | None = None,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> SquareRootLassoFits:
    """Minimize ||y - X w||_2 + g(w; lam) over w for every row y of Y.

    The norm lies below ||r||^2 / (2 c) + c / 2, which it touches at c = ||r||. A step on that bound from v,

        w+ = prox_{t g}(v + X^T r / L),   t = ||r|| / L,   L = ||X||_2^2,   r = y - X v,

    never increases the objective and needs no search. v is FISTA's extrapolated point (Beck & Teboulle 2009, eq.
    4.1-4.3), with the momentum dropped where it points uphill (O'Donoghue & Candes 2015, sec. 3.2). A row is done as
    soon as no entry of (w+ - v) / t exceeds ``tolerance * happy_lambda``, which bounds the distance from -grad to the
    subdifferential of g, up to the change in grad between v and w+. It then takes no more time.

    There is no intercept: for an unpenalized one, center the columns of X and the rows of Y. With a non-convex penalty
    the result is a stationary point that depends on the start. A row that is fitted without a residual, such as a row
    of zeros, stays at the point where that happened: the norm has no gradient there.

    Sources: Belloni et al. 2011 (the square-root lasso); Hunter & Lange 2004 (majorization).

    Args:
        X: The design, shape (N, P). Prefer float64: float32 does not reach the default tolerance.
        Y: One response per row, shape (R, N), of X's dtype.
        happy_lambda: The weight lam of the penalty.
        penalty: g, by default `L1`. It must act on each entry of w separately: `GroupL1` does not.
        start: Where each row starts, shape (R, P); zeros by default.
        tolerance: How far from stationary a row may end, as a fraction of the weight.
        max_iterations: The maximum number of gradients per row.

    Raises:
        ValueError: If shapes or dtypes do not match, the data are not finite, or an argument is out of range.
    """
    penalty = penalty or L1()
    start = X.new_zeros(len(Y), X.shape[1]) if start is None else start
    _check_data(X, Y, start)
    check_positive(happy_lambda=happy_lambda, tolerance=tolerance, max_iterations=max_iterations)
    if isinstance(penalty.penalty if isinstance(penalty, Weighted) else penalty, GroupL1):
        raise ValueError(
            f"square_root_lasso: {penalty} would group entries of different rows; use one like L1 or Harder"
        )
    L = torch.linalg.matrix_norm(X, 2).square()
    weights, rows = start.clone(), torch.arange(len(Y), device=X.device)
    W = V = start
    theta = torch.ones(len(Y), 1, dtype=X.dtype, device=X.device)
    num_gradients = 0
    for _ in range(max_iterations):
        R = Y - V @ X.T
        step = torch.linalg.vector_norm(R, dim=1, keepdim=True) / L
        W_new = penalty.prox(V + R @ X / L, step, happy_lambda)
        num_gradients += len(rows)

        moved = (W_new - V).abs().amax(1, keepdim=True)
        uphill = ((V - W_new) * (W_new - W)).sum(1, keepdim=True) > 0
        theta = torch.where(uphill, 1.0, theta)
        theta_new = (1 + (1 + 4 * theta.square()).sqrt()) / 2
        V = W_new + (theta - 1) / theta_new * (W_new - W)
        W, theta = W_new, theta_new

        weights[rows] = W
        going = ~(moved <= tolerance * happy_lambda * step).squeeze(1)
        if not going.all():  # Only the rows that are not done continue.
            rows, Y, W, V, theta = rows[going], Y[going], W[going], V[going], theta[going]
            if not len(rows):
                break
    converged = torch.ones(len(weights), dtype=torch.bool, device=X.device)
    converged[rows] = False
    return SquareRootLassoFits(weights, converged, num_gradients)


def _check_data(X: Tensor, Y: Tensor, start: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (X, Y, start)]
    if [len(shape) for shape in shapes] != [2, 2, 2] or shapes[1:] != [(len(Y), len(X)), (len(Y), X.shape[1])]:
        raise ValueError(
            f"square_root_lasso: X, Y and start have shapes {shapes}; pass (samples, features), (responses, samples) "
            "and (responses, features)"
        )
    if not X.is_floating_point() or {Y.dtype, start.dtype} != {X.dtype}:
        raise ValueError(
            f"square_root_lasso: X, Y and start are {X.dtype}, {Y.dtype} and {start.dtype}; pass one floating-point "
            "type, float64 to reach the default tolerance"
        )
    if not (X.any() and all(tensor.isfinite().all() for tensor in (X, Y, start))):
        raise ValueError("square_root_lasso: X is all zeros, or the data have NaN or infinite entries; check them")
