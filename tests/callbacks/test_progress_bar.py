"""The progress bar, read from what it prints."""

import importlib
import re
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from framework import Callback, Module, Trainer
from framework.callbacks import PenaltyPath, ProgressBar
from framework.optim import ProxAdam
from framework.penalties import L1
from tests.modules import Regressor, make_loader, make_trainer

EAGER = partial(ProgressBar, refresh_rate=1e9)


def test_a_file_gets_lines_that_count_the_steps_and_show_the_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, callbacks=ProgressBar(), max_epochs=2, log_every_n_steps=1)
    trainer.fit(Regressor(), make_loader(), make_loader())
    printed = capsys.readouterr().err
    first, *_, last = printed.splitlines()  # more than two lines where a step takes a second
    assert "\r" not in printed
    assert first.startswith("epoch 1/2:  17% 1/6 [")
    assert last.startswith("epoch 2/2: 100% 6/6 [")
    loss = re.search(r"train/loss=([\d.]+)", last)
    assert float(loss[1]) == pytest.approx(trainer.callback_metrics["train/loss"], rel=0.01)


def test_a_process_that_has_imported_a_kernel_and_is_none_gets_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module("ipykernel.kernelapp")
    make_trainer(tmp_path, callbacks=ProgressBar(), max_epochs=1).fit(Regressor(), make_loader())
    assert "\r" not in capsys.readouterr().err


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    make_trainer(tmp_path, callbacks=EAGER(), max_epochs=2).fit(Regressor(), make_loader())
    printed = capsys.readouterr().err
    assert printed.count("\r") >= 6
    assert "epoch 2/2: 100%|" in printed


def test_the_progress_bar_of_a_run_without_end_has_no_total(tmp_path, capsys):
    trainer = make_trainer(tmp_path, callbacks=ProgressBar(), max_epochs=-1, max_time=timedelta(milliseconds=1))
    trainer.fit(Regressor(), make_loader())
    assert re.search(r"epoch 1: \d+step \[", capsys.readouterr().err)


def test_a_penalty_shows_the_objective_and_the_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Penalized(Regressor):
        penalty, happy_lambda = L1(), 0.1

        def param_groups(self):
            return [{"name": "all", "params": list(self.parameters()), "penalized": True}]

    trainer = make_trainer(tmp_path, callbacks=ProgressBar(), max_epochs=1)
    trainer.fit(Penalized(), make_loader())
    last = capsys.readouterr().err.splitlines()[-1]
    for name in ("train/objective", "sparsity/all"):
        shown = float(re.search(rf"{name}=([\d.]+)", last)[1])
        assert shown == pytest.approx(trainer.callback_metrics[name], rel=0.01)


def test_a_path_shows_its_stage_in_place_of_a_number_of_steps_that_it_will_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    class Penalized(Regressor):
        penalty, happy_lambda = L1(), 0.1

        def param_groups(self):
            return [{"params": list(self.parameters()), "penalized": True}]

    seen = []

    class Look(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
            seen.append(path.progress_description)

    path = PenaltyPath(partial(ProxAdam, lr=0.01), [{"share": 0.1}, {"share": 0.5}], window=1, max_epochs=2, tol=-9)
    trainer = make_trainer(tmp_path, callbacks=[Look(), path, EAGER()], max_epochs=6)
    trainer.fit(Penalized(), make_loader())
    printed = capsys.readouterr().err
    stages = [f"stage {stage}/2, epoch {epoch} of at most 2" for stage in (1, 2) for epoch in (1, 2)]
    assert seen == [*stages, "full penalty, epoch 1", "full penalty, epoch 2"]
    assert all(description in printed for description in seen)
    assert "/6 " not in printed
