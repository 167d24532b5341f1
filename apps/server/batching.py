"""Requests that arrive together are worked on together.

A request waits at most some milliseconds for others. While the worker is busy, those that arrive wait, and are the next
batch. So one caller waits little, and many cost little more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ...base.dependencies import is_panic

WINDOW_S, MOST, WAITING = 0.003, 64, 256
"""Seconds that a request waits for others, the size from which a batch is full, and requests that may wait."""


class QueueFullError(RuntimeError):
    """So many requests wait that one more is turned away."""


class Batcher:
    """Hands requests to a function in batches, one batch at a time, in a thread.

    Args:
        work: gives for each of n requests its answer or an exception; n >= 1.
        window_s: seconds that a request waits for others.
        most: a batch of this size takes no more.
        waiting: requests that wait at most.
        size: what a request adds to the size of a batch.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        window_s: float = WINDOW_S,
        most: int = MOST,
        waiting: int = WAITING,
        size: Callable[[Any], int] = lambda request: 1,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._work, self._window_s, self._most = work, window_s, most
        self._size, self._observe = size, observe
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue(waiting)
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Requests that wait."""
        return self._queue.qsize()

    async def __aenter__(self) -> Batcher:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Answer what waits, then end."""
        await self._queue.join()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def submit(self, request: Any) -> Any:
        """The answer to a request.

        Raises:
            QueueFullError: too many wait.
            Exception: what `work` gave for it.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((request, future))
        except asyncio.QueueFull:
            raise QueueFullError(f"{len(self)} requests wait already") from None
        return await future

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            if self._queue.qsize() < self._most - 1:
                await asyncio.sleep(self._window_s)
            filled = self._size(batch[0][0])
            while filled < self._most and not self._queue.empty():
                batch.append(self._queue.get_nowait())
                filled += self._size(batch[-1][0])
            await self._answer([(request, future) for request, future in batch if not future.cancelled()])
            for _ in batch:
                self._queue.task_done()

    async def _answer(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        self._observe(len(batch))
        try:
            answers = await asyncio.to_thread(self._work, [request for request, _ in batch])
        except Exception as error:  # the worker goes on, whatever one batch was
            answers = [error] * len(batch)
        except BaseException as error:
            if not is_panic(error):
                raise
            answers = [RuntimeError(f"panic: {error}")] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
