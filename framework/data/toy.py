"""Small data sets that need no download: a noisy cubic, XOR, a noisy sine."""

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


def cubic_function(x: Array) -> Array:
    """Compute the function behind `cubic`, elementwise: 1.3 x^3 - 3 x^2 + 3.6 x + 6.9."""
    return 1.3 * x**3 - 3 * x**2 + 3.6 * x + 6.9


def cubic(*, num_samples: int = 80, noise: float = 1.0, seed: int = 42) -> tuple[Tensor, Tensor]:
    """Draw noisy samples of `cubic_function`; with the defaults, always the same 80.

    x is uniform on [-1, 3) and y = cubic_function(x) + noise * standard normal, drawn as numpy does after
    `np.random.seed(seed)` and rounded to float32.

    Args:
        num_samples: The number of samples, N.
        noise: Standard deviation of the noise.
        seed: Determines the draws.

    Returns:
        x of shape (N, 1) and y of shape (N, 1), float32.

    Raises:
        ValueError: If `num_samples` is less than 1 or `noise` is negative.
    """
    if num_samples < 1 or noise < 0:
        raise ValueError(f"cubic(num_samples={num_samples}, noise={noise}): pass num_samples >= 1 and noise >= 0.")
    rng = np.random.RandomState(seed)
    x = rng.uniform(-1, 3, num_samples)[:, None]
    y = cubic_function(x) + noise * rng.normal(size=(num_samples, 1))
    return torch.from_numpy(x).float(), torch.from_numpy(y).float()


def xor() -> tuple[Tensor, Tensor]:
    """Return the truth table of exclusive or.

    Returns:
        x of shape (4, 2) and y of shape (4, 1), float32 zeros and ones.
    """
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    return x, y


def sine(*, num_samples: int = 200, noise: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw noisy samples of one period of the sine: y = sin(x) + noise * standard normal.

    Args:
        num_samples: The number of samples, N.
        noise: Standard deviation of the noise.
        seed: Determines the draws of x, uniform on [-pi, pi), and of the noise.

    Returns:
        x of shape (N, 1) and y of shape (N, 1), float32.

    Raises:
        ValueError: If `num_samples` is less than 1 or `noise` is negative.
    """
    if num_samples < 1 or noise < 0:
        raise ValueError(f"sine(num_samples={num_samples}, noise={noise}): pass num_samples >= 1 and noise >= 0.")
    generator = torch.Generator().manual_seed(seed)
    x = math.pi * (2 * torch.rand(num_samples, 1, generator=generator) - 1)
    y = torch.sin(x) + noise * torch.randn(num_samples, 1, generator=generator)
    return x, y
