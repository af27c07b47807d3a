"""The stationarity gap: that of f and g at the current point, measured without a trace."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam

from framework import Callback
from framework.callbacks import ModelCheckpoint, Stationarity
from framework.optim import FISTA, ProxAdam, SpaRSA, stationarity_gap
from framework.penalties import L1
from framework.recipes.module import SupervisedModule
from tests.callbacks.lasso import data, fit, make_module
from tests.modules import assert_same, make_trainer


def gap_by_hand(module: SupervisedModule) -> Tensor:
    X, y = data().tensors
    weight, bias = (p.detach().clone().requires_grad_() for p in module.network[0].parameters())
    torch.linalg.vector_norm(y - X @ weight.T - bias).backward()
    groups = [
        {"params": [weight], "penalized": True, "happy_lambda": 2.0},
        {"params": [bias], "penalized": False, "happy_lambda": 2.0},
    ]
    return stationarity_gap(groups, L1())


@pytest.mark.parametrize(
    "optimizer", [SpaRSA, FISTA, partial(ProxAdam, lr=0.05), partial(Adam, lr=0.05), partial(LBFGS, lr=0.1)]
)
def test_the_gap_is_that_of_f_and_g_at_the_current_point_whatever_the_optimizer(tmp_path, optimizer):
    module = make_module(optimizer)
    trainer = fit(tmp_path, module, Stationarity(0.0), max_epochs=3)
    assert trainer.callback_metrics["stationarity_gap"] == pytest.approx(float(gap_by_hand(module)), rel=1e-6)


def test_the_gap_is_the_same_if_a_group_is_a_tensor_instead_of_a_list(tmp_path):
    module = make_module(partial(LBFGS, lr=0.1))
    listed = fit(tmp_path, module, Stationarity(0.0), max_epochs=3).callback_metrics["stationarity_gap"]
    module = make_module(partial(LBFGS, lr=0.1))
    weight, bias = module.network.parameters()
    module.configure_optimizers = lambda: LBFGS([weight, bias], lr=0.1)
    module.param_groups = lambda: [{"params": weight, "penalized": True}, {"params": bias, "penalized": False}]
    trainer = fit(tmp_path, module, Stationarity(0.0), max_epochs=3)
    assert trainer.callback_metrics["stationarity_gap"] == listed


def test_training_stops_at_a_small_gap_and_measuring_changes_nothing_else(tmp_path):
    module, plain = make_module(), make_module()
    trainer = fit(tmp_path, module, Stationarity(1e-7))
    assert trainer.stopped_because.startswith("stationarity: the gap is")
    assert gap_by_hand(module) <= 1e-7
    fit(tmp_path, plain, max_epochs=trainer.current_epoch)
    assert_same(module, plain)


def test_batch_norm_dropout_and_logs_do_not_notice_the_measurement(tmp_path):
    class Noisy(SupervisedModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("noisy", loss, on_step=False, on_epoch=True)
            return loss

    def run(*callbacks: Callback) -> tuple[SupervisedModule, float]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1)).double()
        module = Noisy(network, nn.MSELoss(), partial(SGD, lr=0.01))
        trainer = fit(tmp_path, module, *callbacks, max_epochs=4, loader=data(10))
        return module, trainer.callback_metrics["noisy"]

    (watched, logged), (plain, expected) = run(Stationarity()), run()
    assert_same(watched, plain)
    assert logged == expected


@pytest.mark.parametrize(("options", "message"), [({"tol": -1.0}, "tol=-1.0"), ({"every_n_epochs": 0}, "every_n")])
def test_a_measurement_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Stationarity(**options)


def test_a_run_that_it_has_ended_stays_ended_when_it_is_continued(tmp_path):
    def train(**options):
        trainer = make_trainer(tmp_path, callbacks=[Stationarity(1.0), ModelCheckpoint(tmp_path)], max_epochs=500)
        trainer.fit(make_module(SpaRSA), data(), **options)
        return trainer.global_step, trainer.stopped_because

    ended = train()
    assert ended[1].startswith("stationarity")
    assert train(ckpt_path="last") == ended
