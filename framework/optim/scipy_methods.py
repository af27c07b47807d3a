"""scipy's minimizers by name: what each needs, whether its arguments are valid, and how the global ones are called."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.optimize
import torch
from scipy.optimize import Bounds, OptimizeResult

from framework.optim.scipy_function import ScipyFunction

GRADIENT = ("CG", "BFGS", "L-BFGS-B", "TNC", "SLSQP")
PRODUCT = ("Newton-CG", "trust-ncg", "trust-krylov", "trust-constr")
HESSIAN = ("trust-exact", "dogleg")
DERIVATIVE_FREE = ("Nelder-Mead", "Powell", "COBYLA", "COBYQA")
GLOBAL = ("basinhopping", "differential_evolution", "dual_annealing", "shgo", "brute")
BOUNDED = ("L-BFGS-B", "TNC", "SLSQP", "trust-constr", *DERIVATIVE_FREE)
METHODS = GRADIENT + PRODUCT + HESSIAN + DERIVATIVE_FREE + GLOBAL

Arguments = dict[str, Any]


def canonical_method(name: str) -> str:
    """Return the method's name as scipy's documentation spells it, whatever the case.

    Raises:
        ValueError: If there is no such method; the message lists the methods and suggests the nearest name.
    """
    for method in METHODS:
        if method.lower() == str(name).lower():
            return method
    bare = {method.lower().replace("-", "").replace("_", ""): method for method in METHODS}
    nearest = bare[difflib.get_close_matches(str(name).lower(), bare, n=1, cutoff=0.0)[0]]
    raise ValueError(f"unknown method {name!r}: did you mean {nearest!r}? Known: {', '.join(METHODS)}")


def local_method(method: str, options: Mapping[str, Any]) -> str:
    """Return the method that refines points: itself, or the local minimizer within a global one."""
    if method not in GLOBAL:
        return method
    default = "SLSQP" if method == "shgo" else "L-BFGS-B"
    return canonical_method((options.get("minimizer_kwargs") or {}).get("method", default))


def _refinement(method: str, arguments: Arguments) -> Arguments:
    """Return the arguments, without derivatives, of the local minimizations within a global method.

    Raises:
        ValueError: If `minimizer_kwargs` has an entry that would have no effect.
    """
    given = dict(arguments["options"].get("minimizer_kwargs") or {})
    local = local_method(method, arguments["options"])
    # shgo would silently drop anything else; it passes its box itself.
    taken = {"method", "options", "constraints"} if method == "shgo" else _LOCAL_ARGUMENTS
    unknown = set(given) - taken
    dropped = set(given.get("options") or {}) - {"ftol"} if method == "shgo" else set()
    if unknown or dropped:
        raise ValueError(
            f"minimizer_kwargs of {method} has {', '.join(sorted(unknown | dropped))}: it may have "
            f"{', '.join(sorted(taken))}{' with ftol alone' if method == 'shgo' else ''}; derivatives come from the "
            "closure, and callbacks through `on_iteration`"
        )
    bounds = arguments.get("bounds")
    if bounds is not None and method != "shgo":
        if local in BOUNDED:
            given.setdefault("bounds", bounds)
        elif method == "basinhopping":
            raise ValueError(f"basinhopping with {local}, which takes no bounds: use one of {', '.join(BOUNDED)}")
    return {**given, "method": local, "options": dict(given.get("options") or {})}


_LOCAL_ARGUMENTS = {"method", "options", "constraints", "tol", "bounds"}


def derivatives(objective: Any, method: str) -> Arguments:
    """Return the derivatives that `method` uses, as arguments for `scipy.optimize.minimize`."""
    if method in DERIVATIVE_FREE:
        return {}
    arguments = {"jac": objective.gradient}
    if method in PRODUCT:
        arguments["hessp"] = objective.product
    if method in HESSIAN:
        arguments["hess"] = objective.hessian
    return arguments


class _Evaluated(Exception):  # noqa: N818 (not an error)
    """Raised when scipy has accepted its arguments and asks for a first value."""


class _Probe:
    """An objective that only reports that it was called."""

    def value(self, *_: Any) -> Any:
        raise _Evaluated

    gradient = product = hessian = value


def check_arguments(method: str, x0: np.ndarray, arguments: Arguments) -> None:
    """Let scipy check its own arguments, in a run that ends before the first evaluation.

    scipy warns about what a method ignores (bounds, constraints, options); here that is an error, raised when the
    optimizer is built.

    Raises:
        ValueError: If the method does not take one of the arguments or options.
    """
    if method in GLOBAL:
        _check_global_arguments(method, arguments)
        refine = _refinement(method, arguments)
        check_arguments(refine.pop("method"), x0, refine)
        return
    options = {name: value for name, value in arguments["options"].items() if name != "disp"}
    probe = _Probe()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            scipy.optimize.minimize(
                probe.value, x0, method=method, **derivatives(probe, method), **{**arguments, "options": options}
            )
        except _Evaluated:
            return
        except (Warning, TypeError, ValueError) as error:
            raise ValueError(
                f"scipy's {method} refuses its arguments: {error} "
                f"(`scipy.optimize.show_options('minimize', {method!r})` lists its options)"
            ) from error


def _check_global_arguments(method: str, arguments: Arguments) -> None:
    taken = set(inspect.signature(getattr(scipy.optimize, method)).parameters)
    taken -= {"func", "x0", "bounds", "ranges", "args", "callback", "full_output"}
    passed = {*arguments["options"], *({"tol", "constraints"} & {name for name in arguments if arguments[name]})}
    if passed - taken:
        unknown = ", ".join(sorted(passed - taken))
        raise ValueError(f"{method} does not take {unknown}; its options are {', '.join(sorted(taken))}")
    bounds = arguments.get("bounds")
    if method != "basinhopping" and (bounds is None or not np.isfinite([bounds.lb, bounds.ub]).all()):
        raise ValueError(f'{method} searches a box: give each parameter group finite {{"bounds": (low, high)}}')


def minimize_globally(
    method: str, objective: ScipyFunction, arguments: Arguments, callback: Callable[..., None]
) -> OptimizeResult:
    """Run one of scipy's global minimizers; `arguments["options"]` are its keyword arguments.

    Local refinements use gradients. Random draws follow torch's seed unless `rng` is given.
    """
    function = getattr(scipy.optimize, method)
    bounds: Any = arguments.get("bounds")
    options = dict(arguments["options"])
    options |= {name: arguments[name] for name in ("tol", "constraints") if arguments.get(name)}
    if "rng" in inspect.signature(function).parameters and not {"rng", "seed"} & set(options):
        options["rng"] = int(torch.randint(2**31, ()))
    refine = _refinement(method, arguments)
    options.pop("minimizer_kwargs", None)
    local = refine["method"]
    refine |= derivatives(objective, local)

    if method == "basinhopping":
        if bounds is not None:
            options.setdefault("take_step", _StepWithin(bounds, options))
        value = objective.value if local in DERIVATIVE_FREE else objective.evaluate
        return function(value, objective.start, minimizer_kwargs=refine, callback=callback, **options)
    box = list(zip(bounds.lb, bounds.ub, strict=True))
    if method == "differential_evolution":
        return _evolve(objective, box, refine, {"callback": callback, **options})
    if method == "brute":
        x, *_ = function(_each(objective.value, callback), box, full_output=True, **options)
        return OptimizeResult(x=x, fun=objective.value(x), success=True, nfev=objective.num_evaluations)
    if method == "dual_annealing":
        options.setdefault("x0", objective.start)
    return function(objective.value, box, minimizer_kwargs=refine, callback=callback, **options)


class _StepWithin:
    """Basin hopping's own random step, kept within bounds."""

    def __init__(self, bounds: Bounds, options: Arguments) -> None:
        self.stepsize = options.get("stepsize", 0.5)  # basin hopping adapts this attribute
        self.bounds = bounds
        self.rng = np.random.default_rng(options.get("rng", options.get("seed")))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        step = self.rng.uniform(-self.stepsize, self.stepsize, np.shape(x))
        return np.clip(x + step, self.bounds.lb, self.bounds.ub)


def _evolve(objective: ScipyFunction, box: list, refine: Arguments, options: Arguments) -> OptimizeResult:
    """Run differential evolution; polish with gradients, if there are any, instead of scipy's finite differences."""
    polish = options.pop("polish", True)
    try:
        result = scipy.optimize.differential_evolution(
            objective.value, box, x0=objective.start, polish=False, **options
        )
    except RuntimeError as error:
        # scipy mistakes a ValueError raised by the objective for an invalid `workers`.
        raise (error.__cause__ or error) from None
    if polish and not options.get("constraints"):
        if not objective.has_gradient:
            refine.pop("jac")
        polished = scipy.optimize.minimize(
            objective.evaluate if "jac" in refine else objective.value, result.x, **refine
        )
        if polished.fun < result.fun:
            result.x, result.fun, result.jac = polished.x, polished.fun, polished.jac
    return result


def _each(value: Callable[[np.ndarray], float], callback: Callable[..., None]) -> Callable[[np.ndarray], float]:
    """Wrap `value` so that every call is reported, because brute force has no iterations."""

    def reported(x: np.ndarray) -> float:
        result = value(x)
        callback(x)
        return result

    return reported
