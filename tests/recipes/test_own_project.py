"""A user's own project: data, network, module, penalty, callback, optimizer and recipe (docs/example)."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import framework
from framework import Module
from framework.penalties import Penalty
from framework.recipes.data import Data
from framework.recipes.module import SupervisedModule
from framework.recipes.own_modules import look_in_current_folder
from framework.recipes.trained import run_export
from tests.recipes.conftest import Proxtrain

EXAMPLE = Path(__file__).parents[2] / "docs" / "example"
SPIKES = ("--config-dir", "conf", "recipe=spikes", "trainer.enable_progress_bar=false")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "spikes", raising=False)
    return tmp_path


def test_every_part_may_be_a_projects_own(proxtrain: Proxtrain, project: Path) -> None:
    done = proxtrain(*SPIKES, "logger.graph=true")
    assert done.code == 0, done.stderr
    metrics = json.loads((done.folder / "summary.json").read_text())["metrics"]
    assert metrics["spikes"] == 5

    module = framework.load(done.folder)
    weight = module.network.weight.detach().double().numpy()[0]
    blur, signal = (tensor.double().numpy() for tensor in sys.modules["spikes"].blurred_spikes().train.tensors)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        residual = blur @ w - signal[:, 0]
        return residual @ residual / 2 + 0.5 * w.sum(), blur.T @ residual + 0.5

    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-14, "gtol": 1e-10}
    best = minimize(objective, 0 * weight, jac=True, bounds=[(0, None)] * len(weight), options=options)
    assert objective(weight)[0] == pytest.approx(best.fun, rel=1e-4)
    assert (weight >= 0).all()


def test_an_own_optimizer_needs_no_deletions(proxtrain: Proxtrain, project: Path) -> None:
    own = ("optimizer=custom", "optimizer._target_=spikes.HeavyBall", "+optimizer.momentum=0.5")
    done = proxtrain(*SPIKES, *own, "logger=none", "lr=0.01", "penalty=none", "epochs=20")
    assert done.code == 0, done.stderr
    weight = framework.load(done.folder).network.weight
    blur, signal = sys.modules["spikes"].blurred_spikes().train.tensors
    expected = nn.Parameter(torch.zeros(1, 200))
    optimizer = torch.optim.SGD([expected], lr=0.01, momentum=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        ((expected @ blur.T).T - signal).square().sum().div(2).backward()
        optimizer.step()
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss=mse"], "loss=mse has no effect: Deconvolution takes no loss"),
        (["lr=3"], "lr=3 has no effect"),
        (["scheduler=cosine"], "scheduler=cosine has no effect"),
        (
            ["penalty=l1", "penalty.happy_lambda=5", "module=custom", f"module._target_={__name__}.OwnWeight"],
            "penalty.happy_lambda=5 has no effect: OwnWeight takes no happy_lambda",
        ),
        (
            ["recipe=sine", "lr=3", "module=custom", f"module._target_={__name__}.OwnOptimizer"],
            "lr=3 has no effect: OwnOptimizer takes no optimizer",
        ),
        (
            ["recipe=sine", "data=custom", f"data._target_={__name__}.without_validation"],
            "callbacks.model_checkpoint.monitor=val/loss, and nothing is validated",
        ),
        (["module._target_=spikes.Heights"], "must be a framework.Module"),
        (["module._target_=spikes.Nothing"], "Are you sure that 'Nothing' is importable from module 'spikes'?"),
        (["optimizer=custom"], "Missing mandatory value: optimizer._target_"),
        (["data=custom", "data._target_=tests.recipes.test_own_project.pair"], "returned a tuple; it must return"),
        (["data=custom", "data._target_=tests.recipes.test_own_project.shapeless"], "says nothing of input_shape"),
    ],
)
def test_what_does_not_fit_together_is_said(
    arguments: list[str], message: str, proxtrain: Proxtrain, project: Path
) -> None:
    done = proxtrain(*SPIKES, *arguments)
    assert done.code == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def pair() -> tuple[list[int], list[int]]:
    return [1], [2]


class OwnWeight(SupervisedModule):
    def __init__(self, network: nn.Module, optimizer: Any, penalty: Penalty) -> None:
        super().__init__(network, nn.MSELoss(), optimizer, penalty=penalty, happy_lambda=0.1)


class OwnOptimizer(Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def without_validation() -> Data:
    loader = plain_loaders().train
    return Data(loader, input_shape=(5,), num_outputs=1)


def test_data_need_no_validation(proxtrain: Proxtrain, project: Path) -> None:
    own = ("recipe=sine", "data=custom", f"data._target_={__name__}.without_validation")
    for monitor in ("train/loss_epoch", "null"):
        chosen = f"callbacks.model_checkpoint.monitor={monitor}"
        done = proxtrain(*own, chosen, "epochs=2", "trainer.enable_progress_bar=false", "logger=none")
        assert done.code == 0, done.stderr
        assert (done.folder / "checkpoints" / "best.ckpt").exists() == (monitor != "null")
        framework.load(done.folder)


class WithoutForward(Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])  # which has pictures within the run too
def test_a_module_that_does_not_say_what_it_computes_has_no_pictures_of_that(
    logger: str, proxtrain: Proxtrain, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("recipe=sine", "module=custom", f"module._target_={__name__}.WithoutForward", f"logger={logger}")
    with pytest.warns(UserWarning, match="no pictures of what the model computes: .*forward") as warned:
        done = proxtrain(*own, "val_every=1", "epochs=3", "trainer.enable_progress_bar=false")
    assert done.code == 0, done.stderr
    assert any("WithoutForward" in str(warning.message) for warning in warned)
    assert [path.name for path in (done.folder / "plots").iterdir()] == ["loss.png"]
    assert (done.folder / "summary.json").exists()
    with pytest.raises(SystemExit):
        run_export([str(done.folder), "network.pt2"])
    assert "error: WithoutForward defines no forward, which is what is exported" in capsys.readouterr().err


def shapeless() -> Data:
    return Data([])


def plain_loaders() -> Data:
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(40, columns, generator=generator) for columns in (5, 1))
    loader = DataLoader(TensorDataset(x, x[:, :1] + noise), batch_size=40)
    return Data(loader, loader, input_shape=(5,), num_outputs=1)


def test_plain_loaders_have_a_universal_threshold(proxtrain: Proxtrain, project: Path) -> None:
    own = ("data=custom", "data._target_=tests.recipes.test_own_project.plain_loaders")
    done = proxtrain(
        "recipe=sparse_linear",
        *own,
        "trainer.enable_progress_bar=false",
        "epochs=2",
        "logger=none",
        "callbacks=default",
    )
    assert done.code == 0, done.stderr
    assert "quantile universal threshold" in done.stdout


def test_the_reason_why_a_target_cannot_be_imported_is_shown(proxtrain: Proxtrain, project: Path) -> None:
    (project / "broken_project.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ImportError, match="No module named 'nowhere_to_be_found'"):
        proxtrain(*SPIKES, "data=custom", "data._target_=broken_project.data")


@pytest.mark.parametrize("editable", [True, False])
def test_the_current_folder_comes_after_all_but_an_editable_checkout(
    editable: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, checkout = ["stdlib", "site-packages"], [str(Path(__file__).parents[2])] if editable else []
    monkeypatch.setattr(sys, "path", [*installed, *checkout])
    for _ in range(2):
        look_in_current_folder()
        assert sys.path == [*installed, str(project), *checkout]
