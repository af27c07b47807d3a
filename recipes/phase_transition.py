"""The probability of recovering exactly the true features, against their number, on the published linear simulation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from framework import seed_everything
from framework.callbacks.penalty_path import HARDER_LASSO, Stage
from framework.data.recovery import LinearRecovery, NetworkRecovery
from framework.happy_lambda import HappyLambdaLinear
from framework.optim import square_root_lasso
from framework.penalties import L1, Harder, Penalty
from framework.recipes.network_recovery import trace_network_recovery
from framework.recipes.recovery_report import Fits, Recovery, count_recovery, keep_lowest, read_published, trace_curve

PENALTIES: dict[str, Penalty] = {"l1": L1(), "harder": Harder()}
# The lasso is convex, and its minimum can be had directly.
DIRECT = (Stage(1.0),)
# Stages that lead from zero weights to a minimum of the harder penalty. The published ones without the first, which has
# no penalty: with more features than samples that fits the noise. The fine ones have the shape of the full penalty from
# the start, and its weight grows in small steps: e^k / (1 + e^k) of it, k = -4, -11/3, ..., 10/3, then all.
PATHS: dict[str, Sequence[Stage]] = {
    "published": HARDER_LASSO[1:],
    "fine": (*(Stage(1 / (1 + math.exp(-k / 3)), Harder().nu) for k in range(-12, 11)), Stage(1.0, Harder().nu)),
}
# A stage on the way need not converge: its weight is small, and some minima there fit the noise perfectly.
MAX_ITERATIONS_ON_THE_WAY = 100
MAX_ITERATIONS = 20_000


def phase_transition(config: DictConfig, folder: Path) -> dict[str, float]:
    """Draw the curve that a configuration describes, write it to ``folder``, and return its points."""
    seed_everything(config.seed, verbose=False)
    simulation = instantiate(config.data, _convert_="all")
    if isinstance(simulation, NetworkRecovery):
        return trace_network_recovery(config, folder, simulation)
    _check(config, simulation)
    happy_lambda = HappyLambdaLinear(simulation.X, config.draws).run()

    def measure(s: int) -> list[Recovery]:
        return [
            measure_recovery(
                simulation,
                s,
                name,
                happy_lambda,
                paths=config.paths,
                ceiling=config.ceiling,
                replicates=config.replicates,
                tolerance=config.tolerance,
            )
            for name in config.penalties
        ]

    return trace_curve(config, folder, measure, {"happy_lambda": happy_lambda})


def _check(config: DictConfig, simulation: LinearRecovery) -> None:
    unused = ("trainer", "loss", "penalty", "optimizer", "scheduler", "callbacks")
    if given := [name for name in unused if name in config]:
        raise ValueError(f"this recipe trains no network and has no use for {', '.join(given)}: drop the override")
    if not config.model.bias:
        raise ValueError("model.bias=false has no effect: the fits have an intercept; drop it")
    for name, choices in (("penalties", PENALTIES), ("paths", PATHS)):
        if unknown := set(config[name]) - set(choices):
            raise ValueError(f"{name} has {sorted(unknown)}; choose from {sorted(choices)}")
    for name in ("penalties", "sparsities", "paths"):
        if len(set(config[name])) < max(1, len(config[name])):
            raise ValueError(f"{name}={list(config[name])}; name at least one, and each only once")
    if not 1 <= config.replicates <= len(simulation.noise):
        raise ValueError(
            f"replicates={config.replicates}; pass a number from 1 to data.num_replicates={len(simulation.noise)}"
        )
    for s in config.sparsities:
        simulation.targets(s)  # Refuses an s that was not drawn.


def measure_recovery(
    simulation: LinearRecovery,
    s: int,
    name: str,
    happy_lambda: float,
    *,
    paths: Sequence[str],
    ceiling: bool,
    replicates: int,
    tolerance: float,
) -> Recovery:
    """Fit the first ``replicates`` with s true features by the penalty of a name, and compare the supports.

    Args:
        simulation: The draws.
        s: One of its sparsities.
        name: Of `PENALTIES`.
        happy_lambda: The weight of the penalty.
        paths: Names of `PATHS`, of which the lowest minimum is kept. The lasso needs none.
        ceiling: Whether to start at the truth too. The lasso would end where it does anyway.
        replicates: How many.
        tolerance: How far from stationary a fit may end, as a share of the weight.
    """
    X, Y, truth = simulation.X, simulation.targets(s)[:replicates], simulation.weights[s][:replicates]
    Y = Y - Y.mean(dim=1, keepdim=True)  # The columns of X have mean 0: this is the unpenalized intercept.
    penalty = PENALTIES[name]

    def fit(stages: Sequence[Stage], start: Tensor) -> Fits:
        W, evaluations = follow_path(X, Y, penalty, stages, happy_lambda, start=start, tolerance=tolerance)
        return describe(X, Y, W, penalty, happy_lambda, evaluations)

    is_convex = isinstance(penalty, L1)
    zero = torch.zeros_like(truth)
    fits = keep_lowest([fit(stages, zero) for stages in ([DIRECT] if is_convex else [PATHS[path] for path in paths])])
    published = read_published("linear").get((name, s)) if simulation.is_published else None
    return count_recovery(
        name,
        fits,
        truth != 0,
        published=None if published is None else published[:replicates],
        oracle=fit(DIRECT, truth) if ceiling and not is_convex else None,
    )


def follow_path(
    X: Tensor,
    Y: Tensor,
    penalty: Penalty,
    stages: Sequence[Stage],
    happy_lambda: float,
    *,
    start: Tensor,
    tolerance: float,
) -> tuple[Tensor, int]:
    """Minimize each stage in turn, each from where the one before ended.

    Returns:
        The weights, shape (replicates, p), and the number of gradients taken.
    """
    W, evaluations = start, 0
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


def describe(X: Tensor, Y: Tensor, W: Tensor, penalty: Penalty, lam: float, evaluations: int) -> Fits:
    """Compute the support of each row of W, its objective ||y - X w||_2 + g(w), and its distance from stationary."""
    R = W @ X.T - Y
    norm = torch.linalg.vector_norm(R, dim=1)
    gradient = R / norm[:, None] @ X
    return Fits(
        found=W != 0,
        objectives=norm + torch.vmap(penalty.value, (0, None))(W, lam),
        gaps=torch.vmap(penalty.subgradient_gap, (0, 0, None))(W, gradient, lam) / lam,
        evaluations=evaluations,
    )
