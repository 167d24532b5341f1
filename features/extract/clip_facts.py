"""The rows of `features.lance` beside their features: where a clip lies, what was read and heard, and its labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base.slices import slices
from .dataset import Making, open_dataset

BATCH = 1024
SHOWN_LABELS = 5
"""Labels of an expert that go into the metadata of a video."""


@dataclass(frozen=True)
class ClipFacts:
    """A clip without its features.

    Attributes:
        id: the clip.
        uri: the media file.
        span: first and last second.
        text: {expert: what was read or heard}, for the experts that have it.
        labels: {expert: names of the most probable classes, best first}, for the experts that have them.
        scores: {expert: their probabilities}.
    """

    id: str
    uri: str
    span: tuple[float, float]
    text: Mapping[str, str]
    labels: Mapping[str, Sequence[str]]
    scores: Mapping[str, Sequence[float]]

    @property
    def metadata(self) -> dict[str, Any] | None:
        """{"text": {expert: text}, "labels": {expert: the best five}}, with what is there; None without any."""
        labels = {name: list(x[:SHOWN_LABELS]) for name, x in self.labels.items()}
        return {key: value for key, value in (("text", dict(self.text)), ("labels", labels)) if value} or None


def iter_clip_facts(
    path: Path, vectors: Sequence[str] = (), rows: Sequence[int] | None = None
) -> Iterator[tuple[list[ClipFacts], dict[str, list[np.ndarray | None]]]]:
    """The clips of a dataset, `BATCH` at a time, and the features of some experts.

    Args:
        vectors: the experts, whose features are (dim,) or (N, dim) float32, None where missing.
        rows: those to read, counted from 0; None reads all.

    Raises:
        ValueError: the path holds no features of `extract`.
    """
    dataset = open_dataset(path)
    experts = Making.from_schema(path, dataset.schema).experts
    columns = ["id", "uri", "start_s", "end_s", *vectors]
    columns += [f"{name}_text" for name, facts in experts.items() if facts["reads_text"]]
    for name, facts in experts.items():
        columns += [f"{name}_labels", f"{name}_scores"] if facts["has_labels"] else []
    rows = range(dataset.count_rows()) if rows is None else rows
    for some in slices(len(rows), BATCH):
        batch = dataset.take(list(rows[some]), columns=columns)
        arrays = {name: [_array(x) for x in batch[name]] for name in vectors}
        yield [_facts(row, experts) for row in batch.drop_columns(list(vectors)).to_pylist()], arrays


def _facts(row: Mapping[str, Any], experts: Mapping[str, Any]) -> ClipFacts:
    def there(suffix: str) -> dict[str, Any]:
        return {name: row[f"{name}_{suffix}"] for name in experts if row.get(f"{name}_{suffix}")}

    span = (row["start_s"], row["end_s"])
    return ClipFacts(row["id"], row["uri"], span, there("text"), there("labels"), there("scores"))


def _array(value: Any) -> np.ndarray | None:
    return np.asarray(value.as_py(), dtype=np.float32) if value.is_valid else None
