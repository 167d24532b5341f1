"""Inner products of texts in 14 bits with codes in 8 bits, in whole numbers.

A text is two rows of 7 bits (`Int8Rows`), so that its product is that of the first row plus 1/126 of the second's.
Three ways, of which the first is taken that gives the exact whole numbers on this processor:

1. oneDNN's product of the codes as they lie. Nothing is packed: codes are compared as soon as they are read, and held
   once. Processors without VNNI add two products in 16 bits, where these codes overflow.
2. oneDNN's product of packed codes with rows that have no sign, where nothing overflows. Packing 100 MB takes half a
   second.
3. The product in float32.

What was measured is in benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..base.linear import INT8_STEPS, INT8_ZERO

Product = Callable[[Tensor], Tensor]
"""(2 T, D) int8, the texts' coarse rows before their fine ones -> (T, n) float32, the inner products of
(coarse + fine / 126) / 63 with the scaled codes."""


def scaled_product(codes: Tensor, scale: Tensor) -> Product:
    """Products of texts with the codes (n, D) int8 of one expert, scaled by (n,) float32."""
    if codes.shape[1] == 1:  # `torch._int_mm` is wrong for a single column (PyTorch 2.13)
        return float_product(codes, scale)
    return _fastest()(codes, scale)


def plain_product(codes: Tensor, scale: Tensor) -> Product:
    """The first way; holds `codes` itself."""
    columns, by = codes.T, scale / INT8_STEPS

    def product(values: Tensor) -> Tensor:
        texts = len(values) // 2
        if texts == 1:  # two products of a vector read the codes as fast as memory gives them, one of a matrix does not
            coarse, fine = (torch._int_mm(row, columns) for row in values.split(1))
        else:
            coarse, fine = halves(torch._int_mm(values, columns))
        return _joined(coarse.float(), fine.float()).mul_(by)

    return product


def packed_product(codes: Tensor, scale: Tensor) -> Product:
    """The second way; holds a packed copy."""
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    no_shift, multiply = torch.zeros(len(scale), dtype=torch.int64), torch.ops.onednn.qlinear_pointwise.default

    def product(values: Tensor) -> Tensor:
        rows = values.to(torch.uint8).add_(INT8_ZERO)  # modulo 256
        y = multiply(
            rows, 1 / INT8_STEPS, INT8_ZERO, packed, scale, no_shift, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return _joined(*halves(y))

    return product


def float_product(codes: Tensor, scale: Tensor) -> Product:
    """The third way; holds `codes` itself."""
    by = scale / INT8_STEPS
    return lambda values: _joined(*halves(values.float() @ codes.float().T)).mul_(by)


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The coarse rows and the fine ones, (T, ...) each."""
    texts = len(rows) // 2
    return rows[:texts], rows[texts:]


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    return coarse.add_(fine, alpha=0.5 / INT8_STEPS)


@cache
def _fastest() -> Callable[[Tensor, Tensor], Product]:
    return next((way for way in (plain_product, packed_product) if is_exact(way)), float_product)


def is_exact(way: Callable[[Tensor, Tensor], Product]) -> bool:
    """True where this processor computes it, and without overflow for the largest numbers that occur."""
    scale, codes = torch.full((4,), float(INT8_STEPS)), torch.full((4, 16), 127, dtype=torch.int8)
    largest = torch.full((16,), INT8_STEPS, dtype=torch.int8)
    try:
        products = [
            way(sign * codes, scale)(torch.stack(2 * texts * [largest])) for sign in (1, -1) for texts in (1, 2)
        ]
    except (RuntimeError, AttributeError):
        return False
    expected = 16 * 127 * INT8_STEPS * (1 + 0.5 / INT8_STEPS)
    return all(bool(((y.abs() - expected).abs() < 1e-6 * expected).all()) for y in products)
