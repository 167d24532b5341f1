"""The tests of the engine and of exact search with the instruction sets that libraries may use held down.

    python benchmarks/proof/isa.py [--tests tests/model/test_engine.py ...]

Each row of `LIMITS` is tried in a process of its own, first without limits. A limit above what the processor has
changes nothing, so the last line names what it has. Ends with one line of JSON; the exit status is 1 where a test
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "tests/model/test_engine.py",
    "tests/model/test_parity.py",
    "tests/retrieval/test_exact_search.py",
    "tests/retrieval/test_products.py",
)

LIMITS: tuple[dict[str, str], ...] = (
    {},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    *({"ONEDNN_MAX_CPU_ISA": isa} for isa in ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")),
    *({"MKL_ENABLE_INSTRUCTIONS": isa} for isa in ("SSE4_2", "AVX2", "AVX512")),
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
)
"""Environment variables of PyTorch, oneDNN and MKL."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", nargs="+", default=TESTS)
    options = parser.parse_args()
    results = {}
    for limits in LIMITS:
        name = " ".join(f"{key}={value}" for key, value in limits.items()) or "no limits"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.tests],
            cwd=ROOT, env=os.environ | limits, capture_output=True, text=True, check=False,
        )  # fmt: skip
        said = (done.stdout.strip() or done.stderr.strip()).splitlines()
        results[name] = {"status": done.returncode, "said": said[-1]}
        print("\n".join([f"{name}: {said[-1]}", *(line for line in said if line.startswith("FAILED"))]), flush=True)
    print(json.dumps({"instructions": torch.backends.cpu.get_cpu_capability(), "tests": results}))
    sys.exit(any(result["status"] for result in results.values()))


if __name__ == "__main__":
    main()
