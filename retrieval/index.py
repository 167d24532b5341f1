"""Videos that answer queries: embeddings kept in a store, found again by CE's exact score.

`VideoIndex` checks what it is given and hands it to a store: a Lance dataset on this machine or an object store
(embedded.py), or a Milvus server (milvus.py). Both give the ranking that comparing with every video would give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch

from ..base.checks import check_unique, check_unmasked, is_unicode, video_id
from ..base.dependencies import extra
from .arrays import as_numpy, as_tensor
from .conditions import check_condition
from .embedded import EmbeddedIndex
from .embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings
from .exact_search import Queries
from .milvus import MilvusIndex
from .normalise import PUBLISHED_ALPHA, PUBLISHED_BETA, Method, QueryBank
from .result import SearchResult
from .rows import Answers, Extras, Header, NewVideos, Stored, StoredVideos, StoreReport

LONGEST_ID = 512
"""Bytes of an id in UTF-8."""

MOST_RESULTS = 16_000
"""The largest k."""

TEXTS = 64
"""Texts that share a pass over the videos."""

_LONG_NUMBER = re.compile(r"\d{19}")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class SentenceOperator(Protocol):
    """An operator that embeds sentences with the encoder that its weights were trained with."""

    def encode_sentences(self, sentences: Sequence[str]) -> TextEmbeddings: ...


class Backend(Protocol):
    """A place that keeps the videos of an index.

    Attributes:
        takes_sql: True where conditions are SQL, False where they are expressions of Milvus.
    """

    takes_sql: bool

    @property
    def header(self) -> Header | None:
        """The facts that hold for all of its videos; None while there are none."""

    def refresh(self) -> None:
        """Look for what other processes have made."""

    def __len__(self) -> int: ...

    @property
    def weights_path(self) -> Path | None: ...

    def note_weights(self, path: Path) -> None: ...

    def add(self, header: Header, videos: NewVideos, progress: Any) -> None: ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def search(self, queries: Queries, k: int, ids: Sequence[str] | None, where: str | None) -> Answers: ...

    def read(self, ids: Sequence[str]) -> Stored:
        """Those of these videos that are there."""

    def search_approximately(self, queries: Queries, k: int, where: str | None) -> Answers: ...

    def optimise(self, approximate: bool) -> StoreReport: ...

    def calibrate(self, bank: QueryBank | None) -> None: ...

    def to_arrow(self) -> Any: ...

    def close(self) -> None: ...


class VideoIndex:
    """A collection of video embeddings of one model.

    Args:
        uri: a path ending in `.lance`, or an object store's uri that Lance understands (`s3://bucket/videos.lance`);
            or `http://host:port` of a Milvus server.
        collection: the collection's name on a Milvus server; None is 'videos'.
        memory: the most memory for codes of videos, in bytes or such as '8GB'. Codes that do not fit are read from the
            store at each search, and the answers are exact all the same. None holds all codes, a byte a dimension.
        operator: embeds the sentences that `search` is given as text, such as a `CollaborativeExperts` whose weights
            know their sentence encoder.

    Raises:
        ImportError: without pylance or pymilvus, naming the extra that brings them.
        FileNotFoundError, ValueError: a path in no folder, or that is no index.
        OSError: the store cannot be read.
        ConnectionError: no server answers.

    Several processes may search while others add. Each search sees all that was added before it.
    """

    def __init__(
        self,
        uri: str | Path = "videos.lance",
        collection: str | None = None,
        memory: int | str | None = None,
        operator: SentenceOperator | None = None,
    ) -> None:
        self.uri, self.operator = str(uri), operator
        self._backend: Backend | None = _connect(self.uri, collection, memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = "closed" if self._backend is None else f"{len(self):,} videos"
        return f"VideoIndex({self.uri!r}): {held}"

    def __deepcopy__(self, _: object) -> VideoIndex:
        """The index itself: Towhee copies what a pipeline's steps are made of, and a copy would hold the same store."""
        return self

    def __len__(self) -> int:
        return len(self._open) if self._header() else 0

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts of the stored videos; () while there are none."""
        header = self._header()
        return tuple(header.dims) if header else ()

    @property
    def model(self) -> ModelIdentity | None:
        """The model that embedded the stored videos; None while there are none, or where it is not known."""
        header = self._header()
        return header.model if header else None

    @property
    def takes_sql(self) -> bool:
        """True where `search(where=...)` takes SQL; False on a Milvus server, which takes its own expressions."""
        return self._open.takes_sql

    @property
    def weights_path(self) -> Path | None:
        """The weights file that `note_weights` was told of, whether it is still there or not; None without one."""
        return self._open.weights_path

    def note_weights(self, path: str | Path) -> None:
        """Keep with the index where the weights lie that its videos were embedded with, so that a search finds them.

        The path is kept relative to the index's folder: the two can be moved together. An index in an object store or
        on a Milvus server keeps an absolute path.

        Raises:
            ValueError: nothing was added yet.
        """
        self._stated("note_weights")
        self._open.note_weights(Path(path))

    def close(self) -> None:
        """Let go of the store; what was added stays. May be called again."""
        if self._backend is not None:
            backend, self._backend = self._backend, None
            backend.close()

    def add(
        self,
        ids: Sequence[str | int] | str | int,
        video: VideoEmbeddings,
        uris: Sequence[str | None] | str | None = None,
        spans: Sequence[tuple[float, float] | None] | np.ndarray | tuple[float, float] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | Mapping[str, Any] | None = None,
    ) -> None:
        """Store B videos; a video whose id is there already is replaced. What was stored when this returns is kept
        whatever happens to the process. After a crash, add the same again.

        Args:
            ids: B of them; for the embeddings of a single video one, in a list or not.
            uris: where each video's media file is.
            spans: (B, 2), the first and last second of each clip in its file.
            metadata: for each video a dict fit for JSON, whose fields `search(where=...)` can ask for.

        Raises:
            TypeError, ValueError: ids that are no text or integers, twice, or too long; embeddings of another model,
                with NaN, or without any expert; other columns of another length. Nothing is stored then.
            OSError: it cannot be written; what was there before is intact.
        """
        if not isinstance(video, VideoEmbeddings):
            raise TypeError(f"add: expected VideoEmbeddings (encode_video), got {type(video).__name__}")
        check_unmasked(spans, "add: spans", "fill it with NaN where a video has no span")
        if np.ndim(video.available) == 1:
            video = _batch_of_one(video)
            uris, spans, metadata = _single(uris, str), _single_span(spans), _single(metadata, Mapping)
            ids = _listed(ids)
        names = _check_ids(ids)
        if len(names) != len(video):
            raise ValueError(f"add: expected an id for each of {len(video)} videos, got {len(names)}")
        available = as_numpy(video.available).astype(bool)
        _check_rows(video, available, names)
        extras = _check_extras(uris, spans, metadata, len(names))
        if not names:
            return
        header = Header(_dims(video), video.model)
        stored = self._newest_header()
        if stored is not None:
            self._check_model(stored, header)

        def joint(rows: slice) -> np.ndarray:
            return as_numpy(video[rows].joint()).astype(np.float32, copy=False)

        videos = NewVideos(names, available, joint, extras)
        with extra("tqdm", "index").tqdm(total=len(names), unit=" videos", desc="index", leave=False) as progress:
            self._open.add(header, videos, progress)

    def delete(self, ids: Sequence[str | int] | str | int) -> None:
        """Forget videos; ids that are not there are passed over. Raises as `add` for ids."""
        names = _check_ids(_listed(ids))
        if self._header() and names:
            self._open.delete(names)

    def search(
        self,
        text: TextEmbeddings | str | Sequence[str],
        k: int = 10,
        ids: Sequence[str | int] | None = None,
        where: str | None = None,
        exact: bool = True,
    ) -> SearchResult:
        """The k videos with the highest score for each text, exactly as comparing with all of them would find.

        Videos of equal score are ordered by id.

        Args:
            text: embeddings of T texts; or sentences, where the index has an operator.
            ids: only these videos; those that are not there are passed over.
            where: only videos that meet this condition in SQL over id, pattern, uri, start_s, end_s and metadata, such
                as "end_s - start_s > 5 AND json_get_string(metadata, 'camera') = 'left'". A Milvus server takes its
                own expressions. At most 300 names, values and signs, beside lists such as `id IN ('a', 'b')`.
            exact: False asks the approximate index that `optimise(approximate=True)` made, for collections beyond
                memory. The scores are exact, but better videos may be missed, and the result says so. A search among
                `ids` and a Milvus server are exact all the same.

        Raises:
            TypeError, ValueError: embeddings of another model or with NaN, k below 1, an empty index, a condition that
                is not understood or too long, sentences without an operator.

        >>> video = VideoEmbeddings({"motion": [[1.0, 0.0], [0.0, 1.0]]}, available=[[1], [1]])
        >>> text = TextEmbeddings({"motion": [[0.6, 0.8]]}, weights=[[1.0]])
        >>> with VideoIndex("videos.lance") as index:
        ...     index.add(["a", "b"], video)
        ...     index.search(text, k=1).ids.tolist()
        [['b']]
        """
        if isinstance(text, str | list | tuple):
            text = self._embed(text)
        if not isinstance(text, TextEmbeddings):
            raise TypeError(f"search: expected TextEmbeddings (encode_text) or sentences, got {type(text).__name__}")
        single = np.ndim(text.weights) == 1
        if single:
            text = TextEmbeddings({n: x[None] for n, x in text.embds.items()}, text.weights[None], model=text.model)
        self._check_query(k, Header(_dims(text), text.model), where)
        weights, embeddings = _tensor(text.weights), [_tensor(x) for x in text.embds.values()]
        _check_finite("search", [weights, *embeddings])
        names = None if ids is None else _check_ids(ids)
        return self._search(weights, embeddings, k, names, where, single, exact=exact)

    def search_like(
        self, videos: Sequence[str | int] | str | int | VideoEmbeddings, k: int = 10, where: str | None = None
    ) -> SearchResult:
        """The k videos most like each of some videos; the score is the mean cosine over the experts that both have.

        Args:
            videos: ids of the index, whose own videos are left out of their answers; or embeddings of other videos.
            where: as `search` takes it. Of several videos, all get as many answers as the one with the fewest: one that
                meets the condition has one answer less than one that does not.

        Raises:
            TypeError, ValueError: as `search`, or an id that is not there.
        """
        if isinstance(videos, VideoEmbeddings):
            single = np.ndim(videos.available) == 1
            batch = _batch_of_one(videos) if single else videos
            header = Header(_dims(batch), batch.model)
            self._check_query(k, header, where)
            weights = _equal_weights(_tensor(batch.available))
            embeddings = _tensor(batch.joint()).split(list(header.dims.values()), dim=1)  # zero where missing
            _check_finite("search_like", embeddings)
            return self._search(weights, embeddings, k, None, where, single, corrected=False)
        header = self._check_query(k, None, where)
        single = isinstance(videos, _SingleId)
        names = _check_ids(_listed(videos))
        stored = self._read(header, names)
        missing = [name for name in names if name not in stored.ids]
        if missing:
            raise ValueError(f"search_like: {self.uri} holds no video {missing[0]!r}")
        embeddings = [_tensor(x) for x in stored.embeddings.embds.values()]
        weights = _equal_weights(_tensor(stored.embeddings.available))
        most = min(int(k) + 1, MOST_RESULTS)  # the largest of a NumPy type has no next one
        result = self._search(weights, embeddings, most, None, where, single=False, corrected=False)
        result = _without(result, names, k)
        return result[0] if single else result

    def read(self, ids: Sequence[str | int] | str | int) -> StoredVideos:
        """The stored rows of some videos, in the order of `ids`. Videos that are not in the index are left out.

        Raises:
            TypeError, ValueError: as `add` for ids, or an empty index.
        """
        names = _check_ids(_listed(ids))
        return self._read(self._stated("read"), names)

    def _read(self, header: Header, names: Sequence[str]) -> StoredVideos:
        found = self._open.read(names)
        place = {name: row for row, name in enumerate(found.ids)}
        rows = [place[name] for name in names if name in place]
        extras = found.extras[np.array(rows, dtype=int)]
        return StoredVideos(
            [found.ids[row] for row in rows],
            header.embeddings(found.joint[rows], found.available[rows].reshape(len(rows), len(header.dims))),
            extras.uris,
            extras.spans,
            extras.metadata,
        )

    def calibrate(
        self,
        text: TextEmbeddings | None,
        method: Method = "qb",
        beta: float = PUBLISHED_BETA,
        alpha: float = PUBLISHED_ALPHA,
        k: int | None = None,
        levels: np.ndarray | None = None,
    ) -> None:
        """Correct the scores of all searches for hubs, videos that many texts find, by what training captions score.

        The bank is kept with the index. Videos that are added later are corrected by it, too. With "qb-dynamic" the
        first search after a change compares all of the bank with all videos; a Milvus server refuses it.

        Args:
            text: embeddings of captions that do not describe the indexed videos; a few thousand are enough. None ends
                the correction.
            method, beta, alpha, k, levels: as for `QueryBank`, levels of this beta.

        Raises:
            TypeError, ValueError: as `QueryBank`; embeddings of another model; an empty index; "qb-dynamic" on a Milvus
                server.
        """
        stored = self._stated("calibrate")
        bank = None if text is None else QueryBank(text, method, beta, alpha, k, levels)
        if bank is not None:
            self._check_model(stored, Header(_dims(bank.text), bank.text.model))
        self._open.calibrate(bank)

    def optimise(self, approximate: bool = False) -> StoreReport:
        """Join small files, drop deleted rows and versions older than ten minutes, and index the ids.

        Args:
            approximate: also make the index that `search(exact=False)` needs, of all videos that are there. Later ones
                are found, too, but slowly until the next `optimise`. A Milvus server refuses it.

        Returns:
            Files, rows and bytes before and after; prints as a line.

        Raises:
            ValueError: nothing was added yet, or `approximate` on a Milvus server.
        """
        self._stated("optimise")
        return self._open.optimise(approximate)

    def to_arrow(self) -> Any:
        """All rows as an Arrow table: id, pattern, vector, uri, start_s, end_s, metadata.

        Raises:
            ValueError: nothing was added yet.
        """
        self._stated("to_arrow")
        return self._open.to_arrow()

    # --- inside -------------------------------------------------------------------------------------------

    @property
    def _open(self) -> Backend:
        if self._backend is None:
            raise ValueError(f"{self.uri}: this index is closed")
        return self._backend

    def _header(self) -> Header | None:
        if self._open.header is None:
            self._open.refresh()
        return self._open.header

    def _newest_header(self) -> Header | None:
        """Another store may have taken the place of the one whose header is known."""
        self._open.refresh()
        return self._open.header

    def _stated(self, what: str) -> Header:
        header = self._newest_header()
        if header is None:
            raise ValueError(f"{what}: {self.uri} holds no videos yet; add some first")
        return header

    def _embed(self, sentences: str | Sequence[str]) -> TextEmbeddings:
        if self.operator is None:
            raise ValueError(
                "search: expected TextEmbeddings, got sentences; for these, open the index with operator=... "
                "(an operator whose weights know their sentence encoder)"
            )
        if isinstance(sentences, str):
            return self.operator.encode_sentences([sentences])[0]
        return self.operator.encode_sentences(list(sentences))

    def _check_query(self, k: int, header: Header | None, where: str | None) -> Header:
        """The newest header, of an index that can be asked so."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MOST_RESULTS:
            raise ValueError(f"search: k: expected an integer from 1 to {MOST_RESULTS}, got {k!r}")
        if where is not None:
            check_condition(where, self.takes_sql)
        stored = self._stated("search")
        if header is not None:
            self._check_model(stored, header)
        return stored

    def _check_model(self, stored: Header, header: Header) -> None:
        if list(header.dims.items()) != list(stored.dims.items()):
            raise ValueError(f"{self.uri}: expected embeddings of the experts {stored.dims}, got {header.dims}")
        if header.model != stored.model:
            raise ValueError(
                f"{self.uri}: its videos were embedded by another model: {_named(stored.model)}, "
                f"these by {_named(header.model)}"
            )

    def _search(
        self,
        weights: torch.Tensor,
        embeddings: Sequence[torch.Tensor],
        k: int,
        ids: Sequence[str] | None,
        where: str | None,
        single: bool,
        corrected: bool = True,
        exact: bool = True,
    ) -> SearchResult:
        parts = []
        for start in range(0, max(len(weights), 1), TEXTS):
            rows = slice(start, start + TEXTS)
            queries = Queries(weights[rows], [x[rows] for x in embeddings])
            if not corrected:
                queries = queries.uncorrected()
            if exact or ids is not None:
                answers = self._open.search(queries, int(k), ids, where)
            else:
                answers = self._open.search_approximately(queries, int(k), where)
            parts.append(_result(answers, self.experts))
        result = parts[0] if len(parts) == 1 else _concatenated(parts)
        return result[0] if single else result


# --- stores -----------------------------------------------------------------------------------------------


def _connect(uri: str, collection: str | None, memory: int | str | None) -> Backend:
    bytes_of_memory = _check_memory(memory)
    if re.match(r"(https?|tcp|unix)://", uri):
        return MilvusIndex(uri, collection or "videos")
    if collection is not None:
        raise ValueError(f"collection: {uri} holds a single collection; expected None, got {collection!r}")
    if uri.endswith(".db"):
        raise ValueError(
            f"{uri}: indexes are Lance datasets now; rewrite this one of Milvus Lite with: "
            f"python -m collaborative_experts convert {uri} {uri.removesuffix('.db')}.lance"
        )
    if not uri.rstrip("/").endswith(".lance"):
        raise ValueError(f"{uri}: expected a path ending in .lance, or http://host:port of a Milvus server")
    return EmbeddedIndex(uri, bytes_of_memory)


def _check_memory(memory: int | str | None) -> int | None:
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(memory))
    if memory is None:
        return None
    if isinstance(memory, bool) or number is None or number[2].upper() not in _UNITS:
        raise ValueError(f"memory: expected bytes, or such as '8GB', got {memory!r}")
    return int(float(number[1]) * _UNITS[number[2].upper()])


# --- checks -----------------------------------------------------------------------------------------------


_SingleId = str | bytes | int | np.integer


def _listed(ids: Any) -> Any:
    """A single id in a list; a list as it is."""
    return [ids] if isinstance(ids, _SingleId) else ids


def _check_ids(ids: Sequence[str | int] | str | int) -> list[str]:
    if isinstance(ids, _SingleId):
        raise TypeError(f"ids: expected a list of ids, got the single {ids!r}")
    names = [video_id(video) for video in ids]
    for name in names:
        if not 1 <= (size := len(name.encode())) <= LONGEST_ID:
            raise ValueError(f"ids: expected 1 to {LONGEST_ID} bytes of UTF-8, got {size} ({name[:40]!r})")
    check_unique(names, "ids")
    return names


def _check_rows(video: VideoEmbeddings, available: np.ndarray, names: Sequence[str]) -> None:
    nothing = ~available.any(1)
    if nothing.any():
        raise ValueError(f"add: video {names[int(nothing.argmax())]!r} has no expert at all, so nothing can find it")
    for m, (expert, embd) in enumerate(video.embds.items()):
        lengths = torch.linalg.vector_norm(as_tensor(as_numpy(embd)).float(), dim=1).numpy()
        bad = available[:, m] & ~((lengths > 0) & (lengths < np.inf))
        if bad.any():
            name = names[int(bad.argmax())]
            raise ValueError(f"add: video {name!r}, expert {expert!r}: expected a finite embedding that is not zero")


def _check_finite(where: str, arrays: Sequence[torch.Tensor]) -> None:
    if not all(bool(x.isfinite().all()) for x in arrays):
        raise ValueError(f"{where}: expected finite embeddings and weights, got NaN or Inf")


def _check_extras(uris: Any, spans: Any, metadata: Any, size: int) -> Extras:
    spans = np.asarray(spans) if hasattr(spans, "__array__") else spans  # the rows of a table of pandas
    uris, spans, metadata = ([None] * size if x is None else _column(x) for x in (uris, spans, metadata))
    for name, values in (("uris", uris), ("spans", spans), ("metadata", metadata)):
        if len(values) != size:
            raise ValueError(f"add: {name}: expected one for each of {size} videos, got {len(values)}")
    texts = [None if uri is None else _check_uri(uri, row) for row, uri in enumerate(uris)]
    seconds = np.full((size, 2), np.nan)
    for row, span in enumerate(spans):
        if span is not None:
            seconds[row] = _check_span(span, row)
    for row, content in enumerate(metadata):
        _check_metadata(content, row)
    return Extras(np.array(texts, object), seconds, _objects(metadata))


def _column(values: Any) -> list[Any]:
    """The values with None where pandas has NaN."""
    return [None if isinstance(x, float) and x != x else x for x in values]


def _check_uri(uri: Any, row: int) -> str:
    if not isinstance(uri, (str, Path)):  # `str | Path` would be made anew for a million
        raise TypeError(f"add: uris, row {row}: expected text or None, got {uri!r}")
    text = str(uri)
    if not is_unicode(text):
        raise ValueError(f"add: uris, row {row}: expected Unicode, as Path.as_uri() gives it, got {text!r}")
    return text


def _check_span(span: Any, row: int) -> tuple[float, float]:
    try:
        start, end = (float(x) for x in span)
    except (TypeError, ValueError):
        raise ValueError(f"add: spans, row {row}: expected (start, end) in seconds, got {span!r}") from None
    if not (np.isnan(start) and np.isnan(end)) and not 0 <= start <= end < np.inf:
        raise ValueError(f"add: spans, row {row}: expected 0 <= start <= end, got {span!r}")
    return start, end


def _check_metadata(content: Any, row: int) -> None:
    if content is None:
        return
    if not isinstance(content, Mapping):
        raise TypeError(f"add: metadata, row {row}: expected a dict or None, got {type(content).__name__}")
    try:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False)
        text.encode()
        if _LONG_NUMBER.search(text):
            json.loads(text, parse_int=_check_integer)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"add: metadata, row {row}: expected what JSON can hold: {error}") from None


def _check_integer(digits: str) -> None:
    """Raise ValueError for an integer that a store would round."""
    if not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"{digits[:40]} has more than 64 bits; write it as text")


def _batch_of_one(video: VideoEmbeddings) -> VideoEmbeddings:
    return VideoEmbeddings({name: x[None] for name, x in video.embds.items()}, video.available[None], video.model)


def _single(value: Any, kind: type) -> Any:
    """The value of a single video as a list of one."""
    return [value] if isinstance(value, kind) else value


def _single_span(spans: Any) -> Any:
    return None if spans is None else np.reshape(np.asarray(spans, dtype=np.float64), (-1, 2))


# --- small things -----------------------------------------------------------------------------------------


def _result(answers: Answers, experts: tuple[str, ...]) -> SearchResult:
    texts = len(answers.best)
    count = min(map(len, answers.best), default=0)
    size = (texts, count)
    ids, uris, metadata = (np.empty(size, dtype=object) for _ in range(3))
    scores, spans = np.empty(size, dtype=np.float32), np.empty((*size, 2))
    shares = np.empty((*size, len(experts)), dtype=np.float32)
    for text, best in enumerate(found[:count] for found in answers.best):
        ids[text], scores[text], shares[text] = best.ids, best.score, best.shares
        extras = answers.extras[np.searchsorted(answers.videos, best.video)]
        uris[text], spans[text], metadata[text] = extras.uris, extras.spans, extras.metadata
    return SearchResult(ids, scores, shares, experts, uris, spans, metadata, answers.exact)


_ARRAYS: tuple[Literal["ids", "scores", "shares", "uris", "spans", "metadata"], ...] = (
    "ids", "scores", "shares", "uris", "spans", "metadata",
)  # fmt: skip


def _concatenated(parts: Sequence[SearchResult]) -> SearchResult:
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    return SearchResult(experts=parts[0].experts, exact=all(part.exact for part in parts), **arrays)


def _without(result: SearchResult, names: Sequence[str], k: int) -> SearchResult:
    """Each answer without the video that was asked with, and no longer than k."""
    kept = [np.flatnonzero(result.ids[row] != name)[:k] for row, name in enumerate(names)]
    count = min(map(len, kept), default=0)
    rows = np.arange(len(names))[:, None]
    columns = np.array([x[:count] for x in kept], dtype=int).reshape(len(names), count)
    arrays = {name: getattr(result, name)[rows, columns] for name in _ARRAYS}
    return SearchResult(experts=result.experts, exact=result.exact, **arrays)


def _equal_weights(available: torch.Tensor) -> torch.Tensor:
    """(n, M) bool -> weights that are equal for the experts a video has, and sum to 1."""
    weights = available.float()
    return weights / weights.sum(1, keepdim=True).clamp_min(1)


def _dims(embeddings: VideoEmbeddings | TextEmbeddings) -> dict[str, int]:
    return {name: int(x.shape[-1]) for name, x in embeddings.embds.items()}


def _named(model: ModelIdentity | None) -> str:
    return f"the one with weights {model.weights[:16]}" if model else "an unnamed one"


def _tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(as_numpy(x), dtype=np.float32, order="C"))


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Objects in an array, which NumPy would otherwise look into."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
