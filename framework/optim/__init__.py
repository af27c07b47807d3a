"""Optimizers that evaluate their closure more than once per step, and optimizers that apply a penalty by its prox."""

from typing import TYPE_CHECKING, Any

from framework.objective.groups import stationarity_gap
from framework.optim.fista import FISTA
from framework.optim.ista import ISTA
from framework.optim.prox_adam import ProxAdam
from framework.optim.proximal import ProximalOptimizer
from framework.optim.search import ExhaustiveSearch, RandomSearch
from framework.optim.sparsa import SpaRSA
from framework.optim.square_root_lasso import SquareRootLassoFits, square_root_lasso

if TYPE_CHECKING:
    from framework.optim.minimize import MinimizeWrapper

__all__ = [
    "FISTA",
    "ISTA",
    "ExhaustiveSearch",
    "MinimizeWrapper",
    "ProxAdam",
    "ProximalOptimizer",
    "RandomSearch",
    "SpaRSA",
    "SquareRootLassoFits",
    "square_root_lasso",
    "stationarity_gap",
]


def __getattr__(name: str) -> Any:
    if name == "MinimizeWrapper":  # with it comes scipy, slow to import
        from framework.optim.minimize import MinimizeWrapper

        return MinimizeWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
