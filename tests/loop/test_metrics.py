"""What Module.log collects, and that a step which does not log costs no synchronization."""

from typing import Any

import pytest
import torch
import torchmetrics
from lightning.fabric.loggers import CSVLogger, Logger
from torch.optim import SGD, Adam
from torch.utils._python_dispatch import TorchDispatchMode

from framework import Module
from framework.callbacks import EarlyStopping
from framework.data.samples import count_samples
from tests.modules import Regressor, make_loader, make_trainer, regression_data, watch

VALUES = [1.0, 2.0, 6.0]  # logged for the batches of 8, 8 and 4 samples


class RecordingLogger(Logger):
    """Keeps what it is sent."""

    name, version = "recording", 0

    def __init__(self) -> None:
        self.sent: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.sent.append((step, dict(metrics)))

    def log_hyperparams(self, params: Any) -> None: ...

    def steps(self, name: str) -> list[int | None]:
        return [step for step, values in self.sent if name in values]

    def values(self, name: str) -> list[float]:
        return [values[name] for _, values in self.sent if name in values]


def logging(**options: Any) -> Regressor:
    """A module that logs `VALUES` under the name "x"."""

    class Logging(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", torch.tensor(VALUES[batch_idx], dtype=torch.float64), **options)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val/x", torch.tensor(VALUES[batch_idx], dtype=torch.float64), **options)

    return Logging()


def fit(tmp_path, module: Module, **options: Any) -> tuple[Any, RecordingLogger]:
    logger = RecordingLogger()
    trainer = make_trainer(tmp_path, **({"max_epochs": 1, "log_every_n_steps": 1, "logger": logger} | options))
    trainer.fit(module, make_loader(), make_loader())
    return trainer, logger


# ------------------------------------------------------------------------------------------------------ reductions


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8 * 1 + 8 * 2 + 4 * 6) / 20),
        ({"batch_size": 5}, 3.0),
        ({"reduce_fx": "sum"}, 9.0),
        ({"reduce_fx": "min"}, 1.0),
        ({"reduce_fx": "max"}, 6.0),
    ],
)
def test_an_epochs_value_is_reduced_as_asked(tmp_path, options, expected):
    trainer, logger = fit(tmp_path, logging(on_step=False, on_epoch=True, **options), max_epochs=2)
    assert trainer.callback_metrics["x"] == expected
    assert trainer.callback_metrics["val/x"] == expected
    assert logger.values("x") == logger.values("val/x") == [expected, expected]
    assert logger.steps("x") == logger.steps("val/x") == [3, 6]


def test_a_training_step_logs_its_own_values_and_a_validation_step_the_epochs(tmp_path):
    _, logger = fit(tmp_path, logging())
    assert logger.values("x") == VALUES
    assert logger.steps("x") == [0, 1, 2]
    assert logger.values("val/x") == [2.4]


def test_both_get_an_ending(tmp_path):
    trainer, logger = fit(tmp_path, logging(on_step=True, on_epoch=True))
    assert logger.values("x_step") == VALUES
    assert logger.values("x_epoch") == [2.4]
    assert "x" not in trainer.callback_metrics


def test_what_is_logged_for_the_bar_only_goes_to_no_logger(tmp_path):
    trainer, logger = fit(tmp_path, logging(prog_bar=True, logger=False))
    assert logger.values("x") == logger.values("val/x") == []
    assert trainer.progress_bar_metrics["x"] == 6.0
    assert trainer.progress_bar_metrics["val/x"] == trainer.callback_metrics["val/x"] == 2.4


def test_log_dict_logs_every_entry(tmp_path):
    class Many(Regressor):
        def validation_step(self, batch, batch_idx):
            self.log_dict({"a": 1, "b": 2.5, "c": torch.ones(1)}, prog_bar=True)

    trainer, _ = fit(tmp_path, Many())
    assert {name: trainer.callback_metrics[name] for name in "abc"} == {"a": 1.0, "b": 2.5, "c": 1.0}


def test_accumulated_batches_count_each_by_its_samples(tmp_path):
    for accumulate in (2, "epoch"):
        trainer, _ = fit(tmp_path, logging(on_step=False, on_epoch=True), accumulate_grad_batches=accumulate)
        assert trainer.callback_metrics["x"] == 2.4


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end", "on_validation_epoch_end"])
def test_what_a_hook_logs_between_steps_is_a_value_of_the_epoch(tmp_path, hook):
    module_class = type("Hooked", (Regressor,), {hook: lambda self: self.log("h", self.trainer.current_epoch)})
    trainer, logger = fit(tmp_path, module_class(), max_epochs=3, num_sanity_val_steps=0)
    assert logger.values("h") == [0.0, 1.0, 2.0]
    assert trainer.callback_metrics["h"] == 2.0


def test_what_a_module_logs_at_the_end_of_an_epoch_reaches_early_stopping_in_that_epoch(tmp_path):
    module_class = type(
        "Hooked", (Regressor,), {"on_train_epoch_end": lambda self: self.log("h", abs(self.trainer.current_epoch - 2))}
    )
    trainer, _ = fit(tmp_path, module_class(), max_epochs=9, callbacks=EarlyStopping("h", patience=1))
    assert trainer.current_epoch == 4


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
def test_what_a_hook_logs_in_a_step_is_a_value_of_the_step(tmp_path, hook):
    module_class = type("Hooked", (Regressor,), {hook: lambda self, *_: self.log("h", self.trainer.global_step)})
    _, logger = fit(tmp_path, module_class())
    assert len(logger.values("h")) == 3


def test_the_sums_of_one_epoch_do_not_leak_into_the_next(tmp_path):
    class Epoch(Regressor):
        def validation_step(self, batch, batch_idx):
            self.log("val/epoch", float(self.trainer.current_epoch))
            self.log("count", 1, reduce_fx="sum")

    _, logger = fit(tmp_path, Epoch(), max_epochs=3)
    assert logger.values("val/epoch") == [0.0, 1.0, 2.0]
    assert logger.values("count") == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ((torch.ones(4), torch.ones(4, 5)), 4),
        ({"x": torch.ones(6, 1), "y": 1}, 6),
        ([["name", {"z": torch.ones(2)}]], 2),
        (torch.tensor(1.0), 1),
        ("text", 1),
        (None, 1),
    ],
)
def test_the_samples_of_a_batch_are_the_length_of_its_tensors(batch, size):
    assert count_samples(batch) == size


# ---------------------------------------------------------------------------------------------------- torchmetrics


class WithMetrics(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.train_mse = torchmetrics.MeanSquaredError().set_dtype(torch.float64)
        self.val_mse = torchmetrics.MeanSquaredError().set_dtype(torch.float64)
        self.by_step = torchmetrics.SumMetric()

    def training_step(self, batch, batch_idx):
        self.train_mse(self(batch[0]).detach(), batch[1])
        self.log("train/mse", self.train_mse, on_step=False, on_epoch=True)
        self.by_step.update(1.0)
        self.log("by_step", self.by_step)
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.val_mse.update(self(batch[0]), batch[1])
        self.log("val/mse", self.val_mse)
        self.log("val/loss", self.loss(batch))


def test_a_torchmetrics_metric_is_computed_over_the_epoch_and_reset(tmp_path):
    module = WithMetrics()
    module.optimize = lambda module: SGD(module.parameters(), lr=0.0)
    trainer, logger = fit(tmp_path, module, max_epochs=3)
    X, y = regression_data()
    expected = pytest.approx(((module(X) - y) ** 2).mean().item(), rel=1e-12)
    assert logger.values("train/mse") == logger.values("val/mse") == [expected] * 3
    assert trainer.callback_metrics["val/mse"] == pytest.approx(trainer.callback_metrics["val/loss"], rel=1e-12)


def test_a_torchmetrics_metric_logged_by_step_starts_anew_in_every_epoch(tmp_path):
    _, logger = fit(tmp_path, WithMetrics(), max_epochs=2)
    assert max(logger.values("by_step")) <= 3


# ------------------------------------------------------------------------------------------------- the trainer's own


def test_steps_are_logged_on_every_nth_with_the_values_before_the_step(tmp_path):
    module = Regressor()
    trainer, logger = fit(tmp_path, module, max_epochs=3, log_every_n_steps=4)
    assert logger.steps("train/loss") == [0, 4, 8]
    assert logger.values("train/loss") == [module.losses[step] for step in (0, 4, 8)]
    assert logger.values("train/objective") == logger.values("train/loss")
    assert logger.values("closure_evaluations") == [1, 5, 9]
    assert logger.values("epoch") == [0, 1, 2]
    assert logger.values("lr/0") == [0.05] * 3
    assert logger.steps("val/loss") == [3, 6, 9]
    assert "train/penalty" not in trainer.callback_metrics


def test_the_gradient_norm_is_that_before_clipping(tmp_path):
    module = Regressor()
    torch.nn.functional.mse_loss(module(regression_data()[0][:8]), regression_data()[1][:8]).backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in module.parameters()]).item()
    module.zero_grad()
    _, logger = fit(tmp_path, module, gradient_clip_val=0.01)
    assert logger.values("grad_norm")[0] == expected


def test_groups_are_logged_by_name_or_index(tmp_path):
    def optimize(module):
        first, second = module.net[0].parameters(), module.net[2].parameters()
        return SGD([{"params": first, "name": "first"}, {"params": second, "lr": 0.2}], lr=0.1)

    module = Regressor(optimize)
    trainer, _ = fit(tmp_path, module)
    assert (trainer.callback_metrics["lr/first"], trainer.callback_metrics["lr/1"]) == (0.1, 0.2)


class CountSyncs(TorchDispatchMode):
    """Counts the tensors whose value is read by Python."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_that_does_not_log_reads_no_tensor_and_calls_no_logger(tmp_path, precision):
    class Quiet(Regressor):
        def __init__(self) -> None:
            super().__init__(lambda module: Adam(module.param_groups(), lr=0.1, fused=True), dtype=torch.float32)
            self.metric = torchmetrics.SumMetric(nan_strategy="disable")

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.metric.update(loss.detach())
            self.log("metric", self.metric, on_epoch=True)
            self.log("x", loss, prog_bar=True, on_epoch=True)
            return loss

    logger = RecordingLogger()
    counts = watch("on_train_batch_start", lambda *_: (mode.count, len(logger.sent)))
    trainer = make_trainer(
        tmp_path,
        max_epochs=1,
        log_every_n_steps=4,
        logger=logger,
        callbacks=counts,
        precision=precision,
        gradient_clip_val=1.0,
        enable_checkpointing=True,
    )
    with CountSyncs() as mode:
        trainer.fit(Quiet(), make_loader(1, dtype=torch.float32))
    syncs, sent = torch.tensor(counts.seen).T.diff().tolist()
    # Steps 0, 4, 8, ... log. (The first one also checks the loss.)
    assert all(count == 0 for step, count in enumerate(syncs) if step % 4)
    assert all(count > 0 for step, count in enumerate(syncs) if step % 4 == 0)
    assert [step for step, count in enumerate(sent) if count] == list(range(0, 19, 4))


# --------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        (torch.ones(3), {}, ValueError, r"log\('x'\): the value has shape \(3,\); log a scalar, such as its mean"),
        ("a", {}, TypeError, r"log\('x'\): str is not a number"),
        (None, {}, TypeError, r"log\('x'\): NoneType is not a number"),
        (1.0, {"reduce_fx": "median"}, ValueError, r"reduce_fx='median' is not one of mean, sum, min, max"),
    ],
)
def test_what_cannot_be_logged_is_refused(tmp_path, value, options, error, message):
    class Wrong(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", value, **options)
            return self.loss(batch)

    with pytest.raises(error, match=message):
        fit(tmp_path, Wrong())


def test_a_logger_of_another_library_is_refused(tmp_path):
    with pytest.raises(TypeError, match="logger has a object; pass True, False or loggers"):
        make_trainer(tmp_path, logger=[object()])
    assert len(make_trainer(tmp_path, logger=[RecordingLogger(), CSVLogger(tmp_path)]).loggers) == 2
