"""Which hooks are called, in which order, with which arguments, and what they may return or raise."""

import lightning.pytorch as pl
import torch

from tests.lightning.sides import (
    EVERY_HOOK,
    EVERYTHING,
    Net,
    case,
    fit,
    loader,
    predict,
    test,
    validate,
    variant,
)


class MistakeError(Exception):
    """What the cases raise."""


def fails(*args, **kwargs):
    raise MistakeError


def order(*names, start=0):
    """Return a function that tells whether the module heard just these, in this order, from the start on."""
    return lambda heard: (
        [one[0].partition(".")[2] for one in heard if one[0].startswith("module")][start : start + len(names)]
        == list(names)
    )


# -------------------------------------------------------------------------------------------------------------- order

case("hooks: of fit without validation", val=lambda: None, hears=EVERYTHING, max_epochs=1)
case("hooks: of validate", play=validate, hears=EVERYTHING)
case("hooks: of test", play=test, hears=EVERYTHING)
case("hooks: of predict", play=predict, hears=EVERYTHING)
case("hooks: of fit, then test", play=lambda side: (fit(side), test(side)), hears=EVERYTHING)
case(
    "hooks: of two fits",
    play=lambda side: (fit(side), fit(side)),
    hears=("setup", "teardown", "on_fit_start", "on_fit_end"),
    differs="every fit begins anew; Lightning's second one is over before it begins, at max_epochs",
    here={"parameters": lambda _: True, "logged": lambda logged: len(logged["val_loss"]) == 4},
    there={"parameters": lambda _: True, "logged": lambda logged: len(logged["val_loss"]) == 2},
)
case(
    "hooks: of one epoch with a checkpoint",
    callbacks=lambda side: [side.checkpoint(save_top_k=1)],
    hears=("on_save_checkpoint", "on_train_epoch_end", "on_train_end", "on_validation_end"),
    max_epochs=2,
)
case(
    "hooks: of several validation loaders",
    variant(validation_step=lambda self, batch, batch_idx, dataloader_idx: None),
    val=lambda: [loader(10), loader(5)],
    hears=EVERYTHING,
    max_epochs=1,
)
case(
    "hooks: of a schedule",
    variant(
        configure_optimizers=lambda self: [
            [o := torch.optim.SGD(self.parameters(), 0.1)],
            [torch.optim.lr_scheduler.StepLR(o, 1)],
        ]
    ),
    hears=("on_train_batch_end", "lr_scheduler_step", "on_validation_start", "on_train_epoch_end"),
    limit_train_batches=1,
    max_epochs=1,
    num_sanity_val_steps=0,
    differs="all schedulers of an epoch step when it was validated, as a plateau must",
    here={"heard": order("on_train_batch_end", "on_validation_start", "lr_scheduler_step", "on_train_epoch_end")},
    there={"heard": order("lr_scheduler_step", "on_train_batch_end", "on_validation_start", "on_train_epoch_end")},
)
case(
    "hooks: with clipping",
    gradient_clip_val=0.5,
    hears=(*EVERYTHING, "configure_gradient_clipping", "backward"),
    gradient_clip_algorithm="norm",
)
case(
    "hooks: of the transfer of batches",
    hears=("on_before_batch_transfer", "on_after_batch_transfer", "on_train_batch_start", "on_validation_batch_start"),
    max_epochs=1,
    num_sanity_val_steps=0,
)
case("hooks: preparing", hears=("prepare_data", "setup", "configure_model", "on_train_start", "teardown"))
case(
    "hooks: without sanity check and validation at all",
    val=lambda: None,
    hears=EVERY_HOOK[:-2],
    max_epochs=0,
    differs="a run without a step begins and ends, too, and the hooks of both come in pairs",
    here={"heard": order("setup", "on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "teardown")},
    there={"heard": order("setup", "on_fit_start", "on_fit_end", "teardown")},
)
case(
    "hooks: of zeroing the gradients",
    max_epochs=1,
    val=lambda: None,
    hears=("on_train_batch_start", "on_before_zero_grad", "training_step", "on_before_backward"),
    differs="the old gradients are gone when the loss is computed, so that both are never kept at a time",
    here={"heard": order("on_train_batch_start", "on_before_zero_grad", "training_step", "on_before_backward")},
    there={"heard": order("on_train_batch_start", "training_step", "on_before_zero_grad", "on_before_backward")},
)
case("hooks: of the optimizer and the start", hears=("on_fit_start", "configure_optimizers", "on_train_start"))

# ------------------------------------------------------------------------------------------------- what they see, do


class Notes(pl.Callback):
    """Note counters in all hooks."""

    def __init__(self, side):
        for name in (
            "on_train_start",
            "on_train_epoch_start",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_validation_start",
            "on_validation_end",
            "on_train_epoch_end",
            "on_train_end",
            "on_fit_end",
        ):
            setattr(
                self,
                name,
                lambda trainer, *_, name=name: side.note(
                    [
                        name,
                        trainer.current_epoch,
                        trainer.global_step,
                        trainer.is_last_batch if "batch" in name else None,
                    ]
                ),
            )


class Modes(pl.Callback):
    """Note the stage and the mode of the module in all hooks."""

    def __init__(self, side):
        for name in (
            "on_train_start",
            "on_train_batch_start",
            "on_validation_start",
            "on_validation_batch_end",
            "on_validation_end",
            "on_train_epoch_end",
            "on_sanity_check_start",
        ):
            setattr(
                self,
                name,
                lambda trainer, module, *_, name=name: side.note(
                    [
                        name,
                        module.training,
                        torch.is_grad_enabled(),
                        trainer.training,
                        trainer.validating,
                        trainer.sanity_checking,
                    ]
                ),
            )


class Outputs(pl.Callback):
    """Note what steps return."""

    def __init__(self, side):
        self.side = side

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.side.note({name: float(value) for name, value in outputs.items()})

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.side.note(outputs)


class ReturnsMore(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": self.loss(batch), "more": torch.tensor(batch_idx)}

    def validation_step(self, batch, batch_idx):
        return {"mean": float(self(batch[0]).mean())}


case("hooks: counters", callbacks=lambda side: [Notes(side)])
case("hooks: counters without validation", callbacks=lambda side: [Notes(side)], val=lambda: None)
case("hooks: the modes of the module and the trainer", callbacks=lambda side: [Modes(side)])
case("hooks: the outputs of a step that returns a loss", callbacks=lambda side: [Outputs(side)], max_epochs=1)
case(
    "hooks: the outputs of a step that returns a dictionary",
    ReturnsMore,
    callbacks=lambda side: [Outputs(side)],
    max_epochs=1,
)
case(
    "hooks: two callbacks in their order",
    callbacks=lambda side: [
        pl.callbacks.LambdaCallback(on_train_start=lambda *_: side.note(1)),
        pl.callbacks.LambdaCallback(on_train_start=lambda *_: side.note(2)),
    ],
)
case(
    "hooks: callbacks of the module",
    variant(
        configure_callbacks=lambda self: [pl.callbacks.LambdaCallback(on_train_start=lambda *_: self.side("mine"))]
    ),
)
case(
    "hooks: the trainer's answers",
    variant(
        on_train_start=lambda self: self.side(
            [
                self.trainer.max_epochs,
                self.trainer.num_training_batches,
                self.trainer.world_size,
                self.trainer.is_global_zero,
                self.trainer.global_rank,
                self.trainer.num_nodes,
                len(self.trainer.optimizers),
                self.trainer.num_val_batches,
            ]
        )
    ),
)
case(
    "hooks: a batch is changed before the step",
    variant(on_before_batch_transfer=lambda self, batch, dataloader_idx: [part * 0.5 for part in batch]),
)
case(
    "hooks: gradients are changed after backward",
    variant(on_after_backward=lambda self: [p.grad.mul_(0.1) for p in self.parameters()]),
)
case(
    "hooks: gradients are changed before the step",
    variant(on_before_optimizer_step=lambda self, optimizer: [p.grad.sign_() for p in self.parameters()]),
)
case(
    "hooks: parameters are changed after the step",
    variant(on_train_batch_end=lambda self, *_: [p.data.clamp_(-0.3, 0.3) for p in self.parameters()]),
)

# --------------------------------------------------------------------------------------------------------- exceptions

for hook in (
    "setup",
    "on_fit_start",
    "on_train_start",
    "training_step",
    "on_after_backward",
    "validation_step",
    "on_train_epoch_end",
    "configure_optimizers",
):
    case(
        f"hooks: an exception in {hook}",
        variant(**{hook: fails}),
        hears=("on_exception", "on_train_start", "on_train_end", "on_train_batch_end", "on_fit_end"),
    )
case(
    "hooks: an exception in a callback",
    callbacks=lambda side: [pl.callbacks.LambdaCallback(on_train_batch_start=fails)],
    hears=("on_exception", "on_train_batch_end", "on_train_end"),
)
case("hooks: an exception in test_step", variant(test_step=fails), play=test, hears=("on_exception", "on_test_end"))
case(
    "hooks: an exception tears down",
    variant(training_step=fails),
    hears=("on_exception", "teardown"),
    differs="who opens something in setup can close it in teardown, whatever happens",
    here={"heard": lambda heard: heard[-1][0] == "module.teardown"},
    there={"heard": lambda heard: heard[-1][0] == "module.on_exception" or heard[-1][0] == "callback.on_exception"},
)


def goes_on(side):
    """Fail in one fit, then train with another trainer."""
    module = side.module
    failing = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: fails() if trainer.global_step == 3 else None
    )
    try:
        side.make_trainer(callbacks=[failing]).fit(module, side.train, side.val)
    except MistakeError:
        side.note(module.training)
    side.make_trainer().fit(module, side.train, side.val)


case("hooks: another run after an exception", play=goes_on)

# --------------------------------------------------------------------------------------------------- skipping, stopping


class SkipsEpoch(Net):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


class SkipsBatches(Net):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class Stops(Net):
    def training_step(self, batch, batch_idx):
        self.trainer.should_stop = self.global_step == 5 or self.trainer.should_stop
        return super().training_step(batch, batch_idx)


case(
    "hooks: -1 skips the rest of an epoch",
    SkipsEpoch,
    val=lambda: None,
    hears=("training_step", "on_train_epoch_end", "on_train_batch_end"),
)
case(
    "hooks: -1 and validation",
    SkipsEpoch,
    hears=("training_step", "on_validation_start"),
    num_sanity_val_steps=0,
    differs="-1 skips training; what was trained so far is validated",
    here={
        "heard": lambda heard: ("module.on_validation_start",) in heard,
        "metrics": lambda metrics: "val_loss" in metrics,
        "logged": lambda logged: len(logged["val_loss"]) == 2,
    },
    there={
        "heard": lambda heard: ("module.on_validation_start",) not in heard,
        "metrics": lambda metrics: "val_loss" not in metrics,
        "logged": lambda logged: "val_loss" not in logged,
    },
)
case(
    "hooks: None from training_step",
    SkipsBatches,
    warns="no step is taken for such a batch",
    differs="nothing is logged where nothing was computed; Lightning logs the last loss again",
    here={"logged": lambda logged: len(logged["fit_loss_step"]) == 4},
    there={"logged": lambda logged: len(logged["fit_loss_step"]) == 8},
)
case(
    "hooks: should_stop in training_step",
    Stops,
    max_epochs=9,
    hears=EVERYTHING,
    val=lambda: None,
    differs="current_epoch counts whole epochs",
    here={"current_epoch": 1},
    there={"current_epoch": 2},
)
case(
    "hooks: a hook that is misspelled",
    variant(on_train_epoch_starts=lambda self: None),
    differs="a hook that nobody would call is a mistake",
    here={"error": "refused"},
    there={"error": ""},
)
case("hooks: a hook of an older Lightning", variant(training_epoch_end=lambda self, outputs: None))


class Bare(pl.LightningModule):
    """A module with one step."""

    def __init__(self):
        super().__init__()
        self.net = Net().net

    configure_optimizers = Net.configure_optimizers

    def training_step(self, batch, batch_idx):
        return (self.net(batch[0]) - batch[1]).square().mean()


case(
    "hooks: no training_step",
    type("NoStep", (Bare,), {"__module__": __name__, "training_step": pl.LightningModule.training_step}),
)
case("hooks: no validation_step and no validation data", Bare, val=lambda: None, hears=EVERYTHING)
case(
    "hooks: no validation_step for validation data",
    Bare,
    differs="data that nobody would look at are a mistake; Lightning warns",
    here={"error": "refused"},
    there={"error": ""},
)
case("hooks: no test_step", Bare, play=test)
case("hooks: a loss that is no scalar", variant(training_step=lambda self, batch, batch_idx: self(batch[0])))
case(
    "hooks: a dictionary without a loss",
    variant(training_step=lambda self, batch, batch_idx: {"value": self.loss(batch)}),
)
case("hooks: a loss without a graph", variant(training_step=lambda self, batch, batch_idx: torch.tensor(1.0)))
