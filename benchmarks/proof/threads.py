"""Many threads and processes with one operator, one index and one service: each answer is that of a single thread.

    python benchmarks/proof/threads.py [--threads 64] [--seconds 600] [--seed 0]

The answers to some requests are computed first, by one thread. Then the threads ask the same in random order for a
third of the seconds each: the operator (videos and texts, of several batch sizes), the index (searches of several
lengths and conditions, and reads), and the service's SearchService (searches, explanations). Last, processes made by
fork and by spawn, and workers of a DataLoader, get the operator, and open the index. Counted are

- different: answers that are not equal to the single thread's, bit for bit;
- errors: calls that raised;
- stuck: threads and processes that did not end within 60 s.

Ends with one line of JSON; the exit status is 1 if one of them is not 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parents[1] / "tests"):
    sys.path.insert(0, str(folder))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import machine  # noqa: E402

from collaborative_experts import CollaborativeExperts, TextEmbeddings, VideoIndex  # noqa: E402
from collaborative_experts.apps.server.schema import ExplainRequest, SearchRequest  # noqa: E402
from collaborative_experts.apps.server.service import SearchService  # noqa: E402
from helpers import SMALL, random_embeddings, random_inputs, untrained  # noqa: E402

LONGEST_S, VIDEOS = 60, 500
SIZES = (1, 2, 7, 32)
"""Videos of a call."""

Request = Callable[[], list[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*seeded initial parameters")
    counts = campaign(options.threads, options.seconds, options.seed)
    print(json.dumps(counts | {"seed": options.seed} | machine()))
    sys.exit(any(counts[name] for name in ("different", "errors", "stuck")))


def campaign(threads: int, seconds: float, seed: int) -> dict[str, int]:
    """The counts."""
    counts = Counter(dict.fromkeys(("different", "errors", "stuck"), 0))
    with tempfile.TemporaryDirectory() as folder:
        op, path = untrained(SMALL), Path(folder) / "videos.lance"
        op(*random_inputs(SMALL, 1))  # the warning
        text = fill(path)
        ask_in_processes(op, path, text, counts)
        with VideoIndex(path) as index:
            service = SearchService(index, Sentences())
            kinds = {"operator": of_operator(op), "index": of_index(index, text), "service": of_service(service)}
            for number, (kind, requests) in enumerate(kinds.items()):
                ask_at_once(requests, threads, seconds / len(kinds), seed + number, kind, counts)
    return dict(counts)


class Sentences:
    """Embeddings that are drawn by the sentence."""

    def encode_sentences(self, sentences: Sequence[str]) -> TextEmbeddings:
        parts = [random_embeddings(1, 1, seed=len(sentence))[0] for sentence in sentences]
        embds = {name: np.concatenate([part.embds[name] for part in parts]) for name in parts[0].experts}
        return TextEmbeddings(embds, np.concatenate([part.weights for part in parts]))


def fill(path: Path) -> TextEmbeddings:
    """Make an index, and texts to search it with."""
    text, video = random_embeddings(8, VIDEOS)
    video.available[:, 0] = True  # something to find each video by
    with VideoIndex(path) as index:
        index.add([f"video{i}" for i in range(VIDEOS)], video, metadata=[{"number": i} for i in range(VIDEOS)])
    return text


# --- requests, each with its answer as a list of arrays and texts ------------------------------------------


def of_operator(op: CollaborativeExperts) -> list[Request]:
    inputs = [random_inputs(SMALL, size, captions=1 + size % 2, seed=size) for size in SIZES]
    both = [lambda x=x: [*op(*x)[0].values(), *op(*x)[1].values()] for x in inputs]
    return [*both, *(lambda x=x: [op.encode_text(x[2]).joint(), op.encode_video(*x[:2]).joint()] for x in inputs)]


def of_index(index: VideoIndex, text: TextEmbeddings) -> list[Request]:
    settings: list[dict[str, Any]] = [
        {"k": 1}, {"k": 10}, {"k": 50}, {"k": 10, "where": "pattern = '111'"}, {"k": 5, "ids": ["video3", "video7"]},
    ]  # fmt: skip
    searches = [lambda x=x: found(index.search(text, **x)) for x in settings]
    return [*searches, lambda: found(index.search_like(["video1", "video2"], 5)), lambda: read(index, ["video9"])]


def found(result: Any) -> list[Any]:
    return [result.ids.tolist(), result.scores, result.shares]


def read(index: VideoIndex, ids: list[str]) -> list[Any]:
    stored = index.read(ids)
    return [stored.ids, stored.embeddings.joint(), str(stored.metadata)]


def of_service(service: SearchService) -> list[Request]:
    requests = [
        [SearchRequest(sentences=["a dog"], k=5)],
        [SearchRequest(sentences=["two dogs run"], k=7), SearchRequest(like=["video4"], k=3)],
        [ExplainRequest(sentence="a cat", id="video3"), SearchRequest(sentences=["no", "yes"], k=2)],
    ]
    return [lambda x=x: [json.dumps(answer) for answer in service.answer(x)] for x in requests]


def same(a: list[Any], b: list[Any]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(np.array_equal(x, y, equal_nan=True) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


# --- threads ------------------------------------------------------------------------------------------------


def ask_at_once(
    requests: Sequence[Request], threads: int, seconds: float, seed: int, kind: str, counts: Counter[str]
) -> None:
    """Ask from many threads for some seconds."""
    expected, end = [request() for request in requests], time.monotonic() + seconds
    each = [Counter[str]() for _ in range(threads)]

    def work(number: int) -> None:
        rng = np.random.default_rng([seed, number])
        while time.monotonic() < end:
            row = rng.integers(len(requests))
            try:
                each[number]["different"] += not same(requests[row](), expected[row])
            except Exception as error:
                print(f"{kind}: {type(error).__name__}: {error}", file=sys.stderr)
                each[number]["errors"] += 1
            each[number][f"{kind} calls"] += 1

    workers = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(0, end - time.monotonic()) + LONGEST_S)
    counts["stuck"] += sum(worker.is_alive() for worker in workers)
    for found_by_one in each:
        counts.update(found_by_one)


# --- processes ----------------------------------------------------------------------------------------------


class Embeddings(torch.utils.data.Dataset):
    """Embeddings of videos, by an operator that each worker of a DataLoader holds."""

    def __init__(self, op: CollaborativeExperts, experts: dict[str, np.ndarray]) -> None:
        self.op, self.experts = op, experts

    def __len__(self) -> int:
        return len(next(iter(self.experts.values())))

    def __getitem__(self, row: int) -> np.ndarray:
        return self.op.encode_video({name: x[row : row + 1] for name, x in self.experts.items()}).joint()[0]


def search_in(path: Path, text: TextEmbeddings) -> list[Any]:
    with VideoIndex(path) as index:
        return found(index.search(text, 10))


def ask_in_processes(op: CollaborativeExperts, path: Path, text: TextEmbeddings, counts: Counter[str]) -> None:
    """Ask from processes made by fork and by spawn, and from workers of a DataLoader."""
    inputs = random_inputs(SMALL, 8)
    expected, searched = [list(side.values()) for side in op(*inputs)], search_in(path, text)
    rows = [op.encode_video({k: x[i : i + 1] for k, x in inputs[0].items()}).joint()[0] for i in range(8)]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            asked = pool.apply_async(op, inputs), pool.apply_async(search_in, (path, text))
            try:
                answers = [list(side.values()) for side in asked[0].get(LONGEST_S)]
                counts["different"] += sum(not same(a, b) for a, b in zip(answers, expected, strict=True))
                counts["different"] += not same(asked[1].get(LONGEST_S), searched)
            except multiprocessing.TimeoutError:
                counts["stuck"] += 1
            except RuntimeError as error:  # Lance after a fork
                counts["errors"] += method != "fork" or "get_context('spawn')" not in str(error)
            counts["process calls"] += len(asked)
        workers = {"fork": 2, "spawn": 1}[method]  # one by spawn takes seconds to import PyTorch
        loader = torch.utils.data.DataLoader(
            Embeddings(op, inputs[0]),
            batch_size=None,
            num_workers=workers,
            timeout=LONGEST_S,
            multiprocessing_context=method,
        )
        counts["different"] += not same(list(map(np.asarray, loader)), rows)
        counts["loader rows"] += len(rows)


if __name__ == "__main__":
    main()
