"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import Any

from framework.loop.batches import groups
from framework.loop.evaluate import sanity_check, validate
from framework.loop.run import FitRun
from framework.loop.schedulers import learning_rates
from framework.objective.closure import Closure
from framework.objective.output import NoLossError


def fit(run: FitRun) -> None:
    """Train until a limit is reached or somebody asks to stop. `framework.callback` says where each hook is."""
    settings, hooks, progress, metrics = run.settings, run.hooks, run.progress, run.metrics
    batch_start = hooks.on_train_batch_start
    batch_end, batch_watched = hooks.heard("on_train_batch_end")
    hooks.call("on_fit_start")
    if progress.global_step == 0:  # of a run that goes on, it would change what was restored
        sanity_check(run)
    hooks.call("on_train_start")
    started = time.perf_counter()
    # Whether a signal or an exception came between the last step and what was due after it.
    has_rest = run.is_validation_due or progress.batch_idx == math.inf
    while has_rest or not run.is_over():
        run.reload_training_data()
        # What it logs is among the sums that were restored with half an epoch.
        with metrics.muted() if progress.batch_idx else nullcontext():
            hooks.call("on_train_epoch_start")
        run.is_between_epochs = False
        phase = run.phase  # callbacks may change it between epochs
        step, closure, size = phase.step, phase.closure, phase.accumulate_grad_batches
        leaves_out_penalty = closure.objective.handles_penalty
        if progress.batch_idx == 0 and settings.check_val_every_n_epoch is not None:
            progress.since_validation = 0
        step_schedulers = [config for config in phase.stepped_schedulers if config.interval == "step"]
        steps = groups(run.train_batches, size, progress)
        has_rest = is_over = False
        if run.is_validation_due:
            _validate_within_epoch(run)
            is_over = run.is_over()
        for batch_idx, next_idx, batches in () if is_over else steps:
            batch = batches[0] if size == 1 else batches
            run.is_in_step, run.next_idx = True, next_idx
            metrics.read_group(batches)
            if batch_start and _skips_epoch(run, [hook(batch, batch_idx) for hook in batch_start]):
                run.is_in_step, progress.batch_idx = False, math.inf
                run.train_batches.leave_epoch()
                break

            log = progress.global_step % settings.log_every_n_steps < progress.taken
            rates = learning_rates(phase.optimizer) if log else {}
            # What only logs need is known at the end, too; g, which some optimizers leave out, after every epoch.
            try:
                norm = step(batches, batch_idx, log or _is_last(run, next_idx, of_epoch=leaves_out_penalty))
            except NoLossError as error:
                run.note_skipped_step(error)
                norm = None
            run.gradient_norm = norm if norm is not None else run.gradient_norm
            progress.global_step += step.taken
            if (first := closure.first) is not None:
                metrics.end_step(first.loss, batches, first.weight)
            else:
                metrics.end_skipped_step(batches)
            progress.batch_idx = batch_idx if phase.iterations.cut_short else next_idx
            if run.val_interval is not None and not phase.iterations.cut_short:
                # A step over a whole epoch, of whatever length, is followed by validation.
                progress.since_validation += len(batches) if isinstance(batches, list) else run.val_interval

            for scheduler in step_schedulers:
                if progress.global_step % scheduler.frequency == 0:
                    scheduler.step(metrics)
            run.is_in_step = False
            run.due = partial(_log_step, run, rates) if log else _nothing
            for hook in batch_end:
                hook(_outputs(closure, size), batch, batch_idx)
            run.complete()
            for hook in batch_watched:
                hook(_outputs(closure, size), batch, batch_idx)
            if run.val_interval is not None and run.is_validation_due:
                _validate_within_epoch(run)
            if is_over := run.is_over():
                break
        if not is_over:
            if progress.batch_idx == 0:
                raise ValueError(
                    "train_dataloaders yielded no batch: is it empty, or a generator that was read before?"
                )
            progress.batch_idx = math.inf
        elif progress.batch_idx >= run.train_batches.num_batches:
            next(steps, None)  # read the loader to its end: some draw random numbers there
            progress.batch_idx = math.inf
        run.is_between_epochs = True
        if progress.batch_idx != math.inf:
            run.mark_end()  # what follows at the end of half an epoch happens again when it is continued
        if not run.stop.interrupted:
            _end_epoch(run, complete=progress.batch_idx == math.inf)
    run.mark_end()
    run.seconds = time.perf_counter() - started
    with metrics.collecting(None):  # no epoch is to come that would publish it
        hooks.call("on_train_end")
        hooks.call("on_fit_end")


def _validate_within_epoch(run: FitRun) -> None:
    """Validate; if a signal breaks it off, the continued run does."""
    run.check_finite()
    if validate(run):
        assert run.val_interval is not None
        run.progress.since_validation %= run.val_interval


def _nothing() -> None:
    """Be due after a step that is not logged."""


def _skips_epoch(run: FitRun, answers: list[Any]) -> bool:
    """Tell whether a hook of any process returned -1, to skip the rest of the epoch."""
    asked = any(isinstance(answer, int) and answer == -1 for answer in answers)
    return asked if run.processes is None else bool(run.processes.max([int(asked)])[0])


def _outputs(closure: Closure, size: int | str) -> Any:
    """What the first evaluation of the step returned: one mapping, or with accumulation always a list of them."""
    outputs = {} if closure.first is None else closure.first.outputs
    return outputs if size == 1 or isinstance(outputs, list) else [outputs]


def _log_step(run: FitRun, rates: dict[str, float]) -> None:
    """Send the values of the step just taken to the loggers. Synchronizes with the device."""
    run.check_finite()
    values = {name: float(value) for name, value in run.own_values()} | rates
    run.log_metrics(run.metrics.log_step(values), run.progress.global_step - run.progress.taken)


def _is_last(run: FitRun, next_idx: float, *, of_epoch: bool) -> bool:
    """Tell whether the step about to be taken is the last of the run, or ``of_epoch``, of its epoch."""
    settings, progress = run.settings, run.progress
    if next_idx >= run.train_batches.num_batches and (of_epoch or progress.epoch + 1 == settings.max_epochs):
        return True
    return progress.global_step + 1 == settings.max_steps


def _end_epoch(run: FitRun, *, complete: bool) -> None:
    """Validate, publish the epoch's means, step the schedulers of interval "epoch"."""
    progress = run.progress
    epoch = progress.epoch + 1
    run.check_finite()
    if run.processes is not None:
        run.processes.check_equal(run.module, f"at the end of epoch {progress.epoch}")
    if run.val_interval is None and run.validates_in(progress.epoch) and not validate(run):
        return  # half a validation decides nothing: a resumed run makes it again
    run.publish_epoch()
    if complete:
        due = [s for s in run.phase.stepped_schedulers if s.interval == "epoch" and epoch % s.frequency == 0]
        for scheduler in due:
            if scheduler.monitor is None:
                scheduler.step(run.metrics)
        progress.epochs_completed, progress.batch_idx = epoch, 0
    else:
        due = []

    def publish() -> None:
        """Publish what the hooks logged, then step the schedulers that may watch it."""
        run.publish_epoch()
        for scheduler in due:
            if scheduler.monitor is not None:
                scheduler.step(run.metrics)

    run.due = publish
    run.hooks.call("on_train_epoch_end", before_watching=run.complete)
    progress.epoch = progress.epochs_completed
