"""What `training_step` may return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from framework.module import Module


def parse_output(module: Module, output: Any) -> tuple[Tensor, Tensor | None, Mapping[str, Any]]:
    """Return f, the penalty that `training_step` returned, if any, and what else it did."""
    if isinstance(output, Tensor):
        return output, None, {}
    if isinstance(output, Mapping):
        return output["loss"], output.get("penalty"), output
    loss, penalty = output
    return loss, penalty, {}


def check_output(module: Module, output: Any) -> None:
    """Refuse what `training_step` may not return; synchronizes with the device, so it is asked once per fit.

    Raises:
        TypeError: It is not a tensor, a pair of tensors, or a mapping with "loss".
        ValueError: The loss is not a finite scalar with a gradient, or a penalty is returned twice.
    """
    step = f"{type(module).__name__}.training_step"
    allowed = 'return a scalar loss, (loss, penalty), or a mapping with "loss" and optionally "penalty"'
    parts: Any = output if isinstance(output, tuple | list) and len(output) == 2 else ()
    if isinstance(output, Mapping):
        parts = tuple(output[key] for key in ("loss", "penalty") if output.get(key) is not None)
    if isinstance(output, Tensor):
        parts = (output,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{step} returned {type(output).__name__}; {allowed}")
    if isinstance(output, Mapping) and "loss" not in output:
        raise TypeError(f"{step} returned a mapping without 'loss', only {sorted(output)}; {allowed}")
    if len(parts) == 2 and module.penalty is not None:
        raise ValueError(
            f"{step} returned a penalty, and the module has a penalty object too: it would count twice. "
            "Return the loss alone, or set the module's penalty to None"
        )
    for part in parts:
        if part.numel() != 1:
            raise ValueError(f"{step} returned a tensor of shape {tuple(part.shape)}; take its mean(): {allowed}")
        if not torch.isfinite(part).all():
            raise ValueError(f"{step} returned {part.item()} at the first step: are there NaNs in the data?")
    if torch.is_grad_enabled() and not parts[0].requires_grad:
        raise ValueError(f"{step} returned a loss that depends on no parameter: is it detached, or made by item()?")
