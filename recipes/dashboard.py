"""What TensorBoard shows of a run besides its curves: text, graph, pictures as it trains, its row among others."""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from framework import Callback, Trainer
from framework.callbacks import PenaltyPath
from framework.callbacks.model_summary import summarize
from framework.data import TensorLoader
from framework.loggers import Logger, TensorBoardLogger
from framework.objective.replay import rng_state, set_rng_state
from framework.recipes.data import Data, as_taken_by
from framework.recipes.overrides import SHORTHANDS, run_name
from framework.recipes.report import add_figures, caption, draw, final_metrics, log_final_metrics, read_history

# Which hyperparameters the HParams tab shows before the others, after those of the command line: it has room for five.
FIRST = ("optimizer", "lr", "penalty", "model", "recipe")
SHORT = {"optimizer/lr": "lr", "data/batch_size": "batch_size", "penalty/happy_lambda": "happy_lambda"}
OF_TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val", "limit_train_batches", "compile", "devices")


class Dashboard(Callback):
    """Fills the tabs of TensorBoard that are not curves, and leaves what training computes as it is.

    At the start: the row of the HParams tab; the command, the configuration and a summary of the model as text; the
    graph of the network, if asked for. Then pictures, after epochs 1, 2, 4, 8, ... or after each stage of a
    `PenaltyPath`. If the run fails: the metrics as of then.

    Args:
        config: The composed configuration, with numbers where it says auto.
        folder: The run folder.
        data: Of the recipe, which draws its pictures.
        is_continued: Whether the run goes on in its own folder, where all that was shown before is still to be seen.
    """

    def __init__(self, config: DictConfig, folder: Path, data: Data, *, is_continued: bool) -> None:
        self.config, self.folder, self.data, self.is_continued = config, folder, data, is_continued
        self._shown = 0  # a checksum of the configuration
        self._stage = 0
        self._has_begun = False

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        self._stage, self._has_begun = _stage(trainer), True
        validated = ["val/accuracy", "val/loss"] if self.data.num_classes else ["val/loss"]
        metrics = [*(validated if self.data.val is not None else []), "train/loss_epoch"]
        log_row(trainer.loggers, self.config, self.folder, [*metrics, *self.data.found, "closure_evaluations", "epoch"])
        configuration = OmegaConf.to_yaml(_without(self.config, "resume"), resolve=True)
        before, self._shown = self._shown, zlib.crc32(configuration.encode())
        if self.is_continued and self._shown == before:
            return
        summary = summarize(trainer, max_depth=2)
        for logger in _tensorboards(trainer.loggers):
            text = {"command": command(), "configuration": configuration, "model": summary}
            for name, content in text.items():
                logger.experiment.add_text(f"run/{name}", f"```\n{content}\n```", trainer.global_step)
            if self.config.logger.get("graph"):
                first, *_ = next(iter(self.data.train if self.data.val is None else self.data.val))
                with torch.no_grad():
                    logger.log_graph(getattr(module, "network", module), as_taken_by(module, first[:1]))
            logger.save()

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if not (self._is_picture_due(trainer) and trainer.is_global_zero and self.config.logger.get("pictures")):
            return
        random, val = rng_state(), self.data.val
        position = val.state_dict() if hasattr(val, "state_dict") else None
        pictures = draw(
            lambda predict: self.data.progress(trainer, module, predict), lambda loader: outputs(module, loader)
        )
        caption(pictures, self.config, trainer)
        add_figures(trainer.loggers, pictures, trainer.global_step)
        if position is not None:
            val.load_state_dict(position)
        set_rng_state(random)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        if not self._has_begun:
            return  # a start that is refused changes nothing
        metrics = final_metrics(trainer) | {"epoch": float(trainer.current_epoch)}
        if (first := trainer.closure.first) is not None:  # of the last step, which may be what failed
            metrics["train/loss"] = float(first.loss)
        log_final_metrics(trainer.loggers, metrics, read_history(self.folder / "metrics.csv"), trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"shown": self._shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._shown = state_dict["shown"]

    def _is_picture_due(self, trainer: Trainer) -> bool:
        if trainer.progress.batch_idx:
            return False  # stopped in the middle of an epoch
        before, self._stage = self._stage, _stage(trainer)
        if any(isinstance(callback, PenaltyPath) for callback in trainer.callbacks):
            return self._stage > before
        epoch = trainer.progress.epochs_completed
        is_last = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps  # the report draws it
        return epoch.bit_count() == 1 and not is_last


def _stage(trainer: Trainer) -> int:
    return next((callback.stage for callback in trainer.callbacks if isinstance(callback, PenaltyPath)), 0)


def _tensorboards(loggers: Sequence[Logger]) -> list[TensorBoardLogger]:
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]


def outputs(module: Any, loader: TensorLoader) -> Tensor:
    """Compute the network's outputs for a whole loader within a run, in order, on the CPU."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(as_taken_by(module, x)).float().cpu() for x, *_ in loader])
    finally:
        for part, mode in modes:
            part.training = mode


# ------------------------------------------------------------------------------------------------------ hyperparameters


def log_row(loggers: Sequence[Logger], config: DictConfig, folder: Path, metrics: Sequence[str]) -> None:
    """Begin a run's row of the HParams tab; ``metrics`` are the tags whose last values it shows."""
    shown = hyperparameters(config)
    first = [name for name in dict.fromkeys([*overridden(), *FIRST]) if name in {*shown, *FIRST}][:5]
    for logger in _tensorboards(loggers):
        name = run_name(overrides(), config.recipe_name, folder)
        logger.log_hyperparams(shown, metrics, first=first, name=name)


def hyperparameters(config: DictConfig) -> dict[str, Any]:
    """Return what was in effect, under names such as "optimizer" (its class), "lr" and "model/hidden".

    Settings that other ones replace are left out, and how long to train: metrics say how long it did.
    """
    options: Any = OmegaConf.to_container(config, resolve=True)
    found: dict[str, Any] = {"recipe": options["recipe_name"], "seed": options["seed"]}
    for part in ("data", "model", "loss", "penalty", "optimizer", "scheduler"):
        if options.get(part):
            found |= _of_part(part, options[part])
    trainer = options.get("trainer") or {}
    found |= {name: trainer[name] for name in OF_TRAINER if trainer.get(name) is not None}
    if options.get("penalty") and "penalty" not in found:
        found |= {"penalty": "none"}
        found.pop("penalty/happy_lambda", None)  # a module of its own may have none
    return {SHORT.get(name, name): value for name, value in found.items()}


def _of_part(part: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name of what a part of the configuration makes, and its options."""
    for key, value in options.items():
        if key == "_target_":
            yield part, value.rpartition(".")[2]
        elif isinstance(value, Mapping) and "_target_" in value:
            yield from _of_part(part, value)
        elif value is not None and not key.startswith("_"):
            yield f"{part}/{key}", value


def overridden() -> list[str]:
    """Return the keys that the command line set, as `hyperparameters` names them."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides()]
    full = [SHORTHANDS.get(key, key).removeprefix("trainer.").replace(".", "/") for key in keys]
    return [SHORT.get(key, key) for key in full]


def overrides() -> list[str]:
    """Return what the command line set, without the folders."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [override for override in given if not override.lstrip("+~").startswith(("hydra.", "resume="))]


def command() -> str:
    """Return the command that made the run, a line for each setting."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return " \\\n  ".join(["proxtrain", *map(shlex.quote, given)])


def _without(config: DictConfig, key: str) -> DictConfig:
    return OmegaConf.masked_copy(config, [other for other in map(str, config) if other != key])
