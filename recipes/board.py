"""The command ``proxtrain-tensorboard``: run folders in TensorBoard, losses first, each under a name that tells it."""

from __future__ import annotations

import inspect
import json
import sys
import time
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf

from framework.recipes.compare import run_folders
from framework.recipes.overrides import run_name
from framework.recipes.resume import OVERRIDES

# TensorBoard sorts curves by name, and opens the first two groups: these come before all of them, where there are such.
PINNED = ("train/objective", "train/loss_epoch", "val/loss", "val/accuracy")


def main() -> None:
    """Show runs in TensorBoard: ``proxtrain-tensorboard [FOLDER ...] [--port=N and other options of TensorBoard]``.

    Folders of runs, or of sweeps and others that hold them; default: outputs. New runs appear as they start.
    """
    if {"-h", "--help"} & {*sys.argv}:
        print(inspect.cleandoc(str(main.__doc__)))
        return
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")] or [Path("outputs")]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        sys.exit(f"error: there is no folder {', '.join(missing)}; pass run folders, options as --port=6007")
    from tensorboard.program import TensorBoard  # slow to import

    with TemporaryDirectory() as shelf:
        link(folders, Path(shelf))
        board = TensorBoard()
        board.configure(argv=["tensorboard", f"--logdir={shelf}", *options])
        try:
            print(f"{board.launch()}?pinnedCards={urllib.parse.quote(pinned_cards())}", flush=True)
            while True:
                time.sleep(5)
                link(folders, Path(shelf))
        except KeyboardInterrupt:
            return


def pinned_cards() -> str:
    """Return what TensorBoard is to show first, as its address says it."""
    return json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED], separators=(",", ":"))


def link(folders: Iterable[Path], shelf: Path) -> None:
    """Make a link to the event files of each run that has none yet; TensorBoard takes its name for the run's."""
    linked = {link.readlink() for link in shelf.rglob("*") if link.is_symlink()}
    for run in runs(folders):
        logs = run.absolute() / "tensorboard"
        if logs not in linked:
            given = map(str, OmegaConf.load(run / OVERRIDES)) if (run / OVERRIDES).exists() else ()
            recipe = str(OmegaConf.load(run / "config.yaml").recipe_name)
            name = shelf / run_name([*given], recipe, run.absolute()).replace("/", "_")
            if not name.exists():
                name.symlink_to(logs, target_is_directory=True)


def runs(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of runs that have logged to TensorBoard."""
    return [folder for folder in run_folders(folders) if (folder / "tensorboard").is_dir()]


if __name__ == "__main__":
    main()
