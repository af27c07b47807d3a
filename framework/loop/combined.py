"""Several loaders read together, as Lightning's `CombinedLoader` does; imported when a run is given several."""

from __future__ import annotations

import copy
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader

from framework.loop.processes import seeded
from framework.loop.validation import is_collection
from framework.objective.replay import rng_state, set_rng_state

# It does not know torch's newest way to ask for a leaf.
warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)


class Combined:
    """A `CombinedLoader` as a loader with a length: its batches are those of all its loaders, in the same collection.

    A loader that starts over within an epoch draws its new order from a random stream apart, which the start of the
    epoch determines: a run that is continued within the epoch draws it again.

    Args:
        loaders: A `CombinedLoader`, or a (nested) collection of loaders: then the longest sets the length of an epoch,
            and the others start over.

    Attributes:
        given: The loaders as they were passed.
        datasets: The loaders, one after the other: where to look for random generators.
        may_draw: Some may draw their order from random generators, although there is `set_epoch`.
    """

    may_draw = True

    def __init__(self, loaders: Any) -> None:
        self.given = loaders
        if not isinstance(loaders, CombinedLoader):
            combined = CombinedLoader(_with_leaves(loaders), "max_size_cycle")
            combined.flattened = [leaf.loader for leaf in combined.flattened]
            loaders = combined
        self._combined: CombinedLoader = loaders
        self.datasets: list[Any] = loaders.flattened
        form = copy.copy(loaders)
        form.flattened = [_Leaf(loader) for loader in loaders.flattened]
        self._form = form.iterables

    def __iter__(self) -> Iterator[Any]:
        stream = _Stream()
        combined = copy.copy(self._combined)  # it holds its only iterator
        combined.flattened = [_StartingOver(loader, stream) for loader in self.datasets]
        iter(combined)
        return _batches(combined)

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: If a loader that counts has no length.
        """
        lengths = [len(loader) for loader in self.datasets]
        mode = self._combined._mode
        return sum(lengths) if mode == "sequential" else min(lengths) if mode == "min_size" else max(lengths)

    @property
    def persistent_workers(self) -> bool:
        """Whether one of the loaders has workers that persist."""
        return any(getattr(loader, "persistent_workers", False) for loader in self.datasets)

    def set_epoch(self, epoch: int) -> None:
        """Let the samplers that derive their order from the epoch know it."""
        for loader in self.datasets:
            owners: list[Any] = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
            for owner in owners:
                if hasattr(owner, "set_epoch"):
                    owner.set_epoch(epoch)

    def share_among(self, share: Callable[[Any], Any], num_processes: int, name: str) -> Combined:
        """Return the share of one of several processes: of each loader, its share.

        Raises:
            ValueError: If a loader has no length, or its batches cannot be shared evenly.
        """
        shared = copy.copy(self)
        shared.datasets = [share(loader) for loader in self.datasets]
        for index, (whole, part) in enumerate(zip(self.datasets, shared.datasets, strict=True)):
            num_batches = len(whole) if hasattr(whole, "__len__") else None
            is_even = num_batches is not None and (num_batches % num_processes == 0 or part.drops_last)
            if part is not whole and not is_even:
                raise ValueError(
                    f"the loader {index} of those in {name} has {num_batches or 'an unknown number of'} batches, which "
                    f"{num_processes} processes cannot share evenly: "
                    + ("pass drop_last=True to it, or another batch_size" if num_batches else "give it a length")
                )
        return shared

    def counting_by(self, count: Callable[[Any], int]) -> Callable[[Any], int]:
        """Return what counts the samples of a batch: where its parts differ, those from the first loader.

        Args:
            count: Counts those of a batch, or raises a ValueError if its tensors have different lengths.
        """

        def count_first(batch: Any) -> int:
            try:
                return count(batch)
            except ValueError as error:
                try:
                    first = next(part for part in _parts(batch, self._form) if part is not None)
                except (LookupError, TypeError):  # a batch of another loader
                    raise error from None
                return count(first)

        return count_first


class _Leaf:
    """A loader that Lightning must not take for a collection, such as a list of batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader


class _StartingOver:
    """A loader that is perhaps read more than once in an epoch."""

    def __init__(self, loader: Any, stream: _Stream) -> None:
        self._loader, self._stream = loader, stream
        self._has_begun = False

    def __iter__(self) -> Iterator[Any]:
        if not self._has_begun:
            self._has_begun = True
            return iter(self._loader)
        with self._stream.drawing():
            batches = iter(self._loader)
            start = list(itertools.islice(batches, 1))  # some draw their order only now
        return itertools.chain(start, batches)


class _Stream:
    """A random stream apart from the global one, from whose present state it is derived."""

    def __init__(self) -> None:
        self._state = seeded(zlib.crc32(torch.get_rng_state().numpy().tobytes()))

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream within."""
        now = rng_state()
        set_rng_state(self._state)
        try:
            yield
        finally:
            self._state = rng_state()
            set_rng_state(now)


def _with_leaves(loaders: Any) -> Any:
    """Return a collection of loaders with each loader as a leaf."""
    if not is_collection(loaders):
        return _Leaf(loaders)
    if isinstance(loaders, Mapping):
        return {key: _with_leaves(one) for key, one in loaders.items()}
    parts = map(_with_leaves, loaders)
    return type(loaders)(*parts) if hasattr(loaders, "_fields") else type(loaders)(parts)


def _parts(batch: Any, form: Any) -> Iterator[Any]:
    """Yield the parts of a batch that are from one loader each; ``form`` is the collection of leaves."""
    if isinstance(form, _Leaf):
        yield batch
    else:
        keys = form if isinstance(form, Mapping) else range(len(form))
        for key in keys:
            yield from _parts(batch[key], form[key])


def _batches(combined: CombinedLoader) -> Iterator[Any]:
    """Yield the batches of a `CombinedLoader` that was begun: `iter` would begin it again, and draw again."""
    while True:
        try:
            batch, _, _ = next(combined)
        except StopIteration:
            return
        yield batch
