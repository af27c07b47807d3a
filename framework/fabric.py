"""What a run on one device at full precision uses of `lightning.fabric`, which takes as long to import as torch.

Fabric is imported when something is asked for that it alone can do: several devices or processes, another precision, a
strategy, plugins. An object can be of a class of Lightning's or of torchmetrics only if that is imported: see `loaded`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor, nn

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# Variables of the launchers that Fabric knows, and the first letters of those of its own.
_LAUNCHERS = (*_RANKS, "WORLD_SIZE", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "DISABLE_MPS")
_FABRICS = "LT_"


class OneDevice:
    """One device at full precision under the names of Fabric; whatever else is asked for comes from a Fabric on it.

    Attributes:
        device: Where the module is and batches should live.
    """

    world_size = 1
    global_rank = local_rank = node_rank = 0
    is_global_zero = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._fabric, name)

    @cached_property
    def _fabric(self) -> Any:
        from lightning.fabric import Fabric

        return Fabric(accelerator=self.device.type, devices=1)

    def launch(self) -> None:
        """Start no other process."""

    def to_device(self, module: nn.Module) -> nn.Module:
        """Move a module to the device."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        return module.to(self.device)

    def print(self, *values: Any, **options: Any) -> None:
        """Print; the options are those of the builtin."""
        print(*values, **options)

    def broadcast(self, thing: Any, src: int = 0) -> Any:
        """Return what it is given."""
        return thing

    def rank_zero_first(self, local: bool = False) -> AbstractContextManager[None]:
        """Return a context that waits for nobody."""
        return nullcontext()


def connect(**arguments: Any) -> Any:
    """Return what places a module and connects processes: a Fabric, or a `OneDevice` where that does.

    Args:
        arguments: Those of Fabric: accelerator, strategy, devices, num_nodes, precision and plugins.
    """
    device = _plain_device(**arguments)
    if device is not None:
        return OneDevice(device)
    from lightning.fabric import Fabric

    return Fabric(**arguments)


def _plain_device(
    *, accelerator: Any, strategy: Any, devices: Any, num_nodes: int, precision: Any, plugins: Any
) -> torch.device | None:
    """Return the only device that is asked for, at full precision; None if more or something else is."""
    is_plain = (
        all(isinstance(option, str) for option in (accelerator, strategy))
        and strategy == "auto"
        and devices in ("auto", 1)
        and num_nodes == 1
        and precision in (None, 32, "32", "32-true")
        and not plugins
    )
    if not is_plain or any(name in _LAUNCHERS or name.startswith(_FABRICS) for name in os.environ):
        return None
    if accelerator in ("mps", "gpu", "auto") and torch.backends.mps.is_available():
        return torch.device("mps", 0)
    if accelerator in ("cuda", "gpu", "auto") and (count := torch.cuda.device_count()):
        return torch.device("cuda", 0) if devices == 1 or count == 1 else None
    has_tpu = accelerator == "auto" and importlib.util.find_spec("torch_xla") is not None
    return torch.device("cpu") if accelerator in ("cpu", "auto") and not has_tpu else None


def precision_of(fabric: Any) -> Any:
    """Return Fabric's plugin for the precision; None for full precision, which needs none."""
    if isinstance(fabric, OneDevice):
        return None
    from lightning.fabric.plugins import Precision

    precision = fabric.strategy.precision
    return None if type(precision) is Precision else precision


def loaded(module: str, name: str) -> Any:
    """Return a class for `isinstance`, without importing its module: until that is, no class at all."""
    return getattr(sys.modules.get(module), name, ())


def launched_rank() -> int | None:
    """Return the rank that this process was started with; None if nobody started several."""
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), None)


def current_rank() -> int:
    """Return the rank of this process, also before a trainer is made."""
    rank = getattr(rank_zero_only, "rank", None)
    return (launched_rank() or 0) if rank is None else int(rank)


def move_to_device(batch: Any, device: torch.device) -> Any:
    """Move everything in a collection that has a method ``to``, as Fabric's `move_data_to_device` does."""

    def move(part: Any) -> Any:
        # Not for MPS, where it is unsafe: https://github.com/pytorch/pytorch/issues/83015
        if isinstance(part, Tensor) and device.type not in ("cpu", "mps"):
            return part.to(device, non_blocking=True)
        moved = part.to(device)
        return part if moved is None else moved

    return apply_to_collection(batch, _Movable, move)


class _HasTo(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return callable(getattr(type(instance), "to", None))


class _Movable(metaclass=_HasTo):
    """Anything with a method ``to``."""
