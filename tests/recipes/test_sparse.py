"""The sparse recipes: what they find, prune and report; tables of users; happy_lambda=auto."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from framework.data import TensorLoader
from framework.happy_lambda import HappyLambdaLinear
from framework.losses import L2Loss
from framework.optim import SpaRSA
from framework.penalties import L1
from framework.recipes.build import build, universal_threshold
from framework.recipes.module import SupervisedModule
from framework.recipes.sparse_data import make_table, sparse_regression
from framework.recipes.table_data import TableData
from framework.recipes.train import run
from framework.recipes.trained import run_predict, run_test
from tests.recipes.conftest import Proxtrain
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
    data = sparse_regression(simulation="linear", csv=table, target="price", test_share=0.25)
    X, y = data.train.tensors
    assert (X.shape, data.test.tensors[0].shape, data.feature_names) == ((45, 5), (15, 5), ["a", "b", "c", "d", "e"])
    for columns in (X, y):
        torch.testing.assert_close(columns.mean(0), torch.zeros(columns.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(columns.std(0, correction=0), torch.ones(columns.shape[1]), atol=1e-5, rtol=0)


SHORT_PATH = ["callbacks.penalty_path.window=5", "callbacks.penalty_path.max_epochs=10"]


def write_classes(path: Path, labels: list[str], num_rows: int = 90) -> np.ndarray:
    """Features a..f in odd units; the class depends on b, and with three classes on e too. Returns the features."""
    generator = np.random.default_rng(0)
    X = generator.normal(size=(num_rows, 6)) * [1, 100, 0.01, 5, 1, 1] + 3
    logits = np.zeros((num_rows, len(labels)))
    logits[:, 0], logits[:, -1] = (X[:, 1] - 3) / 30, (X[:, 4] - 3) * 4 * (len(labels) - 2)
    chosen = (logits + generator.gumbel(size=logits.shape)).argmax(1)
    lines = [";".join([*(f"{value:.6f}".replace(".", ",") for value in row), labels[k]])
             for row, k in zip(X, chosen, strict=True)]  # fmt: skip
    path.write_text("\n".join(["a;b;c;d;e;f;kind", *lines]) + "\n")
    return X


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("labels", [["yes", "no"], ["red", "green", "blue"]])
def test_a_table_of_classes_is_trained_tested_and_predicted_by_its_labels(
    labels: list[str], proxtrain: Proxtrain, tmp_path: Path
) -> None:
    table = tmp_path / "kinds.csv"
    X = write_classes(table, labels)
    done = proxtrain(
        *QUICK, "trainer.enable_progress_bar=false", "recipe=sparse_linear", f"data.csv={table}", "data.target=kind",
        *SHORT_PATH,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    summary = json.loads((done.folder / "summary.json").read_text())
    metrics = summary["metrics"]
    assert summary["support"] == (["b"] if len(labels) == 2 else ["b", "e"])
    assert {path.stem for path in (done.folder / "plots").iterdir()} >= {"importance", "path", "confusion_matrix"}
    assert not (done.folder / "checkpoints" / "best.ckpt").exists()

    # The command that predicts knows the labels; on the test rows they are those of the report.
    run_predict([str(done.folder), str(table), "-o", str(tmp_path / "predicted.csv")])
    predicted = read(tmp_path / "predicted.csv")
    data = sparse_regression(simulation="linear", csv=table, target="kind")
    assert isinstance(data, TableData)
    assert data.standard is not None
    standardized = data.standard(torch.from_numpy(X.round(6))).float()
    test = [int((standardized - row).abs().sum(1).argmin()) for row in data.test.tensors[0]]
    truth = [line.rpartition(";")[2] for line in table.read_text().splitlines()[1:]]
    counts = {true: dict.fromkeys(data.labels, 0) for true in data.labels}
    for row in test:
        counts[truth[row]][predicted[row]["kind"]] += 1
    assert summary["confusion_matrix"] == counts
    assert sum(sum(row.values()) for row in counts.values()) == 18
    assert metrics["test/accuracy"] == pytest.approx(sum(counts[label][label] for label in labels) / 18)
    confusion = read(done.folder / "confusion_matrix.csv")
    assert [[row.pop("true \\ predicted"), *map(int, row.values())] for row in confusion] == [
        [true, *row.values()] for true, row in counts.items()
    ]
    run_test([str(done.folder)])

    # The coefficients are those of scikit-learn at the same weight, in the table's own units too.
    inputs, y = (tensor.double().numpy() for tensor in data.train.tensors)
    weight = summary["hyperparameters"]["happy_lambda"]
    reference = LogisticRegression(C=1 / (weight * len(y)), l1_ratio=1, solver="saga", tol=1e-8, max_iter=100_000)
    expected = reference.fit(inputs, y).coef_
    rows = read(done.folder / "coefficients.csv")
    for k, label in enumerate(data.labels[1:] if len(labels) == 2 else data.labels):
        of_class = {row["feature"]: row for row in rows if row["class"] == label}
        found = [float(of_class[name]["standardized"]) if name in of_class else 0.0 for name in "abcdef"]
        np.testing.assert_allclose(found, expected[k], atol=1e-4)
        own = {name: float(row["coefficient"]) for name, row in of_class.items()}
        logits = own.pop("(intercept)") + sum(value * X[:, "abcdef".index(name)] for name, value in own.items())
        intercept = float(of_class["(intercept)"]["standardized"])
        np.testing.assert_allclose(logits, standardized.double().numpy() @ np.array(found) + intercept, atol=1e-4)


def test_a_network_takes_classes_too_and_a_loss_that_does_not_fit_is_refused(
    proxtrain: Proxtrain, tmp_path: Path
) -> None:
    write_classes(table := tmp_path / "kinds.csv", ["yes", "no"])
    given = [*QUICK, "trainer.enable_progress_bar=false", "recipe=sparse_mlp", f"data.csv={table}", "data.target=kind"]
    done = proxtrain(*given, "epochs=20", "mlp.hidden=[4,3]")
    assert done.code == 0, done.stderr
    assert float(done.stdout.split("happy_lambda: ")[1].split()[0]) > 0
    assert not (done.folder / "coefficients.csv").exists()
    assert (done.folder / "confusion_matrix.csv").exists()
    refused = proxtrain(*given, "loss=l2")
    assert refused.code == 1
    assert "loss L2Loss compares numbers, but the targets are 2 classes; use loss=cross_entropy" in refused.stderr


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        (None, "cost", r"data\.target=cost is no column of .*; its columns are a, b, price, c, d, e"),
        (None, None, r"data\.target=None is no column"),
        (("4,", "red,"), "price", r"the columns a have entries that are no finite numbers: encode them"),
        (("4,", ","), "price", r"the columns a have missing entries: fill them by data\.impute=median"),
        (("4,", "NaN,"), "price", r"the columns a have missing entries"),
        (("4,", "1e999,"), "price", "the columns a have entries that are no finite numbers"),
        (("4,", ""), "price", "lines 3 have another number of entries than the first: 6"),
        (("a, b", "b, b"), "price", "several columns of the name b; the names must be different"),
    ],
)
def test_a_table_that_is_no_good_is_refused_by_column(tmp_path: Path, change, target, message: str) -> None:
    table = tmp_path / "table.csv"
    text = "a, b,price,c,d,e\n1,2,3,4,5,6\n4,2,3,4,7,6\n1,8,3,4,5,6\n7,8,9,4,5,6\n"
    if change is not None:
        before, after = change
        text = text.replace("\n" + before, "\n" + after) if before == "4," else text.replace(before, after)
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        make_table(table, target)


def test_a_missing_file_and_a_constant_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.csv=nowhere\.csv: there is no such file"):
        make_table("nowhere.csv", "y")
    table = tmp_path / "table.csv"
    table.write_text("a,b,y\n" + "\n".join(f"{i},7,{i * i}" for i in range(10)))
    with pytest.raises(ValueError, match="constant over the training rows: b; leave these columns out"):
        sparse_regression(simulation="linear", csv=table, target="y")
    with pytest.raises(ValueError, match=r"data\.val_share=0\.0 of the 10 rows of .* leave too few"):
        sparse_regression(simulation="linear", csv=table, target="y", test_share=0.9)


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
