"""Two processes against one with the combined batch, in float64, and what happens when one of them fails."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import Trainer
from framework.callbacks import ModelCheckpoint
from tests.forked import run_two
from tests.modules import Regressor, make_loader
from tests.processes import cases, special
from tests.processes.cases import CASES, SIZE, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def launch(*command: str, torchrun: bool) -> subprocess.CompletedProcess:
    """Run a module of the tests in two processes: under torchrun, or started by the trainer itself."""
    start = [*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"] if torchrun else [sys.executable]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*start, "-m", *command], capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Return a folder with what two processes ended with in all cases."""
    folder = tmp_path_factory.mktemp("two")
    codes, printed = run_two(cases.main, folder, cwd=folder)
    assert codes == [0, 0], "\n".join(printed)
    return folder


def assert_close(ours: Any, theirs: Any, name: str) -> None:
    """Check that two nested results are equal to 1e-10; torchmetrics compute in float32."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_close(value, theirs[key], f"{name}: {key}")
    elif isinstance(ours, list):
        for left, right in zip(ours, theirs, strict=True):
            assert_close(left, right, name)
    elif isinstance(ours, str):
        assert ours.split()[:3] == theirs.split()[:3]  # a number follows
    elif ours is not None:
        tolerance = 1e-6 if "error" in name else 1e-10
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{name}: {text}"
        )


@pytest.mark.filterwarnings("ignore:.*makes a whole minimization")
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one_with_the_combined_batch(tmp_path, two, name):
    ours = [torch.load(two / f"{name}-{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert_close(ours[1]["weights"], ours[0]["weights"], "ranks")
    assert ours[1]["counts"] == ours[0]["counts"]
    assert_close(ours[0], run(tmp_path, name, size=2 * SIZE, devices=1), name)


@pytest.fixture(scope="module")
def well(tmp_path_factory) -> Path:
    """Return a folder with what two processes found in runs that end well; in it one process has begun some."""
    folder = tmp_path_factory.mktemp("well")
    for name in ("sgd", "logging", "lbfgs"):
        checkpoint = ModelCheckpoint(folder / f"one-{name}")
        run(folder, name, size=2 * SIZE, devices=1, max_steps=12, callbacks=[checkpoint])
    codes, printed = run_two(special.main, "all is well", folder, cwd=folder)
    assert codes == [0, 0], "\n".join(printed)
    return folder


def answers(folder: Path) -> list[Any]:
    return [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in (0, 1)]


def test_one_call_sums_an_evaluation_after_the_last_batch(well):
    found = answers(well)[0]["count"]
    numbers = found["parameters"] + found["tensors"] + 3  # gradients, whether each was used, f, g and the samples
    for name in ("sgd", "sgd accumulating", "lbfgs"):
        for calls, size, evaluations in found[name]:
            assert size == 8 * numbers * evaluations
            assert calls == evaluations + 1  # and one in which all agree to go on
    # After an evaluation with gradients: f, g and the samples; five values and the samples; a vector and the samples.
    for name, more in (("value", 3), ("values", 6), ("hvp", found["parameters"] + 1)):
        assert [step[:2] for step in found[name]] == [[3, 8 * (numbers + more)]] * 3
    assert len(found["sgd"]) == 3
    assert any(evaluations > 1 for *_, evaluations in found["lbfgs"])


def test_a_stop_in_one_ends_all_after_the_same_step(well):
    assert [answer["stop"] for answer in answers(well)] == [{"because": "enough in rank 1", "steps": 4}] * 2


def test_batch_norm_is_refused_by_name(well):
    said = "net.2 is a BatchNorm1d, which normalizes by the statistics of a whole batch"
    assert all(answer["batch norm"].startswith(said) for answer in answers(well))


def test_two_processes_continue_bitwise_with_dropout(well):
    assert [answer["go on"] for answer in answers(well)] == [True, True]


@pytest.mark.parametrize("name", ["sgd", "logging", "lbfgs"])
def test_a_run_goes_on_in_another_number_of_processes(well, two, name):
    whole = torch.load(two / f"{name}-0.pt", weights_only=False)
    for rank in (0, 1):
        found = torch.load(well / f"{name}-{rank}.pt", weights_only=False)
        assert_close(found["weights"], whole["weights"], "one, then two")
    assert_close(torch.load(well / f"{name}-0.pt", weights_only=False)["metrics"], whole["metrics"], "one, then two")
    found = run(well, name, size=2 * SIZE, devices=1, ckpt_path=well / f"two-{name}" / "last.ckpt")
    assert_close(found["weights"], whole["weights"], "two, then one")
    assert_close(found["metrics"], whole["metrics"], "two, then one")


# --------------------------------------------------------------------------------------------- when one of them fails


def test_when_one_fails_all_end_with_its_error(tmp_path):
    codes, printed = run_two(special.main, "raise", tmp_path, cwd=tmp_path)
    assert 0 not in codes
    assert "has failed: KeyError: 'only here'" in printed[0]
    assert "KeyError: 'only here'" in printed[1]
    assert not list(tmp_path.glob("answer-*.json"))


@pytest.mark.slow
def test_when_one_fails_torchrun_ends_with_its_error(tmp_path):
    ended = launch("tests.processes.special", "raise in rank 0", str(tmp_path), torchrun=True)
    assert ended.returncode != 0
    assert "KeyError: 'only here'" in ended.stderr  # torchrun may kill the other before it says so, too
    assert not list(tmp_path.glob("answer-*.json"))


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_says_so(tmp_path):
    ended = launch("tests.processes.special", "kill", str(tmp_path), torchrun=False)
    assert ended.returncode != 0
    # Fabric's launcher looks after its children every five seconds, and ends the rest.
    said = ("another process has ended, or was killed", "terminated with code -9")
    assert any(words in ended.stderr for words in said)


@pytest.mark.parametrize(("what", "code"), [("SIGINT", 0), ("SIGTERM", 143)])
def test_a_signal_to_one_ends_all_after_the_same_step(tmp_path, what, code):
    codes, printed = run_two(special.main, what, tmp_path, cwd=tmp_path)
    assert codes == [code, code], "\n".join(printed)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["progress"]["global_step"] == 4
    if code == 0:
        assert answers(tmp_path) == [{"because": "interrupted by SIGINT", "steps": 4}] * 2


# ----------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    "strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook", "dp", "fsdp", "deepspeed", "xla", "nonsense"]
)
def test_strategies_that_are_not_supported_are_refused_by_name(strategy):
    with pytest.raises(ValueError, match=f"strategy='{strategy}' is not supported: use strategy='ddp'"):
        Trainer(strategy=strategy, devices=2, accelerator="cpu")


def test_one_process_makes_no_call(tmp_path):
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, default_root_dir=tmp_path)
    trainer.fit(Regressor(), make_loader())
    assert trainer._processes is None
    assert not torch.distributed.is_initialized()
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
