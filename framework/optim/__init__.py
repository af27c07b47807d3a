"""Optimizers that evaluate a closure many times per step."""

from framework.optim.minimize import MinimizeWrapper
from framework.optim.search import ExhaustiveSearch, RandomSearch

__all__ = ["ExhaustiveSearch", "MinimizeWrapper", "RandomSearch"]
