"""Averages of the weights over training: of every step (`WeightAveraging`, EMA), or of the last epochs (SWA)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from framework.callback import Callback
from framework.module import Module
from framework.objective.closure import averaged_batch_norm

if TYPE_CHECKING:
    from framework.trainer import Trainer


class _Averaging(Callback):
    """What all averages share: they are put into the module and taken out again, and both are saved.

    A checkpoint's ``state_dict`` is what the module would be evaluated with; a run continues with the weights in
    ``current_model_state``, if that is there. The average itself is in the callback's state.
    """

    def __init__(self, device: torch.device | str | int | None, **options: Any) -> None:
        self._device = None if device is None else torch.device(device)
        self._options = options
        self._average: AveragedModel | None = None
        self._current: dict[str, Tensor] | None = None  # what is not in the module while the average is
        self._fits = False

    @property
    def n_averaged(self) -> int:
        """How many times the weights were taken into the average."""
        return 0 if self._average is None else int(self._average.n_averaged)

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._fits = stage == "fit"
        if not self._fits:
            return
        self._average = self._current = None
        if others := [c for c in trainer.callbacks if isinstance(c, _Averaging) and c is not self]:
            raise ValueError(
                f"{type(self).__name__} and {type(others[0]).__name__} would both put their average into the module: "
                "use one of them"
            )

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        self._make_average(module)  # its values follow in `load_state_dict`
        checkpoint["state_dict"] = checkpoint.get("current_model_state", checkpoint["state_dict"])

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self._average is None:
            self._make_average(module)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self.n_averaged:
            self._put_average(module)
        elif not (trainer.interrupted or trainer.fast_dev_run):
            warnings.warn(
                f"{type(self).__name__} has averaged nothing: the run ended at step {trainer.global_step}, in epoch "
                f"{trainer.current_epoch}, before it began. The module has the weights of the last step",
                stacklevel=2,
            )

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        if self._fits:
            self._take_out_average(module)

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        if self._current is not None:
            current = copy.copy(checkpoint["state_dict"])
            current.update({name: value for name, value in self._current.items() if name in current})
            checkpoint["current_model_state"] = current

    def state_dict(self) -> dict[str, Any]:
        return {"average": None if self._average is None else self._average.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["average"] is None:
            self._average = None
        else:
            assert self._average is not None
            self._average.load_state_dict(state_dict["average"])

    # -------------------------------------------------------------------------------------------------- the average

    def _make_average(self, module: Module) -> None:
        device = self._device or module.device
        self._average = AveragedModel(module, device, **self._options)

    def _put_average(self, module: Module, *, buffers: bool = True) -> None:
        """Put the average into the module, and keep what was there."""
        assert self._average is not None
        average, current = _tensors(self._average.module), _tensors(module)
        parameters = dict(module.named_parameters(remove_duplicate=False))
        with _plain_tensors():
            self._current = {name: value.to(average[name].device, copy=True) for name, value in current.items()}
            for name, value in current.items():
                if buffers or name in parameters:
                    value.copy_(average[name])

    def _take_out_average(self, module: Module) -> None:
        """Undo `_put_average`, if there is something to undo."""
        kept, self._current = self._current or {}, None
        with _plain_tensors():
            for name, value in _tensors(module).items():
                if name in kept:
                    value.copy_(kept[name])


class WeightAveraging(_Averaging):
    """Average the weights after every step, or whenever `should_update` says so.

    Validation is made with the average, and at the end of fit the average is in the module. Until the first update
    there is no average, and validation is made with the weights as they are (Lightning takes the initial ones).

    Checkpoints hold the average as ``state_dict``, for ``test`` and `Module.load_from_checkpoint`, and the weights that
    training continues with as ``current_model_state``.

    Args:
        device: Where to keep the average; default: on the device of the module.
        use_buffers: Whether to average the buffers too. If not, they are those of the last update.
        **kwargs: ``avg_fn`` or ``multi_avg_fn`` of `torch.optim.swa_utils.AveragedModel`; default: the mean.
    """

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        if unknown := kwargs.keys() - {"avg_fn", "multi_avg_fn"}:
            raise TypeError(f"{type(self).__name__} has no option {min(unknown)!r}, only avg_fn and multi_avg_fn")
        if len(given := [name for name, value in kwargs.items() if value is not None]) > 1:
            raise ValueError(f"{type(self).__name__} was passed {' and '.join(given)}: pass one of them")
        super().__init__(device, use_buffers=use_buffers, **kwargs)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tell whether to update the average now; override it. Default: after every step.

        Args:
            step_idx: The index of the step just taken, from 0; None at the end of an epoch.
            epoch_idx: The index of the epoch just ended, from 0; None after a step.
        """
        return step_idx is not None

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.should_update(step_idx=trainer.global_step - 1):
            self._update(module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update(module)

    def _update(self, module: Module) -> None:
        assert self._average is not None
        self._average.update_parameters(module)

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if self._fits and self.n_averaged:
            self._put_average(module)

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._fits:
            self._take_out_average(module)

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, module, checkpoint)
        if self._current is None and self.n_averaged:
            assert self._average is not None
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = self._average.module.state_dict()


class EMAWeightAveraging(WeightAveraging):
    """Keep an exponential moving average of the weights, ``decay * average + (1 - decay) * weights`` at each update.

    See `WeightAveraging`.

    Args:
        device: Where to keep the average; default: on the device of the module.
        use_buffers: Whether to average the buffers too.
        decay: The share of the average that an update keeps.
        update_every_n_steps: Update after every so many steps, from the first one on; 0 for no updates after steps.
        update_starting_at_step: The index, from 0, of the first step after which to update.
        update_starting_at_epoch: Update also at the end of every epoch from this one on, counted from 0.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"EMAWeightAveraging: decay={decay!r}; it must be between 0 and 1")
        if update_every_n_steps < 0:
            raise ValueError(f"EMAWeightAveraging: update_every_n_steps={update_every_n_steps!r}; it must be 0 or more")
        if update_every_n_steps == 0 and update_starting_at_epoch is None:
            raise ValueError(
                "EMAWeightAveraging: update_every_n_steps=0 means no updates after steps: pass a positive number, or "
                "update_starting_at_epoch for updates after epochs"
            )
        super().__init__(device, use_buffers, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None:
            every, first = self.update_every_n_steps, self.update_starting_at_step or 0
            return every > 0 and step_idx >= first and step_idx % every == 0
        return self.update_starting_at_epoch is not None and (epoch_idx or 0) >= self.update_starting_at_epoch


class StochasticWeightAveraging(_Averaging):
    """Average the weights over the last epochs, at a learning rate that is annealed to a constant one.

    From the epoch ``swa_epoch_start`` on, `torch.optim.swa_utils.SWALR` replaces the module's schedulers, and at the
    beginning of each epoch the weights are taken into a mean. At the end of fit the mean is in the module, also if the
    run ends early (in Lightning only after ``max_epochs``), and the statistics of its batch norm layers are computed
    anew, in one pass over the training data, as by `torch.optim.swa_utils.update_bn`. Validation is made with the
    weights as they are.

    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018.

    Args:
        swa_lrs: The learning rate to anneal to: one, or one for each parameter group.
        swa_epoch_start: The first epoch, counted from 1, or as a fraction of ``max_epochs``.
        annealing_epochs: Over how many epochs to anneal the learning rate.
        annealing_strategy: "cos" or "linear".
        avg_fn: ``avg_fn(average, weights, n_averaged)`` of `torch.optim.swa_utils.AveragedModel`; default: the mean.
        device: Where to keep the average; None for the device of the module.
    """

    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: str = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008
    ) -> None:
        name = type(self).__name__
        if not all(rate > 0 for rate in ([swa_lrs] if isinstance(swa_lrs, int | float) else swa_lrs)):
            raise ValueError(f"{name}: swa_lrs={swa_lrs!r}; it must be a positive number, or one for each group")
        if not (swa_epoch_start >= 1 if isinstance(swa_epoch_start, int) else 0 <= swa_epoch_start <= 1):
            raise ValueError(
                f"{name}: swa_epoch_start={swa_epoch_start!r}; it must be a positive integer, or a fraction from 0 to 1"
            )
        if annealing_epochs < 0:
            raise ValueError(f"{name}: annealing_epochs={annealing_epochs!r}; it must be at least 0")
        if annealing_strategy not in ("cos", "linear"):
            raise ValueError(f"{name}: annealing_strategy={annealing_strategy!r}; it must be 'cos' or 'linear'")
        super().__init__(device, avg_fn=avg_fn)
        self.swa_lrs = swa_lrs
        self.swa_epoch_start = swa_epoch_start
        self.annealing_epochs = annealing_epochs
        self.annealing_strategy = annealing_strategy
        self._latest_epoch = -1

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage != "fit":
            return
        self._latest_epoch = -1
        start, max_epochs = self.swa_epoch_start, trainer.max_epochs
        if isinstance(start, float):
            if max_epochs == -1:
                raise ValueError(
                    f"StochasticWeightAveraging: swa_epoch_start={start} is a fraction of max_epochs, and there is no "
                    "such limit: pass the number of the epoch (int), or Trainer(max_epochs=...)"
                )
            start = int(start * max_epochs)
        if start > max_epochs >= 0:
            raise ValueError(
                f"StochasticWeightAveraging: swa_epoch_start={start} comes after the last epoch (max_epochs="
                f"{max_epochs}): lower it"
            )
        self._start = max(start - 1, 0)  # counted from 0

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, module, checkpoint)
        if checkpoint["callbacks"].get(type(self).__name__, {}).get("latest_epoch", -1) >= 0:
            self._anneal(trainer)  # so that the state of this scheduler finds it

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        super().on_fit_start(trainer, module)
        groups = trainer.optimizer.param_groups
        if not all("lr" in group for group in groups):
            raise ValueError(
                f"StochasticWeightAveraging anneals the learning rate, and {type(trainer.optimizer).__name__} has "
                "none: use WeightAveraging, or an optimizer with lr"
            )
        if not isinstance(self.swa_lrs, int | float) and len(self.swa_lrs) != len(groups):
            raise ValueError(
                f"StochasticWeightAveraging: swa_lrs has {len(self.swa_lrs)} learning rates for {len(groups)} "
                "parameter groups: pass one for each, or a single one"
            )

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        # In an epoch that is continued, it was done already.
        if trainer.current_epoch < self._start or trainer.current_epoch <= self._latest_epoch:
            return
        if self._latest_epoch < 0:
            self._anneal(trainer)
        assert self._average is not None
        self._average.update_parameters(module)
        self._latest_epoch = trainer.current_epoch

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        super().on_train_end(trainer, module)
        if self.n_averaged and not trainer.interrupted:
            self._update_batch_norm(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "latest_epoch": self._latest_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._latest_epoch = state_dict["latest_epoch"]

    def _put_average(self, module: Module, *, buffers: bool = False) -> None:
        super()._put_average(module, buffers=buffers)

    def _anneal(self, trainer: Trainer) -> None:
        """Replace the schedulers."""
        lrs = self.swa_lrs if isinstance(self.swa_lrs, int | float) else list(self.swa_lrs)
        for group in trainer.optimizer.param_groups:
            group.pop("initial_lr", None)  # that of a scheduler before
        scheduler = SWALR(trainer.optimizer, lrs, self.annealing_epochs, self.annealing_strategy)  # type: ignore[arg-type]
        trainer.use_optimizer({"optimizer": trainer.optimizer, "lr_scheduler": scheduler})

    def _update_batch_norm(self, trainer: Trainer, module: Module) -> None:
        """Average the statistics of the batch norm layers over the training data, with the weights as they are now."""
        layers = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
        if not layers:
            return
        batches = trainer._last_fit("train_dataloader").train_batches  # on the device, as they are trained on
        with averaged_batch_norm(layers), trainer.metrics.muted():
            trainer.closure.objective.evaluate(batches, 0, differentiate=False, with_penalty=False)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module, by all their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """Record no gradients, and make no inference tensors, which could not be saved with others."""
    with torch.inference_mode(False), torch.no_grad():
        yield
