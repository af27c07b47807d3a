"""Which errors are mistakes that a user made on the command line, and what to say of them."""

from __future__ import annotations

import difflib
import dis
import sys
from collections.abc import Iterator
from types import TracebackType

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

OURS = "framework"
PLUGINS = {"hydra_plugins", "joblib", "optuna"}  # of sweeps
LIBRARIES = (
    PLUGINS | sys.stdlib_module_names | {OURS, "antlr4", "hydra", "lightning", "numpy", "omegaconf", "scipy", "torch"}
)
CHECKED = (ValueError, TypeError, ImportError, HydraException, OmegaConfBaseException)


def explain(error: BaseException) -> str | None:
    """Return what to tell the user of an error, as one paragraph; None for a bug, whose traceback is needed.

    A mistake was raised on purpose, by a ``raise`` of ours or of a library that we call; what Python itself raises is a
    bug. Where code of the user's was under way (a module, a loss or a callback by ``_target_``), the traceback is what
    its author needs. A file that cannot be read or written is never a bug.
    """
    error, key = innermost(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _unknown_choice(error)
    frames = [("", False), *_frames(error.__traceback__)]
    # A module that cannot be imported may have raised the error that hydra then names.
    importing = _frames(error.__cause__.__traceback__) if isinstance(error, ImportError) and error.__cause__ else ()
    if any(module not in LIBRARIES for module, _ in [*frames[1:], *importing]):
        return None
    module, on_purpose = frames[-1]
    # What hydra makes of the configuration says by any error that it cannot be made so; arguments that do not fit are
    # seen by Python, in hydra's own frame.
    refused = key and module == "hydra" and isinstance(error, TypeError)
    checked = on_purpose and (isinstance(error, CHECKED) or (key and not isinstance(error, AssertionError)))
    if not (isinstance(error, OSError) or refused or checked):
        return None
    prefix = f"{key}: " if key and module != OURS else ""
    return prefix + _one_paragraph(str(error))


def in_words(error: BaseException) -> str:
    """Return what to write down of an error: what `explain` says, or of a bug what it is."""
    return explain(error) or f"{type(error).__name__}: {error}"


def innermost(error: BaseException) -> tuple[BaseException, str]:
    """Return the error that hydra wrapped while it made an object, and the object's key in the configuration."""
    key = ""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        _, _, named = str(error).partition("full_key: ")
        error, key = error.__cause__, named or key
    return error, key


def _frames(traceback: TracebackType | None) -> Iterator[tuple[str, bool]]:
    """Return for each frame, outermost first, its top-level module, and whether it is at a ``raise``."""
    while traceback is not None:
        frame = traceback.tb_frame
        module = str(frame.f_globals.get("__name__")).partition(".")[0]
        # `python -m framework.recipes.cli` calls its own module so.
        module = OURS if module == "__main__" and frame.f_globals.get("__package__") == "framework.recipes" else module
        yield module, frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]
        traceback = traceback.tb_next


def _unknown_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or ())
    close = difflib.get_close_matches(choice, options, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"Could not find '{group}/{choice}': {hint}The choices for {group} are {', '.join(options)}"


def _one_paragraph(text: str) -> str:
    """Return the text without what only hydra's developers read, and without empty lines."""
    lines = [line.strip() for line in text.splitlines()]
    if text.startswith("Could not override"):
        lines.append("(proxtrain --cfg job prints the keys that there are)")
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))
