"""Every code block of README and docs runs, and prints what the page shows."""

import doctest
import logging
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from nbclient import NotebookClient

from framework.recipes.cli import CONF
from framework.recipes.overrides import refuse_without_effect
from tests.docs.pages import PAGES, PLACEHOLDER, ROOT, Block, blocks, proxtrain_arguments
from tests.recipes.conftest import Proxtrain

COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# A command whose output is not shown runs in a short form: a few steps.
SHORT = ["logger=none", "trainer.max_steps=2", "trainer.check_val_every_n_epoch=1", "trainer.enable_progress_bar=false"]
SHORT_OF = {
    "recipe=phase_transition": ["replicates=1", "draws=100", "data.sparsities=[2]", "sparsities=[2]"],
    "optimizer=scipy": ["optimizer.maxiter=2", *SHORT],
    "--help": [],
    "--version": [],
    "--cfg": [],
}
# These are composed and checked, not run: other tests do that, with less data.
COMPOSED = ("recipe=fashion_mnist", "sweep=", "trainer=ddp", "hydra/launcher", "hydra/sweeper", "trainer.compile=")
# What sets up a machine, starts servers or many processes, or is CI itself.
LEFT_OUT = re.compile(
    r"(python -m )?pip install |uv (sync|export) |(--group docs |--isolated .*)?(pytest|ruff|mypy|mkdocs)"
    r"|bash (\.ci/run|scripts/check_package\.sh)|cd |git |grep "
    r"|(proxtrain-)?tensorboard |torchrun |python -m tests\.faults"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs_and_prints_what_is_shown(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    proxtrain: Proxtrain,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = {"__name__": "page"}
    level = logging.getLogger("lightning.pytorch").level
    with warnings.catch_warnings():
        for block in blocks(page):
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.text)
            elif block.language == "python":
                capsys.readouterr()
                exec(compile(block.text, page.name, "exec"), names)
                check_output(block, capsys.readouterr().out)
            elif block.language == "bash":
                for command in block.commands:
                    run(command, block, proxtrain, capsys, tmp_path)
            else:
                assert block.language in ("", "yaml"), f"a block of {block.language} that nothing runs"
    logging.getLogger("lightning.pytorch").setLevel(level)


def check_output(block: Block, printed: str) -> None:
    if block.shown is not None:
        checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert checker.check_output(block.shown, printed, options), f"{block.text}\nprinted\n{printed}"


def run(command: str, block: Block, proxtrain: Proxtrain, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Run a command of a page: as it stands if its output is shown, otherwise in a short form."""
    arguments = proxtrain_arguments(command)
    if arguments is None:
        run_other(command, block, capsys)
        return
    if runs := sorted(path.parent for path in folder.rglob("summary.json")):
        arguments = [argument.replace("FOLDER", str(runs[-1])) for argument in arguments]
    if PLACEHOLDER.search(" ".join(arguments)):
        return
    if block.shown is not None:
        done = proxtrain(*arguments)
        refused = block.shown.startswith("error: ")
        assert done.code == int(refused), done.stderr
        check_output(block, done.stderr if refused else done.stdout)
        return
    arguments = first_of_a_sweep(arguments)
    if any(word.startswith(COMPOSED) for word in arguments) and "--config-dir" not in arguments:
        compose_only(arguments, folder)
        return
    shorter = next((options for word, options in SHORT_OF.items() if word in arguments), SHORT)
    done = proxtrain(*arguments, *shorter)
    assert done.code == 0, f"{command}\n{done.stderr}"


def run_other(command: str, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Run another command of ours; a script of the page in a process of its own; of our scripts, check the options."""
    name, *arguments = shlex.split(command)
    program = command.removeprefix("python ")
    if name in COMMANDS and not LEFT_OUT.match(command):
        if not PLACEHOLDER.search(command):
            capsys.readouterr()
            pkgutil.resolve_name(COMMANDS[name])(arguments)
            check_output(block, capsys.readouterr().out)
    elif Path(program).is_file():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        check_output(block, done.stdout)
    elif ours := re.match(r"python (?:-m )?(scripts[./]\w+)(?:\.py)?(?: (.*))?$", command):
        source = (ROOT / ours[1].replace(".", "/")).with_suffix(".py").read_text()
        assert [option for option in re.findall(r"--[\w-]+", ours[2] or "") if option not in source] == [], command
    else:
        assert LEFT_OUT.match(command), f"{command}: run it, or say why it is left out"


def first_of_a_sweep(arguments: list[str]) -> list[str]:
    """Return the arguments of its first run."""
    if "-m" not in arguments and not any(word.startswith("sweep=") for word in arguments):
        return arguments
    return [
        re.sub(r"=([^\[{(,]+),[^\]})]+$", r"=\1", word)
        for word in arguments
        if word != "-m" and not re.search(r"=(range|tag|interval|choice)\(", word)
    ]


def compose_only(arguments: list[str], folder: Path) -> None:
    """Compose a configuration, and check that every argument has an effect."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [*arguments, f"hydra.runtime.output_dir={folder}"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    refuse_without_effect(config, arguments, config.hydra.runtime.choices)


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [
        path.relative_to(ROOT / "docs") for suffix in ("md", "ipynb") for path in (ROOT / "docs").rglob(f"*.{suffix}")
    ]
    assert [page for page in map(str, pages) if f": {page}\n" not in navigation] == []


def test_links_of_the_files_at_the_top_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (ROOT / link).exists(), f"{page.name}: {link}"


def test_the_tree_of_the_readme_is_the_one_on_disk() -> None:
    tree = re.search(r"## What is where\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    above: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"\S+(?: +\S+\.py| +\S+/)*", line.strip())
        assert names is not None
        if names[0] == "...":
            continue
        for name in names[0].split():
            assert (ROOT.joinpath(*above[:depth]) / name).exists(), line
        above = [*above[:depth], names[0].split()[0]]


def test_the_notebook_runs_in_a_kernel() -> None:
    notebook = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    assert [cell.outputs for cell in notebook.cells if cell.get("outputs")] == [], "what it shows is made with the site"
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "Warning" not in printed
    assert printed.endswith("True\n")  # continued, it ends at the same bits
