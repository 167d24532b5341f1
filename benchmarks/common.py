"""What the benchmarks share: inputs, timing side by side, the machine's own limits, and its description."""

from __future__ import annotations

import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

warnings.filterwarnings("ignore", message=".*pkg_resources")
warnings.filterwarnings("ignore", message=".*seeded initial parameters")

from collaborative_experts import MSRVTT, CEConfig  # noqa: E402
from collaborative_experts.kernels import packed_linear  # noqa: E402

FLAKY = ("audio", "face", "ocr", "speech")
"""The experts that real videos lack most often (`flaky` in the authors' configs)."""


def random_batch(config: CEConfig, size: int, seed: int = 0) -> tuple[dict, dict, torch.Tensor]:
    """experts, ind (all ones) and text (B, 1, W, dim) as tensors."""
    generator = torch.Generator().manual_seed(seed)
    experts = {
        expert.name: torch.randn(
            (size, expert.max_tokens or 30, expert.dim) if expert.variable else (size, expert.dim), generator=generator
        )
        for expert in config.experts
    }
    ind = {name: torch.ones(size) for name in experts}
    return experts, ind, torch.randn(size, 1, config.text.max_tokens, config.text.dim, generator=generator)


def medians(*functions: Callable[[], object], repeats: int = 9) -> list[float]:
    """Median seconds of each, taken in turns so that a disturbance meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(repeats):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def matmul_rate(dtype: torch.dtype) -> float:
    """The machine's best matrix product, FLOP/s, over the shapes that matter at B=256."""
    best = 0.0
    for rows, inner, outer in ((256, 21504, 768), (2304, 768, 768)):
        layer = packed_linear(torch.randn(outer, inner), None, dtype, torch.device("cpu"))
        x = torch.randn(rows, inner).to(dtype)
        best = max(best, 2 * rows * inner * outer / medians(lambda layer=layer, x=x: layer(x))[0])
    return best


def read_bandwidth() -> float:
    """The best rate at which memory is read, bytes/s, over 1 GB that no cache holds."""
    x = torch.ones(250_000_000)
    return x.nbytes / min(medians(x.sum, lambda: torch.dot(x, x), x.max))


def video_flops(config: CEConfig, share: float = 1.0) -> float:
    """Multiplications and additions that one video needs after the engine's algebra; `share` of the experts there."""
    d, m = config.shared_dim, len(config.experts)
    macs = 0.0
    for expert in config.experts:
        there = share if expert.name in FLAKY else 1.0
        macs += there * (expert.pooled_dim * d + d * d)
        if expert.variable:
            macs += there * expert.max_tokens * expert.dim * 2 * expert.clusters
    there = m - (1 - share) * sum(name in FLAKY for name in config.expert_names)
    # halves of the pair layer, right halves again once gated, hidden layer per pair, last layer per expert
    macs += d * d * (2 * there + (there - 1) + there * there + there)
    return 2 * macs


def text_flops(config: CEConfig) -> float:
    """The same for one text."""
    d, m, text = config.shared_dim, len(config.experts), config.text
    pooling = text.max_tokens * text.dim * (2 * text.clusters + text.ghost_clusters)
    return 2 * (pooling + m * (text.pooled_dim * d + d * d) + text.pooled_dim * m)


def watched(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """The result of work(), its seconds, and its highest resident memory above the start."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far (Linux)
    start, begin = resident("VmRSS"), time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin, resident("VmHWM") - start


def resident(key: str) -> int:
    """Bytes of memory that this process holds, mapped files included: now (VmRSS) or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))


def machine() -> dict[str, str | int]:
    """Processor, threads and versions, for every table."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "towhee.models": version("towhee.models"),
    }


__all__ = [
    "FLAKY",
    "MSRVTT",
    "machine",
    "matmul_rate",
    "medians",
    "random_batch",
    "read_bandwidth",
    "text_flops",
    "video_flops",
    "watched",
]
