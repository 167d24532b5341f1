"""Features to an index in bulk: shards of videos, embedded in this process or by actors of Ray Data.

A shard is read, embedded and added as a whole, in one commit. Shards are the same in every run over the same files, so
that a run which was killed and started again stores the very rows that an undisturbed one stores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..base.dependencies import extra
from ..base.files import errors_path, write_errors
from ..base.matrices import from_matrix, to_matrix
from ..features.extract.clip_facts import iter_clip_facts
from ..features.features import BATCH, FeatureReader, Features, Files
from ..features.formats import LANCE
from ..hub.operator import CollaborativeExperts
from ..retrieval.embeddings import ModelIdentity, VideoEmbeddings
from ..retrieval.index import VideoIndex
from ..training.bank import bank_beside
from .journal import Entry, Journal, fingerprint
from .tasks import Pool, Task, run_tasks

SHARD_BYTES = 2**25
"""Embeddings of a shard: enough for a commit, and little beside a worker's model."""

MOST_BAD_ROWS = 20
"""A shard with more unreadable videos than this and no readable one stops the run: the fault is in the file."""

EMBEDDING = "embedding."
"""Prefix of the columns with the embeddings of an expert."""


@dataclass
class BulkReport:
    """The outcome of a run.

    Attributes:
        to: the index.
        added: videos that were added or replaced, in this run and in the runs that it goes on with.
        without_experts: videos that no expert has anything of, which were left out.
        errors: (id, reason) of videos whose features cannot be read.
    """

    to: str
    added: int = 0
    without_experts: int = 0
    errors: list[tuple[str, str]] = field(default_factory=list)

    def count(self, entry: Entry) -> None:
        """Add the figures of a finished shard."""
        self.added += entry["added"]
        self.without_experts += entry["without_experts"]
        self.errors += [(video, reason) for video, reason in entry["errors"]]

    def __str__(self) -> str:
        lines = [f"{self.to}: {self.added:,} videos added"]
        if self.without_experts:
            lines.append(f"{self.without_experts:,} videos without any expert were left out")
        if self.errors:
            here = _here(self.to)
            listed = f", listed in {errors_path(here)}" if here else ""
            lines.append(f"{len(self.errors):,} videos cannot be read{listed}:")
            lines += [f"  {video}: {reason}" for video, reason in self.errors[:10]]
            if len(self.errors) > 10:
                lines.append(f"  and {len(self.errors) - 10:,} more")
        return "\n".join(lines)


def bulk_embed(
    features: Files,
    weights: str | Path,
    to: str | Path,
    pool: Pool | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> BulkReport:
    """Embed the videos of files of features and add them to an index, going on where a killed run stood.

    An id that is in the index is replaced. Videos without any expert are left out, and so are videos whose features
    cannot be read: these are listed in `NAME.errors.csv` beside an index of this machine. Memory holds a few shards.

    The index is calibrated with the query bank that training left beside the weights.

    Args:
        features: a file, a folder or {expert: file}, as `read_features` takes them. With a pool every machine reads
            them at this path.
        weights: a weights file; with a pool, every machine reads it at this path.
        to: the index, as `VideoIndex` takes it. Only this process writes to it. It keeps the path of the weights, which
            `search` asks it for.
        pool: actors of Ray Data that share the work; None does it in this process.
        device, dtype: of the operator.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `read_features`, the operator and `VideoIndex.add`.
        ImportError: an extra is missing; the message names it.
        OSError: the index cannot be written. What was added before is intact, and the same call goes on.
        RuntimeError: a worker raised, or reads other videos than this process does.
    """
    make_worker = partial(EmbeddingWorker, features, weights, device, dtype)
    report, here = BulkReport(str(to)), _here(to)
    with closing(make_worker()) as worker:  # it says what there is to do, and does it where there is no pool
        shards = _shards(len(worker.ids), worker.dim)
        work = [_facts(features), str(weights), worker.model.weights, dtype, shards]
        journal = Journal(here and here / "_embed" / "journal.jsonl", work)
        for entry in journal.finished.values():
            report.count(entry)
        waiting = [shard for shard in shards if shard["shard"] not in journal.finished]
        tables = run_tasks(make_worker if pool else lambda: worker, waiting, pool)
        total = len(worker.ids)
        with VideoIndex(to) as index, extra("tqdm", "index").tqdm(total=total, unit=" videos", desc="embed") as bar:
            bar.update(total - sum(shard["stop"] - shard["start"] for shard in waiting))
            for number, table in _whole_shards(tables, waiting, worker.ids):
                entry = _store(index, table, worker.model)
                journal.finish(number, entry)
                report.count(entry)
                bar.update(len(table))
            if report.added:
                index.note_weights(weights)
                _calibrate(index, Path(weights), worker.model)
    if here is not None:
        write_errors(errors_path(here), ["id", "reason"], report.errors)
    journal.remove()
    return report


def _here(to: str | Path) -> Path | None:
    """The path of an index of this machine, where a journal and a list of errors can be kept; None for others."""
    return None if "://" in str(to) else Path(to)


# --- workers ------------------------------------------------------------------------------------------------


class EmbeddingWorker:
    """Reads shards of videos and embeds them. A shard gives one table, a row a video:

    `shard`; `id`; `error`, the reason where its features cannot be read; `clip`, JSON, where `extract` made them;
    `available` (M,) bool; and for each expert `embedding.NAME` (D,) float32. Where there is an error, the rest is null.

    Attributes:
        ids: the videos of the files, of which tasks name spans.
        dim: numbers of a video's embeddings, of all experts.
        model: the identity of the model.
    """

    def __init__(self, features: Files, weights: str | Path, device: str | None, dtype: str) -> None:
        self._operator = CollaborativeExperts(weights_path=weights, device=device, modality="video", dtype=dtype)
        self._reader = FeatureReader(features, self._operator.config)
        is_extracted = isinstance(features, str | Path) and Path(features).suffix == LANCE
        self._extracted = Path(features) if is_extracted else None
        self.ids, self.model = self._reader.ids, self._operator.identity
        self.dim = sum(self._operator.config.output_dims.values())

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def __call__(self, task: Task) -> Iterator[Any]:
        arrow = extra("pyarrow", "index")
        ids = self.ids[task["start"] : task["stop"]]
        tables, bad = [], []
        clips = self._clips(task)
        for start in range(0, len(ids), BATCH):
            batch, errors = _read_good(self._reader, ids[start : start + BATCH])
            bad += errors
            if batch is not None:
                tables.append(self._embed(batch, clips))
        if len(bad) > MOST_BAD_ROWS and len(bad) == len(ids):
            raise ValueError(f"none of {len(bad):,} videos can be read: {bad[0][1]}")
        if bad:
            tables.append(arrow.table({"id": [video for video, _ in bad], "error": [reason for _, reason in bad]}))
        table = arrow.concat_tables(tables, promote_options="default")
        yield table.append_column("shard", arrow.array(np.full(len(table), task["shard"])))

    def _clips(self, task: Task) -> dict[str, str]:
        """{id: uri, span and metadata as JSON} of a dataset of `extract`, whose order is that of the reader's ids."""
        if self._extracted is None:
            return {}
        facts = iter_clip_facts(self._extracted, rows=range(task["start"], task["stop"]))
        return {
            clip.id: json.dumps({"uri": clip.uri, "span": clip.span, "metadata": clip.metadata})
            for clips, _ in facts
            for clip in clips
        }

    def _embed(self, batch: Features, clips: Mapping[str, str]) -> Any:
        arrow = extra("pyarrow", "index")
        video = self._operator.encode_video(batch.experts, batch.ind)
        columns = {"id": arrow.array(batch.ids), "error": arrow.nulls(len(batch), arrow.string())}
        columns["clip"] = arrow.array([clips.get(video) for video in batch.ids], arrow.string())
        columns["available"] = from_matrix(video.available)
        return arrow.table(columns | {EMBEDDING + name: from_matrix(x) for name, x in video.embds.items()})


def _read_good(reader: FeatureReader, ids: Sequence[str]) -> tuple[Features | None, list[tuple[str, str]]]:
    """The features of the videos that can be read, and (id, reason) of the others."""
    try:
        return reader.read(ids), []
    except ValueError:
        reasons = [(video, _reason(reader, video)) for video in ids]
    good = [video for video, reason in reasons if reason is None]
    return reader.read(good) if good else None, [(video, reason) for video, reason in reasons if reason is not None]


def _reason(reader: FeatureReader, video: str) -> str | None:
    """The error that reading a video raises; None where there is none."""
    try:
        reader.read([video])
    except ValueError as error:
        return str(error)
    return None


# --- the writer -----------------------------------------------------------------------------------------------


def _shards(videos: int, dim: int) -> list[dict[str, int]]:
    """Spans of the videos of some `SHARD_BYTES` of embeddings."""
    size = max(1, SHARD_BYTES // (4 * dim))
    return [
        {"shard": number, "start": start, "stop": min(start + size, videos)}
        for number, start in enumerate(range(0, videos, size))
    ]


def _whole_shards(
    tables: Iterator[Any], shards: Sequence[Mapping[str, int]], ids: Sequence[str]
) -> Iterator[tuple[int, Any]]:
    """(number, table) of each shard, once all its videos are there. Ray may cut a worker's table, or join several.

    Raises:
        RuntimeError: workers gave other videos than the shards have, or not all of them.
    """
    arrow, compute = extra("pyarrow", "index"), extra("pyarrow.compute", "index")
    waiting = {shard["shard"]: ids[shard["start"] : shard["stop"]] for shard in shards}
    parts: dict[int, list[Any]] = {}
    for table in tables:
        numbers = compute.unique(table["shard"]).to_pylist()
        for number in numbers:
            found = parts.setdefault(number, [])
            found.append(table if len(numbers) == 1 else table.filter(compute.equal(table["shard"], number)))
            expected = waiting.get(number, [])
            if sum(map(len, found)) >= len(expected):
                shard = arrow.concat_tables(parts.pop(number))
                got = shard["id"].to_pylist()
                if sorted(got) != sorted(expected):
                    known = len(set(got) & set(expected))
                    raise RuntimeError(
                        f"shard {number}: expected its {len(expected):,} videos once, got {len(got):,} rows of "
                        f"{known:,} of them; every machine is to read the same files"
                    )
                del waiting[number]
                yield number, shard
    if waiting:
        raise RuntimeError(f"expected {len(shards)} shards, {len(waiting)} are not whole: {sorted(waiting)[:10]}")


def _store(index: VideoIndex, table: Any, model: ModelIdentity) -> Entry:
    """Add a shard to the index, and give its figures."""
    compute = extra("pyarrow.compute", "index")
    is_good = compute.is_null(table["error"])
    good, bad = table.filter(is_good), table.filter(compute.invert(is_good))
    available = to_matrix(good["available"]) if len(good) else np.empty((0, 1), dtype=bool)
    kept = available.any(axis=1)
    if kept.any():
        rows = good.filter(kept)
        names = [name for name in rows.column_names if name.startswith(EMBEDDING)]
        embeddings = {name.removeprefix(EMBEDDING): to_matrix(rows[name]) for name in names}
        clips = [json.loads(text) if text else {} for text in rows["clip"].to_pylist()]
        index.add(
            rows["id"].to_pylist(),
            VideoEmbeddings(embeddings, available[kept], model),
            uris=[clip.get("uri") for clip in clips],
            spans=[clip.get("span") for clip in clips],
            metadata=[clip.get("metadata") for clip in clips],
        )
    errors = [[video, reason] for video, reason in zip(bad["id"].to_pylist(), bad["error"].to_pylist(), strict=True)]
    return {"added": int(kept.sum()), "without_experts": int((~kept).sum()), "errors": errors}


def _calibrate(index: VideoIndex, weights: Path, model: ModelIdentity) -> None:
    """Correct the searches of the index by the bank of the weights."""
    bank = bank_beside(weights, model)
    if bank is not None:
        index.calibrate(bank.text, bank.method, bank.beta, levels=bank.levels)


def _facts(features: Files) -> list[Any]:
    """The files of the features, whose they are, and what tells that they have changed."""
    paths = features if isinstance(features, Mapping) else {"": features}
    return [[name, str(Path(path).absolute()), fingerprint(Path(path))] for name, path in paths.items()]
