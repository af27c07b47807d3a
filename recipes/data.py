"""The data of the recipes: loaders, shapes, and the pictures that show what a model made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from framework import Callback, Trainer
from framework.data import ImageTransform, TensorLoader, cubic, cubic_function, sine, xor
from framework.data import fashion_mnist as load_fashion_mnist
from framework.data.fashion_mnist import CLASSES, MEAN, STD
from recipes import figures
from recipes.module import SupervisedModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Predict = Callable[[Any], Tensor]


@dataclass
class Data:
    """What a recipe trains on and validates with.

    Attributes:
        train: Batches of (inputs, targets).
        val: The same for validation.
        input_shape: Of one input.
        num_outputs: How many numbers the network gives for it.
        num_classes: The number of classes, None for regression.
        callbacks: What the pictures need to watch while training.
        found: Those metrics of `findings` that one compares first.
    """

    train: TensorLoader
    val: TensorLoader
    input_shape: tuple[int, ...]
    num_outputs: int
    num_classes: int | None = None
    callbacks: list[Callback] = field(default_factory=list)
    found: ClassVar[tuple[str, ...]] = ()

    def figures(self, predict: Predict) -> dict[str, Figure]:
        """Draw pictures, by name; ``predict`` gives the network's outputs for a loader, in order."""
        return {}

    def progress(self, trainer: Trainer, module: SupervisedModule, predict: Predict) -> dict[str, Figure]:
        """Draw, within a run, those of the pictures that show how it goes on."""
        return self.figures(predict)

    def findings(
        self, trainer: Trainer, module: SupervisedModule, folder: Path
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
        """Return what else a finished run has to say: metrics, other entries of the summary, and pictures by name."""
        return {}, {}, {}


@dataclass
class CurveData(Data):
    """A function of one variable, known by noisy samples."""

    samples: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def figures(self, predict: Predict) -> dict[str, Figure]:
        x, truth = self.val.tensors
        return {"fit": figures.fitted_curve(x, predict(self.val), truth, self.samples)}


def toy_regression(*, batch_size: int = 10) -> CurveData:
    """Make a noisy cubic, 80 points; validated on the hidden function itself."""
    x = torch.linspace(-1, 3, 50)[:, None]
    return _curve(cubic(), x, cubic_function(x), batch_size)


def sine_wave(*, batch_size: int = 20, num_samples: int = 200, noise: float = 0.1, seed: int = 0) -> CurveData:
    """Make one period of a noisy sine; validated on the sine itself."""
    x = torch.linspace(-math.pi, math.pi, 101)[:, None]
    return _curve(sine(num_samples=num_samples, noise=noise, seed=seed), x, torch.sin(x), batch_size)


def _curve(samples: tuple[Tensor, Tensor], x: Tensor, truth: Tensor, batch_size: int) -> CurveData:
    train = TensorLoader(*samples, batch_size=batch_size, shuffle=True)
    return CurveData(train, TensorLoader(x, truth, batch_size=len(x)), (1,), 1, samples=samples)


class PlaneData(Data):
    """A function of two variables on the unit square."""

    def figures(self, predict: Predict) -> dict[str, Figure]:
        axis = torch.linspace(-0.5, 1.5, 81)
        grid = torch.cartesian_prod(axis, axis)
        z = predict(TensorLoader(grid, torch.zeros(len(grid), 1), batch_size=len(grid)))
        return {"surface": figures.surface(axis, z.reshape(81, 81), *self.val.tensors)}


def exclusive_or(*, batch_size: int = 4) -> PlaneData:
    """Make the four points of exclusive or."""
    x, y = xor()
    return PlaneData(
        TensorLoader(x, y, batch_size=batch_size, shuffle=True), TensorLoader(x, y, batch_size=len(x)), (2,), 1
    )


class ImageData(Data):
    """Images in classes."""

    def figures(self, predict: Predict) -> dict[str, Figure]:
        images, labels = self.val.tensors
        probabilities = predict(self.val).softmax(1)
        return {
            "confusion_matrix": figures.confusion_matrix(probabilities.argmax(1), labels, CLASSES),
            "confidently_wrong": figures.confidently_wrong(images, probabilities, labels, CLASSES),
        }


def fashion_mnist(
    *, root: str | Path, batch_size: int = 64, val_batch_size: int = 1000, augment: bool = False
) -> ImageData:
    """Read Fashion-MNIST: the 60,000 training images, validated on the 10,000 test images.

    Args:
        root: Where ``FashionMNIST/raw`` lies or is downloaded to.
        batch_size: Images per training batch.
        val_batch_size: Images per validation batch.
        augment: Whether each training image is randomly cropped (padding 2) and mirrored.
    """
    train = TensorLoader(
        *load_fashion_mnist(root, train=True),
        batch_size=batch_size,
        shuffle=True,
        transform=ImageTransform(MEAN, STD, augment=augment),
    )
    val = TensorLoader(
        *load_fashion_mnist(root, train=False), batch_size=val_batch_size, transform=ImageTransform(MEAN, STD)
    )
    return ImageData(train, val, (1, 28, 28), len(CLASSES), num_classes=len(CLASSES))
