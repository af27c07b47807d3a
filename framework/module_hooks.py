"""The hooks of a `Module`, and the parts of a step that it may take over: each does what a run does without it.

They exist to be overridden, and so that ``super()`` has something to call. What is not overridden is not called.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.fabric import move_to_device


class _TrainerSettings(Protocol):
    gradient_clip_val: float | None
    gradient_clip_algorithm: str


class ModuleHooks:
    """What a `Trainer` calls of a module if it is overridden; `framework.callback` says when each hook fires."""

    @property
    def trainer(self) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------------ those of `Callback`, see there

    def setup(self, stage: str) -> None: ...
    def teardown(self, stage: str) -> None: ...
    def on_fit_start(self) -> None: ...
    def on_fit_end(self) -> None: ...
    def on_sanity_check_start(self) -> None: ...
    def on_sanity_check_end(self) -> None: ...
    def on_train_start(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_train_epoch_start(self) -> None: ...
    def on_train_epoch_end(self) -> None: ...
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None: ...
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None: ...
    def on_before_zero_grad(self, optimizer: Optimizer) -> None: ...
    def on_before_backward(self, loss: Tensor) -> None: ...
    def on_after_backward(self) -> None: ...
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None: ...
    def on_optimizer_iteration(self, iteration: int, value: float) -> None: ...
    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_validation_epoch_start(self) -> None: ...
    def on_validation_epoch_end(self) -> None: ...
    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_test_start(self) -> None: ...
    def on_test_end(self) -> None: ...
    def on_test_epoch_start(self) -> None: ...
    def on_test_epoch_end(self) -> None: ...
    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_predict_start(self) -> None: ...
    def on_predict_end(self) -> None: ...
    def on_predict_epoch_start(self) -> None: ...
    def on_predict_epoch_end(self) -> None: ...
    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...
    def on_exception(self, exception: BaseException) -> None: ...
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None: ...

    # --------------------------------------------------------------------------------------------------- the data

    def prepare_data(self) -> None:
        """Download data, before `setup`, in one process of each machine: what it assigns, the others do not see."""

    def train_dataloader(self) -> Any:
        """Return the training data, if none are passed to `Trainer.fit`."""

    def val_dataloader(self) -> Any:
        """Return the validation data: one loader or several."""

    def test_dataloader(self) -> Any:
        """Return the data of `Trainer.test`."""

    def predict_dataloader(self) -> Any:
        """Return the data of `Trainer.predict`."""

    # ----------------------------------------------------------------------------------------------- before a run

    def configure_callbacks(self) -> Any:
        """Return callbacks for the trainer, one or several; they replace those of the same class."""
        return []

    def configure_model(self) -> None:
        """Make layers, after `setup` and before `configure_optimizers`; called in every run, so do it only once."""

    # -------------------------------------------------------------------------------------------------- in a step

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Optimizer, optimizer_closure: Any = None) -> None:
        """Take a step of the optimizer.

        Args:
            epoch: The index of the epoch.
            batch_idx: The index of the step's first batch.
            optimizer: The optimizer.
            optimizer_closure: Evaluates the objective and its gradients, clips them, and returns the value. It must be
                called once, usually by the optimizer.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the gradients before an evaluation."""
        optimizer.zero_grad()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add the gradients of a loss to those in the parameters; further arguments are those of `Tensor.backward`."""
        loss.backward(*args, **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients before a step; the arguments are the trainer's settings."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters; not to be overridden.

        Args:
            optimizer: The optimizer.
            gradient_clip_val: The largest norm, or absolute value. Default: the trainer's; None and 0 for none.
            gradient_clip_algorithm: "norm" (of all gradients together) or "value". Default: the trainer's.

        Raises:
            ValueError: If the value differs from that of the trainer, or there is no such algorithm.
        """
        settings: _TrainerSettings = self.trainer
        val = settings.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        algorithm = (gradient_clip_algorithm or settings.gradient_clip_algorithm).lower()
        if settings.gradient_clip_val is not None and val != settings.gradient_clip_val:
            raise ValueError(
                f"clip_gradients(gradient_clip_val={val}), but the Trainer has {settings.gradient_clip_val}: use one"
            )
        if algorithm not in ("norm", "value"):
            raise ValueError(f"gradient_clip_algorithm={algorithm!r}; it must be 'norm' or 'value'")
        if val:
            clip = clip_grad_norm_ if algorithm == "norm" else clip_grad_value_
            clip([param for group in optimizer.param_groups for param in group["params"]], val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; ``metric`` is what `ReduceLROnPlateau` watches, None for any other."""
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(metric)
        else:
            scheduler.step()

    # -------------------------------------------------------------------------------------------------- the batches

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch to move to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device."""
        return move_to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch, on the device, as the step is given it."""
        return batch
