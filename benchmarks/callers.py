"""Whether concurrent calls scale: calls a second of one operator by 1, 2, ... Python threads, one core each.

    python benchmarks/callers.py [--quick]

A Towhee pipeline calls its operators from several threads. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before torch is imported: a core a caller

import threading
import time
from collections.abc import Callable

from common import MSRVTT, machine, random_batch

from collaborative_experts import CollaborativeExperts

SECONDS, ROUNDS = 3.0, 3
QUICK_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter rounds, to see that it runs")
    seconds = QUICK_SECONDS if parser.parse_args().quick else SECONDS
    op = CollaborativeExperts(device="cpu")
    results = {}
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    for size in (1, 64):
        experts, ind, text = random_batch(MSRVTT, size)
        for work, call in (
            ("video side", lambda e=experts, i=ind: op.encode_video(e, i)),
            ("text side", lambda t=text: op.encode_text(t)),
        ):
            rates = {callers: best_rate(call, callers, seconds) for callers in range(1, (os.cpu_count() or 1) + 1)}
            results[f"{work}, B={size}"] = rates
            scaled = "  ".join(f"{n} {rate:.1f} ({rate / rates[1]:.2f}x)" for n, rate in rates.items())
            print(f"{work}, B={size:<3} calls/s by callers: {scaled}", flush=True)
    print(json.dumps({"machine": machine(), "calls_per_second": results}))


def best_rate(call: Callable[[], object], callers: int, seconds: float) -> float:
    """Calls a second of all callers together, the best of some rounds."""
    call()
    return max(rate(call, callers, seconds) for _ in range(ROUNDS))


def rate(call: Callable[[], object], callers: int, seconds: float) -> float:
    counts, end = [0] * callers, time.perf_counter() + seconds

    def work(caller: int) -> None:
        while time.perf_counter() < end:
            call()
            counts[caller] += 1

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
