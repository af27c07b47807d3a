"""The estimators: scikit-learn's own checks, trusted references, and what they say about features."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from framework.estimators import SparseClassifier, SparseRegressor
from framework.optim import square_root_lasso
from framework.penalties import L1, ElasticNet, GroupL1, Weighted

SMALL = {"activation": "Sigma", "max_epochs": 3, "random_state": 0}


def regression(noise: float = 10.0, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return make_regression(100, 40, n_informative=5, noise=noise, coef=True, random_state=0, **options)


def logistic(X: np.ndarray, y: np.ndarray, weight: float) -> LogisticRegression:
    """Fit scikit-learn's on standardized features; its objective is C times the sum of losses, plus the L1 norm."""
    X = (X - X.mean(0)) / X.std(0)
    reference = LogisticRegression(l1_ratio=1.0, C=1 / (weight * len(X)), solver="saga", tol=1e-9, max_iter=20_000)
    return reference.fit(X, y)


@parametrize_with_checks([SparseRegressor(), SparseClassifier()])
def test_scikit_learn_checks_the_estimator(estimator, check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        check(estimator)


# -------------------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize("standardize", [False, True])
def test_linear_regression_is_the_square_root_lasso(standardize: bool) -> None:
    X, y, _ = regression()
    X = X * np.linspace(0.5, 2, 40) + 1
    model = SparseRegressor(standardize=standardize, random_state=0, tol=1e-8).fit(X, y)
    scale = X.std(0) if standardize else 1.0
    inputs, target = (torch.from_numpy(v - v.mean(0)) for v in (X / scale, y))
    expected = square_root_lasso(inputs, target[None], model.lambda_, tolerance=1e-10).weights[0].numpy() / scale
    np.testing.assert_allclose(model.coef_, expected, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(model.selected_features_, np.flatnonzero(expected))
    assert 1 < len(model.selected_features_) < 20
    np.testing.assert_allclose(model.predict(X), X @ model.coef_ + model.intercept_)
    residual = np.linalg.norm(y - model.predict(X)) / np.sqrt(100 - 1 - len(model.selected_features_))
    assert model.noise_std_ == pytest.approx(residual)


def test_linear_classification_is_l1_logistic_regression() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:200, :8], y[:200]
    model = SparseClassifier(random_state=0, tol=1e-8).fit(X, y)
    expected = logistic(X, y, model.lambda_)
    np.testing.assert_allclose(model.coef_ * model.scale_, expected.coef_, atol=1e-5)
    np.testing.assert_array_equal(model.selected_features_, np.flatnonzero(expected.coef_[0]))
    probabilities = expected.predict_proba((X - X.mean(0)) / X.std(0))
    np.testing.assert_allclose(model.predict_proba(X), probabilities, atol=1e-5)
    np.testing.assert_allclose(model.decision_function(X), X @ model.coef_[0] + model.intercept_[0])


def test_several_classes_are_l1_softmax_regression() -> None:
    X, y = load_wine(return_X_y=True)
    labels = np.array(["barolo", "grignolino", "barbera"])[y]
    model = SparseClassifier(random_state=0, tol=1e-8).fit(X, labels)
    expected = logistic(X, labels, model.lambda_)
    np.testing.assert_allclose(model.coef_ * model.scale_, expected.coef_, atol=1e-5)
    assert model.classes_.tolist() == ["barbera", "barolo", "grignolino"]
    assert set(model.predict(X)) == set(labels)
    assert model.intercept_.shape == (3,)


def test_the_refitted_model_is_least_squares_on_the_selected_features() -> None:
    X, y, _ = regression()
    model = SparseRegressor(refit=True, random_state=0).fit(X, y)
    expected = LinearRegression().fit(X[:, model.selected_features_], y)
    np.testing.assert_allclose(model.coef_[model.selected_features_], expected.coef_, rtol=1e-6)
    assert model.intercept_ == pytest.approx(expected.intercept_, abs=1e-6)
    penalized = SparseRegressor(random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.selected_features_, penalized.selected_features_)
    np.testing.assert_array_equal(model.feature_importances_, penalized.feature_importances_)


@pytest.mark.parametrize("penalty", ["harder", "scad", "mcp"])
def test_a_non_convex_penalty_finds_the_true_features_and_shrinks_them_less(penalty: str) -> None:
    X, y, truth = regression()
    model, lasso = (SparseRegressor(penalty=name, random_state=0).fit(X, y) for name in (penalty, "l1"))
    np.testing.assert_array_equal(model.selected_features_, np.flatnonzero(truth))
    assert np.abs(model.coef_ - truth).max() < np.abs(lasso.coef_ - truth).max() / 2
    assert model.noise_std_ == pytest.approx(10, rel=0.2)


def test_a_fit_does_not_depend_on_the_units_of_the_data() -> None:
    X, y, _ = regression()
    for penalty in ("l1", "harder", "mcp"):
        model = SparseRegressor(penalty=penalty, random_state=0).fit(X, y)
        other = SparseRegressor(penalty=penalty, random_state=0).fit(X * 1000 - 5, y / 100)
        np.testing.assert_allclose(other.coef_ * 1e5, model.coef_, rtol=1e-4, atol=1e-8)


def test_data_without_noise_are_fitted_exactly() -> None:
    X, y, truth = regression(noise=0.0)
    for penalty in ("l1", "mcp"):
        model = SparseRegressor(penalty=penalty, random_state=0).fit(X, y)
        np.testing.assert_allclose(model.coef_, truth, atol=1e-6)


def test_of_noise_nothing_is_selected() -> None:
    X, y = np.random.default_rng(0).normal(size=(60, 30)), np.random.default_rng(1).normal(size=60)
    model = SparseRegressor(random_state=0).fit(X, y)
    assert len(model.selected_features_) == 0
    np.testing.assert_allclose(model.predict(X), y.mean())
    assert model.noise_std_ == pytest.approx(y.std(ddof=1))
    classes = SparseClassifier(random_state=0, refit=True).fit(X, y > 0)
    np.testing.assert_allclose(classes.predict_proba(X)[:, 1], (y > 0).mean(), atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- penalties


def test_weights_per_feature_and_groups_are_penalties() -> None:
    X, y, _ = regression()
    weights = np.ones(40)
    weights[0] = 0.0
    model = SparseRegressor(penalty=Weighted(L1(), weights), happy_lambda=50.0, random_state=0).fit(X, y)
    assert model.selected_features_.tolist() == [0]
    category = np.arange(100) % 4
    table = pd.DataFrame({"kind": category, "noise": np.random.default_rng(0).normal(size=100)})
    encoded = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough", sparse_threshold=0)
    groups = GroupL1([[0, 1, 2, 3]], sqrt_size=True)
    for weight in (2.0, "auto"):
        model = make_pipeline(encoded, SparseRegressor(penalty=groups, happy_lambda=weight)).fit(table, category**2.0)
        assert model[-1].selected_features_.tolist() == [0, 1, 2, 3]


def test_a_penalty_without_a_known_threshold_needs_a_number() -> None:
    X, y, _ = regression()
    with pytest.raises(ValueError, match=r"no threshold is known for ElasticNet.*give happy_lambda as a number"):
        SparseRegressor(penalty=ElasticNet(0.0)).fit(X, y)
    assert SparseRegressor(penalty=ElasticNet(0.5), random_state=0).fit(X, y).score(X, y) > 0.5


# ------------------------------------------------------------------------------------------------------- scikit-learn


def test_in_a_pipeline_and_a_grid_search_with_a_table() -> None:
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    search = GridSearchCV(
        make_pipeline(PolynomialFeatures(1, include_bias=False).set_output(transform="pandas"), SparseRegressor()),
        {"sparseregressor__penalty": ["l1", "mcp"], "sparseregressor__happy_lambda": ["auto", 1.0]},
        cv=2,
    ).fit(X, y)
    model = search.best_estimator_[-1]
    assert model.feature_names_in_.tolist() == X.columns.tolist()
    assert {"bmi", "s5"} <= set(model.feature_names_in_[model.selected_features_])
    assert search.score(X, y) > 0.4
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X.rename(columns={"bmi": "weight"}))


@pytest.mark.parametrize("hidden", [(), (3,)])
def test_a_pickled_estimator_predicts_the_same_and_a_clone_fits_the_same(hidden) -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:60, :4], y[:60]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SparseClassifier(hidden, **SMALL).fit(X, y)
        again = clone(model).fit(X, y)
    state = torch.get_rng_state()
    probabilities = model.predict_proba(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), probabilities)
    np.testing.assert_array_equal(again.predict_proba(X), probabilities)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fit_leaves_the_global_random_numbers_alone() -> None:
    X, y, _ = regression()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    SparseRegressor(random_state=0).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_a_fit_that_is_cut_short_warns() -> None:
    X, y, _ = regression()
    with pytest.warns(ConvergenceWarning, match="did not converge in max_epochs=1"):
        SparseRegressor(max_epochs=1, tol=1e-12, random_state=0).fit(X, y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (0,)}, r"hidden=\(0,\); pass the widths of hidden layers"),
        ({"hidden": "20"}, "hidden='20'; pass the widths"),
        ({"hidden": (2,), "activation": "relu"}, "activation='relu' is unknown; pass one of ELU"),
        ({"penalty": "lasso"}, "penalty='lasso' is unknown; pass auto, l1, harder, scad, mcp, group_l1, or a Penalty"),
        ({"happy_lambda": -1.0}, "happy_lambda=-1.0 of SparseRegressor is not allowed"),
        ({"happy_lambda": "cv"}, "happy_lambda='cv' of SparseRegressor is not allowed"),
        ({"tol": 0.0}, "tol=0.0; it must be positive"),
        ({"hidden": 20}, "hidden=20; pass the widths"),
        ({"max_epochs": 0}, "max_epochs=0; it must be at least 1, or None"),
    ],
)
def test_settings_that_are_no_good_are_refused(settings: dict, message: str) -> None:
    X, y, _ = regression()
    with pytest.raises(ValueError, match=message):
        SparseRegressor(**settings).fit(X, y)


def test_a_setting_without_effect_is_named() -> None:
    X, y, _ = regression()
    with pytest.warns(UserWarning, match="activation='Tanh' has no effect without hidden layers"):
        SparseRegressor(activation="Tanh", random_state=0).fit(X, y)


# ------------------------------------------------------------------------------------------------- networks and paths


@pytest.mark.slow
def test_a_network_finds_the_features_of_a_function_that_is_not_linear() -> None:
    X = np.random.default_rng(0).normal(size=(300, 10))
    y = 10 * np.abs(X[:, 2] - X[:, 7]) + np.random.default_rng(1).normal(size=300)
    model = SparseRegressor((10,), random_state=0).fit(X, y)
    assert model.selected_features_.tolist() == [2, 7]
    assert model.score(X, y) > 0.9
    assert SparseRegressor(random_state=0).fit(X, y).score(X, y) < 0.1
    with pytest.raises(AttributeError, match="a network has no coefficients: see selected_features_"):
        _ = model.coef_
    path = SparseRegressor((10,), random_state=0).path(X, y)
    assert path.happy_lambda[0] == 0
    assert path.happy_lambda[-1] == pytest.approx(model.lambda_)
    np.testing.assert_allclose(path.importance[-1], model.feature_importances_)
    path.draw().canvas.draw()


def test_the_path_of_a_linear_model_starts_at_nothing_and_each_point_is_a_fit() -> None:
    X, y, _ = regression()
    table = pd.DataFrame(X, columns=[f"x{index}" for index in range(40)])
    model = SparseRegressor(random_state=0, tol=1e-8)
    path = model.path(table, y, num_stages=6, smallest=0.3)
    assert not hasattr(model, "coef_")
    columns = pd.DataFrame(path.table())
    assert columns.columns.tolist() == ["happy_lambda", "num_features", *table.columns]
    assert columns.num_features.iloc[0] == 0
    assert columns.num_features.is_monotonic_increasing
    for row in (1, 5):
        fit = SparseRegressor(happy_lambda=path.happy_lambda[row], tol=1e-8).fit(table, y)
        np.testing.assert_allclose(path.importance[row], fit.feature_importances_, atol=1e-6)
    # A little below the first weight something is selected.
    just_below = SparseRegressor(happy_lambda=path.happy_lambda[0] * (1 - 1e-6), tol=1e-8).fit(table, y)
    assert len(just_below.selected_features_) == 1
    figure = path.draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "the weight of fit"
    assert path.lambda_ == model.fit(table, y).lambda_


def test_what_has_no_path_is_refused() -> None:
    X, y, _ = regression()
    with pytest.raises(ValueError, match="happy_lambda=0 has no path"):
        SparseRegressor(happy_lambda=0).path(X, y)
    for options in ({"num_stages": 0}, {"smallest": 0.0}):
        with pytest.raises(ValueError, match="pass one stage or more, a share above 0"):
            SparseRegressor().path(X, y, **options)
    with pytest.raises(ValueError, match="selects no features at any weight"):
        SparseRegressor(penalty=ElasticNet(0.0), happy_lambda=1.0).path(X, y)


def test_stability_is_the_share_of_subsamples_that_select_a_feature() -> None:
    X, y, truth = regression()
    model = SparseRegressor(random_state=0)
    shares = model.stability(X, y, num_subsamples=10)
    assert shares.shape == (40,)
    assert set(np.round(10 * shares, 9)) <= set(range(11))
    assert shares[np.argmax(np.abs(truth))] == 1
    assert shares[truth == 0].max() <= 0.3
    np.testing.assert_array_equal(model.stability(X, y, num_subsamples=10), shares)
    cancer = load_breast_cancer(as_frame=True)
    shares = SparseClassifier(random_state=0).stability(cancer.data.iloc[:, :5], cancer.target, num_subsamples=3)
    assert shares.max() == 1
