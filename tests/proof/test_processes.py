"""A small, seeded share of the campaigns of benchmarks/proof that measure or end processes."""

import json
import shutil
import subprocess
import sys

import pytest

from warm_process import run_script


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


@pytest.fixture
def forked(root):
    """The last line of a script, run in a fork of a process that has imported most of what it needs."""

    def forked(name, *options):
        process = run_script(root / "benchmarks" / "proof" / f"{name}.py", *options)
        printed = process.stdout.read()
        assert process.wait() == 0, printed + process.stderr.read()
        return json.loads(printed.splitlines()[-1])

    return forked


def test_kills(forked):
    for module in ("av", "lance", "pooch"):
        pytest.importorskip(module)
    operations = ["extract", "embed", "calibrate", "delete", "fetch", "tokens"]
    counts = forked("kills", "--kills", "12", "--operations", *operations)
    assert counts["kills"] == 12
    assert counts["ends"] >= 3


def test_full_disks(count):
    """In a namespace of its own, so that nothing stays mounted."""
    pytest.importorskip("pooch")
    alone = ("unshare", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs the rights to mount")
    counts = count("full", "--cases", "3", "--operations", "save", "fetch", "tokens", before=alone)
    assert counts["cases"] == 3


def test_threads(forked):
    for module in ("lance", "fastapi"):
        pytest.importorskip(module)
    counts = forked("threads", "--threads", "8", "--seconds", "3")
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
