"""Files, and runs that continue from them."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.optim.lr_scheduler import ExponentialLR

from tests.lightning.sides import EVERYTHING, REFUSED, Net, Side, case, fit, quiet, variant
from tests.twins import make_lightning_trainer

SCORES = [0.5, 0.3, 0.4, 0.2, 0.6]


class Scored(Net):
    """Validation logs given scores."""

    def validation_step(self, batch, batch_idx):
        self.log("score", SCORES[self.current_epoch])


def relative(side: Side, path: str) -> str:
    return str(Path(path).relative_to(side.root)) if path else ""


def saving(*args, **options):
    """Return what makes a checkpoint callback, and what notes its answers."""

    def callbacks(side):
        side.saved = side.checkpoint(*args, **options)
        return [side.saved]

    return callbacks


def fit_and_note(side: Side) -> None:
    """Train, then note what the callback answers."""
    fit(side)
    note(side, side.saved)


def note(side: Side, saved) -> None:
    best = {relative(side, path): float(score) for path, score in saved.best_k_models.items()}
    score = None if saved.best_model_score is None else float(saved.best_model_score)
    side.note([relative(side, saved.best_model_path), score, best, relative(side, saved.last_model_path)])


def saves(name: str, *args, differs="", here=None, there=None, options=None, play=fit_and_note, **checkpoint):
    """Add a case of a checkpoint callback with these arguments."""
    case(
        f"checkpoints: {name}",
        Scored,
        callbacks=saving(*args, **checkpoint),
        play=play,
        differs=differs,
        here=here,
        there=there,
        **{"max_epochs": 5, "num_sanity_val_steps": 0, **(options or {})},
    )


saves("the newest", save_top_k=1)
saves("the best", save_top_k=1, monitor="score")
saves("the best by a maximum", save_top_k=1, monitor="score", mode="max")
saves("the two best", save_top_k=2, monitor="score")
saves("the three best by a maximum", save_top_k=3, monitor="score", mode="max")
saves("all, with a monitor", save_top_k=-1, monitor="score")
saves("all, without a monitor", save_top_k=-1)
saves("none", save_top_k=0)
saves("the best, and the last", save_top_k=1, monitor="score", save_last=True)
saves("the last alone", save_top_k=0, save_last=True)
saves("a link to the last", save_top_k=1, save_last="link")
saves("a filename", filename="at-{epoch}", save_top_k=-1)
saves("a filename with formats", filename="{epoch:02d}-{step:04d}-{score:.2f}", save_top_k=-1)
saves(
    "a filename without names of metrics",
    filename="e{epoch}-s{score:.1f}",
    auto_insert_metric_name=False,
    save_top_k=-1,
)
saves(
    "a filename with a metric that does not exist",
    filename="{epoch}-{nothing:.2f}",
    save_top_k=1,
    differs="a misspelled metric is a mistake; Lightning writes that it is zero",
    **REFUSED,
)
saves(
    "a filename that is the same for all",
    filename="same",
    save_top_k=-1,
    differs="-1 keeps all; Lightning keeps the last",
    here={
        "files": [
            "saved/same-v1.ckpt",
            "saved/same-v2.ckpt",
            "saved/same-v3.ckpt",
            "saved/same-v4.ckpt",
            "saved/same.ckpt",
        ],
        "noted": [["saved/same-v4.ckpt", None, {}, ""]],
    },
    there={"files": ["saved/same.ckpt"], "noted": [["saved/same.ckpt", None, {}, ""]]},
)
saves("every second epoch", every_n_epochs=2, save_top_k=-1)
saves("every third of five epochs", every_n_epochs=3, save_top_k=1)
saves("every third step", every_n_train_steps=3, save_top_k=-1)
saves("every eighth step, the newest", every_n_train_steps=8, save_top_k=1)
saves(
    "every second step, by the loss of the step",
    every_n_train_steps=2,
    save_top_k=2,
    monitor="fit_loss_step",
    options={"max_epochs": 2},
)
saves("weights only", save_weights_only=True, save_top_k=1)
saves("at the end of training epochs", save_on_train_epoch_end=True, save_top_k=-1, monitor="fit_loss_epoch")
saves("after validation", save_on_train_epoch_end=False, save_top_k=-1, monitor="score")
saves("where every second epoch validates", save_top_k=-1, monitor="score", options={"check_val_every_n_epoch": 2})
saves(
    "where validation is within epochs",
    save_top_k=-1,
    monitor="score",
    options={"val_check_interval": 2, "max_epochs": 2},
)
saves("without validation", save_top_k=1, options={"limit_val_batches": 0})
saves("by the loss of the epoch", save_top_k=2, monitor="fit_loss_epoch", options={"limit_val_batches": 0})
saves("fewer files than -1", save_top_k=-2)
saves("an unknown mode", monitor="score", mode="least", save_top_k=1)
saves("two, without a monitor", save_top_k=2)
saves("two times to save", every_n_epochs=1, every_n_train_steps=1, save_top_k=1)
saves("a metric that does not exist", monitor="nothing", save_top_k=1)
saves(
    "what is saved without being asked",
    differs="without save_top_k and filename it is last.ckpt; there, epoch=4-step=20.ckpt",
    here={"files": ["saved/last.ckpt"], "noted": lambda noted: noted[0][3] == "saved/last.ckpt"},
    there={"files": ["saved/epoch=4-step=20.ckpt"], "noted": lambda noted: noted[0][3] == ""},
)


# ---------------------------------------------------------------------------------------------------------- continuing

RIGHT = "equals an uninterrupted run"


def ends_with(end):
    return lambda seen: seen[-len(end) :] == end


def initial():
    return {name: value.tolist() for name, value in Net().state_dict().items()}


class Continued(Net):
    """It has what must be restored: momentum, a scheduler, and an entry of its own in the file."""

    def __init__(self):
        super().__init__()
        self.num_seen = 0

    def training_step(self, batch, batch_idx):
        self.num_seen += len(batch[0])
        return super().training_step(batch, batch_idx)

    def on_train_epoch_start(self):
        self.side([self.current_epoch, self.global_step, self.trainer.current_epoch])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [ExponentialLR(optimizer, 0.7)]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["num_seen"] = self.num_seen

    def on_load_checkpoint(self, checkpoint):
        self.num_seen = checkpoint["num_seen"]
        self.side(self.num_seen)


class Counts(pl.Callback):
    """A callback with a state."""

    def __init__(self, side):
        self.side, self.count = side, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.count += 1

    def on_train_end(self, trainer, pl_module):
        self.side.note(["count", self.count])

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def continues(at: str, **options):
    """Return what trains, and goes on in a new trainer and module from a file."""

    def play(side):
        side.make_trainer(max_epochs=2, callbacks=[Counts(side), saving(save_top_k=-1, **options)(side)[0]]).fit(
            side.make_module(), side.train, side.val
        )
        side.trainer = side.make_trainer(max_epochs=3, callbacks=[Counts(side)])
        side.trainer.fit(side.module, side.case.train(), side.case.val(), ckpt_path=side.root / "saved" / at)
        side.note({RIGHT: equals_uninterrupted(side)})

    return play


def equals_uninterrupted(side):
    """Tell whether the parameters are those of three epochs in one run."""
    whole = Continued()
    whole.side = lambda value: None
    with quiet(ours=False):
        make_lightning_trainer(side.root, max_epochs=3).fit(whole, side.case.train(), side.case.val())
    return all(map(torch.allclose, whole.parameters(), side.module.parameters()))


case("continuing: from the end of an epoch", Continued, play=continues("epoch=0-step=4.ckpt"))
case("continuing: from the end of the run", Continued, play=continues("epoch=1-step=8.ckpt"))
case(
    "continuing: hooks from the end of an epoch",
    Continued,
    play=continues("epoch=0-step=4.ckpt"),
    hears=[n for n in EVERYTHING if "checkpoint" not in n and "sanity" not in n and "validation" not in n],
)
case(
    "continuing: from within an epoch",
    Continued,
    play=continues("epoch=1-step=6.ckpt", every_n_train_steps=2),
    differs="the rest of the epoch is trained on; Lightning begins it again, for as many batches as are left",
    here={"parameters": lambda _: True, "noted": ends_with([[1, 6, 1], [2, 8, 2], ["count", 12], {RIGHT: True}])},
    there={"parameters": lambda _: True, "noted": ends_with([30, [2, 8, 2], ["count", 12], {RIGHT: False}])},
)
case(
    "continuing: from the last step of an epoch",
    Continued,
    play=continues("epoch=0-step=4.ckpt", every_n_train_steps=2),
    differs="the epoch that goes on starts with its hook and ends with its validation, as this was not over",
    here={
        "noted": ends_with([20, [0, 4, 0], [1, 4, 1], [2, 8, 2], ["count", 12], {RIGHT: True}]),
        "logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4, 8, 4, 8, 12],
    },
    there={
        "noted": ends_with([20, [2, 8, 2], ["count", 12], {RIGHT: True}]),
        "logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4, 8, 8, 12],
    },
)
case("continuing: a file that does not exist", Continued, play=continues("no.ckpt"))
case(
    "continuing: weights only",
    Continued,
    play=continues("epoch=0-step=4.ckpt", save_weights_only=True),
    differs="both refuse it; here, before anything was changed by it",
    here={"parameters": lambda seen: seen == initial(), "noted": ends_with([["count", 8]])},
    there={"parameters": lambda seen: seen != initial(), "noted": ends_with([["count", 8], 20])},
)


def after_fit(call):
    """Return what trains with a checkpoint of the best, and calls something then."""

    def play(side):
        fit(side)
        return call(side, side.saved)

    return play


def tests(name, call, **options):
    case(
        f"checkpoints: {name}",
        variant(Scored, test_step=lambda self, batch, batch_idx: self.log("test_loss", self.loss(batch))),
        callbacks=saving(save_top_k=1, monitor="score"),
        play=after_fit(call),
        max_epochs=5,
        num_sanity_val_steps=0,
        **options,
    )


tests(
    "test with the best", lambda side, saved: side.trainer.test(side.module, side.val, ckpt_path="best", verbose=False)
)
tests(
    "test with a path",
    lambda side, saved: side.trainer.test(side.module, side.val, ckpt_path=saved.best_model_path, verbose=False),
)
tests(
    "test without a module takes the best",
    lambda side, saved: side.trainer.test(dataloaders=side.val, verbose=False),
    warns="takes the best one",
)
tests(
    "test with the module takes it as it is",
    lambda side, saved: side.trainer.test(side.module, side.val, verbose=False),
)
tests("predict with the best", lambda side, saved: side.trainer.predict(side.module, side.val, ckpt_path="best"))
tests(
    "validate with a file that does not exist",
    lambda side, saved: side.trainer.validate(side.module, side.val, ckpt_path="no.ckpt", verbose=False),
)
tests(
    "load_from_checkpoint",
    lambda side, saved: type(side.module).load_from_checkpoint(saved.best_model_path).net[0].weight,
)


def from_weights(side, saved):
    """Load a file of the weights alone."""
    side.trainer.save_checkpoint(side.root / "weights.ckpt", weights_only=True)
    return type(side.module).load_from_checkpoint(side.root / "weights.ckpt").net[0].weight


tests("load_from_checkpoint of weights", from_weights)


def saved_by_hand(side):
    fit(side)
    side.trainer.save_checkpoint(side.root / "mine.ckpt")
    side.trainer.save_checkpoint(side.root / "weights.ckpt", weights_only=True)
    content = torch.load(side.root / "mine.ckpt", weights_only=False)
    side.note([sorted(content["state_dict"]), content["num_seen"]])
    return side.trainer.test(side.module, side.val, ckpt_path=side.root / "weights.ckpt", verbose=False)


case("checkpoints: saved by hand", Continued, play=saved_by_hand)


def two_callbacks(side):
    return [
        side.checkpoint(filename="a-{epoch}", save_top_k=1),
        side.checkpoint(filename="b-{score:.1f}", monitor="score", save_top_k=1),
    ]


case("checkpoints: two callbacks", Scored, callbacks=two_callbacks, max_epochs=4, num_sanity_val_steps=0)


def twice(side):
    """Train two modules of the same kind into one folder."""
    side.make_trainer().fit(side.make_module(), side.train, side.val)
    fit(side)


case(
    "checkpoints: two runs in one folder",
    Scored,
    callbacks=saving(filename="mine", save_top_k=1),
    play=twice,
    num_sanity_val_steps=0,
)
