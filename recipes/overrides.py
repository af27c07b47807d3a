"""What a user set on the command line: refused by name where nothing reads it, and the name of a run by it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from framework.recipes.resume import split

# What other parts of the configuration refer to, so that a recipe fits whatever is chosen; and what they set there.
SHORTHANDS = {
    "lr": "optimizer.lr",
    "epochs": "trainer.max_epochs",
    "val_every": "trainer.check_val_every_n_epoch",
    "mlp.hidden": "model.hidden",
    "mlp.activation": "model.activation",
    "mlp.dropout": "model.dropout",
}
TRAINING = "framework.recipes.train.train"
LINEAR_RECOVERY, NETWORK_RECOVERY = "framework.data.linear_recovery", "framework.data.network_recovery"
# Of a simulation, and of a table that a user brings instead.
SIMULATION = ("simulation", "num_samples", "num_features", "num_active", "noise", "num_val")
TABLE = ("target", "classes", "drop", "impute", "test_share", "val_share")


def refuse_several_sweeps(arguments: Sequence[str]) -> None:
    """Check that at most one ready sweep is asked for: of several, nobody would read the values.

    Raises:
        ValueError: If there are several.
    """
    for key, value in map(split, arguments):
        if key == "sweep" and ("," in value or "(" in value):
            raise ValueError(f"sweep={value}: each has values of its own; call proxtrain once for each")


def refuse_other_folder(overrides: Sequence[str], *, is_sweep: bool) -> None:
    """Check that nobody chose the folder of one run for a sweep, or that of a sweep for one run.

    Args:
        overrides: What the user typed of hydra's settings.
        is_sweep: Whether the run is a job of a sweep.

    Raises:
        ValueError: If somebody did; the message says which folder there is.
    """
    unread, read = ("hydra.run.dir", "hydra.sweep.dir") if is_sweep else ("hydra.sweep.dir", "hydra.run.dir")
    if unread in {split(override)[0] for override in overrides}:
        here = "the jobs of a sweep lie in the folder of the sweep" if is_sweep else "this is one run and no sweep"
        raise ValueError(f"{unread} has no effect: {here}; choose {read}=...")


def refuse_without_effect(config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> None:
    """Check that everything that a user set is read.

    Args:
        config: The composed configuration.
        overrides: What the user typed, such as "optimizer=sgd" and "lr=0.5".
        choices: The choice of each group, also those that the user left alone.

    Raises:
        ValueError: If nothing reads a setting in this configuration; the message says what to set instead.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_delete():
            continue
        if override.is_add() and "." not in key and key not in choices and not is_referred_to(config, key):
            raise ValueError(f"{override.input_line} has no effect: nothing reads {key}; drop it")
        if key in choices:
            reason = _why_choice_is_dropped(config, key, choices)
        else:
            leaves = _leaves(key, override.value())
            reason = next((reason for leaf in leaves if (reason := _why_unread(config, leaf, choices))), None)
        if reason:
            raise ValueError(f"{override.input_line} has no effect: {reason}")


def _why_choice_is_dropped(config: DictConfig, group: str, choices: Mapping[str, str]) -> str | None:
    if choices[group] in (None, "none") or config.get(group, "") is not None:
        return None
    if group == "scheduler":
        return f"optimizer={choices['optimizer']} has no learning rate to schedule; drop it, or choose optimizer=adam"
    return f"another choice sets {group} to null; drop it"


def _why_unread(config: DictConfig, key: str, choices: Mapping[str, str]) -> str | None:
    """Return why nothing reads a key in this configuration, and what to do about it; None where something does."""
    part, _, name = key.partition(".")
    if key in SHORTHANDS and not is_referred_to(config, key):
        instead = SHORTHANDS[key]
        if (value := OmegaConf.select(config, instead)) is not None:
            return f"{instead} is {value} whatever {key} is; set {instead}"
        chosen = instead.partition(".")[0]
        return f"{f'{chosen}={choices[chosen]}' if choices.get(chosen) else 'this recipe'} does not read it; drop it"
    is_network_recovery = config.data.get("_target_") == NETWORK_RECOVERY
    if part in ("paths", "tolerance") and is_network_recovery:
        return "networks do not read it; drop it, or choose model=linear"
    if part == "resume" and is_network_recovery:
        return None
    if part in ("ckpt_path", "learning_rates", "resume") and config.task != TRAINING:
        return f"the task {config.task} does not read it; drop it"
    if key == "penalty.happy_lambda" and config.penalty.get("function") is None:
        return "there is no penalty to weigh; choose one, such as penalty=l1"
    is_linear_recovery = part in ("paths", "ceiling") and config.data.get("_target_") == LINEAR_RECOVERY
    if is_linear_recovery and list(config.penalties) == ["l1"]:
        return "the lasso is convex, and its minimum does not depend on the start; drop it"
    if part == "data" and "csv" in config.data:
        if config.data.csv is not None and name in SIMULATION:
            return "data.csv is a table, and nothing is simulated; drop one of the two"
        if config.data.csv is None and name in TABLE:
            return "it belongs to a table; pass data.csv=FILE too"
    if key == "trainer.gradient_clip_algorithm" and config.trainer.gradient_clip_val is None:
        return "nothing is clipped; set trainer.gradient_clip_val too"
    return None


def is_referred_to(config: DictConfig, key: str) -> bool:
    """Return whether the configuration is another one, beside the key itself, where the key has another value."""
    changed = copy.deepcopy(config)
    with open_dict(changed):
        OmegaConf.update(changed, key, "another value")
    return _elsewhere(changed, key) != _elsewhere(config, key)


def _elsewhere(config: DictConfig, key: str) -> dict[Any, Any]:
    """Return the resolved configuration without the shorthands and the part that a key belongs to."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    own = {name.partition(".")[0] for name in (key, *SHORTHANDS)}
    return {name: value for name, value in values.items() if name not in own}


def _leaves(key: str, value: Any) -> Iterator[str]:
    """Return the keys that an override sets: one, or those of a mapping."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key


def run_name(given: Sequence[str], recipe: str, folder: Path) -> str:
    """Return a name to know a run by: choices of the command line, the recipe, other settings, and the folder.

    There is room for the first words only, in which the runs of a sweep should differ.
    """
    quiet = ("recipe=", "sweep=", "logger", "trainer.enable_")
    given = [override for override in given if not override.startswith(quiet)]
    choices = [override for override in given if "." not in override.partition("=")[0]]
    settings = [override for override in given if override not in choices]
    place = f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name  # a job of a sweep
    return ", ".join([*choices, recipe, *settings, place])
