"""``proxtrain-compare`` and the end of a sweep: what differs between runs, how they ended, and pictures of the way."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from framework.recipes.resume import OVERRIDES, split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is looked for if neither the command line nor a checkpoint callback names a metric, and which way is better.
METRICS = {"val/loss": "min", "train/objective": "min", "pesr": "max"}
# Settings that say nothing of the model or how it was trained.
ASIDE = (
    "hydra",
    "resume",
    "ckpt_path",
    "logger",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "rebuild",
)
# Runs that differ in these alone are repetitions of one.
SEEDS = ("seed", "data.seed")
# Of the losses: the others that a table shows beside the metric.
OTHERS = ("val/loss", "val/accuracy", "train/objective", "train/loss_epoch")
ERROR = "error.txt"
RUNNING = "no summary: still running, or killed"

History = Mapping[str, tuple[list[float], list[float]]]
Curve = tuple[str, Sequence[float], Sequence[float]]


@dataclass
class Run:
    """A run folder as it was found.

    Attributes:
        folder: Where it is.
        settings: Its configuration, flat: "optimizer.lr" to 0.1.
        overrides: The keys that its command line set; None where that is not known.
        summary: What it wrote at its end; empty if it did not.
        history: Steps and values of each metric.
        direction: "min" or "max", if a sweeper optimized a metric; None otherwise.
        error: Why it failed; None if it did not.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: set[str] | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=dict)
    direction: str | None = None
    error: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Its final metrics."""
        return self.summary.get("metrics", {})

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder, whatever there is of it."""
        from framework.recipes.report import read_history  # it imports torch

        config, summary, error = folder / "config.yaml", folder / "summary.json", folder / ERROR
        settings = dict(_flat(OmegaConf.to_container(OmegaConf.load(config)))) if config.stat().st_size else {}
        found = json.loads(summary.read_text()) if summary.exists() else {}
        reason = None if found else (error.read_text().strip() if error.exists() else RUNNING)
        given = folder / OVERRIDES
        keys = {split(str(override))[0] for override in OmegaConf.load(given)} if given.exists() else None
        direction = _direction(folder) if settings.get("optimized_metric") is not None else None
        return cls(folder, settings, keys, found, read_history(folder / "metrics.csv"), direction, reason)


def _direction(folder: Path) -> str | None:
    """Return which way a sweeper that optimizes took for better, as the run folder has recorded it."""
    recorded = folder / ".hydra" / "hydra.yaml"
    if not recorded.exists():
        return None
    direction = OmegaConf.select(OmegaConf.load(recorded), "hydra.sweeper.direction")
    return {"minimize": "min", "maximize": "max"}.get(str(direction))


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in some folders, each of which is a run folder or holds some, such as that of a sweep.

    A run that is found more than once is read once.

    Raises:
        ValueError: If a folder holds no run.
    """
    for folder in folders:
        if not run_folders([folder]):
            raise ValueError(f"{folder} is no run folder and holds none: pass folders that proxtrain printed")
    return [Run.read(folder) for folder in run_folders(folders)]


def run_folders(folders: Iterable[Path]) -> list[Path]:
    """Return the run folders among some folders and in them, each once; job 2 of a sweep before job 10."""
    found: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder] if (folder / "config.yaml").is_file() else sorted(
            (path.parent for path in folder.glob("**/config.yaml") if path.parent.name != ".hydra"), key=_natural
        )  # fmt: skip
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _natural(path: Path) -> list[Any]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path.parts]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{prefix}{key}.")]
    return [(prefix.rstrip("."), value)]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that differ, each with its value in every run; None where a run has no such setting.

    Those are looked at that a command line set, or that are in a part that it chose; all, if it is not known. A part
    that is of several classes is named by them, without its settings but those that were set. Of settings that always
    go together the first is kept.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings if not key.startswith(ASIDE)))
    if all(run.overrides is not None for run in runs):
        given = {"recipe_name"}.union(*(run.overrides or () for run in runs))
        keys = [key for key in keys if key in given or any(key.startswith(f"{part}.") for part in given)]
    found: dict[str, list[Any]] = {}
    classes = {key.removesuffix("_target_") for key in keys if key.endswith("._target_") and _varies(runs, key)}
    for key in keys:
        values = [run.settings.get(key) for run in runs]
        is_class = key.endswith("._target_")
        is_given = any(key in (run.overrides or ()) for run in runs)
        if not (is_class or is_given) and any(key.startswith(part) for part in classes):
            continue
        if _varies(runs, key):
            name = key.removesuffix("._target_").removesuffix(f".{key.partition('.')[0]}") if is_class else key
            found[name] = [str(value).rpartition(".")[2] if is_class and value else value for value in values]
    kept: dict[str, list[Any]] = {}
    for key, values in found.items():
        if not any(values == others for others in kept.values()):
            kept[key] = values
    return kept


def _varies(runs: Sequence[Run], key: str) -> bool:
    return any(run.settings.get(key) != runs[0].settings.get(key) for run in runs[1:])


def choose_metric(runs: Sequence[Run], name: str | None = None, mode: str | None = None) -> tuple[str, str]:
    """Return by what runs are compared, and whether "min" or "max" is best.

    Default: what a sweeper optimized or else the runs' checkpoint callback looked at, else the first of `METRICS` that
    they have. What is best of a metric is, where it is the sweeper's or the checkpoint callback's, as there.

    Raises:
        ValueError: If no run has the metric.
    """
    known = sorted({metric for run in runs for metric in run.metrics})
    if name is not None and name not in known:
        raise ValueError(f"no run has the metric {name}, but {', '.join(known) or 'none at all'}")
    checkpoint = "callbacks.model_checkpoint"
    modes = {
        run.settings.get(f"{checkpoint}.monitor"): run.settings.get(f"{checkpoint}.mode", "min")
        for run in reversed(runs)
    }
    modes |= {run.settings["optimized_metric"]: run.direction for run in runs if run.direction is not None}
    optimized = (run.settings.get("optimized_metric") for run in runs)
    name = name or next((metric for metric in (*optimized, *reversed(modes)) if metric in known), None)
    if name is not None:
        is_more_better = any(word in name for word in ("accuracy", "pesr", "tpr"))
        return name, mode or modes.get(name, "max" if is_more_better else "min")
    for metric, best in METRICS.items():
        if metric in known:
            return metric, mode or best
    return (known[0] if known else "val/loss"), mode or "min"


def table(runs: Sequence[Run], metric: str, mode: str) -> list[dict[str, Any]]:
    """Return a row for each run: its folder, what differs, final metrics and costs; the best first, failed last."""
    differing = differences(runs)
    others = [name for name in sorted({name for run in runs for name in run.metrics} & {*OTHERS}) if name != metric]
    rows = []
    for index, run in enumerate(runs):
        rows.append(
            {
                "run": os.path.relpath(run.folder),
                **{key: values[index] for key, values in differing.items()},
                metric: run.metrics.get(metric),
                **{name: run.metrics.get(name) for name in others},
                "seconds": run.summary.get("seconds"),
                "evaluations": run.summary.get("closure_evaluations"),
                "steps": run.summary.get("steps"),
                "failed": run.error,
            }
        )
    rows.sort(key=lambda row: (row["failed"] is not None, *_rank(row[metric], mode)))
    return _without_empty_columns(rows, metric)


def over_seeds(runs: Sequence[Run], metric: str, mode: str) -> list[dict[str, Any]]:
    """Return a row for all runs that differ in their seeds alone, the best first; no row where there are no such runs.

    It has the means of the runs that ended, how many these are, and of the metric the standard deviation (of n - 1).
    """
    settings = _settings(runs)
    if settings.keys() == differences(runs).keys():
        return []
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in table(runs, metric, mode):
        groups[tuple(str(row[key]) for key in settings)].append(row)
    rows = []
    for group in groups.values():
        ended = [row for row in group if not row.get("failed")]
        rows.append(
            {
                **{key: group[0][key] for key in settings},
                "runs": len(ended),
                "failed runs": len(group) - len(ended) or None,
                metric: _mean(ended, metric),
                "std": _std(ended, metric),
                **{name: _mean(ended, name) for name in (*OTHERS, "seconds", "evaluations", "steps") if name != metric},
            }
        )
    rows.sort(key=lambda row: _rank(row[metric], mode))
    return _without_empty_columns(rows, metric)


def _settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the settings that differ; those that are no seeds, where some runs differ in their seeds alone."""
    differing = differences(runs)
    settings = {key: values for key, values in differing.items() if key not in SEEDS}
    kinds = {tuple(str(values[index]) for values in settings.values()) for index in range(len(runs))}
    return settings if len(kinds) < len(runs) else differing


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(rows, name)
    return float(np.mean(values)) if values else None


def _std(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = _values(rows, name)
    with np.errstate(invalid="ignore"):  # of runs that diverged
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    # Sorted, so that means do not depend on the order of the runs by their rounding.
    return sorted(row[name] for row in rows if row.get(name) is not None)


def _rank(value: float | None, mode: str) -> tuple[bool, float]:
    """Sort the best value first, and behind all values what is none."""
    is_none = value is None or value != value
    return is_none, 0.0 if value is None or is_none else -value if mode == "max" else value


def _without_empty_columns(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    empty = {key for key in rows[0] if key != metric and all(row[key] is None for row in rows)} if rows else set()
    return [{key: value for key, value in row.items() if key not in empty} for row in rows]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table in Markdown."""
    columns = [name for name in rows[0] if name != "failed"]
    cells = [columns, *([_cell(row[name]) for name in columns] for row in rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * width for width in widths)
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a list in Markdown of the runs that failed, and why; nothing if none did."""
    found = [f"- {row['run']}: {_cell(row['failed'])}" for row in rows if row.get("failed")]
    return "\n".join(["Without a result:", "", *found]) if found else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def figure(runs: Sequence[Run], metric: str) -> Figure | None:
    """Draw the training loss and the metric against steps, evaluations and, where TensorBoard knows, seconds.

    Runs that differ in their seeds alone have one color. With a penalty, the training loss is the whole objective.
    """
    from framework.recipes.figures import comparison

    is_penalized = any("train/penalty" in run.history for run in runs)
    logged = ("train/objective", "train/loss_epoch") if is_penalized else ("train/loss_epoch", "train/objective")
    counts = {run.folder: _evaluations(run) for run in runs}
    if all(0 <= n - step <= 1 for count in counts.values() if count for step, n in zip(*count, strict=True)):
        counts = {}  # one in every step, of which the last is counted before it ends
    panels: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for run, label in zip(runs, _labels(runs), strict=True):
        objective = next((tag for tag in ("iteration/objective", *logged, "train/loss") if tag in run.history), None)
        axes = {"optimizer steps": None, "evaluations": counts.get(run.folder), "seconds": _seconds(run.folder)}
        for row, tag in ((f"training {'objective' if is_penalized else 'loss'}", objective), (metric, metric)):
            if tag is None or tag not in run.history:
                continue
            steps, values = run.history[tag]
            for name, along in axes.items():
                if name == "optimizer steps":
                    panels[row, name].append((label, steps, values))
                elif along:
                    panels[row, name].append((label, np.interp(steps, *along).tolist(), values))
    return comparison(panels) if panels else None


def figure_of_a_setting(runs: Sequence[Run], metric: str) -> Figure | None:
    """Draw the final metric of runs against their setting with the most numbers; None where none has three.

    Runs without the metric are left out. Of a validation loss the training loss is drawn too.
    """
    from framework.recipes.figures import against_setting

    runs = [run for run in runs if metric in run.metrics]
    settings = {key: values for key, values in differences(runs).items() if key not in SEEDS}
    numbers = {key: set(values) for key, values in settings.items() if all(map(_is_number, values))}
    setting = max(numbers, key=lambda key: len(numbers[key]), default=None)
    if setting is None or len(numbers[setting]) < 3:
        return None
    labels = _named({key: values for key, values in settings.items() if key != setting}, len(runs))
    drawn = {metric: metric} | ({"train/loss_epoch": "train/loss_epoch"} if metric == "val/loss" else {})
    points = {
        name: [
            (label, float(value), run.metrics[name])
            for run, value, label in zip(runs, settings[setting], labels, strict=True)
            if name in run.metrics
        ]
        for name in drawn
    }
    return against_setting({name: of_metric for name, of_metric in points.items() if of_metric}, setting)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _evaluations(run: Run) -> tuple[list[float], list[float]] | None:
    """Return steps and how many evaluations there had been; None if nobody counted."""
    steps, counts = run.history.get("closure_evaluations", ([], []))
    if {"steps", "closure_evaluations"} <= run.summary.keys():  # at the end; it is logged only now and then
        steps, counts = [*steps, run.summary["steps"]], [*counts, run.summary["closure_evaluations"]]
    return (steps, counts) if steps else None


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return what each run is called in a picture: by the settings that differ, or else by its folder."""
    differing, settings = differences(runs), _settings(runs)
    if settings and settings.keys() != differing.keys():
        return _named(settings, len(runs))
    labels = _named(differing, len(runs))
    return labels if len(set(labels)) == len(labels) and all(labels) else [os.path.relpath(r.folder) for r in runs]


def _named(settings: Mapping[str, Sequence[Any]], count: int) -> list[str]:
    labels = [
        ", ".join(
            f"{values[index]}" if isinstance(values[index], str) else f"{key.rpartition('.')[2]} {values[index]}"
            for key, values in settings.items()
            if values[index] is not None
        )
        for index in range(count)
    ]
    return [label if len(label) <= 60 else f"{label[:57]}..." for label in labels]


def _seconds(folder: Path) -> tuple[list[float], list[float]] | None:
    """Return steps and the seconds since the first value that TensorBoard has of them; None if it has none."""
    if not any(folder.glob("**/events.out.tfevents.*")):
        return None
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    times: dict[int, float] = {}
    for path in sorted(folder.glob("**/events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            if any(value.tag.startswith("train/") for value in event.summary.value):
                times[event.step] = min(event.wall_time, times.get(event.step, event.wall_time))
    start = min(times.values(), default=0.0)
    return (list(map(float, sorted(times))), [times[step] - start for step in sorted(times)]) if times else None


def compare(folders: Sequence[Path], output: Path, *, metric: str | None = None, mode: str | None = None) -> str:
    """Write comparison.md, .csv and .png into a folder; return the table.

    Of runs for several seeds it is the table of their means; that of the runs is in comparison.md. Below it is which
    runs failed, and why. Where a setting has three numbers or more, its picture is setting.png.

    Raises:
        ValueError: If there are no runs, or none has the metric.
    """
    runs = find_runs(folders)
    metric, mode = choose_metric(runs, metric, mode)
    rows, means = table(runs, metric, mode), over_seeds(runs, metric, mode)
    tables = [markdown(some) for some in (means, rows) if some]
    output.mkdir(parents=True, exist_ok=True)
    reasons = [failures(rows)] if failures(rows) else []
    (output / "comparison.md").write_text("\n\n".join([*tables, *reasons]) + "\n")
    with (output / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pictures = {"comparison": figure([run for run in runs if run.history], metric)}
    pictures["setting"] = figure_of_a_setting(runs, metric)
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in drawn.items():
        picture.savefig(output / f"{name}.png")
    failed = sum(run.error is not None for run in runs)
    without = f", {failed} without a result" if failed else ""
    best = "highest" if mode == "max" else "lowest"
    files = ", ".join(["comparison.md", "comparison.csv", *(f"{name}.png" for name in drawn)])
    counted = f"{len(runs)} runs{without}, {best} {metric} first; in {output}: {files}"
    return "\n\n".join([tables[0], *reasons, counted])


class AfterSweep(Callback):
    """Hydra's callback that knows where the jobs of a sweep are, for the table when all of them have ended."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        AfterSweep.folder = Path(config.hydra.sweep.dir)

    @classmethod
    def report(cls) -> None:
        """Compare the jobs of the sweep that has just ended, if one has; print the table."""
        folder, cls.folder = cls.folder, None
        if folder is not None and len(list(itertools.islice(folder.glob("*/config.yaml"), 2))) == 2:
            print(f"\n{compare([folder], folder)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``proxtrain-compare``."""
    parser = argparse.ArgumentParser(description="Compare runs: what differs, final metrics, costs, and pictures.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them, such as a sweep's")
    parser.add_argument("--metric", help="what to sort by (default: what the runs' checkpoints look at)")
    parser.add_argument("--mode", choices=("min", "max"), help="which way is better (default: by the metric)")
    parser.add_argument("-o", "--output", type=Path, help="where to write (default: ., or the only folder given)")
    options = parser.parse_args(arguments)
    output = options.output or (options.folders[0] if len(options.folders) == 1 else Path())
    try:
        print(compare(options.folders, output, metric=options.metric, mode=options.mode))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
