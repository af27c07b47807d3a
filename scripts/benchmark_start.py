"""Time how long it takes until a program trains: importing proxtrain, and the command, against importing torch.

    uv run python -m scripts.benchmark_start

Each figure is that of a process of its own; they take turns, in another order each round. A ratio is the median over
the rounds of the ratios within a round. The first round, which fills the caches of the file system, does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

# The command, ended within its first optimizer step or as it ends by itself.
_COMMAND = "import sys; sys.argv[1:] = {arguments!r}; from framework.recipes.cli import main; main()"
_FIRST_STEP = """
import os, sys
import framework.loop.fit as loop
log_step = loop._log_step
def stop(*args):
    log_step(*args)
    sys.stdout.flush()
    os._exit(0)
loop._log_step = stop
"""
ROWS = {
    "import torch": "import torch",
    "from framework import Module, Trainer": "from framework import Module, Trainer",
    "proxtrain, to the end of its first step": _FIRST_STEP + _COMMAND,
    "proxtrain, to its end": _COMMAND,
}
TARGETS = {
    "from framework import Module, Trainer": 1.2,
    "proxtrain, to the end of its first step": 1.6,
    "proxtrain, to its end": 2.5,
}


@dataclass
class Cost:
    """What a process took: seconds by the clock, seconds of the processor, and the most memory it had, in MiB."""

    seconds: float
    cpu: float
    memory: float


def run(code: str, folder: Path) -> Cost:
    """Run code in a process of its own, which writes to a folder.

    Raises:
        RuntimeError: If it fails.
    """
    code = code.replace("{arguments!r}", repr([f"hydra.run.dir={folder}", "trainer.enable_progress_bar=false"]))
    with (folder.parent / "output.txt").open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError((folder.parent / "output.txt").read_text())
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time the start of proxtrain against that of torch.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    rounds = parser.parse_args(argv).rounds
    if rounds < 1:
        parser.error(f"--rounds {rounds}: it must be at least 1")
    costs: dict[str, list[Cost]] = {name: [] for name in ROWS}
    for round_ in range(-1, rounds):
        names = list(ROWS)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            with tempfile.TemporaryDirectory() as folder:
                cost = run(ROWS[name], Path(folder) / "run")
            if round_ >= 0:
                costs[name].append(cost)
    print("|  | seconds | / import torch | CPU seconds | / import torch | MiB | / import torch | target (seconds) |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, own in costs.items():
        cells = [name]
        for part in ("seconds", "cpu", "memory"):
            values = [getattr(cost, part) for cost in own]
            torch_values = [getattr(cost, part) for cost in costs["import torch"]]
            ratio = median(a / b for a, b in zip(values, torch_values, strict=True))
            cells += [f"{median(values):.2f}" if part != "memory" else f"{median(values):.0f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} | {f'<= {TARGETS[name]:.1f}' if name in TARGETS else ''} |")


if __name__ == "__main__":
    main()
