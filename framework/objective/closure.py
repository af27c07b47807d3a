"""What one optimizer step evaluates: f, or f + g, over a group of micro-batches, as often as the optimizer asks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from framework.module import Module
from framework.objective.batched_values import stacked_values, warn_one_by_one
from framework.objective.curvature import HessianVectorProduct, hessian_vector_product
from framework.objective.groups import Group, declared_groups, penalty_value
from framework.objective.output import check_finite, parse_output
from framework.objective.replay import Generator, Replay
from framework.objective.vector import ParameterVector
from framework.penalties import Penalty


class Recorder(Protocol):
    """Who collects what `training_step` logs."""

    def read(self, batch: Any) -> None:
        """Note the batch that belongs to what is logged from now on."""

    def muted(self) -> AbstractContextManager[None]:
        """Ignore, within, what is logged: the step is seen again."""


class Unrecorded:
    """The recorder of a closure whose logs nobody collects."""

    def read(self, batch: Any) -> None: ...

    def muted(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(slots=True)
class Evaluation:
    """What one evaluation found, detached.

    Attributes:
        loss: f, a 0-d tensor, the mean over the samples.
        penalty: g; None where there is none, or where neither the optimizer nor a log needs it.
        value: What the optimizer minimizes by its closure: f + g, or f where it handles the penalty itself.
        outputs: What `training_step` returned, as a mapping with "loss"; a list of them for several batches.
    """

    loss: Tensor
    penalty: Tensor | None
    value: Tensor
    outputs: Any

    @property
    def objective(self) -> Tensor:
        """f + g, or f where there is no g."""
        return self.loss if self.penalty is None else self.loss + self.penalty


class Objective:
    """f + g over micro-batches, at the current parameters: one evaluation, and nothing of steps.

    Whether the value is f or f + g is decided by the optimizer's class: ``handles_penalty = True`` means f.

    Args:
        module: Whose `training_step` gives f, and whose penalty gives g.
        optimizer: Whose parameters are differentiated.
        forward: `training_step` as the device and precision want it called.
        backward: Adds the gradients of a loss to those in the parameters.
        recorder: Is told the batch under way.
        evaluations: How many there were before.

    Attributes:
        evaluations: How many evaluations there were, with gradients, without, and for products with the Hessian.
        handles_penalty: Whether the optimizer applies g by its prox, and is given f alone.
    """

    def __init__(
        self,
        module: Module,
        optimizer: Optimizer,
        *,
        forward: Callable[[Any, int], Any] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        recorder: Recorder | None = None,
        evaluations: int = 0,
    ) -> None:
        self.evaluations = evaluations
        self.handles_penalty: bool = getattr(type(optimizer), "handles_penalty", False)
        self.module = module
        self.optimizer = optimizer
        self._forward = forward or module.training_step
        self._backward = backward
        self._recorder = recorder or Unrecorded()

    @property
    def penalty(self) -> Penalty | None:
        """The penalty function: the module's, or that of an optimizer that has its own where the module has none."""
        if self.module.penalty is None and self.handles_penalty:
            return getattr(self.optimizer, "penalty", None)
        return self.module.penalty

    @property
    def groups(self) -> Sequence[Group]:
        """The groups that say what is penalized, as they are now: loading a state replaces an optimizer's groups."""
        return declared_groups(self.module, self.optimizer)

    def evaluate(
        self, batches: Iterable[Any], batch_idx: int, *, differentiate: bool, with_penalty: bool = True
    ) -> Evaluation:
        """Evaluate once over the batches; ``batch_idx`` is the first one's.

        Args:
            batches: The micro-batches; f and g are means over all their samples.
            batch_idx: The index of the first.
            differentiate: Whether to add the gradients of the value to those in the parameters.
            with_penalty: Whether g is wanted although the optimizer handles it itself.
        """
        self.evaluations += 1
        outputs: Any
        if isinstance(batches, list) and len(batches) == 1:
            loss, penalty, outputs = self._add(batches[0], batch_idx, 1.0, differentiate, with_penalty)
        else:
            loss, penalty, outputs = self._mean(batches, batch_idx, differentiate, with_penalty)
        return Evaluation(loss, penalty, loss if penalty is None or self.handles_penalty else loss + penalty, outputs)

    def graph(
        self, batch: Any, batch_idx: int, *, with_penalty: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None, Mapping[str, Any]]:
        """Return the value for one batch with its graph, f, g and what else `training_step` returned."""
        self._recorder.read(batch)
        loss, penalty, extras = parse_output(self.module, self._forward(batch, batch_idx))
        if self.evaluations == 1:
            check_finite(self.module, loss, penalty)
        if with_penalty or not self.handles_penalty:
            function = self.penalty
            if function is not None:
                penalty = penalty_value(function, self.groups, self.module.happy_lambda)
        return loss if penalty is None or self.handles_penalty else loss + penalty, loss, penalty, extras

    def curvature(self, batch: Any, batch_idx: int) -> HessianVectorProduct:
        """Return the Hessian of the value for one batch, with its graph."""
        params = ParameterVector(self.optimizer.param_groups).params
        return hessian_vector_product(lambda: self.graph(batch, batch_idx)[0], params)

    def _add(
        self, batch: Any, batch_idx: int, weight: float, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """f, g and the outputs for one batch, detached; the gradients of ``weight`` times the value are added."""
        value, loss, penalty, extras = self.graph(batch, batch_idx, with_penalty=with_penalty)
        if differentiate:
            self._backward(value if weight == 1 else value * weight)
        loss = loss.detach()
        return loss, None if penalty is None else penalty.detach(), {**extras, "loss": loss}

    def _mean(
        self, batches: Iterable[Any], batch_idx: int, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
        """f and g as means over the samples of the group, with their gradients if asked for, and the outputs."""
        outputs = []
        first_size, total_weight, f, g = 0, 0.0, None, None
        for index, batch in enumerate(batches, batch_idx):
            # Weights relative to the first batch, so that equal batches need no scaling before their sum.
            size = self.module.count_samples(batch)
            first_size = first_size or size
            weight = size / first_size
            loss, penalty, output = self._add(batch, index, weight, differentiate, with_penalty)
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

    def zero_gradients(self) -> None:
        """Drop the gradients of the optimizer's parameters."""
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                param.grad = None

    def _scale_gradients(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.grad.mul_(factor)


class Closure:
    """The objective of the current step, as ``optimizer.step`` receives it.

    The trainer brackets every step by `step`. In between, each evaluation sees the same function: the same
    batches, dropout masks, augmentations and buffers. The first one counts: it is logged, and its random draws are
    those of the step. Batch-norm statistics are those at the point that the optimizer accepts.

    A value always belongs to the current parameters. Gradients that were computed before the optimizer's ``step`` are
    the answer to `__call__` as long as neither they nor the parameters have changed; else it evaluates.

    Args:
        objective: What is evaluated.
        recorder: Is muted while a step is seen again.
        data_generators: Those that the data are drawn from, for a step whose batches are read at every evaluation.
        on_after_backward: Called after each evaluation with gradients.

    Attributes:
        objective: What is evaluated, with the count of evaluations.
        reevaluates: Whether the optimizer evaluates more than once per step.
        first: The evaluation of the last step that counts; None before the first step.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        recorder: Recorder | None = None,
        data_generators: Callable[[], Iterable[Generator]] = tuple,
        on_after_backward: Iterable[Callable[[], None]] = (),
    ) -> None:
        self.objective = objective
        self.reevaluates = reevaluates(objective.optimizer)
        self.first: Evaluation | None = None
        self._recorder = recorder or Unrecorded()
        self._data_generators = data_generators
        self._on_after_backward = list(on_after_backward)
        self._minimizes: bool = getattr(type(objective.optimizer), "minimizes", False)
        self._vmaps = True
        self._step: _Step | None = None

    @property
    def evaluations(self) -> int:
        """How many evaluations there were in this run, with gradients, without, and for products with the Hessian."""
        return self.objective.evaluations

    # ------------------------------------------------------------------------------------- for the optimizer

    def __call__(self) -> Tensor:
        """Zero the gradients, evaluate, backpropagate; return the value, detached. With gradients also in `no_grad`."""
        if (value := self._ready_value()) is not None:
            return value
        return self._evaluate(differentiate=True)

    def value(self) -> Tensor:
        """Return the value alone: no backward; gradients and random state stay as they are."""
        if (value := self._ready_value()) is not None:
            return value
        return self._evaluate(differentiate=False)

    def values(self, candidates: Sequence[Tensor]) -> Tensor:
        """Return the values (k,) at k points: a stack (k, *shape) for each trainable parameter of the groups.

        By one `vmap` where the module allows it (`objective/batched_values.py`), else, with a warning that says why, at
        one point after the other, which moves the parameters. Gradients, logs, buffers and random state stay as they
        are. Each point counts as an evaluation.
        """
        objective, failure = self.objective, None
        params = ParameterVector(objective.optimizer.param_groups).params
        before = objective.evaluations
        if self._vmaps:
            try:
                with self._aside(), torch.no_grad():
                    at_once = stacked_values(objective.module, self._value_anew, params, candidates)
                objective.evaluations = before + len(at_once)
                return at_once
            except RuntimeError as error:
                failure, objective.evaluations = str(error), before
        values = []
        for point in zip(*candidates, strict=True):
            with self._aside(), torch.no_grad():
                for param, value in zip(params, point, strict=True):
                    param.copy_(value)
                values.append(self._value_anew())
        if failure is not None:  # not of the module's own making: it would have come again
            self._vmaps = False
            warn_one_by_one(objective.module, failure)
        return torch.stack(values)

    def hvp(self) -> Callable[[Tensor], Tensor]:
        """Return the Hessian at the current point, as a function from a vector (n,) or a stack (k, n) to its products.

        n counts the trainable values of the optimizer's groups, in their order. The Hessian is that of the value:
        f + g, or f for an optimizer that handles the penalty. Gradients, logs, buffers and random state stay as they
        are. Valid until the parameters change.

        One batch, or a list of them, is evaluated once, and its graphs are kept. Over an epoch every product evaluates
        the batches again, one at a time, in the memory of one. Each pass counts as an evaluation.
        """
        step = self._under_way()
        if not isinstance(step.batches, list):
            return self._product_over_batches
        with self._aside():
            self.objective.evaluations += 1
            kept = [
                (self.objective.module.count_samples(batch), self.objective.curvature(batch, index))
                for index, batch in enumerate(step.batches, step.batch_idx)
            ]
        return lambda vector: _mean((size, curvature(vector)) for size, curvature in kept)

    # --------------------------------------------------------------------------------------- for the trainer

    def evaluate_once(self, batches: Iterable[Any], batch_idx: int, *, log: bool = False) -> None:
        """Compute the gradients of a step whose optimizer needs no closure: nothing is kept to see it again."""
        self.objective.zero_gradients()
        self.first = self.objective.evaluate(batches, batch_idx, differentiate=True, with_penalty=log)
        for hook in self._on_after_backward:
            hook()

    @contextmanager
    def step(self, batches: Iterable[Any], batch_idx: int, *, log: bool = False) -> Iterator[None]:
        """Within, every evaluation sees the same function; afterwards buffers are those of the point accepted.

        Args:
            batches: The micro-batches of the step: a list, or what can be read again at every evaluation.
            batch_idx: The index of the first.
            log: Whether g is wanted although the optimizer handles it itself.

        Raises:
            RuntimeError: If the optimizer has evaluated nothing.
        """
        generators = () if isinstance(batches, list) else self._data_generators()
        self.first = None
        self._step = step = _Step(batches, batch_idx, log, Replay(self.objective.module, generators))
        try:
            yield
            if self.first is None:
                raise RuntimeError(
                    f"{type(self.objective.optimizer).__name__}.step returned without a call of its closure: it must "
                    "evaluate the objective, by closure() or closure.value()"
                )
            self._settle_buffers(step)
        finally:
            self._step = None

    def keep_ready(self) -> None:
        """Let the evaluation just made, and the gradients as they are now, answer the optimizer's first call."""
        assert self.first is not None
        self._under_way().ready = _snapshot(self.objective.optimizer)

    @contextmanager
    def smooth_gradient(self, batches: Iterable[Any]) -> Iterator[None]:
        """Within, the gradient of f alone over the batches lies in the parameters; afterwards all is as it was.

        Counts as an evaluation; neither logs, buffers nor random draws change. To be used between steps.
        """
        objective = self.objective
        parameters = list(objective.module.parameters())
        kept = [parameter.grad for parameter in parameters]
        handles_penalty, objective.handles_penalty = objective.handles_penalty, True
        try:
            with Replay(objective.module, self._data_generators()).on_copies(), self._recorder.muted():
                for parameter in parameters:
                    parameter.grad = None
                with torch.enable_grad():
                    objective.evaluate(batches, 0, differentiate=True, with_penalty=False)
            yield
        finally:
            objective.handles_penalty = handles_penalty
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient

    # -------------------------------------------------------------------------------------------- evaluations

    def _evaluate(self, *, differentiate: bool) -> Tensor:
        """Evaluate the function of the step at the current parameters; keep the first evaluation."""
        step, is_first = self._under_way(), self.first is None
        with nullcontext() if is_first else step.start.again(), nullcontext() if is_first else self._recorder.muted():
            if differentiate:
                self.objective.zero_gradients()
            with torch.set_grad_enabled(differentiate):
                evaluation = self.objective.evaluate(
                    step.batches, step.batch_idx, differentiate=differentiate, with_penalty=step.log and is_first
                )
            if differentiate:
                for hook in self._on_after_backward:
                    hook()
        if is_first:
            self.first = evaluation
            step.changes_buffers = step.start.buffers_changed()
        if step.changes_buffers:
            step.point = [param.detach().clone() for param in _parameters(self.objective.optimizer)]
        step.evaluations += 1
        return evaluation.value

    def _ready_value(self) -> Tensor | None:
        """The value computed before the optimizer's step, where it still is that of the current parameters."""
        step = self._under_way()
        if step.ready is None:
            return None
        if _snapshot_holds(step.ready, self.objective.optimizer):
            if self.reevaluates:
                step.ready = None  # asked again, it evaluates again
            assert self.first is not None
            return self.first.value
        step.ready = None
        return None

    def _settle_buffers(self, step: _Step) -> None:
        """Leave the module's buffers as an evaluation at the accepted point does."""
        if not step.changes_buffers or not (self.reevaluates or step.evaluations > 1):
            return
        accepted = all(
            torch.equal(param, at) for param, at in zip(_parameters(self.objective.optimizer), step.point, strict=True)
        )
        if accepted and not self._minimizes:
            return
        # A step that is a whole minimization has one point: its statistics, not an average with those of the start.
        average = _averaged_batch_norm(self.objective.module) if self._minimizes else nullcontext()
        with step.start.again(), self._recorder.muted(), average, torch.no_grad():
            self.objective.evaluate(step.batches, step.batch_idx, differentiate=False, with_penalty=False)

    def _value_anew(self) -> Tensor:
        """The value, whatever was evaluated before."""
        step = self._under_way()
        return self.objective.evaluate(step.batches, step.batch_idx, differentiate=False, with_penalty=False).value

    def _product_over_batches(self, vector: Tensor) -> Tensor:
        step, objective = self._under_way(), self.objective
        with self._aside():
            objective.evaluations += 1
            return _mean(
                (objective.module.count_samples(batch), objective.curvature(batch, batch_idx)(vector))
                for batch_idx, batch in enumerate(step.batches, step.batch_idx)
            )

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Evaluations of the step's function that leave no trace but their count."""
        with self._under_way().start.on_copies(), self._recorder.muted():
            yield

    def _under_way(self) -> _Step:
        if self._step is None:
            raise RuntimeError("a closure evaluates the objective of the step under way, and none is: use it in step()")
        return self._step


@dataclass(slots=True)
class _Step:
    """What a closure knows of the step under way.

    Attributes:
        batches: The micro-batches.
        batch_idx: The index of the first.
        log: Whether g is wanted at the first evaluation in any case.
        start: Random state and buffers at its start.
        ready: Parameters and gradients for which the first evaluation is the answer.
        evaluations: How many there were in this step.
        changes_buffers: Whether an evaluation writes into buffers.
        point: The parameters at the last evaluation, kept where buffers change.
    """

    batches: Iterable[Any]
    batch_idx: int
    log: bool
    start: Replay
    ready: _Snapshot | None = None
    evaluations: int = 0
    changes_buffers: bool = False
    point: Sequence[Tensor] = ()


class _Snapshot(NamedTuple):
    """Copies of parameters and of their gradients, in the optimizer's order.

    Version counters would not do: writing into ``param.data`` leaves them as they are.
    """

    parameters: list[Tensor]
    gradients: list[Tensor | None]


def _snapshot(optimizer: Optimizer) -> _Snapshot:
    params = _parameters(optimizer)
    return _Snapshot(
        [param.detach().clone() for param in params],
        [None if param.grad is None else param.grad.clone() for param in params],
    )


def _snapshot_holds(snapshot: _Snapshot, optimizer: Optimizer) -> bool:
    """Whether parameters and gradients are what they were; a gradient that was dropped or replaced is not."""
    for param, value, gradient in zip(_parameters(optimizer), *snapshot, strict=True):
        if (param.grad is None) != (gradient is None) or not torch.equal(param, value):
            return False
        if gradient is not None and not torch.equal(param.grad.to_dense(), gradient.to_dense()):  # type: ignore[union-attr]
            return False
    return True


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


@contextmanager
def _averaged_batch_norm(module: Module) -> Iterator[None]:
    """Let batch norm start anew and average over the batches read within, as `torch.optim.swa_utils.update_bn` does."""
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    try:
        # Within: `Replay.again` has just written the buffers of the step's start.
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _mean(weighted: Iterable[tuple[int, Tensor]]) -> Tensor:
    """The mean of vectors with weights."""
    total, weight = torch.zeros(()), 0
    for size, vector in weighted:
        total, weight = total.to(vector) + size * vector, weight + size
    return total / weight


def reevaluates(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer evaluates more than once per step.

    Its class says so by ``reevaluates``; else its step requires a closure.
    """
    cls = type(optimizer)
    if hasattr(cls, "reevaluates"):
        return bool(cls.reevaluates)
    # The class's own function: schedulers replace the instance's by a wrapper.
    closure = inspect.signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
