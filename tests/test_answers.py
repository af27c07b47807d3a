"""What a trainer and a module answer under Lightning's names: the same as Lightning at the same moments."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import framework
from framework.loggers import CSVLogger
from tests.modules import make_loader, make_net, make_trainer, seed_all

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import lightning.pytorch as pl

OF_TRAINER = [
    "current_epoch",
    "global_step",
    "num_training_batches",
    "num_val_batches",
    "is_last_batch",
    "world_size",
    "global_rank",
    "local_rank",
    "node_rank",
    "num_nodes",
    "num_devices",
    "is_global_zero",
    "precision",
    "training",
    "validating",
    "testing",
    "predicting",
    "evaluating",
    "sanity_checking",
]
OF_MODULE = ["current_epoch", "global_step", "global_rank", "local_rank", "device", "dtype"]
MOMENTS = [
    "on_fit_start",
    "on_sanity_check_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_test_start",
    "on_test_batch_end",
    "on_predict_start",
]


class Body:
    """A module on either base."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.said: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        X, y = batch
        return nn.functional.mse_loss(self.net(X), y)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))
        self.log("val/first", float(batch_idx == 0), on_epoch=True, reduce_fx=max)

    def on_validation_epoch_end(self) -> None:
        self.log("val/end", 2.0)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"test/loss": self.training_step(batch, batch_idx)}, False)

    def predict_step(self, batch: Any) -> Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def watching(base: type, said: list[Any]) -> Any:
    """Make a callback that notes the answers at every moment."""

    def note(moment: str) -> Callable[..., None]:
        def hook(self: Any, trainer: Any, module: Any, *_: Any) -> None:
            answers = {name: getattr(trainer, name) for name in OF_TRAINER}
            answers |= {f"module.{name}": getattr(module, name) for name in OF_MODULE}
            answers["optimizers"] = [type(one).__name__ for one in trainer.optimizers]
            answers["schedulers"] = [type(one.scheduler).__name__ for one in trainer.lr_scheduler_configs]
            said.append((moment, answers))

        return hook

    return type("Watching", (base,), {moment: note(moment) for moment in MOMENTS})()


def observe(module_base: type, trainer_class: Any, callback_base: type, folder: Any) -> list[Any]:
    seed_all(0)
    module = type("Both", (Body, module_base), {})().double()
    said: list[Any] = []
    trainer = make_trainer(folder, trainer_class, callbacks=[watching(callback_base, said)])
    trainer.fit(module, make_loader(), make_loader(num_samples=8))
    said.append(trainer.test(module, make_loader(num_samples=12)))
    trainer.predict(module, make_loader(num_samples=12))
    return said


QUIET = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*isinstance.treespec")


@QUIET
def test_the_answers_are_those_of_lightning_at_every_moment(tmp_path):
    theirs = observe(pl.LightningModule, pl.Trainer, pl.Callback, tmp_path)
    ours = observe(framework.Module, framework.Trainer, framework.Callback, tmp_path)
    for (moment, answers), (their_moment, expected) in zip(
        [s for s in ours if isinstance(s, tuple)], [s for s in theirs if isinstance(s, tuple)], strict=True
    ):
        assert moment == their_moment
        # Before training, Lightning has not counted its batches yet.
        if expected["num_training_batches"] == math.inf:
            expected["num_training_batches"] = answers["num_training_batches"]
        expected["num_val_batches"] = expected["num_val_batches"] or answers["num_val_batches"]
        assert answers == expected, moment


def both(action: Callable[[Any, Any], Any], folder: Any, body: type = Body) -> tuple[Any, Any]:
    """Return what an action returns, given a trainer and a module of ours, and of Lightning's."""
    found = []
    for base, kind in ((framework.Module, framework.Trainer), (pl.LightningModule, pl.Trainer)):
        seed_all(0)
        module = type("Both", (body, base), {})().double()
        found.append(action(make_trainer(folder, kind, max_epochs=1), module))
    return found[0], found[1]


@QUIET
def test_several_loaders_log_what_they_log_in_lightning(tmp_path):
    def loaders() -> Any:
        return [make_loader(num_samples=8), make_loader(num_samples=12)]

    def act(trainer: Any, module: Any) -> Any:
        trainer.fit(module, make_loader(), loaders())
        of_fit = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        return of_fit, trainer.validate(module, loaders()), trainer.num_val_batches

    ours, theirs = both(act, tmp_path)
    assert ours[0].keys() == theirs[0].keys()
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert [one.keys() for one in ours[1]] == [one.keys() for one in theirs[1]]
    assert all(one == pytest.approx(other, rel=1e-6) for one, other in zip(ours[1], theirs[1], strict=True))
    assert ours[2] == theirs[2]


@QUIET
def test_predictions_of_several_loaders_are_lists_of_their_own(tmp_path):
    class Which(Body):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> Any:
            return batch_idx, dataloader_idx

    loaders = [make_loader(num_samples=8), make_loader(num_samples=12)]
    ours, theirs = both(lambda trainer, module: trainer.predict(module, loaders), tmp_path, Which)
    assert ours == theirs == [[(0, 0)], [(0, 1), (1, 1)]]


def test_a_name_without_the_index_is_over_all_loaders(tmp_path):
    class Together(Body):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("val/mean", float(dataloader_idx), batch_size=1, add_dataloader_idx=False)

    trainer = make_trainer(tmp_path)
    module = type("Both", (Together, framework.Module), {})().double()
    loaders = {"one": make_loader(num_samples=8), "other": make_loader(num_samples=16)}  # of 1 and 2 batches
    assert trainer.validate(module, loaders) == [{"val/mean": pytest.approx(2 / 3), "val/end": 2.0}] * 2


def test_a_step_that_cannot_be_told_the_loader_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    module = type("Both", (Body, framework.Module), {})().double()
    with pytest.raises(TypeError, match=r"test_step .* is called with \(batch, batch_idx, dataloader_idx\)"):
        trainer.test(module, [make_loader(), make_loader()])

    class Asking(Body):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None: ...

    module = type("Both", (Asking, framework.Module), {})().double()
    with pytest.raises(TypeError, match=r"predict_step .* is called with \(batch, batch_idx\)"):
        trainer.predict(module, make_loader())


@pytest.mark.parametrize(
    "options", [{"enable_graph": True}, {"sync_dist_group": object()}, {"reduce_fx": torch.median}]
)
def test_options_of_log_without_effect_are_refused(tmp_path, options):
    class Logging(Body):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("x", 1.0, **options)
            return super().training_step(batch, batch_idx)

    module = type("Both", (Logging, framework.Module), {})().double()
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"log\('x'\): .*(have no effect|is not one of mean, sum, min, max)"):
        trainer.fit(module, make_loader())


def test_without_a_trainer_a_module_answers_by_defaults(capsys):
    module = framework.Module()
    assert (module.current_epoch, module.global_step, module.global_rank, module.local_rank) == (0, 0, 0, 0)
    assert (module.logger, module.loggers, module.dtype) == (None, [], torch.float32)
    module.print("a", 1, sep="-")
    assert capsys.readouterr().out == "a-1\n"


def test_what_was_logged_and_the_rest_of_the_names(tmp_path):
    class Asking(Body):
        def on_train_end(self) -> None:
            self.said = [self.optimizers(), self.lr_schedulers(), self.logger, self.trainer.logged_metrics]
            self.print("trained")

    module: Any = type("Both", (Asking, framework.Module), {})().double()
    logger = CSVLogger(tmp_path)
    trainer = framework.Trainer(max_epochs=1, logger=logger, log_every_n_steps=1, default_root_dir=tmp_path)
    train, val = make_loader(), make_loader()
    trainer.fit(module, train, val)
    optimizer, scheduler, first, logged = module.said
    assert [optimizer] == trainer.optimizers
    assert scheduler is trainer.lr_scheduler_configs[0].scheduler
    assert first is logger is trainer.logger
    assert logged.keys() == {"train/loss_epoch"}
    assert trainer.train_dataloader is train
    assert trainer.val_dataloaders is val
    assert trainer.model is trainer.lightning_module is module
    assert [trainer.checkpoint_callback] == trainer.checkpoint_callbacks
    assert trainer.early_stopping_callback is None
    assert trainer.progress_bar_callback in trainer.callbacks
    module.freeze()
    states = [(module.training, *(p.requires_grad for p in module.parameters()))]
    module.unfreeze()
    states.append((module.training, *(p.requires_grad for p in module.parameters())))
    assert [set(state) for state in states] == [{False}, {True}]
