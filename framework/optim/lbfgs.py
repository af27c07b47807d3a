"""The limited-memory BFGS inverse Hessian in compact form, restricted to a set of free entries."""

from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_hessian_product(q: Tensor, s: Sequence[Tensor], y: Sequence[Tensor], free: Tensor) -> Tensor:
    """Compute H q, with H the BFGS inverse Hessian of the pairs (s, y), oldest first, restricted to the free entries.

    Byrd, Nocedal & Schnabel 1994, eq. 3.1, with R the upper triangle of S'Y, D its diagonal and H_0 = gamma I:

        H = gamma I + [S, gamma Y] [[R^-T (D + gamma Y'Y) R^-1, -R^-T], [-R^-1, 0]] [S, gamma Y]'

    Pairs without positive curvature on the free entries are left out; if none remain, H is 0.

    Args:
        q: A vector (N,), zero outside the free entries; so is the result.
        s: Moves, each (N,).
        y: Changes in the gradient, each (N,).
        free: Which entries are free, boolean (N,).
    """
    S, Y = torch.stack(tuple(s)) * free, torch.stack(tuple(y)) * free
    curvature = (S * Y).sum(1)
    kept = curvature > 1e-8 * S.norm(dim=1) * Y.norm(dim=1)
    if not bool(kept.any()):
        return torch.zeros_like(q)
    S, Y = S[kept], Y[kept]
    SY, YY = S @ Y.T, Y @ Y.T
    R, D = SY.triu(), SY.diagonal()
    gamma = D[-1] / YY[-1, -1]
    u = torch.linalg.solve_triangular(R, (S @ q)[:, None], upper=True)
    w = torch.diag(D) @ u + gamma * (YY @ u - (Y @ q)[:, None])
    w = torch.linalg.solve_triangular(R.T, w, upper=False)
    return gamma * q + (w.T @ S - gamma * (u.T @ Y))[0]
