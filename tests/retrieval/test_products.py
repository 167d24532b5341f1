"""The products of texts and codes: whole numbers, whatever the processor adds them up in."""

import os
import subprocess
import sys

import pytest
import torch

from collaborative_experts.retrieval import exact_search, products
from collaborative_experts.retrieval.products import float_product, is_exact, packed_product, plain_product

WAYS = [plain_product, packed_product, float_product]


def numbers(texts, videos, dim, largest):
    """Rows of texts and codes, at random or all as large as they get."""
    rows, codes = torch.full((2 * texts, dim), 63), torch.full((videos, dim), -127)
    if not largest:
        generator = torch.Generator().manual_seed(dim)
        rows = torch.randint(-63, 64, (2 * texts, dim), generator=generator)
        codes = torch.randint(-127, 128, (videos, dim), generator=generator)
    return rows.to(torch.int8), codes.to(torch.int8)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 3, 33, 256, 768])
@pytest.mark.parametrize("way", [None, *WAYS], ids=lambda way: way.__name__ if way else "the one that is taken")
def test_whole_numbers(way, dim, largest):
    if way and not is_exact(way):
        pytest.skip("not exact on this processor, so it is not taken")
    if way is plain_product and dim == 1:
        pytest.skip("float_product is taken")
    for texts in (0, 1, 2, 9, 64):
        for videos in (1, 7, 300):
            rows, codes = numbers(texts, videos, dim, largest)
            scale = torch.linspace(0.5, 2, videos)
            found = (way or exact_search.scaled_product)(codes, scale)(rows).double()
            coarse, fine = rows[:texts].double(), rows[texts:].double()
            expected = (coarse + fine / 126) @ codes.double().T * scale.double() / 63
            assert found.shape == expected.shape
            assert (found - expected).abs().amax() <= 1e-6 * max(1.0, float(expected.abs().amax())) if texts else True


def test_a_product_that_overflows_is_not_taken(monkeypatch):
    def overflowing(codes, scale):
        return lambda rows: plain_product(codes, scale)(rows).clamp_max(2.0**14)

    assert not is_exact(overflowing)
    monkeypatch.setattr(products, "plain_product", overflowing)
    products._fastest.cache_clear()
    try:
        assert products._fastest() in (packed_product, float_product)
    finally:
        products._fastest.cache_clear()


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE_VNNI"])
def test_on_other_processors(instructions, root):
    """oneDNN reads the variable once, at its first product, hence a process for each. Without VNNI the plain product
    overflows, which these tests would see."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    tests = ["tests/retrieval/test_products.py", "tests/retrieval/test_exact_search.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not other_processors", *tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
