"""A network and a loss, ready to be trained: ``trainer.fit(Supervised(network, loss), loader)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.module import Module


class Supervised(Module):
    """Fits any `torch.nn.Module` to pairs of inputs and targets; logs ``val/loss`` and ``test/loss``.

    Args:
        network: Maps a batch of inputs (N, ...) to a batch of outputs (N, ...).
        loss: Of (outputs, targets): a scalar, the mean over the samples, as `torch.nn.functional.cross_entropy`.
        optimizer: Called with the parameter groups, such as an optimizer's class or a ``functools.partial`` of it.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer

    def forward(self, x: Any) -> Any:
        return self.network(x)

    def training_step(self, batch: tuple[Any, Any], batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.network(x), y)

    def validation_step(self, batch: tuple[Any, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(batch, "val")

    def test_step(self, batch: tuple[Any, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(batch, "test")

    def evaluate(self, batch: tuple[Any, Any], stage: str) -> None:
        """Log the loss of a batch as ``<stage>/loss``."""
        x, y = batch
        self.log(f"{stage}/loss", self.loss(self.network(x), y))

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.param_groups())
