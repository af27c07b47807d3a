"""Proximal Adam on a stack: against `ProxAdam` on each network, against a loop by hand, and in chunks."""

import math

import pytest
import torch
from torch import Tensor

from framework.optim import ProxAdam
from framework.penalties import L1, Harder
from framework.stacks import AdamStage, SparseNetworks, network_path, prox_adam
from tests.stacks.test_stack_networks import LAM_B, make

STAGES = (AdamStage(0.0, 5, 0.1), AdamStage(0.3, 8, 0.05), AdamStage(1.0, 12, 0.05, 1e-3))


def flat(network: torch.nn.Sequential) -> Tensor:
    weight, bias, output, intercept = (parameter.detach() for parameter in network.parameters())
    return torch.cat([torch.cat([weight, bias[:, None]], 1).flatten(), output[0], intercept])


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
def test_with_the_lasso_it_does_what_prox_adam_does_to_each_network(activation):
    networks, X, Y = make(activation)
    ends = prox_adam(networks, X, Y, LAM_B, L1(), STAGES)
    for row, lam in enumerate(LAM_B.tolist()):
        network = networks.network(row)
        for stage in STAGES:
            first, *rest = network.parameters()
            optimizer = ProxAdam(
                [{"params": [first], "penalized": True}, {"params": rest, "penalized": False}],
                happy_lambda=stage.share * lam,
                penalty=L1(),
            )

            def closure(network=network, optimizer=optimizer, y=Y[row]):
                optimizer.zero_grad()
                loss = torch.linalg.vector_norm(network(X)[:, 0] - y)
                loss.backward()
                return loss

            for lr in stage.learning_rates():
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step(closure)
        torch.testing.assert_close(ends.parameters[row], flat(network), rtol=0, atol=1e-7)


def test_with_the_harder_penalty_it_majorizes_at_the_current_point():
    networks, X, Y = make("ReLU")
    (end,) = prox_adam(networks[:1], X, Y[:1], 2.0, Harder(0.3), [AdamStage(0.5, 10, 0.05)]).parameters
    network = networks.network(0)
    averages = [(torch.zeros_like(p), torch.zeros_like(p)) for p in network.parameters()]
    for step in range(1, 11):
        loss = torch.linalg.vector_norm(network(X)[:, 0] - Y[0])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        for index, (w, g, (m, v)) in enumerate(zip(network.parameters(), gradients, averages, strict=True)):
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            D = (v / (1 - 0.999**step)).sqrt() + 1e-8
            moved = w.detach() - 0.05 * m / (1 - 0.9**step) / D
            if index == 0:
                q = w.detach().abs() ** 0.7
                t = 0.05 * 0.5 * 2.0 * (1 + 0.3 * q) / (1 + q) ** 2 / D
                moved = moved.sign() * (moved.abs() - t).clamp_min(0)
            w.data = moved
    torch.testing.assert_close(end, flat(network), rtol=0, atol=1e-9)


def test_neither_chunks_nor_company_change_a_fit():
    networks, X, Y = make("Sigma")
    before = networks.parameters.clone()
    together = prox_adam(networks, X, Y, LAM_B, stages=STAGES)
    assert torch.equal(networks.parameters, before)
    for size in (1, 2):
        parts = prox_adam(networks, X, Y, LAM_B, stages=STAGES, chunk_size=size)
        torch.testing.assert_close(parts.parameters, together.parameters, rtol=0, atol=1e-10)
    alone = prox_adam(networks[2:3], X, Y[2:3], 2.0, stages=STAGES)
    torch.testing.assert_close(alone.parameters[0], together.parameters[2], rtol=0, atol=1e-10)


def test_a_heavy_penalty_leaves_exact_zeros_and_no_penalty_none():
    networks, X, Y = make("ReLU")
    assert not prox_adam(networks, X, Y, 100.0, stages=[AdamStage(1.0, 150, 0.05)]).selected().any()
    free = prox_adam(networks, X, Y, 0.0, stages=[AdamStage(1.0, 20)])
    assert (free.weight[0] != 0).all()


def test_the_default_path_grows_to_the_full_weight_and_its_rate_falls():
    path = network_path()
    assert [stage.share for stage in path] == sorted(stage.share for stage in path)
    assert (path[0].share, path[1].share, path[-1].share) == (0, pytest.approx(1 / (1 + math.exp(4))), 1)
    assert sum(stage.num_steps for stage in path) == 2900
    rates = list(path[-1].learning_rates())
    assert (len(rates), rates[-1]) == (700, pytest.approx(1e-4))
    assert rates == sorted(rates, reverse=True)
    assert set(path[1].learning_rates()) == {0.05}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": -0.1, "num_steps": 1}, "share=-0.1 of the full weight; it must be a finite number >= 0"),
        ({"share": 1.0, "num_steps": 0}, "num_steps=0 must be positive"),
        ({"share": 1.0, "num_steps": 1, "lr": 0.0}, "lr=0.0 must be positive"),
        ({"share": 1.0, "num_steps": 1, "final_lr": 0.1}, "final_lr=0.1; pass a number from 0 to lr=0.05, or None"),
    ],
)
def test_stages_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdamStage(**options)


def test_arguments_that_do_not_fit_are_refused():
    networks, X, Y = make("ReLU")
    with pytest.raises(ValueError, match="chunk_size=0 must be positive"):
        prox_adam(networks, X, Y, 1.0, chunk_size=0)
    with pytest.raises(ValueError, match="one response for each network"):
        prox_adam(networks, X, Y[1:], 1.0)
    with pytest.raises(ValueError, match=r"float64.*float32"):
        prox_adam(SparseNetworks.random(5, 7, 4), X, Y, 1.0)
