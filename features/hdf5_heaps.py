"""Global heaps of HDF5, in which values of variable length lie, such as ids.

HDF5 believes the sizes of values and heaps: it takes that much memory, or runs for ever over an object of no bytes.
They are looked at before it does. Source: HDF5 File Format Specification, III.E, Global Heap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

from ..base.archives import check_expansion

_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
"""What a dataset holds of each value, with addresses of 8 bytes, as nearly all files have them."""

_OBJECT = struct.Struct("<H6xQ")
"""The index and the size before the content of each object. A heap's own header is as long."""


def check_heaps(path: Path, dataset: Any) -> None:
    """Raise ValueError where the values of an HDF5 dataset, or the heaps that they lie in, state sizes that cannot be.

    Datasets without values of variable length, and compressed ones, pass.
    """
    if not dataset.dtype.hasobject or dataset.id.get_create_plist().get_nfilters():
        return
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        pieces = [_references(data[start : start + size]) for start, size in _pieces(dataset)]
        references = np.concatenate([np.empty(0, dtype=_REFERENCE), *pieces])
        check_expansion(path, int(references["length"].sum(dtype=np.uint64)))
        for address in np.unique(references["address"][references["length"] > 0]).tolist():
            _check_heap(path, data, dataset.file.userblock_size + address)


def _pieces(dataset: Any) -> Iterator[tuple[int, int]]:
    """Where in the file a dataset lies: offsets and sizes in bytes."""
    if dataset.chunks is None:
        start = dataset.id.get_offset()
        if start is not None:
            yield start, dataset.id.get_storage_size()
        return
    for number in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(number)
        yield chunk.byte_offset, chunk.size


def _references(held: bytes) -> np.ndarray:
    return np.frombuffer(held, _REFERENCE, len(held) // _REFERENCE.itemsize)


def _check_heap(path: Path, data: mmap, start: int) -> None:
    if data[start : start + 4] != b"GCOL":
        return  # HDF5 refuses it
    size = int.from_bytes(data[start + 8 : start + 16], "little")
    heap = data[start : start + size]
    is_right, at = len(heap) == size, _OBJECT.size
    while is_right and at + _OBJECT.size <= size:
        index, held = _OBJECT.unpack_from(heap, at)
        # The size of object 0, the free rest, includes its header; the others are filled up to eight bytes.
        step = _OBJECT.size + (held + 7) // 8 * 8 if index else held
        at += step
        is_right = step >= _OBJECT.size and at <= size
    if not is_right:
        raise ValueError(f"{path}: refused, its heap at {start:,} states a size that cannot be")
