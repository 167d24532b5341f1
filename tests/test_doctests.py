"""The examples in docstrings print what they say they print."""

import doctest
import importlib
import warnings
from pathlib import Path

import pytest

import collaborative_experts as ce

ROOMS = ("base", "model", "features", "retrieval", "training", "hub", "apps")

MOST_USED = (
    ce.collaborative_experts,
    ce.CEConfig.from_dict,
    ce.read_features,
    ce.config_for,
    ce.similarity,
    ce.evaluate,
    ce.explain,
    ce.VideoIndex.search,
)
NEEDS = {"collaborative_experts.retrieval.index": "lance"}
"""Optional packages that a module's examples need."""


ROOT = Path(__file__).resolve().parents[1]
PATHS = [ROOT / "__init__.py", *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]
MODULES = [
    ".".join(("collaborative_experts", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in PATHS
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*seeded initial parameters")
        result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("function", MOST_USED, ids=lambda function: function.__qualname__)
def test_the_most_used_functions_have_examples(function):
    assert any(test.examples for test in doctest.DocTestFinder().find(function))
