"""How long each stage takes, and an end to training after a given time."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from framework.callback import Callback
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer

STAGES = ("train", "validate", "test", "predict", "sanity_check")


class Timer(Callback):
    """Measure the time of each stage; end training when it has taken a given time.

    The time of training includes validation, and that of the runs which this one continues: ``Trainer(max_time=...)``
    counts from the start of each `fit`. The other stages count from their last start.

    Args:
        duration: For how long to train: "DD:HH:MM:SS", a `timedelta` or its arguments as a mapping. None for no limit.
        interval: Stop after a "step", or after an iteration within it, or only after an "epoch".
        verbose: Print when the time is over.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If ``duration`` is something else.
    """

    def __init__(
        self,
        duration: str | timedelta | Mapping[str, int] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ValueError(f"Timer: interval={interval!r}; it must be 'step' or 'epoch'")
        if duration is None and interval != "step":
            warnings.warn(f"Timer: interval={interval!r} has no effect without a duration", stacklevel=2)
        self._duration = None if duration is None else _seconds(duration)
        self._interval = interval
        self._verbose = verbose
        self._starts: dict[str, float] = {}
        self._ends: dict[str, float] = {}
        self._seconds_before = 0.0  # of training, in the runs that this one continues

    # ------------------------------------------------------------------------------------------------- questions

    def start_time(self, stage: str = "train") -> float | None:
        """Return when a stage began last, in seconds of `time.monotonic`; None if it has not."""
        return self._starts.get(_checked(stage))

    def end_time(self, stage: str = "train") -> float | None:
        """Return when a stage ended last, in seconds of `time.monotonic`; None before that, and while it runs."""
        return self._ends.get(_checked(stage))

    def time_elapsed(self, stage: str = "train") -> float:
        """Return how many seconds a stage has taken, until now if it is running."""
        before = self._seconds_before if stage == "train" else 0.0
        start, end = self.start_time(stage), self.end_time(stage)
        return before if start is None else before + (time.monotonic() if end is None else end) - start

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return how many seconds of the duration are left; None if there is no limit."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    # ---------------------------------------------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":  # another run; a checkpoint to continue from is read after this
            self._seconds_before = 0.0
            for times in (self._starts, self._ends):
                times.pop("train", None)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        for running in self._starts.keys() - self._ends.keys():  # an exception has ended them
            self._end(running)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._start("train")
        self._stop_if_over(trainer)  # already, in the run that is continued

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._end("train")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        self._start("sanity_check" if trainer.sanity_checking else "validate")

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        self._end("sanity_check" if trainer.sanity_checking else "validate")

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        self._start("test")

    def on_test_end(self, trainer: Trainer, module: Module) -> None:
        self._end("test")

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        self._start("predict")

    def on_predict_end(self, trainer: Trainer, module: Module) -> None:
        self._end("predict")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._interval == "step":
            self._stop_if_over(trainer)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self._interval == "step":
            self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._interval == "epoch":
            self._stop_if_over(trainer)

    def _start(self, stage: str) -> None:
        self._starts[stage] = time.monotonic()
        self._ends.pop(stage, None)

    def _end(self, stage: str) -> None:
        self._ends[stage] = time.monotonic()

    def _stop_if_over(self, trainer: Trainer) -> None:
        # With several processes each asks by its own clock; they end together.
        if self._duration is None or self.time_elapsed() < self._duration or trainer.should_stop:
            return
        elapsed = timedelta(seconds=int(self.time_elapsed()))
        trainer.stop(f"timer: trained for {elapsed}")
        if self._verbose:
            trainer.fabric.print(f"Timer: trained for {elapsed}: the run is stopped")

    def state_dict(self) -> dict[str, Any]:
        return {"time_elapsed": {"train": self.time_elapsed()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["time_elapsed"]["train"]


def _seconds(duration: str | timedelta | Mapping[str, int]) -> float:
    if isinstance(duration, str):
        parts = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", duration.strip())
        if parts is None:
            raise ValueError(
                f"Timer: duration={duration!r}; as a string it must be 'DD:HH:MM:SS', such as '00:01:30:00'"
            )
        duration = dict(zip(("days", "hours", "minutes", "seconds"), map(int, parts.groups()), strict=True))
    if isinstance(duration, Mapping):
        duration = timedelta(**duration)
    if not isinstance(duration, timedelta):
        raise TypeError(f"Timer: duration={duration!r}; pass 'DD:HH:MM:SS', a timedelta, or a mapping of its arguments")
    return duration.total_seconds()


def _checked(stage: str) -> str:
    if stage not in STAGES:
        raise ValueError(f"Timer: stage={stage!r}; it must be one of {', '.join(STAGES)}")
    return stage
