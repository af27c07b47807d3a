"""A short form of the fault suite; `tests/faults/__main__.py` is the long one."""

import random

import pytest

from tests.faults.cases import CASES, Laboratory
from tests.faults.train import TRAININGS

OF_HOOKS = [name for name in CASES if name.startswith("an error in")]
OTHERS = [name for name in CASES if name not in OF_HOOKS]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield Laboratory(tmp_path_factory.mktemp("runs"))


def attempt(laboratory: Laboratory, name: str, training: str) -> list[str]:
    """Try a case once; return what was wrong."""
    case, _ = CASES[name]
    return case(laboratory, training, random.Random(f"{name} {training}"))


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_a_run_that_was_killed_continues_to_the_same_end(laboratory, training):
    for name in ("SIGKILL at random lines", "SIGKILL inside the write"):
        assert attempt(laboratory, name, training) == []


@pytest.mark.parametrize(("number", "name"), list(enumerate(OTHERS)))
def test_a_fault_loses_nothing_and_doubles_nothing(laboratory, number, name):
    assert attempt(laboratory, name, list(TRAININGS)[number % len(TRAININGS)]) == []


@pytest.mark.parametrize(("number", "name"), list(enumerate(OF_HOOKS)))
def test_an_error_in_a_hook_loses_nothing(laboratory, number, name):
    assert attempt(laboratory, name, list(TRAININGS)[(number + 2) % len(TRAININGS)]) == []


def test_a_run_that_early_stopping_has_ended_stays_ended(laboratory):
    assert attempt(laboratory, "an error in on_fit_end of a callback", "plateau") == []
