"""One bar over all the optimizer steps of a run."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from framework.callback import Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer


class ProgressBar(Callback):
    """Shows the epoch, the steps done, the rate, the time left and the metrics meant for it.

    Within a step it shows the iterations of an optimizer that reports them, and the best value so far.

    Args:
        refresh_rate: Redraw at most so many times a second on a terminal; in a file, once in ten seconds.
    """

    def __init__(self, refresh_rate: float = 4.0) -> None:
        self.refresh_rate = refresh_rate
        self._bar: Any = None
        self._due = 0.0

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.fabric.is_global_zero:
            return
        total = trainer.estimated_stepping_batches
        # When to draw is decided here: asking the bar itself costs three times as much, at every step.
        self._bar = tqdm(
            total=None if total == math.inf else int(total),
            initial=trainer.global_step,
            unit="step",
            mininterval=0,
            miniters=1,
            dynamic_ncols=True,
        )
        self._interval = 1 / self.refresh_rate if sys.stderr.isatty() else 10.0
        self._due = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer, iteration=iteration)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            self._draw(trainer)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, trainer: Trainer, **first: float) -> None:
        bar, last = self._bar, f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
        epoch = trainer.current_epoch + (trainer.progress.batch_idx > 0 or trainer.stopped_because is None)
        bar.set_description_str(f"epoch {epoch}{last}", refresh=False)
        bar.set_postfix(first | trainer.progress_bar_metrics, refresh=False)
        steps = trainer.global_step - bar.n
        bar.update(steps) if steps else bar.refresh()
        self._due = time.monotonic() + self._interval
