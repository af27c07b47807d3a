"""CSV files as users have them: commas, semicolons or tabs, decimal points or commas, and missing entries."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MISSING = {"", "?", "n/a", "na", "nan", "none", "null"}


@dataclass
class Table:
    """A file's entries as text, without the blanks around them.

    Attributes:
        path: The file, for messages.
        columns: The entries of each, by its name.
        decimal_commas: Whether numbers may have them: not where commas separate the columns.
    """

    path: Path
    columns: dict[str, list[str]]
    decimal_commas: bool

    @property
    def num_rows(self) -> int:
        """The number of entries of each column."""
        return len(next(iter(self.columns.values()), []))

    def numbers(self, names: Sequence[str]) -> Tensor:
        """Return columns as numbers, shape (rows, names), float64: NaN where one is missing, infinity for a word.

        Raises:
            ValueError: If the numbers of a column have decimal points here and decimal commas there.
        """
        columns = [self._numbers(name, self.columns[name]) for name in names]
        return torch.tensor(columns, dtype=torch.float64).reshape(len(names), self.num_rows).T

    def _numbers(self, name: str, entries: list[str]) -> list[float]:
        if self.decimal_commas and any("," in entry for entry in entries):
            points = (entry for entry in entries if "." in entry and math.isfinite(number(entry)))
            if (point := next(points, None)) is not None:
                comma = next(entry for entry in entries if "," in entry)
                raise ValueError(
                    f"{self.path}: the column {name} has decimal points and commas, such as {point} and {comma}: write "
                    "one of them throughout"
                )
            entries = [entry.replace(",", ".") for entry in entries]
        return [number(entry) for entry in entries]

    def refuse(self, names: Sequence[str], bad: Tensor, what: str) -> None:
        """Raise a ValueError that names the columns with a bad entry.

        Args:
            names: Of columns.
            bad: Which of their entries are, shape (rows, names).
            what: What to say of them, after "the columns a, b have".
        """
        if bad.any():
            columns = [names[column] for column in bad.any(dim=0).nonzero().flatten().tolist()]
            raise ValueError(f"{self.path}: the columns {listed(columns)} have {what}")


def read_table(path: Path) -> Table:
    """Read a file whose first line names the columns; a last column without name and entries is left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no text, lines have different numbers of entries, or a column has no name of its own.
    """
    lines, decimal_commas = _read(path)
    names = lines[0].entries if lines else []
    last = len(names) - 1
    if last > 0 and not names[last] and all(len(line.entries) == last or not line.entries[-1] for line in lines[1:]):
        lines = [Line(line.number, line.entries[:last]) for line in lines]
    names, *rows = _of_one_length(path, lines) or [[]]
    if unnamed := [index for index, name in enumerate(names, 1) if not name]:
        raise ValueError(
            f"{path}: the columns {listed(unnamed)} have no name; give them one, or write the table without them (an "
            "index is left out by pandas' to_csv(index=False))"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has several columns of the name {listed(twice)}; the names must be different")
    return _table(path, names, rows, decimal_commas)


def read_samples(path: Path) -> Tensor:
    """Read a file of numbers, one sample per line, whose first line may name the columns; shape (lines, columns).

    The first line names them if none of its entries is a number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no samples or something else than numbers, or the first line is numbers that may be
            names, as they count up: 0, 1, 2, ...
    """
    lines, decimal_commas = _read(path)
    rows = _of_one_length(path, lines)
    if not rows:
        raise ValueError(f"{path} holds no samples")
    names = [f"{index + 1}" for index in range(len(rows[0]))]
    first = _table(path, names, rows[:1], decimal_commas).numbers(names)[0]
    if len(first) > 2 and bool((first.diff() == 1).all()):
        raise ValueError(
            f"{path}: its first line, {', '.join(rows[0][:3])}, ..., counts up: does it name the columns, or is it a "
            "sample? Let it be names that are no numbers, such as x0, x1, x2, or put a line of such names above it"
        )
    table = _table(path, names, rows if bool(first.isfinite().any()) else rows[1:], decimal_commas)
    samples = table.numbers(names)
    table.refuse(names, ~samples.isfinite(), "entries that are missing or no numbers")
    if not len(samples):
        raise ValueError(f"{path} holds no samples")
    return samples


def number(entry: str) -> float:
    """Return the number that an entry is; NaN where it is missing, infinity where it is something else."""
    if entry.lower() in MISSING:
        return math.nan
    try:
        return float(entry)
    except ValueError:
        return math.inf


def listed(values: Sequence[str] | Sequence[int]) -> str:
    """Return values for a message, the first ten of them."""
    return ", ".join(map(str, values[:10])) + (f", ... ({len(values)} in all)" if len(values) > 10 else "")


def _table(path: Path, names: list[str], rows: list[list[str]], decimal_commas: bool) -> Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return Table(path, dict(zip(names, columns, strict=True)), decimal_commas)


class Line(NamedTuple):
    """One line of a file, or several where an entry in quotes goes on over them.

    Attributes:
        number: Of the last one, from 1.
        entries: What it holds.
    """

    number: int
    entries: list[str]


def _read(path: Path) -> tuple[list[Line], bool]:
    """Return the lines that are not empty, and whether their numbers may have decimal commas."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a mark before the first entry
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); save it as such: in Excel, CSV UTF-8") from error
    first, _, _ = text.lstrip().partition("\n")
    bare = re.sub(r'"[^"]*"', "", first)
    separator = next((mark for mark in "\t;" if mark in bare), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    lines = [Line(reader.line_num, [entry.strip() for entry in row]) for row in reader if row]
    return lines, separator != ","


def _of_one_length(path: Path, lines: list[Line]) -> list[list[str]]:
    """Return what lines hold, if each has as many entries as the first."""
    if ragged := [line.number for line in lines if len(line.entries) != len(lines[0].entries)]:
        raise ValueError(
            f"{path}: lines {listed(ragged)} have another number of entries than the first: {len(lines[0].entries)}"
        )
    return [line.entries for line in lines]
