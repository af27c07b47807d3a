"""A data loader as the loop reads it: cut to a limit, and moved to the device."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from framework.data import TensorLoader
from framework.fabric import move_to_device
from framework.loop.overrides import describe, overrides
from framework.loop.processes import Processes, rng_state_of, rng_states_of, set_rng_state_of, set_rng_states_of
from framework.loop.progress import Progress
from framework.loop.settings import Settings
from framework.loop.sources import Sources
from framework.loop.validation import (
    check_loader,
    check_readable_again,
    check_train_limit,
    is_collection,
    is_lightnings,
    num_batches,
    num_passes,
    num_validation_passes,
)
from framework.module import Module
from framework.objective.replay import Generator, find_generators


class Batches:
    """The first ``limit`` batches of a loader, on a device.

    Args:
        loader: A `DataLoader`, a `TensorLoader` or any iterable of batches.
        limit: How many batches (int) or what fraction of them (float) to read; None means all.
        device: Where batches should live. A loader with a method ``to`` is moved as a whole, once.
        name: What to call the loader in error messages.
        processes: If there are several, this one reads its share; a limit counts batches of all of them together.
        transfer: Moves a batch to the device in the module's own way.

    Attributes:
        given: The loader, or the collection of them, as it was passed.
        loader: What is read: on the device if it can be moved, and with several processes this one's share.
        num_batches: How many batches are read in an epoch; infinite for a stream without length.
        profiler: What is told of every batch; None for nobody.
    """

    def __init__(
        self,
        loader: Any,
        *,
        limit: int | float | None,
        device: torch.device,
        name: str,
        processes: Processes | None = None,
        transfer: Callable[[Any], Any] | None = None,
    ) -> None:
        check_loader(loader, name)
        self.given = getattr(loader, "given", loader)
        self._whole = loader
        if processes is not None:
            from framework.loop.shards import shard

            loader = shard(loader, processes, name)
        self._processes = processes
        self.loader = loader.to(device) if hasattr(loader, "to") else loader
        self.name = name
        self.limit = limit
        # On the CPU nothing needs to be moved, and moving would cost as much as a small batch.
        self._device = None if device.type == "cpu" or hasattr(loader, "to") else device
        self._transfer = transfer
        self.profiler: Any = None
        self.epoch = 0
        self._has_begun = self._goes_on = self._is_left = False
        self._held: Batches | None = None
        self._held_rng: dict[str, Any] | None = None
        self._held_padding: set[int] = set()
        # Such a loader derives the order of an epoch from the epoch's number, others draw it from random generators.
        self.has_epochs = hasattr(loader, "set_epoch") and not getattr(loader, "may_draw", False)

    @property
    def limit(self) -> int | float | None:
        """The limit; None for all batches, also if -1 was given."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | float | None) -> None:
        self._limit = None if limit == -1 else limit
        self.num_batches = _limited(num_batches(self.loader), self._limit, self.name)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches of ``self.epoch``: for one seed, always the same ones in the same order."""
        for owner in (self.loader, *(getattr(self.loader, name, None) for name in ("sampler", "batch_sampler"))):
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(self.epoch)
        return self._read(done=0)

    def resume(self, done: int, rng: Mapping[str, Any]) -> Iterator[Any]:
        """Iterate over the batches of ``self.epoch`` that are left after ``done`` of them. Random streams stay.

        A loader that was given its own state (`load_state_dict`) goes on from there. Of any other, the epoch is drawn
        again, from the random state ``rng`` at its start, and what is done is skipped.
        """
        generators = self.generators()
        now = rng_state_of(self._processes, generators)
        if self._goes_on:
            rest = self._read(done)
        else:
            set_rng_state_of(self._processes, rng or now, generators)
            rest = iter(self)
            next(itertools.islice(rest, done, done), None)
        set_rng_state_of(self._processes, now, generators)
        return rest

    def _read(self, done: int) -> Iterator[Any]:
        self._has_begun, self._goes_on, self._is_left = True, False, False
        batches: Iterator[Any] = iter(self.loader)
        if self._limit is not None:
            batches = itertools.islice(batches, int(self.num_batches) - done)
        if self._transfer is not None:
            batches = map(self._transfer, batches)
        elif self._device is not None:
            batches = (move_to_device(batch, self._device) for batch in batches)
        if self.profiler is not None:
            from framework.profiler import timed_iterator

            batches = timed_iterator(self.profiler, f"{self.name}, next batch", batches)
        return batches if self._processes is None else self._noting_padding(batches, done)

    def _noting_padding(self, batches: Iterator[Any], done: int) -> Iterator[Any]:
        assert self._processes is not None
        is_padding = getattr(self.loader, "is_padding", self._held_padding.__contains__)
        for index, batch in enumerate(batches, done):
            self._processes.note_padding(batch if is_padding(index) else None)
            yield batch

    def hold(self) -> None:
        """Read the batches once and repeat exactly those from now on (``overfit_batches``)."""
        self._held_rng, self._held = rng_states_of(self._processes, self.generators()), copy.copy(self)
        self._held._transfer = None
        self._read_held()
        self.limit = None

    def _read_held(self) -> None:
        """Read the batches to repeat, and note which of them is padding."""
        assert self._held is not None
        self.loader, self._device, self._held_padding = [], None, set()
        for index, batch in enumerate(self._held):
            self.loader.append(batch)
            if self._processes is not None and self._processes.is_padding(batch):
                self._held_padding.add(index)

    def generators(self) -> list[Generator]:
        """Return the generators that batches are drawn from, besides the global ones and those set by ``set_epoch``."""
        return [] if self._held is not None else find_generators(self._whole)

    def rng_state(self) -> dict[str, Any]:
        """Return the random state that the order of an epoch is drawn from."""
        return rng_state_of(self._processes, self.generators())

    # --------------------------------------------------------------------------------------- saving, continuing

    def fingerprint(self) -> dict[str, Any]:
        """Return how many batches an epoch has, of how many samples each and together, as far as this is known.

        The batches that several processes read at the same time are one. Of several loaders, each has its numbers.
        """
        together = 1 if self._processes is None else self._processes.size
        sizes, samples = zip(*map(_sizes_of, getattr(self._whole, "datasets", [self._whole])), strict=True)
        sizes = tuple(size and size * together for size in sizes)
        return {
            "num_batches": None if self.num_batches == math.inf else int(self.num_batches),
            "batch_size": sizes[0] if len(sizes) == 1 else list(sizes),
            "num_samples": samples[0] if len(samples) == 1 else list(samples),
        }

    def parts(self) -> list[Any]:
        """Return the loaders that batches are read from at every epoch; none if they are held."""
        return [] if self._held is not None else getattr(self._whole, "datasets", [self._whole])

    def counting_by(self, module: Module) -> Callable[[Any], int]:
        """Return what counts the samples of a batch: of several loaders, by default, those of the first."""
        if overrides(module, "count_samples") or not hasattr(self._whole, "counting_by"):
            return module.count_samples
        count: Callable[[Any], int] = self._whole.counting_by(module.count_samples)
        return count

    def state_dict(self, *, is_at: bool) -> dict[str, Any]:
        """Return what the next batches depend on besides the random state of the epoch.

        These are the state of a loader that has a ``state_dict`` of its own, and the random state that the batches of
        ``overfit_batches`` were drawn from.

        Args:
            is_at: Whether the loader is where the run is. Within a step it is further; then a continued run skips.
        """
        own = is_at and self._keeps_state()
        loader = self.loader.state_dict() if own else None
        return {"loader": loader, "is_left": self._is_left, "held_rng": self._held_rng}

    def load_state_dict(self, state: Mapping[str, Any], *, within_epoch: bool) -> None:
        """Take back what `state_dict` gave, before the first batch is read."""
        if state["loader"] is not None and self._keeps_state():
            self.loader.load_state_dict(state["loader"])
            self._goes_on = within_epoch
            if not within_epoch and (self._limit is not None or state["is_left"]):
                self._break_off()
        if state["held_rng"] is not None and self._held is not None:
            generators = self._held.generators()
            now = rng_state_of(self._processes, generators)
            set_rng_states_of(self._processes, state["held_rng"], generators)
            self._read_held()
            self._held_rng = state["held_rng"]
            set_rng_state_of(self._processes, now, generators)

    def _break_off(self) -> None:
        """Break an epoch off, as a limit did before the state was saved, so that the next one starts anew."""
        generators = self.generators()
        now = rng_state_of(self._processes, generators)
        next(self._read(done=0), None)
        set_rng_state_of(self._processes, now, generators)

    def leave_epoch(self) -> None:
        """Note that the epoch is broken off here: a loader that keeps its own state must not go on from there."""
        self._is_left = True

    def start_workers(self) -> None:
        """Start workers that persist, as the first epoch of a run does: the next one draws no seed for them."""
        if getattr(self.loader, "persistent_workers", False) and not self._has_begun:
            generators = self.generators()
            now = rng_state_of(self._processes, generators)
            self._read(done=0)
            set_rng_state_of(self._processes, now, generators)

    def _keeps_state(self) -> bool:
        several = self._processes is not None  # their number may be another one when the run continues
        return not several and hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict")


def groups(batches: Batches, size: int | str, progress: Progress) -> Iterator[tuple[int, float, Any]]:
    """Yield the batches of every step of an epoch, or of the part of it that ``progress`` says is left.

    Args:
        batches: All the batches of an epoch.
        size: How many batches make up one step (the last step takes what is left), or "epoch" for all of them.
        progress: Which epoch it is, and how many of its batches are done.

    Yields:
        The index of the step's first batch; the index after its last, infinite if the data were read to their end; and
        the batches: a list, or for "epoch" the ``batches`` themselves, to be read as often as needed.
    """
    batches.epoch = progress.epoch
    if progress.batch_idx == math.inf:
        return  # they were read to their end before the interruption
    if progress.epoch > 0:
        batches.start_workers()
    if size == "epoch":
        if progress.batch_idx == 0:
            yield 0, math.inf, batches
        return
    start = int(progress.batch_idx)
    if start == 0:
        # Reading the state of three generators takes as long as a small step: only do it if the order depends on it.
        progress.epoch_rng = {} if batches.has_epochs else batches.rng_state()
        rest = iter(batches)
    else:
        rest = batches.resume(start, progress.epoch_rng)
    while group := list(itertools.islice(rest, int(size))):
        end = start + len(group)
        yield start, end if len(group) == size else math.inf, group
        start = end


def num_steps(num_batches: float, size: int | str) -> float:
    """Compute the number of steps per epoch; infinite for a stream without length."""
    if size == "epoch":
        return 1
    steps = num_batches / int(size)
    return steps if steps == math.inf else math.ceil(steps)


def total_steps(num_batches: float, size: int | str, max_epochs: int, max_steps: int) -> float:
    """Compute the number of steps up to the limits, of which -1 is none; infinite if there is no end."""
    steps = num_steps(num_batches, size) * max_epochs
    return min(limit if limit >= 0 else math.inf for limit in (steps, max_steps))


def read_train_data(
    settings: Settings, sources: Sources, device: torch.device, processes: Processes | None = None
) -> Batches:
    """Return the training data of a fit, cut to the limits.

    Raises:
        TypeError: If they are not iterables of batches.
        ValueError: If there are none, or they can be read only once but the run would read them again.
    """
    name, held = "train_dataloaders", settings.overfit_batches
    loader = combined(sources.needed_loaders("train", "fit"), name, in_sequence=False)
    if not held:
        check_train_limit(settings.limit_train_batches)
        check_readable_again(loader, name, num_passes(settings.max_epochs, settings.accumulate_grad_batches))
    batches = Batches(
        loader,
        limit=held or settings.limit_train_batches,
        device=device,
        name=name,
        processes=processes,
        transfer=sources.transfer(device, 0),
    )
    if held:
        batches.hold()
    return batches


def read_val_data(
    settings: Settings, module: Module, sources: Sources, device: torch.device, processes: Processes | None = None
) -> list[Batches]:
    """Return the validation data of a fit, cut to the limits: one for each loader.

    Raises:
        TypeError: If they are not iterables of batches.
        ValueError: If they have no batches, or can be read only once but the run would read them again, or the module
            has no `validation_step` for them.
    """
    limit = settings.overfit_batches or settings.limit_val_batches
    if limit == 0 or (loaders := sources.loaders("validation")) is None or not sources.uses(module, "validation"):
        return []
    named = named_loaders(loaders, "val_dataloaders")
    for name, loader in named:
        check_readable_again(loader, name, num_validation_passes(settings))
    return cut_each(named, limit, sources, device, processes)


def cut_each(
    named: Sequence[tuple[str, Any]],
    limit: int | float | None,
    sources: Sources,
    device: torch.device,
    processes: Processes | None = None,
) -> list[Batches]:
    """Return loaders that are read one after the other, each with its name in errors, cut to a limit."""
    return [
        Batches(
            loader,
            limit=limit,
            device=device,
            name=name,
            processes=processes,
            transfer=sources.transfer(device, index),
        )
        for index, (name, loader) in enumerate(named)
    ]


def combined(loaders: Any, name: str, *, in_sequence: bool = True) -> Any:
    """Return a collection of loaders, or a `CombinedLoader` of Lightning's, as one loader; anything else as it is.

    Raises:
        TypeError: If one of them is not an iterable of batches.
        ValueError: If one of them has no batches or can be read only once, there are none, or they would be read one
            after the other, but not ``in_sequence``.
    """
    is_lightning = is_lightnings(type(loaders), "CombinedLoader")
    if not (is_lightning or is_collection(loaders)):
        return loaders
    if is_lightning and loaders._mode == "sequential" and not in_sequence:
        raise ValueError(
            f"{name} is a CombinedLoader in the mode 'sequential', which is one for validation: to train, use the mode "
            "'max_size_cycle', 'max_size' or 'min_size', or concatenate the datasets"
        )
    parts = _enumerated(loaders.flattened, name) if is_lightning else named_loaders(loaders, name)
    if not parts:
        raise ValueError(f"{name} holds no loader: {describe(loaders)}; pass at least one")
    for part_name, part in parts:
        check_loader(part, part_name)
        check_readable_again(part, part_name, math.inf)
    from framework.loop.combined import Combined

    return Combined(loaders)


def named_loaders(given: Any, name: str) -> list[tuple[str, Any]]:
    """Return the loaders that are to be read one after the other: each with its name in errors."""
    if is_lightnings(type(given), "CombinedLoader"):
        return _enumerated(given.flattened, name) if given._mode == "sequential" else [(name, combined(given, name))]
    if not is_collection(given):
        return [(name, given)]
    items = given.items() if isinstance(given, Mapping) else enumerate(given)
    return [one for key, part in items for one in named_loaders(part, f"{name}[{key!r}]")]


def _enumerated(loaders: Sequence[Any], name: str) -> list[tuple[str, Any]]:
    return [(f"{name}[{index}]", loader) for index, loader in enumerate(loaders)]


def _sizes_of(loader: Any) -> tuple[int | None, int | None]:
    """Return how many samples a batch of a loader has, and how many there are together, as far as this is known."""
    owners = (loader, getattr(loader, "batch_sampler", None))
    sizes = [size for owner in owners if isinstance(size := getattr(owner, "batch_size", None), int)]
    data = loader if isinstance(loader, TensorLoader) else getattr(loader, "dataset", None)
    samples = data.num_samples if isinstance(data, TensorLoader) else num_batches(data)
    return next(iter(sizes), None), None if samples == math.inf else int(samples)


def _limited(num_batches: float, limit: int | float | None, name: str) -> float:
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return num_batches
    if isinstance(limit, float):
        if num_batches == math.inf:
            raise ValueError(
                f"the limit on {name} is the fraction {limit}, but its length is unknown: pass a number (int)"
            )
        limited = int(num_batches * limit)
        if limited == 0 and limit > 0:
            raise ValueError(
                f"{limit} of the {num_batches} batches of {name} is less than one: use at least {1 / num_batches}"
            )
        return limited
    return min(num_batches, limit)
