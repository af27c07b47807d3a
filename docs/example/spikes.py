"""When did it click, and how loud? Spikes of unknown time and height, seen through a blurring instrument.

Everything that a project may bring of its own: data, a network, a penalty, a module, a callback and an optimizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from framework import Callback, Module, Trainer
from framework.data import TensorLoader
from framework.penalties import Penalty
from framework.recipes.data import Data


def blurred_spikes(*, num_samples: int = 200, num_spikes: int = 5, width: float = 2.0, noise: float = 0.02) -> Data:
    """Make a signal (200,) of blurred spikes: each sample is a row of the blur (200, 200) with what was measured."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(num_samples, dtype=torch.float32)
    blur = torch.exp(-((times[:, None] - times) ** 2) / (2 * width**2))
    heights = torch.zeros(num_samples)
    heights[torch.randperm(num_samples, generator=generator)[:num_spikes]] = 1.0
    signal = blur @ heights + noise * torch.randn(num_samples, generator=generator)
    batches = TensorLoader(blur, signal[:, None], batch_size=num_samples)
    return Data(batches, input_shape=(num_samples,), num_outputs=1)


class Heights(nn.Linear):
    """The height of the spike at each time, which start at zero."""

    def __init__(self, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__(*input_shape, num_outputs, bias=False)
        nn.init.zeros_(self.weight)


@dataclass(frozen=True)
class NonnegativeL1(Penalty):
    """lam * sum w where w >= 0, and infinite elsewhere: few spikes, and none of them negative."""

    def value(self, param: Tensor, lam: float | Tensor) -> Tensor:
        return torch.where(param < 0, torch.inf, lam * param).sum()

    def prox(self, u: Tensor, step: float | Tensor, lam: float | Tensor) -> Tensor:
        return (u - step * lam).clamp(min=0) + 0.0

    def subgradient_gap(self, param: Tensor, grad: Tensor, lam: float | Tensor) -> Tensor:
        slope = grad + lam
        return torch.where(param > 0, slope.abs(), (-slope).clamp(min=0)).max()


class Deconvolution(Module):
    """Least squares; `proxtrain` gives it those parts of the configuration that ``__init__`` names."""

    def __init__(self, network: nn.Module, optimizer: Any, penalty: Penalty, happy_lambda: float) -> None:
        super().__init__()
        self.network, self.make_optimizer = network, optimizer
        self.penalty, self.happy_lambda = penalty, happy_lambda

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.network.parameters()), "penalized": self.penalty is not None}]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        blur, signal = batch
        return (self.network(blur) - signal).square().sum() / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.param_groups())


class CountSpikes(Callback):
    """Logs how many spikes there are, once per epoch."""

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        module.log("spikes", (module.network.weight > 0.1).sum().float())


class HeavyBall(torch.optim.Optimizer):
    """Gradient descent with Polyak's momentum: ``optimizer=custom optimizer._target_=spikes.HeavyBall``."""

    def __init__(self, params: Any, lr: float = 0.001, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in (param for param in group["params"] if param.grad is not None):
                velocity = self.state[param].setdefault("velocity", torch.zeros_like(param))
                velocity.mul_(group["momentum"]).sub_(param.grad, alpha=group["lr"])
                param.add_(velocity)
        return loss
