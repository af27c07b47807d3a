"""The parts of a step that a module takes over by overriding them, looked up once: what it leaves costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.loop.engine import Engine
from framework.loop.overrides import overrides
from framework.loop.schedulers import SchedulerConfig
from framework.loop.settings import Settings
from framework.module import Module
from framework.objective.closure import Closure

TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def backward_of(
    module: Module, engine: Engine, before_backward: Sequence[Callable[[Tensor], Any]]
) -> Callable[..., None]:
    """Return what adds the gradients of a loss: the engine's way, or the module's, after its hooks."""
    backward = engine.backward_by(module.backward) if overrides(module, "backward") else engine.backward
    if not before_backward:
        return backward

    def announce_and_go_back(loss: Tensor, *args: Any, **kwargs: Any) -> None:
        for hook in before_backward:
            hook(loss)
        backward(loss, *args, **kwargs)

    return announce_and_go_back


def zeroing_of(
    module: Module,
    optimizer: Optimizer,
    before_zero_grad: Sequence[Callable[[Optimizer], Any]],
    epoch: Callable[[], int],
) -> Callable[[int], None] | None:
    """Return what drops the gradients, given the index of the batch; None if nobody hears of it."""
    if not (before_zero_grad or overrides(module, "optimizer_zero_grad")):
        return None

    def announce_and_zero(batch_idx: int) -> None:
        for hook in before_zero_grad:
            hook(optimizer)
        module.optimizer_zero_grad(epoch(), batch_idx, optimizer)

    return announce_and_zero


def clipping_of(module: Module, optimizer: Optimizer, settings: Settings) -> Callable[[], None] | None:
    """Return what clips the gradients of the optimizer; None if nothing does."""
    if not (settings.gradient_clip_val or overrides(module, "configure_gradient_clipping")):
        return None
    return partial(
        module.configure_gradient_clipping,
        optimizer,
        gradient_clip_val=settings.gradient_clip_val,
        gradient_clip_algorithm=settings.gradient_clip_algorithm,
    )


def take_over_schedulers(module: Module, schedulers: Sequence[SchedulerConfig]) -> None:
    """Let the module step its schedulers, if it overrides how."""
    if overrides(module, "lr_scheduler_step"):
        for config in schedulers:
            config.step_by = module.lr_scheduler_step


def transfer_by(owners: Mapping[str, Any], device: torch.device, dataloader_idx: int) -> Callable[[Any], Any]:
    """Return what moves a batch to the device, by the methods of those who define them."""
    before, move, after = (getattr(owners[name], name) for name in TRANSFER)

    def transfer(batch: Any) -> Any:
        batch = before(batch, dataloader_idx)
        batch = move(batch, device, dataloader_idx)
        return after(batch, dataloader_idx)

    return transfer


def check_taken_over(
    module: Module, closure: Closure, accumulate_grad_batches: int | str, *, fp16: bool, several_processes: bool
) -> None:
    """Refuse to take over what does not go with the optimizer or the settings.

    Raises:
        ValueError: If there is such a part; the message names it.
    """
    optimizer = type(closure.objective.optimizer).__name__
    if overrides(module, "configure_gradient_clipping") and closure.reevaluates:
        raise ValueError(
            f"{type(module).__name__}.configure_gradient_clipping with {optimizer}, which evaluates its closure many "
            "times per step: clipped gradients would disagree with the values. Drop it, or use another optimizer"
        )
    if overrides(module, "optimizer_step") and fp16:
        raise ValueError(
            f"{type(module).__name__}.optimizer_step with precision='16-mixed', whose scaler takes the step: use "
            "precision='bf16-mixed', or define on_before_optimizer_step instead"
        )
    reason = (
        f"{optimizer} evaluates its closure many times per step"
        if closure.reevaluates
        else f"accumulate_grad_batches={accumulate_grad_batches} divides all gradients by the number of samples"
        if accumulate_grad_batches != 1
        else "several processes add up their gradients"
        if several_processes
        else None
    )
    if overrides(module, "optimizer_zero_grad") and reason is not None:
        raise ValueError(
            f"{type(module).__name__}.optimizer_zero_grad cannot keep gradients from one evaluation to the next, since "
            f"{reason}: drop it (to hear of it, define on_before_zero_grad)"
        )
