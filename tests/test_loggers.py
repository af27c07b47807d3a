"""What stands in the files that the loggers write."""

import csv
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from lightning.fabric.loggers import TensorBoardLogger as FabricTensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from framework import Callback
from framework.loggers import CSVLogger, TensorBoardLogger
from tests.modules import Penalized, at_step, make_loader, make_trainer


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


# ---------------------------------------------------------------------------------------------------- runs that go on


def loggers(folder):
    return [CSVLogger(folder), TensorBoardLogger(folder, name="", version="tb")]


def logged(folder):
    """Return the bytes of metrics.csv, and all scalars and pictures of TensorBoard."""
    events = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0, "images": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    images = {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}
    return (folder / "metrics.csv").read_bytes(), scalars, images


class Drawing(Callback):
    def on_train_epoch_end(self, trainer, module):
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("weights", torch.zeros(3, 2, 2), trainer.global_step)


def train(folder, *callbacks, make=loggers, **options):
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(
        folder,
        logger=make(folder),
        log_every_n_steps=2,
        callbacks=[Drawing(), *callbacks],
        **({"max_epochs": 4} | options),
    )
    trainer.fit(Late(), make_loader(), make_loader(), ckpt_path=ckpt_path)
    return trainer


class Late(TwoRates):
    """Logs a name of its own from the third epoch on, which needs a new column."""

    def on_train_epoch_end(self):
        if self.trainer.current_epoch >= 2:
            self.log("early", self.net[0].weight.sum())


@pytest.mark.parametrize("first", [1, 4, 7, 9])
@pytest.mark.parametrize("died_at", [10, 12])
def test_a_run_that_goes_on_leaves_the_files_of_the_uninterrupted_one(tmp_path, first, died_at):
    """The process dies later than the checkpoint is written, so that its last rows are made again."""
    train(tmp_path / "whole")
    folder = tmp_path / "parts"
    saving = at_step(first, lambda trainer: trainer.save_checkpoint(folder / "some.ckpt"))
    with suppress(KeyboardInterrupt):
        train(folder, saving, at_step(died_at, kill))
    train(folder, ckpt_path=folder / "some.ckpt")
    assert logged(folder) == logged(tmp_path / "whole")
    assert len(list((folder / "tb").iterdir())) == 1


def kill(trainer):
    raise KeyboardInterrupt


def test_a_run_may_die_and_go_on_again_and_again(tmp_path):
    train(tmp_path / "whole")
    folder = tmp_path / "parts"
    at = None
    for step in range(1, 12, 2):
        saving = at_step(step, lambda trainer: trainer.save_checkpoint(folder / "some.ckpt"))
        with suppress(KeyboardInterrupt):
            train(folder, saving, at_step(step + 1, kill), ckpt_path=at)
        at = folder / "some.ckpt"
    train(folder, ckpt_path=at)
    assert logged(folder) == logged(tmp_path / "whole")


def test_a_half_written_record_and_row_are_cut_off(tmp_path):
    train(tmp_path / "whole")
    folder = tmp_path / "parts"
    saving = at_step(7, lambda trainer: trainer.save_checkpoint(folder / "some.ckpt"))
    with suppress(KeyboardInterrupt):
        train(folder, saving, at_step(9, kill))
    for path in (folder / "metrics.csv", *(folder / "tb").iterdir()):
        with path.open("ab") as file:
            file.write(b"12,7")
    train(folder, ckpt_path=folder / "some.ckpt")
    assert logged(folder) == logged(tmp_path / "whole")


def test_the_logs_of_another_run_are_set_aside_and_named(tmp_path):
    train(tmp_path, max_epochs=1)
    before = logged(tmp_path)
    with pytest.warns(UserWarning, match="had the logs of another run") as warned:
        train(tmp_path, max_epochs=2)
    assert len([one for one in warned if "another run" in str(one.message)]) == 2
    assert (tmp_path / "previous-1" / "metrics.csv").read_bytes() == before[0]
    assert len(list((tmp_path / "tb" / "previous-1").iterdir())) == 1
    train(tmp_path / "alone", max_epochs=2)
    assert logged(tmp_path) == logged(tmp_path / "alone")


def test_a_checkpoint_of_another_folder_cuts_nothing(tmp_path):
    train(tmp_path / "one", at_step(4, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt")))
    one = logged(tmp_path / "one")
    train(tmp_path / "two", ckpt_path=tmp_path / "some.ckpt")
    assert logged(tmp_path / "one") == one
    with open(tmp_path / "two" / "metrics.csv") as file:
        assert next(csv.DictReader(file))["step"] == "4"
    # A table of its own that is not the saved one's is kept, too.
    other = tmp_path / "other"
    train(other, max_epochs=1)
    (other / "metrics.csv").write_text((other / "metrics.csv").read_text().replace("1", "2"))
    kept = (other / "metrics.csv").read_bytes()
    with pytest.warns(UserWarning, match="had the logs of another run"):
        train(other, ckpt_path=tmp_path / "some.ckpt")
    assert (other / "previous-1" / "metrics.csv").read_bytes() == kept


def test_two_fits_of_one_trainer_append(tmp_path):
    trainer = train(tmp_path, max_epochs=1)
    trainer.fit(Late(), make_loader())
    with open(tmp_path / "metrics.csv") as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == ["0", "2", "0", "2"]
    assert len(list((tmp_path / "tb").iterdir())) == 1


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("options", [{"name": "../x"}, {"name": "/x"}, {"version": "../../x"}])
def test_a_logger_stays_in_its_folder(tmp_path, logger, options):
    with pytest.raises(ValueError, match="would write outside of its root_dir"):
        logger(tmp_path, **options)


FULL = """
import resource, sys, warnings
from pathlib import Path
from tests.test_loggers import train
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
warnings.simplefilter("always")
trainer = train(folder)
print("steps", trainer.global_step)
"""


@pytest.mark.parametrize("size", [200, 700])
def test_a_full_disk_silences_the_logger_and_the_run_goes_on(tmp_path, size):
    """Files cannot grow beyond a limit, as on a full disk."""
    train(tmp_path / "whole")
    folder = tmp_path / "full"
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(folder), str(size)], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.strip().endswith("steps 12")
    assert "Traceback" not in ended.stderr
    said = [line for line in ended.stderr.splitlines() if "cannot write to" in line]
    assert len(said) == 2
    assert all("File too large" in line and "the run goes on" in line for line in said)
    rows = (folder / "metrics.csv").read_text().splitlines() if (folder / "metrics.csv").exists() else []
    assert all(row.count(",") == rows[0].count(",") for row in rows)
    assert (folder / "metrics.csv").stat().st_size <= size if rows else True


def test_a_folder_that_cannot_be_made_silences_the_logger(tmp_path):
    (tmp_path / "file").touch()
    trainer = make_trainer(tmp_path, logger=loggers(tmp_path / "file"))
    with pytest.warns(UserWarning, match="Logger cannot write to") as warned:
        trainer.fit(TwoRates(), make_loader())
    assert trainer.global_step == 6
    assert len(warned) == 2


def test_fabrics_own_loggers_are_named_when_a_run_goes_on_in_them(tmp_path):
    save = at_step(4, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    train(tmp_path, save, make=lambda folder: [FabricTensorBoardLogger(folder)])
    with pytest.warns(UserWarning, match=r"TensorBoardLogger logs some steps twice.*use framework.loggers"):
        train(tmp_path, make=lambda folder: [FabricTensorBoardLogger(folder)], ckpt_path=tmp_path / "some.ckpt")
