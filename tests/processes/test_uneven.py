"""Data, logs and random numbers that are not alike in two processes: see `tests.processes.uneven`."""

import json

import pytest

from tests.forked import run_two
from tests.processes.uneven import CASES, main

pytestmark = pytest.mark.slow

BOTH = {
    "metric in a checkpoint": 1,
    "sum at the end": 2.0,
    "monitor of one process": 3,
    "noise in a hook": "at the end of epoch 0, the processes have different parameters (net.weight)",
    "buffers": ["the buffer average is another one in each process"],
    "errors of all": [2, 3, 3],
    "skipping the rest": [4, 5, "should_stop"],
}
ALIKE = [
    "metric of one batch",
    "metric logged at the end",
    "weight of the penalty",
    "global minimization",
    "validation alone",
]
EACH_ONCE = [
    "shuffled iterable",
    "endless sampler",
    "shuffling batch sampler",
    "miscounting batch sampler",
    "shuffled loader",
    "gap within an epoch",
    "own loaders",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    codes, printed = run_two(main, folder, cwd=folder)
    assert codes == [0, 0], "\n".join(printed)
    return [json.loads((folder / f"uneven-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
def test_both_processes_find_what_one_would(found, name):
    assert [one[name] for one in found] == [BOTH[name]] * 2


@pytest.mark.parametrize("name", ALIKE)
def test_both_processes_find_the_same(found, name):
    assert found[0][name] == found[1][name]


@pytest.mark.parametrize("name", EACH_ONCE)
def test_each_sample_is_seen_once(found, name):
    assert sorted(found[0][name] + found[1][name]) == list(range(12))


def test_the_gap_within_an_epoch_leaves_the_epoch_as_it_was(found):
    assert [one["gap within an epoch"] for one in found] == [one["shuffled loader"] for one in found]


@pytest.mark.parametrize("name", ["drop_last", "drop_last of tensors"])
def test_drop_last_leaves_out_what_is_no_whole_step(found, name):
    assert [one[name] for one in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_batches_that_a_loader_makes_itself_are_shared(found):
    assert sorted(found[0]["loader with its own batches"] + found[1]["loader with its own batches"]) == [
        *range(100, 112)
    ]


def test_a_logger_that_knows_nothing_of_processes_logs_once(found):
    assert found[0]["loggers of users"] > 0
    assert found[1]["loggers of users"] == 0


def test_after_an_error_of_one_the_processes_say_that_they_have_parted(found):
    parted = ["the processes have parted"] * 2
    assert [one["error of one"][1:] for one in found] == [parted, parted]
    assert "only here" in found[0]["error of one"][0]
    assert "only here" in found[1]["error of one"][0]


def test_what_several_processes_cannot_do_is_refused(found):
    for one in found:
        *said, steps = one["refused"]
        assert steps == 3
        for message, expected in zip(
            said,
            [
                "use_distributed_sampler=False, and the processes have [2, 3] batches in train_dataloaders",
                "several processes with Manual.automatic_optimization = False",
                "not possible with several processes",
                "optimizer_zero_grad cannot keep gradients from one evaluation to the next, since several processes",
            ],
            strict=True,
        ):
            assert expected in message


def test_no_case_is_forgotten():
    tested = {*BOTH, *ALIKE, *EACH_ONCE, "drop_last", "drop_last of tensors", "loader with its own batches", "refused"}
    assert tested | {"loggers of users", "error of one"} == set(CASES)
