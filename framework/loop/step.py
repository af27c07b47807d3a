"""The kinds of optimizer step, behind one signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from framework.loop.engine import Engine
from framework.objective.closure import Closure, Peers, gradient_norm
from framework.objective.output import NoLossError

# Optimizers whose class is from one of these modules are known to evaluate once unless they say otherwise.
_WELL_KNOWN = ("torch.optim", "framework.optim")


class Step(Protocol):
    """One optimizer step, from the batches to the new parameters.

    Attributes:
        taken: By how much ``global_step`` grows after it: 1, or 0 if the step counts by itself.
    """

    taken: int

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        """Take the step; afterwards ``closure.first`` is the evaluation that counts.

        Args:
            batches: The micro-batches whose mean is the objective: a list, or for an epoch a rereadable iterable.
            batch_idx: The index of the first batch.
            log: Whether to compute what is logged: g, and the norm of the gradients.

        Returns:
            If ``log``, the norm of the first gradients, before clipping; None if none were computed.
        """


def make_step(
    closure: Closure,
    engine: Engine,
    clip: Callable[[], None] | None,
    before_step: list[Callable[[Optimizer], Any]],
    call_optimizer: Callable[[int, Any], None] | None = None,
) -> Step:
    """Return the kind of step that suits the closure's optimizer.

    Args:
        closure: What the step evaluates.
        engine: Device and precision.
        clip: Clips the gradients of the optimizer; None if nothing does.
        before_step: Called with the optimizer when gradients are final but for clipping.
        call_optimizer: The module's own way to call the optimizer, given the index of the batch and the closure.
    """
    optimizer = closure.objective.optimizer
    if call_optimizer is not None:
        return CalledByModule(closure, clip, before_step, call_optimizer)
    known_to_evaluate_once = not closure.reevaluates and type(optimizer).__module__.startswith(_WELL_KNOWN)
    # A gradient scaler decides by itself whether to step, and takes no closure.
    if known_to_evaluate_once or not _takes_closure(optimizer) or engine.grad_scaler is not None:
        return EvaluatedOnce(closure, engine, clip, before_step)
    return GivenClosure(closure, engine, clip, before_step)


class EvaluatedOnce:
    """The step of an optimizer that evaluates once: compute the gradients, then call ``step`` without a closure.

    Such an optimizer would use a closure only for the value that is already known. Nothing is kept to evaluate again.
    """

    taken = 1

    def __init__(
        self,
        closure: Closure,
        engine: Engine,
        clip: Callable[[], None] | None,
        before_step: list[Callable[[Optimizer], Any]],
    ) -> None:
        self._closure, self._clip, self._before_step = closure, clip, before_step
        self._raw = closure.objective.optimizer
        self._optimizer, self._unscale_gradients = engine.wrap(self._raw), engine.unscale_gradients
        self._peers = _peers_if_it_draws(closure)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        self._closure.evaluate_once(batches, batch_idx, log=log)
        for hook in self._before_step:
            hook(self._raw)
        norm = None
        if log or self._clip is not None:
            self._unscale_gradients(self._raw)
            norm = gradient_norm(self._raw) if log else None
            if self._clip is not None:
                self._clip()
        if self._peers is None:  # a context would cost a few percent of a small step
            self._optimizer.step()
        else:
            with self._peers.common():
                self._optimizer.step()
        return norm


class GivenClosure:
    """The step of an optimizer that is given the closure and may evaluate the same function as often as it likes.

    The gradients are ready before ``step``, unless its class says ``expects_gradients = False``; they are clipped if it
    does not reevaluate. The optimizer's first call returns that evaluation as long as nothing has changed.
    """

    taken = 1

    def __init__(
        self,
        closure: Closure,
        engine: Engine,
        clip: Callable[[], None] | None,
        before_step: list[Callable[[Optimizer], Any]],
    ) -> None:
        self._closure, self._before_step = closure, before_step
        self._clip = None if closure.reevaluates else clip
        self._raw = closure.objective.optimizer
        self._optimizer = engine.wrap(self._raw)
        self._expects_gradients: bool = getattr(type(self._raw), "expects_gradients", True)
        self._peers = _peers_if_it_draws(closure)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        closure = self._closure
        with closure.step(batches, batch_idx, log=log, clip_again=self._clip):
            if self._expects_gradients:
                closure()
                if not closure.reevaluates:
                    for hook in self._before_step:
                        hook(self._raw)
                if self._clip is not None:
                    self._clip()
                closure.keep_ready()
            with nullcontext() if self._peers is None else self._peers.common():
                self._optimizer.step(closure)
        return closure.gradient_norm


class CalledByModule:
    """The step of a module that overrides `optimizer_step`: it calls the optimizer, or the closure alone.

    The first call of the closure is the evaluation that counts: hooks and clipping follow it at once.
    """

    taken = 1

    def __init__(
        self,
        closure: Closure,
        clip: Callable[[], None] | None,
        before_step: list[Callable[[Optimizer], Any]],
        call_optimizer: Callable[[int, Any], None],
    ) -> None:
        self._closure, self._clip, self._before_step = closure, clip, before_step
        self._call_optimizer = call_optimizer
        self._peers = _peers_if_it_draws(closure)
        self._skipped: NoLossError | None = None

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        closure, self._skipped = self._closure, None
        with closure.step(batches, batch_idx, log=log, clip_again=self._clip):
            with nullcontext() if self._peers is None else self._peers.common():
                self._call_optimizer(batch_idx, closure if closure.reevaluates else self._evaluate)
            if self._skipped is not None:
                raise self._skipped
        return closure.gradient_norm

    def _evaluate(self) -> Tensor | None:
        closure, is_first = self._closure, self._closure.first is None
        try:
            value = closure()
        except NoLossError as skipped:  # without gradients, the optimizer leaves the parameters as they are
            self._skipped = skipped
            return None
        if is_first:
            for hook in self._before_step:
                hook(closure.objective.optimizer)
            if self._clip is not None:
                self._clip()
        return value


def _peers_if_it_draws(closure: Closure) -> Peers | None:
    """Return the other processes if the optimizer may draw random numbers, which must be the same in all."""
    drawless = type(closure.objective.optimizer).__module__.startswith("torch.optim")  # torch's own draw nothing
    return None if drawless else closure.objective.peers


def _takes_closure(optimizer: Optimizer) -> bool:
    """Tell whether ``optimizer.step`` has an argument for a closure."""
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    return any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)
