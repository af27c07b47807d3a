"""The benchmark on real tables: what it fits is what it says."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, r2_score

from framework.happy_lambda import HappyLambdaClassifier, HappyLambdaLinear
from framework.optim import square_root_lasso
from scripts.benchmark_tables import happy_lambda, lines, split


def test_of_numbers_it_is_the_square_root_lasso_and_then_least_squares() -> None:
    data = split("diabetes", 0)
    np.testing.assert_allclose(data.X.mean(0), 0, atol=1e-12)
    torch.manual_seed(0)
    X, y = torch.from_numpy(data.X), torch.from_numpy((data.y - data.y.mean()) / data.y.std())
    weight = HappyLambdaLinear(X, 1000).run()
    [coefficients] = square_root_lasso(X, y[None], weight, tolerance=1e-9).weights.numpy()
    penalized, refitted = happy_lambda(data, 0)
    found = coefficients != 0
    assert penalized.features == refitted.features == found.sum()
    prediction = data.X_test @ coefficients * data.y.std() + data.y.mean()
    assert penalized.score == pytest.approx(r2_score(data.y_test, prediction), abs=1e-5)
    reference = LinearRegression().fit(data.X[:, found], data.y)
    assert refitted.score == pytest.approx(reference.score(data.X_test[:, found], data.y_test), abs=1e-5)


def test_of_classes_it_is_logistic_regression_with_the_l1_penalty() -> None:
    data = split("wine", 0)
    torch.manual_seed(0)
    weight = HappyLambdaClassifier(torch.from_numpy(data.X), torch.from_numpy(data.y), 1000).run()
    reference = LogisticRegression(C=1 / (weight * len(data.y)), l1_ratio=1, solver="saga", tol=1e-7, max_iter=100_000)
    reference.fit(data.X, data.y)
    penalized, _ = happy_lambda(data, 0)
    assert penalized.features == (reference.coef_ != 0).any(0).sum()
    assert penalized.score == accuracy_score(data.y_test, reference.predict(data.X_test))
    assert lines({("wine", "ours"): [penalized, penalized]}, ["wine"], ["ours"])[2] == (
        f"| wine | {penalized.score:.3f} ± 0.000 ({penalized.features:.1f}) |"
    )
