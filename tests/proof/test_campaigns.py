"""A small, seeded share of the campaigns of benchmarks/proof."""

import json
import subprocess
import sys

import pytest


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


def test_files(load):
    """Without HDF5, whose library may follow changed addresses for ever, and with some of the hostile files."""
    for module in ("h5py", "lance", "pyarrow"):
        pytest.importorskip(module)
    files = load("files")
    kinds = [kind for kind in files.samples.KINDS if not kind.startswith("h5")]
    hostile = ["bombs", "pickles as pkl", "pickles as pth, legacy"]
    counts, by_kind, examples = files.campaign(cases=6, seed=5, kinds=[*kinds, *hostile])
    assert not nothing_but(counts, *files.EXPECTED), examples
    assert [by_kind[kind] for kind in hostile] == [{"refused": files.hostile.count(kind)} for kind in hostile]
    assert counts["refused"] > 280
    assert counts["same"] + counts["other"] > 20


def test_hostile_pickles_are_armed(load, tmp_path):
    """Python's own reader runs what they name."""
    hostile = load("files").hostile
    hostile_file = tmp_path / "motion.pkl"
    for number in range(4):
        hostile_file.write_bytes(hostile.hostile_pickle(number, hostile.marker(hostile_file)))
        read = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
        subprocess.run([sys.executable, "-c", read, hostile_file], capture_output=True)
        assert hostile.marker(hostile_file).exists()
        hostile.marker(hostile_file).unlink()


def test_licences(load, capsys):
    assert load("supply").print_licences() == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["packages"] > 20


def test_a_licence_that_binds_is_seen(load):
    refused = load("supply").REFUSED
    for name in ("GPL-3.0-only", "GNU General Public License v3 (GPLv3)", "AGPL-3.0", "CC-BY-NonCommercial"):
        assert refused.search(name), name
    for name in ("LGPL-2.1", "GNU Lesser General Public License v3", "MIT", "MPL-2.0"):
        assert not refused.search(name), name


def test_pins_have_hashes(load):
    package = {
        "metadata": {"name": "Some.Package", "version": "1.2"},
        "download_info": {"archive_info": {"hashes": {"sha256": "ab"}}},
    }
    assert load("supply").locked({"install": [package]}) == ["some-package==1.2 --hash=sha256:ab"]
