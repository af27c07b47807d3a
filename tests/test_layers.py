"""sigma against its formula in both tails, the linear layer with unit rows, and the one for compressed rows."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.linear_model import Lasso
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from framework import Module, Trainer
from framework.callbacks import Stationarity
from framework.layers import CSRLinear, NormalizedLinear, Sigma, sigma
from framework.optim import SpaRSA
from framework.penalties import L1


def reference(x: float) -> float:
    return x if x > -0.5 else (math.log1p(math.exp(20 * (1 + x))) - math.log1p(math.exp(20))) / 20


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 2e-7)])
def test_sigma_is_its_formula(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-8, 5, 1001, dtype=dtype)
    expected = torch.tensor([reference(v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(sigma(x).double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(Sigma()(x), sigma(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_sigma_has_the_derivative_of_its_formula(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-4, 4, 801, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(sigma(x).sum(), x)
    x64 = x.detach().double()
    expected = torch.where(x64 > -0.5, 1.0, torch.sigmoid(20 * (1 + x64)))
    torch.testing.assert_close(slope.double(), expected, rtol=tolerance, atol=1e-30)


def test_sigma_passes_gradcheck_away_from_the_joint() -> None:
    x = torch.tensor([-3.0, -1.2, -1.0, -0.7, -0.4, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(sigma, x)
    assert gradgradcheck(sigma, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sigma_and_its_slope_are_finite_far_from_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([-1e30, -1e4, -100.0, 100.0, 1e4, 1e30], dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(sigma(x).sum(), x)
    assert slope.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(sigma(x)[:3], torch.full((3,), -1.0, dtype=dtype))
    assert torch.equal(sigma(x)[3:], x[3:])
    assert sigma(torch.tensor(float("nan"))).isnan()


def test_rows_of_the_effective_weight_have_norm_one() -> None:
    layer = NormalizedLinear(5, 10, dtype=torch.float64)
    torch.testing.assert_close(layer.normalized_weight.norm(dim=1), torch.ones(10, dtype=torch.float64))
    x = torch.randn(7, 5, dtype=torch.float64)
    rows = torch.stack([row / row.norm() for row in layer.weight])
    torch.testing.assert_close(layer(x), x @ rows.T + layer.bias)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(torch.rand(10, 1, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(layer(x), before)


def test_the_layer_passes_gradcheck_and_its_gradient_is_orthogonal_to_the_rows() -> None:
    layer = NormalizedLinear(4, 3, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)

    def output(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (x,))

    assert gradcheck(output, layer.weight)
    assert gradgradcheck(output, layer.weight)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad * layer.weight).sum(1).abs().max() < 1e-12


def test_a_zero_row_gives_zeros_and_a_gradient_to_leave_them() -> None:
    layer = NormalizedLinear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0
    x = torch.randn(6, 4)
    output = layer(x)
    assert (output[:, 1] == 0).all()
    (gradient,) = torch.autograd.grad(output.sum(), layer.weight, create_graph=True)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[1], x.sum(0))
    (hessian_product,) = torch.autograd.grad((gradient * torch.ones_like(gradient)).sum(), layer.weight)
    assert hessian_product.isfinite().all()


def test_the_state_dict_is_the_one_of_a_linear_layer() -> None:
    layer = NormalizedLinear(5, 10)
    assert isinstance(layer, torch.nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert NormalizedLinear(5, 10, False).bias is None


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_for_compressed_rows_is_a_linear_layer(bias):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(30, 50, dtype=torch.float64, generator=generator)
    dense[dense < 0.5] = 0
    layer, linear = CSRLinear(50, 3, bias=bias).double(), nn.Linear(50, 3, bias=bias).double()
    linear.load_state_dict(layer.state_dict())
    rows = dense.to_sparse_csr()
    for x, plain in ((rows, dense), (rows, dense), (dense, dense), (2 * rows, 2 * dense)):
        layer.zero_grad(), linear.zero_grad()
        output, expected = layer(x), linear(plain)
        torch.testing.assert_close(output, expected)
        output.square().sum().backward(), expected.square().sum().backward()
        for ours, theirs in zip(layer.parameters(), linear.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    layer(rows)
    rows.values().mul_(3)  # in place: the transpose that is kept is no longer its
    layer.zero_grad()
    layer(rows).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 3 * dense.sum(0).expand(3, 50))
    assert len(pickle.dumps(layer)) < len(pickle.dumps(linear)) + 500
    with torch.inference_mode():  # in which batches are made while a trainer predicts
        torch.testing.assert_close(layer(dense.to_sparse_csr()), linear(dense))


def test_a_lasso_on_a_scipy_matrix_is_scikit_learns():
    matrix = scipy.sparse.random(200, 1000, density=0.02, format="csr", random_state=0)
    y = matrix[:, :5].sum(1) + 0.1 * np.random.default_rng(0).standard_normal((200, 1))
    weight = 0.05 * abs(matrix.T @ y).max() / 200
    reference = Lasso(weight, fit_intercept=False, tol=1e-12, max_iter=10**6).fit(matrix, np.asarray(y)[:, 0]).coef_
    X = torch.sparse_csr_tensor(
        *(torch.from_numpy(part).long() for part in (matrix.indptr, matrix.indices)),
        torch.from_numpy(matrix.data),
        matrix.shape,
        check_invariants=True,
    )

    class Model(Module):
        penalty, happy_lambda = L1(), weight

        def __init__(self):
            super().__init__()
            self.layer = CSRLinear(1000, 1, bias=False).double()

        def param_groups(self):
            return [{"params": [self.layer.weight], "penalized": True}]

        def training_step(self, batch, batch_idx):
            x, target = batch
            return (self.layer(x) - target).square().mean() / 2

        def configure_optimizers(self):
            return SpaRSA(self.param_groups())

    model = Model()
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=500, callbacks=[Stationarity(1e-10)], logger=False, **options)
    trainer.fit(model, [(X, torch.from_numpy(np.asarray(y)))])
    assert "stationarity" in trainer.stopped_because
    assert model.layer.weight[0].detach().numpy() == pytest.approx(reference, abs=1e-7)
