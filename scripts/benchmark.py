"""Time proxtrain against hand-written loops and against Lightning, and print tables in Markdown.

    uv run python -m scripts.benchmark --data-root ../shared/data

All contenders run in one process, one after another, round after round, in a different order each round, so that
whatever else the machine does affects all of them. A ratio is the median over the rounds of the ratios within a round.
The first round is a short one that does not count. `scripts.benchmark_loops` says what is timed and what is not,
`scripts.benchmark_tasks` what is trained; proxtrain and the tight loop must reach the same weights in every round.

Everything runs on the CPU. What contenders print goes to a separate terminal, where progress bars are drawn as often as
on any other. Lightning's and the tutorial's batches come from a `DataLoader` without workers over a `TensorDataset`
(toy) or over torchvision's dataset with `ToTensor` and `Normalize` (Fashion-MNIST), proxtrain's and the tight loop's
from tensors in memory. On the toy, an epoch is 8 steps, so what Lightning does once per epoch weighs on each of them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import tempfile
import termios
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader

from framework.data import ImageTransform, TensorLoader, fashion_mnist
from framework.data.fashion_mnist import MEAN, STD
from scripts.benchmark_evaluations import measure, problems
from scripts.benchmark_loops import CONTENDERS, SLOW, check_same_work
from scripts.benchmark_tasks import Task, fashion_cnn, fashion_mlp, per_sample_images, toy

TASKS = ("toy", "fashion_mlp", "fashion_cnn", "evaluations", "augment")
AUGMENT_TARGET = {"per-sample torchvision": 0.05}

# For each contender, one number per round: microseconds per step or image, or milliseconds outside the timed part.
Samples = dict[str, list[float]]


def run_task(task: Task, rounds: int, root: Path) -> tuple[Samples, Samples]:
    """Time every contender in every round, after one round that does not count; logs and checkpoints go to ``root``.

    Returns:
        Microseconds per step, and milliseconds outside the timed part.

    Raises:
        RuntimeError: If proxtrain and the tight loop trained different networks.
    """
    micros: Samples = {name: [] for name in CONTENDERS}
    outside: Samples = {name: [] for name in CONTENDERS}
    for round_ in range(-1, rounds):
        timings = {}
        for name in _rotated(list(CONTENDERS), round_):
            epochs = task.slow_epochs if name in SLOW else task.epochs
            epochs = max(1, epochs // 10) if round_ < 0 else epochs
            with tempfile.TemporaryDirectory(dir=root) as folder:
                timings[name] = CONTENDERS[name](task, epochs, Path(folder))
        check_same_work(timings["proxtrain"], timings["tight loop"])
        if round_ >= 0:
            for name, timing in timings.items():
                micros[name].append(1e6 * timing.seconds / timing.steps)
                outside[name].append(1e3 * timing.outside)
    return micros, outside


def run_augment(data_root: Path, rounds: int, num_samples: int = 60_000, num_slow_samples: int = 2_048) -> Samples:
    """Time augmented and normalized batches of 64, each image with its own crop and flip: microseconds per image."""
    images, labels = fashion_mnist(data_root, train=True, download=False)
    ours = TensorLoader(
        images[:num_samples],
        labels[:num_samples],
        batch_size=64,
        shuffle=True,
        transform=ImageTransform(MEAN, STD, augment=True, padding=2),
    )
    theirs = DataLoader(per_sample_images(data_root, num_slow_samples, augment=True), batch_size=64, shuffle=True)
    loaders: dict[str, Any] = {"proxtrain": ours, "per-sample torchvision": theirs}
    micros: Samples = {name: [] for name in loaders}
    for round_ in range(-1, rounds):
        for name in _rotated(list(loaders), round_):
            started = time.perf_counter()
            count = sum(len(images) for images, _ in loaders[name])
            if round_ >= 0:
                micros[name].append(1e6 * (time.perf_counter() - started) / count)
    return micros


def run_evaluations(rounds: int, root: Path) -> dict[str, Samples]:
    """Time the steps that evaluate many times, and print a table: microseconds per evaluation or iteration."""
    print("**evaluations**\n\n| | median, µs | by hand, µs | ours / by hand | target |")
    print("| --- | ---: | ---: | ---: | ---: |")
    record = {}
    for problem_name, problem in problems().items():
        with terminal(root / "terminal.txt"):
            micros = record[problem_name] = measure(problem, rounds, root)
        by_hand = micros["by hand"]
        for name, target in problem.targets.items():
            ratio = median(ours / theirs for ours, theirs in zip(micros[name], by_hand, strict=True))
            label = f"{problem_name}, per {problem.unit}{name.removeprefix('proxtrain')}"
            print(f"| {label} | {median(micros[name]):.0f} | {median(by_hand):.0f} | {ratio:.2f} | <= {target:.2f} |")
    print(flush=True)
    return record


def markdown_table(micros: Samples, targets: dict[str, float], unit: str, outside: Samples | None = None) -> str:
    """Return a table of medians, minima and ratios, with the targets."""
    header = ["", f"median, µs/{unit}", "min", "proxtrain / it", "target"]
    rows = [header + (["outside, ms"] if outside else [])]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for name, values in micros.items():
        ratio = median(a / b for a, b in zip(micros["proxtrain"], values, strict=True))
        row = [name, f"{median(values):.1f}", f"{min(values):.1f}", "" if name == "proxtrain" else f"{ratio:.3f}"]
        row.append(f"<= {targets[name]:.2f}" if name in targets else "")
        rows.append(row + ([f"{median(outside[name]):.0f}"] if outside else []))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def further_ratios(micros: Samples, compiled_targets: dict[str, float]) -> str:
    """Say what a compiled step costs, and an unmodified LightningModule in our trainer, compared with others."""
    compared = [("proxtrain, compile='step'", name, target) for name, target in compiled_targets.items()]
    compared.append(("proxtrain, LightningModule", "Lightning, defaults", 0.5))
    lines = []
    for ours, theirs, target in compared:
        ratio = median(a / b for a, b in zip(micros[ours], micros[theirs], strict=True))
        lines.append(f"- {ours} / {theirs}: {ratio:.3f} (target: <= {target:.2f})")
    return "\n".join(lines)


@contextmanager
def terminal(log: Path) -> Iterator[None]:
    """Make stdout and stderr a terminal of 100 columns, whose output another process writes to a file."""
    main_end, end = os.openpty()
    termios.tcsetwinsize(end, (24, 100))
    with log.open("wb") as file:
        reader = subprocess.Popen(["cat"], stdin=main_end, stdout=file, stderr=subprocess.DEVNULL)
    os.close(main_end)
    try:
        with os.fdopen(end, "w") as stream, redirect_stdout(stream), redirect_stderr(stream):
            yield
    finally:
        reader.wait()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's advice to use workers and to log more often, which is good for users but not needed here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Lightning itself calls what newer versions of torch deprecate.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
        try:
            yield
        finally:
            logger.setLevel(level)


def _rotated(names: Sequence[str], by: int) -> list[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]


def _tasks(names: Sequence[str], data_root: Path) -> dict[str, Task]:
    makers: dict[str, Callable[[], Task]] = {
        "toy": toy,
        "fashion_mlp": lambda: fashion_mlp(data_root),
        "fashion_cnn": lambda: fashion_cnn(data_root),
    }
    return {name: makers[name]() for name in names if name in makers}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time proxtrain against hand-written loops and against Lightning.")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default: %(default)s)")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DATA_ROOT", "data")))
    parser.add_argument("--threads", type=int, help="number of torch's threads (default: torch's own)")
    parser.add_argument("--json", type=Path, help="also write the figures of every round to this file")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: it must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)

    names = ("torch", "lightning", "torchvision")
    setting = ", ".join([*(f"{name} {version(name)}" for name in names), f"Python {platform.python_version()}"])
    print(f"{setting}, {torch.get_num_threads()} threads, {args.rounds} rounds\n", flush=True)
    record: dict[str, Any] = {"setting": setting, "threads": torch.get_num_threads(), "tasks": {}}
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        root = Path(folder)
        for name, task in _tasks(args.task, args.data_root).items():
            with terminal(root / "terminal.txt"):
                micros, outside = run_task(task, args.rounds, root)
            record["tasks"][name] = {"us_per_step": micros, "outside_ms": outside}
            print(f"**{name}**\n\n{markdown_table(micros, task.targets, 'step', outside)}\n", flush=True)
            print(f"{further_ratios(micros, task.compiled_targets)}\n", flush=True)
        if "evaluations" in args.task:
            record["tasks"]["evaluations"] = run_evaluations(args.rounds, root)
    if "augment" in args.task:
        micros = run_augment(args.data_root, args.rounds)
        record["tasks"]["augment"] = {"us_per_image": micros}
        print(f"**augment**\n\n{markdown_table(micros, AUGMENT_TARGET, 'image')}\n")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
