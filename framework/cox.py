"""Cox regression: the partial likelihood of times to an event, some of which are censored, and its threshold."""

import math

import torch
from torch import Tensor, nn

from framework.happy_lambda import HappyLambda
from framework.penalties import GroupL1


class CoxLoss(nn.Module):
    """The negative log partial likelihood of proportional hazards, divided by N:

        (1 / N) sum over events i of [log sum over j with t_j >= t_i of exp(f_j) - f_i],

    where f_i is the log hazard that the network computes. Tied events each count with the whole risk set (Breslow
    1974). The risk sets are those of the data given, so the values of batches do not add up: pass all the data at once.
    Adding a constant to f changes nothing, so the last layer needs no bias. Source: Cox 1975.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, a 0-d tensor.

        Args:
            output: f, shape (N, 1).
            target: The time t, and 1 where the event happened then or 0 where the time is censored, shape (N, 2).

        Raises:
            ValueError: If the shapes are others.
        """
        if output.ndim != 2 or output.shape[1] != 1 or target.shape != (len(output), 2):
            raise ValueError(
                f"CoxLoss: the output has shape {tuple(output.shape)} and the target {tuple(target.shape)}; pass one "
                "log hazard per sample, shape (N, 1), and its time and event (1) or censoring (0), shape (N, 2)"
            )
        order = target[:, 0].argsort()
        times, events = target[order].T.contiguous()
        f = output[order, 0]
        risk = f.flip(0).logcumsumexp(0).flip(0)  # of those from i on
        first_of_tie = torch.searchsorted(times, times)
        return (events * (risk[first_of_tie] - f)).sum() / len(f)


class HappyLambdaCox(HappyLambda):
    """The weight of the L1 penalty for a linear model under `CoxLoss`: Q95 of max_j |X_j^T m| / N.

    m are the martingale residuals of the null model, shape (N,): the event less the cumulative hazard of Nelson and
    Aalen at the time. They hold the unknown baseline hazard and censoring, so their distribution is simulated as it is
    in a permutation test: if X says nothing about times and events, every assignment of them to the rows of X is
    equally likely.

    Args:
        dataset: X, shape (N, P), finite.
        targets: Times and events, as `CoxLoss` takes them, finite.
        distribution_count: The number of draws.
        generator: As in `HappyLambdaLinear`.
        quantile: The probability of finding nothing when there is nothing to find.
        groups: As in `HappyLambdaLinear`.

    Raises:
        ValueError: As for `HappyLambdaLinear`; or if the targets are no such times and events, or there is no event.
    """

    def __init__(
        self,
        dataset: Tensor,
        targets: Tensor,
        distribution_count: int,
        generator: torch.Generator | None = None,
        *,
        quantile: float = 0.95,
        groups: GroupL1 | None = None,
    ) -> None:
        super().__init__(
            dataset,
            distribution_count,
            device=None,
            generator=generator,
            quantile=quantile,
            intercept=True,
            groups=groups,
        )
        events = targets[:, 1] if targets.shape == (len(dataset), 2) else targets.new_full((1,), math.nan)
        if not (targets.isfinite().all() and ((events == 0) | (events == 1)).all() and events.any()):
            raise ValueError(
                f"HappyLambdaCox: the targets, of shape {tuple(targets.shape)}, must be finite times and events (1) or "
                f"censorings (0), shape ({len(dataset)}, 2), with at least one event"
            )
        with torch.enable_grad():
            null = self.dataset.new_zeros(len(dataset), 1, requires_grad=True)
            (gradient,) = torch.autograd.grad(CoxLoss()(null, targets.to(self.dataset)), null)
        self.residuals = -gradient[:, 0]

    def _residuals(self, count: int, generator: torch.Generator) -> Tensor:
        shape = (count, len(self.residuals))
        orders = torch.rand(shape, generator=generator, device=self.residuals.device).argsort(1)
        return self.residuals[orders][:, None]

    def _num_responses(self) -> int:
        return 1
