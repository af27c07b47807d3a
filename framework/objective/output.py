"""What `training_step` may return, parsed at every evaluation: the loss, a penalty, and anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from framework.module import Module

_ALLOWED = 'return a scalar loss, (loss, penalty), or a mapping with "loss" and optionally "penalty"'
_NO_EXTRAS: Mapping[str, Any] = {}


class NoLossError(ValueError):
    """`training_step` returned None, as it may to skip a batch, for every batch of an evaluation."""


def parse_output(module: Module, output: Any) -> tuple[Tensor, Tensor | None, Mapping[str, Any]]:
    """Parse what `training_step` returned; never waits for the device.

    Args:
        module: The module whose step it was.
        output: A scalar loss, ``(loss, penalty)``, or a mapping with ``"loss"`` and optionally ``"penalty"``.

    Returns:
        The loss and the penalty (None if there is none), with their graphs, and the other entries of a mapping,
        detached.

    Raises:
        NoLossError: If it is None.
        TypeError: If it is none of these.
        ValueError: If a part is not a scalar, the loss does not require a gradient although one is needed, or the
            module has a penalty object in addition to the penalty returned.
    """
    penalty, extras = None, _NO_EXTRAS
    if isinstance(output, Tensor):
        loss = output
    elif output is None:
        raise NoLossError(f"{_step(module)} returned None; {_ALLOWED}, and None only to skip a batch")
    elif isinstance(output, Mapping):
        if "loss" not in output:
            raise TypeError(f"{_step(module)} returned a mapping without 'loss', only {sorted(output)}; {_ALLOWED}")
        loss, penalty = output["loss"], output.get("penalty")
        extras = {name: _detached(value) for name, value in output.items() if name != "loss"}
    elif isinstance(output, tuple | list) and len(output) == 2:
        loss, penalty = output
    else:
        raise _unreadable(module, output)
    _check_scalar(module, "loss", loss, output)
    if penalty is not None:
        _check_scalar(module, "penalty", penalty, output)
        if module.penalty is not None:
            raise ValueError(
                f"{_step(module)} returned a penalty, but the module also has a penalty object: it would count twice. "
                "Return the loss alone, or set the module's penalty to None"
            )
    if not loss.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{_step(module)} returned a loss that depends on no parameter: was it detached, or made with item()?"
        )
    return loss, penalty, extras


def parse_manual_output(module: Module, output: Any) -> tuple[Tensor | None, Mapping[str, Any]]:
    """Parse what `training_step` returned in manual optimization: the loss if it says one, and a mapping, detached.

    Raises:
        TypeError: If it is neither a tensor, nor a mapping, nor None.
        ValueError: If the loss is not a scalar.
    """
    if output is None:
        return None, _NO_EXTRAS
    outputs = output if isinstance(output, Mapping) else {"loss": output}
    loss = outputs.get("loss")
    if loss is not None:
        _check_scalar(module, "loss", loss, output)
    outputs = {name: _detached(value) for name, value in outputs.items()}
    return outputs.get("loss"), outputs


def check_finite(module: Module, loss: Tensor, penalty: Tensor | None) -> None:
    """Refuse a first loss or penalty that is NaN or infinite. Waits for the device, so call it once per run.

    Raises:
        ValueError: If either is NaN or infinite.
    """
    for part in (loss, penalty):
        if part is not None and not torch.isfinite(part).all():
            raise ValueError(f"{_step(module)} returned {part.item()} at the first step: are there NaNs in the data?")


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else apply_to_collection(value, Tensor, Tensor.detach)


def _check_scalar(module: Module, part: str, value: Any, output: Any) -> None:
    if not isinstance(value, Tensor):
        raise _unreadable(module, output)
    if value.numel() != 1:
        raise ValueError(
            f"{_step(module)} returned a {part} of shape {tuple(value.shape)}; take its mean(): {_ALLOWED}"
        )


def _unreadable(module: Module, output: Any) -> TypeError:
    return TypeError(f"{_step(module)} returned {type(output).__name__} ({output!r:.60}); {_ALLOWED}")


def _step(module: Module) -> str:
    return f"{type(module).__name__}.training_step"
