"""Which calls are captured and replayed, and with what; the capture itself needs a CUDA device (test_engine.py)."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch

from collaborative_experts.model import graphs
from collaborative_experts.model.graphs import LARGEST, MOST_GRAPHS, Graphs


class OnCpu(Graphs):
    """Captures by remembering the arguments' memory, as a graph does, and replays by computing there again."""

    def __init__(self):
        super().__init__()
        self.captured, self.replayed = [], 0

    def _turn(self, device):
        return nullcontext()

    def _capture(self, function, inputs):
        self.captured.append(tuple(inputs[0].shape))
        outputs = [x.clone() for x in function(*inputs)]

        def replay():
            self.replayed += 1
            for own, x in zip(outputs, function(*inputs), strict=True):
                own.copy_(x)

        return graphs._Graph(replay, inputs, outputs)


def sums(x, y):
    return [x + y, x.sum(1, keepdim=True) * 2 + 1]


def arguments(size, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, dim, generator=generator), torch.randn(size, dim, generator=generator)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 33, LARGEST, LARGEST + 1, 200])
def test_every_call_gives_what_the_function_gives(size):
    graphed = OnCpu()
    for seed in range(4):
        inputs = arguments(size, seed=seed)
        kept = [x.clone() for x in inputs]
        outputs = graphed(sums, *inputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, sums(*inputs), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))
    assert graphed.replayed == (3 if 0 < size <= LARGEST else 0)


def test_a_shape_is_captured_when_it_comes_back_and_serves_the_sizes_below():
    graphed = OnCpu()
    graphed(sums, *arguments(5))
    assert graphed.captured == []
    for size in (8, 7, 6, 5):
        outputs = graphed(sums, *arguments(size, seed=size))
        assert all(torch.equal(a, b) for a, b in zip(outputs, sums(*arguments(size, seed=size)), strict=True))
    graphed(sums, *arguments(4))
    graphed(sums, *arguments(8, dim=2))
    assert graphed.captured == [(8, 3)]


def test_results_survive_the_next_call():
    graphed = OnCpu()
    results = [graphed(sums, *arguments(2, seed=seed)) for seed in range(5)]
    for seed, outputs in enumerate(results):
        assert all(torch.equal(a, b) for a, b in zip(outputs, sums(*arguments(2, seed=seed)), strict=True))


def test_no_more_graphs_than_that():
    graphed = OnCpu()
    for dim in range(1, MOST_GRAPHS + 4):
        for seed in range(3):
            outputs = graphed(sums, *arguments(1, dim, seed))
            assert all(torch.equal(a, b) for a, b in zip(outputs, sums(*arguments(1, dim, seed)), strict=True))
    assert graphed.captured == [(1, dim) for dim in range(1, MOST_GRAPHS + 1)]
    assert graphed.replayed == 2 * MOST_GRAPHS


def test_shapes_seen_once_are_not_remembered_for_ever(monkeypatch):
    monkeypatch.setattr(graphs, "MOST_SEEN", 5)
    graphed = OnCpu()
    for dim in range(1, 20):
        graphed(sums, *arguments(1, dim))
    assert len(graphed._seen) <= 5
    graphed(sums, *arguments(1, 19))
    assert graphed.captured == [(1, 19)]


@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_callers_in_inference_mode_and_out_of_it(modes):
    graphed = OnCpu()
    for inference in (modes[0], modes[0], *modes):
        with torch.inference_mode(inference):
            outputs = graphed(sums, *arguments(3))
            assert all(torch.equal(a, b) for a, b in zip(outputs, sums(*arguments(3)), strict=True))
    assert graphed.replayed == 3


def test_threads_do_not_mix_their_rows():
    graphed = OnCpu()

    def run(seed):
        return graphed(sums, *arguments(1 + seed % 5, seed=seed))

    with ThreadPoolExecutor(8) as pool:
        for seed, outputs in enumerate(pool.map(run, range(200))):
            expected = sums(*arguments(1 + seed % 5, seed=seed))
            assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert graphed.replayed > 150
