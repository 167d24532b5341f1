"""The products of texts and codes: whole numbers, whatever the processor adds them up in."""

import os
import subprocess
import sys
import time

import pytest
import torch

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
def test_whole_numbers(way, dim, largest, monkeypatch):
    if way and not is_exact(way):
        pytest.skip("not exact on this processor, so it is not taken")
    if way:
        monkeypatch.setattr(products, "_fastest", lambda *args, **settings: way)
    for rows in (1, 2, 4, 18, 128):
        for videos in (1, 7, 300):
            values, codes = numbers(rows, videos, dim, largest)
            found = products.way_for(dim, kept=True)(codes)(values)
            assert torch.equal(found.long(), values.long() @ codes.long().T)


ENGINE = torch.backends.quantized.engine


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


@pytest.mark.parametrize(("dim", "may"), [(512, True), (1024, True), (768, False), (500, True), (64, False)])
def test_fbgemm_is_for_columns_that_it_does_not_fill_up(dim, may, monkeypatch):
    asked = []
    monkeypatch.setattr(products, "_fastest", lambda engine, fbgemm: asked.append(fbgemm) or float_product)
    for kept in (True, False):
        products.way_for(dim, kept)
    assert asked == [may, False]


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
        "warnings.simplefilter('error')\nproducts.way_for(512, True)"
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
