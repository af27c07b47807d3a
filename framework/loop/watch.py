"""What the code of a step reads besides tensors, to notice when it has changed since the step became a graph."""

from __future__ import annotations

import copy
import inspect
import operator
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CONTAINERS = (dict, list, set, tuple)
_LIBRARIES = tuple(
    str(path)
    for path in (Path(torch.__file__).parent, Path(__file__).parents[1], sysconfig.get_path("stdlib"), "<frozen")
)
_MISSING = object()


class Reads:
    """Collects which attributes of a module, and which global variables, are read while its code runs."""

    def __init__(self) -> None:
        self.attributes: dict[tuple[int, str], tuple[nn.Module, str]] = {}
        self.global_variables: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
        self._codes: set[Any] = set()

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Collect within this context.

        Raises:
            TypeError: If the class of a part of the module does not allow it.
        """
        parts = [(part, type(part)) for part in module.modules()]
        watched = {cls: _reporting(cls, self._note) for _, cls in parts}
        profile = sys.getprofile()
        try:
            for part, cls in parts:
                part.__class__ = watched[cls]
            sys.setprofile(self._note_call)
            yield
        finally:
            if callable(profile) or profile is None:
                sys.setprofile(profile)
            else:  # the profiler of Python's own library
                profile.enable()
            for part, cls in parts:
                part.__class__ = cls

    def _note(self, part: nn.Module, name: str) -> None:
        self.attributes[id(part), name] = part, name

    def _note_call(self, frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in self._codes:
            return
        self._codes.add(code)
        if code.co_filename.startswith(_LIBRARIES):
            return
        for name in code.co_names:
            if isinstance(frame.f_globals.get(name, _MISSING), (*_PLAIN, *_CONTAINERS, Tensor)):
                self.global_variables[id(frame.f_globals), name] = frame.f_globals, name


def _reporting(cls: type, note: Callable[[nn.Module, str], None]) -> type:
    """Return a subclass whose instances report which attributes are read."""

    def read(self: Any, name: str) -> Any:
        if not name.startswith("__"):
            note(self, name)
        return cls.__getattribute__(self, name)  # type: ignore[call-arg]

    return type(cls.__name__, (cls,), {"__getattribute__": read, "__module__": cls.__module__})


class Watch:
    """Values that must stay the same.

    Containers and plain objects are watched with what they contain; of tensors, which ones they are, not their values.

    Args:
        places: Where the values are: a mapping, a key in it, and what to call it.
        most: How many containers to watch.
        closed: The ids of containers of which only the identity is watched.

    Attributes:
        is_complete: Whether there were not more containers.
    """

    def __init__(
        self, places: Iterable[tuple[Mapping[Any, Any], Any, str]], most: int = 1000, closed: Iterable[int] = ()
    ) -> None:
        self._places, self._closed = list(places), set(closed)
        self._most = most
        self.is_complete = True
        self._containers: dict[int, tuple[Any, Any, str]] = {}  # with a copy, and what to call it
        for mapping, key, name in self._places:
            self._find_containers(mapping.get(key), name, depth=0)
        self._reads = [(mapping.get, key) for mapping, key, _ in self._places]
        self._contents = [one.values() if isinstance(one, dict) else one for one, *_ in self._containers.values()]
        self._values = self._now()

    def _find_containers(self, value: Any, name: str, depth: int) -> None:
        if isinstance(value, (*_PLAIN, Tensor, nn.Module, type)) or inspect.isroutine(value) or depth > 5:
            return
        children: Iterable[tuple[str, Any]]
        if isinstance(value, dict):
            children = [(f"{name}[{key!r}]" if name else str(key), one) for key, one in value.items()]
        elif isinstance(value, list | tuple | set):
            children = [(f"{name}[{index}]", one) for index, one in enumerate(value)]
        elif isinstance(getattr(value, "__dict__", None), dict):
            value = vars(value)
            children = [(f"{name}.{key}", one) for key, one in value.items()]
        else:
            return
        if id(value) in self._containers or id(value) in self._closed:
            return
        if len(self._containers) == self._most:
            self.is_complete = False
            return
        if not isinstance(value, tuple):
            self._containers[id(value)] = value, copy.copy(value), name
        for child_name, child in children:
            self._find_containers(child, child_name, depth + 1)

    def _now(self) -> list[Any]:
        values = [get(key) for get, key in self._reads]
        for content in self._contents:
            values += content
        return values

    def changed(self) -> str | None:
        """Return the name of something that is not what it was; None if there is nothing."""
        now, before = self._now(), self._values
        if len(now) == len(before) and all(map(operator.is_, now, before)):
            return None
        for value, old, (_, _, name) in zip(now, before, self._places, strict=False):
            if not _same(value, old):
                return name
        for container, kept, name in self._containers.values():
            if len(container) != len(kept) or type(container) is not type(kept):
                return name
            if isinstance(container, dict):
                for key, old in kept.items():
                    if key not in container or not _same(container[key], old):
                        return f"{name}[{key!r}]" if name else str(key)
            elif not all(map(_same, container, kept)):
                return name
        self._values = now
        return None

    def restore(self) -> None:
        """Put back what the containers held."""
        for container, kept, _ in self._containers.values():
            container.clear()
            container.extend(kept) if isinstance(container, list) else container.update(kept)


def _same(value: Any, old: Any) -> bool:
    """Tell whether two values are the same object, or equal and plain."""
    if value is old:
        return True
    if isinstance(value, tuple):
        return type(value) is type(old) and len(value) == len(old) and all(map(_same, value, old))
    return isinstance(value, _PLAIN) and type(value) is type(old) and value == old


def places_read(reads: Reads) -> Iterator[tuple[Mapping[Any, Any], Any, str]]:
    """Yield where the values are that were read, for `Watch`; tensors of a module are not among them."""
    for part, name in reads.attributes.values():
        owners = [vars(part), *(vars(cls) for cls in type(part).__mro__)]
        found = next((owner for owner in owners if name in owner), None)
        if found is None:
            continue
        label = f"{type(part).__name__}.{name}"
        if found is owners[0]:
            if name != "_buffers":
                yield found, name, label
        elif isinstance(found[name], (*_PLAIN, *_CONTAINERS)):
            yield found, name, label
            yield owners[0], name, label  # where setting it on the module puts it
    for variables, name in reads.global_variables.values():
        yield variables, name, f"the global variable {name}"
