"""Regression problems in which only a few, known features matter."""

import math

import torch
from torch import Tensor

# The values of true coefficients in the published simulations.
COEFFICIENTS = (-3.0, -2.0, -1.0, 1.0, 2.0)


def sparse_linear(
    *, num_samples: int = 100, num_features: int = 250, num_active: int = 4, noise: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, list[int]]:
    """Draw y = X w + noise: X is standard normal, w is drawn from `COEFFICIENTS` for active features, and 0 elsewhere.

    Args:
        num_samples: The number of samples, n.
        num_features: The number of features, p.
        num_active: The number of active features, s, from 0 to p.
        noise: Standard deviation of the Gaussian noise.
        seed: Determines all draws.

    Returns:
        X of shape (n, p) and y of shape (n, 1), float32, and the active features in increasing order.

    Raises:
        ValueError: If `num_active` is out of range, `num_samples` is less than 1, or `noise` is negative or not finite.
    """
    generator, X, active = _draw(num_samples, num_features, num_active, noise, seed)
    which = torch.randint(len(COEFFICIENTS), (num_active,), generator=generator)
    y = X[:, active] @ torch.tensor(COEFFICIENTS, dtype=torch.float32)[which]
    y += noise * torch.randn(num_samples, generator=generator, dtype=torch.float32)
    return X, y[:, None], active.sort().values.tolist()


def sparse_mlp(
    *, num_samples: int = 500, num_features: int = 50, num_active: int = 4, noise: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, list[int]]:
    """Draw y = 10 * sum |x_a - x_b| + noise over disjoint pairs (a, b) of the active features; X is standard normal.

    No linear model sees the features: they are uncorrelated with y. Source: LASSO ANN, Sardy et al. 2022.

    Args:
        num_samples: The number of samples, n.
        num_features: The number of features, p.
        num_active: The number of active features, s, an even number from 0 to p; there are s / 2 pairs.
        noise: Standard deviation of the Gaussian noise.
        seed: Determines all draws.

    Returns:
        X of shape (n, p) and y of shape (n, 1), float32, and the active features in increasing order.

    Raises:
        ValueError: If `num_active` is odd or out of range, `num_samples` is less than 1, or `noise` is negative or not
            finite.
    """
    if num_active % 2:
        raise ValueError(f"num_active={num_active}: the active features come in pairs; pass an even number")
    generator, X, active = _draw(num_samples, num_features, num_active, noise, seed)
    first, second = X[:, active].unflatten(1, (-1, 2)).unbind(2)
    y = 10 * (first - second).abs().sum(1)
    y += noise * torch.randn(num_samples, generator=generator, dtype=torch.float32)
    return X, y[:, None], active.sort().values.tolist()


def _draw(
    num_samples: int, num_features: int, num_active: int, noise: float, seed: int
) -> tuple[torch.Generator, Tensor, Tensor]:
    if not 0 <= num_active <= num_features:
        raise ValueError(f"num_active={num_active}; pass a number from 0 to num_features={num_features}")
    if num_samples < 1 or not 0 <= noise < math.inf:
        raise ValueError(f"num_samples={num_samples}, noise={noise}; pass at least 1 sample and a finite noise >= 0")
    generator = torch.Generator().manual_seed(seed)
    # The dtype is explicit: under another default the same seed would draw other numbers.
    X = torch.randn(num_samples, num_features, generator=generator, dtype=torch.float32)
    return generator, X, torch.randperm(num_features, generator=generator)[:num_active]
