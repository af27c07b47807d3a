"""From what ``configure_optimizers`` returned to one optimizer and its schedulers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.loop.metrics import Metrics


@dataclass
class SchedulerConfig:
    """A learning-rate scheduler and when it is stepped; the names and defaults are Lightning's.

    Attributes:
        scheduler: The scheduler itself.
        interval: "epoch" or "step" (an optimizer step, whatever the number of batches in it).
        frequency: Step it on every so many-th interval.
        monitor: The metric that `ReduceLROnPlateau` is given.
        strict: Whether a monitored metric that was never logged is an error, or the scheduler waits for it.
        name: Accepted for compatibility; learning rates are logged as ``lr/<group>``.
        step_by: What steps it, if the module does, given the scheduler and the metric.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1
    monitor: str | None = None
    strict: bool = True
    name: str | None = None
    step_by: Callable[[Any, Any], None] | None = field(default=None, init=False)
    _seen: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        kind = type(self.scheduler).__name__
        if not hasattr(self.scheduler, "step"):
            raise TypeError(f"configure_optimizers returned {kind} as a scheduler, which has no step()")
        if self.interval not in ("epoch", "step"):
            raise ValueError(f"the interval of {kind} is {self.interval!r}; it must be 'epoch' or 'step'")
        if not isinstance(self.frequency, int) or self.frequency < 1:
            raise ValueError(f"the frequency of {kind} is {self.frequency!r}; it must be a positive integer")

    def check_monitor(self) -> None:
        """Refuse a `ReduceLROnPlateau` that has nothing to watch."""
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.monitor is None:
            raise ValueError(
                "ReduceLROnPlateau needs the metric to watch: return "
                '{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "monitor": "val/loss"}}'
            )

    def step(self, metrics: Metrics) -> None:
        """Step the scheduler; `ReduceLROnPlateau` only when its metric has a value that it was not given before."""
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self._step()
            return
        assert self.monitor is not None
        if news := metrics.news(self.monitor, self._seen, "ReduceLROnPlateau", strict=self.strict):
            self._seen, value = news
            self._step(value)

    def _step(self, *value: float) -> None:
        if self.step_by is None:
            self.scheduler.step(*value)
        else:
            self.step_by(self.scheduler, value[0] if value else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's own state, and how many values of its metric it was given."""
        return {"scheduler": self.scheduler.state_dict(), "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.scheduler.load_state_dict(state["scheduler"])
        self._seen = state["seen"]


class NoOptimizer(Optimizer):
    """The optimizer of a module that configures none: its steps do nothing."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__([{"params": [param for param in module.parameters() if param.requires_grad]}], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Leave the parameters as they are."""


def parse_optimizers(
    configured: Any, module: nn.Module, *, several: bool
) -> tuple[list[Optimizer], list[SchedulerConfig]]:
    """Return the optimizers and their schedulers from any form that Lightning accepts (``configure_optimizers``).

    Args:
        configured: What was returned.
        module: The module.
        several: Whether there may be several optimizers, since the module calls them and their schedulers itself.

    Raises:
        TypeError: If it is none of these forms.
        ValueError: If there is not exactly one optimizer, or a scheduler is configured wrongly.
    """
    if configured is None:
        warnings.warn("configure_optimizers returned None: the run changes no parameter", stacklevel=2)
        configured = NoOptimizer(module)
    optimizers: Any = configured
    schedulers: Any = []
    if _is_list(configured) and len(configured) == 2 and all(map(_is_list, configured)):
        optimizers, schedulers = configured
    if isinstance(optimizers, Mapping | Optimizer):
        optimizers = [optimizers]
    if not _is_list(optimizers):
        raise TypeError(
            f"configure_optimizers returned {type(configured).__name__}; it must return an optimizer, "
            '{"optimizer": ..., "lr_scheduler": ...} or ([optimizer], [schedulers])'
        )
    if len(optimizers) != 1 and not (several and optimizers):
        raise ValueError(
            f"configure_optimizers returned {len(optimizers)} optimizers; a Trainer runs exactly one, unless the "
            "module calls them itself (automatic_optimization = False). Give its parameter groups different options "
            "instead"
        )
    found, schedulers = [], list(schedulers)
    for optimizer in optimizers:
        if isinstance(optimizer, Mapping):
            schedulers += _schedulers_in(optimizer)
            optimizer = optimizer.get("optimizer")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"configure_optimizers returned {type(optimizer).__name__} where an optimizer was expected")
        found.append(optimizer)
    configs = [_parse_scheduler(scheduler) for scheduler in schedulers]
    for config in [] if several else configs:
        config.check_monitor()
    return found, configs


def _schedulers_in(optimizer: Mapping[str, Any]) -> list[Any]:
    """Return the schedulers, none, one or several, that come with an optimizer."""
    _check_keys("optimizer", optimizer, {"optimizer", "lr_scheduler", "frequency", "monitor"})
    given = optimizer.get("lr_scheduler")
    schedulers = [] if given is None else given if _is_list(given) else [given]
    if "monitor" not in optimizer:
        return list(schedulers)
    monitor = {"monitor": optimizer["monitor"]}
    return [one if isinstance(one, Mapping) else {"scheduler": one, **monitor} for one in schedulers]


def _parse_scheduler(scheduler: Any) -> SchedulerConfig:
    if not isinstance(scheduler, Mapping):
        return SchedulerConfig(scheduler)
    known = {f.name for f in fields(SchedulerConfig) if f.init}
    _check_keys("lr_scheduler", scheduler, known | {"reduce_on_plateau"})
    if "scheduler" not in scheduler:
        raise ValueError(f'the lr_scheduler dictionary has no "scheduler", only {sorted(scheduler)}')
    return SchedulerConfig(**{key: value for key, value in scheduler.items() if key in known})


def _check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := set(given) - known:
        raise ValueError(f"the {what} dictionary has {sorted(unknown)}; it may have {sorted(known)}")


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rate of every group that has one, as ``lr/<name>``, or ``lr/<index>`` for a group without a name."""
    return {
        f"lr/{group.get('name', index)}": float(group["lr"])
        for index, group in enumerate(optimizer.param_groups)
        if "lr" in group
    }


def configured_options(
    module: nn.Module, optimizer: Optimizer, schedulers: Sequence[SchedulerConfig]
) -> dict[str, list[dict[str, Any]]]:
    """Return the options that were configured, as plain data: those of a checkpoint take their place.

    Returns:
        Of each group, the names of its parameters and its options, but for the weight of the penalty, which a continued
        run may change; of each scheduler, its class and the plain part of its state.
    """
    names = {id(param): name for name, param in module.named_parameters()}
    groups = [
        {
            "params": [names.get(id(param)) for param in group["params"]],
            **{key: value for key, value in group.items() if _is_option(value) and key != "happy_lambda"},
        }
        for group in optimizer.param_groups
    ]
    states = [
        {"class": type(config.scheduler).__name__}
        | {key: value for key, value in config.state_dict()["scheduler"].items() if _is_option(value)}
        for config in schedulers
    ]
    return {"groups": groups, "lr_schedulers": states}


def _is_option(value: Any) -> bool:
    parts = value if isinstance(value, tuple) else (value,)
    return all(part is None or isinstance(part, bool | int | float | str) for part in parts)
