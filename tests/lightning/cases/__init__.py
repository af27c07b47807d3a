"""The cases, by area."""

from tests.lightning.cases import (
    checkpoints,
    hooks,
    limits,
    loaders,
    logging,
    optimization,
    schedulers,
    steps,
    stopping,
)
from tests.lightning.sides import CASES

__all__ = [
    "CASES",
    "checkpoints",
    "hooks",
    "limits",
    "loaders",
    "logging",
    "optimization",
    "schedulers",
    "steps",
    "stopping",
]
