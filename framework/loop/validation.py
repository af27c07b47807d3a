"""What a run refuses: bad settings and bad input, found once, before anything is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import DataLoader

from framework.data import TensorLoader
from framework.module import Module
from framework.objective.groups import check_groups


def check_module(module: Any) -> None:
    """Refuse what is no `Module`.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(module, Module):
        raise TypeError(
            f"model is {_describe(module)}; pass a framework.Module: subclass it and define training_step(batch, "
            "batch_idx) and configure_optimizers()"
        )


def check_loader(loader: Any, name: str) -> None:
    """Refuse what cannot be iterated, and a loader without batches.

    Raises:
        TypeError: It is not iterable, or several loaders are given.
        ValueError: Its length is 0.
    """
    parts = loader.values() if isinstance(loader, Mapping) else loader if isinstance(loader, list | tuple) else ()
    if any(isinstance(part, DataLoader | TensorLoader) for part in parts):
        raise TypeError(f"{name} holds several loaders; a Trainer takes one: concatenate the datasets")
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"{name} is {_describe(loader)}; pass a DataLoader, a TensorLoader or any iterable of batches")
    if num_batches(loader) == 0:
        raise ValueError(f"{name} has no batches: is the dataset empty, or smaller than a batch with drop_last=True?")


def num_batches(loader: Any) -> float:
    """The length of a loader; infinite where it has none, as a `DataLoader` over an `IterableDataset`."""
    try:
        return len(loader)
    except TypeError:
        return math.inf


def check_param_groups(module: Module, optimizer: Optimizer) -> None:
    """Every trainable parameter in exactly one group, and every group saying whether it is penalized, if one does.

    Raises:
        ValueError: Otherwise; the parameters and groups are named.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if missing := [name for parameter, name in names.items() if parameter.requires_grad and parameter not in optimized]:
        raise ValueError(
            f"in no parameter group of {type(optimizer).__name__}: {', '.join(missing)}. "
            "Add them to param_groups(), or freeze them by requires_grad_(False)"
        )
    check_groups(module.param_groups(), needed=module.penalty is not None)
    check_groups(optimizer.param_groups, needed=False)


def check_penalty(module: Module, groups: list[dict[str, Any]]) -> None:
    """Refuse a penalty on nothing, and one whose weight is no weight.

    Args:
        module: Whose penalty it is; nothing is checked where it has none.
        groups: The penalized groups.

    Raises:
        ValueError: No parameter is penalized, or a weight is negative or not finite.
    """
    if module.penalty is None:
        return
    name = type(module.penalty).__name__
    masks = [group["penalized"] for group in groups if len(list(group["params"]))]
    if not any(mask if isinstance(mask, bool) else bool(mask.any()) for mask in masks):
        raise ValueError(
            f'the module has the penalty {name}, but no parameter is penalized: mark groups "penalized": True in '
            "param_groups(), or set the penalty to None"
        )
    for index, weight in enumerate([module.happy_lambda, *(g["happy_lambda"] for g in groups if "happy_lambda" in g)]):
        if isinstance(weight, str) or not 0 <= float(weight) < math.inf:
            whose = f"penalized parameter group {index - 1}" if index else "the module"
            raise ValueError(
                f"happy_lambda={weight!r} of {whose}, the weight of its penalty {name}; it must be a finite number "
                "that is not negative (framework.auto_lambda.auto_happy_lambda computes one)"
            )


def check_smoothness(module: Module, optimizer: Optimizer) -> None:
    """Refuse a penalty for an optimizer that relies on smoothness.

    Raises:
        ValueError: The module has a penalty and the optimizer's class says ``requires_smooth = True``.
    """
    if module.penalty is not None and getattr(type(optimizer), "requires_smooth", False):
        raise ValueError(
            f"{type(optimizer).__name__} needs a smooth objective, and the module has the penalty "
            f"{type(module.penalty).__name__}: use SpaRSA, FISTA, ISTA or ProxAdam, or set the penalty to None"
        )


def check_replay(optimizer: Optimizer, loader: Any) -> None:
    """Check that a loader whose batches are read at every evaluation of a step can give the same ones again.

    Raises:
        ValueError: If its workers live on from pass to pass, with random streams that nobody else can set back.
    """
    if getattr(loader, "persistent_workers", False):
        name = type(optimizer).__name__
        raise ValueError(
            f'a DataLoader with persistent_workers=True and accumulate_grad_batches="epoch" with {name}, which reads '
            "the data many times per step: random draws in its workers would differ from one evaluation to the next. "
            "Pass persistent_workers=False"
        )


def check_reevaluation(optimizer: Optimizer, gradient_clip_val: float | None, *, fp16: bool) -> None:
    """Refuse settings under which value and gradient of a re-evaluated objective would disagree.

    Raises:
        ValueError: Clipping or a gradient scaler, for an optimizer that evaluates more than once per step.
    """
    name = type(optimizer).__name__
    if gradient_clip_val:
        raise ValueError(
            f"gradient_clip_val={gradient_clip_val} with {name}, which evaluates its closure many times per step: "
            "clipped gradients would disagree with the values. Drop gradient_clip_val, or use another optimizer"
        )
    if fp16:
        raise ValueError(
            f"precision='16-mixed' with {name}, which evaluates its closure many times per step: scaled gradients "
            "would disagree with the values. Use precision='bf16-mixed' or '32-true', or another optimizer"
        )


def warn_of_minimizations(optimizer: Optimizer, steps_per_epoch: float) -> None:
    """Warn where a whole minimization would be made for each of several batches.

    Args:
        optimizer: Its class says ``minimizes = True`` if one step is a whole minimization.
        steps_per_epoch: How many steps an epoch has.
    """
    if getattr(type(optimizer), "minimizes", False) and steps_per_epoch > 1:
        warnings.warn(
            f"{type(optimizer).__name__} makes a whole minimization of every mini-batch, {steps_per_epoch:g} in an "
            'epoch, each undoing the one before: say accumulate_grad_batches="epoch" for one over all the data',
            RuntimeWarning,
            stacklevel=2,
        )


def _describe(value: Any) -> str:
    return f"{type(value).__name__}" + (f" ({value!r:.60})" if value is not None else "")
