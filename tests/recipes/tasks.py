"""Tasks for tests of the command: what a run does instead of training."""

import time
from pathlib import Path

import torch
from omegaconf import DictConfig


def note_threads(config: DictConfig, folder: Path) -> dict[str, float]:
    """Write how many threads torch uses, and stay long enough for another job to start."""
    (folder / "threads.txt").write_text(str(torch.get_num_threads()))
    time.sleep(2)
    return {}
