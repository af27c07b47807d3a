"""What is imported at the start, and what only when it is used: counted in modules, in processes of their own."""

import json
import subprocess
import sys

IN_USE_ONLY = {"lightning", "torchmetrics", "torchvision", "scipy", "matplotlib", "tensorboard"}
NAMES = "import json, sys; print(json.dumps(sorted(sys.modules)))"
TOY = """
import sys
from framework import Callback
from recipes.cli import main

class Names(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        assert "matplotlib" not in sys.modules, "loaded before anything is drawn"

sys.argv = ["proxtrain", "epochs=1", "hydra.run.dir=run", "+callbacks.names._target_=__main__.Names"]
main()
"""


def modules(program: str, folder) -> set[str]:
    """Return the names of the modules that are loaded when a program ends."""
    done = subprocess.run([sys.executable, "-c", f"{program}\n{NAMES}"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_framework_loads_little_more_than_torch(tmp_path):
    torchs, ours = modules("import torch, numpy", tmp_path), modules("import framework, framework.optim", tmp_path)
    assert not (IN_USE_ONLY | {"torch._dynamo"}) & ours
    assert len(ours) <= 1.15 * len(torchs)


def test_a_toy_run_loads_matplotlib_and_tensorboard_for_what_it_writes_and_no_more(tmp_path):
    loaded = modules(TOY, tmp_path)
    assert IN_USE_ONLY & loaded == {"matplotlib", "tensorboard"}
