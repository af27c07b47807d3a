"""Checks of optimizers' options and of what a closure returns."""

import math
from typing import Any

from torch import Tensor


def check_positive(**options: float) -> None:
    """Check that every option is a positive finite number.

    Raises:
        ValueError: If one is not; the message names the first of them.
    """
    for name, value in options.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} must be positive and finite")


def as_number(loss: Any) -> float:
    """Return the loss that a closure returned as a float. This syncs the device: a decision needs the value.

    Raises:
        TypeError: If the closure returned None.
        ValueError: If it returned several numbers.
    """
    if loss is None:
        raise TypeError("the closure returned None: end it with `return loss`")
    if isinstance(loss, Tensor) and loss.numel() != 1:
        raise ValueError(f"the closure returned a tensor of shape {tuple(loss.shape)}: return its sum() or mean()")
    return float(loss.detach()) if isinstance(loss, Tensor) else float(loss)
