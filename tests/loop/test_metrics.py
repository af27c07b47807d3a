"""What Module.log collects, and that a step which does not log costs no synchronization."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.fabric.loggers import CSVLogger, Logger
from torch.optim import SGD, Adam
from torch.utils._python_dispatch import TorchDispatchMode

from framework import Module
from framework.callbacks import EarlyStopping
from framework.data.samples import count_samples
from framework.optim import ISTA
from tests.modules import Penalized, Regressor, callback_of, make_loader, make_trainer, regression_data, watch

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
    assert {trainer.callback_metrics[name] for name in ("x", "x_epoch")} == {2.4}


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


# -------------------------------------------------------------------------------------------------- what is copied


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.ones((), dtype=torch.bfloat16), 1.0),
        (torch.tensor(200, dtype=torch.uint8), 200.0),
        (torch.tensor(True), 1.0),
        (np.float32(0.5), 0.5),
        (np.array(3), 3.0),
        (np.array([2.5]), 2.5),
        (np.bool_(True), 1.0),
        (7, 7.0),
    ],
)
@pytest.mark.parametrize("reduce_fx", ["mean", "max"])
def test_a_mean_of_equal_values_is_their_value_whatever_their_type(tmp_path, value, expected, reduce_fx):
    class Many(Regressor):
        def validation_step(self, batch, batch_idx):
            for _ in range(20):
                self.log("x", value, reduce_fx=reduce_fx, batch_size=1)

    trainer = make_trainer(tmp_path)
    assert trainer.validate(Many(), make_loader(batch_size=1)) == [{"x": expected}]


def test_a_value_is_that_at_the_time_of_the_call(tmp_path):
    class Counting(Regressor):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros((), dtype=torch.float64))
            self.before = []

        def training_step(self, batch, batch_idx):
            self.count += 1
            self.log("count", self.count, reduce_fx="sum", on_epoch=True)
            self.before.append(self.net[2].bias.item())
            self.log("bias", self.net[2].bias)
            return self.loss(batch)

    module = Counting()
    trainer, logger = fit(tmp_path, module, limit_train_batches=5, log_every_n_steps=1, max_epochs=1)
    assert logger.values("count_epoch") == [1 + 2 + 3]
    assert logger.values("count_step") == [1, 2, 3]
    assert logger.values("bias") == module.before
    assert trainer.callback_metrics["bias"] == module.before[-1]


def test_no_graph_is_kept(tmp_path):
    class Logged(Regressor):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("x", loss, on_epoch=True)
            return loss

    def tensors(trainer, *_):
        entry = trainer.metrics._entries["train"]["x"]
        return any(t.requires_grad for t in (entry.total, trainer.metrics._latest["x"][0]))

    graphs = watch("on_train_batch_end", tensors)
    fit(tmp_path, Logged(), callbacks=graphs)
    assert graphs.seen == [False] * 3


# ---------------------------------------------------------------------------------------------- the weight of a mean


class Ragged(Regressor):
    """The second tensor of a batch is not per sample."""

    def training_step(self, batch, batch_idx):
        (X, y), _ = batch
        self.log("x", VALUES[batch_idx], on_step=False, on_epoch=True)
        return self.loss((X, y))


def ragged_batches():
    return [((X, y), torch.zeros(3)) for X, y in make_loader()]


def test_where_the_samples_are_unknown_a_mean_goes_by_the_first_tensor_with_one_warning(tmp_path):
    trainer = make_trainer(tmp_path)
    with pytest.warns(UserWarning, match="the mean 'x' is weighted by 8") as caught:
        trainer.fit(Ragged(), ragged_batches())
    assert len(caught) == 1
    assert "define count_samples(batch) on the module, or pass batch_size to log()" in str(caught[0].message)
    assert trainer.callback_metrics["x"] == 2.4


def test_a_mean_between_the_steps_asks_no_batch_for_its_samples(tmp_path):
    class Counting(Regressor):
        def count_samples(self, batch):
            return len(batch[0])

        def on_train_epoch_start(self):
            self.log("x", 1.0)

    trainer, _ = fit(tmp_path, Counting())
    assert trainer.callback_metrics["x"] == 1.0


# ------------------------------------------------------------------------------------------------------ validation


def test_a_value_of_a_validation_step_is_logged_per_batch_counted_over_the_run(tmp_path):
    trainer, logger = fit(tmp_path, logging(on_step=True), max_epochs=2, num_sanity_val_steps=2)
    assert logger.values("val/x_step") == VALUES * 2
    assert logger.steps("val/x_step") == list(range(6))
    assert logger.values("val/x_epoch") == [2.4, 2.4]
    assert trainer.callback_metrics["val/x"] == trainer.callback_metrics["val/x_epoch"] == 2.4
    assert trainer.callback_metrics["val/x_step"] == 6.0


def test_the_plain_name_is_the_steps_value_during_an_epoch(tmp_path):
    during = watch("on_train_batch_end", lambda trainer, *_: trainer.callback_metrics["x"])
    trainer, _ = fit(tmp_path, logging(on_step=True, on_epoch=True), callbacks=during, log_every_n_steps=50)
    assert during.seen == VALUES
    assert trainer.callback_metrics["x"] == 2.4


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
        self.by_step(1.0)
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


def test_a_torchmetrics_metric_logged_by_step_shows_the_value_of_the_batch(tmp_path):
    class ByStep(Regressor):
        def __init__(self):
            super().__init__()
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch, batch_idx):
            self.mean(VALUES[batch_idx])
            self.log("mean", self.mean, on_step=True, on_epoch=True)
            return self.loss(batch)

    _, logger = fit(tmp_path, ByStep(), max_epochs=2)
    assert logger.values("mean_step") == VALUES * 2
    assert logger.values("mean_epoch") == [3.0, 3.0]


def test_a_torchmetrics_metric_that_was_only_updated_has_no_value_of_a_step(tmp_path):
    class Updated(WithMetrics):
        def training_step(self, batch, batch_idx):
            self.by_step.update(1.0)
            self.log("by_step", self.by_step)
            return self.loss(batch)

    with pytest.raises(ValueError, match=r"log\('by_step'\): a SumMetric that was only updated .* Call it, metric\("):
        fit(tmp_path, Updated())


# ------------------------------------------------------------------------------------------------- after an exception


class FailingOnce(WithMetrics):
    """Logs 9, 9, 10.5; raises once, in a given step at its second batch, before a metric is logged."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def training_step(self, batch, batch_idx):
        self.log("mean", 9.0 + 1.5 * (batch_idx == 2), on_step=False, on_epoch=True, batch_size=1)
        self.train_mse.update(self(batch[0]).detach(), batch[1])
        self.fail("training", batch_idx)
        self.log("train/mse", self.train_mse, on_step=False, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/mean", 9.0 + 1.5 * (batch_idx == 2), batch_size=1)
        self.val_mse.update(self(batch[0]), batch[1])
        self.fail("sanity" if self.trainer.sanity_checking else "validation", batch_idx)
        self.log("val/mse", self.val_mse)

    def fail(self, where, batch_idx):
        if where == self.where and batch_idx == 1:
            self.where = None
            raise OSError("power cut")


@pytest.mark.parametrize("where", ["training", "validation", "sanity"])
def test_an_exception_leaves_nothing_behind_for_the_next_run(tmp_path, where):
    def optimize(module):
        return SGD(module.parameters(), lr=0.0)

    module, unharmed = FailingOnce(where), FailingOnce(None)
    module.optimize = unharmed.optimize = optimize
    trainer, reference = make_trainer(tmp_path, max_epochs=1), make_trainer(tmp_path, max_epochs=1)
    with pytest.raises(OSError, match="power cut"):
        trainer.fit(module, make_loader(), make_loader())
    expected = reference.validate(unharmed, make_loader())
    assert trainer.validate(module, make_loader()) == expected
    assert expected[0]["val/mean"] == 9.5
    assert not trainer.sanity_checking
    trainer.fit(module, make_loader(), make_loader())
    reference.fit(unharmed, make_loader(), make_loader())
    assert trainer.callback_metrics == reference.callback_metrics
    assert trainer.callback_metrics["mean"] == 9.5


def test_a_validation_that_failed_is_right_the_next_time(tmp_path):
    module, trainer = FailingOnce("validation"), make_trainer(tmp_path)
    with pytest.raises(OSError, match="power cut"):
        trainer.validate(module, make_loader())
    assert trainer.validate(module, make_loader()) == make_trainer(tmp_path).validate(FailingOnce(None), make_loader())


# ------------------------------------------------------------------------------------------------- the trainer's own


@pytest.mark.parametrize("accumulate", [1, 2, "epoch"])
def test_the_mean_loss_of_an_epoch_is_logged_at_its_end(tmp_path, accumulate):
    module = Regressor()
    trainer, logger = fit(tmp_path, module, max_epochs=2, accumulate_grad_batches=accumulate, log_every_n_steps=50)
    expected = [np.average(module.losses[3 * epoch :][:3], weights=[8, 8, 4]) for epoch in range(2)]
    assert logger.values("train/loss_epoch") == pytest.approx(expected, rel=1e-14)
    assert logger.steps("train/loss_epoch") == ([3, 6] if accumulate == 1 else [2, 4] if accumulate == 2 else [1, 2])
    assert trainer.callback_metrics["train/loss_epoch"] == logger.values("train/loss_epoch")[-1]


def test_the_mean_loss_of_a_long_epoch_counts_every_step(tmp_path):
    module = Regressor(dtype=torch.float32)
    data = make_loader(1, num_samples=1500, dtype=torch.float32)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/loss_epoch"] == pytest.approx(np.mean(module.losses), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_the_end_of_the_epoch(tmp_path, bad):
    class Once(Regressor):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + (bad if self.trainer.global_step == 4 else 0.0)

    trainer = make_trainer(tmp_path, max_epochs=9)
    with pytest.raises(ValueError, match=f"train/loss is {bad} at global_step 4: the run has diverged"):
        trainer.fit(Once(), make_loader())
    assert trainer.global_step == 6


def test_the_trainers_own_values_are_those_of_the_last_step_whenever_they_are_read(tmp_path):
    module = Regressor()
    read = watch("on_train_batch_end", lambda trainer, *_: trainer.callback_metrics["train/loss"])
    trainer, _ = fit(tmp_path, module, max_epochs=3, callbacks=read, log_every_n_steps=50)
    assert read.seen == module.losses
    metrics = trainer.callback_metrics
    assert metrics["train/loss"] == metrics["train/objective"] == module.losses[-1]
    assert metrics["closure_evaluations"] == trainer.closure_evaluations == 9
    assert (metrics["epoch"], metrics["lr/0"]) == (trainer.current_epoch, 0.05)
    with torch.no_grad():
        module.net[0].weight.zero_()
    trainer.optimizer.param_groups[0]["lr"] = 7.0
    assert trainer.callback_metrics == metrics


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 5}])
def test_a_penalty_that_no_step_needs_is_known_at_the_end(tmp_path, limit):
    module = Penalized(lambda module: ISTA(module.param_groups(), 0.3, module.penalty))
    before = []
    penalty = watch("on_train_batch_start", lambda *_: before.append(0.3 * sum(p.abs().sum().item() for p in weights)))
    weights = [module.net[0].weight, module.net[2].weight]
    trainer, _ = fit(tmp_path, module, callbacks=penalty, log_every_n_steps=50, **limit)
    metrics = trainer.callback_metrics
    assert metrics["train/penalty"] == pytest.approx(before[-1], rel=1e-12)
    assert metrics["train/objective"] == pytest.approx(metrics["train/loss"] + before[-1], rel=1e-12)


@pytest.mark.parametrize(
    "name", ["train/loss", "train/loss_epoch", "epoch", "lr/0", "grad_norm", "closure_evaluations"]
)
def test_a_name_of_the_trainers_own_belongs_to_the_module_that_logs_it(tmp_path, name):
    class Own(Regressor):
        def training_step(self, batch, batch_idx):
            self.log(name, 1000.0 + batch_idx, prog_bar=True)
            return self.loss(batch)

    trainer, logger = fit(tmp_path, Own())
    assert logger.values(name) == [1000.0, 1001.0, 1002.0]
    assert trainer.callback_metrics[name] == trainer.progress_bar_metrics[name] == 1002.0


def test_a_mean_of_the_modules_goes_before_the_trainers_own(tmp_path):
    class Own(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("train/loss", 1000.0, on_step=True, on_epoch=True)
            return self.loss(batch)

    trainer, logger = fit(tmp_path, Own())
    assert logger.values("train/loss_step") == [1000.0] * 3
    assert logger.values("train/loss_epoch") == [1000.0]
    assert trainer.callback_metrics["train/loss"] == 1000.0


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
            self.metric(loss.detach())
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
        (np.ones(2), {}, ValueError, r"log\('x'\): the value has shape \(2,\)"),
        (np.array("a"), {}, TypeError, r"log\('x'\): str is not a number"),
        (1.0, {"reduce_fx": "median"}, ValueError, r"reduce_fx='median' is not one of mean, sum, min, max"),
        (
            1.0,
            {"on_step": False, "on_epoch": False},
            ValueError,
            r"log\('x'\): with on_step=False, on_epoch=False nobody",
        ),
    ],
)
def test_what_cannot_be_logged_is_refused(tmp_path, value, options, error, message):
    class Wrong(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", value, **options)
            return self.loss(batch)

    with pytest.raises(error, match=message):
        fit(tmp_path, Wrong())


@pytest.mark.parametrize("changed", ["on_step", "on_epoch", "prog_bar"])
def test_options_that_change_between_calls_are_refused(tmp_path, changed):
    class Changing(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", 1.0, **({"on_step": True, "on_epoch": True} | {changed: batch_idx == 0}))
            return self.loss(batch)

    message = rf"log\('x'\) was called with {changed}=True before and {changed}=False now: a name keeps its options"
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, Changing())


def test_a_later_value_that_is_no_scalar_is_refused(tmp_path):
    class Growing(Regressor):
        def training_step(self, batch, batch_idx):
            self.log("x", torch.ones(batch_idx + 1))
            return self.loss(batch)

    with pytest.raises(ValueError, match=r"log\('x'\): the value has shape \(2,\)"):
        fit(tmp_path, Growing())


def test_a_metric_called_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"log\('step'\): loggers call the number of the step so"):
        fit(tmp_path, type("Step", (Regressor,), {"on_train_epoch_start": lambda self: self.log("step", 1.0)})())


@pytest.mark.parametrize(
    "hook",
    ["setup", "configure_optimizers", "on_sanity_check_start", "on_validation_end", "on_train_end", "on_fit_end"],
)
def test_logging_where_nobody_would_see_it_is_refused(tmp_path, hook):
    module_class = type("Hooked", (Regressor,), {hook: lambda self, *_: self.log("x", 1.0)})
    with pytest.raises(RuntimeError, match=r"log\('x'\): .*on_fit_start"):
        fit(tmp_path, module_class())


def test_outside_a_run_logging_does_nothing_without_a_trainer_and_is_refused_with_one(tmp_path):
    module = Regressor()
    module.log("x", 1.0)
    trainer, _ = fit(tmp_path, module)
    with pytest.raises(RuntimeError, match=r"log\('x'\): nothing is collected here"):
        module.log("x", 1.0)
    assert "x" not in trainer.callback_metrics


def test_a_logger_of_another_library_is_refused(tmp_path):
    with pytest.raises(TypeError, match="logger has a object; pass True, False or loggers"):
        make_trainer(tmp_path, logger=[object()])
    assert len(make_trainer(tmp_path, logger=[RecordingLogger(), CSVLogger(tmp_path)]).loggers) == 2


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end", "on_after_backward"])
def test_what_a_hook_logs_of_an_accumulated_step_weighs_by_all_its_samples(tmp_path, hook):
    steps = iter([20.0, 5.0])

    def log(trainer, module, *_):
        module.log("samples", next(steps), on_step=False, on_epoch=True)

    trainer = make_trainer(
        tmp_path, accumulate_grad_batches=2, max_epochs=1, callbacks=callback_of(**{hook: log}), log_every_n_steps=1
    )
    trainer.fit(Regressor(), make_loader(10, num_samples=25))
    assert trainer.callback_metrics["samples"] == pytest.approx((20 * 20 + 5 * 5) / 25)


def test_outputs_are_a_list_for_every_accumulated_step_also_a_last_one_of_one_batch(tmp_path):
    seen = watch("on_train_batch_end", lambda trainer, module, outputs, batch, batch_idx: (type(outputs), len(outputs)))
    make_trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1, callbacks=seen).fit(Regressor(), make_loader(8))
    assert seen.seen == [(list, 2), (list, 1)]


def test_the_norm_of_the_gradients_is_that_of_the_last_step_at_the_end(tmp_path):
    module = Regressor()
    trainer = make_trainer(tmp_path, max_epochs=3, log_every_n_steps=50)
    trainer.fit(module, make_loader())
    norms = torch.stack([p.grad.norm() for p in module.parameters()])
    assert trainer.callback_metrics["grad_norm"] == pytest.approx(float(norms.norm()), rel=1e-12)
