"""A small, seeded share of the campaigns of benchmarks/proof."""

import importlib.util
import sys

import pytest


@pytest.fixture
def load(root, monkeypatch):
    """A script of benchmarks/proof as a module."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))

    def load(name):
        spec = importlib.util.spec_from_file_location(f"proof_{name}", root / "benchmarks" / "proof" / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def nothing_but(counts, *expected):
    """The counts that should be 0 and are not."""
    return {name: count for name, count in counts.items() if count and name not in expected}


def test_inputs(load, tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    counts, examples = load("inputs").campaign(calls=300, seed=2)
    assert not nothing_but(counts, "calls", "answers", "errors"), examples
    assert counts["answers"] > 100
    assert counts["errors"] > 50
