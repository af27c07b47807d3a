"""What the benchmark trains: data, network, loss, batch size and learning rate of each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms
from torchvision.datasets import FashionMNIST

from framework.data import ImageTransform, TensorLoader, cubic, fashion_mnist
from framework.data.fashion_mnist import MEAN, STD

SEED = 0


@dataclass
class Task:
    """A training task, the same for every contender.

    Attributes:
        x: Inputs of shape (N, ...), held in memory; uint8 for images.
        y: Targets of shape (N, ...).
        dataset: The same N samples one by one, as PyTorch's tutorials read them.
        make_net: Builds the network; called after the seed is set, it always builds the same one.
        loss: Mean loss of outputs and targets.
        lr: Adam's learning rate.
        batch_size: Samples per step.
        epochs: Number of epochs per timing.
        slow_epochs: The same for the contenders that take many times as long.
        transform: Applied to each whole batch; None for no transform.
        targets: For some contenders, the highest acceptable ratio of proxtrain's time to theirs.
        compiled_targets: The same for ``compile="step"``.
    """

    x: Tensor
    y: Tensor
    dataset: Dataset[Any]
    make_net: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    lr: float
    batch_size: int
    epochs: int
    slow_epochs: int
    transform: ImageTransform | None
    targets: dict[str, float]
    compiled_targets: dict[str, float]

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps per epoch, the last one perhaps on a shorter batch."""
        return -(-len(self.x) // self.batch_size)

    def loader(self) -> TensorLoader:
        """Return a loader of the shuffled batches as proxtrain cuts them."""
        return TensorLoader(
            self.x, self.y, batch_size=self.batch_size, shuffle=True, transform=self.transform, seed=SEED
        )

    def orders(self, epochs: int) -> list[Tensor]:
        """Return the orders of the samples in the first epochs of `loader`, each of shape (N,)."""
        rows = TensorLoader(torch.arange(len(self.x)), batch_size=len(self.x), shuffle=True, seed=SEED)
        return [order for _ in range(epochs) for (order,) in rows]


def toy(epochs: int = 250, slow_epochs: int = 25) -> Task:
    """Return the noisy cubic: 80 samples, MLP 1-100-1, batches of 10."""
    x, y = cubic()
    return Task(
        x=x,
        y=y,
        dataset=TensorDataset(x, y),
        make_net=lambda: nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1)),
        loss=F.mse_loss,
        lr=1e-2,
        batch_size=10,
        epochs=epochs,
        slow_epochs=slow_epochs,
        transform=None,
        targets={"tight loop": 1.10, "tutorial loop": 0.70, "Lightning, defaults": 0.15},
        compiled_targets={"tight loop": 0.25, "tutorial loop": 0.15, "Lightning, defaults": 0.05},
    )


def fashion_mlp(root: Path, num_batches: int = 938) -> Task:
    """Return Fashion-MNIST, MLP 784-256-128-10, batches of 64; an epoch of the first ``num_batches`` (938: all)."""
    return _fashion(root, num_batches, _mlp, {"tight loop": 1.03, "tutorial loop": 0.25}, {"tight loop": 0.80})


def fashion_cnn(root: Path, num_batches: int = 150) -> Task:
    """Return Fashion-MNIST, two convolutions, batches of 64; one epoch of the first ``num_batches``."""
    return _fashion(root, num_batches, _cnn, {"tight loop": 1.03}, {"tight loop": 0.95})


def _fashion(
    root: Path,
    num_batches: int,
    make_net: Callable[[], nn.Module],
    targets: dict[str, float],
    compiled_targets: dict[str, float],
) -> Task:
    x, y = fashion_mnist(root, train=True, download=False)
    x, y = x[: 64 * num_batches], y[: 64 * num_batches]
    return Task(
        x=x,
        y=y,
        dataset=per_sample_images(root, len(x), augment=False),
        make_net=make_net,
        loss=F.cross_entropy,
        lr=1e-3,
        batch_size=64,
        epochs=1,
        slow_epochs=1,
        transform=ImageTransform(MEAN, STD),
        targets=targets,
        compiled_targets=compiled_targets,
    )


def per_sample_images(root: Path, num_samples: int, *, augment: bool) -> Dataset[Any]:
    """Return the first training images from torchvision's dataset and transforms, one image at a time."""
    augmentation = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()] if augment else []
    normalization = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
    dataset = FashionMNIST(root, train=True, transform=transforms.Compose(augmentation + normalization))
    # Truncate the dataset itself: a Subset around it would cost a little for every sample.
    dataset.data, dataset.targets = dataset.data[:num_samples], dataset.targets[:num_samples]
    return dataset


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _cnn() -> nn.Module:
    def block(num_in: int, num_out: int) -> list[nn.Module]:
        return [nn.Conv2d(num_in, num_out, 3, padding=1), nn.BatchNorm2d(num_out), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 32), *block(32, 64), *head)
