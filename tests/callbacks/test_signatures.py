"""The arguments of the callbacks that Lightning has, too: its names, in its order, with its defaults."""

import inspect

import pytest
from lightning.pytorch import callbacks as theirs

from framework import callbacks as ours

# Where a default of ours stands for another behavior, the class says which.
DEFAULTS = {
    "ModelCheckpoint": {"save_top_k": (None, 1), "save_on_exception": (None, False)},
}


@pytest.mark.parametrize("name", ["EarlyStopping", "LearningRateMonitor", "ModelCheckpoint", "Timer"])
def test_the_arguments_are_lightnings_in_its_order_with_its_defaults(name):
    own, other = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert list(own) == list(other)
    assert [parameter.kind for parameter in own.values()] == [parameter.kind for parameter in other.values()]
    differing = {key: (own[key].default, other[key].default) for key in own if own[key].default != other[key].default}
    assert differing == DEFAULTS.get(name, {})


def test_the_reasons_of_early_stopping_are_lightnings():
    from framework.callbacks.early_stopping import EarlyStoppingReason

    reasons = {reason.name: reason.value for reason in theirs.early_stopping.EarlyStoppingReason}
    assert {reason.name: reason.value for reason in EarlyStoppingReason} == reasons
