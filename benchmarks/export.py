"""ONNX graphs in ONNX Runtime beside the engine, and Towhee's JSON beside binary tensors.

    python benchmarks/export.py [--quick] [--processor-time]

The default model in float32. The engine is called through the operator, its input checks included. All experts are
there, but for one row, where every other video lacks audio, face, ocr and speech. `--processor-time` takes one thread
and counts its own time, for a machine that others use as well. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import FLAKY, MSRVTT, machine, medians, random_batch
from towhee.utils.serializer import from_triton_data, to_triton_data

from collaborative_experts import CollaborativeExperts

BATCHES = (1, 8, 64, 256)

Clock = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX graphs beside the engine.")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, for a machine that others use")
    parser.add_argument("--quick", action="store_true", help="small batches alone, to see that it runs")
    options = parser.parse_args()
    alone, batches = options.processor_time, BATCHES[:2] if options.quick else BATCHES
    clock = time.process_time if alone else time.perf_counter
    if alone:
        torch.set_num_threads(1)
    described = machine() | {"onnxruntime": onnxruntime.__version__}
    print(" ".join(f"{key}={value}" for key, value in described.items()), end="\n\n")
    results: dict[str, Any] = {"machine": described}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("video", "text"):
            results[side] = compare(side, Path(folder), clock, batches)
    results["json"] = [compare_transport(size, clock) for size in (1, 64)]
    print(json.dumps(results))


def compare(side: str, folder: Path, clock: Clock, batches: tuple[int, ...]) -> dict[str, Any]:
    """File, loading, and times of one side's graph beside the engine's."""
    op = CollaborativeExperts(device="cpu", modality=side)
    begin = time.perf_counter()
    path = op.save_model("onnx", folder / f"{side}.onnx")
    made = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    found = {"mb": path.stat().st_size / 1e6, "export_s": made - begin, "load_s": loaded - made}
    print("{}: {mb:.1f} MB, exported in {export_s:.1f} s, loaded in {load_s:.1f} s".format(side, **found))
    print("    B  engine ms  ONNX Runtime ms  ratio  largest difference")
    for size, lacking in (*((size, False) for size in batches), *([(batches[-1], True)] if side == "video" else [])):
        engine, graph, difference = times(op, session, side, size, lacking, clock)
        what = ", half of the flaky experts missing" if lacking else ""
        found[f"{size}{what}"] = {"engine_ms": engine * 1e3, "onnx_ms": graph * 1e3, "difference": difference}
        row = f"{size:5} {engine * 1e3:10.1f} {graph * 1e3:16.1f} {engine / graph:5.2f}x {difference:19.1e}"
        print(row + what, flush=True)
    print()
    return found


def times(op: Any, session: Any, side: str, size: int, lacking: bool, clock: Clock) -> tuple[float, float, float]:
    """Seconds of the engine and of the graph for a batch, and the largest difference between their embeddings."""
    experts, ind, text = random_batch(MSRVTT, size)
    for name in FLAKY if lacking else ():
        ind[name][::2] = 0
    if side == "video":
        feeds = {f"experts.{name}": x.numpy() for name, x in experts.items()}
        feeds["available"] = torch.stack([*ind.values()], dim=1).bool().numpy()
        arguments: tuple = (experts, ind)
    else:
        feeds, arguments = {"tokens": text[:, 0].numpy()}, (text[:, 0],)
    embds = op(*arguments)
    got = session.run([f"{side}.{name}" for name in embds], feeds)
    difference = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(got, embds.values(), strict=True))
    engine, graph = medians(lambda: op(*arguments), lambda: session.run(None, feeds), clock=clock)
    return engine, graph, difference


def compare_transport(size: int, clock: Clock) -> dict[str, float]:
    """What Towhee's JSON makes of the features of a batch, beside their bytes, as Triton's binary tensors are."""
    experts = {name: x.numpy() for name, x in random_batch(MSRVTT, size)[0].items()}
    data, plain = to_triton_data(experts), b"".join(x.tobytes() for x in experts.values())
    there, back, write, read = medians(
        lambda: to_triton_data(experts),
        lambda: from_triton_data(data),
        lambda: b"".join(x.tobytes() for x in experts.values()),
        lambda: np.frombuffer(plain, np.float32),
        clock=clock,
    )
    print(
        f"features of {size} videos: JSON {len(data) / 1e6:.2f} MB, {(there + back) * 1e3:.1f} ms to write and read; "
        f"binary {len(plain) / 1e6:.2f} MB, {(write + read) * 1e3:.3f} ms"
    )
    return {
        "videos": size,
        "json_mb": len(data) / 1e6,
        "json_ms": (there + back) * 1e3,
        "binary_mb": len(plain) / 1e6,
        "binary_ms": (write + read) * 1e3,
    }


if __name__ == "__main__":
    main()
