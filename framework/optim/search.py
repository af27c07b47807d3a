"""Searches that only compare values: random neighbors, and every move of one coordinate.

Shapes: n is the number of values in all parameters together, k the number of candidate points.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from framework.objective.vector import ParameterVector
from framework.optim.arguments import check_positive
from framework.optim.function import ClosureFunction


class _Search(Optimizer):
    """The base class of searches that move to the best candidate point if it is better than the current one.

    A closure may offer `value()`, the loss alone; and `values(candidates)`, the losses (k,) at k points at once, given
    as one stacked tensor (k, *shape) for each trainable parameter (`torch.func.functional_call` under `vmap`). Without
    them it is called, one point at a time; it need not compute gradients.

    The trainer reads `expects_gradients` from the class: no gradients need to be ready before the closure is called.
    """

    reevaluates = True
    expects_gradients = False
    handles_penalty = False

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Make one move, or none if no candidate is strictly better; return the loss at the point kept.

        After an exception the parameters are where they were before the step.

        Raises:
            ValueError: If neither the current point nor a candidate has a finite loss.
        """
        if closure is None:
            raise TypeError(f"{type(self).__name__} compares losses: pass a closure, `optimizer.step(closure)`")
        with ClosureFunction(closure, ParameterVector(self.param_groups)) as function:
            start_loss = function.value(function.x)
            point, loss = self._search(function, start_loss if math.isfinite(start_loss) else math.inf)
            function.accept(point)
        if math.isinf(loss):
            raise ValueError(f"the loss is {start_loss} here and not finite at any candidate: start from another point")
        return torch.tensor(loss, dtype=torch.float64)

    def _search(self, function: ClosureFunction, start_loss: float) -> tuple[Tensor, float]:
        """Find the point to keep and its loss: the current one unless a candidate is strictly better."""
        raise NotImplementedError


def _losses(function: ClosureFunction, points: Tensor) -> Tensor:
    """Compute the losses (k,) at points (k, n), inf where a loss is not finite."""
    losses = function.values(points)
    return torch.where(losses.isfinite(), losses, math.inf)


class RandomSearch(_Search):
    """Random search: sample neighbors of the current point and move to the best one if it is better.

    Each candidate is w + scale * z with z standard normal in every coordinate (Rastrigin, 1963, with normal steps).
    The draws are the same on every device.

    Args:
        params: Parameters or groups; frozen ones are skipped.
        scale: Standard deviation of a step; also a per-group option.
        candidates: Number of neighbors sampled in one step.
        seed: Seed of the draws. Default: torch's.
    """

    def __init__(self, params: ParamsT, scale: float = 0.01, *, candidates: int = 1, seed: int | None = None) -> None:
        check_positive(scale=scale, candidates=candidates)
        super().__init__(params, {"scale": scale})
        for group in self.param_groups:
            check_positive(scale=group["scale"])
        ParameterVector(self.param_groups)
        self.candidates = candidates
        generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
        # Keyed by a name instead of a parameter: torch would cast a parameter's state to its dtype on load.
        self._memory()["generator"] = generator.get_state()

    def _memory(self) -> dict[Any, Any]:
        return self.state

    def _search(self, function: ClosureFunction, start_loss: float) -> tuple[Tensor, float]:
        start, vector = function.x, function.vector
        generator = torch.Generator()
        generator.set_state(self._memory()["generator"])
        normal = torch.randn(self.candidates, len(vector), dtype=torch.float64, generator=generator)
        self._memory()["generator"] = generator.get_state()
        points = start + vector.expand_option("scale") * normal.to(start)
        losses = _losses(function, points)
        index = int(losses.argmin())
        return (points[index], losses[index].item()) if losses[index] < start_loss else (start, start_loss)


class ExhaustiveSearch(_Search):
    """Exhaustive search: try a smaller and a larger value of every coordinate and keep the best.

    One step evaluates the 2 n points that differ from the current one by `step` in one coordinate, then the point that
    makes every improving move at once, and moves to the best of all. With one coordinate this is the textbook search
    over one number; with a separable loss every coordinate moves in every step.

    Args:
        params: Parameters or groups; frozen ones are skipped.
        step: Size of a move; also a per-group option.
        chunk_size: Number of candidates evaluated at a time if the closure offers `values`.
    """

    def __init__(self, params: ParamsT, step: float = 0.01, *, chunk_size: int = 64) -> None:
        check_positive(step=step, chunk_size=chunk_size)
        super().__init__(params, {"step": step})
        for group in self.param_groups:
            check_positive(step=group["step"])
        ParameterVector(self.param_groups)
        self.chunk_size = chunk_size

    def _search(self, function: ClosureFunction, start_loss: float) -> tuple[Tensor, float]:
        start, vector = function.x, function.vector
        size = len(vector)
        moves = vector.expand_option("step").repeat(2)  # down in every coordinate, then up
        moves[:size] *= -1
        losses = torch.cat(
            [
                _losses(function, _moved(start, moves, chunk))
                for chunk in torch.arange(2 * size, device=start.device).split(self.chunk_size)
            ]
        )
        index = int(losses.argmin())
        best = (_moved(start, moves, torch.tensor([index], device=start.device))[0], losses[index].item())
        best = best if best[1] < start_loss else (start, start_loss)

        pairs = losses.reshape(2, size)
        chosen = pairs.argmin(dim=0) * size + torch.arange(size)
        improving = chosen[pairs.amin(dim=0) < start_loss].to(start.device)
        if len(improving) < 2:
            return best
        together = start.clone()
        together[improving % size] += moves[improving]
        loss = _losses(function, together[None]).item()
        return (together, loss) if loss < best[1] else best


def _moved(start: Tensor, moves: Tensor, chunk: Tensor) -> Tensor:
    """Return points (k, n), each of them `start` with one move, whose index is in `chunk` (k,)."""
    points = start.repeat(len(chunk), 1)
    points[torch.arange(len(chunk), device=start.device), chunk % len(start)] += moves[chunk]
    return points
