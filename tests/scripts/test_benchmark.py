"""The benchmark runs, and its contenders do the same work. How long anything takes is not tested."""

import json
import os
from pathlib import Path

import pytest
import torch

from scripts.benchmark import main, markdown_table, quiet_lightning, run_augment, run_task
from scripts.benchmark_evaluations import Problem, lbfgs, measure, scipy_by_hand, scipy_method, sparsa
from scripts.benchmark_loops import CONTENDERS, check_same_work, proxtrain, tight_loop
from scripts.benchmark_tasks import fashion_cnn, fashion_mlp, toy
from tests.modules import needs_compiler

needs_data = pytest.mark.skipif(
    "DATA_ROOT" not in os.environ or not Path(os.environ["DATA_ROOT"], "FashionMNIST").is_dir(),
    reason="the environment variable DATA_ROOT names no folder that holds FashionMNIST/",
)


@pytest.mark.slow
@needs_compiler
def test_every_contender_is_timed_in_every_round(tmp_path: Path) -> None:
    with quiet_lightning():
        micros, outside = run_task(toy(epochs=2, slow_epochs=1), rounds=2, root=tmp_path)
    assert list(micros) == list(outside) == list(CONTENDERS)
    assert all(len(values) == 2 and min(values) > 0 for values in micros.values())


@needs_data
@pytest.mark.parametrize("make_task", [fashion_mlp, fashion_cnn])
def test_trainer_and_tight_loop_reach_the_same_weights_on_images(tmp_path: Path, make_task) -> None:
    task = make_task(Path(os.environ["DATA_ROOT"]), num_batches=3)
    check_same_work(proxtrain(task, 1, tmp_path), tight_loop(task, 1, tmp_path))


def test_different_work_is_refused(tmp_path: Path) -> None:
    task = toy()
    ours, theirs = proxtrain(task, 2, tmp_path), tight_loop(task, 1, tmp_path)
    with pytest.raises(RuntimeError, match="did different work"):
        check_same_work(ours, theirs)


@needs_data
def test_augmentation_is_timed() -> None:
    micros = run_augment(Path(os.environ["DATA_ROOT"]), rounds=1, num_samples=128, num_slow_samples=64)
    assert all(len(values) == 1 and values[0] > 0 for values in micros.values())


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    table = markdown_table({"proxtrain": [1.0, 6.0, 4.0], "other": [2.0, 3.0, 4.0]}, {"other": 1.1}, "step")
    assert table.splitlines()[-1] == "| other | 3.0 | 2.0 | 1.000 | <= 1.10 |"


@pytest.mark.slow
@needs_compiler
def test_tables_and_figures_come_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scripts.benchmark.toy", lambda: toy(epochs=2, slow_epochs=1))
    main(["--task", "toy", "--rounds", "1", "--threads", str(torch.get_num_threads()), "--json", str(tmp_path / "it")])
    assert "| tight loop |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "it").read_text())["tasks"]["toy"]["us_per_step"]
    assert all(len(values) == 1 for values in figures.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "problem", [lbfgs(steps=1), sparsa(steps=1), scipy_method("L-BFGS-B", 5), scipy_method("trust-ncg", 5)]
)
def test_evaluations_are_timed_against_the_same_work_by_hand(tmp_path: Path, problem: Problem) -> None:
    problem.targets = {"proxtrain": 1.0}  # without compiling
    micros = measure(problem, 1, tmp_path)
    assert list(micros) == ["proxtrain", "by hand"]
    assert all(len(values) == 1 and values[0] > 0 for values in micros.values())


def test_evaluations_that_end_elsewhere_are_refused(tmp_path: Path) -> None:
    problem = scipy_method("trust-ncg", 5)
    problem.by_hand = lambda problem, evaluations: scipy_by_hand(scipy_method("trust-ncg", 1), evaluations)
    with pytest.raises(RuntimeError, match="different work"):
        measure(problem, 1, tmp_path)
