"""Early stopping: which scores end a run, and why."""

import math

import pytest

from framework.callbacks import EarlyStopping
from tests.modules import Regressor, Scripted, make_loader, make_trainer


def stopped_after(tmp_path, scores, every=1, **options):
    """How many epochs a run lasts, and why it ends."""
    trainer = make_trainer(
        tmp_path,
        callbacks=EarlyStopping("score", **options),
        max_epochs=len(scores),
        check_val_every_n_epoch=every,
    )
    trainer.fit(Scripted(scores), make_loader(), make_loader())
    return trainer.current_epoch, trainer.stopped_because


@pytest.mark.parametrize(
    ("scores", "options", "epochs", "because"),
    [
        ([3.0, 2.0, 1.0, 0.0], {"patience": 1}, 4, "max_epochs"),
        ([3.0, 2.0, 2.0, 1.0], {"patience": 1}, 3, "no better than 2.0 after 1 checks"),
        ([3.0, 4.0, 2.0, 2.5, 2.5, 0.0], {"patience": 2}, 5, "no better than 2.0 after 2 checks"),
        ([1.0, 2.0, 3.0, 2.0, 4.0], {"patience": 1, "mode": "max"}, 4, "no better than 3.0"),
        ([3.0, 2.95, 2.8, 2.79, 1.0], {"patience": 2, "min_delta": 0.1}, 5, "max_epochs"),
        ([3.0, 2.95, 2.9, 1.0], {"patience": 2, "min_delta": 0.1}, 3, "no better than 3.0"),
        ([3.0, math.nan, 1.0], {}, 2, "score is nan"),
        ([3.0, math.inf, 1.0], {}, 2, "score is inf"),
        ([3.0, math.nan, 1.0], {"check_finite": False}, 3, "max_epochs"),
        ([3.0, 0.4, 0.1], {"stopping_threshold": 0.5}, 2, "score reached 0.4"),
        ([0.1, 0.6, 0.9], {"stopping_threshold": 0.5, "mode": "max"}, 2, "score reached 0.6"),
        ([2.0, 1.0, 1.0, 0.0], {"patience": 0}, 3, "no better"),
    ],
)
def test_early_stopping_ends_a_run_as_its_options_say(tmp_path, scores, options, epochs, because):
    ended, reason = stopped_after(tmp_path, scores, **options)
    assert ended == epochs
    assert because in reason


def test_early_stopping_looks_at_new_values_only(tmp_path):
    assert stopped_after(tmp_path, [9.0, 5.0] * 4, every=2, patience=3) == (
        8,
        "early_stopping: score is no better than 5.0 after 3 checks",
    )


def test_a_metric_of_the_training_can_be_monitored(tmp_path):
    class Logged(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0, on_step=False, on_epoch=True)
            return self.loss(batch)

    trainer = make_trainer(tmp_path, callbacks=EarlyStopping("x", patience=2), max_epochs=9)
    trainer.fit(Logged(), make_loader())
    assert trainer.current_epoch == 3


def test_a_second_fit_starts_early_stopping_anew(tmp_path):
    stop = EarlyStopping("x", patience=1)

    class Worse(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", self.trainer.current_epoch, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    trainer = make_trainer(tmp_path, callbacks=stop, max_epochs=9)
    epochs = []
    for _ in range(2):
        trainer.fit(Worse(), make_loader())
        epochs.append(trainer.current_epoch)
    assert epochs[0] == epochs[1] < 9


def test_a_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="mode='auto' of EarlyStopping; it must be 'min' or 'max'"):
        EarlyStopping("x", mode="auto")


def test_early_stopping_says_why_the_run_ended(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=EarlyStopping("val/loss", patience=1, min_delta=1e9), max_epochs=50)
    trainer.fit(Regressor(), make_loader(), make_loader())
    assert trainer.stopped_because.startswith("early_stopping: val/loss is no better")
    assert trainer.current_epoch == 2


def test_early_stopping_that_never_saw_its_metric_says_so(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=5, callbacks=EarlyStopping("val/loss"))
    with pytest.warns(UserWarning, match=r"EarlyStopping never looked at 'val/loss'.*check_val_every_n_epoch=5"):
        trainer.fit(Regressor(), make_loader(), make_loader())
