"""What a checkpoint holds, how a crash cannot corrupt it while it is written, and how it is read without running code.

A checkpoint is one mapping of tensors, numbers, strings and containers of them:

=====================  ===================================================================================
``version``            the version of this package
``progress``           epochs completed, batches done of the next one, optimizer steps (`Progress`)
``closure_evaluations``
``state_dict``         the module's parameters and buffers
``optimizer``          its ``state_dict()``, and ``optimizer_class``, its name
``lr_schedulers``      their ``state_dict()``, in order, each with what it has seen of its metric
``callbacks``          their ``state_dict()``, by class name and position
``metrics``            the last value of each, and the sums of the epoch under way
``metric_states``      the states of the torchmetrics in the module
``data``               the training loader's own state, if it has one
``loggers``            how much of their files is of the run up to here
``fingerprint``        number and size of batches, accumulation, precision: to notice that they changed
``rng``                the global random generators, and the training data's own
=====================  ===================================================================================
"""

from __future__ import annotations

import os
import pickle
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from framework.callback import Callback
from framework.module import Module

_NEEDED = (
    "progress",
    "closure_evaluations",
    "state_dict",
    "optimizer",
    "optimizer_class",
    "lr_schedulers",
    "callbacks",
    "metrics",
    "metric_states",
    "data",
    "loggers",
    "fingerprint",
    "rng",
)


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, first to a temporary file next to it, so that ``path`` always holds a complete one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    try:
        with file:
            torch.save(dict(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        os.unlink(file.name)
        raise


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in the file is executed (``weights_only=True``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, is not a checkpoint of a trainer, or would run code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's warnings about files that it did not write
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and would run code when loaded, or is not a checkpoint"
        ) from error
    except Exception as error:  # a damaged file fails in many ways
        raise ValueError(f"{path} is truncated or not a checkpoint: {error!r:.200}") from error
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"{path} is not a checkpoint of a Trainer: it lacks {', '.join(missing)}")
    return checkpoint


def load_weights(module: Module, state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load parameters and buffers into a module, all or nothing.

    Raises:
        ValueError: If they belong to another model; the message names the entries that differ. The module is unchanged.
    """
    check_weights(module, state_dict, path)
    module.load_state_dict(dict(state_dict))


def check_weights(module: Module, state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Check that a module can load these parameters and buffers.

    Raises:
        ValueError: If it cannot; the message names the entries that differ.
    """
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own.keys() - state_dict.keys()]
    wrong += [f"{name} is unknown to the model" for name in state_dict.keys() - own.keys()]
    wrong += [
        f"{name} has shape {tuple(state_dict[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & state_dict.keys()
        if isinstance(own[name], torch.Tensor) and state_dict[name].shape != own[name].shape
    ]
    if wrong:
        listed = "; ".join(sorted(wrong)[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise ValueError(f"{path} is from another model than this {type(module).__name__}: {listed}")


def resolve(callbacks: Iterable[Callback], ckpt_path: str | Path) -> str | Path:
    """Return the file that ``ckpt_path`` refers to: "last" and "best" are those of the trainer's `ModelCheckpoint`.

    Raises:
        ValueError: If no `ModelCheckpoint` has written such a file.
    """
    if ckpt_path not in ("last", "best"):
        return ckpt_path
    for callback in callbacks:
        if path := getattr(callback, f"{ckpt_path}_model_path", None):
            return path
    raise ValueError(f"ckpt_path={ckpt_path!r}, but no ModelCheckpoint of this trainer has written one")
