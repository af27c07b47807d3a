"""What configure_optimizers may return, and when learning rates change."""

from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from tests.lightning.sides import REFUSED, Net, case, loader, variant


class Scheduled(Net):
    """It notes the learning rates of each step, and those after each epoch."""

    def on_train_batch_start(self, batch, batch_idx):
        self.side([group["lr"] for group in self.optimizers().param_groups])

    def on_train_epoch_end(self):
        self.side([group["lr"] for group in self.optimizers().param_groups])


def by(make):
    """Return a module whose configure_optimizers is a function of the module and of a new optimizer."""

    def configure_optimizers(self):
        return make(self, SGD(self.parameters(), lr=0.1))

    return variant(Scheduled, configure_optimizers=configure_optimizers)


def in_dictionary(schedule, **options):
    """Return a module with one scheduler in a dictionary with these options."""
    return by(lambda module, o: {"optimizer": o, "lr_scheduler": {"scheduler": schedule(o), **options}})


def halving(optimizer):
    return ExponentialLR(optimizer, 0.5)


def impatient(optimizer, **options):
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0, **options)


class Own(LRScheduler):
    """A scheduler of the user's."""

    def get_lr(self):
        return [group["lr"] / (1 + self.last_epoch) for group in self.optimizer.param_groups]


class Duck:
    """A scheduler that has no base class, and needs the epoch."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step_to(self, epoch):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1 / (2 + epoch)

    def step(self, epoch=None): ...

    def state_dict(self):
        return {}

    def load_state_dict(self, state_dict): ...


case("schedulers: an optimizer alone", by(lambda module, o: o))
case("schedulers: a list of one optimizer", by(lambda module, o: [o]))
case("schedulers: a tuple of lists", by(lambda module, o: ([o], [halving(o)])))
case("schedulers: a list of lists", by(lambda module, o: [[o], [halving(o)]]))
case("schedulers: a tuple without schedulers", by(lambda module, o: ([o], [])))
case(
    "schedulers: a tuple of an optimizer and a dictionary",
    by(lambda module, o: ([o], [{"scheduler": halving(o), "interval": "step"}])),
)
case("schedulers: a dictionary of an optimizer", by(lambda module, o: {"optimizer": o}))
case("schedulers: a dictionary with a scheduler", by(lambda module, o: {"optimizer": o, "lr_scheduler": halving(o)}))
case("schedulers: a dictionary in a dictionary", in_dictionary(halving))
case("schedulers: a list of a dictionary", by(lambda module, o: [{"optimizer": o, "lr_scheduler": halving(o)}]))
case("schedulers: a tuple of two dictionaries", by(lambda module, o: ({"optimizer": o}, {"optimizer": o})))
case("schedulers: of each step", in_dictionary(halving, interval="step"))
case("schedulers: of every second step", in_dictionary(halving, interval="step", frequency=2))
case(
    "schedulers: of every third step, over epochs",
    in_dictionary(halving, interval="step", frequency=3),
    max_epochs=3,
    differs="frequency counts the steps of the run; Lightning begins anew in every epoch",
    here={"rates": [0.1 * 0.5**4]},
    there={"rates": [0.1 * 0.5**3]},
)
case("schedulers: of every second epoch", in_dictionary(halving, frequency=2), max_epochs=4)
case(
    "schedulers: two of them",
    by(lambda module, o: ([o], [halving(o), {"scheduler": LambdaLR(o, lambda n: 1 / (1 + n)), "interval": "step"}])),
)
case("schedulers: with a name", in_dictionary(halving, name="mine"))
case("schedulers: StepLR", in_dictionary(lambda o: StepLR(o, 2), interval="step"))
case("schedulers: MultiStepLR", in_dictionary(lambda o: MultiStepLR(o, [1, 3])), max_epochs=4)
case("schedulers: CosineAnnealingLR", in_dictionary(lambda o: CosineAnnealingLR(o, 8), interval="step"))
case(
    "schedulers: CosineAnnealingWarmRestarts",
    in_dictionary(lambda o: CosineAnnealingWarmRestarts(o, 3), interval="step"),
)
case(
    "schedulers: ChainedScheduler",
    in_dictionary(lambda o: ChainedScheduler([ConstantLR(o, 0.5, 2), halving(o)]), interval="step"),
)
case(
    "schedulers: SequentialLR",
    in_dictionary(lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1.0, 3), halving(o)], [3]), interval="step"),
)
case(
    "schedulers: OneCycleLR over estimated_stepping_batches",
    by(
        lambda module, o: {
            "optimizer": o,
            "lr_scheduler": {
                "scheduler": OneCycleLR(o, 0.2, total_steps=int(module.trainer.estimated_stepping_batches)),
                "interval": "step",
            },
        }
    ),
)
case(
    "schedulers: estimated_stepping_batches with accumulation and a limit",
    variant(on_train_start=lambda self: self.side(self.trainer.estimated_stepping_batches)),
    accumulate_grad_batches=3,
    limit_train_batches=3,
    max_epochs=3,
)
case(
    "schedulers: a cycle that is too short", in_dictionary(lambda o: OneCycleLR(o, 0.2, total_steps=3), interval="step")
)
case("schedulers: ReduceLROnPlateau by a validation", in_dictionary(impatient, monitor="val_loss"), max_epochs=5)
case(
    "schedulers: ReduceLROnPlateau by an epoch of training",
    in_dictionary(impatient, monitor="fit_loss_epoch"),
    max_epochs=5,
)
case(
    "schedulers: ReduceLROnPlateau by training alone",
    in_dictionary(impatient, monitor="fit_loss"),
    val=lambda: None,
    max_epochs=4,
)
case(
    "schedulers: ReduceLROnPlateau by the loss of each step",
    in_dictionary(impatient, monitor="fit_loss_step", interval="step"),
)
case(
    "schedulers: ReduceLROnPlateau by a maximum",
    in_dictionary(lambda o: impatient(o, mode="max"), monitor="val_loss"),
    max_epochs=5,
)
case(
    "schedulers: ReduceLROnPlateau with the monitor beside it",
    by(lambda module, o: {"optimizer": o, "lr_scheduler": impatient(o), "monitor": "val_loss"}),
    max_epochs=4,
)
case("schedulers: ReduceLROnPlateau without a monitor", by(lambda module, o: ([o], [impatient(o)])))
case("schedulers: ReduceLROnPlateau by a metric that does not exist", in_dictionary(impatient, monitor="nothing"))
case("schedulers: ReduceLROnPlateau that need not exist", in_dictionary(impatient, monitor="nothing", strict=False))
case(
    "schedulers: ReduceLROnPlateau where the first epoch does not validate",
    in_dictionary(impatient, monitor="val_loss"),
    check_val_every_n_epoch=2,
    max_epochs=6,
    differs="it waits for the first value of its metric",
    here={"error": ""},
    there={"error": "refused"},
)
case(
    "schedulers: ReduceLROnPlateau of every second epoch",
    in_dictionary(impatient, monitor="val_loss", frequency=2),
    max_epochs=6,
)
case("schedulers: one of the user's", in_dictionary(Own))
case(
    "schedulers: one that the module steps",
    variant(
        in_dictionary(Duck),
        lr_scheduler_step=lambda self, scheduler, metric: (self.side(metric), scheduler.step_to(self.current_epoch)),
    ),
    max_epochs=3,
)
case(
    "schedulers: the module steps one of each step",
    variant(
        in_dictionary(halving, interval="step"), lr_scheduler_step=lambda self, scheduler, metric: scheduler.step()
    ),
)
case(
    "schedulers: lr_schedulers() in a hook",
    variant(in_dictionary(halving), on_train_end=lambda self: self.side(self.lr_schedulers().last_epoch)),
)
case(
    "schedulers: optimizers() in a hook",
    variant(by(lambda module, o: o), on_train_end=lambda self: self.side(self.optimizers().param_groups[0]["lr"])),
)
case(
    "schedulers: the learning rate is set by hand in a hook",
    variant(
        Scheduled,
        on_train_epoch_start=lambda self: self.optimizers().param_groups[0].update(lr=0.01 * (1 + self.current_epoch)),
    ),
    max_epochs=3,
)
case(
    "schedulers: groups with learning rates of their own",
    variant(
        Scheduled,
        configure_optimizers=lambda self: Adam(
            [{"params": self.net[0].parameters(), "lr": 0.1}, {"params": self.net[2].parameters()}], lr=0.01
        ),
    ),
)
case("schedulers: an unknown interval", in_dictionary(halving, interval="batch"))
case("schedulers: a number of the optimizer", variant(configure_optimizers=lambda self: 3))
case(
    "schedulers: no scheduler in the dictionary",
    by(lambda module, o: {"optimizer": o, "lr_scheduler": {"interval": "step"}}),
)
case("schedulers: something that is no scheduler", by(lambda module, o: ([o], [3])))
case(
    "schedulers: no optimizer",
    variant(configure_optimizers=lambda self: None),
    warns="returned None: the run changes no parameter",
)
case(
    "schedulers: a scheduler of another optimizer",
    by(lambda module, o: ([o], [halving(SGD(module.parameters(), 0.1))])),
)
case(
    "schedulers: several optimizers, not called by the module",
    by(lambda module, o: [o, SGD(module.parameters(), lr=0.1)]),
)
case(
    "schedulers: an unknown key",
    in_dictionary(halving, every=2),
    differs="what has no effect is refused; Lightning warns",
    **REFUSED,
)
case(
    "schedulers: every second step of an optimizer that takes two batches",
    in_dictionary(halving, interval="step", frequency=2),
    accumulate_grad_batches=2,
    train=lambda: loader(2),
    max_epochs=1,
    differs="frequency counts steps; Lightning counts batches",
    here={"rates": [0.1 * 0.5**2]},
    there={"rates": [0.1 * 0.5**5]},
)
