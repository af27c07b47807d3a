"""The learning-rate finder: Lightning's losses and suggestion, and nothing left behind."""

import copy
import random

import numpy as np
import pytest
import torch
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR

from framework.data import TensorLoader
from framework.lr_finder import lr_find
from framework.optim import ProxAdam
from tests.modules import (
    Penalized,
    Regressor,
    assert_same,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    seed_all,
    watch,
)
from tests.twins import LightningRegressor, make_lightning_trainer, momentum, without_lr


def search(tmp_path, module=None, loader=None, *, trainer=None, **options):
    loader = make_loader() if loader is None else loader
    return lr_find(trainer or make_trainer(tmp_path), module or Regressor(momentum), loader, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "linear", "min_lr": 1e-3, "max_lr": 0.5, "num_training": 30},
        {"min_lr": 1e-4, "max_lr": 10.0, "num_training": 60},
        {"max_lr": 2.0, "early_stop_threshold": None, "num_training": 40},
        {"early_stop_threshold": 1.1},
    ],
)
def test_results_are_those_of_lightning(tmp_path, options):
    trainer = make_lightning_trainer(tmp_path, max_epochs=1000)
    module = LightningRegressor(momentum)
    theirs = Tuner(trainer).lr_find(module, make_loader(), update_attr=False, **options)
    ours = search(tmp_path, **options)
    assert ours.results["lr"] == pytest.approx(theirs.results["lr"], rel=1e-9)
    assert ours.results["loss"] == pytest.approx(theirs.results["loss"], rel=1e-6, nan_ok=True)
    assert ours.suggestion() == theirs.suggestion()
    assert ours.suggestion(3, 2) == theirs.suggestion(3, 2)


class Noisy(Regressor):
    """A module with everything that a step changes; ``fails_at`` is the step at which it fails."""

    def __init__(self, fails_at=None):
        super().__init__(lambda module: module.optimizer, make_net(nn.BatchNorm1d(5), nn.Dropout(0.5)))
        self.fails_at = fails_at
        self.optimizer = Adam(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.log("loss", loss := super().training_step(batch, batch_idx))
        if len(self.losses) == self.fails_at:
            raise RuntimeError("no")
        return loss + 0 * (random.random() + np.random.rand())


@pytest.mark.parametrize("fails_at", [None, 5])
@pytest.mark.parametrize("seed", [None, 3])
def test_nothing_is_left_behind_not_even_by_a_failure(tmp_path, fails_at, seed):
    def outcome(*, with_search):
        seed_all(0)
        module, loader = Noisy(), make_loader(shuffle=True, seed=seed)
        trainer = make_trainer(tmp_path, callbacks=steps, max_epochs=1)
        trainer.fit(module, loader)
        attributes = set(vars(trainer))
        settings = {name: value for name, value in vars(trainer).items() if not name.startswith("_")}
        module.fails_at = fails_at and len(module.losses) + fails_at
        state = copy.deepcopy(module.optimizer.state_dict())
        if with_search and fails_at:
            with pytest.raises(RuntimeError, match="no"):
                search(tmp_path, module, loader, trainer=trainer)
        elif with_search:
            search(tmp_path, module, loader, trainer=trainer, num_training=15)
        module.fails_at = None
        assert state["param_groups"] == module.optimizer.state_dict()["param_groups"]
        assert (trainer.global_step, trainer.module) == (3, module)
        assert (attributes, settings) == (set(vars(trainer)), {name: vars(trainer)[name] for name in settings})
        trainer.fit(module, loader)
        return module, torch.rand(1), np.random.rand(), random.random()

    steps = watch("on_train_batch_end", lambda trainer, *_: trainer.global_step)
    (module, *draws), (expected, *expected_draws) = outcome(with_search=True), outcome(with_search=False)
    assert_same(module, expected)
    assert draws == expected_draws
    assert module.losses == expected.losses
    assert steps.seen == [1, 2, 3] * 4  # the callback saw no step of the search


def test_a_loader_with_a_state_goes_on_where_it_was(tmp_path):
    loader = TensorLoader(*regression_data(), batch_size=8, shuffle=True)
    before = copy.deepcopy(loader.state_dict())
    search(tmp_path, loader=loader, num_training=4)
    assert str(loader.state_dict()) == str(before)


def test_schedulers_validation_and_limits_of_the_run_have_no_part_in_it(tmp_path):
    def scheduled(module):
        optimizer = SGD(module.parameters(), lr=0.05, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.1), "interval": "step"},
        }

    trainer = make_trainer(tmp_path, max_epochs=1, max_steps=2, max_time="00:00:00:00", logger=True)
    results = lr_find(lambda: trainer, Regressor(scheduled), make_loader()).results
    assert results == search(tmp_path).results
    assert not list(tmp_path.glob("proxtrain_logs/*"))


def test_the_loss_of_accumulated_batches_is_their_mean(tmp_path):
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch")
    together = search(tmp_path, trainer=trainer, num_training=20).results
    alone = search(tmp_path, loader=make_loader(20), num_training=20).results
    assert together["lr"] == alone["lr"]
    assert together["loss"] == pytest.approx(alone["loss"])


@pytest.mark.parametrize("threshold", [None, 4.0])
def test_a_loss_that_is_not_finite_ends_the_search(tmp_path, threshold):
    class Diverging(Regressor):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if len(self.losses) > 20 else loss

    found = search(tmp_path, Diverging(momentum), early_stop_threshold=threshold)
    assert len(found.results["lr"]) == len(found.results["loss"]) == 21
    assert found.suggestion() is not None


def test_a_negative_loss_does_not_end_the_search_at_once(tmp_path):
    class Negative(Regressor):
        def loss(self, batch):
            return super().loss(batch) - 10

    assert len(search(tmp_path, Negative(momentum), max_lr=0.1).results["loss"]) == 100


def test_a_proximal_optimizer_can_be_searched_too(tmp_path):
    module = Penalized(lambda module: ProxAdam(module.param_groups(), lr=0.1))
    assert search(tmp_path, module).suggestion() is not None


def test_the_plot_shows_losses_and_the_suggestion(tmp_path):
    found = search(tmp_path, min_lr=1e-4, max_lr=0.5)
    figure = found.plot(suggest=True)
    (axes,) = figure.axes
    curve, point = axes.lines
    assert list(curve.get_xdata()) == found.results["lr"]
    assert axes.get_xscale() == "log"
    assert point.get_xdata()[0] == found.suggestion()
    figure.savefig(tmp_path / "plot.png")
    assert found.plot(ax=axes) is figure
    assert len(axes.lines) == 3


def test_too_few_losses_suggest_nothing_and_say_so(tmp_path):
    found = search(tmp_path, num_training=12)
    with pytest.warns(UserWarning, match="12 losses are too few to suggest a learning rate.*raise num_training"):
        assert found.suggestion() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, r"min_lr=1\.0, max_lr=0\.1; both must be positive, and min_lr the lower"),
        ({"min_lr": 0.0}, r"min_lr=0\.0"),
        ({"num_training": 0}, "num_training=0; it must be a positive integer"),
        ({"mode": "log"}, "mode='log'; it must be 'exponential' or 'linear'"),
        ({"early_stop_threshold": 1.0}, r"early_stop_threshold=1\.0; it must be more than 1, or None"),
        ({"module": Regressor(without_lr)}, "LBFGS has no learning rate to find"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        search(tmp_path, **options)


def test_a_trainer_that_only_tries_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fast_dev_run"):
        search(tmp_path, trainer=make_trainer(tmp_path, fast_dev_run=True))
