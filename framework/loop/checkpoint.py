"""What a checkpoint holds, how a crash cannot corrupt it while it is written, and how it is read without running code.

A checkpoint is one mapping of tensors, numbers, strings and containers of them:

=====================  ===================================================================================
``version``            the version of this package
``progress``           epochs completed, batches done of the next one, optimizer steps (`Progress`)
``closure_evaluations``
``gradient_norm``      that of the last step for which it was computed, if any
``state_dict``         the module's parameters and buffers
``optimizer``          its ``state_dict()``, and ``optimizer_class``, its name
``lr_schedulers``      their ``state_dict()``, in order, each with what it has seen of its metric
``callbacks``          their ``state_dict()``, by class name and position
``metrics``            the last value of each, and the sums of the epoch under way
``metric_states``      the states of the torchmetrics in the module
``sources``            the state of the datamodule, if it has one, and when methods were asked for loaders
``data``               the training loader's own state, if it has one
``loggers``            how much of their files is of the run up to here
``fingerprint``        number and size of batches, accumulation, precision: to notice that they changed
``graphs``             which shapes of batches are compiled, if any
``rng``                the global random generators, and the training data's own
=====================  ===================================================================================

A module that keeps gradients from step to step adds ``gradients``, by the names of the parameters. One of the
parameters alone has ``version`` and ``state_dict``: enough for everything but continuing.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle
import socket
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.serialization import get_safe_globals

from framework.loop.progress import Progress
from framework.module import Module

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, torch.Size, torch.device, torch.dtype})
NAMES = ("last.ckpt", "best.ckpt")

_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_END = b"PK\x05\x06"  # of a zip file; its last two bytes give the length of the comment that follows
_END_SIZE = 22


def save(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint, first to a temporary file next to it, so that ``path`` always holds a complete one.

    It is the zip file of `torch.save` with a comment, the SHA-256 of all that is before it. The target of a symbolic
    link is replaced, not the link.

    Raises:
        OSError: If it cannot be written; the file that was there is as it was.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_overs(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        with temporary.open("w+b") as raw:
            file = _Remembering(raw)
            try:
                torch.save(dict(checkpoint), file)  # type: ignore[arg-type]
                _seal(raw)
                os.fsync(raw.fileno())
            except Exception as error:
                raise file.error or _interruption(error) or error from None
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            remains = "the one that was there is as it was" if path.exists() else "there is none of an earlier moment"
            raise OSError(error.errno, f"cannot write the checkpoint: {error.strerror}; {remains}", str(path)) from None
        raise


def _interruption(error: BaseException) -> BaseException | None:
    """Return the Ctrl-C or the like in whose course an error came up, if there is one: `torch.save` hides it."""
    cause: BaseException | None = error
    while isinstance(cause, Exception):
        cause = cause.__context__
    return cause


class _Remembering:
    """A file that remembers why it could not be written: `torch.save` says only that it could not."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:  # perhaps Ctrl-C
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _seal(file: IO[bytes]) -> None:
    """Append the checksum of a zip file as its comment."""
    file.seek(-_END_SIZE, os.SEEK_END)
    assert file.read(4) == _END, "torch.save writes zip files without a comment"
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_SIZE.to_bytes(2, "little"))
    digest = _digest(file, file.tell())
    file.seek(0, os.SEEK_END)
    file.write(_SEAL + digest)
    file.flush()


def _check_seal(path: str | Path) -> None:
    """Check the checksum of a file. One that never had it, as `torch.save` leaves it, passes, and so does no zip file.

    Raises:
        ValueError: If the file is not as it was written.
    """
    with open(path, "rb") as file:
        is_zip, size = file.read(2) == b"PK", file.seek(0, os.SEEK_END)
        if size > _SEAL_SIZE + _END_SIZE:
            file.seek(size - _SEAL_SIZE)
            if file.read() == _SEAL + _digest(file, size - _SEAL_SIZE):
                return
        file.seek(max(0, size - _END_SIZE))
        end = file.read()
    if is_zip and not (end.startswith(_END) and end.endswith(b"\0\0")):
        raise ValueError(f"{path} is truncated, damaged or not a checkpoint: its checksum is not that of its content")


def _digest(file: IO[bytes], size: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while size and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _remove_left_overs(path: Path) -> None:
    """Remove the temporary files of processes that died while they wrote this file."""
    for left in path.parent.glob(f".{path.name}.{socket.gethostname()}.*.part"):
        number = left.name.split(".")[-2]
        if not (number.isdigit() and _is_alive(int(number))):
            left.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _sync(folder: Path) -> None:
    """Make a renaming in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(path: str | Path, *, to_continue: bool = True) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Nothing in the file is executed (``weights_only=True``).

    Args:
        path: The file.
        to_continue: Whether a run is to continue from it; otherwise the parameters are enough.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated or damaged, is not a checkpoint of a trainer, or would run code.
    """
    if Path(path).is_dir():
        raise ValueError(f"the checkpoint {path} is a folder: pass a file, such as last.ckpt in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    _check_seal(path)
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
    check(checkpoint, path, to_continue=to_continue)
    return checkpoint


# ----------------------------------------------------------------------------------------------------- what it holds


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str | int) for key in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_progress(value: Any) -> bool:
    counts = ("epoch", "epochs_completed", "since_validation", "global_step", "taken", "iterations")
    return (
        _is_mapping(value)
        and value.keys() == {field.name for field in fields(Progress)}
        and all(_is_count(value[name]) for name in counts)
        and (_is_count(value["batch_idx"]) or value["batch_idx"] == math.inf)
        and _is_mapping(value["evaluated_batches"])
        and all(map(_is_count, value["evaluated_batches"].values()))
        and (value["epoch_rng"] == {} or _is_rng(value["epoch_rng"]))
    )


def _is_rng(value: Any) -> bool:
    return (
        _is_mapping(value)
        and {"torch", "numpy", "python", "generators"} <= value.keys()
        and isinstance(value["torch"], torch.Tensor)
        and isinstance(value["generators"], list)
    )


def _is_optimizer(value: Any) -> bool:
    return (
        _is_mapping(value)
        and isinstance(value.get("state"), dict)
        and isinstance(value.get("param_groups"), list)
        and all(_is_mapping(group) and isinstance(group.get("params"), list) for group in value["param_groups"])
    )


def _is_metrics(value: Any) -> bool:
    entry = {"options", "metric", "logged", "unsent", "unsent_weight", "total", "weight"}
    return (
        _is_mapping(value)
        and value.keys() == {"latest", "steps", "epoch_loss", "sums"}
        and _is_count(value["steps"])
        and _is_mapping(value["latest"])
        and all(len(last) == 2 and _is_number(last[0]) and _is_count(last[1]) for last in value["latest"].values())
        and _is_mapping(value["epoch_loss"])
        and value["epoch_loss"].keys() == {"total", "weight"}
        and all(map(_is_number, value["epoch_loss"].values()))
        and _is_mapping(value["sums"])
        and all(_is_mapping(one) and one.keys() == entry for one in value["sums"].values())
    )


def _is_sources(value: Any) -> bool:
    return (
        _is_mapping(value)
        and value.keys() == {"made", "datamodule"}
        and all(map(_is_mapping, (value["made"], value["datamodule"], *value["made"].values())))
        and all(made.keys() == {"epoch", "global_step", "rng"} for made in value["made"].values())
        and all(_is_count(made["epoch"]) and _is_count(made["global_step"]) for made in value["made"].values())
        and all(_is_rng(made["rng"]) for made in value["made"].values())
    )


def _is_list_with(*keys: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(_is_mapping(v) and v.keys() == set(keys) for v in value)


def _is_configured(value: Any) -> bool:
    return (
        _is_mapping(value)
        and value.keys() == {"groups", "lr_schedulers"}
        and all(isinstance(part, list) and all(map(_is_mapping, part)) for part in value.values())
        and all(isinstance(group.get("params"), list) for group in value["groups"])
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "progress": _is_progress,
    "closure_evaluations": _is_count,
    "gradient_norm": lambda value: value is None or _is_number(value),
    "state_dict": _is_mapping,
    "optimizer": _is_optimizer,
    "optimizer_class": lambda value: isinstance(value, str),
    "lr_schedulers": _is_list_with("scheduler", "seen"),
    "configured": _is_configured,
    "callbacks": lambda value: _is_mapping(value) and all(map(_is_mapping, value.values())),
    "metrics": _is_metrics,
    "metric_states": lambda value: _is_mapping(value) and all(map(_is_mapping, value.values())),
    "sources": _is_sources,
    "data": lambda value: _is_mapping(value) and value.keys() == {"loader", "is_left", "held_rng"},
    "loggers": _is_list_with("class", "state"),
    "fingerprint": _is_mapping,
    "rng": _is_rng,
}


def check(checkpoint: Any, path: str | Path, *, to_continue: bool = True) -> None:
    """Check that a checkpoint has all its parts, each of the form that a trainer writes.

    Raises:
        ValueError: If not; the message names the parts.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} is not a checkpoint of a Trainer: it holds a {type(checkpoint).__name__}")
    missing = [name for name in _FIELDS if name not in checkpoint]
    has_weights_only = "version" in checkpoint and set(missing) == _FIELDS.keys() - {"state_dict"}
    if has_weights_only and to_continue:
        raise ValueError(
            f"{path} holds the parameters alone (weights_only), from which no run can continue: pass a complete "
            "checkpoint. To train from these parameters anew, drop ckpt_path and load them first: "
            f"model.load_state_dict(torch.load({str(path)!r})['state_dict'])"
        )
    if missing and not has_weights_only:
        raise ValueError(
            f"{path} is not a checkpoint of a Trainer (or of an older version): it lacks {', '.join(missing)}"
        )
    if wrong := [name for name, is_right in _FIELDS.items() if name in checkpoint and not is_right(checkpoint[name])]:
        raise ValueError(f"{path} is damaged: {', '.join(wrong)} in it is not what a Trainer writes")


def plain(value: Any, name: str) -> Any:
    """Return a part of a checkpoint in the form in which `load` reads it again: numpy's numbers become Python's.

    Args:
        value: The part.
        name: What to call it in errors.

    Raises:
        ValueError: If it is or holds an object that `load` would refuse; the message says where.
    """
    if isinstance(value, np.number | np.bool_ | np.str_):
        value = value.item()
    kind = type(value)
    if kind in _PLAIN or isinstance(value, torch.Tensor) or kind in get_safe_globals():
        return value
    if kind in (dict, OrderedDict, Counter):
        items = [(plain(k, f"a key of {name}"), plain(v, f"{name}[{k!r}]")) for k, v in value.items()]
        filled = copy.copy(value)  # what a module's state_dict knows besides its entries is kept
        filled.clear()
        for key, item in items:
            filled[key] = item
        return filled
    if kind in (list, tuple, set):
        if all(type(item) in _PLAIN for item in value):  # such as the 625 numbers of a random stream
            return value
        return kind(plain(item, f"{name}[{index}]") for index, item in enumerate(value))
    raise ValueError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold, because reading it would "
        "run code: keep it as tensors, numbers, strings, or dictionaries, lists, tuples and sets of them"
    )


def load_weights(module: Module, state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Load parameters and buffers into a module, all or nothing.

    Raises:
        ValueError: If they belong to another model; the message names the entries that differ. The module is unchanged.
    """
    check_weights(module, state_dict, path)
    module.load_state_dict(_under_own_names(module, state_dict))


def check_weights(module: Module, state_dict: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Check that a module can load these parameters and buffers.

    Raises:
        ValueError: If it cannot; the message names the entries that differ.
    """
    own, state_dict = module.state_dict(), _under_own_names(module, state_dict)
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


def _under_own_names(module: Module, state_dict: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return parameters and buffers under the module's names, where only wrappers make a difference."""
    own = list(module.state_dict())
    if own == list(state_dict):
        return state_dict
    names = {without_wrappers(name): name for name in own}
    renamed = {names.get(without_wrappers(name), name): value for name, value in state_dict.items()}
    return renamed if len(names) == len(own) and len(renamed) == len(state_dict) else state_dict


def without_wrappers(name: str) -> str:
    """Return a parameter's name without the levels that `torch.compile` and `DistributedDataParallel` put in."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module"))


def newest(
    folders: Iterable[Path], names: Iterable[str] = NAMES, *, to_continue: bool = True
) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint in some folders that is intact, and what it holds.

    Those that are damaged are passed over, with a warning for each. None if there is no file at all.

    Args:
        folders: Where to look.
        names: The names of the files, with ``*`` for what is not known of them.
        to_continue: Whether a run is to continue from it; otherwise the parameters are enough.

    Raises:
        ValueError: If there are files, but none is intact.
    """
    # Brackets make a pattern even of a whole name: a link that leads nowhere is found, and warned about.
    patterns = [f"{name[:-1]}[{name[-1]}]" for name in names]
    paths = {path for folder in folders for pattern in patterns for path in folder.glob(pattern)}
    # A symbolic link may lead nowhere: it has a time of its own.
    for path in sorted(paths, key=lambda path: os.stat(path, follow_symlinks=path.exists()).st_mtime_ns, reverse=True):
        try:
            return path, load(path, to_continue=to_continue)
        except (ValueError, FileNotFoundError) as error:
            warnings.warn(f"passed over: {error}", stacklevel=2)
    if paths:
        raise ValueError(f"no checkpoint in {', '.join(sorted({str(path.parent) for path in paths}))} is intact")
    return None
