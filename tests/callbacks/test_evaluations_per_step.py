"""Evaluations per step: the mean over each epoch, of optimizers that evaluate more than once."""

import csv

import pytest
from torch.optim import LBFGS, SGD

from framework.callbacks import EvaluationsPerStep
from framework.loggers import CSVLogger
from tests.modules import Regressor, at_step, make_loader, make_trainer


def train(folder, optimize, *callbacks, ckpt_path=None):
    trainer = make_trainer(
        folder,
        logger=CSVLogger(folder),
        max_epochs=3,
        log_every_n_steps=1,
        callbacks=[EvaluationsPerStep(), *callbacks],
    )
    trainer.fit(Regressor(optimize), make_loader(), ckpt_path=ckpt_path)
    return trainer


def logged(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row["evaluations_per_step"]) for row in rows if row.get("evaluations_per_step")}


def lbfgs(module):
    return LBFGS(module.parameters(), max_iter=3)


def test_the_mean_over_each_epoch_is_logged(tmp_path):
    trainer = train(tmp_path, lbfgs)
    assert list(logged(tmp_path)) == [3, 6, 9]
    assert sum(3 * mean for mean in logged(tmp_path).values()) == pytest.approx(trainer.closure_evaluations)


def test_a_run_that_goes_on_within_an_epoch_counts_all_of_it(tmp_path):
    train(tmp_path / "whole", lbfgs)
    train(tmp_path / "first", lbfgs, at_step(5, lambda trainer: trainer.save_checkpoint(tmp_path / "some.ckpt")))
    train(tmp_path / "second", lbfgs, ckpt_path=tmp_path / "some.ckpt")
    whole = logged(tmp_path / "whole")
    assert logged(tmp_path / "second") == {step: whole[step] for step in (6, 9)}


def test_one_evaluation_per_step_is_not_worth_a_line(tmp_path):
    train(tmp_path, lambda module: SGD(module.parameters(), lr=0.05))
    assert logged(tmp_path) == {}
