"""Inner products of texts in 14 bits with codes in 8 bits, in whole numbers.

A text is two rows of 7 bits (`Int8Rows`), so that its product is that of the first row plus 1/126 of the second's.
Codes are multiplied as they lie in memory: they are compared as soon as they are read, and held once. Processors differ
in which library does that fastest, by a factor of 20 (oneDNN without VNNI runs a reference code), so the ways are timed
when they are first needed, and the fastest is taken that gives the exact whole numbers:

1. NumKong's, with kernels for each processor.
2. oneDNN's, through PyTorch.
3. The product in float32, where neither is exact.

What was measured is in benchmarks/NOTES.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..base.linear import INT8_STEPS

Product = Callable[[Tensor], Tensor]
"""(2 T, D) int8, the texts' coarse rows before their fine ones -> (T, n) float32, the inner products of
(coarse + fine / 126) / 63 with the scaled codes."""

Way = Callable[[Tensor, Tensor], Tensor]
"""(2 T, D) and (n, D) int8, T and n above 0 -> (2 T, n), their inner products in whole numbers, of any type."""

TRIAL_ROWS, TRIAL_DIM = 512, 512
"""Size of the codes that the ways are timed with: a few milliseconds in all."""

TRIALS = 3
"""Times that each way is tried; the shortest counts."""


def scaled_product(codes: Tensor, scale: Tensor) -> Product:
    """Products of texts with the codes (n, D) int8 of one expert, scaled by (n,) float32. Holds `codes` itself."""
    by = scale / INT8_STEPS

    def product(values: Tensor) -> Tensor:
        if not len(values) or not len(codes):
            return torch.zeros(len(values) // 2, len(codes))
        coarse, fine = halves(_fastest(len(values) == 2)(values, codes))
        return coarse.float().add_(fine, alpha=0.5 / INT8_STEPS).mul_(by)

    return product


def numkong_product(values: Tensor, codes: Tensor) -> Tensor:
    """The first way. The texts are packed: they are fewer. Its threads wait for each other by spinning: where other
    programs take their cores, each product of one text, a third of a millisecond, would last as long as a time slice.
    """
    import numkong  # where it is not installed, this way is not taken

    packed, threads = numkong.dots_pack(values.numpy()), 1 if len(values) == 2 else torch.get_num_threads()
    products = numkong.dots_packed(codes.numpy(), packed, threads=threads)  # type: ignore[call-arg]
    return torch.from_numpy(np.asarray(products)).T


def onednn_product(values: Tensor, codes: Tensor) -> Tensor:
    """The second way."""
    if codes.shape[1] == 1:  # `torch._int_mm` is wrong for a single column (PyTorch 2.13)
        return float_product(values, codes)
    if len(values) == 2:  # two products of a vector read the codes faster than one of a matrix
        return torch.cat([torch._int_mm(row, codes.T) for row in values.split(1)])
    return torch._int_mm(values, codes.T)


def float_product(values: Tensor, codes: Tensor) -> Tensor:
    """The third way, exact up to 2^24."""
    return values.float() @ codes.float().T


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The coarse rows and the fine ones, (T, ...) each."""
    texts = len(rows) // 2
    return rows[:texts], rows[texts:]


@cache
def _fastest(one_text: bool) -> Way:
    """The fastest way for one text, or for many."""
    exact = [way for way in (numkong_product, onednn_product) if is_exact(way)]
    values = torch.ones(2 if one_text else 64, TRIAL_DIM, dtype=torch.int8)
    codes = torch.ones(TRIAL_ROWS, TRIAL_DIM, dtype=torch.int8)
    return min(exact, key=lambda way: min(_seconds(way, values, codes) for _ in range(TRIALS)), default=float_product)


def _seconds(way: Way, values: Tensor, codes: Tensor) -> float:
    start = time.perf_counter()
    way(values, codes)
    return time.perf_counter() - start


def is_exact(way: Way) -> bool:
    """True where this processor computes it, without overflow for the largest numbers that occur."""
    largest = torch.full((4, 256), INT8_STEPS, dtype=torch.int8)
    codes = torch.full((8, 256), 127, dtype=torch.int8)
    try:
        products = [way(largest[:rows], sign * codes) for rows in (2, 4) for sign in (1, -1)]
    except (ImportError, RuntimeError, AttributeError):
        return False
    return all(bool((x.abs() == 256 * 127 * INT8_STEPS).all()) for x in products)
