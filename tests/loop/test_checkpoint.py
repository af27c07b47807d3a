"""Checkpoints: resumed runs against uninterrupted ones, bitwise; files that are whole or refused."""

import os
import pickle
import resource
import signal
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from framework import Callback, Trainer
from framework.callbacks import EarlyStopping, ModelCheckpoint
from framework.data import TensorLoader
from framework.loop import checkpoint
from tests.forked import Forked
from tests.modules import (
    NUM_SAMPLES,
    NoisyDataset,
    Regressor,
    Scripted,
    Stream,
    add_noise,
    assert_same,
    assert_unchanged,
    at_step,
    callback_of,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    seed_all,
    watch,
)

EPOCHS = 5

LOADERS = {
    "global_generator": lambda: make_loader(shuffle=True),
    "own_generator": lambda: make_loader(shuffle=True, seed=3),
    "augmenting_dataset": lambda: DataLoader(NoisyDataset(*regression_data()), batch_size=8, shuffle=True),
    "tensor_loader": lambda: TensorLoader(*regression_data(), batch_size=8, shuffle=True, transform=add_noise),
}


def one_cycle(module: Any) -> Any:
    optimizer = Adam(module.param_groups(), lr=0.01)
    scheduler = OneCycleLR(optimizer, max_lr=0.05, total_steps=module.trainer.estimated_stepping_batches)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def plateau(module: Any) -> Any:
    optimizer = SGD(module.param_groups(), lr=0.05, momentum=0.9)
    scheduler = ReduceLROnPlateau(optimizer, patience=0, threshold=0.5, factor=0.5)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def lbfgs(module: Any) -> Any:
    return LBFGS(module.parameters(), max_iter=4, history_size=3, line_search_fn="strong_wolfe")


def stochastic(optimize: Any = one_cycle) -> Regressor:
    return Regressor(optimize, net=make_net(nn.BatchNorm1d(5), nn.Dropout(0.3)))


def run(root: Path, loader: Any, optimize: Any, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Trainer:
    """Run as if in a new process, as far as possible: everything is made from scratch."""
    # A resumed run starts from another seed, which the checkpoint must override.
    seed_all(0 if ckpt_path is None else 99)
    stopping = EarlyStopping("val/loss", patience=3)
    trainer = make_trainer(root, callbacks=[stopping, *callbacks], **({"max_epochs": EPOCHS} | options))
    trainer.fit(stochastic(optimize), LOADERS[loader](), make_loader(), ckpt_path=ckpt_path)
    return trainer


def assert_same_runs(resumed: Trainer, whole: Trainer) -> None:
    assert_same(resumed.module, whole.module)
    assert (resumed.global_step, resumed.current_epoch) == (whole.global_step, whole.current_epoch)
    assert resumed.closure_evaluations == whole.closure_evaluations
    assert resumed.callbacks[0].state_dict() == whole.callbacks[0].state_dict()
    ours, theirs = resumed.optimizer.state_dict(), whole.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    for ours, theirs in zip(resumed.schedulers, whole.schedulers, strict=True):
        assert ours.scheduler.state_dict() == theirs.scheduler.state_dict()


# --------------------------------------------------------------------------------------------------------- resume


# Three steps per epoch: 6 is the end of the second, and 7 and 8 are in the middle of the third.
@pytest.mark.parametrize("step", [6, 7, 8])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path, loader, step):
    path = tmp_path / "some.ckpt"
    whole = run(tmp_path, loader, one_cycle)
    run(tmp_path, loader, one_cycle, at_step(step, lambda trainer: trainer.save_checkpoint(path)))
    assert_same_runs(run(tmp_path, loader, one_cycle, ckpt_path=path), whole)


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
@pytest.mark.parametrize("loader", ["own_generator", "augmenting_dataset", "tensor_loader"])
def test_a_resumed_lbfgs_run_is_bitwise_the_uninterrupted_one(tmp_path, loader, accumulate):
    path, options = tmp_path / "some.ckpt", {"accumulate_grad_batches": accumulate, "max_epochs": 3}
    step = 1 if accumulate == "epoch" else 2
    whole = run(tmp_path, loader, lbfgs, **options)
    run(tmp_path, loader, lbfgs, at_step(step, lambda trainer: trainer.save_checkpoint(path)), **options)
    assert_same_runs(run(tmp_path, loader, lbfgs, ckpt_path=path, **options), whole)


@pytest.mark.parametrize("step", [3, 4, 6, 9])
def test_a_resumed_plateau_scheduler_does_not_miss_a_value(tmp_path, step):
    path = tmp_path / "some.ckpt"
    whole = run(tmp_path, "global_generator", plateau)
    assert whole.optimizer.param_groups[0]["lr"] < 0.05
    run(tmp_path, "global_generator", plateau, at_step(step, lambda trainer: trainer.save_checkpoint(path)))
    assert_same_runs(run(tmp_path, "global_generator", plateau, ckpt_path=path), whole)


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_run_resumed_from_the_end_of_an_epoch_is_bitwise_the_uninterrupted_one(tmp_path, epoch):
    class Save(ModelCheckpoint):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == epoch:
                trainer.save_checkpoint(tmp_path / "epoch.ckpt")

    for optimize in (one_cycle, plateau):
        whole = run(tmp_path, "own_generator", optimize)
        run(tmp_path, "own_generator", optimize, Save(save_last=False))
        assert checkpoint.load(tmp_path / "epoch.ckpt")["progress"]["epoch"] == epoch + 1
        assert_same_runs(run(tmp_path, "own_generator", optimize, ckpt_path=tmp_path / "epoch.ckpt"), whole)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_can_be_continued_to_a_later_limit(tmp_path, loader):
    whole = run(tmp_path, loader, plateau, max_epochs=4)
    first = run(tmp_path, loader, plateau, ModelCheckpoint(tmp_path), max_epochs=2)
    assert first.global_step == 6
    assert_same_runs(run(tmp_path, loader, plateau, ckpt_path=tmp_path / "last.ckpt", max_epochs=4), whole)


@pytest.mark.parametrize("limits", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 2}])
def test_a_run_resumed_beyond_its_limit_ends_at_once(tmp_path, limits):
    run(tmp_path, "tensor_loader", lbfgs, ModelCheckpoint(tmp_path), max_epochs=2)
    trainer = run(tmp_path, "tensor_loader", lbfgs, ckpt_path=tmp_path / "last.ckpt", **limits)
    assert (trainer.global_step, trainer.stopped_because) == (6, list(limits)[-1])


def test_resuming_twice_is_bitwise_the_uninterrupted_run(tmp_path):
    whole = run(tmp_path, "own_generator", one_cycle)
    paths = [tmp_path / f"{step}.ckpt" for step in (4, 11)]
    save = [at_step(int(path.stem), lambda trainer, path=path: trainer.save_checkpoint(path)) for path in paths]
    run(tmp_path, "own_generator", one_cycle, *save[:1])
    run(tmp_path, "own_generator", one_cycle, *save[1:], ckpt_path=paths[0])
    assert_same_runs(run(tmp_path, "own_generator", one_cycle, ckpt_path=paths[1]), whole)


def test_callbacks_may_be_added_or_removed_between_runs(tmp_path):
    run(tmp_path, "tensor_loader", plateau, ModelCheckpoint(tmp_path, monitor="val/loss"), max_epochs=1)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(stochastic(plateau), make_loader(), make_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 2


def test_the_mean_of_an_interrupted_epoch_counts_all_its_batches(tmp_path):
    class Logged(Regressor):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("mean", loss, on_step=False, on_epoch=True)
            return loss

    whole = make_trainer(tmp_path, max_epochs=1)
    whole.fit(Logged(), make_loader())
    save = at_step(2, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    make_trainer(tmp_path, max_epochs=1, callbacks=save).fit(Logged(), make_loader())
    resumed = make_trainer(tmp_path, max_epochs=1)
    resumed.fit(Logged(), make_loader(), ckpt_path=tmp_path / "some.ckpt")
    assert resumed.callback_metrics["mean"] == whole.callback_metrics["mean"]


def test_what_the_modules_own_hook_changes_is_in_the_checkpoint(tmp_path):
    class Averaging(Regressor):
        """Keeps a moving average of the weights, after every step."""

        def __init__(self):
            super().__init__()
            self.register_buffer("average", torch.zeros(5, 3, dtype=torch.float64))

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.average.lerp_(self.net[0].weight.detach(), 0.1)

    whole = make_trainer(tmp_path, max_epochs=1, callbacks=ModelCheckpoint(tmp_path, every_n_train_steps=2))
    whole.fit(Averaging(), make_loader())
    middle = make_trainer(tmp_path, max_steps=2, callbacks=ModelCheckpoint(tmp_path / "middle", every_n_train_steps=2))
    middle.fit(Averaging(), make_loader())
    resumed = make_trainer(tmp_path, max_epochs=1)
    resumed.fit(Averaging(), make_loader(), ckpt_path=tmp_path / "middle" / "last.ckpt")
    assert_same(resumed.module, whole.module)


# -------------------------------------------------------------------------------------------------------- signals


def kill(number: signal.Signals) -> Any:
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loader", ["own_generator", "tensor_loader"])
def test_a_signal_ends_a_run_with_a_checkpoint_to_continue_from(tmp_path, number, loader, step):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole = run(tmp_path, loader, one_cycle)
    trainers = []
    first = callback_of(on_fit_start=lambda trainer, module: trainers.append(trainer))
    with pytest.raises(SystemExit, match="143") if number == signal.SIGTERM else nullcontext():
        run(tmp_path, loader, one_cycle, first, at_step(step, kill(number)), ModelCheckpoint(tmp_path / "c"))
    (stopped,) = trainers
    assert (stopped.global_step, stopped.interrupted) == (step, True)
    assert stopped.stopped_because == f"interrupted by {number.name}"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert_same_runs(run(tmp_path, loader, one_cycle, ckpt_path=tmp_path / "c" / "last.ckpt"), whole)


def test_an_interrupted_full_batch_run_does_not_train_its_epoch_again(tmp_path):
    options = {"accumulate_grad_batches": "epoch", "max_epochs": 3}
    whole = run(tmp_path, "own_generator", lbfgs, **options)
    run(tmp_path, "own_generator", lbfgs, at_step(2, kill(signal.SIGINT)), ModelCheckpoint(tmp_path), **options)
    assert_same_runs(run(tmp_path, "own_generator", lbfgs, ckpt_path=tmp_path / "last.ckpt", **options), whole)


@pytest.mark.parametrize("has_length", [True, False])
def test_an_interrupted_validation_decides_nothing_and_is_repeated(tmp_path, has_length):
    def kill_in_epoch_1(trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGINT)

    def fit(*callbacks, **options):
        trainer = make_trainer(tmp_path, callbacks=[EarlyStopping("val/loss"), *callbacks], max_epochs=4)
        trainer.fit(Regressor(plateau), make_loader() if has_length else Stream(), make_loader(), **options)
        return trainer

    whole = fit()
    stopped = fit(callback_of(on_validation_batch_end=kill_in_epoch_1), ModelCheckpoint(tmp_path, monitor="val/loss"))
    assert (stopped.global_step, stopped.current_epoch) == (6, 1)
    assert checkpoint.load(tmp_path / "best.ckpt")["progress"]["global_step"] == 3
    assert_same_runs(fit(ckpt_path=tmp_path / "last.ckpt"), whole)


@pytest.mark.parametrize("hook", ["setup", "on_fit_start", "on_sanity_check_start", "on_train_start", "on_train_end"])
def test_a_signal_before_or_after_training_also_ends_the_run(tmp_path, hook):
    killer = callback_of(**{hook: kill(signal.SIGTERM)})
    trainer = make_trainer(tmp_path, callbacks=[killer, ModelCheckpoint(tmp_path)])
    with pytest.raises(SystemExit, match="143"):
        trainer.fit(Regressor(), make_loader(), make_loader())
    assert trainer.interrupted
    assert trainer.global_step == (6 if hook == "on_train_end" else 0)
    assert (tmp_path / "last.ckpt").exists()


def test_the_second_ctrl_c_raises_at_once(tmp_path):
    def kill_twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_batch_start=kill_twice))
    before = signal.getsignal(signal.SIGINT)  # ignored, if a shell has started the tests in the background
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Regressor(), make_loader())
    assert signal.getsignal(signal.SIGINT) is before
    trainer.callbacks.clear()
    trainer.fit(Regressor(), make_loader())
    assert (trainer.global_step, trainer.interrupted) == (6, False)


# ---------------------------------------------------------------------------------------------------------- files


class ScriptedByHook(Scripted):
    """A module that logs its scores at the end of validation."""

    validation_step = Regressor.validation_step

    def on_validation_epoch_end(self):
        self.log("score", self.scores[self.trainer.current_epoch])


def test_best_and_last_are_written_where_expected(tmp_path):
    def epoch(name):
        return checkpoint.load(tmp_path / "checkpoints" / f"{name}.ckpt")["progress"]["epoch"]

    callback = ModelCheckpoint(monitor="score", mode="max")
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=4)
    trainer.fit(ScriptedByHook([0.0, 3.0, 1.0, 2.0]), make_loader(), make_loader())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert (epoch("best"), epoch("last")) == (2, 4)
    assert callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    assert callback.last_model_path == str(tmp_path / "checkpoints" / "last.ckpt")

    best = Regressor()
    trainer.validate(best, make_loader(), ckpt_path="best")
    checkpoint.load_weights(other := Regressor(), checkpoint.load(callback.best_model_path)["state_dict"], "best")
    assert_same(best, other)


def test_checkpoints_are_on_by_default_and_can_be_thinned(tmp_path):
    make_trainer(tmp_path, enable_checkpointing=True).fit(Regressor(), make_loader())
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path / "none", save_last=False)).fit(
        Regressor(), make_loader()
    )
    assert not (tmp_path / "none").exists()
    make_trainer(tmp_path / "dev", enable_checkpointing=True, fast_dev_run=True).fit(Regressor(), make_loader())
    assert not (tmp_path / "dev").exists()


def test_last_is_written_every_n_steps(tmp_path):
    def crash(trainer, *_):
        if trainer.global_step == 5:
            raise OSError("power cut")

    callbacks = [ModelCheckpoint(tmp_path, every_n_train_steps=2), callback_of(on_train_batch_start=crash)]
    with pytest.raises(OSError, match="power cut"):
        make_trainer(tmp_path, callbacks=callbacks).fit(Regressor(), make_loader())
    assert checkpoint.load(tmp_path / "last.ckpt")["progress"]["global_step"] == 4


def test_the_best_value_survives_a_resume(tmp_path):
    def fit(max_epochs, **options):
        callback = ModelCheckpoint(tmp_path, monitor="score")
        trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=max_epochs)
        trainer.fit(ScriptedByHook([5.0, 1.0, 3.0]), make_loader(), make_loader(), **options)
        return callback

    fit(2)
    callback = fit(3, ckpt_path=tmp_path / "last.ckpt")
    assert callback.best == 1.0
    assert checkpoint.load(tmp_path / "best.ckpt")["progress"]["epoch"] == 2
    assert callback.best_model_path == str(tmp_path / "best.ckpt")


def test_a_second_fit_of_the_same_trainer_looks_at_its_first_value(tmp_path):
    callback = ModelCheckpoint(tmp_path, monitor="val/loss", mode="max")
    trainer = make_trainer(tmp_path, callbacks=callback, max_epochs=1)
    trainer.fit(Regressor(), make_loader(), make_loader())
    (tmp_path / "best.ckpt").unlink()
    worse = Regressor()
    nn.init.constant_(worse.net[2].bias, 100.0)
    trainer.fit(worse, make_loader(), make_loader())
    assert (tmp_path / "best.ckpt").exists()


def test_last_and_best_are_found_on_disk_by_a_new_trainer(tmp_path):
    def make(max_epochs, *callbacks):
        return make_trainer(
            tmp_path, callbacks=[ModelCheckpoint(tmp_path, monitor="val/loss"), *callbacks], max_epochs=max_epochs
        )

    with pytest.raises(ValueError, match="ckpt_path='best', but there is no such checkpoint"):
        make(1).fit(Regressor(), make_loader(), ckpt_path="best")
    with pytest.warns(UserWarning, match="there is no checkpoint .*: training starts from the beginning"):
        make(1).fit(Regressor(), make_loader(), make_loader(), ckpt_path="last")
    for name, epochs in (("last", 2), ("best", 3)):
        trainer = make(epochs, began := watch("on_train_start", lambda trainer, module: trainer.global_step))
        trainer.fit(Regressor(), make_loader(), make_loader(), ckpt_path=name)
        assert (began.seen, trainer.global_step) == ([3 * (epochs - 1)], 3 * epochs)
    best, other = Regressor(), Regressor()
    make(1).validate(best, make_loader(), ckpt_path="best")
    checkpoint.load_weights(other, checkpoint.load(tmp_path / "best.ckpt")["state_dict"], "best")
    assert_same(best, other)


def test_last_is_found_in_the_folder_of_an_earlier_version_which_goes_on(tmp_path):
    def fit(max_epochs, **options):
        trainer = make_trainer(tmp_path, logger=True, enable_checkpointing=True, max_epochs=max_epochs)
        trainer.fit(Regressor(), make_loader(), **options)
        return trainer

    fit(1), fit(1)
    trainer = fit(2, ckpt_path="last")
    assert (trainer.global_step, trainer.log_dir.name) == (6, "version_1")
    assert sorted(path.name for path in (tmp_path / "proxtrain_logs").iterdir()) == ["version_0", "version_1"]
    assert checkpoint.load(tmp_path / "proxtrain_logs/version_1/checkpoints/last.ckpt")["progress"]["epoch"] == 2


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    def make(max_epochs):
        return make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path, monitor="val/loss"), max_epochs=max_epochs)

    make(2).fit(Regressor(), make_loader(), make_loader())
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    os.utime(best, (1, 1))
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"passed over: .*last.ckpt is truncated, damaged"):
        make(3).fit(Regressor(), make_loader(), make_loader(), ckpt_path="last")
    for path in (last, best):
        path.write_bytes(path.read_bytes()[:-100])
    module = Regressor()
    with (
        assert_unchanged(module),
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(ValueError, match=r"no checkpoint .* intact"),
    ):
        make(4).fit(module, make_loader(), make_loader(), ckpt_path="last")


def test_each_flipped_bit_is_noticed(good):
    whole, generator = good.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(40):
        place, bit = (int(torch.randint(high, (), generator=generator)) for high in (len(whole), 8))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        good.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.ckpt"):
            checkpoint.load(good)
    good.write_bytes(whole)
    assert torch.load(good, weights_only=True).keys() == checkpoint.load(good).keys()


def test_a_checkpoint_has_the_mode_of_any_file_and_a_link_stays_one(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save({"a": torch.ones(3)}, tmp_path / "real.ckpt")
    finally:
        os.umask(before)
    assert (tmp_path / "real.ckpt").stat().st_mode & 0o777 == 0o640
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "real.ckpt")
    checkpoint.save({"a": torch.zeros(3)}, tmp_path / "link.ckpt")
    assert (tmp_path / "link.ckpt").is_symlink()
    assert torch.equal(torch.load(tmp_path / "real.ckpt")["a"], torch.zeros(3))


def test_what_a_dead_writer_left_is_removed(tmp_path):
    left = tmp_path / f".x.ckpt.{socket.gethostname()}.{2**22 + 1}.part"
    writing = tmp_path / f".x.ckpt.{socket.gethostname()}.{os.getppid()}.part"
    for path in (left, writing):
        path.write_bytes(b"half")
    checkpoint.save({"a": torch.ones(3)}, tmp_path / "x.ckpt")
    assert sorted(os.listdir(tmp_path)) == [writing.name, "x.ckpt"]


def train_until_the_disk_is_full(folder):
    class Growing(Regressor):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    make_trainer(folder, callbacks=ModelCheckpoint(folder, every_n_train_steps=1)).fit(Growing(), make_loader())


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tmp_path):
    process = Forked(train_until_the_disk_is_full, tmp_path, cwd=tmp_path)
    assert process.end() == 1
    assert "cannot write the checkpoint: File too large; the one that was there is as it was" in process.printed
    assert "OSError" in process.printed.splitlines()[-1]
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert checkpoint.load(tmp_path / "last.ckpt")["progress"]["global_step"] == 3


def test_the_state_before_a_step_is_written_when_it_fails(tmp_path):
    class Failing(Regressor):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 40:
                self.net[0].weight.data.zero_()
                raise MemoryError("too much")
            return super().training_step(batch, batch_idx)

    options = {"max_epochs": 20}
    whole = run(tmp_path, "own_generator", one_cycle, **options)
    trainer = make_trainer(
        tmp_path, callbacks=[EarlyStopping("val/loss", patience=3), ModelCheckpoint(tmp_path)], **options
    )
    seed_all(0)
    with pytest.raises(MemoryError, match="too much"):
        trainer.fit(Failing(one_cycle, stochastic().net), LOADERS["own_generator"](), make_loader())
    step = checkpoint.load(tmp_path / "last.ckpt")["progress"]["global_step"]
    assert 0 < step <= 40
    assert_same_runs(run(tmp_path, "own_generator", one_cycle, ckpt_path=tmp_path / "last.ckpt", **options), whole)


@pytest.mark.parametrize(("option", "expected"), [(True, True), (False, False)])
def test_a_second_ctrl_c_leaves_a_checkpoint_unless_told_otherwise(tmp_path, option, expected):
    def kill_twice(trainer, *_):
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    callbacks = [callback_of(on_before_optimizer_step=kill_twice), ModelCheckpoint(tmp_path, save_on_exception=option)]
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, callbacks=callbacks).fit(Regressor(), make_loader())
    assert (tmp_path / "last.ckpt").exists() == expected


def test_a_checkpoint_from_elsewhere_names_no_other_folder(tmp_path):
    def fit(folder, **options):
        callback = ModelCheckpoint(folder, monitor="val/loss", mode="max" if options else "min")
        make_trainer(tmp_path, callbacks=callback).fit(Regressor(), make_loader(), make_loader(), **options)
        return callback

    fit(tmp_path / "one")
    callback = fit(tmp_path / "two", ckpt_path=tmp_path / "one" / "last.ckpt")
    assert callback.best_model_path == ""


def test_a_crash_while_saving_leaves_the_old_checkpoint_whole(tmp_path):
    path = tmp_path / "x.ckpt"
    checkpoint.save({"a": torch.ones(3)}, path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        checkpoint.save({"a": torch.zeros(3), "b": lambda: None}, path)
    assert torch.equal(torch.load(path)["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["x.ckpt"]


def test_a_checkpoint_is_loadable_without_running_code(tmp_path):
    def add(trainer, module, checkpoint):
        checkpoint["extra"] = {"words": ["a", "b"], "tensor": torch.arange(3)}

    def check(trainer, module, checkpoint):
        assert checkpoint["extra"]["words"] == ["a", "b"]

    extra = callback_of(on_save_checkpoint=add, on_load_checkpoint=check)
    run(tmp_path, "own_generator", plateau, extra, ModelCheckpoint(tmp_path), max_epochs=1)
    loaded = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert loaded["progress"]["global_step"] == 3
    assert {"version", "rng", "state_dict", "optimizer", "lr_schedulers", "callbacks"} <= loaded.keys()
    run(tmp_path, "own_generator", plateau, extra, ckpt_path=tmp_path / "last.ckpt")


def test_a_callback_whose_state_is_no_dictionary_is_refused_when_it_is_saved(tmp_path):
    counting = callback_of(state_dict=lambda: [1, 2])
    with pytest.raises(TypeError, match=r"state_dict\(\) returned list \(\[1, 2\]\); it must return a dictionary"):
        make_trainer(tmp_path, callbacks=[counting, ModelCheckpoint(tmp_path)]).fit(Regressor(), make_loader())


# --------------------------------------------------------------------------------------------------- refused files


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture
def good(tmp_path) -> Path:
    """Return a checkpoint of a `Regressor` with SGD."""
    make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path)).fit(Regressor(), make_loader())
    return tmp_path / "last.ckpt"


def refuse(path: Path, module: Regressor, message: str, error: type[Exception] = ValueError) -> None:
    """Check that fit and test refuse the file with this message, and that the module stays as it was."""
    trainer = make_trainer(path.parent, max_epochs=3)
    for call in (trainer.fit, trainer.test):
        with assert_unchanged(module), pytest.raises(error, match=message):
            call(module, make_loader(), ckpt_path=path)


def test_a_truncated_checkpoint_is_refused(good):
    whole = good.read_bytes()
    for size in (0, 1, 2, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        good.write_bytes(whole[:size])
        refuse(good, Regressor(), r"last\.ckpt (is truncated|holds more than tensors)")


@pytest.mark.parametrize(
    "content",
    [
        b"hello, world\n",
        b"{}",
        b"PK\x03\x04 no zip",
        b"\x80\x02}q\x00.",
        b"\x80\x05K\x01.",
        b"\x00" * 50,
        b".",
        b"q\x00.",
    ],
)
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "foreign.ckpt").write_bytes(content)
    refuse(tmp_path / "foreign.ckpt", Regressor(), r"foreign\.ckpt .*not a checkpoint")


def test_a_checkpoint_of_something_else_is_refused_by_what_it_lacks(tmp_path):
    path = tmp_path / "weights.ckpt"
    torch.save(Regressor().state_dict(), path)
    refuse(path, Regressor(), r"weights\.ckpt is not a checkpoint of a Trainer .*: it lacks progress")
    torch.save(torch.ones(3), path)
    refuse(path, Regressor(), "is not a checkpoint of a Trainer")


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "malicious.ckpt"
    torch.save({"state_dict": Malicious()}, path)
    refuse(path, Regressor(), r"malicious\.ckpt holds more than tensors and would run code")
    path.write_bytes(pickle.dumps(Malicious()))
    refuse(path, Regressor(), r"malicious\.ckpt holds more than tensors and would run code")
    assert not (tmp_path / "pwned").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    refuse(tmp_path / "nowhere.ckpt", Regressor(), r"there is no checkpoint .*nowhere\.ckpt", FileNotFoundError)


def test_a_checkpoint_of_another_model_is_refused_by_the_entries_that_differ(good):
    wider = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1))
    refuse(good, Regressor(net=wider), r"another model than this Regressor: .*net\.0\.bias has shape \(5,\) for \(7,\)")
    refuse(good, Regressor(net=make_net(nn.BatchNorm1d(5))), r"net\.2\.running_mean is missing")
    refuse(good, Regressor(net=nn.Linear(3, 1)), r"net\.0\.bias is unknown to the model")


def refuse_fit(path: Path, module: Regressor, message: str) -> None:
    with assert_unchanged(module), pytest.raises(ValueError, match=message):
        make_trainer(path.parent, max_epochs=3).fit(module, make_loader(), make_loader(), ckpt_path=path)


def test_a_checkpoint_of_another_configuration_is_refused_and_the_module_unchanged(good):
    refuse_fit(good, Regressor(plateau), r"last\.ckpt has 0 schedulers, this run 1")
    groups = Regressor(lambda m: SGD([{"params": m.net[0].parameters()}, {"params": m.net[2].parameters()}], lr=0.1))
    refuse_fit(good, groups, r"last\.ckpt has other parameters in the groups of its optimizer, or in another order")
    refuse_fit(good, Regressor(lambda m: Adam(m.parameters())), r"last\.ckpt .*SGD.*Adam")


def test_the_number_of_samples_is_what_the_steps_above_assume():
    assert NUM_SAMPLES == 20


def test_numbers_of_numpy_can_be_read_again(tmp_path):
    def optimize(module):
        return torch.optim.Adam(module.param_groups(), lr=np.float64(0.01))

    kept = callback_of(state_dict=lambda: {"best": np.float32(0.5), "of": [np.int64(1)], np.int64(3): True})
    callbacks = [kept, ModelCheckpoint(tmp_path)]
    make_trainer(tmp_path, callbacks=callbacks, max_epochs=1).fit(Regressor(optimize), make_loader())
    saved = checkpoint.load(tmp_path / "last.ckpt")
    assert saved["optimizer"]["param_groups"][0]["lr"] == 0.01
    assert next(iter(saved["callbacks"].values())) == {"best": 0.5, "of": [1], 3: True}
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(Regressor(optimize), make_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 6


@pytest.mark.parametrize("state", [np.zeros(2), Path("folder"), [{"of": object()}]], ids=["array", "path", "nested"])
def test_a_state_that_could_not_be_read_again_is_refused_before_training(tmp_path, state):
    kept = callback_of(state_dict=lambda: {"mine": state})
    trainer = make_trainer(tmp_path, callbacks=[kept, ModelCheckpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"\['mine'\].* is a .*which a checkpoint cannot hold"):
        trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 0
    assert not (tmp_path / "last.ckpt").exists()


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_last_passes_over_what_is_no_file(tmp_path, kind):
    good, bad = tmp_path / "good", tmp_path / "bad"
    make_trainer(tmp_path, callbacks=ModelCheckpoint(good), max_epochs=1).fit(Regressor(), make_loader())
    os.utime(good / "last.ckpt", (0, 0))  # clearly the older one
    bad.mkdir()
    if kind == "folder":
        (bad / "last.ckpt").mkdir()
    else:
        (bad / "last.ckpt").symlink_to(tmp_path / "gone.ckpt")
    with pytest.warns(UserWarning, match=r"passed over: (there is no checkpoint|the checkpoint .* is a folder)"):
        path, _ = checkpoint.newest([good, bad])
    assert path == good / "last.ckpt"


def test_ctrl_c_within_the_write_is_what_is_raised(tmp_path, monkeypatch):
    def save(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")  # as torch says of a file that ends within its content

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
