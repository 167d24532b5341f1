"""The index beside a plain float32 product with top-k in PyTorch, over the same vectors held in memory.

    python benchmarks/index.py [--quick] [--large] [--folder FOLDER]

Embeddings are random, of length 1; every search is checked against the plain product. "Of limit" is the time in which
the codes, a byte a dimension, are read once at the machine's read bandwidth. --large adds 1,000,000 videos of 1,024
and 200,000 of 6,912 dimensions, 16 GB on the disk of FOLDER. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import machine, medians, read_bandwidth, watched

from collaborative_experts import TextEmbeddings, VideoEmbeddings, VideoIndex, similarity

K = 10
SETTLED_S = 4
"""Seconds of searches after which codes of 140 MB are held as they stay."""

PART = 50_000
"""Videos that are made and added at once."""

SMALL, DEFAULT = [512] * 2, [768] * 9
"""Dimensions of the experts: 1,024 in all, and the default model's 6,912."""

OPENED = """
import sys, time, pickle
from collaborative_experts import VideoIndex
from collaborative_experts.base.forks import import_lance
text = pickle.load(open(sys.argv[2], "rb"))
start = time.perf_counter()
import_lance("index")
loaded = time.perf_counter()
VideoIndex(sys.argv[1]).search(text[0], 10)
print(time.perf_counter() - start, loaded - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, to see that it runs")
    parser.add_argument("--large", action="store_true", help="also collections of 4 and 5.5 GB")
    parser.add_argument("--folder", type=Path, help="where the indexes are written; default: a temporary folder")
    options = parser.parse_args()
    share = 100 if options.quick else 1
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    bandwidth = read_bandwidth()
    print(f"reading {bandwidth / 1e9:.1f} GB/s", flush=True)
    results = {"machine": machine(), "bandwidth": bandwidth}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        results["100,000 x 1,024"] = collection(root / "a.lance", SMALL, 100_000 // share, 1, bandwidth)
        results["20,000 x 6,912"] = collection(root / "b.lance", DEFAULT, 20_000 // share, 16, bandwidth)
        results["sweeps"] = sweeps(root, share)
        results["approximate"] = approximate(root / "c.lance", 100_000 // share)
        if options.large:
            results["1,000,000 x 1,024"] = large(root / "d.lance", SMALL, 1_000_000 // share, bandwidth)
            results["200,000 x 6,912"] = large(root / "e.lance", DEFAULT, 200_000 // share, bandwidth)
    print(json.dumps(results))


# --- embeddings -------------------------------------------------------------------------------------------


def random_videos(dims: list[int], videos: int, patterns: int, seed: int = 0) -> VideoEmbeddings:
    """B videos: in one pattern all have every expert; in more, which are drawn, they miss half of them on average."""
    rng = np.random.default_rng(seed)
    experts = len(dims)
    drawn = np.random.default_rng(1).permutation(np.arange(1, 2**experts))
    occurring = drawn[:patterns] if patterns > 1 else [2**experts - 1]
    available = (rng.choice(occurring, videos)[:, None] >> np.arange(experts) & 1).astype(bool)
    return VideoEmbeddings({f"expert {m}": unit(rng, videos, dim) for m, dim in enumerate(dims)}, available)


def random_texts(dims: list[int], texts: int = 64) -> TextEmbeddings:
    rng = np.random.default_rng(99)
    weights = rng.dirichlet(np.ones(len(dims)), texts).astype(np.float32)
    return TextEmbeddings({f"expert {m}": unit(rng, texts, dim) for m, dim in enumerate(dims)}, weights)


def unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    x = rng.standard_normal((rows, dim), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


# --- one collection ---------------------------------------------------------------------------------------


def collection(path: Path, dims: list[int], size: int, patterns: int, bandwidth: float) -> dict[str, float]:
    """Adding, opening, searching and memory of vectors that fit into memory."""
    video, text = random_videos(dims, size, patterns), random_texts(dims)
    joint = torch.from_numpy(video.joint())
    megabytes = joint.nbytes / 1e6
    name = f"{size:,} x {sum(dims):,}, {occurrence(patterns)}"
    seconds, peak = added(path, video)
    result = {"add MB/s": megabytes / seconds, "add peak MB": peak / 1e6}
    print(f"{name}: added at {megabytes / seconds:.0f} MB of vectors/s, peak {peak / 1e6:.0f} MB beyond the caller's")
    result |= opened(path, text)
    print(f"{name}: open to the first answer {result['open s']:.2f} s, "
          f"of which {result['of which loading Lance s']:.2f} s loading Lance")  # fmt: skip
    with VideoIndex(path) as index:
        _, _, peak = watched(lambda: index.search(text, K))
        result["search peak / codes"] = peak / (joint.nbytes / 4)
        print(f"{name}: searching holds {peak / 1e6:.0f} MB, {result['search peak / codes']:.2f} x the codes")
        check(index, text, video)
        settle(index, text)
        for texts in (1, 64):
            result[f"{texts} queries"] = timed(index, text[:texts], joint, f"{name}, {texts:2} queries", bandwidth)
        result["changed ms"] = changed(index, text, video, name)
    return result


def occurrence(patterns: int) -> str:
    """What is said of the experts in a collection of so many patterns."""
    return "every expert in each" if patterns == 1 else f"{patterns} patterns"


def added(path: Path, video: VideoEmbeddings) -> tuple[float, int]:
    """Seconds to add all videos to a new index, the median of three, and the first one's peak of memory in bytes."""
    seconds, peaks = [], []
    for _ in range(3):
        shutil.rmtree(path, ignore_errors=True)
        with VideoIndex(path) as index:
            _, taken, peak = watched(lambda index=index: index.add(range(len(video)), video))
        seconds.append(taken)
        peaks.append(peak)
    return sorted(seconds)[1], peaks[0]


def timed(
    index: VideoIndex, text: TextEmbeddings, joint: torch.Tensor, name: str, bandwidth: float
) -> dict[str, float]:
    queries = torch.from_numpy(text.joint())
    ours, plain = medians(lambda: index.search(text, K), lambda: (queries @ joint.T).topk(K), repeats=15)
    (repeated,) = medians(lambda: index.search(text, K), repeats=15)  # whose codes no product drives out of the caches
    limit = joint.nbytes / 4 / bandwidth
    print(f"{name}: {ours * 1e3:.1f} ms, plain product {plain * 1e3:.1f} ms, {ours / plain:.2f}x; "
          f"{limit / ours:.0%} of limit; one search after the other {repeated * 1e3:.1f} ms", flush=True)  # fmt: skip
    return {
        "ms": ours * 1e3,
        "plain ms": plain * 1e3,
        "ratio": ours / plain,
        "of limit": limit / ours,
        "repeated ms": repeated * 1e3,
    }


def changed(index: VideoIndex, text: TextEmbeddings, video: VideoEmbeddings, name: str) -> dict[int, float]:
    """Milliseconds of 1 and of 64 queries where one video was deleted and one replaced by itself."""
    kept = video[1:]
    index.delete([0])
    index.add([1], kept[:1])
    check(index, text, kept, first_id=1)
    settle(index, text)
    one, many = medians(lambda: index.search(text[:1], K), lambda: index.search(text, K), repeats=15)
    print(f"{name}, one video deleted and one replaced: 1 query {one * 1e3:.1f} ms, "
          f"64 queries {many * 1e3:.1f} ms", flush=True)  # fmt: skip
    return {1: one * 1e3, len(text): many * 1e3}


def check(index: VideoIndex, text: TextEmbeddings, video: VideoEmbeddings, first_id: int = 0) -> None:
    """The answers are those of comparing with every video. Ids are numbers that follow on the first one."""
    scores = similarity(text, video)
    best = -np.sort(-np.partition(scores, -K, axis=1)[:, -K:], axis=1)
    found = index.search(text, K)
    given = np.take_along_axis(scores, found.ids.astype(int) - first_id, axis=1)
    assert np.abs(found.scores - best).max() < 1e-6
    assert np.abs(given - best).max() < 1e-6


def settle(index: VideoIndex, text: TextEmbeddings, seconds: float = SETTLED_S) -> None:
    """Search until the codes are held as they stay; the first searches compare with what is held at once."""
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        index.search(text[:1], K)


def opened(path: Path, text: TextEmbeddings) -> dict[str, float]:
    """Seconds from opening in a new process to the first answer, and those in which Lance is loaded, which count among
    them; median of five, once the disk has what was added."""
    os.sync()
    pickled = path.with_suffix(".pickle")
    pickled.write_bytes(pickle.dumps(text))
    command = [sys.executable, "-W", "ignore", "-c", OPENED, path, pickled]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    seconds, loading = sorted([float(said) for said in run.stdout.split()] for run in runs)[2]
    return {"open s": seconds, "of which loading Lance s": loading}


# --- how it grows -----------------------------------------------------------------------------------------


def sweeps(root: Path, share: int) -> dict[str, dict[int, float]]:
    """Milliseconds of one query by the number of videos, of experts, of patterns, and by k."""
    videos, dims = 20_000 // share, [128] * 8
    found: dict[str, dict[int, float]] = {"videos": {}, "experts": {}, "patterns": {}, "k": {}}
    for size in (videos // 16, videos // 4, videos, 4 * videos):
        found["videos"][size] = one_query(root / f"videos{size}.lance", dims, size, 16)
    for experts in (1, 2, 4, 8):
        found["experts"][experts] = one_query(root / f"experts{experts}.lance", [1024 // experts] * experts, videos, 1)
    for patterns in (4, 16, 64, 255):  # in each half of the experts are missing
        found["patterns"][patterns] = one_query(root / f"patterns{patterns}.lance", dims, videos, patterns)
    for k in (1, 10, 100, 1_000, 10_000):
        found["k"][k] = one_query(root / "patterns16.lance", dims, videos, 16, k)
    for name, taken in found.items():
        print(f"ms of one query by {name}: " + "  ".join(f"{x:,}: {ms:.1f}" for x, ms in taken.items()), flush=True)
    return found


def one_query(path: Path, dims: list[int], size: int, patterns: int, k: int = K) -> float:
    text = random_texts(dims, 1)
    with VideoIndex(path) as index:
        if not len(index):
            index.add(range(size), random_videos(dims, size, patterns))
        settle(index, text, SETTLED_S / 4)
        return medians(lambda: index.search(text[0], k))[0] * 1e3


def approximate(path: Path, size: int) -> dict[str, float]:
    """Recall of the exact ten best by the approximate index, over videos in clusters and texts near them."""
    rng = np.random.default_rng(0)
    topics = random_videos(SMALL, 500, 1)
    of_video, of_text = rng.integers(0, 500, size), rng.integers(0, 500, 64)

    def near(rows: np.ndarray, spread: float) -> dict[str, np.ndarray]:
        noise = {name: unit(rng, len(rows), x.shape[1]) for name, x in topics.embds.items()}
        mixed = {name: x[rows] + spread * noise[name] for name, x in topics.embds.items()}
        return {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in mixed.items()}

    available = random_videos(SMALL, size, 4).available
    video, text = (
        VideoEmbeddings(near(of_video, 1.0), available),
        TextEmbeddings(near(of_text, 0.7), random_texts(SMALL).weights),
    )
    with VideoIndex(path) as index:
        index.add(range(size), video)
        seconds = -time.perf_counter()
        index.optimise(approximate=True)
        seconds += time.perf_counter()
        exact, found = index.search(text, K), index.search(text, K, exact=False)
        recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(exact.ids, found.ids, strict=True)]))
        (taken,) = medians(lambda: index.search(text[0], K, exact=False))
    print(f"approximate, {size:,} x 1,024: made in {seconds:.0f} s, one query {taken * 1e3:.1f} ms, no codes held, "
          f"{recall:.0%} of the exact {K} best", flush=True)  # fmt: skip
    return {"made s": seconds, "ms": taken * 1e3, "recall": recall}


# --- larger than a caller wants to hold -------------------------------------------------------------------


def large(path: Path, dims: list[int], size: int, bandwidth: float) -> dict[str, float]:
    """A collection that is made and added in parts; answers are checked against the plain product, part by part."""
    text, name = random_texts(dims), f"{size:,} x {sum(dims):,}, {min(16, 2 ** len(dims) - 1)} patterns"
    best, seconds = [], 0.0

    def fill() -> None:
        nonlocal seconds
        with VideoIndex(path) as index:
            for start, video in parts(dims, size):
                best.append(-np.sort(-similarity(text, video), axis=1)[:, :K])
                seconds -= time.perf_counter()
                index.add(range(start, start + len(video)), video)
                seconds += time.perf_counter()

    _, _, peak = watched(fill)
    of_a_part = 4 * sum(dims) * PART
    result = {"add MB/s": 4 * sum(dims) * size / seconds / 1e6, "add peak MB": peak / 1e6, **opened(path, text)}
    print(f"{name}: added at {result['add MB/s']:.0f} MB/s, peak {peak / 1e6:,.0f} MB with parts of "
          f"{of_a_part / 1e6:,.0f} MB; open to the first answer {result['open s']:.2f} s", flush=True)  # fmt: skip
    truth = -np.sort(-np.concatenate(best, axis=1), axis=1)[:, :K]
    with VideoIndex(path) as index:
        found, _, peak = watched(lambda: index.search(text, K))
        assert np.abs(found.scores - truth).max() < 1e-6
        settle(index, text)
        one, many = medians(lambda: index.search(text[:1], K), lambda: index.search(text, K), repeats=5)
    limit = sum(dims) * size / bandwidth
    result |= {"1 query ms": one * 1e3, "64 queries ms": many * 1e3, "peak MB": peak / 1e6}
    print(f"{name}: 1 query {one * 1e3:.0f} ms ({limit / one:.0%} of limit), 64 queries {many * 1e3:.0f} ms; "
          f"searching holds {peak / 1e6:,.0f} MB", flush=True)  # fmt: skip
    return result


def parts(dims: list[int], size: int) -> Iterator[tuple[int, VideoEmbeddings]]:
    part = min(PART, size) if sum(dims) < 5000 else min(PART // 5, size)
    for start in range(0, size, part):
        yield start, random_videos(dims, part, 16, seed=start)


if __name__ == "__main__":
    main()
