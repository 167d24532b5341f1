"""Scripts of benchmarks/proof for the tests of this folder."""

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
