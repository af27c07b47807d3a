"""Products with the Hessian of one step's objective: against the whole Hessian, without a trace, in little memory."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD

from framework.objective.vector import flatten, unflatten
from framework.penalties import ElasticNet
from tests.modules import (
    Evaluator,
    Penalized,
    Regressor,
    Tagged,
    Token,
    evaluating,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
)


class Elastic(Penalized):
    """A module whose weights have a penalty with its own curvature."""

    penalty = ElasticNet()


class ProximalEvaluator(Evaluator):
    handles_penalty = True


def whole_hessian(module: Regressor, params: list[Tensor], loader, *, penalized: bool) -> Tensor:
    """Compute the Hessian (n, n) of the mean loss over all samples and of the penalty, with the next random draws."""
    names = {param: name for name, param in module.named_parameters()}
    draws = torch.get_rng_state()

    def objective(vector: Tensor) -> Tensor:
        torch.set_rng_state(draws)
        point = {names[param]: piece for param, piece in zip(params, unflatten(vector, params), strict=True)}
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        total, num_samples = torch.zeros(()), 0
        for X, y in loader:
            total = total + len(X) * nn.functional.mse_loss(functional_call(module, point | buffers, (X,)), y)
            num_samples += len(X)
        g = sum(module.penalty.value(point[name], 0.3) for name in point if point[name].ndim == 2) if penalized else 0
        return total / num_samples + g

    hessian = torch.autograd.functional.hessian(objective, flatten([param.detach() for param in params]))
    torch.set_rng_state(draws)
    return hessian


@pytest.mark.parametrize("accumulate", [1, 3, "epoch"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(0.5), nn.BatchNorm1d(5)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("kind", ["f", "f + g", "f of a proximal optimizer"])
def test_products_are_those_of_the_whole_hessian(tmp_path, accumulate, first, layer, kind):
    loader = make_loader(20 if accumulate == 1 else 8, shuffle=True)
    compared = []

    def ask(closure):
        params = [param for group in trainer.optimizer.param_groups for param in group["params"]]
        # A group of 3 batches is drawn before the step, an epoch at every evaluation.
        batches = loader if accumulate == "epoch" else closure._step.batches
        expected = whole_hessian(module, params, batches, penalized=kind == "f + g")
        if not first:
            closure()
        product = closure.hvp()
        vectors = torch.randn(4, len(expected), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(product(vectors), vectors @ expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(product(vectors[0]), expected @ vectors[0], rtol=1e-10, atol=1e-10)
        compared.append(closure())

    optimizer = ProximalEvaluator if "proximal" in kind else Evaluator
    regressor = Regressor if kind == "f" else Elastic
    module = regressor(lambda m: optimizer(m.param_groups(), ask), net=make_net(layer))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate)
    trainer.fit(module, loader)
    assert len(compared) == 2


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_products_leave_gradients_logs_buffers_and_random_state_as_they_were(tmp_path, accumulate):
    class Logging(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("calls", 1.0, on_epoch=True, reduce_fx="sum")
            return super().training_step(batch, batch_idx)

    def ask(closure):
        closure()
        before = [p.grad.clone() for p in module.parameters()]
        state = {name: value.clone() for name, value in module.state_dict().items()}
        rng = torch.get_rng_state()
        product = closure.hvp()
        product(torch.ones(sum(p.numel() for p in module.parameters()), dtype=torch.float64))
        assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), before, strict=True))
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)

    results = []
    for what in (ask, lambda closure: closure()):
        module = Logging(evaluating(what), net=make_net(nn.BatchNorm1d(5)))
        trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate)
        torch.manual_seed(3)
        trainer.fit(module, make_loader(shuffle=True))
        results.append((trainer.callback_metrics["calls_epoch"], module.state_dict(), torch.rand(3)))
    (calls, state, draws), (expected_calls, expected_state, expected_draws) = results
    assert calls == expected_calls == 3
    assert all(torch.equal(value, expected_state[name]) for name, value in state.items())
    assert torch.equal(draws, expected_draws)


def test_products_first_in_a_step_leave_the_logging_to_the_first_evaluation(tmp_path):
    def ask(closure):
        closure.hvp()
        return closure()

    module = Regressor(evaluating(ask))
    trainer = make_trainer(tmp_path, log_every_n_steps=1)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["train/loss"] == module.losses[-1]


@pytest.mark.parametrize(("accumulate", "passes"), [(1, 1), (2, 1), ("epoch", 3)])
def test_a_pass_over_the_batches_counts_as_an_evaluation(tmp_path, accumulate, passes):
    def ask(closure):
        product = closure.hvp()
        for _ in range(3):
            product(torch.ones(26, dtype=torch.float64))
        return closure()

    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate)
    trainer.fit(Regressor(evaluating(ask)), make_loader())
    assert trainer.closure_evaluations == (passes + 1) * trainer.global_step


def test_an_epoch_holds_the_graph_of_one_batch_at_a_time(tmp_path):
    class Counting(Regressor):
        def training_step(self, batch, batch_idx):
            loss = Tagged.apply(super().training_step(batch, batch_idx), tokens)
            graphs.append(len(tokens))
            return loss

    def ask(closure):
        closure()
        closure.hvp()(torch.ones(26, dtype=torch.float64))

    tokens: weakref.WeakSet[Token] = weakref.WeakSet()
    graphs: list[int] = []
    module = Counting(evaluating(ask))
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1).fit(module, make_loader(2))
    assert graphs == [1] * 20


def test_an_optimizer_that_did_not_declare_it_has_products_too(tmp_path):
    class Newton(SGD):
        def step(self, closure=None):
            params = [p for group in self.param_groups for p in group["params"]]
            size = sum(p.numel() for p in params)
            hessian = closure.hvp()(torch.eye(size, dtype=torch.float64))
            gradient = torch.cat([p.grad.flatten() for p in params])
            move = torch.linalg.solve(hessian, gradient)
            with torch.no_grad():
                for p, part in zip(params, move.split([p.numel() for p in params]), strict=True):
                    p.sub_(part.view_as(p))

    module = Regressor(lambda m: Newton(m.parameters(), lr=1.0), net=nn.Linear(3, 1))
    X, y = regression_data()
    make_trainer(tmp_path, max_epochs=1).fit(module, make_loader(20))
    solution = torch.linalg.lstsq(torch.cat([X, torch.ones(20, 1, dtype=X.dtype)], 1), y).solution
    torch.testing.assert_close(torch.cat([module.net.weight[0], module.net.bias]), solution[:, 0])
