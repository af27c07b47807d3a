"""Where batches come from, and which forms they have."""

from collections import namedtuple

import lightning.pytorch as pl
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from tests.lightning.sides import EVERYTHING, REFUSED, Net, case, loader, predict, test, variant
from tests.modules import regression_data

Pair = namedtuple("Pair", ["X", "y"])


class Rows(Dataset):
    """Samples in a form of their own."""

    def __init__(self, form):
        self.X, self.y = regression_data()
        self.form = form

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.form(self.X[index], self.y[index])


class Flow(IterableDataset):
    """A stream of twenty samples, with or without a length."""

    def __iter__(self):
        return iter(zip(*regression_data(), strict=True))


class FlowWithLength(Flow):
    def __len__(self):
        return 20


def rows(form):
    return lambda: DataLoader(Rows(form), batch_size=5, generator=torch.Generator().manual_seed(3))


def flow(kind=Flow, **options):
    return lambda: DataLoader(kind(), batch_size=5, generator=torch.Generator().manual_seed(3), **options)


def data():
    return TensorDataset(*regression_data())


def drawn(sampler, **options):
    """Make a loader with a sampler, given the data and a generator."""
    return lambda: DataLoader(
        data(),
        sampler=sampler(data(), torch.Generator().manual_seed(4)),
        generator=torch.Generator().manual_seed(3),
        batch_size=5,
        **options,
    )


class Batches:
    """A sampler of batches of growing size."""

    def __iter__(self):
        return iter([[0, 1], [2, 3, 4], [5, 6, 7, 8, 9], list(range(10, 20))])

    def __len__(self):
        return 4


class Sees(Net):
    """Note the first number of each batch."""

    def training_step(self, batch, batch_idx):
        self.side(float(batch[0][0, 0]))
        return super().training_step(batch, batch_idx)


def as_for_does(make):
    """Say what differs where a sampler draws random numbers when it is read to its end."""

    def expected():
        batches = make()
        return [float(X[0, 0]) for _ in range(2) for X, y in batches]

    return {
        "differs": "every epoch reads the loader to its end, as a for statement does: there a RandomSampler draws",
        "here": {"parameters": lambda _: True, "noted": lambda noted: noted == expected()},
        "there": {
            "parameters": lambda _: True,
            "noted": lambda noted: noted[:4] == expected()[:4] and noted != expected(),
        },
    }


def by(loss):
    """Return a module that computes its loss from a batch in this way."""
    return variant(loss=lambda self, batch: torch.nn.functional.mse_loss(*loss(self, batch)))


Dictionary = by(lambda self, batch: (self(batch["X"]), batch["y"]))
case("loaders: ragged", Sees, train=lambda: loader(8), hears=EVERYTHING)
case("loaders: ragged, the last one dropped", Sees, train=lambda: loader(8, drop_last=True))
case("loaders: shuffled, one epoch", Sees, train=lambda: loader(shuffle=True), max_epochs=1)
case(
    "loaders: shuffled",
    Sees,
    train=lambda: loader(shuffle=True),
    **as_for_does(lambda: loader(shuffle=True)),
)
case("loaders: shuffled, limited", Sees, train=lambda: loader(shuffle=True), max_epochs=3, limit_train_batches=2)
case("loaders: shuffled, for validation", val=lambda: loader(3, shuffle=True))
case("loaders: one batch of everything", train=lambda: loader(20), hears=EVERYTHING)
case("loaders: a batch of one", train=lambda: loader(1), max_epochs=1)
case("loaders: a worker", train=lambda: loader(10, num_workers=1), max_epochs=1)
case(
    "loaders: a dictionary",
    Dictionary,
    train=rows(lambda X, y: {"X": X, "y": y}),
    val=rows(lambda X, y: {"X": X, "y": y}),
)
case("loaders: a named tuple", by(lambda self, batch: (self(batch.X), batch.y)), train=rows(Pair), val=rows(Pair))
case(
    "loaders: nested",
    by(lambda self, batch: (self(batch[0]["X"][0]), batch[1])),
    train=rows(lambda X, y: ({"X": [X]}, y)),
    val=rows(lambda X, y: ({"X": [X]}, y)),
)
case(
    "loaders: a batch with strings",
    by(lambda self, batch: (self(batch["X"]), batch["y"])),
    train=rows(lambda X, y: {"X": X, "y": y, "name": "one"}),
    val=lambda: None,
)
case(
    "loaders: a list of batches",
    train=lambda: [tuple(regression_data(5)), tuple(regression_data(6))],
    val=lambda: None,
    differs="it is a loader, unless there are loaders in it",
    here={"error": ""},
    there={"error": "refused"},
)
case("loaders: a stream", Sees, train=flow(), hears=EVERYTHING, max_epochs=2)
case("loaders: a stream with a length", Sees, train=flow(FlowWithLength), max_epochs=2)
case("loaders: a stream with a limit", Sees, train=flow(), limit_train_batches=2)
case("loaders: a stream with a fraction as its limit", train=flow(), limit_train_batches=0.5)
case("loaders: a stream for validation", val=flow(), hears=EVERYTHING)
case("loaders: a stream for validation with a limit", val=flow(), limit_val_batches=2)
case("loaders: a stream with an interval of validation", train=flow(), val_check_interval=2)
case("loaders: a stream with a fraction as the interval of validation", train=flow(), val_check_interval=0.5)
by_sampler = drawn(lambda data, generator: RandomSampler(data, generator=generator))
case("loaders: a sampler with a generator", Sees, train=by_sampler, **as_for_does(by_sampler))
case(
    "loaders: a sampler with replacement",
    Sees,
    train=drawn(lambda data, generator: RandomSampler(data, replacement=True, num_samples=15, generator=generator)),
)
case(
    "loaders: a sampler with weights",
    Sees,
    train=drawn(lambda data, generator: WeightedRandomSampler([1.0, 2.0] * 10, 10, generator=generator)),
)
case(
    "loaders: a batch sampler",
    Sees,
    train=lambda: DataLoader(
        data(),
        batch_sampler=BatchSampler(SequentialSampler(range(20)), 6, drop_last=False),
        generator=torch.Generator().manual_seed(3),
    ),
)
case(
    "loaders: a batch sampler of the user's",
    Sees,
    train=lambda: DataLoader(data(), batch_sampler=Batches(), generator=torch.Generator().manual_seed(3)),
)
case(
    "loaders: a subset",
    Sees,
    train=lambda: DataLoader(
        Subset(data(), [3, 1, 4, 15, 9]), batch_size=2, generator=torch.Generator().manual_seed(3)
    ),
)
case(
    "loaders: a collate function",
    train=lambda: loader(collate_fn=lambda rows: [torch.stack(part) * 0.5 for part in zip(*rows, strict=True)]),
)
case(
    "loaders: an empty one",
    train=lambda: loader(num_samples=20, sampler=[]),
    differs="a fit that cannot train is a mistake",
    **REFUSED,
)
case("loaders: no training data", train=lambda: None)

# ------------------------------------------------------------------------------------------------------------ several

several = by(lambda self, batch: (torch.cat([self(one[0]) for one in batch]), torch.cat([one[1] for one in batch])))
by_name = by(
    lambda self, batch: (self(batch["a"][0]), batch["b"][1]) if isinstance(batch, dict) else (self(batch[0]), batch[1])
)
case("loaders: two for training in a list", several, train=lambda: [loader(5), loader(5)], val=lambda: None)
case("loaders: two for training in a dictionary", by_name, train=lambda: {"a": loader(5), "b": loader(5)})
case(
    "loaders: two for training of different lengths",
    by(lambda self, batch: (self(batch["a"][0]), batch["a"][1])),
    train=lambda: {"a": loader(5), "b": loader(10)},
    val=lambda: None,
    hears=("training_step", "on_train_batch_end"),
)
case(
    "loaders: two for validation",
    variant(validation_step=lambda self, batch, batch_idx, dataloader_idx=0: self.log("val", self.loss(batch))),
    val=lambda: [loader(10), loader(4)],
    hears=EVERYTHING,
)
case(
    "loaders: two for validation with a limit",
    variant(validation_step=lambda self, batch, batch_idx, dataloader_idx=0: self.log("val", self.loss(batch))),
    val=lambda: [loader(10), loader(4)],
    limit_val_batches=1,
    hears=EVERYTHING,
)
case(
    "loaders: two for test",
    variant(test_step=lambda self, batch, batch_idx, dataloader_idx=0: self.log("test", self.loss(batch))),
    val=lambda: [loader(10), loader(4)],
    play=test,
)
case(
    "loaders: two for predict",
    variant(predict_step=lambda self, batch, batch_idx, dataloader_idx=0: self(batch[0]) + dataloader_idx),
    val=lambda: [loader(10), loader(4)],
    play=predict,
)

# ------------------------------------------------------------------------------------------------- methods, datamodules


class WithLoaders(Net):
    def train_dataloader(self):
        return loader(5)

    def val_dataloader(self):
        return loader(10)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


class Data(pl.LightningDataModule):
    """A datamodule whose calls are noted."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def prepare_data(self):
        self.note("prepare_data")

    def setup(self, stage):
        self.note(["setup", str(getattr(stage, "value", stage))])

    def teardown(self, stage):
        self.note(["teardown", str(getattr(stage, "value", stage))])

    def train_dataloader(self):
        self.note("train_dataloader")
        return loader(5)

    def val_dataloader(self):
        return loader(10)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


case("loaders: methods of the module", WithLoaders, play=lambda side: side.trainer.fit(side.module))
case(
    "loaders: methods of the module for test",
    WithLoaders,
    play=lambda side: side.trainer.test(side.module, verbose=False),
)
case("loaders: a datamodule", play=lambda side: side.trainer.fit(side.module, datamodule=Data(side.note)))
case("loaders: a datamodule by position", play=lambda side: side.trainer.fit(side.module, Data(side.note)))
case(
    "loaders: a datamodule for validate",
    play=lambda side: side.trainer.validate(side.module, datamodule=Data(side.note), verbose=False),
)
case(
    "loaders: a datamodule for predict", play=lambda side: side.trainer.predict(side.module, datamodule=Data(side.note))
)
case(
    "loaders: a datamodule, and loaders",
    play=lambda side: side.trainer.fit(side.module, loader(), datamodule=Data(lambda _: None)),
)
case(
    "loaders: reloaded every epoch",
    play=lambda side: side.trainer.fit(side.module, datamodule=Data(side.note)),
    reload_dataloaders_every_n_epochs=1,
    max_epochs=3,
)
case(
    "loaders: predictions are not kept",
    play=lambda side: side.trainer.predict(side.module, side.val, return_predictions=False),
)
case(
    "loaders: predictions of the default step",
    type("Default", (Net,), {"__module__": __name__, "predict_step": pl.LightningModule.predict_step}),
    play=lambda side: side.trainer.predict(
        side.module, DataLoader(regression_data()[0], batch_size=5, generator=torch.Generator().manual_seed(3))
    ),
)
