"""Early stopping: which scores end a run, and why."""

import math

import lightning.pytorch as pl
import pytest

from framework.callbacks import EarlyStopping, ModelCheckpoint
from tests.callbacks.pairs import fit_ours, fit_theirs
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


# ------------------------------------------------------------------------------------------------- as in Lightning


@pytest.mark.parametrize(
    ("scores", "options"),
    [
        ([3.0, 2.0, 1.0, 0.5], {"patience": 1}),
        ([3.0, 4.0, 2.0, 2.5, 2.5, 0.0], {"patience": 2}),
        ([1.0, 2.0, 3.0, 2.0, 4.0], {"patience": 1, "mode": "max"}),
        ([3.0, 2.95, 2.9, 1.0], {"patience": 2, "min_delta": 0.1}),
        ([3.0, math.nan, 1.0], {}),
        ([3.0, math.nan, 4.0, 1.0], {"check_finite": False, "patience": 2}),
        ([3.0, 9.0, 1.0], {"divergence_threshold": 8.0}),
        ([3.0, 8.0, 1.0], {"divergence_threshold": 8.0}),
        ([3.0, 1.0, 9.0], {"divergence_threshold": 2.0, "mode": "max"}),
        ([3.0, 0.4, 0.1], {"stopping_threshold": 0.5}),
        ([0.1, 0.6, 0.9], {"stopping_threshold": 0.5, "mode": "max"}),
        ([2.0, 1.0, 1.0, 0.0], {"patience": 0}),
        ([3.0, 4.0, 5.0, 6.0], {"patience": 2, "check_on_train_epoch_end": False}),
        ([3.0, 4.0, 5.0, 6.0], {"patience": 2, "check_on_train_epoch_end": True}),
    ],
)
def test_a_run_ends_where_lightning_ends_it_for_the_same_reason(tmp_path, scores, options):
    own, other = EarlyStopping("val/score", **options), pl.callbacks.EarlyStopping("val/score", **options)
    ours, theirs = fit_ours(tmp_path, own, scores), fit_theirs(tmp_path, other, scores)
    assert ours.current_epoch == theirs.current_epoch
    assert (own.stopping_reason.name, own.stopped_epoch) == (other.stopping_reason.name, other.stopped_epoch)
    # Lightning does not count a value that ends a run at once, even if it is the best.
    if own.stopping_reason.name in ("NOT_STOPPED", "PATIENCE_EXHAUSTED"):
        assert (own.wait_count, own.best_score) == (other.wait_count, pytest.approx(float(other.best_score)))
    assert (own.stopping_reason_message is None) == (own.stopped_epoch == 0)


def test_a_metric_that_is_never_logged_is_waited_for_if_not_strict(tmp_path):
    stop = EarlyStopping("val_score", strict=False)
    with pytest.warns(UserWarning, match="EarlyStopping never looked at 'val_score'"):
        make_trainer(tmp_path, callbacks=stop).fit(Regressor(), make_loader(), make_loader())
    assert (stop.stopped_epoch, stop.best_score, stop.stopping_reason_message) == (0, math.inf, None)


def test_without_validation_a_check_after_it_never_happens_which_is_said(tmp_path):
    stop = EarlyStopping("train/loss", check_on_train_epoch_end=False)
    with pytest.warns(UserWarning, match=r"never looked at 'train/loss'.*check_on_train_epoch_end=False"):
        make_trainer(tmp_path, callbacks=stop).fit(Regressor(), make_loader())


def test_improvements_and_the_end_are_printed_if_asked_for(tmp_path, capsys):
    fit_ours(tmp_path, EarlyStopping("val/score", patience=1, verbose=True), [3.0, 2.0, 2.5])
    assert capsys.readouterr().out.splitlines() == [
        "val/score improved: the best is now 3",
        "val/score improved by 1: the best is now 2",
        "val/score is no better than 2.0 after 1 checks: the run is stopped",
    ]
    fit_ours(tmp_path, EarlyStopping("val/score", patience=1), [3.0, 2.0, 2.5])
    assert capsys.readouterr().out == ""


def test_where_to_print_without_printing_is_warned_about():
    with pytest.warns(UserWarning, match="log_rank_zero_only=True has no effect without verbose=True"):
        EarlyStopping("x", log_rank_zero_only=True)


@pytest.mark.parametrize(
    "options",
    [{"patience": 1}, {"divergence_threshold": 2.9, "patience": 9}, {"stopping_threshold": 2.0, "patience": 9}],
)
def test_a_run_that_was_stopped_ends_at_once_when_it_is_continued(tmp_path, options):
    scores = [2.5, 3.0, 1.0, 0.5, 0.4]
    first, again = (EarlyStopping("val/score", **options) for _ in range(2))
    trainer = fit_ours(tmp_path, first, scores, after=[ModelCheckpoint(tmp_path)])
    assert 0 < trainer.current_epoch < len(scores)
    continued = fit_ours(tmp_path, again, scores, ckpt_path=tmp_path / "last.ckpt")
    assert (continued.global_step, continued.stopped_because) == (trainer.global_step, trainer.stopped_because)
    assert vars(again) == vars(first)


def test_a_run_that_was_stopped_goes_on_with_more_patience(tmp_path):
    scores = [2.0, 3.0, 3.0, 3.0]
    fit_ours(tmp_path, EarlyStopping("val/score", patience=1), scores, after=[ModelCheckpoint(tmp_path)])
    patient = EarlyStopping("val/score", patience=3)
    assert fit_ours(tmp_path, patient, scores, ckpt_path=tmp_path / "last.ckpt").current_epoch == 4
    assert (patient.wait_count, patient.stopped_epoch) == (3, 3)


def test_the_count_of_one_metric_says_nothing_of_another(tmp_path):
    scores = [2.0, 3.0, 1.0, 0.0]
    fit_ours(tmp_path, EarlyStopping("val/score", patience=1), scores, after=[ModelCheckpoint(tmp_path)])
    other = EarlyStopping("train/loss", patience=1)
    assert fit_ours(tmp_path, other, scores, ckpt_path=tmp_path / "last.ckpt").current_epoch == 4
