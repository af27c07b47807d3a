"""The scalars that every run logs."""

from __future__ import annotations

import math

import torch

from framework.objective.closure import Closure


def step_values(closure: Closure, global_step: int) -> dict[str, float]:
    """The objective at the point before the last step, and the sparsity after it.

    ``train/loss`` is f, ``train/penalty`` g where there is one, ``train/objective`` f + g; ``sparsity/<group>``, the
    share of exact zeros in each penalized group; ``closure_evaluations``. Synchronizes with the device.

    Raises:
        ValueError: The objective is not finite.
    """
    values = objective_values(closure, global_step)
    values["closure_evaluations"] = closure.evaluations
    return values | sparsities(closure)


def objective_values(closure: Closure, global_step: int) -> dict[str, float]:
    """The objective at the point before the last step, as numbers.

    Raises:
        ValueError: It is not finite.
    """
    assert closure.loss is not None
    assert closure.objective is not None
    values = {"train/loss": closure.loss.item(), "train/objective": closure.objective.item()}
    if closure.penalty is not None:
        values["train/penalty"] = closure.penalty.item()
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} is {value} at global_step {global_step}: the run has diverged. Lower the learning rate or "
                "clip the gradients (gradient_clip_val), and look for NaNs in the data. Older checkpoints are kept"
            )
    return values


@torch.no_grad()
def sparsities(closure: Closure) -> dict[str, float]:
    """The share of exact zeros in each penalized group, as ``sparsity/<name or index>``."""
    shares = {}
    for index, group in enumerate(closure.penalized_groups):
        sizes = sum(p.numel() for p in group["params"])
        nonzeros = sum(int(p.count_nonzero()) for p in group["params"])
        shares[f"sparsity/{group.get('name', index)}"] = 1 - nonzeros / sizes
    return shares
