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

import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from framework import Callback, Trainer, seed_everything
from framework.auto_lambda import auto_happy_lambda
from framework.callbacks import Histograms
from framework.data import TensorLoader
from framework.fabric import current_rank
from framework.loggers import TensorBoardLogger
from framework.loop.checkpoint import newest
from framework.losses import L2Loss
from framework.objective.replay import rng_state, set_rng_state
from recipes.dashboard import Dashboard
from recipes.function import FunctionData, MeanOutput
from recipes.module import SupervisedModule
from recipes.report import make_loggers, read_summary, write_report
from recipes.resume import record, why_finished


def build(config: DictConfig, folder: Path) -> tuple[Trainer, SupervisedModule, Any]:
    """Make the trainer, the module and the data that a configuration describes; what is logged goes to ``folder``."""
    for key in ("seed", "lr", "optimizer.lr"):
        value = OmegaConf.select(config, key)
        if isinstance(value, str) or (key == "seed" and not isinstance(value, int)):
            raise ValueError(f"{key}={value}; pass a number")
    seed_everything(config.seed, verbose=False)
    automatic = config.penalty.happy_lambda == "auto"
    if isinstance(config.penalty.happy_lambda, str) and not automatic:
        raise ValueError(f"penalty.happy_lambda={config.penalty.happy_lambda}; pass a number, or auto")
    data = instantiate(config.data)
    network = instantiate(config.model, input_shape=data.input_shape, num_outputs=data.num_outputs)
    loss = instantiate(config.loss)
    if isinstance(loss, MeanOutput) and not isinstance(data, FunctionData):
        raise ValueError("loss=output makes outputs small and looks at no targets: it goes with recipe=function alone")
    module = SupervisedModule(
        network,
        loss,
        instantiate(config.optimizer, _convert_="all"),
        scheduler=instantiate(config.scheduler, _convert_="all"),
        penalty=instantiate(config.penalty.function),
        happy_lambda=0.0 if automatic else config.penalty.happy_lambda,
        learning_rates=config.learning_rates,
        num_classes=data.num_classes,
    )
    if automatic and module.penalty is not None:
        module.happy_lambda = universal_threshold(module, data.train)
        print(f"happy_lambda: {module.happy_lambda:.6g} (quantile universal threshold)", flush=True)
    trainer = instantiate(
        config.trainer,
        logger=make_loggers(config, folder),
        callbacks=[
            *(instantiate(callback) for callback in config.callbacks.values() if callback),
            *([Histograms(every)] if (every := config.logger.get("histograms")) else []),
            *data.callbacks,
        ],
        default_root_dir=folder,
    )
    return trainer, module, data


def universal_threshold(module: SupervisedModule, loader: TensorLoader) -> float:
    """Compute the happy_lambda of ``penalty.happy_lambda=auto``, from the training data and the network.

    Raises:
        ValueError: If the theory has none for this network, loss, penalty or these batches; it says what it has.
    """
    assert module.penalty is not None
    if isinstance(module.loss, L2Loss) and len(loader) > 1:
        raise ValueError(
            f"happy_lambda=auto with loss=l2 in {len(loader)} batches: norms of batches do not add up to the norm of "
            f"all, for which the threshold is. Use data.batch_size={loader.num_samples}, or a number for happy_lambda"
        )
    position, rng = loader.state_dict(), rng_state()
    inputs, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    loader.load_state_dict(position)
    set_rng_state(rng)
    return auto_happy_lambda(module.network, module.param_groups(), module.loss, module.penalty, inputs, targets)


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
    return metrics


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
    """Writes down the configuration of a resumed run when it goes on: a start that is refused changes nothing."""

    def __init__(self, config: DictConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        record(self.config, self.folder)


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
