"""A path of growing penalties to the full one, finished on all the data with the module's own optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.callback import Callback
from framework.module import Module
from framework.objective.groups import penalty_value, weighted_parameters
from framework.penalties import Harder

if TYPE_CHECKING:
    from framework.trainer import Trainer


@dataclass(frozen=True)
class Stage:
    """One stop on the way to the full penalty.

    Attributes:
        share: The fraction of the full weight `happy_lambda`, >= 0.
        nu: The shape of the `Harder` penalty in this stage; None for the module's own.
    """

    share: float
    nu: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.share) and self.share >= 0):
            raise ValueError(f"share={self.share!r} of the full weight; it must be a finite number >= 0")


def _sigmoid(k: int) -> float:
    return math.exp(k) / (1 + math.exp(k))


# Our own: no penalty, then e^k / (1 + e^k) of the full weight, k = -4..3, by the penalty itself.
GROWING = (Stage(0.0), *(Stage(_sigmoid(k)) for k in range(-4, 4)))
# Sardy et al. 2022: the same with k = -1..4.
LASSO_ANN = (Stage(0.0), *(Stage(_sigmoid(k)) for k in range(-1, 5)))
# arXiv 2411.17180: weight and shape together, k = -1..3, then the full weight.
HARDER_LASSO = (
    Stage(0.0, 0.9),
    *(Stage(_sigmoid(k), nu) for k, nu in zip(range(-1, 4), (0.9, 0.7, 0.5, 0.3, 0.2), strict=True)),
    Stage(1.0, 0.1),
)
SCHEDULES = {"growing": GROWING, "lasso_ann": LASSO_ANN, "harder_lasso": HARDER_LASSO}


def _read_stages(stages: str | Iterable[Stage | Mapping[str, Any]]) -> Sequence[Stage]:
    if not isinstance(stages, str):
        return [stage if isinstance(stage, Stage) else Stage(**stage) for stage in stages]
    if stages not in SCHEDULES:
        raise ValueError(
            f"PenaltyPath: stages={stages!r} is unknown; name one of {', '.join(SCHEDULES)}, or pass a list of stages"
        )
    return SCHEDULES[stages]


class _Full(NamedTuple):
    """What the module was given, in effect in the final phase and after the run."""

    penalty: Any
    happy_lambda: float | None


class PenaltyPath(Callback):
    """Training through stages of growing penalty, each starting where the last one ended, then with the full penalty.

    From a cold start at the full weight, networks fall into the null model. During the stages the run uses this
    callback's ``optimizer``, such as `ProxAdam` on mini-batches. After them it uses the optimizer of the module's
    `configure_optimizers`, with the module's own weight and penalty, and each step sees all the data
    (``accumulate_grad_batches="epoch"``). The module's ``penalty`` and ``happy_lambda`` say what is in effect at any
    moment; groups with their own ``"happy_lambda"`` are scaled by the same factor. After the run both are restored.

    The path decides what a non-convex penalty finds. On the published simulation of networks (500 samples, 50 features
    of which 16 or 20 matter), `ProxAdam` at a rate of 0.05 with the stages of `GROWING` in float32 found exactly the
    true features in 16 of 16 replicates each, where none of the published fits did; 300 steps without penalty, 500 per
    stage, then 1,500 at the full weight with a rate that falls to 1e-4. With 100 per stage and 800 at the end it was 14
    and 1: leave a stage its time. Three linear models ended at the same minimum by `HARDER_LASSO`, in half the time.

    A stage ends when the mean objective over a window of epochs is no longer below that of the previous window by more
    than a fraction ``tol`` of it. The windows start over in each stage, so a stage lasts at least two windows.

    Args:
        optimizer: Called with the parameter groups: a class or a `functools.partial` of one.
        stages: Each a `Stage` or a mapping of its attributes, or the name of a schedule: "growing" (`GROWING`), or one
            of the published ones, "lasso_ann" (`LASSO_ANN`) and "harder_lasso" (`HARDER_LASSO`). Default: "growing" for
            `Harder`, otherwise "lasso_ann".
        window: Number of epochs per window.
        tol: A stage continues only while the relative decrease from window to window exceeds this.
        max_epochs: Maximum number of epochs per stage.
        accumulate_grad_batches: The setting during the stages. Default: one batch per step.
        final_window: The window of the final phase; when that phase has settled, the run ends.
        final_tol: The final phase continues only while the relative decrease exceeds this.

    Attributes:
        stage: The index of the current stage; ``len(stages)`` in the final phase.
        history: For each stage that ended: its ``epochs``, ``happy_lambda``, ``objective`` (of the last window) and
            ``importance``, the Euclidean norm of each column of the first penalized weight.

    Raises:
        ValueError: If an argument is out of range; at `fit`, if the module has no penalty, or ``nu`` is given for a
            penalty other than `Harder`.
    """

    stage: int
    history: list[dict[str, Any]]
    _epochs: int  # epochs of this stage
    _steps: int  # steps of this epoch
    _loss: Tensor | float  # f, summed over the steps of this epoch
    _sum: Tensor | float  # f + g, summed over the epochs of this window
    _mean: float  # the mean of f + g over the previous window

    def __init__(
        self,
        optimizer: Callable[..., Optimizer],
        stages: str | Iterable[Stage | Mapping[str, Any]] | None = None,
        *,
        window: int = 50,
        tol: float = 0.01,
        max_epochs: int = 1000,
        accumulate_grad_batches: int | str = 1,
        final_window: int = 50,
        final_tol: float = 1e-12,
    ) -> None:
        for name, value in (("window", window), ("final_window", final_window), ("max_epochs", max_epochs)):
            if value < 1:
                raise ValueError(f"PenaltyPath: {name}={value!r}; it must be at least 1")
        if max_epochs < 2 * window:
            raise ValueError(
                f"PenaltyPath: max_epochs={max_epochs} is less than two windows of {window} epochs, which every stage "
                "needs for a comparison; raise max_epochs or lower window"
            )
        self.make_optimizer = optimizer
        self.given_stages = None if stages is None else _read_stages(stages)
        self.window = window
        self.tol = tol
        self.max_epochs = max_epochs
        self.accumulate_grad_batches = accumulate_grad_batches
        self.final_window = final_window
        self.final_tol = final_tol
        self.stages: Sequence[Stage] = self.given_stages or []
        self._full: _Full | None = None
        self._weights: list[Any] = []
        self._start()

    @property
    def is_final(self) -> bool:
        """Whether the stages are over and the module's own optimizer, weight and penalty are in effect."""
        return self.stage >= len(self.stages)

    @property
    def progress_description(self) -> str:
        """How far the run has come, for the progress bar: its number of steps says nothing."""
        epoch = self._epochs + 1
        if self.is_final:
            return f"full penalty, epoch {epoch}"
        return f"stage {self.stage + 1}/{len(self.stages)}, epoch {epoch} of at most {self.max_epochs}"

    # ---------------------------------------------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        if module.penalty is None:
            raise ValueError("PenaltyPath needs a penalty to follow: set module.penalty, or drop the callback")
        default = GROWING if isinstance(module.penalty, Harder) else LASSO_ANN
        self.stages = default if self.given_stages is None else self.given_stages
        if not isinstance(module.penalty, Harder) and any(s.nu is not None for s in self.stages):
            raise ValueError(
                f"PenaltyPath: a stage sets nu, which {module.penalty} does not have; drop it, or use Harder"
            )
        self._full = _Full(module.penalty, module.happy_lambda)
        self._weights = []
        self._start()

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["callbacks"].get(type(self).__name__, {})
        if saved.get("stages") != self._described_stages():
            raise ValueError(
                "the checkpoint was written without PenaltyPath, or with other stages: continue with the configuration "
                "of the run that wrote it"
            )
        # A checkpoint fits only the class of optimizer that wrote it, and the stage decides which one that was.
        self.stage = saved["stage"]
        self._use_optimizer(trainer, module)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if not self._weights:  # nothing was loaded
            self._use_optimizer(trainer, module)
        self._weigh(trainer, module)

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert trainer.closure.first is not None
        self._loss = self._loss + trainer.closure.first.loss.double()
        self._steps += 1

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.progress.batch_idx:
            return  # stopped in the middle of an epoch; a resumed run trains the rest of it
        # f from before each step and g from after the last: close enough to see when the decrease ends.
        with torch.no_grad():
            objective = trainer.closure.objective
            assert objective.penalty is not None
            penalty = penalty_value(objective.penalty, objective.groups, module.happy_lambda)
        self._sum = self._sum + self._loss / self._steps + penalty
        self._loss, self._steps, self._epochs = 0.0, 0, self._epochs + 1
        if self.is_final:
            self._is_over = self._has_settled(self.final_window, self.final_tol)
            self._stop_if_over(trainer)
        elif self._has_settled(self.window, self.tol) or self._epochs >= self.max_epochs:
            self._end_stage(trainer, module)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._stop_if_over(trainer)  # already, in the run that is continued

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self._is_over:
            trainer.stop("penalty_path: the objective no longer decreases")

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit" and self._full is not None:
            module.penalty, module.happy_lambda = self._full
            self._full = None

    def state_dict(self) -> dict[str, Any]:
        counts = {"stage": self.stage, "epochs": self._epochs, "steps": self._steps, "is_over": self._is_over}
        sums = {"loss": float(self._loss), "sum": float(self._sum), "mean": self._mean}
        return {"stages": self._described_stages(), "history": list(self.history), **counts, **sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage, self.history = state_dict["stage"], list(state_dict["history"])
        self._epochs, self._steps, self._is_over = state_dict["epochs"], state_dict["steps"], state_dict["is_over"]
        self._loss, self._sum, self._mean = state_dict["loss"], state_dict["sum"], state_dict["mean"]

    # --------------------------------------------------------------------------------------------------- stages

    def _start(self) -> None:
        self.stage = 0
        self.history = []
        self._is_over = False
        self._start_stage()

    def _start_stage(self) -> None:
        """Forget what the previous stage has seen: it must not end the next one."""
        self._epochs = self._steps = 0
        self._loss = self._sum = 0.0
        self._mean = math.inf

    def _has_settled(self, window: int, tol: float) -> bool:
        """Tell whether a window has just ended whose mean objective is about that of the previous one."""
        if self._epochs % window:
            return False
        before, self._mean, self._sum = self._mean, float(self._sum) / window, 0.0  # waits for the device
        return before < math.inf and before - self._mean <= tol * abs(before)

    def _end_stage(self, trainer: Trainer, module: Module) -> None:
        """Record the result of the stage, and start the next one."""
        weight = next(weighted_parameters(trainer.closure.objective.groups, module.happy_lambda))[0].detach()
        importance = weight.norm(dim=0) if weight.ndim == 2 else weight.abs()
        self.history.append(
            {
                "epochs": self._epochs,
                "happy_lambda": module.happy_lambda,
                "objective": self._mean,
                "importance": importance.cpu().clone(),
            }
        )
        module.log("path/stage", self.stage)
        if module.happy_lambda is not None:
            module.log("path/happy_lambda", module.happy_lambda)
        module.log("path/objective", self._mean)
        module.log("path/features", int(importance.count_nonzero()))
        self.stage += 1
        self._start_stage()
        if self.is_final:
            assert self._full is not None
            module.penalty, module.happy_lambda = self._full
            self._use_optimizer(trainer, module)
        self._weigh(trainer, module)

    def _use_optimizer(self, trainer: Trainer, module: Module) -> None:
        """Install the optimizer of this phase, and record the full weight of each of its groups."""
        assert self._full is not None
        if self.is_final:
            trainer.use_optimizer(module.configure_optimizers(), accumulate_grad_batches="epoch")
        else:
            optimizer = self.make_optimizer(module.param_groups())
            trainer.use_optimizer(optimizer, accumulate_grad_batches=self.accumulate_grad_batches)
        self._weights = [group.get("happy_lambda") for group in trainer.optimizer.param_groups]

    def _weigh(self, trainer: Trainer, module: Module) -> None:
        """Put the stage's weight and penalty into effect: in the module, and in an optimizer that has its own."""
        assert self._full is not None
        stage = Stage(1.0) if self.is_final else self.stages[self.stage]
        penalty = self._full.penalty
        module.penalty = penalty if stage.nu is None else dataclasses.replace(penalty, nu=stage.nu)
        if self._full.happy_lambda is not None:
            module.happy_lambda = stage.share * self._full.happy_lambda
        for group, weight in zip(trainer.optimizer.param_groups, self._weights, strict=True):
            if weight is not None:
                group["happy_lambda"] = stage.share * weight
        if getattr(trainer.optimizer, "penalty", None) is not None:
            trainer.optimizer.penalty = module.penalty  # type: ignore[attr-defined]

    def _described_stages(self) -> list[list[float | None]]:
        return [[stage.share, stage.nu] for stage in self.stages]
