"""scipy's minimizers as a PyTorch optimizer."""

import functools
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import numpy as np
import scipy.optimize
import torch
from scipy.optimize import Bounds, OptimizeResult
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from framework.objective.vector import ParameterVector, expand_bounds
from framework.optim import scipy_methods
from framework.optim.scipy_function import ScipyFunction


class _Stop(Exception):  # noqa: N818 (like StopIteration, not an error)
    """Raised to leave scipy, whatever the method's own callback protocol is."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MinimizeWrapper(Optimizer):
    """scipy's minimizers for full-batch objectives: one step is one whole minimization by `scipy.optimize`.

    - with gradients: CG, BFGS, L-BFGS-B, TNC, SLSQP;
    - with Hessian-vector products, in linear memory: Newton-CG, trust-ncg, trust-krylov, trust-constr;
    - with the Hessian: trust-exact, dogleg (which needs it positive definite);
    - with values alone: Nelder-Mead, Powell, COBYLA, COBYQA;
    - global: basinhopping, differential_evolution, dual_annealing, shgo, brute; `options` are then the keyword
      arguments of `scipy.optimize.<method>`, and all but the first need finite bounds.

    scipy works on a float64 vector; the closure runs in the parameters' own dtype, on their device. Any closure works,
    even for curvature, which is derived from the loss whose `backward()` it calls (`objective/curvature.py`). The
    parameters end at the best point seen, even after an exception or Ctrl-C; under `constraints`, where the lowest
    value may be infeasible, they end at scipy's result or last iterate.

    The objective must be smooth: an L1 penalty stalls a quasi-Newton line search at its first kink and yields no exact
    zeros. Its smooth reformulation w = u - v with u, v >= 0 doubles the variables, and closure and parameters would no
    longer be the user's. `ISTA`, `FISTA` and `SpaRSA` handle the penalty itself, so a trainer refuses a penalty here
    (`requires_smooth`). Since one step is a whole minimization (`minimizes`), a trainer warns if it would make one per
    mini-batch.

    Defaults that differ from scipy's, based on measurements (scripts/benchmark_minimize.py): L-BFGS-B keeps 50
    corrections (`maxcor`) instead of 10, which halves the evaluations on images of 784 pixels; TNC takes its
    differences of gradients at the parameters' precision (`accuracy`), without which float32 stalls; and scipy's own
    linear algebra runs on one thread, because its thread pool competes with torch's.

    Args:
        params: Parameters or groups. A group may have `"bounds": (low, high)`, each None for no bound, a number, or a
            tensor of its parameter's shape. Frozen parameters are skipped.
        minimizer_args: `method`, and optionally `options`, `tol`, `bounds` and `constraints`, as for
            `scipy.optimize.minimize`. `bounds` may also be one `(low, high)` for all values, or two tensors (n,).

    Attributes:
        result: scipy's `OptimizeResult` of the last step; None before. Also available as `res`, as in pytorch-minimize.
        on_iteration: Called as `on_iteration(iteration, best_value)` after every iteration of scipy (for `brute`, every
            evaluation), with the parameters at the best point. It may raise `StopIteration`, which ends the
            minimization with `result.status` 99; any other exception propagates to the caller of `step`.

    Raises:
        ValueError: If the method is unknown or does not take an argument or option, nothing is trainable, or the
            parameters have several dtypes.
    """

    reevaluates = True
    expects_gradients = False
    handles_penalty = False
    requires_smooth = True
    minimizes = True

    def __init__(self, params: ParamsT, minimizer_args: Mapping[str, Any]) -> None:
        super().__init__(params, {"bounds": None})
        unknown = set(minimizer_args) - {"method", "options", "tol", "bounds", "constraints"}
        if unknown or "method" not in minimizer_args:
            raise ValueError(
                f"minimizer_args has {', '.join(sorted(minimizer_args)) or 'nothing'}: it needs `method` and may have "
                "`options`, `tol`, `bounds` and `constraints`; derivatives come from the closure, and callbacks "
                "through `on_iteration`"
            )
        self.minimizer_args = dict(minimizer_args)
        self.method = scipy_methods.canonical_method(minimizer_args["method"])
        self.result: OptimizeResult | None = None
        self.on_iteration: Callable[[int, float], object] | None = None
        vector = ParameterVector(self.param_groups)
        arguments, _ = self._arguments(vector)
        scipy_methods.check_arguments(self.method, vector.read().double().cpu().numpy(), arguments)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Minimize from the current parameters and leave them at the best point; return the closure's value there.

        Raises:
            ValueError: If the loss or its gradient is not finite, or the closure leaves no gradient.
        """
        if closure is None:
            raise TypeError("MinimizeWrapper evaluates many times per step: pass a closure, `optimizer.step(closure)`")
        vector = ParameterVector(self.param_groups)
        arguments, ours = self._arguments(vector)
        local = scipy_methods.local_method(self.method, arguments["options"])
        objective = ScipyFunction(
            closure,
            vector,
            keep_graph=local in scipy_methods.PRODUCT + scipy_methods.HESSIAN,
            bounds=arguments.get("bounds"),
            track_best=not arguments.get("constraints"),
        )
        report = _Report(self.method, objective, self.on_iteration, ours.get("maxiter"))
        with objective.function:
            try:
                # Where the loss is infinite, scipy's own arithmetic produces NaN, and scipy backs off.
                with _linear_algebra().limit(limits=1), np.errstate(invalid="ignore"):
                    self.result = self._minimize(objective, arguments, report)
                if not objective.track_best:
                    objective.accept(self.result.x)
            except _Stop as stop:
                self.result = report.stopped(stop)
        if self.method == "dogleg" and self.result.status == 3:
            self.result.message = (
                f"dogleg needs a positive definite Hessian, and after {self.result.nit} iterations it is not: "
                "use trust-exact or trust-ncg, which do not need it"
            )
            warnings.warn(self.result.message, RuntimeWarning, stacklevel=2)
        if ours.get("disp"):
            print(f"{self.result.message}\n         Current function value: {self.result.fun:f}")
        if objective.best_loss is None:
            raise ValueError("no finite loss was found; the parameters are left at the starting point")
        return objective.best_loss

    @property
    def res(self) -> OptimizeResult | None:
        """The `result`, under its name in pytorch-minimize."""
        return self.result

    def _arguments(self, vector: ParameterVector) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments for scipy, and the options that scipy lacks and that are handled here."""
        arguments = {name: value for name, value in self.minimizer_args.items() if name != "method"}
        options = _default_options(self.method, vector) | (arguments.get("options") or {})
        lacking = {"TNC": ["maxiter"], "L-BFGS-B": ["disp"]}.get(self.method, [])
        ours = {name: options.pop(name) for name in lacking if name in options}
        if self.method == "TNC" and ours.get("maxiter") is not None:
            options.setdefault("maxfun", np.iinfo(np.int32).max)  # otherwise scipy's default might end it earlier
        bounds = _bounds(vector, arguments.pop("bounds", None))
        return {**arguments, "options": options} | ({} if bounds is None else {"bounds": bounds}), ours

    def _minimize(self, objective: ScipyFunction, arguments: dict[str, Any], report: "_Report") -> OptimizeResult:
        if self.method in scipy_methods.GLOBAL:
            return scipy_methods.minimize_globally(self.method, objective, arguments, report)
        value_only = self.method in scipy_methods.DERIVATIVE_FREE
        return scipy.optimize.minimize(
            objective.value if value_only else objective.evaluate,
            objective.start,
            method=self.method,
            callback=report,
            **scipy_methods.derivatives(objective, self.method),
            **arguments,
        )


class _Report:
    """scipy's callback, which counts iterations and reports them with the parameters at the best point."""

    def __init__(
        self,
        method: str,
        objective: ScipyFunction,
        on_iteration: Callable[[int, float], object] | None,
        maxiter: int | None,
    ) -> None:
        self.method = method
        self.objective = objective
        self.on_iteration = on_iteration
        self.maxiter = maxiter
        self.num_iterations = 0

    def __call__(self, x: np.ndarray, *_: Any) -> None:
        iteration = _cobyqa_iteration() if self.method == "COBYQA" else self.num_iterations + 1
        if iteration == self.num_iterations:
            return
        self.num_iterations = iteration
        if not self.objective.track_best:
            self.objective.accept(x)
        if self.on_iteration is not None:
            self.objective.move(self.objective.best_x)
            try:
                self.on_iteration(self.num_iterations, self.objective.best_value)
            except StopIteration:
                raise _Stop(99, "`on_iteration` raised StopIteration.") from None
        if self.maxiter is not None and self.num_iterations >= self.maxiter:
            raise _Stop(1, "Maximum number of iterations has been exceeded.")

    def stopped(self, stop: _Stop) -> OptimizeResult:
        """Return the result of a minimization that was stopped, at its best point."""
        return OptimizeResult(
            x=self.objective.best_x,
            fun=self.objective.best_value,
            success=False,
            status=stop.status,
            message=str(stop),
            nit=self.num_iterations,
            nfev=self.objective.num_evaluations,
        )


def _cobyqa_iteration() -> int:
    """Return the number of COBYQA's current iteration, 0 while it builds its first model.

    scipy calls back after each evaluation, of which one iteration may make several, and passes no count.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_code.co_name == "minimize" and "n_iter" in frame.f_locals):
        frame = frame.f_back
    return 0 if frame is None else frame.f_locals["n_iter"]


@functools.cache
def _linear_algebra() -> ThreadpoolController:
    """Return the controller of scipy's linear-algebra threads; cached, because finding it takes milliseconds."""
    return ThreadpoolController().select(prefix="libscipy_openblas")


def _default_options(method: str, vector: ParameterVector) -> dict[str, Any]:
    if method == "L-BFGS-B":
        return {"maxcor": 50}
    precision = torch.finfo(vector.params[0].dtype).eps
    if method == "TNC" and precision > np.finfo(np.float64).eps:
        return {"accuracy": precision**0.5}
    return {}


def _bounds(vector: ParameterVector, given: Any) -> Bounds | None:
    """Return the bounds of the groups, or those given in `minimizer_args`, for every value."""
    of_groups = vector.bounds()
    if of_groups is not None and given is not None:
        raise ValueError("bounds are given both in parameter groups and in minimizer_args: remove one of them")
    if of_groups is not None:
        low, high = of_groups
        return Bounds(low.numpy(), high.numpy())
    if given is None:
        return None
    if isinstance(given, Bounds):
        shape = (len(vector),)
        return Bounds(np.broadcast_to(given.lb, shape), np.broadcast_to(given.ub, shape), given.keep_feasible)
    if len(given) == 2 and all(bound is None or np.ndim(bound) == 0 or isinstance(bound, Tensor) for bound in given):
        return Bounds(*(side.numpy() for side in expand_bounds(given, len(vector))))
    pairs = list(given)
    if len(pairs) != len(vector):
        raise ValueError(
            f"minimizer_args has {len(pairs)} bounds for {len(vector)} values: pass one (low, high) for all, one for "
            'each, or {"bounds": (low, high)} in a parameter group'
        )
    return Bounds(
        [-np.inf if low is None else low for low, _ in pairs], [np.inf if high is None else high for _, high in pairs]
    )
