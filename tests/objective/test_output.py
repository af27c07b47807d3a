"""What training_step may return, and how it is read; what it may not return is in tests/loop/test_validation.py."""

import pytest
import torch
from torch import Tensor

from framework import Module
from framework.objective.output import check_finite, parse_output
from framework.penalties import L1


def loss(shape: tuple[int, ...] = ()) -> Tensor:
    return torch.ones(shape, requires_grad=True) * 2


def test_every_allowed_form_gives_the_loss_the_penalty_and_the_rest():
    f, g = loss(), loss((1,))
    assert parse_output(Module(), f) == (f, None, {})
    assert parse_output(Module(), (f, g)) == (f, g, {})
    assert parse_output(Module(), [f, None]) == (f, None, {})
    assert parse_output(Module(), {"loss": f}) == (f, None, {})
    f_again, g_again, extras = parse_output(Module(), {"loss": f, "penalty": g, "note": "kept"})
    assert (f_again, g_again) == (f, g)
    assert set(extras) == {"penalty", "note"}
    assert f.requires_grad
    assert g.requires_grad


def test_the_rest_of_a_mapping_does_not_keep_its_graph():
    hidden = loss((3,))
    _, _, extras = parse_output(Module(), {"loss": loss(), "hidden": hidden, "nested": [{"y": hidden}, 3]})
    assert not extras["hidden"].requires_grad
    assert not extras["nested"][0]["y"].requires_grad
    assert extras["nested"][1] == 3
    assert torch.equal(extras["hidden"], hidden)


def test_reading_an_output_never_waits_for_the_device():
    f = torch.ones((), device="meta", requires_grad=True) * 2
    assert parse_output(Module(), {"loss": f, "penalty": f, "other": f})[0] is f
    with pytest.raises((RuntimeError, NotImplementedError)):
        check_finite(Module(), f, None)


def test_a_loss_without_a_gradient_is_accepted_if_none_is_needed():
    with torch.no_grad():
        assert parse_output(Module(), loss().detach())[0] == 2


def test_a_penalty_besides_the_modules_is_refused_in_every_evaluation():
    module = Module()
    module.penalty = L1()
    assert parse_output(module, {"loss": loss(), "penalty": None})[1] is None
    for output in ((loss(), loss()), {"loss": loss(), "penalty": loss()}):
        with pytest.raises(ValueError, match="it would count twice"):
            parse_output(module, output)
