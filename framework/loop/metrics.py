"""What ``Module.log`` collects: the value of a step, the reduction over an epoch, and who wants to see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
}


@dataclass(slots=True)
class _Logged:
    """One name: the options of its ``log`` call and its running reduction."""

    on_step: bool
    on_epoch: bool
    prog_bar: bool
    logger: bool
    reduce_fx: str
    value: Any = None
    total: Tensor | None = None
    weight: float = 0.0

    def update(self, value: Any, weight: float) -> None:
        self.value = value
        if not self.on_epoch or isinstance(value, Metric):
            return
        value = torch.as_tensor(value)
        if self.reduce_fx == "mean":
            value = value * weight
        self.total = value if self.total is None else _REDUCTIONS[self.reduce_fx](self.total, value)
        self.weight += weight

    def clear(self) -> None:
        if isinstance(self.value, Metric):
            self.value.reset()
        self.value, self.total, self.weight = None, None, 0.0

    def reduced(self) -> Any:
        if isinstance(self.value, Metric):
            return self.value.compute()
        assert self.total is not None
        return self.total / self.weight if self.reduce_fx == "mean" else self.total


@dataclass
class Metrics:
    """The metrics of a run.

    Args:
        count_samples: Of a batch: its weight in a mean.

    Attributes:
        callback_metrics: The last value of every name, as numbers: what monitors read.
        progress_bar_metrics: Those that the progress bar shows; replaced, not changed, when there is news.
        updated: For every name, how many times it got a new value.
        stage: "train", "validation", "test" or "predict": whose names are collected, and by which defaults.
        awaited: The stage whose first epoch is still to come: until then, a name never logged is no mistake.
    """

    count_samples: Callable[[Any], int]
    awaited: str | None = None
    callback_metrics: dict[str, float] = field(default_factory=dict)
    progress_bar_metrics: dict[str, float] = field(default_factory=dict)
    updated: dict[str, int] = field(default_factory=dict)
    stage: str = "train"
    _muted: bool = False
    _batch: Any = None  # the one under way, for the weight in a mean; None between epochs
    _stages: dict[str, dict[str, _Logged]] = field(default_factory=lambda: defaultdict(dict))

    def read(self, batch: Any) -> None:
        """Note the batch that belongs to what is logged from now on."""
        self._batch = batch

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Ignore, within, what is logged: a step is seen again."""
        before, batch, self._muted = self._muted, self._batch, True
        try:
            yield
        finally:
            self._muted, self._batch = before, batch

    @contextmanager
    def collecting(self, stage: str) -> Iterator[None]:
        """Collect, within, for another stage; what it leaves unpublished after an exception is dropped."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before
            for entry in self._stages[stage].values():
                entry.clear()
            self._batch = None

    def log(
        self,
        name: str,
        value: Any,
        *,
        prog_bar: bool,
        logger: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: str,
        batch_size: int | None,
    ) -> None:
        """See ``Module.log``."""
        if self._muted:
            return
        entry = self._stages[self.stage].get(name)
        if entry is None:
            _check(name, value, reduce_fx)
            in_step = self.stage == "train" and self._batch is not None
            entry = self._stages[self.stage][name] = _Logged(
                on_step=in_step if on_step is None else on_step,
                on_epoch=not in_step if on_epoch is None else on_epoch,
                prog_bar=prog_bar,
                logger=logger,
                reduce_fx=reduce_fx,
            )
        if isinstance(value, Tensor):
            value = value.detach()
        entry.update(value, (batch_size or self.count_samples(self._batch)) if entry.on_epoch else 0)

    def log_step(self, values: Mapping[str, float]) -> dict[str, float]:
        """Publish the values of this step, the trainer's own and the logged ones; return those for the loggers.

        Synchronizes with the device: call it on a step that logs.
        """
        sent = dict(values)
        shown = {"train/loss": values["train/loss"]}
        for name in values:
            self.updated[name] = self.updated.get(name, 0) + 1
        for name, entry in self._stages[self.stage].items():
            if entry.on_step and entry.value is not None:
                value = entry.value.compute() if isinstance(entry.value, Metric) else entry.value
                name = f"{name}_step" if entry.on_epoch else name
                self._collect(name, entry, value, sent, shown)
                # A metric is kept, to be reset at the end of the epoch.
                if not entry.on_epoch and not isinstance(entry.value, Metric):
                    entry.value = None
        return self._publish(sent, shown)

    def log_iteration(self, values: Mapping[str, float]) -> dict[str, float]:
        """Publish the values of an iteration within a step, and show the objective; return those for the loggers."""
        for name in values:
            self.updated[name] = self.updated.get(name, 0) + 1
        return self._publish(dict(values), {"iteration/objective": values["iteration/objective"]})

    def log_epoch(self) -> dict[str, float]:
        """Publish the reductions over the epoch and start them anew; return those for the loggers."""
        sent: dict[str, float] = {}
        shown: dict[str, float] = {}
        for name, entry in self._stages[self.stage].items():
            if entry.on_epoch and entry.value is not None:
                name = f"{name}_epoch" if entry.on_step else name
                self._collect(name, entry, entry.reduced(), sent, shown)
            entry.clear()
        self._batch = None
        if self.stage == self.awaited:
            self.awaited = None
        return self._publish(sent, shown)

    def news(self, name: str, seen: int, reader: str) -> tuple[int, float] | None:
        """How many values a name got, and the last of them; None if that is the one ``seen`` before.

        Raises:
            ValueError: The name was never logged, though every stage was run; those that were are named.
        """
        count = self.updated.get(name, 0)
        if count == 0 and self.awaited is None:
            raise ValueError(
                f"{reader} monitors {name!r}, which was never logged; logged so far: "
                f"{', '.join(sorted(self.callback_metrics)) or 'nothing'}"
            )
        return None if count in (0, seen) else (count, self.callback_metrics[name])

    def _collect(self, name: str, entry: _Logged, value: Any, sent: dict[str, float], shown: dict[str, float]) -> None:
        number = float(value)
        self.callback_metrics[name] = number
        self.updated[name] = self.updated.get(name, 0) + 1
        if entry.logger:
            sent[name] = number
        if entry.prog_bar:
            shown[name] = number

    def _publish(self, sent: dict[str, float], shown: dict[str, float]) -> dict[str, float]:
        self.callback_metrics.update(sent)
        if shown:
            self.progress_bar_metrics = {**self.progress_bar_metrics, **shown}
        return sent


def _check(name: str, value: Any, reduce_fx: str) -> None:
    if reduce_fx not in _REDUCTIONS:
        raise ValueError(f"log({name!r}): reduce_fx={reduce_fx!r} is not one of {', '.join(_REDUCTIONS)}")
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"log({name!r}): the value has shape {tuple(value.shape)}; log a scalar, such as its mean()")
    if not isinstance(value, Tensor | Metric | int | float):
        raise TypeError(f"log({name!r}): {type(value).__name__} is not a number, a tensor or a torchmetrics.Metric")
