"""MinimizeWrapper against scipy called directly, and on the classification problem of pytorch-minimize."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info, threadpool_limits
from torch import Tensor, nn

from framework.optim import MinimizeWrapper
from framework.optim.scipy_methods import DERIVATIVE_FREE, GLOBAL, GRADIENT, HESSIAN, METHODS, PRODUCT
from tests.modules import plain_closure

DTYPES = [torch.float32, torch.float64]


def classification(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """The test problem of pytorch-minimize: logistic regression on the training part of 120 x 20, 10 classes."""
    torch.manual_seed(0)
    np.random.seed(0)
    data, target = make_classification(n_samples=120, n_informative=10, n_features=20, n_classes=10)
    data, _, target, _ = train_test_split(data, target, test_size=2 / 12, random_state=0)
    return nn.Linear(20, 10).to(dtype), torch.from_numpy(data).to(dtype), torch.from_numpy(target)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def point(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", [m for m in GRADIENT + PRODUCT + HESSIAN if m != "dogleg"])
def test_the_classification_problem_is_fitted(method, dtype):
    model, data, target = classification(dtype)
    optimizer = MinimizeWrapper(model.parameters(), {"method": method, "options": {"maxiter": 10_000}})
    loss = optimizer.step(plain_closure(optimizer, lambda: F.cross_entropy(model(data), target)))
    assert loss < 0.1
    assert loss.dtype == dtype
    assert loss == F.cross_entropy(model(data), target)


def test_dogleg_says_that_it_needs_a_positive_definite_hessian():
    model, data, target = classification(torch.float64)
    optimizer = MinimizeWrapper(model.parameters(), {"method": "dogleg"})
    closure = plain_closure(optimizer, lambda: F.cross_entropy(model(data), target))
    with pytest.warns(RuntimeWarning, match="dogleg needs a positive definite Hessian"):
        optimizer.step(closure)
    assert not optimizer.result.success


def test_dogleg_fits_where_the_hessian_is_positive_definite():
    model, data, target = classification(torch.float64)
    optimizer = MinimizeWrapper(model.parameters(), {"method": "dogleg"})

    def loss() -> Tensor:
        return F.cross_entropy(model(data), target) + 1e-6 * sum((p**2).sum() for p in model.parameters())

    optimizer.step(plain_closure(optimizer, loss))
    assert optimizer.result.success
    assert F.cross_entropy(model(data), target) < 0.1


# Without TNC, whose differences of gradients magnify the last bit; it has the test below.
@pytest.mark.parametrize("method", [m for m in GRADIENT + PRODUCT + HESSIAN + DERIVATIVE_FREE if m != "TNC"])
def test_the_path_is_that_of_scipy(method):
    start = np.array([1.05, 1.05, 1.05, 1.05])  # where the Hessian is positive definite
    derivatives = {}
    if method not in DERIVATIVE_FREE:
        derivatives["jac"] = scipy.optimize.rosen_der
    if method in PRODUCT:
        derivatives["hessp"] = scipy.optimize.rosen_hess_prod
    if method in HESSIAN:
        derivatives["hess"] = scipy.optimize.rosen_hess
    options = {"maxcor": 50} if method == "L-BFGS-B" else {}
    expected = scipy.optimize.minimize(scipy.optimize.rosen, start, method=method, options=options, **derivatives)

    x = point(*start)
    optimizer = MinimizeWrapper([x], {"method": method})
    loss = optimizer.step(plain_closure(optimizer, lambda: rosenbrock(x)))
    np.testing.assert_allclose(optimizer.result.x, expected.x, rtol=1e-9, atol=1e-9)
    assert abs(optimizer.result.nfev - expected.nfev) <= 2
    assert loss.item() <= expected.fun + 1e-12
    assert loss == rosenbrock(x)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("L-BFGS-B", {"maxiter": 15, "maxcor": 50}),
        ("BFGS", {"maxiter": 15}),
        ("TNC", {"maxfun": 60}),
        ("trust-krylov", {"maxiter": 15}),
    ],
)
def test_the_path_in_float64_is_bitwise_that_of_scipy_on_the_same_torch_functions(method, options):
    model, data, target = classification(torch.float64)

    def loss_of(vector: Tensor) -> Tensor:
        return F.cross_entropy(data @ vector[:200].view(10, 20).T + vector[200:], target)

    vector = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        loss = loss_of(leaf)
        loss.backward()
        return loss.item(), leaf.grad.numpy()

    def product(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(x.copy()).requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(leaf), leaf, create_graph=True)
        return torch.autograd.grad(gradient, leaf, torch.from_numpy(direction.copy()))[0].numpy()

    hessp = {"hessp": product} if method in PRODUCT else {}
    with threadpool_limits(1):
        expected = scipy.optimize.minimize(
            value_and_gradient, vector.numpy(), jac=True, method=method, options=options, **hessp
        )

    x = vector.clone().requires_grad_()
    optimizer = MinimizeWrapper([x], {"method": method, "options": options})
    optimizer.step(plain_closure(optimizer, lambda: loss_of(x)))
    np.testing.assert_array_equal(optimizer.result.x, expected.x)
    assert optimizer.result.nfev == expected.nfev


def test_the_listings_of_pytorch_minimize_run(capsys):
    model, input, target = classification(torch.float32)
    loss_fn = nn.CrossEntropyLoss()
    minimizer_args = dict(method="CG", options={"disp": True, "maxiter": 100})  # noqa: C408
    optimizer = MinimizeWrapper(model.parameters(), minimizer_args)

    def closure():
        optimizer.zero_grad()
        output = model(input)
        loss = loss_fn(output, target)
        loss.backward()
        return loss

    with pytest.warns(scipy.optimize.OptimizeWarning, match="Maximum number of iterations"):  # of `disp`
        optimizer.step(closure)
    assert "Iterations: 100" in capsys.readouterr().out
    assert closure() < 0.6


@pytest.mark.parametrize("method", ["Newton-CG", "trust-exact", "L-BFGS-B"])
def test_the_closure_class_of_pytorch_minimize_runs(method, capsys):
    model, data, target = classification(torch.float32)
    optimizer = MinimizeWrapper(model.parameters(), {"method": method, "options": {"disp": True, "maxiter": 100}})

    class Closure:
        def __init__(self, model):
            self.model = model

        @staticmethod
        def loss(model):
            output = F.log_softmax(model(data), dim=1)
            return F.nll_loss(output, target)

        def __call__(self):
            optimizer.zero_grad()
            loss = self.loss(self.model)
            loss.backward()
            self._loss = loss.item()
            return loss

    closure = Closure(model)
    optimizer.step(closure)
    assert closure._loss < 0.1
    assert "Current function value" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["L-BFGS-B", "TNC", "SLSQP", "trust-constr", "Nelder-Mead", "Powell", "COBYQA"])
def test_bounds_of_a_group_hold(method):
    bounded, free = point(0.9, 0.2), point(3.0)
    optimizer = MinimizeWrapper(
        [{"params": [bounded], "bounds": (0.0, 1.0)}, {"params": [free], "bounds": (None, 5.0)}], {"method": method}
    )
    optimizer.step(
        plain_closure(optimizer, lambda: ((bounded - torch.tensor([2.0, -1.0])) ** 2).sum() + (free - 4) ** 2)
    )
    torch.testing.assert_close(bounded.detach(), torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(free.detach(), torch.tensor([4.0]).double(), rtol=0, atol=1e-3)
    assert ((bounded >= 0) & (bounded <= 1)).all()


def test_bounds_may_differ_from_element_to_element():
    low = torch.tensor([[0.0, -1.0], [2.0, -math.inf]], dtype=torch.float64)
    high = torch.tensor([[0.5, 1.0], [3.0, -2.0]], dtype=torch.float64)
    expected = torch.tensor([[0.5, 1.0], [2.0, -2.0]], dtype=torch.float64)
    for grouped in (True, False):
        x = torch.tensor([[0.1, 0.0], [2.5, -3.0]], dtype=torch.float64, requires_grad=True)
        args = {"method": "L-BFGS-B"} if grouped else {"method": "L-BFGS-B", "bounds": (low.flatten(), high.flatten())}
        optimizer = MinimizeWrapper([{"params": [x], "bounds": (low, high)}] if grouped else [x], args)
        optimizer.step(plain_closure(optimizer, lambda x=x: ((x - 1) ** 2).sum()))
        torch.testing.assert_close(x.detach(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (None, 0.5), [(0.0, 0.5)] * 3])
def test_one_pair_of_bounds_applies_to_every_value(bounds):
    x = point(0.1, 0.2, 0.3)
    optimizer = MinimizeWrapper([x], {"method": "L-BFGS-B", "bounds": bounds})
    optimizer.step(plain_closure(optimizer, lambda: ((x - 1) ** 2).sum()))
    assert x.tolist() == pytest.approx([0.5] * 3)


def test_a_tensor_of_bounds_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a bound has shape \(2,\) for values of shape \(3,\)"):
        MinimizeWrapper([{"params": [point(1.0, 2.0, 3.0)], "bounds": (torch.zeros(2), None)}], {"method": "L-BFGS-B"})


@pytest.mark.parametrize("method", ["BFGS", "Newton-CG", "trust-exact"])
def test_a_closure_may_assign_the_gradients(method):
    x, y = point(1.05, 1.05), point(1.05, 1.05)

    def closure() -> float:
        loss = rosenbrock(x)
        (x.grad,) = torch.autograd.grad(loss, x)
        return loss.item()

    MinimizeWrapper([x], {"method": method}).step(closure)
    optimizer = MinimizeWrapper([y], {"method": method})
    optimizer.step(plain_closure(optimizer, lambda: rosenbrock(y)))
    torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_the_arguments_of_local_minimizations_hold():
    x = point(0.3, 0.4)
    inner = {"method": "SLSQP", "bounds": [(0.0, 0.5)] * 2, "options": {"maxiter": 3}, "tol": 1e-3}
    optimizer = MinimizeWrapper([x], {"method": "basinhopping", "options": {"niter": 2, "minimizer_kwargs": inner}})
    closure = plain_closure(optimizer, lambda: rosenbrock(x))
    expected = []
    with torch.random.fork_rng():
        rng = int(torch.randint(2**31, ()))
        result = scipy.optimize.basinhopping(
            scipy.optimize.rosen,
            [0.3, 0.4],
            niter=2,
            rng=rng,
            minimizer_kwargs={**inner, "jac": scipy.optimize.rosen_der},
            callback=lambda point, *_: expected.append(point),
        )
    optimizer.step(closure)
    np.testing.assert_allclose(optimizer.result.x, result.x, rtol=1e-8)
    assert optimizer.result.nfev == result.nfev
    assert ((x >= 0) & (x <= 0.5)).all()
    assert "bounds" in inner


@pytest.mark.parametrize("local", ["SLSQP", "TNC", "Nelder-Mead", "Powell"])
def test_the_bounds_of_a_global_method_bound_its_local_minimizations(local):
    x = point(0.3, 0.4)
    optimizer = MinimizeWrapper(
        [{"params": [x], "bounds": (0.0, 0.5)}],
        {"method": "basinhopping", "options": {"niter": 1, "stepsize": 0.1, "minimizer_kwargs": {"method": local}}},
    )
    seen = []
    optimizer.step(lambda: (seen.append(x.detach().clone()), plain_closure(optimizer, lambda: rosenbrock(x))())[1])
    assert all(((each >= 0) & (each <= 0.5)).all() for each in seen)


def test_the_result_has_the_name_of_pytorch_minimize():
    x = point(1.0)
    optimizer = MinimizeWrapper([x], {"method": "CG"})
    assert optimizer.res is None
    optimizer.step(plain_closure(optimizer, lambda: (x**2).sum()))
    assert optimizer.res is optimizer.result


def test_bounds_in_minimizer_args_and_groups_together_are_refused():
    x = point(0.5)
    with pytest.raises(ValueError, match="both in parameter groups and in minimizer_args"):
        MinimizeWrapper([{"params": [x], "bounds": (0, 1)}], {"method": "L-BFGS-B", "bounds": [(0, 1)]})
    with pytest.raises(ValueError, match="2 bounds for 1 values"):
        MinimizeWrapper([x], {"method": "L-BFGS-B", "bounds": [(0, 1)] * 2})
    with pytest.raises(ValueError, match="lower must not exceed"):
        MinimizeWrapper([{"params": [x], "bounds": (1, 0)}], {"method": "L-BFGS-B"})


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr", "COBYLA"])
def test_constraints_hold_at_the_end(method):
    x = point(3.0, 2.0)
    constraint = scipy.optimize.LinearConstraint(np.ones((1, 2)), 1.0, np.inf)
    optimizer = MinimizeWrapper([x], {"method": method, "constraints": [constraint]})
    loss = optimizer.step(plain_closure(optimizer, lambda: (x**2).sum()))
    torch.testing.assert_close(x.detach(), torch.tensor([0.5, 0.5]).double(), rtol=0, atol=1e-3)
    assert float(loss) == pytest.approx(0.5, abs=1e-3)


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(20, 5), nn.Linear(5, 10)).double()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    _, data, target = classification(torch.float64)
    optimizer = MinimizeWrapper(model.parameters(), {"method": "trust-ncg", "options": {"maxiter": 5}})
    optimizer.step(plain_closure(optimizer, lambda: F.cross_entropy(model(data), target)))
    assert torch.equal(model[0].weight, before)
    assert optimizer.result.x.size == 60


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("brute", "dogleg")])
def test_maxiter_or_stop_iteration_ends_any_method_at_the_best_point(method):
    x = point(1.3, -0.9, dtype=torch.float32)
    group = {"params": [x]}
    if method in ("differential_evolution", "dual_annealing", "shgo"):
        group["bounds"] = (-2.0, 2.0)
    optimizer = MinimizeWrapper([group], {"method": method})
    seen: list[tuple[int, float]] = []
    values: list[float] = []

    def loss_of() -> Tensor:
        loss = rosenbrock(x)
        values.append(loss.item())
        return loss

    def on_iteration(iteration: int, value: float) -> None:
        assert rosenbrock(x.detach()) == value == min(values)
        seen.append((iteration, value))
        if iteration == 2:
            raise StopIteration

    optimizer.on_iteration = on_iteration
    loss = optimizer.step(plain_closure(optimizer, loss_of))
    assert [iteration for iteration, _ in seen] == [1, 2]
    assert loss == min(values) == rosenbrock(x)
    assert optimizer.result.status == 99
    assert not optimizer.result.success
    assert "StopIteration" in optimizer.result.message


@pytest.mark.parametrize("method", [*DERIVATIVE_FREE, "differential_evolution", "brute"])
def test_methods_that_compare_values_need_no_gradients(method):
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper([{"params": [x], "bounds": (-2.0, 2.0)}], {"method": method})
    loss = optimizer.step(lambda: rosenbrock(x.detach()).item())
    assert loss < 0.02  # COBYLA ends at 0.011 in scipy 1.18
    assert x.grad is None


def test_maxiter_limits_tnc_even_beyond_scipys_limit_on_evaluations():
    limits = []
    for options in ({}, {"maxiter": 1000}):
        x = point(*[2.1, 3.0] * 5)
        optimizer = MinimizeWrapper([x], {"method": "TNC", "options": options})
        optimizer.step(plain_closure(optimizer, lambda x=x: rosenbrock(x)))
        limits.append((optimizer.result.nfev, optimizer.result.success))
    (by_default, succeeded), (nfev, success) = limits
    assert (by_default >= 100, succeeded) == (True, False)  # scipy's maxfun: 10 for each value
    assert (nfev > by_default, success) == (True, True)


def test_iterations_of_cobyqa_are_those_that_scipy_counts():
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper([x], {"method": "COBYQA"})
    seen: list[int] = []
    optimizer.on_iteration = lambda iteration, value: seen.append(iteration)
    optimizer.step(plain_closure(optimizer, lambda: rosenbrock(x)))
    assert seen == sorted(set(seen))
    assert len(seen) < optimizer.result.nfev
    assert seen[-1] in (optimizer.result.nit - 1, optimizer.result.nit)  # the last one may evaluate nothing
    optimizer = MinimizeWrapper([point(1.3, -0.9)], {"method": "COBYQA", "options": {"maxiter": 4}})
    seen.clear()
    optimizer.on_iteration = lambda iteration, value: seen.append(iteration)
    optimizer.step(lambda: rosenbrock(optimizer.param_groups[0]["params"][0]))
    assert seen[-1] == optimizer.result.nit == 4


@pytest.mark.parametrize("method", ["TNC", "L-BFGS-B", "Newton-CG", "Nelder-Mead"])
def test_maxiter_counts_iterations(method):
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper([x], {"method": method, "options": {"maxiter": 2}})
    optimizer.step(plain_closure(optimizer, lambda: rosenbrock(x)))
    assert optimizer.result.nit == 2
    assert not optimizer.result.success


@pytest.mark.parametrize("method", ["CG", "L-BFGS-B", "TNC", "trust-ncg", "COBYLA", "COBYQA", "differential_evolution"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError])
def test_an_exception_in_the_closure_propagates_and_leaves_the_best_point(method, error):
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper([{"params": [x], "bounds": _box(method)}], {"method": method})
    values: list[float] = []

    def loss_of() -> Tensor:
        if len(values) == 7:
            raise error("from the closure")
        loss = rosenbrock(x)
        values.append(loss.item())
        return loss

    with pytest.raises(error, match="from the closure"):
        optimizer.step(plain_closure(optimizer, loss_of))
    assert rosenbrock(x).item() == min(values)


@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "Newton-CG", "trust-exact", "Nelder-Mead", "dual_annealing"])
def test_a_loss_that_turns_nan_ends_at_the_best_point(method):
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper(
        [{"params": [x], "bounds": _box(method)}], {"method": method, "options": {"maxiter": 20}}
    )
    values: list[float] = []

    def loss_of() -> Tensor:
        loss = rosenbrock(x)
        values.append(loss.item())
        return loss if len(values) < 6 else loss * math.nan

    loss = optimizer.step(plain_closure(optimizer, loss_of))
    assert rosenbrock(x).item() == loss == min(values[:5])


def log_barrier(x: Tensor) -> Tensor:
    """A function that is NaN where a coordinate is negative, and 100 at its minimum (1, 1)."""
    return 50 * (x - x.log()).sum() + 100 * (x[0] * x[1] - 1) ** 2


# Without TNC and dogleg, which do not leave the start in scipy either.
@pytest.mark.parametrize("method", [m for m in METHODS if m not in (*GLOBAL, "TNC", "dogleg")])
def test_nan_at_a_trial_point_counts_as_infinity(method):
    x = point(3.0, 2.0)
    optimizer = MinimizeWrapper([x], {"method": method})
    loss = optimizer.step(plain_closure(optimizer, lambda: log_barrier(x)))
    assert float(loss) == pytest.approx(100, abs=1e-4)
    assert optimizer.result.success


def test_nan_at_a_corner_of_the_box_does_not_end_a_global_search():
    x = point(3.0, 2.0)
    optimizer = MinimizeWrapper([{"params": [x], "bounds": (-4.0, 4.0)}], {"method": "brute", "options": {"Ns": 9}})
    assert optimizer.step(lambda: log_barrier(x)) == pytest.approx(100, abs=1e-4)


def test_a_loss_that_is_nan_at_the_start_leaves_the_start():
    x = point(-1.0)
    optimizer = MinimizeWrapper([x], {"method": "BFGS"})
    with pytest.raises(ValueError, match=r"the loss is nan at evaluation 1; .* the starting point"):
        optimizer.step(plain_closure(optimizer, lambda: x.log().sum()))
    assert x.item() == -1.0


def test_a_gradient_that_is_nan_is_refused():
    x = point(0.0)
    optimizer = MinimizeWrapper([x], {"method": "BFGS"})
    with pytest.raises(ValueError, match="gradient is not finite"):
        optimizer.step(plain_closure(optimizer, lambda: (x * x).sqrt().sum()))


@pytest.mark.parametrize("method", ["Newton-CG", "trust-ncg", "trust-krylov", "trust-exact"])
def test_a_hessian_that_is_nan_is_refused(method):
    x = point(0.0, 1.0)
    optimizer = MinimizeWrapper([x], {"method": method})
    # |x|^1.5: the gradient is 0 at 0, where the second derivative is infinite.
    with pytest.raises(ValueError, match=r"Hessian is not finite at evaluation 1; .* best point seen"):
        optimizer.step(plain_closure(optimizer, lambda: (x.abs() ** 1.5).sum()))
    assert x.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("method", ["BFGS", "CG", "trust-ncg", "Nelder-Mead"])
def test_a_line_search_backs_off_from_infinity(method):
    x = point(0.5)
    optimizer = MinimizeWrapper([x], {"method": method})

    def loss_of() -> Tensor:  # a barrier: inf beyond 1
        return (torch.where(x < 1, -torch.log((1 - x).clamp_min(1e-300)), math.inf) - 20 * x).sum()

    optimizer.step(plain_closure(optimizer, loss_of))
    assert x.item() == pytest.approx(0.95, abs=1e-3)


def test_a_closure_with_its_own_value_and_products_is_asked_for_them():
    x = point(1.3, -0.9)
    calls: list[str] = []

    class Closure:
        def __call__(self) -> Tensor:
            calls.append("call")
            x.grad = None
            loss = rosenbrock(x)
            loss.backward()
            return loss

        def value(self) -> Tensor:
            calls.append("value")
            return rosenbrock(x.detach())

        def hvp(self):
            calls.append("hvp")
            matrix = torch.autograd.functional.hessian(rosenbrock, x.detach())
            return lambda vector: vector @ matrix

    closure = Closure()
    for method, expected in {
        "Nelder-Mead": {"value"},
        "Powell": {"value"},
        "L-BFGS-B": {"call"},
        "trust-ncg": {"call", "hvp"},
        "trust-exact": {"call", "hvp"},
    }.items():
        calls.clear()
        with torch.no_grad():
            x.copy_(torch.tensor([1.3, -0.9]))
        optimizer = MinimizeWrapper([x], {"method": method})
        assert optimizer.step(closure) < 1e-6
        assert set(calls) == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("basinhopping", {"niter": 30, "stepsize": 1.0}),
        ("basinhopping", {"niter": 100, "stepsize": 1.0, "minimizer_kwargs": {"method": "Newton-CG"}}),
        ("differential_evolution", {}),
        ("dual_annealing", {"maxiter": 100}),
        ("shgo", {"n": 64, "iters": 2, "sampling_method": "sobol"}),
        ("brute", {"Ns": 19}),
    ],
)
def test_global_methods_find_the_minimum_of_rastrigin(method, options, dtype):
    x = point(2.3, -1.7, dtype=dtype)
    local = "minimizer_kwargs" in options
    optimizer = MinimizeWrapper(
        [{"params": [x], "bounds": None if local else (-4.0, 5.0)}], {"method": method, "options": options}
    )
    loss = optimizer.step(plain_closure(optimizer, lambda: 20 + (x**2 - 10 * torch.cos(2 * torch.pi * x)).sum()))
    assert loss < 1e-4
    torch.testing.assert_close(x.detach(), torch.zeros_like(x), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["basinhopping", "differential_evolution", "dual_annealing"])
def test_random_methods_follow_the_seed_of_torch(method):
    paths = []
    for _ in range(2):
        torch.manual_seed(5)
        x = point(1.3, -0.9)
        options = {"niter": 3} if method == "basinhopping" else {"maxiter": 3}
        optimizer = MinimizeWrapper([{"params": [x], "bounds": (-2, 2)}], {"method": method, "options": options})
        path: list[Tensor] = []
        closure = plain_closure(optimizer, lambda x=x: rosenbrock(x))
        optimizer.step(lambda closure=closure, x=x, path=path: (path.append(x.detach().clone()), closure())[1])
        paths.append(torch.stack(path))
    assert torch.equal(*paths)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"method": "LBFGS"}, "did you mean 'L-BFGS-B'.*Known: CG, BFGS"),
        ({"method": "newton"}, "unknown method 'newton'"),
        ({"options": {}}, "needs `method`"),
        ({"method": "CG", "callback": print}, "callbacks through `on_iteration`"),
        ({"method": "CG", "options": {"banana": 1}}, "CG refuses its arguments: Unknown solver options: banana"),
        ({"method": "TNC", "options": {"maxcor": 1}}, "Unknown solver options: maxcor"),
        ({"method": "trust-constr", "options": {"banana": 1}}, "unexpected keyword argument 'banana'"),
        ({"method": "CG", "bounds": [(0, 1)] * 2}, "cannot handle bounds"),
        ({"method": "brute", "bounds": [(0, 1)] * 2, "options": {"maxiter": 1}}, "brute does not take maxiter"),
        ({"method": "brute", "bounds": [(0, 1)] * 2, "tol": 1.0}, "brute does not take tol"),
        ({"method": "shgo"}, "shgo searches a box"),
        ({"method": "dual_annealing", "bounds": [(0, None)] * 2}, "searches a box"),
        (
            {"method": "basinhopping", "options": {"minimizer_kwargs": {"jac": print}}},
            "minimizer_kwargs of basinhopping has jac: .* derivatives come from the closure",
        ),
        (
            {"method": "basinhopping", "options": {"minimizer_kwargs": {"options": {"banana": 1}}}},
            "L-BFGS-B refuses its arguments: Unknown solver options: banana",
        ),
        (
            {"method": "basinhopping", "bounds": (0, 1), "options": {"minimizer_kwargs": {"method": "CG"}}},
            "basinhopping with CG, which takes no bounds",
        ),
        (
            {"method": "shgo", "bounds": (0, 1), "options": {"minimizer_kwargs": {"tol": 1e-3}}},
            "minimizer_kwargs of shgo has tol: it may have constraints, method, options with ftol alone",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(args, message):
    with pytest.raises(ValueError, match=message):
        MinimizeWrapper([point(0.1, 0.2)], args)


def test_methods_are_found_in_any_case():
    assert MinimizeWrapper([point(1.0)], {"method": "l-bfgs-b"}).method == "L-BFGS-B"


@pytest.mark.parametrize("method", ["CG", "trust-ncg"])
def test_a_closure_without_gradients_is_refused(method):
    x, other = point(1.0), point(2.0)
    optimizer = MinimizeWrapper([x], {"method": method})
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.step(plain_closure(optimizer, lambda: (other**2).sum()))
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.step(lambda: torch.tensor(1.0))
    assert x.item() == 1.0


def test_parameters_that_do_not_form_one_vector_are_refused():
    with pytest.raises(ValueError, match=r"torch.float32, torch.float64.*one real floating-point type"):
        MinimizeWrapper([point(1.0), point(1.0, dtype=torch.float32)], {"method": "CG"})
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        MinimizeWrapper([torch.ones(1)], {"method": "CG"})


def test_a_closure_that_returns_nothing_is_refused():
    x = point(1.0)
    optimizer = MinimizeWrapper([x], {"method": "CG"})
    with pytest.raises(TypeError, match="return loss"):
        optimizer.step(lambda: (x**2).sum().backward())
    with pytest.raises(TypeError, match="pass a closure"):
        optimizer.step(None)


def test_scipy_computes_on_one_thread_and_torch_on_its_own():
    x = point(1.3, -0.9)
    optimizer = MinimizeWrapper([x], {"method": "BFGS"})
    seen = set()

    def loss_of() -> Tensor:
        pools = threadpool_info()
        seen.update(pool["num_threads"] for pool in pools if pool["prefix"] == "libscipy_openblas")
        assert torch.get_num_threads() == 2
        return rosenbrock(x)

    torch.set_num_threads(2)
    optimizer.step(plain_closure(optimizer, loss_of))
    assert seen <= {1}


def test_the_state_loads_with_weights_only(tmp_path):
    x = point(0.5)
    optimizer = MinimizeWrapper([{"params": [x], "bounds": (0.0, 1.0)}], {"method": "L-BFGS-B"})
    optimizer.step(plain_closure(optimizer, lambda: (x**2).sum()))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = MinimizeWrapper([point(0.5)], {"method": "L-BFGS-B"})
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["bounds"] == (0.0, 1.0)


def _box(method: str) -> tuple[float, float] | None:
    return (-2.0, 2.0) if method in ("differential_evolution", "dual_annealing") else None
