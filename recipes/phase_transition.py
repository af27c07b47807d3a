"""The probability of recovering exactly the true features, against their number, on the published linear simulation."""

from __future__ import annotations

import csv
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from scipy.stats import binomtest
from torch import Tensor

from framework import seed_everything
from framework.callbacks.penalty_path import HARDER_LASSO, Stage
from framework.data.recovery import LinearRecovery
from framework.happy_lambda import HappyLambdaLinear
from framework.optim import square_root_lasso
from framework.penalties import L1, Harder, Penalty
from framework.recipes import figures
from framework.recipes.dashboard import log_row
from framework.recipes.report import log_final_metrics, make_loggers, save_figures, write_summary

# Each penalty, and the stages that lead to it from zero weights. The lasso is convex and needs one; the harder penalty
# takes the published ones but the first, without a penalty: with more features than samples that fits the noise.
PATHS: dict[str, tuple[Penalty, Sequence[Stage]]] = {
    "l1": (L1(), [Stage(1.0)]),
    "harder": (Harder(), HARDER_LASSO[1:]),
}
# A stage on the way need not converge: its weight is small, and some minima there fit the noise perfectly.
MAX_ITERATIONS_ON_THE_WAY = 100
MAX_ITERATIONS = 20_000

PUBLISHED = Path(__file__).with_name("published_recovery.csv")
NOT_PAIRED = dict.fromkeys(("published", "both", "wins", "losses", "p_value"))


@dataclass(frozen=True)
class Recovery:
    """How well one penalty recovers s features, over replicates; a row of phase_transition.csv.

    Attributes:
        penalty: Its name.
        s: The number of true features.
        replicates: How many fits.
        pesr: The share of fits whose non-zero weights are exactly the true ones.
        tpr: The mean share of the true features that is found; None where there are none.
        fdr: The mean share of what is found that is false; 0 where nothing is found.
        gap: The largest distance from stationarity of all fits, as a share of happy_lambda.
        published: The published pesr on the same replicates. It and the next four are None where the draws are others.
        both: How many replicates were recovered here and there.
        wins: How many only here.
        losses: How many only there.
        p_value: Of the exact McNemar test that wins and losses are equally likely.
        evaluations: How many gradients all fits took together.
    """

    penalty: str
    s: int
    replicates: int
    pesr: float
    tpr: float | None
    fdr: float
    gap: float
    published: float | None
    both: int | None
    wins: int | None
    losses: int | None
    p_value: float | None
    evaluations: int

    def __str__(self) -> str:
        if self.published is None:
            return f"{self.penalty} {self.pesr:.3f}"
        return (
            f"{self.penalty} {self.pesr:.3f} (published {self.published:.3f}; only here {self.wins}, only there "
            f"{self.losses}, p={self.p_value:.2g})"
        )


def phase_transition(config: DictConfig, folder: Path) -> dict[str, float]:
    """Draw the curve that a configuration describes, write it to ``folder``, and return its points.

    TensorBoard and metrics.csv have one entry per s, at step s, written as soon as it is known.
    """
    start = time.perf_counter()
    seed_everything(config.seed, verbose=False)
    simulation = instantiate(config.data, _convert_="all")
    _check(config, simulation)
    happy_lambda = HappyLambdaLinear(simulation.X, config.draws).run()
    loggers = make_loggers(config, folder)
    log_row(loggers, config, folder, [*(f"pesr/{name}" for name in config.penalties), "happy_lambda"])
    curve: list[Recovery] = []
    for s in config.sparsities:
        points = [
            measure_recovery(
                simulation, s, name, happy_lambda, replicates=config.replicates, tolerance=config.tolerance
            )
            for name in config.penalties
        ]
        curve += points
        for logger in loggers:
            logger.log_metrics({f"pesr/{point.penalty}": point.pesr for point in points}, step=s)
        print(f"s={s}: " + ", ".join(map(str, points)), flush=True)

    write_csv(curve, folder / "phase_transition.csv")
    published = [(point.penalty, point.s, point.published) for point in curve if point.published is not None]
    picture = figures.phase_transition([(p.penalty, p.s, p.pesr) for p in curve], published, config.replicates)
    save_figures(loggers, {"phase_transition": picture}, folder / "plots")
    metrics = {"happy_lambda": happy_lambda, **{f"pesr/{point.penalty}/{point.s}": point.pesr for point in curve}}
    log_final_metrics(loggers, metrics, {}, 0)
    for logger in loggers:
        logger.finalize("success")
    write_summary(
        config,
        metrics,
        folder / "summary.json",
        steps=sum(point.evaluations for point in curve),
        epochs=0,
        closure_evaluations=sum(point.evaluations for point in curve),
        seconds=round(time.perf_counter() - start, 3),
        stopped_because="finished",
        paired={
            f"{point.penalty}/{point.s}": {key: getattr(point, key) for key in ("both", "wins", "losses", "p_value")}
            for point in curve
            if point.published is not None
        },
    )
    return metrics


def _check(config: DictConfig, simulation: LinearRecovery) -> None:
    unused = ("trainer", "model", "loss", "penalty", "optimizer", "scheduler", "callbacks")
    if given := [name for name in unused if name in config]:
        raise ValueError(f"this recipe trains no network and has no use for {', '.join(given)}: drop the override")
    if unknown := set(config.penalties) - set(PATHS):
        raise ValueError(f"penalties has {sorted(unknown)}; choose from {sorted(PATHS)}")
    for name in ("penalties", "sparsities"):
        if len(set(config[name])) < max(1, len(config[name])):
            raise ValueError(f"{name}={list(config[name])}; name at least one, and each only once")
    if not 1 <= config.replicates <= len(simulation.noise):
        raise ValueError(
            f"replicates={config.replicates}; pass a number from 1 to data.num_replicates={len(simulation.noise)}"
        )
    for s in config.sparsities:
        simulation.targets(s)  # Refuses an s that was not drawn.


def measure_recovery(
    simulation: LinearRecovery, s: int, name: str, happy_lambda: float, *, replicates: int, tolerance: float
) -> Recovery:
    """Fit the first ``replicates`` with s true features by the penalty of a name, and compares the supports."""
    X, Y = simulation.X, simulation.targets(s)[:replicates]
    Y = Y - Y.mean(dim=1, keepdim=True)  # The columns of X have mean 0: this is the unpenalized intercept.
    penalty, stages = PATHS[name]
    W, evaluations = follow_path(X, Y, penalty, stages, happy_lambda, tolerance=tolerance)
    found, true = W != 0, simulation.weights[s][:replicates] != 0
    hits, exact = (found & true).sum(1), (found == true).all(1)
    published = read_published().get((name, s)) if simulation.is_published else None
    return Recovery(
        penalty=name,
        s=s,
        replicates=replicates,
        pesr=float(exact.double().mean()),
        tpr=float(hits.double().mean() / s) if s else None,
        fdr=float(((found & ~true).sum(1).double() / found.sum(1).clamp(min=1)).mean()),
        gap=largest_gap(X, Y, W, penalty, happy_lambda) / happy_lambda,
        **(NOT_PAIRED if published is None else pair(exact, published[:replicates])),
        evaluations=evaluations,
    )


def pair(exact: Tensor, published: Tensor) -> dict[str, Any]:
    """Compare which replicates were recovered here and in the published study: the fields of `Recovery` on that."""
    wins, losses = int((exact & ~published).sum()), int((published & ~exact).sum())
    return {
        "published": float(published.double().mean()),
        "both": int((exact & published).sum()),
        "wins": wins,
        "losses": losses,
        "p_value": float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    }


def read_published() -> dict[tuple[str, int], Tensor]:
    """Read by penalty and s which of the 200 published fits found exactly the true features, booleans."""
    with PUBLISHED.open(newline="") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {(row["penalty"], int(row["s"])): torch.tensor([d == "1" for d in row["exact"]]) for row in rows}


def follow_path(
    X: Tensor, Y: Tensor, penalty: Penalty, stages: Sequence[Stage], happy_lambda: float, *, tolerance: float
) -> tuple[Tensor, int]:
    """Minimize each stage in turn, the first from zero, the others from where the one before ended.

    Returns:
        The weights, shape (replicates, p), and the number of gradients taken.
    """
    W, evaluations = torch.zeros(len(Y), X.shape[1], dtype=X.dtype), 0
    for number, stage in enumerate(stages, 1):
        W, converged, num_gradients = square_root_lasso(
            X,
            Y,
            stage.share * happy_lambda,
            penalty if stage.nu is None else Harder(stage.nu),
            start=W,
            tolerance=tolerance,
            max_iterations=MAX_ITERATIONS if number == len(stages) else MAX_ITERATIONS_ON_THE_WAY,
        )
        evaluations += num_gradients
    if missed := int((~converged).sum()):
        warnings.warn(
            f"{missed} of {len(Y)} fits are further than tolerance={tolerance} from stationary after {MAX_ITERATIONS} "
            "iterations; their supports may be wrong. Raise the tolerance, or the weight",
            RuntimeWarning,
            stacklevel=2,
        )
    return W, evaluations


def largest_gap(X: Tensor, Y: Tensor, W: Tensor, penalty: Penalty, lam: float) -> float:
    """Compute the largest distance of -grad ||y - X w||_2 to the subdifferential of g, over all rows and entries."""
    R = W @ X.T - Y
    gradient = R / torch.linalg.vector_norm(R, dim=1, keepdim=True) @ X
    return float(penalty.subgradient_gap(W, gradient, lam))


def write_csv(curve: Sequence[Recovery], path: Path) -> None:
    """Write one row per point."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Recovery)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in curve)
