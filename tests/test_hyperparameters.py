"""Hyperparameters: which arguments are kept, what a checkpoint holds of them, and modules made from it again."""

import copy
import json
from argparse import Namespace
from dataclasses import dataclass

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.loggers import Logger
from lightning.pytorch.core.saving import save_hparams_to_tags_csv, save_hparams_to_yaml
from omegaconf import OmegaConf
from torch import nn

from framework import Module
from framework.callbacks import ModelCheckpoint
from tests.modules import Regressor, assert_same, make_loader, make_trainer


def make(base, save=lambda module: module.save_hyperparameters()):
    """Make the same classes on top of our module or Lightning's; ``save`` is what the parent's __init__ does."""

    class Parent(base):
        def __init__(self, width, act="tanh", *rest, bias=True, **options):
            super().__init__()
            self.saved_by(self)

        saved_by = staticmethod(save)

    class Child(Parent):
        def __init__(self, depth, width=2, **options):
            super().__init__(width * 10, bias=False, **options)

    return Parent, Child


@pytest.mark.parametrize(
    "save",
    [
        lambda module: module.save_hyperparameters(),
        lambda module: module.save_hyperparameters("width", "bias"),
        lambda module: module.save_hyperparameters(ignore="width"),
        lambda module: module.save_hyperparameters(ignore=["width", "act"]),
        lambda module: module.save_hyperparameters({"a": 1, "b": {"c": 2}}),
        lambda module: module.save_hyperparameters(Namespace(a=1)),
        lambda module: (module.save_hyperparameters("width"), module.save_hyperparameters("bias")),
        lambda module: (module.save_hyperparameters(), module.save_hyperparameters(ignore="bias")),
    ],
)
def test_the_arguments_kept_are_those_that_lightning_keeps(save):
    (parent, child), (theirs, their_child) = make(Module, save), make(pl.LightningModule, save)
    assert dict(parent(3, "relu", 9, x=1).hparams) == dict(theirs(3, "relu", 9, x=1).hparams)
    ours, expected = child(4, width=5, y=2), their_child(4, width=5, y=2)
    assert dict(ours.hparams) == dict(expected.hparams)
    ours.hparams.a, expected.hparams.a = 7, 7
    assert dict(ours.hparams) == dict(expected.hparams)
    assert dict(ours.hparams_initial) == dict(expected.hparams_initial) != dict(ours.hparams)


def test_a_module_made_within_another_keeps_its_own_arguments():
    class Inner(Module):
        def __init__(self, a):
            super().__init__()
            self.save_hyperparameters()

    class Outer(Module):
        def __init__(self, b):
            super().__init__()
            self.inner = Inner(b + 1)
            self.save_hyperparameters()

    outer = Outer(1)
    assert (dict(outer.hparams), dict(outer.inner.hparams)) == ({"b": 1}, {"a": 2})
    assert dict(copy.deepcopy(outer).hparams) == {"b": 1}


def test_a_dataclass_keeps_its_fields():
    @dataclass(eq=False)
    class Net(Module):
        width: int = 3

        def __post_init__(self):
            super().__init__()
            self.save_hyperparameters()

    assert Net(5).hparams == {"width": 5}
    assert Module().hparams == Module().hparams_initial == {}


@pytest.mark.parametrize(
    ("save", "error", "message"),
    [
        (lambda m: m.save_hyperparameters("wdth"), ValueError, r"'wdth'\): __init__ has no such argument, only width"),
        (lambda m: m.save_hyperparameters(3), TypeError, "was passed a int: pass names"),
        (lambda m: m.save_hyperparameters({"a": 1}, "width"), TypeError, "was passed a dict: pass names"),
        (lambda m: m.save_hyperparameters(ignore="wdth"), UserWarning, r"ignore=\['wdth'\]\) has no effect"),
    ],
)
def test_what_cannot_be_kept_is_refused(save, error, message):
    with pytest.raises(error, match=message):
        make(Module, save)[0](1)


# ---------------------------------------------------------------------------------------------------------- checkpoints


class Net(Regressor):
    """A network of any width and activation; ``seen`` is what a loaded checkpoint held."""

    def __init__(self, width, act=torch.tanh, net=None, scale=1.0):
        super().__init__(net=nn.Linear(3, width) if net is None else net)
        self.act, self.scale, self.out = act, scale, nn.Linear(width, 1).double()
        self.save_hyperparameters()

    def loss(self, batch):
        return ((self.out(self.act(self.net(batch[0]))) - batch[1]) ** 2).mean() * self.scale


class Configured(Regressor):
    """A module that takes one configuration."""

    def __init__(self, config, other=0):
        super().__init__(net=nn.Linear(3, config.net.width))
        self.other = other
        self.save_hyperparameters(config)


def saved(tmp_path, module, **options):
    """Train a module; return the checkpoint at the end."""
    checkpoint = ModelCheckpoint(tmp_path)
    make_trainer(tmp_path, callbacks=checkpoint, max_epochs=1, **options).fit(module, make_loader())
    return tmp_path / "last.ckpt"


def test_a_module_is_made_again_from_a_checkpoint(tmp_path):
    module = Net(4, scale=2.0)
    path = saved(tmp_path, module)
    assert torch.load(path, weights_only=True)["hyper_parameters"] == {"width": 4, "net": None, "scale": 2.0}
    again = Net.load_from_checkpoint(path)
    assert_same(module, again)
    assert (dict(again.hparams), again.scale, again.act) == (dict(module.hparams), 2.0, torch.tanh)
    assert again.training
    assert Net.load_from_checkpoint(str(path), scale=3.0).hparams.scale == 3.0
    assert Net.load_from_checkpoint(path, "meta").out.weight.device.type == "meta"


def test_a_checkpoint_holds_the_hyperparameters_as_they_are_now(tmp_path):
    module = Net(4)
    module.hparams.scale = 5.0
    assert Net.load_from_checkpoint(saved(tmp_path, module)).scale == 5.0


def test_what_is_not_plain_is_named_once_at_fit_and_again_when_it_is_missing(tmp_path):
    module = Net(3, act=torch.relu, net=nn.Linear(3, 3))
    with pytest.warns(UserWarning, match=r"act \(builtin_function_or_method\), net \(Linear\)\. Pass them") as warned:
        path = saved(tmp_path, module)
    assert len(warned) == 1
    with pytest.raises(ValueError, match=r"does not hold act, net, which Net is made with.*act=\.\.\., net=\.\.\."):
        Net.load_from_checkpoint(path)
    again = Net.load_from_checkpoint(path, act=torch.relu, net=nn.Linear(3, 3))
    assert_same(module, again)


def test_what_a_subclass_must_be_given_is_named(tmp_path):
    class More(Net):
        def __init__(self, more, *rest, **options):
            super().__init__(2)
            self.more = more

    path = saved(tmp_path, Net(2))
    with pytest.raises(ValueError, match="does not hold more, which More is made with"):
        More.load_from_checkpoint(path)
    assert More.load_from_checkpoint(path, more=1).more == 1


VALUES = {"net": {"width": 1}, "sizes": [1, 2], "lr": 0.5}


@pytest.mark.parametrize("config", [Namespace(**(VALUES | {"net": Namespace(width=1)})), OmegaConf.create(VALUES)])
def test_one_configuration_is_handed_over_as_a_whole(tmp_path, config):
    path = saved(tmp_path, Configured(config, other=3))
    assert torch.load(path, weights_only=True)["hyper_parameters"] == VALUES
    again = Configured.load_from_checkpoint(path, lr=0.25, other=4)
    assert (again.hparams.net.width, again.hparams.lr, again.hparams.sizes, again.other) == (1, 0.25, [1, 2], 4)
    assert Configured.load_from_checkpoint(path, config=config).hparams.lr == 0.5


def test_a_function_in_a_configuration_is_asked_for(tmp_path):
    config = Namespace(net=Namespace(width=1), act=torch.relu)
    with pytest.warns(UserWarning, match="will not hold these hyperparameters of Configured.*act"):
        path = saved(tmp_path, Configured(config))
    with pytest.raises(ValueError, match="does not hold act"):
        Configured.load_from_checkpoint(path)
    assert Configured.load_from_checkpoint(path, act=torch.relu).hparams.act is torch.relu


@pytest.mark.parametrize(("ending", "save"), [("yaml", save_hparams_to_yaml), ("csv", save_hparams_to_tags_csv)])
def test_hyperparameters_may_come_from_a_file_of_lightning(tmp_path, ending, save):
    path, file = saved(tmp_path, Net(4)), tmp_path / f"hparams.{ending}"
    save(file, {"width": 4, "scale": 7.5})
    assert Net.load_from_checkpoint(path, hparams_file=file).scale == 7.5
    with pytest.raises(FileNotFoundError, match="no hparams_file"):
        Net.load_from_checkpoint(path, hparams_file=tmp_path / f"other.{ending}")
    with pytest.raises(ValueError, match="must end in"):
        Net.load_from_checkpoint(path, hparams_file=tmp_path / "hparams.json")


def test_without_strict_what_differs_is_named(tmp_path):
    class Wider(Net):
        def __init__(self, width):
            super().__init__(width)
            self.extra = nn.Linear(1, 1)

    path = saved(tmp_path, module := Net(4))
    with pytest.raises(ValueError, match="is from another model than this Wider: extra"):
        Wider.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match=r"only Wider has extra\.weight, extra\.bias"):
        wider = Wider.load_from_checkpoint(path, strict=False)
    assert torch.equal(wider.out.weight, module.out.weight)


def test_the_module_sees_the_checkpoint_before_it_is_loaded(tmp_path):
    class Seeing(Net):
        def on_load_checkpoint(self, checkpoint):
            self.seen = checkpoint["progress"]["global_step"]

    assert Seeing.load_from_checkpoint(saved(tmp_path, Seeing(2))).seen == 3


def test_wrong_calls_are_refused(tmp_path):
    path, other = saved(tmp_path, Net(2)), tmp_path / "other.ckpt"
    with pytest.raises(TypeError, match=r"on an instance.*model = Net\.load_from_checkpoint"):
        Net(2).load_from_checkpoint(path)
    with pytest.raises(TypeError, match="was passed scal, which Net does not take: its arguments are width, act"):
        Net.load_from_checkpoint(path, scal=1.0)
    with pytest.raises(TypeError, match="map_location is a dict; pass the device"):
        Net.load_from_checkpoint(path, {"cuda:1": "cuda:0"})
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        Net.load_from_checkpoint(other)
    torch.save(Net(2).state_dict(), other)
    with pytest.raises(ValueError, match="is not a checkpoint of a Trainer"):
        Net.load_from_checkpoint(other)
    torch.save({**torch.load(path, weights_only=True), "hyper_parameters": 3}, other)
    with pytest.raises(ValueError, match="is damaged: hyper_parameters"):
        Net.load_from_checkpoint(other)


# -------------------------------------------------------------------------------------------------------------- logging


class Recording(Logger):
    """A logger that keeps the hyperparameters."""

    def __init__(self):
        self.seen = []

    name = version = None

    def log_metrics(self, metrics, step=None): ...

    def log_hyperparams(self, params, *args, **kwargs):
        self.seen.append(json.dumps(params))


@pytest.mark.parametrize("logger", [True, False])
def test_hyperparameters_are_logged_once_as_they_were_at_first(tmp_path, logger):
    class Logging(Net):
        def __init__(self, width):
            super().__init__(width)
            self.save_hyperparameters("width", logger=logger)

    module, recording = Logging(2), Recording()
    del module.hparams["act"], module._hparams_initial["act"]
    module.hparams.width = 9
    saved(tmp_path, module, logger=recording)
    assert recording.seen == ([json.dumps({"width": 2, "net": None, "scale": 1.0})] if logger else [])
