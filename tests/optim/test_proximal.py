"""One source of the penalty and its weight: the optimizer's own, or the module's if it was made without them."""

from functools import partial

import pytest
import torch
from torch import nn

from framework import Module
from framework.data import TensorLoader
from framework.optim import FISTA, ISTA, ProxAdam, SpaRSA, stationarity_gap
from framework.penalties import L1, Harder
from tests.modules import assert_same, callback_of, make_trainer

EVERY = [ISTA, FISTA, SpaRSA, ProxAdam]


class Lasso(Module):
    """Least squares over penalized weights and an intercept that is not; `make(groups)` is the optimizer."""

    def __init__(self, make, penalty=None, happy_lambda=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Linear(6, 1).double()
        self.make, self.penalty, self.happy_lambda = make, penalty, happy_lambda

    def training_step(self, batch, batch_idx):
        X, y = batch
        return (self.net(X) - y).square().sum() / 2

    def param_groups(self):
        return [
            {"params": [self.net.weight], "penalized": True},
            {"params": [self.net.bias], "penalized": False},
        ]

    def configure_optimizers(self):
        return self.make(self.param_groups())


def fit(module, root, **options):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    y = X[:, :1] - 2 * X[:, 1:2] + 0.3 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    make_trainer(root, **{"max_epochs": 8, **options}).fit(module, TensorLoader(X, y, batch_size=30))
    return module


@pytest.mark.parametrize("optimizer", EVERY)
@pytest.mark.parametrize("given", [(), (3.0,), (None, Harder())])
def test_an_optimizer_takes_from_the_module_what_it_was_not_given(optimizer, given, tmp_path):
    adopting = fit(Lasso(lambda groups: optimizer(groups, *given), Harder(), 3.0), tmp_path)
    explicit = fit(Lasso(lambda groups: optimizer(groups, 3.0, Harder()), Harder(), 3.0), tmp_path)
    unpenalized = fit(Lasso(lambda groups: optimizer(groups, 0.0)), tmp_path)
    assert_same(adopting, explicit)
    assert not torch.equal(adopting.net.weight, unpenalized.net.weight)


@pytest.mark.parametrize("optimizer", EVERY)
def test_if_the_module_has_no_penalty_the_optimizers_is_the_source(optimizer, tmp_path):
    own = fit(Lasso(lambda groups: optimizer(groups, 3.0)), tmp_path)
    assert_same(own, fit(Lasso(lambda groups: optimizer(groups, 3.0, L1()), L1(), 3.0), tmp_path))


def test_a_group_keeps_the_weight_that_it_declares(tmp_path):
    class Own(Lasso):
        def param_groups(self):
            first, second = super().param_groups()
            return [{**first, "happy_lambda": 5.0}, second]

    own = fit(Own(SpaRSA, L1(), 3.0), tmp_path)
    assert_same(own, fit(Lasso(SpaRSA, L1(), 5.0), tmp_path))


def test_an_optimizer_that_penalizes_other_parameters_than_the_module_says_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"param_groups\(\) of the module penalize different parameters"):
        fit(Lasso(lambda groups: SpaRSA([*groups[0]["params"], *groups[1]["params"]]), L1(), 3.0), tmp_path)


def test_one_group_of_parameters_with_different_weights_is_refused(tmp_path):
    class Two(Lasso):
        def param_groups(self):
            groups = super().param_groups()
            return [{**group, "penalized": True, "happy_lambda": float(i)} for i, group in enumerate(groups, 1)]

    with pytest.raises(ValueError, match=r"joins parameters that the module gives different weights: \['1.0', '2.0'\]"):
        fit(Two(lambda groups: SpaRSA([*groups[0]["params"], *groups[1]["params"]]), L1()), tmp_path)


@pytest.mark.parametrize("optimizer", [SpaRSA, FISTA, partial(ProxAdam, lr=0.05)])
def test_a_weight_changed_on_the_module_during_the_run_takes_effect(optimizer, tmp_path):
    def change(trainer, module):
        module.happy_lambda = 1e3 if trainer.current_epoch >= 2 else 0.1

    module = Lasso(optimizer, L1(), 0.1)
    fit(module, tmp_path, max_epochs=100, callbacks=callback_of(on_train_epoch_start=change))
    assert module.net.weight.count_nonzero() == 0


@pytest.mark.parametrize(
    ("make", "penalty", "happy_lambda", "message"),
    [
        (lambda groups: SpaRSA(groups, 2.0), L1(), 3.0, "=2.0, but the module has 3.0: there must be one source"),
        (lambda groups: ProxAdam(groups, 3.0, L1()), Harder(), 3.0, r"penalty L1\(\), but the module has Harder"),
        (FISTA, None, 3.0, "group 0 of FISTA is penalized, but neither FISTA nor the module gives a weight"),
    ],
)
def test_contradicting_sources_and_a_missing_source_are_refused(make, penalty, happy_lambda, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(Lasso(make, penalty, happy_lambda), tmp_path)


@pytest.mark.parametrize("optimizer", EVERY)
def test_outside_a_trainer_an_optimizer_without_a_weight_refuses_its_first_step(optimizer, linear):
    problem = linear()
    built = optimizer([problem.b, problem.w])
    with pytest.raises(ValueError, match="penalized parameter group has no happy_lambda"):
        built.step(problem)
    assert not problem.w.any()
    assert not problem.b.any()
    unpenalized = optimizer([{"params": [problem.w, problem.b], "penalized": False}])
    unpenalized.step(problem)
    assert problem.w.any()


def test_the_gap_of_an_optimizer_is_that_under_the_penalty_it_took_from_the_module(tmp_path):
    module = Lasso(SpaRSA, Harder(), 3.0)
    trainer = make_trainer(tmp_path, max_epochs=1)
    X, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    trainer.fit(module, TensorLoader(X, y, batch_size=30))
    module.training_step((X, y), 0).backward()
    expected = stationarity_gap(module.param_groups(), Harder(), 3.0)
    assert stationarity_gap(trainer.optimizer) == expected
    assert expected != stationarity_gap(module.param_groups(), L1(), 3.0)


def test_a_gap_without_gradients_is_refused():
    with pytest.raises(ValueError, match="no parameter has a gradient"):
        stationarity_gap([{"params": [torch.zeros(2, requires_grad=True)], "penalized": True}], L1(), 1.0)
