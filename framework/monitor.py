"""The scalars that every run logs."""

from __future__ import annotations

import math

import torch
from torch.optim import Optimizer

from framework.closure import Closure
from framework.configure import learning_rates


def step_values(closure: Closure, optimizer: Optimizer, global_step: int) -> dict[str, float]:
    """The objective at the point before the last step, and the state of the optimizer after it.

    ``train/loss`` is f, ``train/penalty`` g where there is one, ``train/objective`` f + g; ``lr/<group>``;
    ``sparsity/<group>``, the share of exact zeros in each penalized group; ``closure_evaluations``. Synchronizes with
    the device.

    Raises:
        ValueError: The objective is not finite.
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
    values["closure_evaluations"] = closure.evaluations
    return values | learning_rates(optimizer) | sparsities(closure)


@torch.no_grad()
def sparsities(closure: Closure) -> dict[str, float]:
    """The share of exact zeros in each penalized group, as ``sparsity/<name or index>``."""
    shares = {}
    for index, group in enumerate(closure.penalized_groups):
        sizes = sum(p.numel() for p in group["params"])
        nonzeros = sum(int(p.count_nonzero()) for p in group["params"])
        shares[f"sparsity/{group.get('name', index)}"] = 1 - nonzeros / sizes
    return shares
