"""The arguments of `Trainer` that need reading or checking; each is refused when the trainer is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

Limit = int | float | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run reads of its trainer's settings, checked, as they are when it starts. `Trainer` says what each means.

    Attributes:
        max_time: In seconds; infinite for no limit.
    """

    max_epochs: int
    max_steps: int
    max_time: float
    fast_dev_run: int | bool
    limit_train_batches: Limit
    limit_val_batches: Limit
    limit_test_batches: Limit
    limit_predict_batches: Limit
    overfit_batches: int | float
    check_val_every_n_epoch: int
    num_sanity_val_steps: int
    log_every_n_steps: int
    accumulate_grad_batches: int | str
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    inference_mode: bool

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(trainer: Any) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: One is; it is named, with what is allowed.
    """
    for name in ("log_every_n_steps", "check_val_every_n_epoch"):
        if not _is_count(getattr(trainer, name), least=1):
            raise ValueError(f"{name}={getattr(trainer, name)!r}; it must be a positive integer")
    for name in ("max_epochs", "max_steps", "num_sanity_val_steps"):
        if not _is_count(getattr(trainer, name), least=-1):
            raise ValueError(f"{name}={getattr(trainer, name)!r}; it must be -1 (no limit) or an integer from 0 on")
    batches = trainer.accumulate_grad_batches
    if batches != "epoch" and not _is_count(batches, least=1):
        raise ValueError(f"accumulate_grad_batches={batches!r}; it must be a positive integer or 'epoch'")
    if trainer.gradient_clip_val is not None and not 0 <= trainer.gradient_clip_val < math.inf:
        raise ValueError(
            f"gradient_clip_val={trainer.gradient_clip_val!r}; it must be a finite number from 0 on, or None"
        )
    if trainer.gradient_clip_algorithm not in ("norm", "value"):
        raise ValueError(f"gradient_clip_algorithm={trainer.gradient_clip_algorithm!r}; it must be 'norm' or 'value'")


def _is_count(value: Any, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def parse_max_time(max_time: str | timedelta | Mapping[str, int] | None) -> float:
    """A time limit in seconds: from "DD:HH:MM:SS", a `timedelta` or its arguments; infinite for None."""
    if max_time is None:
        return math.inf
    if isinstance(max_time, str):
        parts = max_time.split(":")
        if len(parts) != 4 or not all(part.isdigit() for part in parts):
            raise ValueError(f"max_time={max_time!r}; as a string it must be 'DD:HH:MM:SS', such as '00:01:30:00'")
        days, hours, minutes, seconds = map(int, parts)
        max_time = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if isinstance(max_time, Mapping):
        max_time = timedelta(**max_time)
    if not isinstance(max_time, timedelta):
        raise TypeError(f"max_time={max_time!r}; pass 'DD:HH:MM:SS', a timedelta, or a mapping of its arguments")
    return max_time.total_seconds()


def resolve_max_epochs(max_epochs: int | None, max_steps: int, max_time: float) -> int:
    """Lightning's default: 1000 epochs where nothing else limits the run, else no limit."""
    if max_epochs is not None:
        return max_epochs
    return 1000 if max_steps == -1 and max_time == math.inf else -1
