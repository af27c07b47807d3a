"""The unsquared norm and its penalized pair: values, gradients, views, refused shapes."""

import math

import pytest
import torch

from framework.losses import L2Loss, PenalizedL2Loss


def test_the_loss_is_the_unsquared_norm_over_all_entries() -> None:
    output, target = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [4.0, 1.0]])
    assert L2Loss()(output, target).item() == 5.0


def test_loss_and_penalty_come_apart_and_the_penalty_is_weighted() -> None:
    params = [torch.tensor([1.0, -2.0]), torch.tensor([[-3.0]])]
    criterion = PenalizedL2Loss(params, 0.5)
    loss, penalty = criterion(torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert (loss.item(), penalty.item()) == (5.0, 3.0)
    assert criterion.forward(torch.zeros(2), torch.tensor([3.0, 4.0])) == (loss, penalty)
    assert list(criterion.parameters()) == []


def test_a_view_follows_in_place_updates_of_its_tensor() -> None:
    weights = torch.randn(20, 10, dtype=torch.float64, requires_grad=True)
    criterion = PenalizedL2Loss([weights[1:]], 0.3)
    optimizer = torch.optim.SGD([weights], lr=0.01)
    x, target = torch.randn(1, 20, dtype=torch.float64), torch.randn(1, 10, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        loss, penalty = criterion(x @ weights, target)
        torch.testing.assert_close(penalty, 0.3 * weights[1:].abs().sum())
        (loss + penalty).backward()
        assert weights.grad is not None
        residual = x @ weights - target
        smooth = x.T @ residual / residual.norm()
        torch.testing.assert_close(weights.grad[0], smooth[0].detach())
        torch.testing.assert_close(weights.grad[1:], (smooth + 0.3 * weights.sign())[1:].detach())
        optimizer.step()


def test_the_gradient_at_a_zero_residual_is_zero_not_nan() -> None:
    output = torch.zeros(3, requires_grad=True)
    L2Loss()(output, torch.zeros(3)).backward()
    assert output.grad is not None
    assert torch.equal(output.grad, torch.zeros(3))


@pytest.mark.parametrize("criterion", [L2Loss(), PenalizedL2Loss([torch.ones(1)], 1.0)], ids=["l2", "penalized"])
def test_shapes_that_would_broadcast_are_refused(criterion: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=r"output has shape \(4, 1\) and the target \(4,\)"):
        criterion(torch.zeros(4, 1), torch.zeros(4))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="params is empty"):
        PenalizedL2Loss([], 1.0)
    with pytest.raises(TypeError, match="pass a list of tensors"):
        PenalizedL2Loss(torch.ones(3), 1.0)
    for happy_lambda in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite and >= 0"):
            PenalizedL2Loss([torch.ones(3)], happy_lambda)
