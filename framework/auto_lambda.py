"""The penalty weight for a network, a loss and data, or an error that says why the theory has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from framework.cox import CoxLoss, HappyLambdaCox
from framework.happy_lambda import (
    HappyLambda,
    HappyLambdaBinary,
    HappyLambdaClassifier,
    HappyLambdaLinear,
    HappyLambdaMLP,
)
from framework.layers import NormalizedLinear
from framework.losses import L2Loss
from framework.penalties import L1, MCP, SCAD, ElasticNet, GroupL1, Harder, Penalty, Weighted
from framework.pruning import split_layers

REMEDY = "give happy_lambda as a number instead"


def auto_happy_lambda(
    network: nn.Module,
    groups: Iterable[Mapping[str, Any]],
    loss: Callable[[Tensor, Tensor], Tensor],
    penalty: Penalty,
    inputs: Tensor,
    targets: Tensor,
    *,
    distribution_count: int = 1000,
    generator: torch.Generator | None = None,
) -> float:
    """Compute happy_lambda by the quantile universal threshold, on the scale of the loss and of the penalty.

    This is the weight at which 95 of 100 fits to pure noise select nothing: `HappyLambdaLinear` and `HappyLambdaMLP`
    under `L2Loss`, `HappyLambdaClassifier` under the cross-entropy of softmax outputs and `HappyLambdaBinary` under
    that of logistic ones (divided by the number of terms for their means). The threshold applies to the slope of the
    penalty at 0, so it is divided by that slope, such as the `l1_ratio` of `ElasticNet`.

    Args:
        network: One linear layer; or a linear layer, then `NormalizedLinear` layers with one activation between them.
        groups: Its parameter groups; the weight of the first layer must be penalized, and nothing else. The bias of the
            last layer, the intercept, must be trained, or no layer may have a bias: then the null model is 0.
        loss: `L2Loss` or (linear) `CoxLoss`, on all the data at once, `nn.CrossEntropyLoss` or `nn.BCEWithLogitsLoss`.
        penalty: `L1`, `Harder`, `SCAD`, `MCP`, `ElasticNet`, `GroupL1` by columns or with listed groups (in a network
            of one output), or one of these `Weighted`.
        inputs: X, shape (N, ...), flattened to (N, P).
        targets: y: shape (N, K), labels 0 and 1 for logistic outputs, times and events for Cox; or class indices, shape
            (N,).
        distribution_count: The number of draws.
        generator: As in `HappyLambdaLinear`.

    Raises:
        ValueError: If the theory gives no threshold for this network, loss or penalty, or the data are invalid.
    """
    try:
        linears, between, _ = split_layers(network)
    except TypeError as error:
        raise ValueError(
            "happy_lambda=auto: a threshold is known only where each weight of the first layer belongs to one feature, "
            f"in fully connected networks: {error}. Use model=linear or model=sparse_mlp, or {REMEDY}"
        ) from error
    groups = [{**group, "params": _listed(group["params"])} for group in groups]
    _check_penalized(linears, groups)
    intercept = _has_intercept(linears, groups)
    X, draws, num_outputs = inputs.flatten(1), distribution_count, linears[-1].out_features
    if isinstance(penalty, Weighted):
        X, penalty = _weighed(X, penalty), penalty.penalty
    slope, grouped = _slope_at_zero(penalty), penalty if isinstance(penalty, GroupL1) else None
    network_options: dict[str, Any] = {}
    if len(linears) > 1:
        widths = [linear.out_features for linear in linears]
        network_options = {"neuron_count": widths, "activation_fn": _activation(between)}
    options: dict[str, Any] = {"generator": generator, "intercept": intercept, "groups": grouped}
    threshold: HappyLambda
    if isinstance(loss, L2Loss):
        options["num_responses"] = num_outputs
        if network_options:
            threshold = HappyLambdaMLP(X, draws, **network_options, **options)
        else:
            threshold = HappyLambdaLinear(X, draws, **options)
    elif isinstance(loss, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss):
        options |= {"reduction": _reduction(loss), **network_options}
        if isinstance(loss, nn.BCEWithLogitsLoss):
            threshold = HappyLambdaBinary(X, targets, draws, **options)
        else:
            threshold = HappyLambdaClassifier(X, targets, draws, num_classes=num_outputs, **options)
    elif isinstance(loss, CoxLoss) and not network_options:
        threshold = HappyLambdaCox(X, targets, draws, generator, groups=grouped)
    else:
        raise ValueError(
            f"happy_lambda=auto: no threshold is known for {_why_unknown(loss)}. Use loss=l2 (the unsquared norm) for "
            f"numbers, loss=cross_entropy or nn.BCEWithLogitsLoss for classes, or {REMEDY}"
        )
    return threshold.run() / slope


def _check_penalized(linears: list[nn.Linear], groups: Iterable[Mapping[str, Any]]) -> None:
    plain = [index for index, linear in enumerate(linears) if index and not isinstance(linear, NormalizedLinear)]
    if plain or isinstance(linears[0], NormalizedLinear):
        raise ValueError(
            "happy_lambda=auto: the threshold holds for a plain first layer followed by NormalizedLinear layers (rows "
            f"of norm 1), which this network does not have. Use model=sparse_mlp, or {REMEDY}"
        )
    penalized = [(p, g["penalized"]) for g in groups if g.get("penalized", False) is not False for p in g["params"]]
    if len(penalized) != 1 or penalized[0][0] is not linears[0].weight or penalized[0][1] is not True:
        raise ValueError(
            "happy_lambda=auto: the threshold holds if the whole weight of the first layer is penalized, and nothing "
            f"else; here {len(penalized)} parameters are penalized. Change param_groups(), or {REMEDY}"
        )


def _has_intercept(linears: list[nn.Linear], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the null model is the best constant (True) or zero (False)."""
    bias = linears[-1].bias
    if bias is None and all(linear.bias is None for linear in linears):
        return False
    if bias is None:
        raise ValueError(
            "happy_lambda=auto: the last layer has no bias, but an earlier one has, and no threshold is known for such "
            f"a null model. Give the last layer a bias, or no layer one, or {REMEDY}"
        )
    if not (bias.requires_grad and any(param is bias for group in groups for param in group["params"])):
        raise ValueError(
            "happy_lambda=auto: the bias of the last layer is frozen (requires_grad=False, or in no parameter group), "
            "and the threshold for a fixed intercept depends on the unknown noise level. Train it, or build the layer "
            f"with bias=False, or {REMEDY}"
        )
    return True


def _listed(params: Any) -> list[Tensor]:
    return [params] if isinstance(params, Tensor) else list(params)


def _slope_at_zero(penalty: Penalty) -> float:
    """Return the slope g'(0+) / lam, for groups that of their norm.

    Raises:
        ValueError: If no threshold is known for the penalty.
    """
    if isinstance(penalty, L1) or (isinstance(penalty, GroupL1) and penalty.groups != "rows"):
        return 1.0
    if isinstance(penalty, Harder):
        return 1.0 if penalty.nu < 1 else 0.5
    if isinstance(penalty, SCAD | MCP):
        return 1.0
    if isinstance(penalty, ElasticNet) and penalty.l1_ratio > 0:
        return penalty.l1_ratio
    raise ValueError(
        f"happy_lambda=auto: no threshold is known for {penalty}. Use L1, Harder, SCAD, MCP, ElasticNet with l1_ratio "
        f"> 0, GroupL1 by columns or with listed groups, or one of these Weighted, or {REMEDY}"
    )


def _weighed(X: Tensor, penalty: Weighted) -> Tensor:
    """Divide each feature by its weight: gradients at zero are to the weight of the penalty as those are to 1.

    Raises:
        ValueError: If there is not one weight for each feature, or one is 0.
    """
    if len(penalty.weights) != X.shape[1] or not all(penalty.weights):
        raise ValueError(
            f"happy_lambda=auto: Weighted has {len(penalty.weights)} weights for {X.shape[1]} features, "
            f"{penalty.weights.count(0.0)} of them 0; the threshold needs one for each, and none of a feature that is "
            f"always used, which would belong to the null model. Change them, or {REMEDY}"
        )
    return X / torch.tensor(penalty.weights, dtype=X.dtype, device=X.device)


def _activation(between: list[list[nn.Module]]) -> nn.Module:
    layers = [layer for part in between for layer in part if not (isinstance(layer, nn.Dropout) and layer.p == 0)]
    if len(layers) != len(between) or len({repr(layer) for layer in layers}) != 1 or isinstance(layers[0], nn.Dropout):
        raise ValueError(
            f"happy_lambda=auto: between its layers the network has {[str(layer) for layer in layers]}; the threshold "
            f"needs the same activation between every two layers, and no dropout. Change that, or {REMEDY}"
        )
    return layers[0]


def _reduction(loss: nn.CrossEntropyLoss | nn.BCEWithLogitsLoss) -> str:
    """Return "mean" or "sum".

    Raises:
        ValueError: If the loss has options under which no threshold is known.
    """
    allowed: dict[str, Callable[[Any], bool]] = {
        "weight": lambda weight: weight is None,
        "pos_weight": lambda weight: weight is None,
        "label_smoothing": lambda share: share == 0,
        "ignore_index": lambda index: index < 0,
        "reduction": lambda reduction: reduction in ("mean", "sum"),
    }
    given = {name: getattr(loss, name) for name in allowed if hasattr(loss, name)}
    if wrong := [f"{name}={value!r}" for name, value in given.items() if not allowed[name](value)]:
        raise ValueError(
            f"happy_lambda=auto: the threshold is known for the plain cross-entropy, not with {', '.join(wrong)}. Drop "
            f"these, or {REMEDY}"
        )
    return loss.reduction


def _why_unknown(loss: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Return the name of a loss for which no threshold is known, and the reason where there is one."""
    if isinstance(loss, nn.MSELoss | nn.L1Loss | nn.SmoothL1Loss | nn.HuberLoss):
        return f"{type(loss).__name__}, under which the right weight depends on the unknown noise level"
    if isinstance(loss, CoxLoss):
        return "CoxLoss with hidden layers, only with model=linear"
    return str(getattr(loss, "__name__", type(loss).__name__))
