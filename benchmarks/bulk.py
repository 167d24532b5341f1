"""Bulk embedding by actors of Ray Data beside plain loops, what kills leave behind, and a sharded search.

    python benchmarks/bulk.py [--quick] [--folder FOLDER]

Videos have four fixed experts of 1,024 numbers each; the model is pairwise CE of 256 dimensions, on one thread a
process. "Cores by themselves" are as many plain loops as there are actors, side by side, each over its share of the
videos, writing a store of its own. Rates are those between the first shard of each actor or loop and the last one;
"start included" is from the call to its end. Ends with one line of JSON, and with status 1 where rows or answers are
not what they are to be. Laid out for some ten minutes on two cores, 25 GB of disk and 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from os import getpid, kill
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, medians, resident

from collaborative_experts import CollaborativeExperts, TextEmbeddings, VideoEmbeddings, VideoIndex
from collaborative_experts.apps import bulk
from collaborative_experts.apps.bulk import bulk_embed
from collaborative_experts.apps.tasks import Pool, run_tasks
from collaborative_experts.base.dependencies import extra

EXPERTS = ("appearance", "audio", "motion", "scene")
DIM = 1024
CONFIG = {
    "experts": dict.fromkeys(EXPERTS, DIM),
    "text": {"dim": 64, "clusters": 1, "max_tokens": 8},
    "shared_dim": 256,
}
PARTS = 2
SHARDS = (1, 2, 4, 8, 16)
GOAL = 0.85
"""Of what two cores give by themselves, for two actors."""

DRIVER_KILLS = 3

RUN = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from collaborative_experts import VideoIndex
from collaborative_experts.apps import bulk
from collaborative_experts.apps.tasks import Pool
features, weights, to, shard_bytes, address = sys.argv[1:]
bulk.SHARD_BYTES = int(shard_bytes)
additions, add = [], VideoIndex.add
def noted(self, ids, *args, **kwargs):
    add(self, ids, *args, **kwargs)
    additions.append((time.perf_counter(), len(ids)))
VideoIndex.add = noted
print("ready", flush=True)
sys.stdin.readline()
begin = time.perf_counter()
bulk.bulk_embed(features, weights, to, Pool(address, actors=2) if address else None, device="cpu")
print(json.dumps([begin, time.perf_counter(), additions]))
"""
"""A process that waits for a line, embeds, and prints when its call began and ended, and its additions."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the size, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the stores are written; default: a temporary folder")
    options = parser.parse_args()
    share = 50 if options.quick else 1
    bulk.SHARD_BYTES //= share
    print(" ".join(f"{key}={value}" for key, value in machine().items()), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        weights = CollaborativeExperts(CONFIG, device="cpu").save(root / "w.safetensors")
        write_features(root, 200_000 // share)
        results = {"machine": machine(), "sharded search": sharded_search(root, 400_000 // share)}
        torch.set_num_threads(1)
        results["throughput"] = throughput(root, weights)
        results["memory of a loop"] = memory_of_a_loop(root, weights)
        results["kills"] = kills(root, weights)
    print(json.dumps(results))
    if not (results["kills"]["same"] and results["sharded search"]["same"]):
        raise SystemExit(1)


def write_features(root: Path, videos: int) -> None:
    """`whole`, and its halves `part0` and `part1`: one `.npy` an expert, of which a tenth of the rows is missing."""
    rng = np.random.default_rng(0)
    ids = np.array([f"video{i:09}" for i in range(videos)])
    halves = np.array_split(np.arange(videos), PARTS)
    folders = [root / "whole", *(root / f"part{i}" for i in range(PARTS))]
    for folder in folders:
        folder.mkdir()
    for name in EXPERTS:
        rows = rng.standard_normal((videos, DIM), dtype=np.float32)
        rows[rng.random(videos) < 0.1] = np.nan
        for folder, taken in zip(folders, [slice(None), *(slice(x[0], x[-1] + 1) for x in halves)], strict=True):
            np.save(folder / f"{name}.npy", rows[taken])
            (folder / f"{name}.ids.txt").write_text("\n".join(ids[taken]) + "\n", encoding="utf-8")


@dataclass
class Run:
    """When a call began and ended, and when each addition to its index ended, with its number of videos."""

    begin: float
    end: float = 0.0
    additions: list[tuple[float, int]] = field(default_factory=list)

    def rate(self, workers: int = 1) -> float:
        """Videos a second after the first shard of each worker, when all of them are at work."""
        first, last = self.additions[workers - 1][0], self.additions[-1][0]
        return sum(videos for _, videos in self.additions[workers:]) / (last - first)

    def whole_rate(self) -> float:
        """Videos a second of the call, its start included."""
        return sum(videos for _, videos in self.additions) / (self.end - self.begin)


@contextmanager
def noted(each: Callable[[], object] = lambda: None) -> Iterator[Run]:
    """A run of this process: notes its additions, and calls `each` after them."""
    add, run = VideoIndex.add, Run(time.perf_counter())

    def add_and_note(self: VideoIndex, ids: list[str], *args: Any, **kwargs: Any) -> None:
        add(self, ids, *args, **kwargs)
        run.additions.append((time.perf_counter(), len(ids)))
        each()

    VideoIndex.add = add_and_note
    try:
        yield run
    finally:
        VideoIndex.add = add
        run.end = time.perf_counter()


# --- throughput ---------------------------------------------------------------------------------------------


def throughput(root: Path, weights: Path) -> dict[str, Any]:
    """Videos a second of plain loops and of actors, what passing shards between processes costs, and memory."""
    results: dict[str, Any] = {}
    for count, features in ((1, root / "part0"), (2, root / "whole")):
        loops = side_by_side(root, weights, count)
        results[f"{count} cores by themselves"] = sum(loop.rate() for loop in loops)
        results[f"{count} cores by themselves, start included"] = sum(loop.whole_rate() for loop in loops)
        held: list[dict[str, float]] = []
        with noted(lambda held=held: held.append(memory_of_processes())) as run:
            bulk_embed(features, weights, root / f"ray{count}.lance", Pool(actors=count), device="cpu")
        results[f"{count} actors"] = run.rate(count)
        results[f"{count} actors, start included"] = run.whole_rate()
    results |= passing(root, weights)
    extra("ray", "ray").shutdown()
    for name, value in results.items():
        print(f"{name:45} {value:10,.1f}", flush=True)
    reached = results["2 actors"] / results["2 cores by themselves"]
    shard = bulk.SHARD_BYTES // (4 * 4 * 256) / (results["2 actors"] / 2) * 1000
    share = results["ms to pass a shard through Ray Data"] / shard
    print(f"2 actors reach {reached:.0%} of what two cores give by themselves (goal {GOAL:.0%})")
    print(f"an actor takes {shard:.0f} ms for a shard; passing it is {share:.1%} of that")
    results |= {"reached": reached, "ms of an actor for a shard": shard, "share of passing": share}
    results["memory of actors"] = tenths(held)
    print_memory("2 actors", results["memory of actors"])
    return results


def side_by_side(root: Path, weights: Path, count: int) -> list[Run]:
    """Plain loops over the first parts, which start together."""
    loops = [start(root / f"part{i}", weights, root / f"loops{count}-{i}.lance") for i in range(count)]
    for loop in loops:
        loop.stdin.write("go\n")
        loop.stdin.flush()
    return [Run(*json.loads(loop.communicate()[0])) for loop in loops]


def start(features: Path, weights: Path, to: Path, address: str = "") -> subprocess.Popen[str]:
    """A process of `RUN` that has imported everything and waits for a line."""
    arguments = map(str, (features, weights, to, bulk.SHARD_BYTES, address))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    )
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"a process that was to embed {features} ended with status {process.wait()}")
    return process


class Repeater:
    """A worker that gives the table of the first shard for every task: all that is left is the passing."""

    def __init__(self, features: Path, weights: Path) -> None:
        self._table = shard_table(features, weights)

    def __call__(self, task: object) -> Iterator[Any]:
        yield self._table


def shard_table(features: Path, weights: Path) -> Any:
    worker = bulk.EmbeddingWorker(features, weights, "cpu", "float32")
    (table,) = worker(bulk._shards(len(worker.ids), worker.dim)[0])
    worker.close()
    return table


def passing(root: Path, weights: Path, shards: int = 20) -> dict[str, float]:
    """Milliseconds of a shard between an actor's Arrow table and the writer's arrays."""
    ray, features = extra("ray", "ray"), root / "part0"
    times = [
        time.perf_counter()
        for _ in run_tasks(partial(Repeater, features, weights), [{"task": i} for i in range(shards)], Pool(actors=1))
    ]
    table = shard_table(features, weights)
    reference = ray.put(table)
    put, get = medians(lambda: ray.put(table), lambda: ray.get(reference))
    with VideoIndex(root / "none.lance") as index, noted():
        VideoIndex.add = lambda *_, **__: None  # `noted` puts it back
        identity = CollaborativeExperts(weights_path=weights, device="cpu").identity
        unpack = medians(lambda: bulk._store(index, table, identity))[0]
    return {
        "MB of a shard": table.nbytes / 1e6,
        "ms to pass a shard through Ray Data": 1000 * (times[-1] - times[0]) / (shards - 1),
        "ms of it to put it into the object store": 1000 * put,
        "ms of it to get it from there": 1000 * get,
        "ms from Arrow to the arrays that are added": 1000 * unpack,
    }


# --- memory -------------------------------------------------------------------------------------------------


def memory_of_a_loop(root: Path, weights: Path) -> dict[str, list[float]]:
    """MB that a process without Ray holds after each tenth of a run over all videos."""
    held: list[dict[str, float]] = []
    with noted(lambda: held.append({"process": resident("RssAnon") / 1e6})):
        bulk_embed(root / "whole", weights, root / "memory.lance", device="cpu")
    found = tenths(held)
    print_memory("plain loop", found)
    return found


def memory_of_processes() -> dict[str, float]:
    """MB of this process and of its largest actor; of the actor without the object store, which is shared."""
    return {
        "driver": resident("RssAnon") / 1e6,
        "largest actor": max((resident("RssAnon", pid) / 1e6 for pid in actors()), default=0.0),
    }


def tenths(held: list[dict[str, float]]) -> dict[str, list[float]]:
    """What was held after each tenth of the additions."""
    at = [max(0, (i + 1) * len(held) // 10 - 1) for i in range(10)]
    return {name: [held[i][name] for i in at] for name in held[0]}


def print_memory(what: str, held: dict[str, list[float]]) -> None:
    for name, values in held.items():
        print(f"{what}, MB held by {name} after each tenth: {' '.join(f'{x:.0f}' for x in values)}", flush=True)


def actors() -> list[int]:
    """Process ids of the actors of Ray Data below this process."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if b"ray::MapWorker" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:  # it has just ended
            continue
    return [pid for pid in found if is_below(pid, parents)]


def is_below(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != getpid():
        pid = parents[pid]
    return pid == getpid()


# --- kills --------------------------------------------------------------------------------------------------


def kills(root: Path, weights: Path) -> dict[str, Any]:
    """Drivers, actors and machines are killed; the rows are those of a plain loop that nobody disturbed.

    The cluster has two machines of one core. Every run loses an actor or a machine after a shard, in turns, and the
    first ones then their driver.
    """
    from ray.cluster_utils import Cluster

    store, killed = root / "killed.lance", {"driver": 0, "actor": 0, "machine": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    begin = time.perf_counter()
    try:
        while not disturbed_run(root / "part0", weights, store, cluster, killed):
            pass
    finally:
        cluster.shutdown()
    seconds = time.perf_counter() - begin
    tables = []
    for path in (root / "loops1-0.lance", store):
        with VideoIndex(path) as index:
            tables.append(index.to_arrow().sort_by("id"))
    same = tables[0].equals(tables[1])
    print(f"{len(tables[0]):,} videos, killed: {killed}, in {seconds:.0f} s: row for row the same: {same}", flush=True)
    return killed | {"rows": len(tables[1]), "seconds": seconds, "same": same}


def disturbed_run(features: Path, weights: Path, store: Path, cluster: Any, killed: dict[str, int]) -> bool:
    """Start the command, and kill what is to be killed. True where it comes to its end."""
    process, done = start(features, weights, store, cluster.address), finished_shards(store)
    process.stdin.write("go\n")
    process.stdin.flush()
    is_hurt = False
    while process.poll() is None:
        finished = finished_shards(store)
        if not is_hurt and finished > done:
            what = "actor" if killed["actor"] <= killed["machine"] else "machine"
            is_hurt = kill_an_actor() if what == "actor" else replace_a_machine(cluster)
            killed[what] += is_hurt
        if is_hurt and killed["driver"] < DRIVER_KILLS and finished >= done + 3:
            process.kill()
            killed["driver"] += 1
            break
        time.sleep(0.01)
    status = process.wait()
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the command ended with status {status}")
    return status == 0


def finished_shards(store: Path) -> int:
    journal = store / "_embed" / "journal.jsonl"
    return len(journal.read_text().splitlines()) - 1 if journal.exists() else 0


def kill_an_actor() -> bool:
    for pid in actors()[:1]:
        kill(pid, signal.SIGKILL)
        return True
    return False


def replace_a_machine(cluster: Any) -> bool:
    """Take the machine without the driver away, and give another one."""
    cluster.remove_node(next(node for node in cluster.list_all_nodes() if not node.is_head()), allow_graceful=False)
    cluster.add_node(num_cpus=1)
    return True


# --- sharded search -----------------------------------------------------------------------------------------


def sharded_search(root: Path, videos: int) -> dict[str, Any]:
    """Milliseconds of one query over k shards of the same videos: the slowest shard, and merging the best ten."""
    rng = np.random.default_rng(0)
    names = [f"e{m}" for m in range(4)]

    def unit(rows: int) -> np.ndarray:
        x = rng.standard_normal((rows, 256), dtype=np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    text = TextEmbeddings({name: unit(1) for name in names}, np.full((1, 4), 0.25, np.float32))
    whole = {name: unit(videos) for name in names}
    available = rng.random((videos, 4)) > 0.2
    available[:, 0] = True
    results: dict[str, Any] = {"same": True}
    begin, merged = time.perf_counter(), []
    for shards in SHARDS:
        spans = np.linspace(0, videos, shards + 1).astype(int)
        indexes = [
            write_shard(root / f"shard{shards}-{i}.lance", whole, available, spans[i], spans[i + 1])
            for i in range(shards)
        ]
        if shards == 1:
            results["videos added a second"] = videos / (time.perf_counter() - begin)
        slowest = max(medians(*[partial(index.search, text, 10) for index in indexes]))
        answers = [index.search(text, 10) for index in indexes]
        merged.append(merge(answers, 10))
        results["same"] &= [name for _, name in merged[-1]] == [name for _, name in merged[0]]
        merging = medians(partial(merge, answers, 10))[0]
        results[str(shards)] = 1000 * slowest
        results[f"merging {shards}"] = 1000 * merging
        print(
            f"{shards:3} shards of {videos // shards:9,}: {1000 * slowest:7.2f} ms, merging {1000 * merging:.3f} ms",
            flush=True,
        )
        for index in indexes:
            index.close()
    sizes = np.array([videos / k for k in SHARDS])
    slope, constant = np.polyfit(sizes, [results[str(k)] for k in SHARDS], 1)
    results |= {"ms a million videos": 1e6 * slope, "ms besides": constant}
    print(
        f"a shard of n videos takes {constant:.2f} ms + {1e6 * slope:.1f} ms a million; the same ten: {results['same']}"
    )
    print(f"one writer adds {results['videos added a second']:,.0f} videos of 1,024 numbers a second", flush=True)
    return results


def write_shard(path: Path, whole: dict[str, np.ndarray], available: np.ndarray, start: int, stop: int) -> VideoIndex:
    """An index of some of the videos."""
    index = VideoIndex(path)
    for first in range(start, stop, 20_000):
        rows = slice(first, min(first + 20_000, stop))
        video = VideoEmbeddings({name: x[rows] for name, x in whole.items()}, available[rows])
        index.add([f"{i:09}" for i in range(rows.start, rows.stop)], video)
    return index


def merge(answers: list, k: int) -> list[tuple[float, str]]:
    """The k best of several shards' answers to one text."""
    pairs = [(-score, name) for x in answers for name, score in zip(x.ids[0], x.scores[0], strict=True)]
    return sorted(pairs)[:k]


if __name__ == "__main__":
    main()
