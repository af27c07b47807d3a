"""Tiny modules, data and trainers that the tests share."""

import random
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from framework import Callback, Module, Trainer
from framework.penalties import L1

NUM_SAMPLES = 20
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


def make_trainer(root: Path, kind: Any = Trainer, **options: Any) -> Any:
    """Make a silent trainer on the CPU, ours or one of Lightning's ``kind``; ``options`` override everything."""
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": root,
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
    }
    return kind(**(defaults | options))


def regression_data(num_samples: int = NUM_SAMPLES, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Draw a noisy linear function of three features: X (N, 3) and y (N, 1)."""
    generator = torch.Generator().manual_seed(7)
    X = torch.randn(num_samples, 3, generator=generator, dtype=dtype)
    noise = torch.randn(num_samples, 1, generator=generator, dtype=dtype)
    return X, X @ torch.tensor([[1.0], [-2.0], [0.0]], dtype=dtype) + 0.1 * noise


def make_loader(batch_size: int = 8, *, shuffle: bool = False, seed: int | None = None, **data: Any) -> DataLoader:
    """Make batches of `regression_data`: by default 8, 8 and a short 4; ``seed`` gives it its own generator."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(
        TensorDataset(*regression_data(**data)), batch_size=batch_size, shuffle=shuffle, generator=generator
    )


class Stream:
    """A stream of the batches of `make_loader`, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(make_loader())


class NoisyDataset(TensorDataset):
    """A dataset that draws from all three global generators for every sample."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        X, y = super().__getitem__(index)
        return X + 0.1 * (torch.randn(()) + random.gauss(0, 1) + np.random.randn()), y


def add_noise(X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Transform a batch with draws from torch's global generator."""
    return X + 0.1 * torch.randn_like(X), y


def seed_all(number: int) -> None:
    """Seed all three global generators."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def make_net(*between: nn.Module) -> nn.Module:
    """Make a small network, the same at every call, with the given layers after its hidden one."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), *between, nn.Linear(5, 1))


class Regressor(Module):
    """Least squares with any network; ``optimize`` maps the module to what configure_optimizers returns.

    Attributes:
        losses: The loss of every evaluation of `training_step`.
    """

    def __init__(
        self,
        optimize: Callable[[Any], Any] = lambda module: SGD(module.param_groups(), lr=0.05),
        net: nn.Module | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.net = (make_net() if net is None else net).to(dtype)
        self.optimize = optimize
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def forward(self, X: Tensor) -> Tensor:
        return self.net(X)

    def loss(self, batch: Any) -> Tensor:
        X, y = batch
        return nn.functional.mse_loss(self.net(X), y)

    def configure_optimizers(self) -> Any:
        return self.optimize(self)


class Penalized(Regressor):
    """A module with an L1 penalty on the weights but not on the biases."""

    penalty = L1()
    happy_lambda = 0.3

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": [p for p in self.parameters() if p.ndim == 2], "penalized": True, "name": "weights"},
            {"params": [p for p in self.parameters() if p.ndim == 1], "penalized": False, "name": "biases"},
        ]


class Scripted(Regressor):
    """A module whose validation logs given scores, one per epoch."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__()
        self.scores = scores

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", self.scores[self.trainer.current_epoch])


def callback_of(*, after_module: bool = False, **hooks: Callable[..., Any]) -> Callback:
    """Make a callback from functions: ``callback_of(on_train_start=lambda trainer, module: ...)``."""
    methods = {name: staticmethod(hook) for name, hook in hooks.items()}
    return type("OfFunctions", (Callback,), {"after_module": after_module, **methods})()


def watch(hook: str, what: Callable[..., Any], *, after_module: bool = False) -> Any:
    """Make a callback that appends ``what`` of a hook's arguments to its list ``seen``."""
    seen: list[Any] = []
    callback = callback_of(after_module=after_module, **{hook: lambda *args: seen.append(what(*args))})
    callback.seen = seen
    return callback


def at_step(step: int, action: Callable[[Trainer], Any]) -> Callback:
    """Make a callback that does something once, at the end of one optimizer step."""
    return callback_of(on_train_batch_end=lambda trainer, *_: action(trainer) if trainer.global_step == step else None)


def plain_closure(owner: Optimizer | nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Make a hand-written loop's closure: zero the gradients of an optimizer or module, evaluate, backpropagate."""

    def closure() -> Tensor:
        owner.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    return closure


class ClosureIgnorer(Optimizer):
    """The user-written optimizer of the PyTorch notes, section 4.8, verbatim except for the names."""

    def __init__(self, params: Iterable[Any], lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                param.data = param.data - group["lr"] * param.grad.data


class Evaluator(Optimizer):
    """Gradient descent that calls ``ask(closure)``, then steps along the gradients that it left."""

    reevaluates = True
    expects_gradients = False

    def __init__(self, params: Iterable[Any], ask: Callable[[Any], Any], lr: float = 0.05) -> None:
        super().__init__(params, {"lr": lr})
        self.ask = ask

    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        result = self.ask(closure)
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    param.sub_(param.grad, alpha=group["lr"])
        return result


def evaluating(ask: Callable[[Any], Any]) -> Callable[[Module], Evaluator]:
    """Make the ``optimize`` of a `Regressor`: an optimizer that calls ``ask`` with its closure."""
    return lambda module: Evaluator(module.parameters(), ask)


@contextmanager
def assert_unchanged(module: nn.Module) -> Iterator[None]:
    """Check that parameters and buffers are bitwise the same afterwards as before."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    yield
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed"


def assert_same(left: nn.Module, right: nn.Module) -> None:
    """Check that parameters and buffers are bitwise equal."""
    for (name, ours), theirs in zip(left.state_dict().items(), right.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), f"{name} differs by {(ours - theirs).abs().max()}"


def assert_close(left: nn.Module, right: nn.Module, tolerance: float) -> None:
    """Check that parameters and buffers agree up to a relative and absolute tolerance."""
    for ours, theirs in zip(left.state_dict().values(), right.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


class Token:
    """An object that lives as long as the graph node that holds it."""


class Tagged(torch.autograd.Function):
    """The identity, with a token in its graph node."""

    @staticmethod
    def forward(ctx, x: Tensor, tokens: weakref.WeakSet) -> Tensor:
        ctx.token = Token()
        tokens.add(ctx.token)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
