"""One bar over all the optimizer steps of a run; in a file, a line now and then."""

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

    With a penalty these are also the objective and the shares of exact zeros. Within a step it shows the iterations of
    an optimizer that reports them, and the best value so far. A callback with a ``progress_description``, a string,
    says in place of the epoch how far the run has come; then no total of steps is shown. In a notebook the bar is a
    widget, where ipywidgets is installed.

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
        is_known = total != math.inf and self._description(trainer) is None
        # When to draw is decided here: asking the bar itself costs three times as much, at every step.
        self._bar = make_bar(
            total=int(total) if is_known else None,
            initial=trainer.global_step,
            unit="step",
            mininterval=0,
            miniters=1,
            dynamic_ncols=True,
        )
        self._interval = 10.0 if isinstance(self._bar, _Lines) else 1 / self.refresh_rate
        self._due = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer, module)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._draw(trainer, module, iteration=iteration)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._bar is not None:
            self._draw(trainer, module)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, trainer: Trainer, module: Module, **first: float) -> None:
        bar, last = self._bar, f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
        epoch = trainer.current_epoch + (trainer.progress.batch_idx > 0 or trainer.stopped_because is None)
        bar.set_description_str(self._description(trainer) or f"epoch {epoch}{last}", refresh=False)
        bar.set_postfix(first | self._metrics(trainer, module), refresh=False)
        steps = trainer.global_step - bar.n
        bar.update(steps) if steps else bar.refresh()
        self._due = time.monotonic() + self._interval

    def _description(self, trainer: Trainer) -> str | None:
        descriptions = (getattr(callback, "progress_description", None) for callback in trainer.callbacks)
        return next(filter(None, descriptions), None)

    def _metrics(self, trainer: Trainer, module: Module) -> dict[str, float]:
        shown = trainer.progress_bar_metrics
        if module.penalty is None:
            return shown
        known = trainer.callback_metrics
        return shown | {
            name: known[name] for name in known if name == "train/objective" or name.startswith("sparsity/")
        }


def make_bar(**options: Any) -> Any:
    """Make tqdm's bar on a terminal, a widget in a notebook, and lines in a file."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    if kernel is not None and kernel.IPKernelApp.initialized():
        from tqdm.autonotebook import tqdm as notebook_tqdm

        return notebook_tqdm(**options)
    return tqdm(**options) if sys.stderr.isatty() else _Lines(**options)


class _Lines:
    """What a file gets in place of a bar: the same words, a line each time."""

    def __init__(self, *, total: int | None, initial: int, unit: str, **_: Any) -> None:
        self.n = self._initial = initial
        self._total, self._unit = total, unit
        self._description = self._postfix = ""
        self._started = time.monotonic()

    def set_description_str(self, text: str, refresh: bool) -> None:
        self._description = text

    def set_postfix(self, values: dict[str, Any], refresh: bool) -> None:
        self._postfix = ", ".join(f"{name}={tqdm.format_num(value)}" for name, value in values.items())

    def update(self, steps: int) -> None:
        self.n += steps
        self.refresh()

    def refresh(self) -> None:
        line = tqdm.format_meter(
            n=self.n,
            total=self._total,
            initial=self._initial,
            elapsed=time.monotonic() - self._started,
            unit=self._unit,
            prefix=self._description,
            postfix=self._postfix,
            bar_format="{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            if self._total
            else None,
        )
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None: ...
