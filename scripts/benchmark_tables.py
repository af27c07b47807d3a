"""Accuracy and number of features on real tables, beside cross-validated lasso and random forest.

    uv run python -m scripts.benchmark_tables [FILE.csv] [--splits 10] [--tables breast_cancer,digits]

The tables are those that scikit-learn ships. Each is split ten times at random into 80 % of the rows for training and
20 % for a test, of each class alike; columns are standardized by the training rows, and those that are constant over
them left out. The score is the accuracy of classes, or R2 of numbers, on the test rows. It prints a table with mean and
standard deviation over the splits, and writes every split to FILE.csv as soon as it is done.

- happy lambda: the linear model of ``recipe=sparse_linear`` at the quantile universal threshold, without validation;
  to a stationarity gap of 1e-6. The objective is convex, so that no path of weaker penalties is needed.
- refitted: the same features, fitted again without penalty.
- cross-validated: scikit-learn's ``LassoCV``, or ``LogisticRegressionCV`` with the L1 penalty and ten weights; five
  folds, and on digits three folds and five weights.
- random forest: scikit-learn's, of 300 trees, on all the features.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LassoCV, LogisticRegressionCV
from sklearn.model_selection import train_test_split
from torch import Tensor

from framework import Trainer, seed_everything
from framework.auto_lambda import auto_happy_lambda
from framework.callbacks import Stationarity
from framework.data import TensorLoader
from framework.optim import SpaRSA
from framework.penalties import L1
from framework.pruning import prune
from framework.recipes.module import SupervisedModule, loss_for
from framework.recipes.networks import Linear

TABLES = ("breast_cancer", "wine", "digits", "diabetes")
NUM_TREES = 300
QUIET: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False,
}  # fmt: skip


class Split(NamedTuple):
    """Training and test rows: X of shape (rows, features), y numbers or class indices, shape (rows,)."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    num_classes: int | None


class Result(NamedTuple):
    """A score on the test rows, and the number of features that it took."""

    score: float
    features: int


def split(table: str, seed: int) -> Split:
    """Read a table, and split and standardize it."""
    X, y = getattr(datasets, f"load_{table}")(return_X_y=True)
    num_classes = None if table == "diabetes" else len(np.unique(y))
    stratify = None if num_classes is None else y
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, stratify=stratify, random_state=seed)
    varies = X.std(0) > 0
    mean, std = X[:, varies].mean(0), X[:, varies].std(0)
    return Split((X[:, varies] - mean) / std, y, (X_test[:, varies] - mean) / std, y_test, num_classes)


def happy_lambda(data: Split, seed: int) -> list[Result]:
    """Fit the sparse linear model and, on the features that it finds, the one without penalty."""
    seed_everything(seed, verbose=False)
    X, X_test = torch.from_numpy(data.X), torch.from_numpy(data.X_test)
    y, y_test, scale = torch.from_numpy(data.y), data.y_test, (0.0, 1.0)
    if data.num_classes is None:
        scale = (float(y.mean()), float(y.std(correction=0)))
        y = ((y - scale[0]) / scale[1])[:, None]
    loss = loss_for(data.num_classes)
    network = Linear((X.shape[1],), data.num_classes or 1).double()
    module = SupervisedModule(network, loss, SpaRSA, penalty=L1(), num_classes=data.num_classes)
    module.happy_lambda = auto_happy_lambda(network, module.param_groups(), loss, L1(), X, y)
    module.make_optimizer = partial(SpaRSA, happy_lambda=module.happy_lambda, penalty=L1())
    fit(module, X, y, max_epochs=5000, callbacks=[Stationarity(1e-6)])
    pruned = prune(network)
    features = len(pruned[1].features)  # type: ignore[arg-type]
    refitted = SupervisedModule(
        pruned,
        loss,
        partial(torch.optim.LBFGS, max_iter=100, history_size=20, line_search_fn="strong_wolfe"),
        num_classes=data.num_classes,
    )
    results = [Result(score(network(X_test), y_test, scale), features)]
    fit(refitted, X, y, max_epochs=5, callbacks=[])
    return [*results, Result(score(pruned(X_test), y_test, scale), features)]


def fit(module: SupervisedModule, X: Tensor, y: Tensor, *, max_epochs: int, callbacks: list[Stationarity]) -> None:
    """Fit on all the rows at once, in float64."""
    trainer = Trainer(accelerator="cpu", precision="64-true", max_epochs=max_epochs, callbacks=callbacks, **QUIET)
    trainer.fit(module, TensorLoader(X, y, batch_size=len(X)))
    assert not callbacks or "stationarity" in str(trainer.stopped_because), trainer.stopped_because


def score(outputs: Tensor, y: np.ndarray, scale: tuple[float, float]) -> float:
    """Compute the accuracy of logits, shape (rows, classes), or the R2 of standardized numbers, shape (rows, 1)."""
    outputs = outputs.detach()
    if outputs.shape[1] > 1:
        return float(np.mean(outputs.argmax(1).numpy() == y))
    residual = y - (outputs[:, 0].numpy() * scale[1] + scale[0])
    return float(1 - np.sum(residual**2) / np.sum((y - y.mean()) ** 2))


def cross_validated(data: Split, seed: int) -> list[Result]:
    """Fit the lasso, or logistic regression with the L1 penalty, at the weight that predicts best in folds."""
    if data.num_classes is None:
        model = LassoCV(cv=5, random_state=seed)
    else:
        folds, weights = (3, 5) if data.num_classes > 3 else (5, 10)
        model = LogisticRegressionCV(
            Cs=weights, cv=folds, l1_ratios=(1,), solver="saga", tol=1e-3, max_iter=5000, random_state=seed,
            scoring="accuracy", use_legacy_attributes=False,
        )  # fmt: skip
    model.fit(data.X, data.y)
    features = int((np.atleast_2d(model.coef_) != 0).any(0).sum())
    return [Result(float(model.score(data.X_test, data.y_test)), features)]


def random_forest(data: Split, seed: int) -> list[Result]:
    """Fit a random forest."""
    make = RandomForestRegressor if data.num_classes is None else RandomForestClassifier
    model = make(NUM_TREES, random_state=seed).fit(data.X, data.y)
    return [Result(float(model.score(data.X_test, data.y_test)), data.X.shape[1])]


METHODS: dict[tuple[str, ...], Callable[[Split, int], list[Result]]] = {
    ("happy lambda", "refitted"): happy_lambda,
    ("cross-validated",): cross_validated,
    ("random forest",): random_forest,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="where every split is written to")
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--tables", default=",".join(TABLES), help="separated by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # of weights that cross-validation does not choose
    file = sys.stdout if args.file is None else args.file.open("w")
    writer = csv.writer(file)
    writer.writerow(["table", "split", "method", "score", "features", "seconds"])
    names = [name for group in METHODS for name in group]
    found: dict[tuple[str, str], list[Result]] = {}
    for table in args.tables.split(","):
        for seed in range(args.splits):
            data = split(table, seed)
            for group, method in METHODS.items():
                start = time.process_time()
                results = method(data, seed)
                seconds = time.process_time() - start
                for name, result in zip(group, results, strict=True):
                    writer.writerow([table, seed, name, *result, f"{seconds:.2f}"])
                    found.setdefault((table, name), []).append(result)
            file.flush()
    print("\n".join(lines(found, args.tables.split(","), names)))


def lines(found: dict[tuple[str, str], list[Result]], tables: list[str], names: list[str]) -> list[str]:
    """Return a table in Markdown: the score with its standard deviation, and the mean number of features."""
    rows = ["| table | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    for table in tables:
        cells = []
        for name in names:
            scores, features = zip(*found[table, name], strict=True)
            spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(f"{statistics.mean(scores):.3f} ± {spread:.3f} ({statistics.mean(features):.1f})")
        rows.append(f"| {table} | " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    main()
