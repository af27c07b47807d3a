"""What fit refuses: the message says what was passed, what is allowed and how to mend it."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from framework import Callback
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
        (1.5, r"limit on train_dataloaders is 1\.5; a share lies between 0\.0 and 1\.0"),
        (-2, "limit on train_dataloaders is -2; it must be at least 0"),
        (0.1, r"0\.1 of the 3 batches of train_dataloaders is none: use at least 0\.33"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(tmp_path, limit, message):
    refuse(tmp_path, Regressor(), message, limit_train_batches=limit)


def test_a_share_of_a_stream_without_length_is_refused(tmp_path):
    stream = (batch for batch in make_loader())
    refuse(tmp_path, Regressor(), r"share 0\.5, but it has no length", loader=stream, limit_train_batches=0.5)


def test_clipping_with_an_optimizer_that_reevaluates_is_refused_by_both_settings(tmp_path):
    module = Regressor(lambda module: LBFGS(module.parameters()))
    refuse(
        tmp_path,
        module,
        r"gradient_clip_val=1\.0 with LBFGS, .*many times.*Drop gradient_clip_val",
        gradient_clip_val=1.0,
    )


def test_something_else_than_a_callback_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"callbacks has int, which is no framework\.Callback"):
        make_trainer(tmp_path, callbacks=[3])


# ------------------------------------------------------------------------------------------------ modules and hooks


@pytest.mark.parametrize("model", [None, nn.Linear(3, 1), Regressor, "model"])
def test_a_model_that_is_no_module_is_refused(tmp_path, model):
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
        r"Typo\.on_train_epoch_ended is no hook .*did you mean 'on_train_epoch_end'",
        callbacks=Typo(),
    )
    refuse(tmp_path, ModuleTypo(), r"ModuleTypo\.on_validation_epoch_finish .*did you mean 'on_validation_epoch_")
    refuse(tmp_path, Strange(), r"Strange\.on_xyzzy is no hook")


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


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_a_stream_that_yields_nothing_is_refused(tmp_path, accumulate):
    for loader in (DataLoader(Nothing()), iter([])):
        refuse(
            tmp_path, Regressor(), "yielded no batch: is it empty", loader=loader, accumulate_grad_batches=accumulate
        )


def test_a_generator_that_is_read_once_is_refused_in_the_second_epoch(tmp_path):
    refuse(tmp_path, Regressor(), "or a generator that was read before", loader=iter(make_loader()))


@pytest.mark.parametrize("loader", [None, 3])
def test_a_loader_that_cannot_be_iterated_is_refused(tmp_path, loader):
    with pytest.raises(TypeError, match=r"train_dataloaders is .*; pass a DataLoader, a TensorLoader or any iterable"):
        make_trainer(tmp_path).fit(Regressor(), loader)


@pytest.mark.parametrize("make", [make_loader, lambda: TensorLoader(*regression_data(), batch_size=8)])
@pytest.mark.parametrize("collect", [lambda a, b: [a, b], lambda a, b: (a, b), lambda a, b: {"a": a, "b": b}])
def test_several_loaders_are_refused(tmp_path, make, collect):
    refuse(tmp_path, Regressor(), "holds several loaders; a Trainer takes one", TypeError, collect(make(), make()))


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
        (
            lambda loss: None,
            TypeError,
            r"Step\.training_step returned NoneType; return a scalar loss, \(loss, penalty\)",
        ),
        (lambda loss: loss.item(), TypeError, r"returned float \(.*\); return a scalar loss"),
        (lambda loss: (loss,), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: (loss, loss, loss), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: (loss, 0.1), TypeError, r"returned tuple .*; return a scalar loss"),
        (lambda loss: {}, TypeError, r"returned dict"),
        (lambda loss: {"penalty": loss}, TypeError, r"returned a mapping without 'loss', only \['penalty'\]"),
        (lambda loss: loss.repeat(3), ValueError, r"returned a tensor of shape \(3,\); take its mean\(\)"),
        (lambda loss: loss * float("nan"), ValueError, r"returned nan at the first step: are there NaNs in the data"),
        (lambda loss: loss + float("inf"), ValueError, r"returned inf at the first step"),
        (lambda loss: (loss, loss * float("nan")), ValueError, r"returned nan at the first step"),
        (lambda loss: loss.detach(), ValueError, r"depends on no parameter: is it detached, or made by item"),
        (lambda loss: {"loss": loss.detach()}, ValueError, r"depends on no parameter"),
    ],
)
def test_an_objective_that_is_no_finite_scalar_with_a_gradient_is_refused(tmp_path, make, error, message, optimizer):
    module = returning(make)
    module.optimize = lambda module: optimizer(module.parameters(), lr=0.1)
    before = module.net[0].weight.clone()
    refuse(tmp_path, module, message, error)
    assert torch.equal(module.net[0].weight, before)


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
    module.penalty = L1() if penalty else None
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
    refuse(tmp_path, module, r'parameter group 0 has "penalized": .*; True, False or a mask is allowed')


def test_a_penalty_that_would_count_twice_is_refused(tmp_path):
    class Twice(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch), self.loss(batch)

    module = Twice()
    module.param_groups = lambda: [{"params": module.parameters(), "penalized": True}]
    module.penalty = grouped(lambda net: [], penalty=True).penalty
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
def test_a_weight_of_the_penalty_that_is_none_is_refused(tmp_path, optimizer, weight):
    module = grouped(lambda net: [{"params": list(net.parameters()), "penalized": True}], OPTIMIZERS[optimizer])
    module.penalty, module.happy_lambda = L1(), weight
    before = module.net[0].weight.clone()
    refuse(tmp_path, module, f"happy_lambda={weight}.*finite number that is not negative")
    assert torch.equal(module.net[0].weight, before)


def test_a_groups_own_weight_and_auto_are_refused_too(tmp_path):
    group = {"penalized": True, "happy_lambda": -1.0}
    module = grouped(lambda net: [{"params": list(net.parameters()), **group}])
    module.penalty = L1()
    refuse(tmp_path, module, r"happy_lambda=-1\.0 of penalized parameter group 0, .*L1; it must be a finite number")
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


def test_a_whole_minimization_of_every_batch_is_warned_about_by_name(tmp_path):
    def minimizing() -> Regressor:
        return Regressor(lambda m: MinimizeWrapper(m.parameters(), {"method": "CG", "options": {"maxiter": 1}}))

    remedy = r'MinimizeWrapper makes a whole minimization of every mini-batch, 3 in an epoch.*="epoch"'
    with pytest.warns(RuntimeWarning, match=remedy) as seen:
        make_trainer(tmp_path, max_epochs=2).fit(minimizing(), make_loader())
    assert len(seen) == 1
    make_trainer(tmp_path, accumulate_grad_batches="epoch").fit(minimizing(), make_loader())
    make_trainer(tmp_path).fit(minimizing(), make_loader(20))
