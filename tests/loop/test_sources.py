"""Where data come from: datamodules, methods of the module, several loaders at a time; as under Lightning."""

import warnings
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from framework.callbacks import ModelCheckpoint
from framework.data import TensorLoader
from framework.loggers import TensorBoardLogger
from tests.modules import (
    Regressor,
    Stream,
    add_noise,
    assert_close,
    assert_same,
    at_step,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
)
from tests.twins import make_lightning_trainer, momentum, twins_with


def quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call something of Lightning's without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def name(stage: Any) -> str:
    """Return a stage as text; Lightning's is an enumeration."""
    return getattr(stage, "value", stage)


class Data(pl.LightningDataModule):
    """A datamodule that notes what is called of it."""

    def __init__(self, record=None):
        super().__init__()
        self.record = [] if record is None else record

    def prepare_data(self):
        self.record.append("data.prepare_data")

    def setup(self, stage):
        self.record.append(f"data.setup {name(stage)} {self.trainer is not None}")

    def train_dataloader(self):
        self.record.append("data.train")
        return make_loader(shuffle=True, seed=1)

    def val_dataloader(self):
        self.record.append("data.val")
        return [make_loader(), make_loader(5)]

    def test_dataloader(self):
        return make_loader()

    def predict_dataloader(self):
        return make_loader()

    def teardown(self, stage):
        self.record.append(f"data.teardown {name(stage)}")

    def state_dict(self):
        return {"calls": len(self.record)}

    def load_state_dict(self, state_dict):
        self.record.append(f"data.load {state_dict['calls'] > 3}")


class _Noting:
    """A module that notes what is called of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.record = []

    def prepare_data(self):
        self.record.append("module.prepare_data")

    def setup(self, stage):
        self.record.append(f"module.setup {name(stage)}")

    def configure_model(self):
        self.record.append("module.configure_model")

    def teardown(self, stage):
        self.record.append(f"module.teardown {name(stage)}")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


class _WithLoaders(_Noting):
    def train_dataloader(self):
        self.record.append("module.train")
        return make_loader()

    def val_dataloader(self):
        self.record.append("module.val")
        return make_loader()

    def test_dataloader(self):
        return make_loader()

    def predict_dataloader(self):
        return make_loader()


def fit_both(root, methods, *args, make_data=None, **options):
    """Fit both twins with equal data; return both trainers and modules."""
    ours, theirs = twins_with(methods)
    trainer = make_trainer(root, num_sanity_val_steps=0, **options)
    other = quietly(make_lightning_trainer, root, **options)
    for one, module, call in ((trainer, ours, lambda f, *a, **k: f(*a, **k)), (other, theirs, quietly)):
        data = None if make_data is None else make_data(module.record)
        call(one.fit, module, *args, datamodule=data)
    assert_close(ours, theirs, 1e-12)
    assert trainer.global_step == other.global_step
    return trainer, ours, other, theirs


def in_the_order_of(record):
    """Return the order of all but the questions for loaders, which come later under Lightning, and their number."""
    apart = ("data.train", "data.val", "module.train", "module.val")
    return [entry for entry in record if entry not in apart], sorted(entry for entry in record if entry in apart)


def test_a_datamodule_feeds_all_methods(tmp_path):
    trainer, ours, other, theirs = fit_both(tmp_path, _Noting, make_data=Data)
    assert in_the_order_of(ours.record) == in_the_order_of(theirs.record)
    assert ours.record[:4] == ["data.prepare_data", "module.prepare_data", "data.setup fit True", "module.setup fit"]
    for method in ("validate", "test", "predict"):
        values = getattr(trainer, method)(ours, datamodule=Data())
        torch.testing.assert_close(values, quietly(getattr(other, method), theirs, datamodule=Data()))
    assert isinstance(trainer.datamodule, Data)


def test_a_datamodule_may_be_passed_as_the_loaders(tmp_path):
    ours, twin = twins_with(_Noting)[0], twins_with(_Noting)[0]
    make_trainer(tmp_path).fit(ours, Data())
    make_trainer(tmp_path).fit(twin, datamodule=Data())
    assert_same(ours, twin)
    assert make_trainer(tmp_path).test(ours, Data()) == make_trainer(tmp_path).test(ours, make_loader())


def test_any_object_with_such_a_method_is_a_datamodule(tmp_path):
    ours, twin = twins_with(_Noting)[0], twins_with(_Noting)[0]
    data = SimpleNamespace(train_dataloader=make_loader)
    make_trainer(tmp_path).fit(ours, datamodule=data)
    make_trainer(tmp_path).fit(twin, make_loader())
    assert_same(ours, twin)
    assert data.trainer.global_step == 6


def test_loaders_are_methods_of_the_module(tmp_path):
    trainer, ours, other, theirs = fit_both(tmp_path, _WithLoaders)
    assert in_the_order_of(ours.record) == in_the_order_of(theirs.record)
    for method in ("validate", "test", "predict"):
        torch.testing.assert_close(getattr(trainer, method)(ours), quietly(getattr(other, method), theirs))


def test_passed_loaders_come_before_the_methods(tmp_path):
    _, ours, _, theirs = fit_both(tmp_path, _WithLoaders, make_loader(10))
    assert in_the_order_of(ours.record) == in_the_order_of(theirs.record)
    assert "module.train" not in ours.record
    assert "module.val" in ours.record


def test_a_datamodule_comes_before_the_methods_of_the_module(tmp_path):
    def only_training(record):
        return type("OnlyTraining", (pl.LightningDataModule,), {"train_dataloader": lambda self: make_loader(10)})()

    trainer, ours, _, _ = fit_both(tmp_path, _WithLoaders, make_data=only_training)
    assert not {"module.train", "module.val"} & set(ours.record)
    assert trainer.num_val_batches == []


@pytest.mark.parametrize("every", [1, 2, 3])
def test_loaders_are_asked_for_again(tmp_path, every):
    class Growing(_WithLoaders):
        def train_dataloader(self):
            self.record.append("module.train")
            return make_loader(max(2, 20 - 4 * self.current_epoch))

    options = {"reload_dataloaders_every_n_epochs": every, "max_epochs": 5}
    _, ours, _, theirs = fit_both(tmp_path, Growing, **options)
    assert ours.record.count("module.train") == theirs.record.count("module.train") == 1 + 4 // every
    for step in range(1, 12, 2):
        whole, resumed = twins_with(Growing)[0], twins_with(Growing)[0]
        save = at_step(step, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
        make_trainer(tmp_path, callbacks=save, **options).fit(whole)
        make_trainer(tmp_path, **options).fit(resumed, ckpt_path=tmp_path / "some.ckpt")
        assert_same(whole, resumed)


def test_validation_loaders_are_asked_for_again_before_validation(tmp_path):
    class Asked(_WithLoaders):
        def train_dataloader(self):
            self.record.append(f"module.train {self.current_epoch}")
            return make_loader()

        def val_dataloader(self):
            self.record.append(f"module.val {self.current_epoch}")
            return make_loader()

    for every, check in ((1, 1), (2, 1), (1, 2), (2, 2), (3, 2)):
        ours, theirs = twins_with(Asked)
        options = {
            "reload_dataloaders_every_n_epochs": every,
            "check_val_every_n_epoch": check,
            "num_sanity_val_steps": 1,
            "max_epochs": 6,
        }
        make_trainer(tmp_path, **options).fit(ours)
        quietly(make_lightning_trainer(tmp_path, **options).fit, theirs)
        assert ours.record == theirs.record


@pytest.mark.parametrize("every", [0, 2])
def test_a_continued_run_gets_the_loaders_that_were_made_at_random(tmp_path, every):
    class Subset(_WithLoaders):
        def train_dataloader(self):
            chosen = torch.randperm(20)[:12]
            X, y = regression_data()
            return TensorLoader(X[chosen], y[chosen], batch_size=4, shuffle=True)

        def val_dataloader(self):
            torch.rand(1)
            return make_loader(shuffle=True)

    def fit(seed, callbacks=(), ckpt_path=None):
        torch.manual_seed(seed)
        module = twins_with(Subset)[0]
        options = {"reload_dataloaders_every_n_epochs": every, "max_epochs": 4}
        make_trainer(tmp_path, callbacks=callbacks, **options).fit(module, ckpt_path=ckpt_path)
        return module

    for step in range(1, 12, 2):
        path = tmp_path / f"{step}.ckpt"
        whole = fit(0, at_step(step, lambda trainer, path=path: trainer.save_checkpoint(path)))
        assert_same(whole, fit(1, ckpt_path=path))


def test_a_datamodule_gets_its_state_before_it_is_asked_for_loaders(tmp_path):
    class Sized(Data):
        size = 4

        def state_dict(self):
            return {"size": self.size}

        def load_state_dict(self, state_dict):
            self.size = state_dict["size"]

        def train_dataloader(self):
            self.record.append(self.size)
            return make_loader(self.size)

    data, again = Sized(), Sized()
    data.size = 10
    make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path)).fit(twins_with(_Noting)[0], datamodule=data)
    trainer = make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path), max_epochs=3)
    trainer.fit(twins_with(_Noting)[0], datamodule=again, ckpt_path="last")
    assert 10 in again.record
    assert 4 not in again.record


def test_a_datamodule_is_as_before_if_a_checkpoint_does_not_fit(tmp_path):
    class Sized(Data):
        size = 4

        def state_dict(self):
            return {"size": self.size}

        def load_state_dict(self, state_dict):
            self.size = state_dict["size"]

    data = Sized()
    make_trainer(tmp_path, callbacks=ModelCheckpoint(tmp_path)).fit(twins_with(_Noting)[0], datamodule=data)
    data.size = 5
    other = Regressor(net=nn.Linear(3, 1))
    other.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
    with pytest.raises(ValueError, match=r"last\.ckpt"):
        make_trainer(tmp_path, max_epochs=3).fit(other, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    assert data.size == 5


def test_the_hyperparameters_of_a_datamodule_are_logged_and_saved(tmp_path):
    class Sized(Data):
        def __init__(self, size=4):
            super().__init__()
            self.save_hyperparameters()

    class Other(_Noting):
        def __init__(self, optimize=None, size=3):
            super().__init__(momentum)
            self.save_hyperparameters("size")

    logger, module = TensorBoardLogger(tmp_path), twins_with(_Noting)[0]
    logger.log_hyperparams = lambda params: module.record.append(dict(params))
    checkpoint = ModelCheckpoint(tmp_path)
    make_trainer(tmp_path, logger=logger, callbacks=checkpoint).fit(module, datamodule=Sized(5))
    assert {"size": 5} in module.record
    assert Sized.load_from_checkpoint(tmp_path / "last.ckpt").hparams.size == 5
    message = "Other and Sized have different hyperparameters of the same name: size"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path).fit(twins_with(Other)[0], datamodule=Sized(5))


def test_a_datamodule_hears_of_an_exception(tmp_path):
    class Fails(_Noting):
        def training_step(self, batch, batch_idx):
            raise KeyError("on purpose")

    class Hears(Data):
        def on_exception(self, exception):
            self.record.append(repr(exception))

    data = Hears()
    with pytest.raises(KeyError):
        make_trainer(tmp_path).fit(twins_with(Fails)[0], datamodule=data)
    assert data.record[-2:] == ["KeyError('on purpose')", "data.teardown fit"]


def test_a_datamodule_moves_and_augments_batches(tmp_path):
    class Augments(Data):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] + 1, batch[1]]

    class Both(_Noting):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            raise AssertionError("the datamodule has its own")

    fit_both(tmp_path, _Noting, make_data=Augments)
    fit_both(tmp_path, Both, make_data=Augments)


# ------------------------------------------------------------------------------------------- several loaders at a time


class _Several(_Noting):
    """Adds up the losses of the batches that come together."""

    def training_step(self, batch, batch_idx):
        self.record.append(str(type(batch).__name__))
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        return sum(self.loss(part) for part in parts if part is not None)

    def count_samples(self, batch):
        return 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": make_loader(), "b": make_loader(6, shuffle=True, seed=3)},
        lambda: [make_loader(4), make_loader()],
        lambda: CombinedLoader({"a": make_loader(), "b": make_loader(5)}, "min_size"),
        lambda: CombinedLoader([make_loader(), make_loader(5)], "max_size"),
        lambda: CombinedLoader([make_loader(), make_loader(5)], "max_size_cycle"),
    ],
)
@pytest.mark.parametrize("limit", [None, 2, 0.75])
def test_several_loaders_are_read_together(tmp_path, make, limit):
    ours, theirs = twins_with(_Several)
    options = {} if limit is None else {"limit_train_batches": limit}
    trainer, other = make_trainer(tmp_path, **options), make_lightning_trainer(tmp_path, **options)
    trainer.fit(ours, make())
    quietly(other.fit, theirs, make())
    assert ours.record == theirs.record
    assert trainer.num_training_batches == other.num_training_batches
    assert_close(ours, theirs, 1e-12)


class _Nested(Regressor):
    def training_step(self, batch, batch_idx):
        a, b, (c, d) = batch.values()
        return sum(map(self.loss, (a, b, c, d)))


def test_loaders_read_together_go_on_where_they_were_interrupted(tmp_path):
    def make():
        data = TensorLoader(*regression_data(), batch_size=6, shuffle=True, transform=add_noise)
        return {"a": make_loader(shuffle=True), "b": make_loader(5, shuffle=True, seed=2), "c": [data, make_loader(2)]}

    for step in range(1, 20, 3):
        torch.manual_seed(0)
        whole, resumed = (_Nested(momentum, make_net(nn.Dropout(0.2))) for _ in range(2))
        save = at_step(step, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
        make_trainer(tmp_path, callbacks=save).fit(whole, make())
        make_trainer(tmp_path).fit(resumed, make(), ckpt_path=tmp_path / "some.ckpt")
        assert_same(whole, resumed)


def test_the_first_of_several_loaders_counts_the_samples(tmp_path):
    class Summed(Regressor):
        def training_step(self, batch, batch_idx):
            return sum(map(self.loss, batch))

    class Counting(Summed):
        def count_samples(self, batch):
            return len(batch[0][0])

    modules = Summed(momentum), Counting(momentum)
    for module in modules:
        trainer = make_trainer(tmp_path, accumulate_grad_batches=2)
        trainer.fit(module, [make_loader(), make_loader(5)])
    assert_same(*modules)


def test_loaders_need_not_be_those_of_torch(tmp_path):
    ours, twin = twins_with(_Several)[0], twins_with(_Several)[0]
    batches = list(make_loader())
    loaders = {"a": Stream(), "b": batches, "c": [make_loader(5), make_loader(10)]}
    trainer = make_trainer(tmp_path)
    nested = _Nested(momentum)
    trainer.fit(nested, {"a": Stream(), "b": batches, "c": [make_loader(5), make_loader(10)]})
    assert trainer.global_step == 8
    assert trainer.train_dataloader["b"] is batches
    make_trainer(tmp_path).fit(ours, {"a": loaders["a"], "b": batches})
    make_trainer(tmp_path).fit(twin, {"a": make_loader(), "b": make_loader()})
    assert_same(ours, twin)


def test_a_run_on_other_loaders_is_not_continued_within_an_epoch(tmp_path):
    save = at_step(2, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    make_trainer(tmp_path, callbacks=save).fit(twins_with(_Several)[0], [make_loader(5), make_loader()])
    with pytest.raises(ValueError, match=r"with batch_size=\[5, 8\]; this run has batch_size=\[5, 7\]"):
        make_trainer(tmp_path).fit(
            twins_with(_Several)[0], [make_loader(5), make_loader(7)], ckpt_path=tmp_path / "some.ckpt"
        )


def test_validation_loaders_read_one_after_the_other_or_together(tmp_path):
    class Together(_Noting):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", sum(self.loss(part) for part in batch), batch_size=1)

    ours, theirs = twins_with(Together)
    trainer, other = make_trainer(tmp_path), make_lightning_trainer(tmp_path)
    loaders = CombinedLoader([make_loader(), make_loader(5)], "min_size")
    torch.testing.assert_close(trainer.validate(ours, loaders), quietly(other.validate, theirs, loaders))
    ours, theirs = twins_with(_Noting)
    for loaders in (
        CombinedLoader([make_loader(), make_loader(5)], "sequential"),
        {"a": [make_loader(), make_loader(5)], "b": make_loader(3)},
    ):
        torch.testing.assert_close(trainer.validate(ours, loaders), quietly(other.validate, theirs, loaders))


# ------------------------------------------------------------------------------------------------------ without a model


def test_the_last_model_is_evaluated_without_saying_so_with_the_best_weights(tmp_path, capsys):
    module = twins_with(_WithLoaders)[0]
    trainer = make_trainer(tmp_path)
    with pytest.raises(RuntimeError, match=r"trainer.validate\(\): nothing has run yet"):
        trainer.validate()
    trainer.fit(module)
    values = trainer.validate()
    assert values == trainer.validate(module, make_loader(), verbose=False)
    assert capsys.readouterr().out == f"validate\n    val/loss  {values[0]['val/loss']:.6g}\n"

    class Worse(_WithLoaders):
        def validation_step(self, batch, batch_idx):
            self.log("score", float(self.current_epoch))

    module = twins_with(Worse)[0]
    checkpoint = ModelCheckpoint(tmp_path, monitor="score")
    trainer = make_trainer(tmp_path, callbacks=checkpoint, max_epochs=3)
    trainer.fit(module)
    last = module.net[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"test\(\) without a model takes the best one: pass ckpt_path='best'"):
        trainer.test()
    best = torch.load(checkpoint.best_model_path)["state_dict"]["net.0.weight"]
    assert torch.equal(module.net[0].weight, best)
    assert not torch.equal(last, best)


def test_several_loaders_are_printed_one_after_the_other(tmp_path, capsys):
    make_trainer(tmp_path).validate(twins_with(_Noting)[0], [make_loader(), make_loader(5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "validate, loader 0"
    assert lines[2] == "validate, loader 1"
    assert lines[3].startswith("    val/loss/dataloader_idx_1  ")


def test_predictions_need_not_be_returned(tmp_path):
    module, seen = twins_with(_WithLoaders)[0], []
    module.on_predict_batch_end = lambda outputs, batch, batch_idx: seen.append(outputs)
    assert make_trainer(tmp_path).predict(module, return_predictions=False) is None
    assert len(seen) == 3
    assert len(make_trainer(tmp_path).predict(module)) == 3


# --------------------------------------------------------------------------------------------------------------- errors


def _data(**methods):
    return type("Some", (pl.LightningDataModule,), {"train_dataloader": lambda self: make_loader(), **methods})()


def test_no_validation_data_are_an_empty_list_of_them(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(Regressor(), _data(val_dataloader=lambda self: []))
    assert trainer.num_val_batches == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: t.fit(Regressor()), ValueError, r"fit has no data: .*, or define Regressor.train_dataloader\(\)"),
        (lambda t: t.fit(Regressor(), None, make_loader()), ValueError, "fit has no data: pass train_dataloaders"),
        (
            lambda t: t.validate(Regressor()),
            ValueError,
            r"validate has no data: pass dataloaders, pass a datamodule with",
        ),
        (
            lambda t: t.fit(Regressor(), make_loader(), datamodule=Data()),
            ValueError,
            "both loaders and the datamodule Data",
        ),
        (lambda t: t.fit(Regressor(), Data(), make_loader()), ValueError, "both loaders and the datamodule Data"),
        (lambda t: t.fit(Regressor(), datamodule=pl.LightningDataModule()), ValueError, "fit has no data"),
        (lambda t: t.fit(Regressor(), Data), TypeError, r"datamodule is the class Data; pass an instance, Data\("),
        (lambda t: t.fit(Regressor(), datamodule=make_loader()), TypeError, "datamodule is DataLoader .*; pass an obj"),
        (
            lambda t: t.fit(Regressor(), _data(setup=lambda self: None)),
            TypeError,
            r"Some.setup is called with \(stage\): define it as def setup\(self, stage\)",
        ),
        (
            lambda t: t.fit(Regressor(), _data(on_load_checkpoint=lambda self, checkpoint: None)),
            ValueError,
            "Some.on_load_checkpoint would never be called: define load_state_dict instead",
        ),
        (
            lambda t: t.fit(Regressor(), _data(on_train_begin=lambda self: None)),
            ValueError,
            "Some.on_train_begin would never be called: a datamodule has the hooks on_exception",
        ),
        (
            lambda t: t.fit(Regressor(), _data(val_dataloader=lambda self: None)),
            ValueError,
            r"Some.val_dataloader\(\) returned None; it must return a loader",
        ),
        (lambda t: t.fit(Regressor(), _data(train_dataloader=lambda self: [])), ValueError, "fit has no data"),
        (lambda t: t.fit(Regressor(), {}), ValueError, "train_dataloaders holds no loader: dict"),
        (
            lambda t: t.fit(Regressor(), {"a": make_loader(), "b": iter([])}),
            ValueError,
            r"train_dataloaders\['b'\] is a list_iterator, which can be read only once",
        ),
        (
            lambda t: t.fit(Regressor(), CombinedLoader([make_loader()], "sequential")),
            ValueError,
            "train_dataloaders is a CombinedLoader in the mode 'sequential', which is one for validation",
        ),
    ],
)
def test_data_that_are_missing_or_come_twice_are_refused(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(make_trainer(tmp_path))


def test_a_setting_without_effect_is_warned_about(tmp_path):
    trainer = make_trainer(tmp_path, reload_dataloaders_every_n_epochs=1)
    with pytest.warns(
        UserWarning, match="reload_dataloaders_every_n_epochs=1 has no effect on loaders that are passed"
    ):
        trainer.fit(Regressor(), make_loader())


def test_validation_data_without_a_step_are_left_out_with_a_warning(tmp_path):
    class NoStep(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def training_step(self, batch, batch_idx):
            return self.net(batch[0].float()).square().mean()

        def configure_optimizers(self):
            return momentum(self)

        def train_dataloader(self):
            return make_loader()

        def val_dataloader(self):
            return make_loader()

    with pytest.warns(UserWarning, match=r"no validation: .* NoStep does not define validation_step"):
        make_trainer(tmp_path).fit(NoStep())
