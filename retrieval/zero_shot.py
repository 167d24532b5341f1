"""Embeddings without a trained model, so that videos are found on the day they are extracted.

CE's score needs one space an expert in which videos and sentences meet, and no training where such a space exists:

- "tower": the expert's features lie in the space of a text tower (SigLIP, CLAP), which embeds the sentence.
- "words": what was read or heard is embedded by the sentence encoder that embeds the sentence.
- "labels": the convex combination of the sentence embeddings of the video's most probable classes, weighted by their
  probabilities (ConSE, Norouzi et al., ICLR 2014, eq. 2, with T = 10 classes).

Cosines of different spaces have different means and spreads, which a bank of sentences that describe no video in
particular makes equal. The mean embedding of the bank is subtracted from that of a sentence, the mean of some videos
from that of a video, and both are normalised again. What all sentences or all videos share then ranks no video, and a
video is not found because of the experts that it has. An expert's embedding of a sentence gets a length in inverse
proportion to the spread of the bank's cosines with the videos. The weights of experts are equal, or fitted on captions.

All of it, but for the networks, stands in a `ZeroShot`. Its JSON is the config of the embeddings' `ModelIdentity`, so a
store of videos says how sentences are to be embedded. The encoders are loaded by `hub.zero_shot`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from ..base.modes import own_modes
from .arrays import ArrayLike, as_tensor
from .embeddings import ModelIdentity, TextEmbeddings, VideoEmbeddings
from .similarity import check_pair, check_targets

Reading = Literal["tower", "words", "labels"]

KEY = "zero_shot"
"""The key of a `ZeroShot` in the JSON of a model's identity."""

CLASSES = 10
"""The most probable classes that ConSE combines, as in the paper."""

DECIMALS = 5
"""Numbers in the identity are rounded, so that they are the same after JSON."""

PRIOR_VIDEOS = 10
"""The mean of n videos counts n / (n + 10), so that a few videos keep their embeddings."""

LEAST_SPREAD = 1e-3
"""The smallest spread of cosines by which an expert's scores are divided."""

FIT_STEPS, FIT_RATE = 300, 0.05


@dataclass(frozen=True)
class ZeroShotExpert:
    """The way in which an expert's videos and sentences are compared.

    Attributes:
        reads: "tower", "words" or "labels".
        space: name of the space: of a text tower its model, else `SENTENCES`.
        made_by: facts of the extractor by which its features are known again.
        centre: (D,) the mean embedding of videos.
        spread: standard deviation of the cosines of the bank's sentences with videos.
        weight: of the expert in every text; those of all experts sum to 1.
    """

    reads: Reading
    space: str
    made_by: Mapping[str, Any]
    centre: Sequence[float] = ()
    spread: float = 1.0
    weight: float = 1.0


SENTENCES = "sentences"
"""The space of the sentence encoder."""


@dataclass(frozen=True)
class ZeroShot:
    """The comparison of videos and sentences without a trained model.

    Attributes:
        experts: {expert: the way it is compared}.
        encoder: identity of the sentence encoder (`EncoderIdentity.to_dict`); None where no expert needs it.
        centres: {space: the mean embedding of the bank's sentences}.
    """

    experts: Mapping[str, ZeroShotExpert]
    encoder: Mapping[str, Any] | None
    centres: Mapping[str, Sequence[float]]

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces that sentences are embedded in, each once."""
        return tuple(dict.fromkeys(expert.space for expert in self.experts.values()))

    @cached_property
    def identity(self) -> ModelIdentity:
        """The identity of embeddings that are made in this way."""
        config = json.dumps({KEY: asdict(self)})
        return ModelIdentity(config, f"zero-shot-{hashlib.sha256(config.encode()).hexdigest()}")

    @classmethod
    def from_identity(cls, model: ModelIdentity | None) -> ZeroShot | None:
        """The `ZeroShot` that an identity names; None for the identity of a trained model."""
        content = json.loads(model.config) if model is not None else {}
        if KEY not in content:
            return None
        content = content[KEY]
        experts = {name: ZeroShotExpert(**facts) for name, facts in content["experts"].items()}
        return cls(experts, content["encoder"], content["centres"])

    def embed_videos(self, vectors: Mapping[str, np.ndarray]) -> VideoEmbeddings:
        """Embeddings of B videos.

        Args:
            vectors: {expert: (B, D) float, a row with NaN where the video lacks the expert}, in the expert's space.
        """
        embds = {name: centre_rows(vectors[name], expert.centre) for name, expert in self.experts.items()}
        available = np.stack([x.any(1) for x in embds.values()], axis=1)
        return VideoEmbeddings(embds, available, self.identity)

    def embed_texts(self, sentences: Mapping[str, np.ndarray]) -> TextEmbeddings:
        """Embeddings of T texts; those of an expert have the same length, at most 1.

        Args:
            sentences: {space: (T, D) float, the embeddings of the texts}.
        """
        centred = {space: centre_rows(sentences[space], self.centres[space]) for space in self.spaces}
        least = min(expert.spread for expert in self.experts.values())
        embds = {
            name: (centred[expert.space] * (least / expert.spread)).astype(np.float32)
            for name, expert in self.experts.items()
        }
        weights = np.array([expert.weight for expert in self.experts.values()], dtype=np.float32)
        rows = np.tile(weights / weights.sum(), (len(next(iter(embds.values()))), 1))
        return TextEmbeddings(embds, rows, model=self.identity)


def prepare_zero_shot(
    experts: Mapping[str, ZeroShotExpert],
    encoder: Mapping[str, Any] | None,
    bank: Mapping[str, np.ndarray],
    vectors: Mapping[str, np.ndarray],
) -> ZeroShot:
    """A `ZeroShot` of equal weights, whose experts' scores have one scale.

    Args:
        experts: {expert: the way it is compared}, whose centre, spread and weight are not read.
        encoder: identity of the sentence encoder, None without it.
        bank: {space: (N, D) float, embeddings of the bank's sentences}.
        vectors: {expert: (B, D) float}, some videos, as for `ZeroShot.embed_videos`.
    """
    centres = {space: _rounded(unit_rows(x).mean(0)) for space, x in bank.items()}
    prepared, spreads = {}, {}
    for name, expert in experts.items():
        videos = unit_rows(vectors[name])
        videos = videos[videos.any(1)]
        centre = _rounded(videos.sum(0) / (len(videos) + PRIOR_VIDEOS))
        cosines = centre_rows(bank[expert.space], centres[expert.space]) @ centre_rows(videos, centre).T
        if cosines.size:
            spreads[name] = max(float(cosines.std()), LEAST_SPREAD)
        prepared[name] = replace(expert, centre=centre, weight=round(1 / len(experts), DECIMALS))
    usual = float(np.mean([*spreads.values()])) if spreads else 1.0  # of an expert that none of these videos has
    experts = {name: replace(x, spread=round(spreads.get(name, usual), DECIMALS)) for name, x in prepared.items()}
    return ZeroShot(experts, encoder, centres)


@own_modes()
def with_fitted_weights(
    zero_shot: ZeroShot, text: TextEmbeddings, video: VideoEmbeddings, targets: ArrayLike
) -> ZeroShot:
    """The same with the expert weights under which T captions find their videos best.

    M weights and a temperature minimise the cross-entropy of the scores, text to video, from equal weights on.

    Args:
        targets: (T,) integers, the row in `video` of the video that each caption describes.

    Raises:
        TypeError, ValueError: embeddings that cannot be compared, targets that do not fit.
    """
    check_pair("with_fitted_weights", text, video)
    wanted = check_targets(targets, len(text), len(video))
    available = as_tensor(video.available).clone()  # one made in inference mode takes part in no gradient
    products = torch.stack(
        [as_tensor(text.embds[name]).float() @ as_tensor(video.embds[name]).float().T for name in text.experts], dim=2
    ).masked_fill(~available, 0)
    logits = torch.zeros(len(text.experts), dtype=torch.float32, device="cpu", requires_grad=True)
    spread = products.std(correction=0).clamp_min(LEAST_SPREAD).item()
    temperature = torch.tensor(np.log(1 / spread), dtype=torch.float64, device="cpu", requires_grad=True)
    optimiser = torch.optim.Adam([logits, temperature], lr=FIT_RATE)
    for _ in range(FIT_STEPS):
        used = logits.softmax(0) * available
        scores = (products * (used / used.sum(1, keepdim=True).clamp_min(1e-9))).sum(2)
        loss = torch.nn.functional.cross_entropy(scores * temperature.exp(), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = dict(zip(text.experts, logits.softmax(0).tolist(), strict=True))
    experts = {name: replace(x, weight=round(weights[name], DECIMALS)) for name, x in zero_shot.experts.items()}
    return replace(zero_shot, experts=experts)


def combine_labels(
    labels: Iterable[Sequence[str] | None],
    scores: Iterable[Sequence[float] | None],
    embeddings: Mapping[str, Any],
    dim: int,
) -> np.ndarray:
    """ConSE: the mean of each video's label embeddings, weighted by the scores of its best `CLASSES` classes.

    Args:
        labels: for each of B videos its classes, best first; None or empty where it has none.
        scores: their probabilities.
        embeddings: {label: (D,) float}.
        dim: D.

    Returns:
        (B, D) float32, NaN rows where a video has no classes.
    """
    rows = []
    for names, values in zip(labels, scores, strict=True):
        weights = np.asarray(values[:CLASSES] if values else [], dtype=np.float64)
        if not names or not weights.sum() > 0:
            rows.append(np.full(dim, np.nan))
            continue
        vectors = np.stack([embeddings[name] for name in names[:CLASSES]])
        rows.append(weights @ vectors / weights.sum())
    return np.stack(rows).astype(np.float32) if rows else np.empty((0, dim), dtype=np.float32)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """(n, D) float32 rows of length 1; rows with NaN, or of length 0, are zeros."""
    x = np.where(np.isfinite(x).all(1, keepdims=True), x, 0).astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(length > 0, length, 1)).astype(np.float32)


def centre_rows(x: np.ndarray, centre: Sequence[float]) -> np.ndarray:
    """(n, D) float32: the rows at length 1, less the centre (D,), again at length 1. Zeros stay zeros."""
    unit = unit_rows(x)
    return unit_rows(np.where(unit.any(1, keepdims=True), unit - np.asarray(centre, dtype=np.float32), 0))


def _rounded(x: np.ndarray) -> list[float]:
    return [round(float(value), DECIMALS) for value in x]
