"""The batched square-root lasso against one problem at a time, and against the condition for a minimum."""

import pytest
import torch
from torch import Tensor

from framework.optim import SpaRSA, square_root_lasso, stationarity_gap
from framework.penalties import L1, ElasticNet, GroupL1, Harder, Penalty, Weighted


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Make 40 samples of 60 features, three of them true, with five responses."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(40, 60, generator=generator, dtype=torch.float64)
    Y = X[:, :3] @ torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64) + torch.randn(
        5, 40, generator=generator, dtype=torch.float64
    )
    return X.to(dtype), Y.to(dtype)


def minimize_alone(X: Tensor, y: Tensor, lam: float, penalty: Penalty) -> Tensor:
    w = torch.zeros(X.shape[1], dtype=X.dtype, requires_grad=True)

    def closure() -> Tensor:
        w.grad = None
        loss = (y - X @ w).norm()
        loss.backward()
        return loss

    optimizer = SpaRSA([w], lam, penalty)
    for _ in range(500):
        optimizer.step(closure)
        closure()
        if stationarity_gap(optimizer) < 1e-9:
            break
    return w.detach()


@pytest.mark.parametrize("penalty", [L1(), ElasticNet(0.7)])
def test_all_rows_at_once_are_minimized_like_each_one_alone(penalty: Penalty) -> None:
    X, Y = problem()
    W, converged, num_gradients = square_root_lasso(X, Y, 3.0, penalty, tolerance=1e-9)
    assert converged.all()
    assert num_gradients >= len(Y)
    for y, w in zip(Y, W, strict=True):
        alone = minimize_alone(X, y, 3.0, penalty)
        torch.testing.assert_close(w, alone, atol=1e-7, rtol=0)
        assert torch.equal(w == 0, alone == 0)


def test_the_penalty_is_the_lasso_by_default() -> None:
    X, Y = problem()
    assert torch.equal(square_root_lasso(X, Y, 3.0).weights, square_root_lasso(X, Y, 3.0, L1()).weights)


@pytest.mark.parametrize("nu", [0.1, 0.5, 0.9])
def test_a_non_convex_penalty_ends_at_a_stationary_point_below_its_start(nu: float) -> None:
    X, Y = problem()
    start, penalty = square_root_lasso(X, Y, 3.0).weights, Harder(nu)
    W, converged, _ = square_root_lasso(X, Y, 3.0, penalty, start=start, tolerance=1e-8)
    assert converged.all()
    for y, w, w_0 in zip(Y, W, start, strict=True):
        r, r_0 = y - X @ w, y - X @ w_0
        assert penalty.subgradient_gap(w, -X.T @ r / r.norm(), 3.0) < 3e-8 * 3
        assert r.norm() + penalty.value(w, 3.0) <= r_0.norm() + penalty.value(w_0, 3.0)


def test_the_start_is_left_as_it_was() -> None:
    X, Y = problem()
    start = torch.ones(5, 60, dtype=torch.float64)
    square_root_lasso(X, Y, 3.0, start=start)
    assert (start == 1).all()


def test_a_weight_above_the_largest_gradient_gives_zeros_and_a_row_of_zeros_is_done_at_once() -> None:
    X, Y = problem()
    Y[0] = 0
    largest = (Y[1:] @ X).abs().amax(1) / Y[1:].norm(dim=1)
    fits = square_root_lasso(X, Y, 1.001 * float(largest.max()))
    assert (fits.weights == 0).all()
    assert fits.converged.all()
    assert fits.num_gradients == len(Y)


def test_rows_that_run_out_of_iterations_are_marked() -> None:
    X, Y = problem()
    Y[2] = 0
    assert square_root_lasso(X, Y, 3.0, max_iterations=2).converged.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_type_of_the_data(dtype: torch.dtype) -> None:
    fits = square_root_lasso(*problem(dtype), 3.0, tolerance=1e-4)
    assert fits.weights.dtype == dtype
    assert fits.converged.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Y": torch.ones(40).double()}, r"shapes \[\(40, 60\), \(40,\), \(1, 60\)\]; pass"),
        ({"Y": torch.ones(2, 60).double()}, "pass .samples, features., .responses, samples."),
        ({"start": torch.zeros(2, 60).double()}, "and .responses, features."),
        ({"Y": torch.ones(1, 40)}, r"are torch\.float64, torch\.float32 and torch\.float64; pass one floating-point"),
        ({"Y": torch.full((1, 40), torch.nan).double()}, "NaN or infinite"),
        ({"X": torch.zeros(40, 60).double()}, "X is all zeros"),
        ({"happy_lambda": 0.0}, "happy_lambda=0.0 must be positive"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be positive"),
        ({"max_iterations": 0}, "max_iterations=0 must be positive"),
        ({"penalty": GroupL1()}, "GroupL1.* would group entries of different rows"),
        ({"penalty": Weighted(GroupL1(), [1.0] * 60)}, "GroupL1.* would group entries of different rows"),
    ],
)
def test_invalid_problems_are_refused(change: dict[str, object], message: str) -> None:
    X, Y = problem()
    options = {"X": X, "Y": Y[:1], "happy_lambda": 3.0, "start": torch.zeros(1, 60).double(), **change}
    with pytest.raises(ValueError, match=message):
        square_root_lasso(**options)  # type: ignore[arg-type]
