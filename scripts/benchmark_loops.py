"""The contenders of the benchmark: each trains a task once and reports how long its steps took.

The clock runs from the first step to the end of the last epoch and includes everything in between: reading and cutting
the batches, logging, the progress bar, checkpoints, and, for proxtrain, also the checkpoint at the end of the run. For
all contenders it leaves out what comes before and after: building the network, the optimizer and the trainer, opening
and closing the loggers. For the trainers, the clock starts and stops in the module's own hooks ``on_train_start`` and
``on_fit_end``, the latter after everything that callbacks do at the end. How long the rest took is reported separately.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import framework
from scripts.benchmark_tasks import SEED, Task

# One gather takes this many bytes of a data set, then splits them into batches: about the fastest of 0.25 to 8 MB.
CHUNK_BYTES = 2**20


@dataclass
class Timing:
    """One timed training.

    Attributes:
        seconds: How long the steps took.
        steps: The number of optimizer steps.
        outside: Seconds before the first step and after the last epoch.
        loss: The loss of the trained network on the first 1000 samples.
        net: The trained network.
    """

    seconds: float
    steps: int
    outside: float
    loss: float
    net: nn.Module


class Clock:
    """Hooks that both trainers call on a module: before the first epoch, and after everything that follows the last."""

    started = ended = 0.0

    def on_train_start(self) -> None:
        self.started = time.perf_counter()

    def on_fit_end(self) -> None:
        self.ended = time.perf_counter()


class ProxtrainModule(Clock, framework.Module):
    """A task as proxtrain's users would write it; the trainer logs the loss by itself."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.net, self.loss, self.lr = task.make_net(), task.loss, task.lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return self.loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.param_groups(), lr=self.lr, fused=True)


class LightningModule(Clock, pl.LightningModule):
    """A task as Lightning's users would write it; ``quiet`` leaves out `self.log`."""

    def __init__(self, task: Task, *, quiet: bool) -> None:
        super().__init__()
        self.net, self.loss, self.lr, self.quiet = task.make_net(), task.loss, task.lr, quiet

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = self.loss(self.net(x), y)
        if not self.quiet:
            self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def proxtrain(task: Task, epochs: int, folder: Path) -> Timing:
    """Run our trainer with its defaults (TensorBoard, progress bar, checkpoint), a `TensorLoader` and fused Adam."""
    begin = fresh_start()
    module = ProxtrainModule(task)
    trainer = framework.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder)
    trainer.fit(module, task.loader())
    return _timing(task, module.net, trainer.global_step, begin, module.started, module.ended)


class CompiledModule(ProxtrainModule):
    """The same, whose clock starts with the second epoch: the step was compiled in the first."""

    def on_train_start(self) -> None: ...

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.started = time.perf_counter()


def proxtrain_compiled(task: Task, epochs: int, folder: Path) -> Timing:
    """Run our trainer with ``compile="step"``, else as above; only the steps after the first epoch are timed.

    A single epoch is cut in two: in further ones, numbers that decay too far below 1e-38 slow down every processor.
    """
    begin = fresh_start()
    module, batches = CompiledModule(task), task.steps_per_epoch()
    if epochs == 1:
        epochs, batches = 2, batches // 2
    trainer = framework.Trainer(
        accelerator="cpu", max_epochs=epochs, limit_train_batches=batches, default_root_dir=folder, compile="step"
    )
    trainer.fit(module, task.loader())
    return _timing(task, module.net, (epochs - 1) * batches, begin, module.started, module.ended)


def tight_loop(task: Task, epochs: int, folder: Path) -> Timing:
    """Run the fastest hand-written loop: batches in memory, fused Adam, no logs; drawing the orders is not timed."""
    begin = fresh_start()
    net, loss_fn = task.make_net(), task.loss
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params, lr=task.lr, fused=True)
    orders = task.orders(epochs)

    started = time.perf_counter()
    for order in orders:
        for x, y in _cut(task, order):
            # Faster than optimizer.zero_grad(set_to_none=True), which does the same.
            for param in params:
                param.grad = None
            loss = loss_fn(net(x), y)
            loss.backward()
            optimizer.step()
    return _timing(task, net, epochs * task.steps_per_epoch(), begin, started, time.perf_counter())


def _cut(task: Task, order: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Yield the batches of one epoch: one `index_select` for many of them, split, then transformed one by one."""
    x, y, size, transform = task.x, task.y, task.batch_size, task.transform
    if transform is None:
        yield from zip(x[order].split(size), y[order].split(size), strict=True)
        return
    chunk = size * max(1, CHUNK_BYTES // (x[:size].nbytes + y[:size].nbytes))
    for rows in order.split(chunk):
        pairs = zip(x.index_select(0, rows).split(size), y.index_select(0, rows).split(size), strict=True)
        for images, labels in pairs:
            yield transform(images, labels)


def tutorial_loop(task: Task, epochs: int, folder: Path) -> Timing:
    """Run the loop of PyTorch's tutorials: a `DataLoader`, default Adam, a running loss shown every 100 batches."""
    begin = fresh_start()
    net, loss_fn = task.make_net(), task.loss
    optimizer = torch.optim.Adam(net.parameters(), lr=task.lr)
    loader = DataLoader(task.dataset, batch_size=task.batch_size, shuffle=True)

    started = time.perf_counter()
    for epoch in range(epochs):
        running_loss = 0.0
        for i, (x, y) in enumerate(loader):
            optimizer.zero_grad()
            loss = loss_fn(net(x), y)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 100 == 99:
                print(f"[{epoch + 1}, {i + 1:5d}] loss: {running_loss / 100:.3f}")
                running_loss = 0.0
    return _timing(task, net, epochs * task.steps_per_epoch(), begin, started, time.perf_counter())


def proxtrain_as_for_lightning(task: Task, epochs: int, folder: Path) -> Timing:
    """Run our trainer with its defaults on what `lightning_defaults` runs: the same module, `DataLoader` and Adam."""
    begin = fresh_start()
    module: Any = LightningModule(task, quiet=False)
    trainer = framework.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder)
    trainer.fit(module, DataLoader(task.dataset, batch_size=task.batch_size, shuffle=True))
    return _timing(task, module.net, trainer.global_step, begin, module.started, module.ended)


def lightning_defaults(task: Task, epochs: int, folder: Path) -> Timing:
    """Run Lightning's trainer with its defaults, `self.log` in every step, the tutorials' `DataLoader` and Adam."""
    begin = fresh_start()
    module = LightningModule(task, quiet=False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder)
    trainer.fit(module, DataLoader(task.dataset, batch_size=task.batch_size, shuffle=True))
    return _timing(task, module.net, trainer.global_step, begin, module.started, module.ended)


def lightning_off(task: Task, epochs: int, folder: Path) -> Timing:
    """Run Lightning's trainer with everything off and no `self.log`; the same `DataLoader` and Adam as above."""
    begin = fresh_start()
    module = LightningModule(task, quiet=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(task.dataset, batch_size=task.batch_size, shuffle=True))
    return _timing(task, module.net, trainer.global_step, begin, module.started, module.ended)


CONTENDERS: dict[str, Callable[[Task, int, Path], Timing]] = {
    "proxtrain": proxtrain,
    "proxtrain, compile='step'": proxtrain_compiled,
    "tight loop": tight_loop,
    "tutorial loop": tutorial_loop,
    "proxtrain, LightningModule": proxtrain_as_for_lightning,
    "Lightning, defaults": lightning_defaults,
    "Lightning, everything off": lightning_off,
}
SLOW = {"Lightning, defaults", "Lightning, everything off"}


def check_same_work(ours: Timing, theirs: Timing) -> None:
    """Check that two trainings reached the same weights and the same loss.

    Raises:
        RuntimeError: If they did not.
    """
    try:
        torch.testing.assert_close(torch.tensor(ours.loss), torch.tensor(theirs.loss))
        torch.testing.assert_close(ours.net.state_dict(), theirs.net.state_dict())
    except AssertionError as error:
        raise RuntimeError(
            f"proxtrain and the tight loop did different work, so do not compare them: {error}"
        ) from error


def fresh_start() -> float:
    """Set the seed, collect the previous contender's garbage, and return the time."""
    torch.manual_seed(SEED)
    gc.collect()
    return time.perf_counter()


@torch.no_grad()
def _timing(task: Task, net: nn.Module, steps: int, begin: float, started: float, ended: float) -> Timing:
    outside = time.perf_counter() - begin - (ended - started)
    x, y = task.x[:1000], task.y[:1000]
    if task.transform is not None:
        x, y = task.transform(x, y)
    loss = task.loss(net.eval()(x), y).item()
    return Timing(seconds=ended - started, steps=steps, outside=outside, loss=loss, net=net)
