"""What other processes do in tests of the command."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from framework.recipes.cli import main, unused
from framework.recipes.train import claim


def proxtrain(*arguments: str) -> None:
    """Be the command, in a session of its own, as in a terminal."""
    os.setsid()
    sys.argv = ["proxtrain", *arguments]
    main()


def note_threads(config: DictConfig, folder: Path) -> dict[str, float]:
    """Be a run's task: write how many threads torch uses, and stay long enough for another job to start."""
    (folder / "threads.txt").write_text(str(torch.get_num_threads()))
    time.sleep(2)
    return {}


def claim_folders(root: Path, together: Any, claimed: Any) -> None:
    """Claim, at the same moment as others, a folder of one's own and one that all want; put which, and whether."""
    os.chdir(root)
    together.wait()
    own = Path(unused("runs/same_second"))
    claim(own)
    try:
        claim(Path("one"))
        claimed.put((own, True))
    except FileExistsError:
        claimed.put((own, False))
