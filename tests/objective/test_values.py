"""The objective of one step at several points at once: as at one point at a time, even if `vmap` fails."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from framework.losses import PenalizedL2Loss
from framework.optim import ExhaustiveSearch, RandomSearch
from framework.penalties import L1
from tests.modules import Evaluator, Regressor, assert_close, assert_unchanged, make_loader, make_net, make_trainer


class Silent(Regressor):
    """A module that keeps nothing of its evaluations but their number."""

    calls = 0

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return self.loss(batch)


class Penalized(Silent):
    penalty = L1()
    happy_lambda = 0.3

    def param_groups(self):
        return [{"params": list(self.parameters()), "penalized": True}]


class HoldsParameters(Silent):
    """A module whose loss reads the parameters from its own list."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.criterion = PenalizedL2Loss(list(self.net.parameters()), 0.3)

    def training_step(self, batch, batch_idx):
        self.calls += 1
        return self.criterion(self.net(batch[0]), batch[1])


class Reading(Silent):
    """A module that calls `item()` in every evaluation."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        assert loss.item() > 0
        return loss


def ask(closure):
    """Compare the values at five points with those at one point at a time."""
    params = [param for group in closure.objective.optimizer.param_groups for param in group["params"]]
    start = [param.clone() for param in params]
    generator = torch.Generator().manual_seed(0)
    points = [p + torch.randn(5, *p.shape, dtype=p.dtype, generator=generator) for p in params]
    expected = []
    for index in range(5):
        for param, stack in zip(params, points, strict=True):
            param.copy_(stack[index])
        expected.append(closure.value())
    for param, value in zip(params, start, strict=True):
        param.copy_(value)
    closure()
    gradients = [param.grad.clone() for param in params]
    state, draws = torch.get_rng_state(), closure.evaluations

    values = closure.values(points)
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-12, atol=0)
    assert closure.evaluations == draws + 5
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(param.grad, gradient) for param, gradient in zip(params, gradients, strict=True))
    for param, value in zip(params, start, strict=True):
        param.copy_(value)


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
@pytest.mark.parametrize(
    ("kind", "layer", "at_once"),
    [
        (Silent, nn.Identity, True),
        (Silent, lambda: nn.Dropout(0.5), True),
        (Silent, lambda: nn.LayerNorm(5), True),
        (Silent, lambda: nn.BatchNorm1d(5), False),
        (Penalized, nn.Identity, True),
        (HoldsParameters, nn.Identity, True),
        (Reading, nn.Identity, False),
    ],
    ids=["plain", "dropout", "layer norm", "batch norm", "penalty", "holds parameters", "reads a number"],
)
def test_values_are_those_at_one_point_at_a_time(tmp_path, accumulate, kind, layer, at_once):
    module = kind(lambda m: Evaluator(m.param_groups(), ask), net=make_net(layer()))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=1)
    message = rf"{kind.__name__} is evaluated at one point after the other, because .* at once: .*(Batch norm|vmap)"
    told = pytest.warns(RuntimeWarning, match=message)
    with nullcontext() if at_once else told as seen:
        trainer.fit(module, make_loader(shuffle=True))
    if at_once:
        assert module.calls == 3 * 7  # three batches: five points, the gradients, and all points at once
    else:
        assert len(seen) == 1


@pytest.mark.parametrize("search", [RandomSearch, ExhaustiveSearch])
def test_a_search_takes_the_same_path_at_once_as_one_at_a_time(tmp_path, search):
    def optimize(module: Regressor) -> torch.optim.Optimizer:
        options = {"candidates": 8, "seed": 1} if search is RandomSearch else {}
        return search(module.param_groups(), 0.1, **options)

    modules = [Silent(optimize), Reading(optimize)]
    for module in modules:
        with pytest.warns(RuntimeWarning, match="one point after the other") if module is modules[1] else nullcontext():
            make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=5).fit(module, make_loader())
    assert_close(*modules, 1e-12)
    assert modules[0].calls < modules[1].calls / 2


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_an_error_raised_by_the_module_propagates(tmp_path, error):
    class Broken(Silent):
        def loss(self, batch):
            if self.calls > 1:
                raise error("out of luck")
            return super().loss(batch)

    module = Broken(lambda m: RandomSearch(m.param_groups(), candidates=4))
    with assert_unchanged(module), pytest.raises(error, match="out of luck"):
        make_trainer(tmp_path).fit(module, make_loader(20))
