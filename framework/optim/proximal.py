"""What all proximal optimizers share: groups that say what is penalized, and f + g as a function of one vector."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from framework.objective.groups import check_groups, check_weight, penalty_value, weight
from framework.objective.vector import ParameterVector, flatten
from framework.optim.arguments import check_positive
from framework.optim.function import ClosureFunction
from framework.penalties import L1, Penalty

Closure = Callable[[], Any]
Group = dict[str, Any]


class ProximalOptimizer(Optimizer):
    """The base class of optimizers of f + g: the closure gives f and its gradient, the optimizer applies g by its prox.

    Plain tensors are all penalized. Parameter groups must each carry `"penalized"`: True, False, or a boolean mask of
    the parameter's shape. `happy_lambda`, the weight of the penalty, is an option of each group and may be changed
    between steps through `param_groups`. The penalty itself is not an option: it stays out of `state_dict()`, which
    holds only numbers and tensors and loads with `weights_only=True`.

    In a trainer the penalty and its weight have one source: an optimizer made without them takes, at every step, those
    of the module, its `source`. In a hand-written loop the weight must be set before the first step, and the penalty
    defaults to `L1()`.

    The trainer reads from the class: `handles_penalty`, whether it is given f alone; `reevaluates`, whether `step`
    evaluates its closure more than once; `expects_gradients`, whether the gradients must be ready before `step` first
    calls its closure.

    Raises:
        ValueError: If a group lacks `penalized`, its mask does not fit, or `happy_lambda` is negative or not finite.
    """

    handles_penalty = True
    reevaluates = True
    expects_gradients = False
    source: Any = None

    def __init__(
        self,
        params: ParamsT,
        happy_lambda: float | None,
        penalty: Penalty | None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        self.penalty = penalty
        if not isinstance(params, Tensor):
            given: list[Any] = list(params)
            plain = bool(given) and not isinstance(given[0], dict)
            params = [{"params": given, "penalized": True}] if plain else given
        super().__init__(params, {"happy_lambda": happy_lambda, **(defaults or {})})

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        try:
            self._check_groups()
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_groups(self) -> None:
        check_groups(self.param_groups, needed=True)
        group = self.param_groups[-1]
        if group["happy_lambda"] is not None:
            check_weight(group["happy_lambda"], f"parameter group {len(self.param_groups) - 1}")
        if "lr" in group:
            check_positive(lr=float(group["lr"]))

    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "penalty": self.penalty}

    @property
    def penalty_in_force(self) -> Penalty:
        """The optimizer's own penalty; without one, that of its source, or `L1()`."""
        if self.penalty is None:
            return L1() if self.source is None else self.source.penalty
        return self.penalty

    def weight(self, group: Group, param: Tensor) -> float | Tensor:
        """Return the weight of the penalty on one parameter, as `framework.objective.groups.weight` does."""
        return weight(group, param, None if self.source is None else self.source.happy_lambda)

    @torch.no_grad()
    def penalty_value(self) -> Tensor:
        """Compute g at the current parameters, a 0-d tensor."""
        happy_lambda = None if self.source is None else self.source.happy_lambda
        return penalty_value(self.penalty_in_force, self.param_groups, happy_lambda)

    @property
    def search_state(self) -> dict[str, Any]:
        """The state of the search as a whole, kept with the first parameter, as in `torch.optim.LBFGS`."""
        return self.state[self.param_groups[0]["params"][0]]


@dataclass(slots=True)
class Block:
    """One parameter as a part of the vector x; `lam` is 0.0 if nothing in it is penalized."""

    param: Tensor
    lam: float | Tensor
    lr: float

    @property
    def penalized(self) -> bool:
        return isinstance(self.lam, Tensor) or self.lam > 0

    def penalty_value(self, penalty: Penalty, part: Tensor) -> Tensor:
        return penalty.value(part.view(self.param.shape), self.lam) if self.penalized else part.new_zeros(())

    def prox(self, penalty: Penalty, part: Tensor, step: float) -> Tensor:
        if not self.penalized:
            return part
        # Adding zero makes the negative zeros that a penalty may return positive.
        return penalty.prox(part.view(self.param.shape), step, self.lam).reshape(-1) + 0.0


class PenalizedFunction(ClosureFunction):
    """A closure's f and the penalty g, as functions of the vector x of all parameters that have a gradient."""

    has_gradient = True

    def __init__(self, optimizer: ProximalOptimizer, closure: Closure) -> None:
        super().__init__(closure, ParameterVector(optimizer.param_groups))
        self.penalty_fn = optimizer.penalty_in_force
        self.blocks = [
            Block(param, optimizer.weight(group, param), float(group.get("lr", 1.0)))
            for group, params in self.vector.groups
            for param in params
        ]
        self.sizes = self.vector.sizes

    def start(self, y: Tensor | None = None) -> tuple[float, Tensor, Tensor]:
        """Evaluate f at the vector y, by default the current point x; return f, y and the gradient.

        Afterwards `x`, y and the gradient hold only the parameters that have a gradient; the others have not moved.
        """
        f = self.evaluate(self.x if y is None else y)
        return f, *self.bind(y)

    def bind(self, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Drop the parameters without a gradient from `x` and y; return y and the gradient."""
        kept = [b.param.grad is not None for b in self.blocks]
        if not all(kept):
            self.restore()
            self.x, y = self._cut(self.x, kept), None if y is None else self._cut(y, kept)
            self._at = self.x
            self.vector = self.vector.with_gradient()
            self.blocks = [b for b, keep in zip(self.blocks, kept, strict=True) if keep]
            self.sizes = self.vector.sizes
            vars(self).pop("unpenalized", None)
        gradient = self.vector.read_gradients()
        assert gradient is not None
        return self.x if y is None else y, gradient

    def _cut(self, x: Tensor, kept: Sequence[bool]) -> Tensor:
        return flatten([part for part, keep in zip(x.split_with_sizes(self.sizes), kept, strict=True) if keep])

    def penalty(self, x: Tensor) -> float:
        """Compute g(x)."""
        parts = zip(self.blocks, x.split_with_sizes(self.sizes), strict=True)
        values = [b.penalty_value(self.penalty_fn, part) for b, part in parts if b.penalized]
        return float(values[0] if len(values) == 1 else torch.stack(values).sum()) if values else 0.0

    def forward_backward(self, x: Tensor, grad: Tensor, steps: Sequence[float]) -> Tensor:
        """Compute prox_{t g}(x - t grad), with one step t for each tensor (Beck & Teboulle 2009, eq. 2.6)."""
        parts = zip(self.blocks, *(v.split_with_sizes(self.sizes) for v in (x, grad)), steps, strict=True)
        return torch.cat([b.prox(self.penalty_fn, xi.sub(gi, alpha=t), t) for b, xi, gi, t in parts])

    def dots(self, a: Tensor, b: Tensor) -> list[float]:
        """Compute the inner product of two vectors, separately for each tensor's part."""
        sizes = self.sizes
        parts = zip(a.split_with_sizes(sizes), b.split_with_sizes(sizes), strict=True)
        return torch.stack([ai @ bi for ai, bi in parts]).tolist()

    def is_finite(self, x: Tensor) -> bool:
        """Tell whether every entry of a vector is finite."""
        # A finite sum, which is much faster to compute, has finite terms only.
        return math.isfinite(x.sum()) or bool(x.isfinite().all())

    def expand(self, numbers: Sequence[float]) -> Tensor:
        """Return the vector that repeats one number per tensor over all of that tensor's entries."""
        return torch.cat([self.x.new_full((n,), v) for n, v in zip(self.sizes, numbers, strict=True)])

    @cached_property
    def unpenalized(self) -> Tensor:
        """Which entries of x are not penalized, boolean (n,)."""
        return flatten([torch.as_tensor(b.lam, device=b.param.device).expand(b.param.shape) <= 0 for b in self.blocks])


NOT_FINITE = "the objective or its gradient is not finite at the current point; the parameters stay where they are"
NO_DESCENT = (
    "no step decreases the objective as its gradient promises; the parameters stay at the last accepted point. Check "
    "that the closure is deterministic and that its value and gradient belong to the same function"
)


def warn_no_step(optimizer: Optimizer, reason: str) -> None:
    """Warn that a step left the parameters at the last accepted point, and why."""
    warnings.warn(f"{type(optimizer).__name__} took no step: {reason}", RuntimeWarning, stacklevel=4)
