"""What a run has left in its folder, and how that of two runs differs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from torch import Tensor


def differences(folder: Path, reference: Path) -> list[str]:
    """Return how the outcome of a run differs from the reference's, one line each; empty if it does not.

    Compared are both checkpoints, bitwise, with all they hold; ``metrics.csv``, bytewise; the scalars of TensorBoard,
    in their order; and the names of all files. What was set aside (``previous-1/...``) may be there.
    """
    ours, theirs = _names(folder), _names(reference)
    found = [f"{name} is left over" for name in sorted(ours - theirs)]
    found += [f"{name} is missing" for name in sorted(theirs - ours)]
    if found:
        return found
    for name in ("last.ckpt", "best.ckpt"):
        found += _differing(*(_checkpoint(root / "checkpoints" / name) for root in (folder, reference)), name)
    found += _compared(
        "metrics.csv", *((root / "metrics.csv").read_text().splitlines(True) for root in (folder, reference))
    )
    found += _compared("TensorBoard", scalars(folder), scalars(reference))
    return found


def _checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, without the names of the log files and of the folder, which differ from run to run."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["ModelCheckpoint"].pop("home")
    return {key: value for key, value in checkpoint.items() if key != "loggers"}


def _names(folder: Path) -> set[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        "an event file" if name.name.startswith("events.") else str(name)
        for name in names
        if not any(part.startswith("previous-") for part in name.parts)
    }


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Return all (tag, step, value) in the event files of a run, in order."""
    found = []
    for path in sorted((folder / "tensorboard").glob("events.*")):
        for event in map(Event.FromString, RawEventFileLoader(str(path)).Load()):
            # Not the layout of a tab, which is written anew when there are new tags where the file is written.
            values = (value for value in event.summary.value if value.HasField("simple_value"))
            found += [(value.tag, event.step, value.simple_value) for value in values]
    return found


def _compared(what: str, ours: Sequence[Any], theirs: Sequence[Any]) -> list[str]:
    if ours == theirs:
        return []
    first = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    a, b = (rows[first] if first < len(rows) else "nothing" for rows in (ours, theirs))
    return [f"{what}: {len(ours)} entries for {len(theirs)}; number {first} is {a} for {b}"]


def _differing(ours: Any, theirs: Any, where: str) -> Iterator[str]:
    """Yield where two trees of tensors and numbers differ in a bit."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        if ours.keys() != theirs.keys():
            yield f"{where}: keys {sorted(map(str, ours.keys() ^ theirs.keys()))}"
        for key in ours.keys() & theirs.keys():
            yield from _differing(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differing(a, b, f"{where}/{number}")
    elif isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield f"{where}: tensors differ"
    elif type(ours) is not type(theirs) or (ours != theirs and not (_is_nan(ours) and _is_nan(theirs))):
        yield f"{where}: {ours!r:.40} for {theirs!r:.40}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
