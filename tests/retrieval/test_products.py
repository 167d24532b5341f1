"""The products of texts and codes: whole numbers, whatever the processor adds them up in."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from collaborative_experts.base import threads
from collaborative_experts.retrieval import products
from collaborative_experts.retrieval.products import (
    fbgemm_product,
    float_product,
    is_exact,
    numkong_product,
    onednn_product,
)
from helpers import has_more_than_avx2
from warm_process import Process

WAYS = [numkong_product, onednn_product, fbgemm_product, float_product]

ENGINE = torch.backends.quantized.engine

needs_fbgemm = pytest.mark.skipif(ENGINE not in ("x86", "fbgemm"), reason="PyTorch has no FBGEMM here")


def numbers(rows, videos, dim, largest):
    """Rows of texts and codes, at random or all as large as they get."""
    values, codes = torch.full((rows, dim), 63), torch.full((videos, dim), -127)
    if not largest:
        generator = torch.Generator().manual_seed(dim)
        values = torch.randint(-63, 64, (rows, dim), generator=generator)
        codes = torch.randint(-127, 128, (videos, dim), generator=generator)
    return values.to(torch.int8), codes.to(torch.int8)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 33, 256, 512, 768])
@pytest.mark.parametrize("way", [None, *WAYS], ids=lambda way: way.__name__ if way else "the one that is taken")
def test_whole_numbers(way, dim, largest):
    if way and not is_exact(way):
        pytest.skip("not exact on this processor, so it is not taken")
    for rows in (1, 2, 4, 18, 128):
        for videos in (1, 7, 300):
            values, codes = numbers(rows, videos, dim, largest)
            found = (way or products._way(fbgemm=False))(codes)(values)
            assert torch.equal(found.long(), values.long() @ codes.long().T)


@pytest.fixture
def settled():
    """Waits until all that was handed over is settled."""

    def wait():
        deadline = time.monotonic() + 60
        while threads._background:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


@pytest.fixture
def fbgemm_is_fastest(monkeypatch):
    monkeypatch.setattr(products, "_fastest", lambda engine, fbgemm: fbgemm_product if fbgemm else float_product)


def by_expert(matrices, values, videos):
    """The products of each expert, {m: (R, n)}, from those of the matrices' parts."""
    total = {m: torch.zeros(len(values[m]), len(rows), dtype=torch.int64) for m, rows in videos.items()}
    for matrix in matrices:
        found = matrix([values[part.expert][:, part.columns].contiguous() for part in matrix.parts])
        for part, product in zip(matrix.parts, found, strict=True):
            total[part.expert] += product.long()
    return total


def blocks(codes, dims):
    """The columns of each expert."""
    return [x.numpy() for x in codes.split(dims, dim=1)]


def everywhere(experts, videos):
    """All videos have each of these experts."""
    return {m: np.arange(videos) for m in experts}


@needs_fbgemm
@pytest.mark.parametrize("dims", [[512], [768] * 2, [768] * 5, [1024, 500, 700, 800], [33, 5]], ids=str)
@pytest.mark.parametrize("kept", [True, False])
def test_matrices_give_the_products_of_each_expert_whatever_holds_them(dims, kept, fbgemm_is_fastest, settled):
    rows, videos = 4, products.UNSETTLED_ROWS + 99
    values, codes = numbers(rows, videos, sum(dims), largest=False)
    values = values.split(dims, dim=1)
    having = {m: np.arange(m, videos, m + 1) for m in range(len(dims))}  # expert 0: everywhere
    truth = {
        m: values[m].long() @ block[having[m]].long().T for m, block in enumerate(codes.clone().split(dims, dim=1))
    }
    matrices = products.hold(blocks(codes, dims), having, kept)
    codes.zero_()  # what is held does not depend on the array
    for _ in range(2):
        found = by_expert(matrices, values, having)
        assert all(torch.equal(found[m], truth[m]) for m in having)
        for matrix in matrices:
            matrix.settle()
        settled()
    settling = [matrix for matrix in matrices if isinstance(matrix, products.Settling)]
    assert bool(settling) == (kept and min(dims) > 400)
    assert all(matrix._multiply and not matrix._codes for matrix in settling)


def test_experts_that_are_not_multiplied_are_passed_over():
    values, codes = numbers(2, 30, 12, largest=False)
    having = everywhere([0, 2], 30)
    matrices = products.hold(blocks(codes, [4, 4, 4]), having, kept=True)
    assert [part.expert for matrix in matrices for part in matrix.parts] == [0, 2]
    found = by_expert(matrices, values.split(4, dim=1), having)
    assert torch.equal(found[2], values[:, 8:].long() @ codes[:, 8:].long().T)


@needs_fbgemm
def test_nothing_settles_where_a_program_took_another_engine(fbgemm_is_fastest, settled, monkeypatch):
    _, codes = numbers(2, 30, 512, largest=False)
    matrices = products.hold([codes.numpy()], everywhere([0], 30), kept=True)
    monkeypatch.setattr(products, "_fastest", lambda engine, fbgemm: float_product)
    matrices[0].settle()
    settled()
    assert matrices[0]._multiply is None


@needs_fbgemm
def test_what_was_given_up_is_not_settled(fbgemm_is_fastest, settled, monkeypatch):
    _, codes = numbers(2, 30, 512, largest=False)
    matrices = products.hold([codes.numpy()], everywhere([0], 30), kept=True)
    held = []
    monkeypatch.setattr(products.Settling, "_hold", lambda _: held.append(True))
    begin = threading.Event()
    threads.in_background(lambda: begin.wait(10))
    matrices[0].settle()
    del matrices
    begin.set()
    settled()
    assert held == []


@pytest.fixture
def anew():
    """The ways are tried again, now and after the test."""
    products._fastest.cache_clear()
    yield
    products._fastest.cache_clear()


def test_a_product_that_overflows_is_not_taken(anew, monkeypatch):
    def overflowing(codes):
        multiply = numkong_product(codes)
        return lambda values: multiply(values).clamp_max(2**14)

    monkeypatch.setattr(products, "numkong_product", overflowing)
    assert not is_exact(products.numkong_product)
    assert products._fastest(ENGINE, fbgemm=False) in (onednn_product, float_product)


@needs_fbgemm
@pytest.mark.parametrize(("slower", "taken"), [(1.1, True), (1.5, False)])
def test_of_two_nearly_as_fast_fbgemms_is_taken(anew, monkeypatch, slower, taken):
    """It is the faster one where codes do not lie in a cache."""
    seconds = {products.fbgemm_product: slower, products.numkong_product: 1.0, products.onednn_product: 2.0}
    monkeypatch.setattr(products, "is_exact", lambda way: True)
    monkeypatch.setattr(products, "_seconds", lambda way, texts: seconds[way])
    for way in seconds:
        monkeypatch.setattr(products, way.__name__, lambda codes, way=way: way)
    found = products._fastest_of(*(getattr(products, way.__name__) for way in seconds))
    assert (found is products.fbgemm_product) == taken


def test_a_slow_product_is_not_taken(anew, monkeypatch):
    def slow(codes):
        multiply = onednn_product(codes)
        return lambda values: time.sleep(0.02) or multiply(values)

    monkeypatch.setattr(products, "onednn_product", slow)
    assert products._fastest(ENGINE, fbgemm=False) is numkong_product


def test_a_library_that_is_not_there(anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "numkong", None)
    assert not is_exact(numkong_product)
    assert products._fastest(ENGINE, fbgemm=False) in (onednn_product, float_product)


@pytest.mark.parametrize(
    ("dims", "may"),
    [
        ([512, 512], True),
        ([1024], True),
        ([500], True),
        ([768], False),  # 1,024 columns would be held
        ([768] * 2, True),  # what is left of both shares a matrix
        ([768] * 9, True),
        ([64], False),
        ([256] * 2, False),  # two in one matrix would be multiplied with each other's rows
        ([512, 256, 256], False),
    ],
    ids=str,
)
def test_fbgemm_is_for_columns_that_it_does_not_fill_up(dims, may, fbgemm_is_fastest):
    codes = blocks(torch.zeros(3, sum(dims), dtype=torch.int8), dims)
    for kept in (True, False):
        matrices = products.hold(codes, everywhere(range(len(dims)), 3), kept)
        assert isinstance(matrices[0], products.Settling) == (may and kept)


def test_fbgemm_is_not_taken_where_a_program_took_another_engine():
    if not is_exact(fbgemm_product) or "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("PyTorch has no FBGEMM, or no other engine here")
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "onednn"
        assert not is_exact(fbgemm_product)
    finally:
        torch.backends.quantized.engine = before


def test_no_warning_of_what_pytorch_deprecates():
    code = (
        "import warnings, collaborative_experts.retrieval.products as products\n"
        "warnings.simplefilter('error')\nproducts._way(fbgemm=True)"
    )
    process = Process(code)
    assert process.wait() == 0, process.stderr.read()


def test_without_vnni(root):
    """oneDNN reads the variable once, at its first product, hence a process. Without VNNI its product overflows, or
    runs a reference code, and must not be taken."""
    if not has_more_than_avx2():
        pytest.skip("this processor has AVX2 at most, of which the tests themselves are")
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    tests = ["tests/retrieval/test_products.py", "tests/retrieval/test_exact_search.py::test_zeros_and_tiny_weights"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not without_vnni", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
