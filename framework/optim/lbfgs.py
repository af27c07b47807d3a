"""The limited-memory BFGS inverse Hessian, restricted to a set of free entries, from inner products alone."""

from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_hessian_product(q: Tensor, s: Sequence[Tensor], y: Sequence[Tensor], free: Tensor) -> Tensor:
    """Compute H q, with H the BFGS inverse Hessian of the pairs (s, y), oldest first, restricted to the free entries.

    The two-loop recursion (Nocedal & Wright 2006, algorithm 7.4) with H_0 = gamma I. Every vector in it is a
    combination of the pairs and q, so that it needs only their inner products and works on coefficients (Chen, Wang &
    Zhou 2014, "Large-scale L-BFGS using MapReduce"): two products with the matrix of all vectors, however many pairs.

    Pairs without positive curvature on the free entries are left out; if none remain, H is 0. Waits for the device.

    Args:
        q: A vector (N,), zero outside the free entries; so is the result.
        s: Moves, each (N,).
        y: Changes in the gradient, each (N,).
        free: Which entries are free, boolean (N,).
    """
    m = len(s)
    vectors = torch.stack([*s, *y, q]) * free
    products = (vectors @ vectors.T).double().cpu().numpy()  # (2m + 1, 2m + 1)
    squares, curvatures = products.diagonal(), products.diagonal(m)[:m]
    kept = [i for i in range(m) if curvatures[i] > 1e-8 * (squares[i] * squares[m + i]) ** 0.5]
    if not kept:
        return torch.zeros_like(q)
    coefficients, alphas = products[-1] * 0, products[-1] * 0
    coefficients[-1] = 1.0
    for i in reversed(kept):
        alphas[i] = products[i] @ coefficients / curvatures[i]
        coefficients[m + i] -= alphas[i]
    coefficients *= curvatures[kept[-1]] / squares[m + kept[-1]]
    for i in kept:
        coefficients[i] += alphas[i] - products[m + i] @ coefficients / curvatures[i]
    return torch.from_numpy(coefficients).to(vectors) @ vectors
