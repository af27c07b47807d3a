"""A plain network and a loss, trained in one line, against a loop by hand."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from framework.supervised import Supervised
from tests.modules import assert_same, make_loader, make_net, make_trainer, plain_closure


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        (Adam, Adam),
        (partial(SGD, lr=0.1, momentum=0.9), partial(SGD, lr=0.1, momentum=0.9)),
        (partial(LBFGS, max_iter=3), partial(LBFGS, max_iter=3)),
    ],
)
def test_a_network_trains_as_in_a_loop_by_hand(tmp_path, optimizer, by_hand):
    module, net, loss = (
        Supervised(make_net().double(), nn.functional.mse_loss, optimizer),
        make_net().double(),
        nn.MSELoss(),
    )
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_loader(), make_loader())
    steps = by_hand(net.parameters())
    for _ in range(2):
        for x, y in make_loader():
            steps.step(plain_closure(net, lambda x=x, y=y: loss(net(x), y)))
    assert_same(module.network, net)
    with torch.no_grad():
        total = sum(len(x) * loss(net(x), y).item() for x, y in make_loader())
    assert trainer.callback_metrics["val/loss"] == pytest.approx(total / 20)
    assert trainer.test(module, make_loader())[0]["test/loss"] == pytest.approx(total / 20)
    assert torch.equal(
        torch.cat(trainer.predict(module, make_loader())), torch.cat([net(x).detach() for x, _ in make_loader()])
    )
