"""The penalty weight by the quantile universal threshold (QUT): no validation set, no knowledge of the noise level.

The smallest weight at which the null model (all penalized weights zero) is a stationary point depends on the response.
`happy_lambda` is its 0.95 quantile over responses of pure noise: if there is nothing to find, 95 fits in 100 find
nothing. An unpenalized intercept belongs to the null model and removes the mean from the noise; without one the mean
stays. Sources: Giacobino et al. 2017 (QUT); Sardy et al. 2022 (LASSO ANN) for networks.

The loss is that of `framework.losses`, ||y - f(x)||_2, unsquared; for classification, the cross-entropy.

Shape legend: N samples, P features, K responses or classes, D draws in one chunk.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from framework.layers import sigma

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
    """

    def __init__(
        self,
        dataset: Tensor,
        distribution_count: int,
        *,
        device: torch.device | str | None,
        generator: torch.Generator | None,
        quantile: float,
        intercept: bool,
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

    def run(self) -> float:
        """Compute happy_lambda; waits for the device."""
        generator = self._private_generator()
        chunk = self._chunk_size()
        counts = [min(chunk, self.distribution_count - start) for start in range(0, self.distribution_count, chunk)]
        statistics_D = torch.cat([self._statistics(count, generator) for count in counts])
        return self._factor() * torch.quantile(statistics_D.double(), self.quantile).item()

    @abstractmethod
    def _statistics(self, count: int, generator: torch.Generator) -> Tensor:
        """Simulate `count` draws of the smallest weight that makes the null model stationary, shape (count,)."""

    def _factor(self) -> float:
        return 1.0

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
    ) -> None:
        super().__init__(
            dataset, distribution_count, device=device, generator=generator, quantile=quantile, intercept=intercept
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

    def _statistics(self, count: int, generator: torch.Generator) -> Tensor:
        X_NP = self.dataset
        num_samples = len(X_NP)
        shape = (count, self.num_responses, num_samples)
        G_DKN = torch.randn(shape, generator=generator, dtype=X_NP.dtype, device=X_NP.device)
        if self.intercept and num_samples > 1:
            G_DKN -= G_DKN.mean(dim=2, keepdim=True)
        return self._dual_norm(G_DKN @ X_NP) / torch.linalg.vector_norm(G_DKN, dim=(1, 2))

    def _dual_norm(self, C_DKP: Tensor) -> Tensor:
        """Compute the largest |gradient| over the penalized weights, shape (D,), from X^T g."""
        return torch.linalg.vector_norm(C_DKP, ord=math.inf, dim=(1, 2))

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
        )
        if len(neuron_count) == 0 or min(neuron_count) < 1:
            raise ValueError(
                f"HappyLambdaMLP: neuron_count={list(neuron_count)}; pass the widths of the layers after the input, "
                "each >= 1, for instance [20, 1]"
            )
        self.neuron_count = list(neuron_count)
        self.activation_fn = activation_fn

    def _factor(self) -> float:
        pi = math.sqrt(math.prod(self.neuron_count[1:-1]))
        num_layers = len(self.neuron_count)
        if num_layers == 1:
            return 1.0
        slope = _sup_derivative(self.activation_fn)
        if not self.intercept:
            slope = _slope_at_zero(self.activation_fn)
        return pi * slope ** (num_layers - 1)

    def _dual_norm(self, C_DKP: Tensor) -> Tensor:
        # The K rows of the last layer are free to align, each with its own sign: the responses add up.
        return torch.linalg.vector_norm(C_DKP, ord=1, dim=1).amax(dim=1)


class HappyLambdaClassifier(HappyLambda):
    """The weight of the L1 penalty for softmax regression, under the cross-entropy.

    It is the 0.95 quantile of max over features j and classes k of |sum_i x_ij (y_ik - p_k)|, with y one-hot labels
    drawn from the null model. With an unpenalized intercept the null model has the class frequencies of `targets`, and
    p_k is the average of y_ik, which the intercept fits. Without one all K classes are equally likely, and p_k = 1 / K.

    Args:
        dataset: X, shape (N, P), finite.
        targets: Class indices, shape (N,), integers from 0; at least two classes.
        distribution_count: The number of draws.
        device: Where to compute; the dataset's device by default.
        generator: As in `HappyLambdaLinear`.
        reduction: "mean" if the loss averages over samples (torch's default), "sum" if it adds them: N times larger.
        quantile: The probability of finding nothing when there is nothing to find.
        intercept: Whether the model has an intercept, trained and not penalized.
        num_classes: K, the number of the model's outputs; by default the largest class in `targets` plus 1.

    Raises:
        ValueError: As for `HappyLambdaLinear`; or if the targets are not class indices of at least two classes, all
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
        reduction: Literal["sum", "mean"] = "mean",
        quantile: float = 0.95,
        intercept: bool = True,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(
            dataset, distribution_count, device=device, generator=generator, quantile=quantile, intercept=intercept
        )
        if targets.shape != dataset.shape[:1] or targets.is_floating_point() or targets.is_complex():
            raise ValueError(
                f"HappyLambdaClassifier: the targets have shape {tuple(targets.shape)} and type {targets.dtype}; pass "
                f"one integer class index per sample, shape ({len(dataset)},)"
            )
        if targets.min() < 0 or targets.min() == targets.max():
            raise ValueError(
                f"HappyLambdaClassifier: the targets lie between {targets.min()} and {targets.max()}; pass class "
                "indices from 0, with at least two classes present"
            )
        if num_classes is not None and targets.max() >= num_classes:
            raise ValueError(
                f"HappyLambdaClassifier: num_classes={num_classes}, but the largest target is {targets.max()}; pass "
                "the number of the model's outputs, at least one for every class"
            )
        if reduction not in ("sum", "mean"):
            raise ValueError(f'HappyLambdaClassifier: reduction={reduction!r} is unknown; pass "sum" or "mean"')
        counts_K = torch.bincount(targets.to(self.dataset.device).long(), minlength=num_classes or 0)
        frequencies_K = counts_K.to(self.dataset.dtype) / len(dataset)
        self.frequencies = frequencies_K if intercept else torch.full_like(frequencies_K, 1 / len(frequencies_K))
        self.reduction = reduction

    def _statistics(self, count: int, generator: torch.Generator) -> Tensor:
        X_NP, num_samples = self.dataset, len(self.dataset)
        labels = torch.multinomial(self.frequencies, count * num_samples, replacement=True, generator=generator)
        classes_K1 = torch.arange(self._num_responses(), device=X_NP.device)[:, None]
        Y_DKN = (labels.view(count, 1, num_samples) == classes_K1).to(X_NP.dtype)
        Y_DKN -= Y_DKN.mean(dim=2, keepdim=True) if self.intercept else 1 / self._num_responses()
        return torch.linalg.vector_norm(Y_DKN @ X_NP, ord=math.inf, dim=(1, 2))

    def _factor(self) -> float:
        return 1 / len(self.dataset) if self.reduction == "mean" else 1.0

    def _num_responses(self) -> int:
        return len(self.frequencies)


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
            f"HappyLambdaMLP: the derivative of {activation_fn!r} is not bounded, so no threshold exists; use an "
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
            f"HappyLambdaMLP: intercept=False with {activation_fn!r}, which has value {at_zero:.3g} and slope "
            f"{slope:.3g} at 0: without biases no threshold is known for it. Use sigma, torch.relu or torch.tanh, or "
            "give the last layer a bias"
        )
    return slope
