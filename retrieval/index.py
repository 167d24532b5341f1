"""Videos that answer queries: embeddings in Milvus, found again by CE's exact score.

One joint vector a video (`VideoEmbeddings.joint`) and its availability pattern are stored. Among videos of one pattern
the inner product of joint vectors ranks exactly as CE does, because the score is that product divided by the text's
weight of the pattern's experts. So each pattern that occurs is searched by itself, the candidates are scored from
their vectors as `similarity` does, and the best of all patterns are the answer: the same as comparing with every
video. A search costs one Milvus search a pattern: M experts have at most 2^M - 1 patterns, real collections few; how
time grows with their number is in benchmarks/README.md.
"""

from __future__ import annotations

import heapq
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..base.checks import check_unique, video_id
from ..base.dependencies import extra
from ..base.slices import slices
from .embeddings import TextEmbeddings, VideoEmbeddings

LONGEST_ID = 512
LARGEST_DIM = 32_768
"""Milvus' limit on a vector."""

MOST_RESULTS = 16_000
"""The largest k."""

MESSAGE = 32 * 2**20
"""Bytes sent or asked for at once; a server takes 64 MB."""

MOST_HITS = 16_384
"""What Milvus gives at most."""

MORE = 8
"""So many candidates beyond k are asked for at first: enough unless more score nearly the same."""

NEAR = 1e-5
"""Single precision may order scores nearer than this otherwise than the exact score does."""

TEXTS = 64
"""So many texts are asked at once."""

LOOSE = 100
"""From so many new videos on, Milvus Lite is told to write a segment before it searches."""

_PATTERN = "collaborative_experts.pattern."
"""Prefix of the properties that say which availability patterns occur, such as `...pattern.101`."""

_MODEL = "collaborative_experts.model"
"""The collection's property that says which model its vectors are of."""


@dataclass(frozen=True)
class SearchResult:
    """The best videos for T texts, best first; without the axis T for a single text.

    Attributes:
        ids: (T, k) of str; fewer than k where there are fewer videos.
        scores: (T, k) float32, CE's score as `similarity` gives it.
        shares: (T, k, M) float32, what each expert adds to the score; 0 where the video lacks it.
        experts: the M experts' names.
    """

    ids: np.ndarray
    scores: np.ndarray
    shares: np.ndarray
    experts: tuple[str, ...]


class VideoIndex:
    """A collection of video embeddings of one model.

    Args:
        uri: a path ending in `.db` is Milvus Lite, embedded, held by one process at a time; `http://...` a server.
        collection: its name there; made by the first `add`.

    Raises:
        ImportError: without pymilvus or milvus-lite, naming the extra that brings them.
        FileNotFoundError, ValueError: a path in no folder, or that is no index.
        OSError: the file cannot be written, or another process holds it.
        ConnectionError: no server answers.
    """

    def __init__(self, uri: str | Path = "videos.db", collection: str = "videos") -> None:
        self.uri, self.collection = str(uri), collection
        self._client: Any = _connect(self.uri)
        self._stored: dict[str, Any] | None = None
        self._loose = LOOSE  # videos added since the last segment; how many an earlier process left is not known
        try:
            self._lite = self._client.get_server_version().startswith("milvus_lite")
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = "closed" if self._client is None else f"{len(self):,} videos"
        return f"VideoIndex({self.uri!r}, {self.collection!r}): {held}"

    def __len__(self) -> int:
        if self._known() is None:
            return 0
        return int(self._open.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts of the stored videos; () while there are none."""
        return tuple(self._known()["dims"]) if self._known() else ()

    def close(self) -> None:
        """Let go of the file or the connection; what was added stays. May be called again."""
        if self._client is not None:
            client, self._client = self._client, None
            client.close()
            if not _is_server(self.uri):
                # The embedded server lives as long as the process otherwise, and keeps others from the file.
                extra("milvus_lite.server_manager", "index").server_manager_instance.release_server(self.uri)

    def add(self, ids: Sequence[Any], video: VideoEmbeddings) -> None:
        """Store B videos; one whose id is there already is replaced. When this returns, they are kept whatever happens
        to the process. After a crash, add the same again: what was there is replaced by itself.

        Raises:
            TypeError, ValueError: ids that are no text or integers, twice, or too long; embeddings of another model,
                with NaN, or without any expert. Nothing is stored then.
            OSError: it cannot be written; what was there before is intact.
        """
        names = _check_ids(ids)
        if not isinstance(video, VideoEmbeddings) or np.ndim(video.available) != 2:
            raise TypeError(f"add: expected VideoEmbeddings of a batch, got {type(video).__name__}")
        if len(names) != len(video):
            raise ValueError(f"add: expected an id for each of {len(video)} videos, got {len(names)}")
        available = _numpy(video.available).astype(bool)
        _check_rows(video, available, names)
        if not names:
            return
        patterns = [_pattern(row) for row in available]
        tqdm = extra("tqdm", "index").tqdm
        progress = tqdm(total=len(names), unit=" videos", desc="index", leave=False)
        with progress, _reporting(self.uri, "add"):
            self._check_model(video) if self._known() else self._create(video)
            self._note_patterns(set(patterns))
            for rows in _batches(len(names), 4 * sum(self._stored["dims"].values())):
                vectors = _numpy(video[rows].joint()).astype(np.float32)
                columns = zip(names[rows], patterns[rows], vectors, strict=True)
                entries = [{"id": name, "pattern": pattern, "vector": vector} for name, pattern, vector in columns]
                self._open.upsert(self.collection, entries)
                self._loose += len(entries)
                progress.update(len(entries))

    def delete(self, ids: Sequence[Any]) -> None:
        """Forget videos; ids that are not there are passed over. Raises as `add` for ids."""
        names = _check_ids(ids)
        for rows in _batches(len(names), LONGEST_ID) if self._known() else ():
            with _reporting(self.uri, "delete"):
                self._open.delete(self.collection, filter=_among(names[rows]))

    def search(self, text: TextEmbeddings, k: int = 10, ids: Sequence[Any] | None = None) -> SearchResult:
        """The k videos with the highest score for each text, exactly as comparing with all of them would find.

        Videos of equal score are ordered by id, among the 16,384 best of each pattern, which is all that Milvus gives.

        Args:
            ids: only these videos; those that are not there are passed over.

        Raises:
            TypeError, ValueError: embeddings of another model or with NaN, k below 1, an empty index.
        """
        if not isinstance(text, TextEmbeddings):
            raise TypeError(f"search: expected TextEmbeddings (encode_text), got {type(text).__name__}")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_RESULTS:
            raise ValueError(f"search: k: expected an integer from 1 to {MOST_RESULTS}, got {k!r}")
        if self._known() is None:
            raise ValueError(f"search: {self.uri} holds no videos yet; add some first")
        single = np.ndim(text.weights) == 1
        if single:
            text = TextEmbeddings(
                {name: x[None] for name, x in text.embds.items()}, text.weights[None], model=text.model
            )
        self._check_model(text)
        if not all(np.isfinite(_numpy(x)).all() for x in (*text.embds.values(), text.weights)):
            raise ValueError("search: expected finite embeddings and weights, got NaN or Inf")
        names = None if ids is None else _check_ids(ids)
        self._settle()
        parts = [
            self._search_few(text[slice(start, start + TEXTS)], k, names)
            for start in range(0, max(len(text), 1), TEXTS)
        ]
        ids, scores, shares = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "scores", "shares")
        )
        return SearchResult(*((ids[0], scores[0], shares[0]) if single else (ids, scores, shares)), self.experts)

    # --- inside -------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Any:
        if self._client is None:
            raise ValueError(f"{self.uri}: this index is closed")
        return self._client

    def _properties(self) -> dict[str, str]:
        return self._open.describe_collection(self.collection)["properties"]

    def _known(self) -> dict[str, Any] | None:
        """What is stored; another index of the same store may have made the collection meanwhile."""
        if self._stored is None and self._client is not None:
            self._load()
        return self._stored

    def _load(self) -> None:
        """What the collection says of its model, if there is a collection."""
        with _reporting(self.uri, "load"):
            if not self._open.has_collection(self.collection):
                return
            properties = self._properties()
            if _MODEL not in properties:
                raise ValueError(f"{self.uri}: collection {self.collection!r} is not one of VideoIndex's")
            try:
                self._open.load_collection(self.collection)
            except extra("pymilvus", "index").MilvusException:
                if not (self._lite and _drop_half_written(Path(self.uri) / "collections" / self.collection)):
                    raise
                self._open.load_collection(self.collection)
        self._stored = json.loads(properties[_MODEL])

    def _settle(self) -> None:
        """Have what was added written as a segment: Milvus Lite compares loose rows one by one, at 20,000 forty times
        slower. A server does this by itself."""
        if self._lite and self._loose >= LOOSE:
            with suppress(extra("pymilvus", "index").MilvusException):  # on a full disk the answers are right, but late
                self._open.flush(self.collection)
            self._loose = 0

    def _create(self, video: VideoEmbeddings) -> None:
        dims = _dims(video)
        size = sum(dims.values())
        if size > LARGEST_DIM:
            raise ValueError(f"add: Milvus takes vectors up to {LARGEST_DIM}, these have {size}")
        types = extra("pymilvus", "index").DataType
        schema = self._open.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("pattern", types.VARCHAR, max_length=len(dims))
        schema.add_field("vector", types.FLOAT_VECTOR, dim=size)
        index = self._open.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        stored = {"dims": dims, "model": asdict(video.model) if video.model else None}
        self._open.create_collection(
            self.collection, schema=schema, index_params=index, consistency_level="Strong",
            properties={_MODEL: json.dumps(stored)},
        )  # fmt: skip
        self._stored = stored

    def _check_model(self, embeddings: VideoEmbeddings | TextEmbeddings) -> None:
        found, stored = _dims(embeddings), self._stored["dims"]
        if list(found.items()) != list(stored.items()):
            raise ValueError(f"{self.uri}: expected embeddings of the experts {stored}, got {found}")
        theirs = asdict(embeddings.model) if embeddings.model else None
        if theirs != self._stored["model"]:
            raise ValueError(
                f"{self.uri}: its videos were embedded by another model: {_named(self._stored['model'])}, "
                f"these by {_named(theirs)}"
            )

    def _note_patterns(self, patterns: set[str]) -> None:
        """Before the videos that have them: so that no search ever misses one. Each is a property of its own, so
        that two processes that add at once do not overwrite each other's."""
        known = self._properties()
        new = {_PATTERN + pattern: "1" for pattern in patterns if _PATTERN + pattern not in known}
        if new:
            self._open.alter_collection_properties(self.collection, new)

    def _candidates(self, text: TextEmbeddings, k: int) -> list[list[str]]:
        """For each text the ids of its best videos, k and all that may be as good, in any order.

        Milvus' scores tell which: whatever it did not give must be worse than the k-th for certain, else more is asked.
        """
        weights, joint = _numpy(text.weights), _numpy(text.joint()).astype(np.float32)
        found: list[list[str]] = [[] for _ in range(len(text))]
        pending, limit = np.arange(len(text)), k + MORE
        while len(pending):
            unsure = []
            for t, (hits, unseen) in zip(pending, self._ask(joint[pending], weights[pending], limit), strict=True):
                best = heapq.nlargest(k, (score for score, _ in hits))
                least = best[-1] - NEAR * max(1, abs(best[0]), abs(best[-1])) if best else 0.0
                found[t] = [name for score, name in hits if score >= least]
                if unseen >= least and limit < MOST_HITS:
                    unsure.append(t)
            pending, limit = np.array(unsure, dtype=int), min(8 * limit, MOST_HITS)
        return found

    def _ask(self, joint: np.ndarray, weights: np.ndarray, limit: int) -> list[tuple[list[tuple[float, str]], float]]:
        """For each text, score and id of the best `limit` videos of each pattern, by Milvus' single precision; and the
        highest score that a video which is not among them can have."""
        found: list[list[tuple[float, str]]] = [[] for _ in range(len(joint))]
        unseen = [-np.inf] * len(joint)
        patterns = [key.removeprefix(_PATTERN) for key in self._properties() if key.startswith(_PATTERN)]
        for pattern in patterns:
            total = weights @ _bits(pattern)
            answers = self._open.search(
                self.collection, data=joint, anns_field="vector", limit=limit, filter=f'pattern == "{pattern}"',
                search_params={"metric_type": "IP"}, consistency_level="Strong",
            )  # fmt: skip
            for t, answer in enumerate(answers):
                by = float(total[t]) or 1.0
                hits = [(hit["distance"] / by, hit["id"]) for hit in answer]
                found[t] += hits
                if len(hits) == limit:
                    unseen[t] = max(unseen[t], min(hits)[0])
        return list(zip(found, unseen, strict=True))

    def _fetch(self, names: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Ids, joint vectors (n, M * D) and availability (n, M) of those videos that are there."""
        size = sum(self._stored["dims"].values())
        found: list[dict[str, Any]] = []
        for rows in _batches(len(names), 4 * size):
            found += self._open.query(
                self.collection, filter=_among(names[rows]), output_fields=["id", "pattern", "vector"],
                consistency_level="Strong",
            )  # fmt: skip
        found.sort(key=lambda entry: entry["id"])
        vectors = np.array([entry["vector"] for entry in found], dtype=np.float32).reshape(len(found), size)
        available = np.array([_bits(entry["pattern"]) for entry in found]).reshape(len(found), len(self.experts))
        return [entry["id"] for entry in found], vectors, available

    def _search_few(self, text: TextEmbeddings, k: int, names: list[str] | None) -> SearchResult:
        """All texts' candidates are fetched once, and scored for each."""
        candidates = [names] * len(text) if names is not None else self._candidates(text, k)
        found, vectors, available = self._fetch(sorted(set().union(*candidates)))
        row_of = {name: row for row, name in enumerate(found)}
        rows_of_texts = [np.array(sorted(row_of[x] for x in names if x in row_of), dtype=int) for names in candidates]
        count = min(k, *map(len, rows_of_texts)) if rows_of_texts else 0
        ids = np.empty((len(text), count), dtype=object)
        scores = np.empty((len(text), count), dtype=np.float32)
        shares = np.empty((len(text), count, len(self.experts)), dtype=np.float32)
        joint, weights = _numpy(text.joint()).astype(np.float32), _numpy(text.weights)
        for t, rows in enumerate(rows_of_texts):
            parts = self._shares(joint[t], weights[t], vectors[rows], available[rows])
            total = parts.sum(1)
            best = np.argsort(-total, kind="stable")[:count]  # rows ascend by id
            ids[t], scores[t], shares[t] = [found[row] for row in rows[best]], total[best], parts[best]
        return SearchResult(ids, scores, shares, self.experts)

    def _shares(self, joint: np.ndarray, weights: np.ndarray, vectors: np.ndarray, available: np.ndarray) -> np.ndarray:
        """What each expert adds to the scores of one text with n videos, (n, M) float32."""
        ends = np.cumsum([0, *self._stored["dims"].values()])
        products = np.stack(
            [vectors[:, a:b] @ joint[a:b] for a, b in pairwise(ends)], axis=1
        )  # missing experts are zeros in the vectors
        total = available @ weights
        return (products / np.where(total > 0, total, 1)[:, None]).astype(np.float32)


# --- connections ------------------------------------------------------------------------------------------


def _is_server(uri: str) -> bool:
    return "://" in uri


def _connect(uri: str) -> Any:
    milvus = extra("pymilvus", "index")
    if _is_server(uri):
        try:
            return milvus.MilvusClient(uri)
        except milvus.MilvusException as error:
            raise ConnectionError(f"{uri}: no Milvus server answers: {error.message}") from error
    extra("milvus_lite", "index")
    path = Path(uri)
    if path.suffix != ".db":
        raise ValueError(f"{uri}: expected a path ending in .db for Milvus Lite, or http://host:port for a server")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{uri}: there is no folder {path.parent}")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{uri}: exists and is no index of Milvus Lite, which is a folder")
    _silence()
    try:
        return milvus.MilvusClient(uri)
    except milvus.MilvusException as error:
        raise OSError(_why_not(path)) from error


def _drop_half_written(folder: Path) -> bool:
    """Whether there were any of the copies of vectors (`.flat.idx`, NumPy's format) that Milvus Lite keeps beside its
    data and writes in place: one that a killed process left half-written keeps it from loading, and is made anew."""
    broken = []
    for file in folder.rglob("*.flat.idx"):
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            broken.append(file)
    for file in broken:
        file.unlink()
    return bool(broken)


def _silence() -> None:
    """Two messages of Milvus Lite's that look like failures: the traceback of an error that is reported as an
    OSError, and of a call that pymilvus makes and Lite does not know, which changes nothing."""
    logging.getLogger("milvus_lite.server_manager").addFilter(_is_no_open_error)
    logging.getLogger("grpc._server").addFilter(_is_no_missing_method)


def _is_no_open_error(record: logging.LogRecord) -> bool:
    return "Failed to start MilvusLite" not in record.getMessage()


def _is_no_missing_method(record: logging.LogRecord) -> bool:
    return "Method not implemented" not in record.getMessage()


def _why_not(path: Path) -> str:
    """Why Milvus Lite cannot open a path; it does not say itself."""
    if path.is_dir():
        if not os.access(path, os.W_OK):
            return f"{path}: this index cannot be written"
        return (
            f"{path}: cannot be opened; most likely another process holds it, as only one can. For several, serve it "
            f"with `milvus-lite server --data-dir {path}` and connect to http://localhost:19530"
        )
    return f"{path}: cannot be made there"


@contextmanager
def _reporting(uri: str, what: str) -> Iterator[None]:
    """Milvus' own errors as OSError."""
    milvus = extra("pymilvus", "index")
    try:
        yield
    except milvus.MilvusException as error:
        raise OSError(f"{uri}: cannot {what}: {error.message}") from error


# --- checks and small things ------------------------------------------------------------------------------


def _check_ids(ids: Sequence[Any]) -> list[str]:
    names = [video_id(video) for video in ids]
    for name in names:
        if not 1 <= len(name.encode()) <= LONGEST_ID:
            raise ValueError(
                f"ids: expected 1 to {LONGEST_ID} bytes of UTF-8, got {len(name.encode())} ({name[:40]!r})"
            )
    check_unique(names, "ids")
    return names


def _check_rows(video: VideoEmbeddings, available: np.ndarray, names: Sequence[str]) -> None:
    nothing = ~available.any(1)
    if nothing.any():
        raise ValueError(f"add: video {names[nothing.argmax()]!r} has no expert at all, so nothing can find it")
    for m, (expert, embd) in enumerate(video.embds.items()):
        lengths = np.linalg.norm(_numpy(embd), axis=1)
        bad = available[:, m] & ~((lengths > 0) & (lengths < np.inf))
        if bad.any():
            raise ValueError(
                f"add: video {names[bad.argmax()]!r}, expert {expert!r}: expected a finite embedding that is not zero"
            )


def _dims(embeddings: VideoEmbeddings | TextEmbeddings) -> dict[str, int]:
    return {name: int(x.shape[-1]) for name, x in embeddings.embds.items()}


def _named(model: dict[str, str] | None) -> str:
    return f"the one with weights {model['weights'][:16]}" if model else "an unnamed one"


def _pattern(available: np.ndarray) -> str:
    return "".join("1" if there else "0" for there in available)


def _among(names: Sequence[str]) -> str:
    """A filter; pymilvus' own `ids=` puts them in quotes without escaping any."""
    return f"id in {json.dumps(list(names), ensure_ascii=False)}"


def _bits(pattern: str) -> np.ndarray:
    return np.array([bit == "1" for bit in pattern], dtype=np.float32)


def _numpy(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()


def _batches(count: int, bytes_each: int) -> Iterator[slice]:
    return slices(count, max(1, MESSAGE // bytes_each))
