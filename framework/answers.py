"""What a `Trainer` answers under the names of Lightning's, for code that comes from there."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from framework.callback import Callback
from framework.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
from framework.fabric import precision_of
from framework.loggers import Logger
from framework.loop.batches import Batches
from framework.loop.manual import each_optimizer
from framework.loop.run import FitRun, Run
from framework.loop.schedulers import SchedulerConfig
from framework.module import Module


class Answers:
    """Questions about processes, callbacks, loaders and the state of a run. All are also answered after the run."""

    fabric: Any
    callbacks: list[Callback]
    loggers: list[Logger]
    _run: Run | None
    _fit: FitRun | None
    _under_way: str | None

    # ----------------------------------------------------------------------------------------- devices and processes

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    @property
    def global_rank(self) -> int:
        """The rank of this process among all."""
        return self.fabric.global_rank

    @property
    def local_rank(self) -> int:
        """The rank of this process on its machine."""
        return self.fabric.local_rank

    @property
    def node_rank(self) -> int:
        """The rank of this machine."""
        return self.fabric.node_rank

    @property
    def num_devices(self) -> int:
        """How many devices each machine uses."""
        return self.world_size // self.num_nodes

    @property
    def num_nodes(self) -> int:
        """How many machines there are."""
        return int(getattr(self.fabric.strategy, "num_nodes", 1))

    @property
    def is_global_zero(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.fabric.is_global_zero

    @property
    def strategy(self) -> Any:
        """Fabric's strategy."""
        return self.fabric.strategy

    @property
    def precision(self) -> str:
        """Its name, such as "32-true"."""
        precision = precision_of(self.fabric)
        return "32-true" if precision is None else str(precision.precision)

    def print(self, *values: Any, **options: Any) -> None:
        """Print above the progress bar, in the process that writes files; the options are those of the builtin."""
        if self.is_global_zero:
            with tqdm.external_write_mode():
                print(*values, **options)

    # ------------------------------------------------------------------------------------------ loggers and callbacks

    @property
    def logger(self) -> Logger | None:
        """The first of the loggers, if any."""
        return next(iter(self.loggers), None)

    @property
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        """All callbacks that write checkpoints."""
        return [callback for callback in self.callbacks if isinstance(callback, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first of them, if any."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All callbacks that stop early."""
        return [callback for callback in self.callbacks if isinstance(callback, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them, if any."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar, if there is one."""
        return next((callback for callback in self.callbacks if isinstance(callback, ProgressBar)), None)

    # --------------------------------------------------------------------------------------------- the state of a run

    @property
    def lightning_module(self) -> Module | None:
        """The module of the last run."""
        return None if self._run is None else self._run.module

    @property
    def model(self) -> Module | None:
        """The module of the last run."""
        return self.lightning_module

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers of the last fit: one, or several if the module calls them itself."""
        return [] if self._fit is None else each_optimizer(self._fit.phase.optimizer)

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The schedulers of the last fit, with what each was configured by."""
        return [] if self._fit is None else self._fit.phase.schedulers

    @property
    def training(self) -> bool:
        """Whether a fit is under way, and no validation, nor the check of it before training."""
        return self._under_way == "fit" and not self.evaluating

    @property
    def validating(self) -> bool:
        """Whether validation data are being read, other than for the check before training."""
        return self._is_in("validation") and not self.sanity_checking

    @property
    def testing(self) -> bool:
        """Whether `test` is under way."""
        return self._is_in("test")

    @property
    def predicting(self) -> bool:
        """Whether `predict` is under way."""
        return self._is_in("predict")

    @property
    def evaluating(self) -> bool:
        """Whether validation (also the check before training) or `test` is under way."""
        return self.validating or self.testing or self.sanity_checking

    @property
    def sanity_checking(self) -> bool:
        """Whether the current validation is only the check before training."""
        return self._run is not None and self._run.sanity_checking

    def _is_in(self, stage: str) -> bool:
        return self._under_way is not None and self._run is not None and self._run.stage == stage

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch under way, or the last one, is the last of its epoch."""
        return self._fit is not None and self._fit.is_last_batch

    @property
    def validates_within_epochs(self) -> bool:
        """Whether the last fit validates after so many batches (``val_check_interval``), not at the ends of epochs."""
        return self._fit is not None and self._fit.val_interval is not None

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The values that the loggers were sent last."""
        return {} if self._run is None else dict(self._run.logged_metrics)

    @property
    def train_dataloader(self) -> Any:
        """The training data of the last fit, as they were passed."""
        return None if self._fit is None else self._fit.train_batches.given

    @property
    def val_dataloaders(self) -> Any:
        """The validation data of the last fit or `validate`, as they were passed."""
        return self._given("validation")

    @property
    def test_dataloaders(self) -> Any:
        """The data of the last `test`, as they were passed."""
        return self._given("test")

    @property
    def predict_dataloaders(self) -> Any:
        """The data of the last `predict`, as they were passed."""
        return self._given("predict")

    @property
    def num_val_batches(self) -> list[float]:
        """How many batches of validation data are read, from each loader."""
        return self._num_batches("validation")

    @property
    def num_test_batches(self) -> list[float]:
        """How many batches `test` reads, from each loader."""
        return self._num_batches("test")

    @property
    def num_predict_batches(self) -> list[float]:
        """How many batches `predict` reads, from each loader."""
        return self._num_batches("predict")

    def _given(self, stage: str) -> Any:
        loaders = [batches.given for batches in self._data(stage)]
        return loaders if len(loaders) > 1 else next(iter(loaders), None)

    def _num_batches(self, stage: str) -> list[float]:
        return [batches.num_batches for batches in self._data(stage)]

    def _data(self, stage: str) -> list[Batches]:
        runs = [run for run in (self._run, self._fit) if run is not None]
        return next((run.data[stage] for run in runs if stage in run.data), [])
