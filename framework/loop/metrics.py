"""What ``Module.log`` collects: the value of a step, the reduction over an epoch, and who wants to see them.

Nothing here waits for the device while a step is taken: what is logged is kept as it comes, and becomes a number when
somebody reads it. Loggers read on every ``log_every_n_steps``-th step and at the end of an epoch; monitors and the
progress bar whenever they look.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from framework.data.samples import first_length
from framework.loop.processes import Processes
from framework.module import Module
from framework.objective.replay import is_metric

if TYPE_CHECKING:
    from torchmetrics import Metric

Value = float | Tensor

_REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": torch.add,
    "sum": torch.add,
    "min": torch.minimum,
    "max": torch.maximum,
}


class _Options(NamedTuple):
    """Those of a ``log`` call; they stay the same for a name."""

    on_step: bool
    on_epoch: bool
    prog_bar: bool
    logger: bool
    reduce_fx: str


@dataclass(slots=True)
class _Entry:
    """A name that the module logs in one stage, and its running reduction.

    Attributes:
        name: As the module calls it.
        options: How it is logged.
        metric: The `torchmetrics.Metric` that is logged, if it is one.
        dataloader_idx: From which of several loaders it comes; None if there is one, or from outside of its batches.
        logged: Whether it was logged since the epoch began.
        unsent: The last value of a step that the loggers have not got; None if they have.
        unsent_weight: The number of samples behind it, where several processes take the mean of theirs.
        total: The reduction over the epoch so far; not for a `torchmetrics.Metric`, which does that itself.
        weight: The sum of the weights in a mean.
    """

    name: str
    options: _Options
    metric: Metric | None
    dataloader_idx: int | None = None
    logged: bool = False
    unsent: Value | None = None
    unsent_weight: float = 1.0
    total: Tensor | None = None
    weight: float = 0.0

    @property
    def step_names(self) -> tuple[str, ...]:
        """What the value of a step is called: first for loggers and the progress bar, all of them for monitors."""
        return (f"{self.name}_step", self.name) if self.options.on_epoch else (self.name,)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        """The same for the reduction over the epoch."""
        return (f"{self.name}_epoch", self.name) if self.options.on_step else (self.name,)

    def add(self, value: Value, weight: float) -> None:
        """Take one more value into the reduction."""
        term = torch.as_tensor(value, dtype=torch.float64) if not isinstance(value, Tensor) else value
        if self.options.reduce_fx == "mean":
            term = term * weight
        self.total = term if self.total is None else _REDUCTIONS[self.options.reduce_fx](self.total, term)
        self.weight += weight

    def reduced(self) -> float:
        """The reduction over the epoch, as a number."""
        if self.metric is not None:
            return float(_value(self.name, self.metric.compute()))
        assert self.total is not None
        return float(self.total / self.weight if self.options.reduce_fx == "mean" else self.total)

    def logged_here(self) -> dict[str, Any]:
        """Return what this process has logged, as plain data."""
        return {
            "options": self.options._asdict(),
            "logged": self.logged,
            "unsent": None if self.unsent is None else float(self.unsent),
            "unsent_weight": self.unsent_weight,
            "total": None if self.total is None else float(self.total),
            "weight": self.weight,
        }

    def clear(self) -> None:
        """Start anew."""
        if self.metric is not None and self.logged:
            self.metric.reset()
        self.logged, self.unsent, self.total, self.weight = False, None, None, 0.0


class EpochLoss:
    """The mean of f over the steps of an epoch, weighted by samples.

    A step only appends its tensor to a list: an addition on the device would be 1 to 5 % of a small step.
    """

    def __init__(self) -> None:
        self._recent: list[Tensor] = []
        self._stacked: list[Tensor] = []  # a tensor of its own for every loss would fill the memory in a long epoch
        self._weights: list[float] = []
        self._total = 0.0
        self._weight = 0.0

    def add(self, loss: Tensor, weight: float) -> None:
        """Note f of a step, a 0-d tensor that nobody writes into."""
        self._recent.append(loss)
        self._weights.append(weight)
        if len(self._recent) == 1024:
            self._stack()

    def read(self) -> list[float]:
        """Add up what was not read before; return it, in order. Waits for the device."""
        if self._recent:
            self._stack()
        losses = [loss for stacked in self._stacked for loss in stacked.tolist()]
        # One after the other: the sum does not depend on when it was read, so a resumed run has it bitwise.
        for loss, weight in zip(losses, self._weights, strict=True):
            self._total += loss * weight
            self._weight += weight
        self._stacked, self._weights = [], []
        return losses

    def take(self) -> float | None:
        """Return the mean, and start anew; None if there was no step."""
        self.read()
        mean = self._total / self._weight if self._weight else None
        self._total, self._weight = 0.0, 0.0
        return mean

    def state_dict(self) -> dict[str, float]:
        """Return the sum so far."""
        self.read()
        return {"total": self._total, "weight": self._weight}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a sum."""
        self._total, self._weight = state["total"], state["weight"]

    def _stack(self) -> None:
        self._stacked.append(torch.stack(self._recent).flatten())
        self._recent = []


class Metrics:
    """The metrics of a run.

    Args:
        module: Who logs, and says how many samples a batch has.
        awaited: The stage whose first epoch is still to come: until then, a name never logged is no mistake.
        own: The trainer's own values as of the last step; they are asked for when somebody reads. A name that the
            module logs, too, is the module's.
        processes: If there are several, means and the like are those over the samples of all of them.
        muted: Ignore whatever is logged, with a warning the first time.

    Attributes:
        stage: "train", "validation", "test" or "predict": whose names are collected, and by which defaults; None where
            nobody collects.
        dataloader_idx: Which of several loaders is being read; None if there is only one.
        epoch_loss: The mean of f over the epoch, ``train/loss_epoch``.
        count_samples: Counts the samples of a batch, its weight in means.
    """

    def __init__(
        self,
        module: Module,
        *,
        awaited: str | None = None,
        own: Callable[[], Iterable[tuple[str, Value]]] = tuple,
        processes: Processes | None = None,
        muted: bool = False,
    ) -> None:
        self.stage: str | None = None
        self.dataloader_idx: int | None = None
        self.epoch_loss = EpochLoss()
        self._module = module
        self.count_samples: Callable[[Any], int] = module.count_samples
        self._awaited = awaited
        self._own = own
        self._processes = processes
        self._muted = self._is_mute = muted
        # The one or several under way, whose samples are the weight in a mean; None between epochs.
        self._batches: list[Any] | None = None
        self._counted: tuple[Any, int] = (None, 1)  # the last batch that was counted, and its samples
        self._warned = False
        self._steps = 0
        self._entries: dict[str | None, dict[str, _Entry]] = defaultdict(dict)
        # Of every name, as monitors know it: the last value, and how many there were.
        self._latest: dict[str, tuple[Value, int]] = {}

    # ------------------------------------------------------------------------------------------------- contexts

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Ignore, within, what is logged: a step is seen again."""
        before, batches, self._muted = self._muted, self._batches, True
        try:
            yield
        finally:
            self._muted, self._batches = before, batches

    @contextmanager
    def collecting(self, stage: str | None) -> Iterator[None]:
        """Collect, within, for another stage, or for none.

        What is left unpublished is dropped. After an exception the module's torchmetrics are reset, too: also those
        that were updated and not yet logged.
        """
        self.note_own()
        before, self.stage = self.stage, stage
        self._batches = None
        try:
            yield
        except BaseException:
            for part in self._module.modules():
                if is_metric(part):
                    part.reset()
            raise
        finally:
            self.stage = before
            for entry in self._entries[stage].values():
                entry.clear()
            self._batches = None

    # ------------------------------------------------------------------------------------------------ collecting

    def read(self, batch: Any) -> None:
        """Note the batch that belongs to what is logged from now on."""
        self._batches = [batch]

    def read_nothing(self) -> None:
        """Note that what is logged from now on belongs to no batch."""
        self._batches = None

    def read_group(self, batches: Iterable[Any]) -> None:
        """Note that all the batches of a step belong to what is logged from now on."""
        # A whole epoch is read anew at every pass: it weighs 1, as the only step of its epoch.
        self._batches = batches if isinstance(batches, list) else []

    def log(
        self,
        name: str,
        value: Any,
        *,
        prog_bar: bool,
        logger: bool,
        on_step: bool | None,
        on_epoch: bool | None,
        reduce_fx: Any,
        batch_size: int | None,
        add_dataloader_idx: bool,
    ) -> None:
        """See ``Module.log``."""
        if self._muted:
            if self._is_mute and not self._warned:
                self._warned = True
                warnings.warn(f"log({name!r}) has no effect with Trainer(barebones=True)", stacklevel=3)
            return
        if self._processes is not None and self._batches and self._processes.is_padding(self._batches[-1]):
            return
        if self.stage is None:
            raise RuntimeError(
                f"log({name!r}): nothing is collected here. Log between on_fit_start and on_train_epoch_end, or "
                "between on_validation_start and on_validation_epoch_end (and so for test and predict)"
            )
        if self.dataloader_idx is not None and add_dataloader_idx:
            name = f"{name}/dataloader_idx_{self.dataloader_idx}"
        in_step = self.stage == "train" and self._batches is not None
        options = _Options(
            on_step=in_step if on_step is None else on_step,
            on_epoch=not in_step if on_epoch is None else on_epoch,
            prog_bar=prog_bar,
            logger=logger,
            reduce_fx=reduce_fx if isinstance(reduce_fx, str) else _name_of_reduction(name, reduce_fx),
        )
        metric = value if is_metric(value) else None
        entry = self._entries[self.stage].get(name)
        if entry is None:
            _check_options(name, options)
            entry = self._entries[self.stage][name] = _Entry(
                name, options, metric, self.dataloader_idx if add_dataloader_idx else None
            )
        elif entry.options != options or entry.metric is not metric:
            _refuse_change(entry, options)
        if metric is None:
            value = _value(name, value)
            if options.on_epoch:
                entry.add(value, self._weight(name, batch_size) if options.reduce_fx == "mean" else 1)
        elif options.on_step:
            value = _value_of_step(name, metric)
        entry.logged = True
        if options.on_step:
            entry.unsent = value
            if self._processes is not None:
                entry.unsent_weight = self._weight(name, batch_size)
            for public_name in entry.step_names:
                self._publish(public_name, value)

    def end_step(self, loss: Tensor, batches: Iterable[Any], weight: float | None = None) -> None:
        """Note f of the step just taken over these batches; ``weight`` is the number of samples if it is known."""
        self.read_group(batches)
        self.epoch_loss.add(loss, self._weight("train/loss_epoch", None) if weight is None else weight)
        self._steps += 1

    def end_skipped_step(self, batches: Iterable[Any]) -> None:
        """Note that no step was taken over these batches: its f counts with weight 0."""
        self.end_step(torch.zeros((), device=self._module.device), batches, 0.0)

    def _weight(self, name: str, batch_size: int | None) -> int:
        if batch_size is not None:
            return batch_size
        batches = self._batches
        if not batches:
            return 1
        return sum([self._num_samples(name, batch) for batch in batches])

    def _num_samples(self, name: str, batch: Any) -> int:
        if self._counted[0] is not batch:
            self._counted = (batch, 1 if batch is None else self._count_or_guess(name, batch))
        return self._counted[1]

    def _count_or_guess(self, name: str, batch: Any) -> int:
        try:
            return self.count_samples(batch)
        except ValueError as error:
            length = first_length(batch)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"the mean {name!r} is weighted by {length}, the length of the batch's first tensor: {error}",
                    stacklevel=2,
                )
            return length

    # ------------------------------------------------------------------------------------------------ publishing

    def log_step(self, own: Mapping[str, float]) -> dict[str, float]:
        """Return what the loggers get of the step just taken: the trainer's own values and the logged ones.

        Waits for the device: to be called on a step that logs.
        """
        if self._processes is not None:
            self._merge(self._processes)
        logged_names = self._logged_names()
        sent = {name: value for name, value in own.items() if name not in logged_names}
        for name, value in sent.items():
            self._latest[name] = (value, self._steps)
        for entry in self._entries[self.stage].values():
            if entry.unsent is not None and entry.options.logger:
                sent[entry.step_names[0]] = float(entry.unsent)
            entry.unsent = None
        return sent

    def log_iteration(self, values: Mapping[str, float]) -> dict[str, float]:
        """Publish the trainer's own values of an iteration within a step; return those for the loggers."""
        sent = {name: value for name, value in values.items() if name not in self._logged_names()}
        for name, value in sent.items():
            self._publish(name, value)
        return sent

    def log_epoch(self) -> dict[str, float]:
        """Publish the reductions over the epoch and start them anew; return those for the loggers."""
        if self._processes is not None:
            self._merge(self._processes, of_epoch=True)
        sent: dict[str, float] = {}
        loss = self.epoch_loss.take() if self.stage == "train" else None
        if loss is not None and "train/loss_epoch" not in self._logged_names():
            sent["train/loss_epoch"] = loss
            self._publish("train/loss_epoch", loss)
        for entry in self._entries[self.stage].values():
            if entry.options.on_epoch and entry.logged:
                value = entry.reduced()
                for name in entry.epoch_names:
                    self._publish(name, value)
                if entry.options.logger:
                    sent[entry.epoch_names[0]] = value
            entry.clear()
        self._batches = None
        self._counted = (None, 1)
        if self.stage == self._awaited:
            self._awaited = None
        return sent

    def of_loader(self, values: Mapping[str, float], dataloader_idx: int) -> dict[str, float]:
        """Return those of an epoch's values that belong to one of several loaders, or to none of them."""
        entries = self._entries[self.stage].values()
        others = {e.epoch_names[0] for e in entries if e.dataloader_idx not in (None, dataloader_idx)}
        return {name: value for name, value in values.items() if name not in others}

    def _merge(self, processes: Processes, *, of_epoch: bool = False) -> None:
        """Replace what this process logged by what all of them did: values of the step, or also sums ``of_epoch``."""
        names = self._names_of_metrics()
        entries = self._entries[self.stage]
        own = {
            name: {**entry.logged_here(), "metric": names.get(entry.metric), "dataloader_idx": entry.dataloader_idx}
            for name, entry in entries.items()
        }
        logged = _merged(processes.gather(own))
        for name, one in logged.items():
            metric: Any = None if one["metric"] is None else self._module.get_submodule(one["metric"])
            entry = entries.setdefault(name, _Entry(name, _Options(**one["options"]), metric, one["dataloader_idx"]))
            if one["unsent"] is not None:
                entry.unsent, entry.unsent_weight = one["unsent"], one["unsent_weight"]
                for public_name in entry.step_names:
                    self._latest[public_name] = (one["unsent"], max(1, self._count_of(public_name)))
            if of_epoch and entry.metric is not None:
                entry.logged = one["logged"]  # a torchmetric is computed by all, or by none
            elif of_epoch and one["total"] is not None:
                entry.logged, entry.weight = True, one["weight"]
                entry.total = torch.tensor(one["total"], dtype=torch.float64)
        self._entries[self.stage] = {name: entries[name] for name in logged}  # in the same order everywhere

    def _names_of_metrics(self) -> dict[Metric | None, str]:
        return {part: name for name, part in self._module.named_modules() if is_metric(part)}

    def _publish(self, name: str, value: Value) -> None:
        self._latest[name] = (value, self._count_of(name) + 1)

    def _count_of(self, name: str) -> int:
        return self._latest[name][1] if name in self._latest else 0

    def note_own(self, up_to: str | None = None) -> None:
        """Bring the trainer's own values up to date: all, or in their order up to one."""
        if self.stage != "train" or not self._steps:
            return
        logged_names = self._logged_names()
        for name, value in self._own():
            if name not in logged_names:
                self._latest[name] = (value, self._steps)
            if name == up_to:
                return

    def _logged_names(self) -> set[str]:
        """The names that are the module's, in all their forms."""
        entries = (entry for stage in self._entries.values() for entry in stage.values())
        return {name for entry in entries for name in (entry.name, *entry.step_names, *entry.epoch_names)}

    # --------------------------------------------------------------------------------------------------- reading

    @property
    def callback_metrics(self) -> dict[str, float]:
        """The last value of every name, as numbers. Waits for the device."""
        self.note_own()
        return {name: float(value) for name, (value, _) in self._latest.items()}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The last values of those names that the progress bar shows. Waits for the device."""
        self.note_own(up_to="train/loss")
        shown = dict.fromkeys(("train/loss", "iteration/objective"))
        for entries in self._entries.values():
            for entry in entries.values():
                if entry.options.prog_bar:
                    shown |= dict.fromkeys(entry.step_names[:1] if entry.options.on_step else ())
                    shown |= dict.fromkeys(entry.epoch_names[:1] if entry.options.on_epoch else ())
        return {name: float(self._latest[name][0]) for name in shown if name in self._latest}

    def news(self, name: str, seen: int, reader: str, *, strict: bool = True) -> tuple[int, float] | None:
        """How many values a name got, and the last of them; None if that is the one ``seen`` before.

        Raises:
            ValueError: If the name was never logged, though every stage was run, and ``strict``; the names that were
                logged are listed.
        """
        if name not in self._logged_names():
            self.note_own(up_to=name)
        count = self._count_of(name)
        if self._processes is not None:  # what was logged in single steps may differ
            known = self._processes.gather((float(self._latest[name][0]) if count else 0.0, count))
            last = max(known, key=lambda one: one[1])  # of those that know most, the first
            count = last[1]
            if count:
                self._latest[name] = last
        if count == 0 and self._awaited is None and strict:
            raise ValueError(
                f"{reader} monitors {name!r}, which was never logged; logged so far: "
                f"{', '.join(sorted(self._latest)) or 'nothing'}"
            )
        return None if count in (0, seen) else (count, float(self._latest[name][0]))

    # --------------------------------------------------------------------------------------- saving, continuing

    def state_dict(self) -> dict[str, Any]:
        """Return what goes on in another run: the values, and the sums of the epoch under way. Waits for the device.

        The states of torchmetrics are not in it: see `framework.objective.replay.metric_states`.
        """
        self.note_own()
        names = self._names_of_metrics()
        sums = {
            name: {**entry.logged_here(), "metric": None if entry.metric is None else names[entry.metric]}
            for name, entry in self._entries["train"].items()
            if entry.metric is None or entry.metric in names
        }
        return {
            "latest": {name: (float(value), count) for name, (value, count) in self._latest.items()},
            "steps": self._steps,
            "epoch_loss": self.epoch_loss.state_dict(),
            "sums": sums if self._processes is None else _merged(self._processes.gather(sums)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._latest = {name: (value, count) for name, (value, count) in state["latest"].items()}
        self._steps = state["steps"]
        self.epoch_loss.load_state_dict(state["epoch_loss"])
        for name, saved in state["sums"].items():
            metric: Any = None if saved["metric"] is None else self._module.get_submodule(saved["metric"])
            entry = self._entries["train"][name] = _Entry(name, _Options(**saved["options"]), metric)
            if self._processes is not None and self._processes.rank > 0:
                continue  # the sum is that of all processes: one of them keeps it
            entry.logged, entry.unsent, entry.weight = saved["logged"], saved["unsent"], saved["weight"]
            if saved["total"] is not None:
                entry.total = torch.tensor(saved["total"], dtype=torch.float64)


def _merged(logged_by_all: Iterable[Mapping[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return what several processes logged as if one had: the sums of all, and the weighted mean of the last values."""
    merged: dict[str, dict[str, Any]] = {}
    for logged in logged_by_all:
        for name, one in logged.items():
            before = merged.setdefault(name, one)
            if before is one:
                continue
            both = {**before, "logged": before["logged"] or one["logged"], "weight": before["weight"] + one["weight"]}
            for key in ("total", "unsent", "metric"):
                if before[key] is None:
                    both[key] = one[key]
            if before["unsent"] is None:
                both["unsent_weight"] = one["unsent_weight"]
            elif one["unsent"] is not None:
                weights = before["unsent_weight"], one["unsent_weight"]
                both["unsent_weight"] = sum(weights)
                both["unsent"] = (before["unsent"] * weights[0] + one["unsent"] * weights[1]) / sum(weights)
            if before["total"] is not None and one["total"] is not None:
                terms = (torch.tensor(each["total"], dtype=torch.float64) for each in (before, one))
                both["total"] = float(_REDUCTIONS[before["options"]["reduce_fx"]](*terms))
            merged[name] = both
    return merged


def _value(name: str, value: Any) -> Value:
    """What was logged, as a number or as a tensor of its own: without a graph, and of high precision."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"log({name!r}): the value has shape {tuple(value.shape)}; log a scalar, such as its mean()"
            )
        dtype = torch.float32 if value.device.type == "mps" else torch.float64
        return value.detach().to(dtype, copy=True)
    if isinstance(value, int | float):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _value(name, value.item() if value.size == 1 else torch.from_numpy(value))
    raise TypeError(f"log({name!r}): {type(value).__name__} is not a number, a tensor or a torchmetrics.Metric")


def _value_of_step(name: str, metric: Metric) -> Value:
    if metric._forward_cache is None:
        kind = type(metric).__name__
        raise ValueError(
            f"log({name!r}): a {kind} that was only updated has no value of this step. Call it, metric(...) instead of "
            "metric.update(...), or log it with on_step=False, on_epoch=True"
        )
    return _value(name, metric._forward_cache)


def _name_of_reduction(name: str, reduction: Any) -> str:
    """Return what a function such as `torch.mean` or `max` is called."""
    if (called := getattr(reduction, "__name__", "")) not in _REDUCTIONS:
        raise ValueError(
            f"log({name!r}): reduce_fx={reduction!r} is not one of {', '.join(_REDUCTIONS)}, nor the function of that "
            "name of torch or Python; log a torchmetrics.Metric instead"
        )
    return str(called)


def _check_options(name: str, options: _Options) -> None:
    if name == "step":
        raise ValueError("log('step'): loggers call the number of the step so; use another name, such as 'my_step'")
    if options.reduce_fx not in _REDUCTIONS:
        raise ValueError(f"log({name!r}): reduce_fx={options.reduce_fx!r} is not one of {', '.join(_REDUCTIONS)}")
    if not (options.on_step or options.on_epoch):
        raise ValueError(f"log({name!r}): with on_step=False, on_epoch=False nobody sees it; set one of them to True")


def _refuse_change(entry: _Entry, options: _Options) -> None:
    before, now = entry.options._asdict(), options._asdict()
    changed = [f"{key}={before[key]} before and {key}={now[key]} now" for key in now if before[key] != now[key]]
    raise ValueError(
        f"log({entry.name!r}) was called with {' and '.join(changed) or 'another torchmetrics.Metric before'}: a name "
        "keeps its options within a stage. Pass the same ones at every call, or use two names. (on_step and on_epoch "
        "have other defaults between the steps than in them)"
    )
