"""Simulated sparse problems: y depends only on the active features, as documented."""

import pytest
import torch

from framework.data import sparse_linear, sparse_mlp
from framework.data.sparse import COEFFICIENTS


def test_a_linear_problem_is_solved_by_its_coefficients():
    X, y, active = sparse_linear(num_samples=400, num_features=12, num_active=3, noise=0.0, seed=1)
    assert (X.shape, y.shape, X.dtype) == ((400, 12), (400, 1), torch.float32)
    w = torch.linalg.lstsq(X.double(), y.double()).solution.flatten()
    assert (w.abs() > 1e-4).nonzero().flatten().tolist() == active == sorted(active)
    assert all(min(abs(float(w[j]) - c) for c in COEFFICIENTS) < 1e-5 for j in active)


def test_a_network_problem_is_ten_times_the_sum_of_absolute_differences():
    X, y, active = sparse_mlp(num_samples=50, num_features=9, num_active=2, noise=0.0, seed=2)
    torch.testing.assert_close(y[:, 0], 10 * (X[:, active[0]] - X[:, active[1]]).abs())
    X, y, active = sparse_mlp(num_samples=200, num_features=9, num_active=4, noise=0.0, seed=2)
    a, b, c, d = X[:, active].unbind(1)
    pairings = [((a, b), (c, d)), ((a, c), (b, d)), ((a, d), (b, c))]
    sums = [10 * sum((u - v).abs() for u, v in pairs) for pairs in pairings]
    assert min(float((y[:, 0] - s).abs().max()) for s in sums) < 1e-4


@pytest.mark.parametrize("draw", [sparse_linear, sparse_mlp])
def test_noise_and_seed(draw):
    (X, quiet, active), (X2, noisy, active2) = (draw(num_samples=5000, noise=sd, seed=3) for sd in (0.0, 2.0))
    assert torch.equal(X, X2)
    assert active == active2
    assert float((noisy - quiet).std()) == pytest.approx(2.0, rel=0.05)
    assert not torch.equal(draw(seed=4)[0], draw(seed=3)[0])
    assert draw(num_active=0, noise=0.0)[1].abs().max() == 0


@pytest.mark.parametrize("draw", [sparse_linear, sparse_mlp])
@pytest.mark.parametrize("options", [{"num_active": 52, "num_features": 50}, {"noise": -1.0}, {"num_samples": 0}])
def test_arguments_out_of_range_are_refused(draw, options):
    with pytest.raises(ValueError, match=r"num_active=52; pass a number from 0|pass at least 1 sample and a finite"):
        draw(**options)


def test_an_odd_number_of_features_is_refused_because_it_makes_no_pairs():
    with pytest.raises(ValueError, match="num_active=3: the active features come in pairs; pass an even number"):
        sparse_mlp(num_active=3)
