"""Time a step against the size of the network and of the batch, and draw how the trainer's overhead vanishes.

    uv run python -m scripts.benchmark_overhead docs/overhead.png

The network has one hidden layer between 64 inputs and one output. Each point is the median over the rounds of a ratio:
our time per step by that of the tight loop of `scripts.benchmark_loops` in the same round. Contenders take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import TensorDataset

from scripts.benchmark_loops import proxtrain, proxtrain_compiled, tight_loop
from scripts.benchmark_tasks import Task, toy

WIDTHS = (16, 64, 256, 1024, 4096)
BATCH_SIZES = (16, 256)
STEPS = 400  # in two epochs
CONTENDERS = {"proxtrain": proxtrain, "compile='step'": proxtrain_compiled, "tight loop": tight_loop}


def task(width: int, batch_size: int) -> Task:
    """Return a regression on random numbers, with one hidden layer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size * STEPS // 2, 64, generator=generator)
    y = x.sum(1, keepdim=True).sin()
    return replace(
        toy(),
        x=x,
        y=y,
        dataset=TensorDataset(x, y),
        make_net=lambda: nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 1)),
        lr=1e-3,
        batch_size=batch_size,
        epochs=2,
    )


def measure(width: int, batch_size: int, rounds: int, root: Path) -> dict[str, list[float]]:
    """Return microseconds per step, one for each round, after one round that does not count."""
    micros: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for round_ in range(-1, rounds):
        for name, train in CONTENDERS.items():
            with (
                tempfile.TemporaryDirectory(dir=root) as folder,
                (root / "output.txt").open("w") as output,
                redirect_stdout(output),
                redirect_stderr(output),
            ):
                timing = train(task(width, batch_size), 2, Path(folder))
            if round_ >= 0:
                micros[name].append(1e6 * timing.seconds / timing.steps)
    return micros


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw our time per step over that of a tight loop.")
    parser.add_argument("picture", type=Path, help="where to write the picture")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: it must be at least 1")
    torch.set_num_threads(1)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    colors = {"proxtrain": "tab:blue", "compile='step'": "tab:orange"}
    print("| batch | hidden neurons | tight loop, µs | proxtrain / it | compile='step' / it |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for batch_size, style in zip(BATCH_SIZES, ("-o", "--s"), strict=True):
            ratios: dict[str, list[float]] = {name: [] for name in colors}
            for width in WIDTHS:
                micros = measure(width, batch_size, args.rounds, Path(folder))
                for name, values in ratios.items():
                    pairs = zip(micros[name], micros["tight loop"], strict=True)
                    values.append(median(ours / theirs for ours, theirs in pairs))
                cells = [batch_size, width, f"{median(micros['tight loop']):.0f}"]
                cells += [f"{values[-1]:.2f}" for values in ratios.values()]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
            for name, values in ratios.items():
                axes.plot(WIDTHS, values, style, color=colors[name], label=f"{name}, batches of {batch_size}")
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set(xscale="log", xlabel="hidden neurons", ylabel="time per step / that of the tight loop", ylim=(0, None))
    axes.set_xticks(WIDTHS, map(str, WIDTHS))
    axes.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
