"""What monitors see, and that it must be logged."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from framework.callbacks import EarlyStopping, ModelCheckpoint
from tests.modules import Regressor, at_step, make_loader, make_trainer


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


class ByStep(Regressor):
    """Logs a score of every step: 9 in the first of an epoch, then 1."""

    def training_step(self, batch, batch_idx):
        self.log("score", 9.0 if batch_idx == 0 else 1.0)
        return self.loss(batch)


def test_early_stopping_sees_the_values_of_steps_that_are_not_sent_to_loggers(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=EarlyStopping("score", patience=2), max_epochs=40)
    trainer.fit(ByStep(), make_loader())
    assert trainer.current_epoch == 3
    assert "score is no better than 1.0 after 2 checks" in trainer.stopped_because


def test_the_best_checkpoint_goes_by_the_last_step_of_an_epoch(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="score")
    make_trainer(tmp_path, callbacks=callback, max_epochs=3).fit(ByStep(), make_loader())
    assert callback.best == 1.0
    assert torch.load(tmp_path / "best.ckpt")["progress"]["epoch"] == 1


def test_a_plateau_scheduler_sees_every_step(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=1.0)
        plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        config = {"scheduler": plateau, "monitor": "score", "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(ByStep(optimize), make_loader())
    # 9, 1 (better), 1 (no better).
    assert trainer.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("monitor", ["train/loss", "train/objective", "closure_evaluations"])
def test_the_trainers_own_values_can_be_monitored_at_every_epoch(tmp_path, monitor):
    early_stopping = EarlyStopping(monitor, patience=1, min_delta=1e9)
    trainer = make_trainer(tmp_path, callbacks=early_stopping, max_epochs=40)
    trainer.fit(Regressor(), make_loader())
    assert trainer.current_epoch == 2


@pytest.mark.parametrize("monitor", ["score", "mean", "train/loss", "train/loss_epoch"])
@pytest.mark.parametrize("step", [2, 3, 5, 6, 7])
def test_a_resumed_run_counts_its_checks_like_the_uninterrupted_one(tmp_path, monitor, step):
    class Worse(Regressor):
        """Everything is better in the first epoch than in any other."""

        def training_step(self, batch, batch_idx):
            worse = float(self.trainer.current_epoch > 0)
            self.log("score", worse)
            self.log("mean", worse + batch_idx, on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx) + 100 * worse

    def fit(stop_at=None, **options):
        callbacks = [EarlyStopping(monitor, patience=3)]
        if stop_at is not None:
            callbacks.append(at_step(stop_at, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt")))
        trainer = make_trainer(tmp_path, max_epochs=20, callbacks=callbacks)
        trainer.fit(Worse(), make_loader(), **options)
        return trainer

    whole = fit(stop_at=step)
    resumed = fit(ckpt_path=tmp_path / "some.ckpt")
    assert whole.current_epoch == resumed.current_epoch == 4
    assert resumed.stopped_because == whole.stopped_because
    assert resumed.callback_metrics == whole.callback_metrics


class Falling(Regressor):
    """Its validation logs minus the number of steps."""

    def validation_step(self, batch, batch_idx):
        self.log("score", -float(self.trainer.global_step))


@pytest.mark.parametrize(("when", "steps"), [(None, [2, 5]), (False, [2, 5]), (True, [3, 6])])
def test_a_validation_within_an_epoch_is_looked_at_unless_told_otherwise(tmp_path, when, steps):
    def fit(max_epochs, **options):
        callbacks = [
            stopping := EarlyStopping("score", patience=99, mode="max", check_on_train_epoch_end=when),
            ModelCheckpoint(tmp_path, "{step}", "score", save_top_k=9, save_on_train_epoch_end=when),
        ]
        settings = {"max_epochs": max_epochs, "num_sanity_val_steps": 0, "val_check_interval": 2}
        trainer = make_trainer(tmp_path, callbacks=callbacks, **settings)
        trainer.fit(Falling(), make_loader(), make_loader(), **options)
        trainer.validate(Falling(), make_loader())  # watched by nobody
        return stopping

    fit(1)
    stopping = fit(2, ckpt_path="last")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step={step}.ckpt" for step in steps]
    assert stopping.wait_count == len(steps) - 1
