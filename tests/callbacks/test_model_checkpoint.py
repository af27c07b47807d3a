"""When checkpoints are written, and which ones a failing run leaves."""

import math
from datetime import timedelta

import pytest
import torch

from framework.callbacks import ModelCheckpoint
from tests.modules import Regressor, Scripted, make_loader, make_trainer, watch


def test_the_best_checkpoint_waits_for_the_first_validation(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="score")
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=5, check_val_every_n_epoch=2)
    trainer.fit(Scripted([9.0, 2.0, 9.0, 1.0, 9.0]), make_loader(), make_loader())
    assert callback.best == 1.0
    assert torch.load(tmp_path / "best.ckpt")["progress"]["epoch"] == 4


def test_last_is_as_old_as_the_interval_at_most(tmp_path):
    callback = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0))

    def saved_step(trainer, module, batch, batch_idx):
        return torch.load(tmp_path / "last.ckpt")["progress"]["global_step"] if batch_idx else None

    saved = watch("on_train_batch_start", saved_step)
    make_trainer(tmp_path, callbacks=[callback, saved], max_epochs=1).fit(Regressor(), make_loader())
    assert saved.seen == [None, 1, 2]


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


def test_a_run_that_diverged_between_two_log_steps_leaves_the_last_checkpoint_as_it_was(tmp_path):
    class Diverging(Regressor):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.trainer.global_step > 1 else 1)

    callback = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises(ValueError, match="nan at global_step 2"):
        make_trainer(tmp_path, callbacks=callback, max_epochs=1).fit(Diverging(), make_loader())
    assert torch.load(tmp_path / "last.ckpt")["progress"]["global_step"] == 2


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_folder_that_is_a_file_is_refused_before_training(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    trainer = make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path / "file" / below))
    with pytest.raises(ValueError, match="file is a file: pass another dirpath"):
        trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 0
