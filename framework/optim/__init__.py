"""Optimizers that evaluate a closure many times per step."""

from framework.optim.minimize import MinimizeWrapper

__all__ = ["MinimizeWrapper"]
