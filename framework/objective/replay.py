"""What an evaluation depends on besides the parameters, saved so that the same function can be evaluated again."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from framework.fabric import current_rank, launched_rank, loaded
from framework.module import Module

if TYPE_CHECKING:
    from torchmetrics import Metric

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_ATTRIBUTES_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Attributes through which a loader leads to further objects that may hold generators of their own.
_DATA_PARTS = ("dataset", "datasets", "sampler", "batch_sampler", "transform", "target_transform", "transforms")


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed torch's, numpy's and Python's global generators, as the function of this name in `lightning.fabric` does.

    Args:
        seed: From 0 to 2**32 - 1. Default: the environment variable PL_GLOBAL_SEED, else 0.
        workers: What the environment variable PL_SEED_WORKERS will say to Lightning, in this process and those that it
            starts: whether to seed the workers of loaders.
        verbose: Whether to print the seed.

    Raises:
        ValueError: If the seed, or that in the environment, is not such a number.
    """
    if seed is None:
        given = os.environ.get("PL_GLOBAL_SEED")
        if given is None and verbose and current_rank() == 0:
            warnings.warn("No seed found, seed set to 0", stacklevel=2)
        try:
            seed = int(given or 0)
        except ValueError:
            raise ValueError(f"Invalid seed specified via PL_GLOBAL_SEED: {given!r}") from None
    seed = int(seed)
    if not 0 <= seed <= 2**32 - 1:
        raise ValueError(f"{seed} is not in bounds, numpy accepts from 0 to {2**32 - 1}")
    if verbose:
        rank = launched_rank()
        print(f"Seed set to {seed}" if rank is None else f"[rank: {rank}] Seed set to {seed}", file=sys.stderr)
    os.environ |= {"PL_GLOBAL_SEED": str(seed), "PL_SEED_WORKERS": str(int(workers))}
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


class Source(NamedTuple):
    """A stream of random numbers: how to get and how to set its state."""

    get: Callable[[], Any]
    set: Callable[[Any], None]


def find_generators(*owners: Any) -> list[Generator]:
    """Find the generators that objects hold as attributes, including in their datasets, samplers and transforms."""
    found: dict[int, Generator] = {}
    seen: set[int] = set()
    queue = list(owners)
    while queue:
        owner = queue.pop(0)
        if id(owner) in seen or not hasattr(owner, "__dict__"):
            continue
        seen.add(id(owner))
        for name, value in vars(owner).items():
            if name in _ATTRIBUTES_OF_EVERY_MODULE:
                continue
            if isinstance(value, Generator):
                found.setdefault(id(value), value)
            elif name in _DATA_PARTS:
                queue += value if isinstance(value, list | tuple) else [value]
    return list(found.values())


def sources(generators: Iterable[Generator] = ()) -> list[Source]:
    """Return torch's, numpy's and Python's global streams, then those of the given generators."""
    found = [
        Source(torch.get_rng_state, torch.set_rng_state),
        source_of(np.random.mtrand._rand),
        Source(random.getstate, random.setstate),
    ]
    if torch.cuda.is_initialized():
        found.append(Source(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all))
    return found + [source_of(generator) for generator in generators]


def source_of(generator: Generator) -> Source:
    """Return how to get and how to set the state of a generator."""
    if isinstance(generator, torch.Generator):
        return Source(generator.get_state, generator.set_state)  # type: ignore[arg-type]
    if isinstance(generator, random.Random):
        return Source(generator.getstate, generator.setstate)
    if isinstance(generator, np.random.RandomState):
        return Source(lambda: generator.get_state(legacy=False), generator.set_state)
    bits: Any = generator.bit_generator
    return Source(lambda: bits.state, lambda state: setattr(bits, "state", state))


def rng_state(generators: Iterable[Generator] = ()) -> dict[str, Any]:
    """Return the state of torch's, numpy's and Python's global generators and of the given ones, as plain data."""
    torch_state, numpy_state, python_state, *others = (source.get() for source in sources())
    state = {"torch": torch_state, "numpy": _as_plain(numpy_state), "python": python_state}
    state["generators"] = [_as_plain(source_of(generator).get()) for generator in generators]
    if others:
        state["cuda"] = others[0]
    return state


def set_rng_state(state: dict[str, Any], generators: Iterable[Generator] = ()) -> None:
    """Restore the global generators, and the given ones, to a state that `rng_state` returned."""
    for key, source in zip(("torch", "numpy", "python", "cuda"), sources(), strict=False):
        if key in state:
            source.set(_from_plain(state[key], source.get()))
    for generator, saved in zip(generators, state["generators"], strict=False):
        source = source_of(generator)
        source.set(_from_plain(saved, source.get()))


def _as_plain(state: Any) -> Any:
    """Turn the numpy arrays within a state into tensors, which a checkpoint may hold."""
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.astype(np.int64))
    return {key: _as_plain(value) for key, value in state.items()} if isinstance(state, dict) else state


def _from_plain(state: Any, like: Any) -> Any:
    """Undo `_as_plain`, and turn lists that were tuples back; ``like`` is a state of the same generator."""
    if isinstance(like, np.ndarray):
        return state.numpy().astype(like.dtype) if isinstance(state, Tensor) else state
    if isinstance(like, dict):
        return {key: _from_plain(value, like.get(key)) for key, value in state.items()}
    return tuple(tuple(s) if isinstance(s, list) else s for s in state) if isinstance(like, tuple) else state


class Replay:
    """Everything besides the parameters that an evaluation depends on or changes, saved at the start of a step.

    These are the random generators (the global ones, those that the module holds, and the given ones), the module's
    buffers, and the states of the torchmetrics in it.
    """

    def __init__(self, module: Module, generators: Iterable[Generator] = ()) -> None:
        parts = list(module.modules())
        self._sources = sources([*find_generators(*parts), *generators])
        self._draws = [source.get() for source in self._sources]
        self._buffers = [
            (owner, name, buffer, buffer.clone())
            for owner in parts
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self._metrics = [part for part in parts if is_metric(part)]
        self._metric_states = _metric_states(self._metrics)
        self._narrowed = False

    @property
    def has_buffers(self) -> bool:
        """Whether the module has buffers."""
        return bool(self._buffers)

    def owners_of_changed_buffers(self) -> list[nn.Module]:
        """Return the parts of the module that have a buffer of another value now; waits for the device.

        Version counters are not enough: torch's kernels for running statistics leave them as they are.
        """
        changed = {
            owner: None
            for owner, name, _, saved in self._buffers
            if not torch.equal(owner._buffers[name], saved)  # type: ignore[arg-type]
        }
        return list(changed)

    def restore_buffers(self) -> None:
        """Write the saved values into the module's buffers."""
        with torch.no_grad():
            for owner, name, buffer, saved in self._buffers:
                owner._buffers[name] = buffer.copy_(saved)

    def rewind(self) -> None:
        """Set everything back to the start, before an evaluation that counts: the one before it has failed."""
        self._set(self._draws, self._metric_states)
        self.restore_buffers()

    def again(self) -> AbstractContextManager[None]:
        """Restore the buffers, and let an evaluation in this context see the same function as the first one.

        The buffers stay as the evaluation leaves them. Random streams and metrics continue as if it had not happened.
        """
        if not self._narrowed:
            self._forget_unused_sources()
        if self._buffers:
            self.restore_buffers()
        return _Aside(self)

    @contextmanager
    def on_copies(self) -> Iterator[None]:
        """Let evaluations in this context see the same function on copies of the buffers; leave everything as is.

        A graph made in this context stays valid: nothing writes into the copies that it holds.
        """
        in_use = [(owner, name, owner._buffers[name]) for owner, name, *_ in self._buffers]
        for owner, name, _, saved in self._buffers:
            owner._buffers[name] = saved.clone()
        try:
            with _Aside(self):
                yield
        finally:
            for owner, name, buffer in in_use:
                owner._buffers[name] = buffer

    def _forget_unused_sources(self) -> None:
        """Keep only the streams that the first evaluation drew from, and torch's: reading numpy's takes 60 us."""
        drawn = [i for i, source in enumerate(self._sources) if not i or not _equal(source.get(), self._draws[i])]
        self._sources, self._draws = [self._sources[i] for i in drawn], [self._draws[i] for i in drawn]
        self._narrowed = True

    def _set(self, draws: list[Any], metric_states: list[Any]) -> None:
        for source, state in zip(self._sources, draws, strict=True):
            source.set(state)
        _restore(self._metrics, metric_states)


def is_metric(thing: Any) -> TypeGuard[Metric]:
    """Tell whether something is a `torchmetrics.Metric`."""
    return isinstance(thing, loaded("torchmetrics", "Metric"))


class _Aside:
    """A context in which random streams and metrics start as a step did, and after which they go on as before it.

    A class, because it is entered at every evaluation, where a generator would cost twice as much.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def __enter__(self) -> None:
        replay = self._replay
        self._draws, self._metric_states = [source.get() for source in replay._sources], _metric_states(replay._metrics)
        replay._set(replay._draws, replay._metric_states)

    def __exit__(self, *_: object) -> None:
        self._replay._set(self._draws, self._metric_states)


def updated_metrics(module: nn.Module) -> list[str]:
    """Return the names of the torchmetrics in a module that were updated."""
    return [name for name, part in module.named_modules() if is_metric(part) and part._update_count]


def metric_states(module: nn.Module, names: Iterable[str], *, together: bool = False) -> dict[str, dict[str, Any]]:
    """Return the states of torchmetrics in a module, by their names in it, as plain data.

    ``together`` are those of all processes in one; then all processes must ask for the same ones.
    """
    metrics: dict[str, Any] = {name: module.get_submodule(name) for name in names}
    with ExitStack() as synchronized:
        for metric in metrics.values():
            if together:
                synchronized.enter_context(metric.sync_context())
        states = _metric_states(metrics.values())
    return {name: {"state": state, "updates": n} for name, (state, n) in zip(metrics, states, strict=True)}


def set_metric_states(module: nn.Module, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the torchmetrics in a module into states that `metric_states` returned."""
    for name, saved in states.items():
        metric: Any = module.get_submodule(name)
        state = apply_to_collection(saved["state"], Tensor, lambda value, device=metric.device: value.to(device))
        _set_metric_state(metric, state, saved["updates"])


@contextmanager
def keeping_metrics(module: nn.Module) -> Iterator[None]:
    """Leave the torchmetrics in a module as they are, whatever updates them in this context."""
    metrics = [part for part in module.modules() if is_metric(part)]
    states = _metric_states(metrics)
    try:
        yield
    finally:
        _restore(metrics, states)


def _restore(metrics: Iterable[Metric], states: Iterable[tuple[dict[str, Any], int]]) -> None:
    """Undo `_metric_states`."""
    for metric, (state, update_count) in zip(metrics, states, strict=True):
        _set_metric_state(metric, state, update_count)


def _set_metric_state(metric: Metric, state: Mapping[str, Tensor | list[Tensor]], update_count: int) -> None:
    for name, value in state.items():
        setattr(metric, name, _copy(value))
    metric._update_count, metric._computed = update_count, None


def _metric_states(metrics: Iterable[Metric]) -> list[tuple[dict[str, Any], int]]:
    return [({name: _copy(value) for name, value in m.metric_state.items()}, m._update_count) for m in metrics]


def _copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.clone() if isinstance(value, Tensor) else list(value)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return all(_equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return all(map(_equal, left, right))
    return bool(left == right)
