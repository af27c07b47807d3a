"""Time the lasso to the same gap: our trainer with and without a working set, against skglm and celer.

    uv run --with skglm --with celer python -m scripts.benchmark_lasso

The objective is ||y - X w||^2 / (2 n) + lam ||w||_1 in float64, X standard normal, a fiftieth of the features relevant.
What is compared is the time of the processor, on one thread, the least of a few fits after one that does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from framework import Callback, Module, Trainer
from framework.callbacks import Stationarity, WorkingSet
from framework.data import TensorLoader
from framework.optim import SpaRSA
from framework.penalties import L1

SIZES = ((200, 1000), (1000, 5000))
SHARES = (0.1, 0.01)  # of the smallest weight at which nothing is selected
TOLERANCE = 1e-5  # the largest gap, as a share of the weight


class _Lasso(Module):
    penalty = L1()

    def __init__(self, num_features: int, weight: float) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.linear.weight)
        self.happy_lambda = weight

    def param_groups(self) -> list[dict]:
        return [{"params": [self.linear.weight], "penalized": True}]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return (self.linear(x) - y).square().mean() / 2

    def configure_optimizers(self) -> SpaRSA:
        return SpaRSA(self.param_groups())


def in_trainer(X: np.ndarray, y: np.ndarray, weight: float, *callbacks: Callback) -> np.ndarray:
    """Fit by our trainer, and return the coefficients (p,)."""
    module = _Lasso(X.shape[1], weight)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=10_000,
        callbacks=[Stationarity(TOLERANCE * weight), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, TensorLoader(torch.from_numpy(X), torch.from_numpy(y)[:, None], batch_size=len(X)))
    return module.linear.weight[0].detach().numpy()


def contenders(X: np.ndarray, y: np.ndarray, weight: float) -> dict[str, Callable[[], np.ndarray]]:
    """Return what fits, by name; skglm and celer where they are installed."""
    found = {
        "proxtrain": lambda: in_trainer(X, y, weight),
        "proxtrain, WorkingSet": lambda: in_trainer(X, y, weight, WorkingSet()),
    }
    columns = np.asfortranarray(X)
    options = {"alpha": weight, "fit_intercept": False, "max_iter": 1000}
    try:
        import celer
        import skglm
    except ImportError:
        return found
    found["skglm"] = lambda: skglm.Lasso(tol=TOLERANCE * weight, **options).fit(columns, y).coef_
    found["celer"] = lambda: celer.Lasso(tol=1e-8, **options).fit(columns, y).coef_
    return found


def gap(X: np.ndarray, y: np.ndarray, coefficients: np.ndarray, weight: float) -> float:
    """Compute the largest distance of minus the gradient from the subdifferential, as a share of the weight."""
    gradient = torch.from_numpy(X.T @ (X @ coefficients - y) / len(y))
    return float(L1().subgradient_gap(torch.from_numpy(coefficients), gradient, weight)) / weight


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Time the lasso to the same gap.")
    parser.add_argument("--fits", type=int, default=5, help="fits that count (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.fits < 1:
        parser.error(f"--fits {args.fits}: it must be at least 1")
    torch.set_num_threads(1)
    print("| n x p | share | contender | ms | gap / weight | selected |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    for n, p in SIZES:
        generator = np.random.default_rng(0)
        X, truth = generator.standard_normal((n, p)), np.zeros(p)
        truth[: p // 50] = generator.standard_normal(p // 50)
        y = X @ truth + generator.standard_normal(n)
        for share in SHARES:
            weight = share * float(abs(X.T @ y).max()) / n
            for name, fit in contenders(X, y, weight).items():
                seconds = []
                for _ in range(args.fits + 1):
                    started = time.process_time()
                    coefficients = fit()
                    seconds.append(time.process_time() - started)
                cells = [f"{n} x {p}", share, name, f"{1e3 * min(seconds[1:]):.0f}"]
                cells += [f"{gap(X, y, coefficients, weight):.0e}", int((coefficients != 0).sum())]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
