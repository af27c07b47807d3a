"""Pictures of runs. Each function draws one figure from tensors and leaves saving to the caller."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two series that stay apart in print and for color-blind eyes, and a quiet gray for what is only context.
BLUE, ORANGE, GRAY = "#3465a4", "#d9622b", "#8a8f98"
# How much several neurons use a feature together.
NORM = "norm over the neurons"


def _axes(width: float = 6.4, height: float = 4.2, *, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure  # slow to import

    # Figure() instead of pyplot: no global state, nothing to close, no display needed.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure) -> None:
    """Say below what the curves are: the place where a legend hides nothing is also the one that takes no search.

    The picture grows by the lines of the legend, so that those of many curves leave the curves their room.
    """
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles = {label: handle for of_axis in found for handle, label in zip(*of_axis, strict=True)}
    labels = [label if len(label) <= 60 else f"{label[:28]}...{label[-29:]}" for label in handles]
    inches = 0.6 + 0.085 * max(map(len, labels), default=0)  # of a line, a label and the space beside them
    columns = min(4, max(1, int(figure.get_figwidth() / inches)))
    lines = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.21 * max(0, lines - 1))
    figure.legend(handles.values(), labels, loc="outside lower center", ncols=columns, frameon=False)


def caption(pictures: Iterable[Figure], text: str) -> None:
    """Write above each picture whose it is."""
    for figure in pictures:
        figure.suptitle(": ".join(filter(None, [text, figure.get_suptitle()])), fontsize=9, color=GRAY)


def loss_curves(history: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw losses against optimizer steps, or the objective against an optimizer's own iterations.

    Of the training loss the mean over each epoch where it was logged, as the validation loss is a mean over all the
    data; else its values on single batches.

    Args:
        history: The steps and values of each tag.
    """
    figure, ((axis,),) = _axes()
    train = "train/loss_epoch" if "train/loss_epoch" in history else "train/loss"
    colors = {"train/objective": GRAY, train: BLUE, "val/loss": ORANGE}
    unit = "optimizer step"
    if "iteration/objective" in history:
        # A whole minimization is one step.
        colors, unit = {"iteration/objective": BLUE}, "iteration"
    drawn = []
    for tag, color in colors.items():
        if tag not in history or (tag == "train/objective" and history[tag] == history.get("train/loss")):
            continue
        drawn += _curve(axis, tag, history, color)
    if drawn and min(drawn) > 0:
        axis.set_yscale("log")
    axis.set(xlabel=unit, ylabel="loss")
    axis.set_title("Loss")
    _mark_stages(axis, history)
    _legend(figure)
    return figure


def sparsity_curves(history: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Draw the share of exact zeros of each group of parameters against optimizer steps.

    Args:
        history: The steps and values of each tag; those of the groups are ``sparsity/...``.
    """
    figure, ((axis,),) = _axes()
    tags = [tag for tag in history if tag.startswith("sparsity/")]
    for tag, color in zip(tags, _colors(tags).values(), strict=True):
        _curve(axis, tag, history, color)
    axis.set(xlabel="optimizer step", ylabel="share of exact zeros", ylim=(-0.03, 1.03))
    axis.set_title("Sparsity")
    _mark_stages(axis, history)
    _legend(figure)
    return figure


def _curve(axis: Axes, tag: str, history: Mapping[str, tuple[Sequence[float], Sequence[float]]], color: Any) -> Any:
    """Draw the values of a tag in the style of all curves, points marked where they are few; return the values."""
    steps, values = history[tag]
    axis.plot(steps, values, color=color, label=tag, lw=1.5, marker="o" if len(steps) < 30 else None, ms=3)
    axis.grid(alpha=0.25)
    return values


def _mark_stages(axis: Axes, history: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Mark where each stage of a `PenaltyPath` ended, by a thin line and, where there is room, its number from 1 on."""
    steps, stages = history.get("path/stage", ((), ()))
    low, high = axis.get_xlim()
    free = low
    for step, stage in zip(steps, stages, strict=True):
        axis.axvline(step, color=GRAY, lw=0.7, ls=":")
        if step >= free:
            above = axis.get_xaxis_transform()
            axis.text(step, 1.01, f"{stage + 1:.0f}", transform=above, ha="center", va="bottom", fontsize=7, color=GRAY)
            free = step + 0.02 * (high - low)
    if steps:
        axis.set_title(f"{axis.get_title()}; numbers: where a stage of the path ended", pad=16)


def comparison(panels: Mapping[tuple[str, str], Sequence[tuple[str, Sequence[float], Sequence[float]]]]) -> Figure:
    """Draw curves of several runs: a row for each quantity, a column for each thing that it is drawn against.

    Args:
        panels: For the names of row and column, the curves: a label, which has a color of its own, x and y.
    """
    rows, columns = (list(dict.fromkeys(key[i] for key in panels)) for i in (0, 1))
    colors = _colors(label for curves in panels.values() for label, _, _ in curves)
    figure, axes = _axes(4.2 * len(columns), 3.2 * len(rows) + 0.6, rows=len(rows), columns=len(columns))
    for (row, column), curves in panels.items():
        axis = axes[rows.index(row), columns.index(column)]
        for label, x, y in curves:
            axis.plot(x, y, color=colors[label], lw=1.5, marker="o" if len(x) < 15 else None, ms=3, label=label)
        _scale(axis, "y", [value for _, _, y in curves for value in y])
        axis.set(xlabel=column, ylabel=row)
        axis.grid(alpha=0.25)
    for axis in axes.flat:
        axis.set_visible(bool(axis.lines))
    _legend(figure)
    return figure


def against_setting(points: Mapping[str, Sequence[tuple[str, float, float]]], setting: str) -> Figure:
    """Draw how runs ended against a setting: a point for each, and a line through their means.

    Args:
        points: For the name of a metric, (label, x, y) of each run. There are one or two metrics; of the second one,
            which is for comparison, the lines are dashed and have no points.
        setting: What x is.
    """
    figure, ((axis,),) = _axes()
    colors = _colors(label for of_metric in points.values() for label, _, _ in of_metric)
    for (metric, of_metric), style in zip(points.items(), ("-", "--"), strict=False):
        for label in dict.fromkeys(label for label, _, _ in of_metric):
            x, y = np.array([(x, y) for other, x, y in of_metric if other == label]).T
            at = np.unique(x)
            if style == "-":
                axis.plot(x, y, "o", color=colors[label], ms=4, alpha=0.5, mew=0)
            axis.plot(at, [y[x == value].mean() for value in at], style, color=colors[label], lw=1.8)
        axis.plot([], [], style, color="black", label=metric)
    for label in filter(None, colors):
        axis.plot([], [], color=colors[label], lw=1.8, label=label)
    values = sorted({x for of_metric in points.values() for _, x, _ in of_metric})
    _scale(axis, "x", values)
    if len(values) <= 12:
        axis.set_xticks(values, [f"{x:g}" for x in values])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    _scale(axis, "y", [y for of_metric in points.values() for _, _, y in of_metric])
    axis.set(xlabel=setting, ylabel="at the end of the run")
    axis.grid(alpha=0.25)
    _legend(figure)
    return figure


def _colors(labels: Iterable[str]) -> dict[str, Any]:
    """Return a color for each label, as different as there are room for."""
    from matplotlib import colormaps

    names = list(dict.fromkeys(labels))
    palette = colormaps["tab10" if len(names) <= 10 else "viridis"]
    return {name: palette(i if len(names) <= 10 else i / (len(names) - 1)) for i, name in enumerate(names)}


def _scale(axis: Axes, name: str, values: Sequence[float]) -> None:
    """Let an axis be logarithmic where its values are positive and of several magnitudes."""
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axis.set(**{f"{name}scale": "log"})


def fitted_curve(x: Tensor, prediction: Tensor, truth: Tensor, samples: tuple[Tensor, Tensor]) -> Figure:
    """Draw a fitted function of one variable (x, prediction: shapes (n, 1)) with its samples and the hidden truth."""
    figure, ((axis,),) = _axes()
    axis.scatter(*(sample.squeeze(1).numpy() for sample in samples), s=14, color=GRAY, alpha=0.7, label="samples", lw=0)
    axis.plot(x.squeeze(1).numpy(), truth.squeeze(1).numpy(), color=ORANGE, ls="--", lw=1.5, label="hidden function")
    axis.plot(x.squeeze(1).numpy(), prediction.squeeze(1).numpy(), color=BLUE, lw=2, label="fit")
    axis.set(xlabel="x", ylabel="y", title="Fit")
    _legend(figure)
    return figure


def surface(axis_values: Tensor, z: Tensor, points: Tensor, labels: Tensor) -> Figure:
    """Draw a function on a square, z[i, j] at (axis_values[i], axis_values[j]), with labeled points (n, 2), (n, 1)."""
    figure, ((axis,),) = _axes(5.6, 4.6)
    ticks = axis_values.numpy()
    mesh = axis.contourf(ticks, ticks, z.T.numpy(), levels=np.linspace(-0.5, 1.5, 21), cmap="RdBu_r", extend="both")
    axis.contour(ticks, ticks, z.T.numpy(), levels=[0.5], colors="black", linewidths=1)
    for label, marker in ((0.0, "o"), (1.0, "s")):
        chosen = points[labels.squeeze(1) == label].numpy()
        axis.scatter(
            chosen[:, 0], chosen[:, 1], marker=marker, s=70, c="white", edgecolors="black", label=f"y = {label:g}"
        )
    figure.colorbar(mesh, label="output", ticks=[-0.5, 0, 0.5, 1, 1.5])
    axis.set(xlabel="x₁", ylabel="x₂", title="Output, and where it is ½")
    _legend(figure)
    return figure


def confusion_matrix(prediction: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Draw how often each true class (row) was taken for each class (column), in percent of the row."""
    count = len(classes)
    matrix = torch.bincount(labels * count + prediction, minlength=count**2).reshape(count, count)
    percent = 100 * matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    figure, ((axis,),) = _axes(7.2, 6.4)
    axis.imshow(percent.numpy(), cmap="Blues", vmin=0, vmax=100)
    for row in range(count):
        for column in range(count):
            if (value := float(percent[row, column])) >= 0.05:
                color = "white" if value > 50 else "black"
                axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(count), classes, rotation=45, ha="right")
    axis.set_yticks(range(count), classes)
    accuracy = 100 * float((prediction == labels).float().mean())
    axis.set(xlabel="predicted", ylabel="true", title=f"Confusion, % of each true class (accuracy {accuracy:.2f} %)")
    axis.spines[:].set_visible(False)
    return figure


def confidently_wrong(
    images: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str], *, rows: int = 3, columns: int = 6
) -> Figure:
    """Draw the images (n, 1, h, w) whose wrong class got the highest probability (probabilities: (n, classes))."""
    confidence, prediction = probabilities.max(1)
    wrong = (prediction != labels).nonzero().squeeze(1)
    worst = wrong[confidence[wrong].argsort(descending=True)][: rows * columns].tolist()
    figure, axes = _axes(1.5 * columns, 1.95 * rows, rows=rows, columns=columns)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, worst, strict=False):
        axis.imshow(images[index, 0].numpy(), cmap="gray_r")
        guess, truth = classes[int(prediction[index])], classes[int(labels[index])]
        axis.set_title(f"{guess} {100 * confidence[index]:.0f} %\ntruly {truth}", fontsize=7)
    figure.suptitle("Most confidently wrong")
    return figure


def phase_transition(
    curves: Mapping[str, Sequence[tuple[int, float, float, float]]],
    published: Mapping[str, Sequence[tuple[int, float, float, float]]],
    ceilings: Mapping[str, Sequence[tuple[int, float, float, float]]],
    replicates: int,
) -> Figure:
    """Draw the share of exactly recovered supports against their size, between what was published and what is possible.

    Args:
        curves: For each penalty its points: the size, the share, and the ends of its interval, which is shaded.
        published: Likewise, on the same draws; empty where there is nothing to compare with.
        ceilings: Likewise, of fits that start at the truth; empty if there are none.
        replicates: How many fits a share was counted over.
    """
    figure, ((axis,),) = _axes()
    colors = {"l1": BLUE, "harder": ORANGE}
    for name, points in curves.items():
        color = colors.get(name, GRAY)
        s, share, low, high = np.array(points).T
        axis.fill_between(s, low, high, color=color, alpha=0.15, lw=0)
        axis.plot(s, share, color=color, lw=2, marker="o", ms=4, label=name)
        if name in published:
            s, share, low, high = np.array(published[name]).T
            bars = (share - low, high - share)
            axis.errorbar(s, share, bars, color=color, ls="", marker="x", ms=7, mew=1.5, elinewidth=0.8)
        if name in ceilings:
            s, share, _, _ = np.array(ceilings[name]).T
            axis.plot(s, share, color=color, lw=1, ls="--")
    if published:
        axis.plot([], [], color="black", ls="", marker="x", ms=7, label="published")
    if ceilings:
        axis.plot([], [], color="black", lw=1, ls="--", label="from the truth")
    axis.set(xlabel="number of true features s", ylabel="exact recovery", ylim=(-0.03, 1.03))
    axis.set_title(f"Share of {replicates} fits with exactly the true features, 95 % intervals")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    _legend(figure)
    return figure


def importances(values: Tensor, names: Sequence[str], support: Sequence[int] | None, *, is_norm: bool = True) -> Figure:
    """Draw how much a network uses each feature, those that matter in another color.

    Args:
        values: For each feature the norm of its weights over the neurons, or its one weight, shape (features,).
        names: Of the features.
        support: The features that matter; None where nobody knows.
        is_norm: Which of the two it is.
    """
    figure, ((axis,),) = _axes(8.0, 4.2)
    positions, heights = np.arange(len(values)), values.numpy()
    true = np.isin(positions, [] if support is None else list(support))
    for chosen, color, label in ((~true, BLUE, "features"), (true, ORANGE, "features that truly matter")):
        if chosen.any():
            axis.vlines(positions[chosen], 0, heights[chosen], color=color, lw=2)
            axis.plot(positions[chosen], heights[chosen], "o", color=color, ms=4, label=label)
    axis.axhline(0, color=GRAY, lw=0.8)
    if len(names) <= 60:
        axis.set_xticks(positions, names, rotation=90, fontsize=7)
    axis.set(xlabel="feature", ylabel=NORM if is_norm else "weight", title="What the network uses")
    _legend(figure)
    return figure


def penalty_path(
    weights: Sequence[float], values: Tensor, support: Sequence[int] | None, *, is_norm: bool = True
) -> Figure:
    """Draw how much each feature is used at the end of each stage, those that matter in another color.

    Args:
        weights: Of the penalty, in each stage.
        values: For each feature the norm of its weights over the neurons, or its one weight without the sign, shape
            (stages, features).
        support: The features that matter; None where nobody knows.
        is_norm: Which of the two it is.
    """
    figure, ((axis,),) = _axes(7.2, 4.2)
    stages = np.arange(len(weights))
    for feature, column in enumerate(values.T.numpy()):
        true = support is not None and feature in support
        axis.plot(stages, column, color=ORANGE if true else GRAY, lw=1.8 if true else 0.8, alpha=1 if true else 0.6)
    axis.set_xticks(stages, [f"{weight:.3g}" for weight in weights])
    note = "" if support is None else "; orange: those that truly matter"
    label = NORM if is_norm else "absolute weight"
    axis.set(xlabel="weight of the penalty, stage by stage", ylabel=label, title="Path" + note)
    return figure


def first_layer(
    weight: Tensor, names: Sequence[str], support: Sequence[int] | None, classes: Sequence[str] = ()
) -> Figure:
    """Draw the weights of a layer (shape (neurons, features)), exact zeros in gray, and mark features that matter.

    Args:
        weight: Of the layer.
        names: Of the features.
        support: The features that matter, if known.
        classes: What the rows stand for in a linear model; none for neurons.
    """
    figure, ((axis,),) = _axes(8.0, 4.2)
    values = np.ma.masked_equal(weight.numpy(), 0)
    axis.set_facecolor("#dcdde0")
    limit = float(weight.abs().max()) or 1.0
    mesh = axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    figure.colorbar(mesh, label="weight")
    if support:
        axis.plot(support, np.full(len(support), -1.0), "v", color=ORANGE, clip_on=False, label="truly matter")
        axis.set_ylim(len(weight) - 0.5, -1.8)
        axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    if len(names) <= 60:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axis.yaxis.get_major_locator().set_params(integer=True)
    zeros = float((weight == 0).float().mean())
    if classes:
        axis.set_yticks(range(len(classes)), classes)
    layer, rows = ("Coefficients", "class") if classes else ("First layer", "neuron")
    axis.set(xlabel="feature", ylabel=rows, title=f"{layer}, {zeros:.0%} exact zeros (gray)")
    return figure
