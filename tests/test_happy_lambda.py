"""The universal threshold against loops, known distributions and autograd: the largest gradient at the null model."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework import happy_lambda as module
from framework.happy_lambda import (
    HappyLambda,
    HappyLambdaBinary,
    HappyLambdaClassifier,
    HappyLambdaLinear,
    HappyLambdaMLP,
)
from framework.layers import NormalizedLinear, Sigma, sigma
from framework.losses import L2Loss
from framework.optim import square_root_lasso
from framework.penalties import L1, GroupL1


def design(num_samples: int, num_features: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_samples, num_features, generator=generator, dtype=torch.float64)


def statistic(X: Tensor, y: Tensor) -> Tensor:
    """Compute ||X^T y||_inf / ||y||_2 for y centered."""
    y = y - y.mean(0)
    return (X.T @ y).abs().max() / y.norm()


def test_the_threshold_is_the_quantile_of_a_loop_over_draws() -> None:
    X = design(60, 200)
    loop = torch.stack([statistic(X, torch.randn(60, dtype=torch.float64)) for _ in range(4000)])
    for quantile in (0.5, 0.95):
        threshold = HappyLambdaLinear(X, 4000, quantile=quantile).run()
        assert threshold == pytest.approx(loop.quantile(quantile).item(), rel=0.01)


def test_on_an_orthogonal_design_it_is_the_quantile_of_a_maximum_of_normals() -> None:
    num_samples, num_features = 2000, 300
    X = design(num_samples, num_features)
    Q = torch.linalg.qr(X - X.mean(0)).Q * math.sqrt(num_samples)
    quantile = torch.special.ndtri(torch.tensor((1 + 0.95 ** (1 / num_features)) / 2)).item()
    assert HappyLambdaLinear(Q, 4000).run() == pytest.approx(quantile, rel=0.01)
    assert 1.0 < quantile / math.sqrt(2 * math.log(num_features)) < 1.2


def test_it_grows_with_features_and_scales_with_the_data() -> None:
    X = design(80, 400)
    by_width = [HappyLambdaLinear(X[:, :p], 500).run() for p in (10, 50, 400)]
    assert by_width == sorted(by_width)
    assert HappyLambdaLinear(8 * X, 500).run() == pytest.approx(8 * by_width[-1], rel=1e-12)


def test_noise_level_and_mean_cancel() -> None:
    X = design(40, 30)
    expected = HappyLambdaLinear(X, 100).run()
    assert HappyLambdaLinear(X, 100, 1e6, 1e9).run() == expected
    assert HappyLambdaLinear(X, 100, std=1e-6, mean=-3.0).run() == expected


def test_at_the_threshold_the_null_model_is_stationary_for_95_responses_in_100() -> None:
    X = design(70, 250)
    threshold = HappyLambdaLinear(X, 2000).run()
    w = torch.zeros(250, dtype=torch.float64, requires_grad=True)
    stationary = 0
    for _ in range(1000):
        y = 5 + 3 * torch.randn(70, dtype=torch.float64)
        (grad,) = torch.autograd.grad(L2Loss()(X @ w + y.mean(), y), w)
        stationary += int(L1().subgradient_gap(w.detach(), grad, threshold) == 0)
    assert 0.93 < stationary / 1000 < 0.97


def test_the_draws_are_a_private_stream_set_by_the_global_seed() -> None:
    X = design(30, 20)
    state = torch.get_rng_state()
    first = HappyLambdaLinear(X, 50).run()
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(10)
    assert HappyLambdaLinear(X, 50).run() == first
    torch.manual_seed(1)
    assert HappyLambdaLinear(X, 50).run() != first


def test_a_generator_gives_a_reproducible_stream_that_moves_on() -> None:
    X = design(30, 20)
    one, other = (HappyLambdaLinear(X, 50, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    first = one.run()
    assert other.run() == first
    assert one.run() != first


@pytest.mark.parametrize("generator", [None, 0], ids=["global seed", "generator"])
def test_data_simulated_from_the_same_seed_do_not_contain_the_draws(generator: int | None) -> None:
    num_samples, num_features = 64, 100
    torch.manual_seed(0)
    by_column = torch.randn(num_features, num_samples).T
    same = None if generator is None else torch.Generator().manual_seed(generator)
    threshold = HappyLambdaLinear(by_column, 100, generator=same).run()
    # A draw equal to a column would give about sqrt(64) = 8.
    assert threshold < 5


def test_chunks_bound_the_memory_and_leave_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    X = design(50, 80)
    whole = HappyLambdaLinear(X, 3000).run()
    monkeypatch.setattr(module, "CHUNK_BYTES", 8 * (50 + 80) * 7)
    shapes: list[int] = []
    original = HappyLambdaLinear._dual_norm

    def record(self: HappyLambdaLinear, C_DKP: Tensor) -> Tensor:
        shapes.append(len(C_DKP))
        return original(self, C_DKP)

    monkeypatch.setattr(HappyLambdaLinear, "_dual_norm", record)
    assert HappyLambdaLinear(X, 3000).run() == pytest.approx(whole, rel=0.02)
    assert max(shapes) == 7
    assert sum(shapes) == 3000


def test_one_sample_gives_the_largest_entry() -> None:
    """The seed's listings have one row: centring would leave 0 / 0."""
    x = torch.randn(1, 20)
    assert HappyLambdaLinear(x, distribution_count=1000).run() == pytest.approx(x.abs().max().item())
    assert HappyLambdaMLP(x, 1_000, [5, 10]).run() == pytest.approx(x.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_every_real_type_of_data_is_taken(dtype: torch.dtype) -> None:
    X = (10 * design(30, 5)).to(dtype)
    assert HappyLambdaLinear(X, 200).run() == pytest.approx(HappyLambdaLinear(X.double(), 200).run(), rel=0.1)


@pytest.mark.parametrize(
    ("activation", "slope"),
    [(sigma, 1.0), (Sigma(), 1.0), (torch.relu, 1.0), (torch.tanh, 1.0), (torch.sigmoid, 0.25), (nn.GELU(), 1.128904)],
)
def test_the_network_factor_is_depth_and_hidden_widths(activation: nn.Module, slope: float) -> None:
    X = design(30, 20)
    linear = HappyLambdaLinear(X, 50).run()
    expected = {(7, 1): slope, (7, 1000): slope, (50, 9, 1): 3 * slope**2, (50, 9, 4, 1): 6 * slope**3, (1,): 1.0}
    for neuron_count, factor in expected.items():
        threshold = HappyLambdaMLP(X, 50, neuron_count, activation).run()
        assert threshold == pytest.approx(linear * factor, rel=1e-5)


def null_gradient(
    X: Tensor,
    y: Tensor,
    weights: list[Tensor],
    activation: nn.Module,
    bias: float | None,
    loss: nn.Module | None = None,
    null: Tensor | float = 0.0,
) -> Tensor:
    """Computes dL/dW_1 at W_1 = 0 of a network.

    Args:
        X: The inputs.
        y: The targets.
        weights: Of the layers after the first.
        activation: Between the layers.
        bias: Of the layers before the last, where the activation is steepest; None for a network without any bias.
        loss: By default the unsquared norm.
        null: The outputs of the null model: its last bias fits them.
    """
    has_bias = bias is not None
    layers: list[nn.Module] = [nn.Linear(X.shape[1], weights[0].shape[1], bias=has_bias, dtype=X.dtype)]
    for weight in weights:
        layer = NormalizedLinear(weight.shape[1], weight.shape[0], bias=has_bias, dtype=X.dtype)
        layer.weight.data = weight.clone()
        layers += [activation, layer]
    first, last = layers[0], layers[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.data.zero_()
    for layer_ in layers[:-1]:
        if has_bias and isinstance(layer_, nn.Linear):
            layer_.bias.data.fill_(bias)
    network = nn.Sequential(*layers)
    if has_bias:
        last.bias.data += (null - network(X)).mean(0).detach()
    (loss or L2Loss())(network(X), y).backward()
    assert first.weight.grad is not None
    return first.weight.grad


@pytest.mark.parametrize("activation", [Sigma(), nn.ReLU()])
@pytest.mark.parametrize("widths", [[6], [6, 9], [6, 5, 4]])
def test_the_factor_is_the_largest_gradient_over_networks_with_unit_rows(
    widths: list[int], activation: nn.Module
) -> None:
    X, y = design(40, 12), 3 + design(40, 1, seed=2)
    bound = HappyLambdaMLP(X, 1, [*widths, 1], activation)._factor() * statistic(X, y)
    neuron_count = [*widths, 1]
    shapes = list(zip(neuron_count[1:], neuron_count[:-1], strict=True))

    # It is attained: W_2 reads only one first-layer neuron, every later row is uniform.
    aligned = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    aligned[0][:, 1:] = 0
    gradient = null_gradient(X, y, aligned, activation, bias=0.3, null=y)
    torch.testing.assert_close(gradient.abs().max(), bound, rtol=1e-10, atol=0)
    # The columns' norm has the same maximum: one threshold for L1 and the column group lasso, no sqrt(group size).
    zero = torch.zeros_like(gradient)
    assert GroupL1("columns").subgradient_gap(zero, gradient, bound.item() * (1 + 1e-9)) == 0
    assert GroupL1("columns").subgradient_gap(zero, gradient, bound.item() * 0.99) > 0

    # It is never exceeded, by an entry or by a column's norm.
    for _ in range(50):
        random = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
        gradient = null_gradient(X, y, random, activation, bias=0.3, null=y)
        assert gradient.norm(dim=0).max() <= bound * (1 + 1e-10)


def test_several_responses_add_up_when_their_rows_align() -> None:
    X, Y = design(40, 12), design(40, 3, seed=2)
    R = Y - Y.mean(0)
    correlations = X.T @ R / R.norm()
    feature = correlations.abs().sum(1).argmax()
    W_2 = torch.zeros(3, 6, dtype=torch.float64)
    W_2[:, 0] = correlations[feature].sign()
    gradient = null_gradient(X, Y, [W_2], Sigma(), bias=0.0, null=Y)
    torch.testing.assert_close(gradient.abs().max(), correlations.abs().sum(1).max())

    draws = torch.randn(3000, 40, 3, dtype=torch.float64)
    draws -= draws.mean(1, keepdim=True)
    C_DPK = X.T @ draws / draws.flatten(1).norm(dim=1)[:, None, None]
    mlp, linear = C_DPK.abs().sum(2).amax(1), C_DPK.abs().flatten(1).amax(1)
    assert HappyLambdaMLP(X, 3000, [6, 3], num_responses=3).run() == pytest.approx(mlp.quantile(0.95).item(), rel=0.02)
    assert HappyLambdaLinear(X, 3000, num_responses=3).run() == pytest.approx(linear.quantile(0.95).item(), rel=0.02)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_at_the_threshold_the_null_classifier_is_stationary_for_95_responses_in_100(reduction: str) -> None:
    X, frequencies = design(100, 40), torch.tensor([0.5, 0.3, 0.2])
    targets = torch.arange(3).repeat_interleave((100 * frequencies).round().long())
    threshold = HappyLambdaClassifier(X, targets, 2000, reduction=reduction).run()  # type: ignore[arg-type]
    W = torch.zeros(3, 40, dtype=torch.float64, requires_grad=True)
    stationary = 0
    for _ in range(1000):
        y = torch.multinomial(frequencies, 100, replacement=True)
        intercept = (y.bincount(minlength=3) / 100).double().log()
        (grad,) = torch.autograd.grad(cross_entropy(X @ W.T + intercept, y, reduction=reduction), W)
        stationary += int(L1().subgradient_gap(W.detach(), grad, threshold) == 0)
    assert 0.93 < stationary / 1000 < 0.97


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("widths", [[], [6], [6, 5, 4]])
@pytest.mark.parametrize("softmax", [True, False])
def test_for_classes_it_is_the_largest_gradient_over_networks_with_unit_rows(
    softmax: bool, widths: list[int], intercept: bool
) -> None:
    X, labels, K = design(40, 12) + 1, torch.arange(40) % 7 % 3, 3
    Y = nn.functional.one_hot(labels, K).double()
    threshold: HappyLambda
    options = {"intercept": intercept, "neuron_count": [*widths, K]}
    if softmax:
        loss: nn.Module = nn.CrossEntropyLoss()
        threshold, y, null = HappyLambdaClassifier(X, labels, 1, **options), labels, Y.mean(0).log()  # type: ignore
    else:
        loss = nn.BCEWithLogitsLoss()
        threshold, y, null = HappyLambdaBinary(X, Y, 1, **options), Y, Y.mean(0).logit()  # type: ignore
    R = Y - (Y.mean(0) if intercept else 1 / K if softmax else 0.5)
    C = X.T @ R
    bound = threshold._factor() * threshold._dual_norm(C.T[None])
    bias = 0.3 if intercept else None
    if not widths:
        W = torch.zeros(K, 12, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(X @ W.T + null * intercept, y), W)
        torch.testing.assert_close(gradient.abs().max(), bound[0], rtol=1e-12, atol=0)
        threshold.groups = GroupL1()
        bound = threshold._factor() * threshold._dual_norm(C.T[None])
        torch.testing.assert_close(gradient.norm(dim=0).max(), bound[0], rtol=1e-12, atol=0)
        return

    shapes = list(itertools.pairwise([*widths, K]))
    aligned = [torch.ones(narrow, wide, dtype=torch.float64) for wide, narrow in shapes]
    aligned[0][:, 1:] = 0
    aligned[-1] *= C[C.abs().sum(1).argmax()].sign()[:, None]
    gradient = null_gradient(X, y, aligned, Sigma(), bias, loss, null)
    torch.testing.assert_close(gradient.abs().max(), bound[0], rtol=1e-12, atol=0)
    for _ in range(20):
        random = [torch.randn(narrow, wide, dtype=torch.float64) for wide, narrow in shapes]
        gradient = null_gradient(X, y, random, Sigma(), bias, loss, null)
        assert gradient.norm(dim=0).max() <= bound[0] * (1 + 1e-12)


def shifted_design(num_samples: int, num_features: int) -> Tensor:
    """Columns with means far from 0, which an intercept would absorb."""
    return design(num_samples, num_features) + 1


@pytest.mark.parametrize("intercept", [True, False])
def test_with_no_signal_95_linear_fits_in_100_select_nothing(intercept: bool) -> None:
    X, Y = shifted_design(40, 60), torch.randn(600, 40, dtype=torch.float64)
    threshold = HappyLambdaLinear(X, 4000, intercept=intercept).run()
    if intercept:
        X, Y = X - X.mean(0), 5 + Y
        Y = Y - Y.mean(1, keepdim=True)
    W, converged, _ = square_root_lasso(X, Y, threshold, start=torch.full((600, 60), 0.01).double())
    assert converged.all()
    assert 0.93 < (W == 0).all(1).double().mean() < 0.97


def fit_labels(
    X: Tensor, Y_RNK: Tensor, lam: float, *, softmax: bool, intercept: bool, by_feature: bool = False
) -> Tensor:
    """Minimize a mean cross-entropy plus a penalty for every replicate of labels; its W, shape (R, K, P)."""
    X_1 = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1) if intercept else X
    # The mean of logistic losses is also over the K outputs; each has half the curvature of a softmax.
    terms = len(X) * (1 if softmax else 2 * Y_RNK.shape[2])
    step = 2 * terms / torch.linalg.matrix_norm(X_1, 2).square()
    W = torch.full((len(Y_RNK), Y_RNK.shape[2], X_1.shape[1]), 0.01, dtype=X.dtype)
    W_old = W
    weights = torch.full((X_1.shape[1],), lam, dtype=X.dtype)
    weights[X.shape[1] :] = 0
    for k in range(250):
        V = W + k / (k + 3) * (W - W_old)
        outputs = V @ X_1.T
        residuals = (outputs.softmax(1) if softmax else outputs.sigmoid()) - Y_RNK.mT
        U = V - step * residuals @ X_1 / (len(X) * (1 if softmax else Y_RNK.shape[2]))
        size = torch.linalg.vector_norm(U, dim=1, keepdim=True) if by_feature else U.abs()
        W_old, W = W, torch.where(size > step * weights, U * (1 - step * weights / size), 0.0)
    return W[:, :, : X.shape[1]]


def null_labels(softmax: bool, intercept: bool, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return targets of a null model's frequencies, and labels drawn from it, shape (*shape, 3)."""
    frequencies = torch.tensor([0.5, 0.3, 0.2]) if intercept else torch.full((3,), 1 / 3 if softmax else 1 / 2)
    targets = torch.arange(3).repeat_interleave(torch.tensor([25, 15, 10]))
    if softmax:
        labels = torch.multinomial(frequencies, math.prod(shape), replacement=True).view(shape)
        return targets, nn.functional.one_hot(labels, 3).double()
    return nn.functional.one_hot(targets, 3), torch.bernoulli(frequencies.expand(*shape, 3)).double()


@pytest.mark.slow
@pytest.mark.parametrize("by_feature", [False, True], ids=["l1", "groups"])
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "none"])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "logistic"])
def test_with_no_signal_95_classifiers_in_100_select_nothing(softmax: bool, intercept: bool, by_feature: bool) -> None:
    X = shifted_design(50, 20)
    targets, Y_RNK = null_labels(softmax, intercept, (1000, 50))
    threshold = (HappyLambdaClassifier if softmax else HappyLambdaBinary)(
        X, targets, 4000, intercept=intercept, groups=GroupL1() if by_feature else None
    ).run()
    W = fit_labels(X, Y_RNK, threshold, softmax=softmax, intercept=intercept, by_feature=by_feature)
    assert 0.93 < (W == 0).flatten(1).all(1).double().mean() < 0.97


@pytest.mark.parametrize("intercept", [True, False])
def test_with_no_signal_95_fits_of_several_responses_in_100_select_no_group(intercept: bool) -> None:
    """The objective is convex: a fit selects nothing if and only if zero is stationary."""
    X, Y = shifted_design(40, 30), torch.randn(1000, 40, 3, dtype=torch.float64)
    threshold = HappyLambdaLinear(X, 4000, num_responses=3, intercept=intercept, groups=GroupL1()).run()
    if intercept:
        Y = Y + 5
        Y = Y - Y.mean(1, keepdim=True)
    gaps = [
        GroupL1("columns").subgradient_gap(torch.zeros_like(gradient), gradient, threshold)
        for gradient in -(Y.mT @ X) / Y.flatten(1).norm(dim=1)[:, None, None]
    ]
    assert 0.93 < (torch.stack(gaps) == 0).double().mean() < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "none"])
@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "logistic"])
def test_with_no_signal_95_networks_in_100_select_nothing(softmax: bool, intercept: bool) -> None:
    """200 networks are trained at once, by proximal gradient steps from small weights and an aligned last layer."""
    X = shifted_design(50, 20)
    targets, Y_RNK = null_labels(softmax, intercept, (200, 50))
    threshold = (HappyLambdaClassifier if softmax else HappyLambdaBinary)(
        X, targets, 4000, intercept=intercept, neuron_count=[4, 3]
    ).run()
    null = Y_RNK.mean(1, keepdim=True) if intercept else 1 / 3 if softmax else 1 / 2
    C_RPK = X.T @ (Y_RNK - null)
    best = C_RPK.abs().sum(2).argmax(1)
    W = 1e-3 * torch.randn(200, 4, 20, dtype=torch.float64)
    V = C_RPK[torch.arange(200), best].sign()[:, :, None] * torch.tensor([1.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    b, c = torch.zeros(200, 1, 4, dtype=torch.float64), torch.zeros(200, 1, 3, dtype=torch.float64)
    if intercept:
        c += null.clamp(0.01, 0.99).log() if softmax else null.clamp(0.01, 0.99).logit()
    parameters = [W, V, b, c] if intercept else [W, V]
    step = 0.5 * len(X) / torch.linalg.matrix_norm(X, 2).square()
    for _ in range(400):
        for parameter in parameters:
            parameter.requires_grad_(True)
        outputs = sigma(X @ W.mT + b) @ (V / V.norm(dim=2, keepdim=True)).mT + c
        if softmax:
            loss = -(outputs.log_softmax(2) * Y_RNK).sum(2).mean(1).sum()
        else:
            loss = nn.functional.binary_cross_entropy_with_logits(outputs, Y_RNK, reduction="none").mean((1, 2)).sum()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.detach_().sub_(step * gradient)
        W = L1().prox(W, step, threshold)
        parameters[0] = W
    share = (W == 0).flatten(1).all(1).double().mean()
    assert 0.91 < share < 0.99


def test_without_biases_the_null_network_is_stationary_for_95_responses_in_100() -> None:
    """W_2 looks at the neuron that makes the gradient largest; GELU has slope 1/2 at 0 and up to 1.13 elsewhere."""
    X = shifted_design(40, 30)
    for activation in (nn.Tanh(), nn.GELU()):
        threshold = HappyLambdaMLP(X, 4000, [3, 1], activation, intercept=False).run()
        first, last = nn.Linear(30, 3, bias=False).double(), NormalizedLinear(3, 1, bias=False).double()
        first.weight.data.zero_()
        last.weight.data = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
        stationary = 0
        for _ in range(1000):
            y = torch.randn(40, 1, dtype=torch.float64)
            (grad,) = torch.autograd.grad(L2Loss()(last(activation(first(X))), y), first.weight)
            stationary += int(L1().subgradient_gap(first.weight.detach(), grad, threshold) == 0)
        assert 0.93 < stationary / 1000 < 0.97


def test_without_an_intercept_a_constant_feature_can_be_selected_and_a_mean_is_signal() -> None:
    ones = torch.ones(30, 1, dtype=torch.float64)
    # 1'g / ||g|| is the root of n times a t-like ratio: about normal, its absolute value below 1.96 in 95 of 100.
    assert HappyLambdaLinear(ones, 20_000, intercept=False).run() == pytest.approx(1.96, rel=0.03)
    with pytest.raises(ValueError, match="no feature differs from 0"):
        HappyLambdaLinear(0 * ones, 10, intercept=False)
    with pytest.raises(ValueError, match=r"mean=1\.0 with intercept=False"):
        HappyLambdaLinear(ones, 10, mean=1.0, intercept=False)


def test_without_an_intercept_classes_that_are_absent_count() -> None:
    X, targets = shifted_design(50, 10), torch.arange(50) % 2
    with_third = HappyLambdaClassifier(X, targets, 500, intercept=False, num_classes=3).run()
    assert with_third == HappyLambdaClassifier(X, torch.arange(50) % 3, 500, intercept=False).run()
    assert HappyLambdaClassifier(X, targets, 500, num_classes=3).run() == HappyLambdaClassifier(X, targets, 500).run()
    with pytest.raises(ValueError, match="num_classes=1, but the largest target is 1"):
        HappyLambdaClassifier(X, targets, 10, num_classes=1)


@pytest.mark.parametrize("activation", [torch.sigmoid, nn.Softshrink()])
def test_without_biases_an_activation_that_is_not_a_line_through_zero_is_refused(activation: nn.Module) -> None:
    assert HappyLambdaMLP(design(10, 4), 10, [3, 1], activation).run() > 0
    with pytest.raises(ValueError, match="without biases no threshold is known for it"):
        HappyLambdaMLP(design(10, 4), 10, [3, 1], activation, intercept=False).run()


def test_the_two_reductions_differ_by_the_number_of_samples() -> None:
    X, targets = design(50, 10), torch.arange(50) % 3
    mean, summed = (HappyLambdaClassifier(X, targets, 20, reduction=r).run() for r in ("mean", "sum"))
    assert summed == pytest.approx(50 * mean)


def test_bad_data_are_refused() -> None:
    X = design(10, 4)
    with pytest.raises(ValueError, match=r"shape \(10,\)"):
        HappyLambdaLinear(X[:, 0], 10)
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        HappyLambdaLinear(X[:0], 10)
    X[3, 2] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinite entries, in columns \[2\]"):
        HappyLambdaLinear(X, 10)
    for constant in (torch.ones(5, 3), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="no feature varies"):
            HappyLambdaLinear(constant, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distribution_count": 0}, "distribution_count=0"),
        ({"std": -1.0}, "std=-1.0"),
        ({"std": 0.0}, "std=0.0"),
        ({"mean": math.nan}, "mean=nan"),
        ({"quantile": 1.0}, "quantile=1.0"),
        ({"num_responses": 0}, "num_responses=0"),
    ],
)
def test_bad_settings_are_refused_by_name(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HappyLambdaLinear(design(10, 4), **{"distribution_count": 10, **arguments})  # type: ignore[arg-type]


def test_bad_networks_are_refused() -> None:
    X = design(10, 4)
    for neuron_count in ([], [5, 0, 1]):
        with pytest.raises(ValueError, match="neuron_count="):
            HappyLambdaMLP(X, 10, neuron_count)
    for unbounded in (torch.exp, torch.square):
        with pytest.raises(ValueError, match="not bounded"):
            HappyLambdaMLP(X, 10, [5, 1], unbounded).run()


def test_bad_targets_are_refused() -> None:
    X = design(10, 4)
    for targets in (torch.zeros(9, dtype=torch.long), torch.zeros(10), torch.zeros(10, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match="one integer class index per sample"):
            HappyLambdaClassifier(X, targets, 10)
    for targets in (torch.zeros(10, dtype=torch.long), torch.arange(10) - 1):
        with pytest.raises(ValueError, match="at least two classes"):
            HappyLambdaClassifier(X, targets, 10)
    with pytest.raises(ValueError, match="reduction='none'"):
        HappyLambdaClassifier(X, torch.arange(10) % 2, 10, reduction="none")  # type: ignore[arg-type]
