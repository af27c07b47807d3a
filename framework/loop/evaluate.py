"""One pass over data without training: validation, test, prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from torch import Tensor

from framework.loop.batches import Batches
from framework.loop.run import FitRun, Run
from framework.loop.validation import check_monitors, refuse_empty
from framework.module import Module
from framework.objective.replay import keeping_metrics

_NONE = object()


def evaluate(
    run: Run, batches: Batches, stage: str, *, max_batches: int | None = None
) -> tuple[dict[str, float] | None, list[Any]]:
    """Run ``<stage>_step`` over the batches, in evaluation mode and without gradients.

    Args:
        run: Whose module, hooks, metrics and loggers take part.
        batches: The data.
        stage: "validation", "test" or "predict".
        max_batches: Read only so many.

    Returns:
        The reduced metrics, None if a signal broke the pass off, and for "predict" what the steps returned.
    """
    hooks, metrics = run.hooks, run.metrics
    step = run.engine.forward(f"{stage}_step")
    outputs = []
    counts = run.progress.evaluated_batches
    seen, broken_off = counts.get(stage, 0), False
    with _evaluation_mode(run.module), metrics.collecting(stage):
        with torch.inference_mode() if run.settings.inference_mode else torch.no_grad():
            hooks.call(f"on_{stage}_start")
            hooks.call(f"on_{stage}_epoch_start")
            batch_idx = -1
            for batch_idx, batch in enumerate(itertools.islice(batches, max_batches)):
                hooks.call(f"on_{stage}_batch_start", batch, batch_idx)
                metrics.read(batch)
                if run.processes is not None and run.processes.is_padding(batch):
                    with keeping_metrics(run.module):
                        output = step(batch, batch_idx)
                else:
                    output = step(batch, batch_idx)
                    outputs += [output] if stage == "predict" else []
                hooks.call(f"on_{stage}_batch_end", output, batch, batch_idx)
                of_batch = metrics.log_step({})
                if not run.sanity_checking:
                    run.log_metrics(of_batch, seen + batch_idx)
                if broken_off := run.stop.interrupted:
                    break
            if batch_idx < 0 and batches.num_batches:
                refuse_empty(batches.name)
            hooks.call(f"on_{stage}_epoch_end")
        values = None if broken_off else metrics.log_epoch()  # half of the data says nothing
        if values is not None and not run.sanity_checking:
            run.log_metrics(values)
        with metrics.collecting(None):
            hooks.call(f"on_{stage}_end")
    if values is not None and not run.sanity_checking:
        counts[stage] = seen + batch_idx + 1
    return values, outputs if run.processes is None else _in_order(run.processes.gather(_on_cpu(outputs)))


def _on_cpu(outputs: list[Any]) -> list[Any]:
    return apply_to_collection(outputs, Tensor, Tensor.cpu)


def _in_order(outputs_of_all: list[list[Any]]) -> list[Any]:
    """Put the outputs of all processes, each of which had every so many-th batch, in the order of the batches."""
    rows = itertools.zip_longest(*outputs_of_all, fillvalue=_NONE)
    return [output for row in rows for output in row if output is not _NONE]


def validate(run: FitRun, *, max_batches: int | None = None) -> bool:
    """Evaluate on the validation data of a fit; training goes on as if nothing had been drawn at random.

    Returns:
        Whether they were read to the end, and not broken off by a signal.
    """
    assert run.val_batches is not None
    with run.validating():
        values, _ = evaluate(run, run.val_batches, "validation", max_batches=max_batches)
        if values is not None and not run.sanity_checking:
            run.send_held_logs()
    return values is not None


def sanity_check(run: FitRun) -> None:
    """Try a few validation batches, so that a mistake there does not wait for the end of the first epoch."""
    max_batches = run.settings.num_sanity_val_steps
    if run.val_batches is None or max_batches == 0:
        return
    with run.trying_validation():
        run.hooks.call("on_sanity_check_start")
        validate(run, max_batches=None if max_batches == -1 else max_batches)
        check_monitors(run.callbacks, run.phase.schedulers, run.metrics.callback_metrics, run.module)
        run.hooks.call("on_sanity_check_end")


@contextmanager
def _evaluation_mode(module: Module) -> Iterator[None]:
    """Evaluation mode; afterwards each part is in its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
