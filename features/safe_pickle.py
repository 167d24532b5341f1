"""Pickles and PyTorch files of arrays, read without running any code that they name.

A pickle calls whatever functions it names. Only the few that rebuild NumPy arrays or tensors are let in here, and those
that would accept more than numbers are replaced by narrower ones.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load_arrays(path: Path) -> object:
    """The content of a pickle of NumPy arrays, numbers, text, lists and dicts.

    Raises:
        pickle.UnpicklingError: the pickle names any other function or class. Nothing has been called then.
    """
    with path.open("rb") as file:
        return _ArraysOnly(file, encoding="latin1").load()


def load_tensors(path: Path) -> object:
    """The content of a file of `torch.save`: tensors on the CPU, numbers, text, lists and dicts.

    Tensors are mapped into memory where PyTorch can do so. Names that this process has added to PyTorch's own
    allow-list (`add_safe_globals`) are let in.

    Raises:
        pickle.UnpicklingError: the file names another function or class, or is no file of `torch.save`.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # PyTorch's own message recommends to load without the protection.
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"refused, it would call {named[1]}; only tensors are let in" if named else "not a file of torch.save"
        raise pickle.UnpicklingError(reason) from None


class _ArraysOnly(pickle.Unpickler):
    """An unpickler of NumPy arrays in every form in which NumPy has written them, and of nothing else."""

    _UNCHANGED = frozenset(
        (f"numpy.{core}.{name}", attribute)
        for core in ("core", "_core")
        for name, attribute in (("multiarray", "scalar"), ("numeric", "_frombuffer"))
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._UNCHANGED:
            return super().find_class(module, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return None
        if (module, name) == ("numpy", "dtype"):
            return _dtype_of_numbers
        if (module, name) == ("_codecs", "encode"):
            return _encode_latin1
        if (module, name) in (("__builtin__", "bytes"), ("builtins", "bytes")):
            return _empty_bytes
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"refused, it would call {module}.{name}; only NumPy arrays are let in")


def _empty_array(*_: object) -> np.ndarray:
    """An array for NumPy to fill. `numpy.ndarray` itself would take bytes for pointers to objects."""
    return np.empty(0, dtype=np.int8)


def _dtype_of_numbers(*arguments: Any) -> np.dtype:
    dtype = np.dtype(*arguments)
    if dtype.hasobject:
        raise pickle.UnpicklingError("refused, arrays of objects; only arrays of numbers are let in")
    return dtype


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Bytes as Python 2 wrote them. No feature file needs another codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused, it would call _codecs.encode with {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """The bytes of an empty array, as Python 3 writes them for Python 2."""
    return b""
