"""Where the data of a run come from: loaders that were passed, a datamodule, or the module's own methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric import Fabric

from framework.callback import Callback
from framework.loop.overrides import overrides
from framework.loop.progress import Progress
from framework.loop.takeover import TRANSFER, transfer_by
from framework.loop.validation import check_step
from framework.module import Module

_METHODS = {
    "train": "train_dataloader",
    "validation": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}


class Sources:
    """The data of a run, by stage. What was passed comes before the datamodule, and that before the module.

    Args:
        module: The module, which may define methods such as ``train_dataloader``.
        datamodule: A `lightning.pytorch.LightningDataModule`, or any object with some of its methods; None for none.
            If there is one, the module's methods are not asked.
        given: The loaders that were passed, by stage: "train", "validation", "test" or "predict".

    Raises:
        ValueError: If both loaders and a datamodule were passed, or a datamodule among the loaders.
    """

    def __init__(self, module: Module, datamodule: Any, given: Mapping[str, Any]) -> None:
        self._given = {stage: loaders for stage, loaders in given.items() if loaders is not None}
        if datamodule is not None and self._given:
            raise ValueError(
                f"both loaders and the datamodule {type(datamodule).__name__} were passed: pass one of the two"
            )
        self._module, self.datamodule = module, datamodule
        self._owner = module if datamodule is None else datamodule

    def loaders(self, stage: str) -> Any:
        """Return the loaders of a stage, as they were passed or as a method makes them; None if there are none."""
        if stage in self._given or not defines(self._owner, _METHODS[stage]):
            return self._given.get(stage)
        return getattr(self._owner, _METHODS[stage])()

    def needed_loaders(self, stage: str, method: str) -> Any:
        """Return the loaders of a stage.

        Raises:
            ValueError: If there are none; ``method`` is that of the trainer which needs them.
        """
        loaders = self.loaders(stage)
        if loaders is None:
            raise ValueError(
                f"{method} has no data: pass {'train_dataloaders' if stage == 'train' else 'dataloaders'}, pass a "
                f"datamodule with {_METHODS[stage]}(), or define {type(self._module).__name__}.{_METHODS[stage]}()"
            )
        return loaders

    def uses(self, module: Module, stage: str) -> bool:
        """Tell whether the module has a step for the data of a stage; those that were passed must be used.

        Raises:
            ValueError: If loaders were passed for which the module has no step.
        """
        try:
            check_step(module, stage, f"{_METHODS[stage]}s are given")
        except ValueError as error:
            if stage in self._given:
                raise
            warnings.warn(f"no {stage}: {error}", stacklevel=2)
            return False
        return True

    def are_made(self) -> bool:
        """Tell whether a method makes any of the loaders, so that asking it again gives others."""
        return any(stage not in self._given and defines(self._owner, _METHODS[stage]) for stage in _METHODS)

    def transfer(self, device: torch.device, dataloader_idx: int) -> Callable[[Any], Any] | None:
        """Return what moves a batch to the device, if the datamodule or the module takes any part of that over."""
        datamodule = self.datamodule
        owners = {name: datamodule if defines(datamodule, name) else self._module for name in TRANSFER}
        return transfer_by(owners, device, dataloader_idx) if any(map(defines, owners.values(), owners)) else None


class DataModule(Callback):
    """A datamodule in the place of a callback: its hooks, and its state in checkpoints.

    Attributes:
        datamodule: A `lightning.pytorch.LightningDataModule`, or any object with some of its methods.
    """

    def __init__(self, datamodule: Any) -> None:
        self.datamodule = datamodule

    def setup(self, trainer: Any, module: Module, stage: str) -> None:
        self.datamodule.trainer = trainer
        self._call("setup", stage)

    def teardown(self, trainer: Any, module: Module, stage: str) -> None:
        self._call("teardown", stage)

    def on_exception(self, trainer: Any, module: Module, exception: BaseException) -> None:
        self._call("on_exception", exception)

    def state_dict(self) -> dict[str, Any]:
        return self._call("state_dict") or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._call("load_state_dict", state_dict)

    def _call(self, name: str, *args: Any) -> Any:
        return getattr(self.datamodule, name)(*args) if defines(self.datamodule, name) else None


def is_datamodule(value: Any) -> bool:
    """Tell whether something is a datamodule, and not a loader."""
    return any(hasattr(value, method) for method in _METHODS.values()) and not hasattr(value, "__iter__")


def defines(owner: Any, name: str) -> bool:
    """Tell whether a module or a datamodule has a method of its own, and not only the default of its base class."""
    if isinstance(owner, Module):
        return overrides(owner, name) and callable(getattr(owner, name))
    if not callable(getattr(owner, name, None)):
        return False
    cls = next((cls for cls in type(owner).__mro__ if name in vars(cls)), None)
    return cls is None or not cls.__module__.startswith("lightning.pytorch.")


def progress_of_data(saved: Mapping[str, Any], every_n_epochs: int) -> Progress:
    """Return the progress at which the run of a checkpoint last asked for its loaders, as methods may ask for it."""
    progress = Progress(**saved)
    if every_n_epochs:
        progress.epoch -= progress.epoch % every_n_epochs
    return progress


def check_reload(sources: Sources, every_n_epochs: int) -> None:
    """Warn if loaders are to be asked for again that nobody makes."""
    if every_n_epochs and not sources.are_made():
        warnings.warn(
            f"reload_dataloaders_every_n_epochs={every_n_epochs} has no effect on loaders that are passed to fit: "
            "define train_dataloader() in the module, or pass a datamodule",
            stacklevel=3,
        )


def prepare_data(module: Module, datamodule: Any, fabric: Fabric) -> None:
    """Let the datamodule and the module download what they need, in one process of each machine; the others wait."""
    for owner in (datamodule, module):
        if owner is not None and defines(owner, "prepare_data"):
            per_node = getattr(owner, "prepare_data_per_node", True)
            if fabric.local_rank == 0 if per_node else fabric.global_rank == 0:
                owner.prepare_data()
            fabric.barrier()
