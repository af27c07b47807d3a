"""``proxtrain resume=FOLDER``: continue a run in its own folder, with its own configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

OVERRIDES = Path(".hydra") / "overrides.yaml"
# What makes a run of the settings of a sweep's job, among which may be those that chose the sweep.
ONE_RUN = "hydra.mode=RUN"


def expand(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command, with those of the run before them if one is to be resumed.

    What is given anew takes the place of what was given then.

    Raises:
        ValueError: If there is no such run, or several are to be resumed; the message says what there is.
    """
    folders = [value for key, value in map(split, arguments) if key == "resume" and value not in ("null", "")]
    if not folders:
        return list(arguments)
    if any(argument in ("-m", "--multirun") for argument in arguments) or len(folders) > 1:
        raise ValueError("resume=FOLDER continues one run: call proxtrain once for each, without -m")
    folder = Path(folders[0].strip("'\"")).resolve()
    _check(folder)
    given = [argument for argument in arguments if split(argument)[0] not in ("resume", "hydra.run.dir")]
    keys = {split(argument)[0] for argument in given}
    then = [str(override) for override in OmegaConf.load(folder / OVERRIDES)]
    kept = [override for override in then if split(override)[0] not in keys | {"resume"}]
    kept = [_with_absolute_path(override, _started_in(folder)) for override in kept]
    quoted = str(folder).replace("'", r"\'")
    return [*kept, *given, f"resume='{quoted}'", f"hydra.run.dir='{quoted}'", ONE_RUN]


def _started_in(folder: Path) -> Path:
    """Return the folder in which a run was started, to which its relative paths belong."""
    recorded = folder / ".hydra" / "hydra.yaml"
    return Path(OmegaConf.load(recorded).hydra.runtime.cwd) if recorded.exists() else Path.cwd()


def _with_absolute_path(override: str, cwd: Path) -> str:
    """Return a setting that is the relative path of a file or folder with the whole path, other ones as they are."""
    key, equals, value = override.partition("=")
    path = Path(value.strip("'\""))
    if not value or path.is_absolute() or cwd == Path.cwd() or not ("/" in value or path.suffix):
        return override
    quoted = str(cwd / path).replace("'", r"\'")
    return f"{key}{equals}'{quoted}'" if (cwd / path).exists() else override


def split(argument: str) -> tuple[str, str]:
    """Return the key and the value of a setting, as it is given on the command line."""
    key, _, value = argument.partition("=")
    return key.lstrip("+~"), value


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"resume={folder}: there is no such folder; pass a run folder, as proxtrain prints it")
    if not (folder / OVERRIDES).exists():
        jobs = sorted(path.parent.parent for path in folder.glob(f"*/{OVERRIDES}"))
        hint = f"it holds those of a sweep: {', '.join(map(str, jobs))}" if jobs else "it has no .hydra/overrides.yaml"
        raise ValueError(f"resume={folder} is not a run folder: {hint}")


def record(config: DictConfig, folder: Path) -> None:
    """Write down what a run was started with, now that it has started."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    overrides = []
    if HydraConfig.initialized():
        overrides = HydraConfig.get().overrides.task
        _write(OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.get()})), folder / ".hydra" / "hydra.yaml")
    kept = [override for override in overrides if split(override)[0] != "resume"]
    _write(OmegaConf.to_yaml(config, resolve=True), folder / "config.yaml")
    _write(OmegaConf.to_yaml(config), folder / ".hydra" / "config.yaml")
    _write(OmegaConf.to_yaml(OmegaConf.create(kept)), folder / OVERRIDES)


def _write(text: str, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    os.replace(temporary, path)


def why_finished(
    folder: Path, progress: dict[str, Any], max_epochs: int, max_steps: int, *, changed: bool
) -> str | None:
    """Return why nothing is left to do in a run, and what to raise; None if something is.

    Args:
        folder: The run folder.
        progress: How far its newest checkpoint has come.
        max_epochs: The limit of the continued run; -1 for none.
        max_steps: The same for steps.
        changed: Whether the run is continued with another configuration.
    """
    summary = folder / "summary.json"
    if not summary.exists():
        return None  # it was killed before its report, which is still to be written
    epochs, steps = progress["epoch"], progress["global_step"]
    if 0 <= max_epochs <= epochs:
        return f"all of its {epochs} epochs are done; to go on, raise epochs={epochs} (trainer.max_epochs)"
    if 0 <= max_steps <= steps:
        return f"all of its {steps} steps are done; to go on, raise trainer.max_steps={steps}"
    because = json.loads(summary.read_text())["stopped_because"]
    ended_itself = because and not because.startswith(("interrupted", "max_"))
    return f"it stopped because of {because}; to go on, change that setting" if ended_itself and not changed else None
