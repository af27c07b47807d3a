"""Time HappyLambdaLinear against a Python loop over draws; the two alternate, and medians are printed.

uv run python scripts/benchmark_happy_lambda.py --repeats 5 --threads 1
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from framework.happy_lambda import HappyLambdaLinear


def loop_over_draws(X: Tensor, distribution_count: int) -> float:
    """Compute the threshold one draw at a time, as the reference."""
    statistics = []
    for _ in range(distribution_count):
        g = torch.randn(len(X))
        g -= g.mean()
        statistics.append((X.T @ g).abs().max() / g.norm())
    return torch.stack(statistics).quantile(0.95).item()


def seconds(compute: Callable[[], float]) -> float:
    start = time.perf_counter()
    compute()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--features", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    X = torch.randn(args.samples, args.features)
    loops, ours = [], []
    for _ in range(args.repeats):
        loops.append(seconds(lambda: loop_over_draws(X, args.draws)))
        ours.append(seconds(HappyLambdaLinear(X, args.draws).run))
    print(f"n={args.samples} p={args.features} draws={args.draws} threads={args.threads}, median of {args.repeats}")
    print(f"loop over draws    {median(loops):8.3f} s")
    print(f"HappyLambdaLinear  {median(ours):8.3f} s")
    print(f"ratio              {median(loops) / median(ours):8.1f}")


if __name__ == "__main__":
    main()
