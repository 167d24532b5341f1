"""The work of the routes, without HTTP: requests that came together are embedded and searched together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ...retrieval.arrays import as_numpy
from ...retrieval.embeddings import TextEmbeddings, concatenate
from ...retrieval.explain import explain
from ...retrieval.index import SentenceOperator, VideoIndex
from ...retrieval.result import SearchResult
from .filters import condition
from .media import find_media
from .schema import EmbedRequest, ExplainRequest, Request, SearchRequest

Content = dict[str, Any]
Item, Found = TypeVar("Item"), TypeVar("Found")

_UNKNOWN = {"uri": None, "start_s": None, "end_s": None, "metadata": None}


class UnknownVideoError(LookupError):
    """The index holds no video of this id."""


class OtherModelError(OSError):
    """Another index has taken the place of the one that the operator fits."""


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
        """The stored facts of a video.

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
        texts = self._embed(list(dict.fromkeys(text for request in requests for text in request.texts)))
        known = _attempt(self._known, {x for request in requests for x in request.ids})
        answers = [_attempt(self._answer_alone, request, texts, known) for request in requests]
        for rows in _grouped(answers):
            for row, found in zip(rows, _each([answers[row] for row in rows], self._search), strict=True):
                answers[row] = found
        return answers

    # --- inside -------------------------------------------------------------------------------------------

    def _embed(self, sentences: list[str]) -> Texts:
        if self.operator is None:
            reason = "sentences: this service was started without a model for them; ask with like"
            return Texts(dict.fromkeys(sentences, ValueError(reason)))
        encode = self.operator.encode_sentences
        return Texts(dict(zip(sentences, _each(sentences, lambda some: _rows(encode(some))), strict=True)))

    def _known(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that the index holds; all of them while it is empty, where nothing is like them."""
        return set(self.index.read(sorted(ids)).ids) if ids and len(self.index) else set(ids)

    def _answer_alone(self, request: Request, texts: Texts, known: set[str] | Exception) -> Content | Query:
        """The answer to a request; of a search the query, since those that are alike are searched for together."""
        if isinstance(request, EmbedRequest):
            return _embeddings(texts.rows(request.texts))
        if isinstance(request, ExplainRequest):
            return self._explain(request, texts)
        if request.like is None:
            return Query(request, texts.rows(request.texts, request.expert_weights))
        if isinstance(known, Exception):
            raise known
        if missing := set(request.like) - known:
            raise ValueError(f"like: the index holds no video {min(missing)!r}")
        return Query(request, None)

    def _search(self, queries: Sequence[Query]) -> list[Content]:
        """The answers to searches of one kind, condition and length."""
        first, videos = queries[0].request, len(self.index)
        asked = [query.request.like or query.request.texts for query in queries]
        count, where = first.k + first.offset, self._condition(first)
        if not videos:
            return [self._response([[] for _ in one], 0, True) for one in asked]
        if first.like:
            found_of = self._search_like(sorted({x for one in asked for x in one}), count, where)
            found = [found_of[x] for one in asked for x in one]
        else:
            text = self._fitting(concatenate([query.text for query in queries if query.text]))
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
        why = explain(self._fitting(texts.rows(request.texts, request.expert_weights)), stored.embeddings)
        columns = (why.available, why.weights, why.cosines, why.shares)
        names = ("available", "weight", "cosine", "share")
        experts = [
            {"expert": expert} | dict(zip(names, (column[m].item() for column in columns), strict=True))
            for m, expert in enumerate(why.experts)
        ]
        return {"id": request.id, "score": why.score, "experts": experts}

    def _fitting(self, text: TextEmbeddings) -> TextEmbeddings:
        if (text.experts, text.model) != (self.index.experts, self.index.model):
            raise OtherModelError("the index is of another model now; the service has to be started again")
        return text

    def _read(self, video_id: str) -> Any:
        stored = self.index.read([video_id]) if len(self.index) else None
        if not stored:
            raise UnknownVideoError(f"the index holds no video {video_id!r}")
        return stored


@dataclass(frozen=True)
class Query:
    """A search whose own part has no mistake; `text` are its sentences' embeddings, None for `like`."""

    request: SearchRequest
    text: TextEmbeddings | None


@dataclass(frozen=True)
class Texts:
    """Embeddings of sentences, (1, D) an expert, or why there are none, found again by the sentence."""

    found: Mapping[str, TextEmbeddings | Exception]

    def rows(self, sentences: Sequence[str], factors: Mapping[str, float] | None = None) -> TextEmbeddings:
        """The embeddings of some sentences, their expert weights multiplied by factors and made to sum to 1 again."""
        parts = []
        for sentence in sentences:
            part = self.found[sentence]
            if isinstance(part, Exception):
                raise part
            parts.append(part)
        text = concatenate(parts)
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


def _attempt(work: Callable[..., Found], *arguments: Any) -> Found | Exception:
    try:
        return work(*arguments)
    except Exception as error:  # a caller's mistake must not reach the others
        return error


def _each(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Found]]) -> list[Found | Exception]:
    """The results of `work` for the items together; where that fails, for each half, down to the one that is wrong."""
    if not items:
        return []
    try:
        return list(work(items))
    except OSError as error:  # of the store, whatever the items are
        return [error] * len(items)
    except Exception as error:
        half = len(items) // 2
        return [*_each(items[:half], work), *_each(items[half:], work)] if half else [error]


def _grouped(answers: Sequence[Any]) -> list[list[int]]:
    """Numbers of the searches that can be done together."""
    groups: dict[Any, list[int]] = {}
    for row, query in enumerate(answers):
        if isinstance(query, Query):
            asked = query.request
            key = (asked.like is None, asked.where, asked.filters, asked.k, asked.offset)
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def _rows(text: TextEmbeddings) -> list[TextEmbeddings]:
    return [text[row : row + 1] for row in range(len(text))]


def _embeddings(text: TextEmbeddings) -> Content:
    return {
        "experts": list(text.experts),
        "weights": as_numpy(text.weights).tolist(),
        "embeddings": {name: as_numpy(x).tolist() for name, x in text.embds.items()},
    }
