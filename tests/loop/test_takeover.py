"""What a module takes over of a step, and the batches it skips: the same as under Lightning."""

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from framework import Callback
from framework.callbacks import ModelCheckpoint
from tests.modules import (
    Regressor,
    add_noise,
    assert_close,
    assert_same,
    at_step,
    callback_of,
    make_loader,
    make_trainer,
)
from tests.twins import make_lightning_trainer, momentum, twins_with


def fit_both(root, methods: type, optimize: Any = None, **options: Any) -> tuple[Regressor, Any]:
    """Train a module and its twin; return them with the same weights, or fail."""
    ours, theirs = twins_with(methods, optimize)
    trainer = make_trainer(root, num_sanity_val_steps=0, **options)
    trainer.fit(ours, make_loader(), make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_lightning_trainer(root, **options)
        other.fit(theirs, make_loader(), make_loader())
    assert_close(ours, theirs, 1e-12)
    assert (trainer.global_step, trainer.current_epoch) == (other.global_step, other.current_epoch)
    return ours, theirs


def adam(module):
    return Adam(module.parameters(), lr=0.01)


def lbfgs(module):
    return LBFGS(module.parameters(), lr=0.1, max_iter=3)


class Recording:
    """Records what is called of it, in order, with the arguments that are plain."""

    def note(self, *what):
        self.__dict__.setdefault("record", []).append(what)


# ------------------------------------------------------------------------------------------------- the parts of a step


class WarmsUp(Recording):
    """The schedule of the documentation of Lightning: the step sets the learning rate."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        self.note(epoch, batch_idx, type(optimizer_closure) is not None)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)


class CallsClosureFirst:
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.step()


class EverySecond:
    """Steps at every second batch only, with the gradients of that batch."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx % 2 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class CallsSuper:
    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize("optimize", [momentum, adam, lbfgs])
@pytest.mark.parametrize("methods", [WarmsUp, CallsClosureFirst, EverySecond, CallsSuper])
def test_a_module_calls_the_optimizer_itself(tmp_path, methods, optimize):
    if optimize is lbfgs and methods is CallsClosureFirst:
        pytest.skip("LBFGS cannot step without a closure")
    ours, theirs = fit_both(tmp_path, methods, optimize)
    assert getattr(ours, "record", None) == getattr(theirs, "record", None)


@pytest.mark.parametrize("optimize", [momentum, adam])
def test_clipping_comes_between_the_closure_and_the_step(tmp_path, optimize):
    fit_both(tmp_path, WarmsUp, optimize, gradient_clip_val=0.1)
    fit_both(tmp_path, CallsClosureFirst, optimize, gradient_clip_val=0.01, gradient_clip_algorithm="value")


def test_accumulated_steps_are_called_once(tmp_path):
    # Lightning weighs the short last batch like the others; its 3 batches of an epoch make steps of 2 and of 1.
    ours, _ = twins_with(WarmsUp)
    make_trainer(tmp_path, accumulate_grad_batches=2).fit(ours, make_loader(), make_loader())
    assert ours.record == [(epoch, batch_idx, True) for epoch in (0, 1) for batch_idx in (0, 2)]


def test_a_step_that_calls_no_closure_is_refused(tmp_path):
    class Forgets:
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            optimizer.step()

    ours, _ = twins_with(Forgets)
    with pytest.raises(RuntimeError, match=r"without calling its closure"):
        make_trainer(tmp_path).fit(ours, make_loader())


class Backward(Recording):
    def backward(self, loss, *args, **kwargs):
        self.note(type(loss).__name__)
        (2 * loss).backward()


class HalfBackward:
    def backward(self, loss):
        super().backward(0.5 * loss)


class KeepsGradients(Recording):
    """Adds up the gradients of two batches by hand."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.note(epoch, batch_idx)
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


class Clips(Recording):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.note(gradient_clip_val)
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")


class ClipsByHand:
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        torch.nn.utils.clip_grad_value_(self.parameters(), 0.02)


@pytest.mark.parametrize("optimize", [momentum, adam])
@pytest.mark.parametrize("methods", [Backward, HalfBackward, KeepsGradients, Clips, ClipsByHand])
def test_a_module_takes_over_a_part_of_the_step(tmp_path, methods, optimize):
    ours, theirs = fit_both(tmp_path, methods, optimize)
    assert getattr(ours, "record", None) == getattr(theirs, "record", None)


def test_gradients_are_clipped_by_what_the_trainer_says_or_by_an_error(tmp_path):
    class ByDefault:
        def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    fit_both(tmp_path, ByDefault, gradient_clip_val=0.1, gradient_clip_algorithm="value")
    ours, _ = twins_with(Clips)
    with pytest.raises(ValueError, match=r"clip_gradients\(gradient_clip_val=0.05\), but the Trainer has 0.1: use one"):
        make_trainer(tmp_path, gradient_clip_val=0.1).fit(ours, make_loader())
    ours.clip_gradients = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="gradient_clip_algorithm='max'; it must be 'norm' or 'value'"):
        type(ours).clip_gradients(ours, ours.trainer.optimizer, None, "max")


def exponential(module):
    optimizer = SGD(module.parameters(), lr=0.1)
    return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}]


def plateau(module):
    optimizer = SGD(module.parameters(), lr=0.1)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "val/loss"},
    }


class StepsTwice(Recording):
    def lr_scheduler_step(self, scheduler, metric):
        self.note(type(scheduler).__name__, metric is None)
        super().lr_scheduler_step(scheduler, metric)
        super().lr_scheduler_step(scheduler, metric)


@pytest.mark.parametrize("optimize", [exponential, plateau])
def test_a_module_steps_its_schedulers(tmp_path, optimize):
    ours, theirs = fit_both(tmp_path, StepsTwice, optimize, max_epochs=4)
    assert ours.record == theirs.record
    assert ours.optimizers().param_groups[0]["lr"] == theirs.optimizers().param_groups[0]["lr"] != 0.1


class Transfers(Recording):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.note("before", len(batch), dataloader_idx)
        return [part + 1 for part in batch]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.note("transfer", str(device), dataloader_idx)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.note("after", dataloader_idx)
        return [2 * part for part in batch] if self.trainer.training else batch


def test_a_module_moves_its_batches(tmp_path):
    ours, theirs = fit_both(tmp_path, Transfers)
    # Lightning reads one batch ahead, but moves it only when it is due.
    assert ours.record == theirs.record
    assert make_trainer(tmp_path).predict(ours, [[torch.zeros(1, 3).double()]])[0].shape == (1, 1)
    assert ours.record[-1] == ("after", 0)


def test_held_batches_are_augmented_anew_in_every_epoch(tmp_path):
    class Augments(Recording):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return add_noise(*batch) if self.trainer.training else batch

        def on_train_batch_start(self, batch, batch_idx):
            self.note(float(batch[0].sum()))

    ours, _ = twins_with(Augments)
    make_trainer(tmp_path, overfit_batches=1, max_epochs=3).fit(ours, make_loader())
    assert len(set(ours.record)) == 3


def test_augmentation_on_the_device_goes_on_where_it_was_interrupted(tmp_path):
    class Augments:
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return add_noise(*batch) if self.trainer.training else batch

    whole, _ = twins_with(Augments)
    torch.manual_seed(0)
    save = at_step(4, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    make_trainer(tmp_path, max_epochs=3, callbacks=save).fit(whole, make_loader(shuffle=True))
    resumed, _ = twins_with(Augments)
    make_trainer(tmp_path, max_epochs=3).fit(resumed, make_loader(shuffle=True), ckpt_path=tmp_path / "some.ckpt")
    assert_same(whole, resumed)


class Hooks(Recording):
    """Every hook around a step, and what a step consists of."""

    def on_train_batch_start(self, batch, batch_idx):
        self.note("on_train_batch_start")

    def on_before_backward(self, loss):
        self.note("on_before_backward", loss.item())

    def on_after_backward(self):
        self.note("on_after_backward")

    def on_before_optimizer_step(self, optimizer):
        self.note("on_before_optimizer_step")

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.note("on_train_batch_end", outputs["loss"].item())


@pytest.mark.parametrize("optimize", [momentum, lbfgs])
def test_the_hooks_of_a_step_are_in_the_order_of_lightning(tmp_path, optimize):
    ours, theirs = fit_both(tmp_path, Hooks, optimize)
    if optimize is lbfgs:  # there the hook would fire, and clip, at every evaluation
        theirs.record = [entry for entry in theirs.record if entry[0] != "on_before_optimizer_step"]
        # The outputs are those of the first evaluation here, of the last there.
        ours.record, theirs.record = ([entry[:1] for entry in module.record] for module in (ours, theirs))
    assert [entry[0] for entry in ours.record] == [entry[0] for entry in theirs.record]
    values = [[entry[1] for entry in module.record if len(entry) > 1] for module in (ours, theirs)]
    torch.testing.assert_close(*values)


def test_gradients_are_dropped_before_the_step_is_evaluated(tmp_path):
    class Zeroes(Recording):
        def on_before_zero_grad(self, optimizer):
            self.note("on_before_zero_grad", any(p.grad is not None for p in self.parameters()))

        def training_step(self, batch, batch_idx):
            self.note("training_step", any(p.grad is not None for p in self.parameters()))
            return self.loss(batch)

    ours, theirs = fit_both(tmp_path, Zeroes, max_epochs=1)
    order = [[entry[0] for entry in module.record] for module in (ours, theirs)]
    assert order[0] == ["on_before_zero_grad", "training_step"] * 3
    assert order[1] == ["training_step", "on_before_zero_grad"] * 3  # the last gradients are kept meanwhile


class ClipsLBFGS:
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm): ...


class ZeroesNothing:
    def optimizer_zero_grad(self, epoch, batch_idx, optimizer): ...


@pytest.mark.parametrize(
    ("methods", "optimize", "options", "message"),
    [
        (ClipsLBFGS, lbfgs, {}, "configure_gradient_clipping with LBFGS, which evaluates its closure many times"),
        (ZeroesNothing, lbfgs, {}, "optimizer_zero_grad cannot keep gradients .* LBFGS evaluates its closure many"),
        (ZeroesNothing, adam, {"accumulate_grad_batches": 2}, "since accumulate_grad_batches=2 divides"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, methods, optimize, options, message):
    ours, _ = twins_with(methods, optimize)
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options).fit(ours, make_loader())


# ------------------------------------------------------------------------------------------------------------ skipping


def test_minus_one_skips_the_rest_of_the_epoch(tmp_path):
    class Skips(Recording):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 1 else 0

        def on_train_epoch_end(self):
            self.note(self.trainer.current_epoch, self.trainer.global_step)

        def validation_step(self, batch, batch_idx):
            self.note("validation")

    ours, theirs = fit_both(tmp_path, Skips, max_epochs=3)
    assert [entry for entry in ours.record if entry != ("validation",)] == theirs.record == [(0, 1), (1, 2), (2, 3)]
    # Lightning leaves out the validation of such an epoch, too, which nobody has asked for.
    assert ours.record.count(("validation",)) == 3 * 3


@pytest.mark.parametrize("of_callback", [True, False])
def test_an_epoch_may_be_skipped_from_its_first_batch_on(tmp_path, of_callback):
    def skip(*args):
        return -1 if args[-1] == 0 else None

    class Skips:
        on_train_batch_start = skip

    ours, _ = twins_with(type("Plain", (), {}) if of_callback else Skips)
    callbacks = callback_of(on_train_batch_start=skip) if of_callback else []
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=callbacks)
    trainer.fit(ours, make_loader())
    assert (trainer.global_step, trainer.current_epoch) == (0, 3)


class ReturnsNothing:
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else self.loss(batch)


@pytest.mark.parametrize("optimize", [momentum, adam, lbfgs])
def test_a_batch_whose_step_returns_none_is_skipped(tmp_path, optimize):
    """Against a loop by hand: under Lightning, LBFGS fails there."""
    ours, theirs = twins_with(ReturnsNothing, optimize)
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="training_step returned None; .*: no step is taken for such a batch") as seen:
        trainer.fit(ours, make_loader())
    assert len(seen) == 1
    assert trainer.global_step == 6  # as Lightning counts
    optimizer = theirs.configure_optimizers()
    for _ in range(2):
        for batch_idx, batch in enumerate(make_loader()):
            if batch_idx != 1:

                def closure(batch=batch):
                    optimizer.zero_grad()
                    loss = theirs.loss(batch)
                    loss.backward()
                    return loss

                optimizer.step(closure)
    assert_close(ours, theirs, 1e-12)


def test_a_skipped_batch_is_no_part_of_the_mean_of_its_group(tmp_path):
    ours, other = twins_with(ReturnsNothing)
    with pytest.warns(UserWarning, match="no step is taken"):
        make_trainer(tmp_path, max_epochs=1).fit(twins_with(ReturnsNothing)[0], make_loader())
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1)
    trainer.fit(ours, make_loader())
    optimizer = other.configure_optimizers()
    batches = [batch for index, batch in enumerate(make_loader()) if index != 1]
    loss = sum(len(batch[0]) * other.loss(batch) for batch in batches) / sum(len(batch[0]) for batch in batches)
    loss.backward()
    optimizer.step()
    assert_close(ours, other, 1e-12)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(loss.item())


@pytest.mark.parametrize("log_every_n_steps", [1, 2])
def test_a_run_that_skips_batches_is_logged_saved_and_continued(tmp_path, log_every_n_steps):
    def fit(**options):
        module, _ = twins_with(ReturnsNothing)
        checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(tmp_path, callbacks=checkpoint, log_every_n_steps=log_every_n_steps)
        with pytest.warns(UserWarning, match="no step is taken"):
            trainer.fit(module, make_loader(), **options)
        return module, trainer.callback_metrics

    whole, metrics = fit()
    for step in (1, 2, 3, 4):
        resumed, again = fit(ckpt_path=tmp_path / f"step={step}.ckpt")
        assert_same(whole, resumed)
        assert again["train/loss_epoch"] == metrics["train/loss_epoch"]


def test_a_step_that_skips_by_itself_goes_on_to_its_end(tmp_path):
    class Both(WarmsUp, ReturnsNothing):
        def optimizer_step(self, *args):
            super().optimizer_step(*args)
            self.note("stepped")

    ours, _ = twins_with(Both)
    with pytest.warns(UserWarning, match="no step is taken"):
        make_trainer(tmp_path).fit(ours, make_loader())
    assert ours.record.count(("stepped",)) == 6


def test_a_step_that_returns_none_at_a_later_evaluation_is_refused(tmp_path):
    class Later(Recording):
        def training_step(self, batch, batch_idx):
            self.note()
            return None if len(self.record) == 3 else self.loss(batch)

    ours, _ = twins_with(Later, lbfgs)
    with pytest.raises(ValueError, match=r"returned None; .* not possible in one of several evaluations of a step"):
        make_trainer(tmp_path).fit(ours, make_loader())


# ------------------------------------------------------------------------------------------------------- before a run


def test_a_module_brings_callbacks_which_replace_those_of_the_same_class(tmp_path):
    class Noted(Callback):
        def __init__(self, name):
            self.name = name

        def on_train_start(self, trainer, module):
            module.note(self.name)

    class Brings(Recording):
        def configure_callbacks(self):
            return Noted("own")

    ours, _ = twins_with(Brings)
    trainer = make_trainer(tmp_path, callbacks=[Noted("trainer's")])
    for _ in range(2):
        trainer.fit(ours, make_loader())
    assert ours.record == [("own",), ("own",)]
    assert [callback.name for callback in trainer.callbacks if isinstance(callback, Noted)] == ["own"]
    Brings.configure_callbacks = lambda self: pl.callbacks.Timer()
    with pytest.raises(TypeError, match="callbacks has Lightning's Timer"):
        trainer.fit(ours, make_loader())


def test_a_module_makes_its_layers_after_setup_and_before_the_optimizer(tmp_path):
    class Makes(Recording):
        def setup(self, stage):
            self.note("setup", stage)

        def configure_model(self):
            self.note("configure_model")
            if not hasattr(self, "more"):
                self.more = torch.nn.Linear(1, 1).double()

        def configure_optimizers(self):
            self.note("configure_optimizers")
            return super().configure_optimizers()

        def loss(self, batch):
            return (self.more(self.net(batch[0])) - batch[1]).square().mean()

    torch.manual_seed(0)
    ours, theirs = twins_with(Makes)
    make_trainer(tmp_path).fit(ours, make_loader(), make_loader())
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_lightning_trainer(tmp_path).fit(theirs, make_loader(), make_loader())
    assert_same(ours, theirs)
    assert ours.record == theirs.record
    make_trainer(tmp_path).validate(ours, make_loader())
    assert ours.record[-2:] == [("setup", "validate"), ("configure_model",)]
