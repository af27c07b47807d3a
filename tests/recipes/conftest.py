"""The command ``proxtrain`` as a function: composed and run by this process, its output and exit code returned."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from tensorboard.summary.writer import event_file_writer

from framework.recipes.cli import main


@dataclass
class Finished:
    """What a command left: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def folder(self) -> Path:
        """The run folder, by the first line."""
        return Path(self.stdout.splitlines()[0].removeprefix("run folder: "))


Proxtrain = Callable[..., Finished]


@pytest.fixture(autouse=True)
def _new_process_for_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    # Event files of one second are read in the order of their names, which end in a number counted per process: 10
    # comes before 9. A run has two files.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save pictures blank, since to draw them takes half the time of a short run, but for tests marked ``draws``."""
    if "draws" not in request.keywords:
        monkeypatch.setattr("matplotlib.figure.Figure.draw", lambda *_: None)


@pytest.fixture
def proxtrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Proxtrain:
    """Run ``proxtrain`` with arguments, in a folder of its own, or in ``cwd``."""

    def run(*arguments: str, cwd: Path = tmp_path) -> Finished:
        monkeypatch.setattr(sys, "argv", ["proxtrain", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command adds its folder
        monkeypatch.chdir(cwd)
        capsys.readouterr()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            GlobalHydra.instance().clear()
            root.handlers, root.level = handlers, level  # hydra sets up logging for each job
        return Finished(code, *capsys.readouterr())

    return run
