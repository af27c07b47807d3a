"""Callbacks, and the one timeline of when each hook fires.

Each hook is called on the callbacks in the order given, then on the module (the method of the same name, without the
arguments ``trainer`` and ``module``), then on the callbacks that watch a metric: early stopping, and checkpoints last.
``Trainer.fit`` fires, in this order:

    prepare_data                        (of the datamodule, then of the module, in one process of each machine)
    setup("fit")                        (of the datamodule first)
    (the datamodule is given its state; val_dataloader, train_dataloader, configure_optimizers)
    on_fit_start
    on_sanity_check_start, (the validation hooks), on_sanity_check_end      (not in a run that is continued)
    on_train_start
    every epoch:
        (train_dataloader, if reload_dataloaders_every_n_epochs says so; val_dataloader likewise before validation)
        on_train_epoch_start
        every optimizer step:
            on_train_batch_start        (-1 skips the rest of the epoch)
            on_before_zero_grad         before each evaluation with gradients, so that the last ones are no longer kept
            on_before_backward          for each of its batches, after training_step
            on_after_backward           after each evaluation with gradients
            on_before_optimizer_step    before clipping; only for optimizers that evaluate once
            on_optimizer_iteration      after each iteration within the step; only if the optimizer reports them (scipy)
            (the end of optimizer.step, schedulers by step)
            on_train_batch_end
            (every log_every_n_steps steps: the loggers get the values)
        when validation is due (at the end of the epoch, or after a step, by val_check_interval):
            on_validation_start, on_validation_epoch_start
            every batch: on_validation_batch_start, on_validation_batch_end
            on_validation_epoch_end, (the epoch's means are published), on_validation_end
        (schedulers by epoch; the epoch's means are published)
        on_train_epoch_end              (what is logged in it is published before callbacks that watch a metric run)
    on_train_end
    on_fit_end
    teardown("fit")

Where there are several loaders, the hooks around their batches, and the step, are passed ``dataloader_idx``, too.

``validate``, ``test`` and ``predict`` fire ``setup``, their own ``on_<stage>_...`` hooks and ``teardown``. An exception
fires ``on_exception`` and then ``teardown``. ``on_load_checkpoint`` fires when a checkpoint is restored (outside of
``fit``, which restores the parameters alone, on the module; so does ``on_save_checkpoint`` for a file of weights), and
``on_save_checkpoint`` whenever the state is taken: for a file, or for the copy in memory that `ModelCheckpoint` writes
when a run fails.

With ``accumulate_grad_batches=k`` a *step* evaluates k batches, perhaps several times. Its two batch hooks fire once,
and ``batch`` is the list of the k batches; with ``"epoch"`` it is the data loader itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Callback:
    """Actions at given moments of a run. Override the hooks you need; the docstring of this file says when each fires.

    Attributes:
        after_module: Whether its hooks fire after the module's, so that it can watch or save what the module did.
    """

    after_module = False

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called when a run begins; ``stage`` is "fit", "validate", "test" or "predict"."""

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Called when a run is over, even after an exception."""

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Called when the module is on its device, the optimizer is made, and the checkpoint, if any, is loaded."""

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """Called when training is over; the loggers are still open."""

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """Called before a few validation batches are tried ahead of training."""

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """Called after those validation batches were tried; their metrics are dropped."""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the first epoch."""

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the last epoch, or after the run was stopped in the middle of one."""

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called before an epoch."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after an epoch, including its validation and schedulers."""

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> int | None:
        """Called before an optimizer step; -1 skips this one and the rest of the epoch."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after an optimizer step.

        ``outputs`` is what `training_step` returned at the first evaluation, as a mapping with "loss"; for a step over
        several batches, a list of one mapping per batch.
        """

    def on_before_zero_grad(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        """Called before the gradients are dropped for an evaluation."""

    def on_before_backward(self, trainer: Trainer, module: Module, loss: Tensor) -> None:
        """Called with the value of a batch, which carries its graph, before its gradients are added."""

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        """Called when the gradients of the whole group of batches are in the parameters."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        """Called when the gradients are final except for clipping."""

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        """Called after an iteration within a step, with its number, from 1, and the best objective value so far.

        The parameters are at the point with that value. ``trainer.stop(reason)`` ends the step, and the run, there.
        """

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Called when validation begins."""

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Called when validation is over and its metrics are published."""

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the validation data are read."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the validation data are read; what is logged here still counts."""

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before `validation_step`."""

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after `validation_step`; ``outputs`` is what it returned."""

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Called when testing begins."""

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Called when testing is over and its metrics are published."""

    def on_test_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the test data are read."""

    def on_test_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the test data are read; what is logged here still counts."""

    def on_test_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before `test_step`."""

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after `test_step`; ``outputs`` is what it returned."""

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Called when prediction begins."""

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Called when prediction is over."""

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Called before the data are read."""

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Called after the data are read."""

    def on_predict_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called before `predict_step`."""

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Called after `predict_step`; ``outputs`` is the prediction."""

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Called after an exception, which is raised again afterwards."""

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Called before a checkpoint is written; it may add entries (numbers, strings, tensors, lists, mappings)."""

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Called after a checkpoint was read and before it is restored."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should hold of this callback."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))
