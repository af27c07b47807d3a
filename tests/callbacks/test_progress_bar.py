"""The progress bar, read from what it prints."""

from datetime import timedelta

from framework.callbacks import ProgressBar
from tests.modules import Regressor, make_loader, make_trainer


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
