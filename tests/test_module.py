"""A module before, after and without a trainer."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim import SGD

from framework import Module
from tests.modules import Regressor, assert_same, make_loader, make_net, make_trainer


class Plain(Module):
    """A module that can be pickled, because everything is defined at the top level."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return SGD(self.param_groups(), lr=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_trained_module_can_be_copied_and_pickled_and_trained_again(tmp_path, precision, duplicate):
    module = Plain()
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.fit(module, make_loader(dtype=torch.float32))
    other = duplicate(module)
    assert_same(module, other)
    assert module.trainer is trainer
    with pytest.raises(RuntimeError, match="no trainer yet"):
        _ = other.trainer
    make_trainer(tmp_path).fit(other, make_loader(dtype=other.net[0].weight.dtype))


def test_a_module_works_without_a_trainer():
    module = Regressor()
    module.log("x", 1.0)
    module.validation_step(next(iter(make_loader())), 0)
    assert module.device == torch.device("cpu")
