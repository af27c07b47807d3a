"""What the code of a step reads besides tensors, to notice when it has changed since the step became a graph."""

from __future__ import annotations

import copy
import dis
import inspect
import io
import operator
import pickle
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from framework.loop.capture import CaptureError
from framework.objective.replay import Generator, Source, source_of

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_CONTAINERS = (dict, list, set, tuple, deque)
_LIBRARIES = tuple(
    str(path)
    for path in (Path(torch.__file__).parent, Path(__file__).parents[1], sysconfig.get_path("stdlib"), "<frozen")
)
_MISSING = object()
_MOST_BYTES = 100_000  # of an array whose values are watched


class Reads:
    """Collects what a step depends on besides tensors: what its code reads while it runs, and whether it changes that.

    Attributes:
        attributes: Attributes of the module and its parts, with their names.
        variables: Global variables, and variables of classes and Python modules of the user's, with their names.
        modules: Modules that are called and are no part of the module.
    """

    def __init__(self) -> None:
        self.attributes: dict[tuple[int, str], tuple[nn.Module, str]] = {}
        self.variables: dict[tuple[int, str], tuple[Any, str]] = {}
        self.modules: dict[int, nn.Module] = {}
        self._codes: set[CodeType] = set()
        self._inner: set[CodeType] = set()  # functions that others of the step define
        self._before: list[tuple[Any, str, Any, Watch]] = []
        self._refused: CaptureError | None = None

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[None]:
        """Collect within this context.

        Raises:
            TypeError: If the class of a part of the module does not allow it.
            CaptureError: From within, if the code does what leaves no trace in what is read.
        """
        parts = [(part, type(part)) for part in module.modules()]
        watched = {cls: _reporting(cls, self._note) for _, cls in parts}
        own = {cls: set(vars(reporting)) for cls, reporting in watched.items()}
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
                self.modules.pop(id(part), None)
        if self._refused is not None:
            raise self._refused
        for cls, reporting in watched.items():
            if set_by_step := vars(reporting).keys() - own[cls]:
                raise CaptureError(f"it sets {cls.__name__}.{min(set_by_step)}, which a graph would not do again")

    def _note(self, part: nn.Module, name: str) -> None:
        self.attributes[id(part), name] = part, name

    def _note_call(self, frame: Any, event: str, function: Any) -> None:
        try:
            self._read_call(frame, event, function)
        except CaptureError as error:
            self._refused = error  # the code, such as that of a log, may catch it
            raise

    def _read_call(self, frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            _check_call(function)
        code = frame.f_code
        if event != "call":
            return
        if code is _CALL:
            called = frame.f_locals["self"]
            self.modules[id(called)] = called
        if code in self._codes:
            return
        self._codes.add(code)
        if code.co_filename.startswith(_LIBRARIES):
            return
        for owner, name in _variables(frame.f_globals, code.co_names):
            self._note_variable(id(owner), owner, name)
        if code not in self._inner:
            _check_enclosing(code)
            for name in code.co_freevars:
                if _may_change(value := frame.f_locals.get(name, _MISSING)):
                    self._note_variable(id(code), {name: value}, name)
        self._inner.update(one for one in code.co_consts if isinstance(one, CodeType))

    def _note_variable(self, place: int, owner: Any, name: str) -> None:
        if (place, name) not in self.variables:
            self.variables[place, name] = owner, name
            value = _namespace(owner)[name]
            watch = Watch([({"": value}, "", _label(owner, name))])
            if watch.iterator is not None:
                raise CaptureError(f"it reads {watch.iterator}, an iterator, which a graph would not do again")
            self._before.append((owner, name, value, watch))

    def written(self) -> str | None:
        """Return the name of a variable that is not as it was when it was first read; put all of them back."""
        names = []
        for owner, name, value, watch in self._before:
            if _namespace(owner).get(name, _MISSING) is not value:
                names.append(_label(owner, name))
                owner.update({name: value}) if isinstance(owner, dict) else setattr(owner, name, value)
            if (changed := watch.changed() or watch.drawn()) is not None:
                names.append(changed)
                watch.restore()
        return names[0] if names else None


_CALL = nn.Module.__call__.__code__
_EFFECTS = {"manual_seed", "seed", "set_state", "write"}


def _check_call(function: Any) -> None:
    """Refuse a call that has an effect which is in no tensor, nor in anything that is read."""
    if function.__name__ not in _EFFECTS:  # nearly all calls
        return
    owner = getattr(function, "__self__", None)
    if isinstance(owner, torch.Generator):
        raise CaptureError("it sets the state of a random generator, as checkpoint() does; a graph would not")
    if isinstance(owner, io.IOBase):
        raise CaptureError("it writes to a file or a log, which a graph would not do again")


def _check_enclosing(code: CodeType) -> None:
    """Refuse a function that sets variables of the function in which it was defined."""
    for instruction in dis.get_instructions(code) if code.co_freevars else ():
        if instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars:
            raise CaptureError(
                f"it sets {instruction.argval} of a function around it, which a graph would not do again"
            )


def _variables(variables: Mapping[str, Any], names: Iterable[str], depth: int = 0) -> Iterator[tuple[Any, str]]:
    """Yield those that may be read of global variables, and of classes and Python modules among them: owner, name."""
    for name in names:
        value = variables.get(name)
        if isinstance(value, type | ModuleType):
            if depth < 3 and _is_of_users(value):
                for owner in value.__mro__[:-1] if isinstance(value, type) else (value,):
                    for attribute in names:
                        if _may_change(vars(owner).get(attribute, _MISSING)):
                            yield owner, attribute
                    yield from _variables(vars(owner), names, depth + 1)
        elif depth == 0 and _may_change(variables.get(name, _MISSING)):
            yield variables, name


def _namespace(owner: Any) -> Mapping[str, Any]:
    return owner if isinstance(owner, dict) else vars(owner)


def _label(owner: Any, name: str) -> str:
    return f"the variable {name}" if isinstance(owner, dict) else f"{owner.__name__}.{name}"


def _may_change(value: Any) -> bool:
    """Tell whether a variable holds what `Watch` can look into, or what it refuses."""
    if value is _MISSING or isinstance(value, type | nn.Module):
        return False
    known = isinstance(value, (*_PLAIN, *_CONTAINERS, Tensor, SimpleNamespace, np.ndarray, Iterator, Generator))
    return known or _is_of_users(type(value))


def _is_of_users(owner: type | ModuleType) -> bool:
    module = owner if isinstance(owner, ModuleType) else sys.modules.get(owner.__module__)
    file = getattr(module, "__file__", None)
    return getattr(module, "__name__", "") == "__main__" or (file is not None and not file.startswith(_LIBRARIES))


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
        iterator: The name of an iterator among them, which looks the same after it was read; None if there is none.
    """

    def __init__(
        self, places: Iterable[tuple[Mapping[Any, Any], Any, str]], most: int = 1000, closed: Iterable[int] = ()
    ) -> None:
        self._places, self._closed = list(places), set(closed)
        self._most = most
        self.is_complete = True
        self.iterator: str | None = None
        self._containers: dict[int, tuple[Any, Any, str]] = {}  # with a copy, and what to call it
        self._arrays: list[tuple[np.ndarray, np.ndarray, str]] = []  # likewise
        self._generators: list[tuple[Source, Any, str]] = []  # with the state, and what to call it
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
            children = [(f"{name}[{_shown(key)}]" if name else str(key), one) for key, one in value.items()]
        elif isinstance(value, list | tuple | set | deque):
            children = [(f"{name}[{index}]", one) for index, one in enumerate(value)]
        elif isinstance(value, Generator):
            self._generators.append((source := source_of(value), source.get(), name))
            return
        elif isinstance(getattr(value, "__dict__", None), dict):
            value = vars(value)
            children = [(f"{name}.{key}", one) for key, one in value.items()]
        elif isinstance(value, np.ndarray) and value.nbytes <= _MOST_BYTES:
            self._arrays.append((value, value.copy(), name))
            return
        else:
            self.iterator = name if isinstance(value, Iterator) else self.iterator
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
        for array, kept, name in self._arrays:
            if array.tobytes() != kept.tobytes():
                return name
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
                        return f"{name}[{_shown(key)}]" if name else str(key)
            elif not all(map(_same, container, kept)):
                return name
        self._values = now
        return None

    def drawn(self) -> str | None:
        """Return the name of a generator of random numbers that was drawn from; None if there is none."""
        for source, state, name in self._generators:
            if pickle.dumps(source.get()) != pickle.dumps(state):
                return name
        return None

    def restore(self) -> None:
        """Put back what the containers held, and the state of generators."""
        for container, kept, _ in self._containers.values():
            container.clear()
            container.extend(kept) if isinstance(container, list | deque) else container.update(kept)
        for array, values, _ in self._arrays:
            array[...] = values
        for source, state, _ in self._generators:
            source.set(state)


def _shown(key: Any) -> str:
    return type(key).__name__ if isinstance(key, Tensor) else repr(key)


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
        own, label = vars(part), f"{type(part).__name__}.{name}"
        if name in own:
            if name != "_buffers":
                yield own, name, label
            continue
        found = next((vars(cls) for cls in type(part).__mro__ if name in vars(cls)), None)
        if found is not None and isinstance(found[name], (*_PLAIN, *_CONTAINERS)):
            yield found, name, label
        if part._buffers.get(name) is None:
            if not name.startswith("_"):
                yield own, name, label  # where setting it on the module puts it
            if found is None and name not in part._parameters and name not in part._modules:
                yield part._buffers, name, label
    for owner, name in reads.variables.values():
        yield _namespace(owner), name, _label(owner, name)
    for module in reads.modules.values():
        for name in vars(module):
            if name != "_trainer":
                yield vars(module), name, f"{type(module).__name__}.{name}"
