"""What the processes of the fault suite do: one of five trainings in a folder, continued where the last one ended.

Each is small (about half a second), deterministic, and saves every few steps. Something may be made to happen to it: at
the nth line of our code that is executed (`AtLine`), or at the nth call of a hook (`AtHook`).
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.utils.tensorboard  # imported once, before the processes are forked
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError

import framework
from framework import Callback, Module, Trainer
from framework.callback import HOOKS
from framework.callbacks import EarlyStopping, ModelCheckpoint, PenaltyPath
from framework.callbacks.penalty_path import Stage
from framework.data import TensorLoader
from framework.loggers import CSVLogger, TensorBoardLogger
from framework.optim import ProxAdam, SpaRSA
from tests.modules import Penalized, Regressor, add_noise, callback_of, make_loader, make_net, regression_data, seed_all

SOURCE = Path(framework.__file__).parent
# The files that write: the kills "inside the write" are there.
WRITERS = ("loop/checkpoint.py", "loggers.py")

# Messages that a run after a fault may show; any other warning is an error.
EXPECTED = (
    ".*there is no checkpoint.*training starts from the beginning",
    ".*the logs of another run",
    "passed over",
    ".*cannot write",
    ".*No space left",
    ".*File too large",
    ".*Permission denied",
)


# ---------------------------------------------------------------------------------------------------------- trainings


def _one_cycle(module: Any) -> Any:
    optimizer = Adam(module.param_groups(), lr=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=module.trainer.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _lbfgs(module: Any) -> Any:
    return LBFGS(module.parameters(), max_iter=4, history_size=3, line_search_fn="strong_wolfe")


def _sparsa(module: Any) -> Any:
    return SpaRSA(module.param_groups(), max_iter=3)


def _plateau(module: Any) -> Any:
    optimizer = SGD(module.param_groups(), lr=0.01)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.2, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


class Measured(Regressor):
    """A module that logs a torchmetrics metric and a mean of its own over each epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.error = MeanAbsoluteError().to(torch.float64)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        X, y = batch
        output = self.net(X)
        self.error.update(output, y)
        self.log("train/error", self.error, on_step=False, on_epoch=True)
        loss = nn.functional.mse_loss(output, y)
        self.log("train/root", loss.sqrt(), on_step=True, on_epoch=True)
        return loss


@dataclass(frozen=True)
class Training:
    """One of the trainings.

    Attributes:
        module: Makes the module.
        loader: Makes the training data.
        options: Of the trainer.
        callbacks: Makes the callbacks besides the `ModelCheckpoint`.
        dtype: Of the data and the module.
    """

    module: Callable[[], Module]
    loader: Callable[[], Any]
    options: dict[str, Any]
    callbacks: Callable[[], list[Callback]] = list
    dtype: torch.dtype = torch.float64


def _noisy() -> nn.Module:
    return make_net(nn.BatchNorm1d(5), nn.Dropout(0.3))


TRAININGS = {
    "adam": Training(
        module=lambda: Regressor(_one_cycle, dtype=torch.float32),
        loader=lambda: make_loader(4, shuffle=True, num_samples=44, dtype=torch.float32),
        options={"max_epochs": 6},
        dtype=torch.float32,
    ),
    "lbfgs": Training(
        module=lambda: Regressor(_lbfgs),
        loader=lambda: make_loader(4, shuffle=True, seed=3, num_samples=60),
        options={"max_epochs": 8, "accumulate_grad_batches": 2},
    ),
    "sparsa": Training(
        module=lambda: Penalized(_sparsa),
        loader=lambda: make_loader(8, shuffle=True, num_samples=40),
        options={"max_epochs": 16},
        callbacks=lambda: [
            PenaltyPath(
                lambda groups: ProxAdam(groups, lr=0.02),
                stages=[Stage(0.0), Stage(0.5)],
                window=2,
                max_epochs=5,
                final_window=100,
            )
        ],
    ),
    "workers": Training(
        module=lambda: Regressor(_one_cycle, net=_noisy(), dtype=torch.float32),
        loader=lambda: DataLoader(
            TensorDataset(*regression_data(44, torch.float32)),
            batch_size=4,
            shuffle=True,
            num_workers=2,
            generator=torch.Generator().manual_seed(3),
        ),
        options={"max_epochs": 4},
        dtype=torch.float32,
    ),
    "plateau": Training(
        module=lambda: Measured(_plateau, net=_noisy()),
        loader=lambda: TensorLoader(*regression_data(44), batch_size=4, shuffle=True, transform=add_noise, seed=3),
        options={"max_epochs": 20},
        callbacks=lambda: [EarlyStopping("val/loss", patience=4)],
    ),
}


# ------------------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class AtLine:
    """An action before the nth line that is executed of our package, or of some of its files, during `fit`.

    Attributes:
        number: Which one, from 1.
        action: What happens.
        files: Paths within the package; all of it by default.
    """

    number: int
    action: Callable[[], None]
    files: Sequence[str] = ("",)


@dataclass(frozen=True)
class AtHook:
    """An error in the nth call of a hook, of a callback or of the module.

    Attributes:
        hook: Its name.
        call: Which call, from 1.
        in_module: Whether the module raises it.
    """

    hook: str
    call: int
    in_module: bool = False


Fault = AtLine | AtHook


class HookError(Exception):
    """The error that `AtHook` raises."""


def kill() -> None:
    """End this process at once, as a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    """Ask this process to end, as a cluster does."""
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    """Ask this process to end, as Ctrl-C does."""
    os.kill(os.getpid(), signal.SIGINT)


@dataclass(frozen=True)
class FillDisk:
    """Let no file of this process grow beyond a size, as on a full disk."""

    size: int

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def make_read_only() -> None:
    """Let nothing be written to the folders of the run any more."""
    _give_up_privileges()
    for folder in (Path(), *Path().rglob("*")):
        if folder.is_dir():
            folder.chmod(0o555)


def _give_up_privileges() -> None:
    """Let permissions hold for root, too: drop all capabilities of this process (`man 2 capset`)."""
    version_3, header, none = 0x20080522, ctypes.c_uint32 * 2, (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None).capset(header(version_3, 0), none) != 0:
        raise OSError("capset failed")


def _strike_at_lines(faults: Sequence[AtLine], counts: Counter[str]) -> None:
    """Count the executed lines of our files in ``counts``, and act at those of the faults."""

    def on_event(frame: FrameType, event: str, argument: Any) -> Any:
        if event != "line":
            return on_event
        file = frame.f_code.co_filename[len(prefix) :]
        counts[file] += 1
        for number, fault in enumerate(faults):
            if file.startswith(tuple(fault.files)):
                seen[number] += 1
                if seen[number] == fault.number:
                    fault.action()
        return on_event

    prefix = f"{SOURCE}{os.sep}"
    seen = [0] * len(faults)
    sys.settrace(lambda frame, event, argument: on_event if frame.f_code.co_filename.startswith(prefix) else None)


def _strike_at_hook(fault: AtHook, trainer: Trainer, module: Module) -> None:
    """Put the error into the module, or into a callback before the others."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fault.call:
            raise HookError(f"in call {fault.call} of {fault.hook}")

    if fault.in_module:
        setattr(module, fault.hook, count)
    else:
        trainer.callbacks.insert(0, callback_of(**{fault.hook: count}))


def _count_hooks(counts: Counter[str]) -> Callback:
    """Make a callback that counts the calls of each hook."""
    return callback_of(**{name: lambda *_, name=name: counts.update([name]) for name in HOOKS})


# ------------------------------------------------------------------------------------------------------------ running


def train(name: str, folder: Path, faults: Sequence[Fault] = (), counts_path: Path | None = None) -> None:
    """Run or continue a training in a folder, in a process of its own, and exit as a script would.

    Args:
        name: Which training.
        folder: Where everything goes; what is printed goes to the file of the same name with the ending ``.err``.
        faults: What happens to it.
        counts_path: Where to write how many lines of each file, and each hook, the run executed.
    """
    try:
        _train(name, folder, faults, counts_path)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        # Before the traceback, for which there may be no room on a full disk.
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise


def _train(name: str, folder: Path, faults: Sequence[Fault], counts_path: Path | None) -> None:
    errors = os.open(folder.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    os.chdir(folder)
    multiprocessing.set_start_method("fork", force=True)  # that of the workers of a DataLoader
    warnings.simplefilter("error")
    for message in EXPECTED:
        warnings.filterwarnings("default", message)
    torch.set_num_threads(1)
    training = TRAININGS[name]
    # What continues has other random numbers and weights, until they are restored.
    seed_all(1 if list(Path().rglob("*.ckpt")) else 0)
    module = training.module()
    checkpoint = ModelCheckpoint(
        "checkpoints", monitor="val/loss", every_n_train_steps=7, train_time_interval=timedelta(milliseconds=100)
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=".",
        logger=[CSVLogger(".", name="", version=""), TensorBoardLogger(".", name="tensorboard", version="")],
        callbacks=[*training.callbacks(), checkpoint],
        log_every_n_steps=3,
        enable_progress_bar=False,
        enable_model_summary=False,
        **training.options,
    )
    lines, hooks = Counter[str](), Counter[str]()
    for fault in faults:
        if isinstance(fault, AtHook):
            _strike_at_hook(fault, trainer, module)
    if counts_path is not None:
        trainer.callbacks.insert(0, _count_hooks(hooks))
    at_lines = [fault for fault in faults if isinstance(fault, AtLine)]
    validation = make_loader(num_samples=16, dtype=training.dtype)
    try:
        if at_lines or counts_path is not None:
            _strike_at_lines(at_lines, lines)
        trainer.fit(module, training.loader(), validation, ckpt_path="last")
    finally:
        sys.settrace(None)
        sys.stderr.flush()
    if counts_path is not None:
        counts_path.write_text(json.dumps({"lines": lines, "hooks": hooks}))
    if trainer.interrupted:
        sys.exit(128 + signal.SIGINT)
