"""The path of an optimizer over a function: over its contours, its curve, or as values against steps.

Shapes: t points of a path, e of evaluations, n coordinates each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from framework.data import ToyFunction
from framework.recipes.figures import BLUE, GRAY, ORANGE


def path(function: ToyFunction, points: Tensor, evaluations: Tensor, title: str) -> Figure:
    """Draw the points (t, n) of a path, the first one being its start, over the function.

    For one coordinate it is drawn over the curve, for two over the contours, for more as values against steps.

    Args:
        function: What was minimized.
        points: The path (t, n); what is not finite, after a divergence, is left out.
        evaluations: Other points that were tried on the way (e, n), perhaps none.
        title: What it says above, before the values at the start and the end.
    """
    points = points[points.isfinite().all(1)]
    figure = Figure(figsize=(6.8, 5.0), dpi=120, layout="constrained")
    axis = figure.subplots()
    draw = {1: _over_curve, 2: _over_contours}.get(points.shape[1], _over_steps)
    draw(axis, function, points, evaluations)
    axis.spines[["top", "right"]].set_visible(False)
    first, last = function.value(points[[0, -1]]).tolist()
    axis.set_title(f"{title}: {first:.3g} to {last:.3g}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)  # below: it would hide the minimum
    return figure


def _over_contours(axis: Axes, function: ToyFunction, points: Tensor, evaluations: Tensor) -> None:
    limits = [_limits(points[:, i], function.minimizer) for i in (0, 1)]
    grid = [torch.linspace(*limit, 301, dtype=torch.float64) for limit in limits]
    z = function.value(torch.cartesian_prod(*grid)).reshape(301, 301).T
    # Levels at equal ratios: the valley's floor and its walls both show. The least ten-thousandth is one color.
    top = float(z.max())
    low = max(float(z.min()), 1e-4 * top)
    levels = np.geomspace(low, top, 17)
    x, y = (values.numpy() for values in grid)
    norm = LogNorm(low, top)
    mesh = axis.contourf(x, y, z.clamp(min=low).numpy(), levels=levels, norm=norm, cmap="Blues", alpha=0.85)
    axis.contour(x, y, z.clamp(min=low).numpy(), levels=levels, colors="white", linewidths=0.5)
    bar = axis.figure.colorbar(mesh, label="value", ticks=LogLocator())
    bar.minorticks_off()
    _draw_path(axis, points.T.unbind(), evaluations.T.unbind())
    axis.scatter(function.minimizer, function.minimizer, marker="x", s=50, color="black", label="minimum", zorder=5)
    axis.set(xlim=limits[0], ylim=limits[1], xlabel="x₁", ylabel="x₂")


def _over_curve(axis: Axes, function: ToyFunction, points: Tensor, evaluations: Tensor) -> None:
    limits = _limits(points[:, 0], function.minimizer)
    x = torch.linspace(*limits, 501, dtype=torch.float64)
    axis.plot(x.numpy(), function.value(x[:, None]).numpy(), color=BLUE, lw=1.5)
    path, tried = ((at[:, 0], function.value(at)) for at in (points, evaluations))
    _draw_path(axis, path, tried)
    axis.set(xlim=limits, xlabel="x", ylabel="value")
    axis.grid(alpha=0.25)


def _over_steps(axis: Axes, function: ToyFunction, points: Tensor, evaluations: Tensor) -> None:
    values = function.value(points)
    _draw_path(axis, (torch.arange(len(points)), values), None)
    if (values > 0).any():
        axis.set_yscale("log")
    axis.set(xlabel="optimizer step", ylabel="value")
    axis.grid(alpha=0.25)


def _draw_path(axis: Axes, path: Sequence[Tensor], tried: Sequence[Tensor] | None) -> None:
    """Draw the path as (x, y), its ends marked, above a thin line through the points that were tried."""
    if tried is not None and len(tried[0]):
        axis.plot(*tried, color=GRAY, lw=0.7, marker=".", ms=4, mfc="black", mec="none", label="evaluations", zorder=3)
    x, y = path
    axis.plot(x, y, color=ORANGE, lw=1.5, marker="." if len(x) <= 100 else None, ms=5, label="path", zorder=4)
    for end, name, marker, size in ((0, "start", "o", 60), (-1, "end", "*", 150)):
        axis.scatter(x[end], y[end], marker=marker, s=size, c="white", edgecolors=ORANGE, label=name, zorder=6)


def _limits(coordinates: Tensor, minimizer: float) -> tuple[float, float]:
    """Return what a picture must span to hold the path and the minimum, with a margin."""
    low, high = min(float(coordinates.min()), minimizer), max(float(coordinates.max()), minimizer)
    margin = 0.2 * (high - low) or 1.0
    return low - margin, high + margin
