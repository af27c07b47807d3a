"""FISTA: the accelerated proximal gradient method with adaptive restart."""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from framework.optim.ista import backtrack
from framework.optim.proximal import (
    NO_DESCENT,
    NOT_FINITE,
    Closure,
    Objective,
    ProximalOptimizer,
    check_positive,
    warn_no_step,
)
from framework.penalties import Penalty


class FISTA(ProximalOptimizer):
    """Minimizes f + g by proximal gradient steps from an extrapolated point y (Beck & Teboulle 2009, eq. 4.1-4.3):

        x_k = prox_{t g}(y_k - t grad f(y_k)),   theta+ = (1 + sqrt(1 + 4 theta^2)) / 2,
        y+ = x_k + (theta - 1) / theta+ (x_k - x_{k-1}),

    with ISTA's backtracking. The momentum is dropped when it points uphill, <y - x_k, x_k - x_{k-1}> > 0, and when
    f + g increases: then the step is taken again from x_{k-1} (O'Donoghue & Candes 2015, sec. 3.2). So the returned
    values never increase while the closure and the weights stay the same, also for a t that grows and for f not convex.

    The first evaluation of a step is at y; between steps the parameters hold x.

    Args:
        params: Tensors, all penalized, or groups that each carry `penalized`.
        happy_lambda: Weight of the penalty; also a per-group option.
        penalty: g. Default: `L1()`.
        lr: First step tried, also a per-group option: groups keep the ratio of their steps.
        growth: Each step first tries the last accepted t times `growth`; with 1, the paper's rule, t never grows.
        shrink: Factor of t after a rejection.
        max_backtracks: Rejections after which the search has failed: the accepted point stays, with a warning.
    """

    def __init__(
        self,
        params: ParamsT,
        happy_lambda: float = 0.0,
        penalty: Penalty | None = None,
        *,
        lr: float = 1.0,
        growth: float = 1.1,
        shrink: float = 0.5,
        max_backtracks: int = 100,
    ) -> None:
        options = {"lr": lr, "growth": growth, "shrink": shrink, "max_backtracks": max_backtracks}
        check_positive(**options)
        super().__init__(params, happy_lambda, penalty, options)

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """Moves to the next accepted point and returns f + g there. The closure evaluates f and its gradient."""
        objective, state = Objective(self, closure), self.search_state
        y = self._extrapolate(objective.x) if state.get("theta", 1.0) > 1 else None
        f, y, grad = objective.start(y)
        F_old = f + objective.penalty(y) if y is objective.x else state["value"]
        found = self._advance(objective, y, f, grad)
        if y is not objective.x and not (found is not None and found[1] <= F_old):
            state["theta"], y = 1.0, objective.x
            f, grad = objective.gradient(y)
            F_old = f + objective.penalty(y)
            found = self._advance(objective, y, f, grad)
        if found is None:
            objective.restore()
            if objective.blocks:
                finite = math.isfinite(F_old) and objective.is_finite(grad)
                warn_no_step(self, NO_DESCENT if finite else NOT_FINITE)
            return F_old
        x, F, state["scale"] = found
        self._remember(objective, x, y, F)
        return F

    def _advance(self, objective: Objective, y: Tensor, f: float, grad: Tensor) -> tuple[Tensor, float, float] | None:
        """Takes a proximal gradient step from y; returns the new point, f + g there and the scale of the step."""
        if not (objective.blocks and math.isfinite(f) and objective.is_finite(grad)):
            return None
        options, state = self.param_groups[0], self.search_state
        scale = state["scale"] * options["growth"] if "scale" in state else 1.0
        found = backtrack(objective, y, f, grad, scale, options)
        if found is None:
            return None
        x, f, scale = found
        return x, f + objective.penalty(x), scale

    def _extrapolate(self, x: Tensor) -> Tensor:
        """Computes y = x + beta (x - x_old) over all parameters; those that have not moved yet stay."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        moves = [self.state[p]["move"] if "move" in self.state[p] else torch.zeros_like(p) for p in params]
        theta = self.search_state["theta"]
        return x + (theta - 1) / _next_theta(theta) * Objective.flat(moves)

    def _remember(self, objective: Objective, x: Tensor, y: Tensor, F: float) -> None:
        move = x - objective.x
        uphill = float((y - x) @ move) > 0
        theta = 1.0 if uphill else _next_theta(self.search_state.get("theta", 1.0))
        self.search_state.update(theta=theta, value=F)
        for block, part in zip(objective.blocks, move.split(objective.sizes), strict=True):
            self.state[block.param]["move"] = part.view(block.param.shape)


def _next_theta(theta: float) -> float:
    return (1 + math.sqrt(1 + 4 * theta * theta)) / 2
