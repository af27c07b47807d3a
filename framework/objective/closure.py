"""What one optimizer step evaluates: f or f + g over a group of micro-batches, as often as the optimizer asks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from framework.module import Module
from framework.objective.batched_values import stacked_values, warn_one_by_one
from framework.objective.curvature import HessianVectorProduct, hessian_vector_product
from framework.objective.groups import Group, declared_groups, penalty_value
from framework.objective.output import NoLossError, check_finite, parse_output
from framework.objective.replay import Generator, Replay, keeping_metrics
from framework.objective.vector import ParameterVector, all_parameters
from framework.penalties import Penalty


class Recorder(Protocol):
    """A collector of what `training_step` logs."""

    def read(self, batch: Any) -> None:
        """Note the batch that the values logged from now on belong to."""

    def read_group(self, batches: Iterable[Any]) -> None:
        """Note that all the batches of a step belong to what is logged from now on."""

    def muted(self) -> AbstractContextManager[None]:
        """Ignore what is logged within this context, because the step is being evaluated again."""


class Peers(Protocol):
    """The other processes that evaluate the same objective, each on batches of its own."""

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Compute the sum over all processes of each tensor."""

    def is_padding(self, batch: Any) -> bool:
        """Tell whether a batch is another process's, evaluated here only so that all make the same calls."""

    def common(self) -> AbstractContextManager[None]:
        """Draw, within, from the random stream that is the same in all processes."""

    def own(self) -> AbstractContextManager[None]:
        """Draw, within, from the stream of this process, also within `common`."""


class Unrecorded:
    """The recorder of a closure whose logs are not collected."""

    def read(self, batch: Any) -> None: ...

    def read_group(self, batches: Iterable[Any]) -> None: ...

    def muted(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(slots=True)
class Evaluation:
    """The result of one evaluation, detached.

    Attributes:
        loss: f, a 0-d tensor, the mean over the samples.
        penalty: g; None if there is none, or if neither the optimizer nor a log needs it.
        value: What the optimizer minimizes through its closure: f + g, or f if it handles the penalty itself.
        weight: How many samples there were in all processes; None in one process, where nobody needs to know.
        outputs: What `training_step` returned, as a mapping with "loss"; for several batches, a list of mappings.
    """

    loss: Tensor
    penalty: Tensor | None
    value: Tensor
    outputs: Any
    weight: float | None = None

    @property
    def objective(self) -> Tensor:
        """f + g, or f if there is no g."""
        return self.loss if self.penalty is None else self.loss + self.penalty


# From a batch, its index, its weight, whether to differentiate and whether to compute g, to f, g and the outputs.
Add = Callable[[Any, int, float, bool, bool], tuple[Tensor, Tensor | None, dict[str, Any]]]


class Objective:
    """f + g over micro-batches at the current parameters. It evaluates once when asked, and knows nothing of steps.

    The optimizer's class decides whether the value is f or f + g: ``handles_penalty = True`` means f.

    Args:
        module: The module: its `training_step` gives f, its penalty gives g.
        optimizer: The optimizer whose parameters are differentiated.
        forward: `training_step` wrapped for the device and precision.
        backward: Adds the gradients of a loss to those in the parameters.
        zero_gradients: What drops the gradients before an evaluation, given the index of its first batch. Default: set
            them to None.
        recorder: Told which batch is being evaluated.
        evaluations: How many evaluations were made before.
        peers: The other processes, if there are any: f, g and gradients are those over the batches of all.
        count_samples: Counts the samples of a batch. Default: the module's.

    Attributes:
        evaluations: How many evaluations were made: with gradients, without, and for products with the Hessian.
        handles_penalty: Whether the optimizer applies g by its prox and is given f alone.
        compiled: What takes the place of `add`, if anything does.
    """

    def __init__(
        self,
        module: Module,
        optimizer: Optimizer,
        *,
        forward: Callable[[Any, int], Any] | None = None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        zero_gradients: Callable[[int], None] | None = None,
        recorder: Recorder | None = None,
        evaluations: int = 0,
        peers: Peers | None = None,
        count_samples: Callable[[Any], int] | None = None,
    ) -> None:
        self.evaluations = evaluations
        self.compiled: Add | None = None
        self.peers = peers
        self.handles_penalty: bool = getattr(type(optimizer), "handles_penalty", False)
        self.module = module
        self.optimizer = optimizer
        self._forward = forward or module.training_step
        self._count_samples = count_samples or module.count_samples
        self._backward = backward
        self._zero_gradients = zero_gradients
        self._recorder = recorder or Unrecorded()

    @property
    def penalty(self) -> Penalty | None:
        """The penalty function: the module's, or if it has none, that of an optimizer with its own."""
        if self.module.penalty is None and self.handles_penalty:
            return getattr(self.optimizer, "penalty_in_force", None)
        return self.module.penalty

    @property
    def groups(self) -> Sequence[Group]:
        """The groups that say what is penalized, read anew: loading a state replaces an optimizer's groups."""
        return declared_groups(self.module, self.optimizer)

    def evaluate(
        self, batches: Iterable[Any], batch_idx: int, *, differentiate: bool, with_penalty: bool = True
    ) -> Evaluation:
        """Evaluate once over the batches.

        Args:
            batches: The micro-batches; f and g are means over all their samples.
            batch_idx: The index of the first batch.
            differentiate: Whether to add the gradients of the value to those in the parameters.
            with_penalty: Whether to compute g even if the optimizer handles it itself.

        Raises:
            NoLossError: If `training_step` returned None for every batch. Those of several for which it did are left
                out of the mean.
        """
        self.evaluations += 1
        outputs: Any
        weight: float | None = None
        if self.peers is not None:
            loss, penalty, outputs, weight = self._mean_with_peers(batches, batch_idx, differentiate, with_penalty)
        elif isinstance(batches, list) and len(batches) == 1:
            loss, penalty, outputs = self._take(batches[0], batch_idx, 1.0, differentiate, with_penalty)
        else:
            loss, penalty, outputs = self._mean(batches, batch_idx, differentiate, with_penalty)
        value = loss if penalty is None or self.handles_penalty else loss + penalty
        return Evaluation(loss, penalty, value, outputs, weight)

    def graph(
        self, batch: Any, batch_idx: int, *, with_penalty: bool = True
    ) -> tuple[Tensor, Tensor, Tensor | None, Mapping[str, Any]]:
        """Return, for one batch, the value with its graph, f, g and whatever else `training_step` returned."""
        self._recorder.read(batch)
        if self.peers is not None and self.peers.is_padding(batch):
            with self._recorder.muted(), keeping_metrics(self.module):
                output = self._forward(batch, batch_idx)
        else:
            output = self._forward(batch, batch_idx)
        loss, penalty, extras = parse_output(self.module, output)
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

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Within, evaluate each batch by `add`, even if it is compiled."""
        compiled, self.compiled = self.compiled, None
        try:
            yield
        finally:
            self.compiled = compiled

    @contextmanager
    def traced(self, recorder: Recorder, batch_idx: Any) -> Iterator[None]:
        """Within, evaluations do not count, tell another recorder, and give `training_step` this for its index."""
        before = self._forward, self._recorder, self.evaluations
        forward = self._forward
        self._forward, self._recorder = lambda batch, _: forward(batch, batch_idx), recorder
        self.evaluations = 2  # the first one looks at its values
        try:
            with self.eagerly():
                yield
        finally:
            self._forward, self._recorder, self.evaluations = before

    def read(self, batch: Any) -> None:
        """Tell the recorder which batch is being evaluated."""
        self._recorder.read(batch)

    def _take(
        self, batch: Any, batch_idx: int, weight: float, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Do what `add` does, compiled if it is."""
        if self.compiled is None or (self.peers is not None and self.peers.is_padding(batch)):
            return self.add(batch, batch_idx, weight, differentiate, with_penalty)
        return self.compiled(batch, batch_idx, weight, differentiate, with_penalty)

    def add(
        self, batch: Any, batch_idx: int, weight: float, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """Return f, g and the outputs for one batch, detached; add the gradients of ``weight`` times the value."""
        value, loss, penalty, extras = self.graph(batch, batch_idx, with_penalty=with_penalty)
        if differentiate:
            self._backward(value if weight == 1 else value * weight)
        loss = loss.detach()
        return loss, None if penalty is None else penalty.detach(), {**extras, "loss": loss}

    def _mean(
        self, batches: Iterable[Any], batch_idx: int, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, list[dict[str, Any]]]:
        """Return f and g as means over the samples of the group, and the outputs; add gradients if asked to."""
        outputs: list[dict[str, Any]] = []
        first_size, total_weight, f, g = 0, 0.0, None, None
        skipped: NoLossError | None = None
        for index, batch in enumerate(batches, batch_idx):
            # Weights are relative to the first batch, so that batches of equal size need no scaling before the sum.
            size = self._count_samples(batch)
            weight = size / (first_size or size)
            try:
                loss, penalty, output = self._take(batch, index, weight, differentiate, with_penalty)
            except NoLossError as error:
                skipped = error
                outputs.append({})
                continue
            first_size = first_size or size
            total_weight += weight
            outputs.append(output)
            f = loss * weight if f is None else f + loss * weight
            if penalty is not None:
                g = penalty * weight if g is None else g + penalty * weight
        if f is None:
            raise skipped or ValueError("the data loader yielded no batch: is it empty, or was it read before?")
        if differentiate:
            self._scale_gradients(1 / total_weight)
        self._recorder.read_group(batches)
        return f / total_weight, None if g is None else g / total_weight, outputs

    def weigh(self, batch: Any) -> int:
        """Count the samples of a batch, 0 for one that is another process's."""
        return 0 if self.peers is not None and self.peers.is_padding(batch) else self._count_samples(batch)

    def sum_of_values(self, batches: Iterable[Any], batch_idx: int) -> Tensor:
        """Compute the value of each batch times its samples, summed over those of this process; evaluate once."""
        self.evaluations += 1
        terms = [
            self.graph(batch, index, with_penalty=False)[0] * self.weigh(batch)
            for index, batch in enumerate(batches, batch_idx)
        ]
        self._recorder.read_group(batches)
        return torch.stack(terms).sum(0)

    def _mean_with_peers(
        self, batches: Iterable[Any], batch_idx: int, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, list[dict[str, Any]], float]:
        """Do what `_mean` does over the batches of all processes; sum up once, after the last batch of this one."""
        assert self.peers is not None
        outputs, sums = [], []
        for index, batch in enumerate(batches, batch_idx):
            size = self.weigh(batch)
            loss, penalty, output = self._take(batch, index, float(size), differentiate, with_penalty)
            outputs.append(output)
            sums.append([part * size for part in (loss, penalty) if part is not None] + [loss.new_tensor(size)])
        if not sums:
            raise ValueError("the data loader yielded no batch: is it empty, or a generator that was read before?")
        self._recorder.read_group(batches)
        own = [torch.stack(terms).sum(0) for terms in zip(*sums, strict=True)]
        params = all_parameters(self.optimizer) if differentiate else []
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in params]
        used = torch.tensor([p.grad is not None for p in params], dtype=own[0].dtype)
        *grads, used, f, g, total = self.peers.sum([*grads, used, own[0], own[-2], own[-1]])
        for param, grad, uses in zip(params, grads, used.tolist(), strict=True):
            param.grad = grad / total.to(grad) if uses else None  # none if no process has one
        return f / total, g / total if len(own) == 3 else None, outputs, float(total)

    def zero_gradients(self, batch_idx: int) -> None:
        """Drop the gradients of the optimizer's parameters, before an evaluation from this batch on."""
        if self._zero_gradients is not None:
            return self._zero_gradients(batch_idx)
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

    The trainer wraps every step in `step`. Inside it, each evaluation sees the same function: the same batches, dropout
    masks, augmentations and buffers. The first evaluation counts: it is logged, and its random draws are those of the
    step. Batch-norm statistics are those at the point that the optimizer accepts.

    A value always belongs to the current parameters. If gradients were computed before the optimizer's ``step``,
    `__call__` returns that evaluation as long as neither they nor the parameters have changed; otherwise it evaluates.

    Args:
        objective: What is evaluated.
        recorder: Muted while a step is evaluated again.
        data_generators: Returns the generators that the data are drawn from, for a step that reads its batches again
            at every evaluation.
        on_after_backward: Called after each evaluation with gradients.

    Attributes:
        objective: What is evaluated, with the count of evaluations.
        reevaluates: Whether the optimizer evaluates more than once per step.
        first: The evaluation of the last step that counts; None before the first step.
        gradient_norm: The 2-norm of its gradients, if the step is logged and had any.
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
        self.gradient_norm: Tensor | None = None
        self._recorder = recorder or Unrecorded()
        self._data_generators = data_generators
        self._on_after_backward = list(on_after_backward)
        self._minimizes: bool = getattr(type(objective.optimizer), "minimizes", False)
        self._vmaps = True
        self._needs_graph = False
        self._step: _Step | None = None

    @property
    def evaluations(self) -> int:
        """How many evaluations this run has made: with gradients, without, and for products with the Hessian."""
        return self.objective.evaluations

    # ------------------------------------------------------------------------------------- for the optimizer

    def __call__(self) -> Tensor:
        """Zero the gradients, evaluate, backpropagate (even under `no_grad`); return the value, detached."""
        if (value := self._ready_value()) is not None:
            return value
        return self._evaluate(differentiate=True)

    def value(self) -> Tensor:
        """Return the value alone, without backward; gradients and random state stay as they are."""
        if (value := self._ready_value()) is not None:
            return value
        return self._evaluate(differentiate=False)

    def values(self, candidates: Sequence[Tensor]) -> Tensor:
        """Return the values (k,) at k points, given as a stack (k, *shape) for each trainable parameter of the groups.

        Uses one `vmap` if the module allows it (`objective/batched_values.py`). If not, it warns why, and evaluates one
        point at a time. Parameters, gradients, logs, buffers and random state stay as they are. Each point counts as an
        evaluation.
        """
        with self.objective.eagerly():
            return self._values(candidates)

    def _values(self, candidates: Sequence[Tensor]) -> Tensor:
        objective, failure = self.objective, None
        params = ParameterVector(objective.optimizer.param_groups).params
        before = objective.evaluations
        if self._vmaps:
            try:
                with self._aside(), torch.no_grad():
                    at_once = stacked_values(objective.module, self._fresh_value, params, candidates)
                objective.evaluations = before + len(at_once)
                return self._over_peers(at_once)
            except RuntimeError as error:
                failure, objective.evaluations = str(error), before
        values, kept = [], [param.detach().clone() for param in params]
        try:
            for point in zip(*candidates, strict=True):
                with self._aside():
                    _write(params, point)
                    values.append(self._fresh_value())
        finally:
            _write(params, kept)
        if failure is not None:  # vmap's fault: an error of the module itself would have been raised again just now
            self._vmaps = False
            warn_one_by_one(objective.module, failure)
        return self._over_peers(torch.stack(values))

    def _over_peers(self, sums: Tensor) -> Tensor:
        """Return the values (k,) over the batches of all processes, given those of `_fresh_value` in this one."""
        objective, step = self.objective, self._under_way()
        if objective.peers is None:
            return sums
        samples = sums.new_tensor(sum(objective.weigh(batch) for batch in step.batches))
        sums, samples = objective.peers.sum([sums, samples])
        return sums / samples

    def hvp(self) -> Callable[[Tensor], Tensor]:
        """Return the Hessian at the current point, as a function from a vector (n,) or a stack (k, n) to its products.

        n is the number of trainable values in the optimizer's groups, in their order. The Hessian is that of the value:
        f + g, or f for an optimizer that handles the penalty. Gradients, logs, buffers and random state stay as they
        are. The function is valid until the parameters change.

        A list of batches is evaluated once, and its graphs are kept. Over an epoch, every product evaluates the batches
        again, one at a time, in the memory of one. Each pass counts as an evaluation.
        """
        step = self._under_way()
        if not isinstance(step.batches, list):
            return self._product_over_batches
        with self._aside():
            self.objective.evaluations += 1
            kept = [
                (self.objective.weigh(batch), self.objective.curvature(batch, index))
                for index, batch in enumerate(step.batches, step.batch_idx)
            ]
        return lambda vector: self._mean((size, curvature(vector)) for size, curvature in kept)

    # --------------------------------------------------------------------------------------- for the trainer

    def evaluate_once(self, batches: Iterable[Any], batch_idx: int, *, log: bool = False) -> None:
        """Compute the gradients of a step whose optimizer needs no closure; keep nothing to evaluate it again."""
        self.first = None
        self.objective.zero_gradients(batch_idx)
        self.first = self.objective.evaluate(batches, batch_idx, differentiate=True, with_penalty=log)
        for hook in self._on_after_backward:
            hook()

    @contextmanager
    def step(
        self,
        batches: Iterable[Any],
        batch_idx: int,
        *,
        log: bool = False,
        clip_again: Callable[[], object] | None = None,
    ) -> Iterator[None]:
        """Show every evaluation within this context the same function; then set the buffers to the accepted point's.

        Args:
            batches: The micro-batches of the step: a list, or an iterable that can be read again at every evaluation.
            batch_idx: The index of the first batch.
            log: Whether to compute what is logged: g at the first evaluation, even if the optimizer handles it itself,
                and the norm of the gradients.
            clip_again: Called after every evaluation with gradients but the first, whose gradients the trainer clips.

        Raises:
            RuntimeError: If the optimizer evaluated nothing.
        """
        generators = () if isinstance(batches, list) else self._data_generators()
        self.first = self.gradient_norm = None
        self._step = step = _Step(batches, batch_idx, log, clip_again, Replay(self.objective.module, generators))
        try:
            yield
            if self.first is None:
                raise RuntimeError(
                    f"{type(self.objective.optimizer).__name__}.step returned without calling its closure: it must "
                    "evaluate the objective, by closure() or closure.value()"
                )
            self._settle_buffers(step)
        finally:
            self._step = None

    def keep_ready(self) -> None:
        """Answer the optimizer's first call with the evaluation just made and the gradients as they are now."""
        assert self.first is not None
        self._under_way().ready = _snapshot(self.objective.optimizer)

    @contextmanager
    def smooth_gradient(self, batches: Iterable[Any]) -> Iterator[Evaluation]:
        """Put the gradient of f alone over the batches into the parameters within this context; then undo everything.

        Yields the evaluation, which counts as one. Logs, buffers and random draws do not change. Use it between steps.
        """
        objective = self.objective
        parameters = list(objective.module.parameters())
        kept = [parameter.grad for parameter in parameters]
        handles_penalty, objective.handles_penalty = objective.handles_penalty, True
        try:
            with (
                Replay(objective.module, self._data_generators()).on_copies(),
                self._recorder.muted(),
                objective.eagerly(),
            ):
                for parameter in parameters:
                    parameter.grad = None
                with torch.enable_grad():
                    evaluation = objective.evaluate(batches, 0, differentiate=True, with_penalty=False)
            yield evaluation
        finally:
            objective.handles_penalty = handles_penalty
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient

    # -------------------------------------------------------------------------------------------- evaluations

    def _evaluate(self, *, differentiate: bool) -> Tensor:
        """Evaluate the function of the step at the current parameters; keep the first evaluation."""
        step, is_first, peers = self._under_way(), self.first is None, self.objective.peers
        evaluate = self._evaluate_gradients if differentiate else self._evaluate_value
        with nullcontext() if peers is None else peers.own():
            if is_first:
                evaluation = evaluate(step.log)
            else:
                with step.start.again(), self._recorder.muted():
                    evaluation = evaluate(False)
                    if differentiate and step.clip_again is not None:
                        step.clip_again()
        # A point to which an optimizer extrapolated, and which it left because its value is not finite, does not count.
        if is_first or not math.isfinite(self.first.value):  # type: ignore[union-attr]
            self.first = evaluation
        step.evaluations += 1
        if step.start.has_buffers and self._may_reevaluate(step):
            step.point = [param.detach().clone() for param in all_parameters(self.objective.optimizer)]
        return evaluation.value

    def _evaluate_gradients(self, with_penalty: bool) -> Evaluation:
        """Evaluate with backward; note the norm of the first gradients of a step that is logged."""
        step, objective = self._under_way(), self.objective
        objective.zero_gradients(step.batch_idx)
        with torch.enable_grad():
            evaluation = objective.evaluate(step.batches, step.batch_idx, differentiate=True, with_penalty=with_penalty)
        for hook in self._on_after_backward:
            hook()
        if step.log and self.gradient_norm is None:
            self.gradient_norm = gradient_norm(objective.optimizer)
        return evaluation

    def _evaluate_value(self, with_penalty: bool) -> Evaluation:
        """Evaluate without backward, and without a graph unless `training_step` differentiates by itself."""
        step = self._under_way()
        try:
            with torch.set_grad_enabled(self._needs_graph):
                return self.objective.evaluate(
                    step.batches, step.batch_idx, differentiate=False, with_penalty=with_penalty
                )
        except RuntimeError as error:
            if self._needs_graph or "does not require grad" not in str(error):
                raise
        self._needs_graph = True
        self.objective.evaluations -= 1
        step.start.rewind()
        return self._evaluate_value(with_penalty)

    def _may_reevaluate(self, step: _Step) -> bool:
        return self.reevaluates or step.evaluations > 1

    def _ready_value(self) -> Tensor | None:
        """Return the value computed before the optimizer's step if it still belongs to the current parameters."""
        step = self._under_way()
        if step.ready is None:
            return None
        if _snapshot_holds(step.ready, self.objective.optimizer):
            if self.reevaluates:
                step.ready = None  # a second call evaluates again
            assert self.first is not None
            return self.first.value
        step.ready = None
        return None

    def _settle_buffers(self, step: _Step) -> None:
        """Leave the module's buffers as an evaluation at the accepted point would."""
        changed = step.start.owners_of_changed_buffers() if self._may_reevaluate(step) else []
        if not changed:
            return
        accepted = all(
            torch.equal(param, at)
            for param, at in zip(all_parameters(self.objective.optimizer), step.point, strict=True)
        )
        if accepted and not self._minimizes:
            return
        # A step that is a whole minimization has one result: take its statistics, not their average with the start's.
        average = averaged_batch_norm(changed) if self._minimizes else nullcontext()
        with step.start.again(), self._recorder.muted(), average:
            self._evaluate_value(with_penalty=False)

    def _fresh_value(self) -> Tensor:
        """Compute the value, whatever was evaluated before; with peers, the sum over the samples of this process."""
        step = self._under_way()
        with torch.set_grad_enabled(self._needs_graph):
            if self.objective.peers is not None:
                return self.objective.sum_of_values(step.batches, step.batch_idx)
            evaluation = self.objective.evaluate(step.batches, step.batch_idx, differentiate=False, with_penalty=False)
        return evaluation.value

    def _product_over_batches(self, vector: Tensor) -> Tensor:
        step, objective = self._under_way(), self.objective
        with self._aside():
            objective.evaluations += 1
            return self._mean(
                (objective.weigh(batch), objective.curvature(batch, batch_idx)(vector))
                for batch_idx, batch in enumerate(step.batches, step.batch_idx)
            )

    def _mean(self, weighted: Iterable[tuple[int, Tensor]]) -> Tensor:
        """Compute the weighted mean of vectors, over all processes."""
        total, weight = torch.zeros(()), torch.zeros(())
        for size, vector in weighted:
            total, weight = total.to(vector) + size * vector, weight.to(vector) + size
        if self.objective.peers is not None:
            total, weight = self.objective.peers.sum([total, weight])
        return total / weight

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let evaluations of the step's function within this context leave no trace but their count."""
        peers = self.objective.peers
        with (
            nullcontext() if peers is None else peers.own(),
            self._under_way().start.on_copies(),
            self._recorder.muted(),
        ):
            yield

    def _under_way(self) -> _Step:
        if self._step is None:
            raise RuntimeError("a closure evaluates the objective of the current step, and there is none: use step()")
        return self._step


@dataclass(slots=True)
class _Step:
    """What a closure knows about the current step.

    Attributes:
        batches: The micro-batches.
        batch_idx: The index of the first batch.
        log: Whether to compute what is logged.
        clip_again: Called after every evaluation with gradients but the first.
        start: Random state and buffers at the start of the step.
        ready: Parameters and gradients for which the first evaluation is still valid.
        evaluations: How many evaluations this step has made.
        point: The parameters at the last evaluation, kept if the module has buffers.
    """

    batches: Iterable[Any]
    batch_idx: int
    log: bool
    clip_again: Callable[[], object] | None
    start: Replay
    ready: _Snapshot | None = None
    evaluations: int = 0
    point: Sequence[Tensor] = ()


class _Snapshot(NamedTuple):
    """Copies of parameters and of their gradients, in the optimizer's order.

    Version counters are not enough: writing into ``param.data`` does not change them.
    """

    parameters: list[Tensor]
    gradients: list[Tensor | None]


def _snapshot(optimizer: Optimizer) -> _Snapshot:
    params = all_parameters(optimizer)
    return _Snapshot(
        [param.detach().clone() for param in params],
        [None if param.grad is None else param.grad.clone() for param in params],
    )


def _snapshot_holds(snapshot: _Snapshot, optimizer: Optimizer) -> bool:
    """Tell whether parameters and gradients are what they were; a dropped or replaced gradient is not."""
    for param, value, gradient in zip(all_parameters(optimizer), *snapshot, strict=True):
        if (param.grad is None) != (gradient is None) or not torch.equal(param, value):
            return False
        if gradient is not None and not torch.equal(param.grad.to_dense(), gradient.to_dense()):  # type: ignore[union-attr]
            return False
    return True


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Compute the 2-norm of all gradients together."""
    gradients = [param.grad for param in all_parameters(optimizer) if param.grad is not None]
    return get_total_norm([grad.coalesce().values() if grad.is_sparse else grad for grad in gradients])


@torch.no_grad()
def _write(params: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for param, value in zip(params, values, strict=True):
        param.copy_(value)


@contextmanager
def averaged_batch_norm(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Reset batch norm and average it over the batches read in this context, like `torch.optim.swa_utils.update_bn`.

    Args:
        parts: The layers that may be reset: neither frozen ones nor those that are not called.
    """
    layers = [part for part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    try:
        # Inside the context: `Replay.again` has just written the buffers of the step's start.
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def reevaluates(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer evaluates more than once per step.

    Its class may say so by ``reevaluates``; otherwise it does if its ``step`` requires a closure.
    """
    cls = type(optimizer)
    if hasattr(cls, "reevaluates"):
        return bool(cls.reevaluates)
    # Look at the class's own function: schedulers replace the instance's with a wrapper.
    closure = inspect.signature(cls.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
