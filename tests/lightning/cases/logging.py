"""What is logged: names, values, where they are seen and at which step."""

import math

import torch
import torchmetrics

from tests.lightning.sides import Net, Side, case, fit, loader, test, validate, variant


def logs(name, value=lambda self, loss: loss, at="training", **options):
    """Add a method that logs in the step of a stage."""

    def step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log(name, value(self, loss), **options)
        return loss

    return variant(**{f"{at}_step": step})


def in_hook(hook, name="seen", **options):
    """Return a module that logs the number of steps in a hook."""
    return variant(**{hook: lambda self, *args, **kwargs: self.log(name, float(1 + self.global_step), **options)})


def ragged():
    """Make batches of 5, 5, 5 and 2 samples."""
    return loader(5, num_samples=17)


# ------------------------------------------------------------------------------------------------------------ options

case("logging: by step, which is the default in training", logs("loss_now"))
case("logging: by step only", logs("loss_now", on_step=True, on_epoch=False))
case("logging: by epoch only", logs("loss", on_step=False, on_epoch=True))
case("logging: by step and epoch", logs("loss", on_step=True, on_epoch=True))
case(
    "logging: by step in validation",
    logs("val_now", at="validation", on_step=True, on_epoch=False),
    num_sanity_val_steps=0,
    differs="callback_metrics has the last value of every name; in Lightning it has those of epochs alone",
    here={"metrics": lambda metrics: math.isclose(metrics["val_now"], 2.6835971376305485)},
    there={"metrics": lambda metrics: "val_now" not in metrics},
)
case(
    "logging: by step and epoch in validation",
    logs("val", at="validation", on_step=True, on_epoch=True),
    num_sanity_val_steps=0,
    differs="callback_metrics has the last value of every name; in Lightning it has those of epochs alone",
    here={"metrics": lambda metrics: math.isclose(metrics["val_step"], 2.6835971376305485)},
    there={"metrics": lambda metrics: "val_step" not in metrics and "val_epoch" in metrics},
)
case(
    "logging: on every third step",
    log_every_n_steps=3,
    differs="a run is logged from its first step on, so that where it starts is seen",
    here={"logged": lambda logged: [x for x, _ in logged["fit_loss_step"]] == [0, 3, 6]},
    there={"logged": lambda logged: [x for x, _ in logged["fit_loss_step"]] == [2, 5]},
)
case(
    "logging: on every fiftieth step of less",
    log_every_n_steps=50,
    differs="a run is logged from its first step on, so that where it starts is seen",
    here={"logged": lambda logged: [x for x, _ in logged["fit_loss_step"]] == [0]},
    there={"logged": lambda logged: "fit_loss_step" not in logged and len(logged["val_loss"]) == 2},
)
case("logging: not to the logger", logs("loss", logger=False, on_epoch=True))
case(
    "logging: to the progress bar",
    variant(
        logs("loss_now", prog_bar=True),
        on_train_end=lambda self: self.side("loss_now" in self.trainer.progress_bar_metrics),
    ),
)
case(
    "logging: not to the progress bar",
    variant(logs("loss_now"), on_train_end=lambda self: self.side("loss_now" in self.trainer.progress_bar_metrics)),
)
case("logging: the sum over an epoch", logs("loss", on_step=False, on_epoch=True, reduce_fx="sum"))
case("logging: the least of an epoch", logs("loss", on_step=False, on_epoch=True, reduce_fx="min"))
case("logging: the greatest of an epoch", logs("loss", on_step=False, on_epoch=True, reduce_fx=torch.max))
case("logging: the mean over ragged batches", logs("loss", on_step=False, on_epoch=True), train=ragged)
case("logging: the mean of ragged validation batches", train=ragged, val=ragged)
case(
    "logging: the mean with batch sizes of its own",
    logs("loss", on_step=False, on_epoch=True, batch_size=1),
    train=ragged,
)
case("logging: an unknown reduction", logs("loss", reduce_fx="median", on_epoch=True))
case("logging: a number", logs("three_now", lambda self, loss: 3))
case("logging: a tensor of whole numbers", logs("three", lambda self, loss: torch.tensor(3), on_epoch=True))
case("logging: a vector", logs("two", lambda self, loss: torch.ones(2)))
case("logging: a string", logs("text", lambda self, loss: "three"))
case("logging: a name with slashes", logs("a/b/c_now"))
case(
    "logging: a dictionary",
    variant(
        validation_step=lambda self, batch, batch_idx: self.log_dict({"a": 1.0, "b": self.loss(batch)}, prog_bar=True)
    ),
)
case(
    "logging: several loaders, whose indices are added",
    val=lambda: [loader(10), loader(4)],
    module=variant(validation_step=lambda self, batch, batch_idx, dataloader_idx: self.log("val", self.loss(batch))),
)
case(
    "logging: one name for several loaders",
    val=lambda: [loader(10), loader(10)],
    module=variant(
        validation_step=lambda self, batch, batch_idx, dataloader_idx=0: self.log(
            f"val_{dataloader_idx}", self.loss(batch), add_dataloader_idx=False
        )
    ),
)
case(
    "logging: of one of several loaders",
    val=lambda: [loader(10), loader(10)],
    module=variant(
        validation_step=lambda self, batch, batch_idx, dataloader_idx=0: (
            self.log("val", self.loss(batch)) if dataloader_idx == 1 else None
        )
    ),
)


class ChangesOptions(Net):
    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=batch_idx > 1)
        return loss


case("logging: options that change", ChangesOptions)
case("logging: neither by step nor by epoch", logs("loss", on_step=False, on_epoch=False))

# -------------------------------------------------------------------------------------------------------------- hooks

for hook in (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_train_end",
    "on_validation_end",
    "setup",
):
    is_in_step = hook.startswith(("on_train_batch", "on_before", "on_after"))
    case(f"logging: from {hook}", in_hook(hook, "seen_now" if is_in_step else "seen"), num_sanity_val_steps=0)
case(
    "logging: from on_fit_start",
    in_hook("on_fit_start"),
    differs="it belongs to the first epoch",
    here={"error": ""},
    there={"error": "refused"},
)
case("logging: from on_train_epoch_end by epoch", in_hook("on_train_epoch_end", on_epoch=True))
case("logging: from on_train_batch_end by epoch", in_hook("on_train_batch_end", on_epoch=True, on_step=False))
case(
    "logging: from on_train_epoch_end by step",
    in_hook("on_train_epoch_end", on_step=True),
    differs="there is a step to which the value belongs",
    here={"error": ""},
    there={"error": "refused"},
)
case("logging: from on_test_epoch_end", in_hook("on_test_epoch_end"), play=test)
case("logging: from configure_optimizers", variant(configure_optimizers=lambda self: self.log("seen", 1.0)))
case("logging: outside of a trainer", play=lambda side: side.module.log("loss", 1.0), warns="not registered")

# ------------------------------------------------------------------------------------------------------- torchmetrics


class Measured(Net):
    """A metric that is called, or updated, and logged as an object."""

    called = True

    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()
        self.val_error = torchmetrics.MeanAbsoluteError()

    def training_step(self, batch, batch_idx):
        X, y = batch
        if self.called:
            self.error(self(X).float(), y.float())
        else:
            self.error.update(self(X).float(), y.float())
        self.log("error", self.error, on_step=self.called, on_epoch=True)
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        X, y = batch
        self.val_error.update(self(X).float(), y.float())
        self.log("val_error", self.val_error)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)


class Collected(Net):
    """A collection of metrics, computed and reset by hand."""

    def __init__(self):
        super().__init__()
        self.errors = torchmetrics.MetricCollection(
            [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()], prefix="val_"
        )

    def validation_step(self, batch, batch_idx):
        X, y = batch
        self.errors.update(self(X).float(), y.float())

    def on_validation_epoch_end(self):
        self.log_dict(self.errors.compute())
        self.errors.reset()


case("logging: a torchmetric that is called", Measured)
case("logging: a torchmetric that is updated", variant(Measured, called=False))
case("logging: a torchmetric over ragged batches", Measured, train=ragged, val=ragged)
case("logging: a torchmetric in test", Measured, play=test)
case("logging: a collection that is computed by hand", Collected)

# ------------------------------------------------------------------------------------------------------ where it goes


class Reads(Net):
    """Note the metrics as a callback or a hook sees them."""

    def on_validation_end(self):
        self.side(
            ["validation", sorted(name for name in self.trainer.callback_metrics if name.startswith(("val", "fit")))]
        )

    def on_train_epoch_end(self):
        self.side(
            ["training", sorted(name for name in self.trainer.callback_metrics if name.startswith(("val", "fit")))]
        )


case("logging: callback_metrics in hooks", Reads, num_sanity_val_steps=0)
case("logging: what validate returns", play=validate)
case("logging: what test returns", play=test)
case(
    "logging: what validate returns of two loaders",
    val=lambda: [loader(10), loader(4)],
    module=variant(validation_step=lambda self, batch, batch_idx, dataloader_idx: self.log("val", self.loss(batch))),
    play=validate,
)


def after_fit(side: Side):
    """Train, validate and test, all with one trainer."""
    fit(side)
    return side.trainer.validate(side.module, side.val, verbose=False), side.trainer.test(
        side.module, side.val, verbose=False
    )


case("logging: validation and test after a fit", play=after_fit)


case(
    "logging: by the logger itself",
    variant(on_train_epoch_end=lambda self: self.logger.log_metrics({"by_hand_now": 1.5}, step=self.global_step)),
)
case(
    "logging: the step of the values of an epoch",
    play=lambda side: (setattr(side.logger, "raw", True), fit(side)),
    differs="it is the number of steps taken; in Lightning the index of the last one",
    here={"logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4, 8]},
    there={"logged": lambda logged: [x for x, _ in logged["val_loss"]] == [3, 7]},
)


class Hyper(Net):
    def __init__(self, width=3, name="net", unused=None):
        super().__init__()
        self.save_hyperparameters(ignore=["unused"])


case(
    "logging: hyperparameters",
    lambda: Hyper(5, name="mine"),
    play=lambda side: (fit(side), side.note(side.logger.hyperparams), side.note(dict(side.module.hparams))),
)


class Inner(Net):
    def forward(self, X):
        out = super().forward(X)
        self.log("inner_now", out.mean())
        return out


def nested():
    """Return a module whose network is a LightningModule that logs, too."""
    module = variant(validation_step=lambda self, batch, batch_idx: None)()
    module.net = Inner()
    return module


case(
    "logging: from a nested LightningModule",
    nested,
    differs="a part of the module may log",
    here={"error": ""},
    there={"error": "refused"},
)
