"""Pickles and PyTorch files of arrays, read without running any code that they name.

A pickle calls whatever functions it names. Only the few that rebuild NumPy arrays or tensors are let in here, and those
that would accept more than numbers are replaced by narrower ones.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..base.garbage import no_collection
from ..base.pickles import check_texts, refused_name


def load_arrays(path: Path) -> object:
    """The content of a pickle of NumPy arrays, numbers, text, lists and dicts.

    Raises:
        pickle.UnpicklingError: the pickle names any other function or class. Nothing has been called then.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, no_collection():
        return _ArraysOnly(content, encoding="latin1").load()


def load_tensors(path: Path) -> object:
    """The content of a file of `torch.save`: tensors on the CPU, numbers, text, lists and dicts.

    Tensors are mapped into memory where PyTorch can do so. Names that this process has added to PyTorch's own
    allow-list (`add_safe_globals`) are let in.

    Raises:
        pickle.UnpicklingError: the file names another function or class, or is no file of `torch.save`.
        ValueError: it would unpack to far more than it holds.
    """
    try:
        check_texts(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        name = refused_name(error)
        reason = f"refused, it would call {name}; only tensors are let in" if name else "not a file of torch.save"
        raise pickle.UnpicklingError(reason) from None


class _ArraysOnly(pickle._Unpickler):
    """An unpickler of NumPy arrays in every form in which NumPy has written them, and of nothing else.

    It is the standard library's in Python. The one in C makes room for whatever number a file gives an object.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

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

    def load_build(self) -> None:
        """Fill an array, or say the byte order and size of its type."""
        made, state = self.stack[-2:]
        if isinstance(made, np.dtype):
            _check_state_of_dtype(state)
        elif not isinstance(made, np.ndarray):
            raise pickle.UnpicklingError(f"refused, it would change a {type(made).__name__}")
        _fill(self)

    def load_bytearray8(self) -> None:
        """The numbers of an array. The library would make room for as many bytes as the file says."""
        (size,) = struct.unpack("<Q", self.read(8))
        content = self.read(min(size, sys.maxsize))
        if len(content) < size:
            raise pickle.UnpicklingError(f"expected {size:,} bytes, got {len(content):,}")
        self.append(bytearray(content))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


_fill: Callable[[Any], None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]


def _check_state_of_dtype(state: Any) -> None:
    """Raise unless it is the state of a type of numbers or text: others have fields, or say that they are objects."""
    size_and_align, flags = state[5:7], state[7:8]
    if any(x is not None for x in state[2:5]) or len(size_and_align) != 2 or any(x & _OBJECTS for x in flags):
        raise pickle.UnpicklingError("refused, arrays of other things than numbers")


_OBJECTS = 0b10111
"""The flags of NumPy's types that say of the bytes that they are, or need, objects."""


def _empty_array(*_: object) -> np.ndarray:
    """An array for NumPy to fill. `numpy.ndarray` itself would take bytes for pointers to objects."""
    return np.empty(0, dtype=np.int8)


def _dtype_of_numbers(*arguments: Any) -> np.dtype:
    dtype = np.dtype(arguments[0], copy=True)  # one of the file's own, which it may go on to change
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
