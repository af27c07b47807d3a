"""What a recovery experiment reports: how often exactly the true features are found, and beside what."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from scipy.stats import binomtest
from torch import Tensor

from framework.recipes import figures
from framework.recipes.dashboard import log_row
from framework.recipes.report import log_final_metrics, make_loggers, save_figures, write_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = Path(__file__).with_name("published_recovery.csv")
# Two objectives that differ by less, as a share of them, are the same: fits end about so far from their minimum.
SAME = 1e-6
PAIRED = ("both", "wins", "losses", "p_value")


@dataclass(frozen=True)
class Fits:
    """The fits of one penalty to all replicates with the same number of true features.

    Attributes:
        found: Which features have a weight that is not zero, booleans, shape (replicates, p).
        objectives: f + g at the end of each fit, shape (replicates,).
        gaps: How far each fit is from stationary, as a share of happy_lambda, shape (replicates,).
        evaluations: How many gradients all fits took together.
    """

    found: Tensor
    objectives: Tensor
    gaps: Tensor
    evaluations: int


def keep_lowest(fits: Sequence[Fits]) -> Fits:
    """Keep of each replicate the fit with the lowest objective, the first of those that are equal up to `SAME`."""
    kept, *others = fits
    for other in others:
        is_lower = other.objectives < kept.objectives * (1 - SAME)
        kept = Fits(
            found=torch.where(is_lower[:, None], other.found, kept.found),
            objectives=torch.where(is_lower, other.objectives, kept.objectives),
            gaps=torch.where(is_lower, other.gaps, kept.gaps),
            evaluations=kept.evaluations + other.evaluations,
        )
    return kept


@dataclass(frozen=True)
class Recovery:
    """How well one penalty recovers s features, over replicates; a row of phase_transition.csv.

    Every share of exact fits comes with its 95 % interval, from ``low`` to ``high`` (Wilson 1927).

    Attributes:
        penalty: Its name.
        s: The number of true features.
        replicates: How many fits.
        exact: How many fits have non-zero weights for exactly the true features.
        pesr: The share of these fits.
        tpr: The mean share of the true features that is found; None where there are none.
        fdr: The mean share of what is found that is false; 0 where nothing is found.
        objective: The mean of f + g.
        gap: The largest distance from stationarity of all fits, as a share of happy_lambda.
        published: The published pesr on the same replicates. It and those down to p_value are None where the draws are
            others.
        both: How many replicates were recovered here and there.
        wins: How many only here.
        losses: How many only there.
        p_value: Of the exact McNemar test that wins and losses are equally likely.
        ceiling: The pesr of fits that start at the truth. It and those down to above are None where there are none.
        below: How many fits end at a lower objective than the one that starts at the truth. Where such a fit is wrong,
            so is the minimum: a better optimizer would not help.
        above: How many fits end at a higher one: there the optimizer missed a lower minimum.
        evaluations: How many gradients all fits took together.
    """

    penalty: str
    s: int
    replicates: int
    exact: int
    pesr: float
    low: float
    high: float
    tpr: float | None
    fdr: float
    objective: float
    gap: float
    published: float | None
    published_low: float | None
    published_high: float | None
    both: int | None
    wins: int | None
    losses: int | None
    p_value: float | None
    ceiling: float | None
    ceiling_low: float | None
    ceiling_high: float | None
    below: int | None
    above: int | None
    evaluations: int

    def __str__(self) -> str:
        notes = []
        if self.published is not None:
            pair = f"only here {self.wins}, only there {self.losses}, p={self.p_value:.2g}"
            notes.append(f"published {self.published:.3f}; {pair}")
        if self.ceiling is not None:
            notes.append(f"ceiling {self.ceiling:.3f}")
        return f"{self.penalty} {self.pesr:.3f}" + (f" ({'; '.join(notes)})" if notes else "")


def count_recovery(
    penalty: str, fits: Fits, true: Tensor, *, published: Tensor | None = None, oracle: Fits | None = None
) -> Recovery:
    """Count how often fits found exactly the true features, and compare them with others on the same replicates.

    Args:
        penalty: Its name.
        fits: Those to count.
        true: Which features are true, booleans, shape (replicates, p), equally many in each row.
        published: Which of the published fits were exact, shape (replicates,); None on other draws.
        oracle: Fits of the same objective that started at the truth; None if there are none.
    """
    s, replicates = int(true[0].sum()), len(true)
    hits, exact = (fits.found & true).sum(1), (fits.found == true).all(1)
    paired = ("published", "published_low", "published_high", *PAIRED)
    compared = ("ceiling", "ceiling_low", "ceiling_high", "below", "above")
    return Recovery(
        penalty=penalty,
        s=s,
        replicates=replicates,
        exact=int(exact.sum()),
        **share(exact, "pesr", "low", "high"),
        tpr=float(hits.double().mean() / s) if s else None,
        fdr=float(((fits.found & ~true).sum(1).double() / fits.found.sum(1).clamp(min=1)).mean()),
        objective=float(fits.objectives.mean()),
        gap=float(fits.gaps.max()),
        **(dict.fromkeys(paired) if published is None else pair(exact, published)),
        **(dict.fromkeys(compared) if oracle is None else compare_with_oracle(fits, oracle, true)),
        evaluations=fits.evaluations,
    )


def share(exact: Tensor, name: str, low: str, high: str) -> dict[str, Any]:
    """Compute the share of True in booleans, shape (replicates,), and its 95 % interval, under the given names."""
    interval = binomtest(int(exact.sum()), len(exact)).proportion_ci(0.95, method="wilson")
    return {name: float(exact.double().mean()), low: float(interval.low), high: float(interval.high)}


def pair(exact: Tensor, published: Tensor) -> dict[str, Any]:
    """Compare which replicates were recovered here and in the published study: the fields of `Recovery` on that."""
    wins, losses = int((exact & ~published).sum()), int((published & ~exact).sum())
    return {
        **share(published, "published", "published_low", "published_high"),
        "both": int((exact & published).sum()),
        "wins": wins,
        "losses": losses,
        "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    }


def compare_with_oracle(fits: Fits, oracle: Fits, true: Tensor) -> dict[str, Any]:
    """Compare with fits that started at the truth: the fields of `Recovery` on that."""
    return {
        **share((oracle.found == true).all(1), "ceiling", "ceiling_low", "ceiling_high"),
        "below": int((fits.objectives < oracle.objectives * (1 - SAME)).sum()),
        "above": int((fits.objectives > oracle.objectives * (1 + SAME)).sum()),
    }


def read_published(problem: str) -> dict[tuple[str, int], Tensor]:
    """Read by penalty and s which of the 200 published fits found exactly the true features, booleans.

    Args:
        problem: "linear", or "network".
    """
    with PUBLISHED.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {
            (row["penalty"], int(row["s"])): torch.tensor([digit == "1" for digit in row["exact"]])
            for row in rows
            if row["problem"] == problem
        }


def trace_curve(
    config: DictConfig, folder: Path, measure: Callable[[int], Sequence[Recovery]], metrics: dict[str, float]
) -> dict[str, float]:
    """Measure one s of ``config.sparsities`` after another, write the curve to ``folder``, and return its points.

    Loggers and phase_transition.csv have an entry for each s as soon as it is known.

    Args:
        config: The composed configuration; read are logger, penalties, sparsities and replicates.
        folder: The run folder.
        measure: Called with s; returns a row for each of ``config.penalties``.
        metrics: What else there is to report, such as happy_lambda.
    """
    start = time.perf_counter()
    loggers = make_loggers(config, folder)
    log_row(loggers, config, folder, [*(f"pesr/{name}" for name in config.penalties), *metrics])
    curve: list[Recovery] = []
    for s in config.sparsities:
        points = measure(s)
        curve += points
        for logger in loggers:
            logger.log_metrics({f"pesr/{point.penalty}": point.pesr for point in points}, step=s)
        write_csv(curve, folder / "phase_transition.csv")
        print(f"s={s}: " + ", ".join(map(str, points)), flush=True)

    save_figures(loggers, {"phase_transition": draw(curve)}, folder / "plots")
    metrics = metrics | {f"pesr/{point.penalty}/{point.s}": point.pesr for point in curve}
    log_final_metrics(loggers, metrics, {}, 0)
    for logger in loggers:
        logger.finalize("success")
    evaluations = sum(point.evaluations for point in curve)
    write_summary(
        config,
        metrics,
        folder / "summary.json",
        steps=evaluations,
        epochs=0,
        closure_evaluations=evaluations,
        seconds=round(time.perf_counter() - start, 3),
        stopped_because="finished",
        paired={
            f"{point.penalty}/{point.s}": {name: getattr(point, name) for name in PAIRED}
            for point in curve
            if point.published is not None
        },
        ceiling={f"{point.penalty}/{point.s}": point.ceiling for point in curve if point.ceiling is not None},
    )
    return metrics


def draw(curve: Sequence[Recovery]) -> Figure:
    """Draw the shares of exact fits with their intervals, the published ones, and those that start at the truth."""

    def series(name: str, low: str, high: str) -> dict[str, list[tuple[int, float, float, float]]]:
        known = [point for point in curve if getattr(point, name) is not None]
        return {
            penalty: [
                (point.s, getattr(point, name), getattr(point, low), getattr(point, high))
                for point in sorted(known, key=lambda point: point.s)
                if point.penalty == penalty
            ]
            for penalty in dict.fromkeys(point.penalty for point in known)
        }

    return figures.phase_transition(
        series("pesr", "low", "high"),
        series("published", "published_low", "published_high"),
        series("ceiling", "ceiling_low", "ceiling_high"),
        curve[0].replicates,
    )


def write_csv(curve: Sequence[Recovery], path: Path) -> None:
    """Write one row per point."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Recovery)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in curve)
