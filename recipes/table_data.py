"""A table that a user brought, as data of a sparse recipe: how new rows are prepared, and what a run reports of it."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from framework import Trainer
from framework.pruning import SelectFeatures
from framework.recipes import figures
from framework.recipes.dashboard import outputs
from framework.recipes.data import Predict
from framework.recipes.module import SupervisedModule
from framework.recipes.sparse_report import SparseData, first_weight
from framework.recipes.tables import listed, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERCEPT = "(intercept)"


@dataclass
class Standardization:
    """Columns with their missing entries filled, less their mean, by their deviation; float64.

    Attributes:
        mean: Of each column.
        std: Of each column, without Bessel's correction.
        fill: What stands for a missing entry of each column; None where none may miss.
    """

    mean: Tensor
    std: Tensor
    fill: Tensor | None = None

    @classmethod
    def of(cls, columns: Tensor, impute: str | None = None) -> Self:
        """Compute it from the training rows, shape (rows, columns)."""
        fill = None if impute is None else torch.stack([_middle(column, impute) for column in columns.T])
        filled = _filled(columns, fill)
        # The mean of equal numbers may be rounded, and their deviation not be 0.
        std = torch.where(filled.amax(dim=0) == filled.amin(dim=0), 0.0, filled.std(dim=0, correction=0))
        return cls(filled.mean(dim=0), std, fill)

    def __call__(self, columns: Tensor) -> Tensor:
        """Fill and standardize."""
        return (_filled(columns, self.fill) - self.mean) / self.std

    def inverse(self, columns: Tensor) -> Tensor:
        """Return columns in their own units."""
        return columns * self.std + self.mean


def _middle(column: Tensor, impute: str) -> Tensor:
    return column.nanmean() if impute == "mean" else column.nanquantile(0.5)


def _filled(columns: Tensor, fill: Tensor | None) -> Tensor:
    return columns if fill is None else torch.where(columns.isnan(), fill, columns)


@dataclass
class TableData(SparseData):
    """A table that a user brought.

    Attributes:
        target: The name of the column to predict.
        labels: What the classes are called; none for numbers.
        standard: Of the features.
        scale: Of the target, None for classes.
    """

    target: str = ""
    labels: list[str] = field(default_factory=list)
    standard: Standardization | None = None
    scale: Standardization | None = None

    def read_inputs(self, path: Path) -> tuple[list[str], Tensor]:
        """Read a table with the features' columns, in any order, and perhaps others; prepare it as in training."""
        assert self.standard is not None
        table = read_table(path)
        if missing := [name for name in self.feature_names if name not in table.columns]:
            raise ValueError(f"{path} lacks the columns {listed(missing)}, which the model was trained on")
        features = table.numbers(self.feature_names)
        bad = features.isinf() if self.standard.fill is not None else ~features.isfinite()
        table.refuse(self.feature_names, bad, "entries that are missing or no numbers")
        return [str(index) for index in range(len(features))], self.standard(features)

    def columns(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return the target in its own units; or its label, and the probability of that."""
        if self.scale is not None:
            return {self.target: self.scale.inverse(outputs.double())[:, 0].tolist()}
        probability, index = outputs.softmax(1).max(1)
        return {self.target: self.class_names(index), "probability": probability.tolist()}

    def progress(self, trainer: Trainer, module: SupervisedModule, predict: Predict | None = None) -> dict[str, Figure]:
        """Draw what other sparse data do, the rows of a linear model by the classes that they stand for."""
        pictures = super().progress(trainer, module, predict)
        if self.labels and is_linear(module.network):
            weight = first_weight(module.network)
            pictures["first_layer"] = figures.first_layer(weight, self.feature_names, self.support, self.labels)
        return pictures

    def class_names(self, indices: Tensor) -> list[Any]:
        return [self.labels[index] for index in indices.tolist()]

    def describe(
        self, module: SupervisedModule, refit: SupervisedModule, folder: Path
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
        return table_report(module, refit, self, folder)


def table_report(
    module: SupervisedModule, refit: SupervisedModule, data: TableData, folder: Path
) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
    """Test a finished run, and write ``confusion_matrix.csv`` and, of a linear model, ``coefficients.csv``.

    Returns:
        Metrics: ``test/loss``, ``test/accuracy`` for classes or ``test/r2`` for numbers, and the same of the refitted
        network as ``refit/test_...``; for the summary the confusion matrix and the coefficients; pictures.
    """
    metrics: dict[str, float] = {}
    findings: dict[str, Any] = {}
    pictures: dict[str, Figure] = {}
    if data.test is not None:
        y = data.test.tensors[1]
        predictions, refitted = outputs(module, data.test), outputs(refit, data.test)
        metrics["test/loss"] = float(module.loss(predictions, y))
        name, score = ("accuracy", _accuracy) if data.labels else ("r2", _r2)
        metrics |= {f"test/{name}": score(predictions, y), f"refit/test_{name}": score(refitted, y)}
        if data.labels:
            table = confusion(predictions.argmax(1), y, data.labels)
            findings["confusion_matrix"] = table
            rows = [[true, *counts.values()] for true, counts in table.items()]
            _write(folder / "confusion_matrix.csv", ["true \\ predicted", *data.labels], rows)
            pictures["confusion_matrix"] = figures.confusion_matrix(predictions.argmax(1), y, data.labels)
    if is_linear(module.network):
        findings["coefficients"] = write_coefficients(module, refit, data, folder / "coefficients.csv")
    return metrics, findings, pictures


def is_linear(network: nn.Module) -> bool:
    """Return whether a network has one linear layer only."""
    return sum(isinstance(layer, nn.Linear) for layer in network.modules()) == 1


def _accuracy(outputs: Tensor, y: Tensor) -> float:
    return float((outputs.argmax(1) == y).double().mean())


def _r2(outputs: Tensor, y: Tensor) -> float:
    """Return the share of the variance that is explained, as scikit-learn's ``r2_score``."""
    return float(1 - (y - outputs).double().square().sum() / (y - y.mean()).double().square().sum())


def confusion(prediction: Tensor, y: Tensor, labels: list[str]) -> dict[str, dict[str, int]]:
    """Count how often each true class was taken for each class."""
    counts = torch.bincount(y * len(labels) + prediction, minlength=len(labels) ** 2).reshape(len(labels), -1)
    return {true: dict(zip(labels, row, strict=True)) for true, row in zip(labels, counts.tolist(), strict=True)}


def write_coefficients(
    module: SupervisedModule, refit: SupervisedModule, data: TableData, path: Path
) -> dict[str, Any]:
    """Write the coefficients of the features found, largest first; return those in the table's units, by name.

    With classes they are of the logit of each; of two classes, of the log odds of the second against the first.
    """
    standardized = _affine_map(module.network, data)
    maps = [standardized, _in_own_units(*standardized, data), _in_own_units(*_affine_map(refit.network, data), data)]
    classes = data.labels[-1:] if len(data.labels) == 2 else data.labels
    rows: list[list[Any]] = []
    found: dict[str, dict[str, float]] = {}
    used = (standardized[0] != 0).any(dim=0).nonzero().flatten()
    for k, label in enumerate(classes or [data.target]):
        chosen = used[standardized[0][k, used].abs().argsort(descending=True, stable=True)].tolist()
        lines: list[list[Any]] = [[INTERCEPT, *(float(bias[k]) for _, bias in maps)]]
        lines += [[data.feature_names[i], *(float(weight[k, i]) for weight, _ in maps)] for i in chosen]
        found[label] = {name: own for name, _, own, _ in lines if own != 0 or name == INTERCEPT}
        rows += [[label, *line] for line in lines] if classes else lines
    _write(path, [*(["class"] if classes else []), "feature", "standardized", "coefficient", "refit"], rows)
    return found if len(found) > 1 else next(iter(found.values()))


def _affine_map(network: nn.Module, data: TableData) -> tuple[Tensor, Tensor]:
    """Return weights, shape (outputs, features), and intercepts of a linear network, which may be pruned; float64."""
    [linear] = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    features = next((layer.features for layer in network.modules() if isinstance(layer, SelectFeatures)), None)
    found = linear.weight.detach().double().cpu()
    weight = found
    if features is not None:
        weight = found.new_zeros(len(found), len(data.feature_names))
        weight[:, features.cpu()] = found
    bias = found.new_zeros(len(found)) if linear.bias is None else linear.bias.detach().double().cpu()
    if len(data.labels) == 2:
        weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
    return weight, bias


def _in_own_units(weight: Tensor, bias: Tensor, data: TableData) -> tuple[Tensor, Tensor]:
    """Turn a map of standardized features into one of the table's features, and of numbers to the table's target."""
    assert data.standard is not None
    weight = weight / data.standard.std
    bias = bias - weight @ data.standard.mean
    if data.scale is not None:
        weight, bias = weight * data.scale.std, data.scale.inverse(bias)
    return weight, bias


def _write(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
