"""What a sparse run found: its features, the pruned network, and how well that fits without the penalty."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS

from framework import Trainer
from framework.callbacks import PenaltyPath
from framework.pruning import prune, used_features
from framework.recipes import figures
from framework.recipes.data import Data, Predict
from framework.recipes.module import SupervisedModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class SparseData(Data):
    """Features of which only some may matter.

    Attributes:
        feature_names: One for each feature.
        support: The features that matter, in increasing order; None where nobody knows.
    """

    feature_names: list[str] = field(default_factory=list)
    support: list[int] | None = None
    found = ("support/size", "support/exact", "test/accuracy", "test/r2", "refit/val_loss")

    def progress(self, trainer: Trainer, module: SupervisedModule, predict: Predict | None = None) -> dict[str, Figure]:
        """Draw how much each feature is used, and of several neurons the weights of each."""
        weight = first_weight(module.network)
        uses = feature_weights(weight)
        pictures = {"importance": figures.importances(uses, self.feature_names, self.support, is_norm=len(weight) > 1)}
        if len(weight) > 1:
            pictures["first_layer"] = figures.first_layer(weight, self.feature_names, self.support)
        return pictures

    def findings(
        self, trainer: Trainer, module: SupervisedModule, folder: Path
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
        return sparse_report(trainer, module, self, folder)

    def describe(
        self, module: SupervisedModule, refit: SupervisedModule, folder: Path
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
        """Return what `findings` has to say besides, of the network of a run and the refitted one."""
        return {}, {}, {}


def sparse_report(
    trainer: Trainer, module: SupervisedModule, data: SparseData, folder: Path
) -> tuple[dict[str, float], dict[str, Any], dict[str, Figure]]:
    """Prune and refit the network of a finished run; write the refitted one to ``pruned.pt``.

    Returns:
        Metrics: ``support/...`` (its size and, where the truth is known, true positives, false discoveries and
        whether it is exact), ``pruned/...`` and ``refit/...``; the support as feature names; pictures.
    """
    network = module.network
    assert isinstance(network, nn.Sequential)
    found = used_features(network).tolist()
    metrics, findings = compare_supports(found, data)
    more, refit = prune_and_refit(trainer, module, data, folder)
    new, described, drawn = data.describe(module, refit, folder)
    metrics |= more | new
    findings |= described
    pictures = {**data.progress(trainer, module), **drawn}
    for callback in trainer.callbacks:
        if isinstance(callback, PenaltyPath) and callback.history:
            weights = [stage["happy_lambda"] for stage in callback.history] + [module.happy_lambda]
            weight = first_weight(network)
            importance = feature_weights(weight).abs()
            values = [*(stage["importance"].float() for stage in callback.history), importance]
            pictures["path"] = figures.penalty_path(weights, torch.stack(values), data.support, is_norm=len(weight) > 1)
    return metrics, findings, pictures


def compare_supports(found: list[int], data: SparseData) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare the features found with those that matter: as numbers, and as names."""
    metrics: dict[str, float] = {"support/size": len(found)}
    findings: dict[str, Any] = {"support": [data.feature_names[feature] for feature in found]}
    if data.support is not None:
        true_positives = len(set(found) & set(data.support))
        metrics["support/true_positives"] = true_positives
        metrics["support/false_discoveries"] = len(found) - true_positives
        metrics["support/exact"] = float(found == data.support)
        findings["true_support"] = [data.feature_names[feature] for feature in data.support]
    return metrics, findings


def first_weight(network: nn.Module) -> Tensor:
    """Return the weights of the first layer, shape (neurons, features)."""
    return next(layer for layer in network.modules() if isinstance(layer, nn.Linear)).weight.detach().float().cpu()


def feature_weights(weight: Tensor) -> Tensor:
    """Compute for each feature its coefficient, or with several neurons the norm of its weights, shape (features,)."""
    return weight[0] if len(weight) == 1 else weight.norm(dim=0)


def prune_and_refit(
    trainer: Trainer, module: SupervisedModule, data: SparseData, folder: Path
) -> tuple[dict[str, float], SupervisedModule]:
    """Prune the network, compare what both compute, and fit the pruned one without penalty; return metrics and it."""
    pruned = prune(module.network)  # type: ignore[arg-type]
    parameter = next(module.parameters())
    X = data.train.tensors[0].to(parameter)
    with torch.no_grad():
        difference = (pruned(X) - module.network(X)).abs().max()
    refit = SupervisedModule(
        pruned,
        module.loss,
        partial(LBFGS, max_iter=100, history_size=20, line_search_fn="strong_wolfe"),
        num_classes=data.num_classes,
    )
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    refitter = Trainer(
        accelerator=trainer.fabric.device.type,
        devices=1,
        precision="64-true" if parameter.dtype == torch.float64 else "32-true",
        accumulate_grad_batches="epoch",
        max_epochs=5,
        logger=False,
        **quiet,  # type: ignore[arg-type]
    )
    refitter.fit(refit, data.train, data.val)
    torch.save(pruned.state_dict(), folder / "pruned.pt")
    metrics = {
        "pruned/max_difference": float(difference),
        "pruned/parameters": sum(p.numel() for p in pruned.parameters()),
        "refit/train_loss": refitter.callback_metrics["train/loss"],
    }
    if data.val is not None:
        metrics["refit/val_loss"] = refitter.callback_metrics["val/loss"]
    return metrics, refit
