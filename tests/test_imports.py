"""Imports flow one way: a file imports only from layers before its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Every file of a layer may import from its own layer and from those before it.
LAYERS = (
    "_version penalties losses layers data module callback happy_lambda pruning auto_lambda",
    "objective optim loop loggers callbacks",
    "trainer",
    "__init__",
)
FILES = sorted(path for folder in ("framework", "recipes", "scripts") for path in (ROOT / folder).rglob("*.py"))


def layer(module: str) -> int:
    """The place in the order of a dotted name such as "framework.callbacks.early_stopping"."""
    top, *rest = module.split(".")
    if top != "framework":
        return len(LAYERS) + ("recipes", "scripts").index(top)
    name = rest[0] if rest else "__init__"
    return next(index for index, names in enumerate(LAYERS) if name in names.split())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node: ast.AST) -> set[str]:
    """The dotted names imported below a node, but for types' sake only; relative imports are not used here."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "import by the full name"
            assert child.module is not None
            # `from framework import checkpoint` names a file, `from framework import Trainer` the package.
            found |= {
                f"{child.module}.{alias.name}" if (ROOT / child.module / f"{alias.name}.py").exists() else child.module
                for alias in child.names
            }
        elif is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                found |= imports(other)
        else:
            found |= imports(child)
    return found


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_a_file_imports_only_from_layers_before_its_own(path):
    own = layer(dotted(path))
    for name in imports(ast.parse(path.read_text())):
        if name.split(".")[0] in ("framework", "recipes", "scripts"):
            assert layer(name) <= own, f"{dotted(path)} imports {name}, which comes after it"
            assert dotted(path).startswith("framework.__init__") or name != "framework" or own >= len(LAYERS)


@pytest.mark.parametrize("path", [path for path in FILES if "framework" in path.parts], ids=dotted)
def test_the_library_knows_neither_hydra_nor_the_recipes(path):
    names = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert not names & {"hydra", "omegaconf", "recipes", "scripts"}


def test_the_trainer_does_not_know_our_optimizers():
    for path in (ROOT / "framework/trainer.py", *(ROOT / "framework/loop").glob("*.py")):
        names = imports(ast.parse(path.read_text()))
        assert not any(name.startswith("framework.optim") for name in names)
