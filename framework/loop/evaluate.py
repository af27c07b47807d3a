"""One pass over data without training: validation, test, prediction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from framework.loop.batches import Batches
from framework.loop.validation import check_monitors, refuse_empty
from framework.objective.replay import rng_state, set_rng_state

if TYPE_CHECKING:
    from framework.trainer import Trainer


def evaluate(trainer: Trainer, batches: Batches, stage: str) -> tuple[dict[str, float], list[Any]]:
    """Run ``<stage>_step`` over the batches, in evaluation mode and without gradients.

    Args:
        trainer: Whose module, hooks, metrics and loggers take part.
        batches: The data.
        stage: "validation", "test" or "predict".

    Returns:
        The reduced metrics, and for "predict" what the steps returned.
    """
    hooks, metrics = trainer.hooks, trainer.metrics
    step = trainer.engine.forward(f"{stage}_step")
    outputs = []
    with _evaluating(trainer, stage):
        with torch.inference_mode() if trainer.inference_mode else torch.no_grad():
            hooks.call(f"on_{stage}_start")
            hooks.call(f"on_{stage}_epoch_start")
            batch_idx = -1
            for batch_idx, batch in enumerate(batches):
                hooks.call(f"on_{stage}_batch_start", batch, batch_idx)
                metrics.batch = batch
                output = step(batch, batch_idx)
                if stage == "predict":
                    outputs.append(output)
                hooks.call(f"on_{stage}_batch_end", output, batch, batch_idx)
                if trainer.interrupted:
                    break
            if batch_idx < 0 and batches.num_batches:
                refuse_empty(batches.name)
            hooks.call(f"on_{stage}_epoch_end")
        values = metrics.log_epoch()
        if not (trainer.sanity_checking or trainer.interrupted):
            trainer.log_metrics(values)
        hooks.call(f"on_{stage}_end")
    return values, outputs


def validate(trainer: Trainer) -> None:
    """Evaluate on the validation data of a fit; training goes on as if nothing had been drawn at random."""
    assert trainer.val_batches is not None
    state = rng_state()
    evaluate(trainer, trainer.val_batches, "validation")
    set_rng_state(state)


def sanity_check(trainer: Trainer) -> None:
    """Try a few validation batches, so that a mistake there does not wait for the end of the first epoch."""
    batches = trainer.val_batches
    if batches is None or trainer.num_sanity_val_steps == 0:
        return
    trainer.sanity_checking = True
    trainer.call("on_sanity_check_start")
    limit = batches.limit
    if 0 <= trainer.num_sanity_val_steps < batches.num_batches:
        batches.limit = trainer.num_sanity_val_steps
    validate(trainer)
    batches.limit = limit
    check_monitors(trainer.callbacks, trainer.schedulers, trainer.metrics.callback_metrics, trainer.module)
    trainer.metrics.forget()
    trainer.call("on_sanity_check_end")
    trainer.sanity_checking = False


@contextmanager
def _evaluating(trainer: Trainer, stage: str) -> Iterator[None]:
    """Evaluation mode, for the module and for what it logs; afterwards each part is in its own mode again."""
    modes = [(part, part.training) for part in trainer.module.modules()]
    trainer.module.eval()
    trainer.metrics.stage = stage
    try:
        yield
    finally:
        trainer.metrics.stage = "train"
        for part, mode in modes:
            part.training = mode
