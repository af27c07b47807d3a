"""The batched Levenberg-Marquardt finish: its model against numbers by autograd, its ends by their gradients."""

import pytest
import torch
from torch import Tensor

from framework.data import network_recovery
from framework.penalties import L1, GroupL1, Harder
from framework.stacks import AdamStage, SparseNetworks, levenberg_marquardt, objectives, prox_adam
from framework.stacks.levenberg_marquardt import _quadratic_model
from framework.stacks.networks import losses_and_gradients, simplified, slopes, weights_of, with_ones
from tests.stacks.test_stack_networks import LAM_B, PENALTIES, make


def gradient_of(networks: SparseNetworks, X: Tensor, Y: Tensor) -> SparseNetworks:
    """The gradient of each loss, as a stack."""
    gradient, X_NQ = networks.with_parameters(torch.empty_like(networks.parameters)), with_ones(X)
    losses_and_gradients(networks, X_NQ, X_NQ.T.contiguous(), Y, gradient)
    return gradient


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_model_has_the_gradient_and_the_gauss_newton_curvature(activation, penalty):
    networks, X, Y = make(activation)
    X_QN = with_ones(X).T
    networks = simplified(networks, X_QN)
    model = _quadratic_model(networks, X_QN, Y, weights_of(LAM_B, networks), penalty)
    for row, lam in enumerate(LAM_B.tolist()):

        def predict(theta: Tensor) -> Tensor:
            return networks.with_parameters(theta[None]).predict(X)[0]

        def objective(theta: Tensor, y: Tensor = Y[row], lam: float = lam) -> Tensor:
            weight = networks.with_parameters(theta[None]).weight
            return torch.linalg.vector_norm(predict(theta) - y) + penalty.value(weight, lam)

        theta, size = networks.parameters[row], networks.parameters.shape[1]
        J = torch.autograd.functional.jacobian(predict, theta)
        r = predict(theta) - Y[row]
        h = r @ J / r.norm()
        curvature = (J.T @ J - h[:, None] * h) / r.norm()
        slope = torch.autograd.functional.jacobian(objective, theta)
        free = model.is_free[row]
        index = torch.cat([model.entries[row], torch.arange(size - networks.hidden - 1, size)])[free]
        torch.testing.assert_close(model.gradient[row][free], slope[index], rtol=0, atol=1e-7)
        expected = curvature[index[:, None], index]
        torch.testing.assert_close(model.hessian[row][free][:, free], expected, rtol=1e-7, atol=1e-6)
        # Free are all weights that are not zero, and nothing of an idle unit but its part of the norm.
        is_free = torch.zeros(size, dtype=torch.bool).scatter(0, index, True)
        assert torch.equal(networks.with_parameters(is_free[None]).weight[0], networks.weight[row] != 0)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_where_the_minimum_is_smooth_the_gap_vanishes(penalty):
    _, X, Y = make("Sigma")
    generator = torch.Generator().manual_seed(1)
    networks = SparseNetworks.random(5, 7, 1, "Sigma", generator=generator, dtype=torch.float64)
    networks.first.mul_(0.3)  # above -0.5, where Sigma is the identity
    Y = networks.predict(X) + 0.02 * Y
    done = levenberg_marquardt(networks, X, Y, 0.02, penalty, tolerance=1e-13)
    assert done.converged.all()
    torch.testing.assert_close(done.objectives, objectives(done.networks, X, Y, 0.02, penalty))
    assert (done.objectives < objectives(networks, X, Y, 0.02, penalty)).all()
    is_zero = done.networks.weight == 0
    assert (is_zero | (networks.weight != 0)).all()
    # What is zero stays so, whatever its gradient.
    gradient = gradient_of(done.networks, X, Y)
    slope = gradient.weight + 0.02 * slopes(penalty, done.networks.weight.abs()) * done.networks.weight.sign()
    assert slope[~is_zero].abs().max() < 1e-6
    assert torch.cat([gradient.output, gradient.intercept[:, None]], 1).abs().max() < 1e-6


def test_fits_of_a_batch_end_where_they_end_alone_and_leave_when_they_are_done():
    networks, X, Y = make("ReLU")
    together = levenberg_marquardt(networks, X, Y, LAM_B)
    alone = [levenberg_marquardt(networks[i : i + 1], X, Y[i : i + 1], LAM_B[i : i + 1]) for i in range(5)]
    assert together.num_iterations.tolist() == [each.num_iterations.item() for each in alone]
    assert together.num_iterations.unique().numel() > 1
    torch.testing.assert_close(together.objectives, torch.cat([each.objectives for each in alone]))
    parameters = torch.cat([each.networks.parameters for each in alone])
    torch.testing.assert_close(together.networks.parameters, parameters, rtol=0, atol=1e-6)


def test_too_few_steps_are_told():
    networks, X, Y = make("ReLU")
    done = levenberg_marquardt(networks, X, Y, 1.0, max_iterations=2)
    assert not done.converged.any()
    assert done.num_iterations.tolist() == [2] * 5


@pytest.mark.parametrize("activation", ["ReLU", "Sigma"])
def test_a_unit_that_is_off_at_every_sample_loses_its_features(activation):
    networks, X, Y = make(activation)
    networks.first[0, 0, -1] = -1000.0
    done = levenberg_marquardt(networks, X, Y, 0.1)
    assert (networks.weight[0, 0] != 0).any()
    assert (done.networks.weight[0, 0] == 0).all()


def test_a_weight_that_would_change_its_sign_becomes_zero_and_stays_so():
    networks, X, Y = make("Sigma")
    done = levenberg_marquardt(networks, X, Y, 5.0, L1())
    before, after = networks.weight, done.networks.weight
    assert ((before != 0) & (after == 0)).any()
    assert (before * after >= 0).all()


def test_a_path_and_a_finish_recover_the_pairs_that_matter():
    simulation = network_recovery([4], num_samples=150, num_features=8, num_replicates=3, seed=1)
    X, lam = simulation.X, 3.0
    starts = SparseNetworks.random(3, 8, 6, generator=torch.Generator().manual_seed(0))
    shares = (0.02, 0.05, 0.12, 0.27, 0.5, 0.73, 0.88, 0.95)
    stages = [AdamStage(0, 80, 0.1), *(AdamStage(share, 80, 0.1) for share in shares), AdamStage(1, 200, 0.1, 1e-3)]
    Y = simulation.targets(4)
    reached = prox_adam(starts, X.float(), Y.float(), lam, stages=stages)
    done = levenberg_marquardt(reached, X, Y, lam)
    assert torch.equal(done.networks.selected(), simulation.support(4))
    before = objectives(reached.with_parameters(reached.parameters.double()), X, Y, lam, Harder())
    assert (done.objectives <= before).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": GroupL1()}, "use L1 or Harder"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be positive"),
        ({"max_iterations": 0}, "max_iterations=0 must be positive"),
        ({"X": torch.zeros(30, 7)}, "X and Y are torch.float32 and torch.float64; pass float64"),
        ({"Y": torch.zeros(4, 30, dtype=torch.float64)}, "one response for each network"),
        ({"happy_lambda": float("nan")}, "pass a finite number >= 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    networks, X, Y = make("ReLU")
    with pytest.raises(ValueError, match=message):
        levenberg_marquardt(**({"networks": networks, "X": X, "Y": Y, "happy_lambda": 1.0} | options))
