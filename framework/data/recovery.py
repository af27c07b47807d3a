"""The published simulation of sparse linear regression: what fraction of its supports does a method recover?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from framework.data.sparse import COEFFICIENTS

# The settings of the published study: samples, features, test samples, replicates, seed.
PUBLISHED_DRAWS = (70, 250, 1000, 200, 42)
# The numbers of non-zero coefficients in its table.
SPARSITIES = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20)


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
    if len(set(sparsities)) < len(sparsities) or not all(0 <= s <= num_features for s in sparsities):
        raise ValueError(f"sparsities={list(sparsities)}; pass different numbers from 0 to num_features={num_features}")
    if min(num_samples, num_test) < 2 or min(num_features, num_replicates) < 1:
        raise ValueError(
            f"num_samples={num_samples}, num_test={num_test}, num_features={num_features}, "
            f"num_replicates={num_replicates}; pass at least 2 samples, 2 test samples, 1 feature and 1 replicate"
        )
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


def _standardized(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / X.std(axis=0)
