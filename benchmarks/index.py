"""The index on Milvus Lite: adding videos, and one exact query beside a plain Milvus search and brute force in NumPy.

    python benchmarks/index.py [--quick]

Joint vectors of 1,024 numbers (four experts of 256), four availability patterns; random, since nothing here depends
on what they mean. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from common import machine, medians, watched

from collaborative_experts import TextEmbeddings, VideoEmbeddings, VideoIndex

EXPERTS, DIM, K = 4, 256, 10
PATTERNS = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]], dtype=bool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, to see that it runs")
    quick = parser.parse_args().quick
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    results = {"machine": machine(), "add": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in (100, 1_000) if quick else (10_000, 100_000):
            text, video = random_embeddings(size, PATTERNS[np.random.default_rng(1).integers(0, 4, size)])
            path = Path(folder) / f"{size}.db"
            results["add"][size] = found = add(path, video)
            print(f"add {size:,}: {found['seconds']:.1f} s, {size / found['seconds']:,.0f} videos/s, peak "
                  f"{found['peak'] / 1e6:.0f} MB, {found['disk'] / 1e6:.0f} MB on disk "
                  f"({video.joint().nbytes / 1e6:.0f} MB of vectors)", flush=True)  # fmt: skip
        results["search"] = found = search(path, text, video)
        print(f"search 1 of {size:,}, k={K}, {len(PATTERNS)} patterns: {found['index'] * 1e3:.0f} ms, a plain Milvus "
              f"search {found['plain'] * 1e3:.0f} ms, {found['index'] / found['plain']:.1f}x; NumPy "
              f"{found['numpy'] * 1e3:.0f} ms; {found['exact']} of {found['queries']} exact", flush=True)  # fmt: skip
        results["patterns"] = by_patterns(Path(folder), 200 if quick else 20_000)
    print(json.dumps(results))


def random_embeddings(videos: int, available: np.ndarray, texts: int = 20) -> tuple[TextEmbeddings, VideoEmbeddings]:
    rng = np.random.default_rng(0)

    def unit(rows: int) -> dict[str, np.ndarray]:
        found = {}
        for m in range(available.shape[1]):
            x = rng.standard_normal((rows, EXPERTS * DIM // available.shape[1]), dtype=np.float32)
            found[f"expert {m}"] = x / np.linalg.norm(x, axis=1, keepdims=True)
        return found

    weights = rng.dirichlet(np.ones(available.shape[1]), texts).astype(np.float32)
    return TextEmbeddings(unit(texts), weights), VideoEmbeddings(unit(videos), available)


def add(path: Path, video: VideoEmbeddings) -> dict[str, float]:
    with VideoIndex(path) as index:
        _, seconds, peak = watched(lambda: index.add(range(len(video)), video))
    disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"seconds": seconds, "peak": peak, "disk": disk}


def search(path: Path, text: TextEmbeddings, video: VideoEmbeddings) -> dict[str, float]:
    joint = video.joint()

    def brute(t: int) -> tuple[np.ndarray, np.ndarray]:
        scores = joint @ text[t].joint() / (video.available @ text.weights[t])
        best = np.argpartition(-scores, K)[:K]
        best = best[np.argsort(-scores[best])]
        return best, scores[best]

    with VideoIndex(path) as index:
        index.search(text[0], K)  # Milvus Lite makes its index of what was added at the first search
        exact = 0
        for t in range(len(text)):
            found, (rows, scores) = index.search(text[t], K), brute(t)
            exact += found.ids.tolist() == rows.astype(str).tolist() and np.abs(found.scores - scores).max() < 1e-6
        query = text[0].joint()[None]
        ours, plain, numpy = medians(
            lambda: index.search(text[0], K),
            lambda: index._client.search("videos", data=query, limit=K, output_fields=["id"]),
            lambda: brute(0),
        )
    return {"index": ours, "plain": plain, "numpy": numpy, "exact": exact, "queries": len(text)}


def by_patterns(folder: Path, size: int) -> dict[int, float]:
    """How a search grows with the number of patterns that occur; eight experts have up to 255."""
    taken = {}
    rng = np.random.default_rng(2)
    for count in (1, 4, 16, 64, 255):
        codes = rng.permutation(np.arange(1, 256))[:count]
        available = (codes[rng.integers(0, count, size), None] >> np.arange(8) & 1).astype(bool)
        text, video = random_embeddings(size, available, texts=1)
        with VideoIndex(folder / f"patterns{count}.db") as index:
            index.add(range(size), video)
            (taken[count],) = medians(lambda index=index, text=text: index.search(text[0], K), repeats=3)
        print(f"search 1 of {size:,}, {count:3} patterns: {taken[count] * 1e3:.0f} ms", flush=True)
    return taken


if __name__ == "__main__":
    main()
