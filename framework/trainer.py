"""The Trainer: its settings, fit, validate, test, predict, and questions about the run."""

from __future__ import annotations

import dataclasses
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.optim import Optimizer

from framework.answers import Answers
from framework.callback import Callback
from framework.callbacks import ModelCheckpoint, default_callbacks
from framework.fabric import connect
from framework.loggers import CSVLogger, Logger, TensorBoardLogger, make_loggers
from framework.loop import checkpoint as checkpoints
from framework.loop.batches import Batches, cut_each, named_loaders, read_train_data, read_val_data, total_steps
from framework.loop.engine import Engine
from framework.loop.evaluate import evaluate
from framework.loop.fit import fit
from framework.loop.flags import torch_flags
from framework.loop.hooks import Hooks, each
from framework.loop.manual import Manual
from framework.loop.metrics import Metrics
from framework.loop.overrides import check_loader_index, check_overrides
from framework.loop.processes import Processes, check_connected, check_strategy
from framework.loop.progress import Progress
from framework.loop.run import FitRun, Run, Stop
from framework.loop.schedulers import SchedulerConfig
from framework.loop.settings import (
    Limit,
    Settings,
    check_barebones,
    check_plugins,
    check_settings,
    parse_max_time,
    resolve_max_epochs,
)
from framework.loop.signals import on_signals
from framework.loop.sources import DataModule, Sources, check_datamodule, check_reload, is_datamodule, prepare_data
from framework.loop.validation import (
    as_callbacks,
    check_checkpoints,
    check_initialized,
    check_module,
    check_step,
    is_lightnings,
    with_callbacks_of,
)
from framework.module import Module
from framework.objective.closure import Closure


class Trainer(Answers):
    """A trainer of a `Module`. Argument names and defaults are Lightning's wherever Lightning has the argument.

    Args:
        accelerator: "auto", "cpu", "gpu", ...: passed to Fabric, as are strategy, devices, num_nodes and precision.
        strategy: "auto", "ddp", ... or a Fabric strategy.
        devices: How many devices, or which ones.
        num_nodes: How many machines.
        precision: "32-true", "bf16-mixed", "16-mixed", "64-true", ...
        logger: True for TensorBoard under ``default_root_dir``, False for none, or one or several Fabric loggers.
        callbacks: One or several. A model summary, a progress bar and a checkpoint at the end are added by default.
        fast_dev_run: True or a number of batches: try everything on that many batches; log and save nothing.
        max_epochs: Stop after this many epochs; -1 for no limit. Default: 1000 if nothing else limits the run.
        min_epochs: Train for so many epochs at least: only a limit on epochs or steps, or a signal, ends a run before.
        max_steps: Stop after this many optimizer steps; -1 for no limit.
        min_steps: Train for so many optimizer steps at least; as ``min_epochs``.
        max_time: Stop after this time: "DD:HH:MM:SS", a `timedelta` or its arguments as a mapping.
        limit_train_batches: How many batches per epoch (int), or what fraction of them (float), to train on.
        limit_val_batches: The same for validation.
        limit_test_batches: The same for `test`.
        limit_predict_batches: The same for `predict`.
        overfit_batches: Train on the same first batches in every epoch: this many (int) or this fraction (float).
        val_check_interval: Validate after every so many training batches (int), or this fraction of an epoch (float),
            at the end of the group of batches that makes up a step. 1.0 is the end of the epoch.
        check_val_every_n_epoch: Validate in every nth epoch. With None, ``val_check_interval`` counts batches over
            epochs.
        reload_dataloaders_every_n_epochs: Ask the datamodule, or the module, for its loaders again before every so
            many-th epoch; 0 for never.
        num_sanity_val_steps: Number of validation batches to try before training, unless it is continued; -1 for all.
        log_every_n_steps: Log on steps 0, n, 2n, ...; the values are those at the point before the step.
        enable_checkpointing: Whether to add a `ModelCheckpoint` to the callbacks.
        enable_progress_bar: Whether to show a progress bar.
        enable_model_summary: Whether to print the layers and parameter groups first.
        accumulate_grad_batches: How many batches make up the objective of one step; "epoch" for the whole loader.
        gradient_clip_val: Clip gradients to this value, for optimizers that evaluate once per step.
        gradient_clip_algorithm: "norm" (of all gradients together) or "value".
        deterministic: Whether torch's operations must be deterministic during a run; "warn" only warns of others.
        benchmark: Whether cuDNN tries which algorithm is the fastest; for inputs of one size.
        inference_mode: Validate, test and predict under `torch.inference_mode` instead of `torch.no_grad`; validation
            within `fit` is always under the latter.
        use_distributed_sampler: With several processes, share the batches of every loader. If False, each process reads
            its loaders whole, which must hold its own share, and as many batches as those of the others.
        profiler: "simple" for a table of where the time of a run goes, "pytorch" for `torch.profiler` with a trace
            in the folder of the logger, or a profiler of Lightning's. Its work is part of what it measures.
        detect_anomaly: Make a NaN in a backward pass an error that says where it came from. Slow.
        barebones: Leave out what costs time beside training: logs, checkpoints, progress bar, summary, sanity check.
        plugins: Fabric's: a `lightning.fabric.plugins.Precision` or a cluster environment.
        sync_batchnorm: With several processes, synchronize the statistics of batch norm (on GPUs).
        enable_autolog_hparams: Whether to log what `Module.save_hyperparameters` kept.
        default_root_dir: Where logs and checkpoints go. Default: the current folder.
        compile: "step" makes one graph of a whole step, from forward to the optimizer, where the optimizer evaluates
            once; "model", and "step" for all other optimizers, one of each evaluation, forward and backward.
            `framework.loop.compiled` says what cannot be one, and then runs eagerly, with a warning.

    Attributes:
        fabric: What places module and data: a Fabric, or where one device at full precision is asked for, what answers
            as that does, until something else is asked of it, without importing it.
        callbacks, loggers: Those of the next run.
        num_training_batches: The number of batches per epoch in the last fit; infinite for a stream without length.
        datamodule: That of the last run; None if there was none.
        profiler: That of the last run; None if there was none.
    """

    def __init__(
        self,
        *,
        accelerator: Any = "auto",
        strategy: Any = "auto",
        devices: Any = "auto",
        num_nodes: int = 1,
        precision: Any = None,
        logger: bool | Logger | Sequence[Logger] | None = None,
        callbacks: Callback | Sequence[Callback] | None = None,
        fast_dev_run: int | bool = False,
        max_epochs: int | None = None,
        min_epochs: int | None = None,
        max_steps: int = -1,
        min_steps: int | None = None,
        max_time: str | timedelta | Mapping[str, int] | None = None,
        limit_train_batches: Limit = None,
        limit_val_batches: Limit = None,
        limit_test_batches: Limit = None,
        limit_predict_batches: Limit = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | None = None,
        check_val_every_n_epoch: int | None = 1,
        reload_dataloaders_every_n_epochs: int = 0,
        num_sanity_val_steps: int | None = None,
        log_every_n_steps: int | None = None,
        enable_checkpointing: bool | None = None,
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        accumulate_grad_batches: int | str = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        deterministic: bool | str | None = None,
        benchmark: bool | None = None,
        inference_mode: bool = True,
        use_distributed_sampler: bool = True,
        profiler: Any = None,
        detect_anomaly: bool = False,
        barebones: bool = False,
        plugins: Any = None,
        sync_batchnorm: bool = False,
        default_root_dir: str | Path | None = None,
        enable_autolog_hparams: bool = True,
        compile: str | None = None,
    ) -> None:
        if barebones:
            check_barebones(locals())
        logger = not barebones if logger is None else logger
        enable_checkpointing = not barebones if enable_checkpointing is None else enable_checkpointing
        enable_progress_bar = not barebones if enable_progress_bar is None else enable_progress_bar
        enable_model_summary = not barebones if enable_model_summary is None else enable_model_summary
        num_sanity_val_steps = (0 if barebones else 2) if num_sanity_val_steps is None else num_sanity_val_steps
        log_every_n_steps = 50 if log_every_n_steps is None else log_every_n_steps
        val_check_interval = 1.0 if val_check_interval is None else val_check_interval
        check_settings(locals())
        check_plugins(plugins)
        check_strategy(strategy)
        if fast_dev_run:
            limit_train_batches = limit_val_batches = limit_test_batches = limit_predict_batches = int(fast_dev_run)
            max_epochs, max_steps, num_sanity_val_steps = 1, int(fast_dev_run), 0
            min_epochs = min_steps = None
            val_check_interval, check_val_every_n_epoch = 1.0, 1
            logger = enable_checkpointing = False
        self.max_steps = max_steps
        self.min_epochs = min_epochs
        self.min_steps = min_steps
        self.max_time = parse_max_time(max_time)
        self.max_epochs = resolve_max_epochs(max_epochs, max_steps, self.max_time)
        self.fast_dev_run = fast_dev_run
        self.limit_train_batches = limit_train_batches
        self.limit_val_batches = limit_val_batches
        self.limit_test_batches = limit_test_batches
        self.limit_predict_batches = limit_predict_batches
        self.overfit_batches = overfit_batches
        self.val_check_interval = val_check_interval
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.num_sanity_val_steps = num_sanity_val_steps
        self.log_every_n_steps = log_every_n_steps
        self.accumulate_grad_batches = accumulate_grad_batches
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.deterministic = deterministic
        self.benchmark = benchmark
        self.detect_anomaly = detect_anomaly
        self.inference_mode = inference_mode
        self.barebones = barebones
        self.sync_batchnorm = sync_batchnorm
        self.enable_autolog_hparams = enable_autolog_hparams
        self.compile = compile
        self.default_root_dir = Path(default_root_dir or ".")

        self.fabric = connect(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
            plugins=plugins,
        )
        check_connected(self.fabric)
        self.fabric.launch()
        self._processes = Processes(self.fabric, use_distributed_sampler) if self.fabric.world_size > 1 else None
        self.loggers = make_loggers(logger, self.default_root_dir)
        for each_logger in self.loggers:
            if isinstance(each_logger, CSVLogger | TensorBoardLogger) and self._processes is not None:
                each_logger.go_on_in(self._processes.share(each_logger.version))
        self.callbacks = default_callbacks(
            as_callbacks(callbacks),
            summary=enable_model_summary,
            progress_bar=enable_progress_bar,
            checkpointing=enable_checkpointing,
            fast_dev_run=bool(fast_dev_run),
        )
        self.profiler: Any = None
        self._profiler = profiler
        if profiler is not None:
            from framework.profiler import make_profiler

            make_profiler(profiler, None)  # refuses what is wrong
        self.num_training_batches = 0.0
        self.datamodule: Any = None
        self._stop = Stop()
        self._start = Progress()
        self._run: Run | None = None
        self._fit: FitRun | None = None
        self._under_way: str | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; refuse a setting during a run, which keeps the settings it started with."""
        if name in _SETTINGS and getattr(self, "_under_way", None):
            raise AttributeError(
                f"trainer.{name} was set during {self._under_way}, which keeps the value it started with: set it "
                "before the run. (stop() ends a run, use_optimizer() switches its optimizer)"
            )
        super().__setattr__(name, value)

    def _settings(self) -> Settings:
        return Settings(**{name: getattr(self, name) for name in _SETTINGS})

    # ---------------------------------------------------------------------------------------------------- runs

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | Path | None = None,
    ) -> None:
        """Train a module; return when a limit is reached, when a callback stops it, or on Ctrl-C.

        The loop, in short (`framework.callback` says where the hooks are, `framework/loop/fit.py` is the loop itself):

            while no limit is reached:
                for batches in train_dataloaders:      # as many as accumulate_grad_batches says
                    optimizer.step(closure)            # zero_grad, training_step, backward, as often as it asks
                    step the schedulers with interval "step"; log every log_every_n_steps steps
                validate
                step the schedulers with interval "epoch"

        Args:
            model: The module to train: a `Module`, or a `LightningModule` as it is.
            train_dataloaders: A `DataLoader`, a `TensorLoader` or any iterable of batches that can be read again; or
                several loaders in a (nested) list or mapping: then each batch is such a collection, and an epoch is as
                long as the longest (`lightning.pytorch.utilities.CombinedLoader`). Default: those that
                ``datamodule.train_dataloader()`` returns, or ``model.train_dataloader()``.
            val_dataloaders: The same, for validation; several are read one after the other.
            datamodule: A `LightningDataModule`, or any object with some of its methods.
            ckpt_path: A checkpoint to continue from; or "last" for the newest intact one on disk in the folders of this
                trainer's `ModelCheckpoint`, whichever process wrote it; or "best" for the best one of its last `fit`,
                or ``best.ckpt`` on disk. If the loggers number their folders (``version_0``, ...), and the new one has
                none, it is the newest of all versions, and the loggers go on in that folder. If there is no file for
                "last", training starts at the beginning.

        Raises:
            ValueError: If an input is invalid or settings contradict each other; the message says how to fix it.
            TypeError: If an input has the wrong type.
            FileNotFoundError: If there is no such checkpoint.
            SystemExit: With 143, after a SIGTERM, when the step under way is done and all is saved and closed.
        """
        if datamodule is None and is_datamodule(train_dataloaders):
            datamodule, train_dataloaders = train_dataloaders, None
        given = {"train": train_dataloaders, "validation": val_dataloaders}
        with self._running(model, "fit", datamodule) as hooks:
            settings, progress = self._settings(), lambda: self.progress
            sources = Sources(model, datamodule, given, progress, self._processes)
            check_reload(sources, settings.reload_dataloaders_every_n_epochs)
            check_initialized(model)
            found = None if ckpt_path is None else self._find_checkpoint(ckpt_path, stage="fit")
            writers = [callback for callback in self.callbacks if isinstance(callback, ModelCheckpoint)]
            check_checkpoints(writers, self.log_dir / "checkpoints")
            if self._processes is not None:
                self._processes.part_random_streams()

            def read_train() -> Batches:
                batches = read_train_data(settings, sources, self.fabric.device, self._processes)
                batches.profiler = self.profiler
                self.num_training_batches = batches.num_batches
                return batches

            def read_val() -> list[Batches]:
                loaders = read_val_data(settings, model, sources, self.fabric.device, self._processes)
                for batches in loaders:
                    batches.profiler = self.profiler
                if loaders:
                    check_loader_index(model, self.callbacks, "validation", len(loaders))
                return loaders

            engine = Engine(self.fabric, model, self.profiler)
            if found is not None:
                sources.load_state_dict(found[1]["sources"])
            run = FitRun(
                settings,
                engine,
                model,
                hooks,
                self.loggers,
                self._stop,
                sources=sources,
                read_train=read_train,
                read_val=read_val,
                configure=model.configure_optimizers,
                callbacks=self.callbacks,
                processes=self._processes,
            )
            self._run = self._fit = run
            if found is not None:
                run.load_state_dict(found[1], found[0])
            try:
                with run.metrics.collecting("train"):
                    fit(run)
            finally:
                run.phase.iterations.release()
                run.due = None  # a hook has failed before it: nobody is left to do it

    def validate(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
    ) -> list[dict[str, float]]:
        """Run `validation_step` over the data; return what was logged, one mapping for each loader.

        Args:
            model: The module. Default: that of the last run, with the weights of the best checkpoint if there is one.
            dataloaders: One loader or several. Default: those of the datamodule, or of the module.
            ckpt_path: A checkpoint with the weights to use; or "best" or "last", as in `fit`.
            verbose: Print what is returned.
            datamodule: Where the loaders come from.
        """
        values, _ = self._evaluate(model, dataloaders, "validation", self.limit_val_batches, ckpt_path, datamodule)
        self._print_values(values, "validate" if verbose else None)
        return values

    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: Any = None,
    ) -> list[dict[str, float]]:
        """Run `test_step` over the data; return what was logged, one mapping for each loader; see `validate`."""
        values, _ = self._evaluate(model, dataloaders, "test", self.limit_test_batches, ckpt_path, datamodule)
        self._print_values(values, "test" if verbose else None)
        return values

    def predict(
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
    ) -> Any:
        """Run `predict_step` over the data; return its results, one for each batch; of several loaders, a list each.

        With ``return_predictions=False`` nothing is kept, and None is returned; the other arguments are those of
        `validate`.
        """
        keeps = return_predictions is not False
        _, outputs = self._evaluate(
            model, dataloaders, "predict", self.limit_predict_batches, ckpt_path, datamodule, keeps_outputs=keeps
        )
        if not keeps:
            return None
        return outputs if len(outputs) > 1 else outputs[0]

    def _print_values(self, values: list[dict[str, float]], stage: str | None) -> None:
        if stage is None or not any(values):
            return
        width = max(len(name) for of_loader in values for name in of_loader)
        for index, of_loader in enumerate(values):
            self.print(stage + (f", loader {index}" if len(values) > 1 else ""))
            for name, value in of_loader.items():
                self.print(f"    {name:<{width}}  {value:.6g}")

    def _evaluate(
        self,
        model: Any,
        dataloaders: Any,
        stage: str,
        limit: Limit,
        ckpt_path: str | Path | None,
        datamodule: Any,
        *,
        keeps_outputs: bool = False,
    ) -> tuple[list[dict[str, float]], list[list[Any]]]:
        name = "validate" if stage == "validation" else stage
        if datamodule is None and is_datamodule(dataloaders):
            datamodule, dataloaders = dataloaders, None
        if model is None:
            model = self._last_run(f"{name}()").module
            if ckpt_path is None and any(writer.best_model_path for writer in self.checkpoint_callbacks):
                warnings.warn(
                    f"{name}() without a model takes the best one: pass ckpt_path='best' to say so, or pass "
                    "trainer.model for the one as it is now",
                    stacklevel=3,
                )
                ckpt_path = "best"
        with self._running(model, name, datamodule) as hooks:
            check_step(model, stage, f"{name} was called")
            sources = Sources(model, datamodule, {stage: dataloaders}, lambda: self.progress, self._processes)
            engine, progress = Engine(self.fabric, model, self.profiler), self.progress
            run = self._run = Run(
                self._settings(), engine, model, hooks, self.loggers, self._stop, progress, self._processes
            )
            if found := None if ckpt_path is None else self._find_checkpoint(ckpt_path, stage=name):
                model.on_load_checkpoint(found[1])
                checkpoints.load_weights(model, found[1]["state_dict"], found[0])
            if self._processes is not None:
                self._processes.synchronize(model)
                self._processes.part_random_streams()
            named = named_loaders(sources.needed_loaders(stage, name), "dataloaders")
            run.data[stage] = cut_each(named, limit, sources, engine.device, self._processes)
            for batches in run.data[stage]:
                batches.profiler = self.profiler
            check_loader_index(model, self.callbacks, stage, len(run.data[stage]))
            values, outputs = evaluate(run, stage, keeps_outputs=keeps_outputs)
            if self._processes is not None:
                self._stop.agree(0)  # a signal to one of them ends all
            return [{} for _ in outputs] if values is None else values, outputs

    @contextmanager
    def _running(self, module: Any, stage: str, datamodule: Any = None) -> Iterator[Hooks]:
        """Frame a run: handle signals, fire the first and last hooks, and close the loggers whatever happens.

        The first error is the one that is raised; what goes wrong after it is noted on it.

        Raises:
            SystemExit: With 143, after a SIGTERM, when all is saved and closed.
        """
        if _is_unadapted(module):
            with _adapted(module), self._running(module, stage, datamodule) as hooks:
                yield hooks
            return
        check_module(module)
        if datamodule is not None:
            check_datamodule(datamodule)
        self.callbacks = with_callbacks_of(module, self.callbacks)
        check_overrides(module, self.callbacks)
        check_connected(self.fabric)
        if self._under_way is not None:
            raise RuntimeError(
                f"Trainer.{stage} was called during {self._under_way}: wait until it ends, or make another Trainer"
            )
        self.datamodule = datamodule
        callbacks = self.callbacks if datamodule is None else [DataModule(datamodule, self), *self.callbacks]
        hooks = Hooks(self, module, callbacks, *self._begin_profiling(stage))
        outer, parts = module._trainer, [part for part in module.modules() if isinstance(part, Module)]
        for part in parts:
            part._trainer = self
        self._stop, self._run = Stop(processes=self._processes), None
        if stage == "fit":
            self._fit, self._start = None, Progress()
        error: BaseException | None = None
        self._under_way = stage
        try:
            if self.sync_batchnorm and self._processes is not None and self.fabric.device.type == "cuda":
                SyncBatchNorm.convert_sync_batchnorm(module)
            with (
                on_signals(lambda number: self._stop.interrupt(number.name)),
                torch_flags(self.deterministic, self.benchmark, self.detect_anomaly),
            ):
                prepare_data(module, datamodule, self.fabric)
                hooks.call("setup", stage)
                module.configure_model()
                yield hooks
        except BaseException as raised:
            if self._processes is not None:
                raised = self._processes.fail(raised)
            error = each([partial(listener, raised) for listener in hooks.on_exception], after=raised)
        status = "success" if error is None else "failed"
        ends = [partial(listener, stage) for listener in hooks.teardown]
        ends += [partial(logger.finalize, status) for logger in self.loggers]
        if self.profiler is not None:
            from framework.profiler import end

            folder = self.log_dir if self.loggers and self.is_global_zero else None
            ends.append(partial(end, self.profiler, self._profiler, stage, folder, self.print))
        error = each(ends, after=error)
        self._under_way = None
        if self._processes is not None:
            self._processes.join_random_streams()
        if outer is not None and outer._under_way is not None:
            for part in parts:
                part._trainer = outer  # a run of another trainer within its run is over
        if error is not None:
            raise error
        if self._stop.interrupted_by == "SIGTERM":
            raise SystemExit(128 + signal.SIGTERM)

    def _begin_profiling(self, stage: str) -> tuple[Any, ...]:
        """Make the profiler of a run, if there is one; return what times the calls of hooks."""
        if self._profiler is None:
            return ()
        from framework.profiler import begin, make_profiler, timed

        self.profiler = make_profiler(self._profiler, self.log_dir if self.loggers else None)
        begin(self.profiler, stage, self.global_rank, self.log_dir)
        return (partial(timed, self.profiler),)

    # ---------------------------------------------------------------------------------------- during a run

    @property
    def should_stop(self) -> bool:
        """Whether the run has been asked to end after the current step; set it to True to ask."""
        return self._stop.reason is not None or self._stop.request is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            self._stop.ask("should_stop")
        elif self.should_stop:
            raise ValueError("should_stop=False: a run that was asked to stop cannot continue; call fit again")

    def stop(self, reason: str) -> None:
        """End training after the current step; ``reason`` becomes `stopped_because`."""
        self._stop.ask(reason)

    def use_optimizer(self, configured: Any, *, accumulate_grad_batches: int | str | None = None) -> None:
        """Continue with another optimizer. A callback may call this between epochs.

        Steps and evaluations keep counting. A resumed run must call this before the checkpoint is restored, in
        `Callback.on_load_checkpoint`: a checkpoint fits only the class of optimizer that wrote it.

        Args:
            configured: An optimizer, or any other form that `Module.configure_optimizers` may return.
            accumulate_grad_batches: The setting from now on; None to keep it.

        Raises:
            ValueError: If the optimizer does not fit the module or the trainer's settings.
        """
        self._last_fit("use_optimizer").use_optimizer(configured, accumulate_grad_batches)

    def stationarity_gap(self) -> float:
        """Compute how far the parameters are from a stationary (KKT) point of f + g on all the training data.

        See `framework.optim.stationarity_gap`. This counts as one closure evaluation and does not change gradients,
        buffers or random draws. A callback may call it between steps.
        """
        run = self._last_fit("stationarity_gap")
        with _adapted(run.module):
            return run.stationarity_gap()

    def save_checkpoint(
        self, path: str | Path, weights_only: bool = False, *, checkpoint: Mapping[str, Any] | None = None
    ) -> None:
        """Write everything that `fit` needs to continue from here as if it had not been interrupted.

        With several processes all must call this; rank zero writes.

        Called in ``on_train_batch_end`` or ``on_train_epoch_end``, it writes the file when these hooks have been called
        on everybody and what they logged is sent; from a callback with `Callback.after_module`, at once. During
        validation the file holds the state before it, with which a continued run validates again.

        Args:
            path: The file.
            weights_only: Write the parameters and buffers alone: enough for `validate`, `test` and `predict`.
            checkpoint: What `dump_checkpoint` returned at an earlier moment; default: the state now.

        Raises:
            ValueError: If the objective is not finite: an older checkpoint is better than a diverged one.
            RuntimeError: If a step is under way.
            OSError: If the file cannot be written; what was there is as it was.
        """
        run = self._last_fit("save_checkpoint")
        if checkpoint is None:
            with _adapted(run.module):
                run.save(path, weights_only)
        elif self.fabric.is_global_zero:
            checkpoints.save(checkpoint, path)

    def dump_checkpoint(self, weights_only: bool = False) -> dict[str, Any]:
        """Return what `save_checkpoint` writes.

        Raises:
            ValueError: If the objective is not finite.
            RuntimeError: If a step is under way.
        """
        run = self._last_fit("dump_checkpoint")
        with _adapted(run.module):
            run.check_finite()
            return run.state_dict(weights_only)

    def _find_checkpoint(self, ckpt_path: str | Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint that a call of `fit` or the like names, and what it holds.

        Of several processes, rank zero looks for it.
        """
        if self._processes is not None and self._processes.rank > 0:
            path = self._processes.share(None)
            return None if path is None else (path, checkpoints.load(path, to_continue=stage == "fit"))
        found = self._look_for_checkpoint(ckpt_path, stage)
        if self._processes is not None:
            self._processes.share(None if found is None else found[0])
        return found

    def _look_for_checkpoint(self, ckpt_path: str | Path, stage: str) -> tuple[Path, dict[str, Any]] | None:
        to_continue = stage == "fit"
        if ckpt_path not in ("last", "best"):
            return Path(ckpt_path), checkpoints.load(ckpt_path, to_continue=to_continue)
        writers = [callback for callback in self.callbacks if isinstance(callback, ModelCheckpoint)]
        if ckpt_path == "best":
            writers = [writer for writer in writers if writer.monitor is not None]
            if len(writers) > 1:
                monitors = " and ".join(repr(writer.monitor) for writer in writers)
                raise ValueError(f"ckpt_path='best' is that of {monitors}: pass the path of one")
            if writers and Path(best := writers[0].best_model_path).is_file():
                return Path(best), checkpoints.load(best, to_continue=to_continue)
            names = {"best.ckpt"}
        else:
            names = {*checkpoints.NAMES, *(name for writer in writers for name in writer.files)}
        folders = [writer.folder(self) for writer in writers] or [self.log_dir / "checkpoints"]
        found = checkpoints.newest(folders, names, to_continue=to_continue)
        if found is None and self.log_dir / "checkpoints" in folders:
            found = checkpoints.newest(
                self.log_dir.parent.glob("version_*/checkpoints"), names, to_continue=to_continue
            )
            version = found[0].parents[1].name.removeprefix("version_") if found else ""
            if stage == "fit" and version.isdigit():
                for logger in self.loggers:
                    if isinstance(logger, CSVLogger | TensorBoardLogger):
                        logger.go_on_in(int(version))
        if found is None and (stage, ckpt_path) == ("fit", "last"):
            warnings.warn(
                f"ckpt_path='last', but there is no checkpoint in {folders[0]}: training starts from the beginning",
                stacklevel=5,
            )
        elif found is None:
            raise ValueError(
                f"ckpt_path={ckpt_path!r}, but there is no such checkpoint in {folders[0]}: pass the path of one"
            )
        return found

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do what `Module.manual_backward` says."""
        step = self._last_fit("manual_backward").phase.step
        assert isinstance(step, Manual)
        step.backward(loss, *args, **kwargs)

    def clock(self) -> float:
        """Return a time in seconds, for decisions in a fit that all processes take alike: the clock of rank zero."""
        return self._last_fit("clock").clock()

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Send values to all loggers; ``step`` defaults to `global_step`."""
        self._last_run("log_metrics").log_metrics(values, step)

    # ----------------------------------------------------------------------- questions, also after the run

    def _last_run(self, question: str) -> Run:
        if self._run is None:
            raise RuntimeError(f"trainer.{question}: nothing has run yet; call fit, validate, test or predict first")
        return self._run

    def _last_fit(self, question: str) -> FitRun:
        if self._fit is None:
            raise RuntimeError(f"trainer.{question}: no fit has begun yet, or its optimizer is not configured yet")
        return self._fit

    @property
    def module(self) -> Module:
        """The module of the last run."""
        return self._last_run("module").module

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the last fit."""
        return self._last_fit("optimizer").phase.optimizer

    @property
    def schedulers(self) -> list[SchedulerConfig]:
        """The schedulers of the last fit."""
        return self._last_fit("schedulers").phase.schedulers

    @property
    def closure(self) -> Closure:
        """The closure that the steps of the last fit evaluate."""
        return self._last_fit("closure").phase.closure

    @property
    def progress(self) -> Progress:
        """How far the last fit has come; all zeros before the first."""
        return self._start if self._fit is None else self._fit.progress

    @property
    def current_epoch(self) -> int:
        """The index of the current epoch, which is the number of epochs completed before it."""
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        """The number of optimizer steps taken by the last fit."""
        return self.progress.global_step

    @property
    def closure_evaluations(self) -> int:
        """How many times the last fit evaluated its objective, with and without gradients."""
        return 0 if self._fit is None else self._fit.phase.closure.evaluations

    @property
    def fit_seconds(self) -> float:
        """How many seconds the last fit trained, including validation; 0 until it ends."""
        return 0.0 if self._fit is None else self._fit.seconds

    @property
    def stopped_because(self) -> str | None:
        """Why the last fit ended: "max_epochs", "max_steps", "max_time", or the reason passed to `stop`."""
        return None if self._fit is None else self._fit.stop.reason

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended the last run."""
        return self._stop.interrupted

    @property
    def metrics(self) -> Metrics:
        """The metrics logged in the last run."""
        return self._last_run("metrics").metrics

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The last value of every metric, as of now. Waits for the device."""
        return {} if self._run is None else self._run.metrics.callback_metrics

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The last values of the metrics that the progress bar shows. Waits for the device."""
        return {} if self._run is None else self._run.metrics.progress_bar_metrics

    @property
    def estimated_stepping_batches(self) -> float:
        """How many optimizer steps the run will take unless something stops it, as a one-cycle schedule needs."""
        return total_steps(self.num_training_batches, self.accumulate_grad_batches, self.max_epochs, self.max_steps)

    @property
    def log_dir(self) -> Path:
        """The folder of the first logger that has one, otherwise ``default_root_dir``."""
        directories = (getattr(logger, "log_dir", None) for logger in self.loggers)
        return next((Path(directory) for directory in directories if directory), self.default_root_dir)


def _is_unadapted(module: Any) -> bool:
    return is_lightnings(type(module), "LightningModule") and not isinstance(module, Module)


def _adapted(module: Any) -> AbstractContextManager[None]:
    """Let a `LightningModule` be a `Module` within this context, also when no run is under way."""
    if not _is_unadapted(module):
        return nullcontext()
    from framework.lightning import as_module

    return as_module(module)


_SETTINGS = frozenset(field.name for field in dataclasses.fields(Settings))
