"""The examples in the documentation run as they stand and print what is shown."""

import logging
import re
import warnings
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_examples_for_those_who_come_from_lightning_print_what_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    level = logging.getLogger("lightning.pytorch").level
    blocks = re.findall(r"```(python|text)\n(.*?)```", (DOCS / "from_lightning.md").read_text(), re.DOTALL)
    names = {"__name__": "docs"}
    with warnings.catch_warnings():
        for (kind, block), (next_kind, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
            if kind == "python":
                exec(compile(block, "from_lightning.md", "exec"), names)
                assert capsys.readouterr().out == (shown if next_kind == "text" else ""), block
    logging.getLogger("lightning.pytorch").setLevel(level)
    assert [kind for kind, _ in blocks].count("text") >= 6
