"""The arguments of `Trainer` that need parsing or checking; an invalid one is refused when the trainer is made."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

Limit = int | float | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The trainer's settings that a run reads, checked, as they are when it starts. `Trainer` says what each means.

    Attributes:
        max_time: In seconds; infinite for no limit.
    """

    max_epochs: int
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: float
    fast_dev_run: int | bool
    limit_train_batches: Limit
    limit_val_batches: Limit
    limit_test_batches: Limit
    limit_predict_batches: Limit
    overfit_batches: int | float
    val_check_interval: int | float
    check_val_every_n_epoch: int | None
    reload_dataloaders_every_n_epochs: int
    num_sanity_val_steps: int
    log_every_n_steps: int
    accumulate_grad_batches: int | str
    gradient_clip_val: float | None
    gradient_clip_algorithm: str
    deterministic: bool | str | None
    benchmark: bool | None
    inference_mode: bool
    detect_anomaly: bool
    barebones: bool
    sync_batchnorm: bool
    enable_autolog_hparams: bool
    compile: str | None

    def __post_init__(self) -> None:
        check_settings(vars(self))


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse arguments of `Trainer` whose values, as they were passed, are not allowed.

    Accelerator and strategy are checked by Fabric; callbacks, loggers and ``max_time`` where they are read.

    Args:
        settings: The arguments by name; unknown names are ignored.

    Raises:
        ValueError: If one is not allowed; the message names it and what is allowed.
    """
    for name, value in settings.items():
        is_allowed, allowed = _RULES.get(name, _ANYTHING)
        if not is_allowed(value):
            raise ValueError(f"{name}={value!r}; it must be {allowed}")
    for name in ("epochs", "steps"):
        least, most = settings[f"min_{name}"], settings[f"max_{name}"]
        if least is not None and most is not None and 0 <= most < least:
            raise ValueError(f"min_{name}={least} is more than max_{name}={most}, which ends the run before")
    if settings["compile"] is not None and settings["detect_anomaly"]:
        raise ValueError(
            f"compile={settings['compile']!r} with detect_anomaly=True, which looks at every single operation: drop "
            "one of the two"
        )
    interval = settings["val_check_interval"]
    if settings["check_val_every_n_epoch"] is None and isinstance(interval, float):
        raise ValueError(
            f"val_check_interval={interval} with check_val_every_n_epoch=None, which counts batches over epochs: "
            "it must be an integer"
        )


# What barebones=True leaves out, with the values that ask for it all the same.
_EXTRAS: dict[str, Callable[[Any], bool]] = {
    "logger": bool,
    "enable_checkpointing": bool,
    "enable_progress_bar": bool,
    "enable_model_summary": bool,
    "num_sanity_val_steps": bool,
    "log_every_n_steps": bool,
    "fast_dev_run": bool,
    "profiler": bool,
    "detect_anomaly": bool,
}


def check_barebones(arguments: Mapping[str, Any]) -> None:
    """Refuse what contradicts ``barebones=True``.

    Raises:
        ValueError: If something is asked for that it leaves out; the message names it.
    """
    if asked := [f"{name}={arguments[name]!r}" for name, asks in _EXTRAS.items() if asks(arguments[name])]:
        raise ValueError(f"barebones=True leaves out what {', '.join(asked)} asks for: drop one of the two")


def check_plugins(plugins: Any) -> None:
    """Refuse plugins without effect here.

    Raises:
        ValueError: If one is no plugin, one of Lightning's trainer, or one that writes checkpoints.
    """
    for plugin in plugins if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]:
        name, classes = type(plugin).__name__, type(plugin).__mro__
        if not any(cls.__module__.startswith("lightning.") for cls in classes):
            raise ValueError(f"plugins has {name}; it must be a Precision or a ClusterEnvironment of lightning.fabric")
        if any(cls.__module__.startswith("lightning.pytorch.") for cls in classes):
            raise ValueError(
                f"plugins has {name} of lightning.pytorch, which needs its trainer: use lightning.fabric's"
            )
        if any(cls.__name__ == "CheckpointIO" for cls in classes):
            raise ValueError(
                f"plugins has {name}, which has no effect: checkpoints are written by the trainer; drop it"
            )


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


_Rule = tuple[Callable[[Any], bool], str]
_ANYTHING: _Rule = (lambda _: True, "")
_SWITCH: _Rule = (lambda value: isinstance(value, bool), "True or False")
_POSITIVE: _Rule = (lambda value: _is_count(value, 1), "a positive integer")
_END: _Rule = (lambda value: _is_count(value, -1), "-1 (no limit) or an integer >= 0")
_LEAST: _Rule = (lambda value: value is None or _is_count(value, 0), "an integer >= 0, or None")
_MAYBE: _Rule = (lambda value: value is None or isinstance(value, bool), "True, False or None (torch's own setting)")
_LIMIT: _Rule = (
    lambda value: value is None or _is_share(value) or _is_count(value, -1),
    "a number of batches (an integer >= 0), a fraction of them (a float from 0.0 to 1.0), or None (all)",
)
_RULES: dict[str, _Rule] = {
    "devices": (
        lambda value: not isinstance(value, bool),
        "'auto', a number of devices (an integer), or a list of their indices",
    ),
    "num_nodes": _POSITIVE,
    "precision": (
        lambda value: value is None or isinstance(value, str) or _is_count(value, 1),
        "a string such as '32-true', 'bf16-mixed' or '64-true'",
    ),
    "fast_dev_run": (
        lambda value: isinstance(value, bool) or _is_count(value, 0),
        "True, False or a number of batches (an integer >= 0)",
    ),
    "max_epochs": (lambda value: value is None or _END[0](value), f"{_END[1]}, or None"),
    "min_epochs": _LEAST,
    "max_steps": _END,
    "min_steps": _LEAST,
    "limit_train_batches": _LIMIT,
    "limit_val_batches": _LIMIT,
    "limit_test_batches": _LIMIT,
    "limit_predict_batches": _LIMIT,
    "overfit_batches": (
        lambda value: _is_share(value) or _is_count(value, 0),
        "a number of batches (an integer >= 0) or a fraction of them (a float from 0.0 to 1.0); 0 for off",
    ),
    "val_check_interval": (
        lambda value: _is_count(value, 1) or (_is_share(value) and value > 0),
        "a number of training batches (a positive integer) or a fraction of an epoch (a float above 0.0, up to 1.0)",
    ),
    "check_val_every_n_epoch": (
        lambda value: value is None or _is_count(value, 1),
        "a positive integer, or None for a val_check_interval over epochs",
    ),
    "reload_dataloaders_every_n_epochs": (lambda value: _is_count(value, 0), "an integer >= 0; 0 for never"),
    "num_sanity_val_steps": (lambda value: _is_count(value, -1), "-1 (all) or an integer >= 0"),
    "log_every_n_steps": _POSITIVE,
    "enable_checkpointing": _SWITCH,
    "enable_progress_bar": _SWITCH,
    "enable_model_summary": _SWITCH,
    "accumulate_grad_batches": (
        lambda value: value == "epoch" or _is_count(value, 1),
        "a positive integer or 'epoch'",
    ),
    "gradient_clip_val": (
        lambda value: value is None or _is_finite(value),
        "a finite number >= 0, or None",
    ),
    "gradient_clip_algorithm": (lambda value: value in ("norm", "value"), "'norm' or 'value'"),
    "deterministic": (
        lambda value: value is None or isinstance(value, bool) or value == "warn",
        "True, False, 'warn' or None (torch's own setting)",
    ),
    "benchmark": _MAYBE,
    "inference_mode": _SWITCH,
    "use_distributed_sampler": _SWITCH,
    "detect_anomaly": _SWITCH,
    "barebones": _SWITCH,
    "compile": (lambda value: value in (None, "model", "step"), "'model', 'step' or None"),
    "sync_batchnorm": _SWITCH,
    "enable_autolog_hparams": _SWITCH,
    "default_root_dir": (
        lambda value: value is None or isinstance(value, str | os.PathLike),
        "a path (str or pathlib.Path), or None (the current folder)",
    ),
}


def parse_max_time(max_time: str | timedelta | Mapping[str, int] | None) -> float:
    """Return a time limit in seconds, given "DD:HH:MM:SS", a `timedelta` or its arguments; infinite for None.

    Raises:
        ValueError: If a string does not have that form.
        TypeError: If it is something else.
    """
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
    """Return Lightning's default if there is none given: 1000 epochs if nothing else limits the run, else no limit."""
    if max_epochs is not None:
        return max_epochs
    return 1000 if max_steps == -1 and max_time == math.inf else -1
