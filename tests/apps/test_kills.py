"""Kills at random moments: nothing that was acknowledged is lost, and what goes on ends as an undisturbed run does."""

import json
import subprocess
import sys

import pytest


def test_nothing_is_lost_and_nothing_half(root):
    """Of the operations that commit part by part; benchmarks/proof/kills.py does the same a thousand times. In a
    process of its own, for it makes others by fork."""
    for module in ("av", "lance", "lightning_fabric", "matplotlib", "pooch", "tensorboard"):
        pytest.importorskip(module)
    script = root / "benchmarks" / "proof" / "kills.py"
    operations = ["extract", "embed", "calibrate"]  # every second change of the last is of another kind
    command = [sys.executable, "-W", "ignore", script, "--kills", "9", "--operations", *operations]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["kills"] == 9
    assert counts["ends"] >= len(operations)
