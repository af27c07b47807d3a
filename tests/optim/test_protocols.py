"""How optimizers are called: groups, closures, state, and what they do when something goes wrong."""

import copy
import io
import itertools
import math

import pytest
import torch

from framework.optim import (
    FISTA,
    ISTA,
    ExhaustiveSearch,
    MinimizeWrapper,
    ProxAdam,
    RandomSearch,
    SpaRSA,
    stationarity_gap,
)
from framework.penalties import L1, Harder
from tests.modules import plain_closure

SEARCHING = [ISTA, FISTA, SpaRSA]
EVERY = [*SEARCHING, ProxAdam]


@pytest.mark.parametrize("optimizer", EVERY)
def test_groups_without_penalized_are_refused_with_the_remedy(optimizer):
    with pytest.raises(ValueError, match=r'group 0 does not say .* add "penalized": True, False'):
        optimizer([{"params": [torch.zeros(2, requires_grad=True)]}], 1.0)
    built = optimizer([torch.zeros(2, requires_grad=True)], 1.0)
    with pytest.raises(ValueError, match="group 1"):
        built.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    assert len(built.param_groups) == 1


@pytest.mark.parametrize("optimizer", EVERY)
@pytest.mark.parametrize("happy_lambda", [-1.0, math.inf, math.nan])
def test_a_weight_that_is_negative_or_not_finite_is_refused(optimizer, happy_lambda):
    w = torch.zeros(2, requires_grad=True)
    with pytest.raises(ValueError, match="happy_lambda"):
        optimizer([w], happy_lambda)
    with pytest.raises(ValueError, match="happy_lambda"):
        optimizer([{"params": [w], "penalized": True, "happy_lambda": happy_lambda}], 1.0)


@pytest.mark.parametrize("penalized", [torch.ones(3, dtype=torch.bool), torch.ones(2), "yes", 1])
def test_a_mask_that_does_not_fit_is_refused(penalized):
    with pytest.raises(ValueError, match="penalized"):
        SpaRSA([{"params": [torch.zeros(2, requires_grad=True)], "penalized": penalized}], 1.0)


def test_what_the_trainer_reads_from_the_classes():
    assert all(optimizer.handles_penalty for optimizer in EVERY)
    assert [optimizer.reevaluates for optimizer in EVERY] == [True, True, True, False]
    assert [optimizer.expects_gradients for optimizer in EVERY] == [False, False, False, True]
    assert not any(o.expects_gradients for o in (MinimizeWrapper, RandomSearch, ExhaustiveSearch))


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(optimizer, linear):
    def make(problem):
        mask = torch.arange(60) > 2
        groups = [{"params": [problem.w], "penalized": mask}, {"params": [problem.b], "penalized": False}]
        return optimizer(groups, 3.0, L1())

    whole, first, second = linear(), linear(), linear()
    uninterrupted, interrupted = make(whole), make(first)
    for _ in range(12):
        uninterrupted.step(whole)
    for _ in range(5):
        interrupted.step(first)
    file = io.BytesIO()
    torch.save({"optimizer": interrupted.state_dict(), "w": first.w.detach(), "b": first.b.detach()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    with torch.no_grad():
        second.w.copy_(saved["w"])
        second.b.copy_(saved["b"])
    resumed = make(second)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(7):
        resumed.step(second)
    torch.testing.assert_close(second.w, whole.w, rtol=0, atol=0)
    torch.testing.assert_close(second.b, whole.b, rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_copy_keeps_its_penalty(optimizer):
    built = optimizer([torch.zeros(2, requires_grad=True)], 1.0, Harder(0.3))
    assert copy.deepcopy(built).penalty == Harder(0.3)


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_candidates_that_are_not_finite_are_skipped(optimizer):
    w = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    built = optimizer([{"params": [w], "penalized": True}], 0.5, lr=100.0)
    closure = plain_closure(built, lambda: (w - torch.log(w)).sum())  # nan beyond 0, where a long step ends
    for _ in range(100):
        assert math.isfinite(built.step(closure))
    torch.testing.assert_close(w.detach(), torch.full((3,), 1 / 1.5, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_a_failed_search_restores_the_point_and_says_so(optimizer, linear):
    problem = linear()
    built = optimizer([problem.w, problem.b], 1.0)
    for _ in range(3):
        value = built.step(problem)
    w = problem.w.detach().clone()

    def broken():
        """Its gradient is right, but its value is nan wherever the point is not w."""
        loss = problem()
        return loss if torch.equal(problem.w, w) else loss * math.nan

    if optimizer is FISTA:
        built.search_state["theta"] = 1.0
    with pytest.warns(RuntimeWarning, match="took no step"):
        assert built.step(broken) == pytest.approx(value)
    assert torch.equal(problem.w, w)


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_nothing_moves_from_a_point_that_is_not_finite(optimizer, linear):
    problem = linear()
    built = optimizer([problem.w], 1.0)
    with pytest.warns(RuntimeWarning, match="not finite"):
        built.step(lambda: problem() * math.nan)
    assert torch.equal(problem.w, torch.zeros_like(problem.w))


@pytest.mark.parametrize("optimizer", SEARCHING)
def test_an_error_in_the_closure_leaves_the_accepted_point(optimizer, linear):
    problem = linear()
    built = optimizer([problem.w, problem.b], 1.0)
    for _ in range(3):
        built.step(problem)
    w, calls = problem.w.detach().clone(), []

    def interrupted():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return problem()

    with pytest.raises(KeyboardInterrupt):
        built.step(interrupted)
    assert torch.equal(problem.w, w)


@pytest.mark.parametrize("optimizer", EVERY)
def test_parameters_without_a_gradient_are_left_alone(optimizer, linear):
    problem = linear()
    unused = torch.ones(4, dtype=torch.float64, requires_grad=True)
    frozen = torch.ones(4, dtype=torch.float64)
    built = optimizer([unused, problem.w, frozen], 1.0)
    for _ in range(5):
        built.step(problem)
    assert torch.equal(unused.detach(), torch.ones(4, dtype=torch.float64))
    assert torch.equal(frozen, torch.ones(4, dtype=torch.float64))
    assert problem.w.detach().abs().sum() > 0


@pytest.mark.parametrize("optimizer", EVERY)
def test_a_closure_inside_no_grad_still_gets_gradients(optimizer, linear):
    problem = linear()
    with torch.no_grad():
        optimizer([problem.w], 1.0).step(problem)
    assert problem.w.detach().abs().sum() > 0


@pytest.mark.parametrize("optimizer", EVERY)
def test_storage_is_updated_in_place(optimizer, linear):
    problem = linear()
    pointer, version = problem.w.data_ptr(), problem.w._version
    optimizer([problem.w], 1.0).step(problem)
    assert problem.w.data_ptr() == pointer
    assert problem.w._version > version


# --- ISTA with the closure that returns the total objective and computes no gradient ---------------------------------


def total_objective_loop(problem, lam, num_steps, pass_initial_loss):
    """The seed's loop: the caller computes the gradients, the closure returns f + g as a number."""
    optimizer = ISTA([problem.w], lam)

    def closure():
        with torch.no_grad():
            return (problem.loss() + lam * problem.w.abs().sum()).item()

    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = problem.loss()
        penalty = lam * problem.w.abs().sum()
        loss.backward()
        returned = optimizer.step(closure, (loss + penalty).item()) if pass_initial_loss else optimizer.step(closure)
        assert returned == pytest.approx(closure(), rel=1e-12)
    return problem.w.detach()


@pytest.mark.parametrize("pass_initial_loss", [True, False])
def test_ista_takes_the_same_steps_under_both_protocols(pass_initial_loss, linear):
    reference, other = linear(), linear()
    lam = 0.05 * reference.lambda_max
    reference.b.requires_grad_(False)
    other.b.requires_grad_(False)
    optimizer = ISTA([reference.w], lam)
    for _ in range(60):
        optimizer.step(reference)
    w = total_objective_loop(other, lam, 60, pass_initial_loss)
    torch.testing.assert_close(w, reference.w.detach(), rtol=1e-9, atol=1e-9)


def test_ista_recognizes_a_closure_that_returns_a_number_but_computes_gradients(linear):
    problem, other = linear(), linear()
    for each in (problem, other):
        each.b.requires_grad_(False)
    built = ISTA([problem.w], 5.0), ISTA([other.w], 5.0)
    for _ in range(20):
        built[0].step(lambda: problem().item())
        built[1].step(other)
    torch.testing.assert_close(problem.w, other.w, rtol=0, atol=0)


def test_the_seeds_network_listing_descends_to_an_exactly_sparse_first_layer():
    x, y = torch.randn(30, 20), torch.randn(30, 10)
    net = torch.nn.Sequential(torch.nn.Linear(20, 5), torch.nn.Tanh(), torch.nn.Linear(5, 10))
    groups = [
        {"params": list(net[0].parameters()), "penalized": True},
        {"params": list(net[2].parameters()), "penalized": False},
    ]
    optimizer = ISTA(groups, 0.3)

    def objective():
        loss = (net(x) - y).norm()
        return loss, 0.3 * sum(p.abs().sum() for p in net[0].parameters())

    def closure():
        with torch.no_grad():
            return sum(objective()).item()

    values = [closure()]
    for _ in range(100):
        optimizer.zero_grad()
        loss, penalty = objective()
        loss.backward()
        optimizer.step(closure, (loss + penalty).item())
        values.append(closure())
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(values))
    assert values[-1] < 0.9 * values[0]
    assert (net[0].weight == 0).any()


def test_the_stationarity_gap_takes_groups_or_an_optimizer(linear):
    problem = linear()
    groups = [{"params": [problem.w], "penalized": True, "happy_lambda": 1.5 * problem.lambda_max}]
    problem()
    assert float(stationarity_gap(groups, L1())) == 0
    optimizer = SpaRSA([{"params": [problem.w], "penalized": False}], 1.0)
    assert float(stationarity_gap(optimizer)) == pytest.approx(float(problem.w.grad.abs().max()))
