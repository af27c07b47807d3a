"""One pass over data without training: validation, test, prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from framework.loop.batches import Batches
from framework.loop.run import FitRun, Run
from framework.loop.validation import check_monitors, refuse_empty
from framework.objective.replay import keeping_metrics

_NONE = object()


def evaluate(
    run: Run, stage: str, *, max_batches: int | None = None, keeps_outputs: bool = False
) -> tuple[list[dict[str, float]] | None, list[list[Any]]]:
    """Run ``<stage>_step`` over the data of a stage, in evaluation mode and without gradients.

    Args:
        run: Whose module, data, hooks, metrics and loggers take part.
        stage: "validation", "test" or "predict".
        max_batches: Read only so many of each loader.
        keeps_outputs: Whether to return what the steps returned.

    Returns:
        For each loader, the reduced metrics: its own, and those logged outside of its batches; None if a signal broke
        the pass off. And for each loader, what its steps returned, if that is kept.
    """
    hooks, metrics, loaders = run.hooks, run.metrics, run.data[stage]
    outputs: list[list[Any]] = [[] for _ in loaders]
    counts = run.progress.evaluated_batches
    seen = counts.get(stage, 0)
    with _evaluation_mode(run, stage), metrics.collecting(stage):
        # What a module keeps of a validation within a fit may be used in training, which inference mode forbids.
        is_within_fit = isinstance(run, FitRun)
        with torch.inference_mode() if run.settings.inference_mode and not is_within_fit else torch.no_grad():
            hooks.call(f"on_{stage}_start")
            hooks.call(f"on_{stage}_epoch_start")
            num_batches = [
                _read(
                    run,
                    stage,
                    index if len(loaders) > 1 else None,
                    batches,
                    max_batches,
                    seen,
                    outputs[index].append if keeps_outputs else None,
                )
                for index, batches in enumerate(loaders)
            ]
            hooks.call(f"on_{stage}_epoch_end")
        values = None if run.stop.interrupted else metrics.log_epoch()  # half of the data says nothing
        of_loaders = None if values is None else [metrics.of_loader(values, index) for index in range(len(loaders))]
        if values is not None and not run.sanity_checking:
            run.log_metrics(values)
        # Without gradients: tensors that were kept in inference mode can be computed with.
        with metrics.collecting(None), torch.no_grad():
            hooks.call(f"on_{stage}_end")
    if values is not None and not run.sanity_checking:
        counts[stage] = seen + max(num_batches)
    if run.processes is not None:
        outputs = [_in_order(run.processes.gather(_on_cpu(of_loader))) for of_loader in outputs]
    return of_loaders, outputs


def _read(
    run: Run,
    stage: str,
    dataloader_idx: int | None,
    batches: Batches,
    max_batches: int | None,
    seen: int,
    keep: Callable[[Any], None] | None,
) -> int:
    """Run the step over one loader, unless a signal breaks it off; return how many batches there were."""
    if run.stop.interrupted:
        return 0
    hooks, metrics, step = run.hooks, run.metrics, run.engine.forward(f"{stage}_step")
    which = () if dataloader_idx is None else (dataloader_idx,)
    metrics.dataloader_idx = dataloader_idx
    count = 0
    for batch_idx, batch in enumerate(itertools.islice(batches, max_batches)):
        hooks.call(f"on_{stage}_batch_start", batch, batch_idx, *which)
        metrics.read(batch)
        if run.processes is not None and run.processes.is_padding(batch):
            with keeping_metrics(run.module):
                output = step(batch, batch_idx, *which)
        else:
            output = step(batch, batch_idx, *which)
            if keep is not None:
                keep(output)
        hooks.call(f"on_{stage}_batch_end", output, batch, batch_idx, *which)
        of_batch = metrics.log_step({})
        if not run.sanity_checking:
            run.log_metrics(of_batch, seen + batch_idx)
        count = batch_idx + 1
        if run.stop.interrupted:
            break
    if count == 0 and batches.num_batches:
        refuse_empty(batches.name)
    metrics.dataloader_idx = None
    metrics.read_nothing()
    return count


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
    if not run.sanity_checking:
        run.reload_validation_data()
    with run.validating():
        values, _ = evaluate(run, "validation", max_batches=max_batches)
        if values is not None:
            run.complete_validation()
    return values is not None


def sanity_check(run: FitRun) -> None:
    """Try a few validation batches, so that a mistake there does not wait for the end of the first epoch."""
    max_batches = run.settings.num_sanity_val_steps
    if not run.data["validation"] or max_batches == 0:
        return
    with run.trying_validation():
        run.hooks.call("on_sanity_check_start")
        validate(run, max_batches=None if max_batches == -1 else max_batches)
        check_monitors(run.callbacks, run.phase.stepped_schedulers, run.metrics.callback_metrics, run.module)
        run.hooks.call("on_sanity_check_end")


@contextmanager
def _evaluation_mode(run: Run, stage: str) -> Iterator[None]:
    """Evaluation mode, in a stage; afterwards each part of the module is in its own mode again."""
    modes = [(part, part.training) for part in run.module.modules()]
    before, run.stage = run.stage, stage
    run.module.eval()
    try:
        yield
    finally:
        run.stage = before
        for part, mode in modes:
            part.training = mode
