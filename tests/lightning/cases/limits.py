"""How long a run is, and when it validates."""

import math

import lightning.pytorch as pl

from tests.lightning.sides import EVERYTHING, REFUSED, case, predict, test, validate


class StopsAt(pl.Callback):
    """Ask for the end of the run at a step, in one of the hooks."""

    def __init__(self, step: int, hook: str = "on_train_batch_end") -> None:
        self.step = step
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_step >= self.step:
            trainer.should_stop = True


def ends_within_an_epoch(epochs: int):
    """Say what differs where a run ends within an epoch."""
    return {
        "differs": "current_epoch counts whole epochs, so that it says where a continued run goes on",
        "here": {"current_epoch": epochs},
        "there": {"current_epoch": epochs + 1},
    }


case("limits: two epochs, validation after each", hears=EVERYTHING)
case("limits: training alone", val=lambda: None, hears=EVERYTHING)
case("limits: a number of training batches", limit_train_batches=2, hears=EVERYTHING)
case("limits: a fraction of the training batches", limit_train_batches=0.5)
case("limits: more training batches than there are", limit_train_batches=9)
case(
    "limits: no training batches",
    limit_train_batches=0,
    differs="a fit that cannot train is a mistake: there is validate",
    **REFUSED,
)
case("limits: 1 and 1.0 are different", limit_train_batches=1, limit_val_batches=1.0, hears=EVERYTHING)
case("limits: a number of validation batches", limit_val_batches=1, hears=EVERYTHING)
case("limits: a fraction of the validation batches", limit_val_batches=0.5)
case("limits: no validation batches", limit_val_batches=0, hears=EVERYTHING)
case("limits: a number of batches in validate", play=validate, limit_val_batches=1, hears=EVERYTHING)
case("limits: a fraction of the batches in test", play=test, limit_test_batches=0.5, hears=EVERYTHING)
case("limits: a number of batches in predict", play=predict, limit_predict_batches=1, hears=EVERYTHING)
case("limits: a fraction of less than one batch", limit_train_batches=0.1)
for name, options in {"epochs": {"max_epochs": 0}, "steps": {"max_epochs": None, "max_steps": 0}}.items():
    case(
        f"limits: no {name}",
        hears=EVERYTHING,
        differs="a run without a step begins and ends, too, and the hooks of both come in pairs",
        here={"heard": lambda heard: ("module.on_train_start",) in heard and ("module.on_train_end",) in heard},
        there={
            "heard": lambda heard: ("module.on_train_start",) not in heard and ("module.on_train_end",) not in heard
        },
        **options,
    )
case("limits: as many steps as an epoch has", max_epochs=-1, max_steps=4, hears=EVERYTHING)
case(
    "limits: steps that end within an epoch",
    max_epochs=-1,
    max_steps=6,
    val=lambda: None,
    hears=EVERYTHING,
    **ends_within_an_epoch(1),
)
case(
    "limits: steps that end within an epoch, with validation",
    max_epochs=-1,
    max_steps=6,
    hears=EVERYTHING,
    differs="what a run ends with is validated; current_epoch counts whole epochs",
    here={
        "current_epoch": 1,
        "heard": lambda heard: heard.count(("module.on_validation_start",)) == 3,
        "metrics": lambda metrics: math.isclose(metrics["val_loss"], 0.6360417411535846, rel_tol=1e-9),
        "logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4, 6],
    },
    there={
        "current_epoch": 2,
        "heard": lambda heard: heard.count(("module.on_validation_start",)) == 2,
        "metrics": lambda metrics: math.isclose(metrics["val_loss"], 1.5618968668843332),
        "logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4],
    },
)
case("limits: both, of which steps are less", max_epochs=9, max_steps=8, hears=EVERYTHING)
case("limits: both, of which epochs are less", max_epochs=1, max_steps=100)
case("limits: a time of zero", max_epochs=5, max_time={"seconds": 0})
case("limits: a time that is long enough", max_epochs=2, max_time="00:01:00:00", hears=EVERYTHING)
case("limits: one batch of everything", fast_dev_run=True, hears=EVERYTHING)
case("limits: two batches of everything", fast_dev_run=2, hears=EVERYTHING)
case("limits: fast_dev_run writes no files", fast_dev_run=True, callbacks=lambda side: [side.checkpoint(save_top_k=1)])
case("limits: the same two batches in every epoch", overfit_batches=2, max_epochs=3)
case("limits: the same half of the batches in every epoch", overfit_batches=0.5, max_epochs=3)
case("limits: a sanity check of one batch", num_sanity_val_steps=1, hears=EVERYTHING)
case("limits: a sanity check of all batches", num_sanity_val_steps=-1, hears=EVERYTHING)
case("limits: no sanity check", num_sanity_val_steps=0, hears=EVERYTHING)
case("limits: validation after every second epoch", check_val_every_n_epoch=2, max_epochs=4, hears=EVERYTHING)
case("limits: validation after every third of four epochs", check_val_every_n_epoch=3, max_epochs=4)
case("limits: validation after every second batch", val_check_interval=2, hears=EVERYTHING)
case("limits: validation after every half of an epoch", val_check_interval=0.5, hears=EVERYTHING)
case("limits: validation after three batches of four", val_check_interval=3, hears=EVERYTHING)
case(
    "limits: validation after three batches, over epochs",
    val_check_interval=3,
    check_val_every_n_epoch=None,
    hears=EVERYTHING,
)
case(
    "limits: validation after six batches of four in an epoch, over epochs",
    val_check_interval=6,
    check_val_every_n_epoch=None,
    max_epochs=3,
    hears=EVERYTHING,
)
case("limits: validation within every second epoch", val_check_interval=2, check_val_every_n_epoch=2, max_epochs=4)
case("limits: validation after more batches than an epoch has", val_check_interval=9)
case("limits: should_stop at the end of an epoch", max_epochs=9, callbacks=lambda side: [StopsAt(8)], hears=EVERYTHING)
case(
    "limits: should_stop within an epoch",
    max_epochs=9,
    callbacks=lambda side: [StopsAt(6)],
    hears=EVERYTHING,
    **ends_within_an_epoch(1),
)
case(
    "limits: should_stop after validation",
    max_epochs=9,
    callbacks=lambda side: [StopsAt(8, "on_validation_end")],
    hears=EVERYTHING,
)
case(
    "limits: should_stop at the end of an epoch's hook",
    max_epochs=9,
    callbacks=lambda side: [StopsAt(4, "on_train_epoch_end")],
    hears=EVERYTHING,
)
case("limits: an unknown value", limit_train_batches=1.5)
case(
    "limits: a negative interval",
    check_val_every_n_epoch=-1,
    differs="every minus first epoch means nothing; Lightning takes it for every one",
    **REFUSED,
)
