"""Sparse models as scikit-learn estimators: which features matter, and a prediction from them alone.

They train by this package: a `Trainer` on all the data in float64, `SpaRSA`, and for networks and `Harder` a
`PenaltyPath`; the weight of the penalty is the quantile universal threshold (`happy_lambda="auto"`), so nothing is
cross-validated. scikit-learn comes with the extra ``proxtrain[estimators]``.

Shape legend: N samples, P features, K outputs (1, or the number of classes beyond two), S stages of a path.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim import LBFGS

from framework.auto_lambda import auto_happy_lambda
from framework.callbacks import PenaltyPath, Stationarity
from framework.callbacks.penalty_path import HARDER_LASSO
from framework.data import TensorLoader
from framework.layers import NormalizedLinear
from framework.losses import L2Loss
from framework.objective.groups import check_weight
from framework.optim import ProxAdam, SpaRSA
from framework.penalties import L1, MCP, SCAD, GroupL1, Harder, Penalty
from framework.pruning import ELEMENTWISE, SelectFeatures, prune
from framework.supervised import Supervised
from framework.trainer import Trainer

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone, is_classifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import _safe_indexing, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.parallel import Parallel, delayed
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "framework.estimators needs scikit-learn 1.6 or newer, an extra: pip install 'proxtrain[estimators]'"
    ) from error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PENALTIES: dict[str, Penalty] = {"l1": L1(), "harder": Harder(), "scad": SCAD(), "mcp": MCP(), "group_l1": GroupL1()}
ACTIVATIONS = {kind.__name__: kind for kind in ELEMENTWISE if kind not in (nn.Dropout, nn.Identity)}
# What a fit ended at: a stationary point, or where the objective decreases no more (a kink, or a fit without residual).
CONVERGED = ("stationarity", "penalty_path")


@dataclass(frozen=True, eq=False)
class FeaturePath:
    """How much each feature is used as the weight of the penalty changes.

    Attributes:
        feature_names: P names.
        happy_lambda: The weight of each stage, shape (S,).
        importance: The norm of each feature's weights at the end of each stage, on the scale of standardized features,
            shape (S, P); for a linear model with one output |coefficient|.
        lambda_: The weight that `fit` uses.
    """

    feature_names: list[str]
    happy_lambda: NDArray[np.float64]
    importance: NDArray[np.float64]
    lambda_: float

    def table(self) -> dict[str, NDArray[Any]]:
        """Return columns of S rows, as `pandas.DataFrame` takes them: weight, number of features, one per feature."""
        columns = dict(zip(self.feature_names, self.importance.T, strict=True))
        return {"happy_lambda": self.happy_lambda, "num_features": (self.importance > 0).sum(1), **columns}

    def draw(self) -> Figure:
        """Draw the importance of each feature against the weight, with the names of the ten strongest at the end."""
        from matplotlib.figure import Figure  # slow to import

        order = np.argsort(self.happy_lambda, kind="stable")
        x, values = self.happy_lambda[order], self.importance[order]
        figure = Figure(figsize=(7.2, 4.4), dpi=120, layout="constrained")
        axis = figure.subplots()
        strongest = np.argsort(values[np.abs(x - self.lambda_).argmin()], kind="stable")[::-1][:10]
        for feature in np.flatnonzero(values.any(0)):
            label = self.feature_names[feature] if feature in strongest else None
            axis.plot(x, values[:, feature], lw=1.4 if label else 0.7, color=None if label else "#8a8f98", label=label)
        axis.axvline(self.lambda_, color="black", ls="--", lw=1, label="the weight of fit")
        if x[0] == 0:  # of a network
            axis.set_xscale("symlog", linthresh=x[x > 0].min(), linscale=0.5)
            axis.set_xlim(left=0)
        else:
            axis.set_xscale("log")
        axis.set(xlabel="weight of the penalty", ylabel="importance of the feature", title="Path")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        return figure


@dataclass(eq=False)
class _Problem:
    """The data as a fit takes them.

    Attributes:
        inputs: X, standardized, shape (N, P).
        targets: y, standardized, shape (N, 1), or labels.
        loss: Of (outputs, targets).
        null_outputs: The outputs of the model that selects nothing, shape (K,).
        start: Where a linear model's weights start, shape (K, P); None for zero.
    """

    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    null_outputs: Tensor
    start: Tensor | None = None

    def loader(self) -> TensorLoader:
        return TensorLoader(self.inputs, self.targets, batch_size=len(self.inputs))


class _Selection(Supervised):
    """A network of which the first weight is penalized, by a proximal optimizer on all the data."""

    network: nn.Sequential
    happy_lambda: float

    def __init__(self, network: nn.Sequential, loss: Callable[[Tensor, Tensor], Tensor], penalty: Penalty) -> None:
        super().__init__(network, loss, SpaRSA)
        self.penalty = penalty

    @property
    def first(self) -> Tensor:
        layer = self.network[0]
        assert isinstance(layer, nn.Linear)
        return layer.weight

    def param_groups(self) -> list[dict[str, Any]]:
        rest = [parameter for parameter in self.network.parameters() if parameter is not self.first]
        return [{"params": [self.first], "penalized": True}, {"params": rest, "penalized": False}]


class _SparseEstimator(BaseEstimator):
    """What regression and classification share."""

    network_: nn.Sequential

    def __init__(
        self,
        hidden: Sequence[int] = (),
        *,
        activation: str = "ReLU",
        penalty: str | Penalty = "auto",
        happy_lambda: float | str = "auto",
        standardize: bool = True,
        refit: bool = False,
        tol: float = 1e-6,
        max_epochs: int | None = None,
        accelerator: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.penalty = penalty
        self.happy_lambda = happy_lambda
        self.standardize = standardize
        self.refit = refit
        self.tol = tol
        self.max_epochs = max_epochs
        self.accelerator = accelerator
        self.random_state = random_state
        self.verbose = verbose

    # -------------------------------------------------------------------------------------------------------- public

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Select features and fit a model of them.

        Args:
            X: Features, shape (N, P): an array, or a table whose column names are kept.
            y: What to predict, shape (N,).

        Raises:
            ValueError: If the data or a setting are invalid; or with ``happy_lambda="auto"``, if no threshold is known
                for the penalty.
        """
        problem = self._prepare(X, y)
        with _own_random_numbers(self.random_state) as generator:
            module = self._make_module(problem, generator)
            self.n_iter_ = self._train(module, problem)
            self.lambda_ = module.happy_lambda
            self.feature_importances_ = _importances(module)
            self.network_ = prune(module.network)
            if self.refit:
                self._refit(problem)
        self.network_.cpu().eval()
        self.selected_features_ = _selector(self.network_).features.numpy()
        with torch.no_grad():
            self._measure(problem)
        return self

    def path(self, X: ArrayLike, y: ArrayLike, *, num_stages: int = 30, smallest: float = 0.1) -> FeaturePath:
        """Compute how much each feature is used along a path of weights; this changes nothing that `fit` has found.

        A linear model starts at the weight at which these data select nothing, and goes down geometrically. A network
        takes the stages of growing weight by which `fit` reaches the full one (`PenaltyPath`); they end there.

        Args:
            X: As for `fit`.
            y: As for `fit`.
            num_stages: The number of weights of a linear model.
            smallest: The last of them, as a fraction of the weight that `fit` uses.

        Raises:
            ValueError: As for `fit`; or if ``num_stages`` or ``smallest`` is out of range, the weight of `fit` is 0, or
                the penalty selects no features.
        """
        if num_stages < 1 or not 0 < smallest < math.inf:
            raise ValueError(f"num_stages={num_stages}, smallest={smallest}; pass one stage or more, a share above 0")
        if self.happy_lambda == 0:
            raise ValueError("happy_lambda=0 has no path, which ends at a share of it; pass auto, or a number above 0")
        self = clone(self)
        problem = self._prepare(X, y)
        with _own_random_numbers(self.random_state) as generator:
            module = self._make_module(problem, generator, from_null=True)
            full = module.happy_lambda
            if not self.hidden:
                weights = np.geomspace(_null_weight(module, problem), smallest * full, num_stages)
                values = []
                for weight in weights:
                    module.happy_lambda = float(weight)
                    self._train(module, problem, follow_path=False)
                    values.append(_importances(module))
            else:
                history: list[dict[str, Any]] = []
                self._train(module, problem, history=history)
                weights = np.array([*(stage["happy_lambda"] for stage in history), full])
                values = [*(stage["importance"].double().numpy() for stage in history), _importances(module)]
        return FeaturePath(self._feature_names(), weights, np.stack(values), full)

    def stability(
        self, X: ArrayLike, y: ArrayLike, *, num_subsamples: int = 100, share: float = 0.5, n_jobs: int | None = None
    ) -> NDArray[np.float64]:
        """Compute the share of random subsamples whose fit selects each feature, shape (P,).

        A weight that is "auto" is computed for each subsample. Source: Meinshausen & Buhlmann 2010, with subsamples of
        half the data.

        Args:
            X: As for `fit`.
            y: As for `fit`.
            num_subsamples: How many, drawn without replacement; of classes, with the shares of all the data.
            share: Their size, as a fraction of N.
            n_jobs: The number of processes; scikit-learn's convention.
        """
        splitter = StratifiedShuffleSplit if is_classifier(self) else ShuffleSplit
        splits = splitter(num_subsamples, train_size=share, random_state=self.random_state)
        fits = Parallel(n_jobs=n_jobs)(
            delayed(_selected)(clone(self).set_params(refit=False), _safe_indexing(X, rows), _safe_indexing(y, rows))
            for rows, _ in splits.split(np.zeros(len(y)), y)  # type: ignore[arg-type]
        )
        return np.mean(fits, axis=0)

    @property
    def coef_(self) -> NDArray[np.float64]:
        """The coefficients for features as given, zeros included, of a linear model."""
        check_is_fitted(self)
        return self._linear()[0]

    @property
    def intercept_(self) -> Any:
        """The intercept of a linear model, for features as given."""
        check_is_fitted(self)
        return self._linear()[1]

    # ------------------------------------------------------------------------------------------------- what fit does

    def _prepare(self, X: Any, y: Any) -> _Problem:
        """Check and convert the data."""
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, y_numeric=not is_classifier(self))
        self._check_settings()
        self.mean_, self.scale_ = X.mean(0), np.ones(X.shape[1])
        if self.standardize:
            deviation = X.std(0)
            # The deviation of a constant column is of the order of its rounding.
            self.scale_ = np.where(deviation > 1e-12 * np.abs(X).max(0), deviation, 1.0)
        return self._pose(X, column_or_1d(y, warn=True))

    def _pose(self, X: NDArray[np.float64], y: NDArray[Any]) -> _Problem:
        """Choose the loss, and the targets that it takes."""
        raise NotImplementedError

    def _penalty(self) -> Penalty:
        if isinstance(self.penalty, Penalty):
            return self.penalty
        return PENALTIES[("harder" if self.hidden else "l1") if self.penalty == "auto" else self.penalty]

    def _measure(self, problem: _Problem) -> None:
        """Measure what the fitted network says beyond its features."""

    def _check_settings(self) -> None:
        hidden = self.hidden
        if not np.iterable(hidden) or not all(isinstance(width, int | np.integer) and width > 0 for width in hidden):
            raise ValueError(
                f"hidden={hidden!r}; pass the widths of hidden layers, such as (20,), or () for a linear model"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r} is unknown; pass one of {', '.join(ACTIVATIONS)}")
        if not hidden and self.activation != "ReLU":
            warnings.warn(f"activation={self.activation!r} has no effect without hidden layers", stacklevel=4)
        if not isinstance(self.penalty, Penalty) and self.penalty not in ("auto", *PENALTIES):
            raise ValueError(
                f"penalty={self.penalty!r} is unknown; pass auto, {', '.join(PENALTIES)}, or a Penalty of "
                "framework.penalties"
            )
        if self.happy_lambda != "auto":
            check_weight(self.happy_lambda, type(self).__name__)
        if not self.tol > 0:
            raise ValueError(f"tol={self.tol!r}; it must be positive")
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs={self.max_epochs!r}; it must be at least 1, or None")

    def _inputs(self, X: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy((X - self.mean_) / self.scale_)

    def _make_module(self, problem: _Problem, generator: torch.Generator, *, from_null: bool = False) -> _Selection:
        """Make the model at its start, and the weight of its penalty."""
        widths = [problem.inputs.shape[1], *map(int, self.hidden), len(problem.null_outputs)]
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for wide, narrow in itertools.pairwise(widths[1:]):
            layers += [ACTIVATIONS[self.activation](), NormalizedLinear(wide, narrow)]
        network = nn.Sequential(*layers).double()
        penalty = self._penalty()
        module = _Selection(network, problem.loss, penalty)
        with torch.no_grad():
            if not self.hidden:
                module.first.zero_()
            _last(network).bias.copy_(problem.null_outputs)
        if self.happy_lambda == "auto":
            module.happy_lambda = auto_happy_lambda(
                network,
                module.param_groups(),
                problem.loss,
                penalty,
                problem.inputs,
                problem.targets,
                generator=generator,
            )
        else:
            module.happy_lambda = float(self.happy_lambda)
        if problem.start is not None and not from_null:
            module.first.data.copy_(problem.start)
        return module

    def _train(
        self,
        module: _Selection,
        problem: _Problem,
        *,
        follow_path: bool = True,
        history: list[dict[str, Any]] | None = None,
    ) -> int:
        """Train to a stationary point; return the number of steps. The stages of the path go into ``history``."""
        if self.hidden:
            path = PenaltyPath(partial(ProxAdam, lr=0.05), final_window=10, final_tol=1e-9)
        else:
            stages = HARDER_LASSO[1:] if follow_path and isinstance(module.penalty, Harder) else []
            path = PenaltyPath(SpaRSA, stages, window=2, tol=1e-3, final_window=5)
        max_epochs = self.max_epochs or (20_000 if self.hidden else 500)
        trainer = self._trainer([path, Stationarity(self.tol * (module.happy_lambda or 1.0))], max_epochs, self.verbose)
        with warnings.catch_warnings():
            # Without a residual the norm has a kink, at which a search cannot promise a decrease: a fit may end there.
            warnings.filterwarnings("ignore", "SpaRSA took no step: no step decreases", RuntimeWarning)
            trainer.fit(module, problem.loader())
        if not str(trainer.stopped_because).startswith(CONVERGED):
            warnings.warn(
                f"{type(self).__name__} did not converge in max_epochs={max_epochs}: raise it, or tol={self.tol}",
                ConvergenceWarning,
                stacklevel=3,
            )
        if history is not None:
            history += path.history
        return trainer.global_step

    def _refit(self, problem: _Problem) -> None:
        """Fit the pruned network again, without the penalty."""
        optimizer = partial(
            LBFGS,
            max_iter=100,
            history_size=20,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )
        module = Supervised(self.network_, problem.loss, optimizer)
        self._trainer([], max_epochs=5, verbose=False).fit(module, problem.loader())

    def _trainer(self, callbacks: list[Any], max_epochs: int, verbose: bool) -> Trainer:
        return Trainer(
            accelerator=self.accelerator,
            devices=1,
            max_epochs=max_epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=verbose,
        )

    # ------------------------------------------------------------------------------------------- what was found

    @torch.no_grad()
    def _outputs(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the network's outputs, shape (N, K)."""
        check_is_fitted(self)
        return self.network_(self._inputs(validate_data(self, X, dtype=np.float64, reset=False))).numpy()

    def _coefficients(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a linear model's coefficients (K, P) and intercepts (K,), in terms of features as given.

        Raises:
            AttributeError: If there are hidden layers.
        """
        if len(self.network_) > 2:
            raise AttributeError(
                "a network has no coefficients: see selected_features_ and feature_importances_, or fit with hidden=()"
            )
        linear = _last(self.network_)
        coefficients = np.zeros((linear.out_features, self.n_features_in_))
        coefficients[:, self.selected_features_] = linear.weight.detach().numpy()
        coefficients /= self.scale_
        return coefficients, linear.bias.detach().numpy() - coefficients @ self.mean_

    def _linear(self) -> tuple[NDArray[np.float64], Any]:
        return self._coefficients()

    def _feature_names(self) -> list[str]:
        return list(getattr(self, "feature_names_in_", [str(index) for index in range(self.n_features_in_)]))


class SparseRegressor(RegressorMixin, _SparseEstimator):
    """Regression on a few of many features: a linear model, or a network of which the first layer is penalized.

    It minimizes the square-root lasso's objective ||y - f(x)||_2 + happy_lambda g(W_1), or with another penalty its
    relatives, of which the right weight does not depend on the noise level.

    Args:
        hidden: The widths of hidden layers; () for a linear model.
        activation: Between layers, by its name in `torch.nn`, or "Sigma" (`framework.layers.Sigma`).
        penalty: "l1", "harder", "scad", "mcp", "group_l1" (the weights of a feature together), or a `Penalty`, such as
            ``GroupL1([[0, 1, 2]])`` for columns that belong together and ``Weighted(L1(), weights)`` for weights per
            feature. "auto" is "l1" for a linear model, and "harder" for a network.
        happy_lambda: The weight of the penalty; "auto" for the quantile universal threshold, at which 95 of 100 fits to
            pure noise select nothing.
        standardize: Whether the features, and the target of a regression, are divided by their standard deviations for
            the fit, so that the penalty treats them alike. They are always centered. Coefficients and predictions are
            in the units of the data; the weight is not.
        refit: Whether the model of the selected features is fitted again without the penalty, which shrinks.
        tol: The fit ends when no subgradient is further from zero than this fraction of the weight; or, at a kink,
            where the objective decreases no more.
        max_epochs: The maximum number of passes over the data; None for 500, with hidden layers 20,000.
        accelerator: Where it is trained: "cpu", "gpu", or "auto".
        random_state: Seeds the threshold's draws, a network's start, and subsamples; None for other ones each time.
        verbose: Whether to show a progress bar.

    Attributes:
        selected_features_: The indices of the features that the model reads, in increasing order.
        coef_: The coefficients of a linear model, shape (P,), for features as given.
        intercept_: Its intercept, a number.
        feature_importances_: The norm of each feature's weights before a refit, for standardized features, shape (P,).
        lambda_: The weight of the penalty.
        noise_std_: The standard deviation of the residuals; the parameters of the pruned model are subtracted from N.
        network_: The pruned network, which reads standardized features.
        n_iter_: The number of steps.
        n_features_in_: P.
        feature_names_in_: The names of the columns, if they have names.
    """

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict the target, shape (N,)."""
        check_is_fitted(self)
        return self.y_mean_ + self.y_scale_ * self._outputs(X)[:, 0]

    def _pose(self, X: NDArray[np.float64], y: NDArray[Any]) -> _Problem:
        y = y.astype(np.float64)
        self.y_mean_, self.y_scale_, start = float(y.mean()), 1.0, None
        deviation = float(y.std())
        if self.standardize and deviation > 1e-12 * np.abs(y).max():
            self.y_scale_ = deviation
            if not self.hidden and isinstance(self._penalty(), Harder | SCAD | MCP):
                start = self._scale_by_noise(X, y)
        targets = torch.from_numpy((y - self.y_mean_) / self.y_scale_)[:, None]
        return _Problem(self._inputs(X), targets, L2Loss(), torch.zeros(1), start)

    def _scale_by_noise(self, X: NDArray[np.float64], y: NDArray[np.float64]) -> Tensor | None:
        """Let the unit of the target be what lengths in a non-convex penalty are measured by; return a start.

        `Harder` is published for noise of variance 1, and `SCAD` and `MCP` for (1 / 2N) ||r||^2: near a fit the norm
        is that, for noise of deviation 1 / sqrt(N), times a constant that goes into the weight. The noise is that of a
        lasso, refitted, which is also where `SCAD` and `MCP` start; `Harder` has a path of its own.
        """
        lasso = clone(self).set_params(penalty="l1", refit=True).fit(X, y)
        noise = max(lasso.noise_std_, 1e-3 * self.y_scale_)  # with less, nothing keeps a path from using all features
        if isinstance(self._penalty(), Harder):
            self.y_scale_ = noise
            return None
        self.y_scale_ = noise / math.sqrt(len(y))
        return torch.from_numpy(lasso.coef_ * self.scale_ / self.y_scale_)[None]

    def _measure(self, problem: _Problem) -> None:
        degrees = len(problem.targets) - sum(int(p.count_nonzero()) for p in self.network_.parameters())
        residual = torch.linalg.vector_norm(problem.targets - self.network_(problem.inputs))
        self.noise_std_ = self.y_scale_ * float(residual) / math.sqrt(max(degrees, 1))

    def _linear(self) -> tuple[NDArray[np.float64], float]:
        coefficients, intercepts = self._coefficients()
        return self.y_scale_ * coefficients[0], self.y_mean_ + self.y_scale_ * float(intercepts[0])


class SparseClassifier(ClassifierMixin, _SparseEstimator):
    """Classification by a few of many features: linear, or a network of which the first layer is penalized.

    It minimizes the mean cross-entropy of the labels, logistic for two classes and softmax for more, plus
    happy_lambda g(W_1). Where the classes can be told apart without error, "scad" and "mcp" have no minimum, since they
    do not hold back large coefficients: such a fit ends with a `ConvergenceWarning`.

    The arguments and attributes are those of `SparseRegressor`, without ``noise_std_``, and:

    Attributes:
        classes_: The labels, sorted.
        coef_: Of a linear model, shape (1, P) for two classes, (K, P) for more.
        intercept_: Shape (1,) or (K,).
    """

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the logits, shape (N,) of the second of two classes, or (N, K)."""
        logits = self._outputs(X)
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the probability of each class, shape (N, number of classes)."""
        logits = torch.from_numpy(self._outputs(X))
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits.softmax(1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predict the most likely class, shape (N,)."""
        classes = self.predict_proba(X).argmax(1)
        return self.classes_[classes]

    def _pose(self, X: NDArray[np.float64], y: NDArray[Any]) -> _Problem:
        check_classification_targets(y)
        encoder = LabelEncoder().fit(y)
        self.classes_ = encoder.classes_
        if len(self.classes_) < 2:
            raise ValueError(f"the labels are all {self.classes_[0]!r}: one class is nothing to tell apart; pass two")
        labels = torch.from_numpy(encoder.transform(y))
        logits = (torch.bincount(labels).double() / len(labels)).log()
        if len(self.classes_) == 2:
            return _Problem(self._inputs(X), labels.double()[:, None], nn.BCEWithLogitsLoss(), logits.diff())
        return _Problem(self._inputs(X), labels, nn.CrossEntropyLoss(), logits - logits.mean())


@contextmanager
def _own_random_numbers(random_state: Any) -> Iterator[torch.Generator]:
    """Draw torch's random numbers from a seed of their own; afterwards the global stream is where it was."""
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def _selector(network: nn.Sequential) -> SelectFeatures:
    selector = network[0]
    assert isinstance(selector, SelectFeatures)
    return selector


def _last(network: nn.Sequential) -> nn.Linear:
    layer = network[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def _importances(module: _Selection) -> NDArray[np.float64]:
    return torch.linalg.vector_norm(module.first.detach(), dim=0).cpu().numpy()


def _null_weight(module: _Selection, problem: _Problem) -> float:
    """Compute the smallest weight at which a linear model that selects nothing is stationary, by bisection.

    Raises:
        ValueError: If there is none.
    """
    (grad,) = torch.autograd.grad(module.loss(module.network(problem.inputs), problem.targets), module.first)
    penalty, zero = module.penalty, torch.zeros_like(grad)
    assert penalty is not None
    low, high = 0.0, max(float(grad.abs().max()), 1e-300)
    for _ in range(60):
        if penalty.subgradient_gap(zero, grad, high) == 0:
            break
        low, high = high, 2 * high
    else:
        raise ValueError(f"{penalty} selects no features at any weight, so it has no path; use L1() or another one")
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if penalty.subgradient_gap(zero, grad, middle) == 0 else (middle, high)
    return high


def _selected(estimator: _SparseEstimator, X: Any, y: Any) -> NDArray[np.bool_]:
    selected = np.zeros(estimator.fit(X, y).n_features_in_, dtype=bool)
    selected[estimator.selected_features_] = True
    return selected
