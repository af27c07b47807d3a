"""The class that users subclass: a network, the loss of one batch, and how the parameters are optimized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework.data.samples import count_samples
from framework.hyperparameters import Hyperparameters
from framework.manual_optimization import ManualOptimization
from framework.module_hooks import ModuleHooks
from framework.penalties import Penalty

if TYPE_CHECKING:
    from framework.trainer import Trainer


class Module(ModuleHooks, ManualOptimization, Hyperparameters, nn.Module):
    """A model that a `Trainer` can train. Override `training_step` and `configure_optimizers`.

    The hooks of `Callback` may be defined here too, without their first two arguments; `ModuleHooks` lists them.

    Attributes:
        penalty: If set, the trainer adds g, the sum of ``penalty.value(param, happy_lambda)`` over the penalized
            groups, to the loss that `training_step` returns.
        happy_lambda: The weight of the penalty; a group's own ``"happy_lambda"`` takes precedence. With a penalty one
            of the two must be set, if only to 0.0.
        may_leave_out_parameters: Whether the optimizer may leave out parameters that require gradients, with a warning.
    """

    penalty: Penalty | None = None
    happy_lambda: float | None = None
    may_leave_out_parameters: bool = False
    _trainer: Trainer | None = None

    @property
    def trainer(self) -> Trainer:
        """The trainer that is running this module, or ran it last."""
        if self._trainer is None:
            raise RuntimeError(
                f"{type(self).__name__} has no trainer yet: Trainer.fit, validate, test and predict set it"
            )
        return self._trainer

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU for a module without parameters."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter; torch's default for a module without any."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    # ------------------------------------------------------------------------- what its trainer knows; else a default

    @property
    def current_epoch(self) -> int:
        """The index of the current epoch; 0 without a trainer."""
        return 0 if self._trainer is None else self._trainer.current_epoch

    @property
    def global_step(self) -> int:
        """The number of optimizer steps taken; 0 without a trainer."""
        return 0 if self._trainer is None else self._trainer.global_step

    @property
    def global_rank(self) -> int:
        """The rank of this process among all; 0 without a trainer."""
        return 0 if self._trainer is None else self._trainer.global_rank

    @property
    def local_rank(self) -> int:
        """The rank of this process on its machine; 0 without a trainer."""
        return 0 if self._trainer is None else self._trainer.local_rank

    @property
    def loggers(self) -> list[Any]:
        """The loggers of the trainer; none without a trainer."""
        return [] if self._trainer is None else self._trainer.loggers

    @property
    def logger(self) -> Any:
        """The first of `loggers`; None if there is none."""
        return next(iter(self.loggers), None)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer in use, a list of them if there are several; the argument has no effect.

        It is Lightning's, which wraps its optimizers.
        """
        optimizers = self.trainer.optimizers
        return optimizers if len(optimizers) > 1 else next(iter(optimizers), [])

    def lr_schedulers(self) -> Any:
        """Return the scheduler in use, a list of them if there are several, None if there is none."""
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return schedulers if len(schedulers) > 1 else next(iter(schedulers), None)

    def print(self, *values: Any, **options: Any) -> None:
        """Print above the progress bar, in the first of several processes; the options are those of the builtin."""
        if self._trainer is None:
            print(*values, **options)
        else:
            self._trainer.print(*values, **options)

    # ------------------------------------------------------------------------------------------------ what to define

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | tuple[Tensor, Tensor] | Mapping[str, Any]:
        """Compute the smooth part f of the objective, a scalar: the mean over the samples of the batch.

        Returns:
            f, or ``(f, penalty)``, or a mapping with ``"loss"`` and optionally ``"penalty"``. With a `penalty` object
            on the module, return f alone: the trainer adds the penalty.
        """
        raise NotImplementedError(f"{type(self).__name__} must define training_step(batch, batch_idx)")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Process one validation batch, usually with ``self.log("val/loss", ...)``.

        With several loaders, a third argument ``dataloader_idx`` says which one the batch is from. So in `test_step`
        and `predict_step`.
        """

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Process one test batch."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Compute the prediction for one batch. Default: call the module on the batch, or on its first element."""
        return self(batch[0] if isinstance(batch, tuple | list) else batch)

    def count_samples(self, batch: Any) -> int:
        """Count the samples of a batch, the weight of its mean in accumulated steps and in logged means.

        Default: the common length of its tensors. Override it if a batch holds tensors that are not per sample.

        Raises:
            ValueError: If the tensors have different lengths.
        """
        return count_samples(batch)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups, each with ``"penalized"``: True, False, or a boolean mask of the parameter's shape.

        Default: one unpenalized group of all parameters that require gradients.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad], "penalized": False}]

    def configure_optimizers(self) -> Any:
        """Return one optimizer, with its schedulers if any, in any of the forms that Lightning accepts.

        They are: an optimizer; a list of one; ``([optimizer], [schedulers])``; a dictionary with ``"optimizer"`` and
        optionally ``"lr_scheduler"``; a list of one such dictionary. A scheduler may be a dictionary with
        ``"scheduler"`` and any of ``"interval"``, ``"frequency"``, ``"monitor"``, ``"strict"``, ``"name"``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define configure_optimizers, for example: "
            "return torch.optim.Adam(self.param_groups(), lr=1e-3)"
        )

    # ---------------------------------------------------------------------------------------------------- what to call

    def freeze(self) -> None:
        """Let no parameter require a gradient, and switch to evaluation mode."""
        self.requires_grad_(False)
        self.eval()

    def unfreeze(self) -> None:
        """Let every parameter require a gradient, and switch to training mode."""
        self.requires_grad_(True)
        self.train()

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = True,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Log a scalar (or a `torchmetrics.Metric`) under a name; outside a trainer, do nothing.

        Monitors and ``trainer.callback_metrics`` know every value; loggers get those of every ``log_every_n_steps``-th
        step, of every validation batch, and of every epoch. With ``on_step`` and ``on_epoch`` both, loggers are given
        the names with the endings ``_step`` and ``_epoch``; monitors may also use the name itself, which is the last
        value of either. A name of the trainer's own (``train/loss``, ``epoch``, ``lr/...``) is yours from the first
        time that you log it, for monitors and loggers alike.

        Args:
            name: Its tag in TensorBoard, such as ``"val/loss"``. Its options are the same at every call in a stage.
            value: A number, a tensor of one element, or a `torchmetrics.Metric`. It is copied as it is now, without its
                graph, and without waiting for the device.
            prog_bar: Also show it in the progress bar.
            logger: Send it to the loggers.
            on_step: Log the value of this step. Default: True in a training step and its hooks, False elsewhere. In
                validation it is logged at the number of the batch, counted over the run. A `torchmetrics.Metric` must
                have been called on the batch, not only updated.
            on_epoch: Log the reduction over the epoch, in double precision. Default: False in a training step and its
                hooks, True elsewhere.
            reduce_fx: ``"mean"`` (weighted by ``batch_size``), ``"sum"``, ``"min"`` or ``"max"``, or a function of such
                a name, as `torch.mean`.
            enable_graph: Refused if True: a value is kept without its graph.
            sync_dist: Lightning's. Several processes always reduce what they log, each sample once.
            sync_dist_group: Refused if given: values are reduced over all processes.
            add_dataloader_idx: With several loaders, append ``/dataloader_idx_<i>`` to the name. If False, the
                reduction is over all of them.
            batch_size: The weight in the mean. Default: `count_samples` of the batch.
            metric_attribute: Lightning's. Where a `torchmetrics.Metric` is kept is found without it.
            rank_zero_only: Log only what the first of several processes logs.

        Raises:
            RuntimeError: If the trainer is not at a point where metrics are collected.
            ValueError: If the value is no scalar, or an option is wrong or has changed.
            TypeError: If the value is no number.
        """
        if enable_graph or sync_dist_group is not None:
            raise ValueError(
                f"log({name!r}): enable_graph=True and sync_dist_group have no effect: values are kept without their "
                "graph, and reduced over all processes; drop them"
            )
        if self._trainer is not None and not (rank_zero_only and self.global_rank > 0):
            run = self._trainer._run
            if run is None:
                raise RuntimeError(
                    f"log({name!r}): setup and configure_optimizers are too early; log from on_fit_start on"
                )
            run.metrics.log(
                name,
                value,
                prog_bar=prog_bar,
                logger=logger,
                on_step=on_step,
                on_epoch=on_epoch,
                reduce_fx=reduce_fx,
                batch_size=batch_size,
                add_dataloader_idx=add_dataloader_idx,
            )

    def log_dict(self, dictionary: Mapping[str, Any], *options: Any, **named_options: Any) -> None:
        """Log every entry of a mapping; the options are those of `log`."""
        for name, value in dictionary.items():
            self.log(name, value, *options, **named_options)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the trainer, so that copies and pickles leave it behind."""
        return {**self.__dict__, "_trainer": None}
