"""Manual optimization: several optimizers, called by `training_step`, as under Lightning."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR

from framework import Module
from framework.callbacks import EarlyStopping, ModelCheckpoint
from framework.loggers import CSVLogger
from framework.optim import SpaRSA
from framework.penalties import L1
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
from tests.twins import make_lightning_trainer, twins_with


class _Rivals:
    """Two networks: one imitates y from x, the other tells them apart; each has its optimizer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.options = options
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.generator = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
            self.critic = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        self.steps: list[int] = []

    def generator_loss(self, batch):
        return nn.functional.softplus(-self.critic(self.generator(batch[0]))).mean()

    def critic_loss(self, batch):
        fake = self.critic(self.generator(batch[0]).detach())
        return (nn.functional.softplus(fake) + nn.functional.softplus(-self.critic(batch[1]))).mean()

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, loss_of in ((first, self.generator_loss), (second, self.critic_loss)):
            self.toggle_optimizer(optimizer)
            loss = loss_of(batch)
            self.log(loss_of.__name__, loss, prog_bar=True)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if self.options.get("clip"):
                self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.steps.append(self.global_step)
        if self.options.get("schedule"):
            for scheduler in self.lr_schedulers():
                scheduler.step()
        return {"loss": loss, "batch_idx": batch_idx} if self.options.get("returns") else None

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.generator_loss(batch))

    def configure_optimizers(self):
        first = Adam(self.generator.parameters(), lr=0.02, betas=(0.5, 0.99))
        second = SGD(self.critic.parameters(), lr=0.1, momentum=0.5)
        schedulers = [StepLR(first, 2, 0.5), ExponentialLR(second, 0.9)]
        form = self.options.get("form", "list")
        if form == "list":
            return [first, second]
        if form == "two lists":
            return [first, second], schedulers
        return (
            {"optimizer": first, "lr_scheduler": schedulers[0]},
            {"optimizer": second, "lr_scheduler": {"scheduler": schedulers[1], "interval": "step"}},
        )


class Rivals(_Rivals, Module):
    """The module here."""


class LightningRivals(_Rivals, pl.LightningModule):
    """The module under Lightning."""


def fit_both(root, options: Any = None, **settings: Any) -> tuple[Any, Any]:
    ours, theirs = Rivals(**options or {}), LightningRivals(**options or {})
    trainer = make_trainer(root, num_sanity_val_steps=0, **settings)
    trainer.fit(ours, make_loader(), make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_lightning_trainer(root, **settings)
        other.fit(theirs, make_loader(), make_loader())
    assert_close(ours, theirs, 1e-12)
    assert ours.steps == theirs.steps
    assert trainer.global_step == other.global_step
    for name, value in other.callback_metrics.items():
        assert trainer.callback_metrics[name] == pytest.approx(float(value), rel=1e-6)
    return trainer, other


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip": True},
        {"returns": True},
        {"form": "two lists", "schedule": True},
        {"form": "two lists"},
        {"form": "dictionaries", "schedule": True, "clip": True, "returns": True},
    ],
)
def test_two_rivals_train_as_under_lightning(tmp_path, options):
    trainer, other = fit_both(tmp_path, options)
    rates = [[group["lr"] for one in t.optimizers for group in one.param_groups] for t in (trainer, other)]
    assert rates[0] == rates[1]
    assert trainer.closure_evaluations == trainer.global_step == 12
    assert [type(optimizer) for optimizer in trainer.optimizers] == [Adam, SGD]


@pytest.mark.parametrize("max_steps", [1, 3, 4, 7])
def test_every_step_of_every_optimizer_counts(tmp_path, max_steps):
    trainer, _ = fit_both(tmp_path, max_steps=max_steps, max_epochs=-1, limit_val_batches=0)
    assert trainer.stopped_because == "max_steps"
    assert trainer.global_step == max_steps + max_steps % 2  # a batch is finished


def test_hooks_fire_as_under_lightning(tmp_path):
    names = ("on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
    names += ("on_train_batch_end",)
    record: dict[str, list[str]] = {"ours": [], "theirs": []}

    def recorder(whose):
        return {name: lambda *_, name=name: record[whose].append(name) for name in names}

    make_trainer(tmp_path, callbacks=callback_of(**recorder("ours"))).fit(Rivals(), make_loader())
    theirs = type("Theirs", (pl.Callback,), {n: staticmethod(h) for n, h in recorder("theirs").items()})()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_lightning_trainer(tmp_path, callbacks=[theirs]).fit(LightningRivals(), make_loader())
    assert record["ours"] == record["theirs"]


def by_hand(module, batches, epochs):
    """Do what `_Rivals` does, in a plain loop."""
    first, second = module.configure_optimizers()
    for _ in range(epochs):
        for batch in batches:
            for optimizer, loss_of in ((first, module.generator_loss), (second, module.critic_loss)):
                module.zero_grad()
                loss_of(batch).backward()
                optimizer.step()


def test_two_rivals_train_as_in_a_loop_by_hand(tmp_path):
    ours, other = Rivals(), Rivals()
    make_trainer(tmp_path, max_epochs=3).fit(ours, make_loader())
    by_hand(other, make_loader(), 3)
    assert_same(ours, other)


@pytest.mark.parametrize("log_every_n_steps", [1, 4, 5])
def test_values_are_logged_at_the_steps_before_their_batch(tmp_path, log_every_n_steps):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = make_trainer(tmp_path, logger=logger, log_every_n_steps=log_every_n_steps, max_epochs=3)
    trainer.fit(Rivals(returns=True, form="two lists"), make_loader())
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    steps = [int(row["step"]) for row in rows if row["generator_loss"]]
    assert steps == [step for step in range(0, 18, 2) if step % log_every_n_steps < 2]
    assert {"train/loss", "critic_loss", "lr/0", "lr/1", "epoch"} <= set(names)


@pytest.mark.parametrize("options", [{}, {"form": "two lists", "schedule": True, "returns": True}])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_run_goes_on_where_it_was_saved(tmp_path, options, batch):
    def fit(save=False, **more):
        module = Rivals(**options)
        callbacks = at_step(2 * batch, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt")) if save else []
        trainer = make_trainer(tmp_path, max_epochs=3, callbacks=callbacks)
        torch.manual_seed(0)
        trainer.fit(module, make_loader(shuffle=True), **more)
        return module, trainer

    whole, trainer = fit(save=True)
    resumed, again = fit(ckpt_path=tmp_path / "some.ckpt")
    assert_same(whole, resumed)
    assert again.callback_metrics == trainer.callback_metrics
    assert (again.global_step, again.closure_evaluations) == (trainer.global_step, trainer.closure_evaluations)


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path):
    class Swapped(Rivals):
        def configure_optimizers(self):
            return super().configure_optimizers()[::-1]

    make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path)).fit(Rivals(), make_loader())
    with pytest.raises(ValueError, match="other parameters in the groups of its optimizer"):
        make_trainer(tmp_path).fit(Swapped(), make_loader(), ckpt_path=tmp_path / "last.ckpt")


def test_early_stopping_and_checkpoints_watch_what_is_logged(tmp_path):
    stopping = EarlyStopping("generator_loss", patience=1, min_delta=100.0)
    callbacks = [stopping, ModelCheckpoint(tmp_path, monitor="val/loss")]
    trainer = make_trainer(tmp_path, callbacks=callbacks, max_epochs=20)
    trainer.fit(Rivals(), make_loader(), make_loader())
    assert trainer.current_epoch == 2
    assert (tmp_path / "best.ckpt").is_file()


# -------------------------------------------------------------------------------------------------- closures, by hand


class _WithClosure:
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            loss = self.loss(batch)
            self.log("loss", loss.detach(), on_epoch=True)
            optimizer.zero_grad()
            self.manual_backward(loss)
            return loss

        optimizer.step(closure) if self.by_position else optimizer.step(closure=closure)

    by_position = True


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("optimize", [lambda m: LBFGS(m.parameters(), max_iter=5), lambda m: Adam(m.parameters())])
def test_an_optimizer_is_given_a_closure(tmp_path, optimize, by_position):
    ours, theirs = twins_with(type("Closing", (_WithClosure,), {"by_position": by_position}), optimize)
    trainer = make_trainer(tmp_path)
    trainer.fit(ours, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_lightning_trainer(tmp_path).fit(theirs, make_loader())
    assert_close(ours, theirs, 1e-12)
    assert trainer.global_step == 6
    if isinstance(trainer.optimizer, LBFGS):
        assert trainer.closure_evaluations > 6


class _Noisy:
    """Adds noise in every evaluation, and logs each."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        values = []

        def closure():
            optimizer.zero_grad()
            loss = self.loss(add_noise(*batch))
            self.manual_backward(loss)
            self.log("evaluations", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            values.append((float(self.net[0].weight.detach().sum()), loss.item()))
            return loss

        optimizer.step(closure)
        by_point = dict(values)
        assert all(by_point[point] == value for point, value in values)
        assert len(values) > 1


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_closure_that_draws_shows_one_function_and_logs_once(tmp_path, line_search):
    module, _ = twins_with(_Noisy, lambda m: LBFGS(m.parameters(), max_iter=5, line_search_fn=line_search))
    trainer = make_trainer(tmp_path)
    torch.manual_seed(0)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["evaluations"] == 3


def test_a_proximal_optimizer_steps_by_a_closure(tmp_path):
    def optimize(module):
        groups = [{"params": [module.net[0].weight], "penalized": True}]
        groups += [{"params": [p for n, p in module.net.named_parameters() if n != "0.weight"], "penalized": False}]
        return SpaRSA(groups, happy_lambda=0.5, penalty=L1())

    module, _ = twins_with(type("Closing", (_WithClosure,), {}), optimize)
    make_trainer(tmp_path, max_epochs=5).fit(module, make_loader(batch_size=20))
    assert (module.net[0].weight == 0).any()


# ------------------------------------------------------------------------------------------------ toggling, and errors


def test_toggling_lets_only_one_optimizer_have_gradients(tmp_path):
    seen = []

    class Toggles(Rivals):
        def training_step(self, batch, batch_idx):
            first, second = self.optimizers()
            frozen = next(self.generator.parameters())
            frozen.requires_grad_(False)
            with self.toggled_optimizer(first):
                seen.append([p.requires_grad for p in self.parameters()])
            seen.append([p.requires_grad for p in self.parameters()])
            with pytest.raises(RuntimeError, match="toggle_optimizer was called twice"), self.toggled_optimizer(second):
                self.toggle_optimizer(first)
            frozen.requires_grad_(True)

    make_trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(Toggles(), make_loader())
    generator, critic = 4, 4
    assert seen == [[False] + [True] * (generator - 1) + [False] * critic, [False] + [True] * (generator + critic - 1)]


def method(name):
    return type("With", (_WithClosure,), {name: lambda self, *args, **kwargs: None})


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (
            _WithClosure,
            {"accumulate_grad_batches": 2},
            "accumulate_grad_batches=2 has no effect with Closing.auto",
        ),
        (_WithClosure, {"accumulate_grad_batches": "epoch"}, "accumulate_grad_batches='epoch' has no effect"),
        (
            _WithClosure,
            {"gradient_clip_val": 0.1},
            "gradient_clip_val=0.1 has no effect .*: call self.clip_grad",
        ),
        (method("optimizer_step"), {}, "optimizer_step would never be called with .*automatic_optimization = False"),
        (method("optimizer_zero_grad"), {}, "optimizer_zero_grad would never be called"),
        (method("lr_scheduler_step"), {}, "lr_scheduler_step would never be called"),
        (method("on_before_zero_grad"), {}, "on_before_zero_grad would never be called"),
        (type("With", (_WithClosure,), {"penalty": L1(), "happy_lambda": 1.0}), {}, "the penalty L1 has no effect"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, methods, options, message):
    module, _ = twins_with(type("Closing", (methods,), {}))
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options).fit(module, make_loader())


def test_several_optimizers_need_manual_optimization(tmp_path):
    module = Rivals()
    module.automatic_optimization = True
    with pytest.raises(ValueError, match=r"2 optimizers; a Trainer runs exactly one, unless the module calls them its"):
        make_trainer(tmp_path).fit(module, make_loader())


def test_going_backward_by_hand_needs_manual_optimization(tmp_path):
    class Goes(Regressor):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch))

    with pytest.raises(RuntimeError, match=r"set self.automatic_optimization = False in __init__"):
        make_trainer(tmp_path).fit(Goes(), make_loader())


@pytest.mark.parametrize("returned", [3, [1.0], torch.ones(2)])
def test_what_a_manual_step_returns_is_a_loss_or_a_mapping(tmp_path, returned):
    class Returns(Regressor):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            return returned

    with pytest.raises((TypeError, ValueError), match=r"Returns.training_step returned"):
        make_trainer(tmp_path).fit(Returns(), make_loader())


def test_a_plateau_scheduler_is_given_its_metric_by_hand(tmp_path):
    class Watches(Regressor):
        automatic_optimization = False

        def training_step(self, batch, batch_idx): ...

        def on_train_epoch_end(self):
            self.lr_schedulers().step(1.0)

        def configure_optimizers(self):
            optimizer = SGD(self.parameters(), lr=1.0)
            return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer, factor=0.5, patience=0)}

    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(Watches(), make_loader())
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25
    assert trainer.global_step == 0


# -------------------------------------------------------------------------------------------------------- no optimizer


def test_a_module_without_an_optimizer_runs_and_changes_nothing(tmp_path):
    ours, theirs = twins_with(type("Plain", (), {}), lambda module: None)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="configure_optimizers returned None: the run changes no parameter"):
        trainer.fit(ours, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = make_lightning_trainer(tmp_path)
        other.fit(theirs, make_loader())
    assert trainer.global_step == other.global_step == 6
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_an_optimizer_may_come_with_several_schedulers(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=1e-3)
        schedulers = [ExponentialLR(optimizer, 0.5), {"scheduler": ExponentialLR(optimizer, 0.1), "interval": "step"}]
        return {"optimizer": optimizer, "lr_scheduler": schedulers}

    trainer = make_trainer(tmp_path)
    trainer.fit(Regressor(optimize), make_loader())
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5**2 * 0.1**6)
    assert len(trainer.lr_scheduler_configs) == 2


def test_gradients_that_are_added_up_outlast_validation(tmp_path):
    """Against a loop by hand: Lightning drops them before it validates."""

    class AddsUp(Regressor):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(self.loss(batch) / 2)
            if self.trainer.closure_evaluations % 2 == 0:
                self.optimizers().step()
                self.optimizers().zero_grad()

    module, other = AddsUp(), AddsUp()
    make_trainer(tmp_path, max_epochs=4).fit(module, make_loader(), make_loader())
    optimizer, count = other.configure_optimizers(), 0
    for _ in range(4):
        for batch in make_loader():
            (other.loss(batch) / 2).backward()
            count += 1
            if count % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
    assert_same(module, other)


class _AddsUp:
    """Steps at every second batch, by its own count of batches."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch) / 2)
        if self.trainer.closure_evaluations % 2 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


class _Keeps:
    """Adds the gradients of every second batch to those of the one before it."""

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        if batch_idx % 2 == 0:
            optimizer.zero_grad()


@pytest.mark.parametrize("methods", [_AddsUp, _Keeps])
def test_gradients_that_are_added_up_outlast_an_interruption(tmp_path, methods):
    def save(trainer, module, outputs, batch, batch_idx):
        if trainer.closure_evaluations == 1:
            trainer.save_checkpoint(tmp_path / "some.ckpt")

    whole, _ = twins_with(methods)
    make_trainer(tmp_path, callbacks=callback_of(on_train_batch_end=save)).fit(whole, make_loader())
    resumed, _ = twins_with(methods)
    make_trainer(tmp_path).fit(resumed, make_loader(), ckpt_path=tmp_path / "some.ckpt")
    assert_same(whole, resumed)


def test_an_error_leaves_no_parameter_toggled_and_no_optimizer_hooked(tmp_path):
    def fail(*args):
        raise KeyError("on purpose")

    module, trainer = Rivals(), make_trainer(tmp_path, callbacks=callback_of(on_after_backward=fail))
    with pytest.raises(KeyError, match="on purpose"):
        trainer.fit(module, make_loader())
    assert all(param.requires_grad for param in module.parameters())
    assert not any(optimizer._optimizer_step_pre_hooks for optimizer in trainer.optimizers)
    make_trainer(tmp_path).fit(module, make_loader())
