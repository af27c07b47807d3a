"""The simulation of sparse linear regression is the published one, draw for draw."""

import numpy as np
import pytest
import torch

from framework.data import linear_recovery, network_recovery
from framework.data.recovery import SPARSITIES
from framework.data.sparse import COEFFICIENTS


def test_the_draws_are_numpys_in_the_published_order():
    simulation = linear_recovery()
    np.random.seed(42)
    X, X_test = np.random.randn(70, 250), np.random.randn(1000, 250)
    noise = np.random.randn(70, 200)
    supports = {s: [np.random.choice(250, s, replace=False) for _ in range(200)] for s in range(1, 26)}

    np.testing.assert_allclose(simulation.X, (X - X.mean(0)) / X.std(0), atol=1e-12)
    np.testing.assert_allclose(simulation.X_test, (X_test - X_test.mean(0)) / X_test.std(0), atol=1e-12)
    np.testing.assert_array_equal(simulation.noise.T, noise)
    for s, i in [(1, 0), (4, 17), (8, 0), (12, 5), (20, 199)]:
        np.random.seed(42 + i)
        expected = np.zeros(250)
        expected[supports[s][i]] = np.random.choice([-3, -2, -1, 1, 2], s)
        np.testing.assert_array_equal(simulation.weights[s][i], expected)


def test_the_draws_at_one_sparsity_do_not_depend_on_the_others():
    table, some = linear_recovery(), linear_recovery([20, 8])
    assert list(some.weights) == [20, 8]
    for s in (8, 20):
        assert torch.equal(some.targets(s), table.targets(s))


@pytest.mark.parametrize(
    "change", [{}, {"sparsities": [25]}, {"seed": 43}, {"num_replicates": 20}, {"num_test": 10}, {"num_samples": 60}]
)
def test_only_the_published_draws_say_that_they_are(change):
    assert linear_recovery(**change).is_published == (set(change) <= {"sparsities"})


def test_shapes_standardization_and_support_sizes():
    simulation = linear_recovery()
    assert (simulation.X.shape, simulation.X_test.shape) == ((70, 250), (1000, 250))
    assert simulation.noise.shape == (200, 70)
    for X in (simulation.X, simulation.X_test):
        assert X.dtype == torch.float64
        torch.testing.assert_close(X.mean(0), torch.zeros(250, dtype=torch.float64), atol=1e-14, rtol=0)
        torch.testing.assert_close(X.std(0, correction=0), torch.ones(250, dtype=torch.float64))
    assert tuple(simulation.weights) == SPARSITIES
    for s, weights in simulation.weights.items():
        assert weights.shape == (200, 250)
        assert ((weights != 0).sum(1) == s).all()
        assert set(weights.unique().tolist()) <= {0.0, *COEFFICIENTS}


def test_a_target_is_the_design_times_the_weights_and_noise():
    simulation = linear_recovery()
    assert torch.equal(simulation.targets(0), simulation.noise)
    expected = simulation.X @ simulation.weights[6][3] + simulation.noise[3]
    torch.testing.assert_close(simulation.targets(6)[3], expected)


def test_draws_depend_on_the_seed_alone():
    np.random.seed(7)
    first, again, other = linear_recovery(), linear_recovery(), linear_recovery(seed=43)
    assert torch.equal(first.X, again.X)
    assert torch.equal(first.targets(20), again.targets(20))
    assert not torch.equal(first.X, other.X)
    state = np.random.get_state()[1]
    linear_recovery()
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": [0, 251]}, r"sparsities=\[0, 251\]; pass different numbers from 0 to num_features=250"),
        ({"sparsities": [-1]}, "pass different numbers from 0"),
        ({"sparsities": [3, 3]}, "pass different numbers from 0"),
        ({"num_samples": 1}, "at least 2 samples"),
        ({"num_replicates": 0}, "1 replicate"),
    ],
)
def test_invalid_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        linear_recovery(**options)


def test_a_sparsity_that_was_not_drawn_is_refused_naming_those_that_were():
    with pytest.raises(ValueError, match=r"with 7 true coefficients were drawn, only with \[0, 2\]"):
        linear_recovery([0, 2]).targets(7)


def test_the_draws_for_networks_are_numpys_in_the_published_order():
    simulation = network_recovery([20, 2, 0, 12])
    np.random.seed(42)
    X, X_test = np.random.randn(500, 50), np.random.randn(1000, 50)
    noise = np.random.randn(500, 200)
    drawn = {s: [np.random.choice(50, s, replace=False) for _ in range(200)] for s in range(2, 22, 2)}

    X = (X - X.mean(0)) / X.std(0)
    np.testing.assert_allclose(simulation.X, X, atol=1e-12)
    np.testing.assert_allclose(simulation.X_test, (X_test - X_test.mean(0)) / X_test.std(0), atol=1e-12)
    assert simulation.is_published
    assert list(simulation.pairs) == [20, 2, 0, 12]
    for s, i in [(2, 0), (12, 17), (20, 199), (0, 3)]:
        features = drawn[s][i] if s else []
        expected = noise[:, i].copy()
        for k in range(0, s, 2):
            expected += 10 * np.abs(X[:, features[k + 1]] - X[:, features[k]])
        np.testing.assert_allclose(simulation.targets(s)[i], expected, atol=1e-11)
        assert simulation.support(s)[i].nonzero().flatten().tolist() == sorted(features)


def test_correlated_columns_are_correlated_and_otherwise_drawn_alike():
    plain, some = network_recovery([2]), network_recovery([2], num_samples=5000, correlation=0.5)
    assert not some.is_published
    correlations = torch.corrcoef(some.X.T)[~torch.eye(50, dtype=torch.bool)]
    torch.testing.assert_close(correlations, torch.full_like(correlations, 0.5), rtol=0, atol=0.06)
    torch.testing.assert_close(some.X.std(0, correction=0), torch.ones(50, dtype=torch.float64))
    same = network_recovery([2], correlation=0.5)
    assert torch.equal(same.noise, plain.noise)
    assert torch.equal(same.pairs[2], plain.pairs[2])


@pytest.mark.parametrize(
    "change", [{}, {"sparsities": [6]}, {"seed": 43}, {"num_replicates": 20}, {"num_samples": 60}, {"correlation": 0.1}]
)
def test_only_the_published_draws_for_networks_say_that_they_are(change):
    assert network_recovery(**change).is_published == (set(change) <= {"sparsities"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": [2, 3]}, r"sparsities=\[2, 3\]: the true features come in pairs; pass even numbers"),
        ({"sparsities": [52]}, "pass different numbers from 0 to num_features=50"),
        ({"correlation": 1.0}, r"correlation=1.0 of every two columns; pass a number in \[0, 1\)"),
        ({"num_replicates": 0}, "1 replicate"),
    ],
)
def test_invalid_settings_for_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network_recovery(**options)


def test_a_number_of_features_that_was_not_drawn_for_networks_is_refused():
    simulation = network_recovery([0, 2])
    for ask in (simulation.targets, simulation.support):
        with pytest.raises(ValueError, match=r"with 4 true features were drawn, only with \[0, 2\]"):
            ask(4)
