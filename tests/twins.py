"""Lightning's twins of the modules and trainers in `tests.modules`, to compare with."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import LBFGS, SGD

from tests.modules import Regressor, make_net, make_trainer


class LightningRegressor(pl.LightningModule):
    """The twin of `Regressor`."""

    def __init__(self, optimize, net=None) -> None:
        super().__init__()
        self.net, self.optimize = (make_net() if net is None else net).double(), optimize

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    loss = Regressor.loss
    configure_optimizers = Regressor.configure_optimizers


def twins_with(methods: type, optimize: Any = None) -> tuple[Regressor, LightningRegressor]:
    """Make both twins with the methods of a class in common."""
    kinds = [type(methods.__name__, (methods, base), {}) for base in (Regressor, LightningRegressor)]
    return tuple(kind(momentum if optimize is None else optimize) for kind in kinds)  # type: ignore[return-value]


def make_lightning_trainer(root: Path, **options: Any) -> pl.Trainer:
    """Make the twin of `make_trainer`, without a sanity check."""
    return make_trainer(root, pl.Trainer, **{"num_sanity_val_steps": 0, **options})


def momentum(module) -> SGD:
    """Make the optimizer of a module: gradient descent with momentum."""
    return SGD(module.parameters(), lr=0.05, momentum=0.9)


def without_lr(module) -> LBFGS:
    """Make an optimizer that has no learning rate."""
    optimizer = LBFGS(module.parameters())
    del optimizer.param_groups[0]["lr"]
    return optimizer
