"""Ctrl-C and SIGTERM as requests to stop after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_signals(stop: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call ``stop`` on the first SIGINT or SIGTERM; the second one ends the process at once.

    A second SIGINT raises KeyboardInterrupt, a second SIGTERM SystemExit with 143.

    Outside the main thread this does nothing, because Python allows no signal handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGTERM:
            raise SystemExit(128 + number)
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))
        stop(caught[0])

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
