"""The published simulation of sparse linear regression: which share of its supports does a method recover?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from framework.data.sparse import COEFFICIENTS

# The numbers of non-zero coefficients at which recovery was published.
SPARSITIES = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 20)


@dataclass(frozen=True)
class LinearRecovery:
    """Replicates of y = X w + noise on one design, w having s non-zero entries. All tensors are float64.

    Attributes:
        X: The design, shape (n, p), columns of mean 0 and standard deviation 1.
        X_test: Further samples, shape (num_test, p), standardised by their own means and deviations.
        noise: One noise vector for each replicate, the same at every s: shape (replicates, n).
        weights: The true coefficients by s, each of shape (replicates, p).
    """

    X: Tensor
    X_test: Tensor
    noise: Tensor
    weights: dict[int, Tensor]

    def targets(self, sparsity: int) -> Tensor:
        """Computes the responses of all replicates with `sparsity` true coefficients, shape (replicates, n)."""
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
    """Draws the simulation; with the defaults, exactly the published one.

    numpy's legacy generator draws, in this order, X (n, p), the test X, the noise (n, replicates), then for each s in
    turn the supports of all replicates, uniform without replacement. Replicate i draws its coefficients, uniform over
    `COEFFICIENTS`, from a generator of its own, seeded `seed` + i. So the draws at one s depend on the sparsities
    before it and on the number of replicates: for some of the published replicates draw them all, and take some.

    Source: the simulations of HarderLASSO, arXiv 2411.17180.

    Args:
        sparsities: The numbers s of true coefficients, each from 0 to p.
        num_samples: n.
        num_features: p.
        num_test: How many test samples.
        num_replicates: How many replicates at each s.
        seed: Selects the draws.

    Raises:
        ValueError: A sparsity is out of range or named twice, or there are fewer than two samples to standardise.
    """
    if len(set(sparsities)) < len(sparsities) or not all(0 <= s <= num_features for s in sparsities):
        raise ValueError(f"sparsities={list(sparsities)}; pass different numbers from 0 to num_features={num_features}")
    if min(num_samples, num_test) < 2 or min(num_features, num_replicates) < 1:
        raise ValueError(
            f"num_samples={num_samples}, num_test={num_test}, num_features={num_features}, "
            f"num_replicates={num_replicates}; pass at least 2 samples, 2 test samples, 1 feature and 1 replicate"
        )
    rng = np.random.RandomState(seed)
    X, X_test = (_standardised(rng.normal(size=(rows, num_features))) for rows in (num_samples, num_test))
    noise = rng.normal(size=(num_samples, num_replicates))
    weights = {s: np.zeros((num_replicates, num_features)) for s in sparsities}
    for s in sparsities:
        for i in range(num_replicates if s else 0):
            support = rng.choice(num_features, s, replace=False)
            weights[s][i, support] = np.random.RandomState(seed + i).choice(COEFFICIENTS, s)
    return LinearRecovery(
        X=torch.from_numpy(X),
        X_test=torch.from_numpy(X_test),
        noise=torch.from_numpy(noise.T.copy()),
        weights={s: torch.from_numpy(w) for s, w in weights.items()},
    )


def _standardised(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(axis=0)) / X.std(axis=0)
