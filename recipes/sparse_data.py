"""The data of the sparse recipes: simulations with a known support, and tables that users bring."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from framework.data import TensorLoader, sparse_linear, sparse_mlp
from recipes.sparse_report import SparseData

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
    X, y = _standardize(X[order], num_val, names, csv), _standardize(y[order], num_val, [str(target)], csv)
    return _split(X.float(), y.float(), num_val, batch_size, names, None)


def _split(
    X: Tensor, y: Tensor, num_val: int, batch_size: int | None, names: list[str], support: list[int] | None
) -> SparseData:
    """Split off the last ``num_val`` samples for validation."""
    train, val = (X[:-num_val], y[:-num_val]), (X[-num_val:], y[-num_val:])
    return SparseData(
        TensorLoader(*train, batch_size=batch_size or len(train[0]), shuffle=batch_size is not None),
        TensorLoader(*val, batch_size=num_val),
        (X.shape[1],),
        1,
        feature_names=names,
        support=support,
    )


def _standardize(columns: Tensor, num_val: int, names: list[str], path: str | Path) -> Tensor:
    train = columns[:-num_val]
    std = train.std(dim=0, correction=0)
    if constant := [name for name, value in zip(names, std.tolist(), strict=True) if value == 0]:
        raise ValueError(f"{path}: constant over the training rows: {_listed(constant)}; drop these columns")
    return (columns - train.mean(dim=0)) / std


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
    with Path(path).open(newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    names = [name.strip() for name in header]
    if target not in names:
        raise ValueError(f"data.target={target} is no column of {path}; its columns are {_listed(names)}")
    if len(set(names)) < len(names) or len(names) < 2 or len(rows) < 3:
        raise ValueError(
            f"{path} has the columns {_listed(names)} and {len(rows)} rows; at least two columns of different names "
            "and three rows are needed"
        )
    if ragged := [number for number, row in enumerate(rows, 2) if len(row) != len(names)]:
        raise ValueError(f"{path}: lines {_listed(ragged)} have another number of entries than the first: {len(names)}")
    table = torch.tensor([[_number(entry) for entry in row] for row in rows], dtype=torch.float64)
    _refuse_columns(path, names, table.isinf(), "entries that are no finite numbers: encode or drop these columns")
    _refuse_columns(path, names, table.isnan(), "missing entries (NaN): impute them, or drop these columns or rows")
    index = names.index(str(target))
    features = [column for column in range(len(names)) if column != index]
    return table[:, features], table[:, [index]], [names[column] for column in features]


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
