"""Work shared among as many threads as PyTorch uses, for functions that spend their time outside Python."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map`, computed some items ahead. Within the function PyTorch has one thread: the cores are all in use."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(_pool(threads).submit(function, item))
        if len(waiting) > 2 * threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that asks for the first time takes the number of all others
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="collaborative_experts", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # a thread that sets its own number sets that of later threads, too
    return pool
