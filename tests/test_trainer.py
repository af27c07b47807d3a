"""The training loop against hand-written ones, in every precision, to its limits, from any loader."""

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, AdamW, RMSprop
from torch.utils.data import DataLoader, IterableDataset

from framework.data import TensorLoader
from framework.optim import MinimizeWrapper
from tests.modules import (
    ClosureIgnorer,
    Regressor,
    Stream,
    assert_close,
    assert_same,
    at_step,
    callback_of,
    make_loader,
    make_net,
    make_trainer,
    regression_data,
    watch,
)

OPTIMIZERS = {
    "sgd": lambda params: SGD(params, lr=0.05),
    "momentum": lambda params: SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda params: SGD(params, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda params: Adam(params, lr=0.01),
    "adam_fused": lambda params: Adam(params, lr=0.01, fused=True),
    "adamw": lambda params: AdamW(params, lr=0.01, amsgrad=True),
    "rmsprop": lambda params: RMSprop(params, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda params: Adagrad(params, lr=0.05),
    "adadelta": lambda params: Adadelta(params, lr=0.5),
}


def train_by_hand(module: Regressor, optimizer: Any, loader: Any, epochs: int, after_backward: Any = None) -> None:
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            module.loss(batch).backward()
            if after_backward:
                after_backward(module.parameters())
            optimizer.step()


# ------------------------------------------------------------------------------------------- against references


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_the_steps_of_a_hand_written_loop(tmp_path, name):
    ours, theirs = Regressor(lambda module: OPTIMIZERS[name](module.param_groups())), Regressor()
    make_trainer(tmp_path, max_epochs=3).fit(ours, make_loader(shuffle=True, seed=3))
    train_by_hand(theirs, OPTIMIZERS[name](theirs.parameters()), make_loader(shuffle=True, seed=3), 3)
    assert_same(ours, theirs)


def test_a_run_with_dropout_and_a_shuffling_loader_draws_what_a_hand_written_loop_draws(tmp_path):
    ours, theirs = (Regressor(net=make_net(nn.BatchNorm1d(5), nn.Dropout(0.4))) for _ in range(2))
    torch.manual_seed(5)
    make_trainer(tmp_path, max_epochs=3).fit(ours, make_loader(shuffle=True))
    torch.manual_seed(5)
    train_by_hand(theirs, SGD(theirs.parameters(), lr=0.05), make_loader(shuffle=True), 3)
    assert_same(ours, theirs)


def test_each_parameter_group_has_its_own_learning_rate(tmp_path):
    def groups(module):
        layers = module.net
        return [
            {"params": layers[0].parameters(), "lr": 0.2, "penalized": False},
            {"params": list(layers[2].parameters()), "penalized": True},
        ]

    ours, theirs = Regressor(lambda module: SGD(groups(module), lr=0.01, momentum=0.5)), Regressor()
    make_trainer(tmp_path).fit(ours, make_loader())
    train_by_hand(theirs, SGD(groups(theirs), lr=0.01, momentum=0.5), make_loader(), 2)
    assert_same(ours, theirs)


def test_lbfgs_takes_the_steps_of_a_hand_written_loop(tmp_path):
    def optimizer(module):
        return LBFGS(module.parameters(), lr=1, max_iter=7, line_search_fn="strong_wolfe")

    ours, theirs = Regressor(optimizer), Regressor()
    trainer = make_trainer(tmp_path, max_epochs=3)
    trainer.fit(ours, make_loader(10))

    lbfgs, losses = optimizer(theirs), []
    for _ in range(3):
        for batch in make_loader(10):

            def closure(batch=batch):
                lbfgs.zero_grad()
                loss = theirs.loss(batch)
                losses.append(loss.item())
                loss.backward()
                return loss

            lbfgs.step(closure)
    assert_same(ours, theirs)
    assert ours.losses == losses
    assert trainer.closure_evaluations == len(losses) > trainer.global_step == 6


def test_an_optimizer_that_ignores_its_closure_equals_sgd(tmp_path):
    ours, theirs = Regressor(lambda module: ClosureIgnorer(module.parameters(), lr=0.05)), Regressor()
    for module in (ours, theirs):
        make_trainer(tmp_path).fit(module, make_loader())
    # Not bitwise: torch's SGD multiplies and adds in one rounding.
    assert_close(ours, theirs, 1e-14)
    assert len(ours.losses) == 6


@pytest.mark.parametrize("num_samples", [16, 20, 18], ids=["even", "short_group", "short_batch"])
def test_accumulating_batches_equals_one_big_batch(tmp_path, num_samples):
    ours, theirs = Regressor(), Regressor()
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, max_epochs=3)
    trainer.fit(ours, make_loader(4, num_samples=num_samples))
    make_trainer(tmp_path, max_epochs=3).fit(theirs, make_loader(8, num_samples=num_samples))
    assert_close(ours, theirs, 1e-12)
    assert trainer.global_step == 3 * -(-num_samples // 8)
    assert trainer.closure_evaluations == trainer.global_step


def test_accumulating_weights_the_penalty_like_one_big_batch(tmp_path):
    class Penalized(Regressor):
        def training_step(self, batch, batch_idx):
            return self.loss(batch), 0.1 * sum(p.abs().sum() for p in self.parameters())

    ours, theirs = Penalized(), Penalized()
    make_trainer(tmp_path, accumulate_grad_batches=3).fit(ours, make_loader(8))
    make_trainer(tmp_path).fit(theirs, make_loader(20))
    assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("optimizer", [SGD, LBFGS])
@pytest.mark.parametrize("shuffle", [False, True])
def test_accumulating_over_an_epoch_equals_the_full_batch(tmp_path, optimizer, shuffle):
    ours, theirs = (Regressor(lambda module: optimizer(module.parameters(), lr=0.1)) for _ in range(2))
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=4)
    trainer.fit(ours, make_loader(8, shuffle=shuffle, seed=1))
    make_trainer(tmp_path, max_epochs=4).fit(theirs, make_loader(20))
    assert_close(ours, theirs, 1e-10)
    assert trainer.global_step == 4


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_matches_torch(tmp_path, algorithm):
    clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[algorithm]
    ours, theirs, unclipped = Regressor(), Regressor(), Regressor()
    make_trainer(tmp_path, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm).fit(ours, make_loader())
    train_by_hand(theirs, SGD(theirs.parameters(), lr=0.05), make_loader(), 2, lambda params: clip(list(params), 0.1))
    make_trainer(tmp_path).fit(unclipped, make_loader())
    assert_same(ours, theirs)
    assert not torch.equal(ours.net[0].weight, unclipped.net[0].weight)


def test_clipping_clips_the_gradient_of_the_whole_accumulated_group_once(tmp_path):
    ours, theirs = Regressor(), Regressor()
    make_trainer(tmp_path, gradient_clip_val=0.1, accumulate_grad_batches=3).fit(ours, make_loader(8))
    make_trainer(tmp_path, gradient_clip_val=0.1).fit(theirs, make_loader(20))
    assert_close(ours, theirs, 1e-12)


# ------------------------------------------------------------------------------------------------------ precision


class DtypeRecorder(Regressor):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: set[torch.dtype] = set()

    def loss(self, batch):
        X, y = batch
        output = self.net(X)
        self.seen.add(output.dtype)
        return nn.functional.mse_loss(output.to(y.dtype), y)


@pytest.mark.parametrize("optimizer", [SGD, LBFGS])
def test_bf16_mixed_autocasts_the_training_and_the_validation_step(tmp_path, optimizer):
    module = DtypeRecorder(lambda module: optimizer(module.parameters(), lr=0.05), dtype=torch.float32)
    trainer = make_trainer(tmp_path, precision="bf16-mixed")
    trainer.fit(module, make_loader(dtype=torch.float32))
    assert module.seen == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in module.parameters())
    module.seen.clear()
    trainer.validate(module, make_loader(dtype=torch.float32))
    assert module.seen == {torch.bfloat16}
    assert trainer.predict(module, make_loader(dtype=torch.float32))[0].dtype in (torch.bfloat16, torch.float32)


def test_64_true_trains_in_double_precision_on_float_batches(tmp_path):
    ours = DtypeRecorder(dtype=torch.float32)
    make_trainer(tmp_path, precision="64-true", gradient_clip_val=1.0).fit(ours, make_loader(dtype=torch.float32))
    assert ours.seen == {torch.float64}
    assert all(p.dtype == torch.float64 for p in ours.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed needs a GPU: Fabric has no fp16 autocast on CPUs")
def test_fp16_trains_and_is_refused_with_an_optimizer_that_reevaluates(tmp_path):
    options = {"accelerator": "gpu", "precision": "16-mixed"}
    module = DtypeRecorder(dtype=torch.float32)
    make_trainer(tmp_path, gradient_clip_val=1.0, **options).fit(module, make_loader(dtype=torch.float32))
    assert module.seen == {torch.float16}
    module = Regressor(lambda module: LBFGS(module.parameters()), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"16-mixed.*LBFGS"):
        make_trainer(tmp_path, **options).fit(module, make_loader(dtype=torch.float32))


# --------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("options", "steps", "because"),
    [
        ({"max_epochs": 3}, 9, "max_epochs"),
        ({"max_epochs": 0}, 0, "max_epochs"),
        ({"max_epochs": None, "max_steps": 4}, 4, "max_steps"),
        ({"max_epochs": 1, "max_steps": 40}, 3, "max_epochs"),
        ({"max_epochs": None, "max_steps": 0}, 0, "max_steps"),
        ({"max_epochs": None, "max_time": timedelta(seconds=0)}, 0, "max_time"),
        ({"max_epochs": None, "max_time": "00:00:00:00"}, 0, "max_time"),
        ({"limit_train_batches": 2}, 4, "max_epochs"),
        ({"limit_train_batches": 0.67}, 4, "max_epochs"),
        ({"limit_train_batches": 1.0}, 6, "max_epochs"),
        ({"limit_train_batches": 1}, 2, "max_epochs"),
        ({"limit_train_batches": 100}, 6, "max_epochs"),
        ({"limit_train_batches": 3, "accumulate_grad_batches": 2}, 4, "max_epochs"),
        ({"fast_dev_run": True}, 1, "max_steps"),
        ({"fast_dev_run": 2, "max_epochs": 70}, 2, "max_steps"),
    ],
)
def test_a_run_ends_at_its_limit_and_says_which(tmp_path, options, steps, because):
    trainer = make_trainer(tmp_path, **options)
    trainer.fit(Regressor(), make_loader(), make_loader())
    assert (trainer.global_step, trainer.stopped_because) == (steps, because)


def test_a_time_limit_ends_a_run_in_the_middle_of_an_epoch(tmp_path):
    slow = callback_of(on_train_batch_end=lambda *_: time.sleep(0.01))
    trainer = make_trainer(tmp_path, max_epochs=-1, max_time={"milliseconds": 35}, callbacks=slow)
    trainer.fit(Regressor(), make_loader(1))
    assert trainer.stopped_because == "max_time"
    assert 0 < trainer.global_step < 20


def test_a_callback_ends_a_run_and_gives_the_reason(tmp_path):
    stopper = at_step(4, lambda trainer: trainer.stop("enough"))
    trainer = make_trainer(tmp_path, callbacks=stopper, max_epochs=9)
    trainer.fit(Regressor(), make_loader())
    assert (trainer.global_step, trainer.stopped_because) == (4, "enough")


def test_overfitting_repeats_the_same_batches_of_a_shuffling_loader(tmp_path):
    class Recorder(Regressor):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    for loader in (make_loader(shuffle=True), TensorLoader(*regression_data(), batch_size=8, shuffle=True)):
        module = Recorder()
        module.seen = []
        make_trainer(tmp_path, overfit_batches=2, max_epochs=3).fit(module, loader)
        assert len(module.seen) == 6
        for first, second, third in zip(*(module.seen[i : i + 2] for i in (0, 2, 4)), strict=True):
            assert torch.equal(first, second)
            assert torch.equal(first, third)
        assert not torch.equal(module.seen[0], module.seen[1])


def test_validation_runs_only_on_every_nth_epoch(tmp_path):
    for sanity_steps in (0, 1):
        validated = watch("on_validation_end", lambda trainer, _: (trainer.sanity_checking, trainer.current_epoch))
        trainer = make_trainer(
            tmp_path, callbacks=validated, max_epochs=5, check_val_every_n_epoch=2, num_sanity_val_steps=sanity_steps
        )
        trainer.fit(Regressor(), make_loader(), make_loader())
        assert validated.seen == [(True, 0)] * sanity_steps + [(False, 1), (False, 3)]


@pytest.mark.parametrize(("sanity_steps", "batches"), [(0, 0), (2, 2), (-1, 3), (99, 3)])
def test_the_sanity_check_reads_its_number_of_batches_and_leaves_no_metric(tmp_path, sanity_steps, batches):
    class Count(Regressor):
        count = 0

        def validation_step(self, batch, batch_idx):
            self.count += 1
            super().validation_step(batch, batch_idx)

        def on_train_start(self):
            assert self.count == batches
            assert self.trainer.callback_metrics == {}

    module = Count()
    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=sanity_steps)
    trainer.fit(module, make_loader(), make_loader())
    assert module.count == batches + 3


@pytest.mark.parametrize(("limit", "batches"), [(1, 1), (0, 0), (0.34, 1), (None, 3)])
def test_limits_hold_for_every_evaluation(tmp_path, limit, batches):
    trainer = make_trainer(
        tmp_path, limit_val_batches=limit, limit_test_batches=limit, limit_predict_batches=limit, max_epochs=1
    )
    module = Regressor()
    trainer.fit(module, make_loader(), make_loader())
    assert ("val/loss" in trainer.callback_metrics) == (batches > 0)
    assert len(trainer.predict(module, make_loader())) == batches
    assert len(trainer.test(module, make_loader())[0]) == (batches > 0)


def test_the_same_trainer_can_fit_twice(tmp_path):
    trainer = make_trainer(tmp_path, max_epochs=1)
    ours, theirs = Regressor(), Regressor()
    for module in (ours, ours, theirs):
        trainer.fit(module, make_loader())
        assert trainer.global_step == 3
    make_trainer(tmp_path, max_epochs=1).fit(theirs, make_loader())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_epochs": 4}, 12),
        ({"max_epochs": 4, "max_steps": 5}, 5),
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 8),
        ({"max_epochs": 4, "accumulate_grad_batches": "epoch"}, 4),
        ({"max_epochs": 4, "limit_train_batches": 2}, 8),
        ({"max_epochs": -1, "max_steps": 7}, 7),
    ],
)
def test_estimated_stepping_batches_is_the_whole_number_of_steps_of_the_run(tmp_path, options, steps):
    estimates = []

    def optimize(module):
        estimates.append(module.trainer.estimated_stepping_batches)
        return SGD(module.parameters(), lr=0.1)

    trainer = make_trainer(tmp_path, **options)
    trainer.fit(Regressor(optimize), make_loader())
    assert estimates == [steps] == [trainer.global_step]
    assert isinstance(estimates[0], int)


# ----------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("kind", ["list", "TensorLoader", "iterable", "IterableDataset"])
def test_any_iterable_of_batches_trains_like_a_data_loader(tmp_path, kind):
    class StreamDataset(Stream, IterableDataset):
        pass

    loaders = {
        "IterableDataset": DataLoader(StreamDataset(), batch_size=None),
        "list": list(make_loader()),
        "TensorLoader": TensorLoader(*regression_data(), batch_size=8),
        "iterable": Stream(),
    }
    ours, theirs = Regressor(), Regressor()
    trainer = make_trainer(tmp_path)
    trainer.fit(ours, loaders[kind], loaders[kind])
    make_trainer(tmp_path).fit(theirs, make_loader())
    assert_same(ours, theirs)
    assert (trainer.global_step, trainer.current_epoch, trainer.stopped_because) == (6, 2, "max_epochs")


def test_a_stream_without_length_ends_at_a_number_of_batches(tmp_path):
    class Endless:
        def __iter__(self):
            while True:
                yield from make_loader()

    trainer = make_trainer(tmp_path, limit_train_batches=5)
    trainer.fit(Regressor(), Endless())
    assert (trainer.global_step, trainer.current_epoch) == (10, 2)


def test_a_dataset_that_draws_is_seeded_by_the_global_generator_only(tmp_path):
    """The loop itself draws nothing: the generator ends where a hand-written loop leaves it."""
    torch.manual_seed(3)
    make_trainer(tmp_path).fit(Regressor(), make_loader(shuffle=True))
    ours = torch.rand(3)
    torch.manual_seed(3)
    module = Regressor()
    train_by_hand(module, SGD(module.parameters(), lr=0.05), make_loader(shuffle=True), 2)
    assert torch.equal(ours, torch.rand(3))


# ------------------------------------------------------------------------------------------------------- questions


def test_questions_before_the_first_run_have_an_answer_or_a_clear_error(tmp_path):
    trainer = make_trainer(tmp_path)
    assert (trainer.global_step, trainer.current_epoch, trainer.closure_evaluations) == (0, 0, 0)
    assert trainer.callback_metrics == {}
    assert trainer.stopped_because is None
    for question in ("optimizer", "schedulers", "closure"):
        with pytest.raises(RuntimeError, match=rf"trainer\.{question}: no fit has begun"):
            getattr(trainer, question)
    with pytest.raises(RuntimeError, match=r"trainer\.save_checkpoint: no fit has begun"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(RuntimeError, match=r"trainer\.module: nothing has run yet"):
        _ = trainer.module


def test_a_setting_cannot_change_without_effect_during_a_run(tmp_path):
    def change(trainer, module):
        trainer.max_epochs = 1

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_start=change))
    with pytest.raises(AttributeError, match=r"trainer\.max_epochs was set during fit"):
        trainer.fit(Regressor(), make_loader())
    trainer.callbacks = []
    trainer.max_epochs = 1
    trainer.fit(Regressor(), make_loader())
    assert trainer.current_epoch == 1


def test_a_run_within_a_run_of_the_same_trainer_is_refused(tmp_path):
    def validate(trainer, module):
        trainer.validate(module, make_loader())

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_epoch_end=validate))
    with pytest.raises(RuntimeError, match=r"Trainer\.validate was called during fit"):
        trainer.fit(Regressor(), make_loader())
    trainer.callbacks = []
    assert trainer.validate(Regressor(), make_loader())


def test_questions_about_a_fit_are_also_answered_after_a_prediction(tmp_path):
    trainer, module = make_trainer(tmp_path), Regressor()
    trainer.fit(module, make_loader())
    trainer.predict(module, make_loader())
    assert trainer.global_step == trainer.closure_evaluations == 6
    assert trainer.stopped_because == "max_epochs"
    assert trainer.optimizer.param_groups[0]["lr"] == 0.05


def test_should_stop_ends_the_run_after_the_current_step(tmp_path):
    def stop(trainer, module, outputs, batch, batch_idx):
        trainer.should_stop = True

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_batch_end=stop))
    trainer.fit(Regressor(), make_loader())
    assert trainer.global_step == 1
    assert trainer.stopped_because == "should_stop"
    assert trainer.should_stop


def test_a_run_of_another_trainer_within_a_run_leaves_the_logs_alone(tmp_path):
    class Logging(Regressor):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("user", loss)
            return loss

    def validate(trainer, module):
        make_trainer(tmp_path).validate(module, make_loader())

    module = Logging()
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=callback_of(on_train_epoch_end=validate))
    trainer.fit(module, make_loader())
    assert trainer.callback_metrics["user"] == module.losses[-1]
    assert module.trainer is trainer


def test_another_optimizer_within_an_epoch_is_refused(tmp_path):
    def change(trainer, module, *_):
        trainer.use_optimizer(SGD(module.parameters(), lr=0.1))

    trainer = make_trainer(tmp_path, callbacks=callback_of(on_train_batch_end=change))
    with pytest.raises(RuntimeError, match=r"use_optimizer\(\) was called within an epoch"):
        trainer.fit(Regressor(), make_loader())


def test_mixed_precision_leaves_the_batch_as_it_is(tmp_path):
    seen = []

    class Watching(Regressor):
        def training_step(self, batch, batch_idx):
            seen.append((batch[1].dtype, self.net(batch[0]).dtype))
            return super().training_step(batch, batch_idx)

    module = Watching(dtype=torch.float32)
    trainer = make_trainer(tmp_path, precision="bf16-mixed", max_epochs=1)
    trainer.fit(module, make_loader(dtype=torch.float32))
    assert seen == [(torch.float32, torch.bfloat16)] * 3


def test_an_optimizer_that_reported_iterations_to_a_run_is_free_after_it(tmp_path):
    module = Regressor(lambda m: MinimizeWrapper(m.parameters(), {"method": "CG", "options": {"maxiter": 2}}))
    trainer = make_trainer(tmp_path, accumulate_grad_batches="epoch", max_epochs=1)
    trainer.fit(module, make_loader(20))
    assert trainer.optimizer.on_iteration is None
