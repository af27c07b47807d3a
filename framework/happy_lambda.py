"""The penalty weight by the quantile universal threshold (QUT): no validation set, no knowledge of the noise level.

The smallest weight at which the null model (all penalized weights zero) is a stationary point depends on the response.
`happy_lambda` is its 0.95 quantile over responses of pure noise: if there is nothing to find, 95 fits in 100 find
nothing. An unpenalized intercept belongs to the null model and removes the mean from the noise; without one the mean
stays. Sources: Giacobino et al. 2017 (QUT); Sardy et al. 2022 (LASSO ANN) for networks.

The loss is that of `framework.losses`, ||y - f(x)||_2, unsquared; for classes, the cross-entropy of softmax or of
logistic outputs. A threshold is a factor times the 0.95 quantile of

    max_j ||c_j||,   c_j = X_j^T R,

with R the negative derivative of the loss in the outputs of the null model, shape (N, K). The norm over the K outputs
is dual to what may be penalized: the largest entry for `L1` on a linear model, the 2-norm for `GroupL1` by columns on
one, and for networks, under either, the sum of absolute values: their last layer is free to align its K rows. Listed
groups of `GroupL1` take the 2-norm over their features as well, divided by what the group counts; for networks K must
then be 1. The factor is that of the network's depth and widths (see `HappyLambdaMLP`), and 1 / N for a loss that is a
mean.

Shape legend: N samples, P features, K responses or classes, D draws in one chunk.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from framework.layers import sigma
from framework.penalties import GroupL1

# Draws and their products with the data are made in chunks of this size: the data may leave little room on a device.
CHUNK_BYTES = 64 * 2**20
# Separates the private stream from the global one, from whose seed it is derived.
_STREAM = 0x9E3779B97F4A7C15


class HappyLambda(ABC):
    """The base class of thresholds: the quantile of a null statistic simulated over `distribution_count` draws.

    Random draws come from a private stream, seeded with one integer taken from `generator` or, without one, from
    `torch.initial_seed()`: the same under the same `torch.manual_seed`, different under another, and never the numbers
    that simulated the data. The global stream is not touched. Without a generator, `run` repeats its value; with one,
    each call takes another integer.

    Attributes:
        groups: The penalty, if it takes weights together.
        neuron_count: The widths of the network's layers; of a linear model none or one.
        activation_fn: The activation between them.
    """

    neuron_count: Sequence[int] = ()
    activation_fn: Callable[[Tensor], Tensor] = staticmethod(sigma)

    def __init__(
        self,
        dataset: Tensor,
        distribution_count: int,
        *,
        device: torch.device | str | None,
        generator: torch.Generator | None,
        quantile: float,
        intercept: bool,
        groups: GroupL1 | None = None,
    ) -> None:
        name = type(self).__name__
        if dataset.ndim != 2 or dataset.numel() == 0:
            raise ValueError(
                f"{name}: the dataset has shape {tuple(dataset.shape)}; pass a non-empty matrix (samples, features)"
            )
        if not torch.isfinite(dataset).all():
            bad = (~torch.isfinite(dataset)).any(dim=0).nonzero().flatten().tolist()
            raise ValueError(
                f"{name}: the dataset has NaN or infinite entries, in columns {bad[:5]}; impute or drop them"
            )
        if not (dataset != (dataset[0] if intercept and len(dataset) > 1 else 0)).any():
            raise ValueError(
                f"{name}: no feature {'varies over the samples' if intercept else 'differs from 0'}, so there is "
                "nothing to select; check the data"
            )
        if distribution_count < 1:
            raise ValueError(f"{name}: distribution_count={distribution_count}; it must be >= 1, 1000 is usual")
        if not 0 < quantile < 1:
            raise ValueError(f"{name}: quantile={quantile}; it must be strictly between 0 and 1, 0.95 is usual")
        dtype = dataset.dtype if dataset.dtype in (torch.float32, torch.float64) else torch.float32
        self.dataset = dataset.detach().to(device=device, dtype=dtype)
        self.distribution_count = distribution_count
        self.generator = generator
        self.quantile = quantile
        self.intercept = intercept
        if groups is not None and groups.groups == "rows":
            raise ValueError(
                f"{name}: no threshold is known for {groups}; pass GroupL1 by columns, or with listed groups"
            )
        self.groups = groups

    def _set_network(self, neuron_count: Sequence[int], activation_fn: Callable[[Tensor], Tensor]) -> None:
        if min(neuron_count, default=0) < 1:
            raise ValueError(
                f"{type(self).__name__}: neuron_count={list(neuron_count)}; pass the widths of the layers after the "
                "input, each >= 1, for instance [20, 1]"
            )
        self.neuron_count = list(neuron_count)
        self.activation_fn = activation_fn

    def run(self) -> float:
        """Compute happy_lambda; waits for the device.

        Raises:
            ValueError: If no threshold is known for listed groups in a network of several outputs, or they name
                features that are not there.
        """
        if self._has_listed_groups() and len(self.neuron_count) > 1 and self._num_responses() > 1:
            raise ValueError(
                f"{type(self).__name__}: no threshold is known for {self.groups} in a network of "
                f"{self._num_responses()} outputs; use GroupL1 by columns"
            )
        generator = self._private_generator()
        chunk = self._chunk_size()
        counts = [min(chunk, self.distribution_count - start) for start in range(0, self.distribution_count, chunk)]
        statistics_D = torch.cat([self._statistics(count, generator) for count in counts])
        return self._factor() * torch.quantile(statistics_D.double(), self.quantile).item()

    def _statistics(self, count: int, generator: torch.Generator) -> Tensor:
        """Simulate `count` draws of the smallest weight that makes the null model stationary, shape (count,)."""
        return self._dual_norm(self._residuals(count, generator) @ self.dataset)

    @abstractmethod
    def _residuals(self, count: int, generator: torch.Generator) -> Tensor:
        """Simulate R, the negative derivative of the loss in the outputs of the null model, shape (count, K, N)."""

    def _dual_norm(self, C_DKP: Tensor) -> Tensor:
        """Compute the largest gradient at the null model, in the norm dual to the penalty, shape (D,), from X^T R."""
        is_network = len(self.neuron_count) > 1
        if self.groups is not None and (not is_network or self._has_listed_groups()):
            return self.groups.largest_gradient(C_DKP)
        return torch.linalg.vector_norm(C_DKP, ord=1 if is_network else math.inf, dim=1).amax(dim=1)

    def _has_listed_groups(self) -> bool:
        return self.groups is not None and self.groups.groups != "columns"

    def _factor(self) -> float:
        """Return by how much the layers after the first can enlarge a gradient."""
        num_layers = len(self.neuron_count)
        if num_layers <= 1:
            return 1.0
        slope_of = _sup_derivative if self.intercept else _slope_at_zero
        return math.sqrt(math.prod(self.neuron_count[1:-1])) * slope_of(self.activation_fn) ** (num_layers - 1)

    @abstractmethod
    def _num_responses(self) -> int:
        """Return the number K of responses that one draw simulates."""

    def _chunk_size(self) -> int:
        num_samples, num_features = self.dataset.shape
        return max(1, CHUNK_BYTES // (self.dataset.itemsize * self._num_responses() * (num_samples + num_features)))

    def _private_generator(self) -> torch.Generator:
        source = self.generator
        if source is None:
            source = torch.Generator().manual_seed((torch.initial_seed() ^ _STREAM) % 2**63)
        seed = torch.randint(2**62, (), generator=source, device=source.device)
        return torch.Generator(self.dataset.device).manual_seed(int(seed.item()))


class HappyLambdaLinear(HappyLambda):
    """The weight of the L1 penalty for a linear model: Q95 of ||X^T g||_inf / ||g||_2.

    g is Gaussian noise, centered if an unpenalized intercept absorbs its mean; X is used as given. With a single
    sample, centering would leave nothing, so it is skipped: the result is then max |x_j|.

    Args:
        dataset: X, shape (N, P), finite; the computation is in float64 if it is float64, otherwise in float32.
        distribution_count: The number of draws.
        std: The noise level, > 0. The statistic does not depend on it: it is checked but not used.
        mean: The mean of the noise, finite; centering removes it, so it is not used either. It must be 0 without an
            intercept.
        device: Where to compute; the dataset's device by default.
        generator: The source of the private stream's seed, on any device; by default the global seed.
        quantile: The probability of finding nothing when there is nothing to find.
        num_responses: Number of columns of the target. With several, the loss is the norm over all of them (Frobenius).
        intercept: Whether the model has an intercept, trained and not penalized.
        groups: The penalty, if it is `GroupL1` by columns, which takes the weights of a feature for all responses
            together, or with listed groups.

    Raises:
        ValueError: If the dataset is empty, not a matrix, constant or not finite, or an argument is out of range.
    """

    def __init__(
        self,
        dataset: Tensor,
        distribution_count: int,
        std: float = 1,
        mean: float = 0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        *,
        quantile: float = 0.95,
        num_responses: int = 1,
        intercept: bool = True,
        groups: GroupL1 | None = None,
    ) -> None:
        super().__init__(
            dataset,
            distribution_count,
            device=device,
            generator=generator,
            quantile=quantile,
            intercept=intercept,
            groups=groups,
        )
        name = type(self).__name__
        if not (math.isfinite(std) and std > 0):
            raise ValueError(
                f"{name}: std={std}; the noise level must be finite and > 0 (the result does not depend on it)"
            )
        if not math.isfinite(mean):
            raise ValueError(
                f"{name}: mean={mean}; the mean of the noise must be finite (the result does not depend on it)"
            )
        if mean and not intercept:
            raise ValueError(
                f"{name}: mean={mean} with intercept=False: a mean that nothing absorbs is not noise, and the "
                "threshold would depend on its size; pass mean=0, or give the model an intercept"
            )
        if num_responses < 1:
            raise ValueError(f"{name}: num_responses={num_responses}; it must be >= 1: the columns of the target")
        self.num_responses = num_responses

    def _residuals(self, count: int, generator: torch.Generator) -> Tensor:
        X_NP = self.dataset
        num_samples = len(X_NP)
        shape = (count, self.num_responses, num_samples)
        G_DKN = torch.randn(shape, generator=generator, dtype=X_NP.dtype, device=X_NP.device)
        if self.intercept and num_samples > 1:
            G_DKN -= G_DKN.mean(dim=2, keepdim=True)
        return G_DKN / torch.linalg.vector_norm(G_DKN, dim=(1, 2), keepdim=True)

    def _num_responses(self) -> int:
        return self.num_responses


class HappyLambdaMLP(HappyLambdaLinear):
    """The weight of the L1 penalty on the first layer of a network: pi_l s^(l-1) Q95(||X^T g||_inf / ||g||_2).

    There are l = len(neuron_count) layers; pi_l = sqrt(p_3 ... p_l) is over the widths of the hidden layers after the
    first (the first hidden width and the output width do not enter); s = sup |sigma'|, found numerically. This is the
    largest gradient in W_1 at W_1 = 0 that the later layers can produce, so it is valid only if **their rows have norm
    1**, as in `NormalizedLinear`, and if the last bias is trained and not penalized. `GroupL1(groups="columns")` has
    the same threshold.

    Without any bias (``intercept=False``) the null model is 0, g is not centered, and s = |sigma'(0)|, the larger of
    the two one-sided slopes.

    Args:
        dataset: X, shape (N, P).
        distribution_count: The number of draws.
        neuron_count: The widths of the layers after the input, output included: [5, 10] for 20 -> 5 -> 10.
        activation_fn: The elementwise activation; its derivative must be bounded.
        std: As in `HappyLambdaLinear`.
        mean: As in `HappyLambdaLinear`.
        device: As in `HappyLambdaLinear`.
        generator: As in `HappyLambdaLinear`.
        quantile: As in `HappyLambdaLinear`.
        num_responses: The number of outputs fitted to Gaussian responses. The published formula is for 1, which is the
            default whatever the last width; for several responses pass their number, and the threshold grows.
        intercept: True if the last layer has a bias, False if no layer has one.
        groups: As in `HappyLambdaLinear`; listed ones only for one response.

    Raises:
        ValueError: As for `HappyLambdaLinear`; or if a width is below 1, the activation's derivative is not bounded,
            or, without biases, the activation is not 0 at 0 or is flat there.
    """

    def __init__(
        self,
        dataset: Tensor,
        distribution_count: int,
        neuron_count: Sequence[int],
        activation_fn: Callable[[Tensor], Tensor] = sigma,
        std: float = 1,
        mean: float = 0,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        *,
        quantile: float = 0.95,
        num_responses: int = 1,
        intercept: bool = True,
        groups: GroupL1 | None = None,
    ) -> None:
        super().__init__(
            dataset,
            distribution_count,
            std,
            mean,
            device,
            generator,
            quantile=quantile,
            num_responses=num_responses,
            intercept=intercept,
            groups=groups,
        )
        self._set_network(neuron_count, activation_fn)


class _HappyLambdaLabels(HappyLambda):
    """The base class of thresholds under a cross-entropy, for labels drawn from the null model.

    Attributes:
        frequencies: The probability of each label under the null model, shape (K,).
    """

    def __init__(
        self,
        dataset: Tensor,
        targets: Tensor,
        distribution_count: int,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        *,
        reduction: Literal["sum", "mean"] = "mean",
        quantile: float = 0.95,
        intercept: bool = True,
        groups: GroupL1 | None = None,
        neuron_count: Sequence[int] = (),
        activation_fn: Callable[[Tensor], Tensor] = sigma,
    ) -> None:
        super().__init__(
            dataset,
            distribution_count,
            device=device,
            generator=generator,
            quantile=quantile,
            intercept=intercept,
            groups=groups,
        )
        if reduction not in ("sum", "mean"):
            raise ValueError(f'{type(self).__name__}: reduction={reduction!r} is unknown; pass "sum" or "mean"')
        self.reduction = reduction
        if len(neuron_count):
            self._set_network(neuron_count, activation_fn)
        self.frequencies = self._frequencies(targets).to(self.dataset)

    def _residuals(self, count: int, generator: torch.Generator) -> Tensor:
        Y_DKN = self._labels(count, generator)
        return Y_DKN - (Y_DKN.mean(dim=2, keepdim=True) if self.intercept else self.frequencies[:, None])

    @abstractmethod
    def _frequencies(self, targets: Tensor) -> Tensor:
        """Check the targets, and return the probability of each label under the null model, shape (K,)."""

    @abstractmethod
    def _labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw labels from the null model, zeros and ones, shape (count, K, N)."""

    @abstractmethod
    def _num_terms(self) -> int:
        """Return the number of terms that the loss adds up, or averages."""

    def _factor(self) -> float:
        return super()._factor() / (self._num_terms() if self.reduction == "mean" else 1)

    def _num_responses(self) -> int:
        return len(self.frequencies)


class HappyLambdaClassifier(_HappyLambdaLabels):
    """The weight of the L1 penalty under the cross-entropy of softmax outputs, for a linear model or a network.

    It is the 0.95 quantile of max over features j and classes k of |sum_i x_ij (y_ik - p_k)|, with y one-hot labels
    drawn from the null model. With an unpenalized intercept the null model has the class frequencies of `targets`, and
    p_k is the average of y_ik, which the intercept fits. Without one all K classes are equally likely, and p_k = 1 / K.
    For a network it is the quantile of max_j sum_k |sum_i x_ij (y_ik - p_k)|, times the factor of `HappyLambdaMLP`.

    Args:
        dataset: X, shape (N, P), finite.
        targets: Class indices, shape (N,), integers from 0; at least two classes.
        distribution_count: The number of draws.
        device: Where to compute; the dataset's device by default.
        generator: As in `HappyLambdaLinear`.
        num_classes: K, the number of the model's outputs; by default the largest class in `targets` plus 1.
        reduction: "mean" if the loss averages over samples (torch's default), "sum" if it adds them: N times larger.
        quantile: The probability of finding nothing when there is nothing to find.
        intercept: Whether the model has an intercept, trained and not penalized.
        groups: As in `HappyLambdaLinear`.
        neuron_count: The widths of a network's layers, as in `HappyLambdaMLP`, the last of them K; none for a linear
            model.
        activation_fn: As in `HappyLambdaMLP`.

    Raises:
        ValueError: As for `HappyLambdaMLP`; or if the targets are not class indices of at least two classes, all
            below `num_classes`, or the reduction is unknown.
    """

    def __init__(
        self,
        dataset: Tensor,
        targets: Tensor,
        distribution_count: int,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
        *,
        num_classes: int | None = None,
        reduction: Literal["sum", "mean"] = "mean",
        quantile: float = 0.95,
        intercept: bool = True,
        groups: GroupL1 | None = None,
        neuron_count: Sequence[int] = (),
        activation_fn: Callable[[Tensor], Tensor] = sigma,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(
            dataset,
            targets,
            distribution_count,
            device,
            generator,
            reduction=reduction,
            quantile=quantile,
            intercept=intercept,
            groups=groups,
            neuron_count=neuron_count,
            activation_fn=activation_fn,
        )

    def _frequencies(self, targets: Tensor) -> Tensor:
        num_samples = len(self.dataset)
        if targets.shape != (num_samples,) or targets.is_floating_point() or targets.is_complex():
            raise ValueError(
                f"HappyLambdaClassifier: the targets have shape {tuple(targets.shape)} and type {targets.dtype}; pass "
                f"one integer class index per sample, shape ({num_samples},)"
            )
        if targets.min() < 0 or targets.min() == targets.max():
            raise ValueError(
                f"HappyLambdaClassifier: the targets lie between {targets.min()} and {targets.max()}; pass class "
                "indices from 0, with at least two classes present"
            )
        if self.num_classes is not None and targets.max() >= self.num_classes:
            raise ValueError(
                f"HappyLambdaClassifier: num_classes={self.num_classes}, but the largest target is {targets.max()}; "
                "pass the number of the model's outputs, at least one for every class"
            )
        frequencies_K = torch.bincount(targets.long(), minlength=self.num_classes or 0).double() / num_samples
        return frequencies_K if self.intercept else torch.full_like(frequencies_K, 1 / len(frequencies_K))

    def _labels(self, count: int, generator: torch.Generator) -> Tensor:
        num_samples, num_classes = len(self.dataset), len(self.frequencies)
        labels = torch.multinomial(self.frequencies, count * num_samples, replacement=True, generator=generator)
        classes_K1 = torch.arange(num_classes, device=labels.device)[:, None]
        return (labels.view(count, 1, num_samples) == classes_K1).to(self.dataset.dtype)

    def _num_terms(self) -> int:
        return len(self.dataset)


class HappyLambdaBinary(_HappyLambdaLabels):
    """The weight of the L1 penalty under the cross-entropy of logistic outputs (`torch.nn.BCEWithLogitsLoss`).

    It is the 0.95 quantile of max over features j and outputs k of |sum_i x_ij (y_ik - p_k)|, with y_ik independent
    labels 0 and 1, as this loss takes them to be. With an unpenalized intercept they have the frequencies of `targets`,
    and p_k is the average of y_ik, which the intercept fits. Without one both labels are equally likely, and p_k = 1/2.
    For a network it is the quantile of max_j sum_k |sum_i x_ij (y_ik - p_k)|, times the factor of `HappyLambdaMLP`.

    The arguments are those of `HappyLambdaClassifier`, but:

    Args:
        targets: Labels 0 and 1, shape (N, K), of any type; both present in each column.
        reduction: "mean" if the loss averages over samples and outputs (torch's default), "sum" if it adds them: N K
            times larger.

    Raises:
        ValueError: As for `HappyLambdaMLP`; or if the targets are not such labels, or the reduction is unknown.
    """

    def _frequencies(self, targets: Tensor) -> Tensor:
        if targets.ndim != 2 or len(targets) != len(self.dataset):
            raise ValueError(
                f"HappyLambdaBinary: the targets have shape {tuple(targets.shape)}; pass one row of labels per sample, "
                f"shape ({len(self.dataset)}, outputs)"
            )
        if not ((targets == 0) | (targets == 1)).all() or (targets == targets[0]).all(dim=0).any():
            raise ValueError(
                "HappyLambdaBinary: the targets have a column that is not of zeros and ones, or only of one of them; "
                "pass labels 0 and 1, with both present"
            )
        frequencies_K = targets.double().mean(dim=0)
        return frequencies_K if self.intercept else torch.full_like(frequencies_K, 0.5)

    def _labels(self, count: int, generator: torch.Generator) -> Tensor:
        shape = (count, len(self.frequencies), len(self.dataset))
        return torch.bernoulli(self.frequencies[:, None].expand(shape), generator=generator)

    def _num_terms(self) -> int:
        return len(self.dataset) * len(self.frequencies)


def _sup_derivative(activation_fn: Callable[[Tensor], Tensor]) -> float:
    """Compute sup |activation'| on a grid, to about 1e-7.

    Raises:
        ValueError: If the derivative is not finite, or is larger farther out: then no threshold exists.
    """
    with torch.enable_grad():
        x = torch.linspace(-60, 60, 240_001, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(activation_fn(x).sum(), x)
    slope = slope.abs()
    sup, inner = slope.max().item(), slope[x.detach().abs() <= 30].max().item()
    if not (math.isfinite(sup) and sup <= inner * (1 + 1e-6)):
        raise ValueError(
            f"happy_lambda: the derivative of {activation_fn!r} is not bounded, so no threshold exists; use an "
            "activation such as sigma, torch.relu or torch.tanh"
        )
    return sup


def _slope_at_zero(activation_fn: Callable[[Tensor], Tensor]) -> float:
    """Compute |activation'(0)|, the larger of the two one-sided slopes, to about 1e-6.

    Raises:
        ValueError: If the activation is not 0 at 0, or is flat there.
    """
    at_zero, left, right = activation_fn(torch.tensor([0.0, -1e-6, 1e-6], dtype=torch.float64)).tolist()
    slope = max(abs(left - at_zero), abs(right - at_zero)) * 1e6
    if abs(at_zero) > 1e-8 or slope < 1e-4:
        raise ValueError(
            f"happy_lambda: intercept=False with {activation_fn!r}, which has value {at_zero:.3g} and slope "
            f"{slope:.3g} at 0: without biases no threshold is known for it. Use sigma, torch.relu or torch.tanh, or "
            "give the last layer a bias"
        )
    return slope
