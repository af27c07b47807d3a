"""What a run refuses: invalid input and whatever would have no effect, found once, before anything is trained.

The checks are given what they need and raise an error that says what was passed, what is allowed and how to fix it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset, IterableDataset

from framework.callback import Callback
from framework.data import TensorLoader
from framework.loop.checkpoint import without_wrappers
from framework.loop.overrides import describe, is_ours, overrides
from framework.loop.progress import Progress
from framework.loop.settings import Settings
from framework.module import Module
from framework.objective.groups import check_groups, check_weight

# ---------------------------------------------------------------------------------------------- modules and callbacks


def check_module(module: Any) -> None:
    """Refuse anything that is not a `Module`, and a module whose ``__init__`` did not call that of its base class.

    Raises:
        TypeError: If it is not a `Module`.
        ValueError: If ``super().__init__()`` was forgotten.
    """
    if not isinstance(module, Module):
        wrap = ", with this module as an attribute" if isinstance(module, nn.Module) else ""
        raise TypeError(
            f"model is {describe(module)}; pass a framework.Module: subclass it and define training_step(batch, "
            f"batch_idx) and configure_optimizers(){wrap}"
        )
    if "_parameters" not in vars(module):
        raise ValueError(f"{type(module).__name__}.__init__ must call super().__init__() first")


def as_callbacks(given: Any) -> list[Callback]:
    """Return the list of callbacks that ``Trainer(callbacks=...)`` was given: none, one or several.

    Raises:
        TypeError: If one is not a `Callback`, such as a class, or a ready-made callback of Lightning's.
    """
    if given is None:
        return []
    callbacks = list(given) if isinstance(given, Iterable) and not isinstance(given, Callback) else [given]
    for index, callback in enumerate(callbacks):
        if is_lightnings(type(callback), "Callback"):
            from framework.lightning import as_callback

            callbacks[index] = as_callback(callback)
            continue
        if isinstance(callback, Callback):
            continue
        name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
        if isinstance(callback, type) and (issubclass(callback, Callback) or is_lightnings(callback, "Callback")):
            raise TypeError(f"callbacks has the class {name}; pass an instance, {name}(...)")
        raise TypeError(
            f"callbacks has {name} ({callback!r:.60}), which is not a framework.Callback; subclass that: the hooks "
            "have Lightning's names and arguments"
        )
    return callbacks


def is_lightnings(cls: type, name: str) -> bool:
    """Tell whether a class is derived from a class of Lightning's with this name, without importing it."""
    return any(one.__name__ == name and one.__module__.startswith("lightning.pytorch.") for one in cls.__mro__)


def with_callbacks_of(module: Module, callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks with those of ``module.configure_callbacks``, which replace those of the same class.

    Raises:
        TypeError: If one of them is not a `Callback`.
    """
    if not overrides(module, "configure_callbacks"):
        return list(callbacks)
    own = as_callbacks(module.configure_callbacks())
    kinds = {type(callback) for callback in own}
    return [callback for callback in callbacks if type(callback) not in kinds] + own


def check_step(module: Module, stage: str, reason: str) -> None:
    """Refuse to run over data with a step that the module does not define.

    Args:
        module: The module.
        stage: "validation", "test" or "predict".
        reason: Why the step is needed, such as "val_dataloaders are given".

    Raises:
        ValueError: If there is no such step; for "predict", `forward` is enough.
    """
    step = f"{stage}_step"
    forward = "forward" in vars(module) or type(module).forward is not nn.Module.forward
    if not (overrides(module, step) or (stage == "predict" and forward)):
        besides = " or forward" if stage == "predict" else ""
        raise ValueError(
            f"{reason}, but {type(module).__name__} does not define {step}: define {step}(batch, batch_idx){besides}"
        )


def check_initialized(module: Module) -> None:
    """Refuse lazy layers whose parameters have no shape yet: there is nothing to optimize or to count.

    Raises:
        ValueError: If there are any; the message names them.
    """
    lazy = [name for name, p in module.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} of {type(module).__name__} have no shape yet: run one batch through the module before "
            "fit, with torch.no_grad()"
        )


def check_checkpoints(checkpoints: Sequence[Any], default: Path) -> None:
    """Refuse two `ModelCheckpoint`s that would overwrite each other's files.

    Args:
        checkpoints: The `ModelCheckpoint` callbacks.
        default: The folder of those without a ``dirpath``.

    Raises:
        ValueError: If two write the same file; the message names both.
    """
    writers: dict[Path, Any] = {}
    for checkpoint in checkpoints:
        folder = Path(checkpoint.dirpath or default).resolve()
        for file in checkpoint.files:
            if (other := writers.setdefault(folder / file, checkpoint)) is not checkpoint:
                raise ValueError(
                    f"two callbacks write {folder / file}: {type(other).__name__}(monitor={other.monitor!r}) and "
                    f"{type(checkpoint).__name__}(monitor={checkpoint.monitor!r}); give each a dirpath of its own"
                    + (", or one of them save_last=False" if file == "last.ckpt" else ", or a filename")
                )


def check_monitors(
    callbacks: Iterable[Callback], schedulers: Iterable[Any], logged: Iterable[str], module: Module
) -> None:
    """Refuse a monitored metric that validation does not log, judging by what the sanity check logged.

    It refuses only if the mistake is certain: the name differs from a logged one only in spelling; or it begins like a
    validation metric and nothing could log it later: no user-defined callback, no epoch-end hook of the module.

    Args:
        callbacks: The callbacks of the run; those with a ``monitor`` are checked.
        schedulers: The `SchedulerConfig`s.
        logged: The names that the sanity check logged; if it logged none, nothing is checked.
        module: The module.

    Raises:
        ValueError: If there is such a metric; the message names it and what is logged.
    """
    names = sorted(logged)
    callbacks = list(callbacks)
    strict = [callback for callback in callbacks if getattr(callback, "strict", True)]
    monitors = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in strict]
    watched = [(reader, monitor) for reader, monitor in monitors if isinstance(monitor, str)]
    plateaus = [s for s in schedulers if isinstance(s.scheduler, ReduceLROnPlateau) and s.strict]
    watched += [("ReduceLROnPlateau", s.monitor) for s in plateaus]
    late = ("on_train_epoch_end", "on_validation_epoch_end", "on_validation_end", "on_train_epoch_start")
    sure = not any(overrides(module, hook) for hook in late) and all(is_ours(type(callback)) for callback in callbacks)
    # A step that asks its trainer may log something else at another time.
    step = getattr(type(module).validation_step, "__code__", None)
    sure = sure and step is not None and not {"trainer", "_trainer"} & set(step.co_names)
    for reader, monitor in watched:
        if not names or monitor in names:
            continue
        same = [name for name in names if _spelled_alike(name) == _spelled_alike(monitor)]
        if same or (sure and re.match("val(id|idation)?[^a-z]", monitor)):
            hint = f"did you mean {same[0]!r}?" if same else "log it in validation_step, or watch one of these"
            raise ValueError(
                f"{reader} monitors {monitor!r}, which validation does not log; logged: {', '.join(names)}: {hint}"
            )


def _spelled_alike(name: str) -> str:
    """Normalize the spelling of a name: "validation/Loss" and "val_loss" both become "valloss"."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("validation", "val"))


# ---------------------------------------------------------------------------------------------------------- the data


def is_collection(loaders: Any) -> bool:
    """Tell whether something is a (nested) collection of loaders, and not a loader, such as a list of batches."""
    return isinstance(loaders, Mapping) or (isinstance(loaders, list | tuple) and _holds_loaders(loaders))


def _holds_loaders(value: Any) -> bool:
    if isinstance(value, list | tuple | Mapping):
        return any(map(_holds_loaders, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, DataLoader | TensorLoader)


def check_loader(loader: Any, name: str) -> None:
    """Refuse anything that is not an iterable of batches, and a loader without batches.

    Raises:
        TypeError: If it is not iterable, or does not yield batches.
        ValueError: If its length is 0.
    """
    if isinstance(loader, Dataset):
        options = "batch_size=None) if it yields batches, otherwise DataLoader(dataset, batch_size=32)"
        options = options if isinstance(loader, IterableDataset) else "batch_size=32)"
        raise TypeError(f"{name} is {type(loader).__name__}, a dataset; pass DataLoader(dataset, {options}")
    if isinstance(loader, Tensor):
        raise TypeError(f"{name} is a tensor; pass framework.data.TensorLoader(X, y, batch_size=...)")
    iterable = hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    if not iterable or isinstance(loader, Mapping | str | bytes | type):
        raise TypeError(f"{name} is {describe(loader)}; pass a DataLoader, a TensorLoader or any iterable of batches")
    if num_batches(loader) == 0:
        raise ValueError(f"{name} has no batches: is the dataset empty, or smaller than a batch with drop_last=True?")


def check_readable_again(loader: Any, name: str, passes: float) -> None:
    """Refuse a generator, or another iterator, if the data are read more than once.

    Args:
        loader: The data.
        name: What to call them.
        passes: How many times they are read. A limit on steps or time may end a run within the first pass: then it is
            1.

    Raises:
        ValueError: If it can be read only once.
    """
    if passes > 1 and isinstance(loader, Iterator):
        raise ValueError(
            f"{name} is a {type(loader).__name__}, which can be read only once, but the run reads it again: pass a "
            "list of batches, a DataLoader, or an object of a class whose __iter__ starts over each time"
        )


def num_passes(max_epochs: int, accumulate_grad_batches: int | str) -> float:
    """Compute how many times a run reads its training data; without a limit on epochs count 1, as a run may end early.

    With ``accumulate_grad_batches="epoch"`` every evaluation reads them.
    """
    if accumulate_grad_batches == "epoch":
        return math.inf
    return 1 if max_epochs == -1 else max_epochs


def num_validation_passes(settings: Settings) -> float:
    """Compute how many times a run reads its validation data, including the sanity check."""
    max_epochs, every = settings.max_epochs, settings.check_val_every_n_epoch
    within = settings.val_check_interval != 1.0 or isinstance(settings.val_check_interval, int)
    epochs = math.inf if max_epochs == -1 or within or every is None else max_epochs // every
    return epochs + (settings.num_sanity_val_steps != 0)


def validation_interval(settings: Settings, num_batches: float) -> int | None:
    """Return after how many training batches to validate; None for the end of the epoch.

    Args:
        settings: Those of the trainer.
        num_batches: The number of batches per epoch.

    Raises:
        ValueError: If the interval is longer than an epoch, or a fraction of one without length.
    """
    interval = settings.val_check_interval
    if isinstance(interval, float):
        if interval == 1.0:
            return None
        if num_batches == math.inf:
            raise ValueError(
                f"val_check_interval={interval} is a fraction of an epoch, whose length is unknown: pass a number of "
                "batches (int)"
            )
        return max(1, int(num_batches * interval))
    if settings.check_val_every_n_epoch is not None and interval > num_batches:
        raise ValueError(
            f"val_check_interval={interval} is more than the {num_batches:g} batches of an epoch: pass at most "
            f"{num_batches:g}, or check_val_every_n_epoch=None to count batches over epochs"
        )
    return interval


def check_separate(train_loader: Any, val_loaders: Sequence[Any]) -> None:
    """Refuse to validate within epochs on a training loader that cannot be read twice at a time.

    Raises:
        ValueError: If there is such a loader.
    """
    shared = any(loader is train_loader for loader in val_loaders)
    if shared and getattr(train_loader, "persistent_workers", False):
        raise ValueError(
            "val_dataloaders is the training loader, and its persistent_workers=True cannot read it for validation "
            "within an epoch while it is being read for training: pass another DataLoader over the same dataset, or "
            "persistent_workers=False"
        )


def check_train_limit(limit_train_batches: int | float | None) -> None:
    """Refuse to train on no batch at all.

    Raises:
        ValueError: If the limit is 0.
    """
    if limit_train_batches is not None and limit_train_batches == 0:
        raise ValueError(
            f"limit_train_batches={limit_train_batches} leaves nothing to train on: use None for all batches, or "
            "trainer.validate(model, dataloaders) only to validate"
        )


def refuse_empty(name: str) -> None:
    """Raise an error because an evaluation pass read no batch.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} yielded no batch: is it empty, or a generator that was read before?")


def num_batches(loader: Any) -> float:
    """Return the length of a loader; infinite if it has none, like a `DataLoader` over an `IterableDataset`."""
    try:
        return len(loader)
    except TypeError:
        return math.inf


def check_fingerprint(saved: Mapping[str, Any], own: Mapping[str, Any], progress: Progress, path: str | Path) -> None:
    """Refuse to continue in the middle of an epoch with other batches; between epochs only warn.

    Args:
        saved: What the run that wrote the checkpoint had: numbers and names.
        own: What this run has.
        progress: Where the checkpoint was written.
        path: Its name.

    Raises:
        ValueError: If something differs in the middle of an epoch; the message names it.
    """
    changed = [name for name in own if saved.get(name) != own[name]]
    if not changed:
        return
    before, now = (", ".join(f"{name}={values.get(name)}" for name in changed) for values in (saved, own))
    if progress.is_within_epoch:
        raise ValueError(
            f"{path} was written within an epoch, after {progress.batch_idx:g} batches, with {before}; this run has "
            f"{now}: continue with the data and the settings of the run that wrote it, or from between two epochs"
        )
    warnings.warn(f"{path} was written with {before}; this run goes on with {now}", stacklevel=2)


def check_options(saved: Mapping[str, Any], now: Mapping[str, Any], path: str | Path) -> None:
    """Refuse groups of other parameters than those of a checkpoint; warn of options that it overrules.

    Raises:
        ValueError: If the names of the parameters, or their order, differ.
    """
    before_names, names = (
        [[without_wrappers(name) for name in group["params"]] for group in one["groups"]] for one in (saved, now)
    )
    if before_names != names:
        raise ValueError(
            f"{path} has other parameters in the groups of its optimizer, or in another order: "
            f"{[group['params'] for group in saved['groups']]}; this run has "
            f"{[group['params'] for group in now['groups']]}. Continue with the configuration of the run that wrote it"
        )
    for kind, what in (("groups", "group"), ("lr_schedulers", "scheduler")):
        for index, (before, here) in enumerate(zip(saved[kind], now[kind], strict=False)):
            name = here.get("name", here.get("class", index))
            changed = [key for key in here if key != "params" and key in before and before[key] != here[key]]
            if changed:
                warnings.warn(
                    f"{' and '.join(f'{key}={here[key]}' for key in changed)} of {what} {name} has no effect: the run "
                    f"goes on with {' and '.join(f'{key}={before[key]}' for key in changed)}, which it began with "
                    f"({path})",
                    stacklevel=2,
                )


def check_length(config: Any, num_steps: float, path: str | Path) -> None:
    """Refuse a scheduler for a number of steps, such as `OneCycleLR`, whose steps end before those of the run.

    Raises:
        ValueError: If it would be stepped too often.
    """
    total = getattr(config.scheduler, "total_steps", None)
    if config.interval == "step" and isinstance(total, int) and total < num_steps // config.frequency:
        raise ValueError(
            f"the {type(config.scheduler).__name__} of {path} is one for {total} steps, but the run would take "
            f"{num_steps:g}: continue it for as many, or start another run from its weights"
        )


def warn_of_hidden_state(loader: Any, progress: Progress) -> None:
    """Warn if a run is to be continued on data whose order may depend on what cannot be saved.

    Args:
        loader: The training data.
        progress: Where the checkpoint was written.
    """
    name = type(loader).__name__
    if hasattr(loader, "state_dict") or isinstance(loader, list | tuple):
        return
    if not isinstance(loader, DataLoader):
        if not hasattr(loader, "set_epoch") and getattr(loader, "__dict__", True):
            warnings.warn(
                f"train_dataloaders is a {name} without state_dict() and load_state_dict(): if its batches depend on "
                "anything but the random generators that it holds, the continued run sees others",
                stacklevel=2,
            )
        return
    if loader.persistent_workers and progress.epoch > 0:
        warnings.warn(
            f"persistent_workers=True in the {name}: what its workers draw at random differs in the continued run; "
            "pass persistent_workers=False if they draw anything",
            stacklevel=2,
        )
    for part in (loader.sampler, loader.batch_sampler):
        theirs = part is not None and not type(part).__module__.startswith("torch.utils.data.")
        if theirs and not hasattr(part, "set_epoch"):
            warnings.warn(
                f"the {name} has a {type(part).__name__}: if its order depends on anything but random generators that "
                "it holds, the continued run sees other batches; give it set_epoch(epoch)",
                stacklevel=2,
            )


# ------------------------------------------------------------------------------------- optimizers, groups, penalties


def check_configured(configured: Any) -> None:
    """Refuse ``(optimizer, scheduler)``, which would be read as two optimizers.

    Raises:
        TypeError: If ``configure_optimizers`` returned that.
    """
    pair = configured if isinstance(configured, tuple | list) and len(configured) == 2 else ()
    if pair and isinstance(pair[0], Optimizer) and (isinstance(pair[1], LRScheduler | Mapping)):
        raise TypeError(
            f"configure_optimizers returned ({type(pair[0]).__name__}, {type(pair[1]).__name__}); return "
            '([optimizer], [scheduler]), or {"optimizer": optimizer, "lr_scheduler": scheduler}'
        )


def check_schedulers(optimizers: Sequence[Optimizer], schedulers: Iterable[Any]) -> None:
    """Refuse a scheduler of another optimizer, which would change nothing.

    Args:
        optimizers: Those of the run.
        schedulers: The schedulers themselves.

    Raises:
        ValueError: If one of them belongs to another optimizer.
    """
    for scheduler in schedulers:
        other = getattr(scheduler, "optimizer", optimizers[0])
        if all(other is not optimizer for optimizer in optimizers):
            raise ValueError(
                f"{type(scheduler).__name__} was made for another {type(other).__name__} than the one that "
                "configure_optimizers returned, and would change nothing: make both in configure_optimizers, and pass "
                "this optimizer to the scheduler"
            )


def check_param_groups(module: Module, optimizer: Optimizer) -> None:
    """Check that every trainable parameter is in a group, and that if any group says whether it is penalized, all do.

    Raises:
        ValueError: If not; the message names the parameters or groups.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if missing := [name for parameter, name in names.items() if parameter.requires_grad and parameter not in optimized]:
        where = f"in no parameter group of {type(optimizer).__name__}: {', '.join(missing)}"
        if not module.may_leave_out_parameters:
            raise ValueError(f"{where}. Add them to param_groups(), or freeze them with requires_grad_(False)")
        warnings.warn(f"{where}; they stay as they are", stacklevel=2)
    check_groups(module.param_groups(), needed=module.penalty is not None)
    check_groups(optimizer.param_groups, needed=False)


def check_penalty_object(module: Module, optimizer_class: type[Optimizer] | None = None) -> None:
    """Refuse a module's penalty that is not a penalty object.

    Args:
        module: The module with the penalty; if it has none, nothing is checked.
        optimizer_class: The optimizer's class; with ``handles_penalty = True`` it also needs the penalty's ``prox``.

    Raises:
        TypeError: If the penalty lacks a method that is needed.
    """
    penalty = module.penalty
    if penalty is None:
        return
    needed = ("value", "prox") if getattr(optimizer_class, "handles_penalty", False) else ("value",)
    missing = [name for name in needed if isinstance(penalty, type) or not callable(getattr(penalty, name, None))]
    if missing:
        raise TypeError(
            f"penalty={penalty!r:.60} of {type(module).__name__} has no {' and no '.join(missing)} to call; pass a "
            "penalty such as framework.penalties.L1(): an object with value(param, lam) and prox(u, step, "
            "lam). If it is something else, give it another name"
        )


def check_penalty(module: Module, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a penalty on no parameter, and a penalty whose weight is missing or invalid.

    Args:
        module: The module with the penalty; if it has none, nothing is checked.
        groups: The penalized groups.

    Raises:
        ValueError: If no parameter is penalized, or a weight is missing, negative or not finite.
    """
    if module.penalty is None:
        return
    name = type(module.penalty).__name__
    masks = [group["penalized"] for group in groups if len(list(group["params"]))]
    if not any(mask if isinstance(mask, bool) else bool(mask.any()) for mask in masks):
        raise ValueError(
            f'the module has the penalty {name}, but no parameter is penalized: mark groups "penalized": True in '
            "param_groups(), or set the module's penalty to None"
        )
    own = [group.get("happy_lambda") for group in groups]
    if module.happy_lambda is not None:
        check_weight(module.happy_lambda, f"the module, the weight of its penalty {name},")
    elif None in own:
        raise ValueError(
            f"the module has the penalty {name}, but no weight for penalized parameter group {own.index(None)}: set "
            'happy_lambda on the module, or "happy_lambda" in the group (0.0 for none)'
        )
    for index, weight in enumerate(own):
        if weight is not None:
            check_weight(weight, f"penalized parameter group {index}, the weight of the penalty {name},")


def check_smoothness(module: Module, optimizer: Optimizer) -> None:
    """Refuse a penalty for an optimizer that requires a smooth objective.

    Raises:
        ValueError: If the module has a penalty and the optimizer's class says ``requires_smooth = True``.
    """
    if module.penalty is not None and getattr(type(optimizer), "requires_smooth", False):
        raise ValueError(
            f"{type(optimizer).__name__} needs a smooth objective, but the module has the penalty "
            f"{type(module.penalty).__name__}: use SpaRSA, FISTA, ISTA or ProxAdam, or set the penalty to None"
        )


def check_replay(optimizer: Optimizer, loader: Any) -> None:
    """Check that a loader whose batches are read at every evaluation of a step can yield the same ones again.

    Raises:
        ValueError: If its workers persist between passes, with random streams that cannot be reset from outside.
    """
    if getattr(loader, "persistent_workers", False):
        name = type(optimizer).__name__
        raise ValueError(
            f'a DataLoader with persistent_workers=True and accumulate_grad_batches="epoch" with {name}, which reads '
            "the data many times per step: random draws in the workers would differ from one evaluation to the next. "
            "Pass persistent_workers=False"
        )


def check_reevaluation(optimizer: Optimizer, gradient_clip_val: float | None, *, fp16: bool) -> None:
    """Refuse settings under which the value and the gradient of a reevaluated objective would disagree.

    Raises:
        ValueError: If there is clipping or a gradient scaler; the optimizer evaluates more than once per step.
    """
    name = type(optimizer).__name__
    if gradient_clip_val:
        raise ValueError(
            f"gradient_clip_val={gradient_clip_val} with {name}, which evaluates its closure many times per step: "
            "clipped gradients would disagree with the values. Drop gradient_clip_val, or use another optimizer"
        )
    if fp16:
        raise ValueError(
            f"precision='16-mixed' with {name}, which evaluates its closure many times per step: scaled gradients "
            "would disagree with the values. Use precision='bf16-mixed' or '32-true', or another optimizer"
        )


def warn_of_minimizations(optimizer: Optimizer, steps_per_epoch: float) -> None:
    """Warn if a whole minimization would be made for each of several batches.

    Args:
        optimizer: The optimizer; its class says ``minimizes = True`` if one step is a whole minimization.
        steps_per_epoch: How many steps an epoch has.
    """
    if getattr(type(optimizer), "minimizes", False) and steps_per_epoch > 1:
        warnings.warn(
            f"{type(optimizer).__name__} makes a whole minimization for every mini-batch, {steps_per_epoch:g} per "
            'epoch, each undoing the one before: pass accumulate_grad_batches="epoch" for one over all the data',
            RuntimeWarning,
            stacklevel=2,
        )
