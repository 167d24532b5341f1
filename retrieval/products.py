"""Inner products of texts with codes in 8 bits, in whole numbers.

Codes are compared as soon as they are read, and held once, in the order in which the product reads them. Processors
differ in which library multiplies fastest, by a factor of 20 (oneDNN without VNNI runs a reference code), so the ways
are timed when the first codes are held, and the fastest is taken that gives the exact whole numbers:

1. NumKong's, with kernels for each processor.
2. oneDNN's, through PyTorch.
3. The product in float32, where neither is exact.

What was measured is in benchmarks/NOTES.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.linear import INT8_STEPS

Multiply = Callable[[Tensor], Tensor]
"""(R, D) int8, R above 0 -> (R, n), the inner products with the codes in whole numbers, of any type. The rows are of 7
bits: processors without VNNI may add the products of two neighbours in 16 bits."""

Way = Callable[[Tensor], Multiply]
"""Holds codes (n, D) int8, n above 0."""

TRIAL_ROWS, TRIAL_DIM = 512, 512
"""Size of the codes that the ways are timed with: some milliseconds, also where a way is slow."""

TRIAL_TEXTS = (1, 16)
"""A way is as fast as it is with so many texts, one after the other: most searches are for one or a few."""

TRIALS = 3
"""Times that each way is tried; the shortest counts."""


def product_with(codes: Tensor) -> Multiply:
    """The fastest exact product with the codes (n, D) int8, n above 0. May hold `codes` itself."""
    return _fastest()(codes)


def numkong_product(codes: Tensor) -> Multiply:
    """The first way, on the calling thread alone. NumKong's threads wait for each other by spinning: where other
    programs take their cores, each product would last as long as a time slice."""
    import numkong  # where it is not installed, this way is not taken

    packed: Any = numkong.dots_pack(codes.numpy())

    def multiply(values: Tensor) -> Tensor:
        products = numkong.dots_packed(values.numpy(), packed, threads=1)  # type: ignore[call-arg]
        return torch.from_numpy(np.asarray(products))

    return multiply


def onednn_product(codes: Tensor) -> Multiply:
    """The second way."""
    if codes.shape[1] == 1:  # `torch._int_mm` is wrong for a single column (PyTorch 2.13)
        return float_product(codes)

    def multiply(values: Tensor) -> Tensor:
        if len(values) == 2:  # two products of a vector read the codes faster than one of a matrix
            return torch.cat([torch._int_mm(row, codes.T) for row in values.split(1)])
        return torch._int_mm(values, codes.T)

    return multiply


def float_product(codes: Tensor) -> Multiply:
    """The third way, exact up to 2^24."""
    return lambda values: values.float() @ codes.float().T


@cache
def _fastest() -> Way:
    exact = [way for way in (numkong_product, onednn_product) if is_exact(way)]
    return min(exact, key=_seconds, default=float_product)


def _seconds(way: Way) -> float:
    """How long the products last once the codes are held."""
    multiply = way(torch.ones(TRIAL_ROWS, TRIAL_DIM, dtype=torch.int8))
    texts = [torch.ones(2 * count, TRIAL_DIM, dtype=torch.int8) for count in TRIAL_TEXTS]
    return min(_seconds_once(multiply, texts) for _ in range(TRIALS))


def _seconds_once(multiply: Multiply, texts: list[Tensor]) -> float:
    start = time.perf_counter()
    for values in texts:
        multiply(values)
    return time.perf_counter() - start


def is_exact(way: Way) -> bool:
    """True where this processor computes it, without overflow for the largest numbers that occur."""
    largest = torch.full((4, 256), INT8_STEPS, dtype=torch.int8)
    codes = torch.full((8, 256), 127, dtype=torch.int8)
    try:
        products = [way(sign * codes)(largest[:rows]) for rows in (2, 4) for sign in (1, -1)]
    except (ImportError, RuntimeError, AttributeError):
        return False
    return all(bool((x.abs() == 256 * 127 * INT8_STEPS).all()) for x in products)
