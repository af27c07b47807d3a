"""Ready-made callbacks, one per file."""

from collections.abc import Sequence

from framework.callback import Callback
from framework.callbacks.early_stopping import EarlyStopping
from framework.callbacks.evaluations_per_step import EvaluationsPerStep
from framework.callbacks.histograms import Histograms
from framework.callbacks.learning_rate_monitor import LearningRateMonitor
from framework.callbacks.model_checkpoint import ModelCheckpoint
from framework.callbacks.model_summary import ModelSummary
from framework.callbacks.penalty_path import PenaltyPath, Stage
from framework.callbacks.progress_bar import ProgressBar
from framework.callbacks.stationarity import Stationarity
from framework.callbacks.timer import Timer
from framework.callbacks.weight_averaging import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from framework.callbacks.working_set import WorkingSet

__all__ = [
    "EMAWeightAveraging",
    "EarlyStopping",
    "EvaluationsPerStep",
    "Histograms",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "PenaltyPath",
    "ProgressBar",
    "Stage",
    "Stationarity",
    "StochasticWeightAveraging",
    "Timer",
    "WeightAveraging",
    "WorkingSet",
]


def default_callbacks(
    given: Sequence[Callback],
    *,
    summary: bool,
    progress_bar: bool,
    checkpointing: bool,
    fast_dev_run: bool,
) -> list[Callback]:
    """Return a trainer's callbacks: the given ones, the defaults that they do not replace, and checkpoints last."""
    callbacks = list(given)
    wanted = ((summary, ModelSummary), (progress_bar, ProgressBar), (checkpointing, ModelCheckpoint))
    for want, kind in wanted:
        if want and not any(isinstance(callback, kind) for callback in callbacks):
            callbacks.append(kind())
    if fast_dev_run:
        callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
    return sorted(callbacks, key=lambda callback: isinstance(callback, ModelCheckpoint))
