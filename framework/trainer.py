"""The Trainer: fit, validate, test, predict. It owns the loop and nothing else."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from framework.callback import Callback, Hooks
from framework.callbacks import default_callbacks
from framework.loggers import Logger, make_loggers
from framework.loop import checkpoint as checkpoints
from framework.loop.batches import Batches, groups, num_groups
from framework.loop.engine import Engine
from framework.loop.evaluate import evaluate, sanity_check, validate
from framework.loop.inner_iterations import Iterations
from framework.loop.metrics import Metrics
from framework.loop.monitor import step_values
from framework.loop.progress import Progress
from framework.loop.run import running, set_up_fit, set_up_optimizer
from framework.loop.schedulers import SchedulerConfig, learning_rates
from framework.loop.settings import check_settings, parse_max_time, resolve_max_epochs
from framework.loop.validation import check_step, refuse_answer
from framework.module import Module
from framework.objective.closure import Closure

Limit = int | float | None


class Trainer:
    """Trains a `Module`. Argument names and defaults are Lightning's wherever Lightning has the argument.

    Args:
        accelerator: "auto", "cpu", "gpu", ...: passed to Fabric, as are strategy, devices, num_nodes, precision.
        strategy: "auto", "ddp", ... or a Fabric strategy.
        devices: How many devices, or which.
        num_nodes: How many machines.
        precision: "32-true", "bf16-mixed", "16-mixed", "64-true", ...
        logger: True for TensorBoard under ``default_root_dir``, False for none, a Fabric logger or several.
        callbacks: One or several. A model summary, a progress bar and a checkpoint at the end are added by default.
        fast_dev_run: True or a number of batches: try everything on that many, log and save nothing.
        max_epochs: Stop after so many epochs; -1 for no limit. Default: 1000 if nothing else limits the run.
        max_steps: Stop after so many optimizer steps; -1 for no limit.
        max_time: Stop after this time: "DD:HH:MM:SS", a `timedelta` or its arguments as a mapping.
        limit_train_batches: How many batches of an epoch (int), or which share of them (float), to train on.
        limit_val_batches: The same for validation.
        limit_test_batches: The same for `test`.
        limit_predict_batches: The same for `predict`.
        overfit_batches: Train on the same first so many batches (int), or share of them (float), in every epoch.
        check_val_every_n_epoch: Validate after every so many epochs.
        num_sanity_val_steps: Validation batches to try before training; -1 for all.
        log_every_n_steps: Log on steps 0, n, 2n, ...; the values are those at the point before the step.
        enable_checkpointing: Whether a `ModelCheckpoint` is added to the callbacks.
        enable_progress_bar: Whether a progress bar is shown.
        enable_model_summary: Whether the layers and parameter groups are printed first.
        accumulate_grad_batches: How many batches make the objective of one step; "epoch": the whole loader.
        gradient_clip_val: Clip gradients to this, for optimizers that evaluate once per step.
        gradient_clip_algorithm: "norm" (of all gradients together) or "value".
        inference_mode: Evaluate under `torch.inference_mode` rather than `torch.no_grad`.
        default_root_dir: Where logs and checkpoints go. Default: the current folder.

    Attributes:
        current_epoch: The index of the epoch under way, which is the number of those completed.
        global_step: Optimizer steps taken.
        fit_seconds: How long the last `fit` trained, validation included.
        stopped_because: Why the last `fit` ended: "max_epochs", "max_steps", "max_time", or what `stop` was told.
        interrupted: Whether a signal ended the run.
        metrics: What was logged (`Metrics`).
        fabric, module, optimizer, schedulers, closure, callbacks, loggers: Those of the run.
        train_batches, val_batches: The data as the loop reads them (`Batches`).
    """

    module: Module
    optimizer: Optimizer
    schedulers: list[SchedulerConfig]
    closure: Closure
    engine: Engine
    hooks: Hooks
    iterations: Iterations
    train_batches: Batches
    val_batches: Batches | None

    def __init__(
        self,
        *,
        accelerator: Any = "auto",
        strategy: Any = "auto",
        devices: Any = "auto",
        num_nodes: int = 1,
        precision: Any = "32-true",
        logger: bool | Logger | Sequence[Logger] = True,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        max_steps: int = -1,
        max_time: str | timedelta | Mapping[str, int] | None = None,
        limit_train_batches: Limit = None,
        limit_val_batches: Limit = None,
        limit_test_batches: Limit = None,
        limit_predict_batches: Limit = None,
        overfit_batches: int | float = 0.0,
        check_val_every_n_epoch: int = 1,
        num_sanity_val_steps: int = 2,
        log_every_n_steps: int = 50,
        enable_checkpointing: bool = True,
        enable_progress_bar: bool = True,
        enable_model_summary: bool = True,
        accumulate_grad_batches: int | str = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        inference_mode: bool = True,
        default_root_dir: str | Path | None = None,
    ) -> None:
        check_settings(locals())
        if fast_dev_run:
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = int(fast_dev_run)
            max_epochs, max_steps, num_sanity_val_steps = 1, int(fast_dev_run), 0
            logger = enable_checkpointing = False
        self.max_steps = max_steps
        self.max_time = parse_max_time(max_time)
        self.max_epochs = resolve_max_epochs(max_epochs, max_steps, self.max_time)
        self.fast_dev_run = fast_dev_run
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.limit_predict_batches = limit_predict_batches
        self.overfit_batches = overfit_batches
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = num_sanity_val_steps
        self.log_every_n_steps = log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.inference_mode = inference_mode
        self.default_root_dir = Path(default_root_dir or ".")

        self.fabric = Fabric(
            accelerator=accelerator, strategy=strategy, devices=devices, num_nodes=num_nodes, precision=precision
        )
        self.fabric.launch()
        self.loggers = make_loggers(logger, self.default_root_dir)
        self.callbacks = default_callbacks(
            callbacks,
            summary=enable_model_summary,
            progress_bar=enable_progress_bar,
            checkpointing=enable_checkpointing,
            fast_dev_run=bool(fast_dev_run),
        )
        self.metrics = Metrics()
        self.progress = Progress()
        self.should_stop = False
        self.stopped_because: str | None = None
        self.fit_seconds = 0.0
        self.sanity_checking = self.interrupted = False
        self._deadline = math.inf

    # ------------------------------------------------------------------------------------------------ training

    def fit(
        self, model: Module, train_dataloaders: Any, val_dataloaders: Any = None, ckpt_path: str | Path | None = None
    ) -> None:
        """Train a module; return when a limit is reached, a callback stops it, or at Ctrl-C or SIGTERM.

        The loop, in short (`framework.callback` says where the hooks are)::

            while no limit is reached:
                for batches in train_dataloaders:      # as many as accumulate_grad_batches says
                    closure.begin(batches)
                    optimizer.step(closure)            # zero_grad, training_step, backward, as often as it asks
                    closure.end()
                    step the schedulers of interval "step"; log on every log_every_n_steps-th step
                validate
                step the schedulers of interval "epoch"

        Args:
            model: The module to train.
            train_dataloaders: A `DataLoader`, a `TensorLoader` or any iterable of batches that can be read again.
            val_dataloaders: The same, for validation.
            ckpt_path: A checkpoint to continue from, or "last" or "best" of this trainer's `ModelCheckpoint`.

        Raises:
            ValueError: Bad input or settings that contradict each other; the message names the remedy.
            TypeError: The same, where the type is wrong.
            FileNotFoundError: There is no such checkpoint.
        """
        self.should_stop, self.stopped_because = False, None
        with running(self, model, "fit"):
            self.progress, self.metrics = Progress(), Metrics()
            self._deadline = time.monotonic() + self.max_time
            set_up_fit(self, train_dataloaders, val_dataloaders, ckpt_path)
            self.call("on_fit_start")
            sanity_check(self)
            self.call("on_train_start")
            start = time.perf_counter()
            while not self.is_over():
                self._train_epoch()
            self.fit_seconds = time.perf_counter() - start
            self.call("on_train_end")
            self.call("on_fit_end")

    def _train_epoch(self) -> None:
        """One pass over the training data, or what is left of it, and what follows an epoch."""
        hooks, closure, progress, engine = self.hooks, self.closure, self.progress, self.engine
        # Any: torch annotates the closure as returning a float, though its own optimizers take a tensor.
        optimizer: Any = engine.optimizer
        step_schedulers = [s for s in self.schedulers if s.interval == "step"]
        # A gradient scaler decides itself whether to step, and takes no closure.
        step_args = (closure,) if closure.wanted and engine.grad_scaler is None else ()
        batch_start, batch_end = hooks.on_train_batch_start, hooks.on_train_batch_end
        before_step = hooks.on_before_optimizer_step
        hooks.call("on_train_epoch_start")
        for batch_idx, next_idx, batches in groups(self.train_batches, self.accumulate_grad_batches, progress):
            self.metrics.batch = batch = batches[0] if self.accumulate_grad_batches == 1 else batches
            for hook in batch_start:
                if (answer := hook(batch, batch_idx)) is not None:
                    refuse_answer(hook, answer)

            log = progress.global_step % self.log_every_n_steps == 0
            rates = learning_rates(self.optimizer) if log else {}
            closure.begin(batches, batch_idx, log=log)
            if closure.reevaluates:
                optimizer.step(closure)
                closure.end()
            else:
                # Evaluated before the step, so that also an optimizer that ignores its closure finds gradients.
                closure()
                for hook in before_step:
                    hook(self.optimizer)
                if log or self.gradient_clip_val:
                    norm = engine.clip_gradients(self.gradient_clip_val, self.gradient_clip_algorithm, measure=log)
                optimizer.step(*step_args)
            progress.global_step += 1
            progress.batch_idx = batch_idx if self.iterations.cut_short else next_idx

            for scheduler in step_schedulers:
                if progress.global_step % scheduler.frequency == 0:
                    scheduler.step(self.metrics)
            for hook in batch_end:
                hook(closure.outputs, batch, batch_idx)
            if log:
                self._log_step(engine.gradient_norm() if closure.reevaluates else norm, rates)
            if self.is_over():
                break
        else:
            if progress.batch_idx == 0:
                raise ValueError(
                    "train_dataloaders yielded no batch: is it empty, or a generator that was read before?"
                )
            progress.batch_idx = self.train_batches.num_batches
        if not self.interrupted:
            self._end_epoch(complete=progress.batch_idx >= self.train_batches.num_batches)

    def _log_step(self, gradient_norm: Tensor | None, rates: dict[str, float]) -> None:
        """Send the values of the step just taken to the loggers. Synchronizes with the device."""
        assert gradient_norm is not None
        values = step_values(self.closure, self.global_step - 1) | rates
        values |= {"grad_norm": float(gradient_norm), "epoch": float(self.current_epoch)}
        self.log_metrics(self.metrics.log_step(values), self.global_step - 1)

    def _end_epoch(self, *, complete: bool) -> None:
        """Validate, publish the epoch's means, step the schedulers of interval "epoch"."""
        epoch = self.current_epoch + 1
        if self.val_batches is not None and epoch % self.check_val_every_n_epoch == 0:
            validate(self)
            if self.interrupted:
                return  # half a validation decides nothing: a resumed run makes it again
        self.publish_epoch()
        if complete:
            for scheduler in self.schedulers:
                if scheduler.interval == "epoch" and epoch % scheduler.frequency == 0:
                    scheduler.step(self.metrics)
            self.progress.epochs_completed, self.progress.batch_idx = epoch, 0
        self.call("on_train_epoch_end")
        self.progress.epoch = self.progress.epochs_completed

    def publish_epoch(self) -> None:
        self.log_metrics(self.metrics.log_epoch())

    def is_over(self) -> bool:
        """Whether a limit is reached or somebody asked to stop."""
        if self.stopped_because is None:
            if self.should_stop:
                self.stopped_because = "should_stop"
            elif 0 <= self.max_steps <= self.progress.global_step:
                self.stopped_because = "max_steps"
            elif 0 <= self.max_epochs <= self.progress.epoch:
                self.stopped_because = "max_epochs"
            elif time.monotonic() >= self._deadline:
                self.stopped_because = "max_time"
        return self.stopped_because is not None

    def stop(self, reason: str) -> None:
        """End training after the step under way; ``reason`` becomes `stopped_because`."""
        self.should_stop, self.stopped_because = True, self.stopped_because or reason

    def use_optimizer(self, configured: Any, *, accumulate_grad_batches: int | str | None = None) -> None:
        """Go on with another optimizer; to be called between epochs, by a callback.

        Steps and evaluations keep counting. A run that is resumed must call this before the checkpoint is restored, in
        `Callback.on_load_checkpoint`: a checkpoint fits only the class of optimizer that wrote it.

        Args:
            configured: An optimizer, or any other form that `Module.configure_optimizers` may return.
            accumulate_grad_batches: From now on; None to leave it.

        Raises:
            ValueError: The optimizer does not fit the module or the trainer's settings.
        """
        if accumulate_grad_batches is not None:
            check_settings({"accumulate_grad_batches": accumulate_grad_batches})
            self.accumulate_grad_batches = accumulate_grad_batches
        set_up_optimizer(self, configured, evaluations=self.closure.evaluations)

    def interrupt(self, signum: signal.Signals) -> None:
        """End training after the step under way, because of a signal."""
        self.interrupted = True
        self.stop(f"interrupted by {signum.name}")

    # ---------------------------------------------------------------------------------------------- evaluation

    def validate(self, model: Module, dataloaders: Any, ckpt_path: str | Path | None = None) -> list[dict[str, float]]:
        """Run `validation_step` over the data; return what was logged, in a list of one mapping."""
        return [self._run_evaluation(model, dataloaders, "validation", self.limit_val_batches, ckpt_path)[0]]

    def test(self, model: Module, dataloaders: Any, ckpt_path: str | Path | None = None) -> list[dict[str, float]]:
        """Run `test_step` over the data; return what was logged, in a list of one mapping."""
        return [self._run_evaluation(model, dataloaders, "test", self.limit_test_batches, ckpt_path)[0]]

    def predict(self, model: Module, dataloaders: Any, ckpt_path: str | Path | None = None) -> list[Any]:
        """Run `predict_step` over the data; return its results, one per batch."""
        return self._run_evaluation(model, dataloaders, "predict", self.limit_predict_batches, ckpt_path)[1]

    def _run_evaluation(
        self, model: Module, dataloaders: Any, stage: str, limit: Limit, ckpt_path: str | Path | None
    ) -> tuple[dict[str, float], list[Any]]:
        name = "validate" if stage == "validation" else stage
        with running(self, model, name):
            check_step(model, stage, f"{name} was called")
            self.engine = Engine(self.fabric, model)
            if ckpt_path is not None:
                path = checkpoints.resolve(self, ckpt_path)
                checkpoints.load_weights(model, checkpoints.load(path)["state_dict"], path)
            batches = Batches(dataloaders, limit=limit, device=self.fabric.device, name="dataloaders")
            return evaluate(self, batches, stage)

    def call(self, hook: str, *args: Any) -> None:
        """Fire a hook of all callbacks and of the module."""
        self.hooks.call(hook, *args)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write everything that `fit` needs to continue from here as if it had not been interrupted."""
        if self.fabric.is_global_zero:
            checkpoints.save(checkpoints.collect(self), path)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Send values to all loggers; ``step`` defaults to `global_step`."""
        if values:
            for logger in self.loggers:
                logger.log_metrics(dict(values), self.global_step if step is None else step)

    # ------------------------------------------------------------------------------------------------ questions

    @property
    def current_epoch(self) -> int:
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        return self.progress.global_step

    @property
    def closure_evaluations(self) -> int:
        """How many times the objective was evaluated in this run, with and without gradients."""
        return self.closure.evaluations

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The last value of every metric."""
        return self.metrics.callback_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The metrics that the progress bar shows; another mapping when there is news."""
        return self.metrics.progress_bar_metrics

    @property
    def estimated_stepping_batches(self) -> float:
        """How many optimizer steps the run will take, if nothing stops it: what a one-cycle schedule needs to know."""
        steps = num_groups(self.train_batches, self.accumulate_grad_batches) * self.max_epochs
        return min(limit if limit >= 0 else math.inf for limit in (steps, self.max_steps))

    @property
    def log_dir(self) -> Path:
        """The folder of the first logger that has one, else ``default_root_dir``."""
        directories = (getattr(logger, "log_dir", None) for logger in self.loggers)
        return next((Path(directory) for directory in directories if directory), self.default_root_dir)
