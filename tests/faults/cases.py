"""The cases of the fault suite: each hits a run in some way, continues it until it ends, and compares how it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from framework.callback import HOOKS
from tests.faults import train
from tests.faults.outcome import differences
from tests.faults.train import WRITERS, AtHook, AtLine, Fault, FillDisk, interrupt, kill, make_read_only, terminate
from tests.forked import CONTEXT

REEVALUATING = ("lbfgs", "sparsa")
SECONDS = 60.0  # a run that takes longer hangs
ENDED, INTERRUPTED, TERMINATED, KILLED = 0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL
FAILED = 1  # an exception


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        folder: Where it lies.
        seconds: How long it took.
        lines: How many lines of each file of our package it executed.
        hooks: How often each hook was called.
    """

    folder: Path
    seconds: float
    lines: dict[str, int]
    hooks: dict[str, int]

    def num_lines(self, files: Sequence[str] = ("",)) -> int:
        """Count the executed lines of some files, or of all."""
        return sum(count for file, count in self.lines.items() if file.startswith(tuple(files)))


class Laboratory:
    """Runs trainings in processes that are forked from one that has imported everything: a start takes 0.1 s.

    Args:
        root: The folder in which all runs have theirs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._references: dict[str, Reference] = {}

    def new_folder(self) -> Path:
        """Make a folder for a run."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def run(
        self,
        training: str,
        folder: Path,
        *faults: Fault,
        signal_after: tuple[int, float] | None = None,
        counts_path: Path | None = None,
    ) -> int:
        """Run or continue a training in a folder; return the exit code, negative for a signal.

        Args:
            training: Which one.
            folder: Where.
            *faults: What happens within the process.
            signal_after: A signal to send, and the seconds after which.
            counts_path: Where the process writes what it executed.

        Raises:
            TimeoutError: If it hangs.
        """
        process = CONTEXT.Process(target=train.train, args=(training, folder, faults, counts_path))
        process.start()
        if signal_after is not None:
            number, delay = signal_after
            process.join(delay)
            if process.exitcode is None:
                os.kill(process.pid, number)
        process.join(SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{training} in {folder} did not end within {SECONDS:.0f} s")
        code = process.exitcode
        process.close()
        return code

    def reference(self, training: str) -> Reference:
        """Return the uninterrupted run of a training; it is made once."""
        if training not in self._references:
            folder, counted, counts = self.new_folder(), self.new_folder(), self.root / f"{training}.json"
            assert self.run(training, counted, counts_path=counts) == ENDED, printed(counted)
            started = time.monotonic()
            assert self.run(training, folder) == ENDED, printed(folder)
            seconds = time.monotonic() - started
            assert (found := differences(counted, folder)) == [], f"{training} is not deterministic: {found}"
            self._references[training] = Reference(folder, seconds, **json.loads(counts.read_text()))
        return self._references[training]


def printed(folder: Path) -> str:
    """Return the end of what the runs in a folder printed."""
    return folder.with_suffix(".err").read_text()[-2000:]


# -------------------------------------------------------------------------------------------------------------- cases

# A case is tried with a laboratory, the name of a training and random choices; it returns what was wrong, line by line.
Case = Callable[[Laboratory, str, random.Random], list[str]]


def _hit(laboratory: Laboratory, training: str, make_faults: Callable[[], Sequence[Fault]]) -> tuple[Path, int]:
    """Run a training with faults; return its folder and exit code.

    How many lines a run executes depends a little on the time, so that a fault near the end may come too late: then
    another run is given other faults.
    """
    for _ in range(10):
        folder = laboratory.new_folder()
        if (code := laboratory.run(training, folder, *make_faults())) != ENDED:
            break
    return folder, code


def _finish(laboratory: Laboratory, training: str, folder: Path) -> list[str]:
    """Continue a run to its end, and compare it with the uninterrupted one."""
    code = laboratory.run(training, folder)
    if code != ENDED:
        return [f"continued: exit code {code}: {_last_line(folder)}"]
    return differences(folder, laboratory.reference(training).folder)


def _last_line(folder: Path) -> str:
    lines = printed(folder).strip().splitlines()
    return lines[-1][:200] if lines else "nothing printed"


def _any_line(reference: Reference, choose: random.Random, action: Callable[[], None], *files: str) -> AtLine:
    files = files or ("",)
    return AtLine(choose.randint(1, reference.num_lines(files)), action, files)


def killed_by_time(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGKILL at a random moment, once to three times."""
    seconds, code = laboratory.reference(training).seconds, ENDED
    while code == ENDED:  # until the first one has hit
        folder = laboratory.new_folder()
        code = laboratory.run(training, folder, signal_after=(signal.SIGKILL, choose.uniform(0.05, seconds)))
    for _ in range(choose.choice((0, 0, 1, 2))):
        if code == KILLED:
            code = laboratory.run(training, folder, signal_after=(signal.SIGKILL, choose.uniform(0.05, seconds)))
    if code not in (KILLED, ENDED):
        return [f"exit code {code}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def _killed_at_line(laboratory: Laboratory, training: str, choose: random.Random, *, files: Sequence[str]) -> list[str]:
    reference = laboratory.reference(training)
    folder, code = _hit(laboratory, training, lambda: [_any_line(reference, choose, kill, *files)])
    for _ in range(choose.choice((0, 0, 1, 2))):
        if code == KILLED:
            code = laboratory.run(training, folder, _any_line(reference, choose, kill, *files))
    if code not in (KILLED, ENDED):
        return [f"exit code {code}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def killed_at_a_line(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGKILL at a random line of the package, once to three times."""
    return _killed_at_line(laboratory, training, choose, files=("",))


def killed_in_the_write(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGKILL at a random line of what writes checkpoints and logs, once to three times."""
    return _killed_at_line(laboratory, training, choose, files=WRITERS)


def _signaled(
    laboratory: Laboratory, training: str, choose: random.Random, *, action: Callable[[], None], code: int
) -> list[str]:
    reference = laboratory.reference(training)
    folder, found = _hit(laboratory, training, lambda: [_any_line(reference, choose, action)])
    # Before and after the part of `fit` that waits for signals, they have their usual effect.
    if found not in (code, -(code - 128)):
        return [f"exit code {found}, not {code}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def terminated(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGTERM at a random line: the process exits with 143."""
    return _signaled(laboratory, training, choose, action=terminate, code=TERMINATED)


def interrupted(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGINT at a random line: fit returns (the script exits with 130)."""
    return _signaled(laboratory, training, choose, action=interrupt, code=INTERRUPTED)


def signaled_by_time(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """SIGTERM or SIGINT at a random moment."""
    seconds, code = laboratory.reference(training).seconds, ENDED
    number = choose.choice((signal.SIGTERM, signal.SIGINT))
    while code == ENDED:
        folder = laboratory.new_folder()
        code = laboratory.run(training, folder, signal_after=(number, choose.uniform(0.15, seconds)))
    if code not in (128 + number, -number):
        return [f"exit code {code} after {number.name}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def interrupted_twice(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """A second SIGINT at one of the next lines after the first: the process exits with 130 at once."""
    reference = laboratory.reference(training)

    def twice() -> list[Fault]:
        first = _any_line(reference, choose, interrupt)
        return [first, AtLine(first.number + choose.randint(1, 300), interrupt)]

    folder, code = _hit(laboratory, training, twice)
    if code != INTERRUPTED:
        return [f"exit code {code}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def _starved(laboratory: Laboratory, training: str, folder: Path, fault: Fault, message: str) -> list[str]:
    """Run into a folder that cannot be written: the run fails with a message, and the next one goes on."""
    code = laboratory.run(training, folder, fault)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    # A fault after the last save does no harm.
    if code not in (FAILED, ENDED) or (code == FAILED and message not in printed(folder)):
        return [f"exit code {code}, words without {message!r}: {_last_line(folder)}"]
    return _finish(laboratory, training, folder)


def disk_full(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """No file can grow beyond a random size, from a random line on: `ulimit -f`."""
    folder, reference = laboratory.new_folder(), laboratory.reference(training)
    # What the run prints goes to a file, too, which must have room for the message.
    size = choose.randint(2000, 2 * (reference.folder / "checkpoints" / "last.ckpt").stat().st_size // 3)
    fault = _any_line(reference, choose, FillDisk(size))
    return _starved(laboratory, training, folder, fault, "File too large")


def read_only(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """The folders of the run become read-only at a random line."""
    fault = _any_line(laboratory.reference(training), choose, make_read_only)
    return _starved(laboratory, training, laboratory.new_folder(), fault, "Permission denied")


def read_only_at_first(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """The folder is read-only from the start: fit fails with its name."""
    return _starved(laboratory, training, laboratory.new_folder(), AtLine(1, make_read_only), "Permission denied")


def _damaged(
    laboratory: Laboratory, training: str, choose: random.Random, *, damage: Callable[[bytearray], None]
) -> list[str]:
    """Stop a run, damage ``last.ckpt``, and continue from ``best.ckpt``, or be refused if there is none."""
    reference = laboratory.reference(training)
    first = reference.num_lines() // 2  # there are checkpoints by then
    folder, code = _hit(laboratory, training, lambda: [AtLine(choose.randint(first, 2 * first), kill)])
    if code != KILLED:
        return [f"exit code {code}: {_last_line(folder)}"]
    last, best = folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt"
    content = bytearray(last.read_bytes())
    damage(content)
    last.write_bytes(content)
    if choose.random() < 0.5:
        best.unlink(missing_ok=True)
    if best.exists():
        wrong = _finish(laboratory, training, folder)
        return wrong if "passed over" in printed(folder) else [*wrong, "no warning that last.ckpt is damaged"]
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = laboratory.run(training, folder)
    if code != FAILED or "ValueError" not in _last_line(folder):
        return [f"exit code {code}, not a ValueError: {_last_line(folder)}"]
    if files != {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}:
        return ["the refused run has changed files"]
    return []


def bit_flipped(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """A random bit of ``last.ckpt`` is flipped."""

    def flip(content: bytearray) -> None:
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)

    return _damaged(laboratory, training, choose, damage=flip)


def truncated(laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    """``last.ckpt`` is cut off at a random length."""

    def cut(content: bytearray) -> None:
        del content[choose.choice((0, 1, len(content) - 1, choose.randrange(len(content)))) :]

    return _damaged(laboratory, training, choose, damage=cut)


def _failed_in(hook: str, in_module: bool, laboratory: Laboratory, training: str, choose: random.Random) -> list[str]:
    if hook == "on_before_optimizer_step" and training in REEVALUATING:
        training = "adam"  # these do not call it
    folder, reference = laboratory.new_folder(), laboratory.reference(training)
    calls = reference.hooks.get(hook, 1)
    if hook == "on_save_checkpoint":
        calls //= 2  # copies of the state are made as time allows
    faults = [AtHook(hook, choose.randint(1, calls), in_module)]
    if hook == "on_exception":
        faults.insert(0, AtHook("on_train_batch_end", choose.randint(1, reference.hooks["on_train_batch_end"])))
    if hook == "on_load_checkpoint":
        laboratory.run(training, folder, _any_line(reference, choose, kill, "loop/fit.py"))
        if not list(folder.rglob("*.ckpt")):
            faults = [AtHook("setup", 1, in_module)]  # killed before there was one to load
    code = laboratory.run(training, folder, *faults)
    if code != FAILED:
        return [f"an error in {faults[0]}: exit code {code}: {_last_line(folder)}"]
    if f"of {faults[0].hook}" not in printed(folder):
        return [f"an error in {faults[0]} is not what ended the run: {_last_line(folder)}"]
    return [f"after an error in {faults[0]}: {line}" for line in _finish(laboratory, training, folder)]


FIT_HOOKS = [
    name for name in HOOKS if not any(part in name for part in ("_test_", "_predict_", "_optimizer_iteration"))
]


def hook_fails(hook: str, *, in_module: bool) -> Case:
    """Make a case: an error in a random call of a hook ends the run, which is then continued without it."""
    return partial(_failed_in, hook, in_module)


# How often the long form tries each case.
CASES: dict[str, tuple[Case, int]] = {
    "SIGKILL at random moments": (killed_by_time, 50),
    "SIGKILL at random lines": (killed_at_a_line, 50),
    "SIGKILL inside the write": (killed_in_the_write, 50),
    "SIGTERM at random lines": (terminated, 50),
    "SIGINT at random lines": (interrupted, 50),
    "SIGTERM or SIGINT at random moments": (signaled_by_time, 50),
    "a second SIGINT": (interrupted_twice, 50),
    "disk full": (disk_full, 20),
    "folder becomes read-only": (read_only, 20),
    "folder is read-only": (read_only_at_first, 5),
    "bit flips of last.ckpt": (bit_flipped, 40),
    "truncations of last.ckpt": (truncated, 20),
    **{f"an error in {hook} of a callback": (hook_fails(hook, in_module=False), 3) for hook in FIT_HOOKS},
    **{f"an error in {hook} of the module": (hook_fails(hook, in_module=True), 3) for hook in FIT_HOOKS},
}
