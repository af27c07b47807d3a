"""Compare the proximal optimizers on linear problems and on a sparse network, counting evaluations.

Run:
    python scripts/compare_optimizers.py            # both tables
    python scripts/compare_optimizers.py --path     # support found along the path of weights, six seeds
    python scripts/compare_optimizers.py --sklearn  # seconds against scikit-learn's Lasso, one thread

A value of f costs 1, a value with its gradient 2. Everything is float64, on one thread, and seeded, so the counts are
the same in every run.
"""

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from framework.optim import FISTA, ISTA, ProximalOptimizer, SpaRSA
from framework.penalties import L1

Maker = Callable[[list, float], ProximalOptimizer]


class Done(Exception):  # noqa: N818 (not an error: the end of a run)
    """Raised by a counting closure when its budget is used up or its goal is reached."""


class CountingClosure:
    """The closure of a problem's f, which counts its cost; `goal` checks the point after each gradient."""

    def __init__(self, loss: Callable[[], Tensor], params: Sequence[Tensor], goal: Callable[[], bool] = lambda: False):
        self.loss, self.params, self.goal = loss, params, goal
        self.cost, self.budget, self.reached = 0, math.inf, False

    def __call__(self) -> Tensor:
        self._spend(2)
        for p in self.params:
            p.grad = None
        with torch.enable_grad():
            loss = self.loss()
            loss.backward()
        if self.goal():
            self.reached = True
            raise Done
        return loss.detach()

    def value(self) -> Tensor:
        self._spend(1)
        with torch.no_grad():
            return self.loss()

    def _spend(self, cost: int) -> None:
        if self.cost + cost > self.budget:
            raise Done
        self.cost += cost


class PublishedISTA(ProximalOptimizer):
    """The published rule: one tensor at a time, t starting at 1 in every step, halved until the objective is lower."""

    @torch.no_grad()
    def step(self, closure: CountingClosure) -> None:  # type: ignore[override]
        F = float(closure()) + float(self.penalty_value())
        for group in self.param_groups:
            lam = group["happy_lambda"] * group["penalized"]
            for p in group["params"]:
                start, grad, t = p.clone(), p.grad.clone(), 1.0
                p.copy_(self.penalty_in_force.prox(start - t * grad, t, lam))
                while float(closure.value()) + float(self.penalty_value()) >= F and not torch.allclose(
                    start, p, rtol=1e-4
                ):
                    t /= 2
                    p.copy_(self.penalty_in_force.prox(start - t * grad, t, lam))


OPTIMIZERS: dict[str, Maker] = {
    "published ISTA": lambda params, lam: PublishedISTA(params, lam, None),
    "ISTA growth=1": lambda params, lam: ISTA(params, lam, growth=1.0),
    "ISTA": lambda params, lam: ISTA(params, lam),
    "FISTA": lambda params, lam: FISTA(params, lam),
    "SpaRSA plain": lambda params, lam: SpaRSA(params, lam, history_size=0),
    "SpaRSA": lambda params, lam: SpaRSA(params, lam),
}


# --- Linear: lasso ||y - Xw||^2 / 2 + lam ||w||_1 and square-root lasso ||y - Xw|| + lam ||w||_1 ---------------------


def linear_data(n: int, p: int, correlation: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw X (n, p), neighboring columns correlated (autoregressive), and y with ten true coefficients, noise 1."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, p, generator=generator, dtype=torch.float64)
    for j in range(1, p if correlation else 0):
        X[:, j] = correlation * X[:, j - 1] + math.sqrt(1 - correlation**2) * X[:, j]
    support = torch.randperm(p, generator=generator)[:10]
    values = torch.tensor([-3.0, -2, -1, 1, 2], dtype=torch.float64)
    w = values[torch.randint(5, (10,), generator=generator)]
    return X, X[:, support] @ w + torch.randn(n, generator=generator, dtype=torch.float64)


def quantile_universal_threshold(X: Tensor, draws: int = 1000, seed: int = 1) -> float:
    """Compute the 0.95 quantile of ||X'g||_inf / ||g|| over centered normal g."""
    g = torch.randn(X.shape[0], draws, generator=torch.Generator().manual_seed(seed), dtype=X.dtype)
    g -= g.mean(0)
    return float(((X.T @ g).abs().amax(0) / g.norm(dim=0)).quantile(0.95))


def relative_gap(X: Tensor, y: Tensor, w: Tensor, lam: float, root: bool) -> float:
    """Compute (primal - dual) / primal, where the dual point is the residual scaled to be feasible."""
    r = y - X @ w
    norm = r.norm()
    theta = r / norm if root else r
    theta = theta * min(1.0, lam / float((X.T @ theta).abs().max()))
    primal = (norm if root else norm**2 / 2) + lam * w.abs().sum()
    dual = theta @ y if root else theta @ y - theta @ theta / 2
    return float((primal - dual) / primal)


def linear_closure(X: Tensor, y: Tensor, lam: float, root: bool, tolerance: float) -> CountingClosure:
    w = torch.zeros(X.shape[1], dtype=X.dtype, requires_grad=True)

    def loss() -> Tensor:
        r = y - X @ w
        return r.norm() if root else r @ r / 2

    return CountingClosure(loss, [w], lambda: relative_gap(X, y, w.detach(), lam, root) <= tolerance)


def compare_linear(max_cost: int) -> None:
    print("\nLinear: cost from zero to relative duality gap 1e-6")
    print(f"{'problem':36}" + "".join(f"{name:>16}" for name in OPTIMIZERS))
    for n, p, correlation in [(100, 500, 0.0), (300, 2000, 0.9), (1000, 5000, 0.0)]:
        X, y = linear_data(n, p, correlation)
        for root in (False, True):
            lam = quantile_universal_threshold(X) if root else 0.01 * float((X.T @ y).abs().max())
            name = f"{n} x {p}, {'square-root lasso' if root else 'lasso'}"
            costs = []
            for make in OPTIMIZERS.values():
                closure = linear_closure(X, y, lam, root, 1e-6)
                closure.budget = max_cost
                reached = run(make(list(closure.params), lam), closure)
                costs.append(f"{closure.cost if reached else f'> {max_cost}':>16}")
            print(f"{name:36}" + "".join(costs), flush=True)


def run(optimizer: ProximalOptimizer, closure: CountingClosure) -> bool:
    """Take steps until the goal is reached (return True) or the budget is used up (return False)."""
    try:
        while True:
            optimizer.step(closure)
    except Done:
        return closure.reached


# --- A network with one hidden layer, first layer penalized --------------------------------------------------------


class SparseMLP(torch.nn.Module):
    """The network y = W_2 relu(W_1 x + b_1) + b_2, with rows of W_2 of unit norm."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = torch.nn.Linear(inputs, hidden, dtype=torch.float64)
        self.fc2 = torch.nn.Linear(hidden, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        W2 = self.fc2.weight / self.fc2.weight.norm(dim=1, keepdim=True)
        return (torch.relu(self.fc1(x)) @ W2.T + self.fc2.bias).squeeze(1)

    def param_groups(self) -> list[dict]:
        return [
            {"params": list(self.fc1.parameters()), "penalized": True},
            {"params": list(self.fc2.parameters()), "penalized": False},
        ]


def mlp_problem(seed: int, num_active: int = 2) -> tuple[SparseMLP, Callable[[], Tensor], float, set[int]]:
    """Draw y = 10 sum |x_a - x_b| + noise (n = 500, p = 50); return a net after 600 Adam steps, f, QUT and support."""
    torch.manual_seed(seed)
    X = torch.randn(500, 50, dtype=torch.float64)
    support = torch.randperm(50)[:num_active]
    pairs = X[:, support].unflatten(1, (-1, 2))
    y = 10 * (pairs[..., 0] - pairs[..., 1]).abs().sum(1) + torch.randn(500, dtype=torch.float64)
    net = SparseMLP(50, 20)

    def loss() -> Tensor:
        return torch.linalg.vector_norm(y - net(X))

    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(600):
        adam.zero_grad()
        loss().backward()
        adam.step()
    return net, loss, quantile_universal_threshold(X), set(support.tolist())


def objective(net: SparseMLP, loss: Callable[[], Tensor], lam: float) -> float:
    with torch.no_grad():
        return float(loss() + sum(L1().value(p, lam) for p in net.fc1.parameters()))


def compare_mlp(seeds: Sequence[int], costs: Sequence[int] = (300, 1000, 3000)) -> None:
    print("\nMLP, lambda = 0.269 QUT after 600 Adam steps: objective at a cost of", *costs)
    for name, make in OPTIMIZERS.items():
        rows = []
        for seed in seeds:
            net, loss, qut, _ = mlp_problem(seed)
            lam = qut * math.exp(-1) / (1 + math.exp(-1))
            closure = CountingClosure(loss, list(net.parameters()))
            optimizer = make(net.param_groups(), lam)
            for closure.budget in costs:
                run(optimizer, closure)
                rows.append(objective(net, loss, lam))
        print(
            f"{name:20}"
            + " |".join(
                "".join(f"{v:8.2f}" for v in rows[i : i + len(costs)]) for i in range(0, len(rows), len(costs))
            ),
            flush=True,
        )


def compare_path(seeds: Sequence[int], cost_per_stage: int) -> None:
    """Follow the weights lambda e^k / (1 + e^k), k = -1..4, then lambda itself (LASSO ANN, Sardy et al. 2022)."""
    print(f"\nMLP path, cost {cost_per_stage} at each of 7 weights: non-zero inputs (* = exactly the true ones)")
    weights = [math.exp(k) / (1 + math.exp(k)) for k in range(-1, 5)] + [1.0]
    for name, make in OPTIMIZERS.items():
        row, exact = "", 0
        for seed in seeds:
            net, loss, qut, support = mlp_problem(seed)
            closure = CountingClosure(loss, list(net.parameters()))
            optimizer = make(net.param_groups(), qut)
            for stage, weight in enumerate(weights):
                optimizer.param_groups[0]["happy_lambda"] = weight * qut
                closure.budget = (stage + 1) * cost_per_stage
                run(optimizer, closure)
            found = set(net.fc1.weight.detach().abs().amax(0).nonzero().flatten().tolist())
            exact += found == support
            row += f"{len(found):4d}{'*' if found == support else ' '}"
        print(f"{name:20}{row}   exact {exact} of {len(seeds)}", flush=True)


def compare_sklearn(tolerance: float = 1e-6, repeats: int = 5) -> None:
    from sklearn.linear_model import Lasso

    X, y = linear_data(1000, 5000, 0.0)
    lam = 0.01 * float((X.T @ y).abs().max())
    X_fortran, y_numpy = X.numpy().copy(order="F"), y.numpy()
    warnings.simplefilter("ignore")
    for tol in (10.0**-k / 2**j for k in range(4, 12) for j in range(4)):
        model = Lasso(alpha=lam / 1000, fit_intercept=False, tol=tol, max_iter=10**6).fit(X_fortran, y_numpy)
        if relative_gap(X, y, torch.from_numpy(model.coef_), lam, False) <= tolerance:
            break
    theirs = [_seconds(lambda: model.fit(X_fortran, y_numpy)) for _ in range(repeats)]

    counted = linear_closure(X, y, lam, False, tolerance)
    run(SpaRSA(list(counted.params), lam), counted)
    num_gradients = counted.cost // 2

    def ours() -> None:
        closure = linear_closure(X, y, lam, False, tolerance)
        closure.goal, closure.budget = lambda: False, 2 * num_gradients
        run(SpaRSA(list(closure.params), lam), closure)

    times = [_seconds(ours) for _ in range(repeats)]
    print(f"\nLasso 1000 x 5000 at .01 lambda_max, seconds to relative gap {tolerance:g} (best of {repeats}):")
    print(
        f"scikit-learn {min(theirs):.3f} (tol={tol:.2g}), SpaRSA {min(times):.3f} ({num_gradients} gradients), ", end=""
    )
    print(f"ratio {min(times) / min(theirs):.2f}")


def _seconds(function: Callable[[], object]) -> float:
    start = time.process_time()  # the time of this process alone (on one thread), whatever else is running
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", action="store_true", help="only the path of weights on the network")
    parser.add_argument("--sklearn", action="store_true", help="only the seconds against scikit-learn")
    parser.add_argument("--linear", action="store_true", help="only the linear table")
    parser.add_argument("--mlp", action="store_true", help="only the network's table")
    parser.add_argument("--max-cost", type=int, default=60000, help="budget on the linear problems")
    parser.add_argument("--stage-cost", type=int, default=1000, help="budget at each weight of the path")
    parser.add_argument("--only", nargs="+", choices=list(OPTIMIZERS), help="leave out the other optimizers")
    args = parser.parse_args()
    for name in set(OPTIMIZERS) - set(args.only or OPTIMIZERS):
        del OPTIMIZERS[name]
    torch.set_num_threads(1)
    every = not (args.path or args.sklearn or args.linear or args.mlp)
    if args.mlp or every:
        compare_mlp(seeds=range(3))
    if args.linear or every:
        compare_linear(args.max_cost)
    if args.path:
        compare_path(range(6), args.stage_cost)
    if args.sklearn:
        compare_sklearn()


if __name__ == "__main__":
    main()
