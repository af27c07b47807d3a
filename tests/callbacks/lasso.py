"""A lasso with eight features, two of which matter, for callbacks that watch a penalty."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from framework import Callback, Trainer
from framework.data import TensorLoader
from framework.losses import L2Loss
from framework.optim import SpaRSA
from framework.penalties import L1, Penalty
from framework.recipes.module import SupervisedModule
from tests.modules import make_trainer


def data(batch_size: int = 30) -> TensorLoader:
    """Data in which y depends on features 0 and 3 of 8; 30 samples."""
    generator = torch.Generator().manual_seed(2)
    X = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    y = 2 * X[:, [0]] - 3 * X[:, [3]] + 0.5 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    return TensorLoader(X, y, batch_size=batch_size, shuffle=batch_size < 30)


def make_module(optimizer: Callable[..., Any] = SpaRSA, penalty: Penalty | None = None) -> SupervisedModule:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 1)).double()
    return SupervisedModule(network, L2Loss(), optimizer, penalty=penalty or L1(), happy_lambda=2.0)


def fit(tmp_path: Path, module: SupervisedModule, *callbacks: Callback, loader: Any = None, **options: Any) -> Trainer:
    trainer = make_trainer(tmp_path, callbacks=list(callbacks), **({"max_epochs": 300} | options))
    trainer.fit(module, loader or data())
    return trainer
