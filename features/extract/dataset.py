"""`features.lance`: the features of all experts, a row a clip, in one Lance dataset.

| column | type | meaning |
|---|---|---|
| `id` | text | the clip, a media fragment |
| `uri`, `start_s`, `end_s` | text, seconds | the media file and the span in it |
| `ends_file` | boolean | True for the last clip of its file, by which complete files are known |
| EXPERT | float16 or float32 list, or list of lists | a vector or tokens; null where missing |
| EXPERT`_text` | text | words that were read or heard |
| EXPERT`_labels`, EXPERT`_scores` | lists of text and float32 | the most probable classes and their probabilities |

Its metadata holds how the features were made. Rows of another making are refused. A commit is there as a whole or not
at all, so a run that was killed goes on where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

from ...base.dependencies import extra
from ...base.forks import import_lance
from ...base.lance_files import is_uncommitted, lance_reason
from ..formats import LANCE_HEADER
from .expert import Extracted

EXTRA = "extract-offline"
LAYOUT = 1
"""Version of the columns and of the header."""

PACKAGES = ("av", "numpy", "opencv-python-headless", "torch", "transformers", "rapidocr", "faster-whisper")
"""Packages whose versions are written down. Others are no reason to refuse rows."""

OWN_COLUMNS = ("id", "uri", "start_s", "end_s", "ends_file")

DType = Literal["float16", "float32"]


@dataclass(frozen=True)
class Row:
    """A clip's features. Experts that are missing have None."""

    id: str
    uri: str
    start_s: float
    end_s: float
    ends_file: bool
    outputs: Mapping[str, Extracted | None]


@dataclass(frozen=True)
class Making:
    """The settings that a dataset's features were made with.

    Attributes:
        clips: how files were cut.
        dtype: "float16" or "float32".
        experts: {name: the facts of `describe`}.
        packages: {package: version}, for information.
    """

    clips: Mapping[str, Any]
    dtype: str
    experts: Mapping[str, Mapping[str, Any]]
    packages: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The header of a dataset."""
        content = {"layout": LAYOUT, "clips": self.clips, "dtype": self.dtype, "experts": self.experts}
        return json.dumps(content | {"packages": self.packages}).encode()

    @classmethod
    def from_schema(cls, path: Path, schema: Any) -> Making:
        """The header of a dataset. Raises ValueError for a dataset that holds no features."""
        metadata = schema.metadata or {}
        if LANCE_HEADER not in metadata:
            raise ValueError(f"{path}: expected features, as `extract` writes them; found another Lance dataset")
        try:
            content = json.loads(metadata[LANCE_HEADER])
            if content["layout"] != LAYOUT:
                raise ValueError(f"layout {content['layout']}")
            return cls(content["clips"], content["dtype"], content["experts"], content["packages"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected features of `extract` of layout {LAYOUT}: {error!r}") from None

    def check_same(self, other: Making, path: Path) -> None:
        """Raise ValueError where rows of another making would be mixed in, naming the first difference."""
        ours, others = (json.loads(x.to_json()) for x in (self, other))
        for key in ("clips", "dtype"):
            if ours[key] != others[key]:
                raise _mixing(path, key, others[key], ours[key])
        if list(ours["experts"]) != list(others["experts"]):
            raise _mixing(path, "experts", ", ".join(others["experts"]), ", ".join(ours["experts"]))
        for name, facts in ours["experts"].items():
            for key, value in facts.items():
                if others["experts"][name].get(key) != value:
                    raise _mixing(path, f"{key} of {name!r}", others["experts"][name].get(key), value)


def _mixing(path: Path, what: str, there: object, here: object) -> ValueError:
    return ValueError(f"{path}: holds features with {what} {there}, got {here}; write to another dataset")


def package_versions() -> dict[str, str]:
    """Versions of the packages that features may depend on, as far as they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


class FeatureDataset:
    """The dataset of one run, open for writing. Only one run writes to it at a time.

    Attributes:
        making: how its features are made.
        ids: the clips that are in the dataset.
        complete: the files of which every clip is in it, {name: uri}.

    Raises:
        OSError: it cannot be written, here or by a method.
    """

    def __init__(self, path: Path, making: Making) -> None:
        self.path, self.making = path, making
        self._lance, self._arrow = import_lance(EXTRA), extra("pyarrow", EXTRA)
        self._schema = _schema(making)
        self.ids: set[str] = set()
        self.complete: dict[str, str] = {}
        if not path.exists() or is_uncommitted(path):
            with _reporting(path):
                empty = self._schema.empty_table()
                self._lance.write_dataset(empty, str(path), mode="create", data_storage_version="2.1")
            return
        dataset = open_dataset(path)
        making.check_same(Making.from_schema(path, dataset.schema), path)
        for batch in dataset.scanner(columns=["id", "uri", "ends_file"]).to_batches():
            ids, uris, ends = (batch[name].to_pylist() for name in ("id", "uri", "ends_file"))
            self.ids.update(ids)
            self.complete.update((file_of(x), uri) for x, uri, is_end in zip(ids, uris, ends, strict=True) if is_end)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows in one commit."""
        self.append_table(rows_table(rows, self.making))

    def append_table(self, table: Any) -> None:
        """Add the rows of `rows_table` in one commit."""
        if len(table):
            with _reporting(self.path):
                self._lance.write_dataset(table.cast(self._schema), str(self.path), mode="append")
        self.ids.update(table["id"].to_pylist())

    def compact(self) -> None:
        """Join the small files that many commits leave, which are slow to read."""
        dataset = open_dataset(self.path)
        if len(dataset.get_fragments()) > 1:
            with _reporting(self.path):
                dataset.optimize.compact_files()
                dataset.cleanup_old_versions(retain_versions=1)


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Errors of Lance where it writes as an OSError of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(f"{path}: cannot be written: {lance_reason(error)}") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """The turn to write to a dataset.

    Raises:
        FileNotFoundError: the folder that is to hold it does not exist.
        ValueError: the path does not end in `.lance`.
        OSError: another run is writing to it.
    """
    if path.suffix != ".lance":
        raise ValueError(f"{path}: expected a name that ends in .lance")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    filelock = extra("filelock", EXTRA)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OSError(f"{path}: another run is writing to it") from None
    try:
        yield
    finally:
        lock.release()


def open_dataset(path: Path) -> Any:
    """The newest version of a dataset. Raises ValueError where there is something else at the path."""
    if path.is_file():
        raise ValueError(f"{path}: expected a Lance dataset of features, as `extract` writes it; found a file")
    try:
        return import_lance(EXTRA).dataset(str(path))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a Lance dataset of features: {lance_reason(error)}") from None


def file_of(clip_id: str) -> str:
    """The name of the file in a clip's id, as it was before `clips.fragment` escaped it."""
    return unquote(clip_id.partition("#")[0])


# --- Arrow ------------------------------------------------------------------------------------------------


def rows_table(rows: Sequence[Row], making: Making) -> Any:
    """Rows as an Arrow table of a dataset's columns."""
    if not rows:
        return _schema(making).empty_table()
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in OWN_COLUMNS}
    for name, facts in making.experts.items():
        outputs = [row.outputs[name] for row in rows]
        arrays = [None if x is None else x.array for x in outputs]
        columns[name] = _array_column(arrays, facts, np.dtype(making.dtype))
        if facts["reads_text"]:
            columns[f"{name}_text"] = [None if x is None else x.text for x in outputs]
        if facts["has_labels"]:
            columns[f"{name}_labels"] = [None if x is None else list(x.labels) for x in outputs]
            columns[f"{name}_scores"] = [None if x is None else list(x.scores) for x in outputs]
    return extra("pyarrow", EXTRA).table(columns, schema=_schema(making))


def _schema(making: Making) -> Any:
    arrow = extra("pyarrow", EXTRA)
    number = arrow.float16() if making.dtype == "float16" else arrow.float32()
    columns = {
        "id": arrow.string(),
        "uri": arrow.string(),
        "start_s": arrow.float64(),
        "end_s": arrow.float64(),
        "ends_file": arrow.bool_(),
    }
    for name, facts in making.experts.items():
        vector = arrow.list_(number, facts["dim"])
        added = {name: arrow.list_(vector) if facts["sequence"] else vector}
        if facts["reads_text"]:
            added[f"{name}_text"] = arrow.string()
        if facts["has_labels"]:
            added |= {f"{name}_labels": arrow.list_(arrow.string()), f"{name}_scores": arrow.list_(arrow.float32())}
        twice = added.keys() & columns.keys()
        if twice:
            raise ValueError(f"experts: the name {name!r} makes a second column {min(twice)!r}")
        columns |= added
    return arrow.schema(list(columns.items()), metadata={LANCE_HEADER: making.to_json()})


def _array_column(arrays: Sequence[np.ndarray | None], facts: Mapping[str, Any], dtype: np.dtype) -> Any:
    """Vectors or tokens as a list column, None being null."""
    arrow = extra("pyarrow", EXTRA)
    dim, missing = facts["dim"], arrow.array([x is None for x in arrays])
    if not facts["sequence"]:
        flat = np.concatenate([np.zeros(dim, dtype) if x is None else x.astype(dtype) for x in arrays])
        return arrow.FixedSizeListArray.from_arrays(arrow.array(flat), dim, mask=missing)
    parts = [x.astype(dtype).reshape(-1) for x in arrays if x is not None]
    flat = np.concatenate(parts) if parts else np.empty(0, dtype)
    ends = np.cumsum([0, *(0 if x is None else len(x) for x in arrays)])
    tokens = arrow.FixedSizeListArray.from_arrays(arrow.array(flat), dim)
    return arrow.ListArray.from_arrays(arrow.array(ends, arrow.int32()), tokens, mask=missing)
