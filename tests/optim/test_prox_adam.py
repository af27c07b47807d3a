"""ProxAdam: without a penalty it is Adam; with one it finds stationary points of f + g at any parameter scale."""

import torch

from framework.optim import ProxAdam, stationarity_gap
from tests.modules import plain_closure


def badly_scaled_lasso():
    X = torch.randn(60, 20, dtype=torch.float64) * torch.logspace(-1, 1, 20, dtype=torch.float64)
    truth = torch.zeros(20, dtype=torch.float64)
    truth[[2, 9, 17]] = torch.tensor([20.0, -2.0, 0.3], dtype=torch.float64)
    return X, X @ truth + 0.1 * torch.randn(60, dtype=torch.float64)


def train(optimizer, w, X, y, num_steps):
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
    closure = plain_closure(optimizer, lambda: (y - X @ w).square().sum() / 2)
    for _ in range(num_steps):
        optimizer.step(closure)
        decay.step()
    return closure().item()


def test_without_a_penalty_it_is_adam():
    X, y = badly_scaled_lasso()
    w, v = (torch.zeros(20, dtype=torch.float64, requires_grad=True) for _ in range(2))
    train(ProxAdam([w], 0.0, lr=0.1), w, X, y, 50)
    train(torch.optim.Adam([v], lr=0.1), v, X, y, 50)
    torch.testing.assert_close(w, v, rtol=1e-10, atol=1e-12)


def test_a_badly_scaled_lasso_ends_at_its_optimum():
    X, y = badly_scaled_lasso()
    w = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    optimizer = ProxAdam([w], 3.0, lr=0.5)
    train(optimizer, w, X, y, 6000)
    assert float(stationarity_gap(optimizer)) < 1e-8
    assert (w == 0).sum() > 5


def test_the_mask_and_the_groups_decide_what_is_thresholded():
    X, y = badly_scaled_lasso()
    w = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(20) >= 10
    optimizer = ProxAdam([{"params": [w], "penalized": mask}], 1e6, lr=0.1)
    train(optimizer, w, X, y, 200)
    assert (w[10:] == 0).all()
    assert (w[:10] != 0).all()


def test_a_step_with_a_non_finite_gradient_changes_nothing_and_is_counted():
    w = torch.ones(3, requires_grad=True)
    v = torch.ones(2, requires_grad=True)
    optimizer = ProxAdam([w, v], 0.1, lr=0.1)
    for bad in (False, True, False):
        w.grad, v.grad = torch.ones(3), torch.ones(2)
        if bad:
            w.grad[1] = torch.nan
        before = w.detach().clone(), v.detach().clone()
        optimizer.step()
        unmoved = torch.equal(w.detach(), before[0]) and torch.equal(v.detach(), before[1])
        assert unmoved == bad
    assert w.isfinite().all()
    assert float(optimizer.state[v]["skipped"]) == 1
    assert float(optimizer.state[v]["step"]) == 2
