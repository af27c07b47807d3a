"""What an evaluation depends on besides the parameters, to see the same function again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import seed_everything as seed_everything
from torch import Tensor
from torchmetrics import Metric

from framework.module import Module


def rng_state(generators: Iterable[torch.Generator] = ()) -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global generators and of those given; loadable as plain data."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "numpy": numpy_state, "python": random.getstate()}
    state["generators"] = [generator.get_state() for generator in generators]
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any], generators: Iterable[torch.Generator] = ()) -> None:
    """Put the global generators, and those given, back into a state that `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(generators, state["generators"], strict=False):
        generator.set_state(saved)


class Replay:
    """Everything besides the parameters that an evaluation depends on or changes, as it is now."""

    def __init__(self, module: Module, generators: Iterable[torch.Generator] = ()) -> None:
        self._module = module
        self._generators = list(generators)
        self._rng = rng_state(self._generators)
        self._buffers = [
            (owner, name, buffer, buffer.clone())
            for owner in module.modules()
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]
        self._metrics = [
            (metric, {name: _copy(value) for name, value in metric.metric_state.items()}, metric._update_count)
            for metric in module.modules()
            if isinstance(metric, Metric)
        ]

    def restore(self) -> None:
        """Put everything back as it was then."""
        self._restore_all_but_buffers()
        with torch.no_grad():
            for owner, name, buffer, saved in self._buffers:
                owner._buffers[name] = buffer.copy_(saved)

    @contextmanager
    def on_copies(self) -> Iterator[None]:
        """Evaluate as if restored, on copies of the buffers, and leave everything as it is now.

        A graph made within stays valid: nobody writes into the copies that it holds.
        """
        now = Replay(self._module, self._generators)
        in_use = [(owner, name, owner._buffers[name]) for owner, name, _, _ in self._buffers]
        self._restore_all_but_buffers()
        for owner, name, _, saved in self._buffers:
            owner._buffers[name] = saved.clone()
        try:
            yield
        finally:
            now._restore_all_but_buffers()
            for owner, name, buffer in in_use:
                owner._buffers[name] = buffer

    def _restore_all_but_buffers(self) -> None:
        set_rng_state(self._rng, self._generators)
        for metric, state, update_count in self._metrics:
            for name, value in state.items():
                setattr(metric, name, _copy(value))
            metric._update_count, metric._computed = update_count, None


def _copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.clone() if isinstance(value, Tensor) else list(value)
