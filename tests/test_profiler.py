"""A profiler says where the time of a run goes, and changes nothing else."""

import math
import warnings
from contextlib import contextmanager

import pytest
from lightning.pytorch.profilers import SimpleProfiler
from torch.optim import LBFGS

from framework import Trainer
from framework.callbacks import ModelCheckpoint
from framework.loggers import CSVLogger
from tests.modules import Regressor, assert_same, callback_of, make_loader, make_trainer
from tests.twins import LightningRegressor, momentum


def rows(trainer):
    """Return the total seconds and the number of calls of each action."""
    return {name: (math.fsum(d), len(d)) for name, d in trainer.profiler.recorded_durations.items()}


@pytest.mark.parametrize("optimize", [momentum, lambda module: LBFGS(module.parameters(), max_iter=3)])
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": "epoch"}])
def test_the_rows_of_a_simple_profile_add_up_to_the_total(tmp_path, capsys, optimize, options):
    module, twin = Regressor(optimize), Regressor(optimize)
    trainer = make_trainer(tmp_path, profiler="simple", callbacks=ModelCheckpoint(tmp_path), **options)
    trainer.fit(module, make_loader(), make_loader())
    make_trainer(tmp_path, **options).fit(twin, make_loader(), make_loader())
    assert_same(module, twin)
    found = rows(trainer)
    assert found["optimizer_step"][1] == trainer.global_step
    assert found["training_step"][1] >= found["backward"][1] >= trainer.global_step
    assert found["validation_step"][1] == 2 + 2 * 3
    assert {"ModelCheckpoint.on_train_end", "train_dataloaders, next batch", "everything else"} <= found.keys()
    assert all(seconds >= 0 for seconds, _ in found.values())
    shown = capsys.readouterr().out
    total = float(next(line for line in shown.splitlines() if "Total  " in line).split("|")[4])
    assert sum(seconds for seconds, _ in found.values()) == pytest.approx(total, rel=1e-3)


def test_the_report_is_written_where_the_logger_writes(tmp_path, capsys):
    trainer = make_trainer(tmp_path, profiler="simple", logger=CSVLogger(tmp_path))
    trainer.fit(Regressor(), make_loader())
    assert "Regressor" not in capsys.readouterr().out
    assert "optimizer_step" in (trainer.log_dir / "profile_fit.txt").read_text()
    trainer.validate(Regressor(), make_loader(), verbose=False)
    assert "optimizer_step" not in rows(trainer)
    assert (trainer.log_dir / "profile_validate.txt").is_file()


def test_a_run_that_fails_is_reported_too(tmp_path, capsys):
    def fail(*_):
        raise KeyError("on purpose")

    trainer = make_trainer(tmp_path, profiler="simple", callbacks=callback_of(on_before_backward=fail))
    with pytest.raises(KeyError, match="on purpose"):
        trainer.fit(Regressor(), make_loader())
    assert "training_step" in capsys.readouterr().out


def test_torchs_profiler_writes_a_trace(tmp_path, capsys):
    trainer = make_trainer(
        tmp_path, profiler="pytorch", logger=CSVLogger(tmp_path), num_sanity_val_steps=0, max_epochs=4
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's profiler, once in a process
        trainer.fit(Regressor(), make_loader())
    assert "training_step" in capsys.readouterr().out
    assert list(trainer.log_dir.glob("*.pt.trace.json"))


def test_other_profilers_are_told_of_the_same_actions(tmp_path):
    class Counts:
        def __init__(self):
            self.actions = []

        @contextmanager
        def profile(self, action_name):
            self.actions.append(action_name)
            yield

    class Hooked(LightningRegressor):
        def on_train_epoch_start(self): ...

    counts, lightnings = Counts(), SimpleProfiler()
    for profiler in (counts, lightnings):
        make_trainer(tmp_path, profiler=profiler).fit(Hooked(momentum), make_loader())
    assert set(counts.actions) == lightnings.recorded_durations.keys()
    assert {"training_step", "backward", "optimizer_step", "Hooked.on_train_epoch_start"} <= set(counts.actions)


@pytest.mark.parametrize(
    ("profiler", "error", "message"),
    [
        (
            "advanced",
            ValueError,
            "profiler='advanced'; it must be 'simple', 'pytorch', a profiler of Lightning's, or None",
        ),
        (3, TypeError, r"profiler is a int, which has no method profile\(action_name\)"),
    ],
)
def test_another_profiler_is_refused(profiler, error, message):
    with pytest.raises(error, match=message):
        Trainer(accelerator="cpu", profiler=profiler)
