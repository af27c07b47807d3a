"""Several processes that take the steps of one: the only place that talks to `torch.distributed`.

Every process (rank) evaluates its own batches. What they found is summed in one call per evaluation, so that all see
the same values and gradients, those of one process with all the batches, and take the same decisions. Nothing here is
used by a run in one process.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.optim import Optimizer

from framework.losses import L2Loss
from framework.module import Module
from framework.objective.replay import Generator, rng_state, set_rng_state

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
_FAILURE = "proxtrain/failure"
# How long to wait for the words of another process that failed, in seconds.
_PATIENCE = 3.0


class LostProcessError(RuntimeError):
    """Another process has failed or was killed."""


def check_strategy(strategy: Any) -> None:
    """Refuse a strategy that the trainer has no use for.

    Raises:
        ValueError: If it is not one process per device, each with the whole module.
    """
    instead = (
        "use strategy='ddp', started by Trainer(devices=N, strategy='ddp') or by torchrun: each process holds the "
        "whole module, and their gradients are averaged"
    )
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} is not supported: {instead}")
    if isinstance(strategy, Strategy):
        name = type(strategy).__name__
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(f"strategy={name} is not supported: {instead}")
        if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
            raise ValueError(f"{name}(start_method={strategy._start_method!r}) is not supported: {instead}")


class Processes:
    """This process among the others.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        calls: How many collective calls were made.
        bytes: How many bytes this process gave to sums.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank = fabric.global_rank
        self.size = fabric.world_size
        self.calls = self.bytes = 0
        self._device = fabric.device
        self._padding: Any = None

    # --------------------------------------------------------------------------------------------- collective calls

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute the sum over all processes of each tensor, in one call; they keep their shapes and dtypes."""
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        dtype = torch.float64 if double and self._device.type != "mps" else torch.float32
        flat = torch.cat([tensor.detach().reshape(-1).to(self._device, dtype) for tensor in tensors])
        self._call(dist.all_reduce, flat)
        self.bytes += flat.nbytes
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.reshape(tensor.shape).to(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def max(self, numbers: Sequence[int]) -> list[int]:
        """Compute the maximum over all processes of each number."""
        tensor = torch.tensor(numbers, device=self._device)
        self._call(dist.all_reduce, tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather(self, thing: Any) -> list[Any]:
        """Return what every process gave, in the order of the ranks."""
        things: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, things, thing)
        return things

    def share(self, thing: Any) -> Any:
        """Return what the process of rank zero gave."""
        things = [thing]
        self._call(dist.broadcast_object_list, things, src=0)
        return things[0]

    def _call(self, collective: Any, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        try:
            collective(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            raise LostProcessError(str(error)) from None

    # ------------------------------------------------------------------------------------------------------- batches

    def note_padding(self, batch: Any) -> None:
        """Note the batch that is read here again because there was none left for this process; None for no such."""
        self._padding = batch

    def is_padding(self, batch: Any) -> bool:
        """Tell whether a batch is another process's, and read here only so that all make the same calls."""
        return batch is self._padding and batch is not None

    # ------------------------------------------------------------------------------------------------------- a fit

    def synchronize(self, module: Module, optimizer: Optimizer) -> None:
        """Take the parameters, buffers and the optimizer's state from rank zero."""
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                self._call(dist.broadcast, tensor.data, src=0)
        state = self.share(optimizer.state_dict() if self.rank == 0 else None)
        if self.rank > 0:
            optimizer.load_state_dict(state)

    def part_random_streams(self) -> None:
        """Give the ranks above zero global random streams of their own, derived from those of rank zero."""
        state = self.share(rng_state())
        if self.rank > 0:
            set_rng_state(state)
            seed = zlib.crc32(state["torch"].numpy().tobytes(), self.rank)
            set_rng_state(_seeded(seed))

    def rng_states(self, generators: Iterable[Generator]) -> dict[str, Any]:
        """Return the random state of rank zero, with those of all ranks in it."""
        states = self.gather(rng_state(generators))
        return {**states[0], "ranks": states}

    def set_rng_states(self, state: Mapping[str, Any], generators: Iterable[Generator]) -> None:
        """Take back what `rng_states` gave; with another number of processes, derive streams from that of rank zero."""
        ranks = state.get("ranks", ())
        if len(ranks) == self.size:
            set_rng_state(ranks[self.rank], generators)
        else:
            set_rng_state(dict(state), generators)
            self.part_random_streams()

    # -------------------------------------------------------------------------------------------------------- the end

    def fail(self, error: BaseException) -> BaseException:
        """Let the other processes fail, too; return the error to raise: the first one's, if this is not the first."""
        if not dist.is_initialized():
            return error
        store: Any = dist.distributed_c10d._get_default_store()
        if isinstance(error, LostProcessError):
            words = _await_words(store)
            error = LostProcessError(words or f"another process has ended, or was killed ({error})")
        else:
            words = f"rank {self.rank} has failed: {type(error).__name__}: {error}"
            with suppress(RuntimeError):  # if rank zero, who holds the store, has ended
                store.compare_set(_FAILURE, "", words)
        dist.destroy_process_group()  # whoever waits for this process waits no longer
        if self.rank == 0:
            time.sleep(1.0)  # for the others to read the words
        del store
        return error


def _await_words(store: Any) -> str | None:
    due = time.monotonic() + _PATIENCE
    while time.monotonic() < due:
        try:
            if store.check([_FAILURE]):
                return store.get(_FAILURE).decode()
        except RuntimeError:
            return None
        time.sleep(0.05)
    return None


def _seeded(seed: int) -> dict[str, Any]:
    """Return the global random state after seeding, and leave the streams as they are."""
    now = rng_state()
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    state = rng_state()
    set_rng_state(now)
    return state


def check_module(module: nn.Module, device: torch.device) -> None:
    """Refuse what several processes cannot do as one does with all the batches.

    Raises:
        ValueError: If statistics or norms of a whole batch are needed, of which each process sees a part.
    """
    for name, part in module.named_modules():
        if isinstance(part, L2Loss):
            raise ValueError(
                f"{name or type(module).__name__} is an L2Loss, the norm over a whole batch, of which each of several "
                "processes sees a part: norms do not add up. Train in one process, or use a mean such as MSELoss"
            )
        if isinstance(part, _BatchNorm) and part.training and not isinstance(part, SyncBatchNorm):
            remedy = (
                "convert the module by torch.nn.SyncBatchNorm.convert_sync_batchnorm"
                if device.type == "cuda"
                else "torch can synchronize it on GPUs only: use GroupNorm or LayerNorm, freeze it by eval(), or train "
                "in one process"
            )
            raise ValueError(
                f"{name} is a {type(part).__name__}, which normalizes by the statistics of a whole batch, of which "
                f"each of several processes sees a part: {remedy}"
            )
