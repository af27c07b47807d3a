"""Minimization by scipy as one step of a run: how its iterations show, and what ends it at the best point."""

import csv
import itertools
import os
import signal
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning.fabric.loggers import CSVLogger
from torch.optim import LBFGS, SGD

from framework import Callback
from framework.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
from framework.optim import MinimizeWrapper
from framework.penalties import L1
from tests.modules import (
    Regressor,
    assert_close,
    assert_same,
    callback_of,
    make_loader,
    make_trainer,
    regression_data,
    watch,
)


def minimizing(method: str = "BFGS", **options: Any) -> Regressor:
    """Least squares, minimized by one of scipy's methods."""
    return Regressor(lambda module: MinimizeWrapper(module.param_groups(), {"method": method, "options": options}))


class Iterations(Callback):
    """A callback that records every iteration, and does something at one of them."""

    def __init__(self, at: int = 0, do: Any = None) -> None:
        self.at, self.do = at, do
        self.seen: list[tuple[int, float]] = []

    def on_optimizer_iteration(self, trainer, module, iteration, value):
        self.seen.append((iteration, value))
        with torch.no_grad():
            assert module.loss(regression_data()).item() == pytest.approx(value, rel=1e-14)
        if iteration == self.at:
            self.do(trainer)


# ----------------------------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "method",
    ["LBFGS", "CG", "L-BFGS-B", "Newton-CG", "trust-ncg", "trust-krylov", "trust-exact", "SLSQP", "Nelder-Mead"],
)
def test_an_epoch_in_batches_is_minimized_like_one_big_batch(tmp_path, method, shuffle):
    ours, theirs = (minimizing(method, maxiter=40 if method == "Nelder-Mead" else 8) for _ in range(2))
    if method == "LBFGS":
        ours, theirs = (Regressor(lambda m: LBFGS(m.parameters(), line_search_fn="strong_wolfe")) for _ in range(2))
    trainers = []
    for module, loader in ((ours, make_loader(8, shuffle=shuffle)), (theirs, make_loader(20))):
        trainers.append(make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1))
        trainers[-1].fit(module, loader)
    assert_close(ours, theirs, 1e-10)
    assert trainers[0].global_step == trainers[1].global_step == 1
    if method != "LBFGS":
        assert trainers[0].optimizer.result.nit == trainers[1].optimizer.result.nit > 2
        assert theirs.losses[0] > trainers[0].optimizer.result.fun


def test_a_minimization_evaluates_what_is_counted(tmp_path):
    module = minimizing("Newton-CG", maxiter=3)
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1)
    trainer.fit(module, make_loader())
    result = trainer.optimizer.result
    assert trainer.closure_evaluations == result.nfev + result.nhev == len(module.losses) / 3


# ---------------------------------------------------------------------------------------- what shows of an iteration


def test_iterations_are_logged_shown_and_passed_to_callbacks_as_they_happen(tmp_path, capsys):
    def read_rows():
        with (tmp_path / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    iterations = Iterations()
    num_rows = watch("on_optimizer_iteration", lambda *_: len(read_rows()), after_module=True)
    logger = CSVLogger(tmp_path, "", "", flush_logs_every_n_steps=1)
    callbacks = [iterations, num_rows, ProgressBar(refresh_rate=1e9)]
    trainer = make_trainer(tmp_path, callbacks=callbacks, logger=logger, log_every_n_steps=1, max_epochs=2)
    trainer.fit(minimizing(maxiter=4), make_loader(20))

    assert [iteration for iteration, _ in iterations.seen] == [1, 2, 3, 4] * 2
    values = [value for _, value in iterations.seen]
    assert values == sorted(values, reverse=True)
    logged = [row for row in read_rows() if row["iteration/objective"]]
    assert [int(row["step"]) for row in logged] == list(range(1, 9))
    assert [float(row["iteration/objective"]) for row in logged] == values
    evaluations = [float(row["iteration/closure_evaluations"]) for row in logged]
    assert evaluations == sorted(set(evaluations))
    assert num_rows.seen == [1, 2, 3, 4, 7, 8, 9, 10]  # a row for each iteration, the first step, and its epoch
    assert trainer.callback_metrics["iteration/objective"] == values[-1]
    printed = capsys.readouterr().err
    assert "0/2 [00:00<?, ?step/s, iteration=1, iteration/objective=" in printed


def test_a_modules_own_hook_is_called_and_may_log(tmp_path):
    class Own(Regressor):
        def on_optimizer_iteration(self, iteration, value):
            self.log("iterations", float(iteration))

    module = Own(minimizing(maxiter=3).optimize)
    trainer = make_trainer(tmp_path, log_every_n_steps=1, max_epochs=1)
    trainer.fit(module, make_loader(20))
    assert trainer.callback_metrics["iterations"] == 3


def test_a_function_that_the_optimizer_called_before_is_still_called(tmp_path):
    seen = []

    def optimize(module):
        optimizer = MinimizeWrapper(module.parameters(), {"method": "BFGS", "options": {"maxiter": 2}})
        optimizer.on_iteration = lambda iteration, value: seen.append(iteration)
        return optimizer

    iterations = Iterations()
    make_trainer(tmp_path, callbacks=iterations, max_epochs=1).fit(Regressor(optimize), make_loader(20))
    assert seen == [iteration for iteration, _ in iterations.seen] == [1, 2]


def test_an_optimizer_used_again_reports_to_the_second_run_alone(tmp_path):
    made: list[MinimizeWrapper] = []

    def optimize(module):
        made[:] = made or [MinimizeWrapper(module.parameters(), {"method": "CG", "options": {"maxiter": 2}})]
        return made[0]

    module, first, second = Regressor(optimize), Iterations(), Iterations()
    for iterations in (first, second):
        make_trainer(tmp_path, callbacks=iterations, max_epochs=1).fit(module, make_loader(20))
    assert len(first.seen) == len(second.seen) == 2


# ----------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("accumulate", [1, "epoch"])
@pytest.mark.parametrize("method", ["BFGS", "L-BFGS-B", "trust-ncg", "Nelder-Mead"])
@pytest.mark.parametrize(
    ("because", "do"),
    [
        ("enough", lambda trainer: trainer.stop("enough")),
        ("interrupted by SIGINT", lambda trainer: os.kill(os.getpid(), signal.SIGINT)),
        ("interrupted by SIGTERM", lambda trainer: os.kill(os.getpid(), signal.SIGTERM)),
        ("max_time", lambda trainer: setattr(trainer._fit, "_deadline", 0.0)),
    ],
    ids=["stop", "SIGINT", "SIGTERM", "max_time"],
)
def test_a_run_ends_within_a_minimization_at_the_best_point(tmp_path, because, do, method, accumulate):
    iterations = Iterations(3, do)
    module = minimizing(method)
    trainer = make_trainer(
        tmp_path, callbacks=[iterations, ModelCheckpoint(tmp_path)], accumulate_grad_batches=accumulate, max_epochs=5
    )
    with pytest.raises(SystemExit, match="143") if "SIGTERM" in because else nullcontext():
        trainer.fit(module, make_loader(20))
    assert trainer.stopped_because == because
    assert len(iterations.seen) == 3
    assert module.loss(regression_data()).item() == iterations.seen[-1][1] == min(module.losses)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert trainer.optimizer.result.status == 99


def test_a_signal_between_iterations_ends_the_minimization_at_the_next_one(tmp_path):
    class Killed(Regressor):
        def training_step(self, batch, batch_idx):
            if len(self.losses) == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    module = Killed(minimizing("L-BFGS-B").optimize)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, make_loader(20))
    assert trainer.stopped_because == "interrupted by SIGINT"
    assert 8 <= len(module.losses) <= 12
    assert module.loss(regression_data()).item() == min(module.losses)


def test_a_time_limit_holds_within_a_minimization(tmp_path):
    module = minimizing("CG", gtol=0.0, maxiter=10**9)
    trainer = make_trainer(tmp_path, max_epochs=-1, max_time={"seconds": 1})
    trainer.fit(module, make_loader(20))
    assert trainer.stopped_because == "max_time"
    assert trainer.global_step >= 1


def test_early_stopping_looks_at_every_iteration(tmp_path):
    stop = EarlyStopping("iteration/objective", min_delta=0.05, patience=2)
    iterations = Iterations()
    trainer = make_trainer(tmp_path, callbacks=[iterations, stop], max_epochs=1)
    trainer.fit(minimizing("L-BFGS-B"), make_loader(20))
    assert trainer.stopped_because.startswith("early_stopping: iteration/objective is no better than")
    values = [value for _, value in iterations.seen]
    gains = [before - after >= 0.05 for before, after in itertools.pairwise(values)]
    assert not any(gains[-2:])
    assert gains[0]


def test_early_stopping_on_validation_waits_for_its_end(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=EarlyStopping("val/loss", min_delta=1.0, patience=1), max_epochs=20)
    trainer.fit(minimizing("L-BFGS-B", maxiter=30), make_loader(20), make_loader())
    assert "val/loss" in trainer.stopped_because


def test_an_interrupted_minimization_continues_from_the_best_point(tmp_path):
    interrupted, whole = minimizing("L-BFGS-B"), minimizing("L-BFGS-B")
    callbacks = [Iterations(5, lambda trainer: trainer.stop("enough")), ModelCheckpoint(tmp_path)]
    trainer = make_trainer(tmp_path, callbacks=callbacks, max_epochs=1, accumulate_grad_batches="epoch")
    trainer.fit(interrupted, make_loader(20))
    assert (trainer.current_epoch, trainer.global_step) == (0, 1)

    continued = minimizing("L-BFGS-B")
    again = make_trainer(tmp_path, max_epochs=1, accumulate_grad_batches="epoch")
    again.fit(continued, make_loader(20), ckpt_path=tmp_path / "last.ckpt")
    assert continued.losses[0] == min(interrupted.losses)
    assert (again.current_epoch, again.global_step, again.stopped_because) == (1, 2, "max_epochs")
    assert again.progress.iterations == 5 + again.optimizer.result.nit
    assert again.closure_evaluations == len(interrupted.losses) + len(continued.losses)
    make_trainer(tmp_path, max_epochs=1).fit(whole, make_loader(20))
    assert min(continued.losses) < 2 * min(whole.losses)


def test_a_long_minimization_is_saved_as_often_as_a_long_run(tmp_path):
    saved = []

    def load(*_):
        checkpoint.__dict__["_save_due"] = 0.0  # as if a minute had passed
        if (tmp_path / "last.ckpt").exists():
            saved.append(torch.load(tmp_path / "last.ckpt", weights_only=True))

    checkpoint = ModelCheckpoint(tmp_path)
    callbacks = [callback_of(on_optimizer_iteration=load, after_module=True), checkpoint]
    trainer = make_trainer(tmp_path, callbacks=callbacks, max_epochs=1)
    trainer.fit(minimizing(maxiter=4), make_loader(20))
    assert len(saved) == 3
    assert [state["progress"]["iterations"] for state in saved] == [1, 2, 3]
    assert all(state["progress"]["global_step"] == 0 for state in saved)


# --------------------------------------------------------------------------------------------------------- bad input


def refuse(tmp_path, module: Regressor, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options).fit(module, make_loader(20))


def test_arguments_that_scipy_does_not_know_are_refused_at_fit(tmp_path):
    refuse(tmp_path, minimizing("LBFGS"), "unknown method 'LBFGS': did you mean 'L-BFGS-B'.*Known: CG, BFGS")
    refuse(tmp_path, minimizing("CG", maxcor=5), "CG refuses its arguments: Unknown solver options: maxcor")
    refuse(tmp_path, minimizing("CG"), "gradient_clip_val=1.0 with MinimizeWrapper", gradient_clip_val=1.0)


def test_a_module_in_two_dtypes_is_refused_at_fit(tmp_path):
    module = minimizing("CG")
    module.net[2].float()
    refuse(tmp_path, module, r"torch.float32, torch.float64.*`model.float\(\)`")


def test_a_module_without_trainable_parameters_is_refused_at_fit(tmp_path):
    module = minimizing("CG")
    module.requires_grad_(False)
    refuse(tmp_path, module, "no parameter requires a gradient")


def test_a_loss_that_depends_on_no_parameter_is_refused(tmp_path):
    class Detached(Regressor):
        def loss(self, batch):
            return super().loss(batch).detach()

    refuse(tmp_path, Detached(minimizing("CG").optimize), "depends on no parameter")


def test_a_penalty_is_refused_for_scipy(tmp_path):
    module = minimizing("CG")
    module.penalty = L1()
    module.param_groups = lambda: [{"params": list(module.parameters()), "penalized": True}]
    refuse(tmp_path, module, r"MinimizeWrapper needs a smooth objective.*penalty L1.*SpaRSA")


@pytest.mark.parametrize("method", ["BFGS", "trust-ncg", "Nelder-Mead"])
def test_a_loss_that_turns_nan_leaves_the_best_point_and_is_refused_from_then_on(tmp_path, method):
    class Diverging(Regressor):
        def loss(self, batch):
            return super().loss(batch) * (float("nan") if len(self.losses) >= 5 else 1)

    module = Diverging(minimizing(method).optimize)
    refuse(tmp_path, module, "(loss is nan|Hessian is not finite) at evaluation .*(best point seen|starting point)")
    best, module.losses = min(module.losses[:5]), []
    assert module.loss(regression_data()).item() == best


def test_an_optimizer_without_iterations_has_none(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=(iterations := Iterations()))
    module, plain = Regressor(), Regressor(lambda m: SGD(m.parameters(), lr=0.05))
    trainer.fit(module, make_loader())
    make_trainer(tmp_path).fit(plain, make_loader())
    assert not iterations.seen
    assert_same(module, plain)
