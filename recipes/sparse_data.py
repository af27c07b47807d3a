"""The data of the sparse recipes: simulations with a known support, and tables that users bring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from framework.data import TensorLoader, sparse_linear, sparse_mlp
from framework.recipes.sparse_report import SparseData
from framework.recipes.table_data import Standardization, TableData
from framework.recipes.tables import Table, listed, read_table

SIMULATIONS = {"linear": sparse_linear, "mlp": sparse_mlp}


def sparse_regression(
    *,
    simulation: str,
    csv: str | Path | None = None,
    target: str | None = None,
    classes: bool | None = None,
    drop: Sequence[str] = (),
    impute: Literal["mean", "median"] | None = None,
    test_share: float = 0.2,
    val_share: float = 0.0,
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
        csv: A table instead: a CSV file whose first line names the columns. Its rows are shuffled, and every column of
            numbers, the target too, is standardized by mean and deviation of the training rows.
        target: The column of the table to predict; all the others are features.
        classes: Whether the target's values are classes. Default: if they are words, or only two.
        drop: Columns that are no features.
        impute: What of a feature's training rows fills its missing entries. Default: they are refused.
        test_share: The share of the table's rows that are held out for the test at the end; of each class alike.
        val_share: Likewise for validation while it trains, besides those.
        num_samples: Of the simulation, as are the next three.
        num_features: All features.
        num_active: Those that matter.
        noise: Standard deviation of the noise.
        num_val: Simulated samples for validation, besides those for training.
        batch_size: None for all training samples at once, which `L2Loss` needs: its values over batches do not add up.
        seed: Selects the simulation, and the order of the table's rows.

    Raises:
        ValueError: If an argument or the table is no good; the message says how.
        FileNotFoundError: If there is no such table.
    """
    if csv is not None:
        table = make_table(csv, target, classes=classes, drop=drop, impute=impute)
        return table.split(test_share, val_share, batch_size=batch_size, seed=seed)
    if simulation not in SIMULATIONS:
        raise ValueError(f"data.simulation={simulation!r}; pass one of {', '.join(SIMULATIONS)}")
    draw = SIMULATIONS[simulation]
    options = {"num_features": num_features, "num_active": num_active, "noise": noise, "seed": seed}
    X, y, support = draw(num_samples=num_samples + num_val, **options)  # type: ignore[arg-type]
    return SparseData(
        _train_loader(X[:-num_val], y[:-num_val], batch_size),
        TensorLoader(X[-num_val:], y[-num_val:], batch_size=num_val),
        (num_features,),
        1,
        feature_names=[str(index) for index in range(num_features)],
        support=support,
    )


def _train_loader(X: Tensor, y: Tensor, batch_size: int | None) -> TensorLoader:
    return TensorLoader(X, y, batch_size=batch_size or len(X), shuffle=batch_size is not None)


# ------------------------------------------------------------------------------------------------------------- tables


@dataclass
class UserTable:
    """A table as numbers, before it is split.

    Attributes:
        path: The file.
        names: Of the features.
        X: Features, shape (rows, features), float64; NaN where an entry is missing.
        target: The name of the target.
        y: Numbers, shape (rows, 1), float64; or class indices, shape (rows,).
        labels: What the classes are called; none for numbers.
        impute: As in `sparse_regression`.
    """

    path: Path
    names: list[str]
    X: Tensor
    target: str
    y: Tensor
    labels: list[str]
    impute: str | None

    def split(self, test_share: float, val_share: float, *, batch_size: int | None, seed: int) -> TableData:
        """Split the rows at random, of each class alike, and standardize by the training rows.

        Raises:
            ValueError: If the shares are no good, or a column is constant or empty over the training rows.
        """
        for name, share in (("test_share", test_share), ("val_share", val_share)):
            if not 0 <= share < 1:
                raise ValueError(f"data.{name}={share}; pass a share of the rows from 0 on and below 1, such as 0.2")
        classes = self.y if self.labels else torch.zeros(len(self.X), dtype=torch.long)
        test, val, train = _split_rows(classes, (test_share, val_share), seed)
        is_empty = (test_share > 0 and not len(test)) or (val_share > 0 and not len(val))
        if is_empty or len(train) < 3 or (self.labels and len(self.y[train].unique()) < len(self.labels)):
            raise ValueError(
                f"data.test_share={test_share} and data.val_share={val_share} of the {len(self.X)} rows of {self.path} "
                "leave too few for one of the parts, or none of a class to train on; change the shares (0 for no such "
                "part)"
            )
        standard = self._standardization(train)
        scale = None if self.labels else Standardization.of(self.y[train])
        if scale is not None and scale.std == 0:
            raise ValueError(f"{self.path}: the target {self.target} is constant over the training rows")
        X = standard(self.X).float()
        y = self.y if scale is None else scale(self.y).float()
        return TableData(
            _train_loader(X[train], y[train], batch_size),
            TensorLoader(X[val], y[val], batch_size=len(val)) if len(val) else None,
            (len(self.names),),
            len(self.labels) or 1,
            num_classes=len(self.labels) or None,
            test=TensorLoader(X[test], y[test], batch_size=len(test)) if len(test) else None,
            feature_names=self.names,
            target=self.target,
            labels=self.labels,
            standard=standard,
            scale=scale,
        )

    def _standardization(self, train: Tensor) -> Standardization:
        standard = Standardization.of(self.X[train], self.impute)
        for bad, what in ((standard.mean.isnan(), "without an entry"), (standard.std == 0, "constant")):
            if names := [name for name, wrong in zip(self.names, bad.tolist(), strict=True) if wrong]:
                raise ValueError(
                    f"{self.path}: {what} over the training rows: {listed(names)}; leave these columns out by "
                    f"'data.drop=[{','.join(names)}]'"
                )
        return standard


def _split_rows(classes: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Return the rows of each part, in a random order: of every class the shares, rounded, and then the rest."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator)
    parts: list[list[Tensor]] = [[] for _ in range(len(shares) + 1)]
    for label in classes.unique():
        rows = order[classes[order] == label]
        ends = [round(len(rows) * sum(shares[: part + 1])) for part in range(len(shares))]
        for part, chosen in zip(parts, rows.tensor_split(ends), strict=True):
            part.append(chosen)
    return [torch.cat(part)[torch.randperm(sum(map(len, part)), generator=generator)] for part in parts]


def make_table(
    path: str | Path,
    target: str | None,
    *,
    classes: bool | None = None,
    drop: Sequence[str] = (),
    impute: str | None = None,
) -> UserTable:
    """Read a CSV file; the arguments are those of `sparse_regression`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the target or a column to drop is none, there are no features or too few rows, entries are no
            numbers or missing without `impute`, or the target is neither numbers nor classes.
    """
    if impute not in (None, "mean", "median"):
        raise ValueError(f"data.impute={impute}; pass mean, median, or null to refuse missing entries")
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.csv={path}: there is no such file")
    table = read_table(Path(path))
    if target not in table.columns:
        raise ValueError(f"data.target={target} is no column of {path}; its columns are {listed(list(table.columns))}")
    if unknown := [name for name in drop if name not in table.columns or name == target]:
        raise ValueError(
            f"data.drop: {listed(unknown)} is no feature of {path} beside the target {target}; its columns "
            f"are {listed(list(table.columns))}"
        )
    names = [name for name in table.columns if name != target and name not in drop]
    if not names or table.num_rows < 4:
        raise ValueError(
            f"{path} has the features {listed(names)} and {table.num_rows} rows; at least one feature and four rows "
            "are needed"
        )
    X = table.numbers(names)
    table.refuse(names, X.isinf(), "entries that are no finite numbers: encode them, or leave them out by data.drop")
    if impute is None:
        table.refuse(
            names,
            X.isnan(),
            "missing entries: fill them by data.impute=median, leave the columns out by data.drop, or drop rows",
        )
    y, labels = _read_target(table, target, classes)
    return UserTable(Path(path), names, X, target, y, labels, impute)


def _read_target(table: Table, name: str, classes: bool | None) -> tuple[Tensor, list[str]]:
    """Return the target's numbers, shape (rows, 1), and no labels; or class indices, shape (rows,), and their labels.

    Labels are in the order of their numbers, or of the alphabet.
    """
    numbers = table.numbers([name])
    entries = list(zip(table.columns[name], numbers[:, 0].tolist(), strict=True))
    # A number has one name however it is written: 1 and 1.0 are the same class.
    names = [f"{value:.15g}" if math.isfinite(value) else text for text, value in entries]
    words = sorted({text for text, value in entries if value == math.inf})
    if classes is None:
        present = {label for label, (_, value) in zip(names, entries, strict=True) if not math.isnan(value)}
        classes = len(present) == 2 or present == set(words)
    # "none" may be the name of a class.
    if missing := sum(math.isnan(value) and not (classes and text.lower() == "none") for text, value in entries):
        raise ValueError(f"{table.path}: the target {name} is missing in {missing} of {len(names)} rows; drop these")
    if not classes and words:
        raise ValueError(
            f"{table.path}: the target {name} has numbers and words, such as {listed(words[:3])}; correct these, or "
            "pass data.classes=true if all are names of classes"
        )
    if not classes:
        return numbers, []
    labels = sorted(set(names), key=float if all(math.isfinite(value) for _, value in entries) else str)
    if not 2 <= len(labels) <= len(names) // 2:
        raise ValueError(
            f"{table.path}: the target {name} has {len(labels)} different values in {len(names)} rows; classes are "
            "two or more, and of several rows each. For numbers pass data.classes=false"
        )
    if rare := [label for label in labels if names.count(label) < 2]:
        raise ValueError(
            f"{table.path}: the classes {listed(rare)} have one row each, too few to train and to test; drop these "
            "rows, or join classes"
        )
    return torch.tensor([labels.index(label) for label in names]), labels
