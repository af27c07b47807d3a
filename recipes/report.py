"""What a run leaves behind: summary.json, pictures, and the HParams and Images tabs of TensorBoard."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from framework import Trainer
from framework.data import TensorLoader
from framework.loggers import Logger, TensorBoardLogger
from recipes import figures
from recipes.data import Data
from recipes.module import SupervisedModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    trainer: Trainer, module: SupervisedModule, data: Data, config: DictConfig, folder: Path
) -> dict[str, float]:
    """Write plots and summary of a finished run; return its final metrics.

    The summary is written last, in one piece: a folder without it holds a run that did not finish.
    """
    # As of the end of training: drawing and pruning evaluate the network again.
    metrics = final_metrics(trainer)
    facts = {
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "closure_evaluations": trainer.closure_evaluations,
        "seconds": round(trainer.fit_seconds, 3),
        "stopped_because": trainer.stopped_because,
    }
    step = trainer.global_step
    pictures = data.figures(lambda loader: predict(trainer, module, loader))
    new, findings, more_pictures = data.findings(trainer, module, folder)
    metrics, pictures = dict(sorted({**metrics, **new}.items())), {**pictures, **more_pictures}
    if history := read_history(folder / "metrics.csv"):
        pictures = {"loss": figures.loss_curves(history), **pictures}
    save_figures(trainer.loggers, pictures, folder / "plots", step)
    # A number where the configuration may say auto.
    computed = OmegaConf.merge(config, {"penalty": {"happy_lambda": module.happy_lambda}})
    news = {name: value for name, value in metrics.items() if _is_news(value, step, history.get(name))}
    log_hyperparameters(trainer.loggers, computed, metrics, new=news, step=step)
    write_summary(
        config,
        metrics,
        folder / "summary.json",
        **facts,
        hyperparameters={"happy_lambda": module.happy_lambda},
        **findings,
    )
    return metrics


def _is_news(value: float, step: int, logged: tuple[list[float], list[float]] | None) -> bool:
    """Return whether a final value differs from the last that was logged, over an axis that does not go further."""
    return logged is None or (logged[0][-1] <= step and logged[1][-1] != value)


def make_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """Make the loggers that a configuration chooses; they write to ``folder``."""
    return [instantiate(logger, root_dir=str(folder)) for logger in config.logger.values() if logger]


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the value of every metric at the end of the run, under its TensorBoard name."""
    metrics = {**trainer.callback_metrics, "closure_evaluations": float(trainer.closure_evaluations)}
    return {name: value for name, value in sorted(metrics.items()) if name != "epoch"}


def predict(trainer: Trainer, module: SupervisedModule, loader: TensorLoader) -> Tensor:
    """Compute the network's outputs for a whole loader, in order, on the CPU."""
    return torch.cat([output.float().cpu() for output in trainer.predict(module, loader)])


def read_summary(path: Path) -> dict[str, float]:
    """Return the final metrics of a run that has written its summary; nothing if it has not."""
    return json.loads(path.read_text())["metrics"] if path.exists() else {}


def read_history(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read the steps and values of every metric in a metrics.csv; empty where there is no such file."""
    history: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step":
                        history[name][0].append(float(row["step"]))
                        history[name][1].append(float(value))
    return dict(history)


def save_figures(loggers: Sequence[Logger], pictures: dict[str, Figure], folder: Path, step: int = 0) -> None:
    """Save each picture as a PNG, and in the Images tab of TensorBoard."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png")
        for logger in loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(name, figure, step, close=False)


def log_hyperparameters(
    loggers: Sequence[Logger],
    config: DictConfig | ListConfig,
    metrics: Mapping[str, float],
    *,
    new: Mapping[str, float],
    step: int = 0,
) -> None:
    """Log the configuration and the final metrics, for the HParams tab.

    ``new`` are those of the metrics whose final value was not logged during the run; it is, at ``step``: the tab shows
    the last value that was.
    """
    options: Any = OmegaConf.to_container(config, resolve=True)
    chosen = {key: value for key, value in options.items() if key not in ("callbacks", "logger")}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(new, step)
            logger.log_hyperparams(chosen, metrics)
        logger.finalize("success")


def write_summary(config: DictConfig, metrics: dict[str, float], path: Path, **facts: Any) -> None:
    """Write what came out, as JSON, in one piece; ``facts`` are the entries beside its metrics."""
    summary = {"recipe": config.recipe_name, "seed": config.seed, **facts, "metrics": metrics}
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, path)
