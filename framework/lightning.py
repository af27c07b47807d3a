"""An unmodified `LightningModule` as a `Module`, and a callback of Lightning's as a `Callback`.

This file is imported when a trainer is given one of them. Nothing is translated: for the time of a run the module's
class is a subclass of its own class and of `Module`, in which whatever its author has not overridden is ours.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn

from framework.callback import HOOKS, Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer

# Without it, its `load_from_checkpoint` reads no file.
VERSION = {"pytorch-lightning_version": pl.__version__}
# Lightning's modules keep these in attributes of their own, which are set before a run.
_KEPT = {"automatic_optimization", "hparams", "hparams_initial", "save_hyperparameters", "load_from_checkpoint"}


# ------------------------------------------------------------------------------------------------------------- modules


@contextmanager
def as_module(module: pl.LightningModule) -> Iterator[None]:
    """Let a `LightningModule`, and those that are parts of it, be a `Module` within this context."""
    parts = [part for part in module.modules() if isinstance(part, pl.LightningModule) and not isinstance(part, Module)]
    classes = [type(part) for part in parts]
    try:
        for part in parts:
            part.__class__ = _class_for(type(part))  # type: ignore[arg-type]
        yield
    finally:
        for part, cls in zip(parts, classes, strict=True):
            part.__class__ = cls


class _OfRun:
    """What the classes of a run have of their own, first in their order."""

    may_leave_out_parameters = True

    def __init_subclass__(cls, **_: Any) -> None:
        """Tell no class of the user's that there is a subclass: some keep a list of theirs."""

    @property
    def trainer(self) -> LightningTrainer:
        trainer: property = vars(Module)["trainer"]
        return LightningTrainer(trainer.__get__(self))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note Lightning's version, then call the user's own hook."""
        checkpoint |= VERSION
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let copies and pickles be of the user's class: they may outlive the run."""
        reduced: Any = super().__reduce_ex__(protocol)
        function, arguments, *state = reduced
        if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # which makes objects of the same class only
            function, arguments = object.__new__, (type(self).__mro__[2],)
        return function, arguments, *state


@cache
def _class_for(cls: type[pl.LightningModule]) -> type:
    """Return a subclass of a class of the user's and of `Module`, in which what Lightning defines is ours."""
    ours = (set(dir(Module)) - set(dir(nn.Module)) - _KEPT - set(vars(_OfRun))) | {"forward"}
    replaced = {
        name: inspect.getattr_static(Module, name)
        for name in ours & set(dir(pl.LightningModule))
        if not name.startswith("_") and _owner(cls, name) in pl.LightningModule.__mro__
    }
    own = {"__module__": __name__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (_OfRun, cls, Module), replaced | own)


def _owner(cls: type, name: str) -> type:
    """Return the class that defines an attribute."""
    return next(one for one in cls.__mro__ if name in vars(one))


class LightningTrainer:
    """A trainer as code for Lightning's sees it: metrics are tensors, and callbacks those that were passed.

    Everything else is the trainer's own, whose names are Lightning's.
    """

    def __init__(self, trainer: Trainer) -> None:
        object.__setattr__(self, "_trainer", trainer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._trainer, name, value)

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The last value of every metric."""
        return {name: torch.tensor(value) for name, value in self._trainer.callback_metrics.items()}

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The values that the loggers were sent last."""
        return {name: torch.tensor(value) for name, value in self._trainer.logged_metrics.items()}

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks, Lightning's as they were passed."""
        callbacks: list[Any] = self._trainer.callbacks
        return [one.callback if isinstance(one, LightningCallback) else one for one in callbacks]

    @property
    def state(self) -> SimpleNamespace:
        """Which method is running, as "fit", and its stage, as "train"."""
        stages = ("sanity_checking", "validating", "testing", "predicting", "training")
        names = ("sanity_check", "validate", "test", "predict", "train")
        stage = next((name for flag, name in zip(stages, names, strict=True) if getattr(self._trainer, flag)), None)
        return SimpleNamespace(fn=self._trainer._under_way, stage=stage)


# ----------------------------------------------------------------------------------------------------------- callbacks


class LightningCallback(Callback):
    """A callback of Lightning's. Its hooks are given a `LightningTrainer`.

    Attributes:
        callback: The callback as it was passed.
    """

    def __init__(self, callback: pl.Callback) -> None:
        self.callback = callback

    def state_dict(self) -> dict[str, Any]:
        return self.callback.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.callback.load_state_dict(state_dict)


def as_callback(callback: pl.Callback) -> LightningCallback:
    """Return a callback of Lightning's as a `Callback`.

    Raises:
        TypeError: If it is a ready-made one, which knows the inside of Lightning's trainer.
        ValueError: If it has a hook that does not exist.
    """
    for cls in type(callback).__mro__:
        if cls.__module__.startswith("lightning.pytorch.") and cls not in (pl.Callback, LambdaCallback):
            raise TypeError(
                f"callbacks has Lightning's {cls.__name__}, which works only with Lightning's trainer: import "
                f"{cls.__name__} from framework.callbacks if it is there, or drop it"
            )
    heard = tuple(name for name in HOOKS if _hears(callback, name))
    return _wrapper_for(type(callback), heard)(callback)  # type: ignore[arg-type]


def _hears(callback: pl.Callback, name: str) -> bool:
    return name in vars(callback) or getattr(type(callback), name, None) is not getattr(pl.Callback, name, None)


@cache
def _wrapper_for(cls: type[pl.Callback], heard: tuple[str, ...]) -> type[LightningCallback]:
    for one in cls.__mro__:
        wrong = [name for name in vars(one) if name.startswith("on_") and name not in HOOKS]
        if one not in pl.Callback.__mro__ and wrong:
            raise ValueError(f"{cls.__name__}.{wrong[0]} is not a hook and would never be called: drop it")
    hooks: dict[str, Any] = {name: _forwarding(name) for name in heard}
    return type(cls.__name__, (LightningCallback,), {"__module__": cls.__module__, "__doc__": cls.__doc__, **hooks})


def _forwarding(name: str) -> Callable[..., Any]:
    def hook(self: LightningCallback, trainer: Trainer, module: Module, *args: Any) -> Any:
        return getattr(self.callback, name)(LightningTrainer(trainer), module, *args)

    return hook
