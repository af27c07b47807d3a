"""What is imported at the start, and what only when it is used: counted in modules, in processes of their own."""

import json
import subprocess
import sys

IN_USE_ONLY = {"lightning", "torchmetrics", "torchvision", "scipy", "sklearn", "matplotlib", "tensorboard"}
PRINT_NAMES = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))\n"
TOY = """
import sys
from framework import Callback
from framework.recipes.cli import main

class Names(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        assert "matplotlib" not in sys.modules, "loaded before anything is drawn"

sys.argv = ["proxtrain", "epochs=1", "hydra.run.dir=run", "+callbacks.names._target_=__main__.Names"]
main()
"""


def modules(folder, *programs: str) -> list[set[str]]:
    """Run programs one after the other in one process; return the names of the modules loaded after each."""
    program = "".join(program + PRINT_NAMES for program in programs)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(json.loads(line)) for line in done.stdout.splitlines() if line.startswith('["')]


def test_importing_the_framework_loads_little_more_than_torch(tmp_path):
    torchs, ours, with_optim, with_trainer = modules(
        tmp_path,
        "import torch, numpy",
        "from framework import Module, Trainer",
        "import framework.optim",
        "Trainer(accelerator='cpu', logger=False)",
    )
    assert not any(name.startswith("framework.optim") for name in ours)
    assert not (IN_USE_ONLY | {"torch._dynamo"}) & with_optim
    assert len(with_optim) <= 1.15 * len(torchs)
    assert not {"framework.profiler", "framework.lightning", "framework.data.combined"} & with_trainer


def test_a_toy_run_loads_matplotlib_and_tensorboard_for_what_it_writes_and_no_more(tmp_path):
    loaded = modules(tmp_path, TOY)[-1]
    assert IN_USE_ONLY & loaded == {"matplotlib", "tensorboard"}
