"""The state of a run, complete from the start to the end."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from framework._version import __version__
from framework.callback import Callback
from framework.hyperparameters import announce_hyperparameters, hyperparameters_state
from framework.loggers import Logger, warn_of_doubles
from framework.loop.batches import Batches, num_steps, total_steps
from framework.loop.checkpoint import check_weights, load_weights, plain, save
from framework.loop.engine import Engine
from framework.loop.hooks import Hooks
from framework.loop.inner_iterations import InnerIterations
from framework.loop.manual import Manual, Several, check_manual
from framework.loop.metrics import Metrics
from framework.loop.overrides import describe, overrides
from framework.loop.processes import Processes, rng_state_of, rng_states_of, set_rng_state_of, set_rng_states_of
from framework.loop.processes import check_module as check_module_in_processes
from framework.loop.progress import Progress
from framework.loop.schedulers import SchedulerConfig, configured_options, learning_rates, parse_optimizers
from framework.loop.settings import Settings
from framework.loop.sources import Sources
from framework.loop.step import GivenClosure, Step, make_step
from framework.loop.takeover import backward_of, check_taken_over, clipping_of, take_over_schedulers, zeroing_of
from framework.loop.validation import (
    check_configured,
    check_fingerprint,
    check_length,
    check_options,
    check_param_groups,
    check_penalty,
    check_penalty_object,
    check_reevaluation,
    check_replay,
    check_schedulers,
    check_separate,
    check_smoothness,
    validation_interval,
    warn_of_hidden_state,
    warn_of_minimizations,
)
from framework.module import Module
from framework.objective.closure import Closure, Objective
from framework.objective.groups import adopt_penalty, is_penalized, sparsities, stationarity_gap
from framework.objective.output import NoLossError
from framework.objective.replay import (
    Generator,
    find_generators,
    metric_states,
    set_metric_states,
    updated_metrics,
)


@dataclass
class Stop:
    """Whether a run is asked to end.

    Attributes:
        reason: Why; None while nobody asks.
        interrupted_by: The name of the signal that asks, if one does.
        request: With several processes, what was asked in this one, until all have agreed (`agree`).
    """

    reason: str | None = None
    interrupted_by: str | None = None
    processes: Processes | None = None
    request: tuple[str, str | None] | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal asks."""
        return self.interrupted_by is not None

    def ask(self, reason: str) -> None:
        """Ask for the end after the step under way; the first reason is kept."""
        if self.processes is not None:
            self.request = self.request or (reason, None)
        else:
            self.reason = self.reason or reason

    def interrupt(self, signal_name: str) -> None:
        """Ask for the end because of a signal."""
        if self.processes is not None:
            self.request = (self.request or (f"interrupted by {signal_name}",))[0], signal_name
        else:
            self.interrupted_by = signal_name
            self.ask(f"interrupted by {signal_name}")

    def agree(self, milliseconds: int) -> int:
        """Let all processes know what was asked in one of them; return the clock of rank zero.

        Args:
            milliseconds: The clock of this process.
        """
        assert self.processes is not None
        drawn = self.processes.drawn
        asked, now, most, least = self.processes.max(
            [int(self.request is not None), milliseconds if self.processes.rank == 0 else 0, drawn, -drawn]
        )
        if most != -least:
            raise ValueError(
                "the processes drew different batches: a sampler, or an iterable dataset, must draw from the global "
                "generator of torch, numpy or Python, or from one that it holds as an attribute"
            )
        if asked:
            requests = [request for request in self.processes.gather(self.request) if request is not None]
            self.reason = self.reason or requests[0][0]
            self.interrupted_by = next((signal for _, signal in requests if signal), None)
        return now


class Run:
    """What `validate`, `test` and `predict` work with, and the part of a `fit` that is like theirs.

    Attributes:
        settings: The trainer's, as they were when the run began.
        engine: Device and precision.
        module: What is run.
        hooks: Who hears what.
        loggers: Who is sent the metrics.
        stop: Whether to end early.
        metrics: What the module logs.
        progress: How far training has come: the step at which metrics are logged.
        data: By stage, what `evaluate` reads, one for each loader.
        stage: "train", or the stage that `evaluate` is in.
        sanity_checking: Whether validation is only being tried.
        logged_metrics: What the loggers were sent last.
        processes: This one among several; None if it is alone.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        module: Module,
        hooks: Hooks,
        loggers: Sequence[Logger],
        stop: Stop,
        progress: Progress,
        processes: Processes | None = None,
    ) -> None:
        self.processes = processes
        self.settings = settings
        self.engine = engine
        self.module = module
        self.hooks = hooks
        self.loggers = loggers
        self.stop = stop
        self.metrics = Metrics(module, processes=processes, muted=settings.barebones)
        self.progress = progress
        self.data: dict[str, list[Batches]] = {}
        self.stage = "train"
        self.sanity_checking = False
        self.logged_metrics: Mapping[str, float] = {}
        if engine.profiler is not None:
            from framework.profiler import timed

            self.log_metrics = timed(engine.profiler, "log", self.log_metrics)  # type: ignore[method-assign]

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Send values to all loggers; ``step`` defaults to the number of optimizer steps taken."""
        if values:
            self.logged_metrics = values
            for logger in self.loggers if self.processes is None or self.processes.rank == 0 else ():
                logger.log_metrics(dict(values), self.progress.global_step if step is None else step)


@dataclass(frozen=True)
class Phase:
    """What a run optimizes by, until a callback changes it between epochs.

    Attributes:
        optimizer: The optimizer itself, not wrapped.
        schedulers: Its schedulers.
        stepped_schedulers: Those that the run steps: all, or none if the module does.
        closure: What it evaluates.
        step: How a step is taken.
        iterations: Those within a step.
        accumulate_grad_batches: How many batches make one step, or "epoch".
        graphs: Those that the step is compiled to.
    """

    optimizer: Optimizer
    schedulers: list[SchedulerConfig]
    stepped_schedulers: list[SchedulerConfig]
    closure: Closure
    step: Step
    iterations: InnerIterations
    accumulate_grad_batches: int | str
    graphs: Sequence[Any] = ()


class FitRun(Run):
    """The whole state of one `fit`: it can be saved at any step, and restored into a new one.

    Args:
        sources: Where the data come from.
        read_train: Returns the training data; called again when they are to be reloaded.
        read_val: Returns the validation data, one for each loader; called again when they are to be reloaded.
        configure: Returns what `configure_optimizers` may return; called when the data were read.
        callbacks: Whose states are saved.

    Attributes:
        callbacks: Those of the trainer.
        phase: Optimizer, schedulers and closure.
        val_interval: After how many training batches to validate; None for the end of the epoch.
        gradient_norm: That of the last step that was logged or was the last by a limit, before clipping.
        is_between_epochs: Whether the phase may change now.
        next_idx: The index of the batch after those of the step under way, or of the last one; infinite at the end.
        is_in_step: Whether a step is under way, so that there is no state to continue from.
        due: What is to be done when the hooks under way were called; a checkpoint waits for it.
        seconds: How long training took, validation included; 0 before its end.

    Raises:
        ValueError: If the optimizer does not fit the module or the settings.
        TypeError: If ``configured`` has none of the forms allowed.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        module: Module,
        hooks: Hooks,
        loggers: Sequence[Logger],
        stop: Stop,
        *,
        sources: Sources,
        read_train: Callable[[], Batches],
        read_val: Callable[[], list[Batches]],
        configure: Callable[[], Any],
        callbacks: Sequence[Callback],
        processes: Processes | None = None,
    ) -> None:
        super().__init__(settings, engine, module, hooks, loggers, stop, Progress(), processes)
        self._sources, self._read_train, self._read_val = sources, read_train, read_val
        self._read_validation_data()
        self.train_batches = read_train()
        awaited = "validation" if self.data["validation"] else "train"
        self.metrics = Metrics(
            module, awaited=awaited, own=self.own_values, processes=processes, muted=settings.barebones
        )
        self.metrics.count_samples = self.train_batches.counting_by(module)
        self.val_interval = self._validation_interval()
        self.seconds = 0.0
        self.gradient_norm: Tensor | float | None = None
        self.is_between_epochs = True
        self.is_in_step = self._is_iterating = self._has_skipped = False
        self.next_idx = 0.0
        self.due: Callable[[], None] | None = None
        self._awaited_checkpoints: list[tuple[str | Path, bool]] = []
        self._held_logs: list[tuple[dict[str, float], int]] | None = None
        # What validation changes, as it was before the one under way, or the one that was broken off.
        self._before_validation: dict[str, Any] = {}
        self._end: dict[str, Any] | None = None
        self.phase = self._make_phase(configure(), settings.accumulate_grad_batches, evaluations=0)
        self._configured = configured_options(module, self.phase.optimizer, self.phase.schedulers)
        self.callbacks = callbacks
        if processes is not None:
            check_module_in_processes(module, engine.device)
            processes.synchronize(module, self.phase.optimizer)
        self._clock = 0.0 if processes is None else processes.share(time.monotonic())
        self._deadline = self.clock() + settings.max_time
        announce_hyperparameters(module, loggers if settings.enable_autolog_hparams else (), sources.datamodule)

    # ------------------------------------------------------------------------------------------------ optimizing

    def use_optimizer(self, configured: Any, accumulate_grad_batches: int | str | None = None) -> None:
        """Go on with another optimizer, between epochs; steps and evaluations keep counting."""
        if not self.is_between_epochs:
            raise RuntimeError(
                "use_optimizer() was called within an epoch, whose steps go on with the optimizer they began with: "
                "call it in on_train_epoch_end, on_train_epoch_start or on_fit_start"
            )
        if accumulate_grad_batches is None:
            accumulate_grad_batches = self.phase.accumulate_grad_batches
        dataclasses.replace(self.settings, accumulate_grad_batches=accumulate_grad_batches)  # refuses what is wrong
        self.metrics.note_own()
        self.phase.iterations.release()
        self.phase = self._make_phase(configured, accumulate_grad_batches, evaluations=self.phase.closure.evaluations)
        if self.processes is not None:
            self.processes.synchronize(self.module, self.phase.optimizer)

    def _make_phase(self, configured: Any, accumulate_grad_batches: int | str, *, evaluations: int) -> Phase:
        module, engine, settings = self.module, self.engine, self.settings
        fp16, is_manual = engine.grad_scaler is not None, not module.automatic_optimization
        check_configured(configured)
        optimizers, schedulers = parse_optimizers(configured, module, several=is_manual)
        check_schedulers(optimizers, [config.scheduler for config in schedulers])
        if is_manual:
            check_manual(module, settings, fp16=fp16, several_processes=self.processes is not None)
        optimizer = optimizers[0] if len(optimizers) == 1 else Several(optimizers)
        check_penalty_object(module, type(optimizer))
        if getattr(type(optimizer), "handles_penalty", False):
            adopt_penalty(optimizer, module)
        check_param_groups(module, optimizer)
        check_smoothness(module, optimizer)
        forward, backward = engine.forward("training_step"), backward_of(module, engine, self.hooks.on_before_backward)
        objective = Objective(
            module,
            optimizer,
            forward=forward,
            backward=backward,
            zero_gradients=zeroing_of(
                module, optimizer, self.hooks.on_before_zero_grad, epoch=lambda: self.progress.epoch
            ),
            recorder=self.metrics,
            evaluations=evaluations,
            peers=self.processes,
            count_samples=self.metrics.count_samples,
        )
        check_penalty(module, [dict(group) for group in objective.groups if is_penalized(group)])
        closure = Closure(
            objective,
            recorder=self.metrics,
            data_generators=lambda: self.train_batches.generators(),
            on_after_backward=self.hooks.on_after_backward,
        )
        iterations = InnerIterations(optimizer, self._report_iteration, self.is_over)
        if is_manual:
            after, before = self.hooks.on_after_backward, self.hooks.on_before_optimizer_step
            manual = Manual(closure, forward, backward, self.metrics, lambda: self.progress, after, before)
            return Phase(optimizer, schedulers, [], closure, manual, iterations, accumulate_grad_batches)
        if closure.reevaluates:
            check_reevaluation(optimizer, settings.gradient_clip_val, fp16=fp16)
        check_taken_over(
            module,
            closure,
            accumulate_grad_batches,
            fp16=fp16,
            several_processes=self.processes is not None,
        )
        take_over_schedulers(module, schedulers)
        warn_of_minimizations(optimizer, num_steps(self.train_batches.num_batches, accumulate_grad_batches))
        clip = clipping_of(module, optimizer, settings)
        step = make_step(
            closure,
            engine,
            clip,
            self.hooks.on_before_optimizer_step,
            partial(self._call_optimizer, optimizer) if overrides(module, "optimizer_step") else None,
        )
        graphs: list[Any] = []
        if settings.compile is not None:
            from framework.loop.compiled import compiled

            between = [self.train_batches.loader, *(config.scheduler for config in schedulers)]
            in_force = dataclasses.replace(settings, accumulate_grad_batches=accumulate_grad_batches)
            step, graphs = compiled(step, closure, clip, engine, self.hooks, self.metrics, in_force, between)
        if isinstance(step, GivenClosure) and accumulate_grad_batches == "epoch":
            check_replay(optimizer, self.train_batches.loader)
        return Phase(optimizer, schedulers, schedulers, closure, step, iterations, accumulate_grad_batches, graphs)

    def _call_optimizer(self, optimizer: Optimizer, batch_idx: int, closure: Any) -> None:
        self.module.optimizer_step(self.progress.epoch, batch_idx, optimizer, closure)

    def note_skipped_step(self, error: NoLossError) -> None:
        """Accept that no step was taken, because `training_step` returned None; warn the first time.

        Raises:
            ValueError: If another evaluation of the same step returned a loss, or there are other processes.
        """
        if self.phase.closure.first is not None or self.processes is not None:
            reason = "in one of several evaluations of a step" if self.processes is None else "with several processes"
            raise ValueError(f"{error}, which is not possible {reason}") from error
        if not self._has_skipped:
            self._has_skipped = True
            warnings.warn(f"{error}: no step is taken for such a batch", stacklevel=2)

    def _report_iteration(self, iteration: int, value: float) -> None:
        """Log an iteration within a step, at its number in the run, and fire the hook."""
        self.progress.iterations += 1
        evaluations = float(self.phase.closure.evaluations)
        values = {"iteration/objective": value, "iteration/closure_evaluations": evaluations}
        self.log_metrics(self.metrics.log_iteration(values), self.progress.iterations)
        # The parameters are at the best point, from which the step can be taken again.
        self.is_in_step, self._is_iterating = False, True
        self.hooks.call("on_optimizer_iteration", iteration, value)
        self.is_in_step, self._is_iterating = True, False

    def stationarity_gap(self) -> float:
        """Compute the stationarity gap on all the training data: one evaluation more, and the device is waited for."""
        closure, objective = self.phase.closure, self.phase.closure.objective
        if self.progress.batch_idx and getattr(self.train_batches.loader, "persistent_workers", False):
            raise RuntimeError(
                "stationarity_gap() within an epoch of a DataLoader with persistent_workers=True, which cannot be read "
                "twice at a time: call it in on_train_epoch_end, or pass persistent_workers=False"
            )
        with closure.smooth_gradient(self.train_batches) as evaluation:
            if evaluation.penalty is not None and objective.penalty is None:
                raise ValueError(
                    "stationarity_gap: training_step returns the penalty as a number, so its subgradients are unknown: "
                    "set module.penalty to a penalty such as framework.penalties.L1(), and return the loss alone"
                )
            return float(stationarity_gap(objective.groups, objective.penalty, self.module.happy_lambda))

    def reload_training_data(self) -> None:
        """Ask for the training data again, if that is due before the coming epoch."""
        if self._sources.is_due("train", self.settings.reload_dataloaders_every_n_epochs):
            self.train_batches = self._read_train()
            self.val_interval = self._validation_interval()

    def reload_validation_data(self) -> None:
        """Ask for the validation data again, if that is due before the coming validation."""
        every, made = self.settings.reload_dataloaders_every_n_epochs, self._sources.made.get("validation")
        # Those that were made in an epoch without validation were perhaps tried before training, not more.
        is_first = every > 0 and made is not None and not self.validates_in(made["epoch"])
        if is_first or self._sources.is_due("validation", every):
            self._read_validation_data()

    def _read_validation_data(self) -> None:
        """Read them; training goes on as if nothing had been drawn at random."""
        now = rng_state_of(self.processes, ())
        self.data["validation"] = self._read_val()
        set_rng_state_of(self.processes, now, ())

    def _validation_interval(self) -> int | None:
        if not self.data["validation"]:
            return None
        interval = validation_interval(self.settings, self.train_batches.num_batches)
        if interval is not None:
            check_separate(self.train_batches.given, [batches.given for batches in self.data["validation"]])
        return interval

    def generators(self) -> list[Generator]:
        """Return the generators besides the global ones on which training depends: those of the data and the module."""
        return self.train_batches.generators() + find_generators(*self.module.modules())

    # ------------------------------------------------------------------------------------------------------ ends

    def validates_in(self, epoch: int) -> bool:
        """Tell whether there is validation in an epoch, given by its index."""
        every = self.settings.check_val_every_n_epoch
        return bool(self.data["validation"]) and (every is None or (epoch + 1) % every == 0)

    @property
    def is_validation_due(self) -> bool:
        """Whether so many batches were trained on that a validation within the epoch is due."""
        interval, progress = self.val_interval, self.progress
        return interval is not None and progress.since_validation >= interval and self.validates_in(progress.epoch)

    @property
    def is_last_batch(self) -> bool:
        """Whether the step under way, or the last one, is the last of its epoch."""
        return self.next_idx >= self.train_batches.num_batches

    def is_over(self) -> bool:
        """Tell whether a limit is reached or somebody asked to stop; all processes ask at the same time."""
        if self.processes is not None:
            self._clock = self.stop.agree(int(time.monotonic() * 1000)) / 1000
        settings, progress, stop = self.settings, self.progress, self.stop
        if stop.reason is not None and (stop.interrupted or not self._has_a_minimum_ahead()):
            return True
        if 0 <= settings.max_steps <= progress.global_step:
            stop.reason = "max_steps"
        elif 0 <= settings.max_epochs <= progress.epoch:
            stop.reason = "max_epochs"
        elif self.clock() >= self._deadline and not self._has_a_minimum_ahead():
            stop.reason = "max_time"
        else:
            return False
        return True

    def _has_a_minimum_ahead(self) -> bool:
        """Whether the run must go on whoever asks for its end, until a minimum is reached."""
        settings, progress = self.settings, self.progress
        return progress.epochs_completed < (settings.min_epochs or 0) or progress.global_step < (
            settings.min_steps or 0
        )

    def clock(self) -> float:
        """Return a time in seconds; several processes have that of rank zero, as of the last step."""
        return time.monotonic() if self.processes is None else self._clock

    def save(self, path: str | Path, weights_only: bool = False) -> None:
        """Write a checkpoint; if hooks are under way after which something is due, write it then.

        Raises:
            ValueError: If the objective is not finite: an older checkpoint is better than a diverged one.
        """
        if self.due is not None:
            self._awaited_checkpoints.append((path, weights_only))
            return
        self.check_finite()
        checkpoint = self.state_dict(weights_only)
        if self.processes is None or self.processes.rank == 0:
            save(checkpoint, path)

    def complete(self) -> None:
        """Do what is due when the hooks after a step or an epoch were called."""
        assert self.due is not None
        due, self.due = self.due, None
        due()
        if self._awaited_checkpoints:
            awaited, self._awaited_checkpoints = self._awaited_checkpoints, []
            for path, weights_only in awaited:
                self.save(path, weights_only)

    def mark_end(self) -> None:
        """Note where a continued run goes on: what hooks and loggers do from now on belongs to this end alone."""
        if self._end is None:
            self._end = copy.deepcopy(self._standing())

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Within, logs are held back until `complete_validation`, and random draws do not count.

        A run that is interrupted in validation, or is saved there, makes all of it again when it is continued.
        """
        generators = self.generators()
        for batches in self.data["validation"]:
            generators += batches.generators()
        state, self._held_logs = rng_state_of(self.processes, generators), []
        standing = self._standing()
        self._before_validation = copy.deepcopy({name: standing[name] for name in _CHANGED_BY_VALIDATION})
        try:
            yield
        finally:
            set_rng_state_of(self.processes, state, generators)
            self._held_logs = None

    def complete_validation(self) -> None:
        """Send the loggers what `validating` has held back: validation was read to its end, and counts from now on."""
        held, self._held_logs, self._before_validation = self._held_logs or [], None, {}
        for values, step in held:
            self.log_metrics(values, step)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        step = self.progress.global_step if step is None else step
        if self._held_logs is None:
            super().log_metrics(values, step)
        else:
            self._held_logs.append((dict(values), step))

    @contextmanager
    def trying_validation(self) -> Iterator[None]:
        """Within, metrics are collected aside and dropped afterwards."""
        kept, self.sanity_checking = self.metrics, True
        self.metrics = Metrics(self.module, processes=self.processes, muted=self.settings.barebones)
        try:
            yield
        finally:
            self.metrics, self.sanity_checking = kept, False

    # -------------------------------------------------------------------------------------------------- logging

    def own_values(self) -> Iterator[tuple[str, float | Tensor]]:
        """Yield what every run logs of the last step, the cheap ones first.

        ``train/loss`` is f, ``train/penalty`` g where there is one, ``train/objective`` f + g, all at the point before
        the step; then ``closure_evaluations``, ``epoch``, ``lr/<group>`` as they are now, and ``sparsity/<group>``, the
        share of exact zeros in each penalized group, for which the device is waited for.
        """
        closure, objective = self.phase.closure, self.phase.closure.objective
        yield from self._objective_values()
        if self.gradient_norm is not None:
            yield "grad_norm", self.gradient_norm
        yield "closure_evaluations", float(closure.evaluations)
        yield "epoch", float(self.progress.epoch)
        yield from learning_rates(self.phase.optimizer).items()
        yield from sparsities(objective.groups).items()

    def _objective_values(self) -> Iterator[tuple[str, Tensor]]:
        closure = self.phase.closure
        first, objective = closure.first, closure.objective
        if first is None:
            return
        yield "train/loss", first.loss
        # An optimizer that handles the penalty needs g at no step; it was evaluated if somebody looks.
        if first.penalty is not None or objective.penalty is None:
            yield "train/objective", first.objective
        if first.penalty is not None:
            yield "train/penalty", first.penalty

    def check_finite(self) -> None:
        """Check f of every step since the last check, and the objective before the last one; waits for the device.

        Raises:
            ValueError: If one is not finite.
        """
        last = self.progress.global_step - 1
        losses = self.metrics.epoch_loss.read()
        found = [("train/loss", loss, step) for step, loss in enumerate(losses, last + 1 - len(losses))]
        found += [(name, value.item(), last) for name, value in self._objective_values()]
        for name, value, step in found:
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} is {value} at global_step {step}: the run has diverged. Lower the learning rate or clip "
                    "the gradients (gradient_clip_val), and look for NaNs in the data. Older checkpoints are kept"
                )

    def publish_epoch(self) -> None:
        """Send the reductions over the epoch to the loggers."""
        self.log_metrics(self.metrics.log_epoch())

    # --------------------------------------------------------------------------------------- saving, continuing

    def state_dict(self, weights_only: bool = False) -> dict[str, Any]:
        """Return everything that `load_state_dict` needs; `framework.loop.checkpoint` lists it.

        With ``weights_only`` it is the version, the parameters and buffers, and what the module itself adds.

        Between steps this is the state to continue from. During validation it is the state before it, and after the
        end that of `mark_end`, with the module and the optimizer as they are now.

        Raises:
            RuntimeError: If a step is under way.
            ValueError: If a part could not be read again, such as an object in the state of a callback.
        """
        if self.is_in_step:
            raise RuntimeError(
                "a checkpoint was asked for within a step, which a continued run could not take again exactly: call "
                "save_checkpoint in on_train_batch_end instead, or in on_train_epoch_end"
            )
        phase = self.phase
        checkpoint: dict[str, Any] = {
            "version": __version__,
            "state_dict": self.module.state_dict(),
            **hyperparameters_state(self.module),
            **self._sources.hyperparameters_state(),
        }
        if not weights_only:
            checkpoint |= {
                "optimizer": phase.optimizer.state_dict(),
                "optimizer_class": type(phase.optimizer).__name__,
                "lr_schedulers": [config.state_dict() for config in phase.schedulers],
                "configured": self._configured,
                "fingerprint": self._fingerprint(),
                "graphs": [graphs.state_dict() for graphs in phase.graphs],
                **(self._end or self._standing()),
            }
            if self._keeps_gradients():
                named = self.module.named_parameters()
                checkpoint["gradients"] = {name: param.grad for name, param in named if param.grad is not None}
            self.hooks.call("on_save_checkpoint", checkpoint)
        else:  # the module's own may say how the parameters are to be read
            self.module.on_save_checkpoint(checkpoint)
        return {name: plain(part, f"checkpoint[{name!r}]") for name, part in checkpoint.items()}

    def _keeps_gradients(self) -> bool:
        """Tell whether a step may go on with the gradients that the one before it has left."""
        return isinstance(self.phase.step, Manual) or overrides(self.module, "optimizer_zero_grad")

    def _standing(self) -> dict[str, Any]:
        """Return how far the run has come: the part of the state that hooks and loggers move on."""
        progress = self.progress
        return {
            "progress": {**vars(progress), "epoch": progress.epochs_completed},
            "closure_evaluations": self.phase.closure.evaluations,
            "gradient_norm": None if self.gradient_norm is None else float(self.gradient_norm),
            "callbacks": {name: state for name, c in _named(self.callbacks) if (state := _callback_state(c))},
            "metrics": self.metrics.state_dict(),
            "metric_states": self._metric_states(),
            "sources": self._sources.state_dict(),
            "data": self.train_batches.state_dict(is_at=not (self._is_iterating or self.phase.iterations.cut_short)),
            "loggers": [_state_of(logger) for logger in self.loggers],
            "rng": rng_states_of(self.processes, self.generators()),
            **self._before_validation,
        }

    def _fingerprint(self) -> dict[str, int | str | None]:
        """Return what must be the same for the batches of an epoch to go on where they were interrupted."""
        return {
            **self.train_batches.fingerprint(),
            "accumulate_grad_batches": self.phase.accumulate_grad_batches,
            "precision": self.engine.precision,
        }

    def load_state_dict(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Put a run that has not started into the state of a checkpoint, or leave it as it is.

        Args:
            checkpoint: Its parts have the right form (`framework.loop.checkpoint.check`).
            path: Its name in errors.

        Raises:
            ValueError: If it is from another model or optimizer, or from the middle of an epoch of other batches.
        """
        phase, penalty = self.phase, (self.module.penalty, self.module.happy_lambda)
        schedulers = [config.state_dict() for config in phase.schedulers]
        before = copy.deepcopy((self.module.state_dict(), phase.optimizer.state_dict(), schedulers, self._standing()))
        try:
            self.hooks.call("on_load_checkpoint", checkpoint)
            self._restore(checkpoint, path)
        except Exception as error:
            self.phase = phase
            self.module.penalty, self.module.happy_lambda = penalty
            weights, optimizer, schedulers, standing = before
            self.module.load_state_dict(weights)
            phase.optimizer.load_state_dict(optimizer)
            for config, state in zip(phase.schedulers, schedulers, strict=True):
                config.load_state_dict(state)
            self._stand(standing)
            self._sources.give_back()
            if isinstance(error, ValueError) and str(path) in str(error):
                raise
            raise ValueError(f"{path} cannot be restored: {type(error).__name__}: {error}") from error
        saved = list(checkpoint["loggers"])
        for logger in self.loggers:
            own = next((i for i, one in enumerate(saved) if one["class"] == type(logger).__name__), None)
            logged = None if own is None else saved.pop(own)["state"]
            if not hasattr(logger, "load_state_dict"):
                warn_of_doubles(logger)
            elif logged is not None:
                logger.load_state_dict(logged)

    def _restore(self, checkpoint: Mapping[str, Any], path: str | Path) -> None:
        # A callback may have changed the phase.
        optimizer, schedulers = self.phase.optimizer, self.phase.schedulers
        progress = Progress(**checkpoint["progress"])
        check_weights(self.module, checkpoint["state_dict"], path)
        check_fingerprint(checkpoint["fingerprint"], self._fingerprint(), progress, path)
        if checkpoint["optimizer_class"] != type(optimizer).__name__:
            raise ValueError(
                f"{path} has the state of {checkpoint['optimizer_class']}, this run {type(optimizer).__name__}: "
                "continue with the configuration of the run that wrote it"
            )
        if len(checkpoint["lr_schedulers"]) != len(schedulers):
            raise ValueError(
                f"{path} has {len(checkpoint['lr_schedulers'])} schedulers, this run {len(schedulers)}: "
                "continue with the configuration of the run that wrote it"
            )
        check_options(checkpoint["configured"], self._configured, path)
        try:
            optimizer.load_state_dict(checkpoint["optimizer"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} does not fit the optimizer {type(optimizer).__name__}: {error}") from error
        settings, size = self.settings, self.phase.accumulate_grad_batches
        num_steps = total_steps(self.train_batches.num_batches, size, settings.max_epochs, settings.max_steps)
        for config, state in zip(schedulers, checkpoint["lr_schedulers"], strict=True):
            config.load_state_dict(state)
            check_length(config, num_steps, path)
        # Else torch warns of a scheduler that is stepped before this new optimizer, in which no step is lost.
        vars(optimizer)["_opt_called"] = progress.global_step > 0
        for loader in self.train_batches.parts():
            warn_of_hidden_state(loader, progress)
        load_weights(self.module, checkpoint["state_dict"], path)
        for graphs, state in zip(self.phase.graphs, checkpoint.get("graphs", ()), strict=False):
            graphs.load_state_dict(state)
        self._stand(checkpoint)
        if self._keeps_gradients():
            for name, param in self.module.named_parameters():
                gradient = checkpoint.get("gradients", {}).get(name)
                param.grad = None if gradient is None else gradient.to(param)

    def _stand(self, state: Mapping[str, Any]) -> None:
        """Undo `_standing`, but for the loggers."""
        self.progress = Progress(**state["progress"])
        self.next_idx = self.progress.batch_idx
        self.phase.closure.objective.evaluations = state["closure_evaluations"]
        self.gradient_norm = state["gradient_norm"]
        for name, callback in _named(self.callbacks):
            if name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][name])
        self.metrics.load_state_dict(state["metrics"])
        if self.processes is None or self.processes.rank == 0:  # they are those of all processes: one keeps them
            set_metric_states(self.module, state["metric_states"])
        self.train_batches.load_state_dict(state["data"], within_epoch=self.progress.is_within_epoch)
        set_rng_states_of(self.processes, state["rng"], self.generators())

    def _metric_states(self) -> dict[str, dict[str, Any]]:
        updated = updated_metrics(self.module)
        if self.processes is None:
            return metric_states(self.module, updated)
        names = sorted({name for names in self.processes.gather(updated) for name in names})
        return metric_states(self.module, names, together=True)


_CHANGED_BY_VALIDATION = ("callbacks", "metrics", "metric_states", "sources", "rng")


def _callback_state(callback: Callback) -> dict[str, Any]:
    """Return a callback's state.

    Raises:
        TypeError: If it is no dictionary, which could not be restored.
    """
    state = callback.state_dict()
    if not isinstance(state, dict):
        raise TypeError(
            f"{type(callback).__name__}.state_dict() returned {describe(state)}; it must return a dictionary"
        )
    return state


def _state_of(logger: Logger) -> dict[str, Any]:
    """Return a logger's state, None if it keeps none, and its class, by which a continued run knows it."""
    state = logger.state_dict() if hasattr(logger, "state_dict") else None
    return {"class": type(logger).__name__, "state": state}


def _named(callbacks: Sequence[Callback]) -> Iterator[tuple[str, Callback]]:
    """Each callback with a name that is the same in the next run: its class, numbered from the second on."""
    count: Counter[str] = Counter()
    for callback in callbacks:
        name = type(callback).__name__
        count[name] += 1
        yield name if count[name] == 1 else f"{name}-{count[name]}", callback
