"""Matrices as columns of Arrow, a list of one size in each row."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dependencies import extra


def from_matrix(matrix: np.ndarray) -> Any:
    """(n, size) as an array of n lists."""
    arrow = extra("pyarrow", "index")
    return arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.reshape(-1)), matrix.shape[1])


def to_matrix(column: Any) -> np.ndarray:
    """(n, size) of a column of lists of one size; no copy where Arrow holds it in one piece."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
