"""The rooms of the package: each imports only the rooms below it, and what needs no Towhee imports without it."""

import ast
import subprocess
import sys

import pytest

ROOMS = ("base", "model", "features", "retrieval", "training", "hub", "apps")
"""From the bottom up, in the order of DESIGN's table."""


def imported_rooms(path, root):
    """The rooms that a module's relative imports name, wherever in the module they stand."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield (*base, *(node.module or "").split("."), *(alias.name for alias in node.names))[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards(room, root):
    below = ROOMS[: ROOMS.index(room) + 1]
    modules = list((root / room).rglob("*.py"))
    assert modules
    for path in modules:
        assert set(imported_rooms(path, root)) <= set(below), path


def test_every_room_is_packaged(root):
    """A room that pyproject.toml does not name is missing in a wheel."""
    named = (root / "pyproject.toml").read_text(encoding="utf-8")
    for path in root.glob("*/**/__init__.py"):
        if path.relative_to(root).parts[0] in ROOMS:
            assert f'"collaborative_experts.{".".join(path.relative_to(root).parts[:-1])}"' in named


WITHOUT_TOWHEE = """
import sys, types
sys.modules["towhee"] = None
package = types.ModuleType("collaborative_experts")
package.__path__ = [sys.argv[1]]
sys.modules["collaborative_experts"] = package
import collaborative_experts.retrieval.embeddings
import collaborative_experts.retrieval.evaluation
import collaborative_experts.retrieval.explain
import collaborative_experts.retrieval.normalise
import collaborative_experts.retrieval.similarity
"""


def test_pure_retrieval_needs_no_towhee(root, tmp_path):
    """Scores and figures import where there is no Towhee; the package's own __init__ registers the operator."""
    command = [sys.executable, "-c", WITHOUT_TOWHEE, str(root)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
