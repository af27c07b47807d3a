"""The sparse recipes: what they find, prune and report; tables of users; happy_lambda=auto."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from torch import nn

from framework.data import TensorLoader
from framework.happy_lambda import HappyLambdaLinear
from framework.losses import L2Loss
from framework.optim import SpaRSA
from framework.penalties import L1
from framework.recipes.build import build, universal_threshold
from framework.recipes.module import SupervisedModule
from framework.recipes.sparse_data import read_table, sparse_regression
from framework.recipes.train import run
from tests.recipes.test_recipes import configure

QUICK = ["trainer.enable_model_summary=false", "logger=none"]


def test_the_square_root_lasso_finds_the_support_and_reports_it(tmp_path: Path) -> None:
    metrics = run(configure("sparse_linear", tmp_path, *QUICK, "data.num_active=2", "seed=1"), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["support"] == summary["true_support"]
    assert (metrics["support/size"], metrics["support/true_positives"], metrics["support/false_discoveries"]) == (
        2,
        2,
        0,
    )
    assert metrics["support/exact"] == 1
    assert metrics["pruned/max_difference"] < 1e-12
    assert metrics["pruned/parameters"] == 3
    assert metrics["stationarity_gap"] <= 1e-6
    assert summary["stopped_because"].startswith("stationarity")
    assert summary["hyperparameters"]["happy_lambda"] > 2
    assert {picture.stem for picture in (tmp_path / "plots").iterdir()} == {"importance", "path"}


def test_the_refit_is_least_squares_on_the_support(tmp_path: Path) -> None:
    config = configure("sparse_linear", tmp_path, *QUICK, "data.num_active=2", "seed=1")
    metrics = run(config, tmp_path)
    data = sparse_regression(simulation="linear", num_samples=100, num_features=250, num_active=2, seed=1)
    assert data.support is not None
    X, y = (tensor.double().numpy() for tensor in data.train.tensors)
    exact = LinearRegression().fit(X[:, data.support], y)
    state = torch.load(tmp_path / "pruned.pt", weights_only=True)
    np.testing.assert_allclose(state["2.weight"].numpy(), exact.coef_, atol=1e-5)
    residual = np.linalg.norm(y - exact.predict(X[:, data.support]))
    assert metrics["refit/train_loss"] == pytest.approx(residual, rel=1e-8)


@pytest.mark.slow
def test_a_network_with_the_harder_penalty_finds_the_four_features_that_matter(tmp_path: Path) -> None:
    # A seed whose final phase is short, as it ends at a smooth point.
    metrics = run(configure("sparse_mlp", tmp_path, *QUICK, "seed=7"), tmp_path)
    assert metrics["support/exact"] == 1
    assert metrics["support/size"] == 4
    assert metrics["stationarity_gap"] <= 1e-6
    assert metrics["pruned/max_difference"] < 1e-12
    assert metrics["pruned/parameters"] < 100
    assert metrics["refit/train_loss"] < metrics["train/loss"]


# ------------------------------------------------------------------------------------------------------------- tables


def write_table(path: Path, num_rows: int = 60) -> Path:
    """Features a..e in odd units; price depends on b and d."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(num_rows, 5)) * [1, 100, 0.01, 5, 1] + 3
    price = 1000 + 2 * X[:, 1] - 30 * X[:, 3] + generator.normal(size=num_rows)
    rows = np.column_stack([X[:, :2], price, X[:, 2:]])
    lines = ["a, b,price,c,d,e", *(",".join(f"{value:.6f}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_is_standardized_and_its_features_are_found_by_name(tmp_path: Path) -> None:
    table = write_table(tmp_path / "houses.csv")
    config = configure("sparse_linear", tmp_path / "run", *QUICK, f"data.csv={table}", "data.target=price")
    metrics = run(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["support"] == ["b", "d"]
    assert "true_support" not in summary
    assert "support/exact" not in metrics
    data = sparse_regression(simulation="linear", csv=table, target="price", val_share=0.25)
    X, y = data.train.tensors
    assert (X.shape, data.val.tensors[0].shape, data.feature_names) == ((45, 5), (15, 5), ["a", "b", "c", "d", "e"])
    for columns in (X, y):
        torch.testing.assert_close(columns.mean(0), torch.zeros(columns.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(columns.std(0, correction=0), torch.ones(columns.shape[1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        (None, "cost", r"data\.target=cost is no column of .*; its columns are a, b, price, c, d, e"),
        (None, None, r"data\.target=None is no column"),
        (("4,", "red,"), "price", r"the columns a have entries that are no finite numbers: encode or drop"),
        (("4,", ","), "price", r"the columns a have missing entries \(NaN\): impute them"),
        (("4,", "NaN,"), "price", r"the columns a have missing entries"),
        (("4,", "1e999,"), "price", "the columns a have entries that are no finite numbers"),
        (("4,", ""), "price", "lines 3 have another number of entries than the first: 6"),
        (("a, b", "b, b"), "price", "at least two columns of different names"),
    ],
)
def test_a_table_that_is_no_good_is_refused_by_column(tmp_path: Path, change, target, message: str) -> None:
    table = tmp_path / "table.csv"
    text = "a, b,price,c,d,e\n1,2,3,4,5,6\n4,2,3,4,7,6\n1,8,3,4,5,6\n"
    if change is not None:
        before, after = change
        text = text.replace("\n" + before, "\n" + after) if before == "4," else text.replace(before, after)
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(table, target)


def test_a_missing_file_and_a_constant_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.csv=nowhere\.csv: there is no such file"):
        read_table("nowhere.csv", "y")
    table = tmp_path / "table.csv"
    table.write_text("a,b,y\n" + "\n".join(f"{i},7,{i * i}" for i in range(10)))
    with pytest.raises(ValueError, match="constant over the training rows: b; drop these columns"):
        sparse_regression(simulation="linear", csv=table, target="y")
    with pytest.raises(ValueError, match=r"data\.val_share=1\.0 of the 10 rows"):
        sparse_regression(simulation="linear", csv=table, target="y", val_share=1.0)


# --------------------------------------------------------------------------------------------------------------- auto


def test_auto_is_computed_from_the_training_data_and_printed(tmp_path: Path, capsys) -> None:
    _, module, data = build(configure("sparse_linear", tmp_path, *QUICK), tmp_path)
    X = data.train.tensors[0]
    assert module.happy_lambda == HappyLambdaLinear(X, 1000).run()
    assert f"happy_lambda: {module.happy_lambda:.6g}" in capsys.readouterr().out


def test_auto_reads_the_batches_without_a_trace() -> None:
    torch.manual_seed(0)
    X, labels = torch.randn(30, 4), torch.arange(30) % 3
    module = SupervisedModule(
        nn.Sequential(nn.Linear(4, 3)), nn.CrossEntropyLoss(), SpaRSA, penalty=L1(), num_classes=3
    )

    def noisy(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + torch.rand(1), y

    loader = TensorLoader(X, labels, batch_size=8, shuffle=True, transform=noisy)
    before, position = torch.get_rng_state(), loader.state_dict()
    assert universal_threshold(module, loader) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert loader.state_dict() == position


def test_auto_with_norms_of_batches_is_refused() -> None:
    loader = TensorLoader(torch.randn(30, 4), torch.randn(30, 1), batch_size=8)
    module = SupervisedModule(nn.Sequential(nn.Linear(4, 1)), L2Loss(), SpaRSA, penalty=L1())
    with pytest.raises(ValueError, match=r"loss=l2 in 4 batches: .* Use data\.batch_size=30, or a number"):
        universal_threshold(module, loader)


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        ("toy_regression", ["penalty=l1", "penalty.happy_lambda=auto", "model=linear"], "known for MSELoss.*loss=l2"),
        ("sparse_mlp", ["model=mlp"], "model=sparse_mlp, or give happy_lambda as a number"),
        ("sparse_linear", ["loss=mse"], "known for MSELoss"),
    ],
)
def test_auto_where_the_theory_has_none_is_refused_by_the_recipe(recipe, overrides, message, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(configure(recipe, tmp_path, *overrides), tmp_path)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "automatic"])
def test_a_weight_that_is_none_is_refused_by_the_recipe(weight: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"happy_lambda=.*(finite number that is not negative|pass a number, or auto)"):
        run(configure("sparse_linear", tmp_path, *QUICK, f"penalty.happy_lambda={weight}"), tmp_path)
