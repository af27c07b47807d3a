"""The ready Module: a network, a loss, a penalty, an optimizer and a scheduler, each chosen by a recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from framework.losses import L2Loss
from framework.penalties import Penalty
from framework.supervised import Supervised


class SupervisedModule(Supervised):
    """Fits a network to pairs of inputs and targets. Logs ``val/loss``, and ``val/accuracy`` for classes.

    Args:
        network: Maps a batch of inputs to a batch of outputs.
        loss: Of (outputs, targets), a mean over the samples.
        optimizer: Called with the parameter groups, such as a ``functools.partial`` of an optimizer class.
        scheduler: A mapping of "scheduler", called with the optimizer, and of Lightning's "interval", "frequency" and
            "monitor"; None for a constant learning rate. An option of the scheduler that is "auto" is set to the number
            of intervals in the run, such as ``total_steps`` of one cycle.
        penalty: Added to the loss for the weights (not the biases), or for the groups that the network declares by a
            method ``param_groups`` of its own; None for no penalty.
        happy_lambda: The weight of the penalty.
        learning_rates: Learning rates of their own for layers of the network, by name: ``{"1": 1e-3}``.
        num_classes: For classification, how many classes the targets have; None for regression.

    Raises:
        ValueError: If the loss does not measure such targets, learning rates are for layers that the network does not
            have, or the penalty has no weights to act on.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[..., Optimizer],
        *,
        scheduler: Mapping[str, Any] | None = None,
        penalty: Penalty | None = None,
        happy_lambda: float = 0.0,
        learning_rates: Mapping[str, float] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer)
        _check_loss(loss, num_classes)
        self.penalty = penalty
        self.happy_lambda = happy_lambda
        self.make_scheduler = scheduler
        self.learning_rates = {str(layer): rate for layer, rate in (learning_rates or {}).items()}
        self.accuracy: Any = None
        if num_classes:
            from torchmetrics.classification import MulticlassAccuracy  # slow to import

            self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._check_learning_rates()
        if penalty is not None and not any(group["penalized"] for group in self.param_groups()):
            raise ValueError(
                f"penalty {type(penalty).__name__} has no effect: it acts on weights of two dimensions or more, and "
                f"the {type(network).__name__} network has none; use penalty=none"
            )

    def evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Log the loss, and the accuracy for classes."""
        x, y = batch
        output = self.network(x)
        self.log(f"{stage}/loss", self.loss(output, y), prog_bar=True)
        if self.accuracy is not None:
            self.accuracy.update(output, y)
            self.log(f"{stage}/accuracy", self.accuracy, prog_bar=True)

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the network's own groups if it declares them, else weights and biases, each split by learning rate."""
        if callable(declared := getattr(self.network, "param_groups", None)):
            # A proximal optimizer asks for the weight of what is penalized.
            return declared() if self.penalty is not None else [{**group, "penalized": False} for group in declared()]
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            penalized = self.penalty is not None and parameter.ndim > 1
            layer = next((layer for layer in self.learning_rates if name.startswith(f"{layer}.")), "")
            label = (layer or "network") + ("/penalized" if penalized else "")
            rate = {"lr": self.learning_rates[layer]} if layer else {}
            group = groups.setdefault(label, {"name": label, "params": [], "penalized": penalized, **rate})
            group["params"].append(parameter)
        return list(groups.values())

    def _check_learning_rates(self) -> None:
        if not self.learning_rates:
            return
        if hasattr(self.network, "param_groups"):
            raise ValueError(
                f"learning_rates={self.learning_rates} has no effect: a {type(self.network).__name__} network declares "
                "its own parameter groups; drop learning_rates"
            )
        layers = {name.rpartition(".")[0] for name, p in self.network.named_parameters() if p.requires_grad}
        for layer, rate in self.learning_rates.items():
            if not any(f"{own}.".startswith(f"{layer}.") for own in layers):
                raise ValueError(
                    f"learning_rates={self.learning_rates}: the network has no layer {layer} with parameters to train; "
                    f"its layers are {', '.join(sorted(layers))}"
                )
            if not isinstance(rate, int | float) or not 0 <= rate < math.inf:
                raise ValueError(f"learning_rates={{{layer}: {rate}}}; pass a number from 0 on, such as 1e-4")

    def configure_optimizers(self) -> Any:
        _check_options("optimizer", self.make_optimizer)
        groups: Any = self.param_groups()
        if _made_by(self.make_optimizer) is LBFGS:
            # torch's LBFGS takes one group; the closure knows the penalized ones from the module.
            if self.learning_rates:
                raise ValueError("learning_rates with LBFGS, which has one learning rate for all; drop learning_rates")
            groups = [parameter for group in groups for parameter in group["params"]]
        optimizer = self.make_optimizer(groups)
        if self.learning_rates and "lr" not in optimizer.defaults:
            raise ValueError(f"learning_rates with {type(optimizer).__name__}, which has none; drop learning_rates")
        if not self.make_scheduler:
            return optimizer
        config = dict(self.make_scheduler)
        make = config.pop("scheduler")
        _check_options("scheduler", make)
        intervals = self._num_intervals(config)
        automatic = {key: intervals for key, value in _options(make).items() if value == "auto"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer, **automatic), **config}}

    def _num_intervals(self, config: Mapping[str, Any]) -> int:
        steps = self.trainer.estimated_stepping_batches
        number = steps if config.get("interval") == "step" else self.trainer.max_epochs
        return int(number) if 0 < number < float("inf") else 1


def loss_for(num_classes: int | None) -> nn.Module:
    """Make the loss that the universal threshold is known for: the cross-entropy of classes, `L2Loss` of numbers."""
    return L2Loss() if num_classes is None else nn.CrossEntropyLoss()


def _made_by(make: Any) -> Any:
    """What a class or a ``functools.partial`` of one calls in the end."""
    return getattr(make, "func", make)


def _options(make: Any) -> Mapping[str, Any]:
    return getattr(make, "keywords", {})


def _check_options(key: str, make: Any) -> None:
    """Check that a class takes the options that a configuration gives it."""
    try:
        taken = inspect.signature(_made_by(make)).parameters
    except (TypeError, ValueError):
        return  # Written in C, perhaps: calling it will say.
    unknown = [option for option in _options(make) if option not in taken]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        name = getattr(_made_by(make), "__name__", _made_by(make))
        raise TypeError(
            f"{name} does not take {', '.join(f'{key}.{option}' for option in unknown)}; it takes {', '.join(taken)}. "
            f"Drop an option by ~{key}.{unknown[0]}"
        )


def _check_loss(loss: Callable[[Tensor, Tensor], Tensor], num_classes: int | None) -> None:
    name = type(loss).__name__
    if num_classes is None and isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        raise ValueError(f"loss {name} compares classes, but the targets are numbers; use loss=mse, or loss=l2")
    if num_classes is not None and isinstance(loss, nn.MSELoss | L2Loss):
        raise ValueError(
            f"loss {name} compares numbers, but the targets are {num_classes} classes; use loss=cross_entropy"
        )
