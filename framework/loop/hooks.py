"""Which hooks of a run are called, and on whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from framework.callback import HOOKS, Callback
from framework.loop.overrides import overrides
from framework.module import Module


class Hooks:
    """For every hook, the list of methods that override it, bound to their arguments: ``hooks.on_fit_start`` is a list.

    It is built once at the start of a run, so that a hook nobody overrides costs nothing. ``calls`` counts the calls of
    `call`, by which one may know that nothing of a user's has run since.

    Args:
        trainer: The trainer to pass to the callbacks.
        module: The module, which may have hooks of its own.
        callbacks: The callbacks, in calling order; those with `Callback.after_module` are called after the module.
        time: Returns a function, given an action's name and it, whose calls are profiled.
    """

    def __init__(
        self,
        trainer: Any,
        module: Module,
        callbacks: Sequence[Callback],
        time: Callable[[str, Callable[..., Any]], Callable[..., Any]] = lambda action, function: function,
    ) -> None:
        self.calls = 0
        self._first: dict[str, list[Callable[..., Any]]] = {}
        self._watching: dict[str, list[Callable[..., Any]]] = {}
        for name in HOOKS:
            heard = [
                (c.after_module, time(f"{type(c).__name__}.{name}", partial(getattr(c, name), trainer, module)))
                for c in callbacks
                if overrides(c, name)
            ]
            self._first[name] = [listener for after, listener in heard if not after]
            if overrides(module, name) and callable(own := getattr(module, name)):
                self._first[name].append(time(f"{type(module).__name__}.{name}", own))
            self._watching[name] = [listener for after, listener in heard if after]

    def __getattr__(self, name: str) -> list[Callable[..., Any]]:
        return self._first[name] + self._watching[name]

    def heard(self, name: str) -> tuple[list[Callable[..., Any]], list[Callable[..., Any]]]:
        """Return the listeners in two parts: the first ones, and the callbacks that watch what these did."""
        return self._first[name], self._watching[name]

    def call(self, name: str, *args: Any, before_watching: Callable[[], None] | None = None) -> None:
        """Fire one hook; call ``before_watching`` between the module and the callbacks that watch what it did."""
        self.calls += 1
        for listener in self._first[name]:
            listener(*args)
        if before_watching is not None:
            before_watching()
        for listener in self._watching[name]:
            listener(*args)


def each(actions: Iterable[Callable[[], Any]], *, after: BaseException | None = None) -> BaseException | None:
    """Do all the actions, whichever of them fail.

    Args:
        actions: What to do.
        after: The error that was there before.

    Returns:
        The first error, with a note for each later one; None if there is none.
    """
    for action in actions:
        try:
            action()
        except BaseException as error:
            if after is None:
                after = error
            else:
                after.add_note(f"(then {_name_of(action)} failed, too: {type(error).__name__}: {error})")
    return after


def _name_of(action: Any) -> str:
    while isinstance(action, partial):
        action = action.func
    return getattr(action, "__qualname__", repr(action))
