"""What two processes do with data, logs and random numbers that are not alike.

Run as ``python -m tests.processes.uneven FOLDER``.
Each case returns what both processes must agree on, or what each has seen.
"""

import json
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler, SequentialSampler, TensorDataset
from torchmetrics import MeanSquaredError

from framework import Trainer
from framework.callbacks import EarlyStopping
from framework.data import TensorLoader
from framework.optim import ISTA, MinimizeWrapper
from framework.penalties import L1
from tests.modules import Regressor, callback_of
from tests.processes.special import trainer

X = torch.arange(12.0, dtype=torch.float64)[:, None] / 10
DATA = TensorDataset(X, X)


class Seeing(Regressor):
    """A line that notes the samples it has seen."""

    def __init__(self, optimize: Callable[[Any], Any] | None = None) -> None:
        super().__init__(optimize or (lambda m: SGD(m.param_groups(), lr=0.1)), nn.Linear(1, 1).double())
        self.error = MeanSquaredError()
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen += (x * 10).round().long().flatten().tolist()
        return (self.net(x) - y - 1).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.error.update(self.net(x).float(), y.float())
        self.log("val/error", self.error)


def train(folder: Path, module: Any, loader: Any, *callbacks: Any, val: Any = None, **options: Any) -> Trainer:
    one = trainer(folder, *callbacks, **{"max_epochs": 1, "enable_checkpointing": False, **options})
    one.fit(module, loader, val)
    return one


def batches(size: int = 2) -> TensorLoader:
    return TensorLoader(X, X, batch_size=size)


# ---------------------------------------------------------------------------------------------------------- metrics


def metric_of_one_batch(folder: Path) -> Any:
    one = train(folder, Seeing(), batches(), val=batches(12))
    return round(one.callback_metrics["val/error"], 6)


def metric_logged_at_the_end(folder: Path) -> Any:
    class Late(Seeing):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            self.error.update(self.net(x).float(), y.float())

        def on_validation_epoch_end(self) -> None:
            self.log("val/error", self.error)

    return round(train(folder, Late(), batches(), val=batches(4)).callback_metrics["val/error"], 6)


def metric_in_a_checkpoint(folder: Path) -> Any:
    class Measured(Seeing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.error.update(self.net(batch[0]).detach().float(), batch[1].float())
            return super().training_step(batch, batch_idx)

    return train(folder, Measured(), batches(12), enable_checkpointing=True).global_step


def sum_at_the_end(folder: Path) -> Any:
    class Counting(Seeing):
        count = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.count += 1

        def on_validation_epoch_end(self) -> None:
            self.log("ranks", 1.0, reduce_fx="sum")

    return train(folder, Counting(), batches(), val=batches(4)).callback_metrics["ranks"]


def monitor_of_one_process(folder: Path) -> Any:
    class Partly(Seeing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if torch.distributed.get_rank() == 1:
                self.log("only/here", 1.0, on_step=True)
            return super().training_step(batch, batch_idx)

    stopping = EarlyStopping("only/here", patience=2)
    return train(folder, Partly(), batches(), stopping, max_epochs=10).current_epoch


class Lines(Logger):
    """A user's logger, which knows nothing of processes."""

    name, version = "lines", 0

    def __init__(self) -> None:
        self.lines = 0

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.lines += 1

    def log_hyperparams(self, params: Any) -> None: ...


def loggers_of_users(folder: Path) -> Any:
    logger = Lines()
    train(folder, Seeing(), batches(), logger=logger, log_every_n_steps=1)
    return logger.lines


# ------------------------------------------------------------------------------------------------------------- data


class Shuffled(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return ((X[index], X[index]) for index in torch.randperm(12))


class Endless(Sampler):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from torch.randperm(12).tolist()

    def __len__(self) -> int:
        return 10**9


class Shuffling(BatchSampler):
    def __iter__(self) -> Iterator[Any]:
        drawn = list(super().__iter__())
        random.shuffle(drawn)
        return iter(drawn)


class Miscounting(BatchSampler):
    def __len__(self) -> int:
        return 5


class Shifting(DataLoader):
    def __iter__(self) -> Iterator[Any]:
        return ((x + 10, y) for x, y in super().__iter__())


def seen(loader: Callable[[], Any], *callbacks: Any, **options: Any) -> Callable[[Path], Any]:
    def case(folder: Path) -> Any:
        torch.manual_seed(torch.distributed.get_rank())
        module = Seeing()
        train(folder, module, loader(), *callbacks, **options)
        return module.seen

    return case


def keep_seen(one: Trainer, module: Any, *_: Any) -> None:
    before = list(module.seen)
    one.stationarity_gap()
    module.seen = before


# ----------------------------------------------------------------------------------------------------- random numbers


def weight_of_the_penalty(folder: Path) -> Any:
    torch.manual_seed(torch.distributed.get_rank())
    module = Seeing(lambda m: ISTA(m.param_groups()))
    module.penalty, module.happy_lambda = L1(), float(torch.rand(()))
    module.param_groups = lambda: [{"params": list(module.net.parameters()), "penalized": True}]  # type: ignore[method-assign]
    train(folder, module, batches(), max_epochs=3)
    return [round(p.item(), 9) for p in module.parameters()]


def global_minimization(folder: Path) -> Any:
    search = {"method": "differential_evolution", "bounds": (-3, 3), "options": {"maxiter": 3}}
    module = Seeing(lambda m: MinimizeWrapper(m.parameters(), search))
    train(folder, module, batches(), accumulate_grad_batches="epoch")
    return [round(p.item(), 9) for p in module.parameters()]


def noise_in_a_hook(folder: Path) -> Any:
    class Noisy(Seeing):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for p in self.parameters():
                p.grad += torch.randn_like(p)

    try:
        train(folder, Noisy(), batches())
    except RuntimeError as error:
        return str(error).split(":")[0]
    return "trained"


def buffers(folder: Path) -> Any:
    class Averaging(Seeing):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("average", torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.average += batch[0].mean()
            return super().training_step(batch, batch_idx)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(folder, Averaging(), batches())
    return [str(one.message).split(",")[0] for one in caught if "buffer" in str(one.message)]


def validation_alone(folder: Path) -> Any:
    torch.manual_seed(torch.distributed.get_rank())
    one = trainer(folder)
    return round(one.validate(Seeing(), batches())[0]["val/error"], 6)


def errors_of_all(folder: Path) -> Any:
    """Be refused twice, then train with the same trainer and with another."""
    one = trainer(folder, enable_checkpointing=False, max_epochs=1)
    said = []
    for module, loader in ((Seeing(), []), (Regressor(net=nn.Sequential(nn.BatchNorm1d(3))), batches())):
        try:
            one.fit(module, loader)
        except ValueError as error:
            said.append(str(error)[:30])
    one.fit(Seeing(), batches())
    return [len(said), one.global_step, train(folder, Seeing(), batches()).global_step]


def own_loader(rank: int) -> DataLoader:
    """Return the share of a process as its user cuts it: every second sample."""
    return DataLoader(TensorDataset(X[rank::2], X[rank::2]), batch_size=2, shuffle=True)


def own_loaders(folder: Path) -> Any:
    """Read loaders that hold the shares of the processes already."""
    module = Seeing()
    one = trainer(folder, enable_checkpointing=False, max_epochs=1, use_distributed_sampler=False)
    one.fit(module, own_loader(one.global_rank))
    return module.seen


def refused(folder: Path) -> Any:
    """Return what is said to what several processes cannot do, and train afterwards."""

    class Manual(Seeing):
        automatic_optimization = False

    class Skipping(Seeing):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    class Zeroing(Seeing):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None: ...

    own = trainer(folder, enable_checkpointing=False, max_epochs=1, use_distributed_sampler=False)
    uneven = TensorLoader(X[: 4 + 2 * own.global_rank], X[: 4 + 2 * own.global_rank], batch_size=2)
    one = trainer(folder, enable_checkpointing=False, max_epochs=1)
    said = []
    for trains, module, loader in (
        (own, Seeing(), uneven),
        *((one, m, batches()) for m in (Manual(), Skipping(), Zeroing())),
    ):
        try:
            trains.fit(module, loader)
        except ValueError as error:
            said.append(str(error))
    one.fit(Seeing(), batches())
    return [*said, one.global_step]


def skipping_the_rest(folder: Path) -> Any:
    """Skip the rest of an epoch because one process says so; go on to a minimum whoever asks for the end."""

    def skip(trainer: Any, module: Any, batch: Any, batch_idx: int) -> Any:
        return -1 if trainer.global_rank == 1 and trainer.current_epoch == 0 and batch_idx == 1 else None

    def stop(trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 0:
            trainer.should_stop = True

    one = train(folder, Seeing(), batches(), callback_of(on_train_batch_start=skip), max_epochs=2)
    least = train(folder, Seeing(), batches(), callback_of(on_train_batch_end=stop), max_epochs=4, min_steps=5)
    return [one.global_step, least.global_step, least.stopped_because]


def error_of_one(folder: Path) -> Any:
    """Fail in one process, and try again."""

    class Failing(Seeing):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if torch.distributed.get_rank() == 1:
                raise KeyError("only here")
            return super().training_step(batch, batch_idx)

    said = []
    one = trainer(folder, enable_checkpointing=False, max_epochs=1)
    for attempt in (
        lambda: one.fit(Failing(), batches()),
        lambda: one.fit(Seeing(), batches()),
        lambda: trainer(folder),
    ):
        try:
            attempt()
        except (RuntimeError, KeyError) as error:
            said.append(str(error).split(" after ")[0])
    return said


CASES: dict[str, Callable[[Path], Any]] = {
    "metric of one batch": metric_of_one_batch,
    "metric logged at the end": metric_logged_at_the_end,
    "metric in a checkpoint": metric_in_a_checkpoint,
    "sum at the end": sum_at_the_end,
    "monitor of one process": monitor_of_one_process,
    "loggers of users": loggers_of_users,
    "shuffled iterable": seen(lambda: DataLoader(Shuffled(), batch_size=2)),
    "endless sampler": seen(lambda: DataLoader(DATA, batch_size=2, sampler=Endless()), max_steps=3, max_epochs=-1),
    "shuffling batch sampler": seen(
        lambda: DataLoader(DATA, batch_sampler=Shuffling(SequentialSampler(DATA), 2, False))
    ),
    "miscounting batch sampler": seen(
        lambda: DataLoader(DATA, batch_sampler=Miscounting(SequentialSampler(DATA), 2, False))
    ),
    "loader with its own batches": seen(lambda: Shifting(DATA, batch_size=2)),
    "shuffled loader": seen(lambda: DataLoader(DATA, batch_size=2, shuffle=True)),
    "gap within an epoch": seen(
        lambda: DataLoader(DATA, batch_size=2, shuffle=True), callback_of(on_train_batch_end=keep_seen)
    ),
    "drop_last": seen(lambda: DataLoader(DATA, batch_size=4, drop_last=True)),
    "drop_last of tensors": seen(lambda: TensorLoader(X, X, batch_size=4, drop_last=True)),
    "weight of the penalty": weight_of_the_penalty,
    "global minimization": global_minimization,
    "noise in a hook": noise_in_a_hook,
    "buffers": buffers,
    "validation alone": validation_alone,
    "errors of all": errors_of_all,
    "own loaders": own_loaders,
    "refused": refused,
    "skipping the rest": skipping_the_rest,
    "error of one": error_of_one,
}


def main(folder: Path) -> None:
    """Write what each of the cases found."""
    warnings.simplefilter("error")
    found = {}
    trainer(folder)  # connects the processes
    for name, case in CASES.items():
        torch.manual_seed(0), random.seed(0)
        found[name] = case(folder)
    (folder / f"uneven-{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
