"""How many samples a batch has, the weight of its mean when means are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


def count_samples(batch: Any) -> int:
    """Count the samples of a (nested) batch: the common length of its tensors, or 1 if there are none.

    It looks into lists, tuples, mappings and dataclasses.

    Raises:
        ValueError: If the tensors have different lengths, so that some of them are not per sample.
    """
    lengths = set()
    for part in batch if isinstance(batch, list | tuple) else (batch,):  # called at every step: flat batches first
        if isinstance(part, Tensor):
            if part.ndim:
                lengths.add(part.shape[0])
        else:
            lengths.update(_lengths(part))
    if len(lengths) > 1:
        raise ValueError(
            f"a batch has tensors of lengths {sorted(lengths)}, so how many samples it holds is unknown: define "
            "count_samples(batch) on the module, or pass batch_size to log()"
        )
    return lengths.pop() if lengths else 1


def first_length(batch: Any) -> int:
    """Return the length of the first tensor of a (nested) batch: a guess where the lengths differ."""
    return next(iter(_lengths(batch)), 1)


def _lengths(batch: Any) -> list[int]:
    if isinstance(batch, Tensor):
        return [batch.shape[0]] if batch.ndim else []
    parts: Iterable[Any] = ()
    if isinstance(batch, list | tuple):
        parts = batch
    elif isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        parts = batch
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    lengths = []
    for part in parts:
        lengths += _lengths(part)
    return lengths
