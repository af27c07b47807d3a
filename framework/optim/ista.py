"""ISTA: the proximal gradient method with backtracking, the reference method of this package."""

import torch
from torch import Tensor

from framework.optim.backtracking import BacktrackingOptimizer
from framework.optim.proximal import Closure, PenalizedFunction


class ISTA(BacktrackingOptimizer):
    """ISTA on f + g: x+ = prox_{t g}(x - t grad f(x)), with backtracking (Beck & Teboulle 2009, sec. 2).

    For convex g, f + g decreases at every step.

    `step` accepts two kinds of closure and tells them apart by what they do, never by what they return:

    - the usual closure of this package zeroes the gradients, evaluates f, backpropagates and returns f;
    - a closure that writes no gradient returns the total objective f + g, and the caller has computed the gradients
      of f beforehand. If `initial_loss` is given, this kind is assumed.

    The arguments are those of `BacktrackingOptimizer`.
    """

    @torch.no_grad()
    def step(self, closure: Closure, initial_loss: float | None = None) -> float:  # type: ignore[override]
        """Move to the next accepted point and return f + g there.

        Args:
            closure: A closure of either kind above.
            initial_loss: f + g at the current point, for a closure that returns the total objective.
        """
        function, f, grad = self._start(closure, initial_loss)
        with function:
            F = f + function.penalty(function.x)
            found = self._advance(function, function.x, f, grad)
            if found is None:
                self._warn(function, F, grad)
                return F
            x, F, self.search_state["scale"] = found
            function.accept(x)
        return F

    def _start(self, closure: Closure, initial_loss: float | None) -> tuple[PenalizedFunction, float, Tensor]:
        if initial_loss is None:
            before = self._gradients()
            function = PenalizedFunction(self, closure)
            value, _, grad = function.start()
            after = self._gradients()
            written = any(a is not b or va != vb for (a, va), (b, vb) in zip(after, before, strict=True))
            if written or hasattr(closure, "value") or not function.blocks:
                return function, value, grad
            initial_loss = value
        function = TotalFunction(self, closure)
        _, grad = function.bind()
        return function, float(initial_loss) - function.penalty(function.x), grad

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        return [(grad, 0 if grad is None else grad._version) for grad in grads]


class TotalFunction(PenalizedFunction):
    """A function whose closure returns f + g and computes no gradient."""

    has_gradient = False

    def value(self, x: Tensor) -> float:
        return super().value(x) - self.penalty(x)
