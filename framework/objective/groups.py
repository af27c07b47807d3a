"""What parameter groups say about the penalty: which entries it covers, and with what weight.

This is the only file that reads the entries ``"penalized"`` and ``"happy_lambda"`` of groups. ``penalized`` is True,
False, or a boolean mask of the parameter's shape. ``happy_lambda`` is the group's own weight; if it is missing or None,
the weight passed with the groups applies: the module's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.module import Module
from framework.penalties import L1, Penalty

Group = Mapping[str, Any]


def declared_groups(module: Module, optimizer: Optimizer) -> Sequence[Group]:
    """Return the groups that say what is penalized: the optimizer's if all of them do, otherwise the module's."""
    if all("penalized" in group for group in optimizer.param_groups):
        return optimizer.param_groups
    # Like an optimizer, accept a single tensor, or a generator, which can be read only once.
    return [{**group, "params": _params(group)} for group in module.param_groups()]


def is_penalized(group: Group) -> bool:
    """Tell whether the penalty covers any entry of a group."""
    return group.get("penalized", False) is not False


def weight(group: Group, param: Tensor, happy_lambda: float | None = None) -> float | Tensor:
    """Return the weight lam of the penalty on one parameter of a group.

    Args:
        group: A parameter group.
        param: One of its parameters.
        happy_lambda: The weight for groups without one of their own.

    Returns:
        A number, 0.0 if nothing is penalized; under a mask, a tensor of the parameter's shape.

    Raises:
        ValueError: If the weight is missing, negative or not finite.
    """
    if not is_penalized(group):
        return 0.0
    own = group.get("happy_lambda")
    given = happy_lambda if own is None else own
    if given is None:
        raise ValueError(
            "a penalized parameter group has no happy_lambda, the weight of its penalty: pass happy_lambda to the "
            "optimizer or in the group; a Trainer takes it from the module if the module has a penalty"
        )
    # While a step is compiled, a tensor stands for the number.
    is_stand_in = isinstance(given, Tensor) and torch.compiler.is_compiling()
    lam: Any = given if is_stand_in else check_weight(given, "a penalized parameter group")
    mask = group["penalized"]
    return lam * mask.to(param) if isinstance(mask, Tensor) and (isinstance(lam, Tensor) or lam) else lam


def check_weight(happy_lambda: Any, whose: str) -> float:
    """Return the weight of a penalty as a number.

    Raises:
        ValueError: If it is not a number, negative or not finite.
    """
    try:
        lam = float(happy_lambda)
    except (TypeError, ValueError):
        lam = math.nan
    if not (lam >= 0 and math.isfinite(lam)):
        raise ValueError(
            f"happy_lambda={happy_lambda!r} of {whose} is not allowed: the weight of a penalty is a finite number that "
            "is not negative (framework.auto_lambda.auto_happy_lambda computes one)"
        )
    return lam


def weighted_parameters(
    groups: Iterable[Group], happy_lambda: float | None = None
) -> Iterator[tuple[Tensor, float | Tensor]]:
    """Yield every penalized parameter with its weight, as `weight` returns it."""
    for group in groups:
        if is_penalized(group):
            for param in group["params"]:
                yield param, weight(group, param, happy_lambda)


def penalty_value(penalty: Penalty, groups: Iterable[Group], happy_lambda: float | None = None) -> Tensor:
    """Compute g, the sum of ``penalty.value(param, lam)`` over the penalized parameters: a 0-d tensor."""
    values = [penalty.value(param, lam) for param, lam in weighted_parameters(groups, happy_lambda)]
    return sum(values[1:], values[0]) if values else torch.zeros(())


@torch.no_grad()
def stationarity_gap(
    optimizer_or_groups: Optimizer | Iterable[Group],
    penalty: Penalty | None = None,
    happy_lambda: float | None = None,
) -> Tensor:
    """Compute how far the current point is from a stationary (KKT) point of f + g, a 0-d tensor: 0 at such a point.

    The gap is the largest distance, over parameters, from -grad f to the subdifferential of g
    (`Penalty.subgradient_gap`); for an unpenalized parameter, the largest |grad f|. The gradients of f must have been
    computed; parameters without one are left out.

    Args:
        optimizer_or_groups: An optimizer, or parameter groups.
        penalty: g. Default: that of the optimizer, or `L1()`.
        happy_lambda: The weight for penalized groups without one of their own. Default: that of the optimizer's source.

    Raises:
        ValueError: If no parameter has a gradient, or a penalized group has no weight.
    """
    source = getattr(optimizer_or_groups, "source", None)
    if happy_lambda is None and source is not None:
        happy_lambda = source.happy_lambda
    groups = optimizer_or_groups.param_groups if isinstance(optimizer_or_groups, Optimizer) else optimizer_or_groups
    penalty = penalty or getattr(optimizer_or_groups, "penalty_in_force", None) or L1()
    gaps = []
    for group in groups:
        for param in group["params"]:
            grad = param.grad
            if grad is None or not param.requires_grad:
                continue
            lam = weight(group, param, happy_lambda)
            unweighted = not isinstance(lam, Tensor) and lam == 0
            gaps.append(grad.abs().amax() if unweighted else penalty.subgradient_gap(param, grad, lam))
    if not gaps:
        raise ValueError("no parameter has a gradient: compute those of f first, by f.backward()")
    return torch.stack([gap.to(gaps[0]) for gap in gaps]).amax()


@torch.no_grad()
def sparsities(groups: Iterable[Group]) -> dict[str, float]:
    """Compute the fraction of exact zeros in each penalized group, as ``sparsity/<name or index>``.

    The index counts the penalized groups only. Waits for the device.
    """
    shares = {}
    for index, group in enumerate(filter(is_penalized, groups)):
        sizes = sum(p.numel() for p in group["params"])
        nonzeros = sum(int(p.count_nonzero()) for p in group["params"])
        shares[f"sparsity/{group.get('name', index)}"] = 1 - nonzeros / sizes
    return shares


def check_groups(groups: Sequence[Group], *, needed: bool) -> None:
    """Check that every group says in a valid form whether it is penalized, if ``needed`` or if any group says so.

    Raises:
        ValueError: If a group does not; the message names it and what to add.
    """
    said = ["penalized" in group for group in groups]
    if not all(said) and (needed or any(said)):
        raise ValueError(
            f"parameter group {said.index(False)} does not say whether it is penalized: "
            'add "penalized": True, False, or a boolean mask of the parameter\'s shape'
        )
    for index, group in enumerate(groups):
        mask = group.get("penalized")
        if isinstance(mask, Tensor):
            shapes = [tuple(p.shape) for p in _params(group)]
            if mask.dtype != torch.bool or any(shape != tuple(mask.shape) for shape in shapes):
                raise ValueError(
                    f'the "penalized" mask of parameter group {index} is {mask.dtype} of shape {tuple(mask.shape)}; it '
                    f"must be boolean, of the shape of its parameter, one group per shape: {shapes}"
                )
        elif mask is not None and not isinstance(mask, bool):
            raise ValueError(f'parameter group {index} has "penalized": {mask!r}; pass True, False or a boolean mask')


def adopt_penalty(optimizer: Any, module: Module) -> None:
    """Let an optimizer that handles the penalty take the module's penalty and weight, if it was made without them.

    There is one source: what the optimizer has of its own must not contradict the module. It becomes the optimizer's
    ``source``, which it asks at every step, so that a change of the module's weight or penalty takes effect. Where the
    module has no penalty, the optimizer's own is the source.

    Raises:
        ValueError: If the optimizer and the module have different penalties or weights or penalize different
            parameters, or neither has a weight for a penalized group.
    """
    name = type(optimizer).__name__
    if module.penalty is None:
        if hasattr(optimizer, "source"):
            optimizer.source = None
        for index, group in enumerate(optimizer.param_groups):
            if is_penalized(group) and group.get("happy_lambda", 0.0) is None:
                raise ValueError(
                    f"parameter group {index} of {name} is penalized, but neither {name} nor the module gives a "
                    f"weight: set the module's penalty and happy_lambda, or pass happy_lambda to {name}; for no "
                    'penalty, set "penalized": False'
                )
        return
    own: Penalty | None = getattr(optimizer, "penalty", None)
    if own is not None and own != module.penalty:
        raise ValueError(
            f"{name} was made with the penalty {own}, but the module has {module.penalty}: there must be one source. "
            f"Make {name} without a penalty, so that it takes the module's, or set the module's to None"
        )
    follows = hasattr(optimizer, "source")
    if follows:
        optimizer.source = module
    else:
        optimizer.penalty = module.penalty
    declared = {id(p): group for group in module.param_groups() for p in _params(group)}
    declares = type(module).param_groups is not Module.param_groups or "param_groups" in vars(module)
    for index, group in enumerate(optimizer.param_groups):
        of_module = [declared[id(p)] for p in group["params"] if id(p) in declared]
        if declares and any(not _penalize_alike(group, other) for other in of_module):
            raise ValueError(
                f"parameter group {index} of {name} and param_groups() of the module penalize different parameters: "
                f"there must be one source. Make {name} of self.param_groups()"
            )
        wanted = {other.get("happy_lambda") for other in of_module if is_penalized(other)} or {None}
        if len(wanted) > 1:
            raise ValueError(
                f"parameter group {index} of {name} joins parameters that the module gives different weights: "
                f"{sorted(map(str, wanted))}. Make {name} of self.param_groups()"
            )
        own_weight = wanted.pop()
        given = module.happy_lambda if own_weight is None else own_weight
        if group.get("happy_lambda") is None:
            # A group without a weight of its own follows the module's, if the optimizer can.
            group["happy_lambda"] = own_weight if follows else given
            continue
        if is_penalized(group) and given is not None and group["happy_lambda"] != given:
            raise ValueError(
                f"parameter group {index} of {name} has happy_lambda={group['happy_lambda']!r}, but the module has "
                f"{given!r}: there must be one source. Make {name} without happy_lambda, so that it takes the module's"
            )


def _penalize_alike(left: Group, right: Group) -> bool:
    masks = [group.get("penalized", False) for group in (left, right)]
    if all(isinstance(mask, Tensor) for mask in masks):
        return torch.equal(*masks)
    return masks[0] is masks[1]


def _params(group: Group) -> list[Tensor]:
    params = group["params"]
    return [params] if isinstance(params, Tensor) else list(params)
