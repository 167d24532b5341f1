"""The page of all benchmarks, made of stored results."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

RESULTS = json.loads((Path(__file__).parent / "speed_results.json").read_text())
"""A results.json with some of the scripts."""


@pytest.fixture
def page(root, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmarks_page", root / "benchmarks" / "page.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page(page, tmp_path):
    """Each plot shows what was measured, each table stands on the page, and all of it is small."""
    page.write_page(RESULTS, tmp_path / "2026-11-28-some-processor")
    [folder] = tmp_path.iterdir()
    text = (folder / "README.md").read_text()
    for name, words in {
        "limits": ["float32", "goal", "batch size"],
        "search": ["videos", "experts", "patterns", "k", "ms of one query"],
        "cenet": ["both sides, B=16, float32", "1.6x"],
    }.items():
        assert f"({name}.svg)" in text
        plot = (folder / f"{name}.svg").read_text()
        assert [word for word in words if f">{word}<" not in plot] == []
    for done in RESULTS["scripts"].values():
        assert done["printed"].strip() in text
    assert "no CUDA device" in text
    assert json.loads((folder / "results.json").read_text())["scripts"].keys() == RESULTS["scripts"].keys()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000


def test_page_of_a_benchmark_that_failed(page, tmp_path):
    """It says why; what the benchmark has no figures for is left out."""
    scripts = RESULTS["scripts"] | {"index": {"seconds": 1.0, "failed": "ImportError: no lance"}}
    page.write_page(RESULTS | {"scripts": scripts}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Failed: `ImportError: no lance`" in text
    assert "limits.svg" in text
    assert not (tmp_path / "search.svg").exists()


def test_a_failing_script_is_told(page, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "HERE", tmp_path)
    (tmp_path / "good.py").write_text("print('a table\\nof two lines\\n{\"a\": 1}')")
    (tmp_path / "bad.py").write_text("raise ValueError('no memory')")
    good, bad = page.run(["good"]), page.run(["bad"])
    assert (good["printed"], good["result"]) == ("a table\nof two lines", {"a": 1})
    assert bad["failed"] == "ValueError: no memory"
    assert "result" not in bad


def test_names_of_pages(page):
    named = {
        "AMD EPYC": "2026-11-28-amd-epyc-avx2",
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz": "2026-11-28-intel-xeon-platinum-8481c-avx2",
    }
    for processor, name in named.items():
        machine = {"processor": processor, "instructions": "AVX2"}
        assert page.page_name({"date": "2026-11-28", "quick": False, "machine": machine}) == name
