"""The probability that networks recover exactly the true features, against their number: all fits in one program."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from framework.callbacks.progress_bar import make_bar
from framework.data import NetworkRecovery
from framework.happy_lambda import HappyLambdaMLP
from framework.penalties import L1, Harder, Penalty
from framework.recipes.recovery_report import Fits, Recovery, count_recovery, read_published, trace_curve
from framework.recipes.resume import record
from framework.stacks import AdamStage, SparseNetworks, gaps, levenberg_marquardt, network_path, prox_adam
from framework.stacks.networks import ACTIVATIONS

PENALTIES: dict[str, Penalty] = {"l1": L1(), "harder": Harder()}
# More at once would leave the cache of a core.
CHUNK_SIZE = 16
FITS = "fits.csv"
SPARSE_MLP = "framework.recipes.networks.SparseMLP"
# What the fits in a folder depend on, but for the numbers of features that are asked for.
SHAPING = ("seed", "draws", "data", "model")


@dataclass(frozen=True)
class Fit:
    """One fit, a row of fits.csv.

    Attributes:
        penalty: The name of the penalty.
        s: The number of true features.
        replicate: Which of the draws.
        start: "random", or "oracle": at the truth.
        objective: f + g at the end.
        gap: How far it is from stationary, as a share of happy_lambda; not 0 where a unit has its kink at a sample.
        evaluations: How many gradients it took.
        found: The features with a weight that is not zero, increasing.
    """

    penalty: str
    s: int
    replicate: int
    start: str
    objective: float
    gap: float
    evaluations: int
    found: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int, str, int]:
        return self.penalty, self.s, self.start, self.replicate


class FitsFile:
    """All fits so far, by what they are of, in a file that is complete after each chunk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fits: dict[tuple[str, int, str, int], Fit] = {}
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    fit = Fit(
                        penalty=row["penalty"],
                        s=int(row["s"]),
                        replicate=int(row["replicate"]),
                        start=row["start"],
                        objective=float(row["objective"]),
                        gap=float(row["gap"]),
                        evaluations=int(row["evaluations"]),
                        found=tuple(map(int, row["found"].split())),
                    )
                    self.fits[fit.key] = fit

    def add(self, fits: Iterable[Fit]) -> None:
        """Add fits; the file is replaced in one piece."""
        self.fits |= {fit.key: fit for fit in fits}
        part = self.path.with_suffix(".csv.part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Fit)])
            writer.writeheader()
            for _, fit in sorted(self.fits.items()):
                writer.writerow({**asdict(fit), "found": " ".join(map(str, fit.found))})
        os.replace(part, self.path)


@dataclass(frozen=True)
class Study:
    """What is fitted: the draws, the kind of networks, where they start, and the weight of the penalty.

    Attributes:
        simulation: The draws.
        starts: A random network for each replicate, the same for every s, float32.
        happy_lambda: The weight.
    """

    simulation: NetworkRecovery
    starts: SparseNetworks
    happy_lambda: float

    def fit(self, penalty: str, s: int, start: str, replicates: Sequence[int]) -> list[Fit]:
        """Fit the networks of some replicates together."""
        simulation, rows = self.simulation, torch.tensor(replicates)
        X, Y, weight, lam = simulation.X, simulation.targets(s)[rows], PENALTIES[penalty], self.happy_lambda
        # From the truth: only the last stage, at steps small enough to stay near.
        stages = network_path() if start == "random" else [AdamStage(1.0, 700, 0.02, 1e-4)]
        networks = self.starts[rows] if start == "random" else true_networks(self.starts, simulation.pairs[s][rows])
        networks = prox_adam(networks, X.float(), Y.float(), lam, weight, stages, chunk_size=CHUNK_SIZE)
        finished = levenberg_marquardt(networks, X, Y, lam, weight)
        num_steps = sum(stage.num_steps for stage in stages)
        return [
            Fit(
                penalty=penalty,
                s=s,
                replicate=replicate,
                start=start,
                objective=objective,
                gap=gap / lam,
                evaluations=num_steps + iterations,
                found=tuple(selected.nonzero().flatten().tolist()),
            )
            for replicate, objective, gap, iterations, selected in zip(
                replicates,
                finished.objectives.tolist(),
                gaps(finished.networks, X, Y, lam, weight).tolist(),
                finished.num_iterations.tolist(),
                finished.networks.selected(),
                strict=True,
            )
        ]


def true_networks(like: SparseNetworks, pairs: Tensor) -> SparseNetworks:
    """Return networks that compute 10 sum |x_a - x_b| (up to a constant, if the activation has a floor).

    Of each pair one unit is on where x_a > x_b, and one where x_b > x_a; other units use no feature.

    Args:
        like: Of the kind of networks that are wanted.
        pairs: The features (a, b) of each, shape (networks, s / 2, 2).
    """
    num, s = len(pairs), pairs[0].numel()
    networks = like.with_parameters(torch.zeros(num, like.parameters.shape[1]))
    networks.output.fill_(1e-3)
    if s:
        unit = torch.arange(s)
        a, b = pairs.flip(2).flatten(1), pairs.flatten(1)  # Unit 2 j goes up with the second of pair j, and so on.
        networks.output[:, :s] = 1.0
        rows = torch.arange(num)[:, None]
        networks.weight[rows, unit, a] = 10 * math.sqrt(s)
        networks.weight[rows, unit, b] = -10 * math.sqrt(s)
    return networks


def trace_network_recovery(config: DictConfig, folder: Path, simulation: NetworkRecovery) -> dict[str, float]:
    """Draw the curve that a configuration describes, write it to ``folder``, and return its points.

    Fits are kept in fits.csv chunk by chunk; a run that is continued makes those that are missing.
    """
    _check(config, simulation)
    if config.resume is not None:
        _continue(config, folder)
    (hidden,), activation = config.model.hidden, config.model.activation
    generator = torch.Generator().manual_seed(config.seed)
    starts = SparseNetworks.random(
        len(simulation.noise), simulation.X.shape[1], hidden, activation, generator=generator
    )
    threshold = HappyLambdaMLP(simulation.X, config.draws, [hidden, 1], starts.network(0)[1])
    study = Study(simulation, starts, threshold.run())
    file = FitsFile(folder / FITS)
    kinds = ["random", "oracle"] if config.ceiling else ["random"]
    jobs = [(name, s, kind) for s in config.sparsities for name in config.penalties for kind in kinds]
    missing = {job: [i for i in range(config.replicates) if (*job, i) not in file.fits] for job in jobs}
    total = len(jobs) * config.replicates
    bar = make_bar(total=total, initial=total - sum(map(len, missing.values())), unit="fit", dynamic_ncols=True)

    def measure(s: int) -> list[Recovery]:
        bar.set_description_str(f"s={s}", refresh=False)
        chunks = [
            (*job, rows[start : start + CHUNK_SIZE])
            for job, rows in missing.items()
            for start in range(0, len(rows), CHUNK_SIZE)
            if job[1] == s
        ]
        for fits in _in_threads(study.fit, chunks):
            file.add(fits)
            bar.update(len(fits))
        return [_count(file, simulation, name, s, config) for name in config.penalties]

    try:
        return trace_curve(config, folder, measure, {"happy_lambda": study.happy_lambda})
    except KeyboardInterrupt:
        print(f"interrupted; for the fits that are missing: proxtrain resume={folder}", flush=True)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        bar.close()


def _count(file: FitsFile, simulation: NetworkRecovery, penalty: str, s: int, config: DictConfig) -> Recovery:
    replicates = config.replicates
    published = read_published("network").get((penalty, s)) if simulation.is_published else None
    return count_recovery(
        penalty,
        _gather(file, penalty, s, "random", replicates, simulation.X.shape[1]),
        simulation.support(s)[:replicates],
        published=None if published is None else published[:replicates],
        oracle=_gather(file, penalty, s, "oracle", replicates, simulation.X.shape[1]) if config.ceiling else None,
    )


def _gather(file: FitsFile, penalty: str, s: int, start: str, replicates: int, num_features: int) -> Fits:
    fits = [file.fits[penalty, s, start, i] for i in range(replicates)]
    found = torch.zeros(replicates, num_features, dtype=torch.bool)
    for row, fit in zip(found, fits, strict=True):
        row[list(fit.found)] = True
    return Fits(
        found=found,
        objectives=torch.tensor([fit.objective for fit in fits], dtype=torch.float64),
        gaps=torch.tensor([fit.gap for fit in fits], dtype=torch.float64),
        evaluations=sum(fit.evaluations for fit in fits),
    )


def _in_threads(fit: Callable[..., list[Fit]], chunks: Sequence[tuple[Any, ...]]) -> Iterator[list[Fit]]:
    """Yield the fits of each chunk as soon as they are done, as many chunks at a time as torch may use threads.

    Each takes one: two chunks on two cores are done sooner than one on both, and results do not depend on the number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    executor = ThreadPoolExecutor(threads)
    try:
        for done in as_completed([executor.submit(fit, *chunk) for chunk in chunks]):
            yield done.result()
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _check(config: DictConfig, simulation: NetworkRecovery) -> None:
    unused = ("trainer", "loss", "penalty", "optimizer", "scheduler", "callbacks")
    if given := [name for name in unused if name in config]:
        raise ValueError(f"this recipe makes all fits at once and has no use for {', '.join(given)}: drop the override")
    if config.model.get("_target_") != SPARSE_MLP or len(config.model.hidden) != 1:
        raise ValueError(
            f"this recipe fits networks of model=sparse_mlp with one hidden layer, not {dict(config.model)}; pass "
            "model=sparse_mlp model.hidden=[20]"
        )
    if config.model.activation not in ACTIVATIONS:
        raise ValueError(f"model.activation={config.model.activation}; this recipe knows {', '.join(ACTIVATIONS)}")
    if unknown := set(config.penalties) - set(PENALTIES):
        raise ValueError(f"penalties has {sorted(unknown)}; choose from {sorted(PENALTIES)}")
    for name in ("penalties", "sparsities"):
        if len(set(config[name])) < max(1, len(config[name])):
            raise ValueError(f"{name}={list(config[name])}; name at least one, and each only once")
    if not 1 <= config.replicates <= len(simulation.noise):
        raise ValueError(
            f"replicates={config.replicates}; pass a number from 1 to data.num_replicates={len(simulation.noise)}"
        )
    for s in config.sparsities:
        simulation.targets(s)  # Refuses an s that was not drawn.
    if config.ceiling and (largest := max(config.sparsities)) > config.model.hidden[0]:
        raise ValueError(
            f"ceiling=true starts at the truth, which takes {largest} hidden units for s={largest}, but model.hidden="
            f"{list(config.model.hidden)}; pass ceiling=false, more units, or smaller sparsities"
        )


def _continue(config: DictConfig, folder: Path) -> None:
    """Check that a run can be continued with this configuration, and drop what its end will write anew."""
    recorded = OmegaConf.load(folder / "config.yaml")
    assert isinstance(recorded, DictConfig)
    changed = [name for name in SHAPING if _shape(recorded, name) != _shape(config, name)]
    if changed:
        raise ValueError(
            f"resume={folder} keeps the fits of another {', '.join(changed)}; change only penalties, sparsities, "
            "replicates or ceiling, or begin a new run"
        )
    record(config, folder)
    (folder / "summary.json").unlink(missing_ok=True)
    (folder / "metrics.csv").unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)


def _shape(config: DictConfig, name: str) -> Any:
    part = OmegaConf.to_container(config, resolve=True)[name]  # type: ignore[index, call-overload]
    # The draws at one s do not depend on which others are drawn.
    return {key: value for key, value in part.items() if key != "sparsities"} if isinstance(part, dict) else part
