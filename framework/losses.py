"""Losses that torch lacks: the unsquared L2 norm, alone and with the L1 penalty beside it."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class L2Loss(nn.Module):
    """Computes ||output - target||_2 over all entries: neither squared, nor averaged, nor halved.

    Dividing out the noise level is what makes the right penalty weight independent of it (the square-root lasso,
    Belloni et al. 2011). The gradient is a unit vector, and 0 at a zero residual. Norms do not add up
    over batches.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Computes the loss, a 0-d tensor.

        Raises:
            ValueError: The shapes differ: (n,) against (n, 1) would broadcast to n x n residuals.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}; they must be equal: "
                "reshape one, for instance with target.reshape(output.shape)"
            )
        return torch.linalg.vector_norm(output - target)


class PenalizedL2Loss(nn.Module):
    """Computes the square-root lasso's two terms: (||output - target||_2, happy_lambda * sum |p| over `params`).

    They come apart because a proximal optimizer differentiates the first only; their sum is the objective. The second
    is evaluated at the parameters' current values, views such as `weights[1:]` included: those share the storage that
    optimizers update in place.

    Args:
        params: The penalized tensors.
        happy_lambda: The weight of the penalty, finite and >= 0.

    Raises:
        ValueError: `params` is empty, or `happy_lambda` is negative or not finite.
        TypeError: `params` is one tensor instead of a list.
    """

    def __init__(self, params: Iterable[Tensor], happy_lambda: float) -> None:
        super().__init__()
        if isinstance(params, Tensor):
            raise TypeError("PenalizedL2Loss: params is one tensor; pass a list of tensors: [params]")
        # A plain list: the loss shows these tensors to the penalty, it does not own them as parameters.
        self.params = list(params)
        if not self.params:
            raise ValueError("PenalizedL2Loss: params is empty; pass the tensors to penalize, or use L2Loss alone")
        if not (math.isfinite(happy_lambda) and happy_lambda >= 0):
            raise ValueError(f"PenalizedL2Loss: happy_lambda={happy_lambda!r}; it must be finite and >= 0")
        self.happy_lambda = happy_lambda
        self.l2 = L2Loss()

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Computes (loss, penalty), two 0-d tensors.

        Raises:
            ValueError: The shapes of `output` and `target` differ.
        """
        penalty = torch.stack([param.abs().sum() for param in self.params]).sum()
        return self.l2(output, target), self.happy_lambda * penalty
