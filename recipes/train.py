"""From a composed configuration to a run folder: what most recipes do is to train one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from framework import Trainer, seed_everything
from recipes.module import SupervisedModule
from recipes.report import make_loggers, write_report


def build(config: DictConfig, folder: Path) -> tuple[Trainer, SupervisedModule, Any]:
    """The trainer, the module and the data that a configuration describes; logs and checkpoints go to ``folder``."""
    seed_everything(config.seed, verbose=False)
    data = instantiate(config.data)
    network = instantiate(config.model, input_shape=data.input_shape, num_outputs=data.num_outputs)
    module = SupervisedModule(
        network,
        instantiate(config.loss),
        instantiate(config.optimizer, _convert_="all"),
        scheduler=instantiate(config.scheduler, _convert_="all"),
        penalty=instantiate(config.penalty.function),
        happy_lambda=config.penalty.happy_lambda,
        learning_rates=config.learning_rates,
        num_classes=data.num_classes,
    )
    trainer = instantiate(
        config.trainer,
        logger=make_loggers(config, folder),
        callbacks=[
            *(instantiate(callback) for callback in config.callbacks.values() if callback),
            *data.callbacks,
        ],
        default_root_dir=folder,
    )
    return trainer, module, data


def train(config: DictConfig, folder: Path) -> dict[str, float]:
    """Train the model that a configuration describes, write everything about it, and return the final metrics."""
    trainer, module, data = build(config, folder)
    trainer.fit(module, data.train, data.val, ckpt_path=config.ckpt_path)
    interrupted = trainer.interrupted
    metrics = write_report(trainer, module, data, config, folder)
    if interrupted:
        # So that a shell, or the rest of a sweep, stops too.
        raise SystemExit(130)
    return metrics


def run(config: DictConfig, folder: Path) -> dict[str, float]:
    """Do a configuration's task, which writes to ``folder``; print the folder first and last; return the metrics."""
    print(f"run folder: {folder}", flush=True)
    if (folder / "config.yaml").exists():
        raise FileExistsError(f"{folder} holds another run; start again, or choose hydra.run.dir=...")
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    try:
        return get_method(config.task)(config, folder)
    finally:
        print(f"run folder: {folder}", flush=True)
