"""What an evaluation depends on besides the parameters, to see the same function again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.seed import seed_everything as seed_everything
from torch import Tensor
from torchmetrics import Metric

from framework.module import Module


def rng_state() -> dict[str, Any]:
    """The state of torch's, numpy's and Python's global generators, loadable with ``weights_only=True``."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    state = {"torch": torch.get_rng_state(), "numpy": numpy_state, "python": random.getstate()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back into a state that `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


class Replay:
    """Everything besides the parameters that an evaluation depends on or changes, as it is now."""

    def __init__(self, module: Module, generators: Iterable[torch.Generator] = ()) -> None:
        self._rng = rng_state()
        self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self._metrics = [
            (metric, {name: _copy(value) for name, value in metric.metric_state.items()}, metric._update_count)
            for metric in module.modules()
            if isinstance(metric, Metric)
        ]
        self._generators = [(g, g.get_state()) for g in generators]

    def restore(self) -> None:
        set_rng_state(self._rng)
        with torch.no_grad():
            for buffer, saved in self._buffers:
                buffer.copy_(saved)
        for metric, state, update_count in self._metrics:
            for name, value in state.items():
                setattr(metric, name, _copy(value))
            metric._update_count, metric._computed = update_count, None
        for generator, saved in self._generators:
            generator.set_state(saved)


def _copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    return value.clone() if isinstance(value, Tensor) else list(value)
