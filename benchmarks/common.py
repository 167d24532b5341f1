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
from collaborative_experts.base.linear import packed_linear  # noqa: E402

CPU = torch.device("cpu")

FLAKY = ("audio", "face", "ocr", "speech")
"""The experts that real videos lack most often (`flaky` in the authors' configs)."""


def random_batch(
    config: CEConfig, size: int, seed: int = 0, device: torch.device = CPU
) -> tuple[dict, dict, torch.Tensor]:
    """experts, ind (all ones) and text (B, 1, W, dim) as tensors, the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    experts = {
        expert.name: torch.randn(
            (size, expert.max_tokens or 30, expert.dim) if expert.variable else (size, expert.dim), generator=generator
        ).to(device)
        for expert in config.experts
    }
    ind = {name: torch.ones(size, device=device) for name in experts}
    text = torch.randn(size, 1, config.text.max_tokens, config.text.dim, generator=generator)
    return experts, ind, text.to(device)


def medians(
    *functions: Callable[[], object], repeats: int = 9, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Median seconds of each by `clock`, taken in turns so that a disturbance meets all of them."""
    on_gpu = torch.cuda.is_initialized()
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(-3 if on_gpu else -1, repeats):  # on a GPU, the second call captures a graph
        for function, taken in zip(functions, times, strict=True):
            start = clock()
            function()
            if on_gpu:
                torch.cuda.synchronize()
            if repeat >= 0:
                taken.append(clock() - start)
    return [statistics.median(taken) for taken in times]


def number_formats(device: torch.device = CPU) -> list[str]:
    """Those that the device computes in, float32 first."""
    if device.type == "cuda":
        return ["float32", "bfloat16", "float16"]
    return ["float32", *(["bfloat16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else []), "int8"]


def matmul_rate(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """The machine's best matrix product, FLOP/s, over the shapes that matter for large batches."""
    return max(matmul_rates(dtype, device).values())


def matmul_rates(dtype: torch.dtype, device: torch.device = CPU) -> dict[str, float]:
    """FLOP/s by the products' shapes, such as "256 x 21504 x 768"."""
    rates, videos = {}, 256 if device.type == "cpu" else 4096
    for rows, inner, outer in ((videos, 21504, 768), (9 * videos, 768, 768)):
        layer = packed_linear(torch.randn(outer, inner), None, dtype, device)
        x = torch.randn(rows, inner).to(device, dtype)
        seconds = medians(lambda layer=layer, x=x: layer(x))[0]
        rates[f"{rows} x {inner} x {outer}"] = 2 * rows * inner * outer / seconds
    return rates


def read_bandwidth(device: torch.device = CPU) -> float:
    """The best rate at which memory is read, bytes/s, over 1 GB that no cache holds; on a GPU, that of a copy."""
    x = torch.ones(250_000_000, device=device)
    if device.type == "cuda":
        return 2 * x.nbytes / medians(x.clone)[0]
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


def resident(key: str, pid: int | str = "self") -> int:
    """Bytes of memory that a process holds: now (VmRSS) or at most (VmHWM), mapped files included; RssAnon without."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(key))


def machine(device: torch.device = CPU) -> dict[str, str | int]:
    """Processor, threads and versions, for every table; the GPU, where it does the work."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        **({"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if device.type == "cuda" else {}),
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "towhee.models": version("towhee.models"),
    }


__all__ = [
    "CPU",
    "FLAKY",
    "MSRVTT",
    "machine",
    "matmul_rate",
    "matmul_rates",
    "medians",
    "number_formats",
    "random_batch",
    "read_bandwidth",
    "text_flops",
    "video_flops",
    "watched",
]
