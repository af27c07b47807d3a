"""A path of penalties: stages that cannot be skipped, a final phase with the module's optimizer, resumed bitwise."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from framework import Trainer
from framework.callbacks import PenaltyPath, Stage, Stationarity
from framework.losses import L2Loss
from framework.optim import FISTA, ProxAdam, SpaRSA
from framework.penalties import L1, Harder
from framework.recipes.module import SupervisedModule
from tests.callbacks.lasso import data, fit, make_module
from tests.modules import assert_same, callback_of, make_trainer, watch

STAGES = [Stage(0.0), Stage(0.3), Stage(0.6)]


def make_path(**options: Any) -> PenaltyPath:
    defaults: dict[str, Any] = {"stages": STAGES, "window": 4, "max_epochs": 20, "tol": 1e-3, "final_window": 10}
    return PenaltyPath(**({"optimizer": partial(ProxAdam, lr=0.05)} | defaults | options))


def in_force(trainer: Trainer, module: SupervisedModule) -> tuple[str, float, Any, Any]:
    """Return the optimizer, the module's weight, the optimizer's, and the penalty."""
    lam = trainer.optimizer.weight(trainer.optimizer.param_groups[0], None)
    return type(trainer.optimizer).__name__, module.happy_lambda, lam, module.penalty


def test_every_stage_trains_with_its_own_weight_and_the_last_phase_with_the_modules_optimizer(tmp_path):
    path, module = make_path(), make_module()
    phases = watch("on_train_epoch_start", in_force)
    counts = watch("on_train_epoch_start", lambda trainer, _: (trainer.global_step, trainer.closure_evaluations))
    trainer = fit(tmp_path, module, path, phases, counts, loader=data(10))
    assert [phase for phase, _ in itertools.groupby(phases.seen)] == [
        ("ProxAdam", 0.0, 0.0, L1()),
        ("ProxAdam", 0.6, 0.6, L1()),
        ("ProxAdam", 1.2, 1.2, L1()),
        ("SpaRSA", 2.0, 2.0, L1()),
    ]
    assert [record["happy_lambda"] for record in path.history] == [0.0, 0.6, 1.2]
    assert all(8 <= record["epochs"] <= 20 for record in path.history)
    assert path.is_final
    assert trainer.stopped_because == "penalty_path: the objective no longer decreases"
    # With three batches, an epoch has three steps on the path, and one step in the final phase.
    epochs = sum(record["epochs"] for record in path.history)
    assert counts.seen[epochs] == (3 * epochs, 3 * epochs)
    assert trainer.global_step == 3 * epochs + trainer.current_epoch - epochs
    assert trainer.closure_evaluations > trainer.global_step
    assert trainer.callback_metrics["path/stage"] == 2
    assert trainer.accumulate_grad_batches == 1


def test_the_final_phase_ends_where_the_optimizer_alone_does(tmp_path):
    module, alone = make_module(), make_module()
    fit(tmp_path, module, make_path(final_tol=0.0), Stationarity(1e-9))
    fit(tmp_path, alone, Stationarity(1e-9))
    for ours, theirs in zip(module.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    assert module.network[0].weight.count_nonzero() == 2


@pytest.mark.parametrize("maker", [partial(Adam, lr=0.05), partial(SGD, lr=0.01)])
def test_an_optimizer_without_prox_follows_the_path_by_the_modules_weight(tmp_path, maker):
    weights = watch("on_train_epoch_start", lambda trainer, module: module.happy_lambda)
    fit(tmp_path, make_module(FISTA), make_path(optimizer=maker), weights)
    assert sorted(set(weights.seen)) == [0.0, 0.6, 1.2, 2.0]
    assert weights.seen == sorted(weights.seen)


def test_a_settled_stage_does_not_end_the_next_one(tmp_path):
    """After the optimum of an unpenalized stage, equal stages have nothing to do: each lasts two windows."""
    path = make_path(stages=[Stage(0.5)] * 4, tol=0.5)
    fit(tmp_path, make_module(), path)
    assert [record["epochs"] for record in path.history] == [8, 8, 8, 8]


def test_a_stage_that_keeps_improving_ends_at_max_epochs(tmp_path):
    path = make_path(tol=-1.0, max_epochs=11)
    fit(tmp_path, make_module(), path)
    assert [record["epochs"] for record in path.history] == [11, 11, 11]


def test_groups_with_their_own_weights_are_scaled_alike(tmp_path):
    class TwoWeights(SupervisedModule):
        def param_groups(self):
            first, second = self.network
            return [
                {"params": [first.weight], "penalized": True, "happy_lambda": 1.0},
                {"params": [second.weight], "penalized": True},
                {"params": [first.bias, second.bias], "penalized": False},
            ]

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 1)).double()
    module = TwoWeights(network, L2Loss(), SpaRSA, penalty=L1(), happy_lambda=0.5)
    weights = watch(
        "on_train_epoch_start",
        lambda trainer, _: tuple(trainer.optimizer.weight(g, None) for g in trainer.optimizer.param_groups[:2]),
    )
    fit(tmp_path, module, make_path(), weights)
    assert list(dict.fromkeys(weights.seen)) == [(0.0, 0.0), (0.3, 0.15), (0.6, 0.3), (1.0, 0.5)]


@pytest.mark.parametrize(
    ("penalty", "stages", "steps", "shapes"),
    [
        (L1(), None, range(-1, 5), None),
        (L1(), "growing", range(-4, 4), None),
        (Harder(0.2), None, range(-4, 4), [0.2] * 9),
        (Harder(0.1), "harder_lasso", range(-1, 4), [0.9, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1]),
        (Harder(0.1), "lasso_ann", range(-1, 5), [0.1] * 7),
    ],
)
def test_a_schedule_follows_the_penalty_or_its_name_and_the_module_gets_its_own_back(
    tmp_path, penalty, stages, steps, shapes
):
    module, seen = make_module(penalty=penalty), watch("on_train_epoch_start", lambda _, m: (m.penalty, m.happy_lambda))
    path = make_path(stages=stages, window=1, max_epochs=2)
    fit(tmp_path, module, path, seen, max_epochs=2 * 9)
    assert (module.penalty, module.happy_lambda) == (penalty, 2.0)
    followed = seen.seen[::2][: len(path.stages)]
    shares = torch.cat([torch.zeros(1), torch.tensor([*steps]).sigmoid(), torch.ones(1)])[: len(followed)]
    torch.testing.assert_close(torch.tensor([weight for _, weight in followed]), 2 * shares)
    expected = [penalty] * len(followed) if shapes is None else [Harder(nu) for nu in shapes]
    assert [shape for shape, _ in followed] == expected


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("steps", [1, 29, 40, 45, 90, 92])
@pytest.mark.parametrize("optimizer", [SpaRSA, partial(Adam, lr=0.01)])
def test_a_run_continued_from_any_phase_ends_like_one_that_was_not_interrupted(tmp_path, steps, optimizer):
    """Epochs of 3 steps, stages of 15: in the middle of an epoch, at the end of a stage, of the path, and after it."""
    path = make_path(window=2, max_epochs=5, tol=-1.0, stages=[Stage(0.2), Stage(0.5)] * 3, final_tol=-1.0)
    options: dict[str, Any] = {"enable_checkpointing": True, "loader": data(12)}
    whole, halted, resumed = (make_module(optimizer) for _ in range(3))
    fit(tmp_path / "whole", whole, path, max_epochs=34, **options)
    first = fit(tmp_path / "halted", halted, make_path_like(path), max_steps=steps, **options)
    second = make_path_like(path)
    trainer = make_trainer(tmp_path / "resumed", callbacks=[second], max_epochs=34, enable_checkpointing=True)
    trainer.fit(resumed, data(12), ckpt_path=first.default_root_dir / "checkpoints" / "last.ckpt")
    assert_same(whole, resumed)
    assert second.stage == path.stage == 6
    for ours, theirs in zip(second.history, path.history, strict=True):
        assert ours["objective"] == theirs["objective"]
        assert torch.equal(ours["importance"], theirs["importance"])


def make_path_like(path: PenaltyPath) -> PenaltyPath:
    return make_path(
        window=path.window, max_epochs=path.max_epochs, tol=path.tol, stages=path.given_stages, final_tol=path.final_tol
    )


def test_a_checkpoint_of_another_path_is_refused(tmp_path):
    fit(tmp_path, make_module(), make_path(), max_epochs=3, enable_checkpointing=True)
    last = tmp_path / "checkpoints" / "last.ckpt"
    for path in (make_path(stages=[Stage(0.5)]), make_path(stages=[*STAGES, Stage(1.0)])):
        trainer = make_trainer(tmp_path, callbacks=[path])
        with pytest.raises(
            ValueError, match="written without PenaltyPath, or with other stages: continue with the conf"
        ):
            trainer.fit(make_module(), data(), ckpt_path=last)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0; it must be at least 1"),
        ({"max_epochs": 7}, "max_epochs=7 is less than two windows of 4 epochs"),
        (
            {"stages": "harder"},
            "stages='harder' is unknown; name one of growing, lasso_ann, harder_lasso, or pass a list",
        ),
        ({"stages": [{"share": -0.1}]}, r"share=-0\.1 of the full weight; it must be a finite"),
        ({"stages": [Stage(0.5, nu=0.3)]}, r"a stage sets nu, which L1\(\) does not have"),
    ],
)
def test_a_path_out_of_range_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, make_module(), make_path(**options))


def test_a_path_without_a_penalty_is_refused(tmp_path):
    module = make_module()
    module.penalty = None
    with pytest.raises(ValueError, match=r"PenaltyPath needs a penalty to follow: set module\.penalty, or drop"):
        fit(tmp_path, module, make_path())


def test_another_optimizer_is_checked_like_the_first(tmp_path):
    def switch(trainer, module):
        trainer.use_optimizer(SGD(list(module.parameters())[:1], lr=0.1))

    with pytest.raises(ValueError, match=r"in no parameter group of SGD: network\.0\.bias"):
        fit(tmp_path, make_module(), callback_of(on_train_epoch_end=switch))
