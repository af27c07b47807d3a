"""Imports flow one way, including indirect ones and those only for type checking."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A file may import from its own room and from earlier ones.
ROOMS = (
    "framework._version framework.fabric",
    "framework.penalties framework.losses framework.layers framework.data",
    "framework.hyperparameters framework.module_hooks framework.manual_optimization framework.module "
    "framework.callback framework.lightning framework.profiler framework.dashboard framework.loggers",
    "framework.happy_lambda framework.cox framework.pruning framework.auto_lambda",
    "framework.objective",
    "framework.optim",
    "framework.stacks",
    "framework.loop",
    "framework.callbacks",
    "framework.answers",
    "framework.supervised framework.trainer framework.lr_finder framework.run_folder framework.estimators",
    "framework",
    "framework.recipes",
    "scripts",
)
# The one cycle: public classes that name each other in signatures. The trainer makes three of the ready-made callbacks.
NAME_THE_TRAINER = ("framework.module", "framework.callback", "framework.callbacks", "framework.lightning")
# A method of the module's class makes it again from a checkpoint; it imports what reads one only when it is called.
READS_CHECKPOINTS = "framework.hyperparameters"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("framework", "framework/recipes", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def is_in(name: str, room: str) -> bool:
    return any(name == place or (name.startswith(f"{place}.") and place != "framework") for place in room.split())


def place(name: str) -> int:
    """Return the index of the room of a file such as "framework.callbacks.early_stopping"."""
    return next(index for index, room in enumerate(ROOMS) if is_in(name, room))


def imports(path: Path, *, typing: bool = True) -> set[str]:
    """Return the files that a file imports, at its top, in functions, and, if ``typing``, only for type checking."""
    found: set[str] = set()
    queue: list[ast.AST] = [ast.parse(path.read_text())]
    while queue:
        for child in ast.iter_child_nodes(queue.pop()):
            if isinstance(child, ast.Import):
                found |= {alias.name for alias in child.names}
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "import by the full name"
                assert child.module is not None
                # `from framework.loop import checkpoint` names a file, `from framework import Trainer` the package.
                names = {f"{child.module}.{alias.name}" for alias in child.names}
                found |= {name if name in FILES else child.module for name in names}
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING" and not typing:
                queue += child.orelse
            else:
                queue.append(child)
    return found


def edges(name: str) -> set[str]:
    """Return the project's files that a file imports, except for the one cycle, and the packages they are in."""
    path = FILES[name]
    found = {other for other in imports(path) if other in FILES}
    if any(is_in(name, room) for room in NAME_THE_TRAINER):
        assert "framework.trainer" not in imports(path, typing=False)
        found.discard("framework.trainer")
    if name == READS_CHECKPOINTS:
        assert "\nfrom framework.loop" not in path.read_text()
        found.discard("framework.loop.checkpoint")
    packages = {other.rpartition(".")[0] for other in found} - {"framework", "framework.recipes", "scripts", ""}
    return found | {package for package in packages if not is_in(name, package)}


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_its_own_room_and_earlier_ones(name):
    for other in edges(name):
        assert place(other) <= place(name), f"{name} imports {other}, which comes after it"


def test_there_are_no_circular_imports():
    graphlib.TopologicalSorter({name: edges(name) for name in FILES}).prepare()  # raises CycleError


@pytest.mark.parametrize("name", [name for name in FILES if is_in(name, " ".join(ROOMS[:-2]))])
def test_the_library_knows_neither_hydra_nor_the_recipes(name):
    names = imports(FILES[name])
    assert not any(is_in(other, "hydra omegaconf framework.recipes scripts") for other in names)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("framework.callbacks")])
def test_callbacks_use_the_public_face_of_the_trainer(name):
    assert not any(is_in(other, "framework.loop") for other in edges(name))


def test_the_loop_does_not_know_our_optimizers():
    for name in FILES:
        if is_in(name, "framework.loop framework.trainer"):
            assert not any(is_in(other, "framework.optim") for other in edges(name))
