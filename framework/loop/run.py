"""What a run has before its loop, data, optimizer and closure, each checked, and around it: signals, hooks, loggers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.callback import Hooks
from framework.loop import checkpoint as checkpoints
from framework.loop.batches import Batches, num_groups
from framework.loop.engine import Engine
from framework.loop.inner_iterations import Iterations
from framework.loop.schedulers import parse_optimizers
from framework.loop.signals import on_signals
from framework.loop.validation import (
    check_module,
    check_param_groups,
    check_penalty,
    check_reevaluation,
    check_smoothness,
    warn_of_minimizations,
)
from framework.module import Module
from framework.objective.closure import Closure
from framework.objective.groups import adopt_penalty

if TYPE_CHECKING:
    from framework.trainer import Trainer


@contextmanager
def running(trainer: Trainer, module: Module, stage: str) -> Iterator[None]:
    """The frame of every run: signals, the first and the last hooks, and loggers closed whatever happens."""
    check_module(module)
    trainer.module, module._trainer = module, trainer
    trainer.hooks = Hooks(trainer, module, trainer.callbacks, publish=trainer.publish_epoch)
    trainer.interrupted = False
    status = "failed"
    try:
        with on_signals(trainer.interrupt):
            trainer.call("setup", stage)
            yield
        status = "success"
    except BaseException as error:
        trainer.call("on_exception", error)
        raise
    finally:
        trainer.call("teardown", stage)
        for logger in trainer.loggers:
            logger.finalize(status)


def set_up_fit(trainer: Trainer, train_dataloaders: Any, val_dataloaders: Any, ckpt_path: str | Path | None) -> None:
    """Make everything that the loop works with, as attributes of the trainer."""
    set_up_data(trainer, train_dataloaders, val_dataloaders)
    trainer.engine = Engine(trainer.fabric, trainer.module)
    set_up_optimizer(trainer, trainer.module.configure_optimizers())
    if ckpt_path is not None:
        checkpoints.restore(trainer, checkpoints.resolve(trainer, ckpt_path))


def set_up_data(trainer: Trainer, train_dataloaders: Any, val_dataloaders: Any) -> None:
    """The training and validation data, as far as the trainer's limits let them be read."""
    device, held = trainer.fabric.device, trainer.overfit_batches
    train_limit, val_limit = held or trainer.limit_train_batches, held or trainer.limit_val_batches
    trainer.train_batches = Batches(train_dataloaders, limit=train_limit, device=device, name="train_dataloaders")
    trainer.val_batches = None
    if val_dataloaders is not None and val_limit != 0:
        trainer.val_batches = Batches(val_dataloaders, limit=val_limit, device=device, name="val_dataloaders")
    if held:
        trainer.train_batches.hold()
    trainer.metrics.awaited = "train" if trainer.val_batches is None else "validation"


def set_up_optimizer(trainer: Trainer, configured: Any, *, evaluations: int = 0) -> None:
    """The optimizer, its schedulers and its closure, from what ``configure_optimizers`` returned.

    ``evaluations`` is how many there were before, with another optimizer.
    """
    trainer.optimizer, trainer.schedulers = parse_optimizers(configured)
    if getattr(type(trainer.optimizer), "handles_penalty", False):
        adopt_penalty(trainer.optimizer, trainer.module)
    check_param_groups(trainer.module, trainer.optimizer)
    check_smoothness(trainer.module, trainer.optimizer)
    trainer.engine.set_up_optimizer(trainer.optimizer)
    trainer.closure = Closure(
        trainer.module,
        trainer.optimizer,
        trainer.metrics,
        forward=trainer.engine.forward("training_step"),
        backward=trainer.engine.backward,
        on_after_backward=trainer.hooks.on_after_backward,
    )
    trainer.closure.evaluations = evaluations
    check_penalty(trainer.module, trainer.closure.penalized_groups)
    if trainer.closure.reevaluates:
        fp16 = trainer.engine.grad_scaler is not None
        check_reevaluation(trainer.optimizer, trainer.gradient_clip_val, fp16=fp16)
    warn_of_minimizations(trainer.optimizer, num_groups(trainer.train_batches, trainer.accumulate_grad_batches))
    trainer.iterations = Iterations(trainer)
