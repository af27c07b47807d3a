"""A step, or an evaluation, that is one graph, against the same run without it; and what must not become one."""

import io
import itertools
import logging
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from framework import Callback, Module, Trainer, seed_everything
from framework.callbacks import PenaltyPath
from framework.data import TensorLoader
from framework.optim import ProxAdam, SpaRSA
from framework.penalties import L1, GroupL1, Penalty
from tests.modules import make_trainer, needs_compiler, regression_data

CONFIGS = Path(__file__).parents[2] / "conf" / "optimizer"


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs run operation by operation: what is recorded is the same, and Inductor takes seconds."""
    monkeypatch.setattr("framework.loop.capture.compile_fx", lambda recorded, _: torch.no_grad()(recorded))


class Network(Module):
    """A network of 11 parameters in two groups; ``configured`` makes the optimizer of them."""

    def __init__(
        self,
        configured: Callable[[list[dict[str, Any]]], Any],
        *,
        dtype: torch.dtype = torch.float64,
        penalty: Penalty | None = None,
        middle: Callable[[], list[nn.Module]] = list,
    ) -> None:
        super().__init__()
        first, last = nn.Linear(3, 2, bias=not middle()), nn.Linear(2, 1)
        self.layers = nn.Sequential(first, *middle(), nn.Tanh(), last).to(dtype)
        self.configured, self.penalty, self.happy_lambda = configured, penalty, 0.01
        self.factor, self.outputs = 1.0, []

    def param_groups(self) -> list[dict[str, Any]]:
        rest = [p for p in self.layers.parameters() if p is not self.layers[0].weight]
        return [
            {"params": [self.layers[0].weight], "penalized": self.penalty is not None, "name": "first"},
            {"params": rest, "penalized": False, "name": "rest"},
        ]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, targets = batch
        loss = (self.layers(features) - targets).square().mean()
        self.log("rmse", loss.sqrt(), on_epoch=True)
        return {"loss": loss * self.factor, "targets": targets.mean()}

    def configure_optimizers(self) -> Any:
        return self.configured(self.param_groups())


def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    groups[1]["lr"] = 0.005
    return torch.optim.Adam(groups, lr=0.01)


def data(samples: int = 60, dtype: torch.dtype = torch.float64, batch_size: int = 20) -> TensorLoader:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(samples, 3, generator=generator, dtype=dtype)
    noise = torch.randn(samples, 1, generator=generator, dtype=dtype)
    return TensorLoader(features, features.sin().sum(1, keepdim=True) + noise / 10, batch_size=batch_size, shuffle=True)


def train(root: Path, compile: str | None, module: Callable[[], Module], loader: Any = None, **options: Any) -> Any:
    seed_everything(0, verbose=False)
    model = module()
    trainer = make_trainer(root, compile=compile, **({"max_epochs": -1, "max_steps": 200} | options))
    trainer.fit(model, data() if loader is None else loader)
    return trainer, model


def largest_difference(left: nn.Module, right: nn.Module) -> float:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def assert_equal(root: Path, module: Callable[[], Module], *, within: float = 1e-12, **options: Any) -> None:
    """Train both ways; compare parameters, buffers and all metrics."""
    compile = options.pop("compile", "step")
    eager, expected = train(root, None, module, **options)
    compiled, found = train(root, compile, module, **options)
    assert any(graphs._recorded for graphs in compiled._fit.phase.graphs)
    assert largest_difference(expected, found) <= within
    metrics = eager.callback_metrics
    assert compiled.callback_metrics.keys() == metrics.keys()
    assert compiled.callback_metrics == pytest.approx(metrics, rel=100 * within, abs=100 * within)
    assert compiled.closure_evaluations == eager.closure_evaluations


def configured(name: str) -> tuple[Callable[..., Any], int | str]:
    """Return what makes the optimizer of the command line, and how many batches it takes for a step."""
    config = OmegaConf.merge({"lr": 0.01, "max_steps": 5}, {"choice": OmegaConf.load(CONFIGS / f"{name}.yaml")})
    choice = config.choice
    whole = "optimizer" in choice
    size = choice.trainer.accumulate_grad_batches if whole else 1
    return instantiate(choice.optimizer if whole else choice), size


PROXIMAL = ("ista", "fista", "sparsa", "prox_adam")
# FISTA and the others that search decide by comparisons, which rounding turns over once they have converged.
STEPS = {"fista": 30, "lbfgs": 30, "sparsa": 30, "scipy": 2, "exhaustive_search": 2}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("[!c]*.yaml")))
def test_every_optimizer_of_the_command_line_takes_the_steps_it_takes_eagerly(tmp_path: Path, name: str) -> None:
    optimizer, size = configured(name)

    def module() -> Module:
        takes_groups = name not in ("lbfgs", "scipy", "random_search", "exhaustive_search")
        penalty = L1() if name in PROXIMAL else None
        if name == "exhaustive_search":
            return Tiny(lambda groups: optimizer(groups[0]["params"]))
        return Network(
            lambda groups: optimizer(groups if takes_groups else [p for g in groups for p in g["params"]]),
            penalty=penalty,
        )

    steps = STEPS.get(name, 200)
    within = 1e-11 if name == "ista" else 1e-12  # rounding grows by its backtracking
    assert_equal(tmp_path, module, within=within, max_steps=steps, accumulate_grad_batches=size)


class Tiny(Network):
    """Two parameters, for a search of all points of a grid."""

    def __init__(self, configured: Callable[[list[dict[str, Any]]], Any]) -> None:
        super().__init__(configured)
        self.layers = nn.Linear(3, 1).double()
        self.layers.weight.requires_grad_(False)

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.layers.bias], "penalized": False}]


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("optimizer", ["RAdam", "Adamax", "Rprop"])
def test_other_optimizers_of_torch(tmp_path: Path, optimizer: str) -> None:
    assert_equal(tmp_path, lambda: Network(getattr(torch.optim, optimizer)))


@needs_compiler
def test_float32(tmp_path: Path) -> None:
    loader = data(dtype=torch.float32)
    assert_equal(tmp_path, lambda: Network(adam, dtype=torch.float32), within=1e-5, loader=loader)


def with_schedule(groups: list[dict[str, Any]]) -> Any:
    optimizer = adam(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def with_batch_norm() -> Module:
    return Network(adam, middle=lambda: [nn.BatchNorm1d(2), nn.Dropout(0.3)])


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lambda: Network(with_schedule), {"gradient_clip_val": 0.3}),
        (lambda: Network(adam), {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
        (lambda: Network(adam, penalty=L1()), {"accumulate_grad_batches": 2}),
        (lambda: Network(adam, penalty=GroupL1()), {"accumulate_grad_batches": "epoch", "compile": "model"}),
        (with_batch_norm, {"compile": "model"}),
        (lambda: Network(adam), {"loader": data(70)}),  # the last batch of 10 recurs
    ],
    ids=["schedule, clip", "clip by value", "g, accumulate", "g, epoch", "model", "ragged"],
)
def test_settings(tmp_path: Path, build: Callable[[], Module], options: dict[str, Any]) -> None:
    assert_equal(tmp_path, build, **options)


@pytest.mark.slow
@needs_compiler
def test_batch_norm_and_dropout(tmp_path: Path) -> None:
    assert_equal(tmp_path, with_batch_norm)


@pytest.mark.slow
@needs_compiler
def test_mixed_precision(tmp_path: Path) -> None:
    loader, model = data(dtype=torch.float32), lambda: Network(adam, dtype=torch.float32)
    assert_equal(tmp_path, model, within=2e-2, precision="bf16-mixed", loader=loader)


def assert_continues_bitwise(root: Path, build: Callable[[], Module], stops: tuple[int, ...]) -> None:
    def fit(root: Path, epochs: int, ckpt_path: str | None = None) -> Module:
        seed_everything(0, verbose=False)
        model = build()
        trainer = make_trainer(root, compile="step", max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, data(50), ckpt_path=ckpt_path)
        return model

    whole = fit(root / "whole", 4)
    for stopped in stops:
        fit(root / str(stopped), stopped)
        [path] = (root / str(stopped)).rglob("last.ckpt")
        assert largest_difference(whole, fit(root / str(stopped), 4, str(path))) == 0


class TwoBiases(Network):
    """A module with two parameters of the same gradient, which a graph computes once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.other = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def param_groups(self) -> list[dict[str, Any]]:
        first, rest = super().param_groups()
        return [first, {**rest, "params": [*rest["params"], self.other]}]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, targets = batch
        return (self.layers(features) + self.other - targets).square().mean()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("compile", ["step", "model"])
def test_parameters_with_the_same_gradient(tmp_path: Path, compile: str) -> None:
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2}
    assert_equal(tmp_path, lambda: TwoBiases(torch.optim.SGD), compile=compile, loader=data(70), **options)


class Numbered(TensorLoader):
    """Batches with their number."""

    def __iter__(self) -> Any:
        return ((*batch, number) for number, batch in enumerate(super().__iter__()))


class TakesNumber(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        *tensors, number = batch
        return super().training_step(tensors, batch_idx)["loss"] * (1 + number)


def test_numbers_in_batches_are_no_constants(tmp_path: Path) -> None:
    features, targets = regression_data(70)
    with pytest.warns(UserWarning, match="batches have too many shapes, or numbers in them"):
        _, found = train(tmp_path, "step", lambda: TakesNumber(adam), Numbered(features, targets, batch_size=1))
    _, expected = train(tmp_path, None, lambda: TakesNumber(adam), Numbered(features, targets, batch_size=1))
    assert largest_difference(expected, found) == 0


@pytest.mark.slow
@needs_compiler
def test_a_continued_run_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    assert_continues_bitwise(tmp_path, lambda: Network(adam), (1,))


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("changes_options", [False, True], ids=["graph", "given up"])
def test_a_continued_run_makes_a_graph_where_the_uninterrupted_did(tmp_path: Path, changes_options: bool) -> None:
    def build() -> Module:
        middle = [nn.BatchNorm1d(2), nn.Dropout(0.3)]
        cycled = one_cycle(partial(torch.optim.SGD, momentum=0.9))
        return Network(cycled if changes_options else with_schedule, penalty=L1(), middle=lambda: middle)

    with warnings.catch_warnings():
        if changes_options:
            warnings.filterwarnings("ignore", message=".*the optimizer of Network runs eagerly: 'momentum'")
        assert_continues_bitwise(tmp_path, build, (1, 2, 3))


def one_cycle(make: Callable[..., torch.optim.Optimizer]) -> Callable[[list[dict[str, Any]]], Any]:
    def configure(groups: list[dict[str, Any]]) -> Any:
        optimizer = make(groups, lr=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=60)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return configure


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("make", [torch.optim.AdamW, ProxAdam])
def test_betas_that_a_schedule_cycles_are_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any) -> None:
    assert_equal(tmp_path, lambda: Network(one_cycle(make), penalty=L1()), max_steps=60)
    assert capsys.readouterr().out.count("compiled the step") == 1


def anneal(trainer: Trainer, module: Module) -> None:
    module.happy_lambda = 0.001 * (1 + trainer.global_step % 7)
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = 0.01 / (1 + trainer.global_step)


def change_second_beta(trainer: Trainer, module: Module) -> None:
    if trainer.global_step == 20:
        for group in trainer.optimizers[0].param_groups:
            group["betas"] = (group["betas"][0], 0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("build", "change", "num_graphs"),
    [
        (lambda: Network(adam, penalty=L1()), anneal, 1),
        (lambda: Network(one_cycle(torch.optim.Adam)), change_second_beta, 2),
    ],
    ids=["rate and weight of the penalty", "the second beta beside a cycled one"],
)
def test_a_new_graph_is_made_only_for_options_that_are_no_inputs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[], Module],
    change: Callable[[Trainer, Module], None],
    num_graphs: int,
) -> None:
    class Change(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
            change(trainer, module)

    assert_equal(tmp_path, build, callbacks=[Change()], max_steps=30)
    assert capsys.readouterr().out.count("compiled the step") == num_graphs


# ------------------------------------------------------------------------------------- what changes between steps


SCALE = 1.0


class WithGlobal(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * SCALE


class WithTensor(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weights = torch.ones(())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * self.weights


class Config:
    """A class whose attributes are read by its name, and an object whose attributes are."""

    scale = 1.0


CONFIG = Config()


class WithObjects(Network):
    """Reads what is in objects of several kinds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.array, self.queue = np.ones(2), deque([1.0], maxlen=2)
        self.register_buffer("weight", None)
        self.teacher = [nn.Sequential(nn.Linear(3, 1), nn.Hardtanh()).double().requires_grad_(False)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"] * float(self.array[0]) * self.queue[-1]
        loss = loss * CONFIG.scale * Config.scale * sys.modules[__name__].SCALE
        loss = loss + (self.layers(batch[0]) - self.teacher[0](batch[0])).square().mean()
        if hasattr(self, "later"):
            loss = loss * self.later
        return loss if self.weight is None else loss * self.weight


def add_hook(module: Any) -> None:
    module.layers[-1].weight.register_hook(lambda grad: 2 * grad)


def change_global(module: Any) -> None:
    global SCALE
    SCALE = 3.0


def replace_layer(module: Any) -> None:
    module.layers[1] = nn.Sigmoid()


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (Network, lambda module: setattr(module, "factor", 2.0)),
        (Network, lambda module: module.layers.eval()),
        (Network, lambda module: module.layers[-1].requires_grad_(False)),
        (Network, replace_layer),
        (Network, lambda module: setattr(module, "penalty", GroupL1("rows"))),
        (Network, lambda module: module.optimizers().param_groups[0].update(betas=(0.5, 0.9))),
        (Network, lambda module: module.optimizers().param_groups[1].update(weight_decay=0.1)),
        (Network, lambda module: setattr(module.layers[-2], "p", 0.9)),
        (WithGlobal, change_global),
        (WithTensor, lambda module: setattr(module, "weights", torch.tensor(2.0))),
        (WithTensor, lambda module: module.weights.fill_(2.0)),
        (WithObjects, lambda module: module.array.fill(2.0)),
        (WithObjects, lambda module: module.queue.append(2.0)),
        (WithObjects, lambda module: setattr(CONFIG, "scale", 2.0)),
        (WithObjects, lambda module: setattr(Config, "scale", 2.0)),
        (WithObjects, lambda module: setattr(module, "weight", torch.tensor(2.0))),
        (WithObjects, lambda module: setattr(module, "later", 2.0)),
        (WithObjects, lambda module: module.teacher[0].__setitem__(1, nn.Sigmoid())),
        (Network, lambda module: setattr(module.layers[1], "forward", torch.sigmoid)),
    ],
    ids=[
        "attribute",
        "mode",
        "frozen",
        "layer",
        "penalty",
        "betas",
        "decay",
        "dropout",
        "global",
        "tensor",
        "in place",
        "array",
        "deque",
        "object",
        "class",
        "buffer",
        "new attribute",
        "hidden module",
        "method",
    ],
)
@pytest.mark.parametrize("moment", ["on_train_batch_end", "on_train_epoch_end"])
def test_what_a_callback_changes_takes_effect_in_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, change: Callable[[Any], None], moment: str
) -> None:
    class Change(Callback):
        def after(self, trainer: Trainer, module: Module, *_: Any) -> None:
            if trainer.global_step == 6:
                change(module)

    setattr(Change, moment, Change.after)

    def build() -> Module:
        monkeypatch.setattr(f"{__name__}.SCALE", 1.0)
        monkeypatch.setattr(Config, "scale", 1.0)
        vars(CONFIG).clear()
        return kind(adam, penalty=L1(), middle=lambda: [nn.Dropout(0.2)])

    assert_equal(tmp_path, build, callbacks=[Change()], max_steps=12)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_what_changes_at_every_step_is_given_up_by_name(tmp_path: Path) -> None:
    class Change(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            module.factor = 1.0 + trainer.global_step

    with pytest.warns(UserWarning, match=r"Network\.factor changes again and again"):
        _, found = train(tmp_path, "step", lambda: Network(adam), callbacks=[Change()], max_steps=20)
    _, expected = train(tmp_path, None, lambda: Network(adam), callbacks=[Change()], max_steps=20)
    assert largest_difference(expected, found) <= 1e-12


@pytest.mark.usefixtures("uncompiled")
def test_a_hook_that_a_callback_adds_is_called(tmp_path: Path) -> None:
    class Change(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                add_hook(module)

    with pytest.warns(UserWarning, match=r"layers\.\d\.weight has hooks"):
        _, found = train(tmp_path, "step", lambda: Network(adam), callbacks=[Change()], max_steps=12)
    _, expected = train(tmp_path, None, lambda: Network(adam), callbacks=[Change()], max_steps=12)
    assert largest_difference(expected, found) <= 1e-12


@pytest.mark.usefixtures("uncompiled")
def test_a_hook_of_the_optimizer_that_a_callback_adds_is_called(tmp_path: Path) -> None:
    class Change(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 6:
                trainer.optimizers[0].register_step_pre_hook(lambda optimizer, *_: optimizer.zero_grad())

    with pytest.warns(UserWarning, match="the optimizer of Network runs eagerly: hooks are registered on it"):
        _, found = train(tmp_path, "step", lambda: Network(adam), callbacks=[Change()], max_steps=12)
    _, expected = train(tmp_path, None, lambda: Network(adam), callbacks=[Change()], max_steps=12)
    assert largest_difference(expected, found) <= 1e-12


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("gone", [lambda module: setattr(module, "kept", None), lambda module: delattr(module, "kept")])
def test_a_tensor_that_is_gone(tmp_path: Path, gone: Callable[[Any], None]) -> None:
    class Change(Callback):
        def on_fit_start(self, trainer: Trainer, module: Any) -> None:
            module.kept = torch.zeros(())

        def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 6:
                gone(module)

    assert_equal(tmp_path, lambda: Network(adam), callbacks=[Change()], max_steps=12)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
def test_what_a_scheduler_and_a_loader_change(tmp_path: Path) -> None:
    def decaying(groups: list[dict[str, Any]]) -> Any:
        optimizer = adam(groups)

        def rate(step: int) -> float:
            groups[1]["weight_decay"] = 0.1 if step > 7 else 0.0
            return 1.0

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [rate, rate])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    class Curriculum(TensorLoader):
        def __iter__(self) -> Any:
            for number, batch in enumerate(super().__iter__()):
                models[-1].factor = 1.0 + (number > 10)
                yield batch

    models: list[Any] = []

    def build() -> Any:
        models.append(Network(decaying))
        return models[-1]

    assert_equal(tmp_path, build, loader=data(400), max_steps=15)
    assert_equal(tmp_path, build, loader=Curriculum(*data(400).tensors, batch_size=20), max_steps=15)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("of_trainer", "of_stages", "what"), [("epoch", 1, "step"), (1, "epoch", "evaluation")])
def test_the_stages_of_a_path_become_graphs_by_their_own_accumulation(
    tmp_path: Path, of_trainer: Any, of_stages: Any, what: str
) -> None:
    def path() -> PenaltyPath:
        return PenaltyPath(partial(ProxAdam, lr=0.01), accumulate_grad_batches=of_stages, window=9)

    def build() -> Module:
        return Network(lambda groups: SpaRSA(groups), penalty=L1())

    options: dict[str, Any] = {"max_steps": 8, "accumulate_grad_batches": of_trainer}
    _, expected = train(tmp_path, None, build, callbacks=[path()], **options)
    with nullcontext() if what == "step" else pytest.warns(UserWarning, match="ProxAdam runs eagerly: accumulate"):
        trainer, found = train(tmp_path, "step", build, callbacks=[path()], **options)
    assert [graphs._what for graphs in trainer._fit.phase.graphs if graphs._recorded] == [what]
    assert largest_difference(expected, found) <= 1e-12


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("compile", ["step", "model"])
def test_a_rate_that_the_module_reads_from_its_optimizer(tmp_path: Path, compile: str) -> None:
    class Reads(Network):
        def configure_optimizers(self) -> Any:
            configured = super().configure_optimizers()
            self.optimizer = configured["optimizer"]
            return configured

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx)["loss"] * self.optimizer.param_groups[0]["lr"]

    assert_equal(tmp_path, lambda: Reads(with_schedule), compile=compile, max_steps=30)


# ------------------------------------------------------------------------------------ what cannot become a graph


class Prints(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        print("a step")
        return super().training_step(batch, batch_idx)


class Branches(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss if loss > 0.5 else 2 * loss


class Items(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)["loss"]
        return loss / max(1.0, loss.item())


class Lists(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * batch[1].mean().tolist()


class Numpy(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * float(np.abs(batch[1].numpy()).mean())


class Masks(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, targets = batch
        kept = targets[:, 0] > 0
        return (self.layers(features[kept]) - targets[kept]).square().mean()


class DrawsPython(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * random.random()


class DrawsNumpy(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * np.random.random()


class Indexes(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * (batch_idx + 1)


class Anneals(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] / (1 + self.global_step)


class HasGenerator(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.generator = torch.Generator().manual_seed(3)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        noise = torch.rand((), generator=self.generator, dtype=torch.float64)
        return super().training_step(batch, batch_idx)["loss"] * noise


class HoldsGenerator(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.drawn = [np.random.default_rng(3)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * float(self.drawn[0].random())


class Iterates(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.numbers = itertools.count(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx)["loss"] * next(self.numbers)


class Checkpoints(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, targets = batch
        outputs = checkpoint(lambda x: functional.dropout(self.layers(x)), features, use_reentrant=False)
        return (outputs - targets).square().mean()


class Seeds(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            noise = torch.randn(())
        return super().training_step(batch, batch_idx)["loss"] * (1 + noise.abs())


SEEN: list[Any] = []


class AppendsToGlobal(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        SEEN.append(0)
        return super().training_step(batch, batch_idx)["loss"] * (1 + len(SEEN) % 3)


class CountsInClass(Network):
    count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        type(self).count += 1
        return super().training_step(batch, batch_idx)["loss"] * (1 + self.count % 3)


def counts_outside(configured: Any) -> Network:
    count = 0

    class CountsOutside(Network):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            nonlocal count
            count += 1
            return super().training_step(batch, batch_idx)["loss"] * (1 + count % 3)

    return CountsOutside(configured)


def appends_outside(configured: Any) -> Network:
    seen = []

    class AppendsOutside(Network):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(0)
            return super().training_step(batch, batch_idx)["loss"] * (1 + len(seen) % 3)

    return AppendsOutside(configured)


class Stops(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.trainer.should_stop = False
        return super().training_step(batch, batch_idx)


TEXT = io.StringIO()


class Writes(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        TEXT.write("a step")
        return super().training_step(batch, batch_idx)


class Logs(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logging.getLogger("tests").warning("a step")
        return super().training_step(batch, batch_idx)


class Complains(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        print("a step", file=sys.stderr)
        return super().training_step(batch, batch_idx)


class Counts(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.factor *= 0.9
        return super().training_step(batch, batch_idx)


class Keeps(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        self.outputs.append(output["loss"].detach())
        return output


class LogsNumbers(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("factor", self.factor)
        return super().training_step(batch, batch_idx)


class Returns(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) | {"samples": len(batch[0])}


class Hooked(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers[0].register_forward_hook(lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Prints, "prints 'a step'"),
        (Branches, r"line \d+ of test_compiled.py \(training_step\) decides by the value of a tensor"),
        (Items, r"line \d+ of test_compiled.py \(training_step\) decides by the value of a tensor"),
        (Lists, r"by tolist\(\)"),
        (Numpy, r"by numpy\(\)"),
        (Masks, "indexes by a mask"),
        (DrawsPython, "random numbers of Python"),
        (DrawsNumpy, "random numbers of Python or NumPy"),
        (Indexes, "it uses batch_idx"),
        (Anneals, "asks the trainer for global_step"),
        (HasGenerator, "it calls Generator|argument of type: <class 'torch._C.Generator'>"),
        (HoldsGenerator, r"it draws random numbers from drawn\[0\]"),
        (Iterates, "it has numbers, an iterator"),
        (Checkpoints, "sets the state of a random generator"),
        (Seeds, "sets the state of a random generator"),
        (AppendsToGlobal, "sets the variable SEEN"),
        (CountsInClass, r"sets CountsInClass\.count"),
        (counts_outside, "sets count of a function around it"),
        (appends_outside, "sets the variable seen"),
        (Stops, "sets should_stop of the trainer"),
        (Writes, "writes to a file"),
        (Logs, "writes to a file or a log"),
        (Complains, "prints 'a step'"),
        (Counts, "sets factor"),
        (Keeps, "sets outputs"),
        (LogsNumbers, "logs 'factor' as a float"),
        (Returns, "returns a int besides tensors"),
        (Hooked, r"layers\.0 has hooks"),
    ],
)
@pytest.mark.parametrize("compile", ["step", "model"])
def test_what_a_graph_would_not_do_again_runs_eagerly_with_one_warning(
    tmp_path: Path, kind: Any, reason: str, compile: str
) -> None:
    def build() -> Module:
        SEEN.clear()
        CountsInClass.count = 0
        return kind(adam)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled, found = train(tmp_path, compile, build, max_steps=12)
    [warning] = caught
    assert "runs eagerly" in str(warning.message)
    with pytest.warns(UserWarning, match=reason):
        warnings.warn(str(warning.message), stacklevel=1)
    eager, expected = train(tmp_path, None, build, max_steps=12)
    assert largest_difference(expected, found) == 0
    assert compiled.callback_metrics == eager.callback_metrics
    assert len(expected.outputs) == len(found.outputs)
    assert expected.factor == found.factor


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:in no parameter group")
@pytest.mark.parametrize("name", ["Adafactor", "Muon", "ASGD", "NAdam"])
def test_optimizers_that_cannot_be_a_graph_step_eagerly(tmp_path: Path, name: str) -> None:
    def build() -> Module:
        model = Network(lambda groups: getattr(torch.optim, name)([groups[0]["params"][0], model.layers[-1].weight]))
        model.may_leave_out_parameters = True
        return model

    with pytest.warns(UserWarning, match=f"compile='step': {name} runs eagerly"):
        _, found = train(tmp_path, "step", build, max_steps=30)
    _, expected = train(tmp_path, None, build, max_steps=30)
    assert largest_difference(expected, found) <= 1e-9


class CountsByItself(torch.optim.Optimizer):
    """Gradient descent whose rate falls, by a number that it keeps itself or in its groups."""

    def __init__(self, params: Any, in_groups: bool) -> None:
        super().__init__(params, {"lr": 0.1, "number": 0})
        self.number, self.in_groups = 0, in_groups

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        if not self.in_groups:
            self.number += 1
        for group in self.param_groups:
            group["number"] += self.in_groups
            for param in group["params"]:
                param.sub_(param.grad, alpha=group["lr"] / (self.number + group["number"]))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("in_groups", [False, True])
def test_an_optimizer_that_counts_by_itself_steps_eagerly(tmp_path: Path, in_groups: bool) -> None:
    def build() -> Module:
        return Network(lambda groups: CountsByItself(groups, in_groups))

    with pytest.warns(UserWarning, match="the optimizer of Network runs eagerly: CountsByItself .*number"):
        _, found = train(tmp_path, "step", build, max_steps=12)
    _, expected = train(tmp_path, None, build, max_steps=12)
    assert largest_difference(expected, found) <= 1e-12


class Sparse(Network):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers = nn.ModuleList([nn.Embedding(3, 2, sparse=True), nn.Linear(2, 1)]).double()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        features, targets = batch
        return (self.layers[1](self.layers[0](features.argmax(1))) - targets).square().mean()


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("kind", "is_sparse", "reason"),
    [(Sparse, False, "its gradients are sparse"), (Network, True, "something else than dense tensors")],
    ids=["gradients", "batches"],
)
def test_what_is_sparse_runs_eagerly(tmp_path: Path, kind: Any, is_sparse: bool, reason: str) -> None:
    loader = [(features.to_sparse() if is_sparse else features, targets) for features, targets in data()]
    with pytest.warns(UserWarning, match=reason):
        _, found = train(tmp_path, "model", lambda: kind(torch.optim.SGD), loader, max_steps=12)
    _, expected = train(tmp_path, None, lambda: kind(torch.optim.SGD), loader, max_steps=12)
    assert largest_difference(expected, found) == 0


def test_sparse_gradients_take_proximal_steps_as_dense_ones(tmp_path: Path) -> None:
    class Dense(Sparse):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.layers[0].sparse = False

    loader = list(data())
    (_, found), (_, expected) = (
        train(tmp_path, None, lambda kind=kind: kind(ProxAdam, penalty=L1()), loader, max_steps=20)  # type: ignore[misc]
        for kind in (Sparse, Dense)
    )
    assert largest_difference(found, expected) <= 1e-12


class LeavesOutDraws(Network):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        functional.dropout(batch[0])
        return super().training_step(batch, batch_idx)["loss"] * torch.rand(())


@needs_compiler
def test_a_graph_that_would_draw_other_random_numbers_is_not_used(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="a graph draws other random numbers"):
        _, found = train(tmp_path, "step", lambda: LeavesOutDraws(torch.optim.SGD), max_steps=5)
    _, expected = train(tmp_path, None, lambda: LeavesOutDraws(torch.optim.SGD), max_steps=5)
    assert largest_difference(expected, found) == 0


@pytest.mark.usefixtures("uncompiled")
def test_hooks_between_gradients_and_step_are_called(tmp_path: Path) -> None:
    seen: list[float] = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, module: Module, optimizer: Any) -> None:
            seen.append(float(module.layers[0].weight.grad.norm()))

    with pytest.warns(UserWarning, match=r"Adam runs eagerly: Look\.on_before_optimizer_step"):
        train(tmp_path, "step", lambda: Network(adam), callbacks=[Look()], max_steps=12)
    assert len(seen) == 12
    assert len(set(seen)) == 12


def test_without_a_compiler_everything_runs_eagerly(tmp_path: Path) -> None:
    import torch._inductor.config

    no_compiler = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with no_compiler, pytest.warns(UserWarning, match="runs eagerly: Inductor cannot compile it"):
        _, found = train(tmp_path, "step", lambda: Network(torch.optim.SGD), max_steps=5)
    _, expected = train(tmp_path, None, lambda: Network(torch.optim.SGD), max_steps=5)
    assert largest_difference(expected, found) == 0


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compile='all'; it must be 'model', 'step' or None"):
        make_trainer(tmp_path, compile="all")
    with pytest.raises(ValueError, match="detect_anomaly=True"):
        make_trainer(tmp_path, compile="step", detect_anomaly=True)
    model = Network(adam)
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="compile='step' has no effect"):
        make_trainer(tmp_path, compile="step").fit(model, data())
