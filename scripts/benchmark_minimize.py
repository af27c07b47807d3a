"""Measure MinimizeWrapper: overhead, curvature, defaults and the training loss per method.

    uv run python scripts/benchmark_minimize.py [overhead] [curvature] [large] [pieces] [lbfgs] [memory] [dtype] [table]

Without arguments it runs everything; `memory` reads Fashion-MNIST from `DATA_ROOT`. Variants that are compared run
interleaved, and the medians of their times are compared.
"""

import argparse
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any
from unittest import mock

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
import torchvision
from scipy.optimize import OptimizeResult
from torch import Tensor, nn

from framework import Module, Trainer
from framework.data import TensorLoader
from framework.objective.vector import ParameterVector, unflatten
from framework.optim import MinimizeWrapper
from framework.optim.scipy_function import ScipyFunction
from framework.optim.scipy_methods import GRADIENT, HESSIAN, PRODUCT

Problem = tuple[nn.Module, Tensor, Tensor]


def softmax_problem(
    samples: int,
    features: int,
    classes: int,
    *,
    dtype: torch.dtype = torch.float32,
    noise: float = 1.0,
    correlation: float = 2.0,
) -> Problem:
    """Return a softmax regression on noisy labels of a random linear model.

    `correlation` is the number of decades over which the features' singular values fall: pixels have about two.
    """
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(samples, features, generator=generator)
    if correlation:
        scales = torch.logspace(0, -correlation, features)
        data = (data * scales) @ torch.randn(features, features, generator=generator)
        data /= data.std()
    logits = data @ torch.randn(features, classes, generator=generator) / features**0.5
    target = (logits + noise * torch.randn(samples, classes, generator=generator)).argmax(dim=1)
    model = nn.Linear(features, classes)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model.to(dtype), data.to(dtype), target


def closure_of(problem: Problem) -> Callable[[], Tensor]:
    model, data, target = problem

    def closure() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(model(data), target)
        loss.backward()
        return loss

    return closure


def interleaved(
    variants: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each variant; the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(rounds + 1):
        for name, run in variants.items():
            start = clock()
            run()
            if index:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def minimize(
    problem: Problem, method: str, stop: Callable[[int, float], object] | None = None, **options: Any
) -> MinimizeWrapper:
    for param in problem[0].parameters():
        nn.init.zeros_(param)
    optimizer = MinimizeWrapper(problem[0].parameters(), {"method": method, "options": options})
    optimizer.on_iteration = stop
    optimizer.step(closure_of(problem))
    return optimizer


def overhead() -> None:
    """Compare one evaluation through the wrapper, without and with the graph kept, to a bare forward and backward."""
    problem = softmax_problem(10_000, 2_500, 10)
    closure = closure_of(problem)
    vector = ParameterVector([{"params": list(problem[0].parameters())}])
    objectives = {
        "plain": ScipyFunction(closure, vector),
        "keeping the graph": ScipyFunction(closure, vector, keep_graph=True),
    }
    generator = np.random.default_rng(0)

    def evaluate(objective: ScipyFunction) -> None:
        objective.evaluate(generator.normal(scale=1e-3, size=len(vector)))
        objective.gradient(objective._x)

    variants: dict[str, Callable[[], Any]] = {"bare": closure}
    variants |= {name: lambda o=objective: evaluate(o) for name, objective in objectives.items()}  # type: ignore[misc]
    times = interleaved(variants, 30)
    print(f"\nOne evaluation, {len(vector):,} parameters, 10,000 samples: bare {times['bare'] * 1e3:.1f} ms")
    for name in objectives:
        print(f"  {name:18} {times[name] * 1e3:8.1f} ms   ratio {times[name] / times['bare']:.2f}")
    print("  target             plain at most 1.15")


def curvature() -> None:
    """Compare CPU seconds per iteration, on one thread, to those with the Hessian formed as in the seed code."""
    torch.set_num_threads(1)
    targets = {"Newton-CG": 1 / 30, "trust-ncg": 1 / 30, "trust-krylov": 1 / 30, "trust-exact": 0.7}
    for kind, noise in {"overlapping": 3.0, "separable": 0.3}.items():
        problem = softmax_problem(500, 49, 10, noise=noise, correlation=0.0)
        print(f"\nCPU seconds per iteration, 500 parameters, 500 samples, {kind} classes: seed's Hessian, ours")
        for method, target in targets.items():
            seed, ours = seed_minimize(problem, method), minimize(problem, method, maxiter=5).result
            assert ours is not None
            times = interleaved(
                {
                    "seed": lambda p=problem, m=method: seed_minimize(p, m),  # type: ignore[misc]
                    "ours": lambda p=problem, m=method: minimize(p, m, maxiter=5),  # type: ignore[misc]
                },
                3,
                time.process_time,
            )
            before, now = times["seed"] / seed.nit, times["ours"] / ours.nit
            print(
                f"  {method:13} {before:.4f} {now:.4f}   ratio {now / before:.3f} (1/{before / now:.0f})   "
                f"target {target:.3f}   {ours.nhev / ours.nit:.1f} products or Hessians per iteration"
            )


def seed_minimize(problem: Problem, method: str) -> OptimizeResult:
    """Run five iterations with the whole Hessian from `torch.autograd.functional.hessian`."""
    model, data, target = problem
    params = list(model.parameters())
    for param in params:
        nn.init.zeros_(param)
    objective = ScipyFunction(closure_of(problem), ParameterVector([{"params": params}]))

    def hessian(x: np.ndarray) -> np.ndarray:
        def loss(vector: Tensor) -> Tensor:
            weight, bias = unflatten(vector, params)
            return F.cross_entropy(F.linear(data, weight, bias), target)

        return torch.autograd.functional.hessian(loss, torch.from_numpy(x).float()).double().numpy()

    return scipy.optimize.minimize(
        objective.evaluate,
        objective.start,
        jac=objective.gradient,
        hess=hessian,
        method=method,
        options={"maxiter": 5},
    )


def large() -> None:
    """Measure how much memory product methods take for 50,000 parameters, in vectors of that length; run it alone."""
    problem = softmax_problem(1_000, 5_000, 10, correlation=0.0)
    size = sum(param.numel() for param in problem[0].parameters())
    minimize(problem, "L-BFGS-B", maxiter=3, maxcor=3)  # what any method needs: thread pools, gradients
    print(f"\n{size:,} parameters; growth of resident memory in float64 vectors (a Hessian is {size:,} of them)")
    for method in PRODUCT:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        result = minimize(problem, method, maxiter=3).result
        assert result is not None
        seconds = time.perf_counter() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (8 * size)
        print(
            f"  {method:13} {result.nit} iterations, {seconds:.1f} s, {grown:.0f} vectors more, loss {result.fun:.4f}"
        )


class Classifier(Module):
    """One hidden layer of 256, minimized by a method of scipy."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(100, 256), nn.Tanh(), nn.Linear(256, 10))
        self.method = method

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> MinimizeWrapper:
        return MinimizeWrapper(self.param_groups(), {"method": self.method, "options": {"maxiter": 2}})


def pieces() -> None:
    """Measure the peak memory of a minimization over all the data, in pieces and as one batch."""
    _, data, target = softmax_problem(100_000, 100, 10)
    print("\n100,000 samples, MLP 100-256-10; growth of peak resident memory, cumulative, and seconds")
    for method in ("L-BFGS-B", "Newton-CG"):
        for size in (1_000, 10_000, 100_000):  # the peak only grows: small first
            before, start = resident_megabytes(), time.perf_counter()
            trainer = Trainer(
                accelerator="cpu", max_epochs=1, accumulate_grad_batches="epoch", logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            torch.manual_seed(0)
            trainer.fit(Classifier(method), TensorLoader(data, target, batch_size=size))
            grown, seconds = resident_megabytes() - before, time.perf_counter() - start
            value = trainer.callback_metrics["iteration/objective"]
            print(f"  {method:10} batches of {size:7,}   {grown:6.0f} MB more   {seconds:5.1f} s   loss {value:.8f}")


def resident_megabytes() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lbfgs() -> None:
    """Compare L-BFGS-B to torch.optim.LBFGS over the same number of evaluations, with scipy's pool limited or not."""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        _against_lbfgs(threads)


def _against_lbfgs(threads: int) -> None:
    problem = softmax_problem(10_000, 784, 10)
    model, evaluations = problem[0], 40

    def torch_lbfgs() -> None:
        for param in model.parameters():
            nn.init.zeros_(param)
        optimizer = torch.optim.LBFGS(
            model.parameters(), max_iter=evaluations, max_eval=evaluations, history_size=50,
            tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
        )  # fmt: skip
        optimizer.step(closure_of(problem))
        count["LBFGS"] = optimizer.state[optimizer._params[0]]["func_evals"]

    def wrapper(name: str, unlimited: bool = False) -> None:
        # With ftol and gtol 0 it runs until the evaluations are used up.
        pool = mock.patch("threadpoolctl.LibController.set_num_threads") if unlimited else nullcontext()
        with pool:
            result = minimize(problem, "L-BFGS-B", maxfun=evaluations, ftol=0.0, gtol=0.0).result
        assert result is not None
        count[name] = result.nfev

    count: dict[str, int] = {}
    variants: dict[str, Callable[[], Any]] = {
        "LBFGS": torch_lbfgs,
        "L-BFGS-B": lambda: wrapper("L-BFGS-B"),
        "L-BFGS-B, scipy's pool unlimited": lambda: wrapper("L-BFGS-B, scipy's pool unlimited", unlimited=True),
    }
    times = interleaved(variants, 3)
    print(f"\nTime per evaluation, torch on {threads} of its threads, 7,850 parameters, 10,000 samples (target 1.3)")
    base = times["LBFGS"] / count["LBFGS"]
    for name in variants:
        per = times[name] / count[name]
        print(f"  {name:32} {per * 1e3:7.2f} ms   {count[name]} evaluations   ratio {per / base:.2f}")


def memory() -> None:
    """Measure L-BFGS-B's evaluations and CPU seconds to the same loss, by memory size (`maxcor`), on Fashion-MNIST."""
    torch.set_num_threads(1)
    images = torchvision.datasets.FashionMNIST(os.environ.get("DATA_ROOT", "data"), download=False)
    data, target = images.data[:3_000].reshape(-1, 784) / 255, images.targets[:3_000]
    problem = (nn.Linear(784, 10), data, target)
    goal = minimize(problem, "L-BFGS-B", maxiter=150, maxcor=10, ftol=0.0, gtol=0.0).result
    assert goal is not None

    def stop(iteration: int, value: float) -> None:
        if value <= goal.fun:
            raise StopIteration

    print(f"\nL-BFGS-B to a loss of {goal.fun:.4f}, 3,000 images of Fashion-MNIST, 7,850 parameters, CPU seconds")
    for maxcor in (10, 20, 50, 100):
        options = {"maxcor": maxcor, "ftol": 0.0, "gtol": 0.0, "maxiter": 1000}
        start = time.process_time()
        result = minimize(problem, "L-BFGS-B", stop=stop, **options).result
        assert result is not None
        print(f"  maxcor {maxcor:4}   {result.nfev:4} evaluations   {time.process_time() - start:6.2f} s")


def dtype() -> None:
    """Compare a float32 model under scipy's float64 vectors to a float64 model."""
    torch.set_num_threads(1)
    results: dict[str, OptimizeResult | None] = {}
    variants: dict[str, Callable[[], Any]] = {}
    for name, kind in {"float32": torch.float32, "float64": torch.float64}.items():
        problem = softmax_problem(5_000, 784, 10, dtype=kind)
        results[name] = minimize(problem, "L-BFGS-B", maxiter=100, ftol=0.0).result
        variants[name] = lambda p=problem: minimize(p, "L-BFGS-B", maxiter=100, ftol=0.0)  # type: ignore[misc]
    times = interleaved(variants, 3, time.process_time)
    print("\n100 iterations of L-BFGS-B, 7,850 parameters, 5,000 samples, CPU seconds")
    for name, result in results.items():
        assert result is not None
        print(f"  {name}   {times[name]:.2f} s   loss {result.fun:.6f}   ratio {times[name] / times['float64']:.2f}")


def table() -> None:
    """Print the training loss per method on pytorch-minimize's classification problem."""
    from sklearn.datasets import make_classification
    from sklearn.model_selection import train_test_split

    torch.set_num_threads(1)
    np.random.seed(0)
    data, target = make_classification(n_samples=120, n_informative=10, n_features=20, n_classes=10)
    data, _, target, _ = train_test_split(data, target, test_size=2 / 12, random_state=0)
    print("\n| method | float32 loss | evaluations | float64 loss | evaluations |\n| --- | --- | --- | --- | --- |")
    for method in GRADIENT + PRODUCT + HESSIAN:
        cells = []
        for kind in (torch.float32, torch.float64):
            torch.manual_seed(0)
            model = nn.Linear(20, 10).to(kind)
            optimizer = MinimizeWrapper(model.parameters(), {"method": method, "options": {"maxiter": 10_000}})
            problem = (model, torch.from_numpy(data).to(kind), torch.from_numpy(target))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # dogleg's warning
                loss = optimizer.step(closure_of(problem))
            assert optimizer.result is not None
            refused = method == "dogleg" and not optimizer.result.success
            cells += ["needs a positive definite Hessian" if refused else f"{loss:.1e}", f"{optimizer.result.nfev}"]
        print(f"| {method} | {' | '.join(cells)} |")


BENCHMARKS = {
    function.__name__: function for function in (overhead, curvature, large, pieces, lbfgs, memory, dtype, table)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    for name in parser.parse_args().names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
