"""Early stopping, the monitors' view of metrics, the summary and the progress bar."""

import math
from datetime import timedelta

import pytest
import torch
from torch.optim import SGD

from framework.callbacks import EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar
from tests.modules import Regressor, make_loader, make_trainer


class Scripted(Regressor):
    """Validates to given scores, one per epoch."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def validation_step(self, batch, batch_idx):
        self.log("score", self.scores[self.trainer.current_epoch])


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


def test_the_best_checkpoint_waits_for_the_first_validation(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="score")
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(Scripted([9.0, 2.0, 9.0, 1.0, 9.0]), make_loader(), make_loader())
    assert callback.best == 1.0
    assert torch.load(tmp_path / "best.ckpt")["progress"]["epoch"] == 4


@pytest.mark.parametrize("kind", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize("every", [1, 2])
def test_a_monitored_metric_that_is_never_logged_is_refused_and_the_others_named(tmp_path, kind, every):
    trainer = make_trainer(
        tmp_path,
        callbacks=kind(monitor="val/acc"),
        max_epochs=2,
        check_val_every_n_epoch=every,
        num_sanity_val_steps=0,
    )
    with pytest.raises(ValueError, match=rf"{kind.__name__} monitors 'val/acc', which was never logged; .*val/loss"):
        trainer.fit(Regressor(), make_loader(), make_loader())


def test_a_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="mode='auto' of EarlyStopping; it must be 'min' or 'max'"):
        EarlyStopping("x", mode="auto")


def test_a_metric_of_the_training_can_be_monitored(tmp_path):
    class Logged(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0, on_step=False, on_epoch=True)
            return self.loss(batch)

    trainer = make_trainer(tmp_path, callbacks=EarlyStopping("x", patience=2), max_epochs=9)
    trainer.fit(Logged(), make_loader())
    assert trainer.current_epoch == 3


def test_last_is_as_old_as_the_interval_at_most(tmp_path):
    callback = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0))
    seen = []

    class Watch(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx:
                seen.append(torch.load(tmp_path / "last.ckpt")["progress"]["global_step"])

    make_trainer(tmp_path, callbacks=callback, max_epochs=1).fit(Watch(), make_loader())
    assert seen == [1, 2]


def test_a_crash_of_the_run_leaves_the_best_checkpoint_whole(tmp_path):
    class Diverging(Scripted):
        def on_train_epoch_start(self):
            if self.trainer.current_epoch == 2:
                torch.nn.init.constant_(self.net[0].weight, math.nan)

    trainer = make_trainer(
        tmp_path, callbacks=ModelCheckpoint(tmp_path, monitor="score"), max_epochs=4, log_every_n_steps=1
    )
    with pytest.raises(ValueError, match="train/loss is nan at global_step 6: the run has diverged"):
        trainer.fit(Diverging([2.0, 1.0, 0.0, 0.0]), make_loader(), make_loader())
    assert torch.load(tmp_path / "best.ckpt")["progress"]["epoch"] == 2


def test_the_summary_counts_layers_parameters_and_groups(tmp_path, capsys):
    def optimize(module):
        first, second = module.net[0], module.net[2]
        return SGD(
            [
                {"params": first.parameters(), "name": "hidden", "penalized": True},
                {"params": second.parameters(), "penalized": False},
            ],
            lr=0.1,
        )

    module = Regressor(optimize)
    make_trainer(tmp_path, callbacks=ModelSummary(max_depth=2), max_epochs=0).fit(module, make_loader())
    printed = capsys.readouterr().out
    assert "26 parameters, 26 trainable, on cpu" in printed
    assert "SGD, groups: hidden (penalized), 1" in printed
    assert "net.0" in printed
    assert "Linear" in printed


def test_the_progress_bar_counts_the_steps_and_shows_the_loss(tmp_path, capsys):
    trainer = make_trainer(tmp_path, callbacks=ProgressBar(refresh_rate=1e9), max_epochs=2, log_every_n_steps=1)
    trainer.fit(Regressor(), make_loader(), make_loader())
    printed = capsys.readouterr().err
    assert "epoch 2/2: 100%" in printed
    assert "6/6" in printed
    assert "train/loss=" in printed


def test_the_progress_bar_of_a_run_without_end_has_no_total(tmp_path, capsys):
    trainer = make_trainer(tmp_path, callbacks=ProgressBar(), max_epochs=-1, max_time=timedelta(milliseconds=1))
    trainer.fit(Regressor(), make_loader())
    assert "step" in capsys.readouterr().err


def test_given_callbacks_replace_the_defaults_and_checkpoints_come_last(tmp_path):
    options = {"enable_progress_bar": True, "enable_model_summary": True, "enable_checkpointing": True}
    names = [type(callback).__name__ for callback in make_trainer(tmp_path, **options).callbacks]
    assert names == ["ModelSummary", "ProgressBar", "ModelCheckpoint"]
    given = [ModelCheckpoint(tmp_path), ProgressBar(), EarlyStopping("x")]
    callbacks = make_trainer(tmp_path, callbacks=given, **options).callbacks
    assert [type(callback).__name__ for callback in callbacks] == [
        *["ProgressBar", "EarlyStopping", "ModelSummary", "ModelCheckpoint"]
    ]
    assert callbacks[-1] is given[0]


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


def test_a_run_that_diverged_between_two_log_steps_leaves_the_last_checkpoint_as_it_was(tmp_path):
    class Diverging(Regressor):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.trainer.global_step > 1 else 1)

    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises(ValueError, match="nan at global_step 2"):
        make_trainer(tmp_path, callbacks=callback, max_epochs=1).fit(Diverging(), make_loader())
    assert torch.load(tmp_path / "last.ckpt")["progress"]["global_step"] == 2
