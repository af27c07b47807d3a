"""Losses as users write them who have a bug to find."""

from torch import Tensor, nn


class RaisingLoss(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        raise ValueError("a bug of its author's")


class UnbuildableLoss(nn.Module):
    def __init__(self) -> None:
        raise ValueError("another bug of its author's")
