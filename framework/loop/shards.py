"""The share of one process in the batches of a loader: of every so many in a row, one.

With W processes, W consecutive batches of the loader are those of one step, one for each process. All processes draw
the order from a random stream that is the same in all (`Processes.common`), and note a checksum of what they drew, so
that a difference is found. Where the last batches are fewer than W, the processes without one read the first of them
again: it counts nothing (`Processes.is_padding`), but all processes take the same number of steps.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from framework.data import TensorLoader
from framework.loop.processes import Processes
from framework.objective.replay import find_generators


def shard(loader: Any, processes: Processes, name: str) -> Any:
    """Return a loader of this process's batches."""
    if hasattr(loader, "share_among"):  # several loaders that are read together
        return loader.share_among(lambda part: shard(part, processes, name), processes.size, name)
    if not processes.share_loaders:
        lengths = processes.gather(len(loader) if hasattr(loader, "__len__") else None)
        if None in lengths or len(set(lengths)) > 1:
            raise ValueError(
                f"use_distributed_sampler=False, and the processes have {lengths} batches in {name}: they take their "
                "steps together, and so must have as many"
            )
        return loader
    # A subclass with an order or batches of its own is read as a whole.
    if isinstance(loader, TensorLoader) and type(loader).__iter__ is TensorLoader.__iter__:
        return _ShardOfTensors(loader, processes)
    if isinstance(loader, DataLoader):
        if isinstance(loader.sampler, DistributedSampler):
            if loader.sampler.total_size != len(loader.dataset) and not loader.sampler.drop_last:  # type: ignore[arg-type]
                warnings.warn(
                    f"the DistributedSampler of {name} repeats samples, so that all processes have as many: they count "
                    "twice. Leave it out: the trainer shares the batches",
                    stacklevel=2,
                )
            return loader
        by_indices = loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset)
        if by_indices and type(loader).__iter__ is DataLoader.__iter__:
            return _ShardOfIndices(loader, processes)
    return _EveryNth(loader, processes)


class _Shard:
    """What the shards have in common.

    Attributes:
        loader: The whole loader.
    """

    def __init__(self, loader: Any, processes: Processes) -> None:
        self.loader = loader
        self.processes = processes
        # As in one process, whose batches would be as large as those of all processes together.
        self.drops_last = bool(
            getattr(loader, "drop_last", False) or getattr(getattr(loader, "batch_sampler", None), "drop_last", False)
        )
        self._padded = -1

    def __len__(self) -> int:
        groups = len(self.loader) / self.processes.size
        return math.floor(groups) if self.drops_last else math.ceil(groups)

    def is_padding(self, index: int) -> bool:
        """Tell whether the batch of this index, the last one that was read, is another process's."""
        return index == self._padded

    def _mine(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield this process's one of every so many batches, which are drawn as they are needed."""
        size, rank = self.processes.size, self.processes.rank
        self._padded = -1
        for index in itertools.count():
            with self.processes.common():
                group = list(itertools.islice(batches, size))
            if not group or (self.drops_last and len(group) < size):
                return
            self.processes.note_drawn(_mark(group))
            if rank >= len(group):
                self._padded = index
            yield group[rank if rank < len(group) else 0]

    def __getattr__(self, name: str) -> Any:
        # Samplers, generators, batch size and so on are the loader's.
        return getattr(self.__dict__["loader"], name)


class _ShardOfTensors(_Shard):
    def __iter__(self) -> Iterator[Any]:
        size, rank = self.processes.size, self.processes.rank
        rest = len(self.loader) % size
        self._padded = len(self) - 1 if rest and rank >= rest and not self.drops_last else -1
        return itertools.islice(self.loader.shard(size, rank), len(self))

    def to(self, device: Any) -> _ShardOfTensors:
        self.loader.to(device)
        return self


class _ShardOfIndices(_Shard):
    """The share in a `DataLoader` that reads a dataset by indices: only the samples of this process are read."""

    def __init__(self, loader: DataLoader, processes: Processes) -> None:
        super().__init__(loader, processes)
        options = {
            option: getattr(loader, option)
            for option in (
                "num_workers",
                "collate_fn",
                "pin_memory",
                "timeout",
                "worker_init_fn",
                "multiprocessing_context",
                "prefetch_factor",
                "persistent_workers",
            )
        }
        self._indices = _Indices()
        self._seeds = torch.Generator()  # of the workers
        self._own: DataLoader = DataLoader(
            loader.dataset, batch_sampler=self._indices, generator=self._seeds, **options
        )

    def __iter__(self) -> Iterator[Any]:
        sampler: Any = self.loader.batch_sampler
        self.processes.share_generators(find_generators(self.loader))
        with self.processes.common():
            batches = iter(sampler)
            seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator))
        self._seeds.manual_seed((seed + self.processes.rank) % 2**63)
        self._indices.next_epoch = self._mine(batches)
        return iter(self._own)


class _Indices:
    """The batch sampler of a shard: yields what it was given for the next epoch."""

    next_epoch: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Any]:
        return self.next_epoch


class _EveryNth(_Shard):
    """The share in any iterable: every process reads all the batches, and uses its own."""

    def __iter__(self) -> Iterator[Any]:
        self.processes.share_generators(find_generators(self.loader))
        with self.processes.common():
            batches = iter(self.loader)
        return self._mine(batches)


def _mark(thing: Any) -> int:
    """Compute a checksum of indices, or of the first numbers of a batch."""
    return zlib.crc32(repr(_excerpt(thing)).encode())


def _excerpt(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return thing.flatten()[:8].tolist()
    if isinstance(thing, Mapping):
        return [_excerpt(part) for part in thing.values()]
    if isinstance(thing, list | tuple):
        return [_excerpt(part) for part in thing]
    return thing if isinstance(thing, int | float | str) else None
