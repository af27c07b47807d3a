"""From a composed configuration to what it describes: the data, the module, and the trainer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from framework import Callback, Module, Trainer, seed_everything
from framework.auto_lambda import auto_happy_lambda
from framework.callbacks import Histograms, Timer
from framework.losses import L2Loss
from framework.objective.replay import rng_state, set_rng_state
from framework.recipes.data import Data
from framework.recipes.function import FunctionData, MeanOutput
from framework.recipes.overrides import SHORTHANDS, is_referred_to
from framework.recipes.report import make_loggers

# What a module may take, by the names of its arguments, and the group of the configuration that it comes from.
GROUPS = {
    "network": "model",
    "loss": "loss",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "penalty": "penalty",
    "happy_lambda": "penalty",
    "learning_rates": "learning_rates",
}


def build(config: DictConfig, folder: Path) -> tuple[Trainer, Any, Data]:
    """Make the trainer, the module and the data that a configuration describes; what is logged goes to ``folder``."""
    _check_numbers(config)
    seed_everything(config.seed, verbose=False)
    data = make_data(config)
    _check_monitors(config, data)
    module = make_module(config, data)
    _refuse_parts_not_taken(config)
    if isinstance(getattr(module, "loss", None), MeanOutput) and not isinstance(data, FunctionData):
        raise ValueError("loss=output makes outputs small and looks at no targets: it goes with recipe=function alone")
    if config.penalty.happy_lambda == "auto" and module.penalty is not None:
        module.happy_lambda = universal_threshold(module, data.train)
        print(f"happy_lambda: {module.happy_lambda:.6g} (quantile universal threshold)", flush=True)
    trainer = instantiate(
        config.trainer,
        logger=make_loggers(config, folder),
        callbacks=[
            _Shapes(data, module.happy_lambda),
            *(instantiate(callback) for callback in config.callbacks.values() if callback),
            *([Histograms(every)] if (every := config.logger.get("histograms")) else []),
            *data.callbacks,
            Timer(),  # over all fits of a run that is continued
        ],
        default_root_dir=folder,
    )
    return trainer, module, data


class _Shapes(Callback):
    """Writes into every checkpoint what of the data a network is made for, and the weight of the penalty.

    While a run goes on, `PenaltyPath` gives the module other weights.
    """

    def __init__(self, data: Data, happy_lambda: float | None) -> None:
        self.data, self.happy_lambda = data, happy_lambda

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        checkpoint["recipe"] = {
            "input_shape": None if self.data.input_shape is None else list(self.data.input_shape),
            "num_outputs": self.data.num_outputs,
            "num_classes": self.data.num_classes,
            "happy_lambda": self.happy_lambda,
        }


def rebuild(path: Path, recorded: Mapping[str, Any] | None) -> Module:
    """Make the module of a configuration again, with what `build` recorded in a checkpoint; without it, from the data.

    Args:
        path: The ``config.yaml`` of a run folder; the module gets what is in it as ``recipe``.
        recorded: ``checkpoint["recipe"]``; None for a checkpoint of the parameters alone.
    """
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    module = _remake(config, recorded)
    module.recipe = config
    return module


def _remake(config: DictConfig, recorded: Mapping[str, Any] | None) -> Any:
    if recorded is None:
        return make_module(config, make_data(config))
    shape = recorded["input_shape"]
    module = make_module(
        config,
        Data((), None, None if shape is None else tuple(shape), recorded["num_outputs"], recorded["num_classes"]),
    )
    module.happy_lambda = recorded["happy_lambda"]
    return module


def _check_numbers(config: DictConfig) -> None:
    for key in ("seed", "lr", "optimizer.lr"):
        value = OmegaConf.select(config, key)
        if isinstance(value, str) or (key == "seed" and not isinstance(value, int)):
            raise ValueError(f"{key}={value}; pass a number")
    if isinstance(config.penalty.happy_lambda, str) and config.penalty.happy_lambda != "auto":
        raise ValueError(f"penalty.happy_lambda={config.penalty.happy_lambda}; pass a number, or auto")


def _check_monitors(config: DictConfig, data: Data) -> None:
    """Refuse to train for a metric of validation where nothing is validated, which a run would say at its end."""
    if data.val is not None and config.trainer.limit_val_batches != 0:
        return
    for name, callback in config.callbacks.items():
        if callback and str(callback.get("monitor")).startswith("val/"):
            raise ValueError(
                f"callbacks.{name}.monitor={callback.monitor}, and nothing is validated (data.val is None, or "
                f"trainer.limit_val_batches is 0): set callbacks.{name}.monitor to a metric of training, such as "
                "train/loss_epoch, or to null for the last checkpoint alone"
            )


def make_data(config: DictConfig) -> Data:
    """Make the data of a configuration.

    Raises:
        TypeError: If what ``data._target_`` names returns something else than a `Data`.
    """
    data = instantiate(config.data)
    if isinstance(data, Data):
        return data
    raise TypeError(
        f"data={config.data._target_} returned a {type(data).__name__}; it must return a "
        "framework.recipes.data.Data, such as Data(train=loader, val=loader, input_shape=(3,), num_outputs=1), with "
        "num_classes=... if the targets are classes"
    )


def make_module(config: DictConfig, data: Data) -> Any:
    """Make the module of a configuration, with those of its parts that the module's ``__init__`` names.

    Parts are ``network``, ``loss``, ``optimizer``, ``scheduler``, ``penalty``, ``happy_lambda`` (0 where it is to be
    computed), ``learning_rates``, and of the data ``input_shape``, ``num_outputs`` and ``num_classes``. Of an optimizer
    and a scheduler the module gets what makes them. Parts that it does not name are not made.

    Raises:
        TypeError: If it is no `framework.Module`.
    """
    make = instantiate(config.module, _partial_=True)
    taken = inspect.signature(make.func).parameters
    parts: dict[str, Callable[[], Any]] = {
        "network": lambda: _make_network(config, data),
        "loss": lambda: _make_loss(config, data),
        "optimizer": lambda: instantiate(config.optimizer, _convert_="all"),
        "scheduler": lambda: instantiate(config.scheduler, _convert_="all"),
        "penalty": lambda: instantiate(config.penalty.function),
        "happy_lambda": lambda: 0.0 if config.penalty.happy_lambda == "auto" else config.penalty.happy_lambda,
        "learning_rates": lambda: config.learning_rates,
        "input_shape": lambda: data.input_shape,
        "num_outputs": lambda: data.num_outputs,
        "num_classes": lambda: data.num_classes,
    }
    module = make(**{part: parts[part]() for part in parts if part in taken and part not in config.module})
    if not isinstance(module, Module):
        raise TypeError(
            f"module={config.module._target_} made a {type(module).__name__}; it must be a framework.Module"
        )
    return module


def _refuse_parts_not_taken(config: DictConfig) -> None:
    """Refuse what was set on the command line for a part that the module does not name.

    Raises:
        ValueError: If there is such a setting.
    """
    if not HydraConfig.initialized():
        return
    make = get_object(config.module._target_)
    taken = inspect.signature(make).parameters
    unread = set(GROUPS.values()) - {group for argument, group in GROUPS.items() if argument in taken}
    rest = OmegaConf.masked_copy(config, [str(key) for key in config if key not in unread])
    for override in OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task)):
        key = override.key_or_group
        part = SHORTHANDS.get(key, key)
        arguments = [argument for argument, group in GROUPS.items() if group == part.partition(".")[0]]
        if part == "penalty.happy_lambda" and override.value() != "auto":
            arguments = ["happy_lambda"]
        if not arguments or override.is_delete() or any(argument in taken for argument in arguments):
            continue
        if key in SHORTHANDS and is_referred_to(rest, key):
            continue
        name = getattr(make, "__name__", config.module._target_)
        raise ValueError(
            f"{override.input_line} has no effect: {name} takes no {arguments[0]}; drop it, or let its __init__ have "
            "an argument of that name"
        )


def _make_network(config: DictConfig, data: Data) -> Any:
    if data.input_shape is None or data.num_outputs is None:
        raise ValueError(
            f"data={config.data._target_} says nothing of input_shape and num_outputs, for which the network "
            f"{config.model._target_} is made: give them to Data(...)"
        )
    return instantiate(config.model, input_shape=data.input_shape, num_outputs=data.num_outputs)


def _make_loss(config: DictConfig, data: Data) -> Any:
    if "num_classes" in config.loss and config.loss.num_classes is None:
        return instantiate(config.loss, num_classes=data.num_classes)
    return instantiate(config.loss)


def universal_threshold(module: Any, loader: Any) -> float:
    """Compute the happy_lambda of ``penalty.happy_lambda=auto``, from the training data and the network.

    Raises:
        ValueError: If the theory has none for this network, loss, penalty or these batches; it says what it has.
    """
    if lacking := [part for part in ("network", "loss") if not hasattr(module, part)]:
        raise ValueError(
            f"happy_lambda=auto is computed from the module's `network` and `loss`, but a {type(module).__name__} has "
            f"no {' and no '.join(lacking)}; pass a number"
        )
    position = loader.state_dict() if hasattr(loader, "state_dict") else None
    rng = rng_state()
    inputs, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    if position is not None:
        loader.load_state_dict(position)
    set_rng_state(rng)
    if isinstance(module.loss, L2Loss) and len(loader) > 1:
        raise ValueError(
            f"happy_lambda=auto with loss=l2 in {len(loader)} batches: norms of batches do not add up to the norm of "
            f"all, for which the threshold is. Use data.batch_size={len(inputs)}, or a number for happy_lambda"
        )
    return auto_happy_lambda(module.network, module.param_groups(), module.loss, module.penalty, inputs, targets)
