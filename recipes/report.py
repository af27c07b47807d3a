"""What a run leaves behind: summary.json, pictures, and the HParams and Images tabs of TensorBoard."""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from framework import Trainer
from framework.callbacks import PenaltyPath, Timer
from framework.data import TensorLoader
from framework.loggers import Logger, TensorBoardLogger
from framework.loop.overrides import overrides
from framework.recipes import figures
from framework.recipes.data import Data, Predict
from framework.recipes.module import SupervisedModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    trainer: Trainer, module: SupervisedModule, data: Data, config: DictConfig, folder: Path
) -> dict[str, float]:
    """Write plots and summary of a finished run; return its final metrics.

    The summary is written last, in one piece: a folder without it holds a run that did not finish.
    """
    # As of the end of training: drawing and pruning evaluate the network again.
    metrics, epoch = final_metrics(trainer), {"epoch": float(trainer.current_epoch)}
    facts = {
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "closure_evaluations": trainer.closure_evaluations,
        "seconds": round(training_seconds(trainer), 3),
        "stopped_because": trainer.stopped_because,
    }
    step = trainer.global_step
    pictures = draw(data.figures, lambda loader: predict(trainer, module, loader))
    new, findings, more_pictures = data.findings(trainer, module, folder)
    metrics, pictures = dict(sorted({**metrics, **new}.items())), {**pictures, **more_pictures}
    if history := read_history(folder / "metrics.csv"):
        pictures = {**curves(history), **pictures}
    caption(pictures, config, trainer)
    save_figures(trainer.loggers, pictures, folder / "plots", step)
    log_final_metrics(trainer.loggers, metrics | epoch, history, step)
    for logger in trainer.loggers:
        logger.finalize("success")
    write_summary(
        config,
        metrics,
        folder / "summary.json",
        **facts,
        hyperparameters={"happy_lambda": module.happy_lambda},
        **findings,
    )
    return metrics


def training_seconds(trainer: Trainer) -> float:
    """Return how long a run has trained, with validation, before it was continued and after."""
    return next(timer for timer in reversed(trainer.callbacks) if isinstance(timer, Timer)).time_elapsed()


def caption(pictures: Mapping[str, Figure], config: DictConfig, trainer: Trainer) -> None:
    """Write above pictures of which recipe they are, and by which optimizer; by both of a path of penalties."""
    makers = [callback.make_optimizer for callback in trainer.callbacks if isinstance(callback, PenaltyPath)]
    names = [getattr(make, "func", make).__name__ for make in makers]
    names.append(getattr(trainer.optimizer, "method", type(trainer.optimizer).__name__))
    figures.caption(pictures.values(), f"{config.recipe_name}, {', then '.join(dict.fromkeys(names))}")


def curves(history: Mapping[str, tuple[list[float], list[float]]]) -> dict[str, Figure]:
    """Draw how the losses went, and the shares of exact zeros if there were any."""
    pictures = {"loss": figures.loss_curves(history)}
    if any(max(values) > 0 for tag, (_, values) in history.items() if tag.startswith("sparsity/")):
        pictures["sparsity"] = figures.sparsity_curves(history)
    return pictures


def draw(pictures: Callable[[Predict], dict[str, Figure]], predict: Predict) -> dict[str, Figure]:
    """Draw pictures; none, and a warning says why, if they are of outputs and the module does not say what these are.

    Args:
        pictures: Draws them by what the network gives for a loader.
        predict: Computes that; raises `NotImplementedError` for a module without ``forward``.
    """
    try:
        return pictures(predict)
    except NotImplementedError as error:
        warnings.warn(f"no pictures of what the model computes: {error}", stacklevel=2)
        return {}


def log_final_metrics(
    loggers: Sequence[Logger],
    metrics: Mapping[str, float],
    history: Mapping[str, tuple[list[float], list[float]]],
    step: int,
) -> None:
    """Send TensorBoard the values at the end of a run that were not logged before: its HParams tab shows the last ones.

    A value is news if it differs from the last one, over an axis that does not go further.
    """
    news = {
        name: value
        for name, value in metrics.items()
        if name not in history or (history[name][0][-1] <= step and history[name][1][-1] != value)
    }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics(news, step)


def make_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """Make the loggers that a configuration chooses; they write to ``folder``."""
    chosen = [logger for logger in config.logger.values() if isinstance(logger, DictConfig)]
    return [instantiate(logger, root_dir=str(folder)) for logger in chosen]


def final_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the value of every metric at the end of the run, under its TensorBoard name."""
    metrics = {**trainer.callback_metrics, "closure_evaluations": float(trainer.closure_evaluations)}
    return {name: value for name, value in sorted(metrics.items()) if name != "epoch"}


def predict(trainer: Trainer, module: SupervisedModule, loader: TensorLoader) -> Tensor:
    """Compute the network's outputs for a whole loader, in order, on the CPU.

    Raises:
        NotImplementedError: If the module does not say what its outputs are.
    """
    if not (overrides(module, "forward") or overrides(module, "predict_step")):
        raise NotImplementedError(f"{type(module).__name__} defines neither forward nor predict_step")
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
    add_figures(loggers, pictures, step)


def add_figures(loggers: Sequence[Logger], pictures: Mapping[str, Figure], step: int) -> None:
    """Show each picture in the Images tab of TensorBoard, which has a slider over the steps."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, figure in pictures.items():
                logger.experiment.add_figure(name, figure, step, close=False)


def write_summary(config: DictConfig, metrics: dict[str, float], path: Path, **facts: Any) -> None:
    """Write what came out, as JSON, in one piece; ``facts`` are the entries beside its metrics."""
    summary = {"recipe": config.recipe_name, "seed": config.seed, **facts, "metrics": metrics}
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, path)
