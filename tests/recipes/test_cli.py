"""The command itself, as a shell sees it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.cli import CONF


def proxtrain(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recipes.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(CONF).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_default_recipe_prints_its_folder_first_and_last(tmp_path: Path) -> None:
    done = proxtrain("trainer.max_epochs=2", cwd=tmp_path)
    lines = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == lines[-1]
    folder = Path(lines[0].removeprefix("run folder: "))
    assert folder.parent == tmp_path / "outputs" / "toy_regression"
    assert (folder / "summary.json").exists()
    assert (folder / ".hydra" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("recipe=toy_regresion", "Could not find 'recipe/toy_regresion'"),
        ("optimzer=adam", "Could not override 'optimzer'"),
    ],
)
def test_a_mistake_ends_with_hydras_message_and_no_run_folder(argument: str, message: str, tmp_path: Path) -> None:
    done = proxtrain(argument, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_missing_images_are_explained_and_leave_no_finished_run(tmp_path: Path) -> None:
    done = proxtrain("recipe=fashion_mnist", "data.root=nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "DATA_ROOT" in done.stderr
    assert not list(tmp_path.rglob("summary.json"))


def test_a_mistake_in_scipys_arguments_is_explained_and_leaves_no_finished_run(tmp_path: Path) -> None:
    done = proxtrain("optimizer=scipy", "optimizer.method=newton", cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown method 'newton': did you mean 'Newton-CG'?" in done.stderr
    assert not list(tmp_path.rglob("summary.json"))


def test_help_lists_every_choice_of_every_group(tmp_path: Path) -> None:
    done = proxtrain("--help", cwd=tmp_path)
    assert done.returncode == 0
    # A list may go on in the next line.
    text = re.sub(r",\n +", ", ", done.stdout)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    for folder in sorted(Path(CONF).iterdir()):
        if not folder.is_dir() or folder.name == "hydra":
            continue
        for choice in folder.glob("*.yaml"):
            listed = lines.get(choice.stem, "") if folder.name == "recipe" else lines[folder.name]
            assert choice.stem in listed.replace(",", " ").split(), f"{folder.name}={choice.stem} is not in --help"


def test_a_sweep_gives_every_run_a_folder_of_its_own(tmp_path: Path) -> None:
    done = proxtrain("-m", "recipe=xor", "seed=0,1", "trainer.max_epochs=2", "logger=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summaries = sorted(tmp_path.glob("outputs/xor/*/*/summary.json"))
    assert [summary.parent.name for summary in summaries] == ["0", "1"]


ENDLESS = {
    "epochs": ["trainer.max_epochs=-1"],
    "minimization": [
        *["optimizer=scipy", "optimizer.method=Nelder-Mead", "optimizer.maxiter=1000000000"],
        "optimizer.options={maxfev: 1000000000, xatol: 0, fatol: 0}",
    ],
}


@pytest.mark.parametrize("overrides", ENDLESS.values(), ids=ENDLESS)
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_a_summary(overrides: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", *overrides, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(CONF).parent), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / "run" / "metrics.csv"
    for _ in range(2400):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    assert '"interrupted by SIGINT"' in (tmp_path / "run" / "summary.json").read_text()
