"""The hooks: when they fire, in what order, and with what arguments; the callbacks that a trainer adds itself."""

import pytest
from torch.optim import LBFGS

from framework import Callback
from framework.callbacks import EarlyStopping, ModelCheckpoint, ProgressBar
from framework.loop.hooks import HOOKS
from tests.modules import Regressor, callback_of, make_loader, make_trainer, watch


def recorder(record: list[str]) -> Callback:
    """A callback that overrides every hook and records its name."""

    listened = [name for name in HOOKS if name not in ("on_save_checkpoint", "on_load_checkpoint")]
    return callback_of(**{name: lambda *_, name=name: record.append(name) for name in listened})


def evaluation_hooks(stage: str, batches: int) -> list[str]:
    return [
        f"on_{stage}_start",
        f"on_{stage}_epoch_start",
        *[f"on_{stage}_batch_start", f"on_{stage}_batch_end"] * batches,
        f"on_{stage}_epoch_end",
        f"on_{stage}_end",
    ]


def test_fit_fires_the_hooks_of_the_documented_timeline(tmp_path):
    record: list[str] = []
    trainer = make_trainer(
        tmp_path, callbacks=recorder(record), limit_train_batches=2, limit_val_batches=1, check_val_every_n_epoch=2
    )
    trainer.fit(Regressor(), make_loader(), make_loader())
    gradients = ["on_before_zero_grad", "on_before_backward", "on_after_backward"]
    step = ["on_train_batch_start", *gradients, "on_before_optimizer_step", "on_train_batch_end"]
    assert record == [
        *["setup", "on_fit_start"],
        *["on_sanity_check_start", *evaluation_hooks("validation", 1), "on_sanity_check_end"],
        "on_train_start",
        *["on_train_epoch_start", *step, *step, "on_train_epoch_end"],
        *["on_train_epoch_start", *step, *step, *evaluation_hooks("validation", 1), "on_train_epoch_end"],
        *["on_train_end", "on_fit_end", "teardown"],
    ]


def test_fit_fires_the_hooks_of_gradients_at_each_evaluation_of_an_optimizer_that_reevaluates(tmp_path):
    record: list[str] = []
    trainer = make_trainer(tmp_path, callbacks=recorder(record), max_epochs=1, limit_train_batches=1)
    trainer.fit(Regressor(lambda module: LBFGS(module.parameters(), max_iter=4)), make_loader())
    assert trainer.closure_evaluations > 1
    assert record == [
        *["setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start"],
        *["on_before_zero_grad", "on_before_backward", "on_after_backward"] * trainer.closure_evaluations,
        *["on_train_batch_end", "on_train_epoch_end", "on_train_end", "on_fit_end", "teardown"],
    ]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_fires_its_own_hooks(tmp_path, stage):
    record: list[str] = []
    getattr(make_trainer(tmp_path, callbacks=recorder(record)), stage)(Regressor(), make_loader())
    assert record == ["setup", *evaluation_hooks({"validate": "validation"}.get(stage, stage), 3), "teardown"]


def test_callbacks_are_called_in_the_order_given_and_the_module_last(tmp_path):
    record = []

    def named(name):
        return callback_of(on_train_batch_start=lambda *args: record.append((name, args[-1])))

    class Own(Regressor):
        def on_train_batch_start(self, batch, batch_idx):
            record.append(("module", batch_idx))

    trainer = make_trainer(tmp_path, callbacks=[named("second"), named("first")], max_epochs=1)
    trainer.fit(Own(), make_loader())
    assert record == [(who, i) for i in range(3) for who in ("second", "first", "module")]


def test_an_exception_reaches_the_callbacks_and_then_the_caller(tmp_path):
    class Broken(Regressor):
        def on_train_start(self):
            raise OSError("disk on fire")

    record: list[str] = []
    module = Broken()
    with pytest.raises(OSError, match="disk on fire"):
        make_trainer(tmp_path, callbacks=recorder(record)).fit(module, make_loader())
    assert record[-2:] == ["on_exception", "teardown"]


def test_the_batch_hooks_of_an_accumulated_step_get_its_list_of_batches(tmp_path):
    def check_outputs(trainer, module, outputs, batch, batch_idx):
        assert len(batch) == (len(outputs) if isinstance(outputs, list) else 1)

    lengths = watch("on_train_batch_start", lambda trainer, module, batch, i: (i, [len(part[0]) for part in batch]))
    callbacks = [lengths, callback_of(on_train_batch_end=check_outputs)]
    make_trainer(tmp_path, callbacks=callbacks, accumulate_grad_batches=2, max_epochs=1).fit(Regressor(), make_loader())
    assert lengths.seen == [(0, [8, 8]), (2, [4])]


def test_outputs_are_what_training_step_returned(tmp_path):
    seen = []

    class Extra(Regressor):
        def training_step(self, batch, batch_idx):
            return {"loss": self.loss(batch), "extra": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            seen.append((outputs["extra"], outputs["loss"].requires_grad))

    make_trainer(tmp_path, max_epochs=1).fit(Extra(), make_loader())
    assert seen == [(0, False), (1, False), (2, False)]


def test_given_callbacks_replace_the_defaults_and_checkpoints_come_last(tmp_path):
    options = {"enable_progress_bar": True, "enable_model_summary": True, "enable_checkpointing": True}
    names = [type(callback).__name__ for callback in make_trainer(tmp_path, **options).callbacks]
    assert names == ["ModelSummary", "ProgressBar", "ModelCheckpoint"]
    given = [ModelCheckpoint(tmp_path), ProgressBar(), EarlyStopping("x")]
    callbacks = make_trainer(tmp_path, callbacks=given, **options).callbacks
    assert [type(callback).__name__ for callback in callbacks] == [
        *["ProgressBar", "EarlyStopping", "ModelSummary", "ModelCheckpoint"]
    ]
    assert callbacks[-1] is given[0]
