"""Every form of configure_optimizers, and schedulers against hand-written loops."""

from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from framework.loop.schedulers import SchedulerConfig, parse_optimizers
from tests.modules import Evaluator, Regressor, Scripted, make_loader, make_trainer, watch


def rates_of(tmp_path, make_scheduler, scheduler_options=None, val_loader=None, module=None, **options) -> list[float]:
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [{"scheduler": make_scheduler(optimizer, module), **(scheduler_options or {})}]

    module = module or Regressor()
    module.optimize = optimize
    rates = watch("on_train_batch_start", lambda trainer, *_: trainer.optimizer.param_groups[0]["lr"])
    make_trainer(tmp_path, callbacks=rates, **({"max_epochs": 6} | options)).fit(module, make_loader(), val_loader)
    return rates.seen


def rates_by_hand(make_scheduler, intervals: int, steps: int = 1) -> list[float]:
    """Rates of a loop with a scheduler step after every ``steps`` optimizer steps."""
    optimizer = SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1, momentum=0.9)
    scheduler = make_scheduler(optimizer, None)
    rates = []
    for _ in range(intervals):
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    return rates


EPOCHWISE = {
    "step": lambda optimizer, module: StepLR(optimizer, 2, gamma=0.5),
    "exponential": lambda optimizer, module: ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer, module: CosineAnnealingLR(optimizer, T_max=6),
    "lambda": lambda optimizer, module: LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
}


@pytest.mark.parametrize("name", EPOCHWISE)
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_scheduler_gives_the_rates_of_a_hand_written_loop(tmp_path, name, interval):
    rates = rates_of(tmp_path, EPOCHWISE[name], {"interval": interval})
    expected = rates_by_hand(EPOCHWISE[name], 6, 3) if interval == "epoch" else rates_by_hand(EPOCHWISE[name], 18)
    assert rates == expected


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_one_cycle_by_step_spans_the_whole_run(tmp_path, accumulate):
    rates = rates_of(
        tmp_path,
        lambda o, m: OneCycleLR(o, max_lr=1.0, total_steps=m.trainer.estimated_stepping_batches),
        {"interval": "step"},
        accumulate_grad_batches=accumulate,
    )
    steps = {1: 18, 2: 12, "epoch": 6}[accumulate]
    assert rates == rates_by_hand(lambda o, m: OneCycleLR(o, max_lr=1.0, total_steps=steps), steps)


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 6), ("step", 2)])
def test_the_frequency_counts_intervals(tmp_path, interval, steps):
    rates = rates_of(tmp_path, EPOCHWISE["exponential"], {"interval": interval, "frequency": 2})
    assert rates == rates_by_hand(EPOCHWISE["exponential"], 18 // steps, steps)


def test_schedulers_count_the_steps_of_an_optimizer_that_reevaluates_not_its_evaluations(tmp_path):
    rates = watch("on_train_batch_start", lambda trainer, *_: trainer.optimizer.param_groups[0]["lr"])

    def optimize(module):
        optimizer = Evaluator(module.parameters(), lambda closure: [closure(), closure()], lr=0.1)
        return [optimizer], [{"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}]

    make_trainer(tmp_path, callbacks=rates, max_epochs=1).fit(Regressor(optimize), make_loader())
    assert rates.seen == [0.1, 0.05, 0.025]


SCORES = (5.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0)


def make_plateau(optimizer: Any, module: Any = None) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, patience=1, factor=0.5)


@pytest.mark.parametrize("every", [1, 2])
def test_plateau_sees_every_value_of_its_metric_once(tmp_path, every):
    rates = rates_of(
        tmp_path,
        make_plateau,
        {"monitor": "score"},
        make_loader(),
        Scripted(SCORES),
        max_epochs=8,
        check_val_every_n_epoch=every,
    )
    optimizer = SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    plateau = make_plateau(optimizer)
    expected = []
    for epoch in range(8):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        if (epoch + 1) % every == 0:
            plateau.step(SCORES[epoch])
    assert rates == expected
    assert every == 2 or len(set(rates)) == 3


def test_plateau_by_step_watches_the_training_loss(tmp_path):
    rates = rates_of(
        tmp_path,
        lambda o, m: ReduceLROnPlateau(o, patience=0, threshold=1e9, threshold_mode="abs", factor=0.5),
        {"monitor": "train/loss", "interval": "step"},
        log_every_n_steps=1,
        max_epochs=1,
    )
    # The first step's loss is known after it; the second value is no improvement.
    assert rates[0] == rates[1] == 0.1


def test_plateau_that_is_not_strict_waits_for_its_metric(tmp_path):
    rates = rates_of(tmp_path, make_plateau, {"monitor": "nothing", "strict": False})
    assert set(rates) == {0.1}


def test_a_monitored_metric_that_is_never_logged_is_refused_and_the_others_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"monitors 'val/los', which was never logged; .*train/loss, .*train/objective, val/loss"
    ):
        rates_of(tmp_path, make_plateau, {"monitor": "val/los"}, make_loader())
    with pytest.raises(ValueError, match=r"monitors 'val/loss', which was never logged; .*train/loss"):
        rates_of(tmp_path, make_plateau, {"monitor": "val/loss"})


# ---------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    "form",
    [
        lambda o, s: o,
        lambda o, s: [o],
        lambda o, s: (o,),
        lambda o, s: ([o], []),
        lambda o, s: ([o], [s]),
        lambda o, s: ([o], [{"scheduler": s, "interval": "step", "frequency": 2, "name": "my"}]),
        lambda o, s: {"optimizer": o},
        lambda o, s: {"optimizer": o, "lr_scheduler": None},
        lambda o, s: {"optimizer": o, "lr_scheduler": s},
        lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "monitor": "x", "strict": False}},
        lambda o, s: [{"optimizer": o, "lr_scheduler": s}],
        lambda o, s: ({"optimizer": o},),
    ],
)
def test_every_form_of_configure_optimizers_is_understood(tmp_path, form):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        return form(optimizer, StepLR(optimizer, 1))

    trainer = make_trainer(tmp_path)
    trainer.fit(Regressor(optimize), make_loader())
    assert isinstance(trainer.optimizer, SGD)
    assert trainer.global_step == 6


def test_several_schedulers_are_all_stepped(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=1.0)
        by_step = {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}
        return [optimizer], [by_step, StepLR(optimizer, 1, gamma=0.5)]

    trainer = make_trainer(tmp_path)
    trainer.fit(Regressor(optimize), make_loader())
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.9**6 * 0.5**2)


def test_plateau_may_have_its_monitor_beside_the_optimizer():
    net = torch.nn.Linear(1, 1)
    optimizer = SGD(net.parameters(), lr=0.1)
    configured = {"optimizer": optimizer, "lr_scheduler": make_plateau(optimizer), "monitor": "val/loss"}
    _, schedulers = parse_optimizers(configured, net, several=False)
    assert schedulers[0].monitor == "val/loss"


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        (lambda o, s: "adam", TypeError, "returned str; it must return"),
        (lambda o, s: [], ValueError, "returned 0 optimizers"),
        (lambda o, s: [o, Adam(o.param_groups[0]["params"])], ValueError, "returned 2 optimizers; .*exactly one"),
        (lambda o, s: (o, s), (TypeError, ValueError), "optimizer"),
        (lambda o, s: {"lr_scheduler": s}, TypeError, "NoneType where an optimizer was expected"),
        (lambda o, s: {"optimiser": o}, ValueError, r"the optimizer dictionary has \['optimiser'\]; it may have"),
        (lambda o, s: ([o], [{"scheduler": s, "intervall": "step"}]), ValueError, "'intervall'.*it may have.*interval"),
        (lambda o, s: ([o], [{"interval": "step"}]), ValueError, 'has no "scheduler"'),
        (lambda o, s: ([o], [{"scheduler": s, "interval": "batch"}]), ValueError, "'batch'; it must be 'epoch' or"),
        (lambda o, s: ([o], [{"scheduler": s, "frequency": 0}]), ValueError, "frequency of StepLR is 0"),
        (lambda o, s: ([o], [make_plateau(o)]), ValueError, "ReduceLROnPlateau needs the metric.*monitor"),
        (lambda o, s: ([o], [3]), TypeError, "returned int as a scheduler"),
    ],
)
def test_a_wrong_form_is_refused_with_what_is_allowed(tmp_path, form, error, message):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        return form(optimizer, StepLR(optimizer, 1))

    with pytest.raises(error, match=message):
        make_trainer(tmp_path).fit(Regressor(optimize), make_loader())


def test_the_defaults_of_a_scheduler_are_lightnings():
    config = SchedulerConfig(StepLR(SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1), 1))
    assert (config.interval, config.frequency, config.monitor, config.strict) == ("epoch", 1, None, True)


def test_a_plateau_sees_what_is_logged_at_the_end_of_its_epoch(tmp_path):
    class Late(Regressor):
        def on_train_epoch_end(self):
            self.log("late", float(self.trainer.current_epoch))

    def optimize(module):
        optimizer = SGD(module.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "late"}}

    trainer = make_trainer(tmp_path, max_epochs=4)
    trainer.fit(Late(optimize), make_loader(20))
    assert trainer.schedulers[0].scheduler.last_epoch == 4
    assert trainer.optimizer.param_groups[0]["lr"] == 1 / 8
