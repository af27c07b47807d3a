"""The same run under both trainers, and what of it can be observed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from framework import Trainer, callbacks
from framework.callback import HOOKS
from tests.modules import make_net, make_trainer, regression_data

# How the names end of what is logged in single steps.
OF_STEP = ("_step", "_now")
STEPS = ("training_step", "validation_step", "test_step", "predict_step")
# What a trainer calls besides hooks and steps.
CALLED = (
    "prepare_data",
    "configure_model",
    "configure_optimizers",
    "train_dataloader",
    "val_dataloader",
    "configure_gradient_clipping",
    "optimizer_step",
    "optimizer_zero_grad",
    "backward",
    "lr_scheduler_step",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


class Net(pl.LightningModule):
    """Least squares by gradient descent with momentum; it logs every loss. The cases are variations of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net().double()

    def forward(self, X):
        return self.net(X)

    def loss(self, batch):
        X, y = batch
        return nn.functional.mse_loss(self(X), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("fit_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(batch_size: int = 5, num_samples: int = 20, shuffle: bool = False, **options: Any) -> DataLoader:
    """Make batches that are drawn from a generator of their own: by default four of five samples.

    Validation moves the global random stream under Lightning, and not here.
    """
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(*regression_data(num_samples))
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, generator=generator, **options)


class Memory(Logger):
    """A logger that keeps what it is sent.

    Attributes:
        sent: Of each name, the steps and values.
        trainer: Lightning's. In its `fit`, the values of an epoch come with the index of the last step, here with the
            number of steps taken: unless ``raw``, it is made equal.
    """

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[str, list[tuple[int, float]]] = {}
        self.trainer: Any = None
        self.raw = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        is_less = not self.raw and self.trainer is not None and self.trainer.state.fn == "fit" and step is not None
        for name, value in metrics.items():
            of_step = name.partition("/dataloader_idx")[0].endswith(OF_STEP)
            x = step + 1 if is_less and not of_step else step
            self.sent.setdefault(name, []).append((x, float(value)))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.hyperparams = dict(params)


@dataclass
class Side:
    """One of the two trainers, with what a case gives it.

    Attributes:
        is_ours: Which of the two it is.
        root: A folder of its own.
        heard: The hooks that were called, with their plain arguments.
        noted: What the case wants to be compared besides.
    """

    case: Case
    is_ours: bool
    root: Path
    heard: list[Any] = field(default_factory=list)
    noted: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.logger = Memory()
        self.train, self.val = self.case.train(), self.case.val()

    @property
    def ready_made(self) -> Any:
        """Where ready-made callbacks are."""
        return callbacks if self.is_ours else pl.callbacks

    @cached_property
    def module(self) -> Any:
        return self.make_module()

    @cached_property
    def trainer(self) -> Any:
        return self.make_trainer()

    def make_module(self) -> Any:
        module = self.case.module()
        if self.case.hears:
            module.__class__ = _listening(type(module), self.case.hears, self.heard)
        module.side = self.note
        return module

    def note(self, value: Any) -> None:
        self.noted.append(value)

    def make_trainer(self, **options: Any) -> Any:
        """Make a silent trainer with the options of the case, and these."""
        listener: Any = _listening(pl.Callback, self.case.hears, self.heard)()
        given = options.pop("callbacks") if "callbacks" in options else self.case.callbacks(self)
        given = [*([listener] if self.case.hears else []), *given]
        saves = any(isinstance(one, self.ready_made.ModelCheckpoint) for one in given)
        defaults = {"callbacks": given, "logger": self.logger, "log_every_n_steps": 1, "enable_checkpointing": saves}
        kind = Trainer if self.is_ours else pl.Trainer
        trainer = make_trainer(self.root, kind, **{**defaults, **self.case.options, **options})
        self.logger.trainer = None if self.is_ours else trainer
        return trainer

    def checkpoint(self, *args: Any, **options: Any) -> Any:
        """Make a `ModelCheckpoint` in a folder of its own."""
        return self.ready_made.ModelCheckpoint(self.root / "saved", *args, **options)


@dataclass(kw_only=True)
class Case:
    """A run, and where it differs on purpose.

    Attributes:
        name: What it is about, after its area.
        module: Makes the module.
        train, val: Make the loaders.
        callbacks: Makes the callbacks.
        play: What is called; what it returns is compared.
        hears: The hooks and methods whose order and arguments are compared.
        options: Those of the trainer.
        warns: What ours warns of.
        differs: Why there is a difference; empty if there is none.
        here, there: What is observed in place of equality, by its name: a value, or a function that tells if it fits.
        fails: Why it is not yet equal, though it should be.
    """

    name: str
    module: Callable[[], pl.LightningModule]
    train: Callable[[], Any]
    val: Callable[[], Any]
    callbacks: Callable[[Side], Sequence[Any]]
    play: Callable[[Side], Any]
    hears: Sequence[str]
    options: Mapping[str, Any]
    warns: str
    differs: str
    here: Mapping[str, Any]
    there: Mapping[str, Any]
    fails: str


CASES: dict[str, Case] = {}


def fit(side: Side) -> None:
    """Train and validate."""
    side.trainer.fit(side.module, side.train, side.val)


def validate(side: Side) -> Any:
    """Validate only."""
    return side.trainer.validate(side.module, side.val, verbose=False)


def test(side: Side) -> Any:
    """Test only."""
    return side.trainer.test(side.module, side.val, verbose=False)


def predict(side: Side) -> Any:
    """Predict only."""
    return side.trainer.predict(side.module, side.val)


# A pytest option: this is no test.
test.__test__ = False  # type: ignore[attr-defined]


def case(
    name: str,
    module: Callable[[], pl.LightningModule] = Net,
    *,
    train: Callable[[], Any] = loader,
    val: Callable[[], Any] = lambda: loader(10),
    callbacks: Callable[[Side], Sequence[Any]] = lambda side: (),
    play: Callable[[Side], Any] = fit,
    hears: Sequence[str] = (),
    warns: str = "",
    differs: str = "",
    here: Mapping[str, Any] | None = None,
    there: Mapping[str, Any] | None = None,
    fails: str = "",
    **options: Any,
) -> None:
    """Add a case; what is not said is: two epochs of four steps, each with a validation, on `Net`."""
    assert name not in CASES, name
    assert bool(differs) == bool(here) == bool(there), name
    CASES[name] = Case(
        name=name,
        module=module,
        train=train,
        val=val,
        callbacks=callbacks,
        play=play,
        hears=hears,
        options=options,
        warns=warns,
        differs=differs,
        here=here or {},
        there=there or {},
        fails=fails,
    )


def observe(case: Case, root: Path, *, ours: bool) -> dict[str, Any]:
    """Run a case under one of the trainers; return what can be observed."""
    side = Side(case, ours, root)
    torch.manual_seed(5)
    returned, error = None, ""
    with quiet(ours=ours):
        try:
            returned = case.play(side)
        except Exception as raised:
            mine = type(raised).__module__.startswith("tests.")
            error = type(raised).__name__ if mine else "refused"
            if not mine:
                side.error = raised
    state = side.module.state_dict()
    seen: dict[str, Any] = {
        "error": error,
        "parameters": {name: value.tolist() for name, value in state.items()},
        "heard": side.heard,
        "noted": plain(side.noted),
    }
    if error:
        return seen | ({"message": str(side.error)} if error == "refused" else {})
    trainer = side.trainer
    return seen | {
        "returned": plain(returned),
        "global_step": trainer.global_step,
        "current_epoch": trainer.current_epoch,
        "metrics": plain({name: v for name, v in trainer.callback_metrics.items() if _is_users(name)}),
        "logged": plain({name: v for name, v in side.logger.sent.items() if _is_users(name)}),
        "rates": [
            group["lr"] for optimizer in _optimizers(trainer) for group in optimizer.param_groups if "lr" in group
        ],
        "files": sorted(str(path.relative_to(root)) for path in root.rglob("*.ckpt")),
    }


def _optimizers(trainer: Any) -> list[Optimizer]:
    return [] if isinstance(trainer, Trainer) and trainer._fit is None else trainer.optimizers


def _is_users(name: str) -> bool:
    return name not in _OWN and not name.startswith(("lr/", "train/"))


_OWN = {"epoch", "grad_norm", "closure_evaluations"}


@contextmanager
def quiet(*, ours: bool) -> Iterator[None]:
    """Ignore the warnings of Lightning's trainer."""
    with warnings.catch_warnings():
        if not ours:
            warnings.simplefilter("ignore")
        yield


def plain(value: Any) -> Any:
    """Return a value as numbers, strings, lists and dictionaries of them."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def same(left: Any, right: Any, tolerance: float = 1e-6) -> bool:
    """Tell whether two plain values are equal, their numbers up to a tolerance."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(lambda a, b: same(a, b, tolerance), left, right))
    if isinstance(left, float) or isinstance(right, float):
        if not isinstance(left, int | float) or not isinstance(right, int | float):
            return False
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    return bool(left == right)


# What follows from a difference, and is not compared where there is one.
FOLLOWS = {"rates": ("parameters", "metrics", "logged", "noted"), "parameters": ("metrics", "logged")}


def differences(case: Case, here: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what was observed and should not be so; where just one of them raised an error, that alone counts."""
    names = here.keys() if here["error"] == there["error"] else {"error"}
    names = names - {"message", *[f for name in case.here for f in FOLLOWS.get(name, ()) if f not in case.here]}
    wrong = {}
    for name in names:
        tolerance = 1e-12 if name == "parameters" else 1e-6
        if name in case.here:
            right = _is(here[name], case.here[name], tolerance) and _is(there[name], case.there[name], tolerance)
        else:
            right = same(here[name], there[name], tolerance)
        if not right:
            wrong[name] = here[name], there[name]
    return wrong


def _is(seen: Any, expected: Any, tolerance: float) -> bool:
    return bool(expected(seen)) if callable(expected) else same(seen, expected, tolerance)


# --------------------------------------------------------------------------------------------------------- listening


def _listening(cls: type, names: Sequence[str], heard: list[Any]) -> type:
    """Return a subclass that notes the calls of its methods."""
    listening = type(cls.__name__, (cls,), {"__module__": __name__})
    for name in names:
        if hasattr(cls, name):
            setattr(listening, name, _noting(listening, name, heard))
    return listening


def _noting(cls: type, name: str, heard: list[Any]) -> Callable[..., Any]:
    who, num_skipped = ("callback", 2) if issubclass(cls, pl.Callback) else ("module", 0)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append((f"{who}.{name}", *[_brief(arg) for arg in (*args[num_skipped:], *kwargs.values())]))
        return getattr(super(cls, self), name)(*args, **kwargs)

    return method


def _brief(arg: Any) -> Any:
    if isinstance(arg, Optimizer):
        return type(arg).__name__.removeprefix("Lightning")
    if arg is None or isinstance(arg, int | float | str):
        return getattr(arg, "value", arg)  # Lightning's stages are members of an enumeration
    if isinstance(arg, Mapping):
        return sorted(key for key in arg if key == "loss")
    if isinstance(arg, list | tuple):
        return [_brief(part) for part in arg]
    return type(arg).__name__


BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")
EVERY_HOOK = tuple(name for name in HOOKS if hasattr(pl.Callback, name))
# Without that of zero_grad, which is earlier here.
SAME_HOOKS = tuple(name for name in EVERY_HOOK if name != "on_before_zero_grad")
EVERYTHING = (*SAME_HOOKS, *STEPS)


def variant(base: type = Net, **members: Any) -> Any:
    """Return a subclass of `Net` with other members."""
    return type("Variant", (base,), {**members, "__module__": __name__})


REFUSED: dict[str, Any] = {"here": {"error": "refused"}, "there": {"error": ""}}
