"""Embeddings of videos in a Lance dataset: rows that are added, replaced and deleted in commits, and read back.

A commit is there as a whole or not at all, whatever happens to the process. Readers see the version that they opened.
Writers of one machine take turns by a lock file, and commits of other machines are retried by Lance.

| column | type | meaning |
|---|---|---|
| `id` | text | unique |
| `pattern` | text | availability in the model's order, such as `101` |
| `vector` | float32 list | the joint vector, missing experts zeroed |
| `coarse`, `fine` | int8 lists | its codes (exact_search.py) |
| `scale`, `residual`, `fine_residual` | float32 lists | of the codes, one value an expert |
| `uri`, `start_s`, `end_s` | text, seconds | the media file and the span in it |
| `metadata` | JSON | whatever the caller wants to find again |
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ..base.dependencies import extra
from ..base.slices import slices
from .embeddings import ModelIdentity
from .exact_search import CHUNK, FINE_STEPS, Chunk, Codes, Columns, Vectors, quantise
from .rows import Extras, Header, NewVideos, StoreReport

LAYOUT = 1
"""Version of the columns and of the header."""

_HEADER = b"collaborative_experts.index"

KEPT = timedelta(minutes=10)
"""Versions younger than this stay, since another process may be reading them."""

SMALL_FRAGMENT = 1024
MOST_SMALL_FRAGMENTS = 64
"""So many fragments of fewer than `SMALL_FRAGMENT` rows are put together when rows are added."""

WRITTEN_BYTES = 32 * 2**20
"""Vectors that are quantised and handed over at once."""

FEW_IDS = 1000
"""Up to so many ids are looked up; for more, all ids are read."""

LISTED_IDS = 10_000
"""Ids named in one condition."""


@dataclass(frozen=True)
class CodeRows(Columns):
    """The coarse codes of n rows.

    Attributes:
        addresses: (n,) int64, fragment * 2^32 + place in it.
        coarse: (n, sum of D) int8.
        scale, residual: (n, M) float32, as in `Codes`.
        available: (n, M) bool.
    """

    addresses: np.ndarray
    coarse: np.ndarray
    scale: np.ndarray
    residual: np.ndarray
    available: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Some rows of one version of the dataset.

    Attributes:
        addresses: (n,) int64.
        positions: (n,) int64, their places among the rows that are not deleted.
    """

    dataset: Any
    addresses: np.ndarray
    positions: np.ndarray

    def take(self, columns: Sequence[str]) -> Any:
        """An Arrow table of these columns; without its first axis chunked."""
        return self.dataset.take(self.positions, columns=list(columns)).combine_chunks()


class StoreError(OSError):
    """A store that cannot be read or written; the message names it."""


_LANCE_FAILURES = ("LanceError", "External error", "Encountered", "Invalid user input: Range")
"""Beginnings of Lance's ValueErrors that are of the files and not of the caller."""


class VideoStore:
    """A Lance dataset of joint vectors.

    Args:
        uri: a path ending in `.lance`, or an object store's uri that Lance understands.

    Raises:
        ImportError: without pylance, naming the extra that brings it.
        FileNotFoundError: the folder that is to hold it does not exist.
        ValueError: there is something else at the path, or a store of another layout.
        OSError: it cannot be read.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._local = "://" not in uri
        self._lance = _import_lance()
        if self._local and not Path(uri).parent.is_dir():
            raise FileNotFoundError(f"{uri}: there is no folder {Path(uri).parent}")
        self._dataset: Any = None
        self.header: Header | None = None
        self.refresh()

    # --- reading ------------------------------------------------------------------------------------------

    def refresh(self) -> Any:
        """The newest version as a Lance dataset; None while nothing was added."""
        with self._reporting("read"):
            if self._dataset is None:
                self._dataset = self._open()
            elif self._dataset.latest_version != self._dataset.version:
                self._dataset = self._lance.dataset(self.uri)
            if self._dataset is not None and self.header is None:
                self.header = self._read_header()
        return self._dataset

    def _open(self) -> Any:
        if self._local and not Path(self.uri).exists():
            return None
        try:
            return self._lance.dataset(self.uri)
        except (ValueError, OSError) as error:
            if "was not found" in str(error) or "Not found" in str(error):
                if self._local and any(Path(self.uri).iterdir()):
                    raise ValueError(f"{self.uri}: expected a Lance dataset, found something else") from None
                return None
            raise

    def _read_header(self) -> Header:
        try:
            content = json.loads(self._dataset.schema.metadata[_HEADER])
            if content["layout"] != LAYOUT:
                raise ValueError(f"layout {content['layout']}")
            model = content["model"]
            return Header(content["dims"], ModelIdentity(**model) if model else None)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.uri}: expected a store of VideoIndex of layout {LAYOUT}: {error!r}") from None

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Errors of Lance as a `StoreError` of one line."""
        try:
            yield
        except StoreError:
            raise
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{self.uri}: cannot {what}: {_first_line(error)}") from None
        except ValueError as error:
            if not str(error).startswith(_LANCE_FAILURES):
                raise
            raise StoreError(f"{self.uri}: cannot {what}: {_first_line(error)}") from None

    def addresses(self, dataset: Any, where: str | None = None, ids: Sequence[str] | None = None) -> np.ndarray:
        """Row addresses (n,) int64, ascending, of the rows that meet a SQL condition and have one of these ids.

        Raises:
            ValueError: Lance does not understand the condition.
        """
        conditions = [None] if ids is None else [_among(ids[rows]) for rows in slices(len(ids), LISTED_IDS)]
        found = [np.empty(0, dtype=np.int64)]
        for condition in conditions:
            both = " AND ".join(f"({part})" for part in (where, condition) if part)
            try:
                table = dataset.scanner(columns=[], filter=both or None, with_row_address=True).to_table()
            except ValueError as error:
                raise ValueError(f"where: {_first_line(error).removeprefix('Invalid user input: ')}") from None
            found.append(table["_rowaddr"].to_numpy().astype(np.int64))
        return np.unique(np.concatenate(found))

    def read_codes(self, dataset: Any, fragments: Sequence[Any] | None = None) -> Iterator[CodeRows]:
        """The coarse codes of some fragments, or of all, in pieces of at most `CHUNK` rows, by address."""
        columns = ["pattern", "coarse", "scale", "residual"]
        scanner = dataset.scanner(
            columns=columns, fragments=fragments, batch_size=CHUNK, with_row_address=True, scan_in_order=True
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield CodeRows(
                    batch["_rowaddr"].to_numpy().astype(np.int64),
                    _matrix(batch["coarse"]),
                    _matrix(batch["scale"]),
                    _matrix(batch["residual"]),
                    availability(batch["pattern"].to_pylist()),
                )

    def read_vectors(self, rows: Rows) -> Vectors:
        """Ids and float32 vectors of some rows, whose addresses ascend."""
        table = rows.take(["id", "pattern", "vector"])
        return Vectors(
            rows.addresses,
            np.array(table["id"].to_pylist(), dtype=object),
            _matrix(table["vector"]),
            availability(table["pattern"].to_pylist()),
            np.zeros(len(rows.addresses)),
        )

    def read_extras(self, rows: Rows) -> Extras:
        """The columns of some rows that no score depends on."""
        table = rows.take(["uri", "start_s", "end_s", "metadata"])
        uris, metadata = (np.empty(len(table), dtype=object) for _ in range(2))
        uris[:] = table["uri"].to_pylist()
        metadata[:] = [None if text is None else json.loads(text) for text in table["metadata"].to_pylist()]
        spans = np.stack([table[name].to_numpy() for name in ("start_s", "end_s")], axis=1)
        return Extras(uris, spans, metadata)

    def read_fine(self, rows: Rows) -> Iterator[tuple[np.ndarray, Chunk]]:
        """The fine codes of some rows, in chunks, with the addresses of their rows."""
        dims = list(self.header.dims.values())
        for part in slices(len(rows.addresses), CHUNK):
            piece = Rows(rows.dataset, rows.addresses[part], rows.positions[part])
            table = piece.take(["pattern", "fine", "scale", "fine_residual"])
            chunk = Chunk(
                _matrix(table["fine"]),
                _matrix(table["scale"]) / FINE_STEPS,
                _matrix(table["fine_residual"]),
                availability(table["pattern"].to_pylist()),
                dims,
            )
            yield piece.addresses, chunk

    def to_arrow(self) -> Any:
        """All rows as a table, without the codes."""
        columns = ["id", "pattern", "vector", "uri", "start_s", "end_s", "metadata"]
        dataset = self.refresh()
        if dataset is None:
            raise ValueError(f"{self.uri}: holds no videos yet")
        return dataset.to_table(columns=columns)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Errors of Lance as an OSError of one line."""
        with self._reporting("read"):
            yield

    # --- writing ------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """The turn to write, and errors as an OSError. Writers of one machine wait for each other."""
        if not self._local:
            with self._reporting(what):
                yield
            return
        path = Path(self.uri)
        lock = extra("filelock", "index").FileLock(path.with_name(f".{path.name}.lock"))
        with self._reporting(what), lock:
            yield

    def _writable(self) -> Any:
        """The newest version in an object of its own: a write moves the object on to the version that it makes."""
        return self._lance.dataset(self.uri)

    def create(self, header: Header) -> None:
        """An empty store, unless another process has just made one."""
        if self.refresh() is None:
            empty = _schema(header).empty_table()
            self._lance.write_dataset(empty, self.uri, mode="create", data_storage_version="2.1")
            self.refresh()

    def upsert(self, videos: NewVideos, progress: Any) -> None:
        """Add videos, or replace those whose id is there: in one commit where all are new, else piece by piece.

        Args:
            progress: has `update(count)`.
        """
        dataset = self.refresh()
        batches = self._batches(videos, progress)
        if not self._holds_any(videos.ids):
            reader = extra("pyarrow", "index").RecordBatchReader.from_batches(dataset.schema, batches)
            self._lance.write_dataset(reader, self.uri, mode="append")
        else:
            for batch in batches:
                merge = self._writable().merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch)
        self.refresh()
        self._join_small_fragments()

    def _batches(self, videos: NewVideos, progress: Any) -> Iterator[Any]:
        dims, schema = list(self.header.dims.values()), self._dataset.schema
        for rows in slices(len(videos), max(1, WRITTEN_BYTES // (4 * sum(dims)))):
            joint = videos.joint(rows)
            codes = quantise(joint, dims)
            yield _record_batch(schema, videos.ids[rows], videos.available[rows], joint, codes, videos.extras[rows])
            progress.update(len(joint))

    def _holds_any(self, ids: Sequence[str]) -> bool:
        """True where any of these ids is in the store."""
        dataset = self.refresh()
        if len(ids) <= FEW_IDS:
            return dataset.scanner(columns=["id"], filter=_among(ids), limit=1).to_table().num_rows > 0
        compute, arrow = extra("pyarrow.compute", "index"), extra("pyarrow", "index")
        wanted = arrow.array(ids)
        batches = dataset.scanner(columns=["id"]).to_batches()
        return any(compute.any(compute.is_in(batch["id"], value_set=wanted)).as_py() for batch in batches)

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the rows of these ids; ids that are not there are passed over."""
        for rows in slices(len(ids), LISTED_IDS):
            self._writable().delete(_among(ids[rows]))

    def _join_small_fragments(self) -> None:
        """Many small additions make many small files, which are slow to read."""
        small = [x for x in self._dataset.get_fragments() if x.physical_rows < SMALL_FRAGMENT]
        if len(small) >= MOST_SMALL_FRAGMENTS:
            dataset = self._writable()
            dataset.optimize.compact_files(target_rows_per_fragment=CHUNK)
            dataset.cleanup_old_versions(older_than=KEPT)
            self.refresh()

    def optimise(self) -> StoreReport:
        """Join small files, drop deleted rows and old versions, and index the ids."""
        before = self._size()
        dataset = self._writable()
        dataset.optimize.compact_files()
        dataset.create_scalar_index("id", "BTREE", replace=True)
        dataset.cleanup_old_versions(older_than=KEPT)
        after = self._size()
        return StoreReport(self._dataset.count_rows(), *zip(before, after, strict=True))

    def _size(self) -> tuple[int, int, int]:
        """Fragments, versions and bytes of the store."""
        dataset = self.refresh()
        size = sum(x.stat().st_size for x in Path(self.uri).rglob("*") if x.is_file()) if self._local else 0
        return len(dataset.get_fragments()), len(dataset.versions()), size


# --- Arrow ------------------------------------------------------------------------------------------------


def _import_lance() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return extra("lance", "index")


def _schema(header: Header) -> Any:
    arrow = extra("pyarrow", "index")
    size, experts = sum(header.dims.values()), len(header.dims)
    columns = {
        "id": arrow.string(),
        "pattern": arrow.string(),
        "vector": arrow.list_(arrow.float32(), size),
        "coarse": arrow.list_(arrow.int8(), size),
        "fine": arrow.list_(arrow.int8(), size),
        "scale": arrow.list_(arrow.float32(), experts),
        "residual": arrow.list_(arrow.float32(), experts),
        "fine_residual": arrow.list_(arrow.float32(), experts),
        "uri": arrow.string(),
        "start_s": arrow.float64(),
        "end_s": arrow.float64(),
        "metadata": arrow.json_(),
    }
    return arrow.schema(columns, metadata={_HEADER: json.dumps({"layout": LAYOUT, **asdict(header)})})


def _record_batch(
    schema: Any, ids: Sequence[str], available: np.ndarray, joint: np.ndarray, codes: Codes, extras: Extras
) -> Any:
    arrow = extra("pyarrow", "index")
    metadata = [None if value is None else json.dumps(value) for value in extras.metadata]
    start, end = (arrow.array(extras.spans[:, column], from_pandas=True) for column in range(2))
    lists = {"vector": joint, **{entry.name: getattr(codes, entry.name) for entry in fields(Codes)}}
    columns = {
        "id": arrow.array(ids, arrow.string()),
        "pattern": arrow.array(patterns(available), arrow.string()),
        **{
            name: arrow.FixedSizeListArray.from_arrays(arrow.array(x.reshape(-1)), x.shape[1])
            for name, x in lists.items()
        },
        "uri": arrow.array(extras.uris, arrow.string()),
        "start_s": start,
        "end_s": end,
        "metadata": arrow.array(metadata, arrow.string()).cast(arrow.json_()),
    }
    return arrow.record_batch([columns[name] for name in schema.names], schema=schema)


def patterns(available: np.ndarray) -> list[str]:
    """(n, M) bool -> n texts such as "101", in the model's order."""
    digits = np.where(available, b"1", b"0")
    return [row.tobytes().decode() for row in digits]


def availability(texts: Sequence[str]) -> np.ndarray:
    """n texts such as "101" -> (n, M) bool."""
    digits = np.frombuffer("".join(texts).encode(), dtype=np.uint8)
    return (digits == ord("1")).reshape(len(texts), len(texts[0]) if texts else 0)


def _matrix(column: Any) -> np.ndarray:
    """(n, size) of a column of lists of one size; no copy where Arrow holds it in one piece."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def _among(ids: Sequence[str]) -> str:
    """A condition that an id is one of these."""
    return "id IN ({})".format(", ".join("'" + video.replace("'", "''") + "'" for video in ids))


def _first_line(error: BaseException) -> str:
    """What Lance says, without the place in its own sources."""
    return str(error).partition(", /")[0].splitlines()[0]
