"""One step's objective: the same function at every evaluation, committed and logged once."""

import copy
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn
from torch.optim import LBFGS, SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from framework.data import TensorLoader
from framework.optim import FISTA, MinimizeWrapper, RandomSearch, SpaRSA
from framework.penalties import L1
from tests.modules import (
    NoisyDataset,
    Penalized,
    Regressor,
    add_noise,
    assert_close,
    assert_same,
    callback_of,
    evaluating,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    seed_all,
    watch,
)


class Proximal(SGD):
    """An optimizer that is given f alone, like our proximal optimizers."""

    handles_penalty = True


class Drawing(Regressor):
    """A module that draws from every global generator in each evaluation and keeps what it drew."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.draws: list[tuple[float, float, float]] = []

    def training_step(self, batch, batch_idx):
        self.draws.append((torch.rand(()).item(), float(np.random.rand()), random.random()))
        self.log("train/draw", self.draws[-1][0], on_epoch=True, reduce_fx="sum")
        return super().training_step(batch, batch_idx)


def ask_thrice(closure):
    return [closure().item(), closure.value().item(), closure().item()]


# --------------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_every_evaluation_of_a_step_draws_the_same_and_every_step_draws_new(tmp_path, accumulate):
    module = Drawing(evaluating(ask_thrice))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=2)
    trainer.fit(module, make_loader(5))
    size = {1: 1, 2: 2, "epoch": 4}[accumulate]
    steps = [module.draws[i : i + 3 * size] for i in range(0, len(module.draws), 3 * size)]
    assert len(steps) == trainer.global_step == 8 // size
    for step in steps:
        assert step[:size] == step[size : 2 * size] == step[2 * size :]
    assert len({draw for step in steps for draw in step[:size]}) == 8


def test_the_draws_of_a_step_are_those_of_an_optimizer_that_evaluates_once(tmp_path):
    once, often = Drawing(), Drawing(evaluating(ask_thrice))
    for module in (once, often):
        seed_all(2)
        make_trainer(tmp_path).fit(module, make_loader())
    assert often.draws[::3] == once.draws
    assert_close(once, often, 1e-14)


def test_dropout_gives_the_same_value_at_the_same_point(tmp_path):
    values = []
    module = Regressor(
        evaluating(lambda closure: values.append(ask_thrice(closure))), net=make_net(nn.BatchNorm1d(5), nn.Dropout(0.5))
    )
    make_trainer(tmp_path).fit(module, make_loader())
    assert all(a == b == c for a, b, c in values)
    assert len({a for a, _, _ in values}) == 6


@pytest.mark.parametrize("generator", [None, 3])
@pytest.mark.parametrize("accumulate", [2, "epoch"])
def test_shuffled_and_augmented_groups_are_replayed(tmp_path, generator, accumulate):
    own = None if generator is None else torch.Generator().manual_seed(generator)
    loader = DataLoader(NoisyDataset(*regression_data()), batch_size=8, shuffle=True, generator=own)
    values = []
    module = Regressor(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches=accumulate, max_epochs=3).fit(module, loader)
    assert all(a == b == c for a, b, c in values)
    assert len({a for a, _, _ in values}) == len(values)


def test_the_generator_of_a_batch_sampler_is_replayed(tmp_path):
    data = TensorDataset(*regression_data())
    sampler = torch.utils.data.RandomSampler(data, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(data, batch_sampler=torch.utils.data.BatchSampler(sampler, 3, drop_last=True))
    values = []
    module = Regressor(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=2).fit(module, loader)
    assert all(a == b == c for a, b, c in values)


def test_a_transforming_tensor_loader_is_replayed_over_the_epoch(tmp_path):
    loader = TensorLoader(*regression_data(), batch_size=8, shuffle=True, transform=add_noise)
    values = []
    module = Regressor(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=3).fit(module, loader)
    assert all(a == b == c for a, b, c in values)
    assert len({a for a, _, _ in values}) == 3


# -------------------------------------------------------------------------------------------------------- buffers


def statistics_at(module, batches, momentum=0.1, start=None):
    """Return a network's batch-norm buffers after a pass over the batches in train mode, starting from ``start``."""
    net = copy.deepcopy(module.net)
    if start is not None:
        net[2].load_state_dict(start)
    net[2].momentum = momentum
    with torch.no_grad():
        for X, _ in batches:
            net(X)
    return dict(net[2].named_buffers())


def move_between(closure):
    closure()
    params = closure.objective.module.net.parameters()
    with torch.no_grad():
        for param in params:
            param.add_(1.0)
    closure.value()
    return closure()


@pytest.mark.filterwarnings("ignore:.*is evaluated at one point after the other:RuntimeWarning")
@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
@pytest.mark.parametrize(
    "optimize",
    [
        evaluating(move_between),
        lambda module: LBFGS(module.parameters(), max_iter=5),
        lambda module: LBFGS(module.parameters(), max_iter=5, line_search_fn="strong_wolfe"),
        lambda module: SpaRSA(module.parameters(), 0.01),
        lambda module: RandomSearch(module.parameters(), candidates=3),
    ],
)
def test_batch_norm_is_committed_once_per_step_at_the_point_that_the_optimizer_accepts(tmp_path, optimize, accumulate):
    starts = [make_net(nn.BatchNorm1d(5)).double()[2].state_dict()]
    compared = []

    def compare(trainer, module, outputs, batch, batch_idx):
        batches = [batch] if accumulate == 1 else batch
        expected = statistics_at(module, batches, start=starts[-1])
        compared.append(all(torch.equal(b, expected[name]) for name, b in module.net[2].named_buffers()))
        starts.append(copy.deepcopy(module.net[2].state_dict()))

    module = Regressor(optimize, net=make_net(nn.BatchNorm1d(5)))
    trainer = make_trainer(
        tmp_path, accumulate_grad_batches=accumulate, callbacks=callback_of(on_train_batch_end=compare)
    )
    trainer.fit(module, make_loader())
    assert compared == [True] * trainer.global_step
    assert module.net[2].num_batches_tracked == 6


@pytest.mark.parametrize("method", ["L-BFGS-B", "Nelder-Mead", "trust-ncg"])
def test_batch_norm_after_a_whole_minimization_has_the_statistics_of_its_result_alone(tmp_path, method):
    module = Regressor(
        lambda m: MinimizeWrapper(m.parameters(), {"method": method, "options": {"maxiter": 30}}),
        net=make_net(nn.BatchNorm1d(5)),
    )
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1).fit(module, make_loader())
    reference = copy.deepcopy(module.net)
    torch.optim.swa_utils.update_bn(make_loader(), reference)
    assert_close(module.net, reference, 1e-12)
    assert module.net[2].momentum == 0.1


def test_batch_norm_under_an_optimizer_that_evaluates_once_is_that_of_the_point_before_the_step(tmp_path):
    class Own(SGD):
        def step(self, closure=None):
            closure()
            return super().step()

    ours, theirs = (
        Regressor(lambda m, cls=cls: cls(m.parameters(), lr=0.05), net=make_net(nn.BatchNorm1d(5)))
        for cls in (Own, SGD)
    )
    for each in (ours, theirs):
        make_trainer(tmp_path).fit(each, make_loader())
    assert_same(ours, theirs)


def test_a_buffer_that_the_module_replaces_is_replayed_too(tmp_path):
    class Counting(Regressor):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))

        def training_step(self, batch, batch_idx):
            self.count = self.count + 1
            return super().training_step(batch, batch_idx) * self.count

    values = []
    module = Counting(evaluating(lambda closure: values.append(ask_thrice(closure))))
    make_trainer(tmp_path).fit(module, make_loader())
    assert module.count == 6
    assert all(a == b == c for a, b, c in values)


# -------------------------------------------------------------------------------------------------- metrics, logs


class Logging(Regressor):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.mae = torchmetrics.MeanAbsoluteError()
        self.cat = torchmetrics.CatMetric()

    def training_step(self, batch, batch_idx):
        self.mae(self(batch[0]).float().detach(), batch[1].float())
        self.cat.update(batch[1].float())
        self.log("mae", self.mae, on_step=False, on_epoch=True)
        self.log("calls", 1.0, on_epoch=True, reduce_fx="sum")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        assert len(self.cat.compute()) == 20
        self.cat.reset()


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_logs_and_torchmetrics_count_each_step_once(tmp_path, accumulate):
    def run(ask):
        module = Logging(evaluating(ask))
        trainer = make_trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
        trainer.fit(module, make_loader())
        return trainer

    often, once = run(ask_thrice), run(lambda closure: closure())
    assert often.callback_metrics["calls_epoch"] == 3
    assert often.callback_metrics["mae"] == pytest.approx(once.callback_metrics["mae"], abs=1e-7)
    assert often.closure_evaluations == 3 * once.closure_evaluations


def test_the_logged_loss_is_that_of_the_first_evaluation(tmp_path):
    def climb(closure):
        first = closure()
        for param in module.parameters():
            param.add_(1.0)
        assert closure() > first
        for param in module.parameters():
            param.sub_(1.0)
        return closure()

    module = Regressor(evaluating(climb))
    trainer = make_trainer(tmp_path, max_epochs=1, limit_train_batches=1, log_every_n_steps=1)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["train/loss"] == module.losses[0]


def test_an_optimizer_that_only_asks_for_values_logs_what_training_step_logs_once_per_step(tmp_path):
    module = Logging(evaluating(lambda closure: [closure.value(), closure.value()]))
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["calls_epoch"] == trainer.global_step == 3
    assert trainer.callback_metrics["train/objective"] > 0


# ---------------------------------------------------------------------------------------------------------- value


def test_value_leaves_gradients_logs_buffers_and_random_state_as_they_were(tmp_path):
    def ask(closure):
        closure()
        gradients = [p.grad.clone() for p in module.parameters()]
        for param in module.parameters():
            param.add_(0.1)
        value = closure.value()
        assert not value.requires_grad
        for param, gradient in zip(module.parameters(), gradients, strict=True):
            assert torch.equal(param.grad, gradient)
            param.sub_(0.1)

    module = Logging(evaluating(ask))
    module.net = make_net(nn.BatchNorm1d(5), nn.Dropout(0.5)).double()
    expected = Logging(evaluating(lambda closure: closure()))
    expected.net = make_net(nn.BatchNorm1d(5), nn.Dropout(0.5)).double()
    trainers = []
    draws = []
    for each in (module, expected):
        torch.manual_seed(4)
        trainers.append(make_trainer(tmp_path))
        trainers[-1].fit(each, make_loader(shuffle=True))
        draws.append(torch.rand(3))
    assert_close(module, expected, 1e-12)
    assert torch.equal(*draws)
    assert trainers[0].callback_metrics["calls_epoch"] == trainers[1].callback_metrics["calls_epoch"] == 3


def test_value_fires_no_hook(tmp_path):
    backwards = watch("on_after_backward", lambda *_: None)
    make_trainer(tmp_path, max_epochs=1, callbacks=backwards).fit(Regressor(evaluating(ask_thrice)), make_loader())
    assert len(backwards.seen) == 6


def test_the_closure_gives_gradients_inside_no_grad_and_inside_inference_free_steps(tmp_path):
    def ask(closure):
        with torch.no_grad():
            value = closure()
            assert not torch.is_grad_enabled()
        assert not value.requires_grad
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    module = Regressor(evaluating(ask))
    make_trainer(tmp_path, max_epochs=1).fit(module, make_loader())
    assert module.losses


def test_the_closure_zeroes_gradients_between_evaluations(tmp_path):
    def ask(closure):
        closure()
        first = [p.grad.clone() for p in module.parameters()]
        closure()
        assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), first, strict=True))

    module = Regressor(evaluating(ask))
    make_trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module, make_loader())


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_evaluations_are_counted(tmp_path, accumulate):
    module = Regressor(evaluating(ask_thrice))
    trainer = make_trainer(tmp_path, accumulate_grad_batches=accumulate)
    trainer.fit(module, make_loader())
    assert trainer.closure_evaluations == trainer.closure.evaluations == 3 * trainer.global_step


# ------------------------------------------------------------- a value belongs to the current parameters and gradients


class AsksTwice(SGD):
    def step(self, closure=None):
        assert closure() == closure()
        return super().step()


class ZeroesFirst(SGD):
    """An optimizer that relies on its closure for the gradients, as if nothing had been computed before."""

    def step(self, closure=None):
        self.zero_grad()
        closure()
        return super().step()


def test_a_closure_called_when_nothing_has_changed_returns_what_was_computed(tmp_path):
    ours, theirs = Regressor(lambda m: AsksTwice(m.parameters(), lr=0.05)), Regressor()
    trainer = make_trainer(tmp_path)
    trainer.fit(ours, make_loader())
    make_trainer(tmp_path).fit(theirs, make_loader())
    assert_same(ours, theirs)
    assert trainer.closure_evaluations == trainer.global_step


@pytest.mark.parametrize("declared", [None, True, False])
def test_an_optimizer_that_drops_the_gradients_gets_new_ones(tmp_path, declared):
    cls = ZeroesFirst if declared is None else type("Declared", (ZeroesFirst,), {"reevaluates": declared})
    ours, theirs = (
        Regressor(lambda m, cls=cls: cls(m.parameters(), lr=0.05), net=make_net(nn.Dropout(0.5))) for cls in (cls, SGD)
    )
    for each in (ours, theirs):
        torch.manual_seed(3)
        make_trainer(tmp_path, accumulate_grad_batches=2).fit(each, make_loader())
    assert_same(ours, theirs)


class SAM(SGD):
    """Sharpness-aware minimization (Foret et al. 2021) as it is usually written; ``raw`` moves through ``data``."""

    raw = False

    @torch.no_grad()
    def step(self, closure=None):
        closure = torch.enable_grad()(closure)
        params = [p for group in self.param_groups for p in group["params"]]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        moves = [p.grad * (0.05 / norm) for p in params]
        for p, move in zip(params, moves, strict=True):
            (p.data if self.raw else p).add_(move)
        if not self.raw:
            self.zero_grad()
        closure()
        for p, move in zip(params, moves, strict=True):
            (p.data if self.raw else p).sub_(move)
        return super().step()


class RequiringSAM(SAM):
    def step(self, closure):
        return super().step(closure)


def sam_by_hand(module, loader, epochs):
    """A hand-written loop with two evaluations of the same function per step: the same dropout masks."""
    params = list(module.parameters())
    for _ in range(epochs):
        for batch in loader:
            draws = torch.get_rng_state()
            gradients = torch.autograd.grad(module.loss(batch), params)
            norm = torch.stack([g.norm() for g in gradients]).norm()
            with torch.no_grad():
                for p, g in zip(params, gradients, strict=True):
                    p.add_(g * (0.05 / norm))
            torch.set_rng_state(draws)
            ascended = torch.autograd.grad(module.loss(batch), params)
            with torch.no_grad():
                for p, g, a in zip(params, gradients, ascended, strict=True):
                    p.sub_(g * (0.05 / norm)).sub_(a, alpha=0.05)


@pytest.mark.parametrize("declared", [None, True])
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("base", [SAM, RequiringSAM])
def test_sam_equals_a_hand_written_loop(tmp_path, declared, raw, base):
    cls = type("Own", (base,), {"raw": raw} | ({} if declared is None else {"reevaluates": declared}))
    ours, theirs = (Regressor(lambda m: cls(m.parameters(), lr=0.05), net=make_net(nn.Dropout(0.5))) for _ in range(2))
    torch.manual_seed(3)
    trainer = make_trainer(tmp_path)
    trainer.fit(ours, make_loader())
    torch.manual_seed(3)
    sam_by_hand(theirs, make_loader(), 2)
    assert_close(ours, theirs, 1e-12)
    assert trainer.closure_evaluations == 2 * trainer.global_step


def test_an_optimizer_may_draw_between_evaluations(tmp_path):
    draws = []

    def ask(closure):
        for _ in range(3):
            closure()
            draws.append(torch.rand(()).item())

    module = Drawing(evaluating(ask))
    make_trainer(tmp_path, max_epochs=1).fit(module, make_loader())
    assert len(set(draws)) == len(draws) == 9
    assert len({draw for draw, *_ in module.draws}) == 3


def test_a_required_closure_may_go_uncalled_if_gradients_are_ready(tmp_path):
    class Ignores(SGD):
        def step(self, closure):
            return super().step()

    ours, theirs = Regressor(lambda m: Ignores(m.parameters(), lr=0.05)), Regressor()
    for each in (ours, theirs):
        make_trainer(tmp_path).fit(each, make_loader())
    assert_same(ours, theirs)


def test_an_optimizer_that_evaluates_nothing_at_all_is_refused(tmp_path):
    module = Regressor(evaluating(lambda closure: None))
    with pytest.raises(RuntimeError, match=r"Evaluator.step returned without calling its closure"):
        make_trainer(tmp_path).fit(module, make_loader())


def test_an_optimizer_that_evaluates_once_may_ask_for_the_value_alone(tmp_path):
    class ValueOnly(SGD):
        def step(self, closure=None):
            self.value = closure.value().item()
            return super().step()

    ours, theirs = Regressor(lambda module: ValueOnly(module.parameters(), lr=0.05)), Regressor()
    trainer = make_trainer(tmp_path)
    trainer.fit(ours, make_loader())
    make_trainer(tmp_path).fit(theirs, make_loader())
    assert_same(ours, theirs)
    assert trainer.optimizer.value == ours.losses[-1]


@pytest.mark.parametrize("with_scheduler", [False, True])
def test_a_step_that_requires_a_closure_counts_as_reevaluating(tmp_path, with_scheduler):
    class Required(SGD):
        def step(self, closure):
            closure()
            closure()
            return super().step()

    def optimize(module):
        optimizer = Required(module.parameters(), lr=0.05)
        if not with_scheduler:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    trainer = make_trainer(tmp_path)
    trainer.fit(Regressor(optimize), make_loader())
    assert trainer.closure.reevaluates
    assert trainer.closure_evaluations == 2 * trainer.global_step


def test_lbfgs_evaluates_an_accumulated_group_like_one_big_batch(tmp_path):
    ours, theirs = (Regressor(lambda m: LBFGS(m.parameters(), line_search_fn="strong_wolfe")) for _ in range(2))
    make_trainer(tmp_path, accumulate_grad_batches=3).fit(ours, make_loader(8))
    make_trainer(tmp_path).fit(theirs, make_loader(20))
    assert_close(ours, theirs, 1e-10)


# -------------------------------------------------------------------------------------------------------- penalty


def penalty_by_hand(module):
    """Compute the penalty of `Penalized`."""
    return 0.3 * sum(p.abs().sum() for p in module.parameters() if p.ndim == 2)


class Reference(Regressor):
    """The objective of `Penalized`, returned as one loss."""

    def training_step(self, batch, batch_idx):
        return self.loss(batch) + penalty_by_hand(self)


@pytest.mark.parametrize("kind", [SGD, Adam, LBFGS])
def test_an_ordinary_optimizer_is_given_f_plus_g(tmp_path, kind):
    def optimize(module):
        return kind(module.parameters() if kind is LBFGS else module.param_groups(), lr=0.02)

    ours, theirs = Penalized(optimize), Reference(lambda module: kind(module.parameters(), lr=0.02))
    for module in (ours, theirs):
        make_trainer(tmp_path).fit(module, make_loader())
    assert_close(ours, theirs, 1e-12)


def test_an_optimizer_that_handles_the_penalty_is_given_f(tmp_path):
    ours, theirs = Penalized(lambda module: Proximal(module.param_groups(), lr=0.05)), Regressor()
    trainer = make_trainer(tmp_path, log_every_n_steps=1)
    trainer.fit(ours, make_loader())
    make_trainer(tmp_path).fit(theirs, make_loader())
    assert_same(ours, theirs)
    logged = trainer.callback_metrics
    assert logged["train/penalty"] > 0
    assert logged["train/objective"] == pytest.approx(logged["train/loss"] + logged["train/penalty"], rel=1e-14)


@pytest.mark.parametrize("form", ["tuple", "list", "mapping"])
def test_a_penalty_that_the_step_returns_counts_like_the_modules_own(tmp_path, form):
    class Returned(Penalized):
        penalty = None

        def training_step(self, batch, batch_idx):
            f, g = self.loss(batch), penalty_by_hand(self)
            return {"tuple": (f, g), "list": [f, g], "mapping": {"loss": f, "penalty": g, "other": 1}}[form]

    for kind in (SGD, Proximal):
        ours, theirs = (
            c(lambda module, kind=kind: kind(module.param_groups(), lr=0.05)) for c in (Returned, Penalized)
        )
        trainers = [make_trainer(tmp_path, log_every_n_steps=1) for _ in range(2)]
        trainers[0].fit(ours, make_loader())
        trainers[1].fit(theirs, make_loader())
        assert_close(ours, theirs, 1e-12)
        for name in ("train/loss", "train/penalty", "train/objective"):
            assert trainers[0].callback_metrics[name] == pytest.approx(trainers[1].callback_metrics[name], rel=1e-12)


def test_a_groups_own_happy_lambda_takes_precedence_over_the_modules(tmp_path):
    class Grouped(Penalized):
        def param_groups(self):
            first, second = self.net[0], self.net[2]
            return [
                {"params": first.parameters(), "penalized": True, "happy_lambda": 2.0},
                {"params": second.parameters(), "penalized": True},
            ]

    module = Grouped()
    trainer = make_trainer(tmp_path, max_steps=1, log_every_n_steps=1)
    start = [layer.weight.abs().sum() + layer.bias.abs().sum() for layer in (module.net[0], module.net[2])]
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["train/penalty"] == pytest.approx((2.0 * start[0] + 0.3 * start[1]).item())


def test_a_boolean_mask_penalizes_the_entries_where_it_is_true(tmp_path):
    class Masked(Penalized):
        def param_groups(self):
            mask = torch.zeros(5, 3, dtype=torch.bool)
            mask[1] = True
            rest = [p for p in self.parameters() if p is not self.net[0].weight]
            return [{"params": self.net[0].weight, "penalized": mask}, {"params": rest, "penalized": False}]

    class MaskedReference(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) + 0.3 * self.net[0].weight[1].abs().sum()

    ours, theirs = Masked(), MaskedReference()
    for module in (ours, theirs):
        make_trainer(tmp_path).fit(module, make_loader())
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("params", ["generator", "tensor"])
def test_groups_given_as_generators_or_single_tensors_keep_their_penalty(tmp_path, params):
    """The optimizer is made from bare parameters: the penalized groups are the module's."""

    class Bare(Penalized):
        def param_groups(self):
            penalized = self.net[0].parameters() if params == "generator" else self.net[0].weight
            return [{"params": penalized, "penalized": True}]

    class GroupNorms(L1):
        """Not a sum over rows, so that a tensor taken apart shows."""

        def value(self, param, lam):
            return lam * param.norm()

    class BareReference(Regressor):
        def training_step(self, batch, batch_idx):
            penalized = self.net[0].parameters() if params == "generator" else [self.net[0].weight]
            return self.loss(batch) + 0.3 * sum(p.norm() for p in penalized)

    ours, theirs = (cls(lambda module: SGD(module.parameters(), lr=0.05)) for cls in (Bare, BareReference))
    ours.penalty = GroupNorms()
    for module in (ours, theirs):
        make_trainer(tmp_path).fit(module, make_loader())
    assert_close(ours, theirs, 1e-12)


def test_the_fraction_of_exact_zeros_in_penalized_groups_is_logged(tmp_path):
    module = Penalized(lambda module: SGD(module.param_groups(), lr=0.0))
    with torch.no_grad():
        module.net[0].weight[:, 0] = 0
    trainer = make_trainer(tmp_path, max_steps=1)
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["sparsity/weights"] == pytest.approx(5 / 20)
    assert "sparsity/biases" not in trainer.callback_metrics


# ---------------------------------------------------------------------------------------- gradients of every evaluation


class ValueDriven(SGD):
    """Zeroes the gradients, then evaluates again at the same point."""

    def step(self, closure=None):
        self.zero_grad()
        closure()
        return super().step()


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_that_an_undeclared_optimizer_computes_again_are_clipped_too(tmp_path, algorithm):
    ours, theirs = (Regressor(lambda m, kind=kind: kind(m.parameters(), lr=1.0)) for kind in (ValueDriven, SGD))
    for each in (ours, theirs):
        trainer = make_trainer(tmp_path, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
        trainer.fit(each, make_loader())
    assert_same(ours, theirs)


def test_the_logged_norm_is_that_of_the_gradients_before_the_step(tmp_path):
    module = Regressor(lambda m: LBFGS(m.parameters(), max_iter=20, line_search_fn="strong_wolfe"))
    reference = Regressor()
    reference.loss(regression_data()).backward()
    expected = torch.stack([p.grad.norm() for p in reference.parameters()]).norm()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, make_loader(20))
    assert trainer.callback_metrics["grad_norm"] == pytest.approx(float(expected), rel=1e-12)
    arguments = {"method": "Nelder-Mead", "options": {"maxiter": 2}}
    trainer.fit(Regressor(lambda m: MinimizeWrapper(m.parameters(), arguments)), make_loader(20))
    assert "grad_norm" not in trainer.callback_metrics


def test_a_step_that_differentiates_by_itself_can_be_evaluated_without_gradients(tmp_path):
    class Physics(Regressor):
        """Fits the derivative of a network to its inputs, which needs a graph at every evaluation."""

        def loss(self, batch):
            X = batch[0].clone().requires_grad_()
            (derivative,) = torch.autograd.grad(self.net(X).sum(), X, create_graph=True)
            return derivative.square().mean()

    for optimize in (
        lambda m: FISTA(m.parameters(), 0.0),
        lambda m: RandomSearch(m.parameters(), candidates=2),
        lambda m: MinimizeWrapper(m.parameters(), {"method": "Nelder-Mead", "options": {"maxiter": 3}}),
    ):
        module = Physics(optimize)
        trainer = make_trainer(tmp_path, max_epochs=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # values at one point after the other
            trainer.fit(module, make_loader(20))
        assert len(module.losses) == trainer.closure_evaluations


def test_values_leave_the_parameters_where_they_are_whether_vmap_can_or_not(tmp_path):
    def ask(closure):
        before = [p.clone() for p in module.parameters()]
        closure.value()
        closure.values([torch.stack([p + 1.0, p + 2.0]) for p in module.parameters()])
        assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))

    for layer in (nn.LayerNorm(5), nn.BatchNorm1d(5)):
        module = Regressor(evaluating(ask), net=make_net(layer))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            make_trainer(tmp_path, max_epochs=1).fit(module, make_loader(20))


def test_a_minimization_leaves_frozen_batch_norm_and_one_that_is_not_called_alone(tmp_path):
    class Frozen(Regressor):
        def __init__(self, optimize):
            super().__init__(optimize, net=make_net(nn.BatchNorm1d(5), nn.BatchNorm1d(5)))
            self.unused = nn.BatchNorm1d(2)
            self.net[3].running_mean.fill_(3.0)
            self.unused.running_mean.fill_(7.0)

        def training_step(self, batch, batch_idx):
            self.net[3].eval()
            return super().training_step(batch, batch_idx)

    module = Frozen(lambda m: MinimizeWrapper(m.net.parameters(), {"method": "L-BFGS-B", "options": {"maxiter": 3}}))
    module.unused.requires_grad_(False)
    make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1).fit(module, make_loader(20))
    assert torch.equal(module.net[3].running_mean, torch.full((5,), 3.0, dtype=torch.float64))
    assert torch.equal(module.unused.running_mean, torch.full((2,), 7.0))
    assert module.net[2].running_mean.abs().sum() > 0


def test_statistics_that_a_kernel_writes_are_settled_at_the_accepted_point(tmp_path):
    class Functional(nn.Module):
        """Batch norm by its function, which writes its buffers behind their version counters."""

        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(5))
            self.register_buffer("var", torch.ones(5))

        def forward(self, x):
            return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)

    module = Regressor(lambda m: LBFGS(m.parameters(), max_iter=5), net=make_net(Functional()))
    make_trainer(tmp_path, max_epochs=1).fit(module, make_loader(20))
    reference = copy.deepcopy(module.net)
    reference[2].mean.zero_()
    reference[2].var.fill_(1.0)
    reference(regression_data()[0])
    assert torch.equal(module.net[2].mean, reference[2].mean)


def test_an_optimizer_whose_step_takes_no_closure_is_stepped_without(tmp_path):
    class Plain(SGD):
        def step(self):
            return super().step()

    ours, theirs = (Regressor(lambda m, kind=kind: kind(m.parameters(), lr=0.05)) for kind in (Plain, SGD))
    for each in (ours, theirs):
        make_trainer(tmp_path).fit(each, make_loader())
    assert_same(ours, theirs)
