"""What a run has before its loop, data, optimizer and closure, each checked, and around it: signals, hooks, loggers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.callback import Hooks
from framework.callbacks import ModelCheckpoint
from framework.loop import checkpoint as checkpoints
from framework.loop.batches import Batches
from framework.loop.engine import Engine
from framework.loop.inner_iterations import Iterations
from framework.loop.schedulers import parse_optimizers
from framework.loop.signals import on_signals
from framework.loop.validation import (
    check_checkpoints,
    check_configured,
    check_initialized,
    check_module,
    check_overrides,
    check_param_groups,
    check_penalty,
    check_penalty_object,
    check_readable_again,
    check_reevaluation,
    check_schedulers,
    check_smoothness,
    check_step,
    check_train_limit,
    num_passes,
    num_validation_passes,
)
from framework.module import Module
from framework.objective.closure import Closure

if TYPE_CHECKING:
    from framework.trainer import Trainer


@contextmanager
def running(trainer: Trainer, module: Module, stage: str) -> Iterator[None]:
    """The frame of every run: signals, the first and the last hooks, and loggers closed whatever happens."""
    check_module(module)
    check_overrides(module, trainer.callbacks)
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
    check_initialized(trainer.module)
    check_checkpoints([c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)], trainer.log_dir / "checkpoints")
    set_up_data(trainer, train_dataloaders, val_dataloaders)
    trainer.engine = Engine(trainer.fabric, trainer.module)
    set_up_optimizer(trainer, trainer.module.configure_optimizers())
    if ckpt_path is not None:
        checkpoints.restore(trainer, checkpoints.resolve(trainer, ckpt_path))


def set_up_data(trainer: Trainer, train_dataloaders: Any, val_dataloaders: Any) -> None:
    """The training and validation data, as far as the trainer's limits let them be read."""
    device, held = trainer.fabric.device, trainer.overfit_batches
    if not held:
        check_train_limit(trainer.limit_train_batches)
        passes = num_passes(trainer.max_epochs, trainer.accumulate_grad_batches)
        check_readable_again(train_dataloaders, "train_dataloaders", passes)
    train_limit, val_limit = held or trainer.limit_train_batches, held or trainer.limit_val_batches
    trainer.train_batches = Batches(train_dataloaders, limit=train_limit, device=device, name="train_dataloaders")
    trainer.val_batches = None
    if val_dataloaders is not None and val_limit != 0:
        check_step(trainer.module, "validation", "val_dataloaders are given")
        passes = num_validation_passes(
            trainer.max_epochs, trainer.check_val_every_n_epoch, trainer.num_sanity_val_steps
        )
        check_readable_again(val_dataloaders, "val_dataloaders", passes)
        trainer.val_batches = Batches(val_dataloaders, limit=val_limit, device=device, name="val_dataloaders")
    if held:
        trainer.train_batches.hold()
    trainer.metrics.awaited = "train" if trainer.val_batches is None else "validation"


def set_up_optimizer(trainer: Trainer, configured: Any, *, evaluations: int = 0) -> None:
    """The optimizer, its schedulers and its closure, from what ``configure_optimizers`` returned.

    ``evaluations`` is how many there were before, with another optimizer.
    """
    check_configured(configured)
    trainer.optimizer, trainer.schedulers = parse_optimizers(configured)
    check_schedulers(trainer.optimizer, [config.scheduler for config in trainer.schedulers])
    check_penalty_object(trainer.module, type(trainer.optimizer))
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
    trainer.iterations = Iterations(trainer)
