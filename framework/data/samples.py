"""How many samples a batch has, the weight of its mean when means are averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def count_samples(batch: Any) -> int:
    """Count the samples of a (nested) batch: the common length of its tensors, or 1 if there are none.

    It looks into lists, tuples, mappings and dataclasses.

    Raises:
        ValueError: If the tensors have different lengths, so that some of them are not per sample.
    """
    lengths = {tensor.shape[0] for tensor in _tensors(batch) if tensor.ndim}
    if len(lengths) > 1:
        raise ValueError(
            f"a batch has tensors of lengths {sorted(lengths)}, so how many samples it holds is unknown: define "
            "count_samples(batch) on the module, or pass batch_size to log()"
        )
    return lengths.pop() if lengths else 1


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for part in batch:
            yield from _tensors(part)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _tensors(getattr(batch, field.name))
