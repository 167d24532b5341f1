"""CUDA graphs for small batches, whose arithmetic takes a GPU less time than the launching of its kernels does.

A graph is captured once for a batch size and the shapes of the inputs, and then launched as a whole. The sizes are
powers of two, so that a few graphs serve all small batches. A batch that is smaller than its graph leaves the graph's
last rows as they were, and their results are dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

LARGEST = 64
"""Larger batches keep a GPU busy by themselves."""

MOST_GRAPHS = 32
"""The most shapes that are captured. No graph is deleted for another: PyTorch (pytorch#193402) would free memory that
those captured on the same stream still use."""

MOST_SEEN = 1024
"""Shapes that are remembered as seen once."""

_CAPTURING = threading.Lock()
"""One capture at a time in the process: each begins by waiting for the whole GPU, which another one does not allow."""

Function = Callable[..., Sequence[Tensor]]


class Graphs:
    """Graphs of one function of CUDA tensors with a common first axis, replayed for up to `LARGEST` rows.

    The function gives tensors with the same first axis, each row from the same row of the arguments, and takes no
    decision by what these hold. It comes with each call, so that its owner can hold the graphs and not itself.

    A shape is captured when it comes for the second time, so that one which never comes again costs nothing. Several
    threads and streams may call. They take turns.
    """

    def __init__(self) -> None:
        self._graphs: dict[tuple, _Graph] = {}
        self._seen: set[tuple] = set()
        self._lock = threading.Lock()
        self._where: tuple[torch.cuda.Stream, tuple] | None = None  # stream and pool of memory for all captures
        self._replayed: torch.cuda.Event | None = None

    def __call__(self, function: Function, *inputs: Tensor) -> Sequence[Tensor]:
        size = len(inputs[0])
        if not 0 < size <= LARGEST:
            return function(*inputs)
        bucket = 1 << (size - 1).bit_length()
        key = (bucket, *(x.shape[1:] for x in inputs))
        with self._lock, self._turn(inputs[0].device):
            if key not in self._graphs and key in self._seen and len(self._graphs) < MOST_GRAPHS:
                # Its tensors serve callers in inference mode and others, so they are ordinary ones.
                with torch.inference_mode(False), torch.no_grad():
                    self._graphs[key] = self._capture(function, [x.new_zeros(bucket, *x.shape[1:]) for x in inputs])
            if key in self._graphs:
                return self._graphs[key].run(inputs)
            if len(self._seen) == MOST_SEEN:
                self._seen.clear()
            self._seen.add(key)
        return function(*inputs)

    @contextmanager
    def _turn(self, device: torch.device) -> Iterator[None]:
        """The graphs share memory: what this caller's stream does waits for what the last one's has yet to do."""
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream()
            if self._replayed is not None:
                stream.wait_event(self._replayed)
            try:
                yield
            finally:
                self._replayed = stream.record_event()

    def _capture(self, function: Function, inputs: list[Tensor]) -> _Graph:
        with _CAPTURING:
            self._where = self._where or (torch.cuda.Stream(), torch.cuda.graph_pool_handle())
            caller, (stream, pool) = torch.cuda.current_stream(), self._where
            stream.wait_stream(caller)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(stream):  # also brings the caller's stream back where a capture fails
                function(*inputs)  # lets cuBLAS set up, for this thread and stream, what must not be in a graph
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = function(*inputs)
            caller.wait_stream(stream)
        return _Graph(graph.replay, inputs, outputs)


class _Graph:
    """One captured call. A replay reads and writes the very tensors that it was captured with."""

    def __init__(self, replay: Callable[[], None], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self._replay, self._inputs, self._outputs = replay, inputs, outputs

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        size = len(inputs[0])
        for captured, x in zip(self._inputs, inputs, strict=True):
            captured[:size] = x
        self._replay()
        return [x[:size].clone() for x in self._outputs]
