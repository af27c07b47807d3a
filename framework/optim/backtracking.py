"""The backtracking search for a step, shared by ISTA and FISTA."""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from framework.optim.arguments import check_positive
from framework.optim.proximal import (
    NO_DESCENT,
    NOT_FINITE,
    PenalizedFunction,
    ProximalOptimizer,
    warn_no_step,
)
from framework.penalties import Penalty

TOO_SHORT = 1e-8  # a search whose step has shrunk by this factor and is still rejected has failed


class BacktrackingOptimizer(ProximalOptimizer):
    """The base class of proximal gradient methods that find their step t by backtracking.

    A step t from y to x+ = prox_{t g}(y - t grad f(y)) is accepted when the quadratic model majorizes f (Beck &
    Teboulle 2009, "ISTA with backtracking", eq. 2.5):

        f(x+) <= f(y) + <grad f(y), d> + ||d||^2 / (2 t),   d = x+ - y,

    which, for y = x and convex g, makes f + g decrease by at least ||d||^2 / (2 t). All tensors move together.

    Args:
        params: Tensors, all penalized, or groups that each carry `penalized`.
        happy_lambda: Weight of the penalty; also a per-group option. Default: the module's, in a trainer.
        penalty: g. Default: the module's in a trainer, otherwise `L1()`.
        lr: First step tried; also a per-group option: the ratio of the groups' steps stays fixed.
        growth: Each step first tries the last accepted t times `growth`; with 1, the paper's rule, t never grows.
        shrink: Factor applied to t after a rejection.
        max_backtracks: Number of rejections after which the search fails: the point stays, with a warning.
    """

    def __init__(
        self,
        params: ParamsT,
        happy_lambda: float | None = None,
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

    def _advance(
        self, function: PenalizedFunction, y: Tensor, f: float, grad: Tensor
    ) -> tuple[Tensor, float, float] | None:
        """Take a proximal gradient step from y; return the new point, f + g there and the scale of the step.

        Returns None if there is nothing to train, if f or its gradient is not finite at y, or if the search fails.
        """
        if not (function.blocks and math.isfinite(f) and function.is_finite(grad)):
            return None
        options, state = self.param_groups[0], self.search_state
        scale = state["scale"] * options["growth"] if "scale" in state else 1.0
        first = scale
        for _ in range(int(options["max_backtracks"])):
            steps = [block.lr * scale for block in function.blocks]
            x = function.forward_backward(y, grad, steps)
            d = x - y
            if scale < TOO_SHORT * first and not d.any():
                return None  # y is not stationary: every step long enough to move was rejected
            f_x = _majorized(function, x, d, steps, f, grad)
            if f_x is not None:
                return x, f_x + function.penalty(x), scale
            scale *= options["shrink"]
        return None

    def _warn(self, function: PenalizedFunction, F: float, grad: Tensor) -> None:
        """Warn why no step was taken."""
        if function.blocks:
            finite = math.isfinite(F) and function.is_finite(grad)
            warn_no_step(self, NO_DESCENT if finite else NOT_FINITE)


def _majorized(
    function: PenalizedFunction, x: Tensor, d: Tensor, steps: list[float], f: float, grad: Tensor
) -> float | None:
    """Compute f at x = y + d if the quadratic model at y, with value f and gradient grad, majorizes it, or return None.

    If the step is so short that rounding hides the change in f, the gradients decide instead: for a quadratic f,
    <grad f(x) - grad f(y), d> <= ||d||^2 / t is the same condition without the cancellation.
    """
    quadratic = sum(dd / (2 * t) for dd, t in zip(function.dots(d, d), steps, strict=True))
    if not math.isfinite(quadratic):
        return None
    slope, noise = float(grad @ d), torch.finfo(d.dtype).eps * abs(f)
    hidden = quadratic <= 100 * noise
    if hidden and function.has_gradient:
        f_x, grad_x = function.gradient(x)
        if float(grad_x @ d) - slope > 2 * quadratic:
            return None
    else:
        f_x = function.value(x)
    slack = 10 * noise if hidden else 0.0
    return f_x if f_x <= f + slope + quadratic + slack else None
