"""The time of each stage, and the end of a run after a given time."""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import pytest

from framework.callbacks import Timer
from framework.callbacks.timer import STAGES
from framework.optim import MinimizeWrapper
from tests.callbacks.pairs import fit_ours, fit_theirs
from tests.modules import Regressor, at_step, callback_of, make_loader, make_trainer

SCORES = [0.0] * 6


@pytest.mark.parametrize(
    "duration", ["01:02:03:04", timedelta(hours=5), {"days": 1, "seconds": 2}, timedelta(0), " 00:00:00:09 "]
)
def test_the_time_left_is_that_of_lightning(duration):
    assert Timer(duration).time_remaining() == pl.callbacks.Timer(duration).time_remaining()
    assert Timer().time_remaining() is pl.callbacks.Timer().time_remaining() is None
    assert Timer(duration).time_elapsed() == 0


def test_each_stage_has_its_times(tmp_path):
    timer, trainer_options = Timer(), {"num_sanity_val_steps": 1}
    trainer = make_trainer(tmp_path, callbacks=timer, **trainer_options)
    assert all(timer.start_time(stage) is timer.end_time(stage) is None for stage in STAGES)
    began = time.monotonic()
    module = Regressor()
    module.predict_step = lambda batch, batch_idx: module(batch[0])
    trainer.fit(module, make_loader(), make_loader())
    trainer.test(module, make_loader())
    trainer.predict(module, make_loader())
    for stage in STAGES:
        start, end = timer.start_time(stage), timer.end_time(stage)
        assert began <= start <= end <= time.monotonic()
        assert timer.time_elapsed(stage) == end - start
    assert timer.end_time("sanity_check") <= timer.start_time("train") <= timer.start_time("validate")
    assert timer.end_time("validate") <= timer.end_time("train") <= timer.start_time("test")


def test_a_stage_that_runs_has_no_end_and_one_that_failed_has(tmp_path):
    def look(trainer: Any, *_: Any) -> None:
        assert timer.end_time("validate") is None
        assert timer.time_elapsed("validate") < timer.time_elapsed("train") < 60
        if trainer.current_epoch == 1:
            raise RuntimeError("now")

    timer = Timer()
    trainer = make_trainer(tmp_path, callbacks=[timer, callback_of(on_validation_batch_start=look)])
    trainer.num_sanity_val_steps = 0
    with pytest.raises(RuntimeError, match="now"):
        trainer.fit(Regressor(), make_loader(), make_loader())
    assert timer.end_time("train") >= timer.start_time("validate")
    assert timer.end_time("validate") is not None


@pytest.mark.parametrize(("interval", "steps"), [("step", 1), ("epoch", 3)])
def test_a_run_ends_as_soon_as_the_time_is_over(tmp_path, interval, steps, capsys):
    wait = at_step(1, lambda trainer: time.sleep(0.02))
    timer = Timer({"milliseconds": 20}, interval)
    trainer = fit_ours(tmp_path, timer, SCORES, before=[wait])
    assert trainer.global_step == steps
    assert trainer.stopped_because.startswith("timer: trained for 0:")
    assert timer.time_remaining() < 0
    assert capsys.readouterr().out == f"T{trainer.stopped_because[1:]}: the run is stopped\n"


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_run_without_time_takes_no_more_steps_than_under_lightning(tmp_path, interval):
    ours = fit_ours(tmp_path, Timer(timedelta(0), interval, verbose=False), SCORES)
    theirs = fit_theirs(tmp_path, pl.callbacks.Timer(timedelta(0), interval, verbose=False), SCORES)
    assert ours.global_step == 0 <= theirs.global_step


def test_a_long_step_ends_within_it(tmp_path):
    def optimize(module: Any) -> Any:
        return MinimizeWrapper(module.parameters(), {"method": "BFGS", "options": {"maxiter": 50, "gtol": 0.0}})

    seen: list[int] = []
    slow = callback_of(on_optimizer_iteration=lambda trainer, module, number, value: seen.append(time.sleep(0.01)))
    trainer = make_trainer(
        tmp_path, callbacks=[slow, Timer({"milliseconds": 30}, verbose=False)], accumulate_grad_batches="epoch"
    )
    trainer.fit(Regressor(optimize), make_loader())
    assert trainer.global_step == 1
    assert len(seen) < 10


def test_the_time_of_training_goes_on_in_a_run_that_continues(tmp_path):
    path = tmp_path / "some.ckpt"

    def act(trainer: Any) -> None:
        time.sleep(0.03)
        trainer.save_checkpoint(path)

    first = Timer()
    fit_ours(tmp_path, first, SCORES[:1], before=[at_step(2, act)])
    second = Timer({"seconds": 60})
    seen: list[float] = []
    start = callback_of(on_train_start=lambda *_: seen.append(second.time_elapsed()))
    fit_ours(tmp_path, second, SCORES[:1], after=[start], ckpt_path=path)
    assert 0.03 <= seen[0] <= first.time_elapsed() + second.end_time() - second.start_time()
    assert second.time_elapsed() > 0.03
    over = Timer({"milliseconds": 20}, verbose=False)
    trainer = fit_ours(tmp_path, over, SCORES, ckpt_path=path)
    assert trainer.global_step == 2
    assert trainer.stopped_because.startswith("timer")
    again = fit_ours(tmp_path, second, SCORES[:1])
    assert again.global_step == 3
    assert second.time_elapsed() == second.end_time() - second.start_time()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"duration": "1:30"}, ValueError, "duration='1:30'; as a string it must be 'DD:HH:MM:SS'"),
        ({"duration": 90}, TypeError, "duration=90; pass 'DD:HH:MM:SS', a timedelta, or a mapping"),
        ({"interval": "batch"}, ValueError, "interval='batch'; it must be 'step' or 'epoch'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Timer(**options)


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage='fit'; it must be one of train, validate, test, predict, sanity_check"):
        Timer().time_elapsed("fit")


def test_an_interval_without_a_duration_is_warned_about():
    with pytest.warns(UserWarning, match="interval='epoch' has no effect without a duration"):
        Timer(interval="epoch")
