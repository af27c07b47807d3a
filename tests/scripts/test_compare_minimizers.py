"""The comparison of minimizers counts what it evaluates and writes what it found."""

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scripts import compare_minimizers
from scripts.compare_minimizers import GRIDS, FullBatch, Run, Spent, compare, new_model, run_full_batch, run_stochastic

Data = tuple[Tensor, Tensor]


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setattr(compare_minimizers, "PIECE", 64)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=generator)
    return torch.eye(10)[labels] + torch.randn(200, 10, generator=generator), labels


@pytest.mark.parametrize("products", [False, True])
def test_the_closure_in_pieces_gives_the_loss_gradient_and_products_of_the_whole(data: Data, products: bool) -> None:
    model, run = new_model(data), Run("any", {})
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    closure = FullBatch(model, data, run, 3, products=products)
    loss = F.cross_entropy(model(data[0]), data[1])
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    assert closure().item() == pytest.approx(loss.item(), rel=1e-6)
    for param, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(param.grad, gradient.detach())
    if products:
        ones = [torch.ones_like(param) for param in model.parameters()]
        expected = torch.autograd.grad(gradients, list(model.parameters()), ones)
        torch.testing.assert_close(
            closure.hvp()(torch.ones(110)), torch.cat([part.flatten() for part in expected]), atol=1e-6, rtol=1e-4
        )
    assert closure.count == 1 + products


def test_no_evaluation_is_made_beyond_the_budget(data: Data) -> None:
    closure = FullBatch(new_model(data), data, Run("any", {}), 2, products=False)
    closure(), closure()
    with pytest.raises(Spent):
        closure()
    assert closure.count == 2


@pytest.mark.parametrize("method", GRIDS)
def test_every_method_lowers_the_loss_within_its_budget(method: str, data: Data) -> None:
    run = run_stochastic if "batch" in method else run_full_batch
    result = run(method, GRIDS[method][-1], data, 12)
    assert result.epochs[-1] <= 12
    assert result.losses[-1] < result.losses[0]


def test_the_best_of_every_grid_goes_to_the_files_and_the_table(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(data, 6, tmp_path)
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[-len(GRIDS) :]] == list(GRIDS)
    with (tmp_path / "minimize.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == set(GRIDS)
    ends = {row["method"]: float(row["loss"]) for row in rows}
    tried = [line for line in lines if " loss " in line and not line.startswith("|")]
    for method in GRIDS:
        losses = [float(line.split(" loss ")[1].split()[0]) for line in tried if line.startswith(f"{method} ")]
        assert len(losses) == len(GRIDS[method])
        assert ends[method] == pytest.approx(min(losses), abs=1e-4)
    assert (tmp_path / "minimize.png").stat().st_size > 20_000
