"""Linear layers in evaluation: weights are packed once, in the layout that the device multiplies fastest.

What was measured and what was not taken is in benchmarks/NOTES.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-12
"""The least length that a vector is divided by. The value is that of `F.normalize`, which CENet uses."""

FEWEST_ROWS = 6
"""For so many rows oneDNN reads the weights a fifth to a third faster than for a single one (see `spare_rows`)."""

Layer = Callable[[Tensor], Tensor]
"""(rows, in) -> (rows, out)"""


def packed_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, device: torch.device) -> Layer:
    """x -> x W^T + b with weights kept in the layout that the device multiplies fastest.

    On CPU that is oneDNN's blocked layout: PyTorch's own float32 product goes to MKL, which is slower.
    """
    # Nothing is kept of the arguments: they may be views of a file that changes or vanishes later.
    bias = None if bias is None else bias.to(device, dtype, copy=True)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        weight = weight.to(device, dtype, copy=True)
        return lambda x: F.linear(x, weight, bias)
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), None)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, blocked, bias, "none", [], "")


def spare_rows(x: Tensor) -> Tensor:
    """The rows, on CPU with rows of zeros below them up to `FEWEST_ROWS`. The caller drops these at the end."""
    if x.is_cuda or len(x) >= FEWEST_ROWS:
        return x
    padded = x.new_zeros(FEWEST_ROWS, *x.shape[1:])
    padded[: len(x)] = x
    return padded


INT8_STEPS = 63
"""Rows are quantised to whole numbers up to this. Processors without VNNI add the products of two neighbours in 16
bits: with 7 bits of a row and 8 of a weight that cannot overflow."""

INT8_ZERO = 64
"""The number that stands for 0 in a row: oneDNN's fast product takes numbers without a sign."""


@dataclass(frozen=True)
class Int8Rows:
    """n rows for `int8_linear`, in 14 bits: each is its rounding to 7 bits plus the rounding of what that leaves.

    Two rows of 7 bits take no longer than one, as long as reading the weights takes longer than multiplying. So only
    the weights are coarse.

    Attributes:
        values: (2 n or more, in) uint8, the coarse rows before the fine ones.
        largest: (n, 1) float32, the largest magnitude of each row.
    """

    values: Tensor
    largest: Tensor


def int8_rows(x: Tensor) -> Int8Rows:
    """The rows (n, in) in the form that `int8_linear` takes, made once for all layers that read them."""
    x = x.float()
    rows, largest = len(x), x.abs().amax(1, keepdim=True).clamp_min_(EPSILON)
    steps = x * (INT8_STEPS / largest)
    coarse = steps.round()
    fine = steps.sub_(coarse).mul_(2 * INT8_STEPS).round_()
    values = torch.full((max(2 * rows, FEWEST_ROWS), x.shape[1]), INT8_ZERO, dtype=torch.uint8, device="cpu")
    values[:rows], values[rows : 2 * rows] = coarse.add_(INT8_ZERO), fine.add_(INT8_ZERO)
    return Int8Rows(values, largest)


def int8_linear(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Callable[[Int8Rows], Tensor]:
    """x -> x W^T + b on CPU with weights in int8, one scale per output row.

    It gives (rows, out) in `dtype`. Fewer rows than `FEWEST_ROWS` are filled up to so many with arbitrary values.
    """
    scale = weight.abs().amax(1).clamp_min_(EPSILON) / 127
    packed = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round_().to(torch.int8), None)
    no_shift, bias = torch.zeros(len(scale), dtype=torch.int64, device="cpu"), bias.clone()
    product = torch.ops.onednn.qlinear_pointwise.default

    def layer(x: Int8Rows) -> Tensor:
        rows = len(x.largest)
        y = product(
            x.values, 1 / INT8_STEPS, INT8_ZERO, packed, scale, no_shift, None, 1.0, 0, torch.float32, "none", [], ""
        )
        whole = y[:rows].add_(y[rows : 2 * rows], alpha=0.5 / INT8_STEPS)
        torch.addcmul(bias, whole, x.largest, out=whole)
        return y[: max(rows, FEWEST_ROWS)].to(dtype)

    return layer
