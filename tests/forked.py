"""Processes forked from one that has imported everything: a start takes a tenth of a second, not seconds of imports."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lightning_utilities.core.rank_zero
import torch
import torchmetrics.utilities.prints

CONTEXT = multiprocessing.get_context("forkserver")
# All that any test forks: there is one server, which imports this when it forks the first time.
CONTEXT.set_forkserver_preload(
    [
        "tests.faults.train",
        "tests.processes.cases",
        "tests.processes.special",
        "tests.processes.uneven",
        "tests.recipes.tasks",
        "framework.recipes.train",
    ]
)


class Forked:
    """A function that runs in a process of its own.

    Args:
        function: What it does; it ends the process with its `SystemExit`, or with 1 after another error.
        *args: Its arguments.
        cwd: In which folder.
        **environment: Variables of its environment, besides the present ones.
    """

    def __init__(self, function: Callable[..., Any], *args: Any, cwd: Path, **environment: str) -> None:
        reader, writer = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(target=_run, args=(function, args, cwd, writer, os.environ | environment))
        self.process.start()
        writer.close()
        self._printed = b""
        self._reading = threading.Thread(target=self._read, args=(reader,), daemon=True)
        self._reading.start()

    def _read(self, reader: Connection) -> None:
        with reader:
            while part := os.read(reader.fileno(), 65536):
                self._printed += part

    @property
    def printed(self) -> str:
        """What it has printed so far, errors too."""
        return self._printed.decode()

    def end(self, timeout: float = 600) -> int:
        """Wait for its end; return the exit code, negative for a signal.

        Raises:
            TimeoutError: If it hangs.
        """
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"no end within {timeout:.0f} s; printed: {self.printed[-2000:]}")
        self._reading.join(timeout=5)  # there is no end of it while a process that it has started lives
        return self.process.exitcode


def _run(
    function: Callable[..., Any], args: tuple[Any, ...], cwd: Path, printed: Connection, environment: dict[str, str]
) -> None:
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    printed.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def run_two(function: Callable[..., Any], *args: Any, cwd: Path) -> tuple[list[int], list[str]]:
    """Run a function in two processes, connected as by torchrun; return their exit codes and prints."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    connection = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "tests"}
    connection |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    both = [
        Forked(
            _run_rank,
            rank,
            function,
            *args,
            cwd=cwd,
            **{**connection, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    return [process.end() for process in both], [process.printed for process in both]


def _run_rank(rank: int, function: Callable[..., Any], *args: Any) -> None:
    for library in (torchmetrics.utilities.prints, lightning_utilities.core.rank_zero):
        library.rank_zero_only.rank = rank  # they took it from the environment when they were imported
    function(*args)
