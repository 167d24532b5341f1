"""How long loading takes, and how much memory loading and large batches take beyond what they must.

    python benchmarks/memory.py [--quick]

Each case runs in a process of its own. Peaks are of resident memory, above what it was before the work.
Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import FLAKY, MSRVTT, number_formats, random_batch, watched

from collaborative_experts import CollaborativeExperts

ITEMS = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="batches of a hundredth of the size, to see that it runs")
    items = ITEMS // 100 if parser.parse_args().quick else ITEMS
    with tempfile.TemporaryDirectory() as folder:
        safetensors, pth = f"{folder}/default.safetensors", f"{folder}/default.pth"
        in_a_process("save", {"safetensors": safetensors, "pth": pth})
        size = Path(safetensors).stat().st_size
        print(f"weights {size / 1e6:.0f} MB")
        results = {}
        for path, modality, dtype in (
            (safetensors, None, "float32"),
            *((safetensors, None, dtype) for dtype in number_formats() if dtype == "bfloat16"),
            (safetensors, "video", "float32"),
            (safetensors, "text", "float32"),
            (safetensors, "text", "int8"),
            (pth, None, "float32"),
        ):
            name = f"load {Path(path).suffix}, {modality or 'both sides'}, {dtype}"
            found = in_a_process("load", {"weights_path": path, "modality": modality, "dtype": dtype})
            results[name] = found
            print(f"{name:42} {found['seconds']:6.2f} s, peak {found['peak'] / 1e6:6.0f} MB, "
                  f"{found['peak'] / size:.2f} x the weights", flush=True)  # fmt: skip
        for modality in ("video", "text"):
            name = f"{items:,} items, {modality} side, float32"
            found = in_a_process("batch", {"items": items, "weights_path": safetensors, "modality": modality})
            results[name] = found
            print(f"{name:42} {found['seconds']:6.2f} s, peak {found['peak'] / 1e6:6.0f} MB beyond inputs, outputs and "
                  f"weights", flush=True)  # fmt: skip
    print(json.dumps(results))


def in_a_process(case: str, settings: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, case, json.dumps(settings)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def save(safetensors: str, pth: str) -> dict[str, float]:
    op = CollaborativeExperts(device="cpu")
    op.save(safetensors)
    op.save_model("pytorch", pth)
    return {}


def load(**settings: Any) -> dict[str, float]:
    _, seconds, peak = watched(lambda: CollaborativeExperts(device="cpu", **settings))
    return {"seconds": seconds, "peak": peak}


def batch(items: int, **settings: Any) -> dict[str, float]:
    op = CollaborativeExperts(device="cpu", **settings)
    if settings["modality"] == "text":
        text = torch.randn(items, MSRVTT.text.max_tokens, MSRVTT.text.dim)
        outputs, seconds, peak = watched(lambda: op(text))
    else:
        experts, ind, _ = random_batch(MSRVTT, items)
        for name in FLAKY:
            ind[name][::2] = 0
        outputs, seconds, peak = watched(lambda: op(experts, ind))
    return {"seconds": seconds, "peak": peak - sum(x.nbytes for x in outputs.values())}


if __name__ == "__main__":
    cases = {"save": save, "load": load, "batch": batch}
    if sys.argv[1:2] and sys.argv[1] in cases:
        print(json.dumps(cases[sys.argv[1]](**json.loads(sys.argv[2]))))
    else:
        main()
