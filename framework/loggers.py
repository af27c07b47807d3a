"""Loggers whose files can be continued: a run that goes on from a checkpoint appends where that checkpoint was written.

Their arguments, names and folders are those of Fabric's, their files our own. A logger with ``state_dict`` and
``load_state_dict`` is saved in checkpoints: the state says how much of its files belongs to the run so far, and loading
it cuts off the rest, which the continued run logs again.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
import socket
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from framework.fabric import current_rank, loaded

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

_count = itertools.count()
_lock = threading.RLock()  # loggers may be called from several threads


def _gives_up(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of a logger on rank zero warn of the first file that cannot be written; from then on do nothing.

    A full disk must not end a run that could still be saved elsewhere.
    """

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._has_given_up or not _is_rank_zero():
            return None
        with _lock:
            try:
                return method(self, *args, **kwargs)
            except OSError as error:
                _give_up(self, error)
                return None

    return guarded


def _give_up(logger: Any, error: OSError) -> None:
    """Let a logger write nothing more, and warn of it, once."""
    if logger._has_given_up:
        return
    logger._has_given_up = True
    with suppress(OSError):
        logger._release()
    warnings.warn(
        f"{type(logger).__name__} cannot write to {logger.log_dir}: {error}. What was logged before stays; from "
        "here on it logs nothing, and the run goes on",
        stacklevel=3,
    )


class Logger(Protocol):
    """What a run asks of a logger; those of Fabric and Lightning have it, too."""

    @property
    def name(self) -> str | None: ...
    @property
    def version(self) -> int | str | None: ...
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...
    def log_hyperparams(self, params: dict[str, Any]) -> None: ...
    def finalize(self, status: str) -> None: ...


class FolderLogger:
    """The part of a logger that knows its folder, ``root_dir/name/version``, as Fabric's loggers choose it.

    Args:
        root_dir: Where the folders of all names and versions are.
        name: Of a folder in it; nothing for none.
        version: Of a folder in that: a string is its name, a number n makes it ``version_n``. None is the first number
            after those that are there, once somebody asks.
        prefix: Comes before the names of metrics.
        sub_dir: Of a folder in that of the version.

    Raises:
        ValueError: If the name or the version would lead out of ``root_dir``.
    """

    group_separator = "/"

    def __init__(
        self, root_dir: str | Path, name: str | None, version: int | str | None, prefix: str, sub_dir: str | None = None
    ) -> None:
        self.root_dir = str(_absolute(root_dir))
        self.name = name or ""
        self.sub_dir = sub_dir
        self._version = version
        self._prefix = prefix
        self._chooses_version = version is None
        self._has_given_up = False
        for option, part in (("name", name), ("version", version), ("sub_dir", sub_dir)):
            if isinstance(part, str) and (os.path.isabs(part) or ".." in Path(part).parts):
                raise ValueError(
                    f"{type(self).__name__}({option}={part!r}) would write outside of its root_dir {self.root_dir}: "
                    "pass a name without '..', and another root_dir"
                )

    @property
    def version(self) -> int | str:
        """The version."""
        if self._version is None:
            folders = [path.name for path in Path(self.root_dir, self.name).glob("version_*") if path.is_dir()]
            numbers = [int(number) for folder in folders if (number := folder.split("_")[1]).isdigit()]
            self._version = max(numbers, default=-1) + 1
        return self._version

    @property
    def log_dir(self) -> str:
        """The folder."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.expandvars(os.path.join(self.root_dir, self.name, version, *filter(None, [self.sub_dir])))

    def go_on_in(self, version: int) -> None:
        """Write to the folder of an earlier version, unless the version was given."""
        if self._chooses_version:
            self._version = version

    def _prefixed(self, metrics: Mapping[str, Any]) -> dict[str, int | float]:
        return {f"{self._before_names}{name}": _number(name, value) for name, value in metrics.items()}

    @property
    def _before_names(self) -> str:
        return f"{self._prefix}-" if self._prefix else ""


class _GrowingFile:
    """A file that grows by whole pieces: one of which only a part could be written is taken back.

    Attributes:
        size: In bytes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self.size = self._file.tell()

    def write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self.size)
            raise
        self.size += len(piece)

    def close(self) -> None:
        self._file.close()


# ------------------------------------------------------------------------------------------------------- TensorBoard


class EventFile:
    """An event file of TensorBoard that can be appended to; the methods are those of TensorBoard's `EventFileWriter`.

    That one starts a new file each time, and what two files have in common is shown twice. It writes in a thread, which
    takes turns from a small step, and prints a traceback when a disk is full.

    Args:
        path: The file. If it is new, the files of other runs in its folder are set aside at the first `flush`, and it
            starts with the record that says what it is.
        attempt: Calls what it is given, a function that writes; it knows what to do if that fails.

    Attributes:
        size: In bytes, of what is on disk.
    """

    def __init__(self, path: Path, attempt: Callable[[Callable[[], None]], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.path = path
        self.size = os.path.getsize(path) if os.path.exists(path) else 0
        self._attempt = attempt
        self._file: _GrowingFile | None = None
        self._pending = io.BytesIO()
        self._records = RecordWriter(self._pending)
        self._due = 0.0
        self._aside: Path | None = None
        if self.size == 0:
            self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())

    def add_event(self, event: Event) -> None:
        """Append an event; it is on disk at the next `flush`, and at the next event after a second."""
        with _lock:
            self._records.write(event.SerializeToString())
            if time.monotonic() >= self._due:
                self.flush()

    def flush(self) -> None:
        """Write everything to disk."""
        with _lock:
            self._due = time.monotonic() + 1.0
            pending = self._pending.getvalue()
            self._pending.seek(0)
            self._pending.truncate()
            if pending:
                self._attempt(functools.partial(self._write, pending))

    def _write(self, data: bytes) -> None:
        if self._file is None:
            if self.size == 0:
                self._aside = _set_aside(sorted(self.path.parent.glob("events.out.tfevents.*")))
            self._file = _GrowingFile(self.path)
        os.stat(self.path)  # raises if the file was removed, to which one can write
        self._file.write(data)
        self.size = self._file.size

    def close(self) -> None:
        """Write everything to disk; a further event opens the file again."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        self.flush()
        return {**vars(self), "_file": None}  # a copy opens the file by itself

    def put_back(self, name: str) -> None:
        """Undo that a file was set aside: it turned out to be of this run."""
        if self._aside is not None and (self._aside / name).exists():
            os.rename(self._aside / name, self.path.with_name(name))
            with suppress(OSError):
                self._aside.rmdir()  # unless something else is in it

    def take_over(self, other: EventFile) -> None:
        """Append the events of another file, and remove that."""
        data = other.path.read_bytes()
        self._pending.write(data[int.from_bytes(data[:8], "little") + 16 :])  # all but the first record
        other.path.unlink()

    def get_logdir(self) -> str:
        """Return the folder of the file."""
        return str(self.path.parent)


class _Nothing:
    """The `SummaryWriter` of a process that writes no files: it does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


# What is in the event files: tags of metrics, and whether a row of the HParams tab was begun and ended.
_NOTHING_ON_DISK: dict[str, Any] = {"tags": [], "row": False, "row_end": False}


class TensorBoardLogger(FolderLogger):
    """A logger for TensorBoard, whose runs can be continued, and quick where several scalars are logged together.

    A scalar of its own costs about 50 microseconds (an event and a checksum); here six together cost 70, and those of a
    second are written together.

    Raises:
        ValueError: If the name or the version would lead out of ``root_dir``.
    """

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "proxtrain_logs",
        version: int | str | None = None,
        default_hp_metric: bool = False,
        prefix: str = "",
        sub_dir: str | Path | None = None,
    ) -> None:
        super().__init__(root_dir, name, version, prefix, None if sub_dir is None else os.fspath(sub_dir))
        self._experiment: Any = None
        self._waiting: list[Event] = []
        self._due = 0.0
        self._tags: set[str] = set()
        self._has_new_tags = False
        self._layout: dict[str, dict[str, list[str]]] = {}
        # Of the HParams tab: what to begin the run's row with, and whether it was begun and ended.
        self._row: dict[str, Any] = {}
        self._has_row = self._has_row_end = False
        self._on_disk = _NOTHING_ON_DISK
        # The files of a run have one name, in its folder and in those of the runs that `add_scalars` makes below it.
        self._file_name = ""
        self._files: dict[str, EventFile] = {}

    @property
    def experiment(self) -> Any:
        """The `SummaryWriter`; what was logged before is in it."""
        if not _is_rank_zero():
            return _Nothing()
        with _lock:
            if self._experiment is None:
                self._experiment = self._make_writer()
            waiting, self._waiting = self._waiting, []
            for event in itertools.chain(self._begun_row(), waiting, self._new_layout()):
                self._experiment._get_file_writer().event_writer.add_event(event)
            return self._experiment

    def _begun_row(self) -> Iterator[Event]:
        """Yield what begins the row of the HParams tab, once."""
        if self._row and not self._has_row:
            from framework.dashboard import row_summaries

            self._has_row = True
            yield from map(_event, row_summaries(**self._row))

    def _new_layout(self) -> Iterator[Event]:
        """Yield the layout of the Custom Scalars tab, if there is another one since new tags were logged."""
        if self._has_new_tags:
            from framework.dashboard import layout, layout_summary

            self._has_new_tags = False
            charts = layout(self._tags, self._before_names)
            if charts != self._layout:
                self._layout = charts
                yield _event(layout_summary(charts))

    def _make_writer(self) -> Any:
        # Slow to import.
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.writer import FileWriter

        base: Any = SummaryWriter
        logger = self

        def file_writer(folder: str) -> Any:
            writer: Any = FileWriter.__new__(FileWriter)  # its own __init__ would begin another file
            writer.event_writer = logger._file(folder)
            return writer

        class AppendingWriter(base):
            """A `SummaryWriter` on the event files of this run."""

            def _get_file_writer(self) -> Any:
                if self.file_writer is None:
                    self.file_writer: Any = file_writer("")
                    self.all_writers = {self.file_writer.get_logdir(): self.file_writer}
                return self.file_writer

            def add_scalars(self, main_tag: str, tag_scalar_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
                log_dir = self._get_file_writer().get_logdir()
                for tag in tag_scalar_dict:
                    folder = f"{main_tag.replace('/', '_')}_{tag}"
                    self.all_writers.setdefault(f"{log_dir}/{folder}", file_writer(folder))
                super().add_scalars(main_tag, tag_scalar_dict, *args, **kwargs)

        return AppendingWriter(self.log_dir)

    def _file(self, folder: str) -> EventFile:
        if not self._file_name:
            number = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count)}"
            self._file_name = f"events.out.tfevents.{number}"
        if folder not in self._files:
            self._files[folder] = EventFile(Path(self.log_dir) / folder / self._file_name, self._attempt)
        return self._files[folder]

    @_gives_up
    def _attempt(self, write: Callable[[], None]) -> None:
        write()

    @_gives_up
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = self._prefixed(metrics)
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._waiting.append(_event(Summary(value=values), step))
        if not numbers.keys() <= self._tags:
            self._tags |= numbers.keys()
            self._has_new_tags = True
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + 1.0
            _ = self.experiment

    @_gives_up
    def log_hyperparams(
        self,
        params: Any,
        metrics: Iterable[str] = (),
        step: int | None = None,
        *,
        first: Iterable[str] = (),
        name: str = "",
    ) -> None:
        """Show hyperparameters as the run's row of the HParams tab, and metrics beside them: their last logged values.

        Fabric logs values of the metrics once more, by default at step 0: there TensorBoard takes the run for restarted
        and drops the curves.

        The row is written with what is logged next, so that hyperparameters may be logged before a run is continued,
        and several times: all of them are shown. Of a row that was written TensorBoard knows no other version.

        Args:
            params: The hyperparameters, a mapping or an object with attributes.
            metrics: The names of the metrics, in the order to show them in.
            step: Not used: a row has none.
            first: Names of hyperparameters to show before the others; those that this run does not have are taken for
                numbers of other runs.
            name: Of the row, which no other run has; default: the folder.
        """
        params = dict(_flattened(params if isinstance(params, Mapping) else vars(params)))
        before = self._row or {"params": {}, "metrics": [], "first": [], "name": ""}
        self._row = {
            "params": before["params"] | params,
            "metrics": [*before["metrics"], *(f"{self._before_names}{metric}" for metric in metrics)],
            "first": [*before["first"], *first],
            "name": name or before["name"],
        }

    @_gives_up
    def log_graph(self, model: nn.Module, input_array: Any = None) -> None:
        """Draw the graph of a module for an input; default: its ``example_input_array``, as in Lightning."""
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if example is None:
            warnings.warn("log_graph draws nothing: pass an input_array", stacklevel=3)
            return
        with warnings.catch_warnings(), torch.random.fork_rng():
            # TensorBoard's way to read a network; torch has a newer one for other purposes.
            warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
            self.experiment.add_graph(model, example)

    @_gives_up
    def save(self) -> None:
        """Write everything to disk."""
        self.experiment.flush()
        if not self._has_given_up:
            self._on_disk = {"tags": sorted(self._tags), "row": self._has_row, "row_end": self._has_row_end}

    @_gives_up
    def finalize(self, status: str) -> None:
        if self._row and not self._has_row_end:
            from framework.dashboard import row_end_summary

            self._has_row_end = True
            self._waiting.append(_event(row_end_summary(success=status == "success")))
        if self._waiting or self._experiment is not None:
            self.experiment.close()

    def _release(self) -> None:
        if self._experiment is not None:
            self._experiment.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_experiment": None}  # a copy makes one by itself

    def state_dict(self) -> dict[str, Any] | None:
        """Return the name of the event files and their sizes so far, by folder; None before anything was logged."""
        if _is_rank_zero() and (self._waiting or self._files):
            self.save()
        sizes = {folder: file.size for folder, file in self._files.items() if file.size}
        return {"file": self._file_name, "bytes": sizes, **self._on_disk} if sizes else None

    @_gives_up
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the event files off where the state was taken, and append to them from now on.

        What was logged before in this process is appended, too. In another folder than that of the run that was saved
        there is nothing to cut: a new file begins.
        """
        from framework.dashboard import layout

        log_dir, name = Path(self.log_dir), Path(state["file"]).name
        self._release()
        for file in self._files.values():
            file.put_back(name)
        if not (log_dir / name).exists():
            return
        before, self._files, self._file_name = self._files, {}, name
        self._on_disk = on_disk = {key: state.get(key, nothing) for key, nothing in _NOTHING_ON_DISK.items()}
        self._has_row, self._has_row_end = on_disk["row"], on_disk["row_end"]
        self._tags |= set(on_disk["tags"])
        self._layout = layout(on_disk["tags"], self._before_names)
        for path in log_dir.rglob(name):
            folder = path.parent.relative_to(log_dir).as_posix().removeprefix(".")
            size = state["bytes"].get(folder)
            if size is None:
                path.unlink()  # a run of `add_scalars` that began later
                continue
            if path.stat().st_size >= size:
                os.truncate(path, size)
            else:
                warnings.warn(
                    f"{path} is shorter than when the checkpoint was written: events are missing", stacklevel=2
                )
            self._file(folder)  # known from now on, also to a state that is taken before anything more is logged
        for folder, file in before.items():
            if file.path.name != name and file.path.exists():
                self._file(folder).take_over(file)


# --------------------------------------------------------------------------------------------------------------- CSV


class MetricsFile:
    """A table of metrics in a CSV file: a row for each call, a column for each name, in alphabetical order.

    Every row is in the file at once. Where a new name needs a column, the file is written anew.

    Args:
        path: The file. If it exists, it is another run's and set aside, unless `cut` accepts it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = self.checksum = 0
        self._names: list[str] = []
        self._file: _GrowingFile | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        if not self._names and self.path.exists():
            _set_aside([self.path])
        elif self._names:
            os.stat(self.path)  # raises if the file was removed, to which one can write
        if not row.keys() <= set(self._names):
            self._write_all(sorted({*self._names, *row}), self._read() if self._names else [])
        if self._file is None:
            self._file = _GrowingFile(self.path)
        self._file.write(_as_csv(self._names, [row]))
        self.num_rows += 1
        self.checksum = _chained(self.checksum, row)

    def cut(self, num_rows: int, checksum: int) -> bool:
        """Keep the first rows, and their names; return False, and change nothing, if they are another run's."""
        rows = self._read()[:num_rows] if self.path.exists() else []
        found = 0
        for row in rows:
            found = _chained(found, row)
        if not rows or found != checksum:
            return False
        self.close()
        self._write_all(sorted(set().union(*rows)), rows)
        self.num_rows, self.checksum = len(rows), found
        return True

    def close(self) -> None:
        """Close the file; a further row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> list[dict[str, str]]:
        """Return the rows in the file, as text, without what is empty."""
        with self.path.open(newline="", encoding="utf-8") as file:
            return [
                {name: value for name, value in row.items() if name is not None and value}
                for row in csv.DictReader(file)
            ]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # a copy opens the file by itself

    def _write_all(self, names: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the file anew, in one piece."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            temporary.write_bytes(_as_csv(names, [dict(zip(names, names, strict=True)), *rows]))
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._names = names


def _as_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, names).writerows(rows)
    return text.getvalue().encode()


class CSVLogger(FolderLogger):
    """Metrics as a table in ``metrics.csv``, which can be continued; each call is a row, on disk at once.

    Fabric's deletes the file that it finds, and writes on every hundredth step: here ``flush_logs_every_n_steps`` has
    no effect.

    Raises:
        ValueError: If the name or the version would lead out of ``root_dir``.
    """

    def __init__(
        self,
        root_dir: str | Path,
        name: str | None = "",
        version: int | str | None = "",
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(root_dir, name, version, prefix)
        self._table: MetricsFile | None = None

    @property
    def experiment(self) -> Any:
        """The `MetricsFile`."""
        if self._table is None:
            self._table = MetricsFile(Path(self.log_dir) / "metrics.csv")
        return self._table

    @_gives_up
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        self.experiment.append(
            {**self._prefixed(metrics), "step": self.experiment.num_rows if step is None else int(step)}
        )

    def log_hyperparams(self, params: Any) -> None:
        """Hyperparameters stand in the run folder's config.yaml; a table of numbers has no place for them."""

    def save(self) -> None:
        """Every row is on disk already."""

    @_gives_up
    def finalize(self, status: str) -> None:
        self._release()

    def _release(self) -> None:
        if self._table is not None:
            self._table.close()

    def state_dict(self) -> dict[str, int] | None:
        """Return how many rows were logged, and their checksum; None before the first."""
        if self._table is None or not self._table.num_rows:
            return None
        return {"rows": self._table.num_rows, "checksum": self._table.checksum}

    @_gives_up
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the table off where the state was taken; the table of another run is set aside at the first row."""
        table = MetricsFile(Path(self.log_dir) / "metrics.csv")
        table.cut(state["rows"], state["checksum"])
        self._release()
        self._table = table


def _chained(checksum: int, row: Mapping[str, Any]) -> int:
    """Return the checksum of rows when one more comes to them, the same for numbers and for the text in the file."""
    text = ",".join(f"{name}={row[name]}" for name in sorted(row))
    return zlib.crc32(text.encode(), checksum)


# ------------------------------------------------------------------------------------------------------------ common


def _is_rank_zero() -> bool:
    return current_rank() == 0


def _absolute(root_dir: str | Path) -> Path:
    """Return the path that a folder has now, wherever the program goes later."""
    return Path(os.path.expandvars(root_dir)).expanduser().absolute()


def _number(name: str, value: Any) -> int | float:
    """Return a value to log as a number.

    Raises:
        TypeError: If it is none.
    """
    try:
        return value if type(value) is int else float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name!r} is a {type(value).__name__}: loggers take numbers and tensors of one element; text, pictures "
            "and the like go through the experiment of a TensorBoardLogger"
        ) from error


def _set_aside(paths: Sequence[Path]) -> Path | None:
    """Move the files of another run, so that they are neither lost nor mixed with those of this one; warn of it.

    Return the folder that they are in now.
    """
    if not paths:
        return None
    folder = paths[0].parent
    aside = next(aside for n in itertools.count(1) if not (aside := folder / f"previous-{n}").exists())
    aside.mkdir()
    for path in paths:
        os.rename(path, aside / path.name)
    names = ", ".join(path.name for path in paths)
    warnings.warn(f"{folder} had the logs of another run: {names} moved to {aside}", stacklevel=2)
    return aside


def warn_of_doubles(logger: Logger) -> None:
    """Warn that a logger of Fabric's own cannot go on where a checkpoint was written."""
    kinds = {"CSVLogger": "deletes what is in its folder", "TensorBoardLogger": "logs some steps twice"}
    for kind, does in kinds.items():
        if isinstance(logger, loaded("lightning.fabric.loggers", kind)):
            name = type(logger).__name__
            warnings.warn(
                f"lightning.fabric's {name} {does} when a run continues in it: use framework.loggers.{name}",
                stacklevel=2,
            )


def _event(summary: Summary, step: int | None = None) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=int(step or 0), summary=summary)


def is_tensorboard(logger: Any) -> bool:
    """Tell whether a logger's experiment is a `SummaryWriter`: ours, Fabric's or Lightning's."""
    return isinstance(logger, (TensorBoardLogger, loaded("lightning.fabric.loggers", "TensorBoardLogger")))


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """The leaves of nested mappings, under names such as "model/hidden", as what the HParams tab can show."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value if isinstance(value, bool | int | float | str) else str(value)


def make_loggers(logger: bool | Logger | Sequence[Logger], root_dir: Path) -> list[Logger]:
    """Return the loggers of a trainer from its ``logger`` argument.

    True means TensorBoard in ``root_dir/proxtrain_logs``.

    A logger of your own derives from `lightning.fabric.loggers.Logger`. For a run that is continued it may have:

    - ``state_dict()``: called when a checkpoint is written. Bring everything to disk; return how much of it belongs to
      the run so far, in numbers, strings and containers of them, or None for nothing.
    - ``load_state_dict(state)``: called before a continued run logs anything. Remove what came after ``state``: the run
      logs it again.

    A state goes to the logger of the same class; of several, to the one at the same place among them.

    Raises:
        TypeError: If something else than loggers is passed.
        ValueError: If two loggers would write the same file.
    """
    if isinstance(logger, bool):
        return [TensorBoardLogger(root_dir, name="proxtrain_logs")] if logger else []
    loggers = list(logger) if isinstance(logger, Sequence) else [logger]
    places = []
    for each in loggers:
        if not isinstance(each, (FolderLogger, loaded("lightning.fabric.loggers", "Logger"))):
            raise TypeError(f"logger has a {type(each).__name__}; pass True, False or loggers of lightning.fabric")
        if isinstance(each, CSVLogger | TensorBoardLogger):
            place = (type(each), each.root_dir, each.name, each._version, getattr(each, "sub_dir", None))
            if place in places:
                raise ValueError(
                    f"two loggers are a {type(each).__name__} in {each.root_dir} with name {each.name!r}, and would "
                    "write the same file: give each another name, or a version of its own"
                )
            places.append(place)
    return loggers
