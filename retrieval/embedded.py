"""Search in a store on this machine: codes in memory, brought up to date with the store before each search.

A `Snapshot` is one committed version. Searches in several threads use the snapshot that they began with, whatever is
added meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.memory import give_back
from ..base.slices import slices
from .arrays import as_tensor
from .exact_search import (
    CHUNK,
    CHUNK_BYTES,
    LEAST_CHUNK,
    LEAST_HELD,
    ROUNDING,
    Best,
    Candidates,
    Chunk,
    ChunkScores,
    Queries,
    Scored,
    Vectors,
    best_of,
    scan,
    score_pairs,
    select,
    with_ties,
    without_ties,
)
from .normalise import QueryBank
from .rows import Answers, Header, NewVideos, Stored, StoreReport
from .store import CodeRows, Rows, VideoStore, bias_column, has_deletions

FEW_VIDEOS = 1000
"""A search among so few videos reads their vectors at once."""

MOST_DELETED = 0.25
"""From this share of deleted rows on, the codes are read anew."""

CANDIDATES, CANDIDATES_OF_AN_ANSWER = 200, 20
"""An approximate search for k videos scores 200 + 20 k candidates exactly."""

BANK_TEXTS = 64
"""Texts of a query bank that share a pass over the videos."""

_PLACE = (1 << 32) - 1
"""The bits of a row address that say the place in its fragment; those above are the fragment's number."""


class EmbeddedIndex:
    """Videos in a Lance dataset, searched in this process.

    Args:
        uri: as for `VideoStore`.
        memory: the most bytes of codes that are held; None holds all.
    """

    takes_sql = True

    def __init__(self, uri: str, memory: int | None = None) -> None:
        self._store = VideoStore(uri)
        self._codes = HeldCodes(self._store, memory)

    @property
    def header(self) -> Header | None:
        return self._store.header

    def refresh(self) -> None:
        self._store.refresh()

    def __len__(self) -> int:
        return int(self._store.refresh().count_rows())

    def add(self, header: Header, videos: NewVideos, progress: Any) -> None:
        with self._store.writing("add"):
            self._store.create(header)
            self._store.upsert(videos, progress)

    @property
    def weights_path(self) -> Path | None:
        return self._store.weights_path

    def note_weights(self, path: Path) -> None:
        with self._store.writing("note_weights"):
            self._store.note_weights(path)

    def delete(self, ids: Sequence[str]) -> None:
        with self._store.writing("delete"):
            self._store.delete(ids)

    def optimise(self, approximate: bool) -> StoreReport:
        with self._store.writing("optimise"):
            return self._store.optimise(approximate)

    def calibrate(self, bank: QueryBank | None) -> None:
        with self._store.writing("calibrate"):
            self._store.calibrate(bank)

    def search(self, queries: Queries, k: int, ids: Sequence[str] | None, where: str | None) -> Answers:
        with self._store.reading():
            snapshot = self._codes.snapshot()
            allowed = None
            if ids is not None or where is not None:
                allowed = self._store.addresses(snapshot.dataset, where, ids)
            return self._answers(snapshot, snapshot.search(queries, k, allowed), len(queries), k)

    def _answers(self, snapshot: Snapshot, scored: Scored, texts: int, k: int, exact: bool = True) -> Answers:
        if len(scored) > texts * k:  # of the many that may equal the k-th only the ids are read
            scored = without_ties(scored, snapshot.ids(scored), texts, k)
        videos, row = np.unique(scored.video, return_inverse=True)
        ids, extras = self._store.read_described(snapshot.rows(videos))
        return Answers(best_of(scored, ids[row], texts, k), videos, extras, exact)

    def search_approximately(self, queries: Queries, k: int, where: str | None) -> Answers:
        with self._store.reading():
            snapshot = Snapshot(self._store, self._store.refresh(), streamed=True)
            scored = snapshot.search_approximately(queries, k, where)
            return self._answers(snapshot, scored, len(queries), k, exact=False)

    def read(self, ids: Sequence[str]) -> Stored:
        with self._store.reading():
            snapshot = self._codes.snapshot()
            return self._store.read(snapshot.rows(self._store.addresses(snapshot.dataset, ids=ids)))

    def to_arrow(self) -> Any:
        with self._store.reading():
            return self._store.to_arrow()

    def close(self) -> None:
        self._codes.forget()


@dataclass(frozen=True)
class Piece:
    """Codes of n videos in memory.

    Attributes:
        chunk: what texts are compared with.
        addresses: (n,) int64.
        bias: (n,) float32, what a query bank takes from the scores; None without one.
        deleted: (n,) bool; None where no row is.
    """

    chunk: Chunk
    addresses: np.ndarray
    bias: Tensor | None
    deleted: np.ndarray | None = None


@dataclass(frozen=True)
class Snapshot:
    """One version of a store.

    Attributes:
        dataset: the Lance dataset of that version.
        pieces: its codes in memory.
        tail: the rows of the last piece, which more rows may join.
        streamed: True where no codes are in memory, and each search reads them from the dataset.
    """

    store: VideoStore
    dataset: Any
    pieces: tuple[Piece, ...] = ()
    tail: CodeRows | None = None
    streamed: bool = False

    @cached_property
    def fragments(self) -> dict[int, Any]:
        """{number: fragment} in the order of the rows."""
        return {fragment.fragment_id: fragment for fragment in self.dataset.get_fragments()}

    @cached_property
    def has_deletions(self) -> bool:
        return has_deletions(self.fragments.values())

    def rows(self, addresses: np.ndarray) -> Rows:
        """The rows at these ascending addresses."""
        if len(addresses) and self.has_deletions:
            return Rows(self.dataset, addresses, None)
        numbers, places = addresses >> 32, addresses & _PLACE
        positions = np.empty(len(addresses), dtype=np.int64)
        start = 0
        for number, fragment in self.fragments.items():
            at = numbers == number
            positions[at] = start + places[at]
            start += fragment.physical_rows
        return Rows(self.dataset, addresses, positions)

    def _scores(self, piece: Piece, queries: Queries, allowed: np.ndarray | None) -> ChunkScores:
        """Of a piece, in which the videos at `allowed` (n,) are all that count."""
        chunk, bias, left_out = piece.chunk, piece.bias, piece.deleted
        rounding = 0.0 if bias is None else ROUNDING * float(bias.abs().amax())
        if allowed is not None:
            not_allowed = ~_contains(allowed, piece.addresses)
            left_out = not_allowed if left_out is None else left_out | not_allowed
        masked = None if left_out is None else torch.from_numpy(left_out)

        def scores() -> Iterator[tuple[slice, Tensor]]:
            for texts, some in chunk.scores(queries):
                if bias is not None:
                    some.addr_(queries.corrected[texts], bias, alpha=-1)
                if masked is not None:
                    some.masked_fill_(masked, -torch.inf)
                yield texts, some

        return ChunkScores(
            piece.addresses,
            scores(),
            chunk.largest_error(queries) + rounding,
            lambda text, video: chunk.errors(queries, text, video) + rounding,
        )

    def _pieces(self) -> Iterator[Piece]:
        if not self.streamed:
            yield from self.pieces
            return
        dims = list(self.store.stated.dims.values())
        parts, size = _with_size(self.store.read_codes(self.dataset), dims, self.dataset.count_rows())
        for rows in _in_chunks(parts, size):
            yield _piece(rows, kept=False)

    def search(self, queries: Queries, k: int, allowed: np.ndarray | None) -> Scored:
        """The k highest scores of each text, and all that equal the k-th, among the videos at the ascending addresses
        `allowed` (all, for None)."""
        if self._correction_depends_on_text and bool(queries.corrected.any()):
            queries = queries.correcting(self._finds_activated(queries, allowed))
        return self._search(queries, k, allowed)

    @property
    def _correction_depends_on_text(self) -> bool:
        bank = self.store.bank(self.dataset)
        return bank is not None and bank.method == "qb-dynamic"

    def _finds_activated(self, queries: Queries, allowed: np.ndarray | None) -> Tensor:
        """(T,) bool: whether the best video of each text, before any correction, is an activated one."""
        best = self._best(queries.uncorrected(), 1, allowed)
        found = [bool(_contains(self.activated, x.video).any()) for x in best]
        return torch.tensor(found, dtype=torch.bool, device="cpu")

    @cached_property
    def activated(self) -> np.ndarray:
        """Ascending addresses of the videos that "qb-dynamic" activates: the best of some text of the bank."""
        bank, parts = self.store.bank(self.dataset), []
        if bank is None:
            return np.empty(0, dtype=np.int64)
        for rows in slices(len(bank.text), BANK_TEXTS):
            text = bank.text[np.arange(rows.start, rows.stop)]
            embeddings = [torch.from_numpy(x) for x in text.embds.values()]
            queries = Queries(torch.from_numpy(text.weights), embeddings).uncorrected()
            parts += [best.video for best in self._best(queries, bank.k or 1, None)]
        return np.unique(np.concatenate(parts))

    def search_approximately(self, queries: Queries, k: int, where: str | None) -> Scored:
        """The k highest scores of each text among candidates by Lance's index, which ranks by inner products of joint
        vectors: as CE's score does among videos of the same experts, and nearly so among all."""
        if self._correction_depends_on_text:
            raise ValueError("search: the query bank 'qb-dynamic' needs exact=True")
        dims = list(self.store.stated.dims.values())
        joint = torch.cat(queries.embeddings, dim=1).numpy() * np.repeat(queries.weights.numpy(), dims, axis=1)
        count = CANDIDATES + CANDIDATES_OF_AN_ANSWER * k
        found = [self.store.nearest(self.dataset, row, count, where) for row in joint]
        text = np.repeat(np.arange(len(found)), [len(addresses) for addresses in found])
        pairs = _unscored(text, np.concatenate([np.empty(0, dtype=np.int64), *found]))
        return with_ties(score_pairs(pairs, queries, dims, self._vectors), len(queries), k)

    def _vectors(self, addresses: np.ndarray) -> Vectors:
        return self.store.read_vectors(self.rows(addresses))

    def _fine(self, addresses: np.ndarray) -> Iterator[tuple[np.ndarray, Chunk]]:
        return self.store.read_fine(self.rows(addresses))

    def _best(self, queries: Queries, k: int, allowed: np.ndarray | None) -> list[Best]:
        scored = self._search(queries, k, allowed)
        return best_of(scored, self.ids(scored), len(queries), k)

    def ids(self, scored: Scored) -> np.ndarray:
        """(P,) of str, of each pair's video."""
        videos, row = np.unique(scored.video, return_inverse=True)
        return self.store.read_ids(self.rows(videos))[row]

    def _search(self, queries: Queries, k: int, allowed: np.ndarray | None) -> Scored:
        dims = list(self.store.stated.dims.values())
        if allowed is not None and len(allowed) <= FEW_VIDEOS:
            text = np.repeat(np.arange(len(queries)), len(allowed))
            pairs = _unscored(text, np.tile(allowed, len(queries)))
            return with_ties(score_pairs(pairs, queries, dims, self._vectors), len(queries), k)
        candidates = scan(lambda piece: self._scores(piece, queries, allowed), self._pieces(), len(queries), k)
        return select(candidates, queries, k, dims, self._vectors, self._fine)


def _unscored(text: np.ndarray, video: np.ndarray) -> Candidates:
    """Pairs of whose scores nothing is known."""
    score, error = np.zeros(len(text), dtype=np.float32), np.full(len(text), np.inf, dtype=np.float32)
    return Candidates(text, video, score, error)


class HeldCodes:
    """The codes of a store in memory.

    Args:
        memory: the most bytes of codes that are held, those of missing experts counted as well; None holds all.
    """

    def __init__(self, store: VideoStore, memory: int | None = None) -> None:
        self._store, self._memory = store, memory
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """The newest version. The store must hold something."""
        with self._lock:
            dataset, last = self._store.refresh(), self._snapshot
            if last is None or last.dataset is not dataset:
                last = self._snapshot = self._load(dataset, last)
            return last

    def forget(self) -> None:
        """Give the memory back."""
        self._snapshot = None

    def _load(self, dataset: Any, last: Snapshot | None) -> Snapshot:
        bytes_of_codes = dataset.count_rows() * sum(self._store.stated.dims.values())
        if self._memory is not None and bytes_of_codes > self._memory:
            return Snapshot(self._store, dataset, streamed=True)
        if last is not None and not last.streamed and bias_column(last.dataset.schema) == bias_column(dataset.schema):
            updated = self._updated(dataset, last)
            if updated is not None:
                return updated
        return self._extended(Snapshot(self._store, dataset), None)

    def _updated(self, dataset: Any, last: Snapshot) -> Snapshot | None:
        """The last snapshot with the rows that were added and deleted since; None where reading all anew is better."""
        now = Snapshot(self._store, dataset, last.pieces, last.tail)
        if any(
            _file(now.fragments[x]) != _file(last.fragments[x]) for x in now.fragments.keys() & last.fragments.keys()
        ):
            return None  # another store has taken the place of the last one
        changed = {
            number: now.fragments.get(number)
            for number, fragment in last.fragments.items()
            if number not in now.fragments or now.fragments[number].num_deletions != fragment.num_deletions
        }
        if changed:
            live = {number: _live(dataset, fragment) for number, fragment in changed.items()}
            pieces = tuple(_without_deleted(piece, live) for piece in last.pieces)
            deleted = sum(int(piece.deleted.sum()) for piece in pieces if piece.deleted is not None)
            if deleted > MOST_DELETED * sum(piece.chunk.size for piece in pieces):
                return None
            now = replace(now, pieces=pieces)
        added = [x for number, x in now.fragments.items() if number not in last.fragments]
        return self._extended(now, added) if added else now

    def _extended(self, snapshot: Snapshot, fragments: Sequence[Any] | None) -> Snapshot:
        """The snapshot with the rows of more fragments; None for all. Small additions share a piece: the last one is
        made anew."""
        dims = list(self._store.stated.dims.values())
        pieces = list(snapshot.pieces)
        added: Iterable[CodeRows] = self._store.read_codes(snapshot.dataset, fragments)
        if snapshot.tail is not None:
            last = pieces.pop()
            added = chain([snapshot.tail if last.deleted is None else snapshot.tail[~last.deleted]], added)
        tail = None
        parts, size = _with_size(added, dims, snapshot.dataset.count_rows())
        for rows in _in_chunks(parts, size):
            pieces.append(_piece(rows))
            tail = rows if _leaves_room(rows, size) else None
            del rows  # before there is memory for the next
        if len(pieces) > len(snapshot.pieces) + 1:  # of one piece there is little
            give_back()
        return replace(snapshot, pieces=tuple(pieces), tail=tail)


def _with_size(parts: Iterable[CodeRows], dims: Sequence[int], videos: int) -> tuple[Iterable[CodeRows], int]:
    """The same rows, and how many of so many are compared at once if the others have as many experts as the first."""
    parts = filter(len, parts)  # of a last piece all may be deleted
    first = next(parts, None)
    if first is None:
        return (), 1
    held = float((first.available @ np.array(dims)).mean())
    return chain([first], parts), _videos_of_a_chunk(max(held, LEAST_HELD * sum(dims)), videos)


def _videos_of_a_chunk(held: float, videos: int) -> int:
    """How many of so many videos, of which so many bytes are held, are compared at once: about `CHUNK`, or
    `CHUNK_BYTES`, as many by each core."""
    cores, most = torch.get_num_threads(), min(CHUNK, max(1, int(CHUNK_BYTES / held)))
    chunks = cores * max(1, round(videos / (most * cores)))
    return max(min(most, LEAST_CHUNK), math.ceil(videos / chunks))


def _in_chunks(parts: Iterable[CodeRows], size: int) -> Iterator[CodeRows]:
    """The same rows, `size` at a time, and what is left."""
    chunk: CodeRows | None = None
    filled = 0
    for part in parts:
        while len(part):
            chunk = chunk or part.empty(size)
            taken = part[: size - filled]
            chunk.write(filled, taken)
            part, filled = part[len(taken) :], filled + len(taken)
            if filled == size:
                yield chunk
                chunk, filled = None, 0
    if chunk is not None and filled:
        rows = chunk[:filled]
        yield CodeRows.concatenate([rows]) if _leaves_room(rows, size) else rows


def _leaves_room(rows: CodeRows, size: int) -> bool:
    """True for less than half a chunk: it is not to keep the memory of a whole one, and more rows may join it."""
    return 2 * len(rows) < size


def _piece(rows: CodeRows, kept: bool = True) -> Piece:
    bias = as_tensor(rows.bias).float() if rows.bias.any() else None
    chunk = Chunk(rows.coarse, rows.scale, rows.residual, rows.available, kept)
    return Piece(chunk, rows.addresses, bias)


def _file(fragment: Any) -> str:
    """The name of a fragment's first file, which no other fragment has."""
    return str(fragment.metadata.files[0].path)


def _live(dataset: Any, fragment: Any | None) -> np.ndarray:
    """Row addresses (n,) int64, ascending, of the rows of a fragment that are not deleted; none where it is gone."""
    if fragment is None:
        return np.empty(0, dtype=np.int64)
    table = dataset.scanner(columns=[], fragments=[fragment], with_row_address=True).to_table()
    return np.sort(table["_rowaddr"].to_numpy().astype(np.int64))


def _without_deleted(piece: Piece, live: dict[int, np.ndarray]) -> Piece:
    """The piece with the rows marked that are not among the live ones of their fragment."""
    deleted = np.zeros(piece.chunk.size, dtype=bool) if piece.deleted is None else piece.deleted.copy()
    numbers = piece.addresses >> 32
    for number, addresses in live.items():
        at = np.flatnonzero(numbers == number)
        deleted[at] = ~_contains(addresses, piece.addresses[at])
    return replace(piece, deleted=deleted) if deleted.any() else piece


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(n,) bool: which of the values are among the ascending ones."""
    if not len(ascending):
        return np.zeros(len(values), dtype=bool)
    at = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return ascending[at] == values
