"""Pruning: from a network with zero weights to a smaller one that computes the same function."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from framework.layers import NormalizedLinear, Sigma

# The layers allowed between linear layers: elementwise, and the same for every neuron.
ELEMENTWISE = (
    nn.Dropout,
    nn.ELU,
    nn.GELU,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.ReLU,
    nn.Sigmoid,
    nn.SiLU,
    nn.Softplus,
    nn.Tanh,
    Sigma,
)


class SelectFeatures(nn.Module):
    """The selection x[:, features], what a pruned network reads from an input of the original size.

    Args:
        features: The columns to keep, shape (kept,), integers.
    """

    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the selected columns, shape (N, kept), of x, shape (N, P)."""
        return x.index_select(1, self.features)


@torch.no_grad()
def prune(network: nn.Sequential) -> nn.Sequential:
    """Build a network without features and neurons that do not matter; in eval mode it computes the same function.

    It drops features whose weights in the first layer are all zero, neurons that no later neuron reads, and neurons
    that read nothing: those output a constant for every input, which goes into the biases of the next layer. A
    `NormalizedLinear` becomes a plain linear layer with the weights in effect, because with fewer columns its rows
    would have other norms. Zeros must be exact, as proximal optimizers leave them. The given network is not changed.

    Args:
        network: `nn.Linear` and `NormalizedLinear` layers with elementwise activations or dropout between them, after
            an optional `nn.Flatten`.

    Returns:
        `SelectFeatures`, which takes the original input and holds the remaining ``features``, then the linear and
        other layers. A layer may have no neurons left: then the network is a constant.

    Raises:
        TypeError: If the network has another structure or other layers; the message names the first of them.
    """
    linears, between, head = split_layers(network)
    weights = [_effective_weight(linear) for linear in linears]
    biases = [
        w.new_zeros(len(w)) if lin.bias is None else lin.bias.clone() for w, lin in zip(weights, linears, strict=True)
    ]
    # kept[k] says which inputs of layer k are kept; all outputs of the last layer are.
    kept = [(weight != 0).any(dim=0) for weight in weights] + [torch.ones_like(biases[-1], dtype=torch.bool)]
    for k in reversed(range(len(weights) - 1)):
        kept[k] = (weights[k][kept[k + 1]] != 0).any(dim=0)
    for k in range(len(weights) - 1):
        reads = (weights[k][:, kept[k]] != 0).any(dim=1)
        constant = _apply(between[k], biases[k])
        mute = ~reads & kept[k + 1]
        biases[k + 1] += weights[k + 1][:, mute] @ constant[mute]
        kept[k + 1] &= reads

    layers: list[nn.Module] = [*head, SelectFeatures(kept[0].nonzero().flatten())]
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        layers.append(_linear(weight[kept[k + 1]][:, kept[k]], bias[kept[k + 1]]))
        if k < len(between):
            layers.extend(between[k])
    return nn.Sequential(*layers).train(network.training)


def used_features(network: nn.Sequential) -> Tensor:
    """Return the indices of the inputs that a network's output depends on, by its exact zeros, shape (used,)."""
    return next(layer.features for layer in prune(network) if isinstance(layer, SelectFeatures))


def split_layers(network: nn.Module) -> tuple[list[nn.Linear], list[list[nn.Module]], list[nn.Module]]:
    """Return a plain network's linear layers, the layers between each and the next, and those before the first.

    Raises:
        TypeError: If it is not an `nn.Sequential` of what `prune` allows.
    """
    if not isinstance(network, nn.Sequential):
        raise TypeError(f"{type(network).__name__} is not an nn.Sequential of linear layers")
    linears: list[nn.Linear] = []
    between: list[list[nn.Module]] = []
    head: list[nn.Module] = []
    for name, layer in network.named_children():
        if isinstance(layer, nn.Linear) and type(layer) in (nn.Linear, NormalizedLinear):
            linears.append(layer)
            between.append([])
        elif linears and isinstance(layer, ELEMENTWISE):
            between[-1].append(layer)
        elif not linears and type(layer) is nn.Flatten:
            head.append(layer)
        else:
            allowed = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise TypeError(
                f"layer {name} is {type(layer).__name__}; allowed are nn.Linear and NormalizedLinear, nn.Flatten "
                f"before them, and between them {allowed}"
            )
    if not linears or between[-1]:
        raise TypeError(f"{type(network).__name__} does not end with a linear layer")
    return linears, between[:-1], head


def _effective_weight(linear: nn.Linear) -> Tensor:
    return (linear.normalized_weight if isinstance(linear, NormalizedLinear) else linear.weight).clone()


def _apply(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Apply elementwise layers to x as in eval mode, where dropout does nothing."""
    for layer in layers:
        x = x if isinstance(layer, nn.Dropout) else layer(x.clone())
    return x


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1)  # an empty layer would warn that there is nothing to initialize
    layer.out_features, layer.in_features = weight.shape
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer
