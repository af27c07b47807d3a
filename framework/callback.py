"""Callbacks, and the one timeline of when each hook fires.

Of several listeners, the callbacks hear a hook in the order given, then the module's own hook of the same name (without
the arguments ``trainer`` and ``module``), then the callbacks that watch a metric: early stopping, and checkpoints last.
``Trainer.fit`` fires, in this order::

    setup("fit")
    on_fit_start
    on_sanity_check_start, (the validation hooks), on_sanity_check_end
    on_train_start
    every epoch:
        on_train_epoch_start
        every optimizer step:
            on_train_batch_start
            on_after_backward           after each evaluation with gradients
            on_before_optimizer_step    before clipping; optimizers that evaluate once only
            on_optimizer_iteration      after each iteration within the step; optimizers that report them (scipy's) only
            (the end of optimizer.step, schedulers by step)
            on_train_batch_end
            (on every log_every_n_steps-th step: the loggers get its values)
        when validation is due:
            on_validation_start, on_validation_epoch_start
            every batch: on_validation_batch_start, on_validation_batch_end
            on_validation_epoch_end, (the epoch's means are published), on_validation_end
        (schedulers by epoch; the epoch's means are published)
        on_train_epoch_end              (what is logged in it is published before the callbacks that watch a metric)
    on_train_end
    on_fit_end
    teardown("fit")

``validate``, ``test`` and ``predict`` fire ``setup``, their own ``on_<stage>_...`` hooks and ``teardown``. An exception
fires ``on_exception`` and then ``teardown``. ``on_save_checkpoint`` and ``on_load_checkpoint`` fire when they say so.

A *step* of ``accumulate_grad_batches=k`` evaluates k batches, perhaps several times: its two batch hooks fire once, and
``batch`` is the list of them; with ``"epoch"`` it is the data loader itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Callback:
    """Things to do at given moments of a run. Override what you need; the module's docstring says when each fires.

    Attributes:
        after_module: Whether it hears a hook after the module does: to watch or save what the module made of it.
    """

    after_module = False

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """A run begins; ``stage`` is "fit", "validate", "test" or "predict"."""

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """A run is over, also after an exception."""

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """The module is on its device, the optimizer is made, the checkpoint (if any) is loaded."""

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """Training is over; loggers are still open."""

    def on_sanity_check_start(self, trainer: Trainer, module: Module) -> None:
        """A few validation batches are about to be tried before training."""

    def on_sanity_check_end(self, trainer: Trainer, module: Module) -> None:
        """The validation batches were tried; their metrics are dropped."""

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """The first epoch is about to start."""

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """The last epoch is over, or the run was stopped in the middle of one."""

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """An epoch is about to start."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """An epoch is over, validation and schedulers included."""

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """An optimizer step is about to start."""

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """An optimizer step is over; ``outputs`` is a mapping with "loss": what `training_step` returned first."""

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        """The gradients of the whole group of batches lie in the parameters."""

    def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
        """The gradients are final but for clipping."""

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        """An iteration of the step under way is over: its number, from 1, and the best value of the objective so far.

        The parameters are at the point of that value. ``trainer.stop(reason)`` ends the step, and the run, there.
        """

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Validation begins."""

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Validation is over, its metrics are published."""

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The validation data are about to be read."""

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The validation data are read; what is logged here still counts."""

    def on_validation_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Before `validation_step`."""

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After `validation_step`; ``outputs`` is what it returned."""

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Testing begins."""

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        """Testing is over, its metrics are published."""

    def on_test_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The test data are about to be read."""

    def on_test_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The test data are read; what is logged here still counts."""

    def on_test_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Before `test_step`."""

    def on_test_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After `test_step`; ``outputs`` is what it returned."""

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Prediction begins."""

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        """Prediction is over."""

    def on_predict_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """The data are about to be read."""

    def on_predict_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """The data are read."""

    def on_predict_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Before `predict_step`."""

    def on_predict_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After `predict_step`; ``outputs`` is the prediction."""

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Something was raised; it is raised again after this."""

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; entries may be added (numbers, strings, tensors, lists, mappings)."""

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read and is about to be restored."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))
