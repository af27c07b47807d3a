"""The data of the sparse recipes: simulations with a known support, and tables that users bring."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from framework.data import TensorLoader, sparse_linear, sparse_mlp
from framework.recipes.sparse_report import SparseData

SIMULATIONS = {"linear": sparse_linear, "mlp": sparse_mlp}


def sparse_regression(
    *,
    simulation: str,
    csv: str | Path | None = None,
    target: str | None = None,
    val_share: float = 0.2,
    num_samples: int = 500,
    num_features: int = 50,
    num_active: int = 4,
    noise: float = 1.0,
    num_val: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
) -> SparseData:
    """Make a function of a few of many features: simulated, or a table.

    Args:
        simulation: "linear" or "mlp" (`framework.data.sparse`); unused with a table.
        csv: A table instead: a CSV file of numbers. Its rows are shuffled, and every column, the target too, is
            standardized by mean and deviation of the training rows.
        target: The column of the table to predict; all the others are features.
        val_share: The share of the table's rows that are held out for validation.
        num_samples: Of the simulation, as are the next three.
        num_features: All features.
        num_active: Those that matter.
        noise: Standard deviation of the noise.
        num_val: Simulated samples for validation, besides those for training.
        batch_size: None for all training samples at once, which `L2Loss` needs: its values over batches do not add up.
        seed: Selects the simulation, and the order of the table's rows.

    Raises:
        ValueError: If an argument or the table is no good; `read_table` says how.
        FileNotFoundError: If there is no such table.
    """
    if csv is None:
        if simulation not in SIMULATIONS:
            raise ValueError(f"data.simulation={simulation!r}; pass one of {', '.join(SIMULATIONS)}")
        draw = SIMULATIONS[simulation]
        options = {"num_features": num_features, "num_active": num_active, "noise": noise, "seed": seed}
        X, y, support = draw(num_samples=num_samples + num_val, **options)  # type: ignore[arg-type]
        return _split(X, y, num_val, batch_size, [str(index) for index in range(num_features)], support)
    X, y, names = read_table(csv, target)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    num_val = max(1, round(val_share * len(X)))
    if not 0 < val_share < 1 or len(X) - num_val < 2:
        raise ValueError(f"data.val_share={val_share} of the {len(X)} rows of {csv} leaves too few; pass 0.2 or so")
    table, columns = torch.cat([X, y], 1)[order], [*names, str(target)]
    standard = Standardization.of(table[:-num_val], columns, csv)
    table = standard(table).float()
    return _split(table[:, :-1], table[:, -1:], num_val, batch_size, names, None, standard=standard)


@dataclass
class Standardization:
    """Columns of a table less their mean, by their deviation; float64.

    Attributes:
        names: Of the columns.
        mean: Of each column.
        std: Of each column, without Bessel's correction.
    """

    names: list[str]
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, table: Tensor, names: list[str], path: str | Path) -> Self:
        """Compute it from the training rows.

        Raises:
            ValueError: If a column is constant.
        """
        std = table.std(dim=0, correction=0)
        if constant := [name for name, value in zip(names, std.tolist(), strict=True) if value == 0]:
            raise ValueError(f"{path}: constant over the training rows: {_listed(constant)}; drop these columns")
        return cls(names, table.mean(dim=0), std)

    def __call__(self, table: Tensor) -> Tensor:
        """Standardize the first columns, as many as there are."""
        count = table.shape[1]
        return (table - self.mean[:count]) / self.std[:count]


@dataclass
class TableData(SparseData):
    """A table that a user brought; its last column is the target.

    Attributes:
        standard: Of features and target.
    """

    standard: Standardization | None = None

    def read_inputs(self, path: Path) -> tuple[list[str], Tensor]:
        """Read a table with the features' columns, in any order, and perhaps others; standardize it as in training."""
        assert self.standard is not None
        names, table = read_numbers(path)
        if missing := [name for name in self.feature_names if name not in names]:
            raise ValueError(f"{path} lacks the columns {_listed(missing)}, which the model was trained on")
        features = table[:, [names.index(name) for name in self.feature_names]]
        _refuse_columns(path, self.feature_names, ~features.isfinite(), "entries that are missing or no numbers")
        return [str(number) for number in range(len(table))], self.standard(features)

    def columns(self, outputs: Tensor) -> dict[str, list[Any]]:
        """Return the target in its own units."""
        assert self.standard is not None
        values = outputs[:, 0].double() * self.standard.std[-1] + self.standard.mean[-1]
        return {self.standard.names[-1]: values.tolist()}


def _split(
    X: Tensor,
    y: Tensor,
    num_val: int,
    batch_size: int | None,
    names: list[str],
    support: list[int] | None,
    *,
    standard: Standardization | None = None,
) -> SparseData:
    """Split off the last ``num_val`` samples for validation."""
    train, val = (X[:-num_val], y[:-num_val]), (X[-num_val:], y[-num_val:])
    make = SparseData if standard is None else partial(TableData, standard=standard)
    return make(
        TensorLoader(*train, batch_size=batch_size or len(train[0]), shuffle=batch_size is not None),
        TensorLoader(*val, batch_size=num_val),
        (X.shape[1],),
        1,
        feature_names=names,
        support=support,
    )


def read_table(path: str | Path, target: str | None) -> tuple[Tensor, Tensor, list[str]]:
    """Read a CSV file of numbers whose first line names the columns.

    Args:
        path: The file, columns separated by commas.
        target: The column to predict; all the others are features.

    Returns:
        X of shape (rows, features) and y of shape (rows, 1), float64, and the names of the features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the target is no column, or there are no features or too few rows, rows of different lengths, or
            entries that are missing, no numbers or not finite; their columns are named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.csv={path}: there is no such file")
    names, table = read_numbers(Path(path))
    if target not in names:
        raise ValueError(f"data.target={target} is no column of {path}; its columns are {_listed(names)}")
    if len(set(names)) < len(names) or len(names) < 2 or len(table) < 3:
        raise ValueError(
            f"{path} has the columns {_listed(names)} and {len(table)} rows; at least two columns of different names "
            "and three rows are needed"
        )
    _refuse_columns(path, names, table.isinf(), "entries that are no finite numbers: encode or drop these columns")
    _refuse_columns(path, names, table.isnan(), "missing entries (NaN): impute them, or drop these columns or rows")
    index = names.index(str(target))
    features = [column for column in range(len(names)) if column != index]
    return table[:, features], table[:, [index]], [names[column] for column in features]


def read_numbers(path: Path) -> tuple[list[str], Tensor]:
    """Read the names and the numbers of a CSV file: NaN where one is missing, infinity where it is something else.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If lines have different lengths.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a mark before the first name
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    names = [name.strip() for name in header]
    if ragged := [number for number, row in enumerate(rows, 2) if len(row) != len(names)]:
        raise ValueError(f"{path}: lines {_listed(ragged)} have another number of entries than the first: {len(names)}")
    table = torch.tensor([[_number(entry) for entry in row] for row in rows], dtype=torch.float64)
    return names, table.reshape(len(rows), len(names))


def _number(entry: str) -> float:
    """Return the number that an entry is; NaN where it is missing, infinity where it is something else."""
    text = entry.strip().lower()
    if text in ("", "na", "nan", "null", "none"):
        return float("nan")
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _refuse_columns(path: str | Path, names: list[str], bad: Tensor, what: str) -> None:
    if bad.any():
        columns = [names[column] for column in bad.any(dim=0).nonzero().flatten().tolist()]
        raise ValueError(f"{path}: the columns {_listed(columns)} have {what}")


def _listed(values: list[str] | list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (f", ... ({len(values)} in all)" if len(values) > 10 else "")
