"""A small, seeded share of the campaigns of benchmarks/proof."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest

from warm_process import Process


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


@pytest.fixture
def count(root):
    """The counts of a script that makes processes by fork, run in a process of its own."""

    def count(name, *options, before=()):
        script = root / "benchmarks" / "proof" / f"{name}.py"
        done = subprocess.run(
            [*before, sys.executable, "-W", "ignore", script, *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return count


FORK = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"


@pytest.fixture
def forked(root):
    """The last line of a script, run in a fork of a process that has imported most of what it needs."""

    def forked(name, *options):
        process = Process(FORK, root / "benchmarks" / "proof" / f"{name}.py", *options)
        printed = process.stdout.read()
        assert process.wait() == 0, printed + process.stderr.read()
        return json.loads(printed.splitlines()[-1])

    return forked


def test_kills(forked):
    for module in ("av", "lance", "lightning_fabric", "matplotlib", "pooch", "tensorboard"):
        pytest.importorskip(module)
    operations = ["extract", "embed", "calibrate", "delete", "fetch", "tokens"]
    counts = forked("kills", "--kills", "12", "--operations", *operations)
    assert counts["kills"] == 12
    assert counts["ends"] >= 3


def test_full_disks(count):
    """In a namespace of its own, so that nothing stays mounted."""
    for module in ("lance", "pooch", "tensorboard"):
        pytest.importorskip(module)
    alone = ("unshare", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs the rights to mount")
    counts = count("full", "--cases", "3", "--operations", "save", "fetch", "tokens", before=alone)
    assert counts["cases"] == 3


def test_threads(count):
    for module in ("lance", "fastapi"):
        pytest.importorskip(module)
    counts = count("threads", "--threads", "8", "--seconds", "3")
    assert counts["process calls"] == 4
    assert min(counts[f"{kind} calls"] for kind in ("operator", "index", "service")) > 8


def test_leaks(load, forked):
    leaks = load("leaks")
    counts = {"calls": 400, "constructions": 40}
    memory = {kind: forked("leaks", "--work", kind, f"--{kind}", count) for kind, count in counts.items()}
    results = {kind: leaks.judge(count, memory[kind]) for kind, count in counts.items()}
    most = leaks.MOST / 5  # rounds are few: 40 small operators that stayed would be above 1%, and not above 5%
    assert all(result["growth"] < most for result in results.values()), results


def test_a_leak_is_seen(load):
    leaks = load("leaks")
    assert leaks.judge(1, [100] * 10 + [106] * 10)["growth"] > leaks.MOST
    assert leaks.judge(1, [10] * 5 + [100] * 15)["growth"] == 0


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
