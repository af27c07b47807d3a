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
from framework.recipes import figures
from framework.recipes.module import SupervisedModule
from framework.recipes.tables import read_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Predict = Callable[[Any], Tensor]


@dataclass
class Data:
    """What a recipe trains on and validates with.

    Attributes:
        train: Batches of (inputs, targets), or of whatever the module takes: a loader.
        val: The same for validation; None for no validation.
        test: Held out from both, for `findings` at the end of a run and for ``proxtrain-test``; None for nothing.
        input_shape: Of one input, for which a network is made; None if the module makes its own.
        num_outputs: How many numbers the network gives for it; None as above.
        num_classes: The number of classes, None for regression.
        callbacks: What the pictures need to watch while training.
        found: Those metrics of `findings` that one compares first.
    """

    train: Any
    val: Any = None
    input_shape: tuple[int, ...] | None = None
    num_outputs: int | None = None
    num_classes: int | None = None
    callbacks: list[Callback] = field(default_factory=list)
    test: Any = None
    found: ClassVar[tuple[str, ...]] = ()

    def figures(self, predict: Predict) -> dict[str, Figure]:
        """Draw pictures, by name; ``predict`` gives the network's outputs for a loader, in order."""
        return {}

    def read_inputs(self, path: Path) -> tuple[list[str], Tensor]:
        """Read new inputs, and prepare them as the training data were.

        Args:
            path: A ``.csv`` of numbers, one sample per line, perhaps under a line of names; or a ``.pt`` with a tensor.

        Returns:
            A name for each sample, and a tensor of shape (samples, *input_shape).

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no such file, or samples have another shape.
        """
        inputs = read_tensor(path)
        if self.input_shape is not None:
            if inputs.ndim < 2 or inputs.shape[1:].numel() != math.prod(self.input_shape):
                raise ValueError(
                    f"{path} has samples of shape {tuple(inputs.shape[1:])}; the model takes {self.input_shape}"
                )
            inputs = inputs.reshape(-1, *self.input_shape)
        return [str(index) for index in range(len(inputs))], self.prepare(inputs)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Do to inputs what is done to those of the training data on their way to the network."""
        return inputs if inputs.dtype == torch.float64 else inputs.to(torch.get_default_dtype())

    def columns(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return the columns of a table of predictions: the class and its probability, or the outputs themselves."""
        if self.num_classes is not None:
            probability, index = outputs.softmax(1).max(1)
            return {"class": self.class_names(index), "probability": probability.tolist()}
        outputs = outputs.reshape(len(outputs), -1)
        names = ["prediction"] if outputs.shape[1] == 1 else [f"prediction_{i}" for i in range(outputs.shape[1])]
        return {name: column.tolist() for name, column in zip(names, outputs.T, strict=True)}

    def class_names(self, indices: Tensor) -> list[Any]:
        """Return what classes are called; their numbers if they have no names."""
        return indices.tolist()

    def progress(self, trainer: Trainer, module: SupervisedModule, predict: Predict) -> dict[str, Figure]:
        """Draw, within a run, those of the pictures that show how it goes on."""
        return self.figures(predict)

    def findings(
        self, trainer: Trainer, module: SupervisedModule, folder: Path
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
        """Return what else a finished run has to say: metrics, other entries of the summary, and pictures by name."""
        return {}, {}, {}


def read_tensor(path: Path) -> Tensor:
    """Read a tensor of samples from a ``.pt``, or from a ``.csv`` of numbers whose first line may name the columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix == ".pt":
        tensor = torch.load(path, weights_only=True)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds a {type(tensor).__name__}; save a tensor of inputs by torch.save")
        if tensor.numel() == 0:
            raise ValueError(f"{path} holds no samples")
        return tensor
    if path.suffix != ".csv":
        raise ValueError(f"{path}: pass a .csv, a .pt, or, where the model takes images, a folder of them")
    return read_samples(path)


def as_taken_by(module: Any, inputs: Tensor) -> Tensor:
    """Return inputs as a module takes them: on its device, and with the bits of its weights; integers as they are."""
    weight = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)
    if weight is None:
        return inputs
    return inputs.to(weight) if inputs.is_floating_point() else inputs.to(weight.device)


@dataclass
class CurveData(Data):
    """A function of one variable, known by noisy samples."""

    samples: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def figures(self, predict: Predict) -> dict[str, Figure]:
        x, truth = self.val.tensors
        return {"fit": figures.fitted_curve(x, predict(self.val), truth, self.samples)}


def toy_regression(*, batch_size: int = 10, num_samples: int = 80, noise: float = 1.0, seed: int = 42) -> CurveData:
    """Make a noisy cubic; validated on the hidden function itself."""
    x = torch.linspace(-1, 3, 50)[:, None]
    return _curve(cubic(num_samples=num_samples, noise=noise, seed=seed), x, cubic_function(x), batch_size)


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
    """Images in classes: those of Fashion-MNIST."""

    def read_inputs(self, path: Path) -> tuple[list[str], Tensor]:
        """Read a tensor of images, or a folder of them, scaled to the size of the training images, in gray.

        Fashion-MNIST's clothes are bright on black, as the images must be.
        """
        if not path.is_dir():
            return super().read_inputs(path)
        from PIL import Image  # with torchvision; nobody else needs it

        assert self.input_shape is not None
        _, height, width = self.input_shape
        known = Image.registered_extensions()
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in known)
        if not files:
            raise ValueError(f"{path} holds no images: pass a folder of PNG or JPEG files")
        images = []
        for file in files:
            with Image.open(file) as image:
                gray = image.convert("L").resize((width, height))
            images.append(torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8).reshape(1, height, width))
        return [file.name for file in files], self.prepare(torch.stack(images))

    def prepare(self, inputs: Tensor) -> Tensor:
        """Normalize images of pixels, whole numbers from 0 to 255; others are taken as normalized."""
        pixels = inputs.clamp(0, 255).to(torch.uint8)
        return ImageTransform(MEAN, STD)(pixels)[0] if bool((pixels == inputs).all()) else super().prepare(inputs)

    def class_names(self, indices: Tensor) -> list[Any]:
        return [CLASSES[index] for index in indices.tolist()]

    def figures(self, predict: Predict) -> dict[str, Figure]:
        images, labels = self.val.tensors
        probabilities = predict(self.val).softmax(1)
        return {
            "confusion_matrix": figures.confusion_matrix(probabilities.argmax(1), labels, CLASSES),
            "confidently_wrong": figures.confidently_wrong(images, probabilities, labels, CLASSES),
        }


def fashion_mnist(
    *,
    root: str | Path,
    batch_size: int = 64,
    val_batch_size: int = 1000,
    augment: bool = False,
    num_samples: int | None = None,
) -> ImageData:
    """Read Fashion-MNIST: the 60,000 training images, validated on the 10,000 test images.

    Args:
        root: Where ``FashionMNIST/raw`` lies or is downloaded to.
        batch_size: Images per training batch.
        val_batch_size: Images per validation batch.
        augment: Whether each training image is randomly cropped (padding 2) and mirrored.
        num_samples: Train on the first so many images; None for all.

    Raises:
        ValueError: If there are not so many images.
    """
    images, labels = load_fashion_mnist(root, train=True)
    if num_samples is not None and not 0 < num_samples <= len(images):
        raise ValueError(f"data.num_samples={num_samples}; pass a number from 1 to {len(images)}, or null for all")
    train = TensorLoader(
        images[:num_samples],
        labels[:num_samples],
        batch_size=batch_size,
        shuffle=True,
        transform=ImageTransform(MEAN, STD, augment=augment),
    )
    val = TensorLoader(
        *load_fashion_mnist(root, train=False), batch_size=val_batch_size, transform=ImageTransform(MEAN, STD)
    )
    return ImageData(train, val, (1, 28, 28), len(CLASSES), num_classes=len(CLASSES))
