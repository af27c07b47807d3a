"""The solvers reach the minimum: against scikit-learn, the subgradient condition and gradient descent."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from framework.optim import FISTA, ISTA, SpaRSA, stationarity_gap
from framework.penalties import L1, MCP, SCAD, ElasticNet, GroupL1, Harder, Weighted
from tests.modules import plain_closure

SOLVERS = [ISTA, FISTA, SpaRSA]


def minimize(optimizer, closure, gap=1e-9, max_steps=20_000):
    for _ in range(max_steps):
        optimizer.step(closure)
        closure()
        if float(stationarity_gap(optimizer)) <= gap:
            return
    raise AssertionError(f"gap {float(stationarity_gap(optimizer)):.2e} after {max_steps} steps")


def sklearn_lasso(X, y, lam, intercept):
    model = Lasso(alpha=lam / len(y), fit_intercept=intercept, tol=1e-14, max_iter=10**6)
    return model.fit(X.numpy(), y.numpy())


@pytest.mark.parametrize("solver", SOLVERS)
def test_lasso_agrees_with_scikit_learn_and_satisfies_the_subgradient_condition(solver, linear):
    problem = linear()
    lam = 0.05 * problem.lambda_max
    optimizer = solver([problem.w], lam)
    problem.b.requires_grad_(False)
    minimize(optimizer, problem)
    expected = sklearn_lasso(problem.X, problem.y, lam, intercept=False).coef_
    w = problem.w.detach()
    np.testing.assert_allclose(w.numpy(), expected, atol=1e-6)
    correlation = problem.X.T @ (problem.y - problem.X @ w)
    assert (correlation[w == 0].abs() <= lam * (1 + 1e-9)).all()
    torch.testing.assert_close(correlation[w != 0], lam * w[w != 0].sign(), atol=1e-8, rtol=0)
    assert 0 < (w == 0).sum() < 60


@pytest.mark.parametrize("solver", SOLVERS)
def test_lasso_converges_far_beyond_the_rounding_of_its_value(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    minimize(solver([problem.w], 0.05 * problem.lambda_max), problem, gap=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_square_root_lasso_is_the_scaled_lasso_fixed_point(solver, linear):
    problem = linear(root=True)
    problem.b.requires_grad_(False)
    lam = 2.0
    minimize(solver([problem.w], lam), problem, gap=1e-9)
    w = problem.w.detach()
    sigma = float((problem.y - problem.X @ w).norm())
    expected = sklearn_lasso(problem.X, problem.y, lam * sigma, intercept=False).coef_
    np.testing.assert_allclose(w.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_unpenalized_group_is_the_intercept(solver, linear):
    problem = linear()
    lam = 0.05 * problem.lambda_max
    groups = [{"params": [problem.w], "penalized": True}, {"params": [problem.b], "penalized": False}]
    minimize(solver(groups, lam), problem)
    model = sklearn_lasso(problem.X, problem.y, lam, intercept=True)
    np.testing.assert_allclose(problem.w.detach().numpy(), model.coef_, atol=1e-6)
    np.testing.assert_allclose(float(problem.b.detach()), model.intercept_, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_mask_leaves_the_intercept_inside_a_tensor_unpenalized(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    lam = 0.05 * problem.lambda_max
    X, y = problem.X, problem.y
    problem.X = torch.cat([torch.ones_like(X[:, :1]), X], 1)
    problem.__post_init__()
    problem.b.requires_grad_(False)
    mask = torch.arange(61) > 0
    minimize(solver([{"params": [problem.w], "penalized": mask}], lam), problem)
    model = sklearn_lasso(X, y, lam, intercept=True)
    np.testing.assert_allclose(problem.w.detach().numpy(), [model.intercept_, *model.coef_], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_group_has_its_own_weight(solver, linear):
    problem = linear()
    u = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    groups = [{"params": [u], "penalized": True}, {"params": [v], "penalized": True, "happy_lambda": 4.0}]
    optimizer = solver(groups, 2.0)
    closure = plain_closure(optimizer, lambda: (problem.y - problem.X @ torch.cat([u, v])).square().sum() / 2)
    minimize(optimizer, closure)
    scale = torch.cat([torch.full((30,), 2.0), torch.full((30,), 4.0)]).double()
    expected = sklearn_lasso(problem.X / scale, problem.y, 1.0, intercept=False).coef_ / scale.numpy()
    np.testing.assert_allclose(torch.cat([u, v]).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "penalty", [ElasticNet(0.5), GroupL1("columns"), GroupL1([[0, 1, 2], [5, 6]], sqrt_size=True)], ids=repr
)
def test_other_convex_penalties_reach_a_stationary_point(solver, penalty, linear):
    problem = linear()
    W = torch.zeros(3, 60, dtype=torch.float64, requires_grad=True)
    Y = torch.stack([problem.y, -problem.y, problem.y.roll(1)], 1)
    optimizer = solver([W], 10.0, penalty)
    # A search that compares values of about 1,000 cannot tell points apart that are closer to the minimum.
    minimize(optimizer, plain_closure(optimizer, lambda: (Y - problem.X @ W.T).square().sum() / 2), gap=1e-6)
    assert (W == 0).any()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", [SCAD(), MCP()], ids=repr)
def test_scad_and_mcp_agree_with_coordinate_descent(solver, penalty):
    """As in Breheny & Huang 2011, sec. 2; so many samples make the objective convex, and its minimum unique."""
    X = torch.randn(100, 10, dtype=torch.float64)
    X = (X - X.mean(0)) / X.std(0, correction=0)
    y, lam = X[:, :3] @ torch.tensor([2.0, -1.0, 0.6]).double() + torch.randn(100, dtype=torch.float64), 0.3
    expected = torch.zeros(10, dtype=torch.float64)
    for _ in range(200):
        for j in range(10):
            z = X[:, j] @ (y - X @ expected) / 100 + expected[j]
            soft = z.sign() * (z.abs() - lam).clamp_min(0)
            if isinstance(penalty, MCP):
                expected[j] = soft / (1 - 1 / 3) if z.abs() <= 3 * lam else z
            else:
                middle = z.sign() * (z.abs() - 3.7 * lam / 2.7).clamp_min(0) / (1 - 1 / 2.7)
                expected[j] = soft if z.abs() <= 2 * lam else middle if z.abs() <= 3.7 * lam else z
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    optimizer = solver([w], lam, penalty)
    minimize(optimizer, plain_closure(optimizer, lambda: (y - X @ w).square().mean() / 2), gap=1e-9)
    torch.testing.assert_close(w.detach(), expected, atol=1e-7, rtol=0)
    assert torch.equal(w == 0, expected == 0)
    assert 3 * lam < w.abs().max()  # some do not shrink
    assert 3 <= (w != 0).sum() < 10


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_harder_penalty_reaches_a_stationary_point_below_the_start(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    optimizer = solver([problem.w], 0.05 * problem.lambda_max, Harder(0.5))
    start = float(problem.value())
    minimize(optimizer, problem, gap=1e-7)
    assert optimizer.step(problem) < start
    assert 0 < (problem.w != 0).sum() < 40


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_per_feature_are_the_lasso_on_scaled_features(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    lam, weights = 0.05 * problem.lambda_max, torch.linspace(0.5, 2, 60, dtype=torch.float64)
    minimize(solver([problem.w], lam, Weighted(L1(), weights.tolist())), problem)
    expected = sklearn_lasso(problem.X / weights, problem.y, lam, intercept=False).coef_ / weights.numpy()
    np.testing.assert_allclose(problem.w.detach().numpy(), expected, atol=1e-6)


def test_unpenalized_ista_is_gradient_descent(linear):
    problem = linear()
    problem.b.requires_grad_(False)
    t = 1 / float(torch.linalg.matrix_norm(problem.X, 2) ** 2)
    optimizer = ISTA([{"params": [problem.w], "penalized": False}], 7.0, lr=t, growth=1.0)
    w = torch.zeros_like(problem.w)
    for _ in range(20):
        optimizer.step(problem)
        w = w - t * (problem.X.T @ (problem.X @ w - problem.y))
        torch.testing.assert_close(problem.w.detach(), w)


@pytest.mark.parametrize("solver", [ISTA, FISTA])
def test_the_returned_objective_never_increases(solver, linear):
    problem = linear()
    lam = 0.05 * problem.lambda_max
    optimizer = solver([problem.w], lam)
    problem.b.requires_grad_(False)
    values = [optimizer.step(problem) for _ in range(200)]
    assert all(after <= before * (1 + 1e-15) for before, after in itertools.pairwise(values))
    with torch.no_grad():
        assert values[-1] == pytest.approx(float(problem.loss() + lam * problem.w.abs().sum()), rel=1e-14)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_reaches_the_float64_minimum_to_its_precision(solver, linear):
    exact, single = linear(), linear(dtype=torch.float32)
    lam = 0.05 * exact.lambda_max
    for problem in (exact, single):
        problem.b.requires_grad_(False)
    minimize(solver([exact.w], lam), exact)
    optimizer = solver([single.w], lam)
    for _ in range(100 if solver is SpaRSA else 2000):  # SpaRSA makes ten iterations per step
        optimizer.step(single)
    torch.testing.assert_close(single.w.detach().double(), exact.w.detach(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zeros_are_exact_and_never_negative(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    optimizer = solver([problem.w], 0.2 * problem.lambda_max)
    for _ in range(30):
        optimizer.step(problem)
    zeros = problem.w.detach()[problem.w.detach() == 0]
    assert len(zeros) > 10
    assert not zeros.signbit().any()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_closure_without_value_gives_the_same_point(solver, linear):
    problems = linear(), linear()
    optimizers = [solver([p.w, p.b], 5.0) for p in problems]
    for _ in range(50):
        optimizers[0].step(problems[0])
        optimizers[1].step(problems[1].__call__)
    torch.testing.assert_close(problems[0].w, problems[1].w, rtol=0, atol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_lambda_may_change_between_steps(solver, linear):
    problem = linear()
    problem.b.requires_grad_(False)
    optimizer = solver([problem.w], 0.01 * problem.lambda_max)
    for share in (0.01, 0.5, 0.05):
        optimizer.param_groups[0]["happy_lambda"] = lam = share * problem.lambda_max
        minimize(optimizer, problem)
        expected = sklearn_lasso(problem.X, problem.y, lam, intercept=False).coef_
        np.testing.assert_allclose(problem.w.detach().numpy(), expected, atol=1e-6)
