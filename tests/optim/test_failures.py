"""What an optimizer does in a trainer when it meets bad values: an error or the last good point, no worse model."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from framework import Module
from framework.data import TensorLoader
from framework.optim import FISTA, ISTA, ProxAdam, SpaRSA
from framework.penalties import L1
from tests.modules import make_trainer, plain_closure

SEARCHING = [ISTA, FISTA, SpaRSA]
EVERY = [*SEARCHING, ProxAdam]


class Weights(Module):
    """Three weights, penalized; `objective(w, x)` is the loss of a batch x."""

    def __init__(self, objective, optimizer, **options):
        super().__init__()
        self.w = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
        self.objective, self.optimizer, self.options = objective, optimizer, options
        self.penalty, self.happy_lambda = L1(), 0.5

    def training_step(self, batch, batch_idx):
        return self.objective(self.w, batch[0])

    def param_groups(self):
        return [{"params": [self.w], "penalized": True}]

    def configure_optimizers(self):
        return self.optimizer(self.param_groups(), self.happy_lambda, self.penalty, **self.options)


def barrier(w, x):
    return (w - torch.log(w)).sum() * x.mean()  # NaN where a weight is negative; minimal at 1 / 1.5 with the penalty


def fit(module, root, batches=(1.0,), **options):
    loader = TensorLoader(torch.tensor(batches, dtype=torch.float64)[:, None], batch_size=1)
    trainer = make_trainer(root, **options)
    trainer.fit(module, loader)
    return trainer


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_candidates_that_are_not_finite_are_skipped(optimizer, tmp_path):
    module = Weights(barrier, optimizer, lr=100.0)
    fit(module, tmp_path, max_epochs=100)
    torch.testing.assert_close(module.w.detach(), torch.full((3,), 1 / 1.5, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_a_search_that_fails_keeps_the_point_and_says_so(optimizer, tmp_path):
    def only_here_finite(w, x):
        loss = barrier(w, x)
        return loss if (w == 2).all() else loss * math.nan

    module = Weights(only_here_finite, optimizer)
    with pytest.warns(RuntimeWarning, match="took no step: no step decreases the objective as its gradient promises"):
        trainer = fit(module, tmp_path, max_epochs=3)
    assert (module.w == 2).all()
    assert trainer.stopped_because == "max_epochs"


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_batch_with_nan_ends_a_logged_run_at_the_last_good_point(optimizer, tmp_path):
    module = Weights(barrier, optimizer, lr=0.1)
    fit(module, tmp_path, [1.0, 1.0], max_epochs=1)
    good = module.w.detach().clone()

    module = Weights(barrier, optimizer, lr=0.1)
    told = pytest.warns(RuntimeWarning, match="not finite at the current point")
    with (
        pytest.raises(ValueError, match=r"train/loss is nan at global_step 2: .*look for NaNs in the data"),
        nullcontext() if optimizer is ProxAdam else told,
    ):
        fit(module, tmp_path, [1.0, 1.0, math.nan], max_epochs=1, log_every_n_steps=1)
    assert torch.equal(module.w, good)


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_loss_with_several_numbers_is_refused(optimizer, tmp_path):
    module = Weights(lambda w, x: w - torch.log(w), optimizer)
    with pytest.raises(ValueError, match=r"training_step returned a loss of shape \(3,\); take its mean\(\)"):
        fit(module, tmp_path)
    assert (module.w == 2).all()


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_a_loss_that_fails_within_a_search_leaves_the_last_good_point(optimizer, tmp_path):
    def a_vector_elsewhere(w, x):
        return barrier(w, x) if (w == 2).all() else w - torch.log(w)

    module = Weights(a_vector_elsewhere, optimizer, lr=0.1)
    with pytest.raises((ValueError, RuntimeError), match=r"returned a loss of shape \(3,\)|only for scalar outputs"):
        fit(module, tmp_path)
    assert (module.w == 2).all()


@pytest.mark.parametrize("optimizer", SEARCHING)
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda loss: loss.repeat(3), ValueError, r"closure returned a tensor of shape \(3,\): return its sum\(\)"),
        (lambda loss: None, TypeError, "the closure returned None: end it with `return loss`"),
    ],
)
def test_a_closure_that_does_not_return_a_number_is_refused(optimizer, make, error, message):
    w = torch.full((3,), 2.0, requires_grad=True)
    built = optimizer([w], 0.5)
    closure = plain_closure(built, lambda: barrier(w, torch.ones(1)))
    with pytest.raises(error, match=message):
        built.step(lambda: make(closure()))
    assert (w == 2).all()
