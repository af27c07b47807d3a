"""Random settings: each is refused before the first step, or trains exactly like a loop written by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from lightning.fabric.loggers import Logger
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import LBFGS, SGD, Adam, RMSprop
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR

from framework.data import TensorLoader
from framework.optim import ISTA
from tests.modules import Penalized, Regressor, make_loader, make_net, make_trainer, regression_data

TOLERANCE = 1e-9
WEIGHT = Penalized.happy_lambda

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda groups: SGD(groups, lr=0.05, momentum=0.9),
    "adam": lambda groups: Adam(groups, lr=0.01),
    "rmsprop": lambda groups: RMSprop(groups, lr=0.01),
    "lbfgs": lambda groups: LBFGS(groups, lr=0.5, max_iter=3, line_search_fn="strong_wolfe"),
    "ista": lambda groups: ISTA(groups, WEIGHT, lr=0.05),
}
EVALUATES_AGAIN = ("lbfgs", "ista")

LOADERS: dict[str, Callable[[int], Any]] = {
    "in order": lambda size: make_loader(size),
    "shuffled": lambda size: make_loader(size, shuffle=True, seed=3),
    "tensors": lambda size: TensorLoader(*regression_data(), batch_size=size, shuffle=True, seed=5),
    "no short batch": lambda size: TensorLoader(*regression_data(), batch_size=size, drop_last=True),
    "a list": lambda size: list(make_loader(size)),
}

# The scheduler, how often it is stepped, and the metric that it watches.
SCHEDULERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "none": lambda optimizer: {},
    "step": lambda optimizer: {"scheduler": StepLR(optimizer, 1, gamma=0.5)},
    "every second epoch": lambda optimizer: {"scheduler": StepLR(optimizer, 1, gamma=0.3), "frequency": 2},
    "every third step": lambda optimizer: {
        "scheduler": ExponentialLR(optimizer, 0.9),
        "interval": "step",
        "frequency": 3,
    },
    "one cycle": lambda optimizer: {
        "scheduler": OneCycleLR(optimizer, 0.1, 200, cycle_momentum=False),
        "interval": "step",
    },
    "plateau of val/loss": lambda optimizer: {
        "scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.2, factor=0.5),
        "monitor": "val/loss",
    },
    "plateau of train/loss_epoch": lambda optimizer: {
        "scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.2, factor=0.5),
        "monitor": "train/loss_epoch",
    },
}

LIMITS = st.sampled_from([None, 1, 2, 100, -1, 0.05, 0.5, 1.0])
TRAINER = st.fixed_dictionaries(
    {"max_epochs": st.integers(0, 4)},
    optional={
        "max_steps": st.integers(-1, 9),
        "accumulate_grad_batches": st.sampled_from([1, 2, 3, 50, "epoch"]),
        "gradient_clip_val": st.sampled_from([None, 0.05, 1.0]),
        "gradient_clip_algorithm": st.sampled_from(["norm", "value"]),
        "limit_train_batches": LIMITS | st.just(0),
        "limit_val_batches": LIMITS | st.just(0),
        "overfit_batches": st.sampled_from([0, 1, 2, 0.05, 0.5, 1.0]),
        "check_val_every_n_epoch": st.integers(1, 3),
        "num_sanity_val_steps": st.integers(-1, 2),
        "log_every_n_steps": st.integers(1, 4),
        "inference_mode": st.booleans(),
    },
)
WRONG = st.sampled_from(
    [
        *[None] * 36,
        {"max_epochs": -2},
        {"max_steps": 1.5},
        {"accumulate_grad_batches": 0},
        {"accumulate_grad_batches": "all"},
        {"gradient_clip_val": -1.0},
        {"gradient_clip_algorithm": "length"},
        {"limit_train_batches": 1.5},
        {"limit_val_batches": True},
        {"overfit_batches": -1},
        {"check_val_every_n_epoch": 0},
        {"num_sanity_val_steps": -2},
        {"log_every_n_steps": 0},
    ]
)


class Recorder(Logger):
    """A logger that keeps what it is sent, as (name, step): value."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], float] = {}
        self.count = Counter[tuple[str, int]]()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.values[name, step] = value
            self.count[name, step] += 1

    def log_hyperparams(self, params: Any) -> None:
        raise AssertionError("nobody logs hyperparameters here")


class ByHand:
    """The loop that a user of plain torch would write.

    Attributes:
        net: The network, trained once `run` has returned.
        steps, epochs, evaluations: How many there were.
        logged: By name and step.
        waited_in_vain: Whether the scheduler watched a metric that could not be logged.
    """

    def __init__(self, optimizer: str, scheduler: str, loader: Any, penalized: bool, options: dict[str, Any]) -> None:
        self.net = make_net().double()
        weights = [p for p in self.net.parameters() if p.ndim == 2]
        biases = [p for p in self.net.parameters() if p.ndim == 1]
        self.groups = {"weights": weights, "biases": biases} if penalized else {"0": [*self.net.parameters()]}
        groups = [{"params": params, "penalized": name == "weights"} for name, params in self.groups.items()]
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters() if optimizer == "lbfgs" else groups)
        self.adds_penalty = penalized and optimizer != "ista"
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.loader, self.options = loader, options
        self.steps = self.epochs = self.evaluations = 0
        self.logged: dict[tuple[str, int], float] = {}
        self.waited_in_vain = False

    def run(self) -> None:
        options = self.options
        max_steps, size = options.get("max_steps", -1), options.get("accumulate_grad_batches", 1)
        held = options.get("overfit_batches", 0)
        train_limit = held or options.get("limit_train_batches")
        val = first_batches(make_loader(7), held or options.get("limit_val_batches"), epoch=0)
        data = None
        while self.epochs < options["max_epochs"] and self.steps != max_steps:
            if data is None or not held:
                data = first_batches(self.loader, train_limit, self.epochs)
            losses, num_samples = [], []
            groups = [data] if size == "epoch" else [data[i : i + size] for i in range(0, len(data), size)]
            for group in groups:
                losses.append(self.step(group))
                num_samples.append(sum(len(y) for _, y in group))
                if self.steps == max_steps:
                    break
            news = {"train/loss_epoch": weighted_mean(losses, num_samples)}
            epoch = self.epochs + 1
            if val and epoch % options.get("check_val_every_n_epoch", 1) == 0:
                with torch.no_grad():
                    news["val/loss"] = float(self.loss(val))
            self.logged |= {(name, self.steps): value for name, value in news.items()}
            if len(losses) == len(groups):
                self.epochs = epoch
                self.step_scheduler("epoch", epoch, news)
                self.waited_in_vain |= not val and self.scheduler.get("monitor") == "val/loss"

    def step(self, group: list[Any]) -> float:
        """Take one step on the mean over a group of batches; return f before it."""
        options, first = self.options, []
        rates = [group["lr"] for group in self.optimizer.param_groups]

        def closure() -> Tensor:
            self.evaluations += 1
            self.optimizer.zero_grad()
            loss = self.loss(group)
            first.append(loss.item())
            objective = loss
            if self.adds_penalty:
                objective = loss + WEIGHT * sum(p.abs().sum() for p in self.groups["weights"])
            objective.backward()
            if clip := options.get("gradient_clip_val"):
                by_value = options.get("gradient_clip_algorithm") == "value"
                (clip_grad_value_ if by_value else clip_grad_norm_)(self.net.parameters(), clip)
            return objective

        self.optimizer.step(closure)
        if self.steps % options.get("log_every_n_steps", 50) == 0:
            self.logged["train/loss", self.steps] = first[0]
            names = list(self.groups) if len(rates) == len(self.groups) else ["0"]
            self.logged |= {(f"lr/{name}", self.steps): rate for name, rate in zip(names, rates, strict=True)}
        self.steps += 1
        self.step_scheduler("step", self.steps, {})
        return first[0]

    def loss(self, group: list[Any]) -> Tensor:
        """Compute the mean over all samples of a group of batches."""
        squares = [nn.functional.mse_loss(self.net(X), y) * len(y) for X, y in group]
        return sum(squares) / sum(len(y) for _, y in group)

    def step_scheduler(self, interval: str, count: int, news: dict[str, float]) -> None:
        """Step the scheduler if it is due, and if what it watches has a new value."""
        config = self.scheduler
        if not config or config.get("interval", "epoch") != interval or count % config.get("frequency", 1):
            return
        if "monitor" not in config:
            config["scheduler"].step()
        elif config["monitor"] in news:
            config["scheduler"].step(news[config["monitor"]])


def first_batches(loader: Any, limit: float | None, epoch: int) -> list[Any]:
    """Read the batches of an epoch, as many as a limit says; all of them are read to the end of the loader."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    count = num_batches(loader, limit)
    return list(loader) if count == len(loader) else list(itertools.islice(loader, count))


def num_batches(loader: Any, limit: float | None) -> int:
    """Compute how many batches a limit leaves."""
    if limit is None or limit == -1:
        return len(loader)
    return int(len(loader) * limit) if isinstance(limit, float) else min(limit, len(loader))


def weighted_mean(values: list[float], weights: list[float]) -> float:
    """Compute the mean of values with weights."""
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def conflicts(optimizer: str, loader: Any, options: dict[str, Any]) -> Iterator[str]:
    """Yield why settings, each of them allowed, are refused together."""
    held = options.get("overfit_batches", 0)
    train = num_batches(loader, held or options.get("limit_train_batches"))
    val_limit = held or options.get("limit_val_batches")
    val = num_batches(make_loader(7), val_limit)
    if train == 0:
        yield "nothing to train on"
    if val == 0 and val_limit != 0:
        yield "less than a batch to validate on"
    if options.get("gradient_clip_val") and optimizer in EVALUATES_AGAIN:
        yield "clipping where the objective is evaluated again"


def make_module(optimizer: str, scheduler: str, penalized: bool) -> Regressor:
    def optimize(module: Any) -> Any:
        made = OPTIMIZERS[optimizer](module.parameters() if optimizer == "lbfgs" else module.param_groups())
        config = SCHEDULERS[scheduler](made)
        return {"optimizer": made, "lr_scheduler": config} if config else made

    return (Penalized if penalized else Regressor)(optimize)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@settings(
    max_examples=400,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    scheduler=st.sampled_from(list(SCHEDULERS)),
    loader=st.sampled_from(list(LOADERS)),
    batch_size=st.sampled_from([3, 8, 20]),
    penalized=st.booleans(),
    options=TRAINER,
    wrong=WRONG,
)
def test_random_settings_are_refused_or_train_like_a_loop_by_hand(
    root, optimizer, scheduler, loader, batch_size, penalized, options, wrong
):
    reasons = list(conflicts(optimizer, LOADERS[loader](batch_size), options))
    module, recorder = make_module(optimizer, scheduler, penalized), Recorder()

    def fit() -> Any:
        trainer = make_trainer(root, logger=recorder, **(options | (wrong or {})))
        trainer.fit(module, LOADERS[loader](batch_size), make_loader(7))
        return trainer

    if wrong or reasons:
        event("refused")
        with pytest.raises((ValueError, TypeError)):
            fit()
        assert module.losses == []
        return
    by_hand = ByHand(optimizer, scheduler, LOADERS[loader](batch_size), penalized, options)
    by_hand.run()
    if by_hand.waited_in_vain:
        event("refused after an epoch")
        with pytest.raises(ValueError, match="which was never logged"):
            fit()
        return
    event("trained")
    trainer = fit()
    assert (trainer.global_step, trainer.current_epoch) == (by_hand.steps, by_hand.epochs)
    if optimizer != "ista":  # it may ask for the value alone where the closure by hand computes gradients
        assert trainer.closure_evaluations == by_hand.evaluations
    for ours, theirs in zip(module.net.parameters(), by_hand.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    names = {"train/loss", "train/loss_epoch", "val/loss"}
    ours = {key: value for key, value in recorder.values.items() if key[0] in names or key[0].startswith("lr/")}
    assert ours == pytest.approx(by_hand.logged, rel=TOLERANCE, abs=TOLERANCE)
    assert set(recorder.count.values()) <= {1}
