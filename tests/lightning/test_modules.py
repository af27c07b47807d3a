"""LightningModules of many forms, as their users write them, train here as under Lightning.

Each entry of `FORMS` makes a module and what `fit` is called with. The loaders have generators of their own: under
Lightning, validation moves the global one. And their batches do not divide the data: Lightning does not read loaders to
their ends, where torch's random sampler draws once more in that case.
"""

import copy
import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import framework.callbacks
from tests.modules import assert_close, make_trainer
from tests.twins import make_lightning_trainer

# ------------------------------------------------------------------------------------------------------------- the data


def blobs(num_samples: int = 48, seed: int = 0) -> TensorDataset:
    """Draw three classes of points in the plane."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_samples) % 3
    centers = torch.tensor([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    return TensorDataset((centers[labels] + torch.randn(num_samples, 2, generator=generator)).double(), labels)


def loader(dataset: Any = None, batch_size: int = 10, seed: int | None = 1) -> DataLoader:
    generator = torch.Generator().manual_seed(seed or 0)
    dataset = blobs() if dataset is None else dataset
    return DataLoader(dataset, batch_size=batch_size, shuffle=seed is not None, generator=generator)


def sequences() -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    walks = torch.randn(12, 12, 2, generator=generator, dtype=torch.float64).cumsum(1)
    return TensorDataset(walks[:, :-1], walks[:, 1:])


class Blobs(pl.LightningDataModule):
    """A datamodule with hyperparameters."""

    def __init__(self, batch_size: int = 11):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.sets = {"train": blobs(48, 3), "val": blobs(15, 4)}

    def train_dataloader(self):
        return loader(self.sets["train"], self.hparams.batch_size)

    def val_dataloader(self):
        return loader(self.sets["val"], seed=None)


# ---------------------------------------------------------------------------------------------------------- the modules


class Classifier(pl.LightningModule):
    """A classifier with torchmetrics, logged as objects."""

    def __init__(self, width: int = 8, lr: float = 0.05):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 3)).double()
        self.train_accuracy, self.val_accuracy = MulticlassAccuracy(3), MulticlassAccuracy(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.train_accuracy(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train_acc", self.train_accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.val_accuracy.update(logits, y)
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", self.val_accuracy)

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=self.hparams.lr)


class Collected(Classifier):
    """Metrics in a collection, computed and reset by hand at the end of an epoch."""

    def __init__(self):
        super().__init__()
        self.metrics = MetricCollection({"acc": MulticlassAccuracy(3), "f1": MulticlassF1Score(3)}, prefix="val/")
        self.mean = MeanMetric()

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.metrics.update(self(x), y)
        self.mean.update(F.cross_entropy(self(x), y), len(x))

    def on_validation_epoch_end(self):
        self.log_dict(self.metrics.compute())
        self.log("val/mean", self.mean.compute())
        self.metrics.reset()
        self.mean.reset()


class Adversarial(pl.LightningModule):
    """Two rivals with an optimizer each, in manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        self.critic = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def training_step(self, batch, batch_idx):
        x, _ = batch
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        fooled = F.softplus(-self.critic(self.generator(x.flip(0)))).mean()
        self.log("g_loss", fooled, prog_bar=True)
        self.manual_backward(fooled)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        told = F.softplus(-self.critic(x)).mean() + F.softplus(self.critic(self.generator(x).detach())).mean()
        self.log("d_loss", told, prog_bar=True)
        self.manual_backward(told)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def on_train_epoch_end(self):
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self):
        first, second = Adam(self.generator.parameters(), 0.01, (0.5, 0.9)), Adam(self.critic.parameters(), 0.01)
        return [first, second], [ExponentialLR(first, 0.9), StepLR(second, 1, 0.5)]


class Quasi(Classifier):
    """LBFGS on the whole data in one batch."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(
            self(batch[0]), batch[1]
        )  # what is logged is of the first evaluation here, the last there

    def configure_optimizers(self):
        return LBFGS(self.parameters(), max_iter=4, history_size=5)


class Recurrent(pl.LightningModule):
    """Truncated sequences: several steps per batch, the hidden state kept from one to the next."""

    def __init__(self, steps: int = 4):
        super().__init__()
        self.automatic_optimization = False
        self.steps = steps
        self.rnn, self.head = nn.LSTM(2, 5, batch_first=True).double(), nn.Linear(5, 2).double()

    def training_step(self, batch, batch_idx):
        x, y = batch
        optimizer, hidden, losses = self.optimizers(), None, []
        for inputs, targets in zip(x.split(self.steps, 1), y.split(self.steps, 1), strict=True):
            output, hidden = self.rnn(inputs, hidden)
            loss = F.mse_loss(self.head(output), targets)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            hidden = tuple(part.detach() for part in hidden)
            losses.append(loss.detach())
        self.log("loss", torch.stack(losses).mean(), on_epoch=True, on_step=False)
        return {"loss": loss}

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


class SeveralLoaders(Classifier):
    """Two training loaders at a time, three validation loaders one after the other."""

    def training_step(self, batch, batch_idx):
        losses = {name: F.cross_entropy(self(x), y) for name, (x, y) in batch.items()}
        self.log_dict({f"loss_{name}": loss for name, loss in losses.items()}, batch_size=1)
        return sum(losses.values())

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))


class Hooked(Classifier):
    """Everything that a module may do beside its steps."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []
        self.outputs: list[Tensor] = []

    def setup(self, stage):
        self.seen.append("setup")
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.current_epoch == 1 and batch_idx == 3 else None

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) * self.scale
        return {"loss": loss, "size": len(batch[0])}

    def on_before_backward(self, loss):
        assert loss.requires_grad

    def on_after_backward(self):
        self.log("grad", self.net[0].weight.grad.norm())

    def on_before_optimizer_step(self, optimizer):
        for param in self.parameters():
            if param.grad is not None:
                param.grad.mul_(0.5)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.outputs.append(outputs["loss"])

    def on_train_epoch_end(self):
        self.log("mean_of_outputs", torch.stack(self.outputs).mean())
        self.seen.append(f"epoch {self.current_epoch} step {self.global_step}")
        self.outputs.clear()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = list(self.seen)

    def on_train_end(self):
        self.seen.append("end")


class Scheduled(Classifier):
    """Schedulers in every form that `configure_optimizers` may return."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        return {
            "lists": lambda: ([optimizer], [StepLR(optimizer, 1, 0.5)]),
            "dictionary": lambda: {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, 0.7)},
            "by step": lambda: {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": OneCycleLR(optimizer, 0.1, total), "interval": "step"},
            },
            "plateau": lambda: {
                "optimizer": optimizer,
                "lr_scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
                "monitor": "val_loss",
            },
            "two": lambda: (
                [optimizer],
                [
                    {"scheduler": CosineAnnealingLR(optimizer, 3), "frequency": 2, "name": "cosine"},
                    {"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step", "frequency": 5},
                ],
            ),
            "list of one": lambda: [{"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 2)}],
        }[self.form]()


class FineTuned(pl.LightningModule):
    """A frozen backbone in evaluation mode, a head, and parameters that no optimizer has."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU()).double()
        self.head = nn.Linear(6, 3).double()
        self.backbone.requires_grad_(False)

    def on_train_epoch_start(self):
        self.backbone.eval()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return AdamW(filter(lambda p: p.requires_grad, self.parameters()), lr=0.05, weight_decay=0.1)


class Autoencoder(pl.LightningModule):
    """A warm-up in `optimizer_step`, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2)).double()
        self.decoder = nn.Linear(8, 2).double()
        self.error = MeanSquaredError()

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self.decoder(self.encoder(x)), x)

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        self.error(self.decoder(self.encoder(x)), x)
        self.log("error", self.error, on_step=True, on_epoch=True)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = min(1.0, (self.trainer.global_step + 1) / 8) * 0.02

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.3, gradient_clip_algorithm="norm")

    def configure_optimizers(self):
        return Adam(self.parameters(), lr=0.02)


class Nested(pl.LightningModule):
    """Modules within the module, which log by themselves."""

    class Part(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 3).double()

        def forward(self, x):
            output = self.layer(x)
            if self.training:
                self.log("part", output.detach().abs().mean(), on_epoch=True, on_step=False)
            return output

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([self.Part(), self.Part()])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(sum(part(batch[0]) for part in self.parts), batch[1])

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=0.1)


class Late(Classifier):
    """Layers made in `configure_model`, batches changed on their way to the device, loaders of its own."""

    def configure_model(self):
        if not hasattr(self, "more"):
            self.more = nn.Linear(3, 3).double()

    def forward(self, x):
        return self.more(self.net(x))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return (x * 2, y) if self.trainer.training else (x, y)

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(seed=None)


class Skipping(Classifier):
    """Leaves out batches in which a class is missing."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 2 else super().training_step(batch, batch_idx)


class Average(pl.Callback):
    """An exponential moving average of the weights, as its users write it."""

    def __init__(self, decay: float = 0.9):
        self.decay = decay

    def on_fit_start(self, trainer, pl_module):
        self.average = copy.deepcopy(pl_module.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in pl_module.state_dict().items():
            self.average[name] = self.decay * self.average[name] + (1 - self.decay) * value

    def on_validation_start(self, trainer, pl_module):
        self.kept = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(self.average)

    def on_validation_end(self, trainer, pl_module):
        pl_module.load_state_dict(self.kept)


# ------------------------------------------------------------------------------------------------------------ the proof

FORMS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classifier": (Classifier, lambda: (loader(), loader(seed=None)), {}),
    "clipped and accumulated": (
        Classifier,
        lambda: (loader(batch_size=8, seed=None), loader(seed=None)),
        {"gradient_clip_val": 0.5, "accumulate_grad_batches": 3},
    ),
    "metric collection": (Collected, lambda: (loader(), loader(seed=None)), {}),
    "rivals": (Adversarial, lambda: (loader(),), {}),
    "LBFGS": (Quasi, lambda: (loader(batch_size=48), loader(seed=None)), {}),
    "truncated sequences": (Recurrent, lambda: (loader(sequences(), 5),), {}),
    "several loaders": (
        SeveralLoaders,
        lambda: (
            {"a": loader(), "b": loader(blobs(20, 7), 7, seed=9)},
            [loader(seed=None), loader(batch_size=7, seed=None), loader(blobs(5), seed=None)],
        ),
        {},
    ),
    "hooks": (Hooked, lambda: (loader(), loader(seed=None)), {"check_val_every_n_epoch": 3}),
    "frozen backbone": (FineTuned, lambda: (loader(),), {}),
    "warm-up": (Autoencoder, lambda: (loader(), loader(seed=None)), {}),
    "nested": (Nested, lambda: (loader(),), {}),
    "late layers": (Late, tuple, {}),
    "skipped batches": (Skipping, lambda: (loader(), loader(seed=None)), {}),
    "datamodule": (Classifier, lambda: (Blobs(),), {}),
    "moving average": (Classifier, lambda: (loader(), loader(seed=None)), {"callbacks": Average}),
    "validation within epochs": (Classifier, lambda: (loader(), loader(seed=None)), {"val_check_interval": 2}),
    "early stopping": (
        Classifier,
        lambda: (loader(), loader(seed=None)),
        {"callbacks": ("EarlyStopping", {"monitor": "val_loss", "min_delta": 0.2, "patience": 1}), "max_epochs": 12},
    ),
    **{
        f"schedulers: {form}": (lambda form=form: Scheduled(form), lambda: (loader(), loader(seed=None)), {})
        for form in ("lists", "dictionary", "by step", "plateau", "two", "list of one")
    },
}


def run(make: Any, fit_with: Any, kind: Any, root: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    """Train a module under one of the two trainers."""
    callbacks = options.get("callbacks", [])
    if isinstance(callbacks, tuple):
        source = framework.callbacks if kind is make_trainer else pl.callbacks
        callbacks = getattr(source, callbacks[0])(**callbacks[1])
    elif callbacks:
        callbacks = callbacks()
    torch.manual_seed(0)
    module = make()
    settings = {"max_epochs": 3, "num_sanity_val_steps": 0, **options, "callbacks": callbacks}
    trainer = kind(root, **settings)
    trainer.fit(module, *fit_with())
    return module, trainer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_a_module_trains_as_under_lightning(tmp_path, form):
    make, fit_with, options = FORMS[form]
    ours, trainer = run(make, fit_with, make_trainer, tmp_path, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, other = run(make, fit_with, make_lightning_trainer, tmp_path, options)
    assert type(ours) is type(theirs)
    assert_close(ours, theirs, 1e-12)
    assert trainer.global_step == other.global_step
    assert trainer.current_epoch == other.current_epoch
    for name, value in other.callback_metrics.items():
        assert trainer.callback_metrics[name] == pytest.approx(float(value), rel=1e-6, abs=1e-12), name
    rates = [[group["lr"] for one in t.optimizers for group in one.param_groups] for t in (trainer, other)]
    assert rates[0] == pytest.approx(rates[1])
    assert getattr(ours, "seen", None) == getattr(theirs, "seen", None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "form", ["classifier", "rivals", "truncated sequences", "warm-up", "late layers", "datamodule"]
)
@pytest.mark.parametrize("step", [2, 5, 7])
def test_it_goes_on_where_it_was_interrupted(tmp_path, form, step):
    make, fit_with, options = FORMS[form]

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step // step == 1 and not (tmp_path / "some.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "some.ckpt")

    whole, _ = run(make, fit_with, make_trainer, tmp_path, {**options, "callbacks": Save})
    torch.manual_seed(0)
    resumed = make()
    trainer = make_trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0, **options)
    trainer.fit(resumed, *fit_with(), ckpt_path=tmp_path / "some.ckpt")
    assert_close(whole, resumed, 0)
