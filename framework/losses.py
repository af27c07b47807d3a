"""Losses that torch lacks: the unsquared L2 norm, alone and together with the L1 penalty."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class L2Loss(nn.Module):
    """The loss ||output - target||_2 over all entries: neither squared, nor averaged, nor halved.

    The norm divides out the noise level, which makes the right penalty weight independent of it (the square-root lasso,
    Belloni et al. 2011). The gradient is a unit vector, and 0 at a zero residual. Norms do not add up over batches.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, a 0-d tensor.

        Raises:
            ValueError: If the shapes differ: (n,) and (n, 1) would broadcast to n x n residuals.
        """
        if output.shape != target.shape:
            raise ValueError(
                f"the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}; they must be equal: "
                "reshape one, for instance with target.reshape(output.shape)"
            )
        return torch.linalg.vector_norm(output - target)


class PenalizedL2Loss(nn.Module):
    """The square-root lasso's two terms: (||output - target||_2, happy_lambda * sum |p| over `params`).

    They are returned separately because a proximal optimizer differentiates only the first; their sum is the objective.
    The second is evaluated at the parameters' current values, including views such as `weights[1:]`: those share the
    storage that optimizers update in place.

    Args:
        params: The penalized tensors.
        happy_lambda: The weight of the penalty, finite and >= 0.

    Raises:
        ValueError: If `params` is empty, or `happy_lambda` is negative or not finite.
        TypeError: If `params` is one tensor instead of a list.
    """

    def __init__(self, params: Iterable[Tensor], happy_lambda: float) -> None:
        super().__init__()
        if isinstance(params, Tensor):
            raise TypeError("PenalizedL2Loss: params is one tensor; pass a list of tensors: [params]")
        # A plain list: the loss only reads these tensors, it does not own them as parameters.
        self.params = list(params)
        if not self.params:
            raise ValueError("PenalizedL2Loss: params is empty; pass the tensors to penalize, or use L2Loss alone")
        if not (math.isfinite(happy_lambda) and happy_lambda >= 0):
            raise ValueError(f"PenalizedL2Loss: happy_lambda={happy_lambda!r}; it must be finite and >= 0")
        self.happy_lambda = happy_lambda
        self.l2 = L2Loss()

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (loss, penalty), two 0-d tensors.

        Raises:
            ValueError: If the shapes of `output` and `target` differ.
        """
        penalty = torch.stack([param.abs().sum() for param in self.params]).sum()
        return self.l2(output, target), self.happy_lambda * penalty
