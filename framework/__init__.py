"""A Lightning-style trainer for PyTorch that is correct for closures and non-smooth penalties."""

from framework._version import __version__
from framework.callback import Callback
from framework.module import Module
from framework.objective.closure import Closure
from framework.objective.replay import seed_everything
from framework.run_folder import load
from framework.trainer import Trainer

__all__ = ["Callback", "Closure", "Module", "Trainer", "__version__", "load", "seed_everything"]
