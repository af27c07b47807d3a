"""Who hears which hook of a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from framework.callback import Callback
from framework.module import Module

HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class Hooks:
    """For every hook, the list of those who overrode it, bound to their arguments: ``hooks.on_fit_start`` is a list.

    Built once at the start of a run, so that a hook nobody overrides costs nothing.

    Args:
        trainer: What callbacks are given as their trainer.
        module: The module, which may have hooks of its own.
        callbacks: In the order in which they hear; those with `Callback.after_module` hear after the module.

    Raises:
        ValueError: If a callback or the module has a method that looks like a hook and is none.
    """

    def __init__(self, trainer: Any, module: Module, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            refuse_unknown_hooks(callback)
        refuse_unknown_hooks(module)
        self._first: dict[str, list[Callable[..., Any]]] = {}
        self._watching: dict[str, list[Callable[..., Any]]] = {}
        for name in HOOKS:
            heard = [
                (c.after_module, partial(getattr(c, name), trainer, module)) for c in callbacks if _overrides(c, name)
            ]
            self._first[name] = [listener for after, listener in heard if not after]
            if callable(own := getattr(module, name, None)):
                self._first[name].append(own)
            self._watching[name] = [listener for after, listener in heard if after]

    def __getattr__(self, name: str) -> list[Callable[..., Any]]:
        return self._first[name] + self._watching[name]

    def call(self, name: str, *args: Any, before_watching: Callable[[], None] | None = None) -> None:
        """Fire one hook; ``before_watching`` is called after the module and before those that watch what it did."""
        for listener in self._first[name]:
            listener(*args)
        if before_watching is not None:
            before_watching()
        for listener in self._watching[name]:
            listener(*args)


def refuse_unknown_hooks(owner: Callback | Module) -> None:
    """Raise a ValueError for a method called ``on_...`` that no moment of a run would call."""
    for name in dir(type(owner)):
        if name.startswith("on_") and name not in HOOKS and callable(getattr(type(owner), name)):
            near = difflib.get_close_matches(name, HOOKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "rename it, so that it does not start with 'on_'"
            raise ValueError(f"{type(owner).__name__}.{name} is no hook and would never be called: {hint}")


def _overrides(callback: Callback, name: str) -> bool:
    return getattr(type(callback), name) is not getattr(Callback, name)
