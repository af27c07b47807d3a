"""An unmodified LightningModule, and callbacks written for Lightning, in our trainer."""

import copy
import pickle
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.optim import SGD

from framework import Callback, Module
from framework.callbacks import ModelCheckpoint
from tests.modules import assert_close, assert_same, callback_of, make_loader, make_net, make_trainer
from tests.twins import LightningRegressor, make_lightning_trainer, momentum


class Lit(LightningRegressor):
    """A LightningModule with hyperparameters, as its users write it."""

    def __init__(self, width: int = 5, lr: float = 0.05) -> None:
        super().__init__(lambda module: SGD(module.parameters(), lr=lr))
        self.save_hyperparameters()
        self.record: list[object] = []

    def on_train_start(self):
        super().on_train_start()
        self.record.append((type(self.trainer).__name__, self.trainer.max_epochs, isinstance(self, Module)))

    def on_train_epoch_end(self):
        self.log("train/weight", self.net[0].weight.detach().sum())
        self.record.append(sorted(self.trainer.callback_metrics))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


def test_its_class_is_its_own_before_and_after_a_run_whatever_happens(tmp_path):
    module = Lit()
    trainer = make_trainer(tmp_path)
    trainer.fit(module, make_loader(), make_loader())
    assert type(module) is Lit
    assert module.trainer is trainer
    assert module.record[0] == ("LightningTrainer", 2, True)

    def fail(*_):
        raise KeyError("on purpose")

    for hook in ("setup", "on_fit_start", "on_before_backward", "on_validation_start", "teardown"):
        with pytest.raises(KeyError, match="on purpose"):
            make_trainer(tmp_path, callbacks=callback_of(**{hook: fail})).fit(module, make_loader(), make_loader())
        assert type(module) is Lit
    copied = copy.deepcopy(module)
    assert type(copied) is Lit
    assert_same(copied, module)


def test_afterwards_it_runs_under_lightning(tmp_path):
    module, twin = Lit(), Lit()
    make_trainer(tmp_path).fit(module, make_loader())
    make_trainer(tmp_path, max_epochs=4).fit(twin, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_lightning_trainer(tmp_path).fit(module, make_loader(), make_loader())
    assert_close(module, twin, 1e-12)


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_it_is_evaluated(tmp_path, method):
    class Tested(Lit):
        def test_step(self, batch, batch_idx):
            self.log("test/loss", self.loss(batch))

    module = Tested()
    ours = getattr(make_trainer(tmp_path), method)(module, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = getattr(make_lightning_trainer(tmp_path), method)(module, make_loader())
    torch.testing.assert_close(ours, theirs)


def test_lightning_reads_the_checkpoint(tmp_path):
    module = Lit(lr=0.03)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/loss")
    make_trainer(tmp_path, callbacks=checkpoint).fit(module, make_loader(), make_loader())
    loaded = Lit.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams.lr == 0.03
    assert_same(loaded, module)


def test_a_callback_written_for_lightning_is_called_and_saved(tmp_path):
    class Watch(pl.Callback):
        def __init__(self):
            self.seen = []

        def setup(self, trainer, pl_module, stage):
            self.seen.append((stage, trainer.callbacks[0] is self, trainer.state.fn))

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.seen.append(trainer.global_step)
            trainer.should_stop = trainer.global_step == 4

        def on_validation_end(self, trainer, pl_module):
            self.seen.append(trainer.callback_metrics["val/loss"].dtype)

        def state_dict(self):
            return {"seen": len(self.seen)}

        def load_state_dict(self, state_dict):
            self.loaded = state_dict

    watch = Watch()
    trainer = make_trainer(tmp_path, callbacks=[watch, ModelCheckpoint(tmp_path)], num_sanity_val_steps=0, max_epochs=9)
    trainer.fit(Lit(), make_loader(), make_loader())
    assert watch.seen == [("fit", True, "fit"), 1, 2, 3, torch.float32, 4, torch.float32]
    other = Watch()
    make_trainer(tmp_path, callbacks=[other, ModelCheckpoint(tmp_path)]).fit(
        Lit(), make_loader(), make_loader(), ckpt_path="last"
    )
    assert other.loaded["seen"] == 6  # before the last validation, which comes again


def test_a_module_within_the_module_logs_too(tmp_path):
    class Inner(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net().double()

        def forward(self, x):
            self.log("inner", 1.0 + self.current_epoch, on_epoch=True)
            return self.net(x)

    class Outer(LightningRegressor):
        def __init__(self):
            super().__init__(momentum, Inner())

    trainer = make_trainer(tmp_path)
    trainer.fit(Outer(), make_loader(), make_loader())
    assert trainer.callback_metrics["inner"] == 2.0


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (
            pl.callbacks.ModelCheckpoint(),
            TypeError,
            "ModelCheckpoint, .*: import ModelCheckpoint from frame",
        ),
        (
            type("Mine", (pl.callbacks.EarlyStopping,), {})("val/loss"),
            TypeError,
            "has Lightning's EarlyStopping",
        ),
        (type("Old", (pl.Callback,), {"on_epoch_end": print})(), ValueError, r"Old\.on_epoch_end is not a hook"),
        (pl.Callback, TypeError, r"callbacks has the class Callback; pass an instance"),
    ],
)
def test_a_callback_that_cannot_work_is_refused(tmp_path, callback, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, callbacks=callback)


def test_what_nobody_would_call_is_refused_by_name(tmp_path):
    class Old(Lit):
        def training_epoch_end(self, outputs): ...

    class Misspelled(Lit):
        def on_train_epoch_ends(self): ...

    with pytest.raises(ValueError, match=r"Old\.training_epoch_end would never be called: .* on_train_epoch_end"):
        make_trainer(tmp_path).fit(Old(), make_loader())
    with pytest.raises(ValueError, match=r"Misspelled\.on_train_epoch_ends is not a hook .*did you mean 'on_train_ep"):
        make_trainer(tmp_path).fit(Misspelled(), make_loader())


def test_parameters_that_no_optimizer_has_stay_as_they_are_with_a_warning(tmp_path):
    class Head(LightningRegressor):
        def configure_optimizers(self):
            return SGD(self.net[2].parameters(), lr=0.1)

    module, twin = Head(momentum), Head(momentum)
    with pytest.warns(UserWarning, match=r"group of SGD: net.0.weight, net.0.bias; they stay as they are"):
        make_trainer(tmp_path).fit(module, make_loader())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_lightning_trainer(tmp_path).fit(twin, make_loader())
    assert_close(module, twin, 1e-12)


def test_a_module_brings_callbacks_of_both_kinds(tmp_path):
    heard = []

    class Theirs(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            heard.append("theirs")

    class Ours(Callback):
        def on_train_start(self, trainer, module):
            heard.append("ours")

    class Brings(Lit):
        def configure_callbacks(self):
            return [Theirs(), Ours()]

    trainer = make_trainer(tmp_path)
    for _ in range(2):
        trainer.fit(Brings(), make_loader())
    assert heard == ["theirs", "ours"] * 2


def test_a_penalty_may_be_declared_by_attributes(tmp_path):
    from framework.optim import ProxAdam
    from framework.penalties import L1

    class Sparse(LightningRegressor):
        penalty, happy_lambda = L1(), 1.0

        def __init__(self):
            super().__init__(lambda module: ProxAdam(module.param_groups(), lr=0.05), nn.Linear(3, 1))

        def param_groups(self):
            return [{"params": [self.net.weight], "penalized": True}, {"params": [self.net.bias], "penalized": False}]

    module = Sparse()
    make_trainer(tmp_path, max_epochs=60).fit(module, make_loader())
    assert module.net.weight[0, 2] == 0 != module.net.weight[0, 1]


def test_copies_and_pickles_made_in_a_run_are_of_its_own_class(tmp_path):
    copies = []

    class Copying(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            copies[:] = [copy.deepcopy(module), pickle.loads(pickle.dumps(module))]

    class Pickled(Lit):
        def __getstate__(self):
            return super().__getstate__() | {"optimize": None}

    Pickled.__qualname__ = "Pickled"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Pickled", Pickled)
        module = Pickled()
        make_trainer(tmp_path, callbacks=[Copying()]).fit(module, make_loader())
    for copied in copies:
        assert type(copied) is Pickled
        assert_same(copied, module)


def test_a_class_that_registers_its_subclasses_is_told_of_none(tmp_path):
    registered = []

    class Registering(Lit):
        def __init_subclass__(cls, *, tag):
            registered.append((tag, cls))

    class Tagged(Registering, tag="some"):
        pass

    make_trainer(tmp_path).fit(Tagged(), make_loader())
    assert registered == [("some", Tagged)]


def test_a_checkpoint_written_after_the_run_is_complete(tmp_path):
    class Adds(Lit):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["mine"] = 1

    trainer = make_trainer(tmp_path)
    trainer.fit(Adds(), make_loader())
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    saved = torch.load(tmp_path / "after.ckpt", weights_only=True)
    assert (saved["mine"], saved["pytorch-lightning_version"]) == (1, pl.__version__)
    assert trainer.dump_checkpoint()["mine"] == 1
    assert trainer.stationarity_gap() >= 0
    assert type(trainer.lightning_module) is Adds


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("penalty", 0.1, r"penalty=0.1 of Lit has no value to call; .* give it another name"),
        ("param_groups", [1], r"Lit.param_groups is list \(\[1\]\); it must be a method. .* give it another name"),
        ("count_samples", 7, r"Lit.count_samples is int \(7\); it must be a method"),
        ("count_samples", lambda batch, axis: 1, r"Lit.count_samples takes \(batch, axis\), but is called with"),
    ],
)
def test_a_name_that_means_something_else_is_refused_before_training(tmp_path, name, value, message):
    module = Lit()
    setattr(module, name, value)
    with pytest.raises(TypeError, match=message):
        make_trainer(tmp_path).fit(module, make_loader())


def test_a_method_that_the_module_calls_itself_is_no_hook(tmp_path):
    class Calls(Lit):
        def on_policy_loss(self, batch):
            return self.loss(batch)

        def training_step(self, batch, batch_idx):
            return self.on_policy_loss(batch)

    make_trainer(tmp_path).fit(Calls(), make_loader())
