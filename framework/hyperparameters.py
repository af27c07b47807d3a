"""The arguments that a module was made with: kept, logged, saved in checkpoints, and used to make it again."""

from __future__ import annotations

import copy
import inspect
import warnings
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

if TYPE_CHECKING:
    _class_only = classmethod
else:

    class _class_only(classmethod):  # noqa: N801
        """A class method that refuses to be called on an instance, which its result would not change."""

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return super().__get__(None, owner)

            def refuse(*args: Any, **kwargs: Any) -> None:
                name, cls = self.__func__.__name__, owner.__name__
                raise TypeError(
                    f"{name} was called on an instance, which it would leave as it is: write model = {cls}.{name}(...)"
                )

            return refuse


class AttributeDict(dict[str, Any]):
    """A dictionary whose entries are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]

    def __repr__(self) -> str:
        width = max((len(name) for name in self), default=0) + 3
        return "\n".join(f"{f'{name!r}:'.replace(chr(39), chr(34)):<{width}} {self[name]}" for name in sorted(self))


class Hyperparameters:
    """The part of a `Module` that knows the arguments it was made with."""

    _hparams: AttributeDict | None = None
    _hparams_initial: AttributeDict | None = None
    _hparams_name: str | None = None
    _log_hyperparams: bool = False

    @property
    def hparams(self) -> AttributeDict:
        """The hyperparameters, a dictionary with attributes. It may be changed; checkpoints hold it as it is then."""
        if self._hparams is None:
            self._hparams = AttributeDict()
        return self._hparams

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyperparameters as they were when they were saved; networks in it are not copied."""
        return _copied(self._hparams_initial or {})

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Sequence[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__`` in `hparams`, with those of the subclasses whose ``__init__`` led here.

        Call it in ``__init__``, before the arguments are changed. Checkpoints hold what is plain data: tensors,
        numbers, strings and containers of them.

        Args:
            *args: Names of the arguments to keep, or one dictionary or `argparse.Namespace` to keep instead of them.
                Default: all.
            ignore: Names not to keep; a subclass may drop what its base class has kept.
            frame: Where to look for ``__init__``, for a function that calls this one on behalf of another.
            logger: Whether to log them at the start of `Trainer.fit`.

        Raises:
            ValueError: If there is no argument of that name.
            TypeError: If something other than names or one mapping was passed.
        """
        if frame is None:
            current = inspect.currentframe()
            assert current is not None
            frame = current.f_back
        given = _init_arguments(self, frame)
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        if unknown := ignored - given.keys() - self.hparams.keys():
            warnings.warn(
                f"save_hyperparameters(ignore={sorted(unknown)}) has no effect: the arguments of {type(self).__name__} "
                f"are {', '.join(given) or 'none'}",
                stacklevel=2,
            )
        chosen, self._hparams_name = _chosen(args, given)
        self._log_hyperparams = logger
        self.hparams.update(chosen)
        for name in ignored & self.hparams.keys():
            del self.hparams[name]
        self._hparams_initial = _copied(self.hparams)

    @_class_only
    def load_from_checkpoint(
        cls,  # noqa: N805
        checkpoint_path: str | Path,
        map_location: torch.device | str | int | None = None,
        hparams_file: str | Path | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Make a module from the hyperparameters in a checkpoint, and give it the parameters and buffers there.

        Args:
            checkpoint_path: A file that a `Trainer` wrote.
            map_location: The device to put the module on. Default: the CPU.
            hparams_file: A ``.yaml`` or ``.csv`` file with hyperparameters to use instead of those in the checkpoint.
            strict: Whether the checkpoint must have exactly the entries of the module. If not, those that differ are
                warned about.
            **kwargs: Hyperparameters that take precedence over the saved ones, and those that a checkpoint cannot hold.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a checkpoint, belongs to another model, or does not say all that ``__init__`` must
                be given; the message names it.
            TypeError: If ``__init__`` has no argument of a name in ``kwargs``.
        """
        from framework.loop import checkpoint as checkpoints  # it comes after the module: see test_imports

        device = _device(map_location)
        checkpoint = checkpoints.load(checkpoint_path)
        if hparams_file is not None:
            checkpoint["hyper_parameters"] = _read(Path(hparams_file))
            checkpoint["hparams_left_out"] = []
        module = cls(**_arguments(cls, checkpoint, kwargs, str(checkpoint_path)))
        for hook, arguments in (("configure_model", ()), ("on_load_checkpoint", (checkpoint,))):
            if callable(method := getattr(module, hook, None)):
                method(*arguments)
        if strict:
            checkpoints.load_weights(module, checkpoint["state_dict"], checkpoint_path)  # type: ignore[arg-type]
        else:
            keys = module.load_state_dict(checkpoint["state_dict"], strict=False)  # type: ignore[attr-defined]
            for owner, names in ((cls.__name__, keys.missing_keys), (checkpoint_path, keys.unexpected_keys)):
                if names:
                    warnings.warn(f"strict=False: only {owner} has {', '.join(names)}", stacklevel=2)
        return module.to(device)  # type: ignore[attr-defined]


def hyperparameters_state(owner: Any, prefix: str = "") -> dict[str, Any]:
    """Return what a checkpoint holds of the hyperparameters of a module or a datamodule, under names with a prefix.

    These are the plain ones, and the names of the others.
    """
    if not getattr(owner, "hparams", None):
        return {}
    plain, left_out = _parted(owner)
    name = getattr(owner, "_hparams_name", None)
    state = {"hyper_parameters": plain, "hparams_name": name, "hparams_left_out": left_out}
    return {prefix + key: value for key, value in state.items()}


def announce_hyperparameters(module: Hyperparameters, loggers: Iterable[Any], datamodule: Any = None) -> None:
    """Log the hyperparameters of a module and its datamodule, and warn of those that no checkpoint will hold.

    Raises:
        ValueError: If both have one of the same name with different values.
    """
    owners = [owner for owner in (module, datamodule) if getattr(owner, "hparams", None)]
    logged: dict[str, Any] = {}
    for owner in owners:
        if owner._log_hyperparams:
            new = owner.hparams_initial
            differing = [name for name in new if name in logged and repr(logged[name]) != repr(new[name])]
            if differing:
                raise ValueError(
                    f"{type(module).__name__} and {type(datamodule).__name__} have different hyperparameters of "
                    f"the same name: {', '.join(differing)}. Rename one, or save one with logger=False"
                )
            logged |= new
    for logger in loggers if logged else ():
        logger.log_hyperparams(logged)
    for owner in owners:
        if left_out := _parted(owner)[1]:
            described = ", ".join(f"{name} ({type(owner.hparams[name]).__name__})" for name in left_out)
            warnings.warn(
                f"checkpoints will not hold these hyperparameters of {type(owner).__name__}, because reading them "
                f"would run code: {described}. Pass them to load_from_checkpoint, and "
                f"save_hyperparameters(ignore={left_out})",
                stacklevel=2,
            )


def _parted(owner: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the hyperparameters that are plain data, and the names of the others but for those at their default."""
    from framework.loop.checkpoint import plain

    kept, left_out = {}, []
    for name, value in owner.hparams.items():
        try:
            kept[name] = plain(_unwrapped(value), name)
        except ValueError:
            has_name = getattr(owner, "_hparams_name", None)
            parameter = None if has_name else _parameters(type(owner)).get(name)
            if parameter is None or value is not parameter.default:
                left_out.append(name)
    return kept, left_out


def _unwrapped(value: Any) -> Any:
    """Turn mappings and lists of other libraries, such as those of OmegaConf, into Python's own."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple):
        return [_unwrapped(item) for item in value]
    return value


def _wrapped(value: Any) -> Any:
    """Give the dictionaries in a configuration attributes."""
    if isinstance(value, dict):
        return AttributeDict({key: _wrapped(item) for key, item in value.items()})
    return [_wrapped(item) for item in value] if isinstance(value, list) else value


def _copied(hparams: Mapping[str, Any]) -> AttributeDict:
    return AttributeDict({name: _copy(value) for name, value in hparams.items()})


def _copy(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # such as an open file, which nobody can copy
        return value


# ------------------------------------------------------------------------------------------------ saving and loading


def _init_arguments(owner: object, frame: FrameType | None) -> dict[str, Any]:
    """Return the arguments of every ``__init__`` of an object under way; those of a subclass take precedence."""
    found: dict[str, Any] = {}
    while frame is not None:
        if frame.f_code.co_name == "__init__":
            names, _, keywords, values = inspect.getargvalues(frame)
            if names and values.get(names[0]) is owner:
                found |= {name: values[name] for name in names[1:] if name in values}
                found |= values[keywords] if keywords else {}
        frame = frame.f_back
    return found


def _chosen(args: Sequence[Any], given: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Return what `save_hyperparameters` was asked to keep, and which argument that is if it is a mapping."""
    if len(args) == 1 and isinstance(args[0], Mapping | Namespace):
        mapping = args[0]
        name = next((name for name, value in given.items() if value is mapping), None)
        return vars(mapping) if isinstance(mapping, Namespace) else mapping, name
    if others := [arg for arg in args if not isinstance(arg, str)]:
        raise TypeError(
            f"save_hyperparameters was passed a {type(others[0]).__name__}: pass names of arguments of __init__, or "
            "one dictionary or Namespace alone"
        )
    if unknown := [name for name in args if name not in given]:
        raise ValueError(
            f"save_hyperparameters({', '.join(map(repr, unknown))}): __init__ has no such argument, only "
            f"{', '.join(given) or 'none'}"
        )
    return {name: given[name] for name in args} if args else given, None


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def _arguments(cls: type, checkpoint: Mapping[str, Any], passed: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the arguments to make a module with: the passed ones, and the saved ones that it has use for."""
    saved, name = checkpoint.get("hyper_parameters", {}), checkpoint.get("hparams_name")
    left_out = checkpoint.get("hparams_left_out", [])
    if not (isinstance(saved, dict) and isinstance(left_out, list)):
        raise ValueError(f"{path} is damaged: hyper_parameters in it is not what a Trainer writes")
    parameters = _parameters(cls)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    one_argument = name in parameters  # holds them all, as it did when they were saved
    own = {key: value for key, value in passed.items() if key in parameters}
    arguments: dict[Any, Any]
    if one_argument and name not in own:
        within = saved | {key: value for key, value in passed.items() if key not in own}
        arguments, known = {name: _wrapped(within), **own}, within | own
    elif unknown := sorted(passed.keys() - own.keys()) if not takes_all else []:
        raise TypeError(
            f"{cls.__name__}.load_from_checkpoint was passed {', '.join(unknown)}, which {cls.__name__} does not take: "
            f"its arguments are {', '.join(parameters)}"
        )
    else:
        used = [] if one_argument else [key for key in saved if key in parameters or takes_all]
        arguments = known = {key: saved[key] for key in used} | passed
        left_out = [] if one_argument else [key for key in left_out if key in parameters or takes_all]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [key for key, one in parameters.items() if one.default is one.empty and one.kind not in kinds]
    missing = [key for key in needed if key not in arguments]
    if missing := list(dict.fromkeys(missing + [key for key in left_out if key not in known])):
        raise ValueError(
            f"{path} does not hold {', '.join(missing)}, which {cls.__name__} is made with: call "
            f"{cls.__name__}.load_from_checkpoint(path, {', '.join(f'{key}=...' for key in missing)})"
        )
    return arguments


def _read(path: Path) -> dict[str, Any]:
    """Return the hyperparameters in a file that a logger of Lightning wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither a YAML nor a CSV file, or holds something else.
    """
    from lightning.pytorch.core.saving import load_hparams_from_tags_csv, load_hparams_from_yaml  # slow to import

    if path.suffix.lower() not in (".yml", ".yaml", ".csv"):
        raise ValueError(f"hparams_file={str(path)!r}; it must end in .yaml, .yml or .csv")
    if not path.is_file():
        raise FileNotFoundError(f"there is no hparams_file {path}")
    is_table = path.suffix.lower() == ".csv"
    found = load_hparams_from_tags_csv(path) if is_table else load_hparams_from_yaml(path, use_omegaconf=False)
    if not isinstance(found, dict):
        raise ValueError(f"hparams_file={str(path)!r} holds a {type(found).__name__}; it must be names with values")
    return found


def _device(map_location: Any) -> torch.device:
    """Return the device that a `torch.load` argument names.

    Raises:
        TypeError: If it names none.
    """
    if map_location is None:
        return torch.device("cpu")
    if not isinstance(map_location, torch.device | str | int):
        raise TypeError(
            f"map_location is a {type(map_location).__name__}; pass the device to put the module on, such as 'cuda:0': "
            "checkpoints are read onto the CPU, wherever they were written"
        )
    return torch.device(map_location)
