"""Fabric's loggers, with one TensorBoard event for all the scalars of a step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import CSVLogger as FabricCSVLogger
from lightning.fabric.loggers import Logger
from lightning.fabric.loggers import TensorBoardLogger as FabricTensorBoardLogger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary


class TensorBoardLogger(FabricTensorBoardLogger):
    """Fabric's TensorBoard logger, quicker where several scalars are logged together.

    A scalar of its own costs about 50 microseconds (an event, a checksum, a queue); here six together cost 70. The
    writer has a thread, which takes its turns from a small step: it is given the events of a second together.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: list[Event] = []
        self._due = 0.0

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter`; what was logged before is in it."""
        writer, waiting = super().experiment, self._waiting
        self._waiting = []
        for event in waiting:
            writer._get_file_writer().add_event(event, event.step, event.wall_time)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._waiting.append(Event(wall_time=time.time(), step=step or 0, summary=Summary(value=values)))
        if time.monotonic() >= self._due:
            _ = self.experiment
            self._due = time.monotonic() + 1.0

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Mapping[str, Any] | None = None, step: int | None = None) -> None:
        """Hyperparameters, and the names of the metrics to show beside them: with the last values that were logged.

        Fabric logs these values once more, by default at step 0: there TensorBoard takes the run for restarted and
        drops the curves.
        """
        from torch.utils.tensorboard.summary import hparams  # slow to import, and seldom needed

        for summary in hparams(dict(_flattened(params)), dict(metrics or {})):
            self.experiment._get_file_writer().add_summary(summary, step)


class CSVLogger(FabricCSVLogger):
    """Fabric's CSV logger, written at every call (Fabric writes on every hundredth step, and only there)."""

    def __init__(self, root_dir: str, name: str = "", version: str = "", **kwargs: Any) -> None:
        super().__init__(root_dir, name, version, flush_logs_every_n_steps=1, **kwargs)

    @property
    def experiment(self) -> Any:
        with warnings.catch_warnings():
            # The run folder is shared with checkpoints and plots: it need not be empty.
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            return super().experiment

    def log_hyperparams(self, params: Any) -> None:
        """Hyperparameters stand in the run folder's config.yaml; a table of numbers has no place for them."""


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The leaves of nested mappings, under names such as "model/hidden", as what the HParams tab can show."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)


def make_loggers(logger: bool | Logger | Sequence[Logger], root_dir: Path) -> list[Logger]:
    """The loggers of a trainer from its ``logger`` argument; True means TensorBoard in ``root_dir/proxtrain_logs``."""
    if isinstance(logger, bool):
        return [TensorBoardLogger(root_dir, name="proxtrain_logs")] if logger else []
    loggers = list(logger) if isinstance(logger, Sequence) else [logger]
    for each in loggers:
        if not isinstance(each, Logger):
            raise TypeError(f"logger has a {type(each).__name__}; pass True, False or loggers of lightning.fabric")
    return loggers
