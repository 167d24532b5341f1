"""How fast the operator is beside towhee.models' CENet, and how near to the machine's own limits.

    python benchmarks/speed.py [--quick] [--device cuda] [--trecvid FOLDER]

Default config, all experts present unless said, same inputs, CENet in evaluation and inference mode on the same
device in the same run, medians. Accuracy is measured beside the time; with --trecvid, the ranking too, on real
features and captions. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    CPU,
    FLAKY,
    MSRVTT,
    machine,
    matmul_rates,
    medians,
    number_formats,
    random_batch,
    read_bandwidth,
    text_flops,
    video_flops,
)
from overlap import top_ten_overlap
from towhee.models.collaborative_experts import CENet, create_model

from collaborative_experts import CollaborativeExperts
from collaborative_experts.model.cenet import initial_state

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

WORKS = ("both sides", "video side", "video side, half of the flaky experts missing", "one text query")

CPU_WORK = (
    (WORKS[0], 256, ("float32", "bfloat16")),
    (WORKS[0], 1, ("float32", "bfloat16")),
    (WORKS[1], 256, ("float32", "bfloat16")),
    (WORKS[2], 256, ("float32",)),
    (WORKS[3], 1, ("float32", "bfloat16", "int8")),
)
"""Work, batch size and number formats."""

CUDA_WORK = tuple(
    (work, size, ("float32", "bfloat16", "float16"))
    for work in WORKS
    for size in (1, 256, 4096)
    if size == 1 or work != "one text query"
)

LARGEST_SIZE, QUICK_SIZE = 4096, 16
"""Batches of the sweep go up to this."""

BATCH_GOAL, SINGLE_GOAL = 0.9, 0.8
"""Shares of the machine's limit that the project wants to reach."""


@dataclass
class Row:
    work: str
    size: int
    dtype: str
    cenet: float  # seconds
    ours: float
    share: float  # of the machine's limit

    @property
    def ratio(self) -> float:
        return self.cenet / self.ours

    @property
    def goal(self) -> float:
        return SINGLE_GOAL if self.size == 1 else BATCH_GOAL


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small batches, to see that it runs")
    options.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    options.add_argument("--trecvid", type=Path, help="folder with experts.npz and captions.csv")
    arguments = options.parse_args()
    device = arguments.device
    torch.set_grad_enabled(False)
    print(" ".join(f"{key}={value}" for key, value in machine(device).items()))
    reference = create_model(device=str(device)).eval()
    reference.load_state_dict(initial_state(MSRVTT))
    dtypes = number_formats(device)
    ops = {dtype: CollaborativeExperts(device=device, dtype=dtype) for dtype in dtypes}
    limits = Limits(device)
    print(limits)
    largest = QUICK_SIZE if arguments.quick else LARGEST_SIZE
    works = CPU_WORK if device.type == "cpu" else CUDA_WORK
    works = tuple((work, min(size, largest), formats) for work, size, formats in works)
    rows = speed_rows(ops, reference, limits, works, repeats=3 if arguments.quick else 9)
    print_rows(rows)
    accuracy = {dtype: accuracy_of(op, reference) for dtype, op in ops.items()}
    print_accuracy(accuracy)
    overlap = {}
    if arguments.trecvid:
        overlap = {dtype: top_ten_overlap(arguments.trecvid, dtype, device) for dtype in dtypes[1:]}
        for dtype, share in overlap.items():
            print(f"trecvid, top 10 of 1,000 videos for 500 texts, {dtype}: {share:.1%} as in float32")
    sizes = [2**k for k in range(largest.bit_length())]
    sweeps = {dtype: sweep(op, limits, sizes) for dtype, op in ops.items() if dtype != "int8"}
    result = {
        "machine": machine(device),
        "limits": {"products": limits.rates, "reading": limits.bandwidth},
        "rows": [vars(row) for row in rows],
        "accuracy": accuracy,
        "overlap": overlap,
        "sweep": sweeps,
    }
    print(json.dumps(result))


class Limits:
    """What the machine can do at best, measured in this run."""

    def __init__(self, device: torch.device) -> None:
        formats = [dtype for dtype in number_formats(device) if dtype != "int8"]
        self.rates = {dtype: matmul_rates(getattr(torch, dtype), device) for dtype in formats}  # by shape
        self.rate = {dtype: max(rates.values()) for dtype, rates in self.rates.items()}
        self.bandwidth = read_bandwidth(device)

    def __str__(self) -> str:
        lines = [
            f"limit of products, {dtype}: " + ", ".join(f"{x} {rate / 1e9:.0f} GFLOP/s" for x, rate in rates.items())
            for dtype, rates in self.rates.items()
        ]
        return "\n".join([*lines, f"limit of reading: {self.bandwidth / 1e9:.1f} GB/s"])

    def share(self, work: str, dtype: str, size: int, seconds: float) -> float:
        """Share of the limit: arithmetic, or reading the weights once, whichever takes longer. For int8 reading."""
        flops, parameters = needed(work)
        arithmetic = size * flops / self.rate[dtype] if dtype in self.rate else 0.0
        return max(arithmetic, parameters * BYTES[dtype] / self.bandwidth) / seconds


def needed(work: str) -> tuple[float, int]:
    """Multiplications and additions an item, and parameters."""
    video_parameters, text_parameters = (
        sum(x.numel() for x in initial_state(MSRVTT, side).values()) for side in ("video", "text")
    )
    video, text = video_flops(MSRVTT), text_flops(MSRVTT)
    return {
        WORKS[0]: (video + text, video_parameters + text_parameters),
        WORKS[1]: (video, video_parameters),
        WORKS[2]: (video_flops(MSRVTT, share=0.5), video_parameters),
        WORKS[3]: (text, text_parameters),
    }[work]


def speed_rows(ops: dict, reference: CENet, limits: Limits, works: tuple, repeats: int) -> list[Row]:
    rows = []
    for work, size, wanted in works:
        present = [dtype for dtype in wanted if dtype in ops]
        theirs, calls = prepare(work, size, [ops[dtype] for dtype in present], reference)
        with torch.inference_mode():
            seconds, *ours = medians(theirs, *calls, repeats=repeats)
        for dtype, taken in zip(present, ours, strict=True):
            rows.append(Row(work, size, dtype, seconds, taken, limits.share(work, dtype, size, taken)))
    return rows


def prepare(work: str, size: int, ops: list, reference: CENet) -> tuple[Callable, list[Callable]]:
    """The same work for CENet and for each operator."""
    experts, ind, text = random_batch(MSRVTT, size, device=ops[0].device)
    if "missing" in work:
        generator = torch.Generator().manual_seed(1)
        for name in FLAKY:
            ind[name] = (torch.rand(size, generator=generator) < 0.5).float().to(ops[0].device)
            experts[name][ind[name] == 0] = torch.nan
    missing = "missing" in work
    if work.startswith("video"):
        return lambda: run_cenet(reference, "compute_video_embeddings", experts, ind, missing=missing), [
            lambda op=op: op.encode_video(experts, ind) for op in ops
        ]
    theirs = lambda: run_cenet(reference, "retrieval", experts, ind, text)  # noqa: E731
    if work == "one text query":
        return theirs, [lambda op=op: op.encode_text(text) for op in ops]
    return theirs, [lambda op=op: op(experts, ind, text) for op in ops]


def run_cenet(
    model: CENet, task: str, experts: dict, ind: dict, text: torch.Tensor | None = None, missing: bool = False
) -> dict:
    model.task = model.ce.task = task
    if missing:  # CENet zeroes these rows in place and then trips over its own zeros, so they are copied
        experts = {name: x.clone() if name in FLAKY else x for name, x in experts.items()}
    return model(experts, ind, text)


def accuracy_of(op: CollaborativeExperts, reference: CENet, size: int = 32) -> dict[str, float]:
    """Largest difference from CENet in float64, and the lowest cosine, over all embeddings of a batch."""
    experts, ind, text = random_batch(MSRVTT, size, seed=2, device=op.device)
    text_embds, vid_embds = op(experts, ind, text)
    difference, cosine = 0.0, 1.0
    reference.double()  # and back below: float32 weights survive this unchanged
    theirs = run_cenet(
        reference,
        "retrieval",
        {k: x.double() for k, x in experts.items()},
        {k: x.double() for k, x in ind.items()},
        text.double(),
    )
    reference.float()
    for ours, exact in ((text_embds, theirs["text_embds"]), (vid_embds, theirs["vid_embds"])):
        for name, embd in ours.items():
            wanted = exact[name].reshape(embd.shape)
            difference = max(difference, float((embd - wanted).abs().max()))
            cosine = min(cosine, float(torch.nn.functional.cosine_similarity(embd.double(), wanted).min()))
    return {"difference": difference, "cosine": cosine}


def sweep(op: CollaborativeExperts, limits: Limits, sizes: list[int]) -> dict[int, dict[str, float]]:
    """Milliseconds per item and the share of the limit over batch sizes, both sides."""
    found = {}
    for size in sizes:
        batch = random_batch(MSRVTT, size, device=op.device)
        seconds = medians(lambda batch=batch: op(*batch), repeats=3 if size > 256 else 7)[0]
        share = limits.share(WORKS[0], op.dtype, size, seconds)
        found[size] = {"ms": seconds / size * 1e3, "of limit": share}
    print(f"ms per item, {op.dtype}: " + "  ".join(f"B={size} {x['ms']:.2f}" for size, x in found.items()))
    print(f"of limit, {op.dtype}: " + "  ".join(f"B={size} {x['of limit']:.0%}" for size, x in found.items()))
    return found


def print_rows(rows: list[Row]) -> None:
    """Times beside CENet's, and the share of the machine's limit beside the project's goal for it."""
    print(f"\n{'work':46} {'B':>4} {'dtype':9} {'CENet ms':>9} {'ours ms':>8} {'ratio':>6} {'of limit':>8} "
          f"{'goal':>5}")  # fmt: skip
    for row in rows:
        print(
            f"{row.work:46} {row.size:4} {row.dtype:9} {row.cenet * 1e3:9.1f} {row.ours * 1e3:8.1f} "
            f"{row.ratio:5.1f}x {row.share:8.0%} {row.goal:5.0%}"
        )


def print_accuracy(accuracy: dict[str, dict[str, float]]) -> None:
    print()
    for dtype, found in accuracy.items():
        print(f"{dtype:9} from CENet in float64: largest difference {found['difference']:.1e}, "
              f"lowest cosine {found['cosine']:.6f}")  # fmt: skip


if __name__ == "__main__":
    main()
