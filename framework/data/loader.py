"""Batches cut from tensors held in memory, in an order that can be saved and replayed."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

# The order is applied to a chunk of many batches at once, which is then split into views. Measured on one CPU thread,
# in us per batch, one index_select per batch vs. chunks of 0.25 / 4 / 8 MB: the toy (80, 1), batch 10: 7.7 vs.
# 4.9 / 5.0 / 4.8; Fashion-MNIST in uint8, batch 64: 13 vs. 12 / 12 / 14; batch 256: 34 vs. 43 / 41 / 49.
CHUNK_BYTES = 4 * 2**20


@dataclass(slots=True)
class _Position:
    """The position of an iteration: `batch` batches of `epoch` have been yielded."""

    epoch: int = 0
    batch: int = 0
    begun: bool = False


class TensorLoader:
    """An iterable of batches cut along the first dimension of tensors held in memory.

    Every batch is a tuple with one tensor per given tensor, even if there is only one. Each `iter()` starts the next
    epoch; the order of an epoch depends on `(seed, epoch)` alone, whatever the device. Batches are views; those of an
    unshuffled loader are views of the held tensors themselves, so do not write into them.

    Args:
        *tensors: Data of shapes (N, ...), all of the same length N > 0, on one device.
        batch_size: Samples per batch; the last batch of an epoch may be shorter.
        shuffle: Whether to draw a new order for each epoch.
        drop_last: Whether to drop the last batch if it is shorter than `batch_size`.
        transform: Applied to each whole batch, `transform(*batch) -> batch`, on the tensors' device. Its random draws
            should come from torch's global generator, which the trainer saves and replays.
        seed: Determines the orders.

    Raises:
        TypeError: If something other than a tensor is given.
        ValueError: If there are no tensors, empty ones or different lengths, or `batch_size` leaves no batch.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Callable[..., tuple[Tensor, ...]] | None = None,
        seed: int = 0,
    ) -> None:
        _check_tensors(tensors)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: pass a whole number of samples, 1 or more.")
        self.num_samples = len(tensors[0])
        if drop_last and batch_size > self.num_samples:
            raise ValueError(
                f"batch_size={batch_size} with drop_last=True leaves no batch of {self.num_samples} samples: "
                f"pass batch_size <= {self.num_samples} or drop_last=False."
            )
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self.seed = seed
        batch_bytes = batch_size * sum(tensor.nbytes for tensor in tensors) // self.num_samples
        self._chunk_size = batch_size * max(1, CHUNK_BYTES // batch_bytes)
        self._position = _Position()

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the batches of the next epoch, or over the rest of the epoch that a loaded state is in."""
        if self._position.begun:
            # A new object, because an older iterator that is still running keeps counting in its own.
            self._position = _Position(self._position.epoch + 1)
        self._position.begun = True
        return self._batches(self._position)

    def shard(self, num_shards: int, index: int) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over every ``num_shards``-th batch of the next epoch, from batch ``index`` on; read no others.

        Where the last ``num_shards`` batches are incomplete and the one of this shard is missing, the first of them is
        read instead, so that all shards have as many batches.
        """
        self._position = _Position(self._position.epoch + self._position.begun, begun=True)
        order = self._order(self._position.epoch) if self.shuffle else None
        for first in range(0, len(self), num_shards):
            batch = first + index if first + index < len(self) else first
            rows = slice(batch * self.batch_size, min((batch + 1) * self.batch_size, self.num_samples))
            parts = [t[rows] if order is None else t.index_select(0, order[rows]) for t in self.tensors]
            yield tuple(parts) if self.transform is None else self.transform(*parts)

    def _batches(self, position: _Position) -> Iterator[tuple[Tensor, ...]]:
        order = self._order(position.epoch) if self.shuffle else None
        stop = min(len(self) * self.batch_size, self.num_samples)
        for start in range(position.batch * self.batch_size, stop, self._chunk_size):
            rows = slice(start, min(start + self._chunk_size, stop))
            if order is None:
                chunk = [tensor[rows] for tensor in self.tensors]
            else:
                chunk = [tensor.index_select(0, order[rows]) for tensor in self.tensors]
            for batch in zip(*[part.split(self.batch_size) for part in chunk], strict=True):
                position.batch += 1
                yield batch if self.transform is None else self.transform(*batch)
        position.epoch, position.batch, position.begun = position.epoch + 1, 0, False

    def _order(self, epoch: int) -> Tensor:
        # A checksum keeps neighboring seeds apart: with seed + epoch, seed 1 would repeat seed 0 one epoch late.
        # torch's CPU generator uses 32 bits of its seed, exactly what the checksum has.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed},{epoch}".encode()))
        return torch.randperm(self.num_samples, generator=generator).to(self.tensors[0].device)

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` start this epoch: the same batches, however often they are read."""
        self._position = _Position(epoch)

    def to(self, device: torch.device | str) -> Self:
        """Move the held tensors to `device` and return this loader; the order of the batches stays the same."""
        self.tensors = tuple(tensor.to(device) for tensor in self.tensors)
        return self

    def state_dict(self) -> dict[str, int]:
        """Return the position of the latest iteration: `seed`, `epoch`, and `batch`, how many batches it has yielded.

        Between epochs it is the start of the next one. After a `break` it stays where the iteration stopped, so that
        a loader restored from it finishes that epoch.
        """
        return {"seed": self.seed, "epoch": self._position.epoch, "batch": self._position.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next `iter()` continue from `state`; iterators already running are not affected.

        If all batches of the epoch had been yielded but the iteration had not ended, the next `iter()` is empty, and
        the one after it starts the next epoch.

        Raises:
            ValueError: If `state` has missing or extra keys, or a batch that this loader does not have.
        """
        if state.keys() != {"seed", "epoch", "batch"}:
            raise ValueError(
                f"a TensorLoader state has the keys seed, epoch and batch, not {sorted(state)}: "
                "pass what TensorLoader.state_dict() returned"
            )
        if state["epoch"] < 0 or not 0 <= state["batch"] <= len(self):
            raise ValueError(
                f"the state is at epoch {state['epoch']}, batch {state['batch']}, but this loader has "
                f"{len(self)} batches: build it with the data and batch_size that the state was saved with"
            )
        self.seed = state["seed"]
        self._position = _Position(state["epoch"], state["batch"])


def _check_tensors(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ValueError("TensorLoader got no tensors: pass at least one of shape (N, ...).")
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"Tensor {index} is of type {type(tensor).__name__}: convert it with torch.as_tensor.")
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise ValueError(f"Tensor {index} has shape {tuple(tensor.shape)}: pass shape (N, ...) with N > 0.")
    if len({len(tensor) for tensor in tensors}) > 1:
        raise ValueError(
            f"The tensors have {[len(tensor) for tensor in tensors]} samples: "
            "pass tensors whose first dimensions are equal, one row per sample."
        )
