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
        self._shown: dict[str, float] = {}
        self._due = 0.0

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.fabric.is_global_zero:
            return
        total = trainer.estimated_stepping_batches
        self._bar = tqdm(
            total=None if total == math.inf else int(total),
            initial=trainer.global_step,
            unit="step",
            mininterval=1 / self.refresh_rate if sys.stderr.isatty() else 10.0,
            dynamic_ncols=True,
        )
        self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            last = f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
            self._bar.set_description_str(f"epoch {trainer.current_epoch + 1}{last}", refresh=False)

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._bar is not None:
            # The trainer replaces this mapping when there is news.
            if trainer.metrics.progress_bar_metrics is not self._shown:
                self._show(trainer)
            self._bar.update()

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        # tqdm itself looks at the clock only when a step is done.
        if self._bar is not None and time.monotonic() >= self._due:
            self._show(trainer, iteration=iteration)
            self._bar.refresh()
            self._due = time.monotonic() + self._bar.mininterval

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            self._show(trainer)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show(self, trainer: Trainer, **first: float) -> None:
        self._shown = trainer.metrics.progress_bar_metrics
        self._bar.set_postfix(first | self._shown, refresh=False)
