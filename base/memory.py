"""Memory that was freed, given back to the system.

glibc keeps what its threads freed for what they may ask next. After gigabytes were read piece by piece, that can be
more than what is held.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Give freed memory back, where the C library is one that keeps it and can be told not to.

    A gigabyte takes a seventh of a second.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim.argtypes = [ctypes.c_size_t]
    return trim
