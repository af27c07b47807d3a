"""Every test starts from the same seed, on one thread."""

import os
import signal
from pathlib import Path

import pytest

if "DATA_ROOT" in os.environ:
    # Tests run in folders of their own.
    os.environ["DATA_ROOT"] = str(Path(os.environ["DATA_ROOT"]).resolve())

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell makes its background jobs ignore Ctrl-C (`pytest &`), and the processes that they start inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch  # not above: pytest -n takes seconds to start, and its first process runs no test

    torch.manual_seed(0)
    torch.set_num_threads(1)
