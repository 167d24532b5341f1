"""Bulk embedding by actors of Ray Data beside plain loops, what kills leave behind, and a sharded search.

    python benchmarks/bulk.py [--quick] [--folder FOLDER]

Videos have four fixed experts of 1,024 numbers each; the model is pairwise CE of 256 dimensions, on one thread a
process. "Cores by themselves" are as many plain loops as there are actors, side by side, each over its share of the
videos, writing a store of its own. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import machine, medians, resident

from collaborative_experts import CollaborativeExperts, TextEmbeddings, VideoEmbeddings, VideoIndex
from collaborative_experts.apps.bulk import bulk_embed
from collaborative_experts.apps.tasks import Pool
from collaborative_experts.base.dependencies import extra

EXPERTS = ("appearance", "audio", "motion", "scene")
DIM = 1024
CONFIG = {
    "experts": dict.fromkeys(EXPERTS, DIM),
    "text": {"dim": 64, "clusters": 1, "max_tokens": 8},
    "shared_dim": 256,
}
ACTORS = (1, 2)
SHARDS = (1, 2, 4, 8, 16)

LOOP = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from collaborative_experts.apps.bulk import bulk_embed
import time
sys.stdin.readline()
begin = time.perf_counter()
bulk_embed(sys.argv[1], sys.argv[2], sys.argv[3], device="cpu")
print(time.perf_counter() - begin)
"""

ON_RAY = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from collaborative_experts.apps.bulk import bulk_embed
from collaborative_experts.apps.tasks import Pool
bulk_embed(sys.argv[1], sys.argv[2], sys.argv[3], Pool(actors=2), device="cpu")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the size, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the stores are written; default: a temporary folder")
    options = parser.parse_args()
    share = 50 if options.quick else 1
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        weights = CollaborativeExperts(CONFIG, device="cpu").save(root / "w.safetensors")
        results = {
            "machine": machine(),
            "throughput": throughput(root, weights, 40_000 // share),
            "kills": kills(root, weights, 100_000 // share),
            "memory": memory(root, weights, 200_000 // share),
            "sharded search": sharded_search(root, 400_000 // share),
        }
    print(json.dumps(results))


def write_features(folder: Path, videos: int, first: int = 0) -> Path:
    """One `.npy` an expert; a tenth of the rows is missing."""
    folder.mkdir()
    rng = np.random.default_rng(first)
    ids = "".join(f"video{first + i:09}\n" for i in range(videos))
    for name in EXPERTS:
        rows = rng.standard_normal((videos, DIM), dtype=np.float32)
        rows[rng.random(videos) < 0.1] = np.nan
        np.save(folder / f"{name}.npy", rows)
        (folder / f"{name}.ids.txt").write_text(ids, encoding="utf-8")
    return folder


# --- throughput ---------------------------------------------------------------------------------------------


def throughput(root: Path, weights: Path, videos: int) -> dict[str, float]:
    """Videos a second of plain loops and of actors, and what passing results between processes costs."""
    results = {}
    for count in ACTORS:
        parts = [write_features(root / f"part{count}{i}", videos // count, i * videos) for i in range(count)]
        results[f"{count} cores by themselves"] = videos / side_by_side(root, weights, parts)
        whole = write_features(root / f"whole{count}", videos)
        begin, first = time.perf_counter(), []
        with noted_additions(first):
            bulk_embed(whole, weights, root / f"ray{count}.lance", Pool(actors=count), device="cpu")
        end = time.perf_counter()
        results[f"{count} actors"] = (videos - first[0][1]) / (end - first[0][0])
        results[f"{count} actors, start included"] = videos / (end - begin)
        ray = extra("ray", "ray")
        results["MB/s through Ray's object store"] = passing_rate(ray)
        ray.shutdown()
    for name, value in results.items():
        print(f"{name:40} {value:10,.0f}", flush=True)
    both = results["2 actors"] / results["2 cores by themselves"]
    print(f"2 actors reach {both:.0%} of what two cores give by themselves")
    return results


def side_by_side(root: Path, weights: Path, parts: list[Path]) -> float:
    """Seconds of the slowest of plain loops that start together."""
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, str(part), str(weights), str(root / f"{part.name}.lance")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for part in parts
    ]
    time.sleep(15)  # all have imported and wait for the line
    for loop in loops:
        loop.stdin.write("go\n")
        loop.stdin.flush()
    return max(float(loop.communicate()[0]) for loop in loops)


@contextmanager
def noted_additions(additions: list[tuple[float, int]]) -> Iterator[None]:
    """Notes when each addition to an index ended, and its videos."""
    add = VideoIndex.add

    def noted(self, ids, *args, **kwargs):
        add(self, ids, *args, **kwargs)
        additions.append((time.perf_counter(), len(ids)))

    VideoIndex.add = noted
    try:
        yield
    finally:
        VideoIndex.add = add


def passing_rate(ray) -> float:
    """MB/s of embeddings that one process hands to Ray and gets back."""
    table = extra("pyarrow", "index").table({"x": np.ones(2**23, dtype=np.float32)})
    return table.nbytes / medians(lambda: ray.get(ray.put(table)))[0] / 1e6


# --- kills --------------------------------------------------------------------------------------------------


def kills(root: Path, weights: Path, videos: int) -> dict[str, int]:
    """The driver is killed three times and an actor once in each run; the rows are those of an undisturbed run."""
    features = write_features(root / "kills", videos)
    bulk_embed(features, weights, root / "undisturbed.lance", device="cpu")
    store, killed = root / "killed.lance", {"driver": 0, "actor": 0}
    command = [sys.executable, "-c", ON_RAY, str(features), str(weights), str(store)]
    while True:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        stop = threading.Event()
        killer = threading.Thread(target=kill_an_actor, args=(stop, killed))
        killer.start()
        done = finished_shards(store)
        while process.poll() is None:
            if killed["driver"] < 3 and finished_shards(store) >= done + 2:
                os.killpg(process.pid, signal.SIGKILL)
                killed["driver"] += 1
                break
            time.sleep(0.01)
        process.wait()
        stop.set()
        killer.join()
        if process.returncode == 0:
            break
    tables = []
    for path in (root / "undisturbed.lance", store):
        with VideoIndex(path) as index:
            tables.append(index.to_arrow().sort_by("id"))
    same = tables[0].equals(tables[1])
    print(f"{videos:,} videos, {killed} killed: row for row the same: {same}", flush=True)
    return killed | {"rows": len(tables[1]), "same": same}


def finished_shards(store: Path) -> int:
    journal = store / "_embed" / "journal.jsonl"
    return len(journal.read_text().splitlines()) - 1 if journal.exists() else 0


def kill_an_actor(stop: threading.Event, killed: dict[str, int]) -> None:
    """SIGKILL for the first actor that has lived for five seconds."""
    while not stop.wait(0.5):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                is_actor = b"ray::MapWorker" in path.read_bytes()
            except OSError:
                continue
            if is_actor and not stop.wait(5):
                os.kill(int(path.parent.name), signal.SIGKILL)
                killed["actor"] += 1
                return


# --- memory -------------------------------------------------------------------------------------------------


def memory(root: Path, weights: Path, videos: int) -> list[float]:
    """MB that this process holds after each tenth of a run."""
    features, held = write_features(root / "memory", videos), []
    add, count = VideoIndex.add, [0]

    def noted(self, ids, *args, **kwargs):
        add(self, ids, *args, **kwargs)
        count[0] += len(ids)
        if count[0] >= (len(held) + 1) * videos / 10:
            held.append(resident("RssAnon") / 1e6)

    VideoIndex.add = noted
    try:
        bulk_embed(features, weights, root / "memory.lance", device="cpu")
    finally:
        VideoIndex.add = add
    print(f"{videos:,} videos, MB held after each tenth: {' '.join(f'{x:.0f}' for x in held)}", flush=True)
    return held


# --- sharded search -----------------------------------------------------------------------------------------


def sharded_search(root: Path, videos: int) -> dict[str, float]:
    """Milliseconds of one query over k shards of `videos` in all: the slowest shard, and merging the best ten."""
    rng = np.random.default_rng(0)
    names = [f"e{m}" for m in range(4)]

    def unit(rows: int) -> np.ndarray:
        x = rng.standard_normal((rows, 256), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    text = TextEmbeddings({name: unit(1) for name in names}, np.full((1, 4), 0.25, np.float32))
    results = {}
    for shards in SHARDS:
        indexes = []
        for number in range(shards):
            index = VideoIndex(root / f"shard{shards}-{number}.lance")
            rows = videos // shards
            for start in range(0, rows, 20_000):
                n = min(20_000, rows - start)
                video = VideoEmbeddings({name: unit(n) for name in names}, rng.random((n, 4)) > 0.2)
                video.available[:, 0] = True
                index.add([f"{number}-{start + i}" for i in range(n)], video)
            indexes.append(index)
        slowest = max(medians(*[lambda index=index: index.search(text, 10) for index in indexes]))
        answers = [index.search(text, 10) for index in indexes]
        merging = medians(lambda answers=answers: merge(answers, 10))[0]
        results[str(shards)] = 1000 * slowest
        results[f"merging {shards}"] = 1000 * merging
        print(f"{shards:3} shards of {videos // shards:9,}: {1000 * slowest:7.2f} ms, merging {1000 * merging:.2f} ms")
        for index in indexes:
            index.close()
    sizes = np.array([videos / k for k in SHARDS])
    slope, constant = np.polyfit(sizes, [results[str(k)] for k in SHARDS], 1)
    results |= {"ms a million videos": 1e6 * slope, "ms besides": constant}
    print(f"a shard of n videos takes {constant:.2f} ms + {1e6 * slope:.1f} ms a million", flush=True)
    return results


def merge(answers: list, k: int) -> list[tuple[float, str]]:
    """The k best of several shards' answers to one text."""
    pairs = [(-score, name) for x in answers for name, score in zip(x.ids[0], x.scores[0], strict=True)]
    return sorted(pairs)[:k]


if __name__ == "__main__":
    main()
