"""Optimizers and schedulers whose arguments a configuration gives in another form than their classes take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

if TYPE_CHECKING:
    from framework.optim import MinimizeWrapper


def minimize(
    groups: Iterable[dict[str, Any]],
    *,
    method: str,
    maxiter: int | None = None,
    options: Mapping[str, Any] | None = None,
    tol: float | None = None,
    bounds: tuple[float | None, float | None] | None = None,
) -> MinimizeWrapper:
    """Make a `MinimizeWrapper` from its arguments one by one.

    Args:
        groups: Parameter groups.
        method: Of `scipy.optimize.minimize`, or one of its global minimizers.
        maxiter: The option of that name; None for the method's own limit.
        options: Its other options.
        tol: Its tolerance; None for the method's own.
        bounds: The lower and upper bound of every parameter.
    """
    from framework.optim import MinimizeWrapper  # imports scipy

    limit = {} if maxiter is None else {"maxiter": maxiter}
    arguments = {"method": method, "options": limit | dict(options or {}), "tol": tol}
    return MinimizeWrapper(groups, {**arguments, "bounds": bounds and tuple(bounds)})


def one_cycle(optimizer: Optimizer, **options: Any) -> OneCycleLR:
    """Make a `OneCycleLR` with the momentum cycled where the optimizer has one; torch's class refuses the others."""
    has_momentum = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    return OneCycleLR(optimizer, **{"cycle_momentum": has_momentum, **options})
