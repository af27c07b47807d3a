"""SpaRSA: spectral proximal gradient steps, accelerated on the face of the current zeros. The default optimizer."""

import math

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from framework.optim.arguments import check_positive
from framework.optim.lbfgs import inverse_hessian_product
from framework.optim.proximal import (
    NO_DESCENT,
    NOT_FINITE,
    Closure,
    PenalizedFunction,
    ProximalOptimizer,
    warn_no_step,
)
from framework.penalties import Penalty

SUFFICIENT_DECREASE = 0.01  # sigma in Wright et al. 2009
MAX_GROWTH = 2.0  # how much a tensor's step may grow from one iteration to the next
MIN_STEP = 1e-30  # 1 / alpha_max in Wright et al. 2009
STEP_SPREAD = 1e5  # by what factor a tensor's step may differ from the one for all tensors together


class SpaRSA(ProximalOptimizer):
    """SpaRSA on f + g: x+ = prox_{t g}(x - t grad f(x)) with Barzilai-Borwein steps and a non-monotone search.

    Each tensor has its own step, t = <s, s> / <s, y> of its last move s and change of gradient y (Wright, Nowak &
    Figueiredo 2009, eq. 8; their alpha is 1 / t). A point is accepted when (their eq. 22)

        F(x+) <= max of F at the last `memory` points - sigma / 2 ||x+ - x||^2 / t;   otherwise t shrinks.

    With `history_size > 0` an iteration first tries a better point: on the entries that the proximal step leaves
    non-zero and of one sign, g is smooth, and a quasi-Newton step (limited-memory BFGS over those entries) replaces the
    proximal one; entries that would change sign stop at zero. It is held to the same test, and when it fails the
    proximal step follows. (As in FPC_AS, Wen, Yin, Goldfarb & Zhang 2010, but within each iteration.)

    The objective must stay the same within one `step`, which makes `max_iter` iterations, as in `torch.optim.LBFGS`:
    after the first evaluation each costs one, since the gradient at an accepted point serves the next iteration.

    Args:
        params: Tensors, all penalized, or groups that each carry `penalized`.
        happy_lambda: Weight of the penalty; also a per-group option. Default: the module's, in a trainer.
        penalty: g. Default: the module's in a trainer, otherwise `L1()`.
        lr: The very first step tried; also a per-group option. Small values are safe: steps may double each time.
        max_iter: Number of iterations per call to `step`.
        memory: Number of past values that the search looks back at; 1 makes it monotone.
        history_size: Number of pairs (s, y) for the quasi-Newton steps; 0 is the method of the paper.
        max_backtracks: Number of rejections after which the search fails: the point stays, with a warning.
    """

    def __init__(
        self,
        params: ParamsT,
        happy_lambda: float | None = None,
        penalty: Penalty | None = None,
        *,
        lr: float = 0.001,
        max_iter: int = 10,
        memory: int = 5,
        history_size: int = 5,
        max_backtracks: int = 100,
    ) -> None:
        options = {"lr": lr, "max_iter": max_iter, "memory": memory, "max_backtracks": max_backtracks}
        check_positive(**options)
        if history_size < 0:
            raise ValueError(f"history_size={history_size!r} is not allowed: pass 0 for none, or a positive number")
        super().__init__(params, happy_lambda, penalty, {**options, "history_size": history_size})

    @torch.no_grad()
    def step(self, closure: Closure) -> float:  # type: ignore[override]
        """Make up to `max_iter` iterations and return f + g at the accepted point."""
        with PenalizedFunction(self, closure) as function:
            return self._step(function)

    def _step(self, function: PenalizedFunction) -> float:
        f, x, grad = function.start()
        F = f + function.penalty(x)
        if not function.blocks:
            return F
        if not (math.isfinite(F) and function.is_finite(grad)):
            warn_no_step(self, NOT_FINITE)
            return F
        self._refresh(function, F)
        for _ in range(self.param_groups[0]["max_iter"]):
            found = self._search(function, x, grad)
            if found is None:
                warn_no_step(self, NO_DESCENT)
                break
            x_new, F_new, grad_new = found
            if x_new is x:
                break
            self._remember(function, x_new - x, grad_new - grad, F_new)
            x, F, grad = x_new, F_new, grad_new
            function.accept(x)
        return F

    def _refresh(self, function: PenalizedFunction, F: float) -> None:
        """Forget what belongs to another objective (another batch or penalty weight) or to other tensors."""
        state = self.search_state
        values = state.get("values", [])
        state["eps"] = eps = torch.finfo(function.x.dtype).eps
        if not values or abs(F - values[-1]) > 100 * eps * abs(F):
            state["values"] = [F]
        if state.get("sizes") != function.sizes:
            steps = [b.lr for b in function.blocks]
            state.update(sizes=function.sizes, steps=steps, s=[], y=[])

    def _search(self, function: PenalizedFunction, x: Tensor, grad: Tensor) -> tuple[Tensor, float, Tensor] | None:
        """Return the next point with F and grad f there; x itself if it is stationary, None if the search fails."""
        state, options = self.search_state, self.param_groups[0]
        steps, shrunk = state["steps"], 1.0
        for _ in range(options["max_backtracks"]):
            p = function.forward_backward(x, grad, steps)
            d = p - x
            dd = function.dots(d, d)
            if sum(dd) == 0:
                # Either x is stationary, or every step long enough to move was rejected.
                state["steps"] = [b.lr for b in function.blocks]
                return (x, 0.0, grad) if shrunk > 1e-8 else None
            if shrunk == 1 and state["s"]:
                z, decrease = self._subspace_point(function, x, p, steps)
                F, grad_z = self._evaluate(function, z) if decrease > 0 else (math.inf, grad)
                if self._sufficient(F, decrease):
                    return z, F, grad_z
            F, grad_p = self._evaluate(function, p)
            decrease = sum(a / t for a, t in zip(dd, steps, strict=True))
            if self._sufficient(F, decrease):
                state["steps"] = steps
                return p, F, grad_p
            # If the step is far too long, jump to the one that the curvature along d allows.
            curvature = float(d @ (grad_p - grad))
            ratio = decrease / curvature if 0 < curvature < math.inf else 0.1
            shrink = max(ratio, 1e-6) if ratio < 0.1 else 0.5
            if not math.isfinite(F):
                shrink = 0.1
            steps, shrunk = [max(t * shrink, MIN_STEP) for t in steps], shrunk * shrink
        return None

    def _evaluate(self, function: PenalizedFunction, x: Tensor) -> tuple[float, Tensor]:
        """Compute f + g at x, infinite if it or the gradient is not finite, and the gradient of f."""
        f, grad = function.gradient(x)
        F = f + function.penalty(x)
        return (F if math.isfinite(F) and function.is_finite(grad) else math.inf), grad

    def _sufficient(self, F: float, decrease: float) -> bool:
        worst, eps = max(self.search_state["values"]), self.search_state["eps"]
        return worst - SUFFICIENT_DECREASE / 2 * decrease + 10 * eps * abs(worst) >= F

    def _subspace_point(
        self, function: PenalizedFunction, x: Tensor, p: Tensor, steps: list[float]
    ) -> tuple[Tensor, float]:
        """Make the step from x to p quasi-Newton on the free entries; return its endpoint and the expected decrease.

        This applies only within a face of x: if an entry of p was zero or had the other sign, the returned decrease is
        0. Without that condition networks end in worse minima: neurons die before the support is found.
        """
        unpenalized = function.unpenalized
        free = (x * p > 0) | unpenalized
        if not torch.equal(free, (p != 0) | unpenalized):
            return p, 0.0
        move = x - p
        residual = move / function.expand(steps)
        q = residual * free
        v = inverse_hessian_product(q, self.search_state["s"], self.search_state["y"], free)
        z = x - v
        z = torch.where(((x * z > 0) & free) | unpenalized, z, 0.0)  # an entry may not leave its face
        return z, float(q @ v + (residual - q) @ move)

    def _remember(self, function: PenalizedFunction, s: Tensor, y: Tensor, F: float) -> None:
        """Keep the value and the pair (s, y) of an accepted move, and set the next steps from it."""
        state, options = self.search_state, self.param_groups[0]
        # A value above the largest one can only be rounding: clipped, rounding cannot add up to an increase.
        state["values"] = [*state["values"], min(F, max(state["values"]))][-options["memory"] :]
        self._barzilai_borwein(function, s, y)
        if options["history_size"] > 0:
            size = options["history_size"]
            state["s"], state["y"] = [*state["s"], s][-size:], [*state["y"], y][-size:]

    def _barzilai_borwein(self, function: PenalizedFunction, s: Tensor, y: Tensor) -> None:
        """Set each tensor's step to <s, s> / <s, y>, within bounds.

        A step grows at most by `MAX_GROWTH`: one sudden long step can carry a network into the null model, from which
        nothing returns. It also stays within `STEP_SPREAD` of the step for all tensors together: a tensor's y also
        holds what the other tensors' moves did to its gradient, which dominates when its own move is small; then the
        step shrinks, and the move with it.
        """
        state, ss, sy = self.search_state, function.dots(s, s), function.dots(s, y)
        together = sum(ss) / sum(sy) if sum(sy) > 0 else None
        steps = []
        for t, a, b in zip(state["steps"], ss, sy, strict=True):
            new = a / b if a > 0 and b > 0 else (2 * t if a > 0 else t)
            new = min(new, MAX_GROWTH * t)
            if together is not None:
                new = min(max(new, together / STEP_SPREAD), together * STEP_SPREAD)
            steps.append(min(max(new, MIN_STEP), 1 / MIN_STEP))
        state["steps"] = steps
