"""``Trainer(compile=...)``: a step, or an evaluation, that became one graph while it ran eagerly.

A graph is made for each shape of batches, from the second time that it comes on: the first time is eager, and leaves
the optimizer with its state. Parameters, buffers, the optimizer's state, learning rates and weights of the penalty are
inputs of the graph, which it reads and changes where they are. Everything else that the step reads has become a part
of the graph; it is watched, and a new graph is made when it has changed. What cannot be a graph runs eagerly, with one
warning that says why.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import _pytree as pytree

from framework.loop.capture import CaptureError, Graph, capture, step_function, why_not_step
from framework.loop.engine import Engine
from framework.loop.hooks import Hooks
from framework.loop.metrics import Metrics
from framework.loop.overrides import is_ours, overrides
from framework.loop.settings import Settings
from framework.loop.step import EvaluatedOnce, Step
from framework.loop.takeover import TRANSFER
from framework.loop.watch import Reads, Watch, places_read
from framework.module import Module
from framework.objective.closure import Closure, Evaluation, gradient_norm
from framework.objective.replay import sources

MOST_GRAPHS = 8
MOST_SHAPES = 64
MOST_RENEWALS = 4
_OPTION = "of parameter group"
OPTIMIZER = "the optimizer"


def compiled(
    step: Step,
    closure: Closure,
    clip: Callable[[], None] | None,
    engine: Engine,
    hooks: Hooks,
    metrics: Metrics,
    settings: Settings,
    between: Sequence[Any],
) -> tuple[Step, list[Graphs]]:
    """Return a step that becomes a graph, or whose evaluations do, and its graphs; warn if it cannot be.

    Args:
        step: The step as it is.
        closure: What it evaluates.
        clip: Clips the gradients of the optimizer; None if nothing does.
        engine: Device and precision.
        hooks: Who is called within a step.
        metrics: What the module logs goes there.
        settings: The trainer's.
        between: The loader and the schedulers, whose code runs between two steps.
    """
    objective = closure.objective
    module, optimizer = objective.module, objective.optimizer
    name, mode = type(module).__name__, settings.compile
    if reason := _why_not_evaluation(module, engine, hooks):
        warnings.warn(f"compile={mode!r}: every step of {name} runs eagerly: {reason}", stacklevel=2)
        return step, []
    if mode == "step" and isinstance(step, EvaluatedOnce):
        reason = _why_not_step(closure, hooks, settings)
        if reason is None:
            whole = CompiledStep(step, closure, clip, engine, hooks, metrics, between)
            return whole, [whole.graphs, whole.evaluation.graphs]
        warnings.warn(f"compile='step': {type(optimizer).__name__} runs eagerly: {reason}", stacklevel=2)
    evaluation = CompiledEvaluation(closure, engine, hooks, metrics, between)
    objective.compiled = evaluation
    return step, [evaluation.graphs]


def _why_not_evaluation(module: Module, engine: Engine, hooks: Hooks) -> str | None:
    if engine.grad_scaler is not None:
        return "precision='16-mixed' scales its gradients anew at every step; use 'bf16-mixed'"
    if overrides(module, "backward"):
        return f"{type(module).__name__}.backward is called at every step"
    if hooks.on_before_backward:
        return f"{_owner(hooks.on_before_backward[0]).__name__}.on_before_backward is called at every step"
    return None


def _why_not_step(closure: Closure, hooks: Hooks, settings: Settings) -> str | None:
    optimizer = closure.objective.optimizer
    for name in ("on_before_zero_grad", "on_after_backward", "on_before_optimizer_step"):
        if callbacks := getattr(hooks, name):
            return f"{_owner(callbacks[0]).__name__}.{name} is called between the gradients and its step"
    if overrides(closure.objective.module, "optimizer_zero_grad"):
        return f"{type(closure.objective.module).__name__}.optimizer_zero_grad is called at every step"
    if closure.objective.peers is not None:
        return "several processes add up their gradients before its step"
    if settings.accumulate_grad_batches == "epoch":
        return "accumulate_grad_batches='epoch' adds up the gradients of one batch after the other before its step"
    return why_not_step(optimizer)


def _runs_code_of_users(module: Module, hooks: Hooks, between: Iterable[Any]) -> bool:
    """Tell whether anything that a user has written is called between two steps, without `Hooks.call`."""
    if not all(map(_runs_our_code_alone, between)):
        return True
    listeners = [listener for name in _BETWEEN for listener in getattr(hooks, name)]
    methods = (*TRANSFER, "lr_scheduler_step", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping")
    return any(overrides(module, name) for name in methods) or not all(
        _owner(listener).__module__.startswith("framework.") for listener in listeners
    )


_BETWEEN = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_after_backward"),
    "on_before_optimizer_step",
)


def _runs_our_code_alone(one: Any) -> bool:
    """Tell whether a loader or a scheduler changes nothing that a step reads, but learning rates."""
    if isinstance(one, LRScheduler):
        calls_others = any(hasattr(one, name) for name in ("lr_lambdas", "cycle_momentum", "_schedulers"))
        return type(one).__module__ == LRScheduler.__module__ and not calls_others
    transform = getattr(one, "transform", None)
    return is_ours(type(one)) and (transform is None or is_ours(type(transform)))


def _owner(listener: Any) -> type:
    """Return the class whose method is called, perhaps through a `partial`."""
    method = getattr(listener, "func", listener)
    return type(getattr(method, "__self__", method))


class CompiledStep:
    """The step of an optimizer that evaluates once, as one graph: forward, backward, clipping, and the optimizer.

    The gradients of such a step are not kept: ``param.grad`` is None afterwards.

    Args:
        eager: The same step, eagerly.
        closure: What it evaluates.
        clip: Clips the gradients; None if nothing does.
        engine: Device and precision.
        hooks: Who is called between the steps, and may change what the graph takes for constant.
        metrics: What the module logs goes there.
        between: Whose code runs between the steps, too.
    """

    taken = 1

    def __init__(
        self,
        eager: EvaluatedOnce,
        closure: Closure,
        clip: Callable[[], None] | None,
        engine: Engine,
        hooks: Hooks,
        metrics: Metrics,
        between: Sequence[Any],
    ) -> None:
        self._eager, self._closure, self._clip, self._metrics = eager, closure, clip, metrics
        objective = closure.objective
        self._objective, self._optimizer = objective, objective.optimizer
        self._params = [param for group in self._optimizer.param_groups for param in group["params"]]
        self.graphs = Graphs("step", objective.module, hooks, between, self._compile_evaluations)
        self.evaluation = CompiledEvaluation(closure, engine, hooks, metrics, between)
        self._run = engine.timed("compiled_step", Recorded.__call__)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        assert isinstance(batches, list)
        leaves, key = read_batches(batches)
        recorded = self.graphs.find(key, lambda: self._record(batches))
        if recorded is None:
            return self._eager(batches, batch_idx, log)
        tensors = self._run(recorded, leaves)
        for param in self._params:
            param.grad = None
        objective, closure = self._objective, self._closure
        objective.evaluations += 1
        for index, name, options, value in recorded.logged(tensors):
            self._metrics.read(batches[index])
            self._metrics.log(name, value, **options)
        loss, value, norm, *penalty = tensors[: recorded.layout.size]
        g = penalty[0] if penalty and (log or not objective.handles_penalty) else None
        closure.first = Evaluation(loss, g, value, recorded.outputs(tensors, loss))
        return norm if log else None

    def _record(self, batches: list[Any]) -> Recorded:
        closure, objective = self._closure, self._objective
        if reason := why_not_step(self._optimizer):
            raise CaptureError(reason, phase=OPTIMIZER)
        step = step_function(self._optimizer)

        def run(batches: list[Any], layout: Layout) -> list[Tensor]:
            first = closure.first
            try:
                with objective.traced(layout, BATCH_IDX):
                    closure.evaluate_once(batches, 0, log=True)
                assert closure.first is not None
                evaluation = closure.first
            finally:
                closure.first = first
            norm = gradient_norm(self._optimizer)
            if self._clip is not None:
                self._clip()
            layout.phase = OPTIMIZER
            with _exact_counters(self._optimizer):
                step()
            layout.phase = "training_step"
            penalty = [] if evaluation.penalty is None else [evaluation.penalty]
            return layout.complete([evaluation.loss, evaluation.value, norm, *penalty], evaluation.outputs)

        return record(run, objective.module, batches, self._optimizer, changes_state=True)

    def _compile_evaluations(self) -> None:
        self._objective.compiled = self.evaluation


class CompiledEvaluation:
    """f, g and their gradients for one batch, as one graph: what `Objective.add` does eagerly."""

    def __init__(
        self, closure: Closure, engine: Engine, hooks: Hooks, metrics: Metrics, between: Sequence[Any]
    ) -> None:
        self._run = engine.timed("compiled_evaluation", Recorded.__call__)
        self._objective, self._metrics = closure.objective, metrics
        self.graphs = Graphs("evaluation", self._objective.module, hooks, between)

    def __call__(
        self, batch: Any, batch_idx: int, weight: float, differentiate: bool, with_penalty: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """See `Objective.add`."""
        objective = self._objective
        batches = [batch]
        leaves, shapes = read_batches(batches)
        key = None if shapes is None else (differentiate, torch.is_grad_enabled(), shapes)
        recorded = self.graphs.find(key, lambda: self._record(batches, differentiate))
        if recorded is None:
            return objective.add(batch, batch_idx, weight, differentiate, with_penalty)
        objective.read(batch)
        tensors = self._run(recorded, leaves)
        for _, name, options, value in recorded.logged(tensors):
            self._metrics.log(name, value, **options)
        layout = recorded.layout
        for param, grad in zip(
            layout.differentiated, own_tensors(tensors[layout.size : layout.first_log]), strict=True
        ):
            if weight != 1:
                grad.mul_(weight)
            param.grad = grad if param.grad is None else param.grad.add_(grad)
        loss, *penalty = tensors[: layout.size]
        wanted = with_penalty or not objective.handles_penalty
        return loss, penalty[0] if penalty and wanted else None, recorded.outputs(tensors, loss)

    def _record(self, batches: list[Any], differentiate: bool) -> Recorded:
        objective = self._objective
        params = [param for param in objective.module.parameters() if param.requires_grad]

        def run(batches: list[Any], layout: Layout) -> list[Tensor]:
            before = [param.grad for param in params]
            try:
                for param in params:
                    param.grad = None
                with objective.traced(layout, BATCH_IDX):
                    loss, penalty, outputs = objective.add(batches[0], 0, 1.0, differentiate, True)
                layout.differentiated = [param for param in params if param.grad is not None]
                grads = [param.grad for param in params if param.grad is not None]
                if any(grad.layout is not torch.strided for grad in grads):
                    raise CaptureError("its gradients are sparse")
            finally:
                for param, grad in zip(params, before, strict=True):
                    param.grad = grad
            return layout.complete([loss, *([] if penalty is None else [penalty])], outputs, grads)

        return record(run, objective.module, batches, self._objective.optimizer, changes_state=False)


class Graphs:
    """The graphs of a step, one for each shape of its batches, and the rule when they are made.

    The rule depends on nothing but the steps taken, so that a continued run uses a graph where the uninterrupted did.

    Args:
        what: "step" or "evaluation", for messages.
        module: Whose step it is.
        hooks: Who is called between the steps.
        between: Whose code runs there, too.
        without_optimizer: Called if it is the optimizer that cannot be a part of a graph.
    """

    def __init__(
        self,
        what: str,
        module: Module,
        hooks: Hooks,
        between: Sequence[Any],
        without_optimizer: Callable[[], None] | None = None,
    ) -> None:
        self._what, self._module, self._hooks, self._without_optimizer = what, module, hooks, without_optimizer
        self._is_changed_by_anyone = _runs_code_of_users(module, hooks, between)
        self._recorded: dict[Any, Recorded] = {}
        self._seen: list[str] = []
        self._outdated: dict[str, str] = {}  # before the run was continued, and by what
        self._renewals = 0
        self._given_up: str | None = None  # because of what

    def find(self, key: Any, make: Callable[[], Recorded]) -> Recorded | None:
        """Return the graph for batches of a shape; None if they are to be evaluated eagerly."""
        if self._given_up is not None:
            return None
        recorded, changed = self._recorded.get(key), None
        if recorded is not None:
            if recorded.checked_at == self._hooks.calls:  # nothing but this package has run since
                return recorded
            changed = recorded.changed()
            if changed is None:
                if not self._is_changed_by_anyone:
                    recorded.checked_at = self._hooks.calls
                return recorded
        try:
            if recorded is None:
                if not self._is_seen_again(key):
                    return None
                changed = self._outdated.pop(repr(key), None)
            if changed is not None:
                self._renewals += 1
                if self._renewals > MOST_RENEWALS:
                    reason = f"{changed} changes again and again, and a graph keeps it as it was"
                    raise CaptureError(reason, OPTIMIZER if _OPTION in changed else "")
            started = time.perf_counter()
            recorded = self._recorded[key] = make()
            self._module.print(f"compiled the {self._what} in {time.perf_counter() - started:.1f} s")
        except CaptureError as error:
            self._give_up(error.phase)
            what = error.phase if error.phase == OPTIMIZER else f"the {self._what}"
            warnings.warn(f"compile: {what} of {type(self._module).__name__} runs eagerly: {error}", stacklevel=2)
            return None
        return recorded

    def _give_up(self, because: str) -> None:
        self._given_up = because
        self._recorded.clear()
        if because == OPTIMIZER and self._without_optimizer is not None:
            self._without_optimizer()

    def _is_seen_again(self, key: Any) -> bool:
        if key is None:
            raise CaptureError("a batch holds something else than dense tensors, numbers and strings")
        name = repr(key)
        is_new = name not in self._seen
        if len(self._seen) == MOST_SHAPES if is_new else len(self._recorded) == MOST_GRAPHS:
            raise CaptureError(
                "batches have too many shapes, or numbers in them, each of which needs a graph of its own"
            )
        if is_new:
            self._seen.append(name)
            return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what decides which of the coming steps are graphs."""
        outdated = {repr(key): recorded.changed() for key, recorded in self._recorded.items()}
        return {
            "seen": list(self._seen),
            "outdated": self._outdated | {key: changed for key, changed in outdated.items() if changed is not None},
            "renewals": self._renewals,
            "given_up": self._given_up,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._seen, self._outdated, self._renewals = list(state["seen"]), dict(state["outdated"]), state["renewals"]
        if state["given_up"] is not None:
            self._give_up(state["given_up"])


class Layout:
    """What the outputs of a graph are, and what the step did besides: it stands in for the trainer while recording.

    Attributes:
        phase: What is being recorded, for messages.
        size: How many of the first outputs are the graph's own: loss, g, ...
        differentiated: The parameters whose gradients follow, if they do.
    """

    def __init__(self, batches: list[Any]) -> None:
        self.phase = "training_step"
        self.size = 0
        self.differentiated: list[Tensor] = []
        self.logs: list[tuple[int, str, dict[str, Any]]] = []
        self.first_log = self.first_extra = 0
        self.structure: pytree.TreeSpec | None = None
        self._batches, self._index = batches, 0
        self._logged: list[Tensor] = []

    def read(self, batch: Any) -> None:
        self._index = next(index for index, one in enumerate(self._batches) if one is batch)

    def read_group(self, batches: Iterable[Any]) -> None: ...

    def muted(self) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, name: str, value: Any, **options: Any) -> None:
        """Note what the module logs; the graph returns it."""
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"it logs {name!r} as a {type(value).__name__}, which would stay what it was: log a tensor"
            )
        self.logs.append((self._index, name, options))
        self._logged.append(value.detach().clone())

    def complete(self, own: list[Tensor], outputs: Any, grads: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return all that the graph is to return."""
        leaves, structure = pytree.tree_flatten(outputs)
        if (other := next((leaf for leaf in leaves if not isinstance(leaf, Tensor)), None)) is not None:
            raise CaptureError(f"it returns a {type(other).__name__} besides tensors, which would stay what it was")
        self.size, self.first_log = len(own), len(own) + len(grads)
        self.first_extra = self.first_log + len(self._logged)
        if isinstance(outputs, dict) and outputs.keys() == {"loss"}:  # the usual case, which is put together by hand
            leaves = []
        else:
            self.structure = structure
        return [*own, *grads, *self._logged, *leaves]


class Recorded:
    """A graph, its inputs besides the batches, and what it takes for constant.

    Args:
        graph: The graph.
        inputs: The tensors that it reads and changes.
        watch: What must not have changed.
        layout: What its outputs are.

    Attributes:
        checked_at: At which call of hooks nothing had changed.
    """

    def __init__(self, graph: Graph, inputs: Inputs, watch: Watch, layout: Layout) -> None:
        self._graph, self._inputs, self._watch, self.layout = graph, inputs, watch, layout
        self.checked_at = -1

    def changed(self) -> str | None:
        """Return what is not as it was recorded; None if there is nothing."""
        return self._watch.changed() or self._inputs.changed()

    def __call__(self, leaves: list[Tensor]) -> Sequence[Tensor]:
        return self._graph(self._inputs.now() + leaves)

    def logged(self, outputs: Sequence[Tensor]) -> Iterator[tuple[int, str, dict[str, Any], Tensor]]:
        """Yield what the step logged: the index of the batch, the name, the options and the value."""
        for (index, name, options), value in zip(self.layout.logs, outputs[self.layout.first_log :], strict=False):
            yield index, name, options, value

    def outputs(self, outputs: Sequence[Tensor], loss: Tensor) -> Any:
        """Return what `training_step` returned, as `Evaluation` has it."""
        if self.layout.structure is None:
            return {"loss": loss}
        return pytree.tree_unflatten(list(outputs[self.layout.first_extra :]), self.layout.structure)


def record(
    run: Callable[[list[Any], Layout], list[Tensor]],
    module: Module,
    batches: list[Any],
    optimizer: Optimizer,
    *,
    changes_state: bool,
) -> Recorded:
    """Record a function of batches as a graph.

    Args:
        run: Takes the step over the batches, and returns its results.
        module: Whose step it is.
        batches: Those at hand.
        optimizer: Whose options are inputs.
        changes_state: Whether its step is a part of the function.

    Raises:
        CaptureError: If it cannot be.
    """
    leaves, structure = pytree.tree_flatten(batches)
    # The graph takes each tensor of the batches for one of its own.
    own = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    batches = pytree.tree_unflatten(own, structure)
    inputs, layout, reads = Inputs(module, optimizer, with_state=changes_state), Layout(batches), Reads()
    _check_hooks(module)

    def watched() -> list[Tensor]:
        with reads.of(module):
            return run(batches, layout)

    closed = [id(vars(module._trainer)), *(id(group) for group in optimizer.param_groups)]
    before = Watch([({"": vars(part)}, "", name) for name, part in module.named_modules()], 10_000, closed)
    state = Watch([({"": vars(optimizer)}, "", "")], 10_000, closed)
    streams = sources()
    draws = [stream.get() for stream in streams]
    trainer, vars(module)["_trainer"] = module._trainer, _NoTrainer(module._trainer, layout.log)
    try:
        if not (before.is_complete and state.is_complete):
            raise CaptureError("its attributes hold more than can be watched")
        if before.iterator is not None:
            raise CaptureError(f"it has {before.iterator}, an iterator, which a graph would not read on")
        with inputs.numbers_as_tensors():
            tensors = inputs.now() + [leaf for leaf in own if isinstance(leaf, Tensor)]
            graph = capture(watched, tensors)
    except CaptureError as error:
        error.phase = error.phase or layout.phase
        raise
    finally:
        vars(module)["_trainer"] = trainer
        changed, drawn, written = before.changed(), before.drawn(), reads.written()
        if changed is not None or drawn is not None:
            before.restore()
        if (changed_state := state.changed()) is not None:
            state.restore()
        for stream, draw in zip(streams, draws, strict=True):
            stream.set(draw)
    if changed is not None or written is not None:
        raise CaptureError(f"it sets {(changed or written or '').lstrip('.')}, which a graph would not do again")
    if drawn is not None:
        raise CaptureError(f"it draws random numbers from {drawn.lstrip('.')}, which a graph would not draw again")
    if changed_state is not None:
        raise CaptureError(
            f"{type(optimizer).__name__} keeps {changed_state} as a number, or replaces it", phase=OPTIMIZER
        )
    numbers = {(id(number.mapping), number.key) for number in inputs.numbers}
    places = [
        place for place in places_read(reads) if place[1] != "_trainer" and (id(place[0]), place[1]) not in numbers
    ]
    for part in module.modules():
        places += [(vars(part), name, f"{type(part).__name__}.{name}") for name in ("_parameters", "_modules")]
    own_options = {name: value for name, value in vars(optimizer).items() if name in ("penalty", "source")}
    places += [(vars(optimizer), name, f"{type(optimizer).__name__}.{name}") for name in own_options]
    places += [(vars(optimizer), "param_groups", "the parameter groups")]
    if changes_state:
        places += [(vars(optimizer), "state", "the state of the optimizer")]
    for index, group in enumerate(optimizer.param_groups):
        label = f"{_OPTION} {index}"
        keys = group if changes_state else [key for key in ("params", "penalized") if key in group]
        places += [(group, key, f"{key!r} {label}") for key in keys if (id(group), key) not in numbers]
    if changes_state:
        hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "step")
        places += [(vars(optimizer), name, f"{type(optimizer).__name__}.{name}") for name in hooks]
    watch = Watch(places, closed=closed)
    if not watch.is_complete:
        raise CaptureError("it reads attributes that hold more than can be watched")
    return Recorded(graph, inputs, watch, layout)


@dataclass
class _Number:
    """A number that the graph takes as a tensor, because it may be another one in each step.

    Attributes:
        mapping: Where it is.
        key: Its name there.
        tensor: What the graph reads, a 0-d tensor.
    """

    mapping: dict[str, Any]
    key: str
    tensor: Tensor
    _filled: Any = None

    def get(self) -> Any:
        """Return the number, or what was put there."""
        return self.mapping[self.key]

    def put(self, number: Any) -> None:
        """Put a number, or the tensor, in its place."""
        self.mapping[self.key] = number

    def fill(self) -> None:
        """Write the number into the tensor, if it is another one than before."""
        number = self.get()
        if (number is not self._filled or isinstance(number, Tensor)) and number is not self.tensor:
            self.tensor.fill_(number)  # a tensor may have changed in place
            self._filled = number

    def changed(self) -> str | None:
        """Return the name of what cannot be an input and has changed."""
        return None


class _FirstBeta(_Number):
    """The first of Adam's betas, which OneCycleLR and CyclicLR cycle; the second is a constant of the graph."""

    def __init__(self, group: dict[str, Any]) -> None:
        super().__init__(group, "betas", torch.zeros((), dtype=torch.float64))
        self._second = group["betas"][1]

    def get(self) -> Any:
        return self.mapping["betas"][0]

    def put(self, number: Any) -> None:
        self.mapping["betas"] = (number, *self.mapping["betas"][1:])

    def changed(self) -> str | None:
        return None if self.mapping["betas"][1] == self._second else "'betas'"


class Inputs:
    """The tensors and the numbers that a step reads, and the tensors that it changes, where they are.

    Attributes:
        numbers: Those that the graph takes as tensors.
    """

    def __init__(self, module: Module, optimizer: Optimizer, *, with_state: bool) -> None:
        self._places: list[tuple[Any, Any]] = []
        places = [(content, key) for part in module.modules() for content in _tensors_of(part) for key in content]
        self.numbers: list[_Number] = []
        if vars(module).get("happy_lambda") is not None:
            self._add_number(vars(module), "happy_lambda", module.dtype, module.device)
        for group in optimizer.param_groups:
            param = group["params"][0] if group["params"] else torch.zeros(())
            if group.get("happy_lambda") is not None:
                self._add_number(group, "happy_lambda", param.dtype, param.device)
            if isinstance(group.get("lr"), Tensor):
                places.append((group, "lr"))
            elif "lr" in group:
                self._add_number(group, "lr", torch.float64, torch.device("cpu"))
            if with_state and "base_momentum" in group and isinstance(group.get("betas"), tuple):
                self.numbers.append(_FirstBeta(group))
            for one in group["params"] if with_state else ():
                places += [(optimizer.state[one], key) for key in optimizer.state.get(one, {})]
        seen: set[int] = set()
        for mapping, key in places:
            tensor = mapping[key]
            if isinstance(tensor, Tensor) and id(tensor) not in seen:
                seen.add(id(tensor))
                self._places.append((mapping, key))
        self._optimizer, self._with_state = optimizer, with_state
        self._forms = [_form(mapping[key]) for mapping, key in self._places]

    def _add_number(self, mapping: Any, key: str, dtype: torch.dtype, device: torch.device) -> None:
        self.numbers.append(_Number(mapping, key, torch.zeros((), dtype=dtype, device=device)))

    def now(self) -> list[Tensor]:
        """Return the tensors, then the numbers as tensors, as they are now."""
        for number in self.numbers:
            number.fill()
        return [mapping[key] for mapping, key in self._places] + [number.tensor for number in self.numbers]

    def changed(self) -> str | None:
        """Return the name of a tensor that is gone, has another form, or has got a hook."""
        for (mapping, key), form in zip(self._places, self._forms, strict=True):
            now = mapping.get(key)
            if not isinstance(now, Tensor) or _form(now) != form or _has_hooks(now):
                return str(key)
        return next((changed for number in self.numbers if (changed := number.changed()) is not None), None)

    @contextmanager
    def numbers_as_tensors(self) -> Iterator[None]:
        """Put the tensors in the place of the numbers, and let the optimizer do with them what it can."""
        self.now()
        groups = self._optimizer.param_groups
        kept = [number.get() for number in self.numbers]
        options = [dict(group) for group in groups]
        try:
            for number in self.numbers:
                number.put(number.tensor)
            for group in groups:
                for key in ("fused", "foreach", "capturable"):
                    if key in group:
                        group[key] = key == "capturable" and type(self._optimizer).__name__ == "RAdam"
            given = [dict(group) for group in groups]
            yield
            for group, before in zip(groups, given, strict=True):
                if changed := [key for key in before if group.get(key) is not before[key]]:
                    reason = f"{type(self._optimizer).__name__} sets {changed[0]!r} of a parameter group at every step"
                    raise CaptureError(reason, phase=OPTIMIZER)
        finally:
            for group, all_before in zip(groups, options, strict=True):
                group.update(all_before)
            for number, before in zip(self.numbers, kept, strict=True):
                number.put(before)


def own_tensors(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of which no two share memory, as gradients do that a graph computes once for two parameters."""
    pointers = [tensor.data_ptr() for tensor in tensors]
    if len(set(pointers)) == len(pointers):
        return list(tensors)
    return [tensor.clone() if pointers[i] in pointers[:i] else tensor for i, tensor in enumerate(tensors)]


def read_batches(batches: list[Any]) -> tuple[list[Tensor], Any]:
    """Return the tensors of batches, and their form: what must be the same for one graph; None if there is none."""
    leaves: list[Any] = []
    structure: list[Any] = []
    for batch in batches:
        if type(batch) in (tuple, list) and all(type(one) is Tensor and one.layout is torch.strided for one in batch):
            leaves += batch
            structure.append((type(batch), len(batch)))
        else:
            found, spec = pytree.tree_flatten(batch)
            leaves += found
            structure.append(spec)
    tensors: list[Tensor] = []
    form: list[Any] = []
    for leaf in leaves:
        if type(leaf) is Tensor and leaf.layout is torch.strided:
            tensors.append(leaf)
            form.append((leaf.shape, leaf.stride(), leaf.dtype))
        elif isinstance(leaf, bool | int | float | str | None):
            form.append(leaf)
        else:
            return [], None
    return tensors, (*structure, *form)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.requires_grad, tensor.shape, tensor.dtype, tensor.stride()


def _has_hooks(tensor: Tensor) -> bool:
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


def _tensors_of(part: nn.Module) -> list[dict[str, Any]]:
    return [part._parameters, part._buffers, vars(part)]


def _check_hooks(module: Module) -> None:
    """Refuse a module with hooks that PyTorch calls, whose side effects a graph would leave out."""
    for name, part in module.named_modules():
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if any(hooks):
            raise CaptureError(f"{name or type(part).__name__} has hooks, whose side effects a graph would leave out")
    for name, param in module.named_parameters():
        if _has_hooks(param):
            raise CaptureError(f"{name} has hooks, whose side effects a graph would leave out")


@contextmanager
def _exact_counters(optimizer: Optimizer) -> Iterator[None]:
    """Let the optimizer count its steps in float64, of which it computes as exactly as of Python's numbers."""
    counted = [state for state in optimizer.state.values() if isinstance(state.get("step"), Tensor)]
    counters = [state["step"] for state in counted]
    for state in counted:
        if state["step"].dtype == torch.float32:
            state["step"] = state["step"].double()
    try:
        yield
        with torch.no_grad():
            for state, counter in zip(counted, counters, strict=True):
                if state["step"] is not counter:
                    counter.copy_(state["step"])
    finally:
        for state, counter in zip(counted, counters, strict=True):
            state["step"] = counter


class _NoTrainer:
    """The trainer while a step is recorded: it takes what is logged, and tells only what stays as it is in a run."""

    def __init__(self, trainer: Any, log: Callable[..., None]) -> None:
        vars(self).update(_trainer=trainer, _run=SimpleNamespace(metrics=SimpleNamespace(log=log)))

    def __getattr__(self, name: str) -> Any:
        if name in _FIXED:
            return getattr(self._trainer, name)
        raise CaptureError(f"it asks the trainer for {name}, which a graph would keep as it was")

    def __setattr__(self, name: str, value: Any) -> None:
        raise CaptureError(f"it sets {name} of the trainer, which a graph would not do again")


_FIXED = {field.name for field in fields(Settings)} | {"global_rank", "local_rank", "world_size", "is_global_zero"}


class _BatchIdx:
    """The index of the batch while a step is recorded: a graph would keep it as it was."""


def _refuse(*_: Any) -> Any:
    raise CaptureError("it uses batch_idx, which a graph would keep as it was")


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod"),
    *("pow", "rpow", "neg", "abs", "eq", "ne", "lt", "le", "gt", "ge", "bool", "int", "float", "index", "hash", "str"),
    *("repr", "format", "getattr"),
):
    setattr(_BatchIdx, f"__{_name}__", _refuse)
BATCH_IDX: Any = _BatchIdx()
