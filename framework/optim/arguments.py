"""What optimizers check of their options, and of what a closure returns."""

import math
from typing import Any

from torch import Tensor


def check_positive(**options: float) -> None:
    """Raises `ValueError` naming the first option that is not a positive finite number."""
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} must be positive and finite")


def as_number(loss: Any) -> float:
    """What a closure returned, as a float; a device sync, which every decision on a value needs.

    Raises:
        TypeError: if the closure returned nothing.
        ValueError: if it returned several numbers.
    """
    if loss is None:
        raise TypeError("the closure returned None: end it with `return loss`")
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the closure returned a tensor of shape {tuple(loss.shape)}: return its sum() or mean()")
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
