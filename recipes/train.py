"""From a composed configuration to a run folder: what most recipes do is to train one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from framework import Trainer, seed_everything
from framework.auto_lambda import auto_happy_lambda
from framework.data import TensorLoader
from framework.losses import L2Loss
from framework.objective.replay import rng_state, set_rng_state
from recipes.function import FunctionData, MeanOutput
from recipes.module import SupervisedModule
from recipes.report import make_loggers, write_report


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
