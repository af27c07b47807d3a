"""A pruned network is smaller and computes the same function, even if neurons are dead or are never read."""

import pytest
import torch
from torch import Tensor, nn

from framework.layers import NormalizedLinear, Sigma
from framework.pruning import SelectFeatures, prune, used_features


def network(*, activation: type[nn.Module] = nn.ReLU, last: type[nn.Linear] = NormalizedLinear) -> nn.Sequential:
    """Make a network 6 -> 5 -> 4 -> 2 in float64; neurons 0, 2 and 3 of the first layer read features 1, 2 and 4."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), activation(), last(5, 4), activation(), nn.Dropout(0.5), last(4, 2)
    ).double()
    mask = torch.zeros(5, 6, dtype=torch.float64)
    mask[0, 1] = mask[2, 2] = mask[2, 4] = mask[3, 1] = 1
    with torch.no_grad():
        net[1].weight.mul_(mask)
        net[1].bias.add_(0.5)  # a dead neuron has an output
    return net.eval()


def widths(net: nn.Module) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)]


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", [nn.ReLU, Sigma, nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("last", [NormalizedLinear, nn.Linear])
def test_a_pruned_network_computes_the_same_function(activation, last):
    net = network(activation=activation, last=last)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pruned = prune(net)
    assert used_features(net).tolist() == [1, 2, 4]
    assert widths(pruned) == [(3, 3), (3, 4), (4, 2)]
    X = inputs(100, 6)
    torch.testing.assert_close(pruned(X), net(X), rtol=0, atol=1e-14)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_images_are_flattened_before_features_are_chosen():
    net, X = network(), inputs(7, 2, 3)
    torch.testing.assert_close(prune(net)(X), net(X), rtol=0, atol=1e-14)


def test_neurons_that_nobody_reads_go_with_the_features_only_they_read():
    net = network()
    with torch.no_grad():
        net[3].weight[:, 2] = 0
        net[6].weight[:, 1] = 0
    pruned = prune(net)
    assert used_features(net).tolist() == [1]
    assert widths(pruned) == [(1, 2), (2, 3), (3, 2)]
    X = inputs(50, 6)
    torch.testing.assert_close(pruned(X), net(X), rtol=0, atol=1e-14)


def test_a_neuron_that_reads_only_dead_neurons_is_dead():
    net = network()
    with torch.no_grad():
        net[3].weight[0] = torch.tensor([0.0, 1, 0, 0, 2])
    pruned = prune(net)
    assert widths(pruned) == [(3, 3), (3, 3), (3, 2)]
    X = inputs(50, 6)
    torch.testing.assert_close(pruned(X), net(X), rtol=0, atol=1e-14)


def test_the_null_model_becomes_a_constant():
    net = network(activation=Sigma)
    with torch.no_grad():
        net[1].weight.zero_()
    pruned = prune(net)
    assert widths(pruned) == [(0, 0), (0, 0), (0, 2)]
    X = inputs(10, 6)
    torch.testing.assert_close(pruned(X), net(X), rtol=0, atol=1e-14)


def test_one_layer_and_layers_without_bias():
    linear = nn.Sequential(nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        linear[0].weight.copy_(torch.tensor([[0.0, 2, 0, -1]]))
    X = inputs(10, 4)
    assert widths(prune(linear)) == [(2, 1)]
    torch.testing.assert_close(prune(linear)(X), linear(X), rtol=0, atol=1e-15)


def test_a_pruned_network_can_be_trained_and_its_features_are_in_its_state():
    pruned = prune(network())
    pruned(inputs(10, 6)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    assert pruned.state_dict()["1.features"].tolist() == [1, 2, 4]
    assert isinstance(pruned[1], SelectFeatures)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(2, 1), r"Linear is not an nn\.Sequential of linear layers"),
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), "layer 1 is BatchNorm1d; allowed .*ReLU"),
        (nn.Sequential(nn.ReLU(), nn.Linear(2, 1)), "layer 0 is ReLU"),
        (nn.Sequential(nn.Linear(2, 1), nn.ReLU()), "does not end with a linear layer"),
    ],
)
def test_another_structure_is_refused(net, message):
    with pytest.raises(TypeError, match=message):
        prune(net)
