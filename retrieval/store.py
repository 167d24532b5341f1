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
| `bias_KEY` | float64 | after `calibrate`: what the query bank KEY takes from the video's scores |

The texts of a query bank lie in a dataset of their own, `_banks/KEY.lance`, in the store's folder. It is written before
the column, and the commit of the column puts the bank in force.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..base.dependencies import extra, is_panic
from ..base.forks import check_lance, import_lance
from ..base.lance_files import check_footers, check_lookups, is_uncommitted, lance_reason, seal_lookups
from ..base.matrices import from_matrix, to_matrix
from ..base.slices import slices
from ..base.threads import in_order
from ..features.formats import LANCE_HEADER
from .arrays import as_numpy
from .embeddings import ModelIdentity, TextEmbeddings
from .exact_search import FINE_STEPS, Chunk, Codes, Columns, Vectors, quantise
from .normalise import QueryBank
from .rows import Extras, Header, NewVideos, Stored, StoreReport, availability, patterns

ROWS = 8192
"""Rows that are read at once, and of a fragment that small ones are joined to."""

LAYOUT = 1
"""Version of the columns and of the header."""

_HEADER = b"collaborative_experts.index"

_WEIGHTS = "collaborative_experts.weights"
"""Key of the dataset's metadata for the path of the weights."""

KEPT = timedelta(minutes=10)
"""Versions younger than this stay, since another process may be reading them."""

SMALL_FRAGMENT = 1024
MOST_SMALL_FRAGMENTS = 64
"""The number of fragments of fewer than `SMALL_FRAGMENT` rows at which they are put together, when rows are added."""

READ_BYTES, REMOTE_READ_BYTES = 2**20, 2**23
"""Codes that are read at once, from this machine and from elsewhere, where each reading waits for an answer. Lance's
threads keep what they read into: of more at once, more memory stays with the allocator."""

WRITTEN_BYTES, MERGED_BYTES = 2**22, 2**25
"""Vectors that are quantised and handed over at once: to an append, and to a merge, which is a commit each."""

SCAN_BYTES = 2**23
"""What a scan keeps that is read and not yet asked for: Lance reads no less than a page."""

AHEAD_BYTES = 2**25
"""Vectors that are quantised ahead of what is written."""

READ_AHEAD = 2
"""Ranges of codes that are read ahead."""

FEW_IDS = 1000
"""Up to so many ids are looked up; for more, all ids are read."""

LEAST_PROBES, PROBED_SHARE = 16, 8
"""An approximate search reads this many partitions, or one in so many where that is more."""

_APPROXIMATE = "approximate"
"""Name of Lance's index of the joint vectors: partitions of vectors near each other."""

LONGEST_REASON = 200
"""Characters of what is said against a condition."""

LISTED_IDS = 10_000
"""Ids, or addresses of rows, named in one condition."""


@dataclass(frozen=True)
class CodeRows(Columns):
    """The coarse codes of n rows.

    Attributes:
        addresses: (n,) int64, fragment * 2^32 + place in it.
        coarse: M arrays (n, D) int8.
        scale, residual: (n, M) float32, as in `Codes`.
        available: (n, M) bool.
        bias: (n,) float64, as in `Vectors`.
    """

    addresses: np.ndarray
    coarse: tuple[np.ndarray, ...]
    scale: np.ndarray
    residual: np.ndarray
    available: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Rows:
    """Some rows of one version of the dataset.

    Attributes:
        addresses: (n,) int64, ascending.
        positions: (n,) int64, their places among all rows; None where rows of the dataset are deleted, for there Lance
            takes longer by place the more rows it has: 31 ms for 100 of 100,000, and 1.3 ms by address.
    """

    dataset: Any
    addresses: np.ndarray
    positions: np.ndarray | None

    def __getitem__(self, part: slice) -> Rows:
        return replace(
            self, addresses=self.addresses[part], positions=None if self.positions is None else self.positions[part]
        )

    def take(self, columns: Sequence[str]) -> Any:
        """An Arrow table of these columns; without its first axis chunked."""
        if self.positions is not None:
            return self.dataset.take(self.positions, columns=list(columns)).combine_chunks()
        parts = [self._listed(columns, self.addresses[part]) for part in slices(len(self.addresses), LISTED_IDS)]
        return extra("pyarrow", "index").concat_tables(parts).combine_chunks()

    def _listed(self, columns: Sequence[str], addresses: np.ndarray) -> Any:
        condition = f"_rowaddr IN ({', '.join(map(str, addresses.tolist()))})"
        return self.dataset.scanner(columns=list(columns), filter=condition, scan_in_order=True).to_table()


class StoreError(OSError):
    """A store that cannot be read or written; the message names it."""


_LANCE_FAILURES = (
    "LanceError",
    "External error",
    "Encountered",
    "Dataset at path",
    "Invalid user input: Range",
    "Invalid user input: Non-leaf",
)
"""Beginnings of Lance's ValueErrors that are of the files and not of the caller."""


_ON_A_ROW = "Error applying filter expression to batch: "
"""What Lance says where a condition that it understands fails on a row, such as on a word that is to be a number."""


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
        self._local = "://" not in uri
        self.uri = str(Path(uri).absolute()) if self._local else uri  # also where the process changes its folder
        self._lance = import_lance("index")
        if self._local and not Path(self.uri).parent.is_dir():
            raise FileNotFoundError(f"{uri}: there is no folder {Path(uri).parent}")
        self._dataset: Any = None
        self._folder: tuple[int, ...] | None = None  # in which it was opened, as `_look_at_folder` tells it
        self.header: Header | None = None
        self._banks: dict[str, QueryBank] = {}
        self.refresh()

    @property
    def stated(self) -> Header:
        """The header. Raises ValueError while there is none."""
        if self.header is None:
            raise ValueError(f"{self.uri}: holds no videos yet; add some first")
        return self.header

    # --- reading ------------------------------------------------------------------------------------------

    def refresh(self) -> Any:
        """The newest version as a Lance dataset; None while nothing was added."""
        check_lance()
        with self._reporting("read"):
            folder = self._look_at_folder()
            before = dataset = self._dataset if folder == self._folder else None
            if before is None:
                dataset = self._open()
                if dataset is None and self.header is not None:
                    raise StoreError(f"{self.uri}: cannot read: it is gone")
            elif before.latest_version != before.version:
                dataset = self._lance.dataset(self.uri)
            if dataset is not before:
                self.header, self._folder = self._read_header(dataset), folder
                if self._local:
                    check_lookups(Path(self.uri))
                    if before is None:
                        check_footers(Path(self.uri))
                self._dataset = dataset
        return self._dataset

    def _look_at_folder(self) -> tuple[int, ...] | None:
        """What tells a folder from another that takes its place; None without one on this machine."""
        try:
            stat = Path(self.uri).stat() if self._local else None
        except FileNotFoundError:
            return None
        return stat and (stat.st_dev, stat.st_ino, stat.st_ctime_ns)

    @property
    def weights_path(self) -> Path | None:
        """The path that `note_weights` was given; None where it was not, or nothing was added."""
        dataset = self.refresh()
        with self._reporting("read"):
            noted = None if dataset is None else dataset.metadata.get(_WEIGHTS)
        if noted is None:
            return None
        return (Path(self.uri).resolve().parent / noted).resolve() if self._local else Path(noted)

    def _open(self) -> Any:
        if self._local and not Path(self.uri).exists():
            return None
        try:
            return self._lance.dataset(self.uri)
        except (ValueError, OSError) as error:
            if "was not found" in str(error) or "Not found" in str(error):
                if self._local and not is_uncommitted(Path(self.uri)):
                    raise ValueError(f"{self.uri}: expected a Lance dataset, found something else") from None
                return None
            raise

    def _read_header(self, dataset: Any) -> Header:
        metadata = dataset.schema.metadata or {}
        if _HEADER not in metadata:
            found = "features, of which `embed` makes one" if LANCE_HEADER in metadata else "another Lance dataset"
            raise ValueError(f"{self.uri}: expected an index, as `embed` writes it; found {found}")
        try:
            content = json.loads(metadata[_HEADER])
            if content["layout"] != LAYOUT:
                raise ValueError(f"layout {content['layout']}")
            model = content["model"]
            return Header(content["dims"], ModelIdentity(**model) if model else None)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.uri}: expected a store of VideoIndex of layout {LAYOUT}: {error!r}") from None

    @contextmanager
    def _reporting(self, what: str) -> Iterator[None]:
        """Errors of Lance as a `StoreError` of one line. The dataset is opened anew after one, since another may have
        been put in its place."""
        try:
            with self._translating(what):
                yield
        except StoreError:
            self._dataset = None
            raise

    @contextmanager
    def _translating(self, what: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{self.uri}: cannot {what}: {lance_reason(error)}") from None
        except ValueError as error:
            # Ours begin with the store or the argument; others come of Lance, Arrow, JSON or a text that is damaged.
            if str(error).startswith((self.uri, "where: ", "search: ")):
                raise
            raise StoreError(f"{self.uri}: cannot {what}: {lance_reason(error)}") from None
        except BaseException as error:
            if not is_panic(error):
                raise
            raise StoreError(f"{self.uri}: cannot {what}, its files are damaged: {lance_reason(error)}") from None

    def addresses(self, dataset: Any, where: str | None = None, ids: Sequence[str] | None = None) -> np.ndarray:
        """Row addresses (n,) int64, ascending, of the rows that meet a SQL condition and have one of these ids.

        Raises:
            ValueError: Lance does not understand the condition.
        """
        conditions = [None] if ids is None else [_among(ids[rows]) for rows in slices(len(ids), LISTED_IDS)]
        found = [np.empty(0, dtype=np.int64)]
        for condition in conditions:
            both = " AND ".join(f"({part})" for part in (where, condition) if part)
            found.append(self._row_addresses(dataset, where, columns=[], filter=both or None))
        return np.unique(np.concatenate(found))

    def nearest(self, dataset: Any, joint: np.ndarray, count: int, where: str | None) -> np.ndarray:
        """Row addresses, ascending, of some `count` videos whose inner product with a joint vector is high.

        Raises:
            ValueError: there is no approximate index, or a condition that is not understood.
        """
        partitions = self._partitions(dataset)
        if partitions is None:
            raise ValueError(f"{self.uri}: has no approximate index; make it with optimise(approximate=True)")
        query = {"column": "vector", "q": joint, "k": count, "nprobes": max(LEAST_PROBES, partitions // PROBED_SHARE)}
        return self._row_addresses(dataset, where, columns=["_distance"], nearest=query, filter=where, prefilter=True)

    def _partitions(self, dataset: Any) -> int | None:
        """Partitions of the approximate index; None without one."""
        if not any(entry.name == _APPROXIMATE for entry in dataset.describe_indices()):
            return None
        stats = dataset.stats.index_stats(_APPROXIMATE)["indices"][0]
        return int(stats.get("num_partitions", 0))  # not stated where no video was there

    def _row_addresses(self, dataset: Any, where: str | None, **settings: Any) -> np.ndarray:
        try:
            table = dataset.scanner(with_row_address=True, **settings).to_table()
        except ValueError as error:
            is_of_files = str(error).startswith(_LANCE_FAILURES) and _ON_A_ROW not in str(error)
            if where is None or is_of_files:
                raise
            raise ValueError(f"where: {_of_condition(error)}") from None
        return np.sort(table["_rowaddr"].to_numpy().astype(np.int64))

    def read_codes(self, dataset: Any, fragments: Sequence[Any] | None = None) -> Iterator[CodeRows]:
        """The coarse codes of some fragments, or of all, in parts of about a megabyte, by address."""
        bias = bias_column(dataset.schema)
        columns = ["pattern", "coarse", "scale", "residual", *([bias] if bias else [])]
        at_once = (READ_BYTES if self._local else REMOTE_READ_BYTES) // sum(self.stated.dims.values())
        if fragments is None and has_deletions(every := dataset.get_fragments()):
            fragments = every  # in a file with deletions Lance looks for each range among all rows
        read = _in_ranges if fragments is None else partial(_scanned, fragments)
        for batch in read(dataset, columns, max(1, at_once)):
            yield CodeRows(
                batch["_rowaddr"].to_numpy().astype(np.int64),
                self._by_expert(batch["coarse"]),
                to_matrix(batch["scale"]),
                to_matrix(batch["residual"]),
                availability(batch["pattern"].to_pylist()),
                batch[bias].to_numpy() if bias else np.zeros(batch.num_rows),
            )

    def _by_expert(self, codes: Any) -> tuple[np.ndarray, ...]:
        return tuple(self.stated.by_expert(to_matrix(codes)).values())

    def read_vectors(self, rows: Rows) -> Vectors:
        """Float32 vectors of some rows, whose addresses ascend."""
        bias = bias_column(rows.dataset.schema)
        table = rows.take(["vector", *([bias] if bias else [])])
        biases = table[bias].to_numpy() if bias else np.zeros(len(rows.addresses))
        return Vectors(rows.addresses, to_matrix(table["vector"]), biases)

    def read_ids(self, rows: Rows) -> np.ndarray:
        """(n,) of str."""
        return _ids(rows.take(["id"]))

    def read_described(self, rows: Rows) -> tuple[np.ndarray, Extras]:
        """Ids (n,) of str of some rows, and the columns that no score depends on."""
        table = rows.take(["id", *_EXTRAS])
        return _ids(table), _extras(table)

    def read(self, rows: Rows) -> Stored:
        """All of some rows but their codes."""
        table = rows.take(["id", "pattern", "vector", *_EXTRAS])
        available = availability(table["pattern"].to_pylist())
        return Stored(table["id"].to_pylist(), to_matrix(table["vector"]), available, _extras(table))

    def read_fine(self, rows: Rows) -> Iterator[tuple[np.ndarray, Chunk]]:
        """The fine codes of some rows, in chunks, with the addresses of their rows."""
        for part in slices(len(rows.addresses), ROWS):
            piece = rows[part]
            table = piece.take(["pattern", "fine", "scale", "fine_residual"])
            chunk = Chunk(
                self._by_expert(table["fine"]),
                to_matrix(table["scale"]) / FINE_STEPS,
                to_matrix(table["fine_residual"]),
                availability(table["pattern"].to_pylist()),
                kept=False,
            )
            yield piece.addresses, chunk

    def to_arrow(self) -> Any:
        """All rows as a table, without the codes."""
        columns = ["id", "pattern", "vector", "uri", "start_s", "end_s", "metadata"]
        return self.refresh().to_table(columns=columns)

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
        path = Path(self.uri).resolve()  # by any link, the lock is one
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
        if not self._holds_any(videos.ids):
            batches = self._batches(videos, WRITTEN_BYTES, progress)
            reader = extra("pyarrow", "index").RecordBatchReader.from_batches(dataset.schema, batches)
            self._lance.write_dataset(reader, self.uri, mode="append")
        else:
            for batch in self._batches(videos, MERGED_BYTES, progress):
                merge = self._writable().merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(batch)
        self.refresh()
        self._join_small_fragments()

    def _batches(self, videos: NewVideos, size: int, progress: Any) -> Iterator[Any]:
        dims, schema = list(self.stated.dims.values()), self._dataset.schema
        bank, bias = self.bank(self._dataset), bias_column(schema)

        def encoded(rows: slice) -> tuple[slice, np.ndarray, Codes]:
            joint = videos.joint(rows)
            return rows, joint, quantise(joint, dims)

        parts = slices(len(videos), max(1, size // (4 * sum(dims))))
        for rows, joint, codes in in_order(encoded, parts, ahead=AHEAD_BYTES // size):
            available = videos.available[rows]
            columns: dict[str, Any] = {"id": videos.ids[rows], "pattern": patterns(available)}
            columns |= _lists(joint, codes) | _media(videos.extras[rows])
            if bank is not None and bias is not None:
                columns[bias] = bank.biases(self.stated.embeddings(joint, available))
            yield _record_batch(schema, columns)
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

    def note_weights(self, path: Path) -> None:
        """Keep the path, relative to the folder of a store on this machine. The same path makes no commit."""
        path = path.resolve()
        if path == self.weights_path:
            return
        noted = path.as_posix()
        if self._local:
            with suppress(ValueError):  # another drive of Windows
                noted = Path(os.path.relpath(path, Path(self.uri).resolve().parent)).as_posix()
        self._writable().update_metadata({_WEIGHTS: noted})
        self.refresh()

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the rows of these ids; ids that are not there are passed over."""
        for rows in slices(len(ids), LISTED_IDS):
            self._writable().delete(_among(ids[rows]))

    def _join_small_fragments(self) -> None:
        """Many small additions make many small files, which are slow to read."""
        small = [x for x in self._dataset.get_fragments() if x.physical_rows < SMALL_FRAGMENT]
        if len(small) >= MOST_SMALL_FRAGMENTS:
            dataset = self._writable()
            dataset.optimize.compact_files(target_rows_per_fragment=ROWS)
            self._clean_up(dataset)

    def calibrate(self, bank: QueryBank | None) -> None:
        """Put a query bank in force, in one commit, or none."""
        old = [name for name in self.refresh().schema.names if name.startswith(_BIAS)]
        if bank is not None:
            key = uuid.uuid4().hex
            self._lance.write_dataset(_bank_table(bank), self._bank_uri(key), mode="create")
            bias = self._lance.batch_udf(output_schema=_bias_schema(_BIAS + key))(
                partial(_biases, bank, self.stated, _BIAS + key)
            )
            self._writable().add_columns(bias, read_columns=["vector", "pattern"], batch_size=ROWS)
        if old:
            self._writable().drop_columns(old)
        self.refresh()

    def bank(self, dataset: Any) -> QueryBank | None:
        """The query bank that is in force in this version."""
        name = bias_column(dataset.schema)
        if name is None:
            return None
        if name not in self._banks:
            self._banks = {name: _read_bank(self._lance.dataset(self._bank_uri(name.removeprefix(_BIAS))), self.stated)}
        return self._banks[name]

    def _bank_uri(self, key: str) -> str:
        return f"{self.uri.rstrip('/')}/_banks/{key}.lance"

    def _forget_banks(self) -> None:
        """Remove the banks of a store on this machine that no version asks for."""
        versions = (self._lance.dataset(self.uri, version=x["version"]) for x in self._dataset.versions())
        columns = {name for version in versions for name in version.schema.names if name.startswith(_BIAS)}
        asked = {Path(self._bank_uri(name.removeprefix(_BIAS))) for name in columns}
        for path in Path(self.uri).glob("_banks/*.lance"):
            if path not in asked:
                shutil.rmtree(path)

    def optimise(self, approximate: bool) -> StoreReport:
        """Join small files, drop deleted rows and old versions, index the ids, and the vectors where they are to be."""
        before = self._size()
        dataset = self._writable()
        dataset.create_scalar_index("id", "BTREE", replace=True)
        if approximate:
            self._index_vectors(dataset)
        else:
            dataset.optimize.optimize_indices()
        dataset.optimize.compact_files()  # joins only files that are all indexed, or all not
        self._clean_up(dataset)
        if self._local:
            self._forget_banks()
        after = self._size()
        return StoreReport(self._dataset.count_rows(), *zip(before, after, strict=True))

    def _clean_up(self, dataset: Any) -> None:
        """After files were joined, which makes the index of the ids anew: drop old versions and go on to the newest."""
        dataset.cleanup_old_versions(older_than=KEPT)
        if self._local:
            seal_lookups(Path(self.uri))
        self.refresh()

    def _index_vectors(self, dataset: Any) -> None:
        """Make the approximate index: codes of one bit a dimension, or where these need another size the vectors."""
        kind = "IVF_FLAT" if sum(self.stated.dims.values()) % 8 else "IVF_RQ"
        partitions = max(1, round(dataset.count_rows() ** 0.5))
        dataset.create_index("vector", kind, name=_APPROXIMATE, metric="dot", num_partitions=partitions, replace=True)

    def _size(self) -> tuple[int, int, int]:
        """Fragments, versions and bytes of the store."""
        dataset = self.refresh()
        size = sum(x.stat().st_size for x in Path(self.uri).rglob("*") if x.is_file()) if self._local else 0
        return len(dataset.get_fragments()), len(dataset.versions()), size


# --- Arrow ------------------------------------------------------------------------------------------------

_EXTRAS = ("uri", "start_s", "end_s", "metadata")


def has_deletions(fragments: Iterable[Any]) -> bool:
    """True where rows of some fragment are deleted."""
    return any(fragment.num_deletions for fragment in fragments)


def _in_ranges(dataset: Any, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """All rows as batches of Arrow, so many at once. A scan reads whole pages, of 8 MB, on up to 16 threads, and glibc
    keeps as much memory for each thread."""
    sampler = extra("lance.sampler", "index").ShardedBatchSampler(rank=0, world_size=1)  # one that takes all, in order
    yield from sampler(dataset, columns=[*columns, "_rowaddr"], batch_size=rows, batch_readahead=READ_AHEAD)


def _scanned(fragments: Sequence[Any], dataset: Any, columns: Sequence[str], rows: int) -> Iterator[Any]:
    """The rows of some fragments as batches of Arrow, at most so many at once."""
    yield from dataset.scanner(
        columns=columns,
        fragments=fragments,
        with_row_address=True,
        scan_in_order=True,
        batch_size=rows,
        batch_readahead=1,
        fragment_readahead=1,
        io_buffer_size=SCAN_BYTES,
    ).to_batches()


def _ids(table: Any) -> np.ndarray:
    return np.array(table["id"].to_pylist(), dtype=object)


def _extras(table: Any) -> Extras:
    uris, metadata = (np.empty(len(table), dtype=object) for _ in range(2))
    uris[:] = table["uri"].to_pylist()
    metadata[:] = [None if text is None else json.loads(text) for text in table["metadata"].to_pylist()]
    spans = np.stack([table[name].to_numpy() for name in ("start_s", "end_s")], axis=1)
    return Extras(uris, spans, metadata)


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


def _lists(joint: np.ndarray, codes: Codes) -> dict[str, np.ndarray]:
    """The columns that hold one list a video."""
    return {"vector": joint, **{entry.name: getattr(codes, entry.name) for entry in fields(Codes)}}


def _media(extras: Extras) -> dict[str, Any]:
    """The columns that no score depends on."""
    start, end = extras.spans.T
    metadata = [None if value is None else json.dumps(value) for value in extras.metadata]
    return {"uri": extras.uris, "start_s": start, "end_s": end, "metadata": metadata}


def _record_batch(schema: Any, columns: dict[str, Any]) -> Any:
    """A batch of Arrow; columns of the schema that are not given are null, and so is NaN."""
    arrow = extra("pyarrow", "index")
    rows = len(columns["id"])

    def array(name: str, kind: Any) -> Any:
        if name not in columns:
            return arrow.nulls(rows, kind)
        values = columns[name]
        if arrow.types.is_fixed_size_list(kind):
            return from_matrix(values)
        if name == "metadata":
            return arrow.array(values, arrow.string()).cast(kind)
        return arrow.array(values, kind, from_pandas=True)

    return arrow.record_batch([array(field.name, field.type) for field in schema], schema=schema)


# --- query banks --------------------------------------------------------------------------------------------

_BIAS = "bias_"
"""Prefix of the column with the biases; the rest of its name is the bank's key."""

_BANK = b"collaborative_experts.bank"


def bias_column(schema: Any) -> str | None:
    """The column of the bank in force: the last, should a crash have left two."""
    names = [name for name in schema.names if name.startswith(_BIAS)]
    return names[-1] if names else None


def _bias_schema(name: str) -> Any:
    arrow = extra("pyarrow", "index")
    return arrow.schema({name: arrow.float64()})


def _biases(bank: QueryBank, header: Header, name: str, batch: Any) -> Any:
    """The biases that a bank subtracts from the scores of a batch of rows."""
    available = availability(batch["pattern"].to_pylist())
    biases = bank.biases(header.embeddings(to_matrix(batch["vector"]), available))
    return extra("pyarrow", "index").record_batch([biases], schema=_bias_schema(name))


def _bank_table(bank: QueryBank) -> Any:
    """The texts of a bank as Arrow: per text its embeddings in a row, its weights and, where it has one, its level."""
    arrow = extra("pyarrow", "index")
    embeddings = np.concatenate([as_numpy(x).astype(np.float32) for x in bank.text.embds.values()], axis=1)
    columns = {"embeddings": embeddings, "weights": as_numpy(bank.text.weights).astype(np.float32)}
    arrays = {name: from_matrix(x) for name, x in columns.items()}
    arrays |= {} if bank.levels is None else {"levels": arrow.array(bank.levels)}
    settings = {name: getattr(bank, name) for name in ("method", "beta", "alpha", "k")}
    return arrow.table(arrays).replace_schema_metadata({_BANK: json.dumps(settings)})


def _read_bank(dataset: Any, header: Header) -> QueryBank:
    """The bank that `_bank_table` wrote. Raises OSError where it is damaged."""
    try:
        table = dataset.to_table()
        embeddings = header.by_expert(to_matrix(table["embeddings"]))
        text = TextEmbeddings(embeddings, to_matrix(table["weights"]), model=header.model)
        levels = table["levels"].to_numpy() if "levels" in table.column_names else None
        return QueryBank(text, levels=levels, **json.loads((dataset.schema.metadata or {})[_BANK]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise OSError(f"its query bank is damaged: {error}") from None


# --- columns ------------------------------------------------------------------------------------------------


def _among(ids: Sequence[str]) -> str:
    """A condition that an id is one of these."""
    return "id IN ({})".format(", ".join("'" + video.replace("'", "''") + "'" for video in ids))


def _of_condition(error: ValueError) -> str:
    """What Lance says against a condition, which it repeats as a whole, or names columns that no caller knows."""
    reason = lance_reason(error).removeprefix("Invalid user input: ").partition(". Valid fields")[0]
    for begin, ours in (("Schema error: ", ""), ("sql parser error: ", ""), (_ON_A_ROW, "fails on a video: ")):
        if begin in reason:
            reason = ours + reason.rpartition(begin)[2]
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
