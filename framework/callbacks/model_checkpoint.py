"""Keep the last and the best states of a run on disk."""

from __future__ import annotations

import contextlib
import copy
import glob
import itertools
import math
import os
import re
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from framework.callbacks.monitor import Monitor
from framework.module import Module

if TYPE_CHECKING:
    from framework.trainer import Trainer

FIRST_SAVE = timedelta(seconds=10)
LAST_INTERVAL = timedelta(minutes=1)
# What saves at the ends of epochs, and copies in memory, may cost of the time.
SHARE = 0.01
# A field of a filename: a name, and perhaps how to format its value.
_FIELD = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class ModelCheckpoint(Monitor):
    """Write ``last.ckpt`` now and then and at the end of the run, ``best.ckpt`` whenever a metric improves.

    ``last.ckpt`` is written first after ten seconds, then at every ``train_time_interval``, and after a validation if
    the last save took less than 1 % of the time since. When an exception or a second Ctrl-C ends the run, the
    parameters may be anywhere within a step: then it is written from a copy of the state before one of the last steps.
    Copies are made as often as takes 1 % of the time: for a small model every few steps.

    With ``save_top_k`` or ``filename`` it writes files of these names instead, as Lightning does: the k best ones by
    the metric, or without a metric the newest. Then ``last.ckpt`` is written only with ``save_last=True``. A value
    belongs to the step or epoch in which it was logged: where there is no new one, the file waits for the next
    validation. NaN and infinite values are never among the k best.

    The list of files is part of a checkpoint: a run that continues in the same folder goes on with it, and ends with
    the files of an uninterrupted run. In another folder it goes on, too, but touches nothing of the first.

    Args:
        dirpath: The folder; default: ``checkpoints`` in the folder of the first logger.
        filename: The names of the files, without ".ckpt", such as "{epoch}-{step}-{val/loss:.2f}": each field is
            replaced by "name=value". ``epoch`` is the index of the epoch, ``step`` the number of optimizer steps taken;
            the others are logged metrics. A "/" makes a folder. Default, with ``save_top_k``: "{epoch}-{step}".
        monitor: The metric that decides which files are the best.
        verbose: Print what is saved, and what is not among the k best.
        save_last: Whether to write ``last.ckpt``; "link" for a symbolic link to the newest of the other files, which is
            as old as that. Default: True, but False with ``save_top_k`` or ``filename``.
        save_top_k: How many files to keep; -1 for all, 0 for none. Default: 1. Without ``monitor``, 1 is the newest.
        save_on_exception: Whether to keep the copy, in the memory of the CPU, and write it when the run fails. Default:
            as ``save_last``. Without ``last.ckpt``, the file is named by ``filename``, beside the k best.
        save_weights_only: Write the parameters and buffers alone: not enough for `Trainer.fit` to continue.
        mode: "min" if less is better, "max" if more is.
        auto_insert_metric_name: Put "name=" before each value in a file name.
        every_n_train_steps: Save after every so many optimizer steps: ``last.ckpt``, and the files of ``save_top_k`` or
            ``filename`` instead of at the ends of epochs.
        train_time_interval: Save at this interval, what ``every_n_train_steps`` saves. Default: one minute for
            ``last.ckpt``: how much training a crash of the machine may cost. (Lightning writes ``last.ckpt`` with the
            other files.)
        every_n_epochs: Save after every nth epoch only. Default: 1.
        save_on_train_epoch_end: Save at the end of every epoch (True), or only after a validation (False). Default: at
            the end of every epoch, unless the trainer validates within epochs or not in every one.
        enable_version_counter: Whether a file that was there before the run is kept, and the new one named "...-v1".
            ``last.ckpt`` and ``best.ckpt`` are always replaced.

    Attributes:
        last_model_path, best_model_path: Where they were written; empty before.
        best_model_score: The best value of the metric; None before the first.
        best_k_models: The value of each file that is kept, by its path; empty without ``monitor``.
        current_score: The value of the file that was written last.

    Raises:
        ValueError: If an argument is out of range, or two contradict each other.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | str | None = None,
        save_top_k: int | None = None,
        save_on_exception: bool | None = None,
        save_weights_only: bool = False,
        mode: str = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
    ) -> None:
        super().__init__(monitor, mode, on_train_epoch_end=save_on_train_epoch_end)
        is_default = filename is None and save_top_k is None
        self.dirpath = dirpath
        self.filename = filename or ("best" if is_default else "{epoch}-{step}")
        self.verbose = verbose
        self.save_last = is_default if save_last is None else save_last
        self.save_top_k = int(not is_default or monitor is not None) if save_top_k is None else save_top_k
        self.save_on_exception = bool(self.save_last) if save_on_exception is None else save_on_exception
        self.save_weights_only = save_weights_only
        self.auto_insert_metric_name = auto_insert_metric_name
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self.every_n_epochs = every_n_epochs
        self.enable_version_counter = enable_version_counter
        _check(self, is_default)
        self._counts_versions = enable_version_counter and not is_default
        self._keeps_copy = bool(self.save_on_exception and (self.save_last or not is_default))
        if filename is not None and self.files in ((), ("last.ckpt",)):
            warnings.warn(
                f"ModelCheckpoint: filename={filename!r} has no effect with save_top_k=0, which writes no such file",
                stacklevel=2,
            )
        # When the files besides last.ckpt are written.
        self._by_step = not is_default and bool(every_n_train_steps or train_time_interval is not None)
        self._per_epochs = (0 if self._by_step else 1) if every_n_epochs is None else every_n_epochs
        self._needs_value = monitor is not None and self.save_top_k != -1
        self._folder = Path(dirpath or "checkpoints")
        self.last_model_path = ""
        self.best_model_path = ""
        self._copy: tuple[str, dict[str, Any]] | None = None
        self._start()

    def _start(self) -> None:
        self._files: dict[str, float] = {}  # those that are kept, each with its score
        self._others: list[str] = []  # those that were there before the run
        self._home: str | None = None  # the folder of which this is true
        self._dropped: list[str] = []  # those that are deleted once the newest is written
        self._saved_step = 0
        self._is_due = False
        self.current_score: float | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files it writes, with ``*`` for what is filled in."""
        last = ("last.ckpt",) if self.save_last else ()
        if self.save_top_k == 0 and not (self._keeps_copy and self.save_last is not True):
            return last
        stem = _FIELD.sub(lambda field: self._label(field[1], "*"), glob.escape(self.filename))
        return (*last, f"{stem}.ckpt", *([f"{stem}-v*.ckpt"] if self._counts_versions else []))

    @property
    def best_model_score(self) -> float | None:
        return self.best

    @property
    def best_k_models(self) -> dict[str, float]:
        return {} if self.monitor is None else {self._path(name): score for name, score in self._files.items()}

    @property
    def kth_best_model_path(self) -> str:
        """The worst file that is kept; empty as long as there is room for another one."""
        is_full = self._files and len(self._files) >= self.save_top_k  # with -1, always
        return self._path(self._worst()) if is_full and self.monitor is not None else ""

    @property
    def kth_value(self) -> float:
        """The value of that file; infinite as long as there is room for another one."""
        return self._files[self._worst()] if self.kth_best_model_path else self.sign * math.inf

    def folder(self, trainer: Trainer) -> Path:
        """Return the folder that the checkpoints of a trainer's run are in."""
        return Path(self.dirpath or trainer.log_dir / "checkpoints")

    # ---------------------------------------------------------------------------------------------------- hooks

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage == "fit":
            self._start()

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._folder = self.folder(trainer)
        existing = next((path for path in (self._folder, *self._folder.parents) if path.exists()), None)
        if existing is not None and not existing.is_dir():
            raise ValueError(
                f"ModelCheckpoint would write to the folder {self._folder}, but {existing} is a file: pass another "
                "dirpath, or move the file"
            )
        self._take_stock(trainer)
        self._save_seconds = 0.02  # a guess, until one is measured
        now = self._saved_at = trainer.clock()
        interval = LAST_INTERVAL if self.train_time_interval is None else self.train_time_interval
        self._interval = interval.total_seconds()
        self._save_due = now + min(FIRST_SAVE.total_seconds(), self._interval)
        self._files_due = math.inf if self.train_time_interval is None else now + self._interval
        self._copy_due = math.inf
        if self._keeps_copy:
            self._keep_copy(trainer)
            self._copy_due = now  # the first one takes longer than the others

    def on_train_batch_end(
        self, trainer: Trainer, module: Module, outputs: object, batch: object, batch_idx: int
    ) -> None:
        steps, now = self.every_n_train_steps, trainer.clock()
        is_nth = trainer.global_step % steps == 0 if steps else False
        if self._by_step and (is_nth or now >= self._files_due):
            self._files_due = math.inf if self.train_time_interval is None else now + self._interval
            value = self._news(trainer)
            self._is_due = self._needs_value and value is None
            if not self._is_due:
                self._save_file(trainer, value)
        if self.save_last is True and (is_nth or now >= self._save_due):
            self._save_last(trainer)
        elif now >= self._copy_due:
            self._keep_copy(trainer)

    def on_optimizer_iteration(self, trainer: Trainer, module: Module, iteration: int, value: float) -> None:
        if self.save_last is True and trainer.clock() >= self._save_due:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        validated = self._validated
        super().on_train_epoch_end(trainer, module)
        is_nth = (trainer.current_epoch + 1) % self.every_n_epochs == 0 if self.every_n_epochs else False
        is_cheap = validated and self._save_seconds <= SHARE * (trainer.clock() - self._saved_at)
        if self.save_last is True and (is_nth or is_cheap):
            self._save_last(trainer)

    def look(self, trainer: Trainer) -> None:
        value, epoch = self._news(trainer), trainer.current_epoch + 1
        if not (self._is_due or (self._per_epochs and epoch % self._per_epochs == 0)):
            return
        validates = epoch % (trainer.check_val_every_n_epoch or 1) == 0
        if value is not None or (not self._needs_value and (validates or self.on_epoch_end)):
            self._is_due = False
            self._save_file(trainer, value)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self.save_last is True:
            self._save_last(trainer)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        kept, self._copy = self._copy, None
        if kept is None:
            return
        stem, checkpoint = kept
        path = self._last(trainer) if self.save_last is True else self._path(self._free(stem))
        try:
            trainer.save_checkpoint(path, checkpoint=checkpoint)
            if self.save_last == "link":
                self._link(trainer, path)
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            self.last_model_path = path if self.save_last is True else self.last_model_path

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        self._copy = None

    # ---------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "files": dict(self._files),
            "others": list(self._others),
            "home": self._home,
            "dropped": list(self._dropped),
            "saved_step": self._saved_step,
            "is_due": self._is_due,
            "current_score": self.current_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.is_of_same_metric(state_dict):
            self._files, self._others = dict(state_dict["files"]), list(state_dict["others"])
            self._home, self._dropped = state_dict["home"], list(state_dict["dropped"])
            self._saved_step, self._is_due = state_dict["saved_step"], state_dict["is_due"]
            self.current_score = state_dict["current_score"]

    def _take_stock(self, trainer: Trainer) -> None:
        """Look at what is in the folder: wherever the run comes from, it goes on in this one."""
        if self._home != (home := str(self._folder.resolve())):
            self._home, self._dropped = home, []
            found = [path.relative_to(self._folder) for name in self.files for path in self._folder.glob(name)]
            self._others = trainer.fabric.broadcast(sorted(map(str, found))) if self._counts_versions else []
        for name in self._dropped:  # the run ended between writing a file and deleting others
            self._remove(trainer, name)
        best = self._path(self._best()) if self._files else ""
        self.best_model_path = best if Path(best).is_file() else ""

    # -------------------------------------------------------------------------------------- the files besides last.ckpt

    def _news(self, trainer: Trainer) -> float | None:
        return None if self.monitor is None else self.new_value(trainer)

    def _rank(self, name: str) -> float:
        """The order of the files, the best first."""
        return self.sign * self._files[name]

    def _best(self) -> str:
        return min(self._files, key=self._rank)

    def _worst(self) -> str:
        return max(self._files, key=self._rank)

    def _save_file(self, trainer: Trainer, value: float | None) -> None:
        """Write a file if its value is one of the k best, and delete what falls out."""
        step, k = trainer.global_step, self.save_top_k
        if k == 0 or step == self._saved_step:
            return
        is_finite = value is not None and math.isfinite(value)
        is_full = k != -1 and len(self._files) >= k
        if self._needs_value:
            assert value is not None
            if not is_finite or (is_full and self.sign * value >= self._rank(self._worst())):
                self._print(trainer, f"{self.monitor} is {value:.5g}, not among the {k} best: not saved")
                return
        dropped = []
        while k != -1 and len(self._files) >= k:
            dropped.append(self._worst())
            del self._files[dropped[-1]]
        name = self._free(self._stem(trainer))
        if self.monitor is None:
            self._files[name] = -self.sign * step  # the newest is the best
        else:
            self._files[name] = value if value is not None and is_finite else self.sign * math.inf
        self._dropped = [other for other in dropped if other != name]
        self._saved_step, self.current_score = step, value
        self.best_model_path = self._path(self._best())
        if self.monitor is not None:
            best = self._files[self._best()]
            self.best = best if math.isfinite(best) else None
        because = "" if value is None else f"{self.monitor} is {value:.5g}: "
        self._print(trainer, f"{because}saved to {self._path(name)}; the best is {self.best_model_path}")
        self._save(trainer, self._path(name))
        for other in self._dropped:
            self._remove(trainer, other)
        if self.save_last == "link":
            self._link(trainer, self._path(name))

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    def _stem(self, trainer: Trainer) -> str:
        """Fill in the fields of the filename."""
        known: dict[str, float] = {"epoch": trainer.current_epoch, "step": trainer.global_step}

        def fill(field: re.Match[str]) -> str:
            if (value := known.get(field[1])) is None:
                news = trainer.metrics.news(field[1], -1, f"ModelCheckpoint(filename={self.filename!r})")
                value = 0 if news is None else news[1]  # nothing yet, but it may still come
            return self._label(field[1], format(value, field[2] or ""))

        return _FIELD.sub(fill, self.filename)

    def _label(self, name: str, text: str) -> str:
        return f"{name}={text}" if self.auto_insert_metric_name else text

    def _free(self, stem: str) -> str:
        """Return the name of a file: the first version that is not of another file, on disk or of this run."""
        taken = {*self._others, *self._files} if self._counts_versions else ()
        versions = itertools.chain([""], (f"-v{number}" for number in itertools.count(1)))
        return next(name for version in versions if (name := f"{stem}{version}.ckpt") not in taken)

    def _remove(self, trainer: Trainer, name: str) -> None:
        """Delete a file of this run, and the folders in the folder that are empty then."""
        if not trainer.fabric.is_global_zero:
            return
        path = self._folder / name
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for folder in itertools.takewhile(lambda folder: folder != self._folder, path.parents):
                folder.rmdir()

    def _print(self, trainer: Trainer, message: str) -> None:
        if self.verbose:
            trainer.fabric.print(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {message}")

    # ------------------------------------------------------------------------------------------------------- last.ckpt

    def _save_last(self, trainer: Trainer) -> None:
        self.last_model_path = self._last(trainer)
        self._save(trainer, self.last_model_path)
        self._save_due = self._saved_at + self._interval

    def _last(self, trainer: Trainer) -> str:
        """Return its path; a link of `_link`, through which another file would be overwritten, is removed first."""
        path = self._folder / "last.ckpt"
        if trainer.fabric.is_global_zero and path.is_symlink() and not os.path.isabs(os.readlink(path)):
            path.unlink()
        return str(path)

    def _link(self, trainer: Trainer, path: str) -> None:
        """Let last.ckpt be a link to another file in the folder; there is one at any moment."""
        self.last_model_path = self._path("last.ckpt")
        if trainer.fabric.is_global_zero:
            temporary = self._folder / ".last.ckpt.link"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(path, self._folder))
            os.replace(temporary, self.last_model_path)

    def _save(self, trainer: Trainer, path: str) -> None:
        started = time.monotonic()
        trainer.save_checkpoint(path, self.save_weights_only)
        self._saved_at = trainer.clock()
        self._save_seconds = trainer.fabric.broadcast(time.monotonic() - started)
        if path == self.last_model_path or self.save_last is not True:
            self._copy = None

    def _keep_copy(self, trainer: Trainer) -> None:
        """Copy the state to the memory of the CPU."""
        started = time.monotonic()
        stem = "last" if self.save_last is True else self._stem(trainer)
        self._copy = stem, _copied(trainer.dump_checkpoint(self.save_weights_only))
        seconds = trainer.fabric.broadcast(time.monotonic() - started)
        self._copy_due = trainer.clock() + seconds / SHARE


def _check(checkpoint: ModelCheckpoint, is_default: bool) -> None:
    """Refuse arguments that are out of range or contradict each other."""

    def refuse(name: str, allowed: str) -> None:
        raise ValueError(f"ModelCheckpoint: {name}={getattr(checkpoint, name)!r}; it must be {allowed}")

    steps, interval, epochs = checkpoint.every_n_train_steps, checkpoint.train_time_interval, checkpoint.every_n_epochs
    for name, count in (("every_n_train_steps", steps), ("every_n_epochs", epochs)):
        if count is not None and not (isinstance(count, int) and count >= 0):
            refuse(name, "a number of at least 0, or None")
    if interval is not None and not isinstance(interval, timedelta):
        refuse("train_time_interval", "a timedelta, or None")
    if not isinstance(checkpoint.save_top_k, int) or checkpoint.save_top_k < -1:
        refuse("save_top_k", "at least 0, or -1 for all")
    if checkpoint.save_last not in (True, False, "link"):
        refuse("save_last", "True, False or 'link'")
    if checkpoint.monitor is None and checkpoint.save_top_k > 1:
        refuse("save_top_k", "-1, 0 or 1 without a metric to rank by: pass monitor='val/loss', say")
    if checkpoint.save_last == "link" and (is_default or checkpoint.save_top_k == 0):
        refuse("save_last", "True or False: there is no file to link to. Pass save_top_k=1 or a filename, too")
    if is_default:
        if not checkpoint.auto_insert_metric_name:
            refuse("auto_insert_metric_name", "True, since it names no file: pass save_top_k or a filename, too")
        return
    if sum((bool(steps), interval is not None, bool(epochs))) > 1:
        raise ValueError(
            f"ModelCheckpoint: every_n_train_steps={steps}, train_time_interval={interval} and every_n_epochs={epochs} "
            "exclude each other: pass one of them, and make another ModelCheckpoint for another rhythm"
        )
    _check_filename(checkpoint.filename, checkpoint._label)
    if checkpoint.filename == "last" and checkpoint.save_last:
        refuse("filename", "another name, since last.ckpt is that of save_last; or pass save_last=False")


def _check_filename(filename: str, label: Callable[[str, str], str]) -> None:
    """Refuse names that cannot be filled in, or that lead out of the folder."""
    try:
        example = _FIELD.sub(
            lambda field: label(field[1], format(0 if field[1] in ("epoch", "step") else 0.0, field[2] or "")), filename
        )
    except ValueError as error:
        raise ValueError(f"ModelCheckpoint: filename={filename!r} cannot be filled in: {error}") from error
    if "{" in example or "}" in example:
        raise ValueError(
            f"ModelCheckpoint: filename={filename!r} has a brace without a name; write fields as in "
            "'{epoch}-{val/loss:.2f}'"
        )
    path = Path(example)
    if path.is_absolute() or ".." in path.parts or not path.name or example.endswith("/"):
        raise ValueError(
            f"ModelCheckpoint: filename={filename!r} is not the name of a file in the folder: it must not be absolute, "
            "contain '..' or end in '/'; pass the folder as dirpath"
        )


def _copied(part: Any) -> Any:
    """Copy a part of a state, tensors to the CPU; numbers, strings and tuples of them stay what they are."""
    if isinstance(part, Tensor):
        return part.detach().to("cpu", copy=True)
    if isinstance(part, dict):
        copied = copy.copy(part)  # what a module's state_dict knows besides its entries is kept
        copied.update({key: _copied(value) for key, value in part.items()})
        return copied
    if isinstance(part, list):
        return [_copied(value) for value in part]
    if isinstance(part, tuple) and not all(isinstance(value, int | float) for value in part):
        return tuple(_copied(value) for value in part)
    return part
