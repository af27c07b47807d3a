"""The recipe ``function``: a function of a few numbers is minimized, and the optimizer's path drawn over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from framework import Callback, Module, Trainer
from framework.data import FUNCTIONS, TensorLoader
from framework.recipes.data import Data, Predict
from framework.recipes.module import SupervisedModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Function(nn.Module):
    """A function of its own parameter, the point; its inputs only say how many times the value is asked for.

    Args:
        input_shape: Of one input, which must have no dimension.
        num_outputs: One.
        function: One of `framework.data.FUNCTIONS`.
        start: The starting point, one number or a list of them; their count is the number of dimensions. Default: the
            function's usual point.
        dimensions: The number of coordinates, which all start at one number. Default: as many as the start has.

    Raises:
        ValueError: If there is no such function, its starting point is not finite, too short, or of another number of
            dimensions, or there are inputs.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        function: str,
        start: Sequence[float] | float | None = None,
        dimensions: int | None = None,
    ) -> None:
        super().__init__()
        if tuple(input_shape) or num_outputs != 1:
            raise ValueError("model=function takes no inputs and has one output: it goes with recipe=function alone")
        if function not in FUNCTIONS:
            raise ValueError(f"model.function={function!r}: choose one of {', '.join(FUNCTIONS)}")
        self.name, self.function = function, FUNCTIONS[function]
        given = self.function.start if start is None else start
        numbers = [given] if isinstance(given, int | float) else list(given)
        if dimensions is not None and (dimensions < 1 or len(numbers) not in (1, dimensions)):
            raise ValueError(
                f"model.dimensions={dimensions}, and the start is {numbers}: pass 1 or more dimensions, and as "
                "model.start one number for all of them"
            )
        point = torch.tensor(numbers * (dimensions or 1) if len(numbers) == 1 else numbers)
        point = point.to(torch.get_default_dtype())
        least = 2 if function == "rosenbrock" else 1
        if len(point) < least or not point.isfinite().all():
            raise ValueError(f"model.start={start} for {function}: pass {least} or more finite numbers")
        self.point = nn.Parameter(point)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the value at the point, once for each of the inputs (b,): (b,)."""
        return self.function.value(self.point).expand(len(x))


class MeanOutput(nn.Module):
    """The mean of the outputs as a loss: what the network gives is what is to be made small."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.mean()


class PathRecorder(Callback):
    """Remembers the points that an optimizer goes through; kept in checkpoints, so that a continued run is whole.

    Attributes:
        points: The start, and the point after every step; of an optimizer that reports iterations, after each of them.
        evaluations: For an optimizer that evaluates more than once per step, every point where it took a gradient.
        title: What was minimized, in how many steps and evaluations.
    """

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self.evaluations: list[list[float]] = []
        self.title = ""

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if not isinstance(getattr(module, "network", None), Function):
            raise ValueError("recipe=function draws a path over a function: it goes with model=function alone")
        if stage == "fit":
            # Another fit is another run; a checkpoint to continue from is read after this.
            self.points, self.evaluations = [], []

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self.function: Function = module.network  # type: ignore[assignment]
        if not self.points:
            self.points.append(self._point())

    def on_after_backward(self, trainer: Trainer, module: Module) -> None:
        if trainer.closure.reevaluates:
            self.evaluations.append(self._point())

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        self.points.append(self._point())

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        # A step of iterations ended where the last of them did.
        if not hasattr(trainer.optimizer, "on_iteration") or self._point() != self.points[-1]:
            self.points.append(self._point())

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self.note_title(trainer)

    def note_title(self, trainer: Trainer) -> None:
        """Say in the title how far the path has come."""
        counts = f"{len(self.points) - 1} steps, {trainer.closure_evaluations} evaluations"
        self.title = f"{self.function.name.replace('_', ' ').capitalize()}, {counts}"

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points, "evaluations": self.evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points, self.evaluations = list(state_dict["points"]), list(state_dict["evaluations"])

    def _point(self) -> list[float]:
        return self.function.point.tolist()


class FunctionData(Data):
    """One input that stands for nothing, and the path over the function."""

    def __init__(self) -> None:
        loader = TensorLoader(torch.zeros(1), torch.zeros(1), batch_size=1)
        self.path = PathRecorder()
        super().__init__(loader, loader, input_shape=(), num_outputs=1, callbacks=[self.path])

    def progress(self, trainer: Trainer, module: SupervisedModule, predict: Predict) -> dict[str, Figure]:
        self.path.note_title(trainer)
        return self.figures(predict)

    def figures(self, predict: Predict) -> dict[str, Figure]:
        from framework.recipes import paths  # imports matplotlib

        points = torch.tensor(self.path.points, dtype=torch.float64)
        evaluations = torch.tensor(self.path.evaluations, dtype=torch.float64).reshape(-1, points.shape[1])
        return {"path": paths.path(self.path.function.function, points, evaluations, self.path.title)}
