"""The tables in the docs are those that the script computes."""

from pathlib import Path

import pytest

from framework.recipes.networks import CNN
from scripts import scaling

DOCS = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.mark.parametrize("table", [scaling.weak_scaling, scaling.strong_scaling])
def test_the_docs_show_what_the_script_computes(table):
    assert table() in DOCS.read_text()


def test_the_network_has_as_many_parameters_as_the_script_says():
    parameters = list(CNN(input_shape=(1, 28, 28), num_outputs=10).parameters())
    assert (sum(p.numel() for p in parameters), len(parameters)) == (scaling.NUM_PARAMETERS, scaling.NUM_TENSORS)


def test_one_rank_communicates_nothing():
    assert scaling.communication_seconds(1) == 0.0
    assert scaling.all_reduce_seconds(8, 4) == pytest.approx(2 * 2 * (scaling.LATENCY + 8 / scaling.BANDWIDTH))
