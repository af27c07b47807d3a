"""The recipe ``function``: optimizers reach the known minima, and their paths are recorded and drawn."""

from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from hydra.errors import InstantiationException

from framework.data import FUNCTIONS
from framework.recipes import paths
from framework.recipes.build import build
from framework.recipes.function import PathRecorder
from framework.recipes.train import run
from tests.recipes.test_recipes import configure


def minimize(folder: Path, *overrides: str) -> tuple[Any, Any, PathRecorder]:
    trainer, module, data = build(configure("function", folder, "logger=none", *overrides), folder)
    trainer.fit(module, data.train, data.val)
    return trainer, module, data.path


@pytest.mark.parametrize(
    ("function", "options", "tolerance"),
    [
        ("square", ["optimizer=adam", "lr=0.1", "trainer.max_epochs=300"], 1e-6),
        ("square", ["optimizer=sgd", "optimizer.lr=0.1", "trainer.max_epochs=100"], 1e-6),
        ("rosenbrock", ["optimizer=lbfgs"], 1e-4),
        ("rosenbrock", ["optimizer=lbfgs", "+optimizer.tolerance_change=0", "trainer.precision=64-true"], 1e-6),
        ("rosenbrock", ["optimizer=sparsa", "trainer.max_epochs=40", "trainer.precision=64-true"], 1e-6),
        ("rastrigin", ["optimizer=lbfgs", "model.start=[0.2,-0.3,0.1]"], 1e-4),
    ],
)
def test_an_optimizer_comes_to_the_known_minimum(
    function: str, options: list[str], tolerance: float, tmp_path: Path
) -> None:
    _, module, path = minimize(tmp_path, "trainer.max_epochs=10", f"model.function={function}", *options)
    point = module.network.point.detach()
    assert path.points[-1] == point.tolist()
    assert (point - FUNCTIONS[function].minimizer).abs().max() < tolerance


def test_gradient_descent_on_the_squared_sum_goes_straight_to_the_nearest_minimum(tmp_path: Path) -> None:
    _, _, path = minimize(
        tmp_path, "model.function=squared_sum", "optimizer=sgd", "optimizer.lr=0.05", "trainer.max_epochs=100"
    )
    # The start (1, 2, 3, 4, 5) less its mean, in every coordinate.
    assert path.points[-1] == pytest.approx([-2, -1, 0, 1, 2], abs=1e-5)


def test_all_coordinates_may_start_at_one_number(tmp_path: Path) -> None:
    _, module, path = minimize(tmp_path, "model.dimensions=4", "optimizer=sgd", "trainer.max_epochs=3")
    assert path.points[0] == [2.0] * 4
    # Each step of the sum of squares takes the share 2 lr off every coordinate.
    torch.testing.assert_close(module.network.point.detach(), torch.full((4,), 2 * (1 - 2 * 0.01) ** 3))


def test_the_path_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    _, _, path = minimize(tmp_path, "model.function=rosenbrock", "optimizer=adam", "lr=0.05", "trainer.max_epochs=20")
    point = torch.tensor([-1.2, 1.0], requires_grad=True)
    optimizer = torch.optim.Adam([point], lr=0.05, fused=True)
    expected = [point.tolist()]
    for _ in range(20):
        optimizer.zero_grad()
        (100 * (point[1] - point[0] ** 2) ** 2 + (1 - point[0]) ** 2).backward()
        optimizer.step()
        expected.append(point.tolist())
    assert torch.tensor(path.points).allclose(torch.tensor(expected), atol=1e-5)
    assert path.evaluations == []


def test_every_evaluation_of_an_optimizer_with_many_is_recorded(tmp_path: Path) -> None:
    trainer, _, path = minimize(tmp_path, "model.function=rosenbrock", "optimizer=lbfgs", "trainer.max_epochs=3")
    assert len(path.points) == 4
    assert len(path.evaluations) == trainer.closure_evaluations > 20
    assert path.evaluations[0] == path.points[0]


def test_a_continued_run_has_the_whole_path(tmp_path: Path) -> None:
    options = ("model.function=rosenbrock", "optimizer=sparsa")
    _, _, whole = minimize(tmp_path / "whole", *options, "trainer.max_epochs=6")
    minimize(tmp_path / "first", *options, "trainer.max_epochs=4")
    config = configure("function", tmp_path / "second", "logger=none", *options, "trainer.max_epochs=6")
    trainer, module, data = build(config, tmp_path / "second")
    trainer.fit(module, data.train, data.val, ckpt_path=tmp_path / "first/checkpoints/last.ckpt")
    assert data.path.points == whole.points
    assert data.path.evaluations == whole.evaluations


@pytest.mark.draws
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_run_leaves_a_picture_of_its_path(function: str, tmp_path: Path) -> None:
    run(
        configure("function", tmp_path, f"model.function={function}", "optimizer=lbfgs", "trainer.max_epochs=2"),
        tmp_path,
    )
    picture = matplotlib.image.imread(tmp_path / "plots" / "path.png")
    assert picture.shape[0] > 400
    assert picture.std() > 0.05  # not blank


def test_a_path_that_diverged_or_never_moved_is_drawn_all_the_same() -> None:
    points = torch.tensor([[-1.2, 1.0], [-1.2, 1.0], [float("nan"), float("inf")]], dtype=torch.float64)
    figure = paths.path(FUNCTIONS["rosenbrock"], points, points[:0], "Title")
    assert figure.axes[0].get_title() == "Title: 24.2 to 24.2"
    at_the_minimum = torch.zeros(2, 1, dtype=torch.float64)
    assert paths.path(FUNCTIONS["square"], at_the_minimum, at_the_minimum, "Title").axes[0].get_xlim() == (-1, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.function=rosenbrok"], "choose one of square, squared_sum, rosenbrock, rastrigin"),
        (["model.function=rosenbrock", "model.start=[1.0]"], "pass 2 or more finite numbers"),
        (["model.dimensions=0"], "pass 1 or more dimensions"),
        (["model.dimensions=3", "model.start=[1,2]"], r"model\.dimensions=3, and the start is \[1, 2\]: pass"),
        (["model.dimensions=3", "model.function=squared_sum"], "as model.start one number for all of them"),
        (["model.start=nan"], "pass 1 or more finite numbers"),
        (["model.start=[nan]"], "pass 1 or more finite numbers"),
        (["data=xor"], "goes with recipe=function alone"),
    ],
)
def test_a_wrong_function_or_start_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InstantiationException, match=message):
        build(configure("function", tmp_path, *overrides), tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="goes with model=function alone"):
        minimize(tmp_path, "model=linear")
