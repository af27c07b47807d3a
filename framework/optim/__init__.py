"""Optimizers that evaluate their closure more than once per step, and optimizers that apply a penalty by its prox."""

from framework.objective.groups import stationarity_gap
from framework.optim.fista import FISTA
from framework.optim.ista import ISTA
from framework.optim.minimize import MinimizeWrapper
from framework.optim.prox_adam import ProxAdam
from framework.optim.proximal import ProximalOptimizer
from framework.optim.search import ExhaustiveSearch, RandomSearch
from framework.optim.sparsa import SpaRSA
from framework.optim.square_root_lasso import SquareRootLassoFits, square_root_lasso

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
