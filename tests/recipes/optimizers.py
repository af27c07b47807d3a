"""The custom optimizer of the fifth seed document, section 4.8, as it stands there."""

from typing import Any

from torch.optim import Optimizer


class CustomOptimizer(Optimizer):
    """Gradient descent that ignores its closure."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                param.data = param.data - group["lr"] * param.grad.data
