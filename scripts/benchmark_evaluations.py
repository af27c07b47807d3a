"""The benchmark's steps that evaluate many times: ours per evaluation, and what the same costs by hand.

- LBFGS: `torch.optim.LBFGS` in our trainer, eager and compiled, and in a loop by hand; MLP 1-100-1, 80 points.
- SpaRSA on a lasso of 200 x 1000, and as many times its two matrix products: what no implementation can do without.
- scipy's L-BFGS-B and trust-ncg on an MLP of 501 weights and 200 points, by our wrapper in our trainer, and by hand:
  the gradient by `torch.autograd.grad`, products with the Hessian by a second one, vectors by concatenation.

Everything is float64. The clock is that of `scripts.benchmark_loops`. Both sides must end at the same loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import framework
from framework.data import TensorLoader, cubic
from framework.optim import MinimizeWrapper, SpaRSA
from framework.penalties import L1
from scripts.benchmark_loops import Clock, fresh_start


@dataclass
class Cost:
    """What one minimization cost.

    Attributes:
        seconds: All of it, from the first step to the end of the last.
        evaluations: How many evaluations it made, or iterations of scipy's.
        loss: The last loss; None if nothing was minimized.
    """

    seconds: float
    evaluations: int
    loss: float | None


@dataclass
class Problem:
    """A full-batch problem.

    Attributes:
        x: Inputs (N, ...).
        y: Targets (N, ...).
        make_net: Builds the network; called after the seed is set, it always builds the same one.
        make_optimizer: Builds our trainer's optimizer from its parameter groups.
        by_hand: Does the same work without us, given how many evaluations we made.
        steps: Optimizer steps.
        targets: For each way of ours, the highest acceptable ratio of its time to that by hand.
        penalty: g; None for none.
        unit: What is counted.
    """

    x: Tensor
    y: Tensor
    make_net: Callable[[], nn.Module]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    by_hand: Callable[[Problem, int], Cost]
    steps: int
    targets: dict[str, float]
    penalty: framework.penalties.Penalty | None = None
    unit: str = "evaluation"

    def loss(self, net: nn.Module) -> Tensor:
        """Compute the mean squared error over all samples."""
        return F.mse_loss(net(self.x), self.y)


class _Module(Clock, framework.Module):
    """A problem as our users would write it. With ``compile``, the clock starts when the graph is there."""

    def __init__(self, problem: Problem, uncounted: int) -> None:
        super().__init__()
        self.net, self.problem, self.uncounted = problem.make_net(), problem, uncounted
        self.penalty, self.before = problem.penalty, 0

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "penalized": self.penalty is not None}]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.problem.make_optimizer(self.param_groups())

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.uncounted:
            self.started, self.before = time.perf_counter(), self.trainer.closure_evaluations


def in_trainer(problem: Problem, folder: Path, *, compile: str | None = None) -> Cost:
    """Minimize by our trainer with its defaults: TensorBoard, progress bar, checkpoint."""
    fresh_start()
    uncounted = 0 if compile is None else 2
    module = _Module(problem, uncounted)
    trainer = framework.Trainer(
        accelerator="cpu", max_epochs=problem.steps + uncounted, default_root_dir=folder, compile=compile
    )
    trainer.fit(module, TensorLoader(problem.x, problem.y, batch_size=len(problem.x)))
    evaluations = trainer.closure_evaluations - module.before
    optimizer = trainer.optimizers[0]
    if isinstance(optimizer, MinimizeWrapper):
        assert optimizer.result is not None
        evaluations = optimizer.result.nit
    with torch.no_grad():
        return Cost(module.ended - module.started, evaluations, problem.loss(module.net).item())


def measure(problem: Problem, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return microseconds per evaluation, one for each round, after one round that does not count.

    Raises:
        RuntimeError: If the loss by hand is another than ours (a compiled run makes a few steps more).
    """
    micros: dict[str, list[float]] = {name: [] for name in (*problem.targets, "by hand")}
    for round_ in range(-1, rounds):
        costs = {}
        for name in problem.targets:
            costs[name] = in_trainer(problem, folder, compile="step" if "compile" in name else None)
        costs["by hand"] = hand = problem.by_hand(problem, costs["proxtrain"].evaluations)
        ours = costs["proxtrain"]
        if ours.loss is not None and hand.loss is not None and not np.isclose(ours.loss, hand.loss, rtol=1e-2):
            raise RuntimeError(f"we ended at {ours.loss}, by hand it is {hand.loss}: different work")
        if round_ >= 0:
            for name, cost in costs.items():
                micros[name].append(1e6 * cost.seconds / cost.evaluations)
    return micros


# ------------------------------------------------------------------------------------------------ by hand


def lbfgs_by_hand(problem: Problem, evaluations: int) -> Cost:
    """Run torch's LBFGS in the loop of its documentation."""
    fresh_start()
    net, count = problem.make_net(), 0
    optimizer = problem.make_optimizer(net.parameters())

    def closure() -> Tensor:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = problem.loss(net)
        loss.backward()
        return loss

    started = time.perf_counter()
    for _ in range(problem.steps):
        optimizer.step(closure)  # type: ignore[arg-type]  # a closure may return a tensor
    seconds = time.perf_counter() - started
    return Cost(seconds, count, problem.loss(net).item())


def products_by_hand(problem: Problem, evaluations: int) -> Cost:
    """Multiply by the design matrix and its transpose as often as there were evaluations, and do nothing else."""
    weight = torch.zeros(1, problem.x.shape[1], dtype=problem.x.dtype)
    started = time.perf_counter()
    for _ in range(evaluations):
        residual = weight @ problem.x.T - problem.y.T
        _ = residual @ problem.x
    seconds = time.perf_counter() - started
    return Cost(seconds, evaluations, None)


def scipy_by_hand(problem: Problem, evaluations: int) -> Cost:
    """Run scipy's own method on a function of a vector."""
    fresh_start()
    net = problem.make_net()
    params = list(net.parameters())
    arguments = dict(problem.make_optimizer(params).minimizer_args)  # type: ignore[attr-defined]
    with_products = arguments["method"] == "trust-ncg"
    at: np.ndarray = np.array(())
    gradient = torch.zeros(())

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal at, gradient
        with torch.no_grad():
            vector_to_parameters(torch.from_numpy(x), params)
        loss = problem.loss(net)
        gradients = torch.autograd.grad(loss, params, create_graph=with_products)
        at, gradient = x.copy(), torch.cat([part.reshape(-1) for part in gradients])
        return loss.item(), gradient.detach().numpy()

    def product(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
        if not np.array_equal(x, at):  # after a step that scipy rejected
            evaluate(x)
        parts = torch.autograd.grad(gradient, params, torch.from_numpy(direction), retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts]).numpy()

    started = time.perf_counter()
    result = scipy.optimize.minimize(
        evaluate,
        parameters_to_vector(params).detach().numpy(),
        jac=True,
        hessp=product if with_products else None,
        **arguments,
    )
    return Cost(time.perf_counter() - started, result.nit, result.fun)


# --------------------------------------------------------------------------------------------- problems


def lbfgs(steps: int = 4) -> Problem:
    """Return the noisy cubic and torch's LBFGS, 100 iterations a step: what happens once per epoch weighs little."""
    x, y = (tensor.double() for tensor in cubic())
    return Problem(
        x=x,
        y=y,
        make_net=lambda: nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1)).double(),
        make_optimizer=lambda groups: torch.optim.LBFGS(
            groups, max_iter=100, history_size=50, tolerance_change=0, line_search_fn="strong_wolfe"
        ),
        by_hand=lbfgs_by_hand,
        steps=steps,
        targets={"proxtrain": 1.3, "proxtrain, compile='step'": 0.7},
    )


def sparsa(steps: int = 2) -> Problem:
    """Return a lasso of 200 samples and 1,000 features, 10 of them relevant, and SpaRSA, 100 iterations a step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1000, dtype=torch.float64, generator=generator)
    y = x[:, :10].sum(1, keepdim=True) + torch.randn(200, 1, dtype=torch.float64, generator=generator)
    return Problem(
        x=x,
        y=y,
        make_net=lambda: nn.Linear(1000, 1, bias=False).double(),
        make_optimizer=lambda groups: SpaRSA(groups, happy_lambda=0.03, max_iter=100),
        by_hand=products_by_hand,
        steps=steps,
        targets={"proxtrain": 1.3},
        penalty=L1(),
    )


def scipy_method(method: str, maxiter: int = 30) -> Problem:
    """Return a smooth regression with an MLP of 501 weights, and one of scipy's methods."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, dtype=torch.float64, generator=generator)
    # Our wrapper keeps 50 corrections, scipy 10.
    options = {"maxiter": maxiter} | ({"maxcor": 50} if method == "L-BFGS-B" else {})
    arguments = {"method": method, "options": options}
    return Problem(
        x=x,
        y=x.sin().sum(1, keepdim=True),
        make_net=lambda: nn.Sequential(
            nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)
        ).double(),
        make_optimizer=lambda groups: MinimizeWrapper(groups, arguments),
        by_hand=scipy_by_hand,
        steps=1,
        targets={"proxtrain": 1.05 if method == "trust-ncg" else 1.3},
        unit="iteration",
    )


def problems() -> dict[str, Problem]:
    """Return all problems by name."""
    return {
        "LBFGS": lbfgs(),
        "SpaRSA": sparsa(),
        "scipy's L-BFGS-B": scipy_method("L-BFGS-B"),
        "scipy's trust-ncg": scipy_method("trust-ncg"),
    }
