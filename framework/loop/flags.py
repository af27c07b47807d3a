"""Switches of torch's that a trainer sets for the time of its runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def torch_flags(deterministic: bool | str | None, benchmark: bool | None, detect_anomaly: bool) -> Iterator[None]:
    """Set torch's switches within this context; None leaves one as it is.

    Args:
        deterministic: Whether operations must be deterministic; "warn" only warns of those that are not.
        benchmark: Whether cuDNN tries which algorithm is the fastest.
        detect_anomaly: Whether a backward pass that makes NaN is an error that says which operation it was.
    """
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmarked, workspace = torch.backends.cudnn.benchmark, os.environ.get(_CUBLAS)
    try:
        if deterministic is not None:
            torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if deterministic:
            os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS reads it when it is first used
        if benchmark is not None:
            torch.backends.cudnn.benchmark = benchmark
        with torch.autograd.set_detect_anomaly(detect_anomaly or torch.is_anomaly_enabled()):
            yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
        torch.backends.cudnn.benchmark = benchmarked
        if workspace is None:
            os.environ.pop(_CUBLAS, None)
