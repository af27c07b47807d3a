"""What stands in the files that the loggers write."""

import csv
import os
import pickle
import resource
import shutil
import threading
import warnings
from contextlib import suppress

import pytest
import torch
from lightning.fabric.loggers import TensorBoardLogger as FabricTensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from framework import Callback
from framework.loggers import CSVLogger, TensorBoardLogger
from tests.forked import Forked
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


def train_on_a_full_disk(folder, size):
    """Train while files cannot grow beyond a limit, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    warnings.simplefilter("always")
    print("steps", train(folder).global_step)


@pytest.mark.parametrize("size", [200, 700])
def test_a_full_disk_silences_the_logger_and_the_run_goes_on(tmp_path, size):
    train(tmp_path / "whole")
    folder = tmp_path / "full"
    process = Forked(train_on_a_full_disk, folder, size, cwd=tmp_path)
    assert process.end() == 0, process.printed
    assert "steps 12" in process.printed
    assert "Traceback" not in process.printed
    said = [line for line in process.printed.splitlines() if "cannot write to" in line]
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


# ------------------------------------------------------------------------------------------------ without a trainer


def steps(folder, tag):
    events = EventAccumulator(str(folder), purge_orphaned_data=False)
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def table(folder):
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_runs_that_add_scalars_makes_are_continued_too(tmp_path):
    def log(logger, numbers, name="x"):
        for number in numbers:
            logger.experiment.add_scalars("pair", {name: number}, number)

    logger = TensorBoardLogger(tmp_path, name="", version="tb")
    log(logger, range(3))
    state = logger.state_dict()
    log(logger, range(3, 5))
    log(logger, range(3, 5), "later")
    logger.finalize("failed")
    logger = TensorBoardLogger(tmp_path, name="", version="tb")
    logger.load_state_dict(state)
    log(logger, range(3, 6))
    logger.finalize("success")
    assert steps(tmp_path / "tb" / "pair_x", "pair") == [0, 1, 2, 3, 4, 5]
    assert not list((tmp_path / "tb" / "pair_later").iterdir())


def begun(folder):
    """Log two steps, of which one is in the state that is returned."""
    logger = TensorBoardLogger(folder, name="", version="tb")
    logger.log_metrics({"a": 0.0}, 0)
    state = logger.state_dict()
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("failed")
    return state


def test_hyperparameters_may_be_logged_before_a_run_is_continued(tmp_path):
    state = begun(tmp_path)
    logger = TensorBoardLogger(tmp_path, name="", version="tb")
    logger.log_hyperparams({"lr": 0.1})
    logger.load_state_dict(state)
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("success")
    assert steps(tmp_path / "tb", "a") == [0, 1]
    assert len(list((tmp_path / "tb").iterdir())) == 1


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_a_state_taken_before_more_is_logged_is_that_of_the_run_so_far(tmp_path, logger):
    state = None
    for number in range(3):
        writer = logger(tmp_path, name="", version="run")
        if state is not None:
            writer.load_state_dict(state)
        assert writer.state_dict() == state  # of a run that is interrupted again at once
        writer.log_metrics({"a": 1.0}, number)
        state = writer.state_dict()
        writer.finalize("failed")
    if logger is CSVLogger:
        assert [row["step"] for row in table(tmp_path / "run")] == ["0", "1", "2"]
    else:
        assert steps(tmp_path / "run", "a") == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:.*had the logs of another run")
def test_events_written_before_a_run_is_continued_are_taken_over(tmp_path):
    state = begun(tmp_path)
    logger = TensorBoardLogger(tmp_path, name="", version="tb")
    logger.experiment.add_scalar("b", 5.0, 7)
    logger.save()
    logger.load_state_dict(state)
    logger.log_metrics({"a": 1.0}, 1)
    logger.finalize("success")
    assert steps(tmp_path / "tb", "a") == [0, 1]
    assert steps(tmp_path / "tb", "b") == [7]
    assert len(list((tmp_path / "tb").iterdir())) == 1


def test_a_relative_folder_stays_where_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = [CSVLogger("logs"), TensorBoardLogger("logs", name="", version="tb")]
    for logger in both:
        logger.log_metrics({"a": 1.0}, 0)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for logger in both:
        logger.log_metrics({"a": 2.0, "b": 1.0}, 1)
        logger.finalize("success")
    assert [row["a"] for row in table(tmp_path / "logs")] == ["1.0", "2.0"]
    assert steps(tmp_path / "logs" / "tb", "a") == [0, 1]


def test_names_and_numbers_of_any_kind_are_continued(tmp_path):
    names = ["", "a,b", 'quote"', "new\nline", "cr\rx", "\u00fc", " space", "=sum"]
    logger = CSVLogger(tmp_path)
    logger.log_metrics(dict.fromkeys(names, float("nan")), torch.tensor(0))
    logger.log_metrics({"yes": True, "count": 7, "one": torch.tensor(1.0)}, 1)
    state = logger.state_dict()
    logger.log_metrics({"late": 1.0}, 2)
    logger.finalize("failed")
    logger = CSVLogger(tmp_path)
    logger.load_state_dict(state)
    logger.log_metrics({"": -0.0}, 2)
    logger.finalize("success")
    rows = table(tmp_path)
    assert rows[0].keys() == {*names, "yes", "count", "one", "step"}
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert [rows[1][name] for name in ("yes", "count", "one")] == ["1.0", "7", "1.0"]


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("value", ["text", None, torch.zeros(2)])
def test_what_is_no_number_is_refused_by_name(tmp_path, logger, value):
    with pytest.raises(TypeError, match=r"'speed' is a .*: loggers take numbers"):
        logger(tmp_path).log_metrics({"speed": value}, 0)


@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_two_loggers_of_one_file_are_refused(tmp_path, logger):
    with pytest.raises(ValueError, match="would write the same file"):
        make_trainer(tmp_path, logger=[logger(tmp_path), logger(tmp_path)])
    assert len(make_trainer(tmp_path, logger=[logger(tmp_path, name="a"), logger(tmp_path, name="b")]).loggers) == 2


def test_loggers_in_another_order_are_continued(tmp_path):
    train(tmp_path / "whole")
    folder = tmp_path / "parts"
    train(folder, at_step(4, lambda trainer: trainer.save_checkpoint(folder / "some.ckpt")), max_epochs=2)
    train(folder, make=lambda folder: loggers(folder)[::-1], ckpt_path=folder / "some.ckpt")
    assert logged(folder) == logged(tmp_path / "whole")


def test_loggers_can_be_copied_while_in_use(tmp_path):
    for logger in loggers(tmp_path):
        logger.log_metrics({"a": 1.0}, 0)
        copied = pickle.loads(pickle.dumps(logger))
        copied.log_metrics({"a": 2.0}, 1)
        copied.finalize("success")
        logger.finalize("success")
    assert [row["a"] for row in table(tmp_path)] == ["1.0", "2.0"]
    assert steps(tmp_path / "tb", "a") == [0, 1]


def test_threads_may_log_at_the_same_time(tmp_path):
    both = loggers(tmp_path)

    def log(number):
        for step in range(100):
            for logger in both:
                logger.log_metrics({f"a{number}": step}, step)
            both[1].experiment.add_scalar(f"b{number}", step, step)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logger in both:
        logger.finalize("success")
    for number in range(4):
        assert [row["step"] for row in table(tmp_path) if row[f"a{number}"]] == [str(step) for step in range(100)]
        assert steps(tmp_path / "tb", f"a{number}") == steps(tmp_path / "tb", f"b{number}") == list(range(100))


def log_and_save(logger):
    logger.log_metrics({"b": 2.0}, 1)
    logger.save()


def test_a_folder_that_is_removed_silences_the_loggers(tmp_path):
    for logger in loggers(tmp_path / "logs"):
        logger.log_metrics({"a": 1.0}, 0)
        logger.save()
        state = logger.state_dict()
        shutil.rmtree(tmp_path / "logs")
        with pytest.warns(UserWarning, match="Logger cannot write to"):
            log_and_save(logger)
        logger.log_metrics({"a": 3.0}, 2)
        assert logger.state_dict() == state
        logger.finalize("success")
    assert not os.listdir(tmp_path)


def draw_on_a_full_disk(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    logger = TensorBoardLogger(folder, name="", version="tb")
    writer = logger.experiment
    for step in range(3):
        writer.add_scalar("a", step, step)
        writer.flush()
        writer.add_image("noise", torch.rand(3, 40, 40), step)
        writer.flush()
    logger.finalize("success")


def test_a_full_disk_raises_nothing_where_pictures_are_drawn(tmp_path):
    process = Forked(draw_on_a_full_disk, tmp_path, cwd=tmp_path)
    assert process.end() == 0, process.printed
    assert process.printed.count("cannot write to") == 1
    assert steps(tmp_path / "tb", "a") == [0]
