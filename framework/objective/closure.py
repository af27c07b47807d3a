"""What one optimizer step evaluates: f, or f + g, over a group of micro-batches, as often as the optimizer asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.loop.batches import Batches
from framework.loop.metrics import Metrics, num_samples
from framework.loop.validation import check_output
from framework.module import Module
from framework.objective.batched_values import stacked_values, warn_one_by_one
from framework.objective.curvature import HessianVectorProduct, hessian_vector_product
from framework.objective.replay import Replay
from framework.objective.vector import ParameterVector


class Closure:
    """The objective of the current step, as ``optimizer.step`` receives it.

    The trainer brackets every step by `begin` and `end`. In between, each evaluation sees the same function: the same
    batches, dropout masks, augmentations and buffers. The first one with gradients counts: it is logged, and
    its batch-norm statistics and random draws are those that `end` commits.

    Whether the value is f or f + g is decided by the optimizer's class: ``handles_penalty = True`` means f.

    Attributes:
        evaluations: How many evaluations there were, with gradients, without, and for products with the Hessian.
        reevaluates: Whether the optimizer evaluates more than once per step.
        wanted: Whether its ``step`` is given the closure. Torch's own optimizers that evaluate once would only call it
            for the value that the trainer has.
        handles_penalty: Whether the optimizer applies g by its prox, and is given f alone.
        loss: f at the first evaluation of the step, detached.
        penalty: g there; None where there is none, or where neither the optimizer nor a log needs it.
        objective: f + g there (f where there is no g).
        outputs: What `training_step` returned there, as a mapping with "loss"; a list of them for several batches.
    """

    def __init__(
        self,
        module: Module,
        optimizer: Optimizer,
        metrics: Metrics,
        *,
        forward: Callable[[Any, int], Any] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        on_after_backward: Iterable[Callable[[], None]] = (),
    ) -> None:
        self.evaluations = 0
        self.reevaluates = reevaluates(optimizer)
        self.wanted = self.reevaluates or not type(optimizer).__module__.startswith("torch.optim.")
        self.handles_penalty = getattr(type(optimizer), "handles_penalty", False)
        self.loss: Tensor | None = None
        self.penalty: Tensor | None = None
        self.objective: Tensor | None = None
        self.outputs: Any = None

        self._module = module
        self._optimizer = optimizer
        self._metrics = metrics
        self._forward = forward or module.training_step
        self._backward = backward
        self._on_after_backward = list(on_after_backward)
        self._batches: Any = ()
        self._batch_idx = 0
        self._adds_penalty = False
        self._value: Tensor | None = None
        self._value_returned = False
        self._counted = False
        self._several = False
        self._stacks = True
        self._before: Replay | None = None
        self._after: Replay | None = None

    @property
    def penalized_groups(self) -> list[dict[str, Any]]:
        """The groups that g sums over, as they are now: loading a state replaces an optimizer's groups."""
        groups = declared_groups(self._module, self._optimizer)
        return [group for group in groups if group.get("penalized", False) is not False]

    def begin(self, batches: Iterable[Any], batch_idx: int, *, log: bool = False) -> None:
        """Take the micro-batches of the next step; ``batch_idx`` is the first one's, ``log`` says that g is wanted."""
        self._batches, self._batch_idx = batches, batch_idx
        self._several = not (isinstance(batches, list) and len(batches) == 1)
        self._adds_penalty = self._module.penalty is not None and (log or not self.handles_penalty)
        self._value, self._value_returned, self._counted = None, False, False
        if self.reevaluates:
            self._before, self._after = self._state_now(), None

    def __call__(self) -> Tensor:
        """Zero the gradients, evaluate, backpropagate; return the value, detached. With gradients also in `no_grad`."""
        if self._value is not None and not self.reevaluates:
            return self._value_once()
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                param.grad = None
        if torch.is_grad_enabled():
            value = self._evaluate(differentiate=True)
        else:
            with torch.enable_grad():
                value = self._evaluate(differentiate=True)
        for hook in self._on_after_backward:
            hook()
        return value

    def value(self) -> Tensor:
        """The value alone: no backward; gradients, logs, buffers and random state stay as they are."""
        if self._value is not None and not self.reevaluates:
            return self._value_once()
        with torch.no_grad():
            return self._evaluate(differentiate=False)

    def values(self, candidates: Sequence[Tensor]) -> Tensor:
        """The values (k,) at k points: a stack (k, *shape) for each trainable parameter of the optimizer's groups.

        By one `vmap` where the module allows it (`objective/batched_values.py`), else, with a warning that says why, at
        one point after the other, which moves the parameters. Gradients, logs, buffers and random state stay as they
        are. Each point counts as an evaluation.

        Raises:
            RuntimeError: The optimizer evaluates once per step.
        """
        if not self.reevaluates:
            raise self._undeclared()
        params = ParameterVector(self._optimizer.param_groups).params
        failure: str | None = None
        if self._stacks:
            try:
                with self._aside(len(candidates[0])), torch.no_grad():
                    return stacked_values(self._module, self._value_anew, params, candidates)
            except RuntimeError as error:
                self._stacks, failure = False, str(error)
                self.evaluations -= len(candidates[0])
        values = []
        for point in zip(*candidates, strict=True):
            with self._aside(), torch.no_grad():
                for param, value in zip(params, point, strict=True):
                    param.copy_(value)
                values.append(self._value_anew())
        if failure is not None:  # not of the module's own making: it would have come again
            warn_one_by_one(self._module, failure)
        return torch.stack(values)

    def hvp(self) -> Callable[[Tensor], Tensor]:
        """The Hessian at the current point, as a function from a vector (n,) or a stack (k, n) to its products.

        n counts the trainable values of the optimizer's groups, in their order. The Hessian is that of the value:
        f + g, or f for an optimizer that handles the penalty. Gradients, logs, buffers and random state stay as they
        are. Valid until the parameters change.

        One batch, or a list of them, is evaluated once, and its graphs are kept. Over an epoch every product evaluates
        the batches again, one at a time, in the memory of one. Each pass counts as an evaluation.

        Raises:
            RuntimeError: The optimizer evaluates once per step.
        """
        if not self.reevaluates:
            raise self._undeclared()
        if not isinstance(self._batches, list):
            return self._product_over_batches
        with self._aside():
            kept = [(num_samples(b), self._curvature(b, i)) for i, b in enumerate(self._batches, self._batch_idx)]
        return lambda vector: _mean((size, curvature(vector)) for size, curvature in kept)

    def end(self) -> None:
        """The step is over: commit the buffers and random draws of the evaluation that counts."""
        if self._after is not None:
            self._after.restore()
            self._metrics.muted = False

    def _evaluate(self, *, differentiate: bool) -> Tensor:
        """One evaluation; keep what is logged and committed of the first, or of the first with gradients."""
        counts = differentiate and not self._counted
        if self.reevaluates:
            self._metrics.muted = not counts
            if self._value is not None:
                assert self._before is not None
                self._before.restore()
        self.evaluations += 1

        if self._several:
            f, g, outputs = self._accumulate(differentiate)
        else:
            f, g, outputs = self._backpropagate(self._batches[0], self._batch_idx, 1.0, differentiate)
        objective = f if g is None else f + g
        value = f if self.handles_penalty else objective
        if counts or self._value is None:
            self._value, self._counted = value, counts
            self.loss, self.penalty, self.objective, self.outputs = f, g, objective, outputs
            if self.reevaluates:
                self._after = self._state_now()
        return value

    def _value_anew(self) -> Tensor:
        """The value, whatever was evaluated before."""
        f, g, _ = self._accumulate(differentiate=False)
        return f if g is None or self.handles_penalty else f + g

    def _accumulate(self, differentiate: bool) -> tuple[Tensor, Tensor | None, Any]:
        """f and g as means over the samples of the group, with their gradients if asked for, and the outputs."""
        outputs = []
        first_size, total_weight, f, g = 0, 0.0, None, None
        for batch_idx, batch in enumerate(self._batches, self._batch_idx):
            # Weights relative to the first batch, so that equal batches need no scaling before their sum.
            size = num_samples(batch)
            first_size = first_size or size
            weight = size / first_size
            loss, penalty, output = self._backpropagate(batch, batch_idx, weight, differentiate)
            total_weight += weight
            outputs.append(output)
            f = loss * weight if f is None else f + loss * weight
            if penalty is not None:
                g = penalty * weight if g is None else g + penalty * weight
        if f is None:
            raise ValueError("the data loader yielded no batch: is it empty, or a generator that was read before?")
        if differentiate:
            self._scale_gradients(1 / total_weight)
        return f / total_weight, None if g is None else g / total_weight, outputs

    def _backpropagate(
        self, batch: Any, batch_idx: int, weight: float, differentiate: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """f, g and the outputs for one batch, detached; the gradients of ``weight`` times the objective are added."""
        objective, loss, penalty, extra = self._objective(batch, batch_idx)
        if differentiate:
            self._backward(objective if weight == 1 else objective * weight)
        loss = loss.detach()
        return loss, None if penalty is None else penalty.detach(), {**extra, "loss": loss}

    def _objective(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor, Tensor | None, Mapping[str, Any]]:
        """What the optimizer differentiates, for one batch: with its graph, and with f, g and what else there is."""
        self._metrics.batch = batch
        output = self._forward(batch, batch_idx)
        if self.evaluations == 1:
            check_output(self._module, output)
        extra: Mapping[str, Any] = {}
        if isinstance(output, Tensor):
            loss, penalty = output, None
        elif isinstance(output, Mapping):
            loss, penalty, extra = output["loss"], output.get("penalty"), output
        else:
            loss, penalty = output
        if self._adds_penalty:
            penalty = penalty_value(self._module, self.penalized_groups)

        return loss if penalty is None or self.handles_penalty else loss + penalty, loss, penalty, extra

    def _curvature(self, batch: Any, batch_idx: int) -> HessianVectorProduct:
        """The Hessian of the objective for one batch, with its graph."""
        params = ParameterVector(self._optimizer.param_groups).params
        return hessian_vector_product(lambda: self._objective(batch, batch_idx)[0], params)

    def _product_over_batches(self, vector: Tensor) -> Tensor:
        with self._aside():
            return _mean(
                (num_samples(batch), self._curvature(batch, batch_idx)(vector))
                for batch_idx, batch in enumerate(self._batches, self._batch_idx)
            )

    @contextmanager
    def _aside(self, count: int = 1) -> Iterator[None]:
        """Evaluations of the step's function that leave no trace but their count."""
        assert self._before is not None
        self.evaluations += count
        muted, self._metrics.muted = self._metrics.muted, True
        try:
            with self._before.on_copies():
                yield
        finally:
            self._metrics.muted = muted

    def _state_now(self) -> Replay:
        generators = self._batches.generators() if isinstance(self._batches, Batches) else ()
        return Replay(self._module, generators)

    def _scale_gradients(self, factor: float) -> None:
        for group in self._optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(factor)

    def _value_once(self) -> Tensor:
        """The value that the trainer computed before the step of an optimizer that evaluates once."""
        assert self._value is not None
        if self._value_returned:
            raise self._undeclared()
        self._value_returned = True
        return self._value

    def _undeclared(self) -> RuntimeError:
        name = type(self._optimizer).__name__
        return RuntimeError(
            f"{name} evaluates its closure more than once per step. Say so by `reevaluates = True` on the class "
            f"{name}: then every evaluation of a step sees the same function."
        )


def _mean(weighted: Iterable[tuple[int, Tensor]]) -> Tensor:
    """The mean of vectors with weights."""
    total, weight = torch.zeros(()), 0
    for size, vector in weighted:
        total, weight = total.to(vector) + size * vector, weight + size
    return total / weight


def reevaluates(optimizer: Optimizer) -> bool:
    """Whether an optimizer evaluates more than once per step: its class says so, or its step requires a closure."""
    cls = type(optimizer)
    if hasattr(cls, "reevaluates"):
        return bool(cls.reevaluates)
    # The class's own function: schedulers replace the instance's by a wrapper.
    closure = inspect.signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def declared_groups(module: Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups that say what is penalized: the optimizer's if all of them do, else the module's."""
    groups = optimizer.param_groups
    if not all("penalized" in group for group in groups):
        # Like an optimizer, take a single tensor, or a generator, which could be read only once.
        given = [(group, group["params"]) for group in module.param_groups()]
        groups = [{**group, "params": [p] if isinstance(p, Tensor) else list(p)} for group, p in given]
    return groups


def penalty_value(module: Module, groups: Iterable[dict[str, Any]]) -> Tensor:
    """g: the module's penalty, summed over the penalized groups, as a scalar tensor."""
    assert module.penalty is not None
    total = torch.zeros((), device=module.device)
    for group in groups:
        lam = group.get("happy_lambda", module.happy_lambda)
        mask = group["penalized"]
        for param in group["params"]:
            total = total + module.penalty.value(param, lam if mask is True else lam * mask.to(param))
    return total
