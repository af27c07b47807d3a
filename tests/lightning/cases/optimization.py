"""Optimizers that the module calls, steps that it overrides, and modules of special kinds."""

import math

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from tests.lightning.sides import Net, case, fit, loader, test, variant
from tests.modules import make_net

# ------------------------------------------------------------------------------------------------------------- manual


class Manual(Net):
    """One optimizer, called by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch)
        self.log("fit_loss_now", loss)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class ReturnsLoss(Manual):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        return self.loss(batch).detach()


class Accumulates(Manual):
    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2 == 1:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Clips(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        optimizer.step()


class Schedules(Manual):
    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def on_train_epoch_end(self):
        self.lr_schedulers().step()


class ByClosure(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)


class Adversaries(Manual):
    """A generator of noise and a judge, with an optimizer each."""

    def __init__(self):
        super().__init__()
        self.judge = make_net().double()

    def configure_optimizers(self):
        return Adam(self.net.parameters(), lr=0.02), SGD(self.judge.parameters(), lr=0.05)

    def training_step(self, batch, batch_idx):
        X, y = batch
        ours, theirs = self.optimizers()
        self.toggle_optimizer(ours)
        self.side([p.requires_grad for p in self.judge.parameters()])
        loss = self.judge(X * self.net(X)).square().mean()
        ours.zero_grad()
        self.manual_backward(loss)
        ours.step()
        self.untoggle_optimizer(ours)
        with self.toggled_optimizer(theirs):
            loss = (self.judge(X) - y).square().mean() - self.judge(X * self.net(X).detach()).mean()
            theirs.zero_grad()
            self.manual_backward(loss)
            theirs.step()
        self.log_dict({"judged_now": loss}, prog_bar=True)


COUNTS_STEPS = "what is logged is at the number of optimizer steps; in Lightning at that of batches"
HEARD = ("on_train_batch_start", "training_step", "on_after_backward", "on_before_backward", "on_train_batch_end")
case("manual: one optimizer", Manual, hears=HEARD)
case("manual: a loss that is returned", ReturnsLoss)
case(
    "manual: accumulation by hand",
    Accumulates,
    differs=COUNTS_STEPS,
    here={"logged": lambda logged: [x for x, _ in logged["val_loss"]] == [2, 4]},
    there={"logged": lambda logged: [x for x, _ in logged["val_loss"]] == [4, 8]},
)
case("manual: clipping by hand", Clips)
case("manual: schedulers by hand", Schedules)
case("manual: a closure", ByClosure)


def continued(side):
    """Train one epoch, save, and go on in a new trainer."""
    trainer = side.make_trainer(max_epochs=1)
    trainer.fit(side.make_module(), side.train, side.val)
    trainer.save_checkpoint(side.root / "one.ckpt")
    side.trainer.fit(side.module, side.case.train(), side.case.val(), ckpt_path=side.root / "one.ckpt")


for name, steps, options in (
    ("two optimizers", 16, {}),
    ("two optimizers, and max_steps counts the steps of both", 8, {"max_steps": 8}),
    ("two optimizers continue", 16, {"play": continued}),
):
    case(
        f"manual: {name}",
        Adversaries,
        differs=COUNTS_STEPS,
        here={"logged": lambda logged, steps=steps: [x for x, _ in logged["judged_now"]] == list(range(0, steps, 2))},
        there={"logged": lambda logged, steps=steps: [x for x, _ in logged["judged_now"]] == list(range(steps // 2))},
        **options,
    )
case("manual: hooks before a step", Manual, hears=("on_before_optimizer_step", "on_after_backward"))
case("manual: with gradient_clip_val", Manual, gradient_clip_val=0.5)
case("manual: with accumulate_grad_batches", Manual, accumulate_grad_batches=2)

# ---------------------------------------------------------------------------------------------------------- overrides


class OwnStep(Net):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        self.side([epoch, batch_idx])
        optimizer.step(closure=optimizer_closure)


class WarmsUp(Net):
    """The recipe of Lightning's documentation: a learning rate that grows with the first steps."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * min(1.0, (self.trainer.global_step + 1) / 6)


class StepsRarely(Net):
    """It steps at every second batch, and evaluates at all."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        if batch_idx % 2 == 0:
            optimizer.step(closure=optimizer_closure)
        else:
            optimizer_closure()


class CallsSuper(Net):
    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)


case("overrides: optimizer_step", OwnStep)
case("overrides: optimizer_step that warms up", WarmsUp)
case("overrides: optimizer_step that steps rarely", StepsRarely)
case("overrides: optimizer_step that calls its base", CallsSuper)
case("overrides: optimizer_step and clipping", OwnStep, gradient_clip_val=0.1)
case("overrides: optimizer_step and accumulation", variant(CallsSuper), accumulate_grad_batches=2)
case(
    "overrides: optimizer_zero_grad",
    variant(optimizer_zero_grad=lambda self, epoch, batch_idx, optimizer: optimizer.zero_grad(set_to_none=False)),
)
case(
    "overrides: optimizer_zero_grad that keeps gradients",
    variant(
        optimizer_zero_grad=lambda self, epoch, batch_idx, optimizer: (
            optimizer.zero_grad() if batch_idx % 2 == 0 else None
        )
    ),
)
case("overrides: backward", variant(backward=lambda self, loss: (loss * 2).backward()))
case(
    "overrides: backward with more arguments",
    variant(backward=lambda self, loss, *args, **kwargs: loss.backward(*args, **kwargs)),
)
case(
    "overrides: transfer_batch_to_device",
    variant(
        transfer_batch_to_device=lambda self, batch, device, dataloader_idx: [part.to(device) + 0.1 for part in batch]
    ),
)

# -------------------------------------------------------------------------------------------------------------- LBFGS


def lbfgs(**options):
    return variant(configure_optimizers=lambda self: LBFGS(self.parameters(), max_iter=4, **options))


def is_first(losses):
    return math.isclose(losses["fit_loss_step"][0][1], FIRST_LOSS)


def is_not_first(losses):
    return not is_first(losses)


FIRST_LOSS = 1.707796125414894  # of the network as it is made
for name, options in (("a fixed step", {"lr": 0.1}), ("a line search", {"line_search_fn": "strong_wolfe"})):
    case(
        f"LBFGS: {name}",
        lbfgs(**options),
        differs="the value before the step is logged, as for other optimizers; there, that of the last evaluation",
        here={"logged": is_first, "metrics": lambda _: True},
        there={"logged": is_not_first, "metrics": lambda _: True},
    )
case(
    "LBFGS: full batches without logging",
    variant(
        configure_optimizers=lambda self: LBFGS(self.parameters(), lr=0.1),
        training_step=lambda self, batch, batch_idx: self.loss(batch),
    ),
    train=lambda: loader(20),
    max_epochs=3,
)

# ------------------------------------------------------------------------------------------------------------ modules


class Deep(Net):
    """A network with layers between."""

    between: tuple[nn.Module, ...] = ()

    def __init__(self):
        super().__init__()
        self.net = make_net(*[layer() for layer in self.between]).double()


class Frozen(Net):
    """A backbone without gradients, in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double().requires_grad_(False)

    def on_train_epoch_start(self):
        self.backbone.eval()

    def forward(self, X):
        return self.net(self.backbone(X))


class Unfreezes(Frozen):
    def on_train_epoch_start(self):
        self.backbone.requires_grad_(self.current_epoch > 0)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05)


def modes(side):
    """Train, and note the modes of all parts afterwards."""
    fit(side)
    return [part.training for part in side.module.modules()]


def evaluated(module):
    def make():
        made = module()
        made.eval()
        return made

    return make


def seeded(module):
    """Return what makes a module from one seed, whatever was drawn before."""

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(9)
            return module()

    return make


class Single(Net):
    def __init__(self):
        super().__init__()
        self.net = make_net().float()

    def loss(self, batch):
        X, y = batch
        return nn.functional.mse_loss(self(X.float()), y.float())


class Truncated(Net):
    """A recurrent network whose state goes from batch to batch, without its graph."""

    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRUCell(3, 3).double(), None

    def on_train_epoch_start(self):
        self.state = None

    def forward(self, X):
        if self.training:
            self.state = self.cell(X, None if self.state is None else self.state.detach())
            return self.net(self.state)
        return self.net(self.cell(X))


class Parts(Net):
    """Modules in modules, and a buffer that counts."""

    def __init__(self):
        super().__init__()
        self.part = Net()
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def forward(self, X):
        if self.training:
            self.count += 1
        return self.net(X) + self.part(X)


case("modules: dropout", variant(Deep, between=(nn.Dropout,)), play=modes)
case("modules: batch norm", variant(Deep, between=(lambda: nn.BatchNorm1d(5),)), play=modes)
case(
    "modules: batch norm and dropout with accumulation",
    variant(Deep, between=(lambda: nn.BatchNorm1d(5), nn.Dropout)),
    accumulate_grad_batches=2,
)
case("modules: a frozen backbone", seeded(Frozen), play=modes)
case("modules: a backbone that is unfrozen", seeded(Unfreezes), play=modes, max_epochs=3)
case("modules: in evaluation mode before the fit", evaluated(variant(Deep, between=(nn.Dropout,))), play=modes)
case("modules: single precision", Single)
case("modules: truncated sequences", seeded(Truncated))
case("modules: parts that are LightningModules", Parts)
case(
    "modules: noise in the step",
    variant(loss=lambda self, batch: (self(batch[0] + torch.randn_like(batch[0])) - batch[1]).square().mean()),
    val=lambda: None,
)
case(
    "modules: the inference mode",
    variant(validation_step=lambda self, batch, batch_idx: self.side(torch.is_inference_mode_enabled())),
)
case(
    "modules: no inference mode",
    variant(validation_step=lambda self, batch, batch_idx: self.side(torch.is_inference_mode_enabled())),
    inference_mode=False,
)
case(
    "modules: gradients in validation",
    variant(
        validation_step=lambda self, batch, batch_idx: (
            [torch.set_grad_enabled(True), self.side(self.loss(batch).requires_grad)][0] and None
        )
    ),
    inference_mode=False,
)
case("modules: freeze and unfreeze", variant(on_fit_start=lambda self: (self.freeze(), self.unfreeze())))
case(
    "modules: device and dtype",
    variant(on_train_start=lambda self: self.side([str(self.device), str(next(self.parameters()).dtype)])),
)
case("modules: double precision by the trainer", Single, precision="64-true")
case(
    "modules: test after training in one process of random draws",
    variant(Deep, between=(nn.Dropout,)),
    play=lambda side: (fit(side), test(side))[1],
)
