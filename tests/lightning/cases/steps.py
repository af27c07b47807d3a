"""Accumulated gradients and clipping."""

import torch
from torch import nn

from tests.lightning.sides import BATCH_HOOKS, EVERYTHING, REFUSED, Net, case, loader, variant

ONCE_PER_STEP = tuple(name for name in EVERYTHING if name not in (*BATCH_HOOKS, "on_before_backward"))


def ragged():
    """Make batches of 5, 5, 5 and 2 samples."""
    return loader(5, num_samples=17)


def by_hand(batches, groups, weigh, epochs=2):
    """Return a function that compares parameters with those of a loop by hand.

    Args:
        batches: Makes the loader.
        groups: How many batches each step takes.
        weigh: Given the sizes of a step's batches, the weights of their losses.
    """

    def is_equal(parameters):
        module = Net()
        optimizer = module.configure_optimizers()
        for _ in range(epochs):
            rest = iter(batches())
            for size in groups:
                group = [next(rest) for _ in range(size)]
                optimizer.zero_grad()
                for batch, weight in zip(group, weigh([len(y) for _, y in group]), strict=True):
                    (weight * module.loss(batch)).backward()
                optimizer.step()
        expected = {name: value.tolist() for name, value in module.state_dict().items()}
        return all(
            torch.allclose(torch.tensor(parameters[name]), torch.tensor(value), rtol=1e-9, atol=1e-9)
            for name, value in expected.items()
        )

    return is_equal


def by_samples(sizes):
    return [size / sum(sizes) for size in sizes]


def by(count):
    return lambda sizes: [1 / count for _ in sizes]


def notes_gradients(self, *_):
    self.side([float(p.grad.norm()) for p in self.parameters()])


# ------------------------------------------------------------------------------------------------------- accumulation

case("accumulation: of one batch", accumulate_grad_batches=1, hears=EVERYTHING)
case("accumulation: two batches a step", accumulate_grad_batches=2)
case("accumulation: all batches of the epoch", accumulate_grad_batches=4)
case(
    "accumulation: two batches a step with Adam",
    variant(configure_optimizers=lambda self: torch.optim.Adam(self.parameters(), 0.1)),
    accumulate_grad_batches=2,
)
case("accumulation: max_steps counts steps", accumulate_grad_batches=2, max_epochs=-1, max_steps=4)
case("accumulation: a limit on the batches", accumulate_grad_batches=2, limit_train_batches=2)
case(
    "accumulation: the order of all hooks once per step",
    accumulate_grad_batches=2,
    hears=(
        "on_before_optimizer_step",
        "on_train_epoch_start",
        "on_train_epoch_end",
        "training_step",
        "on_validation_start",
    ),
)
case("accumulation: with clipping", accumulate_grad_batches=2, gradient_clip_val=0.5)
case(
    "accumulation: with a scheduler per step",
    variant(
        configure_optimizers=lambda self: [
            [o := torch.optim.SGD(self.parameters(), 0.1)],
            [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(o, 0.5), "interval": "step"}],
        ]
    ),
    accumulate_grad_batches=2,
)
case("accumulation: validation at the end of a group", accumulate_grad_batches=2, val_check_interval=2)
case(
    "accumulation: notes of the gradients of each step",
    variant(on_before_optimizer_step=notes_gradients),
    accumulate_grad_batches=2,
)
case(
    "accumulation: dropout in each batch",
    variant(
        __init__=lambda self: (Net.__init__(self), setattr(self, "net", nn.Sequential(self.net, nn.Dropout(0.5))))[0]
    ),
    accumulate_grad_batches=2,
    train=loader,
)
case("accumulation: of none", accumulate_grad_batches=0)
case(
    "accumulation: of a fraction",
    accumulate_grad_batches=0.5,
    differs="half a batch is no number of batches; Lightning steps at every batch",
    **REFUSED,
)
case(
    "accumulation: batch hooks",
    accumulate_grad_batches=2,
    max_epochs=1,
    hears=("on_train_batch_end",),
    differs="a batch hook fires once per step, with the list of its batches",
    here={"heard": lambda heard: [one[-1] for one in heard if one[0].startswith("module")] == [0, 2]},
    there={"heard": lambda heard: [one[-1] for one in heard if one[0].startswith("module")] == [0, 1, 2, 3]},
)
case(
    "accumulation: the gradients are complete after backward",
    accumulate_grad_batches=2,
    max_epochs=1,
    hears=("on_after_backward", "on_before_backward"),
    differs="on_after_backward fires when the gradients of the whole group are there",
    here={"heard": lambda heard: heard.count(("module.on_after_backward",)) == 2},
    there={"heard": lambda heard: heard.count(("module.on_after_backward",)) == 4},
)
case(
    "accumulation: a short last group",
    accumulate_grad_batches=3,
    differs="a group is divided by its own number of batches; Lightning's last one by three, of which it has one",
    here={"parameters": by_hand(loader, [3, 1], by_samples)},
    there={"parameters": by_hand(loader, [3, 1], by(3))},
)
case(
    "accumulation: ragged batches",
    train=ragged,
    accumulate_grad_batches=2,
    differs="samples have equal weights; Lightning gives those of a short batch more",
    here={"parameters": by_hand(ragged, [2, 2], by_samples)},
    there={"parameters": by_hand(ragged, [2, 2], by(2))},
)

# ----------------------------------------------------------------------------------------------------------- clipping


class ClipsItself(Net):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.side([gradient_clip_val, gradient_clip_algorithm, type(optimizer).__name__])
        self.clip_gradients(optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm="value")


class ClipsOneLayer(Net):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        nn.utils.clip_grad_norm_(self.net[0].parameters(), 0.01)


class SeesGradients(Net):
    """Note the gradients before clipping, and after it."""

    on_before_optimizer_step = notes_gradients

    def on_train_batch_end(self, outputs, batch, batch_idx):
        notes_gradients(self)


case("clipping: by norm", gradient_clip_val=0.5)
case("clipping: by norm, said", gradient_clip_val=0.5, gradient_clip_algorithm="norm")
case("clipping: by value", gradient_clip_val=0.1, gradient_clip_algorithm="value")
case("clipping: of a norm that is never reached", gradient_clip_val=1e6)
case("clipping: by a whole number", gradient_clip_val=1)
case("clipping: by zero", gradient_clip_val=0)
case("clipping: by an unknown algorithm", gradient_clip_val=0.5, gradient_clip_algorithm="median")
case("clipping: by a string", gradient_clip_val="0.5")
case("clipping: by the module", ClipsItself, gradient_clip_val=0.1, gradient_clip_algorithm="value")
case(
    "clipping: by the module, in another way",
    ClipsItself,
    gradient_clip_val=0.1,
    gradient_clip_algorithm="norm",
    differs="the module is told the setting of the trainer, and decides; Lightning refuses another one",
    here={"error": ""},
    there={"error": "refused"},
)
case(
    "clipping: what the module is told without a setting",
    variant(configure_gradient_clipping=lambda self, optimizer, *args, **kwargs: self.side([*args, *kwargs.values()])),
    max_epochs=1,
    differs="the default of gradient_clip_algorithm is written out; there it is None, which means the same",
    here={"noted": [[None, "norm"]] * 4},
    there={"noted": [[None, None]] * 4},
)
case("clipping: by the module, of some parameters", ClipsOneLayer)
case("clipping: hooks see the gradients before it", SeesGradients, gradient_clip_val=0.5)
case(
    "clipping: of frozen parts",
    variant(on_fit_start=lambda self: self.net[0].requires_grad_(False)),
    gradient_clip_val=0.5,
)
case(
    "clipping: to less than nothing",
    gradient_clip_val=-1.0,
    differs="a norm is not negative; Lightning turns clipping off",
    **REFUSED,
)
case(
    "clipping: with LBFGS",
    variant(configure_optimizers=lambda self: torch.optim.LBFGS(self.parameters(), max_iter=3)),
    gradient_clip_val=0.5,
    differs="clipped gradients are not those of the values that LBFGS compares",
    **REFUSED,
)
