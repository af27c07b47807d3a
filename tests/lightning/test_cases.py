"""Many runs under both trainers: what can be observed of them is equal, or differs on purpose."""

import logging

import pytest

from tests.lightning.cases import CASES
from tests.lightning.sides import Case, differences, observe


@pytest.fixture(autouse=True)
def _silent():
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def _params():
    for name, case in CASES.items():
        marks = [pytest.mark.xfail(strict=True, reason=case.fails)] if case.fails else []
        yield pytest.param(case, id=name, marks=marks)


@pytest.mark.parametrize("case", list(_params()))
def test_both_trainers_do_the_same_or_differ_on_purpose(tmp_path, case: Case):
    if case.warns:
        with pytest.warns(UserWarning, match=case.warns):
            here = observe(case, tmp_path / "here", ours=True)
    else:
        here = observe(case, tmp_path / "here", ours=True)
    there = observe(case, tmp_path / "there", ours=False)
    wrong = differences(case, here, there)
    report = [f"{name}:\n  here  {ours}\n  there {theirs}" for name, (ours, theirs) in wrong.items()]
    assert not wrong, "\n".join([*report, here.get("message", ""), there.get("message", "")])


def test_so_many_are_equal_and_so_many_differ_on_purpose():
    differing = [case for case in CASES.values() if case.differs]
    failing = [case for case in CASES.values() if case.fails]
    assert (len(CASES) - len(differing) - len(failing), len(differing), len(failing)) == (359, 59, 0)
