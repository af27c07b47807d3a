"""A range test of the learning rate: train while it rises, and see where the loss falls fastest.

Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from framework.callback import Callback
from framework.fabric import precision_of
from framework.module import Module
from framework.objective.replay import find_generators, rng_state, set_rng_state
from framework.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# How much of the average of the losses each further loss leaves.
_SMOOTHING = 0.98


@dataclass
class LRFinder:
    """The result of `lr_find`.

    Attributes:
        mode: How the learning rate rose: "exponential" or "linear".
        lr_min: Where it began.
        lr_max: Where it was to end.
        num_training: In how many steps.
        results: ``"lr"`` and ``"loss"``: the learning rate of each step, and the running average of the losses so far.
    """

    mode: str
    lr_min: float
    lr_max: float
    num_training: int
    results: dict[str, list[float]]

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the learning rate at which the loss falls fastest; None, with a warning, if there are too few losses.

        Args:
            skip_begin: How many steps to leave out at the beginning.
            skip_end: How many steps to leave out at the end.
        """
        index = self._suggested(skip_begin, skip_end)
        return None if index is None else self.results["lr"][index]

    def plot(self, suggest: bool = False, show: bool = False, ax: Axes | None = None) -> Figure | SubFigure:
        """Draw the loss against the learning rate.

        Args:
            suggest: Whether to mark the `suggestion`.
            show: Whether to show it, in a window or a notebook.
            ax: Where to draw; default: in a new figure.
        """
        from matplotlib import pyplot
        from matplotlib.figure import Figure

        if ax is None:
            # Figure() instead of pyplot, unless it has to be shown: nothing to close, no display needed.
            ax = (pyplot.figure() if show else Figure(layout="constrained")).subplots()
        lrs, losses = self.results["lr"], self.results["loss"]
        ax.plot(lrs, losses)
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set(xlabel="Learning rate", ylabel="Loss")
        if suggest and (index := self._suggested()) is not None:
            ax.plot(lrs[index], losses[index], "o", color="red", markersize=10)
        if show:
            pyplot.show()
        return ax.figure

    def _suggested(self, skip_begin: int = 10, skip_end: int = 1) -> int | None:
        losses = self.results["loss"]
        kept = [i for i in range(skip_begin, len(losses) - skip_end) if math.isfinite(losses[i])]
        if len(kept) < 2:
            warnings.warn(
                f"lr_find: {len(losses)} losses are too few to suggest a learning rate, of which {skip_begin} at the "
                f"beginning and {skip_end} at the end are left out: raise num_training, lower min_lr, or skip fewer",
                stacklevel=3,
            )
            return None
        lrs = torch.tensor([self.results["lr"][i] for i in kept])
        (slope,) = torch.gradient(torch.tensor([losses[i] for i in kept]), spacing=[lrs])
        return kept[int(slope.argmin())]


def lr_find(
    trainer: Trainer | Callable[[], Trainer],
    module: Module,
    train_dataloaders: Any,
    min_lr: float = 1e-8,
    max_lr: float = 1.0,
    num_training: int = 100,
    mode: str = "exponential",
    early_stop_threshold: float | None = 4.0,
) -> LRFinder:
    """Train a copy of a module while the learning rate rises, and record the loss of every step.

    Trainer, module and random state are afterwards as they were, also if it fails. The copy is trained as by the
    trainer's `fit`, but without its callbacks, loggers, limits of the run and validation, and without the module's
    schedulers; the data are read again from their beginning as often as it takes. All parameter groups have the same
    learning rate.

    Args:
        trainer: The trainer that the module is meant for, or a function that makes one.
        module: The module.
        train_dataloaders: The training data.
        min_lr: The first learning rate.
        max_lr: The last learning rate.
        num_training: The number of steps.
        mode: Whether the learning rate is multiplied ("exponential") or added to ("linear").
        early_stop_threshold: Stop when the averaged loss exceeds this many times the least one; None not to stop. It
            always stops when a loss is not finite.

    Raises:
        ValueError: If an argument is out of range, or the optimizer has no learning rate.
    """
    _check(min_lr, max_lr, num_training, mode, early_stop_threshold)
    trainer = trainer if isinstance(trainer, Trainer) else trainer()
    if trainer.fast_dev_run:
        raise ValueError("lr_find takes many steps, and the trainer has fast_dev_run: pass one without it")
    test = _RangeTest(min_lr, max_lr, num_training, mode, early_stop_threshold)
    generators = find_generators(train_dataloaders)
    before, precision = rng_state(generators), precision_of(trainer.fabric)
    precision_before = None if precision is None else copy.deepcopy(precision.state_dict())
    stateful = hasattr(train_dataloaders, "state_dict") and hasattr(train_dataloaders, "load_state_dict")
    data_before = copy.deepcopy(train_dataloaders.state_dict()) if stateful else None
    try:
        _probe(trainer, test, num_training).fit(copy.deepcopy(module), train_dataloaders)
    except _Diverged:
        pass
    finally:
        set_rng_state(before, generators)
        if precision is not None:
            precision.load_state_dict(precision_before)
        if stateful:
            train_dataloaders.load_state_dict(data_before)
    return LRFinder(mode, min_lr, max_lr, num_training, {"lr": test.lrs, "loss": test.losses})


def _check(min_lr: float, max_lr: float, num_training: int, mode: str, early_stop_threshold: float | None) -> None:
    if not 0 < min_lr < max_lr < math.inf:
        raise ValueError(f"lr_find: min_lr={min_lr!r}, max_lr={max_lr!r}; both must be positive, and min_lr the lower")
    if num_training < 1:
        raise ValueError(f"lr_find: num_training={num_training!r}; it must be a positive integer")
    if mode not in ("exponential", "linear"):
        raise ValueError(f"lr_find: mode={mode!r}; it must be 'exponential' or 'linear'")
    if early_stop_threshold is not None and early_stop_threshold <= 1:
        raise ValueError(f"lr_find: early_stop_threshold={early_stop_threshold!r}; it must be more than 1, or None")


def _probe(trainer: Trainer, test: _RangeTest, num_training: int) -> Trainer:
    """Return a trainer with the same devices and settings, for one range test."""
    probe = copy.copy(trainer)
    probe.callbacks, probe.loggers = [test], []
    probe.max_epochs, probe.max_steps, probe.max_time = -1, num_training, math.inf
    return probe


class _Diverged(Exception):  # noqa: N818
    """The loss is no longer finite, so that there is nothing more to see."""


class _RangeTest(Callback):
    """Sets the learning rate of each step and records its loss."""

    def __init__(
        self, min_lr: float, max_lr: float, num_training: int, mode: str, early_stop_threshold: float | None
    ) -> None:
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_training = num_training
        self.mode = mode
        self.early_stop_threshold = early_stop_threshold
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self._average = 0.0

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        optimizer = trainer.optimizer
        if not all("lr" in group for group in optimizer.param_groups):
            raise ValueError(f"lr_find: {type(optimizer).__name__} has no learning rate to find")
        trainer.use_optimizer(optimizer)  # without the module's schedulers

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        lr = self._lr(trainer.global_step)
        for group in trainer.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self.lrs.append(lr)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert trainer.closure.first is not None
        loss, count = float(trainer.closure.first.loss), len(self.lrs)
        if not math.isfinite(loss):
            self.losses.append(loss)
            raise _Diverged
        self._average = _SMOOTHING * self._average + (1 - _SMOOTHING) * loss
        smoothed = self._average / (1 - _SMOOTHING ** (count + 1))  # Lightning's exponent, so that results are the same
        best = min(self.losses, default=smoothed)
        self.losses.append(smoothed)
        # For a positive best this is smoothed > threshold * best.
        limit = self.early_stop_threshold
        if limit is not None and smoothed - best > (limit - 1) * abs(best):
            trainer.stop(f"lr_find: the loss is {smoothed:g} at a learning rate of {self.lrs[-1]:g}")

    def _lr(self, step: int) -> float:
        share = (step + 1) / self.num_training if step else 0.0
        if self.mode == "linear":
            return self.min_lr + share * (self.max_lr - self.min_lr)
        return self.min_lr * (self.max_lr / self.min_lr) ** share
