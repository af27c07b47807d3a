"""The share of one process in the batches of a loader: of every so many in a row, one.

With W processes, W consecutive batches of the loader are those of one step, one for each process. The order is drawn
from the random state of rank zero. Where the last ones are fewer than W, the processes without one read the first of
them again: it counts nothing (`Processes.is_padding`), but all processes take the same number of steps.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from framework.data import TensorLoader
from framework.loop.processes import Processes
from framework.objective.replay import find_generators, rng_state, set_rng_state


def shard(loader: Any, processes: Processes, name: str) -> Any:
    """Return a loader of this process's batches."""
    if isinstance(loader, TensorLoader):
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
        if loader.batch_sampler is not None and not isinstance(loader.dataset, IterableDataset):
            return _ShardOfIndices(loader, processes, name)
    return _EveryNth(loader, processes)


class _Shard:
    """What the shards have in common.

    Attributes:
        loader: The whole loader.
    """

    def __init__(self, loader: Any, processes: Processes) -> None:
        self.loader = loader
        self.processes = processes

    def __len__(self) -> int:
        return math.ceil(len(self.loader) / self.processes.size)

    def is_padding(self, index: int) -> bool:
        """Tell whether the batch of this index, the last one that was read, is another process's."""
        rest = len(self.loader) % self.processes.size
        return rest != 0 and self.processes.rank >= rest and index == len(self) - 1

    def __getattr__(self, name: str) -> Any:
        # Samplers, generators, batch size and so on are the loader's.
        return getattr(self.__dict__["loader"], name)


class _ShardOfTensors(_Shard):
    def __iter__(self) -> Iterator[Any]:
        return self.loader.shard(self.processes.size, self.processes.rank)

    def to(self, device: Any) -> _ShardOfTensors:
        self.loader.to(device)
        return self


class _ShardOfIndices(_Shard):
    """The share in a `DataLoader` that reads a dataset by indices: only the samples of this process are read."""

    def __init__(self, loader: DataLoader, processes: Processes, name: str) -> None:
        super().__init__(loader, processes)
        self.name = name
        self._indices: list[Any] = []
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
        self._seeds = torch.Generator()  # of the workers
        self._own: DataLoader = DataLoader(
            loader.dataset, batch_sampler=self._indices, generator=self._seeds, **options
        )

    def __iter__(self) -> Iterator[Any]:
        size, rank = self.processes.size, self.processes.rank
        self._indices[:] = [group[rank if rank < len(group) else 0] for group in _batched(self._draw(), size)]
        return iter(self._own)

    def _draw(self) -> list[Any]:
        """Return the indices of all batches, the same in every process."""
        sampler: Any = self.loader.batch_sampler
        if isinstance(getattr(sampler, "sampler", None), SequentialSampler):
            self._seed_workers()
            return list(sampler)
        generators = find_generators(self.loader)
        now = rng_state(generators)
        set_rng_state(self.processes.share(now), generators)
        batches = iter(sampler)
        self._seed_workers()  # here, as one process does it
        drawn = list(batches)
        if self.processes.rank > 0:
            set_rng_state({**now, "generators": rng_state(generators)["generators"]}, generators)
        if len(set(self.processes.gather(zlib.crc32(repr(drawn).encode())))) > 1:
            raise ValueError(
                f"the processes drew different batches from {self.name}: its sampler must draw from the global "
                "generator of torch, numpy or Python, or from one that it holds as an attribute"
            )
        return drawn

    def _seed_workers(self) -> None:
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=self.loader.generator))
        self._seeds.manual_seed((seed + self.processes.rank) % 2**63)


class _EveryNth(_Shard):
    """The share in any iterable: every process reads all the batches, and uses its own."""

    def __init__(self, loader: Any, processes: Processes) -> None:
        super().__init__(loader, processes)
        self._padded = -1

    def __iter__(self) -> Iterator[Any]:
        size, rank = self.processes.size, self.processes.rank
        self._padded = -1
        for index, group in enumerate(_batched(self.loader, size)):
            if rank >= len(group):
                self._padded = index
            yield group[rank if rank < len(group) else 0]

    def is_padding(self, index: int) -> bool:
        return index == self._padded


def _batched(things: Any, size: int) -> Iterator[list[Any]]:
    iterator = iter(things)
    while group := list(itertools.islice(iterator, size)):
        yield group
