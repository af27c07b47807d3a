"""The published simulations of sparse regression, linear and with networks: how often is the support recovered?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from framework.data.sparse import COEFFICIENTS

# The settings of the published studies: samples, features, test samples, replicates, seed.
PUBLISHED_DRAWS = (70, 250, 1000, 200, 42)
PUBLISHED_NETWORK_DRAWS = (500, 50, 1000, 200, 42)
# The numbers of non-zero coefficients in the table of the linear one, and of true features for networks.
SPARSITIES = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20)
NETWORK_SPARSITIES = (0, 2, 4, 8, 12, 14, 16, 18, 20)


@dataclass(frozen=True)
class LinearRecovery:
    """Replicates of y = X w + noise on one design, w having s non-zero entries. All tensors are float64.

    Attributes:
        X: The design, shape (n, p), columns of mean 0 and standard deviation 1.
        X_test: More samples, shape (num_test, p), standardized by their own means and standard deviations.
        noise: One noise vector per replicate, the same for every s, shape (replicates, n).
        weights: The true coefficients by s, each of shape (replicates, p).
        is_published: Whether these are exactly the draws of the published study.
    """

    X: Tensor
    X_test: Tensor
    noise: Tensor
    weights: dict[int, Tensor]
    is_published: bool

    def targets(self, sparsity: int) -> Tensor:
        """Compute the responses of all replicates with `sparsity` true coefficients, shape (replicates, n).

        Raises:
            ValueError: If no replicates with that many were drawn.
        """
        if sparsity not in self.weights:
            raise ValueError(
                f"no replicates with {sparsity} true coefficients were drawn, only with {sorted(self.weights)}; name "
                "it among the sparsities of the simulation"
            )
        return self.weights[sparsity] @ self.X.T + self.noise


def linear_recovery(
    sparsities: Sequence[int] = SPARSITIES,
    *,
    num_samples: int = 70,
    num_features: int = 250,
    num_test: int = 1000,
    num_replicates: int = 200,
    seed: int = 42,
) -> LinearRecovery:
    """Draw the simulation; with the defaults, exactly the published one.

    numpy's legacy generator draws, in this order, X (n, p), the test X, the noise (n, replicates), then for s = 1, 2,
    ... in turn, requested or not, the supports of all replicates, uniform without replacement. Replicate i draws its
    coefficients, uniform over `COEFFICIENTS`, from its own generator, seeded with `seed` + i. So the draws for one s do
    not depend on which others are requested, but they depend on the number of replicates: to get some of the published
    replicates, draw them all and select.

    Source: the simulations of HarderLASSO, arXiv 2411.17180, where s goes from 0 to 25.

    Args:
        sparsities: The numbers s of true coefficients, each from 0 to p.
        num_samples: The number of samples, n.
        num_features: The number of features, p.
        num_test: How many test samples.
        num_replicates: How many replicates for each s.
        seed: Determines the draws.

    Raises:
        ValueError: If a sparsity is out of range or named twice, or there are fewer than two samples to standardize.
    """
    _check_sizes(sparsities, num_samples, num_features, num_test, num_replicates)
    rng = np.random.RandomState(seed)
    X, X_test = (_standardized(rng.normal(size=(rows, num_features))) for rows in (num_samples, num_test))
    noise = rng.normal(size=(num_samples, num_replicates))
    weights = {s: np.zeros((num_replicates, num_features)) for s in sparsities}
    for s in range(1, max(sparsities, default=0) + 1):
        for i in range(num_replicates):
            support = rng.choice(num_features, s, replace=False)
            if s in weights:
                weights[s][i, support] = np.random.RandomState(seed + i).choice(COEFFICIENTS, s)
    return LinearRecovery(
        X=torch.from_numpy(X),
        X_test=torch.from_numpy(X_test),
        noise=torch.from_numpy(noise.T.copy()),
        weights={s: torch.from_numpy(w) for s, w in weights.items()},
        is_published=(num_samples, num_features, num_test, num_replicates, seed) == PUBLISHED_DRAWS,
    )


@dataclass(frozen=True)
class NetworkRecovery:
    """Replicates of y = 10 sum |x_a - x_b| + noise over disjoint pairs (a, b) of features, on one design.

    Attributes:
        X: The design, shape (n, p), float64, columns of mean 0 and standard deviation 1.
        X_test: More samples, shape (num_test, p), standardized by their own means and standard deviations.
        noise: One noise vector per replicate, the same for every s, shape (replicates, n), float64.
        pairs: The true features by their number s, each of shape (replicates, s / 2, 2), integers.
        is_published: Whether these are exactly the draws of the published study.
    """

    X: Tensor
    X_test: Tensor
    noise: Tensor
    pairs: dict[int, Tensor]
    is_published: bool

    def targets(self, sparsity: int) -> Tensor:
        """Compute the responses of all replicates with `sparsity` true features, shape (replicates, n).

        Raises:
            ValueError: If no replicates with that many were drawn.
        """
        first, second = self._pairs(sparsity).unbind(2)
        return 10 * (self.X.T[first] - self.X.T[second]).abs().sum(1) + self.noise

    def support(self, sparsity: int) -> Tensor:
        """Tell which features are true in each replicate with `sparsity` of them, shape (replicates, p), booleans.

        Raises:
            ValueError: If no replicates with that many were drawn.
        """
        pairs = self._pairs(sparsity)
        return torch.zeros(len(pairs), self.X.shape[1], dtype=torch.bool).scatter(1, pairs.flatten(1), True)

    def _pairs(self, sparsity: int) -> Tensor:
        if sparsity not in self.pairs:
            raise ValueError(
                f"no replicates with {sparsity} true features were drawn, only with {sorted(self.pairs)}; name it "
                "among the sparsities of the simulation"
            )
        return self.pairs[sparsity]


def network_recovery(
    sparsities: Sequence[int] = NETWORK_SPARSITIES,
    *,
    num_samples: int = 500,
    num_features: int = 50,
    num_test: int = 1000,
    num_replicates: int = 200,
    correlation: float = 0.0,
    seed: int = 42,
) -> NetworkRecovery:
    """Draw the simulation for networks; with the defaults, exactly the published one.

    numpy's legacy generator draws, in this order, X (n, p), the test X, the noise (n, replicates), then for s = 2, 4,
    ... in turn, requested or not, the features of all replicates, uniform without replacement; pairs are neighbors in
    the order drawn. So the draws for one s do not depend on which others are requested, but they depend on the number
    of replicates: to get some of the published replicates, draw them all and select.

    Source: the simulations of HarderLASSO, arXiv 2411.17180, where s goes from 0 to 20.

    Args:
        sparsities: The numbers s of true features, each even, from 0 to p.
        num_samples: The number of samples, n.
        num_features: The number of features, p.
        num_test: How many test samples.
        num_replicates: How many replicates for each s.
        correlation: Of every two columns of X and of the test X, in [0, 1), before they are standardized.
        seed: Determines the draws.

    Raises:
        ValueError: If a sparsity is odd, out of range or named twice, the correlation is out of range, or there are
            fewer than two samples to standardize.
    """
    _check_sizes(sparsities, num_samples, num_features, num_test, num_replicates)
    if any(s % 2 for s in sparsities):
        raise ValueError(f"sparsities={list(sparsities)}: the true features come in pairs; pass even numbers")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation={correlation} of every two columns; pass a number in [0, 1)")
    rng = np.random.RandomState(seed)
    X, X_test = (rng.normal(size=(rows, num_features)) for rows in (num_samples, num_test))
    if correlation:
        covariance = np.full((num_features, num_features), correlation) + (1 - correlation) * np.eye(num_features)
        X, X_test = (Z @ np.linalg.cholesky(covariance).T for Z in (X, X_test))
    noise = rng.normal(size=(num_samples, num_replicates))
    pairs = {0: np.zeros((num_replicates, 0), dtype=np.int64)}
    for s in range(2, max(sparsities, default=0) + 1, 2):
        pairs[s] = np.array([rng.choice(num_features, s, replace=False) for _ in range(num_replicates)])
    settings = (num_samples, num_features, num_test, num_replicates, seed)
    return NetworkRecovery(
        X=torch.from_numpy(_standardized(X)),
        X_test=torch.from_numpy(_standardized(X_test)),
        noise=torch.from_numpy(noise.T.copy()),
        pairs={s: torch.from_numpy(pairs[s]).unflatten(1, (s // 2, 2)) for s in sparsities},
        is_published=settings == PUBLISHED_NETWORK_DRAWS and not correlation,
    )


def _check_sizes(
    sparsities: Sequence[int], num_samples: int, num_features: int, num_test: int, num_replicates: int
) -> None:
    if len(set(sparsities)) < len(sparsities) or not all(0 <= s <= num_features for s in sparsities):
        raise ValueError(f"sparsities={list(sparsities)}; pass different numbers from 0 to num_features={num_features}")
    if min(num_samples, num_test) < 2 or min(num_features, num_replicates) < 1:
        raise ValueError(
            f"num_samples={num_samples}, num_test={num_test}, num_features={num_features}, "
            f"num_replicates={num_replicates}; pass at least 2 samples, 2 test samples, 1 feature and 1 replicate"
        )


def _standardized(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / X.std(axis=0)
