"""Requests and responses of the routes: types, limits, and the reasons that a caller reads. OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from ...retrieval.index import LONGEST_ID
from .conditions import check_functions

LONGEST_SENTENCE, MOST_SENTENCES, MOST_ANSWERS, LONGEST_CONDITION = 2_000, 64, 1_000, 2_000
"""Characters of a sentence, sentences and ids of a request, k + offset, and characters of `where`."""

Sentence = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_SENTENCE, pattern=r"\S")]


def _check_bytes(name: str) -> str:
    if len(name.encode()) > LONGEST_ID:
        raise ValueError(f"expected 1 to {LONGEST_ID} bytes")
    return name


Id = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_ID), AfterValidator(_check_bytes)]
Factor = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Factors = Annotated[dict[Annotated[str, StringConstraints(max_length=200)], Factor], Field(max_length=100)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def texts(self) -> list[str]:
        """The sentences that have to be embedded."""
        return []

    @property
    def ids(self) -> list[str]:
        """The ids of videos whose like are wanted."""
        return []


class Filters(BaseModel):
    """The clips that are looked at: what they have, how long they are, and text in their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experts: Annotated[tuple[Annotated[str, StringConstraints(max_length=200)], ...], Field(max_length=100)] = ()
    shortest_s: Seconds | None = None
    longest_s: Seconds | None = None
    id_contains: Annotated[str, StringConstraints(max_length=LONGEST_ID)] | None = None


class SearchRequest(_Request):
    """Sentences, or ids of videos in place of them, and which answers are wanted."""

    sentences: Annotated[list[Sentence], Field(min_length=1, max_length=MOST_SENTENCES)] | None = None
    like: Annotated[list[Id], Field(min_length=1, max_length=MOST_SENTENCES)] | None = None
    k: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 10
    where: Annotated[str, StringConstraints(max_length=LONGEST_CONDITION)] | None = None
    filters: Filters = Filters()
    offset: Annotated[int, Field(ge=0, lt=MOST_ANSWERS)] = 0
    expert_weights: Factors | None = None

    @field_validator("where")
    @classmethod
    def _check_where(cls, where: str | None) -> str | None:
        try:
            if where is not None:
                check_functions(where)
        except ValueError as error:  # whose place is said beside it
            raise ValueError(str(error).removeprefix("where: ")) from None
        return where

    @field_validator("like")
    @classmethod
    def _check_each_once(cls, like: list[str] | None) -> list[str] | None:
        if like is not None and len(set(like)) < len(like):
            raise ValueError("expected each id once")
        return like

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.sentences is None) == (self.like is None):
            raise ValueError("expected sentences, or like with ids of videos")
        if self.like is not None and self.expert_weights is not None:
            raise ValueError("expert_weights: only with sentences; videos are compared with equal weights")
        if self.offset + self.k > MOST_ANSWERS:
            raise ValueError(f"offset + k: expected at most {MOST_ANSWERS}, got {self.offset + self.k}")
        return self

    @property
    def texts(self) -> list[str]:
        return self.sentences or []

    @property
    def ids(self) -> list[str]:
        return self.like or []


class EmbedRequest(_Request):
    """Sentences whose embeddings are wanted."""

    sentences: Annotated[list[Sentence], Field(min_length=1, max_length=MOST_SENTENCES)]

    @property
    def texts(self) -> list[str]:
        return self.sentences


class ExplainRequest(_Request):
    """A sentence and the id of a video."""

    sentence: Sentence
    id: Id
    expert_weights: Factors | None = None

    @property
    def texts(self) -> list[str]:
        return [self.sentence]


Request = SearchRequest | EmbedRequest | ExplainRequest


class Answer(BaseModel):
    """A video that was found.

    `shares` is what each expert adds to the score. `media` is true where /media/{id} has the video's file.
    """

    id: str
    score: float
    uri: str | None
    start_s: float | None
    end_s: float | None
    metadata: dict | None
    shares: dict[str, float]
    media: bool


class SearchResponse(BaseModel):
    """The answers for each sentence or id, best first."""

    results: list[list[Answer]]
    experts: list[str]
    videos: int
    exact: bool
    took_ms: float


class EmbedResponse(BaseModel):
    """Embeddings of T sentences: weights (T, M), and for each expert (T, D)."""

    experts: list[str]
    weights: list[list[float]]
    embeddings: dict[str, list[list[float]]]


class Share(BaseModel):
    """The part of one expert in a score."""

    expert: str
    available: bool
    weight: float
    cosine: float
    share: float


class ExplainResponse(BaseModel):
    """The score of a sentence and a video, expert by expert."""

    id: str
    score: float
    experts: list[Share]


class VideoResponse(BaseModel):
    """All that the index holds of a video; `media` is true where /media/{id} has its file."""

    id: str
    uri: str | None
    start_s: float | None
    end_s: float | None
    metadata: dict | None
    experts: dict[str, bool]
    media: bool


class Health(BaseModel):
    """A sign of life: the size of the index, and whether sentences are answered."""

    status: str
    videos: int
    experts: list[str]
    sentences: bool


class Problem(BaseModel):
    """The reason why there is no answer."""

    detail: str
