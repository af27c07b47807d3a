"""happy_lambda=auto: the threshold from theory on the scale of loss and penalty, or why there is none."""

import pytest
import torch
from torch import nn

from framework.auto_lambda import auto_happy_lambda
from framework.happy_lambda import HappyLambdaBinary, HappyLambdaClassifier, HappyLambdaLinear, HappyLambdaMLP
from framework.layers import NormalizedLinear, Sigma, sigma
from framework.losses import L2Loss
from framework.optim import square_root_lasso
from framework.penalties import L1, ElasticNet, GroupL1, Harder, Penalty, Weighted
from framework.pruning import split_layers
from framework.recipes.networks import CNN, MLP, Linear, SparseMLP

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(40, 6, generator=GENERATOR)
Y = torch.randn(40, 1, generator=GENERATOR)
LABELS = torch.randint(3, (40,), generator=GENERATOR)
DRAWS = 200


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def groups(network):
    if isinstance(network, SparseMLP):
        return network.param_groups()
    return [
        {"params": [p for p in network.parameters() if p.ndim > 1], "penalized": True},
        {"params": [p for p in network.parameters() if p.ndim == 1], "penalized": False},
    ]


def auto(network, loss, penalty=None, targets=Y, **options):
    options = {"groups": groups(network), "distribution_count": DRAWS, **options}
    given = options.pop("groups")
    return auto_happy_lambda(network, given, loss, penalty or L1(), X, targets, generator=generator(), **options)


def test_each_model_and_loss_gets_its_threshold():
    linear = HappyLambdaLinear(X, DRAWS, generator=generator()).run()
    assert auto(Linear((6,), 1), L2Loss()) == linear
    assert auto(Linear((2, 3), 1), L2Loss()) == linear  # images are flattened
    two = HappyLambdaLinear(X, DRAWS, generator=generator(), num_responses=2).run()
    assert auto(Linear((6,), 2), L2Loss()) == two
    deep = SparseMLP((6,), 1, hidden=(5, 4), activation="Sigma")
    assert auto(deep, L2Loss()) == HappyLambdaMLP(X, DRAWS, [5, 4, 1], sigma, generator=generator()).run()
    mean = HappyLambdaClassifier(X, LABELS, DRAWS, generator=generator(), reduction="mean").run()
    assert auto(Linear((6,), 3), nn.CrossEntropyLoss(), targets=LABELS) == mean
    total = auto(Linear((6,), 3), nn.CrossEntropyLoss(reduction="sum"), targets=LABELS)
    assert total == pytest.approx(len(X) * mean, rel=1e-12)


def test_without_an_intercept_the_noise_keeps_its_mean():
    options = {"generator": generator(), "intercept": False}
    assert auto(Linear((6,), 1, bias=False), L2Loss()) == HappyLambdaLinear(X, DRAWS, **options).run()
    options["generator"] = generator()
    expected = HappyLambdaClassifier(X, LABELS, DRAWS, num_classes=4, **options).run()
    assert auto(Linear((6,), 4, bias=False), nn.CrossEntropyLoss(), targets=LABELS) == expected
    options["generator"] = generator()
    network = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), NormalizedLinear(5, 1, bias=False))
    expected = HappyLambdaMLP(X, DRAWS, [5, 1], nn.ReLU(), **options).run()
    assert auto(network, L2Loss(), groups=first_only(network)) == expected


@pytest.mark.parametrize("bias", [True, False])
def test_with_no_signal_95_fits_in_100_select_nothing(bias):
    """The fits are lassos in float64; with an intercept, the columns of X and the responses are centered."""
    generator = torch.Generator().manual_seed(1)
    design = (1 + torch.randn(40, 60, generator=generator)).double()
    responses = torch.randn(600, 40, generator=generator).double()
    network = Linear((60,), 1, bias=bias).double()
    threshold = auto_happy_lambda(
        network, groups(network), L2Loss(), L1(), design, responses[:1].T, distribution_count=4000, generator=generator
    )
    if bias:
        design, responses = design - design.mean(0), responses - responses.mean(1, keepdim=True)
    start = torch.full((600, 60), 0.01).double()
    W = square_root_lasso(design, responses, threshold, start=start).weights
    assert 0.93 < (W == 0).all(1).double().mean() < 0.97


@pytest.mark.parametrize("bias", [True, False])
def test_networks_have_a_threshold_for_classes_and_for_binary_labels(bias: bool) -> None:
    options = {"intercept": bias, "neuron_count": [5, 4, 3], "activation_fn": nn.ReLU()}
    layers = [nn.Linear(6, 5, bias=bias), NormalizedLinear(5, 4, bias=bias), NormalizedLinear(4, 3, bias=bias)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    given = {"targets": LABELS, "groups": first_only(network)}
    expected = HappyLambdaClassifier(X, LABELS, DRAWS, generator=generator(), **options).run()
    assert auto(network, nn.CrossEntropyLoss(), **given) == expected
    assert auto(network, nn.CrossEntropyLoss(), Harder(1.0), **given) == pytest.approx(2 * expected, rel=1e-12)
    binary = nn.functional.one_hot(LABELS, 3).float()
    given["targets"] = binary
    expected = HappyLambdaBinary(X, binary, DRAWS, generator=generator(), **options).run()
    assert auto(network, nn.BCEWithLogitsLoss(), **given) == expected
    total = auto(network, nn.BCEWithLogitsLoss(reduction="sum"), **given)
    assert total == pytest.approx(3 * len(X) * expected, rel=1e-12)


def test_groups_over_several_outputs_have_a_threshold_of_their_own_in_a_linear_model_only() -> None:
    options = {"generator": generator(), "num_responses": 2, "groups": GroupL1()}
    linear = Linear((6,), 2)
    assert auto(linear, L2Loss(), GroupL1("columns")) == HappyLambdaLinear(X, DRAWS, **options).run()
    assert auto(linear, L2Loss(), GroupL1("columns")) > auto(linear, L2Loss())
    binary = nn.functional.one_hot(LABELS, 3).float()
    for loss, targets in ((nn.CrossEntropyLoss(), LABELS), (nn.BCEWithLogitsLoss(), binary)):
        groups_of_three = auto(Linear((6,), 3), loss, GroupL1("columns"), targets=targets)
        assert groups_of_three > auto(Linear((6,), 3), loss, targets=targets)
        deep = SparseMLP((6,), 3, hidden=(5, 4))
        assert auto(deep, loss, GroupL1("columns"), targets=targets) == auto(deep, loss, targets=targets)


WEIGHTS = (0.2, 1.0, 3.0, 0.5, 1.0, 2.0)
LISTED = [
    GroupL1([[0, 1, 2], [3, 5]]),
    GroupL1([[0, 1, 2], [3, 5]], sqrt_size=True),
    Weighted(L1(), WEIGHTS),
    Weighted(GroupL1(), WEIGHTS),
    Weighted(GroupL1([[0, 1, 2], [3, 5]], sqrt_size=True), WEIGHTS),
]


@pytest.mark.parametrize("penalty", LISTED, ids=str)
def test_with_no_signal_95_fits_in_100_select_no_listed_group_and_no_weighted_feature(penalty: Penalty) -> None:
    """The objective is convex: a fit selects nothing if and only if zero is stationary."""
    linear = Linear((6,), 3)
    targets = torch.zeros(len(X), 3)
    weight = auto(linear, L2Loss(), penalty, targets=targets, distribution_count=4000)
    Y = torch.randn(2000, len(X), 3, generator=generator())
    Y = Y - Y.mean(1, keepdim=True)
    gradients = -(Y.mT @ X) / Y.flatten(1).norm(dim=1)[:, None, None]
    gaps = [penalty.subgradient_gap(torch.zeros(3, 6), gradient, weight) for gradient in gradients]
    assert 0.93 < (torch.stack(gaps) == 0).double().mean() < 0.97


@pytest.mark.parametrize("penalty", LISTED, ids=str)
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)], ids=str)
def test_listed_groups_and_weights_under_logistic_outputs(penalty: Penalty, hidden: tuple[int, ...]) -> None:
    """Of one draw of labels, with the gradient of a network that makes it as large as any can."""
    network = SparseMLP((6,), 1, hidden=hidden) if hidden else Linear((6,), 1)
    labels = (LABELS > 0).float()[:, None]
    weight = auto(network, nn.BCEWithLogitsLoss(), penalty, targets=labels, distribution_count=1)
    drawn = HappyLambdaBinary(X, labels, 1, generator=generator())
    drawn_labels = drawn._labels(1, drawn._private_generator())[0].mT
    linears, _, _ = split_layers(network)
    with torch.no_grad():
        for linear in linears[1:]:  # all paths through the network add up
            linear.weight.fill_(1.0)
        if hidden:
            linears[1].weight[:, 1:] = 0.0
        for linear in linears:
            linear.bias.fill_(0.3)
        linears[0].weight.zero_()
        linears[-1].bias += drawn_labels.mean().logit() - network(X)[0]
    loss = nn.functional.binary_cross_entropy_with_logits(network(X), drawn_labels)
    (gradient,) = torch.autograd.grad(loss, linears[0].weight)
    zero = torch.zeros_like(gradient)
    assert penalty.subgradient_gap(zero, gradient, 1.0001 * weight) == 0
    assert penalty.subgradient_gap(zero, gradient, 0.9999 * weight) > 0


def test_listed_groups_in_a_network_of_several_outputs_and_weights_of_zero_are_refused() -> None:
    network = SparseMLP((6,), 3)
    with pytest.raises(ValueError, match=r"no threshold is known for GroupL1.* in a network of 3 outputs"):
        auto(network, nn.CrossEntropyLoss(), LISTED[0], targets=LABELS)
    with pytest.raises(ValueError, match="Weighted has 6 weights for 6 features, 1 of them 0"):
        auto(Linear((6,), 1), L2Loss(), Weighted(L1(), (0.0, *WEIGHTS[1:])))
    with pytest.raises(ValueError, match="Weighted has 2 weights for 6 features"):
        auto(Linear((6,), 1), L2Loss(), Weighted(L1(), (1.0, 1.0)))
    with pytest.raises(ValueError, match="names inputs beyond the 6"):
        auto(Linear((6,), 1), L2Loss(), GroupL1([[0, 6]]))
    with pytest.raises(ValueError, match="no threshold is known for GroupL1"):
        HappyLambdaLinear(X, 1, groups=GroupL1("rows"))


def test_an_intercept_that_is_frozen_or_penalized_is_refused():
    frozen, penalized, ungrouped = (Linear((6,), 1) for _ in range(3))
    frozen[1].bias.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the bias of the last layer is frozen .*Train it, or build the layer with"):
        auto(frozen, L2Loss())
    with pytest.raises(ValueError, match="the bias of the last layer is frozen"):
        auto(ungrouped, L2Loss(), groups=[{"params": ungrouped[1].weight, "penalized": True}])
    with pytest.raises(ValueError, match="and nothing else; here 2 parameters are penalized"):
        auto(penalized, L2Loss(), groups=[{"params": list(penalized.parameters()), "penalized": True}])


def test_a_bias_only_in_a_hidden_layer_is_refused():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), NormalizedLinear(5, 1, bias=False))
    with pytest.raises(ValueError, match="the last layer has no bias, but an earlier one has"):
        auto(network, L2Loss(), groups=first_only(network))


def test_groups_may_hold_a_bare_tensor_or_a_generator():
    network = Linear((6,), 1)
    given = [{"params": network[1].weight, "penalized": True}, {"params": (p for p in [network[1].bias])}]
    assert auto(network, L2Loss(), groups=(group for group in given)) == auto(network, L2Loss())


@pytest.mark.parametrize(
    ("penalty", "slope"),
    [(Harder(0.1), 1.0), (Harder(1.0), 0.5), (ElasticNet(0.25), 0.25), (GroupL1("columns"), 1.0)],
)
def test_the_threshold_is_divided_by_the_slope_of_the_penalty_at_zero(penalty, slope):
    for network in (Linear((6,), 1), SparseMLP((6,), 1, hidden=(5,))):
        assert auto(network, L2Loss(), penalty) == pytest.approx(auto(network, L2Loss()) / slope, rel=1e-12)


@pytest.mark.parametrize("penalty", [L1(), Harder(1.0), ElasticNet(0.25)])
def test_above_the_threshold_of_a_response_the_null_model_is_stationary_and_below_it_is_not(penalty):
    """With the response as the only draw, the threshold is ||X'y||_inf / ||y||, divided by the slope."""
    y = Y - Y.mean()
    critical = float((X.T @ y).abs().max() / y.norm()) / {Harder(1.0): 0.5, ElasticNet(0.25): 0.25}.get(penalty, 1.0)
    gradient = -(X.T @ y / y.norm()).T
    zero = torch.zeros(1, 6)
    assert penalty.subgradient_gap(zero, gradient, 1.001 * critical) == 0
    assert penalty.subgradient_gap(zero, gradient, 0.999 * critical) > 0


class Convolution(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1))


DROPOUT = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.5), NormalizedLinear(5, 1))
MIXED = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), NormalizedLinear(5, 4), Sigma(), NormalizedLinear(4, 1))


def first_only(network):
    weight = next(network.parameters())
    rest = [p for p in network.parameters() if p is not weight]
    return [{"params": rest, "penalized": False}, {"params": [weight], "penalized": True}]


@pytest.mark.parametrize(
    ("network", "loss", "penalty", "message"),
    [
        (Linear((6,), 1), nn.MSELoss(), L1(), r"known for MSELoss, .*noise level\. Use loss=l2 .*number"),
        (
            CNN((1, 8, 8), 3),
            L2Loss(),
            L1(),
            r"each weight of the first layer belongs to one feature, .*: layer 0 is Conv2d.*Use model=linear",
        ),
        (
            MLP((6,), 1),
            L2Loss(),
            L1(),
            r"first layer followed by NormalizedLinear layers \(rows of norm 1\).*model=sparse_mlp",
        ),
        (
            Linear((6,), 3),
            nn.NLLLoss(),
            L1(),
            r"no threshold is known for NLLLoss\. Use .*loss=cross_entropy or nn\.BCE",
        ),
        (Linear((6,), 3), nn.functional.cross_entropy, L1(), r"no threshold is known for cross_entropy\. Use"),
        (
            Linear((6,), 3),
            nn.CrossEntropyLoss(label_smoothing=0.1),
            L1(),
            r"cross-entropy, not with label_smoothing=0\.1\.",
        ),
        (SparseMLP((6,), 3), nn.CrossEntropyLoss(ignore_index=0), L1(), r"not with ignore_index=0\."),
        (
            Linear((6,), 1),
            nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)),
            L1(),
            r"not with pos_weight=tensor\(\[1\.\]\)",
        ),
        (Linear((6,), 1), nn.BCEWithLogitsLoss(reduction="none"), L1(), r"not with reduction='none'"),
        (Linear((6,), 1), L2Loss(), ElasticNet(0.0), r"no threshold is known for ElasticNet\(l1_ratio=0\.0\)"),
        (SparseMLP((6,), 1), L2Loss(), GroupL1("rows"), "no threshold is known for GroupL1"),
        (DROPOUT, L2Loss(), L1(), r"between its layers the network has .*Dropout.*needs the same activation"),
        (MIXED, L2Loss(), L1(), "needs the same activation between every two layers"),
    ],
)
def test_if_no_threshold_is_known_the_error_says_what_is_allowed(network, loss, penalty, message):
    given = groups(network) if isinstance(network, Linear | SparseMLP) else first_only(network)
    with pytest.raises(ValueError, match=message):
        auto(network, loss, penalty, targets=LABELS, groups=given)


def test_another_choice_of_what_is_penalized_is_refused():
    network = SparseMLP((6,), 1)
    every = [{"params": list(network.parameters()), "penalized": True}]
    mask = [{"params": [network[1].weight], "penalized": torch.ones(20, 6, dtype=torch.bool)}]
    nothing = [{"params": list(network.parameters()), "penalized": False}]
    for wrong in (every, mask, nothing):
        with pytest.raises(ValueError, match="if the whole weight of the first layer is penalized, and nothing"):
            auto(network, L2Loss(), groups=wrong)
