"""The code blocks of README and docs.

A page is a program in parts: its ``python`` blocks share their names, and a block with a title is a file that the
others find in the current folder. A ``text`` block right after another shows what that one prints; ``...`` stands for
anything.
"""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(\w*)(?: title="(.+?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
# Words in capitals stand for what a reader has.
PLACEHOLDER = re.compile(r"\b(NAME|FOLDER|DATE_TIME)\b|\[group=choice")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: "python", "bash", "text", "yaml", ...
        title: The name of the file that it is, if it is one.
        text: What it holds.
        shown: What the page shows of its output; None if it shows nothing.
    """

    language: str
    title: str
    text: str
    shown: str | None

    @property
    def commands(self) -> list[str]:
        """The commands of a bash block, one a line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        parts = [part.strip() for line in lines for part in line.split(" #")[0].split("&&")]
        return [part.removeprefix("uv run ") for part in parts if part and not part.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in order; what shows the output of another is part of that one."""
    text = page.read_text()
    assert not re.search(r"^ +(```|~~~)", text, re.MULTILINE), "a block within a list would not be found"
    found = list(FENCE.finditer(text))
    shown = {}  # by where the block ends whose output it is
    for before, after in itertools.pairwise(found):
        if after[1] == "text" and before[1] in ("python", "bash") and not text[before.end() : after.start()].strip():
            shown[before.end()] = after[3]
    return [Block(match[1], match[2] or "", match[3], shown.get(match.end())) for match in found if match[1] != "text"]


def proxtrain_arguments(command: str) -> list[str] | None:
    """Return the arguments of a call of ``proxtrain``, None for another command."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=\S+", words[0]):  # variables of the environment
        del words[0]
    return words[1:] if words[:1] == ["proxtrain"] else None
