"""Averaged weights: those of Lightning's callbacks, in validation, at the end, in checkpoints, and after a resume."""

import copy
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks as theirs
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import update_bn

from framework import callbacks as ours
from framework.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from framework.optim import ISTA
from tests.modules import (
    Penalized,
    Regressor,
    assert_close,
    assert_same,
    assert_unchanged,
    at_step,
    callback_of,
    make_loader,
    make_net,
    make_trainer,
    watch,
)
from tests.twins import LightningRegressor, make_lightning_trainer, momentum, without_lr


def scheduled(module):
    optimizer = SGD([{"params": [p]} for p in module.parameters()], lr=0.05)
    return [optimizer], [ExponentialLR(optimizer, 0.5)]


def batch_norm():
    return make_net(nn.BatchNorm1d(5))


def run_lightning(tmp_path, callback, optimize=momentum, make=make_net, **options):
    """Train under Lightning; return the module, and the validation losses and the learning rates of the epochs."""
    losses, rates = [], []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer, module):
            losses.append(float(trainer.callback_metrics["val/loss"]))

        def on_train_epoch_start(self, trainer, module):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = LightningRegressor(optimize, make())
    options = {"max_epochs": 4, **options}
    trainer = make_lightning_trainer(tmp_path, callbacks=[callback, Watch()], **options)
    trainer.fit(module, make_loader(), make_loader())
    return module, losses, rates


def run_ours(tmp_path, *callbacks, optimize=momentum, make=make_net, ckpt_path=None, **options):
    """Train here; return the same as `run_lightning`."""
    losses = watch("on_validation_end", lambda trainer, *_: trainer.callback_metrics["val/loss"])
    rates = watch("on_train_epoch_start", lambda trainer, *_: [g["lr"] for g in trainer.optimizer.param_groups])
    options = {"num_sanity_val_steps": 0, "max_epochs": 4, **options}
    module = Regressor(optimize, make())
    trainer = make_trainer(tmp_path, callbacks=[*callbacks, losses, rates], **options)
    trainer.fit(module, make_loader(), make_loader(), ckpt_path=ckpt_path)
    return module, losses.seen, rates.seen


def late(package):
    """Make an average that begins late, from either package."""

    class Late(package.WeightAveraging):
        def should_update(self, step_idx=None, epoch_idx=None):
            return step_idx in (4, 7) or epoch_idx == 2

    return Late()


EMA = [
    {"decay": 0.9},
    {"decay": 0.5, "update_every_n_steps": 2, "use_buffers": False},
    {"decay": 0.5, "update_every_n_steps": 2, "update_starting_at_step": 5},
    {"decay": 0.5, "update_every_n_steps": 0, "update_starting_at_epoch": 1},
    {"decay": 0.9, "update_starting_at_epoch": 2},
]
AVERAGES = [
    lambda package: package.WeightAveraging(),
    lambda package: package.WeightAveraging("cpu", avg_fn=lambda average, new, count: 0.3 * average + 0.7 * new),
    lambda package: package.WeightAveraging(use_buffers=False),
    late,
    *(lambda package, options=options: package.EMAWeightAveraging(**options) for options in EMA),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make_net", [make_net, batch_norm])
@pytest.mark.parametrize("callback", AVERAGES)
def test_averages_are_those_of_lightning_in_validation_and_at_the_end(tmp_path, callback, make_net):
    average = callback(ours)
    begun = watch("on_validation_end", lambda *_: average.n_averaged > 0)
    module, losses, _ = run_ours(tmp_path, average, begun, make=make_net)
    expected, their_losses, _ = run_lightning(tmp_path, callback(theirs), make=make_net)
    assert_close(module, expected, 1e-6)
    # Before the first update, Lightning validates with the initial weights.
    since = begun.seen.index(True)
    assert losses[since:] == pytest.approx(their_losses[since:], rel=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"swa_lrs": 0.01},
        {"swa_lrs": 0.2, "swa_epoch_start": 2, "annealing_epochs": 3},
        {"swa_lrs": 0.01, "swa_epoch_start": 0.5, "annealing_epochs": 2, "annealing_strategy": "linear"},
        {"swa_lrs": 0.01, "swa_epoch_start": 1, "annealing_epochs": 0, "device": None},
        {"swa_lrs": 0.01, "swa_epoch_start": 1, "avg_fn": lambda average, weights, count: (average + weights) / 2},
    ],
)
@pytest.mark.parametrize(("optimize", "make"), [(momentum, make_net), (scheduled, batch_norm)])
def test_stochastic_weight_averaging_is_that_of_lightning(tmp_path, options, optimize, make):
    module, losses, rates = run_ours(
        tmp_path, StochasticWeightAveraging(**options), optimize=optimize, make=make, max_epochs=6
    )
    expected, their_losses, their_rates = run_lightning(
        tmp_path, theirs.StochasticWeightAveraging(**options), optimize, make, max_epochs=6
    )
    assert_close(module, expected, 1e-6)
    assert losses == pytest.approx(their_losses[:6], rel=1e-6)
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(their_rates[:6]))


def test_the_statistics_of_batch_norm_are_those_of_update_bn(tmp_path):
    net = make_net(nn.BatchNorm1d(5, momentum=0.3), nn.BatchNorm1d(5).eval())
    module, *_ = run_ours(tmp_path, StochasticWeightAveraging(0.1, 2), make=lambda: net)
    expected = copy.deepcopy(module.net)
    update_bn(make_loader(), expected)
    assert_close(module.net[2], expected[2], 1e-12)
    assert module.net[2].momentum == 0.3
    assert torch.equal(module.net[3].running_mean, torch.zeros(5))  # it is frozen


def test_an_end_before_max_epochs_leaves_the_average_too(tmp_path):
    callback = StochasticWeightAveraging(0.1, 2)
    module, *_ = run_ours(tmp_path, callback, max_epochs=9, max_steps=8)
    assert callback.n_averaged == 2
    assert_same(module, callback._average.module)


# ------------------------------------------------------------------------------------------------------ checkpoints

KINDS = [
    partial(WeightAveraging, use_buffers=False),
    partial(EMAWeightAveraging, decay=0.5, update_starting_at_epoch=1),
    partial(StochasticWeightAveraging, 0.2, 2, annealing_epochs=2),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [4, 6, 8])
def test_a_run_that_is_continued_ends_as_the_uninterrupted_one(tmp_path, kind, steps):
    options = {"optimize": scheduled, "make": batch_norm}
    module, losses, rates = run_ours(tmp_path, whole := kind(), **options)
    run_ours(tmp_path, kind(), ModelCheckpoint(tmp_path), max_steps=steps, **options)
    part = kind()
    again, later_losses, later_rates = run_ours(tmp_path, part, ckpt_path=tmp_path / "last.ckpt", **options)
    assert_same(module, again)
    assert_same(whole._average, part._average)
    assert losses[-len(later_losses) :] == later_losses
    assert rates[-len(later_rates) :] == later_rates


def test_a_checkpoint_written_anywhere_continues_alike(tmp_path):
    module, *_ = run_ours(tmp_path, whole := EMAWeightAveraging(decay=0.5))
    saves = {
        "in_validation": callback_of(
            on_validation_batch_end=lambda trainer, *_: trainer.save_checkpoint(tmp_path / "in_validation.ckpt")
        ),
        "in_step_5": at_step(5, lambda trainer: trainer.save_checkpoint(tmp_path / "in_step_5.ckpt")),
    }
    for name, save in saves.items():
        run_ours(tmp_path, EMAWeightAveraging(decay=0.5), save, max_epochs=3)
        part = EMAWeightAveraging(decay=0.5)
        again, *_ = run_ours(tmp_path, part, ckpt_path=tmp_path / f"{name}.ckpt")
        assert_same(module, again)
        assert_same(whole._average, part._average)


def test_a_checkpoint_is_evaluated_with_the_average_and_continued_with_the_weights(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/loss")
    plain, *_ = run_ours(tmp_path)
    module, losses, _ = run_ours(tmp_path, WeightAveraging(), checkpoint)
    for name in ("best", "last"):
        saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
        fresh = Regressor(momentum)
        result = make_trainer(tmp_path).validate(fresh, make_loader(), ckpt_path=tmp_path / f"{name}.ckpt")
        assert result[0]["val/loss"] == losses[-1]
        assert_same(module, fresh)
        fresh.load_state_dict(saved["current_model_state"])
        assert_same(plain, fresh)


def test_a_run_may_begin_to_average_when_it_is_continued(tmp_path):
    run_ours(tmp_path, ModelCheckpoint(tmp_path), max_epochs=2)
    callback = WeightAveraging()
    module, *_ = run_ours(tmp_path, callback, ckpt_path=tmp_path / "last.ckpt")
    assert callback.n_averaged == 6
    assert_same(module, callback._average.module)


def test_a_checkpoint_of_another_model_leaves_everything_as_it_was(tmp_path):
    run_ours(tmp_path, WeightAveraging(), ModelCheckpoint(tmp_path))
    module = Regressor(momentum, nn.Linear(3, 1))
    trainer = make_trainer(tmp_path, callbacks=WeightAveraging())
    with assert_unchanged(module), pytest.raises(ValueError, match=r"last\.ckpt is from another model"):
        trainer.fit(module, make_loader(), ckpt_path=tmp_path / "last.ckpt")


# ------------------------------------------------------------------------------------------------- the course of a run


def test_training_and_its_weights_do_not_notice_the_average(tmp_path):
    weights = watch("on_train_epoch_end", lambda trainer, module: copy.deepcopy(module.state_dict()))
    run_ours(tmp_path, weights, make=batch_norm)
    averaged = watch("on_train_epoch_end", lambda trainer, module: copy.deepcopy(module.state_dict()))
    run_ours(tmp_path, WeightAveraging(), averaged, make=batch_norm)
    for before, after in zip(weights.seen, averaged.seen, strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_error_in_validation_leaves_the_weights_in_the_module(tmp_path):
    class Failing(Regressor):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("no")

    plain, *_ = run_ours(tmp_path, max_epochs=1)
    module = Failing(momentum)
    trainer = make_trainer(tmp_path, callbacks=WeightAveraging(), num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="no"):
        trainer.fit(module, make_loader(), make_loader())
    assert_same(plain, module)


@pytest.mark.parametrize("callback", [EMAWeightAveraging(update_starting_at_step=9), StochasticWeightAveraging(1.0, 3)])
def test_a_run_that_ends_before_the_average_begins_says_so_and_keeps_its_weights(tmp_path, callback):
    plain, *_ = run_ours(tmp_path, max_steps=5)
    with pytest.warns(UserWarning, match="has averaged nothing: the run ended at step 5, in epoch"):
        module, *_ = run_ours(tmp_path, callback, max_steps=5)
    assert_same(plain, module)


def test_another_fit_begins_another_average_and_validate_leaves_the_module_alone(tmp_path):
    callback = WeightAveraging()
    trainer = make_trainer(tmp_path, callbacks=callback)
    for _ in range(2):
        trainer.fit(module := Regressor(momentum), make_loader(), make_loader())
        assert callback.n_averaged == 6
    with torch.no_grad():
        module.net[0].weight.zero_()
    with assert_unchanged(module):
        trainer.validate(module, make_loader())


def test_a_proximal_optimizer_keeps_its_penalty_when_its_schedulers_are_replaced(tmp_path):
    module = Penalized(lambda module: ISTA(module.param_groups(), lr=0.05))
    callback = StochasticWeightAveraging(0.01, 1, annealing_epochs=1)
    make_trainer(tmp_path, callbacks=callback, max_epochs=3).fit(module, make_loader())
    assert callback.n_averaged == 3


# --------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WeightAveraging(avg=1), TypeError, "no option 'avg', only avg_fn and multi_avg_fn"),
        (lambda: WeightAveraging(avg_fn=max, multi_avg_fn=max), ValueError, "avg_fn and multi_avg_fn: pass one"),
        (lambda: EMAWeightAveraging(decay=1.5), ValueError, r"decay=1\.5; it must be between 0 and 1"),
        (lambda: EMAWeightAveraging(update_every_n_steps=-1), ValueError, "update_every_n_steps=-1"),
        (lambda: EMAWeightAveraging(update_every_n_steps=0), ValueError, "or update_starting_at_epoch for"),
        (lambda: StochasticWeightAveraging(0.0), ValueError, r"swa_lrs=0\.0; it must be a positive number"),
        (lambda: StochasticWeightAveraging([0.1, -1.0]), ValueError, r"swa_lrs=\[0\.1, -1\.0\]"),
        (lambda: StochasticWeightAveraging(0.1, 0), ValueError, "swa_epoch_start=0; it must be a positive integer"),
        (lambda: StochasticWeightAveraging(0.1, 1.5), ValueError, r"swa_epoch_start=1\.5"),
        (lambda: StochasticWeightAveraging(0.1, annealing_epochs=-1), ValueError, "annealing_epochs=-1"),
        (lambda: StochasticWeightAveraging(0.1, annealing_strategy="cosine"), ValueError, "must be 'cos' or 'linear'"),
    ],
)
def test_wrong_options_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("callbacks", "optimize", "options", "message"),
    [
        ([WeightAveraging(), StochasticWeightAveraging(0.1)], momentum, {}, "would both put their average"),
        ([StochasticWeightAveraging(0.1, 9)], momentum, {}, r"swa_epoch_start=9 comes after the last epoch .*=4\)"),
        ([StochasticWeightAveraging(0.1)], momentum, {"max_epochs": -1, "max_steps": 5}, "fraction of max_epochs"),
        ([StochasticWeightAveraging([0.1, 0.2])], momentum, {}, "2 learning rates for 1 parameter groups"),
        ([StochasticWeightAveraging(0.1)], without_lr, {}, "anneals the learning rate, and LBFGS has none"),
    ],
)
def test_what_a_run_cannot_do_is_refused_before_it(tmp_path, callbacks, optimize, options, message):
    with pytest.raises(ValueError, match=message):
        run_ours(tmp_path, *callbacks, optimize=optimize, **options)
