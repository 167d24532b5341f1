"""An index whose process is killed at random moments: what was acknowledged is there afterwards, and nothing half.

    python benchmarks/kill_index.py [--times 100] [--seed 0]

A process adds, replaces and deletes videos, optimises and calibrates, and says after each operation that it has
returned. It is killed some milliseconds after one. Then the index must hold the state after the last operation that
was acknowledged, or after the one that was under way: the same ids, vectors and corrected scores. The next process
goes on from there.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from collaborative_experts import QueryBank, TextEmbeddings, VideoEmbeddings, VideoIndex, similarity

IDS, EXPERTS, DIM = 40, 2, 8
LONGEST_WAIT = 0.06
"""Seconds after an acknowledgement within which the process is killed."""


@dataclass(frozen=True)
class State:
    """What the index holds: for each id the operation that added it, and the operation that calibrated, if any."""

    videos: dict[int, int]
    bank: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", nargs=2, metavar=("URI", "OPERATION"), help="be the process that is killed")
    options = parser.parse_args()
    if options.work:
        work(options.work[0], int(options.work[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "videos.lance")
        print(kill(uri, options.times, np.random.default_rng(options.seed)))


def work(uri: str, operation: int) -> None:
    """Operations from a number on, without end."""
    with VideoIndex(uri) as index:
        print("open", flush=True)
        while True:
            apply(index, operation)
            print(operation, flush=True)
            operation += 1


def kill(uri: str, times: int, rng: np.random.Generator) -> str:
    """Kill such a process so many times; raises AssertionError where something was lost."""
    state, operation, under_way = State({}), 0, Counter()
    for _ in range(times):
        acknowledged = killed(uri, operation, rng)
        for done in range(operation, acknowledged + 1):
            state = after(state, done)
        operation = acknowledged + 1
        under_way[kind(operation)] += 1
        following = after(state, operation)
        if holds(uri, state):
            continue
        assert holds(uri, following), f"after operation {acknowledged}, killed in {operation}, {kind(operation)}"
        state, operation = following, operation + 1
    counts = ", ".join(f"{name} {count}" for name, count in sorted(under_way.items()))
    return f"killed {times} times in {operation} operations, before or in {counts}: nothing lost, nothing half"


def killed(uri: str, operation: int, rng: np.random.Generator) -> int:
    """Let a process work from an operation on and kill it; the last operation that it acknowledged."""
    command = [sys.executable, "-W", "ignore", __file__, "--work", uri, str(operation)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = [process.stdout.readline() for _ in range(int(rng.integers(1, 6)))]
    time.sleep(rng.uniform(0, LONGEST_WAIT))
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait()
    return max([operation - 1, *(int(line) for line in said if line.strip().isdigit())])


def holds(uri: str, state: State) -> bool:
    """True where the index holds these videos, with these vectors, and corrects scores by this bank."""
    with VideoIndex(uri) as index:
        if not state.videos:
            return len(index) == 0
        ids = np.array(sorted(state.videos))
        expected = videos(ids, np.array([state.videos[video] for video in ids]))
        table = index.to_arrow()
        stored = dict(zip(map(int, table["id"].to_pylist()), table["vector"].to_pylist(), strict=True))
        if sorted(stored) != ids.tolist() or not np.array_equal([stored[x] for x in ids], expected.joint()):
            return False
        scores = similarity(texts(-1), expected)
        if state.bank is not None:
            scores = scores - QueryBank(texts(state.bank)).biases(expected)
        found = index.search(texts(-1), IDS)
        return bool(np.abs(found.scores + np.sort(-scores, axis=1)).max() < 1e-6)


def after(state: State, operation: int) -> State:
    """The state after an operation."""
    rng, name = np.random.default_rng(operation), kind(operation)
    if name == "add":
        return replace(state, videos=state.videos | dict.fromkeys(chosen(rng).tolist(), operation))
    if name == "delete":
        gone = set(chosen(rng).tolist())
        return replace(state, videos={video: x for video, x in state.videos.items() if video not in gone})
    if name == "calibrate":
        return replace(state, bank=None if rng.random() < 0.2 else operation)
    return state


def apply(index: VideoIndex, operation: int) -> None:
    """Have the index do an operation."""
    rng, name = np.random.default_rng(operation), kind(operation)
    if name == "add":
        ids = chosen(rng)
        index.add(ids, videos(ids, np.full(len(ids), operation)))
    elif name == "delete":
        index.delete(chosen(rng))
    elif name == "calibrate":
        index.calibrate(None if rng.random() < 0.2 else texts(operation))
    else:
        index.optimise()


def kind(operation: int) -> str:
    """The first operation adds, so that there is a store to calibrate."""
    return "add" if operation == 0 else np.random.default_rng([1, operation]).choice(OPERATIONS)


OPERATIONS = ["add", "add", "delete", "optimise", "calibrate"]


def chosen(rng: np.random.Generator) -> np.ndarray:
    return rng.choice(IDS, int(rng.integers(1, 20)), replace=False)


def videos(ids: np.ndarray, operations: np.ndarray) -> VideoEmbeddings:
    """The embeddings that operations gave to ids."""
    pairs = zip(ids.tolist(), operations.tolist(), strict=True)
    rows = np.stack([np.random.default_rng([2, *pair]).standard_normal((EXPERTS, DIM)) for pair in pairs])
    rows = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    available = np.ones((len(ids), EXPERTS), dtype=bool)
    available[:, 1] = (ids + operations) % 3 > 0
    return VideoEmbeddings({f"expert {m}": rows[:, m] for m in range(EXPERTS)}, available)


def texts(operation: int) -> TextEmbeddings:
    rng = np.random.default_rng([3, operation + 1])
    rows = rng.standard_normal((EXPERTS, 12, DIM), dtype=np.float32)
    weights = rng.dirichlet(np.ones(EXPERTS), 12).astype(np.float32)
    return TextEmbeddings({f"expert {m}": rows[m] for m in range(EXPERTS)}, weights)


if __name__ == "__main__":
    main()
