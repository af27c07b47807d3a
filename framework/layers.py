"""Layers for sparse networks that torch lacks: the activation sigma and a linear layer with rows of unit norm."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sigma(x: Tensor) -> Tensor:
    """Compute the activation that is the identity above -0.5 and has a soft floor near -1 below, elementwise.

    sigma(x) = x for x > -0.5; otherwise [softplus(20 (1 + x)) - softplus(20)] / 20, with slope sigmoid(20 (1 + x)).
    sigma(0) = 0 and sup |sigma'| = 1. The pieces differ by 2e-6 in value and 5e-5 in slope at -0.5, as published.
    Source: LASSO ANN, Sardy et al. 2022.
    """
    return torch.where(x > -0.5, x, F.softplus(1 + x, beta=_BETA) - _SOFTPLUS_AT_0)


# softplus(20) / 20
_BETA = 20.0
_SOFTPLUS_AT_0 = (_BETA + math.log1p(math.exp(-_BETA))) / _BETA


class Sigma(nn.Module):
    """`sigma` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute sigma(x), of x's shape."""
        return sigma(x)


class NormalizedLinear(nn.Linear):
    """A linear layer x W^T + b with every row of W scaled to unit Euclidean norm, as the universal threshold assumes.

    Each row (one neuron's input weights) is scaled separately, not by the Frobenius norm. A zero row acts as zeros, and
    its gradient is that of a plain linear layer, so that it can leave zero.

    `torch.nn.utils.parametrizations.weight_norm` is different: there the norm is a second trainable parameter,
    `weight` is split in two in the state dict, and a zero row gives NaN.

    The arguments are those of `torch.nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute the output, shape (..., out_features), for an input of shape (..., in_features)."""
        return F.linear(input, self.normalized_weight, self.bias)

    @property
    def normalized_weight(self) -> Tensor:
        """The weight in effect, shape (out_features, in_features): rows of norm 1, or 0 where `weight` has zeros."""
        return normalized_rows(self.weight)


def normalized_rows(weight: Tensor) -> Tensor:
    """Scale each row of a matrix to Euclidean norm 1; zero rows stay zero, with finite derivatives."""
    # Unlike the norm, its square has finite derivatives of every order at a zero row.
    square = weight.square().sum(dim=1, keepdim=True)
    return weight / torch.where(square > 0, square, 1.0).sqrt()


class CSRLinear(nn.Linear):
    """A linear layer x W^T + b for inputs in compressed rows, tensors of the layout ``torch.sparse_csr``.

    `nn.Linear` takes such inputs, too, but transposes them in every backward pass, which then takes most of the time.
    This layer keeps the transpose of the last input, so it pays where the same input comes again: in training on all
    the data at once. Other inputs are treated as `nn.Linear` does. The data get no gradient.

    The arguments are those of `torch.nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Compute the output, dense, shape (N, out_features), for an input of shape (N, in_features)."""
        if input.layout != torch.sparse_csr or not torch.is_grad_enabled():
            return super().forward(input)
        product = _CSRProduct.apply(input, self._transposed(input), self.weight)
        return product if self.bias is None else product + self.bias

    def _transposed(self, input: Tensor) -> Tensor:
        of, version, transposed = vars(self).get("_kept", (None, 0, None))
        if of is not input or version != input.values()._version:
            transposed = input.detach().t().to_sparse_csr()
            # Among the attributes, but neither a buffer nor anything that goes into a file.
            vars(self)["_kept"] = input, input.values()._version, transposed
        return transposed

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}


class _CSRProduct(torch.autograd.Function):
    """x W^T for a sparse x, differentiated by W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, transposed: Tensor, weight: Tensor) -> Tensor:
        ctx.transposed = transposed
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, (ctx.transposed @ grad).t()
