"""How far a run has come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: The index of the current epoch.
        epochs_completed: The same, plus one at the end of an epoch, when checkpoints are written.
        batch_idx: How many batches of the next epoch are done; infinite once its data were read to their end.
        since_validation: How many batches were trained on since those that ``val_check_interval`` has counted off.
        global_step: Optimizer steps taken.
        evaluated_batches: By stage, those of validation and the like: the steps at which their values are logged.
        taken: How many the last batch or group of them took; others than one only if the module takes them itself.
        iterations: Those that an optimizer made within its steps, if it reports them.
        epoch_rng: The random state at the start of the current epoch, to draw its order of batches again.
    """

    epoch: int = 0
    epochs_completed: int = 0
    batch_idx: float = 0
    since_validation: int = 0
    global_step: int = 0
    taken: int = 1
    iterations: int = 0
    evaluated_batches: dict[str, int] = field(default_factory=dict)
    epoch_rng: dict[str, Any] = field(default_factory=dict)

    @property
    def is_within_epoch(self) -> bool:
        """Whether some batches of the next epoch are done and others are not."""
        return 0 < self.batch_idx < math.inf
