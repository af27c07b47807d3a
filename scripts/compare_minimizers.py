"""Compare full-batch minimizers with SGD and Adam on logistic regression on Fashion-MNIST, 60,000 images.

    uv run python -m scripts.compare_minimizers FOLDER [--data-root ROOT] [--epochs 60]

It writes FOLDER/minimize.csv and FOLDER/minimize.png and prints a table. The unit is an epoch's worth of evaluations:
one value and gradient over all images, or one Hessian-vector product, which costs about as much. The full batch is
evaluated in pieces of 10,000 images, whose gradients add up. A curve shows the lowest loss so far: for a full-batch
method, among its evaluations; for SGD and Adam, over all images after every epoch, which is not included in the
seconds. Every method is tuned: each setting of its grid runs to the end, and the one that ends lowest is drawn. The
full-batch methods get four times the epochs of SGD and Adam, for about the same CPU seconds, on one thread.
"""

import argparse
import contextlib
import csv
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from framework.data import TensorLoader, fashion_mnist
from framework.objective.curvature import hessian_vector_product
from framework.optim import MinimizeWrapper

PIECE = 10_000
# An epoch in small batches takes four to six times as long as one evaluation of the full batch.
MORE_EPOCHS = 4
# The first setting of each full-batch method is its default. The rates of SGD and Adam fall linearly to 0.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "L-BFGS-B": [{"maxcor": 50}, {"maxcor": 10}, {"maxcor": 100}],
    "LBFGS": [{"history_size": 50}, {"history_size": 10}, {"history_size": 100}],
    "CG": [{}],
    "Newton-CG": [{}],
    "SGD, batch 64": [{"lr": lr, "batch_size": 64} for lr in (0.1, 0.3, 1.0)],
    "SGD, batch 512": [{"lr": lr, "batch_size": 512} for lr in (0.1, 0.3, 1.0)],
    "Adam, batch 64": [{"lr": lr, "batch_size": 64} for lr in (0.01, 0.03, 0.1)],
    "Adam, batch 512": [{"lr": lr, "batch_size": 512} for lr in (0.03, 0.1, 0.3)],
}
COLORS = ("#3465a4", "#d9622b", "#4e9a06", "#75507b", "#b8bcc4", "#6b7078", "#c9a000", "#000000")


class Spent(Exception):  # noqa: N818 (not an error: the end of a run)
    """Raised when the budget of evaluations is used up."""


@dataclass
class Run:
    """A curve: the lowest loss so far against epochs' worth of evaluations and seconds."""

    method: str
    setting: dict[str, Any]
    epochs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def add(self, epochs: float, seconds: float, loss: float) -> None:
        self.epochs.append(epochs)
        self.seconds.append(seconds)
        self.losses.append(min([loss, *self.losses[-1:]]))

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.setting.items()) or "defaults"


class FullBatch:
    """The mean loss over all images as a closure that counts its evaluations and Hessian-vector products.

    Raises:
        Spent: If an evaluation or product would exceed the budget.
    """

    def __init__(self, model: nn.Linear, data: tuple[Tensor, Tensor], run: Run, budget: int, *, products: bool) -> None:
        self.model, self.data, self.run, self.budget = model, data, run, budget
        self.products = products
        self.params = list(model.parameters())
        self.count = 0
        self.start = time.process_time()

    def __call__(self) -> Tensor:
        self._spend()
        if self.products:
            # Keep the graph for the products at this point, which are requested after the evaluation.
            self._product = hessian_vector_product(self._evaluate, self.params)
            self._at = [param.clone() for param in self.params]
            loss = self._product.value
        else:
            loss = self._evaluate()
        self.run.add(self.count, time.process_time() - self.start, float(loss))
        return loss

    def hvp(self) -> Callable[[Tensor], Tensor]:
        if not all(map(torch.equal, self._at, self.params)):
            self()
        product = self._product

        def counted(vector: Tensor) -> Tensor:
            self._spend()
            return product(vector)

        return counted

    def _spend(self) -> None:
        if self.count >= self.budget:
            raise Spent
        self.count += 1

    def _evaluate(self) -> Tensor:
        self.model.zero_grad()
        total = torch.zeros(())
        for images, labels in zip(*(tensor.split(PIECE) for tensor in self.data), strict=True):
            loss = F.cross_entropy(self.model(images), labels, reduction="sum") / len(self.data[0])
            loss.backward()
            total += loss.detach()
        return total


def run_full_batch(method: str, setting: dict[str, Any], data: tuple[Tensor, Tensor], budget: int) -> Run:
    model, run = new_model(data), Run(method, setting)
    closure = FullBatch(model, data, run, budget, products=method == "Newton-CG")
    optimizer: Any
    if method == "LBFGS":
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=budget, max_eval=2 * budget, tolerance_grad=0, tolerance_change=0,
            line_search_fn="strong_wolfe", **setting,
        )  # fmt: skip
    else:
        # No tolerance ends a run before its budget does.
        tolerance = {"CG": {"gtol": 0.0}, "L-BFGS-B": {"gtol": 0.0, "ftol": 0.0}, "Newton-CG": {"xtol": 0.0}}[method]
        optimizer = MinimizeWrapper(
            model.parameters(), {"method": method, "options": {"maxiter": budget, **tolerance, **setting}}
        )
    with contextlib.suppress(Spent):
        optimizer.step(closure)
    return run


def run_stochastic(method: str, setting: dict[str, Any], data: tuple[Tensor, Tensor], budget: int) -> Run:
    model, run = new_model(data), Run(method, setting)
    loader = TensorLoader(*data, batch_size=setting["batch_size"], shuffle=True)
    optimizer: torch.optim.Optimizer
    if method.startswith("Adam"):
        optimizer = torch.optim.Adam(model.parameters(), lr=setting["lr"], fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=setting["lr"], momentum=0.9, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=budget * len(loader))
    run.add(0, 0.0, mean_loss(model, data))
    seconds = 0.0
    for epoch in range(1, budget + 1):
        start = time.process_time()
        for images, labels in loader:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        seconds += time.process_time() - start
        run.add(epoch, seconds, mean_loss(model, data))
    return run


def new_model(data: tuple[Tensor, Tensor]) -> nn.Linear:
    """Return a logistic regression that starts at 0, where the loss is log 10."""
    model = nn.Linear(data[0].shape[1], 10)
    for param in model.parameters():
        nn.init.zeros_(param)
    return model


@torch.no_grad()
def mean_loss(model: nn.Linear, data: tuple[Tensor, Tensor]) -> float:
    return float(F.cross_entropy(model(data[0]), data[1]))


def table(best: Iterable[Run], budget: int) -> str:
    """Return a Markdown table of the losses after fractions of the budget and at the end."""
    marks = [max(1, budget * share // 6) for share in (1, 2, 4, 6)]
    head = ["method", "tuned to", *(f"loss after {mark}" for mark in marks), "at the end", "after", "CPU seconds"]
    rows = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(marks) + 3)]
    for run in best:
        after = [[loss for at, loss in zip(run.epochs, run.losses, strict=True) if at <= mark][-1] for mark in marks]
        cells = [run.method, run.label, *(f"{loss:.4f}" for loss in after), f"{run.losses[-1]:.4f}"]
        cells += [f"{run.epochs[-1]:g}", f"{run.seconds[-1]:.1f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def draw(best: list[Run], budget: int) -> Figure:
    """Draw the losses against epochs' worth of evaluations and against seconds."""
    figure = Figure(figsize=(9.6, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for run, color in zip(best, COLORS, strict=True):
        style = "--" if "batch_size" in run.setting else "-"
        for axis, x in zip(axes, (run.epochs, run.seconds), strict=True):
            axis.plot(x, run.losses, style, color=color, lw=1.5, label=run.method)
    lowest = min(min(run.losses) for run in best)
    axes[0].set(xlabel="epochs' worth of evaluations", ylabel="training loss", ylim=(lowest - 0.01, 0.6))
    axes[0].set_xlim(0, budget)
    axes[1].set(xlabel="CPU seconds, one thread")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].legend(frameon=False)
    figure.suptitle("Logistic regression on Fashion-MNIST, 60,000 images")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", default=os.environ.get("DATA_ROOT", "data"))
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = fashion_mnist(options.data_root, train=True)
    compare((images.flatten(1) / 255, labels), options.epochs, options.folder)


def compare(data: tuple[Tensor, Tensor], budget: int, folder: Path) -> None:
    """Run every setting on images (n, d) with classes (n,), print the results, and write the best of each method."""
    best = []
    for method, grid in GRIDS.items():
        if "batch_size" in grid[0]:
            runs = [run_stochastic(method, setting, data, budget) for setting in grid]
        else:
            runs = [run_full_batch(method, setting, data, MORE_EPOCHS * budget) for setting in grid]
        for one in runs:
            print(f"{method:15} {one.label:24} loss {one.losses[-1]:.4f}   {one.seconds[-1]:6.1f} s", flush=True)
        best.append(min(runs, key=lambda one: one.losses[-1]))
    write(best, budget, folder)


def write(best: list[Run], budget: int, folder: Path) -> None:
    """Write the curves to the folder as CSV and PNG, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "minimize.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "setting", "epochs", "seconds", "loss"])
        for one in best:
            for row in zip(one.epochs, one.seconds, one.losses, strict=True):
                writer.writerow([one.method, one.label, row[0], f"{row[1]:.3f}", f"{row[2]:.6f}"])
    draw(best, budget).savefig(folder / "minimize.png")
    print("\n" + table(best, budget))


if __name__ == "__main__":
    main()
