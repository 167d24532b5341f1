"""Work shared among as many threads as PyTorch uses, for functions that spend their time outside Python."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_background: deque[Callable[[], object]] = deque()
_guard = threading.Lock()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], ahead: int | None = None) -> Iterator[Result]:
    """`map`, computed some items ahead. Within the function PyTorch has one thread: the cores are all in use.

    Args:
        ahead: results that wait at most, beside the one that is asked for; None for two a thread.
    """
    threads = torch.get_num_threads()
    most = 2 * threads if ahead is None else ahead
    if threads == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(_pool(threads, 1).submit(function, item))
        if len(waiting) > most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
    """`map`, with all items at once, each with its share of PyTorch's threads, at least one."""
    threads = torch.get_num_threads()
    if threads == 1 or len(items) == 1:
        return map(function, items)
    return _pool(len(items), max(1, threads // len(items))).map(function, items)


def in_background(function: Callable[[], object]) -> None:
    """Call functions one after the other on a thread of their own. A program that ends waits for the one that runs, and
    drops the others. What they raise is not seen."""
    with _guard:
        _background.append(function)
        if len(_background) == 1:
            _go_on()


def _run_first() -> None:
    try:
        _background[0]()
    finally:
        with _guard:
            _background.popleft()
            if _background:
                _go_on()


def _go_on() -> None:
    try:
        _background_thread().submit(_run_first)
    except RuntimeError:  # the program ends
        _background.clear()


@cache
def _background_thread() -> ThreadPoolExecutor:
    """Without a number of PyTorch's threads of its own, which would be that of all later threads, too."""
    return ThreadPoolExecutor(1, thread_name_prefix="collaborative_experts_background")


@cache
def _pool(workers: int, threads_each: int) -> ThreadPoolExecutor:
    threads, ready = torch.get_num_threads(), threading.Barrier(workers + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread that asks for the first time takes the number of all others
        torch.set_num_threads(threads_each)
        ready.wait()

    pool = ThreadPoolExecutor(workers, thread_name_prefix="collaborative_experts", initializer=begin)
    for _ in range(workers):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)  # a thread that sets its own number sets that of later threads, too
    return pool
