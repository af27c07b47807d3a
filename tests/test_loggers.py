"""What stands in the files that the loggers write."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from framework.loggers import CSVLogger, TensorBoardLogger
from tests.modules import Penalized, make_loader, make_trainer


class TwoRates(Penalized):
    """Returns its penalty from the step; the biases have a learning rate of their own."""

    penalty = None

    def param_groups(self):
        weights, biases = super().param_groups()
        return [weights, biases | {"lr": 0.1}]

    def training_step(self, batch, batch_idx):
        return self.loss(batch), 0.1 * sum(p.abs().sum() for p in self.net[0].parameters())


def fit(tmp_path, logger, **options):
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=2, max_epochs=2, **options)
    module = TwoRates(lambda module: SGD(module.param_groups(), lr=0.05))
    trainer.fit(module, make_loader(), make_loader())
    return trainer


def test_the_event_file_holds_the_designs_tags_at_their_steps(tmp_path):
    trainer = fit(tmp_path, TensorBoardLogger(tmp_path, name="tb", version=""))
    events = EventAccumulator(str(trainer.log_dir))
    events.Reload()
    by_step = {"train/loss", "train/penalty", "train/objective", "lr/weights", "lr/biases", "grad_norm"}
    by_step |= {"sparsity/weights", "closure_evaluations", "epoch"}
    assert set(events.Tags()["scalars"]) == by_step | {"val/loss", "train/loss_epoch"}
    for tag in by_step:
        assert [event.step for event in events.Scalars(tag)] == [0, 2, 4]
    assert [event.step for event in events.Scalars("val/loss")] == [3, 6]
    assert [event.step for event in events.Scalars("train/loss_epoch")] == [3, 6]
    assert events.Scalars("val/loss")[-1].value == pytest.approx(trainer.callback_metrics["val/loss"], rel=1e-6)
    assert [event.value for event in events.Scalars("closure_evaluations")] == [1, 3, 5]
    f, g, total = (events.Scalars(f"train/{name}")[0].value for name in ("loss", "penalty", "objective"))
    assert total == pytest.approx(f + g, rel=1e-6)


def test_tensorboard_is_the_default_logger(tmp_path):
    trainer = fit(tmp_path, True, enable_checkpointing=True)
    assert trainer.log_dir.parent == tmp_path / "proxtrain_logs"
    assert list(trainer.log_dir.glob("events.out.tfevents.*"))
    assert (trainer.log_dir / "checkpoints" / "last.ckpt").exists()


def test_the_csv_file_holds_every_logged_step(tmp_path):
    fit(tmp_path, CSVLogger(tmp_path))
    with open(tmp_path / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["train/loss"]] == ["0", "2", "4"]
    assert [row["step"] for row in rows if row["val/loss"]] == ["3", "6"]
    assert all(float(row["train/objective"]) > float(row["train/loss"]) for row in rows if row["train/loss"])


def test_a_failed_run_leaves_what_was_logged(tmp_path):
    class Failing(TwoRates):
        def on_train_batch_start(self, batch, batch_idx):
            if self.trainer.global_step == 4:
                raise OSError("power cut")

    trainer = make_trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with pytest.raises(OSError, match="power cut"):
        trainer.fit(Failing(), make_loader())
    with open(tmp_path / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "1", "2", "3"]
