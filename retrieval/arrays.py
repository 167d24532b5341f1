"""Arrays as callers pass them, made fit for NumPy and PyTorch. Nothing is copied that both can read as it is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_unmasked, object_hint

Array = Tensor | np.ndarray
"""A torch tensor or a NumPy array. Functions return the type that they were given."""

ArrayLike = Tensor | np.ndarray | Sequence[Any]
"""An array, or lists of numbers."""


def real_array(value: ArrayLike, where: str) -> Array:
    """The value as a tensor without gradients, or as a NumPy array in this machine's byte order.

    Unsigned integers of more than 8 bits come as int64, extended precision as float64.

    Raises:
        TypeError: not real numbers, a masked array, or a tensor that is sparse, quantised or without data.
        ValueError: lists that are no array, or integers that neither int64 nor float64 holds.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type == "meta":
            raise TypeError(f"{where}: expected a dense tensor, got {value.dtype}, {value.layout} on {value.device}")
        if value.is_complex():
            raise TypeError(f"{where}: expected real numbers, got {value.dtype}")
        return _signed(value.detach(), where) if value.dtype in _UNSIGNED else value.detach()
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        value = [as_numpy(real_array(item, where)) if isinstance(item, Tensor) else item for item in value]
    check_unmasked(value, where, "fill it, or leave out what is masked")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # a RecursionError is a RuntimeError
        raise ValueError(
            f"{where}: expected numbers in rows of equal length, got {type(value).__name__} ({error})"
        ) from None
    if array.dtype == object:
        array = _from_objects(array, where, object_hint(value))
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where}: expected real numbers, got {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(all="ignore"):
            array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return _signed(array, where) if array.dtype.kind == "u" and array.dtype.itemsize > 1 else array


def float_array(value: ArrayLike, where: str) -> Array:
    """The value as `real_array` gives it, lists and integers as float32. Other floats keep their precision."""
    array = real_array(value, where)
    if isinstance(array, Tensor):
        return array if array.dtype in _FLOATS else array.float()
    if array.dtype.kind == "f" and isinstance(value, np.ndarray):
        return array
    with np.errstate(all="ignore"):  # whatever the caller has NumPy do about numbers that float32 rounds to 0 or Inf
        return array.astype(np.float32)


def flag_array(value: ArrayLike, where: str) -> Array:
    """The value as bool. Raises ValueError unless all are 0 or 1."""
    array = real_array(value, where)
    wrong = (array != 0) & (array != 1)
    if bool(wrong.any()):
        raise ValueError(f"{where}: expected 0 or 1, got {array[wrong][0].item()}")
    return array.bool() if isinstance(array, Tensor) else array.astype(bool, copy=False)


def as_tensor(array: Array) -> Tensor:
    """The same memory as a tensor, to be read only; copied where PyTorch cannot address it."""
    if isinstance(array, Tensor):
        return array
    if not array.flags.aligned or any(step < 0 or step % array.itemsize for step in array.strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_SeeminglyWritable(array))
    return torch.from_numpy(array)


def as_numpy(array: Array) -> np.ndarray:
    """The same numbers as a NumPy array; those of bfloat16, which NumPy lacks, as float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


# --- inside -----------------------------------------------------------------------------------------------

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


class _SeeminglyWritable:
    """Read-only memory under another flag. PyTorch warns about read-only arrays, although nothing here writes, and a
    warning cannot be silenced for one thread alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _signed(array: Array, where: str) -> Array:
    """Unsigned integers as int64: PyTorch neither compares nor multiplies those of more than 8 bits."""
    signed = array.long() if isinstance(array, Tensor) else array.astype(np.int64)
    if bool((signed < 0).any()):
        raise ValueError(f"{where}: expected integers below 2**63, got one beyond them")
    return signed


def _from_objects(array: np.ndarray, where: str, hint: str) -> np.ndarray:
    """Python numbers that NumPy has no common type for, such as integers of more than 64 bits, as float64."""
    for item in array.flat:
        if not isinstance(item, Real):
            raise TypeError(f"{where}: expected real numbers, got {type(item).__name__}{hint}")
    try:
        return array.astype(np.float64)
    except OverflowError:
        raise ValueError(f"{where}: expected numbers within the range of float64, got an integer beyond it") from None
