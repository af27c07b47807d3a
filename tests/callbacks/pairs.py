"""The same run here and under `lightning.pytorch`, to compare what callbacks do in both."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from framework import Callback, Module, Trainer
from tests.modules import make_loader, make_trainer
from tests.twins import make_lightning_trainer

BATCHES = 3  # of `make_loader`, per epoch


class _Scores:
    """Validation logs a given score per epoch, training a given one per step."""

    def __init__(self, scores: list[float], step_scores: list[float] | None = None, optimize: Any = None) -> None:
        super().__init__()
        self.scores, self.step_scores, self.optimize = scores, step_scores, optimize
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layer = nn.Linear(3, 1, dtype=torch.float64)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.step_scores is not None:
            self.log("step_score", self.step_scores[self.trainer.global_step])
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/score", self.scores[self.trainer.current_epoch])

    def configure_optimizers(self) -> Any:
        if self.optimize is not None:
            return self.optimize(self)
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Ours(_Scores, Module):
    """The module here."""


class Theirs(_Scores, pl.LightningModule):
    """The module under Lightning."""


def fit_ours(
    root: Path,
    callback: Callback,
    scores: list[float],
    *,
    before: Sequence[Callback] = (),
    after: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """Train one epoch per score; return the trainer."""
    step_scores, optimize = options.pop("step_scores", None), options.pop("optimize", None)
    options.setdefault("max_epochs", len(scores))
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(root, callbacks=[*before, callback, *after], num_sanity_val_steps=0, **options)
    trainer.fit(Ours(scores, step_scores, optimize), make_loader(), make_loader(), ckpt_path=ckpt_path)
    return trainer


def fit_theirs(root: Path, callback: Any, scores: list[float], **options: Any) -> Any:
    """Train one epoch per score under Lightning; return the trainer."""
    step_scores, optimize = options.pop("step_scores", None), options.pop("optimize", None)
    options.setdefault("max_epochs", len(scores))
    checkpoints = isinstance(callback, pl.callbacks.Checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = make_lightning_trainer(root, callbacks=[callback], enable_checkpointing=checkpoints, **options)
        trainer.fit(Theirs(scores, step_scores, optimize), make_loader(), make_loader())
    return trainer
