"""Memory over many operator calls, searches, constructions and trainings: it is flat after a warm-up.

    python benchmarks/proof/leaks.py [--calls 1000000] [--searches 100000] [--constructions 1000] [--trainings 100]

Each kind runs in a process of its own, whose resident memory is taken at twenty moments. The first quarter is the
warm-up, in which libraries and the allocator fill their caches. `growth` is the median of the last five over that of
the five after the warm-up, minus 1. Ends with one line of JSON; the exit status is 1 where a growth is above 5%.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent, HERE.parents[1] / "tests"):
    sys.path.insert(0, str(folder))


import numpy as np  # noqa: E402
from common import machine, resident  # noqa: E402

from collaborative_experts import CollaborativeExperts, VideoIndex  # noqa: E402
from helpers import QUICK, SMALL, TRAINABLE, captioned, random_embeddings, random_inputs, untrained  # noqa: E402

MOMENTS, WARM_UP, MEDIAN_OF, MOST = 20, 5, 5, 0.05
KINDS = {"calls": 1_000_000, "searches": 100_000, "constructions": 1_000, "trainings": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for kind, count in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--work", choices=KINDS, help="be the process that is measured")
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.work, getattr(options, options.work))))
        return
    results = campaign({kind: getattr(options, kind) for kind in KINDS})
    for kind, result in results.items():
        print(f"{kind:14} {result['count']:>9,}  {result['first_mb']:.1f} -> {result['last_mb']:.1f} MB, "
              f"{result['growth']:+.1%}")  # fmt: skip
    print(json.dumps(results | machine()))
    sys.exit(any(result["growth"] > MOST for result in results.values()))


def campaign(counts: dict[str, int]) -> dict[str, dict[str, float]]:
    """For each kind with a count above 0 its memory after the warm-up and at the end."""
    return {kind: _in_a_process(kind, count) for kind, count in counts.items() if count}


def _in_a_process(kind: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", __file__, "--work", kind, f"--{kind}", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return judge(count, json.loads(done.stdout.splitlines()[-1]))


def judge(count: int, memory: list[int]) -> dict[str, float]:
    first = statistics.median(memory[WARM_UP : WARM_UP + MEDIAN_OF])
    last = statistics.median(memory[-MEDIAN_OF:])
    return {"count": count, "first_mb": first / 1e6, "last_mb": last / 1e6, "growth": last / first - 1}


# --- the process that is measured ---------------------------------------------------------------------------


def work(kind: str, count: int) -> list[int]:
    """Resident memory in bytes at `MOMENTS` moments."""
    warnings.simplefilter("ignore")
    memory = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        once = {"calls": caller, "searches": searcher, "constructions": constructor, "trainings": trainer}[kind]()
        gc.freeze()  # what is there by now is no leak: else each collection goes through all that was imported
        for moment in range(MOMENTS):
            for number in range(moment * count // MOMENTS, (moment + 1) * count // MOMENTS):
                once(number)
            gc.collect()
            memory.append(resident("VmRSS"))
        os.chdir(HERE)
    return memory


def caller() -> Callable[[int], Any]:
    """Calls of several batch sizes, one in ten refused, one in 29 of an operator with pairs of experts."""
    few = untrained(replace(TRAINABLE, experts=TRAINABLE.experts[:1]))  # a call of SMALL takes three times as long
    calls = [(few, random_inputs(few.config, size, captions=1 + size % 2)) for size in (1, 2, 3, 5, 8)]
    call_of_pairs = untrained(SMALL), random_inputs(SMALL, 2)

    def call(number: int) -> None:
        op, (experts, ind, text) = calls[number % len(calls)] if number % 29 else call_of_pairs
        with suppress(ValueError):
            op(experts | ({"smell": text} if number % 10 == 0 else {}), ind, text)

    return call


def searcher() -> Callable[[int], Any]:
    """Searches of several lengths and conditions."""
    text, video = random_embeddings(8, 500)
    video.available[:, 0] = True
    index = VideoIndex("videos.lance")
    index.add([f"video{i}" for i in range(500)], video)
    settings: list[dict[str, Any]] = [{"k": 1}, {"k": 10}, {"k": 50}, {"k": 10, "where": "pattern = '111'"}]
    return lambda number: index.search(text[np.array([number % 8])], **settings[number % len(settings)])


def constructor() -> Callable[[int], Any]:
    """Operators from a file of weights, each used once."""
    path, inputs = untrained(SMALL).save("model.safetensors"), random_inputs(SMALL, 2)
    return lambda number: CollaborativeExperts(weights_path=path, device="cpu")(*inputs)


def trainer() -> Callable[[int], Any]:
    """Trainings of two epochs, each in the same folder."""
    videos = captioned()

    def train(number: int) -> None:
        untrained().train(QUICK | {"epochs": 2, "folder": f"run{number}"}, videos, captioned(8, seed=1))

    return train


if __name__ == "__main__":
    main()
