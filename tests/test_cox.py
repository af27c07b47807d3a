"""Cox regression against sums by hand, an optimizer of scipy's, and permutations."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from framework.auto_lambda import auto_happy_lambda
from framework.cox import CoxLoss, HappyLambdaCox
from framework.layers import NormalizedLinear
from framework.optim import SpaRSA, stationarity_gap
from framework.penalties import L1
from tests.modules import plain_closure


def survival(num_samples: int = 60, num_features: int = 8, effect: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw features, the first of which matters, and times with ties, about a third of them censored."""
    X = torch.randn(num_samples, num_features, dtype=torch.float64)
    times = torch.empty(num_samples, dtype=torch.float64).exponential_() * (-effect * X[:, 0]).exp()
    censoring = 2 * torch.empty(num_samples, dtype=torch.float64).exponential_()
    events = (times <= censoring).double()
    return X, torch.stack([(10 * torch.minimum(times, censoring)).ceil(), events], 1)


def by_hand(f: np.ndarray, times: np.ndarray, events: np.ndarray) -> float:
    """Add up Breslow's formula, event by event."""
    total = 0.0
    for i in np.flatnonzero(events):
        total += np.log(np.exp(f[times >= times[i]]).sum()) - f[i]
    return total / len(f)


def test_the_loss_is_breslows_sum_over_events() -> None:
    _, target = survival()
    f = torch.randn(60, 1, dtype=torch.float64, requires_grad=True)
    assert len(target[:, 0].unique()) < 60  # there are ties
    expected = by_hand(f[:, 0].detach().numpy(), *target.T.numpy())
    assert CoxLoss()(f, target).item() == pytest.approx(expected, rel=1e-13)
    assert CoxLoss()(f + 7, target).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda f: CoxLoss()(f, target), f)
    shuffled = torch.randperm(60)
    torch.testing.assert_close(CoxLoss()(f[shuffled], target[shuffled]), CoxLoss()(f, target))
    large = CoxLoss()(1e4 * f, target)
    assert large.isfinite()


def test_the_minimum_is_that_of_scipy() -> None:
    X, target = survival()
    times, events = target.T.numpy()
    expected = minimize(lambda w: by_hand(X.numpy() @ w, times, events), np.zeros(8), tol=1e-12)
    w = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    optimizer = SpaRSA([{"params": [w], "penalized": False}])
    closure = plain_closure(optimizer, lambda: CoxLoss()(X @ w, target))
    for _ in range(30):
        optimizer.step(closure)
    closure()
    assert stationarity_gap(optimizer) < 1e-7
    np.testing.assert_allclose(w[:, 0].detach().numpy(), expected.x, atol=1e-4)


def test_the_threshold_is_the_quantile_of_the_null_gradient_over_permutations() -> None:
    X, target = survival(40)
    threshold = HappyLambdaCox(X, target, 2000, torch.Generator().manual_seed(0)).run()
    gradients = []
    for _ in range(400):
        w = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(CoxLoss()(X @ w, target[torch.randperm(40)]), w)
        gradients.append(gradient.abs().max().item())
    assert np.mean(np.array(gradients) <= threshold) == pytest.approx(0.95, abs=0.03)


def test_if_nothing_matters_95_of_100_fits_select_nothing() -> None:
    """The model that selects nothing is a minimum exactly if the null gradient is at most the weight."""
    empty = 0
    for _ in range(200):
        X, target = survival(effect=0.0)
        w = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(CoxLoss()(X @ w, target), w)
        threshold = HappyLambdaCox(X, target, 200, torch.Generator().manual_seed(0)).run()
        empty += bool(L1().subgradient_gap(torch.zeros(8, 1), gradient, threshold) == 0)
    assert empty / 200 == pytest.approx(0.95, abs=0.04)


def test_auto_finds_the_feature_that_matters_and_refuses_networks() -> None:
    X, target = survival(100)
    linear = nn.Linear(8, 1, bias=False, dtype=torch.float64)
    groups = [{"params": [linear.weight], "penalized": True}]
    weight = auto_happy_lambda(nn.Sequential(linear), groups, CoxLoss(), L1(), X, target)
    nn.init.zeros_(linear.weight)
    optimizer = SpaRSA(groups, weight, L1())
    closure = plain_closure(optimizer, lambda: CoxLoss()(linear(X), target))
    for _ in range(20):
        optimizer.step(closure)
    closure()
    assert stationarity_gap(optimizer) < 1e-8
    assert linear.weight[0].argmax() == 0
    assert linear.weight.count_nonzero() <= 3
    hidden = nn.Sequential(nn.Linear(8, 3, bias=False), nn.ReLU(), NormalizedLinear(3, 1, bias=False))
    groups = [
        {"params": [hidden[0].weight], "penalized": True},
        {"params": [hidden[2].weight], "penalized": False},
    ]
    with pytest.raises(ValueError, match="no threshold is known for CoxLoss with hidden layers"):
        auto_happy_lambda(hidden, groups, CoxLoss(), L1(), X, target)


def test_targets_that_are_no_times_and_events_are_refused() -> None:
    X, target = survival()
    with pytest.raises(ValueError, match=r"output has shape \(60,\) and the target \(60, 2\); pass one log hazard"):
        CoxLoss()(X[:, 0], target)
    for wrong in (target[:, :1], target * 2, target * torch.tensor([1.0, 0.0]), target / 0):
        with pytest.raises(ValueError, match="must be finite times and events"):
            HappyLambdaCox(X, wrong, 10)
