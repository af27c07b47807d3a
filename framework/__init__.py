"""A Lightning-style trainer for PyTorch, right for closures and non-smooth penalties."""

__version__ = "0.1.0"
