"""A run folder of the command line as a trained module."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from framework.loop.checkpoint import load as load_checkpoint
from framework.loop.checkpoint import load_weights, newest
from framework.module import Module


def load(run_folder: str | Path, checkpoint: str | Path = "best") -> Module:
    """Return the trained module of a run of ``proxtrain``, on the CPU and in evaluation mode.

    The module is made anew by the function that the run's ``config.yaml`` names as ``rebuild``, from code that must
    still be importable. No data is read.

    Args:
        run_folder: As ``proxtrain`` prints it.
        checkpoint: "best" for the best one, or where the run did not look for one the newest; "last" for the newest;
            or the path of a file.

    Returns:
        The module; its ``recipe`` is the configuration, as `omegaconf.DictConfig`.

    Raises:
        FileNotFoundError: If there is no such folder or checkpoint.
        ValueError: If it is no run folder, the checkpoint is of another model, or which one is the best is not known.
    """
    return load_run(run_folder, checkpoint)[0]


def load_run(run_folder: str | Path, checkpoint: str | Path = "best") -> tuple[Any, Path]:
    """Return the module, as `load` does, and the checkpoint that it is from."""
    import yaml  # who loads no run need not wait for it

    folder = Path(run_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; pass a run folder, as proxtrain prints it")
    config = folder / "config.yaml"
    rebuild = (yaml.safe_load(config.read_text()) or {}).get("rebuild") if config.is_file() else None
    if rebuild is None:
        raise ValueError(f"{folder} is no folder of a run that trained a model: its config.yaml names no `rebuild`")
    path, found = _checkpoint(folder, checkpoint)
    module = pkgutil.resolve_name(rebuild)(config, found.get("recipe"))
    if any(value.dtype == torch.float64 for value in found["state_dict"].values()):
        module.double()  # as a trainer of 64 bits made it; weights of fewer bits fit into 32
    load_weights(module, found["state_dict"], path)
    return module.eval(), path


def _checkpoint(folder: Path, which: str | Path) -> tuple[Path, Mapping[str, Any]]:
    if str(which) not in ("best", "last"):
        return Path(which), load_checkpoint(which, to_continue=False)
    checkpoints = folder / "checkpoints"
    last = newest([checkpoints], ["**/*.ckpt"], to_continue=False)
    if last is None:
        raise FileNotFoundError(f"{checkpoints} holds no checkpoint: the run ended before it saved one")
    best = _best(checkpoints, last[1]) if which == "best" else None
    return last if best is None else (best, load_checkpoint(best, to_continue=False))


def _best(checkpoints: Path, last: Mapping[str, Any]) -> Path | None:
    """Return the best of a run's checkpoints, of which one is the newest; None if the run did not look for it."""
    for state in last.get("callbacks", {}).values():
        if files := state.get("files"):  # with their scores, of a `ModelCheckpoint`
            return checkpoints / f"{(min if state['mode'] == 'min' else max)(files, key=files.get)}"
    # One of the parameters alone does not say which file is the best.
    best = checkpoints / "best.ckpt"
    if "callbacks" in last or best.exists():
        return best if best.exists() else None
    if len(names := sorted(str(path.relative_to(checkpoints)) for path in checkpoints.glob("**/*.ckpt"))) > 1:
        raise ValueError(
            f"the checkpoints in {checkpoints} hold the parameters alone, not which of them is the best: pass the path "
            f"of one ({', '.join(names)}), or 'last'"
        )
    return None
