"""Search on a Milvus server.

One joint vector a video and its availability pattern are stored. Among videos of one pattern the inner product of joint
vectors ranks exactly as CE does, because the score is that product divided by the text's weight of the pattern's
experts. So each pattern that occurs is searched by itself, the candidates are scored from their vectors in float64, and
the best of all patterns are the answer. The pattern is the collection's partition key, so that the searches of all
patterns together read each video once.

A query bank (normalise.py) lies in a collection of its own, and a property of the videos' collection puts it in force.
The biases are not stored: a bias depends on the bank and its video alone, and is computed for the candidates. Milvus
ranks by an upper bound of the corrected score, made of a linear lower bound on a pattern's biases that is subtracted
from the text's vector. Candidates are asked for until no other video's bound reaches the k-th corrected score.
"""

from __future__ import annotations

import heapq
import json
import logging
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..base.dependencies import extra
from ..base.slices import slices
from .arrays import as_numpy
from .embeddings import ModelIdentity, TextEmbeddings
from .exact_search import Best, Candidates, Queries, Vectors, best_of, score_pairs
from .normalise import QueryBank
from .rows import Answers, Extras, Header, NewVideos, Stored, StoreReport, availability, patterns

LARGEST_DIM = 32_768
"""Milvus' limit on a vector."""

LONGEST_TEXT = 65_535
"""Milvus' limit on a text, in bytes."""

MESSAGE = 32 * 2**20
"""Bytes sent or asked for at once; a server takes 64 MB."""

MOST_HITS = 16_384
"""The most answers that Milvus gives to a query."""

SPARE_HITS = 8
"""Candidates beyond k that are asked for at first: enough unless more score nearly the same."""

SINGLE_PRECISION = 1e-5
"""Milvus may order scores that are nearer than this otherwise than the exact score does."""

PING_EVERY_MS = 300_000
"""How often an idle connection is asked whether it lives: a gRPC server hangs up on a client that asks more often than
every five minutes, unless it was told otherwise. Milvus was, Milvus Lite was not."""

IDS_OF_A_QUERY = 512

READ_AT_ONCE = 1000
"""Entries, where all are read."""

_PATTERN = "collaborative_experts.pattern."
"""Prefix of the properties that say which availability patterns occur, such as `...pattern.101`."""

_BAD_CONDITION = (6, 1100)
"""Codes of errors in a condition: of Milvus Lite, and of Milvus (`ErrParameterInvalid`)."""

_MODEL = "collaborative_experts.model"
"""The collection's property that says which model its vectors are of."""

_WEIGHTS = "collaborative_experts.weights"
"""The property with the path of the weights."""

_BANK = "collaborative_experts.bank"
"""The property that puts a query bank in force: its settings, and the collection with its texts."""


class MilvusIndex:
    """A collection of a Milvus server.

    Args:
        uri: `http://host:port`.
        collection: its name; made by the first `add`.

    Raises:
        ImportError: without pymilvus, naming the extra that brings it.
        ConnectionError: no server answers.
        ValueError: the collection is not one of VideoIndex's.
    """

    takes_sql = False

    def __init__(self, uri: str, collection: str) -> None:
        self.uri, self.collection = uri, collection
        self.header: Header | None = None
        self._bank: tuple[str, QueryBank] | None = None
        self._client = connect(uri)
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    def refresh(self) -> None:
        with reporting(self.uri, "load"):
            if not self._client.has_collection(self.collection):
                return
            header = read_header(self._client, self.uri, self.collection)
            if header != self.header:
                self._client.load_collection(self.collection)
                self.header = header

    def __len__(self) -> int:
        with reporting(self.uri, "count"):
            return int(self._client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def add(self, header: Header, videos: NewVideos, progress: Any) -> None:
        with reporting(self.uri, "add"):
            if self.header is None:
                self._create(header)
            named = patterns(videos.available)
            self._note_patterns(set(named))
            for rows in _batches(len(videos), 4 * sum(header.dims.values())):
                self._client.upsert(self.collection, _entries(videos, named, rows))
                progress.update(rows.stop - rows.start)

    def delete(self, ids: Sequence[str]) -> None:
        with reporting(self.uri, "delete"):
            for rows in slices(len(ids), IDS_OF_A_QUERY):
                self._client.delete(self.collection, filter=_among(ids[rows]))

    def search(self, queries: Queries, k: int, ids: Sequence[str] | None, where: str | None) -> Answers:
        with reporting(self.uri, "search", where):
            bank = self._bank_in_force(self._properties())
            candidates = self._candidates(queries, k, where, bank) if ids is None else [list(ids)] * len(queries)
            names = sorted(set().union(*candidates)) if candidates else []
            stored, vectors = self._fetch(names, where if ids is not None else None, bank)
            best = _score(queries, candidates, stored.ids, vectors, list(self._dims().values()), k)
            return Answers(best, vectors.addresses, stored.extras)

    def read(self, ids: Sequence[str]) -> Stored:
        with reporting(self.uri, "read"):
            return self._fetch(sorted(ids), None, None)[0]

    def search_approximately(self, queries: Queries, k: int, where: str | None) -> Answers:
        """An exact search: the server's index compares with all videos."""
        return self.search(queries, k, None, where)

    def optimise(self, approximate: bool) -> StoreReport:
        """A server joins its segments by itself; this asks it to write what it holds in memory."""
        if approximate:
            raise ValueError(f"optimise: {self.uri} searches exactly; an approximate index needs a .lance index")
        with reporting(self.uri, "optimise"):
            self._client.flush(self.collection)
        return StoreReport(len(self), (1, 1), (1, 1), (0, 0))

    def calibrate(self, bank: QueryBank | None) -> None:
        """Put a query bank in force by one change of a property, or none."""
        if bank is not None and bank.method == "qb-dynamic":
            raise ValueError("calibrate: on a Milvus server expected 'qb' or 'nnn'; 'qb-dynamic' needs a .lance index")
        with reporting(self.uri, "calibrate"):
            kept = None
            if bank is not None:
                content = {name: getattr(bank, name) for name in ("method", "beta", "alpha", "k")}
                content["collection"] = kept = self._store_bank(bank)
                self._client.alter_collection_properties(self.collection, {_BANK: json.dumps(content)})
            elif _BANK in self._properties():
                self._client.drop_collection_properties(self.collection, [_BANK])
            for name in self._client.list_collections():  # the one before, and those of processes that were killed here
                if name != kept and re.fullmatch(rf"{re.escape(self.collection)}_bank_[0-9a-f]{{32}}", name):
                    self._client.drop_collection(name)

    @property
    def weights_path(self) -> Path | None:
        if self.header is None:
            return None
        with reporting(self.uri, "read"):
            noted = self._properties().get(_WEIGHTS)
        return None if noted is None else Path(noted)

    def note_weights(self, path: Path) -> None:
        with reporting(self.uri, "note_weights"):
            self._client.alter_collection_properties(self.collection, {_WEIGHTS: path.resolve().as_posix()})

    def to_arrow(self) -> Any:
        arrow = extra("pyarrow", "index")
        with reporting(self.uri, "read"):
            entries = list(read_all(self._client, self.collection))
        return arrow.Table.from_pylist(entries)

    def close(self) -> None:
        self._client.close()

    # --- inside -------------------------------------------------------------------------------------------

    def _dims(self) -> dict[str, int]:
        return self.header.dims if self.header else {}

    def _create(self, header: Header) -> None:
        size = sum(header.dims.values())
        if size > LARGEST_DIM:
            raise ValueError(f"add: Milvus takes vectors up to {LARGEST_DIM}, these have {size}")
        types = extra("pymilvus", "milvus").DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", types.VARCHAR, is_primary=True, max_length=512)
        schema.add_field("pattern", types.VARCHAR, max_length=len(header.dims), is_partition_key=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=size)
        schema.add_field("uri", types.VARCHAR, max_length=LONGEST_TEXT, nullable=True)
        schema.add_field("start_s", types.DOUBLE, nullable=True)
        schema.add_field("end_s", types.DOUBLE, nullable=True)
        schema.add_field("metadata", types.JSON, nullable=True)
        content = {"dims": header.dims, "model": asdict(header.model) if header.model else None}
        self._client.create_collection(
            self.collection, schema=schema, index_params=self._exact_index(), consistency_level="Strong",
            properties={_MODEL: json.dumps(content)},
        )  # fmt: skip
        self.header = header

    def _properties(self) -> dict[str, str]:
        return self._client.describe_collection(self.collection)["properties"]

    def _note_patterns(self, occurring: set[str]) -> None:
        """Note the patterns before the videos that have them, so that no search ever misses one. Each is a property of
        its own, so that two processes that add at once do not overwrite each other's."""
        known = self._properties()
        new = {_PATTERN + pattern: "1" for pattern in occurring if _PATTERN + pattern not in known}
        if new:
            self._client.alter_collection_properties(self.collection, new)

    # --- query banks --------------------------------------------------------------------------------------

    def _store_bank(self, bank: QueryBank) -> str:
        """Write the texts of a bank, each as its embeddings, its weights and, where it has one, its level in a row; the
        name of their collection."""
        name = f"{self.collection}_bank_{uuid.uuid4().hex}"
        rows = [as_numpy(x).astype(np.float32) for x in (*bank.text.embds.values(), bank.text.weights)]
        rows += [] if bank.levels is None else [bank.levels[:, None]]
        texts = np.concatenate(rows, axis=1)
        types = extra("pymilvus", "milvus").DataType
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("number", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=texts.shape[1])
        self._client.create_collection(
            name, schema=schema, index_params=self._exact_index(), consistency_level="Strong"
        )
        for part in _batches(len(texts), texts[0].nbytes):
            numbers = range(*part.indices(len(texts)))
            entries = [{"number": i, "vector": row} for i, row in zip(numbers, texts[part], strict=True)]
            self._client.insert(name, entries)
        return name

    def _bank_in_force(self, properties: dict[str, str]) -> QueryBank | None:
        stated = properties.get(_BANK)
        if stated is None or self.header is None:
            return None
        if self._bank is None or self._bank[0] != stated:
            content = json.loads(stated)
            name = content.pop("collection")
            self._client.load_collection(name)
            entries = sorted(read_all(self._client, name), key=lambda entry: entry["number"])
            rows = np.array([entry["vector"] for entry in entries], dtype=np.float32)
            dims = self._dims()
            embeddings, weights, levels = np.split(rows, [sum(dims.values()), sum(dims.values()) + len(dims)], axis=1)
            text = TextEmbeddings(self.header.by_expert(embeddings), weights, model=self.header.model)
            self._bank = stated, QueryBank(text, levels=levels[:, 0] if levels.shape[1] else None, **content)
        return self._bank[1]

    # --- candidates ---------------------------------------------------------------------------------------

    def _candidates(self, queries: Queries, k: int, where: str | None, bank: QueryBank | None) -> list[list[str]]:
        """For each text the ids of its best videos, k and all that may be as good, in any order.

        The scores of Milvus tell which. A video that it did not give must be worse than the k-th for certain, else more
        are asked for, and in the end all are read.
        """
        found: list[list[str]] = [[] for _ in range(len(queries))]
        pending, limit = np.arange(len(queries)), min(k + SPARE_HITS, MOST_HITS)
        while len(pending):
            unsure = []
            hits_of_texts = self._hits(queries, pending, limit, where, bank)
            leading = [heapq.nlargest(k, hits) for hits, _ in hits_of_texts]
            kth = self._kth_scores(queries, pending, leading, k, bank)
            for text, (hits, unseen), best, score in zip(pending, hits_of_texts, leading, kth, strict=True):
                least = score - SINGLE_PRECISION * max(1, abs(best[0][0]), abs(score)) if best else -np.inf
                found[text] = [name for score, name in hits if score >= least]
                if unseen >= least > -np.inf or unseen > least:
                    unsure.append(text)
            if unsure and limit == MOST_HITS:
                return self._best_of_all(queries, k, where, bank)
            pending, limit = np.array(unsure, dtype=int), min(8 * limit, MOST_HITS)
        return found

    def _kth_scores(
        self,
        queries: Queries,
        texts: np.ndarray,
        leading: Sequence[list[tuple[float, str]]],
        k: int,
        bank: QueryBank | None,
    ) -> list[float]:
        """For some texts the lowest score of those that lead; minus infinity where there are none, or not any more."""
        if bank is None:
            return [best[-1][0] if best else -np.inf for best in leading]
        of_texts: list[list[str]] = [[] for _ in range(len(queries))]
        for text, best in zip(texts, leading, strict=True):
            of_texts[text] = [name for _, name in best]
        stored, vectors = self._fetch(sorted(set().union(*of_texts)), None, bank)
        exact = _score(queries, of_texts, stored.ids, vectors, list(self._dims().values()), k)
        return [
            float(exact[text].score[-1]) if best and len(exact[text]) == len(best) else -np.inf
            for text, best in zip(texts, leading, strict=True)
        ]

    def _best_of_all(self, queries: Queries, k: int, where: str | None, bank: QueryBank | None) -> list[list[str]]:
        """For each text the ids of its k best videos, found by reading every one."""
        best: list[list[tuple[float, str]]] = [[] for _ in range(len(queries))]
        for entries in read_batches(self._client, self.collection, where or ""):
            stored, vectors = self._columns(sorted(entries, key=lambda entry: entry["id"]), bank)
            names = [stored.ids] * len(queries)
            found = _score(queries, names, stored.ids, vectors, list(self._dims().values()), k)
            best = [sorted([*x, *zip(-y.score, y.ids, strict=True)])[:k] for x, y in zip(best, found, strict=True)]
        return [[name for _, name in x] for x in best]

    def _hits(
        self, queries: Queries, texts: np.ndarray, limit: int, where: str | None, bank: QueryBank | None
    ) -> list[tuple[list[tuple[float, str]], float]]:
        """For each text, score and id of the best `limit` videos of each pattern, by Milvus' single precision; and the
        highest score that a video which is not among them can have. With a bank the scores are upper bounds."""
        weights, dims = queries.weights.numpy()[texts].astype(np.float64), list(self._dims().values())
        joint = np.concatenate([x.numpy()[texts] for x in queries.embeddings], axis=1)
        corrected = queries.corrected.numpy()[texts].astype(np.float64)
        found: list[list[tuple[float, str]]] = [[] for _ in texts]
        unseen = [-np.inf] * len(texts)
        occurring = [key.removeprefix(_PATTERN) for key in self._properties() if key.startswith(_PATTERN)]
        for pattern, there in zip(occurring, availability(occurring), strict=True):
            total = weights @ there
            shares = weights * there / np.where(total > 0, total, 1)[:, None]
            asked, taken = joint * np.repeat(shares, dims, axis=1), np.zeros(len(texts))
            if bank is not None:
                slope, least = bank.lower_bound(there)
                asked, taken = asked - corrected[:, None] * slope, corrected * least
            condition = f'pattern == "{pattern}"' + (f" and ({where})" if where else "")
            answers = self._client.search(
                self.collection, data=asked.astype(np.float32), anns_field="vector", limit=limit, filter=condition,
                search_params={"metric_type": "IP"}, consistency_level="Strong",
            )  # fmt: skip
            for text, answer in enumerate(answers):
                hits = [(hit["distance"] - float(taken[text]), hit["id"]) for hit in answer]
                found[text] += hits
                if len(hits) == limit:
                    unseen[text] = max(unseen[text], min(hits)[0])
        return list(zip(found, unseen, strict=True))

    def _fetch(self, names: Sequence[str], where: str | None, bank: QueryBank | None) -> tuple[Stored, Vectors]:
        """Those of the named videos that are there, in the order of their ids, numbered from 0; with their biases."""
        found: list[dict[str, Any]] = []
        for rows in _batches(len(names), 4 * sum(self._dims().values())):
            condition = _among(names[rows]) + (f" and ({where})" if where else "")
            found += self._client.query(
                self.collection, filter=condition, output_fields=["*"], consistency_level="Strong"
            )
        found.sort(key=lambda entry: entry["id"])
        return self._columns(found, bank)

    def _columns(self, entries: Sequence[dict[str, Any]], bank: QueryBank | None) -> tuple[Stored, Vectors]:
        stored, bias = read_columns(entries, self._dims()), np.zeros(len(entries))
        if bank is not None and self.header is not None and entries:
            bias = bank.biases(self.header.embeddings(stored.joint, stored.available))
        return stored, Vectors(np.arange(len(entries)), stored.joint, bias)

    def _exact_index(self) -> Any:
        """The parameters of an index that compares with all vectors."""
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        return index


def _score(
    queries: Queries,
    candidates: Sequence[Sequence[str]],
    ids: Sequence[str],
    vectors: Vectors,
    dims: Sequence[int],
    k: int,
) -> list[Best]:
    """The best among each text's candidates, of those whose vectors are here."""
    number, names = {name: row for row, name in enumerate(ids)}, np.array(ids, dtype=object)
    rows = [np.array(sorted(number[x] for x in of_text if x in number), dtype=np.int64) for of_text in candidates]
    text = np.repeat(np.arange(len(rows)), [len(x) for x in rows])
    video = np.concatenate([np.empty(0, dtype=np.int64), *rows])
    pairs = Candidates(text, video, np.zeros(len(text), np.float32), np.zeros(len(text), np.float32))
    scored = score_pairs(pairs, queries, dims, lambda addresses: vectors[addresses])
    return best_of(scored, names[scored.video], len(queries), k)


def _entries(videos: NewVideos, named: Sequence[str], rows: slice) -> list[dict[str, Any]]:
    joint, extras = videos.joint(rows), videos.extras[rows]
    return [
        {
            "id": name,
            "pattern": pattern,
            "vector": vector,
            "uri": extras.uris[row],
            "start_s": None if np.isnan(extras.spans[row, 0]) else float(extras.spans[row, 0]),
            "end_s": None if np.isnan(extras.spans[row, 1]) else float(extras.spans[row, 1]),
            "metadata": extras.metadata[row],
        }
        for row, (name, pattern, vector) in enumerate(zip(videos.ids[rows], named[rows], joint, strict=True))
    ]


# --- the client -------------------------------------------------------------------------------------------


def connect(uri: str) -> Any:
    """A client of a server, or of a folder of Milvus Lite."""
    milvus = extra("pymilvus", "milvus")
    logging.getLogger("pymilvus.decorators").setLevel(logging.CRITICAL)  # it logs tracebacks of errors that we report
    logging.getLogger("pymilvus.client.iterator").setLevel(logging.ERROR)  # Milvus Lite has no snapshots to iterate on
    try:
        return milvus.MilvusClient(uri, dedicated=True, grpc_options={"grpc.keepalive_time_ms": PING_EVERY_MS})
    except milvus.MilvusException as error:
        raise ConnectionError(f"{uri}: no Milvus server answers: {error.message}") from None


def read_header(client: Any, uri: str, collection: str) -> Header:
    """The facts that a collection states of its videos."""
    properties = client.describe_collection(collection)["properties"]
    if _MODEL not in properties:
        raise ValueError(f"{uri}: collection {collection!r} is not one of VideoIndex's")
    content = json.loads(properties[_MODEL])
    return Header(content["dims"], ModelIdentity(**content["model"]) if content["model"] else None)


def read_all(client: Any, collection: str) -> Iterator[dict[str, Any]]:
    """All entries of a collection."""
    return chain.from_iterable(read_batches(client, collection))


def read_batches(client: Any, collection: str, where: str = "") -> Iterator[list[dict[str, Any]]]:
    """All entries of a collection that meet a condition, some at a time."""
    batches = client.query_iterator(collection, filter=where, output_fields=["*"], batch_size=READ_AT_ONCE)
    while batch := batches.next():
        yield [dict(entry) for entry in batch]
    batches.close()


def read_columns(entries: Sequence[dict[str, Any]], dims: dict[str, int]) -> Stored:
    """Entries as Milvus gives them; those of earlier versions know nothing of media."""
    uris, metadata = (np.empty(len(entries), dtype=object) for _ in range(2))
    uris[:] = [entry.get("uri") for entry in entries]
    metadata[:] = [entry.get("metadata") for entry in entries]
    seconds = [[np.nan if entry.get(x) is None else entry[x] for x in ("start_s", "end_s")] for entry in entries]
    joint = np.array([entry["vector"] for entry in entries], dtype=np.float32).reshape(len(entries), sum(dims.values()))
    available = availability([entry["pattern"] for entry in entries]).reshape(len(entries), len(dims))
    spans = np.array(seconds, dtype=np.float64).reshape(len(entries), 2)
    return Stored([entry["id"] for entry in entries], joint, available, Extras(uris, spans, metadata))


@contextmanager
def reporting(uri: str, what: str, where: str | None = None) -> Iterator[None]:
    """Errors of Milvus as an OSError of one line, or as a ValueError where it refuses the condition `where`."""
    milvus = extra("pymilvus", "milvus")
    try:
        yield
    except milvus.MilvusException as error:
        reason = error.message.partition("\n")[0]
        if where is not None and (error.code in _BAD_CONDITION or "recursion depth" in reason):
            raise ValueError(f"where: {reason}") from None
        raise OSError(f"{uri}: cannot {what}: {reason}") from None


def _among(names: Sequence[str]) -> str:
    """A filter; pymilvus' own `ids=` puts them in quotes without escaping any."""
    return f"id in {json.dumps(list(names), ensure_ascii=False)}"


def _batches(count: int, bytes_each: int) -> Iterator[slice]:
    return slices(count, max(1, MESSAGE // bytes_each))
