"""Learning rates, momentum and weight decay under the names that Lightning's users look for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class LearningRateMonitor(Callback):
    """Log what a trainer does not log by itself, which is ``lr/<group>`` on logged steps.

    That is, the learning rates under Lightning's names: ``lr-SGD``, or with several parameter groups ``lr-SGD/pg1``,
    ``lr-SGD/pg2`` or ``lr-SGD/<name of the group>``. The ``name`` of a scheduler in `Module.configure_optimizers`
    replaces ``lr-SGD``. Each value is logged once per step, at the point before the step, in the order of the groups.

    To monitor a learning rate by another callback, use ``lr/<group>``.

    Args:
        logging_interval: "step" for steps 0, n, 2n, ... (``log_every_n_steps``), "epoch" for the first step of every
            epoch. Default: as the schedulers are stepped; both without a scheduler.
        log_momentum: Also log ``lr-SGD-momentum``: ``momentum``, or the first of ``betas``, of each group.
        log_weight_decay: Also log ``lr-SGD-weight_decay``.

    Raises:
        ValueError: If ``logging_interval`` is something else. At `fit`: if the trainer has no logger, or two parameter
            groups have one name.
    """

    def __init__(
        self, logging_interval: str | None = None, log_momentum: bool = False, log_weight_decay: bool = False
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ValueError(
                f"LearningRateMonitor: logging_interval={logging_interval!r}; it must be 'step', 'epoch' or None"
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self._logged_step: int | None = None

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._logged_step = None
        if trainer.fast_dev_run:
            return
        if not trainer.loggers:
            raise ValueError(
                "LearningRateMonitor has no logger to log to: pass Trainer(logger=True), or drop the callback"
            )
        groups, kind = trainer.optimizer.param_groups, type(trainer.optimizer).__name__
        names = _names(trainer)
        if len({*names}) < len(names):
            raise ValueError(
                f"LearningRateMonitor: two parameter groups of {kind} have one name ({', '.join(names)}): give each "
                "its own, or none"
            )
        if not any("lr" in group for group in groups):
            warnings.warn(f"LearningRateMonitor: {kind} has no learning rate, so there is nothing to log", stacklevel=2)
            return
        for option, keys in (("momentum", ("momentum", "betas")), ("weight_decay", ("weight_decay",))):
            if getattr(self, f"log_{option}") and not any(key in group for group in groups for key in keys):
                warnings.warn(
                    f"LearningRateMonitor: {kind} has no {option}: log_{option}=True logs 0 for it", stacklevel=2
                )

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.batch_idx == 0 and self._follows(trainer, "epoch"):  # not within an epoch that is continued
            self._log(trainer)

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0 and self._follows(trainer, "step"):
            self._log(trainer)

    def _follows(self, trainer: Trainer, interval: str) -> bool:
        if self.logging_interval is not None:
            return interval == self.logging_interval
        return not trainer.schedulers or any(config.interval == interval for config in trainer.schedulers)

    def _log(self, trainer: Trainer) -> None:
        if self._logged_step == trainer.global_step:
            return
        self._logged_step = trainer.global_step
        values: dict[str, float] = {}
        for name, group in zip(_names(trainer), trainer.optimizer.param_groups, strict=True):
            if "lr" not in group:
                continue
            values[name] = float(group["lr"])
            if self.log_momentum:
                values[f"{name}-momentum"] = _momentum(group)
            if self.log_weight_decay:
                values[f"{name}-weight_decay"] = float(group.get("weight_decay", 0.0))
        trainer.log_metrics(values)


def _names(trainer: Trainer) -> list[str]:
    """Return the names of the learning rates, one per parameter group."""
    optimizer = trainer.optimizer
    given = (config.name for config in trainer.schedulers if config.name is not None)
    name = next(given, f"lr-{type(optimizer).__name__}")
    groups = optimizer.param_groups
    if len(groups) == 1 and "name" not in groups[0]:
        return [name]
    return [f"{name}/{group.get('name', f'pg{number}')}" for number, group in enumerate(groups, start=1)]


def _momentum(group: Mapping[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
