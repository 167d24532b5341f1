"""Long arrays piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator


def slices(size: int, step: int) -> Iterator[slice]:
    """Slices of `step` rows that cover `size` rows. The last one may be shorter."""
    return (slice(start, min(start + step, size)) for start in range(0, size, step))


def even_slices(size: int, most: int) -> Iterator[slice]:
    """Slices of nearly equal length, at most `most`. A last chunk of one row would cost as much as a full one."""
    count = math.ceil(size / most)
    return (slice(size * k // count, size * (k + 1) // count) for k in range(count))
