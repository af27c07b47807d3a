"""FISTA: the accelerated proximal gradient method with adaptive restart."""

import math

import torch
from torch import Tensor

from framework.objective.vector import flatten
from framework.optim.backtracking import BacktrackingOptimizer
from framework.optim.proximal import Closure, PenalizedFunction


class FISTA(BacktrackingOptimizer):
    """FISTA: proximal gradient steps on f + g from an extrapolated point y (Beck & Teboulle 2009, eq. 4.1-4.3):

        x_k = prox_{t g}(y_k - t grad f(y_k)),   theta+ = (1 + sqrt(1 + 4 theta^2)) / 2,
        y+ = x_k + (theta - 1) / theta+ (x_k - x_{k-1}),

    with backtracking. The momentum is dropped when it points uphill, <y - x_k, x_k - x_{k-1}> > 0, and when
    f + g increases: then the step is taken again from x_{k-1} (O'Donoghue & Candes 2015, sec. 3.2). So the returned
    values never increase while the closure and the weights stay the same, even if t grows or f is not convex.

    The first evaluation of a step is at y; between steps the parameters hold x.

    The arguments are those of `BacktrackingOptimizer`.
    """

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """Move to the next accepted point and return f + g there; the closure evaluates f and its gradient."""
        with PenalizedFunction(self, closure) as function:
            return self._step(function)

    def _step(self, function: PenalizedFunction) -> float:
        state = self.search_state
        y = self._extrapolate(function.x) if state.get("theta", 1.0) > 1 else None
        f, y, grad = function.start(y)
        F_old = f + function.penalty(y) if y is function.x else state["value"]
        found = self._advance(function, y, f, grad)
        if y is not function.x and not (found is not None and found[1] <= F_old):
            state["theta"], y = 1.0, function.x
            f, grad = function.gradient(y)
            F_old = f + function.penalty(y)
            found = self._advance(function, y, f, grad)
        if found is None:
            self._warn(function, F_old, grad)
            return F_old
        x, F, state["scale"] = found
        self._remember(function, x, y, F)
        function.accept(x)
        return F

    def _extrapolate(self, x: Tensor) -> Tensor:
        """Compute y = x + beta (x - x_old) over all parameters; those that have not moved yet stay in place."""
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        moves = [self.state[p]["move"] if "move" in self.state[p] else torch.zeros_like(p) for p in params]
        theta = self.search_state["theta"]
        return x + (theta - 1) / _next_theta(theta) * flatten(moves)

    def _remember(self, function: PenalizedFunction, x: Tensor, y: Tensor, F: float) -> None:
        move = x - function.x
        uphill = float((y - x) @ move) > 0
        theta = 1.0 if uphill else _next_theta(self.search_state.get("theta", 1.0))
        self.search_state.update(theta=theta, value=F)
        for block, part in zip(function.blocks, move.split(function.sizes), strict=True):
            self.state[block.param]["move"] = part.view(block.param.shape)


def _next_theta(theta: float) -> float:
    return (1 + math.sqrt(1 + 4 * theta * theta)) / 2
