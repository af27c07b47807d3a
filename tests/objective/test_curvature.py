"""Hessian-vector products of what a closure evaluates, against torch.autograd.functional.hessian."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from framework.objective.curvature import hessian, hessian_vector_product
from framework.objective.vector import flatten, unflatten
from framework.optim import MinimizeWrapper
from tests.modules import Regressor, Tagged, Token, make_loader, make_trainer, plain_closure


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    return model, torch.randn(12, 4, dtype=dtype), torch.randint(3, (12,))


def reference_hessian(model: nn.Module, data: Tensor, target: Tensor) -> Tensor:
    params = dict(model.named_parameters())

    def loss(vector: Tensor) -> Tensor:
        values = dict(zip(params, unflatten(vector, list(params.values())), strict=True))
        return F.cross_entropy(functional_call(model, values, (data,)), target)

    return torch.autograd.functional.hessian(loss, flatten([p.detach() for p in params.values()]))


def backward_closure(model: nn.Module, data: Tensor, target: Tensor):
    return plain_closure(model, lambda: F.cross_entropy(model(data), target))


def in_micro_batches(model: nn.Module, data: Tensor, target: Tensor):
    def closure() -> Tensor:
        model.zero_grad()
        total = torch.zeros((), dtype=data.dtype)
        for part in torch.arange(len(data)).split(5):
            loss = F.cross_entropy(model(data[part]), target[part]) * len(part) / len(data)
            torch.autograd.backward(loss)
            total += loss.detach()
        return total

    return closure


def loss_only(model: nn.Module, data: Tensor, target: Tensor):
    return lambda: F.cross_entropy(model(data), target)


@pytest.mark.parametrize("make_closure", [backward_closure, in_micro_batches, loss_only])
def test_products_are_those_of_the_hessian(make_closure):
    model, data, target = problem()
    expected = reference_hessian(model, data, target)
    product = hessian_vector_product(make_closure(model, data, target), list(model.parameters()))
    vectors = torch.randn(7, len(expected), dtype=torch.float64)
    torch.testing.assert_close(product(vectors[0]), expected @ vectors[0])
    torch.testing.assert_close(product(vectors), vectors @ expected)
    torch.testing.assert_close(hessian(product, len(expected), chunk_size=16), expected)
    torch.testing.assert_close(torch.as_tensor(product.value), F.cross_entropy(model(data), target).detach())


def test_products_accept_and_return_float64_for_a_float32_model():
    model, data, target = problem(torch.float32)
    product = hessian_vector_product(backward_closure(model, data, target), list(model.parameters()))
    vector = torch.randn(43, dtype=torch.float64)
    assert product(vector).dtype == torch.float64
    torch.testing.assert_close(
        product(vector), reference_hessian(model, data, target).double() @ vector, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("make_closure", [backward_closure, in_micro_batches])
def test_gradients_are_those_of_the_closure_and_hold_no_graph(make_closure):
    model, data, target = problem()
    closure = make_closure(model, data, target)
    closure()
    expected = [param.grad.clone() for param in model.parameters()]
    hessian_vector_product(closure, list(model.parameters()))
    for param, gradient in zip(model.parameters(), expected, strict=True):
        assert not param.grad.requires_grad
        torch.testing.assert_close(param.grad, gradient, rtol=1e-14, atol=1e-16)


def test_clipping_the_gradients_in_place_leaves_the_products_alone():
    model, data, target = problem()
    expected = reference_hessian(model, data, target)
    product = hessian_vector_product(backward_closure(model, data, target), list(model.parameters()))
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    torch.testing.assert_close(hessian(product, len(expected)), expected)


def test_the_graph_is_freed_with_the_product_without_garbage_collection():
    model, data, target = problem()
    tokens: weakref.WeakSet[Token] = weakref.WeakSet()
    tagged = Tagged.apply

    def closure() -> Tensor:
        loss = F.cross_entropy(tagged(model(data), tokens), target)
        loss.backward()
        return loss

    gc.collect()
    gc.disable()
    try:
        product = hessian_vector_product(closure, list(model.parameters()))
        product(torch.ones(43, dtype=torch.float64))
        assert len(tokens) == 1
        del product
        assert len(tokens) == 0
    finally:
        gc.enable()


def test_parameters_without_curvature_have_zero_rows():
    used, linear, unused = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))

    def closure() -> Tensor:
        loss = (used**2).sum() + 3 * linear.sum()
        loss.backward()
        return loss

    product = hessian_vector_product(closure, [used, linear, unused])
    assert product(torch.ones(6, dtype=torch.float64)).tolist() == [2.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    assert linear.grad.tolist() == [3.0, 3.0]
    assert unused.grad is None
    line = hessian_vector_product(lambda: 3 * linear.sum(), [linear])
    assert line(torch.ones(2, 2)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_loss_without_the_parameters_is_refused():
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="no gradient reached a parameter"):
        hessian_vector_product(lambda: torch.tensor(1.0), [param])


@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_attention_has_curvature(layer):
    torch.manual_seed(0)
    model = layer(4, 2, 5, dropout=0.0, batch_first=True).double()
    data, target = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    inputs = (data,) if layer is nn.TransformerEncoderLayer else (data, data)

    def gradient(vector: Tensor) -> Tensor:
        params = dict(model.named_parameters())
        point = dict(zip(params, unflatten(vector, list(params.values())), strict=True))
        with torch.enable_grad():
            leaf = {name: value.clone().requires_grad_() for name, value in point.items()}
            loss = F.mse_loss(functional_call(model, leaf, inputs), target)
            return flatten(torch.autograd.grad(loss, list(leaf.values())))

    start = flatten([p.detach() for p in model.parameters()])
    direction = torch.randn(len(start), dtype=torch.float64) / len(start) ** 0.5
    differences = (gradient(start + 1e-5 * direction) - gradient(start - 1e-5 * direction)) / 2e-5

    closure = plain_closure(model, lambda: F.mse_loss(model(*inputs), target))
    product = hessian_vector_product(closure, list(model.parameters()))
    torch.testing.assert_close(product(direction), differences, rtol=1e-5, atol=1e-7)


def test_an_operation_without_a_second_derivative_is_named_with_what_to_do():
    param = nn.Parameter(torch.rand(1, 1, 4, dtype=torch.float64))

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**2

        @staticmethod
        def backward(ctx, gradient):
            class Never(torch.autograd.Function):
                @staticmethod
                def forward(ctx, gradient):
                    return gradient * 2

                @staticmethod
                def backward(ctx, gradient):
                    raise NotImplementedError("derivative for once_backward is not implemented")

            return Never.apply(gradient)

    product = hessian_vector_product(lambda: (Once.apply(param) * param).sum(), [param])
    with pytest.raises(RuntimeError, match=r"no second derivative: .*L-BFGS-B"):
        product(torch.ones(4, dtype=torch.float64))


def test_a_module_with_attention_is_minimized_by_a_method_with_curvature(tmp_path):
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.out = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True), nn.Linear(4, 1)

        def forward(self, X: Tensor) -> Tensor:
            return self.out(self.encoder(X[:, :, None] * torch.ones(4, dtype=X.dtype)).mean(1))

    torch.manual_seed(0)
    options = {"method": "trust-ncg", "options": {"maxiter": 5}}
    module = Regressor(lambda m: MinimizeWrapper(m.parameters(), options), net=Attention())
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1).fit(module, make_loader())
    assert module.losses[-1] < 0.9 * module.losses[0]
