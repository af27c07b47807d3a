"""A stack computes what its networks compute one by one, and its gradients are those of autograd."""

import pytest
import torch
from torch import Tensor

from framework.penalties import L1, GroupL1, Harder, Penalty
from framework.stacks import SparseNetworks, gaps, objectives
from framework.stacks.networks import losses_and_gradients, simplified, slopes, with_ones

LAM_B = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)
PENALTIES = [L1(), Harder(0.1), Harder(0.7)]


def make(activation: str, *, seed: int = 0) -> tuple[SparseNetworks, Tensor, Tensor]:
    """Five networks, of which one has an idle unit and one has only idle units, a design, and responses."""
    generator = torch.Generator().manual_seed(seed)
    networks = SparseNetworks.random(5, 7, 4, activation, generator=generator, dtype=torch.float64)
    networks.parameters.mul_(3)
    networks.weight[torch.rand(networks.weight.shape, generator=generator) < 0.4] = 0
    networks.weight[1, 2] = 0
    networks.weight[3] = 0
    X = torch.randn(30, 7, generator=generator, dtype=torch.float64)
    return networks, X, 3 * torch.randn(5, 30, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
def test_losses_and_gradients_are_those_of_the_networks_one_by_one(activation):
    networks, X, Y = make(activation)
    networks.output[2] = 0  # as NormalizedLinear treats a row of zeros
    gradient = networks.with_parameters(torch.empty_like(networks.parameters))
    X_NQ = with_ones(X)
    losses = losses_and_gradients(networks, X_NQ, X_NQ.T.contiguous(), Y, gradient)
    for row in range(len(networks)):
        network = networks.network(row)
        loss = torch.linalg.vector_norm(network(X)[:, 0] - Y[row])
        torch.testing.assert_close(losses[row], loss.detach(), rtol=0, atol=1e-11)
        weight, bias, output, intercept = torch.autograd.grad(loss, list(network.parameters()))
        # The slope of Sigma is computed from its output, which leaves an error of 1e-10.
        for mine, theirs in (
            (gradient.weight[row], weight),
            (gradient.first[row, :, -1], bias),
            (gradient.output[row], output[0]),
            (gradient.intercept[row], intercept[0]),
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_objectives_and_gaps_are_those_of_the_networks_one_by_one(activation, penalty):
    networks, X, Y = make(activation)
    values, distances = (f(networks, X, Y, LAM_B, penalty) for f in (objectives, gaps))
    for row, lam in enumerate(LAM_B.tolist()):
        network = networks.network(row)
        loss = torch.linalg.vector_norm(network(X)[:, 0] - Y[row])
        weight = network[0].weight
        torch.testing.assert_close(values[row], (loss + penalty.value(weight, lam)).detach())
        first, *rest = torch.autograd.grad(loss, list(network.parameters()))
        expected = max(penalty.subgradient_gap(weight.detach(), first, lam), *(each.abs().max() for each in rest))
        torch.testing.assert_close(distances[row], expected, rtol=0, atol=1e-8)


def test_the_gradient_of_a_network_without_a_residual_is_zero():
    networks, X, Y = make("ReLU")
    networks.parameters.zero_()
    gradient = networks.with_parameters(torch.ones_like(networks.parameters))
    X_NQ = with_ones(X)
    loss = losses_and_gradients(networks, X_NQ, X_NQ.T.contiguous(), torch.zeros_like(Y), gradient)
    assert (loss == 0).all()
    assert (gradient.parameters == 0).all()


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_simplified_stack_computes_the_same_at_no_higher_objective(activation, penalty):
    networks, X, Y = make(activation)
    before = networks.parameters.clone()
    simple = simplified(networks, with_ones(X).T)
    assert torch.equal(networks.parameters, before)
    torch.testing.assert_close(simple.predict(X), networks.predict(X), rtol=0, atol=1e-12)
    assert torch.equal(simple.selected(), networks.selected())
    assert (objectives(simple, X, Y, LAM_B, penalty) <= objectives(networks, X, Y, LAM_B, penalty) + 1e-12).all()
    idle = (networks.weight == 0).all(2)
    assert (simple.first[:, :, -1][idle] == 0).all()
    torch.testing.assert_close(simple.output.norm(dim=1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_slopes_are_the_derivative_and_majorize_the_penalty(penalty):
    at = torch.linspace(1e-6, 50, 400, dtype=torch.float64, requires_grad=True)
    (derivative,) = torch.autograd.grad(penalty.value(at, 1.0), at)
    torch.testing.assert_close(slopes(penalty, at.detach()), derivative)
    assert slopes(penalty, torch.zeros(1)).item() == 1
    values = torch.stack([penalty.value(x, 1.0) for x in at.detach()])
    bound = values[:, None] + derivative[:, None] * (at - at[:, None]).detach()
    assert (bound >= values - 1e-9).all()


def test_random_networks_are_drawn_as_torch_draws_linear_layers():
    first, again = (SparseNetworks.random(50, 16, 25, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.parameters, again.parameters)
    assert first.parameters.dtype == torch.float32
    for part, bound in ((first.first, 1 / 4), (first.output, 1 / 5), (first.intercept, 1 / 5)):
        assert 0.9 * bound < part.abs().max() <= bound
        assert abs(part.mean()) < 0.1 * bound


def test_some_of_a_stack_are_a_stack():
    networks, X, _ = make("Sigma")
    assert len(networks[1:3]) == 2
    torch.testing.assert_close(networks[torch.tensor([4, 0])].predict(X), networks.predict(X)[[4, 0]])
    assert networks[1:3].parameters.data_ptr() == networks.parameters[1].data_ptr()
    assert networks.selected().tolist()[3] == [False] * 7


X_30 = torch.zeros(30, 7, dtype=torch.float64)
Y_5 = torch.zeros(5, 30, dtype=torch.float64)


@pytest.mark.parametrize(
    ("X", "Y", "happy_lambda", "penalty", "message"),
    [
        (X_30[:, 1:], Y_5, 1.0, L1(), r"X and Y have shapes \(30, 6\) and \(5, 30\); pass \(samples, 7\)"),
        (X_30, Y_5[1:], 1.0, L1(), r"pass \(samples, 7\) and \(5, samples\): one response for each network"),
        (X_30, Y_5 / 0, 1.0, L1(), "NaN or infinite entries"),
        (X_30, Y_5, -1.0, L1(), "happy_lambda=-1.0; pass a finite number >= 0"),
        (X_30, Y_5, torch.ones(4), L1(), "or one for each of the 5 networks"),
    ],
)
def test_data_and_weights_that_do_not_fit_are_refused(X, Y, happy_lambda, penalty: Penalty, message):
    networks, _, _ = make("ReLU")
    for function in (objectives, gaps):
        with pytest.raises(ValueError, match=message):
            function(networks, X, Y, happy_lambda, penalty)


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="activation='Tanh' has no gradient by hand; pass one of ReLU, Sigma"):
        SparseNetworks.random(1, 2, 3, "Tanh")
    with pytest.raises(ValueError, match=r"shape \(2, 12\); pass \(networks, 13\) for hidden=3 and num_features=2"):
        SparseNetworks(torch.zeros(2, 12), 2, 3)
    with pytest.raises(ValueError, match="hidden=0; each must be >= 1"):
        SparseNetworks.random(1, 2, 0)
    with pytest.raises(ValueError, match=r"GroupL1.* has no majorizing L1 penalty here; use L1 or Harder"):
        slopes(GroupL1(), torch.zeros(1))
