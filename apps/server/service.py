"""What the routes do, without HTTP: requests that came together are embedded together and searched together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...retrieval.arrays import as_numpy
from ...retrieval.embeddings import TextEmbeddings
from ...retrieval.explain import explain
from ...retrieval.index import SentenceOperator, VideoIndex
from ...retrieval.result import SearchResult
from .filters import condition
from .media import find_media
from .schema import EmbedRequest, ExplainRequest, Request, SearchRequest

Content = dict[str, Any]
Item = TypeVar("Item")

_UNKNOWN = {"uri": None, "start_s": None, "end_s": None, "metadata": None}


class UnknownVideoError(LookupError):
    """The index holds no video of this id."""


class SearchService:
    """Answers from one index.

    Args:
        index: searched; what other processes add to it is found at once.
        operator: embeds sentences; None where only `like` is to be answered.
        media: the folder whose files may be played; None for none.
    """

    def __init__(
        self, index: VideoIndex, operator: SentenceOperator | None = None, media: str | Path | None = None
    ) -> None:
        self.index, self.operator = index, operator
        self.media = None if media is None else Path(media).resolve(strict=True)

    def warm(self) -> None:
        """Load what the first request needs.

        Raises:
            TypeError, ValueError: the operator does not fit the index.
        """
        if self.operator is not None:
            text = self.operator.encode_sentences(["a first sentence"])
            if len(self.index):
                self.index.search(text, 1)

    def health(self) -> Content:
        return {
            "status": "ok",
            "videos": len(self.index),
            "experts": list(self.index.experts),
            "sentences": self.operator is not None,
        }

    def video(self, video_id: str) -> Content:
        """What the index holds of a video.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        stored = self._read(video_id)
        start, end = stored.spans[0]
        return {
            "id": video_id,
            "uri": stored.uris[0],
            "start_s": None if np.isnan(start) else float(start),
            "end_s": None if np.isnan(end) else float(end),
            "metadata": stored.metadata[0],
            "experts": dict(zip(self.index.experts, stored.embeddings.available[0].tolist(), strict=True)),
            "media": self._has_media(stored.uris[0]),
        }

    def media_of(self, video_id: str) -> tuple[Path, float | None, float | None]:
        """The file of a video, with the first and last second of the clip in it.

        Raises:
            UnknownVideoError: there is no such video, or no file of it in the media folder.
        """
        content = self.video(video_id)
        path = find_media(self.media, content["uri"])
        if path is None:
            raise UnknownVideoError(f"{video_id!r} has no media file that is served here")
        return path, content["start_s"], content["end_s"]

    def answer(self, requests: Sequence[Request]) -> list[Content | Exception]:
        """The content of each response, or what is wrong with the request."""
        return _each(requests, self._answer)

    # --- inside -------------------------------------------------------------------------------------------

    def _answer(self, requests: Sequence[Request]) -> list[Content | Exception]:
        texts = self._embed(list(dict.fromkeys(text for request in requests for text in request.texts)))
        answers: dict[int, Content | Exception] = {}
        for rows in _grouped(requests):
            group = [requests[row] for row in rows]
            answers |= zip(rows, _each(group, lambda some: self._answer_alike(some, texts)), strict=True)
        return [answers[row] for row in range(len(requests))]

    def _embed(self, sentences: list[str]) -> Texts:
        if not sentences:
            return Texts({}, None)
        if self.operator is None:
            raise ValueError("sentences: this service was started without a model for them; ask with like")
        return Texts({x: row for row, x in enumerate(sentences)}, self.operator.encode_sentences(sentences))

    def _answer_alike(self, requests: Sequence[Any], texts: Texts) -> list[Content]:
        """The answers to requests of one kind and, for searches, of one condition and length."""
        if isinstance(requests[0], EmbedRequest):
            return [_embeddings(texts.rows(request.texts)) for request in requests]
        if isinstance(requests[0], ExplainRequest):
            return [self._explain(request, texts) for request in requests]
        return self._search(requests, texts)

    def _search(self, requests: Sequence[SearchRequest], texts: Texts) -> list[Content]:
        first, videos = requests[0], len(self.index)
        asked = [request.like or request.texts for request in requests]
        count, where = first.k + first.offset, self._condition(first)
        if not videos:
            return [self._response([[] for _ in one], 0, True) for one in asked]
        if first.like:
            found_of = self._search_like(sorted({x for one in asked for x in one}), count, where)
            found = [found_of[x] for one in asked for x in one]
        else:
            text = _joined([texts.rows(request.texts, request.expert_weights) for request in requests])
            result = self.index.search(text, count, where=where)
            found = [result[row] for row in range(len(text))]
        left = iter(found)
        lists = [self._listed(islice(left, len(one)), first.offset) for one in asked]
        return [self._response(one, videos, found[0].exact) for one in lists]

    def _search_like(self, names: Sequence[str], count: int, where: str | None) -> dict[str, SearchResult]:
        """{id: the videos like it}. With a condition each is searched for alone: it may leave out one of the videos
        that are asked with and not another, and the answers of one search are of one length."""
        if where is None:
            result = self.index.search_like(names, count)
            return {name: result[row] for row, name in enumerate(names)}
        return {name: self.index.search_like(name, count, where) for name in names}

    def _condition(self, request: SearchRequest) -> str | None:
        filters = request.filters.model_dump(exclude_defaults=True)
        if filters and not self.index.takes_sql:
            raise ValueError("filters: the index is on a Milvus server, where they cannot be said; ask with where")
        return condition(self.index.experts, **filters, where=request.where)

    def _listed(self, found: Iterable[SearchResult], offset: int) -> list[list[Content]]:
        """The answers of some texts, with all keys, and whether each has a media file."""
        lists = []
        for one in found:
            answers = [_UNKNOWN | answer for answer in one.to_dict()[offset:]]
            lists.append([answer | {"media": self._has_media(answer["uri"])} for answer in answers])
            for answer in lists[-1]:
                del answer["rank"]
        return lists

    def _has_media(self, uri: str | None) -> bool:
        return find_media(self.media, uri) is not None

    def _response(self, results: list[list[Content]], videos: int, exact: bool) -> Content:
        return {"results": results, "experts": list(self.index.experts), "videos": videos, "exact": exact}

    def _explain(self, request: ExplainRequest, texts: Texts) -> Content:
        stored = self._read(request.id)
        why = explain(texts.rows(request.texts, request.expert_weights), stored.embeddings)
        columns = (why.available, why.weights, why.cosines, why.shares)
        names = ("available", "weight", "cosine", "share")
        experts = [
            {"expert": expert} | dict(zip(names, (column[m].item() for column in columns), strict=True))
            for m, expert in enumerate(why.experts)
        ]
        return {"id": request.id, "score": why.score, "experts": experts}

    def _read(self, video_id: str) -> Any:
        stored = self.index.read([video_id]) if len(self.index) else None
        if not stored:
            raise UnknownVideoError(f"the index holds no video {video_id!r}")
        return stored


class Texts:
    """Embeddings of sentences, found again by the sentence."""

    def __init__(self, numbers: Mapping[str, int], embeddings: TextEmbeddings | None) -> None:
        self._numbers, self._embeddings = numbers, embeddings

    def rows(self, sentences: Sequence[str], factors: Mapping[str, float] | None = None) -> TextEmbeddings:
        """The embeddings of some sentences, their expert weights multiplied by factors and made to sum to 1 again."""
        if self._embeddings is None:
            raise ValueError("sentences: expected at least one")
        text = self._embeddings[[self._numbers[x] for x in sentences]]
        return text if factors is None else reweighted(text, factors)


def reweighted(text: TextEmbeddings, factors: Mapping[str, float]) -> TextEmbeddings:
    """The texts with the weight of each expert multiplied by its factor, 1 where there is none; rows sum to 1 again.

    Raises:
        ValueError: a factor of an expert that the model does not have, or no weight is left.
    """
    unknown = sorted(set(factors) - set(text.experts))
    if unknown:
        raise ValueError(f"expert_weights: expected some of {', '.join(text.experts)}, got {unknown[0]!r}")
    weights = as_numpy(text.weights) * np.array([factors.get(name, 1.0) for name in text.experts])
    total = weights.sum(axis=1, keepdims=True)
    if not (total > 0).all():
        raise ValueError("expert_weights: expected a factor above 0 for an expert that counts for the sentence")
    return TextEmbeddings(text.embds, (weights / total).astype(np.float32), model=text.model)


# --- small things -----------------------------------------------------------------------------------------


def _each(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Content | Exception]]) -> list[Any]:
    """What `work` gives for the items together; where that fails, for each alone, or its error."""
    try:
        return list(work(items))
    except Exception as error:  # a caller's mistake must not reach the others
        return [error] if len(items) == 1 else [_each([item], work)[0] for item in items]


def _grouped(requests: Sequence[Request]) -> list[list[int]]:
    """Numbers of requests that can be answered together."""
    groups: dict[Any, list[int]] = {}
    for row, request in enumerate(requests):
        key: tuple[Any, ...] = (type(request),)
        if isinstance(request, SearchRequest):
            key = (request.like is None, request.where, request.filters, request.k, request.offset)
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _joined(texts: Sequence[TextEmbeddings]) -> TextEmbeddings:
    embds = {name: np.concatenate([as_numpy(text.embds[name]) for text in texts]) for name in texts[0].experts}
    return TextEmbeddings(embds, np.concatenate([as_numpy(text.weights) for text in texts]), model=texts[0].model)


def _embeddings(text: TextEmbeddings) -> Content:
    return {
        "experts": list(text.experts),
        "weights": as_numpy(text.weights).tolist(),
        "embeddings": {name: as_numpy(x).tolist() for name, x in text.embds.items()},
    }
