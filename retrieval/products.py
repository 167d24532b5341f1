"""Inner products of texts with codes in 8 bits, in whole numbers.

Codes are held once, in the order in which the product reads them. Processors differ in which library multiplies
fastest, by a factor of 20 (oneDNN without VNNI runs a reference code), so the ways are timed when the first codes are
held, and the fastest is taken that gives the exact whole numbers:

1. NumKong's, with kernels for each processor.
2. oneDNN's, through PyTorch.
3. FBGEMM's, through PyTorch, for codes that are kept, where it holds them in hardly more memory than they take. It
   takes long to hold them, so that the first search is by one of the other ways.
4. The product in float32, where none of these is exact.

What was measured is in benchmarks/NOTES.md.
"""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..base.linear import INT8_STEPS, INT8_ZERO
from ..base.memory import give_back
from ..base.threads import in_background, in_order
from .arrays import as_tensor

Multiply = Callable[[Tensor], Tensor]
"""(R, D) int8, R above 0 -> (R, n), the inner products with the codes in whole numbers, of any type. The rows are of 7
bits: processors without VNNI may add the products of two neighbours in 16 bits."""

Way = Callable[[Tensor], Multiply]
"""Holds codes (n, D) int8, n above 0."""

TRIAL_ROWS, TRIAL_DIM = 2048, 512
"""Size of the codes that the ways are timed with: a megabyte, for real ones do not lie in the nearest cache either."""

TRIAL_TEXTS = (1, 16)
"""A way is as fast as it is with so many texts, one after the other: most searches are for one or a few."""

TRIALS = 3
"""Times that each way is tried; the shortest counts."""

HOPELESS = 4
"""A way that takes so many times as long as the fastest is tried with no more texts: a reference code takes long."""

NUMKONG_ROWS = 8
"""NumKong takes up to twice as long with all codes where their number is no multiple of this."""

FBGEMM_FAVOUR = 1.25
"""FBGEMM's time counts for so much less: it reads codes from memory faster than the others, and those that the ways are
timed with lie in a cache."""

FBGEMM_COLUMNS, MOST_FILLED = 512, 1.1
"""FBGEMM fills columns up to a multiple of 512 (256 on some processors), which may take so many times their memory."""

UNSETTLED_ROWS = 1024
"""Codes that are held for one product at once, so that they are multiplied while they lie in the cache."""

_choosing = threading.Lock()


class Part(NamedTuple):
    """Columns of an expert's codes."""

    expert: int
    columns: slice


class Matrix(Protocol):
    """Codes in columns of one expert or several.

    Attributes:
        parts: P of them.
    """

    parts: Sequence[Part]

    def __call__(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        """P arrays (R, D) int8, of each part's columns -> P arrays (R, n) float32, the products with the codes of the n
        videos that have the expert. The caller may overwrite them."""

    def settle(self) -> None:
        """Hold the codes in the way that multiplies fastest, in the background, where that takes too long for a first
        search."""


def hold(codes: Sequence[np.ndarray], videos: Mapping[int, np.ndarray | None], kept: bool) -> list[Matrix]:
    """Codes of some experts in the fastest exact way.

    Args:
        codes: by expert, (rows, D) int8.
        videos: by expert, the rows (n,) int64 that are multiplied, n above 0: those of the videos that have it. None is
            for all, and takes no memory of its own: the expert's array may be kept.
        kept: True for codes that more than one search reads.
    """

    def columns(part: Part) -> Tensor:
        block, rows = codes[part.expert][:, part.columns], videos[part.expert]
        return as_tensor(block if rows is None else block[rows])

    at_once, dims = _way(fbgemm=False), {m: codes[m].shape[1] for m in videos}
    shares = _shares(dims)
    if kept and _fits(shares) and _way(fbgemm=True) is fbgemm_product:
        return [Settling(parts, list(map(columns, parts)), at_once) for parts in shares]
    whole = [Part(m, slice(0, dim)) for m, dim in dims.items()]
    return list(in_order(lambda part: Held(part, at_once(columns(part).contiguous())), whole))


class Held:
    """The matrix of one part."""

    def __init__(self, part: Part, multiply: Multiply) -> None:
        self.parts: Sequence[Part] = [part]
        self._multiply = multiply

    def __call__(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        return [self._multiply(values[0]).float()]

    def settle(self) -> None:
        """They are held so from the start."""


class Settling:
    """A matrix for FBGEMM, which takes long to hold one: until it is settled, codes as they are, held anew for each
    product."""

    def __init__(self, parts: Sequence[Part], codes: list[Tensor], at_once: Way) -> None:
        self.parts, self._at_once = parts, at_once
        self._codes, self._counts = codes, [len(x) for x in codes]
        self._multiply: Multiply | None = None

    def __call__(self, values: Sequence[Tensor]) -> Sequence[Tensor]:
        codes, multiply = self._codes, self._multiply  # in this order: `_hold` changes them in the other
        if multiply is None:
            return [self._product(x, rows) for x, rows in zip(codes, values, strict=True)]
        # Rows of zeros for the columns of the others take less time than a matrix of its own for each.
        products = multiply(torch.block_diag(*values) if len(values) > 1 else values[0])
        of_parts = products.split([len(x) for x in values])
        return [x[:, :count] for x, count in zip(of_parts, self._counts, strict=True)]

    def _product(self, codes: Tensor, values: Tensor) -> Tensor:
        products = torch.empty(len(values), len(codes), dtype=torch.float32, device="cpu")
        for some, product in zip(codes.split(UNSETTLED_ROWS), products.split(UNSETTLED_ROWS, dim=1), strict=True):
            product.copy_(self._at_once(some.contiguous())(values))
        return products

    def settle(self) -> None:
        hold = weakref.WeakMethod(self._hold)
        in_background(lambda: (method := hold()) and method())

    def _hold(self) -> None:
        # PyTorch's engine may have been changed meanwhile, and two searches at once may both have been the second.
        if self._multiply is None and _way(fbgemm=True) is fbgemm_product:
            most = max(self._counts)
            filled = [torch.nn.functional.pad(x, (0, 0, 0, most - len(x))) for x in self._codes]
            self._multiply = fbgemm_product(torch.cat(filled, dim=1))
            self._codes = []
            give_back()


def _shares(dims: dict[int, int]) -> list[list[Part]]:
    """Columns of experts that FBGEMM multiplies at once: as many as it fills anyhow, and what is left of two experts
    in one matrix where that fits."""
    whole = {m: dim // FBGEMM_COLUMNS * FBGEMM_COLUMNS for m, dim in dims.items()}
    rest = [Part(m, slice(whole[m], dim)) for m, dim in dims.items() if dim > whole[m]]
    shares = [[Part(m, slice(0, columns))] for m, columns in whole.items() if columns]
    rest.sort(key=_width)
    while rest:
        widest = rest.pop()
        fitting = [part for part in rest if _width(part) + _width(widest) <= FBGEMM_COLUMNS]
        shares.append([widest, *fitting[-1:]])
        rest = [part for part in rest if part not in fitting[-1:]]
    return shares


def _width(part: Part) -> int:
    return part.columns.stop - part.columns.start


def _fits(shares: Sequence[Sequence[Part]]) -> bool:
    """True where FBGEMM fills up little, and each expert fills columns of its own."""
    widths = [sum(map(_width, parts)) for parts in shares]
    filled = sum(-(-width // FBGEMM_COLUMNS) * FBGEMM_COLUMNS for width in widths)
    alone = {parts[0].expert for parts in shares if len(parts) == 1}
    return filled <= MOST_FILLED * sum(widths) and alone == {part.expert for parts in shares for part in parts}


def _way(fbgemm: bool) -> Way:
    """The fastest exact way to hold codes, FBGEMM's among them or not."""

    def choose(engine: str) -> Way:
        with _choosing:
            return _fastest(engine, fbgemm)

    # On a thread of those that compute the products.
    return next(in_order(choose, [torch.backends.quantized.engine]))


def numkong_product(codes: Tensor) -> Multiply:
    """The first way, on the calling thread alone. NumKong's threads wait for each other by spinning: where other
    programs take their cores, each product would last as long as a time slice."""
    import numkong  # where it is not installed, this way is not taken

    count = len(codes)
    if missing := -count % NUMKONG_ROWS:
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
    packed: Any = numkong.dots_pack(codes.numpy())

    def multiply(values: Tensor) -> Tensor:
        products = numkong.dots_packed(values.numpy(), packed, threads=1)  # type: ignore[call-arg]
        return torch.from_numpy(np.asarray(products))[:, :count]

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


def fbgemm_product(codes: Tensor) -> Multiply:
    """The third way, exact up to 2^24, where PyTorch's engine for quantized layers is one that packs by FBGEMM."""
    packed = torch.ops.quantized.linear_prepack(torch._make_per_tensor_quantized_tensor(codes, 1.0, 0), None)
    layer = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
    return lambda values: layer(values.float(), 1.0, INT8_ZERO, packed)


def float_product(codes: Tensor) -> Multiply:
    """The last way, exact up to 2^24."""
    return lambda values: values.float() @ codes.float().T


@cache
def _fastest(engine: str, fbgemm: bool) -> Way:
    """With PyTorch's engine for quantized layers, which a program may change; with FBGEMM or without."""
    if not fbgemm:
        return _fastest_of(numkong_product, onednn_product)
    with warnings.catch_warnings():
        # PyTorch deprecates quantized tensors. Without them FBGEMM's way is one that is not exact.
        warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
        return _fastest_of(_fastest(engine, fbgemm=False), fbgemm_product)


def _fastest_of(*ways: Way) -> Way:
    codes = torch.ones(TRIAL_ROWS, TRIAL_DIM, dtype=torch.int8, device="cpu")
    held = {way: way(codes) for way in ways if is_exact(way)}
    seconds = dict.fromkeys(held, 0.0)
    for count in TRIAL_TEXTS:
        texts = torch.ones(2 * count, TRIAL_DIM, dtype=torch.int8, device="cpu")
        limit = HOPELESS * min(seconds.values(), default=0.0)
        seconds = {way: x + _seconds(held[way], texts) for way, x in seconds.items() if x <= limit}
    if fbgemm_product in seconds:
        seconds[fbgemm_product] /= FBGEMM_FAVOUR
    return min(seconds, key=seconds.__getitem__, default=float_product)


def _seconds(multiply: Multiply, texts: Tensor) -> float:
    return min(_seconds_once(multiply, texts) for _ in range(TRIALS))


def _seconds_once(multiply: Multiply, texts: Tensor) -> float:
    start = time.perf_counter()
    multiply(texts)
    return time.perf_counter() - start


def is_exact(way: Way) -> bool:
    """True where this processor computes it, without overflow for the largest numbers that occur."""
    largest = torch.full((4, 256), INT8_STEPS, dtype=torch.int8, device="cpu")
    codes = torch.full((8, 256), 127, dtype=torch.int8, device="cpu")
    try:
        products = [way(sign * codes)(largest[:rows]) for rows in (2, 4) for sign in (1, -1)]
    except (ImportError, RuntimeError, AttributeError):
        return False
    return all(bool((x.abs() == 256 * 127 * INT8_STEPS).all()) for x in products)
