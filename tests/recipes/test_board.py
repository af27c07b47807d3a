"""Runs in TensorBoard under names that tell them."""

import json
import os
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

from framework.recipes.board import link, main, runs

ROOT = Path(__file__).parents[2]
QUIET = ("trainer.enable_model_summary=false", "trainer.enable_progress_bar=false", "logger.pictures=false")


def names(shelf):
    return sorted(path.name for path in shelf.iterdir())


def test_a_run_is_called_by_what_was_overridden(proxtrain, tmp_path):
    proxtrain("-m", "optimizer=sgd,adam", "epochs=1", "model.hidden=[3]", "hydra.sweep.dir=sweep", *QUIET)
    (shelf := tmp_path / "shelf").mkdir()
    link([tmp_path / "sweep"], shelf)
    assert names(shelf) == [
        "optimizer=adam, epochs=1, toy_regression, model.hidden=[3], sweep_1",
        "optimizer=sgd, epochs=1, toy_regression, model.hidden=[3], sweep_0",
    ]
    assert all(list(path.glob("events.out.tfevents.*")) for path in shelf.iterdir())
    # New runs come, the others stay.
    new = proxtrain("epochs=1", "hydra.run.dir=new", *QUIET).folder
    link([tmp_path / "sweep", new], shelf)
    assert len(names(shelf)) == 3
    assert "epochs=1, toy_regression, new" in names(shelf)


def test_what_logged_nothing_to_tensorboard_is_no_run(proxtrain, tmp_path):
    proxtrain("epochs=1", "logger=csv", "hydra.run.dir=table", "trainer.enable_progress_bar=false")
    (tmp_path / "tensorboard").mkdir()
    assert list(runs([tmp_path])) == []


def test_the_command_prints_an_address_that_shows_losses_first_and_ends_by_an_interrupt(tmp_path):
    command = [sys.executable, "-m", "framework.recipes.board", str(tmp_path), "--port=0", "--host=127.0.0.1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment) as board:
        assert board.stdout is not None
        query = urllib.parse.urlsplit(board.stdout.readline().strip()).query
        pinned = json.loads(urllib.parse.parse_qs(query)["pinnedCards"][0])
        assert {"plugin": "scalars", "tag": "val/loss"} in pinned
        board.send_signal(signal.SIGINT)
        assert board.wait(60) == 0


def test_help_says_what_may_be_given(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["proxtrain-tensorboard", "--help"])
    main()
    assert "proxtrain-tensorboard [FOLDER ...]" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["proxtrain-tensorboard", "nowhere"])
    with pytest.raises(SystemExit, match="there is no folder nowhere"):
        main()
