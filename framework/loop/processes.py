"""Several processes that take the steps of one: the only place that talks to `torch.distributed`.

Every process (rank) evaluates its own batches. What they found is summed in one call per evaluation, so that all see
the same values and gradients, those of one process with all the batches, and take the same decisions. Nothing here is
used by a run in one process.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
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
    if not isinstance(strategy, str):
        from lightning.fabric.strategies import DDPStrategy, SingleDeviceStrategy

        name = type(strategy).__name__
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise ValueError(f"strategy={name} is not supported: {instead}")
        if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
            raise ValueError(f"{name}(start_method={strategy._start_method!r}) is not supported: {instead}")


class Processes:
    """This process among the others.

    Args:
        fabric: How the processes are connected.
        share_loaders: Whether each loader holds the batches of all; else it is this process's own.

    Attributes:
        rank: The number of this process.
        size: How many there are.
        drawn: A checksum of the batches that were drawn so far, the same in all.
        calls: How many collective calls were made.
        bytes: How many bytes this process gave to sums.
    """

    def __init__(self, fabric: Any, share_loaders: bool = True) -> None:
        self.share_loaders = share_loaders
        self.rank = fabric.global_rank
        self.size = fabric.world_size
        self.calls = self.bytes = 0
        self.drawn = 0
        self._device = fabric.device
        self._padding: Any = None
        self._warned = False
        # The global stream that is not in use: the common one, or within `common` that of this process.
        self._other: dict[str, Any] | None = None
        self._in_common = False

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

    def synchronize(self, module: Module, optimizer: Optimizer | None = None) -> None:
        """Take the parameters, buffers, the weight of the penalty and the optimizer's state from rank zero."""
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                self._call(dist.broadcast, tensor.data, src=0)
        module.happy_lambda = self.share(module.happy_lambda)
        if optimizer is not None:
            state = self.share(optimizer.state_dict() if self.rank == 0 else None)
            if self.rank > 0:
                optimizer.load_state_dict(state)

    def check_equal(self, module: Module, moment: str) -> None:
        """Find out whether all processes have the same parameters and buffers.

        Raises:
            RuntimeError: If the parameters differ; the message names the first.
        """
        named = dict((*module.named_parameters(), *module.named_buffers()))
        if not named:
            return
        sums, sizes = torch.stack([_sums(tensor).to(self._device) for tensor in named.values()]).T
        extremes = torch.stack([sums, -sums, sizes])
        self._call(dist.all_reduce, extremes, op=dist.ReduceOp.MAX)
        most, least, sizes = extremes.cpu()
        # Rounding may differ from machine to machine.
        differs = most + least > 1e-6 * sizes
        differing = [name for name, does in zip(named, differs.tolist(), strict=True) if does]
        parameters = dict(module.named_parameters())
        wrong = [name for name in differing if name in parameters]
        if wrong:
            raise RuntimeError(
                f"{moment}, the processes have different parameters ({wrong[0]}): something changes them by what this "
                "process alone has, such as random numbers drawn in a hook. Draw them from a generator that has the "
                "same seed in all processes"
            )
        if differing and not self._warned:
            self._warned = True
            warnings.warn(
                f"the buffer {differing[0]} is another one in each process, because it depends on the data that each "
                "sees: the one of rank zero is saved",
                stacklevel=2,
            )

    # ---------------------------------------------------------------------------------------------- random streams

    def part_random_streams(self) -> None:
        """Give every process a global random stream of its own, and all a common one, that of rank zero.

        Evaluations and the reading of samples draw from the own stream; what must be the same in all processes is drawn
        in the context of `common`: the order of batches, and whatever an optimizer draws.
        """
        self._other, self._in_common = self.share(rng_state()), False
        set_rng_state(self._parted(self._other))

    def join_random_streams(self) -> None:
        """Let the global stream be the common one again: the run is over."""
        if self._other is not None and not self._in_common:
            set_rng_state(self._other)
        self._other, self._in_common = None, False

    @contextmanager
    def common(self) -> Iterator[None]:
        """Draw, within, from the stream that is the same in all processes."""
        with self._in_stream(common=True):
            yield

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw, within, from the stream of this process, also within `common`."""
        with self._in_stream(common=False):
            yield

    @contextmanager
    def _in_stream(self, *, common: bool) -> Iterator[None]:
        if self._other is None or self._in_common == common:
            yield
            return
        self._switch()
        try:
            yield
        finally:
            self._switch()

    def _switch(self) -> None:
        now, other = rng_state(), self._other
        assert other is not None
        set_rng_state(other)
        self._other, self._in_common = now, not self._in_common

    def share_generators(self, generators: Sequence[Generator]) -> None:
        """Put generators into the states that they have in rank zero."""
        if generators:
            state = self.share(rng_state(generators) if self.rank == 0 else None)
            set_rng_state({"generators": state["generators"]}, generators)

    def rng_state(self, generators: Iterable[Generator]) -> dict[str, Any]:
        """Return the random state of this process: the common one, and in it its own and those of the generators."""
        here = rng_state()
        common, own = (here, self._other) if self._in_common else (self._other or here, here)
        return {**common, "generators": rng_state(generators)["generators"], "own": own}

    def set_rng_state(self, state: Mapping[str, Any], generators: Iterable[Generator]) -> None:
        """Take back what `rng_state` gave, or derive the own stream from the state of a single process."""
        common = {key: state[key] for key in ("torch", "numpy", "python", "cuda") if key in state} | {"generators": []}
        set_rng_state({"generators": state["generators"]}, generators)
        self._other, self._in_common = common, False
        set_rng_state(state.get("own") or self._parted(common))

    def rng_states(self, generators: Iterable[Generator]) -> dict[str, Any]:
        """Return the random state with those of all processes in it; all must ask."""
        state = self.rng_state(generators)
        return {**state, "own": None, "ranks": self.gather(state["own"])}

    def set_rng_states(self, state: Mapping[str, Any], generators: Iterable[Generator]) -> None:
        """Take back what `rng_states` gave; with another number of processes, derive streams from the common one."""
        ranks = state.get("ranks", ())
        self.set_rng_state({**state, "own": ranks[self.rank] if len(ranks) == self.size else None}, generators)

    def _parted(self, common: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state that this process's own stream begins with."""
        if self.rank == 0:
            return dict(common)
        return seeded(zlib.crc32(common["torch"].numpy().tobytes(), self.rank))

    def note_drawn(self, mark: int) -> None:
        """Note a checksum of what all processes have drawn alike; `Stop.agree` compares them."""
        self.drawn = zlib.crc32(mark.to_bytes(8, "little"), self.drawn)

    # -------------------------------------------------------------------------------------------------------- the end

    def fail(self, error: BaseException) -> BaseException:
        """Let the other processes fail, too; return the error to raise: the first one's, if this is not the first.

        If all have failed by themselves, at the same point, such as by a refusal, they stay connected. Otherwise they
        part: whoever waits for this process waits no longer.
        """
        if not dist.is_initialized():
            return error
        store: Any = dist.distributed_c10d._get_default_store()
        first = f"{_FAILURE}/{next(_failures)}"
        if isinstance(error, LostProcessError):
            words = _await_words(store, first)
            error = LostProcessError(words or f"another process has ended, or was killed ({error})")
        else:
            words = f"rank {self.rank} has failed: {type(error).__name__}: {error}"
            with suppress(RuntimeError):  # if rank zero, who holds the store, has ended
                store.compare_set(first, "", words)
                store.set(f"{first}/{self.rank}", str(self.calls))
                if _all_say(store, [f"{first}/{rank}" for rank in range(self.size)], str(self.calls)):
                    return error
        global _parted_because
        _parted_because = words or str(error)
        dist.destroy_process_group()
        if self.rank == 0:
            time.sleep(1.0)  # for the others to read the words
        del store
        return error


# Numbers the errors of this program, whichever trainer's.
_failures = itertools.count()
# Why the processes of this program are no longer connected.
_parted_because: str | None = None


def check_connected(fabric: Any) -> None:
    """Refuse to run in several processes that an error has parted.

    Raises:
        RuntimeError: If they are.
    """
    if _parted_because is None:
        return
    from lightning.fabric.strategies import DDPStrategy

    if isinstance(fabric.strategy, DDPStrategy):
        raise RuntimeError(
            f"the processes have parted after an error in an earlier run ({_parted_because}): mend it, and start the "
            "program again"
        )


def end_processes() -> None:
    """Part from the processes that a trainer started, so that the next job of a sweep can start its own."""
    global _parted_because
    if not dist.is_available() or not (dist.is_initialized() or _parted_because):
        return
    has_failed, _parted_because = _parted_because is not None, None
    if dist.is_initialized():
        dist.destroy_process_group()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
    from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

    for thread in threading.enumerate():
        # Fabric's watch over the processes that it started; it would end this one because of one that has failed.
        if isinstance(thread, _ChildProcessObserver):
            children, thread._child_processes = thread._child_processes, []
            for child in children if has_failed else ():
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_PATIENCE)
                child.kill()


def _await_words(store: Any, key: str) -> str | None:
    due = time.monotonic() + _PATIENCE
    while time.monotonic() < due:
        try:
            if store.check([key]):
                return store.get(key).decode()
        except RuntimeError:
            return None
        time.sleep(0.05)
    return None


def _all_say(store: Any, keys: Sequence[str], words: str) -> bool:
    """Wait a second for all keys; tell whether all are there with the same words."""
    due = time.monotonic() + 1.0
    while not store.check(list(keys)):
        if time.monotonic() > due:
            return False
        time.sleep(0.02)
    return all(store.get(key).decode() == words for key in keys)


def rng_state_of(processes: Processes | None, generators: Iterable[Generator]) -> dict[str, Any]:
    """Return the random state of this process, among several or alone, and of generators."""
    return rng_state(generators) if processes is None else processes.rng_state(generators)


def set_rng_state_of(processes: Processes | None, state: Mapping[str, Any], generators: Iterable[Generator]) -> None:
    """Take back what `rng_state_of` gave, in whatever number of processes."""
    if processes is None:
        set_rng_state(dict(state), generators)
    else:
        processes.set_rng_state(state, generators)


def rng_states_of(processes: Processes | None, generators: Iterable[Generator]) -> dict[str, Any]:
    """Return the random state of all processes, for a checkpoint; all must ask."""
    return rng_state(generators) if processes is None else processes.rng_states(generators)


def set_rng_states_of(processes: Processes | None, state: Mapping[str, Any], generators: Iterable[Generator]) -> None:
    """Take back what `rng_states_of` gave, in whatever number of processes."""
    if processes is None:
        set_rng_state(dict(state), generators)
    else:
        processes.set_rng_states(state, generators)


def _sums(tensor: Tensor) -> Tensor:
    """Compute the sums of the values of a tensor and of their sizes; infinite and undefined ones are left out."""
    values = torch.nan_to_num(tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64))
    return torch.stack([values.sum(), values.abs().sum()])


def seeded(seed: int) -> dict[str, Any]:
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
