"""Processes made by fork: the operator answers, and Lance says what to do, instead of both waiting for ever."""

import multiprocessing
import os

import numpy as np
import pytest
import torch

from collaborative_experts import VideoIndex
from helpers import SMALL, largest_difference, random_embeddings, random_inputs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
LONGEST_S = 60


def in_child(function, *arguments):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(function, arguments).get(LONGEST_S)


@pytest.mark.filterwarnings("ignore:.*fork", "ignore:CollaborativeExperts runs on seeded")
class TestFork:
    def test_the_operator(self, small_op):
        inputs = random_inputs(SMALL, 64)
        expected = small_op(*inputs)  # on as many threads as there are
        found = in_child(small_op, *inputs)
        assert largest_difference(found[1], expected[1]) < 1e-6
        assert in_child(torch.get_num_threads) == 1

    def test_lance(self, tmp_path):
        pytest.importorskip("lance")
        text, video = random_embeddings(1, 20, missing=0)
        with VideoIndex(tmp_path / "videos.lance") as index:
            index.add([str(i) for i in range(20)], video)
            expected = index.search(text).ids
            for search in (index.search, lambda text: VideoIndex(tmp_path / "videos.lance").search(text)):
                with pytest.raises(RuntimeError, match=r"get_context\('spawn'\)"):
                    in_child(Call(search), text)
            assert np.array_equal(index.search(text).ids, expected)


FUNCTIONS = []


class Call:
    """A function that is handed to a forked process without being pickled: the child has it already."""

    def __init__(self, function):
        self.place = len(FUNCTIONS)
        FUNCTIONS.append(function)

    def __call__(self, *arguments):
        return FUNCTIONS[self.place](*arguments)
