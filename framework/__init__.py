"""A Lightning-style trainer for PyTorch that is correct for closures and non-smooth penalties."""

import importlib
from typing import TYPE_CHECKING, Any

from framework._version import __version__

if TYPE_CHECKING:
    from framework.callback import Callback
    from framework.module import Module
    from framework.objective.closure import Closure
    from framework.objective.replay import seed_everything
    from framework.run_folder import load
    from framework.trainer import Trainer

__all__ = ["Callback", "Closure", "Module", "Trainer", "__version__", "load", "seed_everything"]

# Imported when they are asked for: they need torch, which takes seconds that `proxtrain --help` need not wait.
_HOMES = {
    "Callback": "callback",
    "Closure": "objective.closure",
    "Module": "module",
    "Trainer": "trainer",
    "load": "run_folder",
    "seed_everything": "objective.replay",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
