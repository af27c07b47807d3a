"""What fit refuses: the message says what was passed, what is allowed and how to fix it."""

import inspect
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Callback, Module, Trainer
from framework.callbacks import EarlyStopping, ModelCheckpoint
from framework.data import TensorLoader
from framework.optim import MinimizeWrapper, SpaRSA
from framework.penalties import L1
from tests.modules import Regressor, make_loader, make_trainer, regression_data


def refuse(tmp_path, module: Any, message: str, error: Any = ValueError, loader: Any = None, **options: Any) -> None:
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **options).fit(module, make_loader() if loader is None else loader)


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every_n_steps": 0}, "log_every_n_steps=0; it must be a positive integer"),
        ({"check_val_every_n_epoch": 1.5}, "check_val_every_n_epoch=1.5; it must be a positive"),
        ({"max_epochs": -2}, "max_epochs=-2; it must be -1"),
        ({"max_epochs": 1.5}, "max_epochs=1.5"),
        ({"max_steps": True}, "max_steps=True"),
        ({"num_sanity_val_steps": -3}, "num_sanity_val_steps=-3"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0; it must be a positive integer or 'epoch'"),
        ({"accumulate_grad_batches": "all"}, "accumulate_grad_batches='all'"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val=-1.0; it must be a finite number"),
        ({"gradient_clip_val": float("nan")}, "gradient_clip_val=nan"),
        ({"gradient_clip_algorithm": "max"}, "gradient_clip_algorithm='max'; it must be 'norm' or 'value'"),
        ({"max_time": "1:30"}, "max_time='1:30'; as a string it must be 'DD:HH:MM:SS'"),
        ({"gradient_clip_val": "0.5"}, "gradient_clip_val='0.5'; it must be a finite number >= 0, or None"),
        ({"gradient_clip_val": True}, "gradient_clip_val=True"),
        ({"gradient_clip_algorithm": None}, "gradient_clip_algorithm=None"),
        ({"max_epochs": "3"}, r"max_epochs='3'; it must be -1 \(no limit\) or an integer >= 0, or None"),
        ({"max_steps": None}, "max_steps=None; it must be -1"),
        ({"max_steps": float("nan")}, "max_steps=nan"),
        ({"num_nodes": "two"}, "num_nodes='two'; it must be a positive integer"),
        ({"log_every_n_steps": True}, "log_every_n_steps=True"),
        ({"fast_dev_run": -1}, "fast_dev_run=-1; it must be True, False or a number of batches"),
        ({"fast_dev_run": "yes"}, "fast_dev_run='yes'"),
        ({"overfit_batches": -1}, "overfit_batches=-1; it must be a number of batches"),
        ({"overfit_batches": 1.5}, r"overfit_batches=1\.5"),
        ({"enable_checkpointing": "no"}, "enable_checkpointing='no'; it must be True or False"),
        ({"enable_model_summary": 1}, "enable_model_summary=1"),
        ({"inference_mode": "off"}, "inference_mode='off'"),
        ({"default_root_dir": 3}, "default_root_dir=3; it must be a path"),
        ({"precision": 32.0}, r"precision=32\.0; it must be a string such as '32-true'"),
        ({"precision": "fp16"}, "Precision 'fp16' is invalid. Allowed"),
        ({"accelerator": "gpuu"}, "invalid accelerator name: `accelerator='gpuu'`. Available"),
        ({"strategy": "dpp"}, "strategy='dpp' is not supported: use strategy='ddp'"),
        ({"devices": True}, "devices=True; it must be 'auto', a number of devices"),
        *[
            (
                {f"limit_{stage}_batches": value},
                rf"limit_{stage}_batches={value!r}; .*a fraction of them \(a float from 0",
            )
            for stage in ("train", "val", "test", "predict")
            for value in ("0.5", 1.5, -2, True, float("nan"), -0.5)
        ],
    ],
)
def test_a_setting_out_of_range_is_refused_when_the_trainer_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)


def test_a_time_limit_of_another_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"max_time=3\.0; pass 'DD:HH:MM:SS', a timedelta"):
        make_trainer(tmp_path, max_time=3.0)
    assert make_trainer(tmp_path, max_time="01:00:00:01").max_time == timedelta(days=1, seconds=1).total_seconds()


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, "limit_train_batches=0 leaves nothing to train on: use None .*validate"),
        (0.0, r"limit_train_batches=0\.0 leaves nothing to train on"),
        (0.1, r"0\.1 of the 3 batches of train_dataloaders is less than one: use at least 0\.33"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path, limit, message):
    refuse(tmp_path, Regressor(), message, limit_train_batches=limit)


def test_a_fraction_of_a_stream_without_length_is_refused(tmp_path):
    stream = DataLoader(Numbers())
    refuse(tmp_path, Regressor(), r"fraction 0\.5, but its length is unknown", loader=stream, limit_train_batches=0.5)


def test_clipping_with_an_optimizer_that_reevaluates_is_refused_by_both_settings(tmp_path):
    module = Regressor(lambda module: LBFGS(module.parameters()))
    refuse(
        tmp_path,
        module,
        r"gradient_clip_val=1\.0 with LBFGS, .*many times.*Drop gradient_clip_val",
        gradient_clip_val=1.0,
    )


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([3], r"callbacks has int \(3\), which is not a framework\.Callback; subclass that"),
        (3, "callbacks has int"),
        ("early_stopping", "callbacks has str"),
        (EarlyStopping, r"callbacks has the class EarlyStopping; pass an instance, EarlyStopping\(\.\.\.\)"),
        ([EarlyStopping], "callbacks has the class EarlyStopping"),
        (
            pl.callbacks.EarlyStopping("val/loss"),
            r"callbacks has Lightning's EarlyStopping, .*: import EarlyStopping from framework\.callbacks",
        ),
    ],
)
def test_anything_but_a_callback_is_refused(tmp_path, callbacks, message):
    with pytest.raises(TypeError, match=message):
        make_trainer(tmp_path, callbacks=callbacks)


def test_every_argument_of_the_trainer_refuses_what_makes_no_sense(tmp_path):
    for name in list(inspect.signature(Trainer.__init__).parameters)[1:]:
        with pytest.raises((TypeError, ValueError), match=rf"(?i){name}"):
            make_trainer(tmp_path, **{name: object()})


@pytest.mark.parametrize("limit", [None, 0, 1, -1, 0.0, 0.5, 1.0])
def test_every_limit_that_makes_sense_is_accepted(tmp_path, limit):
    trainer = make_trainer(tmp_path, limit_val_batches=limit, limit_test_batches=limit)
    assert trainer.limit_val_batches is limit


# ------------------------------------------------------------------------------------------------ modules and hooks


@pytest.mark.parametrize("model", [None, nn.Linear(3, 1), Regressor, "model"])
def test_a_model_that_is_not_a_module_is_refused(tmp_path, model):
    refuse(tmp_path, model, r"model is .*; pass a framework\.Module: subclass it and define training_step", TypeError)


def test_a_module_without_its_methods_says_which_to_define(tmp_path):
    class NoOptimizer(Regressor):
        configure_optimizers = Regressor.__mro__[1].configure_optimizers

    class NoStep(Regressor):
        training_step = Regressor.__mro__[1].training_step

    refuse(tmp_path, NoOptimizer(), r"NoOptimizer must define configure_optimizers, .*Adam", NotImplementedError)
    refuse(tmp_path, NoStep(), r"NoStep must define training_step\(batch, batch_idx\)", NotImplementedError)


def test_a_misspelled_hook_is_refused_with_the_nearest_name(tmp_path):
    class Typo(Callback):
        def on_train_epoch_ended(self, trainer, module): ...

    class ModuleTypo(Regressor):
        def on_validation_epoch_finish(self): ...

    class Strange(Regressor):
        def on_xyzzy(self): ...

    refuse(
        tmp_path,
        Regressor(),
        r"Typo\.on_train_epoch_ended is not a hook .*did you mean 'on_train_epoch_end'",
        callbacks=Typo(),
    )
    refuse(tmp_path, ModuleTypo(), r"ModuleTypo\.on_validation_epoch_finish .*did you mean 'on_validation_epoch_")
    refuse(tmp_path, Strange(), r"Strange\.on_xyzzy is not a hook")


def with_method(name: str, base: type = Regressor, method: Any = lambda self, *args: None) -> Any:
    return type("Mine", (base,), {name: method})


# What has Lightning's meaning here too, and what is a helper that only users call or read.
HELPERS = {
    *("all_gather", "current_epoch", "device_mesh", "dtype", "fabric", "freeze", "global_rank", "global_step"),
    *("hparams", "hparams_initial", "load_from_checkpoint", "local_rank", "logger", "loggers", "lr_schedulers"),
    *("on_gpu", "optimizers", "print", "remove_ignored_hparams", "save_hyperparameters", "to_onnx", "to_tensorrt"),
    *("to_torchscript", "unfreeze"),
    *("CHECKPOINT_HYPER_PARAMS_KEY", "CHECKPOINT_HYPER_PARAMS_NAME", "CHECKPOINT_HYPER_PARAMS_TYPE"),
}
FLAGS = {"automatic_optimization", "strict_loading", "example_input_array"}


def test_everything_in_lightning_is_ours_or_a_helper_or_refused_with_what_to_do_instead(tmp_path):
    ours = set(dir(Module)) | set(dir(Callback))
    of_modules = {name for name in dir(pl.LightningModule) if not name.startswith("_")} - set(dir(nn.Module))
    for name in of_modules - ours - HELPERS - FLAGS:
        message = rf"Mine\.{name} (would never be called: \w+|is not a hook and would never be called: rename it)"
        refuse(tmp_path, with_method(name)(), message)
    for name in {name for name in dir(pl.Callback) if not name.startswith("_")} - ours:
        refuse(tmp_path, Regressor(), rf"Mine\.{name} would never", callbacks=with_method(name, Callback)())
    refuse(tmp_path, Regressor(), "Mine.state_key", callbacks=with_method("state_key", Callback, property(str))())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("clip_gradients", "define configure_gradient_clipping instead"),
        ("configure_sharded_model", "rename it to configure_model"),
        ("training_epoch_end", "define on_train_epoch_end instead"),
        ("validation_epoch_end", "define on_validation_epoch_end instead"),
        ("training_step_end", "at the end of the step"),
        ("tbptt_split_batch", "cut the sequences in the loader"),
        ("on_validation_model_eval", "a trainer switches the module to eval mode"),
        ("on_epoch_end", "is not a hook"),
    ],
)
def test_a_method_that_lightning_would_call_is_refused_with_what_to_do_instead(tmp_path, name, remedy):
    refuse(tmp_path, with_method(name)(), rf"Mine\.{name} .*{remedy}")
    with pytest.raises(ValueError, match=rf"Mine\.{name}"):
        make_trainer(tmp_path).validate(with_method(name)(), make_loader())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("trainig_step", "training_step"),
        ("train_step", "training_step"),
        ("validation_steps", "validation_step"),
        ("tset_step", "test_step"),
        ("prediction_step", "predict_step"),
        ("configure_optimizer", "configure_optimizers"),
        ("param_group", "param_groups"),
        ("set_up", "setup"),
    ],
)
def test_a_misspelled_method_is_refused_with_the_nearest_name(tmp_path, name, near):
    refuse(tmp_path, with_method(name)(), rf"Mine\.{name} would never be called: did you mean '{near}'")


def test_a_misspelled_method_of_a_callback_is_refused(tmp_path):
    for name, near in (("state_dicts", "state_dict"), ("tear_down", "teardown")):
        callback = with_method(name, Callback)()
        refuse(tmp_path, Regressor(), rf"Mine\.{name} would never be called: did you mean '{near}'", callbacks=callback)


def test_helpers_attributes_and_submodules_may_have_any_name(tmp_path):
    class Template(Regressor):
        tbptt_split_batch = None
        manual_backward = nn.Identity

        def __init__(self):
            super().__init__()
            self.backward_net, self.manual_step = nn.Identity(), nn.Identity()
            self.val_dataloaders, self.prepared_data, self.validation_steps = [1], 3, 7
            self.automatic_optimization, self.setup = True, "wide"

        def training_step(self, batch, batch_idx):
            return self.train_step(batch)

        def train_step(self, batch):
            return self.loss(batch)

        def validation_loss(self): ...

        def best_step(self): ...

        def parameter_groups(self): ...

        def log_metrics(self): ...

    class Derived(Template):
        def train_step(self, batch):
            return 2 * self.loss(batch)

    class Watch(Callback):
        def backward(self): ...

        def save(self): ...

    make_trainer(tmp_path, callbacks=Watch()).fit(Derived(), make_loader(), make_loader())


@pytest.mark.parametrize("name", ["backward", "setup", "penalty", "logger"])
@pytest.mark.parametrize("what", [nn.Identity(), nn.Parameter(torch.zeros(1))])
def test_a_part_of_the_module_that_a_method_hides_is_refused(tmp_path, name, what):
    module = Regressor()
    module._modules[name] = what
    refuse(tmp_path, module, rf"Regressor\.{name} is a submodule, a parameter or a buffer, but also the name of some")


@pytest.mark.parametrize("flag", [False, property(lambda self: False)])
def test_strict_loading_cannot_be_switched_off(tmp_path, flag):
    refuse(tmp_path, with_method("strict_loading", method=flag)(), r"Mine\.strict_loading is False")


def test_an_example_input_is_warned_about(tmp_path):
    module = Regressor()
    module.example_input_array = torch.zeros(1, 3)
    with pytest.warns(UserWarning, match="Regressor.example_input_array has no effect"):
        make_trainer(tmp_path, max_epochs=0).fit(module, make_loader())


@pytest.mark.parametrize(
    ("base", "name", "method", "message"),
    [
        (Callback, "on_train_epoch_end", lambda self: None, r"\(trainer, module\): define it as def on_train_epoch"),
        (Callback, "on_train_batch_end", lambda self, trainer, module: None, "outputs, batch, batch_idx"),
        (Callback, "on_exception", lambda self, trainer, module, exception, more: None, "exception"),
        (Callback, "setup", lambda self, trainer, module: None, r"def setup\(self, trainer, module, stage\)"),
        (Callback, "load_state_dict", lambda self: None, r"def load_state_dict\(self, state_dict\)"),
        (Regressor, "on_train_epoch_end", lambda self, outputs: None, r"\(outputs\), but is called with \(\)"),
        (Regressor, "setup", lambda self: None, r"def setup\(self, stage\)"),
        (Regressor, "training_step", lambda self: None, r"\(\), but is called with \(batch, batch_idx\)"),
        (Regressor, "validation_step", lambda self: None, "def validation_step"),
        (Regressor, "test_step", lambda self: None, "def test_step"),
        (Regressor, "configure_optimizers", lambda self, lr: None, r"def configure_optimizers\(self\)"),
        (Regressor, "param_groups", lambda self, lr: None, r"def param_groups\(self\)"),
    ],
)
def test_a_hook_or_a_step_with_other_arguments_is_refused(tmp_path, base, name, method, message):
    owner = with_method(name, base, method)()
    module, options = (Regressor(), {"callbacks": owner}) if base is Callback else (owner, {})
    refuse(tmp_path, module, rf"Mine\.{name} takes .*{message}", TypeError, **options)


def test_additional_arguments_with_defaults_are_allowed(tmp_path):
    class Wide(Regressor):
        def training_step(self, *args, **kwargs):
            return self.loss(args[0])

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            self.log("val/loss", self.loss(batch))

        @staticmethod
        def on_train_epoch_end(): ...

    make_trainer(tmp_path).fit(Wide(), make_loader(), make_loader())


def test_a_forgotten_init_of_the_base_class_is_refused(tmp_path):
    class Forgetful(Module):
        def __init__(self):
            self.width = 3

        def training_step(self, batch, batch_idx): ...

    class Patient(EarlyStopping):
        def __init__(self, patience):
            self.patience = patience

    refuse(tmp_path, Forgetful(), r"Forgetful\.__init__ must call super\(\)\.__init__\(\) first")
    refuse(
        tmp_path,
        Regressor(),
        r"Patient has no attribute '\w+': call super\(\)\.__init__\(\.\.\.\) in its __init__, .*of EarlyStopping",
        callbacks=Patient(2),
    )


def test_lazy_layers_without_a_shape_are_refused_by_name(tmp_path):
    module = Regressor(lambda module: SGD(module.parameters(), lr=0.1), net=nn.Sequential(nn.LazyLinear(1)))
    message = r"net\.0\.weight, net\.0\.bias of Regressor have no shape yet: run one batch through the module"
    refuse(tmp_path, module, message, enable_model_summary=True)
    with torch.no_grad():
        module(torch.zeros(2, 3, dtype=torch.float64))
    make_trainer(tmp_path, enable_model_summary=True).fit(module, make_loader())


def test_a_step_that_is_not_a_method_is_refused(tmp_path):
    module = Regressor()
    module.training_step = 3
    refuse(tmp_path, module, r"Regressor\.training_step is int \(3\); it must be a method", TypeError)


class Stepless(Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1).double()

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


def test_data_for_a_step_that_is_not_defined_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match="val_dataloaders are given, but Stepless does not define validation_step"):
        trainer.fit(Stepless(), make_loader(), make_loader())
    for name, step in (("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")):
        with pytest.raises(ValueError, match=f"{name} was called, but Stepless does not define {step}"):
            getattr(trainer, name)(Stepless(), make_loader())
    trainer.fit(Stepless(), make_loader())
    make_trainer(tmp_path, limit_val_batches=0).fit(Stepless(), make_loader(), make_loader())


# ------------------------------------------------------------------------------------------- checkpoints and monitors


def test_two_checkpoints_that_write_one_file_are_refused(tmp_path):
    def callbacks(first: Any, second: Any, **options: Any) -> list[Callback]:
        return [ModelCheckpoint(first, monitor="val/loss"), ModelCheckpoint(second, monitor="train/loss", **options)]

    message = r"two callbacks write .*{}: ModelCheckpoint\(monitor='val/loss'\) and ModelCheckpoint\(monitor='train/"
    folder = tmp_path / "folder"
    for other in (folder, str(folder), folder / ".." / "folder"):
        refuse(tmp_path, Regressor(), message.format(r"last\.ckpt"), callbacks=callbacks(folder, other))
    refuse(tmp_path, Regressor(), message.format(r"best\.ckpt"), callbacks=callbacks(None, None, save_last=False))
    default = tmp_path / "checkpoints"
    refuse(tmp_path, Regressor(), message.format(r"last\.ckpt"), callbacks=callbacks(None, default))
    last, best = ModelCheckpoint(folder), ModelCheckpoint(folder, monitor="val/loss", save_last=False)
    for apart in (callbacks(folder, tmp_path / "other"), [last, best]):
        make_trainer(tmp_path, callbacks=apart).fit(Regressor(), make_loader(), make_loader())


def monitored_fit(tmp_path: Path, monitor: str, module: Module, *others: Callback, **options: Any) -> list[int]:
    """Fit with early stopping on a metric; return the indices of the epochs started."""
    epochs: list[int] = []

    class Count(Callback):
        def on_train_epoch_start(self, trainer, module):
            epochs.append(trainer.current_epoch)

    Count.__module__ = "framework.tests"  # not a user's callback, which might log
    trainer = make_trainer(tmp_path, callbacks=[EarlyStopping(monitor), Count(), *others], **options)
    with pytest.raises(ValueError, match=f"EarlyStopping monitors '{monitor}', which .*logged.*: .*val/loss"):
        trainer.fit(module, make_loader(), make_loader())
    return epochs


@pytest.mark.parametrize("monitor", ["val_loss", "validation/loss", "valLoss", "val/acc", "valid_loss"])
def test_a_monitor_of_a_validation_metric_that_is_not_logged_is_refused_before_an_epoch(tmp_path, monitor):
    assert monitored_fit(tmp_path, monitor, Regressor()) == []


def test_a_scheduler_of_a_validation_metric_that_is_not_logged_is_refused_before_an_epoch(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}

    with pytest.raises(ValueError, match=r"ReduceLROnPlateau monitors 'val_loss', which validation does not log; .*"):
        make_trainer(tmp_path).fit(Regressor(optimize), make_loader(), make_loader())


def test_a_metric_that_may_be_logged_later_is_not_refused(tmp_path):
    class Later(Regressor):
        def on_train_epoch_end(self):
            self.log("val/late", 1.0)

    class Unsaid(Regressor):
        def on_validation_epoch_end(self): ...

    class Logs(Callback):
        def on_train_epoch_end(self, trainer, module):
            module.log("val/late", 1.0)

    late = EarlyStopping("val/late")
    make_trainer(tmp_path, callbacks=late).fit(Later(), make_loader(), make_loader())
    make_trainer(tmp_path, callbacks=[late, Logs()]).fit(Regressor(), make_loader(), make_loader())
    training = EarlyStopping("train/loss")
    make_trainer(tmp_path, callbacks=training, log_every_n_steps=1).fit(Regressor(), make_loader(), make_loader())
    assert monitored_fit(tmp_path, "val/acc", Unsaid()) == [0]


# --------------------------------------------------------------------------------------------------------- the data


@pytest.mark.parametrize("loader", [[], DataLoader(TensorDataset(*regression_data()), 64, drop_last=True)])
def test_a_loader_without_batches_is_refused(tmp_path, loader):
    refuse(tmp_path, Regressor(), "train_dataloaders has no batches: is the dataset empty, or smaller", loader=loader)
    with pytest.raises(ValueError, match="val_dataloaders has no batches"):
        make_trainer(tmp_path).fit(Regressor(), make_loader(), loader)
    with pytest.raises(ValueError, match="dataloaders has no batches"):
        make_trainer(tmp_path).test(Regressor(), loader)


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


class Numbers(IterableDataset):
    def __iter__(self):
        return zip(*regression_data(), strict=True)


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_a_stream_that_yields_nothing_is_refused(tmp_path, accumulate):
    loader = DataLoader(Nothing())
    refuse(tmp_path, Regressor(), "yielded no batch: is it empty", loader=loader, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_stream_of_validation_data_that_yields_nothing_is_refused(tmp_path, sanity):
    with pytest.raises(ValueError, match="val_dataloaders yielded no batch: is it empty"):
        make_trainer(tmp_path, num_sanity_val_steps=sanity).fit(Regressor(), make_loader(), DataLoader(Nothing()))
    for run in ("validate", "test", "predict"):
        with pytest.raises(ValueError, match="dataloaders yielded no batch: is it empty"):
            getattr(make_trainer(tmp_path), run)(Regressor(), DataLoader(Nothing()))


ONE_SHOT = r"_dataloaders is a \w+, which can be read only once, but the run reads it again: pass a list of batches"


@pytest.mark.parametrize("make", [iter, lambda loader: (batch for batch in loader)])
def test_a_generator_is_refused_if_it_would_be_read_again(tmp_path, make):
    def stream() -> Any:
        return make(make_loader())

    refuse(tmp_path, Regressor(), f"train{ONE_SHOT}", loader=stream())
    refuse(tmp_path, Regressor(), f"train{ONE_SHOT}", loader=stream(), max_epochs=1, accumulate_grad_batches="epoch")
    for options in ({"max_epochs": 1}, {"num_sanity_val_steps": 0}, {"max_epochs": -1, "max_steps": 4}):
        with pytest.raises(ValueError, match=f"val{ONE_SHOT}"):
            make_trainer(tmp_path, **options).fit(Regressor(), make_loader(), stream())


@pytest.mark.parametrize("options", [{"max_epochs": 1}, {"max_epochs": -1, "max_steps": 3}, {"overfit_batches": 2}])
def test_a_generator_is_read_once_if_that_is_enough(tmp_path, options):
    module, reference = Regressor(), Regressor()
    make_trainer(tmp_path, **options).fit(module, iter(make_loader()))
    make_trainer(tmp_path, **options).fit(reference, make_loader())
    assert module.losses == reference.losses
    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(Regressor(), make_loader(), iter(make_loader()))
    for run in (trainer.validate, trainer.test):
        assert run(module, iter(make_loader())) == run(module, make_loader())
    assert len(trainer.predict(module, iter(make_loader()))) == 3


def test_a_generator_that_ends_before_the_last_step_is_refused_in_the_second_epoch(tmp_path):
    options = {"max_epochs": -1, "max_steps": 4}
    refuse(tmp_path, Regressor(), "or a generator that was read before", loader=iter(make_loader()), **options)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (TensorDataset(*regression_data()), r"TensorDataset, a dataset; pass DataLoader\(dataset, batch_size=32\)"),
        (Numbers(), r"Numbers, a dataset; pass DataLoader\(dataset, batch_size=None\) if it yields batches, otherwise"),
        (regression_data()[0], r"a tensor; pass framework\.data\.TensorLoader\(X, y, batch_size=\.\.\.\)"),
        ({"x": regression_data()[0]}, r"a tensor; pass framework\.data\.TensorLoader"),
        ("data.csv", r"str \('data\.csv'\); pass a DataLoader"),
        (DataLoader, r"type .*; pass a DataLoader"),
    ],
)
def test_data_that_are_not_batches_are_refused(tmp_path, loader, message):
    refuse(tmp_path, Regressor(), rf"train_dataloaders(\['x'\])? is {message}", TypeError, loader)
    with pytest.raises(TypeError, match=rf"val_dataloaders(\['x'\])? is {message}"):
        make_trainer(tmp_path).fit(Regressor(), make_loader(), loader)


def test_a_loader_that_cannot_be_iterated_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"train_dataloaders is .*; pass a DataLoader, a TensorLoader or any iterable"):
        make_trainer(tmp_path).fit(Regressor(), 3)


@pytest.mark.parametrize("make", [make_loader, lambda: TensorLoader(*regression_data(), batch_size=8)])
@pytest.mark.parametrize("collect", [lambda a, b: [a, b], lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}])
def test_loaders_among_other_things_are_refused(tmp_path, make, collect):
    message = r"train_dataloaders\[(1|'b')\] is int \(3\); pass a DataLoader"
    refuse(tmp_path, Regressor(), message, TypeError, collect(make(), 3))


# --------------------------------------------------------------------------------------------------------- the loss


def returning(make: Any) -> Regressor:
    class Step(Regressor):
        def training_step(self, batch, batch_idx):
            return make(self.loss(batch))

    return Step()


@pytest.mark.parametrize("optimizer", [SGD, LBFGS])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda loss: loss.item(), TypeError, r"returned float \(.*\); return a scalar loss"),
        (lambda loss: (loss,), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: (loss, loss, loss), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: (loss, 0.1), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: {}, TypeError, r"returned a mapping without 'loss', only \[\]"),
        (lambda loss: {"loss": None}, TypeError, r"returned dict"),
        (lambda loss: (loss, loss.repeat(2)), ValueError, r"returned a penalty of shape \(2,\)"),
        (lambda loss: {"penalty": loss}, TypeError, r"returned a mapping without 'loss', only \['penalty'\]"),
        (lambda loss: loss.repeat(3), ValueError, r"returned a loss of shape \(3,\); take its mean\(\)"),
        (lambda loss: loss * float("nan"), ValueError, r"returned nan at the first step: are there NaNs in the data"),
        (lambda loss: loss + float("inf"), ValueError, r"returned inf at the first step"),
        (lambda loss: (loss, loss * float("nan")), ValueError, r"returned nan at the first step"),
        (lambda loss: loss.detach(), ValueError, r"depends on no parameter: was it detached, or made with item"),
        (lambda loss: {"loss": loss.detach()}, ValueError, r"depends on no parameter"),
    ],
)
def test_an_objective_that_is_not_a_finite_scalar_with_a_gradient_is_refused(tmp_path, make, error, message, optimizer):
    module = returning(make)
    module.optimize = lambda module: optimizer(module.parameters(), lr=0.1)
    before = module.net[0].weight.clone()
    refuse(tmp_path, module, message, error)
    assert torch.equal(module.net[0].weight, before)


@pytest.mark.parametrize("optimizer", [SGD, LBFGS])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda loss: loss.item(), TypeError, "training_step returned float"),
        (lambda loss: loss.repeat(2), ValueError, r"training_step returned a loss of shape \(2,\)"),
        (lambda loss: loss.detach(), ValueError, "training_step returned a loss that depends on no parameter"),
    ],
)
def test_a_later_output_that_is_not_a_loss_is_also_refused(tmp_path, make, error, message, optimizer):
    class Later(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) if batch_idx < 2 else make(self.loss(batch))

    refuse(tmp_path, Later(lambda module: optimizer(module.parameters(), lr=0.01)), message, error)


def test_a_run_that_diverges_ends_with_what_to_try(tmp_path):
    module = Regressor(lambda module: SGD(module.parameters(), lr=1e200))
    refuse(tmp_path, module, r"train/loss is (nan|inf) at global_step \d+: the run has diverged", log_every_n_steps=1)


# ------------------------------------------------------------------------------------------------ parameter groups


def grouped(groups: Any, optimize: Any = None, penalty: bool = False) -> Regressor:
    class L1:
        def value(self, param: Tensor, lam: Any) -> Tensor:
            return (lam * param.abs()).sum()

    module = Regressor(optimize or (lambda module: SGD(module.param_groups(), lr=0.1)))
    module.param_groups = lambda: groups(module.net)
    module.penalty, module.happy_lambda = L1() if penalty else None, 0.1
    return module


def test_a_parameter_in_no_group_is_refused_by_name(tmp_path):
    module = grouped(lambda net: [{"params": net[0].parameters(), "penalized": False}])
    refuse(tmp_path, module, r"in no parameter group of SGD: net\.2\.weight, net\.2\.bias\. .*requires_grad_\(False\)")
    module.net[2].requires_grad_(False)
    make_trainer(tmp_path).fit(module, make_loader())


def test_a_parameter_in_two_groups_is_refused(tmp_path):
    module = grouped(lambda net: [{"params": net.parameters()}, {"params": net[2].parameters()}])
    refuse(tmp_path, module, "more than one parameter group")


@pytest.mark.parametrize("penalty", [True, False])
def test_a_group_that_does_not_say_whether_it_is_penalized_is_refused(tmp_path, penalty):
    module = grouped(
        lambda net: [{"params": net[0].parameters(), "penalized": True}, {"params": net[2].parameters()}],
        penalty=penalty,
    )
    refuse(tmp_path, module, r'parameter group 1 does not say whether it is penalized: add "penalized": True, False')
    module = grouped(lambda net: [{"params": net.parameters()}], penalty=True)
    refuse(tmp_path, module, "parameter group 0 does not say whether it is penalized")


@pytest.mark.parametrize("mask", [torch.ones(4, dtype=torch.bool), torch.ones(5, 3)])
def test_a_mask_of_another_shape_or_type_is_refused(tmp_path, mask):
    def groups(net):
        rest = [p for p in net.parameters() if p is not net[0].weight]
        return [{"params": net[0].weight, "penalized": mask}, {"params": rest, "penalized": False}]

    refuse(tmp_path, grouped(groups), r'"penalized" mask of parameter group 0 is .*must be boolean, .*\[\(5, 3\)\]')


@pytest.mark.parametrize("value", ["yes", 0, 1, [True]])
def test_another_value_of_penalized_is_refused(tmp_path, value):
    module = grouped(lambda net: [{"params": net.parameters(), "penalized": value}])
    refuse(tmp_path, module, r'parameter group 0 has "penalized": .*; pass True, False or a boolean mask')


def test_a_penalty_that_would_count_twice_is_refused(tmp_path):
    class Twice(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch), self.loss(batch)

    module = Twice()
    module.param_groups = lambda: [{"params": module.parameters(), "penalized": True}]
    module.penalty, module.happy_lambda = L1(), 0.1
    refuse(tmp_path, module, "it would count twice. Return the loss alone, or set the module's penalty to None")


def test_a_penalty_is_refused_for_an_optimizer_that_needs_a_smooth_objective(tmp_path):
    class Smooth(torch.optim.SGD):
        requires_smooth = True

    module = Regressor(lambda module: Smooth(module.param_groups(), lr=0.1))
    module.penalty = L1()
    with pytest.raises(ValueError, match=r"Smooth needs a smooth objective.*penalty L1.*SpaRSA"):
        make_trainer(tmp_path).fit(module, make_loader())


@pytest.mark.parametrize("penalized", [False, torch.zeros(5, 3, dtype=torch.bool)], ids=["False", "empty mask"])
def test_a_penalty_on_no_parameter_is_refused(tmp_path, penalized):
    def groups(net):
        rest = [p for p in net.parameters() if p is not net[0].weight]
        return [{"params": [net[0].weight], "penalized": penalized}, {"params": rest, "penalized": False}]

    module = grouped(groups)
    module.penalty = L1()
    refuse(tmp_path, module, r"the module has the penalty L1, but no parameter is penalized: mark groups .*or set")


OPTIMIZERS = {
    "SGD": lambda module: SGD(module.param_groups(), lr=0.1),
    "LBFGS": lambda module: LBFGS(module.parameters()),
    "SpaRSA": lambda module: SpaRSA(module.param_groups(), module.happy_lambda, module.penalty),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_an_invalid_weight_of_the_penalty_is_refused(tmp_path, optimizer, weight):
    module = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}], OPTIMIZERS[optimizer])
    module.penalty, module.happy_lambda = L1(), weight
    before = module.net[0].weight.clone()
    refuse(tmp_path, module, f"happy_lambda={weight}.*finite number that is not negative")
    assert torch.equal(module.net[0].weight, before)


def test_a_groups_own_invalid_weight_and_auto_are_also_refused(tmp_path):
    group = {"penalized": True, "happy_lambda": -1.0}
    module = grouped(lambda net: [{"params": list(net.parameters()), **group}])
    module.penalty = L1()
    refuse(tmp_path, module, r"happy_lambda=-1\.0 of penalized parameter group 0, .*L1, is not allowed")
    module = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}])
    module.penalty, module.happy_lambda = L1(), "auto"
    refuse(tmp_path, module, r"happy_lambda='auto' of the module, .*framework\.auto_lambda\.auto_happy_lambda computes")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("where", [0, 1])
def test_a_nan_in_the_data_is_refused_and_nothing_is_trained(tmp_path, optimizer, where):
    data = regression_data()
    data[where][3, 0] = float("nan")
    module = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}], OPTIMIZERS[optimizer])
    module.penalty, module.happy_lambda = L1(), 0.1
    before = module.net[0].weight.clone()
    refuse(
        tmp_path,
        module,
        "returned nan at the first step: are there NaNs in the data",
        loader=TensorLoader(*data, batch_size=20),
    )
    assert torch.equal(module.net[0].weight, before)


# ---------------------------------------------------------------------------------------------------- minimizations


def test_a_whole_minimization_for_every_batch_is_warned_about_by_name(tmp_path):
    def minimizing() -> Regressor:
        return Regressor(lambda m: MinimizeWrapper(m.parameters(), {"method": "CG", "options": {"maxiter": 1}}))

    remedy = r'MinimizeWrapper makes a whole minimization for every mini-batch, 3 per epoch.*="epoch"'
    with pytest.warns(RuntimeWarning, match=remedy) as seen:
        make_trainer(tmp_path, max_epochs=2).fit(minimizing(), make_loader())
    assert len(seen) == 1
    make_trainer(tmp_path, accumulate_grad_batches="epoch").fit(minimizing(), make_loader())
    make_trainer(tmp_path).fit(minimizing(), make_loader(20))


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ("l1", r"penalty='l1' of Regressor has no value to call; pass a penalty such as framework\.penalties\.L1\(\)"),
        (L1, r"penalty=<class .* of Regressor has no value to call"),
        (lambda w: w.abs().sum(), r"penalty=<function .* has no value to call"),
    ],
)
def test_a_penalty_that_is_not_a_penalty_is_refused(tmp_path, penalty, message):
    module = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}])
    module.penalty = penalty
    refuse(tmp_path, module, message, TypeError)


def test_a_penalty_without_prox_is_refused_for_a_proximal_optimizer(tmp_path):
    module = grouped(
        lambda net: [{"params": list(net.parameters()), "penalized": True}],
        lambda module: SpaRSA(module.param_groups(), 0.1),
        penalty=True,
    )
    refuse(tmp_path, module, "has no prox to call", TypeError)


def test_a_forgotten_weight_of_the_penalty_is_refused_but_zero_is_not(tmp_path):
    def module(**group: Any) -> Regressor:
        made = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True, **group}])
        made.penalty, made.happy_lambda = L1(), Module.happy_lambda
        return made

    message = "the module has the penalty L1, but no weight for penalized parameter group 0: set happy_lambda on"
    refuse(tmp_path, module(), message)
    refuse(tmp_path, module(happy_lambda=None), message)
    zero = module()
    zero.happy_lambda = 0.0
    for given in (zero, module(happy_lambda=0.0)):
        reference = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}])
        make_trainer(tmp_path).fit(given, make_loader())
        make_trainer(tmp_path).fit(reference, make_loader())
        assert given.losses == reference.losses


# ---------------------------------------------------------------------------------------- what configures optimizers


def test_an_optimizer_and_a_scheduler_in_a_tuple_are_refused(tmp_path):
    def scheduled(make: Callable[[Any], Any]) -> Regressor:
        def optimize(module):
            optimizer = SGD(module.parameters(), lr=0.1)
            return optimizer, make(StepLR(optimizer, 1))

        return Regressor(optimize)

    message = r"configure_optimizers returned \(SGD, {}\); return \(\[optimizer\], \[scheduler\]\)"
    refuse(tmp_path, scheduled(lambda scheduler: scheduler), message.format("StepLR"), TypeError)
    refuse(tmp_path, scheduled(lambda scheduler: {"scheduler": scheduler}), message.format("dict"), TypeError)


def test_a_scheduler_of_another_optimizer_is_refused(tmp_path):
    def optimize(module):
        other = torch.optim.Adam(module.parameters())
        return [SGD(module.parameters(), lr=0.1)], [StepLR(other, 1)]

    refuse(tmp_path, Regressor(optimize), r"StepLR was made for another Adam than .*would change nothing")


def test_a_helper_that_a_step_calls_is_no_misspelled_step(tmp_path):
    class Helpers:
        def train_step(self, batch):
            return self.loss(batch)

    class Own(Helpers, Regressor):
        def training_step(self, batch, batch_idx):
            return self.train_step(batch)

    make_trainer(tmp_path, max_epochs=1).fit(Own(), make_loader())


def test_a_metric_that_is_not_logged_in_the_sanity_check_on_purpose_may_be_monitored(tmp_path):
    class Careful(Regressor):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if not self.trainer.sanity_checking:
                self.log("val/l", 1.0)

    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=EarlyStopping("val/l"))
    trainer.fit(Careful(), make_loader(), make_loader())


def test_only_a_plateau_monitors(tmp_path):
    def optimize(module):
        optimizer = SGD(module.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, 1), "monitor": "val/acc"}}

    make_trainer(tmp_path, max_epochs=1).fit(Regressor(optimize), make_loader(), make_loader())
