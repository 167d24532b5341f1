"""CUDA graphs for small batches, whose arithmetic takes a GPU less time than the launching of its kernels does.

A graph is captured once for a batch size and the shapes of the inputs, and then launched as a whole. The sizes are
powers of two, so that a few graphs serve all small batches; a smaller batch leaves the last rows as they were, and
what comes of them is dropped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

LARGEST = 64
"""Larger batches keep a GPU busy by themselves."""

MOST_GRAPHS = 32
"""Of so many shapes graphs are kept; the one not used for longest makes room."""

Function = Callable[..., Sequence[Tensor]]


class Graphed:
    """`function` of CUDA tensors with a common first axis, replayed from a graph for up to `LARGEST` rows.

    Args:
        function: gives tensors with the same first axis, each row from the same row of the arguments; takes no
            decision by what these hold.

    A shape is captured when it comes for the second time: the first call lets the libraries set up what must not be
    in a graph, and a shape that never comes again costs nothing. Several threads and streams may call; they take turns.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._graphs: OrderedDict[tuple, _Graph | None] = OrderedDict()  # the last used last; None: seen once
        self._lock = threading.Lock()
        self._pool: tuple | None = None
        self._replayed: torch.cuda.Event | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        size = len(inputs[0])
        if not 0 < size <= LARGEST:
            return self._function(*inputs)
        bucket = 1 << (size - 1).bit_length()
        key = (bucket, *(x.shape[1:] for x in inputs))
        with self._lock, self._turn(inputs[0].device):
            is_new, graph = key not in self._graphs, self._graphs.pop(key, None)
            if graph is None and not is_new:
                graph = self._capture([x.new_zeros(bucket, *x.shape[1:]) for x in inputs])
            self._graphs[key] = graph
            if len(self._graphs) > MOST_GRAPHS:
                self._graphs.popitem(last=False)
            return self._function(*inputs) if graph is None else graph.run(inputs)

    @contextmanager
    def _turn(self, device: torch.device) -> Iterator[None]:
        """The graphs share memory: what this caller's stream does waits for what the last one's has yet to do."""
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._replayed is not None:
                stream.wait_event(self._replayed)
            yield
            self._replayed = stream.record_event()

    def _capture(self, inputs: list[Tensor]) -> _Graph:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating: only what this one does is checked.
        with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
            outputs = self._function(*inputs)
        return _Graph(graph.replay, inputs, outputs)


class _Graph:
    """One captured call; a replay reads and writes the very tensors that it was captured with."""

    def __init__(self, replay: Callable[[], None], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._replay, self._inputs, self._outputs = replay, inputs, outputs

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        size = len(inputs[0])
        for own, x in zip(self._inputs, inputs, strict=True):
            own[:size] = x
        self._replay()
        return [x[:size].clone() for x in self._outputs]
