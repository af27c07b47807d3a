"""Evaluations on the features that matter now, for models with many features of which few are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from framework.callback import Callback
from framework.callbacks.penalty_path import PenaltyPath
from framework.layers import NormalizedLinear, normalized_rows
from framework.module import Module
from framework.objective.groups import is_penalized, weight

if TYPE_CHECKING:
    from framework.penalties import Penalty
    from framework.trainer import Trainer


class WorkingSet(Callback):
    """Within each optimizer step, evaluations that read only some features; the first of a step reads all of them.

    For optimizers that evaluate more than once per step, such as `SpaRSA`, and models whose first linear layer is
    penalized. After the first evaluation of a step, the working set is chosen: the features in use, and of those that
    the penalty does not hold at zero as many again (or `min_size`, if that is more), those with the largest pull first.
    Up to the end of the step the layer multiplies by their columns alone, and the gradients of the other features are
    zero, so that they stay zero. The objective is the same function everywhere: a point with another feature in use is
    evaluated in full. The next step looks at all features again, so the run ends at a stationary point of the whole
    problem; `Stationarity` measures on all features, too.

    It pays where products with the data take most of the time: with a thousand features or more. (As in working-set
    solvers of the lasso, such as celer, Massias, Gramfort & Salmon 2018; here for any network and penalty.)

    Args:
        min_size: How many features may join the working set in a step if fewer are in use.

    Attributes:
        sizes: How many features each step's working set had.

    Raises:
        ValueError: If `min_size` is less than 1; at `fit`, if the module has no penalized first linear layer, the
            optimizer evaluates once per step, steps are compiled, or the layer's input is a sparse tensor.
    """

    sizes: list[int]

    def __init__(self, min_size: int = 100) -> None:
        if min_size < 1:
            raise ValueError(f"WorkingSet: min_size={min_size!r}; it must be at least 1")
        self.min_size = min_size
        self.sizes = []
        self._layer: _NarrowLinear | None = None

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.compile is not None:
            raise ValueError("WorkingSet changes what a step reads, and a compiled one is fixed: drop one of the two")
        self.sizes = []

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        follows_path = any(isinstance(callback, PenaltyPath) for callback in trainer.callbacks)
        if not (trainer.closure.reevaluates or follows_path):
            raise ValueError(
                f"WorkingSet needs an optimizer that evaluates more than once per step, such as SpaRSA; "
                f"{type(trainer.optimizer).__name__} evaluates once, which must read all features"
            )
        self._layer = _NarrowLinear(_first_linear(module))

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: object, batch_idx: int) -> None:
        assert self._layer is not None
        self._layer.widen()

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        layer = self._layer
        if layer is None or layer.features is not None or not trainer.closure.reevaluates:
            return
        parameter = layer.linear.weight
        objective = trainer.closure.objective
        group = next((g for g in objective.groups if any(p is parameter for p in g["params"])), None)
        if group is None or not is_penalized(group) or objective.penalty is None or parameter.grad is None:
            raise ValueError(
                "WorkingSet chooses features by the penalty on the module's first linear layer, which has none: put "
                "its weight into a penalized group, or drop WorkingSet"
            )
        lam = weight(group, parameter, module.happy_lambda)
        with torch.no_grad():
            features, parameter.grad = self._choose(objective.penalty, parameter, parameter.grad, lam)
        layer.narrow(features)
        self.sizes.append(len(features))

    def _choose(self, penalty: Penalty, parameter: Tensor, grad: Tensor, lam: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the working set, in increasing order, and the gradient with zeros for the others."""
        is_used = (parameter != 0).any(dim=0)
        # A proximal step moves what the penalty does not hold at zero, of a group in part at zero, too.
        pull = penalty.prox(parameter - grad, 1.0, lam).norm(dim=0).masked_fill_(is_used, torch.inf)
        num_used, num_pulled = int(is_used.sum()), int(pull.count_nonzero())
        count = min(num_used + max(num_used, self.min_size), num_pulled)
        while True:
            features = pull.topk(count).indices.sort().values
            narrow = torch.zeros_like(grad).index_copy_(1, features, grad.index_select(1, features))
            # A part of a group may be too weak to leave zero without the rest.
            moves = count == num_pulled or bool((penalty.prox(parameter - narrow, 1.0, lam) != 0)[:, ~is_used].any())
            if moves:
                return features, narrow
            count = min(2 * count, num_pulled)

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert self._layer is not None
        self._layer.widen()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._layer is not None:
            self._layer.remove()
            self._layer = None


class _NarrowLinear:
    """A linear layer whose forward may be told to read only some features; the others' weights must be zero."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.features: Tensor | None = None
        self._inputs: list[tuple[Tensor, int, Tensor | None]] = []  # with their versions and what was selected of them
        linear.forward = self._forward  # type: ignore[method-assign, assignment]

    def narrow(self, features: Tensor) -> None:
        self.features = features

    def widen(self) -> None:
        self.features, self._inputs = None, []

    def remove(self) -> None:
        del self.linear.forward

    def _forward(self, x: Tensor) -> Tensor:
        linear = self.linear
        if self.features is None:
            if torch.is_grad_enabled():  # not of a validation, which nothing would read again
                self._inputs.append((x, x._version, None))
            return type(linear).forward(linear, x)
        if x.layout != torch.strided:
            raise ValueError(f"WorkingSet selects columns of dense inputs; this one is {x.layout}: drop WorkingSet")
        weight = linear.weight.index_select(1, self.features)
        if int(weight.count_nonzero()) < int(linear.weight.count_nonzero()):
            return type(linear).forward(linear, x)
        if isinstance(linear, NormalizedLinear):
            weight = normalized_rows(weight)
        return F.linear(self._select(x), weight, linear.bias)

    def _select(self, x: Tensor) -> Tensor:
        """Return the columns of an input in the working set: kept, if the step's first evaluation read the same."""
        assert self.features is not None
        for index, (seen, version, selected) in enumerate(self._inputs):
            if seen._version == version and _is_same_memory(seen, x):
                if selected is None:
                    selected = x.index_select(-1, self.features)
                    self._inputs[index] = seen, version, selected
                return selected
        return x.index_select(-1, self.features)


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _first_linear(module: Module) -> nn.Linear:
    for part in module.modules():
        if type(part) in (nn.Linear, NormalizedLinear):
            assert isinstance(part, nn.Linear)
            return part
    raise ValueError(
        "WorkingSet needs an nn.Linear or NormalizedLinear in the module: the first one reads the features"
    )
