"""What a user overrides: what no run would call is refused by name, with what to do instead."""

from __future__ import annotations

import difflib
import dis
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partialmethod
from types import FunctionType
from typing import Any

from framework.callback import HOOKS, Callback
from framework.module import Module

# The arguments of each `Callback` hook after the trainer and the module: those of the module's own hook.
_HOOK_ARGUMENTS = {
    hook: [
        name
        for name, parameter in list(inspect.signature(getattr(Callback, hook)).parameters.items())[3:]
        if parameter.default is parameter.empty
    ]
    for hook in HOOKS
}
# The methods that a trainer calls, and the arguments it passes.
_CALLED: dict[type, dict[str, list[str]]] = {
    Module: {
        "training_step": ["batch", "batch_idx"],
        "validation_step": ["batch", "batch_idx"],
        "test_step": ["batch", "batch_idx"],
        "predict_step": ["batch", "batch_idx"],
        "param_groups": [],
        "count_samples": ["batch"],
        "configure_optimizers": [],
        "prepare_data": [],
        "train_dataloader": [],
        "val_dataloader": [],
        "test_dataloader": [],
        "predict_dataloader": [],
        "configure_callbacks": [],
        "configure_model": [],
        "configure_gradient_clipping": ["optimizer", "gradient_clip_val", "gradient_clip_algorithm"],
        "optimizer_step": ["epoch", "batch_idx", "optimizer", "optimizer_closure"],
        "optimizer_zero_grad": ["epoch", "batch_idx", "optimizer"],
        "backward": ["loss"],
        "lr_scheduler_step": ["scheduler", "metric"],
        "on_before_batch_transfer": ["batch", "dataloader_idx"],
        "transfer_batch_to_device": ["batch", "device", "dataloader_idx"],
        "on_after_batch_transfer": ["batch", "dataloader_idx"],
        **_HOOK_ARGUMENTS,
    },
    Callback: {
        "state_dict": [],
        "load_state_dict": ["state_dict"],
        **{hook: ["trainer", "module", *arguments] for hook, arguments in _HOOK_ARGUMENTS.items()},
    },
}

# The methods that Lightning calls but a trainer does not, with what to do instead.
_STEP_END = "put it at the end of the step"
_EPOCH_END = "collect what it needs in the step, and define {} instead"
_MODE = "a trainer switches the module to eval mode and back by itself; change modes in on_validation_start"
_CALL = "it is there to be called, not to be overridden"
_NOT_CALLED: dict[type, dict[str, str]] = {
    Module: {
        "manual_backward": "it is there to be called; define backward instead",
        "toggle_optimizer": _CALL,
        "untoggle_optimizer": _CALL,
        "toggled_optimizer": _CALL,
        "clip_gradients": "it is there to be called; define configure_gradient_clipping instead",
        "configure_sharded_model": "rename it to configure_model",
        "on_validation_model_zero_grad": "define on_validation_start",
        "on_validation_model_eval": _MODE,
        "on_validation_model_train": _MODE,
        "on_test_model_eval": _MODE,
        "on_test_model_train": _MODE,
        "on_predict_model_eval": _MODE,
        "on_predict_model_train": _MODE,
        "training_step_end": _STEP_END,
        "validation_step_end": _STEP_END,
        "test_step_end": _STEP_END,
        "training_epoch_end": _EPOCH_END.format("on_train_epoch_end"),
        "validation_epoch_end": _EPOCH_END.format("on_validation_epoch_end"),
        "test_epoch_end": _EPOCH_END.format("on_test_epoch_end"),
        "predict_epoch_end": _EPOCH_END.format("on_predict_epoch_end"),
        "tbptt_split_batch": "cut the sequences in the loader, one batch for each piece",
    },
    Callback: {"state_key": "checkpoints tell callbacks apart by their class and position; drop it"},
}
# Attributes that Lightning reads: set to False, they would have no effect here.
_FLAGS = {
    "strict_loading": "a checkpoint must have all entries of the module: drop it, and load other weights with "
    "load_state_dict(..., strict=False) before fit",
}


def check_overrides(module: Module, callbacks: Iterable[Callback]) -> None:
    """Refuse what a user overrides but no run would call, or would call with other arguments.

    These are misspelled hooks and steps, methods and attributes that mean something only in Lightning, wrong numbers of
    arguments, and a forgotten ``super().__init__()`` in a subclass of a ready-made callback. Plain attributes and
    submodules may have any name.

    Raises:
        ValueError: If there is one; the message names it and what to do instead.
        TypeError: If a hook or a step does not take the arguments it is called with.
    """
    for callback in callbacks:
        if not is_ours(type(callback)):
            _check_init(callback)
            _check_methods(callback, Callback)
    _check_methods(module, Module)
    _check_hidden(module)
    for name, remedy in _FLAGS.items():
        if getattr(module, name, True) is False:
            raise ValueError(f"{type(module).__name__}.{name} is False, which would have no effect: {remedy}")
    if getattr(module, "example_input_array", None) is not None:
        warnings.warn(
            f"{type(module).__name__}.example_input_array has no effect: the summary shows no input sizes, and no "
            "graph is logged",
            stacklevel=2,
        )


def _check_hidden(module: Module) -> None:
    """Refuse submodules, parameters and buffers that a method of `Module` hides: that would be called in their place.

    Raises:
        ValueError: If there are any; the message names them.
    """
    registered = [*module._modules, *module._parameters, *module._buffers]
    if hidden := [name for name in registered if hasattr(Module, name)]:
        raise ValueError(
            f"{type(module).__name__}.{hidden[0]} is a submodule, a parameter or a buffer, but also the name of "
            f"something in Module, which hides it: give it another name"
        )


def _check_init(callback: Callback) -> None:
    """Refuse a subclass of a ready-made callback that lacks attributes set by that callback's ``__init__``."""
    for cls in type(callback).__mro__:
        init = vars(cls).get("__init__")
        if is_ours(cls) and isinstance(init, FunctionType):
            made = {i.argval for i in dis.get_instructions(init) if i.opname == "STORE_ATTR"}
            if missing := made - vars(callback).keys():
                raise ValueError(
                    f"{type(callback).__name__} has no attribute {min(missing)!r}: call super().__init__(...) in its "
                    f"__init__, with the arguments of {cls.__name__}"
                )


def _check_methods(owner: Module | Callback, kind: type) -> None:
    called = _CALLED[kind]
    accepted: set[str] = set()
    for cls in reversed(type(owner).__mro__):
        if cls in kind.__mro__ or is_ours(cls) or cls.__module__.startswith("lightning.pytorch."):
            continue
        for name in vars(cls):
            if name not in called and name not in accepted and not name.startswith("_"):
                _check_name(owner, name, cls, _NOT_CALLED[kind], called)
                accepted.add(name)
    for name, arguments in called.items():
        if overrides(owner, name):
            _check_arguments(owner, name, arguments)


def _check_name(
    owner: Module | Callback, name: str, cls: type, not_called: Mapping[str, str], called: Iterable[str]
) -> None:
    """Refuse a method name of a user's class that only Lightning calls, or that nearly matches one of ours."""
    where = f"{type(owner).__name__}.{name}"
    is_method = isinstance(vars(cls)[name], FunctionType | staticmethod | classmethod | partialmethod)
    if name in not_called and (is_method or name == "state_key"):
        raise ValueError(f"{where} would never be called: {not_called[name]}")
    if not is_method:
        return
    is_hook = name.startswith("on_") and not _is_called(owner, name)
    candidates = [other for other in called if other.startswith("on_") == is_hook]
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6 if is_hook else 0.86)
    if is_hook:
        hint = f"did you mean {near[0]!r}?" if near else "rename it so that it does not start with 'on_'"
        raise ValueError(f"{where} is not a hook and would never be called: {hint}")
    # A method that the user's code calls, or that stands beside the one of the similar name, is no misspelling of it.
    if near and near[0] not in vars(cls) and near[0][0] == name[0] and not _is_called(owner, name):
        raise ValueError(f"{where} would never be called: did you mean {near[0]!r}? If not, give it another name")


def _is_called(owner: Module | Callback, name: str) -> bool:
    """Tell whether a method of the owner's own classes uses a name."""
    for cls in type(owner).__mro__:
        if not (is_ours(cls) or cls.__module__.startswith("torch.")):
            codes = [part.__code__ for part in vars(cls).values() if isinstance(part, FunctionType)]
            if any(name in code.co_names for code in codes):
                return True
    return False


def is_ours(cls: type) -> bool:
    """Tell whether a class is from this package."""
    return cls.__module__.startswith("framework.")


def overrides(owner: Module | Callback, name: str) -> bool:
    """Tell whether a module or a callback has its own method where its base class has a default or none."""
    kind = Module if isinstance(owner, Module) else Callback
    if name in vars(owner):
        return True
    return getattr(type(owner), name, None) is not getattr(kind, name, None)


def _check_arguments(owner: Module | Callback, name: str, arguments: list[str]) -> None:
    method = getattr(owner, name)
    if not callable(method):
        if isinstance(owner, Module) and name in HOOKS:
            return  # an attribute of the user's that is not a hook
        raise TypeError(
            f"{type(owner).__name__}.{name} is {describe(method)}; it must be a method. If it has nothing to do with "
            "the Trainer's, give it another name"
        )
    if any(accepts(method, number) for number in _numbers_of_arguments(name, arguments)):
        return
    raise _wrong_arguments(owner, name, arguments)


def _wrong_arguments(owner: Module | Callback, name: str, arguments: list[str]) -> TypeError:
    return TypeError(
        f"{type(owner).__name__}.{name} takes {inspect.signature(getattr(owner, name))}, but is called with "
        f"({', '.join(arguments)}): define it as def {name}({', '.join(['self', *arguments])})"
    )


def _numbers_of_arguments(name: str, arguments: list[str]) -> list[int]:
    """Return with how many arguments a method may be called: a step need not take the index of the batch."""
    if name not in ("training_step", "validation_step", "test_step", "predict_step"):
        return [len(arguments)]
    # How many loaders there are, and so whether their index is passed, is not known before they are read.
    with_loader = [] if name == "training_step" else [len(arguments) + 1]
    return [1, len(arguments), *with_loader]


def check_loader_index(module: Module, callbacks: Iterable[Callback], stage: str, num_loaders: int) -> None:
    """Refuse a step or a hook that cannot be told which of several loaders a batch is from, or that waits for it.

    Raises:
        TypeError: If there is one; the message names it.
    """
    hooks = [f"on_{stage}_batch_start", f"on_{stage}_batch_end"]
    index = ["dataloader_idx"] if num_loaders > 1 else []
    owners: list[Module | Callback] = [module, *callbacks]
    for owner in owners:
        kind = Module if owner is module else Callback
        for name in [f"{stage}_step", *hooks] if owner is module else hooks:
            arguments = [*_CALLED[kind][name], *index]
            if not overrides(owner, name) or not callable(method := getattr(owner, name)):
                continue
            takes_batch_alone = name.endswith("_step") and not index and accepts(method, 1)
            if not (takes_batch_alone or accepts(method, len(arguments))):
                raise _wrong_arguments(owner, name, arguments)


def accepts(method: Callable[..., Any], num_arguments: int) -> bool:
    """Tell whether a function may be called with so many arguments by position."""
    try:
        inspect.signature(method).bind(*range(num_arguments))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def describe(value: Any) -> str:
    """Return the type of a value, and the value in short."""
    return type(value).__name__ + ("" if value is None else f" ({' '.join(repr(value).split()):.60})")
