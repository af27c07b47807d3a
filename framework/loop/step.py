"""The kinds of optimizer step, behind one signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from framework.loop.engine import Engine
from framework.loop.settings import Settings
from framework.objective.closure import Closure, Peers

# Optimizers whose class is from one of these modules are known to evaluate once unless they say otherwise.
_WELL_KNOWN = ("torch.optim.", "framework.optim.")


class Step(Protocol):
    """One optimizer step, from the batches to the new parameters."""

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
    settings: Settings,
    on_before_optimizer_step: list[Callable[[Optimizer], Any]],
) -> Step:
    """Return the kind of step that suits the closure's optimizer."""
    optimizer = closure.objective.optimizer
    known_to_evaluate_once = not closure.reevaluates and type(optimizer).__module__.startswith(_WELL_KNOWN)
    # A gradient scaler decides by itself whether to step, and takes no closure.
    if known_to_evaluate_once or not _takes_closure(optimizer) or engine.grad_scaler is not None:
        return EvaluatedOnce(closure, engine, settings, on_before_optimizer_step)
    return GivenClosure(closure, engine, settings, on_before_optimizer_step)


class EvaluatedOnce:
    """The step of an optimizer that evaluates once: compute the gradients, then call ``step`` without a closure.

    Such an optimizer would use a closure only for the value that is already known. Nothing is kept to evaluate again.
    """

    def __init__(
        self, closure: Closure, engine: Engine, settings: Settings, before_step: list[Callable[[Optimizer], Any]]
    ) -> None:
        self._closure, self._before_step = closure, before_step
        self._raw = closure.objective.optimizer
        self._optimizer = engine.wrap(self._raw)
        self._clip, self._clip_gradients = settings.gradient_clip_val, engine.clip_gradients
        self._algorithm = settings.gradient_clip_algorithm
        self._peers = _peers_if_it_draws(closure)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        self._closure.evaluate_once(batches, batch_idx, log=log)
        for hook in self._before_step:
            hook(self._raw)
        norm = None
        if log or self._clip:
            norm = self._clip_gradients(self._raw, self._clip, self._algorithm, measure=log)
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

    def __init__(
        self, closure: Closure, engine: Engine, settings: Settings, before_step: list[Callable[[Optimizer], Any]]
    ) -> None:
        self._closure, self._engine, self._settings, self._before_step = closure, engine, settings, before_step
        self._raw = closure.objective.optimizer
        self._optimizer = engine.wrap(self._raw)
        self._expects_gradients: bool = getattr(type(self._raw), "expects_gradients", True)
        self._peers = _peers_if_it_draws(closure)

    def __call__(self, batches: Iterable[Any], batch_idx: int, log: bool) -> Tensor | None:
        closure, settings = self._closure, self._settings
        clips = bool(settings.gradient_clip_val) and not closure.reevaluates
        with closure.step(batches, batch_idx, log=log, clip_again=self._clip if clips else None):
            if self._expects_gradients:
                closure()
                if not closure.reevaluates:
                    for hook in self._before_step:
                        hook(self._raw)
                if clips:
                    self._clip()
                closure.keep_ready()
            with nullcontext() if self._peers is None else self._peers.common():
                self._optimizer.step(closure)
        return closure.gradient_norm

    def _clip(self) -> None:
        settings = self._settings
        self._engine.clip_gradients(
            self._raw, settings.gradient_clip_val, settings.gradient_clip_algorithm, measure=False
        )


def _peers_if_it_draws(closure: Closure) -> Peers | None:
    """Return the other processes if the optimizer may draw random numbers, which must be the same in all."""
    drawless = type(closure.objective.optimizer).__module__.startswith("torch.optim.")  # torch's own draw nothing
    return None if drawless else closure.objective.peers


def _takes_closure(optimizer: Optimizer) -> bool:
    """Tell whether ``optimizer.step`` has an argument for a closure."""
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    return any(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)
