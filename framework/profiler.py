"""Where the time of a run goes: Lightning's profilers, around what a run calls. Imported if a trainer is given one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import Profiler, PyTorchProfiler, SimpleProfiler

REST = "everything else"


class ExclusiveProfiler(SimpleProfiler):
    """A `SimpleProfiler` whose rows add up to the total: the time of an action leaves out that of the actions in it.

    An optimizer that evaluates its closure, say, has a row for itself, beside those of ``training_step`` and
    ``backward``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._under_way: list[list[Any]] = []  # of each action: its name, its start, the time spent within

    def start(self, action_name: str) -> None:
        self._under_way.append([action_name, time.perf_counter(), 0.0])

    def stop(self, action_name: str) -> None:
        name, started, within = self._under_way.pop()
        duration = time.perf_counter() - started
        self.recorded_durations[name].append(duration - within)
        if self._under_way:
            self._under_way[-1][2] += duration

    def _make_report_extended(self) -> tuple[Any, float, float]:
        durations = {name: (math.fsum(each), len(each)) for name, each in self.recorded_durations.items()}
        total = math.fsum(seconds for seconds, _ in durations.values())
        rows = [(name, seconds / n, n, seconds, 100 * seconds / total) for name, (seconds, n) in durations.items()]
        rows.sort(key=lambda row: row[4], reverse=True)
        return rows, sum(n for _, n in durations.values()), total


class Timed:
    """An object of which one method is profiled, and everything else is as it is."""

    def __init__(self, owner: Any, method: str, profiler: Any, action: str) -> None:
        self._owner, self._method, self._profiler, self._action = owner, method, profiler, action

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._owner, name)
        return timed(self._profiler, self._action, value) if name == self._method else value


def make_profiler(given: Any, folder: Path | None) -> Any:
    """Return the profiler of a run.

    Args:
        given: "simple", "pytorch", or an object with a method ``profile(action_name)`` that returns a context manager.
        folder: Where torch's writes its trace; None for nowhere.

    Raises:
        ValueError: If it is another name.
        TypeError: If the object has no such method.
    """
    if given == "simple":
        return ExclusiveProfiler()
    if given == "pytorch":
        return PyTorchProfiler(folder, None)
    if isinstance(given, str):
        raise ValueError(f"profiler={given!r}; it must be 'simple', 'pytorch', a profiler of Lightning's, or None")
    if not callable(getattr(given, "profile", None)):
        raise TypeError(f"profiler is a {type(given).__name__}, which has no method profile(action_name)")
    return given


def timed(profiler: Any, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose calls are profiled as an action."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with profiler.profile(action):
            return function(*args, **kwargs)

    return call


def timed_iterator(profiler: Any, action: str, iterator: Iterator[Any]) -> Iterator[Any]:
    """Yield what an iterator yields; each time that it is asked for the next is profiled as an action."""
    while True:
        with profiler.profile(action):
            try:
                value = next(iterator)
            except StopIteration:
                return
        yield value


def begin(profiler: Any, stage: str, rank: int, folder: Path) -> None:
    """Begin a run."""
    if isinstance(profiler, Profiler):
        profiler.setup(stage, rank, str(folder))
    if isinstance(profiler, ExclusiveProfiler):
        profiler.start(REST)


def end(profiler: Any, given: Any, stage: str, folder: Path | None, show: Callable[[str], None]) -> None:
    """End a run: show the report of a profiler that was asked for by name, and write it to the folder, if any."""
    if isinstance(profiler, ExclusiveProfiler):
        while profiler._under_way:  # an exception may have left some
            profiler.stop(profiler._under_way[-1][0])
    if isinstance(given, str):
        report = profiler.summary()
        show(report)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"profile_{stage}.txt").write_text(report)
    elif isinstance(profiler, Profiler):
        profiler.describe()
    if isinstance(profiler, Profiler):
        profiler.teardown(stage)
