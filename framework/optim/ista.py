"""ISTA: the proximal gradient method with backtracking, the reference of this package."""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from framework.optim.proximal import (
    NO_DESCENT,
    NOT_FINITE,
    Closure,
    Group,
    Objective,
    ProximalOptimizer,
    check_positive,
    warn_no_step,
)
from framework.penalties import Penalty

TOO_SHORT = 1e-8  # a step shrunk by this much and still refused has failed


class ISTA(ProximalOptimizer):
    """Minimizes f + g by x+ = prox_{t g}(x - t grad f(x)), the step t found by backtracking.

    A step t is accepted when the quadratic model majorizes f (Beck & Teboulle 2009, "ISTA with backtracking", eq. 2.5):

        f(x+) <= f(x) + <grad f(x), d> + ||d||^2 / (2 t),   d = x+ - x,

    which makes f + g decrease by at least ||d||^2 / (2 t) for convex g. Every tensor moves at once.

    `step` understands two closures and tells them apart by what they do, never by what they return:

    - the closure of this package zeroes the gradients, evaluates f, backpropagates and returns f;
    - a closure that writes no gradient returns the total objective f + g, and the caller has computed the gradients
      of f beforehand. With `initial_loss` given this is assumed at once.

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
    def step(self, closure: Closure, initial_loss: float | None = None) -> float:  # type: ignore[override]
        """Moves to the next accepted point and returns f + g there.

        Args:
            closure: Either protocol above.
            initial_loss: f + g at the current point, for the closure that returns the total objective.
        """
        objective, f, grad = self._start(closure, initial_loss)
        x, state, options = objective.x, self.search_state, self.param_groups[0]
        F = f + objective.penalty(x)
        if not objective.blocks:
            return F
        if not (math.isfinite(F) and objective.is_finite(grad)):
            warn_no_step(self, NOT_FINITE)
            return F
        scale = state["scale"] * options["growth"] if "scale" in state else 1.0
        found = backtrack(objective, x, f, grad, scale, options)
        if found is None:
            objective.restore()
            warn_no_step(self, NO_DESCENT)
            return F
        x, f, state["scale"] = found
        return f + objective.penalty(x)

    def _start(self, closure: Closure, initial_loss: float | None) -> tuple[Objective, float, Tensor]:
        if initial_loss is None:
            before = self._gradients()
            objective = Objective(self, closure)
            value, _, grad = objective.start()
            after = self._gradients()
            written = any(a is not b or va != vb for (a, va), (b, vb) in zip(after, before, strict=True))
            if written or hasattr(closure, "value") or not objective.blocks:
                return objective, value, grad
            initial_loss = value
        objective = TotalObjective(self, closure)
        _, grad = objective.bind()
        return objective, float(initial_loss) - objective.penalty(objective.x), grad

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        return [(grad, 0 if grad is None else grad._version) for grad in grads]


class TotalObjective(Objective):
    """The objective whose closure returns f + g and computes no gradient."""

    has_gradient = False

    def value(self, x: Tensor) -> float:
        return super().value(x) - self.penalty(x)


def backtrack(
    objective: Objective, y: Tensor, f: float, grad: Tensor, scale: float, options: Group
) -> tuple[Tensor, float, float] | None:
    """Finds a step from y whose quadratic model majorizes f; returns the new point, f there and the scale of the step.

    Where the step is so short that rounding hides the change of f, the gradients decide instead: for a quadratic f,
    <grad f(x) - grad f(y), d> <= ||d||^2 / t is the same condition without its cancellation.
    """
    noise, first = torch.finfo(y.dtype).eps * abs(f), scale
    for _ in range(int(options["max_backtracks"])):
        steps = [b.lr * scale for b in objective.blocks]
        x = objective.forward_backward(y, grad, steps)
        d = x - y
        quadratic = sum(dd / (2 * t) for dd, t in zip(objective.dots(d, d), steps, strict=True))
        if quadratic == 0 and scale < TOO_SHORT * first:
            return None  # y is not stationary: no step but one too short to move was left
        if math.isfinite(quadratic):
            slope, slack = float(grad @ d), 0.0
            if quadratic > 100 * noise or not objective.has_gradient:
                f_x = objective.value(x)
                slack = 0.0 if quadratic > 100 * noise else 10 * noise
                accepted = True
            else:
                f_x, grad_x = objective.gradient(x)
                slack = 10 * noise
                accepted = float(grad_x @ d) - slope <= 2 * quadratic
            if accepted and f_x <= f + slope + quadratic + slack:
                return x, f_x, scale
        scale *= options["shrink"]
    return None
