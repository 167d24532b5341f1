"""Rows of one expert by video id, as clean float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..base.checks import check_unique
from ..base.config import ExpertConfig
from .formats import ID_NAMES, Source, reading

ExpertFeatures = np.ndarray | list[np.ndarray | None]
"""(B, dim) float32 with NaN rows where missing, or a list of B token sequences (N, dim) float32, None where missing."""


class ExpertReader:
    """The features of one expert, read by video id and checked.

    Args:
        name: the expert's name, for messages.
        source: its open file.
        expert: the model's expert, which says whether rows are token sequences and what their dimension is. None takes
            both from the first row that is not missing.

    Raises:
        ValueError: the file has an id twice, or a row that is no vector and no token sequence.
    """

    def __init__(self, name: str, source: Source, expert: ExpertConfig | None) -> None:
        self.name, self._source = name, source
        check_unique(source.ids, str(source.path))
        self._position = {video: position for position, video in enumerate(source.ids)}
        self._is_sequence, self._dim = (expert.variable, expert.dim) if expert else self._form_of_first_row()

    def read(self, ids: Sequence[str]) -> ExpertFeatures:
        """The features of these videos, in this order. A video that the file does not have is missing."""
        known = sorted((self._position[video], i) for i, video in enumerate(ids) if video in self._position)
        rows: list[np.ndarray | None] = [None] * len(ids)
        for (_, i), row in zip(known, self._rows([position for position, _ in known]), strict=True):
            rows[i] = self._fit(self._clean(row, ids[i]), ids[i])
        if self._is_sequence:
            return rows
        matrix = np.full((len(ids), self._dim), np.nan, dtype=np.float32)
        for i, x in enumerate(rows):
            if x is not None:
                matrix[i] = x
        return matrix

    def _form_of_first_row(self) -> tuple[bool, int]:
        """Whether rows are token sequences, and their dimension; (False, 0) where all rows are missing."""
        for position, video in enumerate(self._source.ids):
            x = self._clean(self._rows([position])[0], video)
            if x is not None:
                return x.ndim == 2, x.shape[-1]
        return False, 0

    def _rows(self, positions: list[int]) -> Sequence[ArrayLike]:
        with reading(self._source.path):
            return self._source.rows(np.array(positions, dtype=int))

    def _clean(self, row: ArrayLike, video: str) -> np.ndarray | None:
        """The row as float32, or None where it is missing."""
        try:
            x = np.asarray(row)
            if x.dtype == object:
                x = np.stack([np.asarray(token, dtype=np.float64) for token in x]) if x.size else np.empty(0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._where(video)}: expected a vector, or tokens of equal size: {error}") from None
        if x.size == 0:
            return None
        if x.dtype.kind not in "fiu":
            hint = f" (ids are looked for as {' or '.join(ID_NAMES)})" if x.dtype.kind in "SU" else ""
            raise ValueError(f"{self._where(video)}: expected numbers, got {x.dtype}{hint}")
        # Too large, too small and signalling NaN are looked for below, whatever the caller has NumPy do about them.
        with np.errstate(all="ignore"):
            is_missing = np.isnan(x).any()
            x = x.astype(np.float32)
        if is_missing:
            return None
        if x.ndim not in (1, 2):
            raise ValueError(f"{self._where(video)}: expected (dim,) or tokens (N, dim), got {x.shape}")
        if np.isinf(x).any():
            raise ValueError(
                f"{self._where(video)}: expected finite features, or NaN where the expert is missing; got Inf"
            )
        return x

    def _fit(self, x: np.ndarray | None, video: str) -> np.ndarray | None:
        """The row, or ValueError unless it has the expert's form. One token of a fixed expert becomes its vector."""
        if x is None:
            return None
        if not self._is_sequence and x.ndim == 2 and len(x) == 1:
            x = x[0]
        if x.ndim != (2 if self._is_sequence else 1) or x.shape[-1] != self._dim:
            expected = f"(N, {self._dim})" if self._is_sequence else f"({self._dim},)"
            needs_mean = x.ndim == 2 and not self._is_sequence
            hint = "; average its tokens first, or give the expert clusters" if needs_mean else ""
            raise ValueError(f"{self._where(video)}: expected {expected}, got {x.shape}{hint}")
        return x

    def _where(self, video: str) -> str:
        return f"{self._source.path}, {self.name!r}, video {video!r}"
