"""From a composed configuration to a run folder: what most recipes do is to train one model."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from framework import Callback, Trainer
from framework.fabric import current_rank
from framework.loggers import TensorBoardLogger
from framework.loop.checkpoint import newest
from framework.recipes.build import build
from framework.recipes.compare import ERROR
from framework.recipes.dashboard import Dashboard
from framework.recipes.mistakes import in_words
from framework.recipes.report import read_summary, write_report
from framework.recipes.resume import record, why_finished

# What says how a run ended.
ENDINGS = ("summary.json", ERROR)


def train(config: DictConfig, folder: Path) -> dict[str, float]:
    """Train the model that a configuration describes, write everything about it, and return the final metrics."""
    trainer, module, data = build(config, folder)
    found = None if config.resume is None else newest([folder / "checkpoints"])
    if found is not None and (reason := _nothing_left(trainer, config, folder, *found)):
        print(f"nothing to resume in {folder}: {reason}", flush=True)
        return read_summary(folder / "summary.json")
    ckpt_path = config.ckpt_path
    if config.resume is not None:
        if ckpt_path is None or found is not None:
            ckpt_path = "last"  # otherwise it was killed before it saved, and begins again where it began
        trainer.callbacks.insert(0, _Recording(config, folder))
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        # A number where the configuration may say auto.
        computed = OmegaConf.merge(config, {"penalty": {"happy_lambda": module.happy_lambda}})
        assert isinstance(computed, DictConfig)
        trainer.callbacks.append(Dashboard(computed, folder, data, is_continued=found is not None))
    trainer.fit(module, data.train, data.val, ckpt_path=ckpt_path)
    interrupted = trainer.interrupted
    metrics = write_report(trainer, module, data, config, folder)
    if interrupted:
        # So that a shell, or the rest of a sweep, stops too.
        raise SystemExit(128 + signal.SIGINT)
    _say_what_came_out(trainer, metrics, folder)
    return metrics


def _say_what_came_out(trainer: Trainer, metrics: Mapping[str, float], folder: Path) -> None:
    """Print the metrics that one looks at first, where the best weights are, and how to see the rest."""
    shown = {name: value for name, value in metrics.items() if name.startswith(("val/", "test/", "support/"))}
    shown |= {name: metrics[name] for name in ("train/objective",) if name in metrics}
    print(", ".join(f"{name} {value:.5g}" for name, value in shown.items()))
    best = next((writer.best_model_path for writer in trainer.checkpoint_callbacks if writer.best_model_path), None)
    if best is not None:
        print(f"best checkpoint: {os.path.relpath(best, folder)}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        print(f"to look at it: proxtrain-tensorboard {folder}", flush=True)


def _nothing_left(
    trainer: Trainer, config: DictConfig, folder: Path, path: Path, checkpoint: Mapping[str, Any]
) -> str | None:
    """Return why a run cannot go on from its newest checkpoint, None if it can; say from where it does."""
    progress = checkpoint["progress"]
    changed = OmegaConf.to_container(config, resolve=True) != _as_recorded(config, folder)
    if reason := why_finished(folder, progress, trainer.max_epochs, trainer.max_steps, changed=changed):
        return reason
    print(f"resuming from {path.name}: epoch {progress['epoch']}, step {progress['global_step']}", flush=True)
    return None


def _as_recorded(config: DictConfig, folder: Path) -> Any:
    return {**OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), "resume": config.resume}  # type: ignore[dict-item]


class _Recording(Callback):
    """Writes down the configuration of a resumed run when it goes on, and drops what says how it ended before.

    A start that is refused changes nothing.
    """

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        record(self.config, self.folder)
        for name in ENDINGS:
            (self.folder / name).unlink(missing_ok=True)


def run(config: DictConfig, folder: Path) -> dict[str, float]:
    """Do a configuration's task, which writes to ``folder``; print the folder first and last; return the metrics.

    Of several processes, those above rank zero print nothing, and what they write is dropped.

    Raises:
        FileExistsError: If the folder holds another run, which is not to be resumed.
    """
    if current_rank() > 0:
        with TemporaryDirectory() as nowhere, redirect_stdout(io.StringIO()):
            return get_method(config.task)(config, Path(nowhere))
    print(f"run folder: {folder}", flush=True)
    if config.get("resume") is None:
        claim(folder)
        record(config, folder)
    try:
        return get_method(config.task)(config, folder)
    except Exception as error:
        if not any((folder / name).exists() for name in ENDINGS):  # one that ended and cannot go on stays as it was
            (folder / ERROR).write_text(f"{in_words(error)}\n")
        raise
    finally:
        print(f"run folder: {folder}", flush=True)


def claim(folder: Path) -> None:
    """Make a folder this run's, however many start at the same moment.

    Raises:
        FileExistsError: If it is another run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(folder / "config.yaml", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise FileExistsError(
            f"{folder} holds another run; continue it by resume={folder}, or choose hydra.run.dir=..."
        ) from None


def optimized(metrics: Mapping[str, float], name: str | None) -> float | None:
    """Return the metric that a sweeper optimizes, if it is to optimize one.

    Raises:
        ValueError: If the run has no such metric; the message lists those that it has.
    """
    if name is None:
        return None
    if name not in metrics:
        raise ValueError(f"optimized_metric={name}: the run has no such metric, but {', '.join(sorted(metrics))}")
    return float(metrics[name])
