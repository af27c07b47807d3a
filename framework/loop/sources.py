"""Where the data of a run come from: loaders that were passed, a datamodule, or the module's own methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from framework.callback import Callback
from framework.hyperparameters import hyperparameters_state
from framework.loop.hooks import each
from framework.loop.overrides import accepts, describe, overrides
from framework.loop.processes import Processes, rng_state_of, rng_states_of, set_rng_state_of, set_rng_states_of
from framework.loop.progress import Progress
from framework.loop.takeover import TRANSFER, transfer_by
from framework.loop.validation import check_step, is_lightnings
from framework.module import Module

_METHODS = {
    "train": "train_dataloader",
    "validation": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
_HOOKS = ("on_exception", "on_before_batch_transfer", "on_after_batch_transfer")
_ARGUMENTS = {
    "prepare_data": [],
    "setup": ["stage"],
    **{method: [] for method in _METHODS.values()},
    "on_before_batch_transfer": ["batch", "dataloader_idx"],
    "transfer_batch_to_device": ["batch", "device", "dataloader_idx"],
    "on_after_batch_transfer": ["batch", "dataloader_idx"],
    "state_dict": [],
    "load_state_dict": ["state_dict"],
    "on_exception": ["exception"],
    "teardown": ["stage"],
}


class Sources:
    """The data of a run, by stage. What was passed comes before the datamodule, and that before the module.

    Args:
        module: The module, which may define methods such as ``train_dataloader``.
        datamodule: A `lightning.pytorch.LightningDataModule`, or any object with some of its methods; None for none.
            If there is one, the module's methods are not asked.
        given: The loaders that were passed, by stage: "train", "validation", "test" or "predict".
        progress: Returns how far training has come.
        processes: This one among several; None if it is alone.

    Attributes:
        made: By stage, when a method was last asked for loaders: epoch, step and random state. A run that is continued
            asks as of then, and so gets the same loaders again.

    Raises:
        ValueError: If both loaders and a datamodule were passed.
    """

    def __init__(
        self,
        module: Module,
        datamodule: Any,
        given: Mapping[str, Any],
        progress: Callable[[], Progress],
        processes: Processes | None = None,
    ) -> None:
        self._given = {stage: loaders for stage, loaders in given.items() if loaders is not None}
        if datamodule is not None and self._given:
            raise ValueError(
                f"both loaders and the datamodule {type(datamodule).__name__} were passed: pass one of the two"
            )
        self._module, self.datamodule = module, datamodule
        self._owner = module if datamodule is None else datamodule
        self._progress, self._processes = progress, processes
        self.made: dict[str, dict[str, Any]] = {}
        self._to_make_again: dict[str, dict[str, Any]] = {}
        self._replaced: Any = None

    def loaders(self, stage: str) -> Any:
        """Return the loaders of a stage, as they were passed or as a method makes them; None if there are none.

        Raises:
            ValueError: If the method returns None.
        """
        if not self._makes(stage):
            return self._given.get(stage)
        method = getattr(self._owner, _METHODS[stage])
        with self._as_of_then(stage), nullcontext() if self._processes is None else self._processes.common():
            loaders = method()
        if loaders is None:
            raise ValueError(
                f"{type(self._owner).__name__}.{_METHODS[stage]}() returned None; it must return a loader, or several "
                "in a list or a mapping, which may be empty"
            )
        return None if isinstance(loaders, list | tuple | Mapping) and not loaders else loaders

    def _makes(self, stage: str) -> bool:
        return stage not in self._given and defines(self._owner, _METHODS[stage])

    @contextmanager
    def _as_of_then(self, stage: str) -> Iterator[None]:
        """Note epoch, step and random state; or put those back, within, as of which loaders are to be made again."""
        progress, processes = self._progress(), self._processes
        then = self._to_make_again.pop(stage, None)
        if then is None:
            now = {"epoch": progress.epoch, "global_step": progress.global_step, "rng": rng_states_of(processes, ())}
            self.made[stage] = now
            yield
            return
        self.made[stage] = then
        standing, now = (progress.epoch, progress.global_step), rng_state_of(processes, ())
        progress.epoch, progress.global_step = then["epoch"], then["global_step"]
        set_rng_states_of(processes, then["rng"], ())
        try:
            yield
        finally:
            progress.epoch, progress.global_step = standing
            set_rng_state_of(processes, now, ())

    def is_due(self, stage: str, every_n_epochs: int) -> bool:
        """Tell whether it is so many epochs since a method was asked for the loaders of a stage."""
        return (
            every_n_epochs > 0
            and stage in self.made
            and (self._progress().epoch - self.made[stage]["epoch"] >= every_n_epochs)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: the state of the datamodule, and when loaders were asked for."""
        return {"made": dict(self.made), "datamodule": _call(self.datamodule, "state_dict") or {}}

    def hyperparameters_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the datamodule's hyperparameters, under Lightning's names."""
        state = hyperparameters_state(self.datamodule, "datamodule_")
        if state and is_lightnings(type(self.datamodule), "LightningDataModule"):
            from framework.lightning import VERSION

            state |= VERSION
        return state

    def give_back(self) -> None:
        """Undo what `load_state_dict` did to the datamodule, because the rest of the checkpoint does not fit."""
        if self._replaced:
            _call(self.datamodule, "load_state_dict", self._replaced)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the datamodule its state, and let the loaders be made as they were then."""
        self._replaced = _call(self.datamodule, "state_dict")
        if state["datamodule"]:
            _call(self.datamodule, "load_state_dict", state["datamodule"])
        self._to_make_again = {stage: then for stage, then in state["made"].items() if self._makes(stage)}

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
        return any(map(self._makes, ("train", "validation")))

    def transfer(self, device: torch.device, dataloader_idx: int) -> Callable[[Any], Any] | None:
        """Return what moves a batch to the device, if the datamodule or the module takes any part of that over."""
        datamodule = self.datamodule
        owners = {name: datamodule if defines(datamodule, name) else self._module for name in TRANSFER}
        return transfer_by(owners, device, dataloader_idx) if any(map(defines, owners.values(), owners)) else None


class DataModule(Callback):
    """A datamodule in the place of a callback: its hooks.

    Args:
        datamodule: A `lightning.pytorch.LightningDataModule`, or any object with some of its methods.
        trainer: What its attribute ``trainer`` is from now on.
    """

    def __init__(self, datamodule: Any, trainer: Any) -> None:
        self.datamodule = datamodule
        if is_lightnings(type(datamodule), "LightningDataModule"):
            from framework.lightning import LightningTrainer

            trainer = LightningTrainer(trainer)
        datamodule.trainer = trainer

    def setup(self, trainer: Any, module: Module, stage: str) -> None:
        _call(self.datamodule, "setup", stage)

    def teardown(self, trainer: Any, module: Module, stage: str) -> None:
        _call(self.datamodule, "teardown", stage)

    def on_exception(self, trainer: Any, module: Module, exception: BaseException) -> None:
        _call(self.datamodule, "on_exception", exception)


def _call(datamodule: Any, name: str, *args: Any) -> Any:
    return getattr(datamodule, name)(*args) if defines(datamodule, name) else None


def is_datamodule(value: Any) -> bool:
    """Tell whether something is a datamodule, and not a loader."""
    return any(hasattr(value, method) for method in _METHODS.values()) and not hasattr(value, "__iter__")


def check_datamodule(datamodule: Any) -> None:
    """Refuse what is no datamodule, and methods of one that would not be called, or with other arguments.

    Raises:
        TypeError: If it is no datamodule, or a method does not take the arguments that it is called with.
        ValueError: If it has a hook that would not be called.
    """
    if isinstance(datamodule, type):
        raise TypeError(f"datamodule is the class {datamodule.__name__}; pass an instance, {datamodule.__name__}(...)")
    if not is_datamodule(datamodule):
        raise TypeError(f"datamodule is {describe(datamodule)}; pass an object with train_dataloader() or the like")
    name = type(datamodule).__name__
    for hook in dir(datamodule):
        if hook.startswith("on_") and hook not in _HOOKS and defines(datamodule, hook):
            instead = {"on_save_checkpoint": "state_dict", "on_load_checkpoint": "load_state_dict"}.get(hook)
            remedy = f"define {instead} instead" if instead else f"a datamodule has the hooks {', '.join(_HOOKS)}"
            raise ValueError(f"{name}.{hook} would never be called: {remedy}")
    for method, arguments in _ARGUMENTS.items():
        if defines(datamodule, method) and not accepts(getattr(datamodule, method), len(arguments)):
            raise TypeError(
                f"{name}.{method} is called with ({', '.join(arguments)}): define it as def "
                f"{method}({', '.join(['self', *arguments])})"
            )


def defines(owner: Any, name: str) -> bool:
    """Tell whether a module or a datamodule has a method of its own, and not only the default of its base class."""
    if isinstance(owner, Module):
        return overrides(owner, name) and callable(getattr(owner, name))
    if not callable(getattr(owner, name, None)):
        return False
    cls = next((cls for cls in type(owner).__mro__ if name in vars(cls)), None)
    return cls is None or not cls.__module__.startswith("lightning.pytorch.")


def check_reload(sources: Sources, every_n_epochs: int) -> None:
    """Warn if loaders are to be asked for again that nobody makes."""
    if every_n_epochs and not sources.are_made():
        warnings.warn(
            f"reload_dataloaders_every_n_epochs={every_n_epochs} has no effect on loaders that are passed to fit: "
            "define train_dataloader() in the module, or pass a datamodule",
            stacklevel=3,
        )


def prepare_data(module: Module, datamodule: Any, fabric: Any) -> None:
    """Let the datamodule and the module download what they need, in one process of each machine; the others wait."""
    for owner in (datamodule, module):
        if owner is not None and defines(owner, "prepare_data"):
            per_node = getattr(owner, "prepare_data_per_node", True)
            error: BaseException | None = None
            with fabric.rank_zero_first(local=per_node):  # waits as long as it takes
                if (fabric.local_rank if per_node else fabric.global_rank) == 0:
                    error = each([owner.prepare_data])
            if error is not None:
                raise error
