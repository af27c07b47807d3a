"""A summary of what is about to be trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from framework.callback import Callback
from framework.module import Module
from framework.objective.groups import is_penalized

if TYPE_CHECKING:
    from framework.trainer import Trainer


class ModelSummary(Callback):
    """A table of the layers and their parameter counts, and the optimizer's groups, printed before training.

    Args:
        max_depth: To what depth to list layers within layers.
    """

    def __init__(self, max_depth: int = 2) -> None:
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        trainer.fabric.print(summarize(trainer, self.max_depth))


def summarize(trainer: Trainer, max_depth: int) -> str:
    """Return the summary as text."""
    rows = [("layer", "type", "parameters")]
    for name, layer in trainer.module.named_modules():
        if name and name.count(".") < max_depth and (count := _count(layer.parameters())):
            rows.append((name, type(layer).__name__, f"{count:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]

    trainable = _count(p for p in trainer.module.parameters() if p.requires_grad)
    total = _count(trainer.module.parameters())
    lines.append(f"{total:,} parameters, {trainable:,} trainable, on {trainer.fabric.device}")
    groups = []
    for index, group in enumerate(trainer.optimizer.param_groups):
        groups.append(f"{group.get('name', index)}{' (penalized)' if is_penalized(group) else ''}")
    lines.append(f"{type(trainer.optimizer).__name__}, groups: {', '.join(groups)}")
    return "\n".join(lines)


def _count(parameters: object) -> int:
    return sum(p.numel() for p in parameters)  # type: ignore[attr-defined]
