"""Layers of sparse networks that torch lacks: the activation sigma and the linear layer with unit rows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sigma(x: Tensor) -> Tensor:
    """Computes the identity above -0.5 and a soft floor near -1 below, elementwise.

    sigma(x) = x for x > -0.5, else [softplus(20 (1 + x)) - softplus(20)] / 20, whose derivative is sigmoid(20 (1 + x)).
    sigma(0) = 0 and sup |sigma'| = 1. The pieces differ by 2e-6 in value and 5e-5 in slope at -0.5, as published.
    Source: LASSO ANN, Sardy et al. 2022.
    """
    return torch.where(x > -0.5, x, F.softplus(1 + x, beta=_BETA) - _SOFTPLUS_AT_0)


# softplus(20) / 20
_BETA = 20.0
_SOFTPLUS_AT_0 = (_BETA + math.log1p(math.exp(-_BETA))) / _BETA


class Sigma(nn.Module):
    """Computes `sigma` elementwise, as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Computes sigma(x), of x's shape."""
        return sigma(x)


class NormalizedLinear(nn.Linear):
    """Computes x W^T + b with every row of W scaled to unit Euclidean norm: what the universal threshold assumes.

    By rows (one neuron's input weights), not by the Frobenius norm. A zero row acts as zeros, and its gradient is the
    one of a plain linear layer, so that it can leave zero.

    `torch.nn.utils.parametrizations.weight_norm` is another thing: there the norm is a second trainable parameter,
    `weight` splits in two in the state dict, and a zero row gives NaN.

    Args:
        in_features: Size of each input sample.
        out_features: Size of each output sample.
        bias: Whether to add a bias.
        device: Where the parameters lie.
        dtype: Their type.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Computes the output, shape (..., out_features), of an input of shape (..., in_features)."""
        return F.linear(input, self.normalized_weight, self.bias)

    @property
    def normalized_weight(self) -> Tensor:
        """The weight in effect, shape (out_features, in_features): rows of norm 1, or 0 where `weight` has zeros."""
        # The square, unlike the norm, has finite derivatives of every order at a zero row.
        square = self.weight.square().sum(dim=1, keepdim=True)
        return self.weight / torch.where(square > 0, square, 1.0).sqrt()
