"""`embed --zero-shot`: what `extract` wrote to an index, without a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..features.extract.clip_facts import ClipFacts, iter_clip_facts
from ..features.extract.dataset import Making, open_dataset
from ..hub.zero_shot import Spaces, bank_sentences
from ..retrieval.index import VideoIndex
from ..retrieval.zero_shot import (
    SENTENCES,
    Reading,
    ZeroShot,
    ZeroShotExpert,
    combine_labels,
    prepare_zero_shot,
    with_fitted_weights,
)
from ..training.captions import Captions, read_captions
from ..training.encoder import SentenceEncoder

MOST_CAPTIONS = 2000
"""Captions that are used as the bank and to fit weights."""

MOST_CLIPS = 1024
"""Clips whose embeddings give the experts' means and spreads, where there are no captions."""

MADE_BY = ("class", "version", "weights", "settings")
"""Facts of an extractor that features of one index have in common."""


def embed_zero_shot(
    features: str | Path,
    to: str | Path,
    captions: str | Path | None = None,
    encoder: str | Path | None = None,
    device: str | None = None,
    trusted: bool = False,
) -> int:
    """Embed the clips that `extract` wrote and add them to an index that sentences can search without training.

    An id that is in the index is replaced. Clips in which no expert finds anything are left out.

    Args:
        features: a dataset of `extract`.
        to: the index, as `VideoIndex` takes it.
        captions: a CSV file as for `train`, of some of the clips. Its sentences bring the experts to one scale, and
            the experts' weights are fitted on it. None takes sentences of ours and equal weights. Only a new index
            takes captions.
        encoder: the sentence encoder, a folder or a name. None is that of the index, MiniLM-L6 for a new one.
        device: where text towers run. None is a GPU where there is one.
        trusted: True if you know who wrote the features and the index: models that they name may be downloaded, and
            folders may run code.

    Returns:
        The number of clips added.

    Raises:
        FileNotFoundError: there are no such features, captions, or models.
        ValueError: something else is at the path, no expert can be compared with sentences, or the index was made of
            other features or by a trained model.
    """
    path = Path(features)
    if not path.exists():
        raise FileNotFoundError(f"features: there is no file or folder {path}")
    experts = choose_experts(path)
    added = 0
    with VideoIndex(to) as index:
        known = ZeroShot.from_identity(index.model)
        if known is not None:
            _check_same(known, experts, to, captions)
        named = None if known is None else (known.encoder or {}).get("model")
        chosen = SentenceEncoder(named, trusted) if encoder is None else SentenceEncoder(encoder)
        spaces = Spaces(chosen, device, trusted)
        if known is not None:
            spaces.check(known)
        zero_shot = known or _prepare(path, experts, spaces, captions)
        for clips, vectors in _iter_vectors(path, zero_shot.experts, spaces):
            videos = zero_shot.embed_videos(vectors)
            kept = np.flatnonzero(videos.available.any(1))
            found = [clips[row] for row in kept]
            index.add(
                [clip.id for clip in found],
                videos[kept],
                uris=[clip.uri for clip in found],
                spans=[clip.span for clip in found],
                metadata=[clip.metadata for clip in found],
            )
            added += len(kept)
    return added


def choose_experts(path: Path) -> dict[str, ZeroShotExpert]:
    """The experts of a dataset that can be compared with sentences, and how.

    Raises:
        ValueError: there is none, or the path holds no features of `extract`.
    """
    facts_of = Making.from_schema(path, open_dataset(path).schema).experts
    chosen = {}
    for name, facts in facts_of.items():
        reads = _reading(facts)
        if reads is not None:
            space = facts["text_tower"] if reads == "tower" else SENTENCES
            chosen[name] = ZeroShotExpert(reads, space, {key: facts.get(key) for key in MADE_BY})
    if not chosen:
        raise ValueError(
            f"{path}: expected an expert with a text tower, words or labels, which sentences can be compared with "
            f"without training; got {', '.join(facts_of)}"
        )
    return chosen


def _reading(facts: Mapping[str, Any]) -> Reading | None:
    if facts.get("text_tower"):
        return "tower"
    if facts["reads_text"]:
        return "words"
    return "labels" if facts["has_labels"] else None


def _check_same(known: ZeroShot, experts: Mapping[str, ZeroShotExpert], to: str | Path, captions: object) -> None:
    """Raise ValueError where features would be added to an index of others."""
    if captions is not None:
        raise ValueError(f"{to}: its experts have their weights already; expected no captions, or a new index")
    if list(known.experts) != list(experts):
        raise ValueError(f"{to}: expected the experts {', '.join(known.experts)}, got {', '.join(experts)}")
    for name, expert in experts.items():
        there = known.experts[name]
        if (there.reads, there.space, there.made_by) != (expert.reads, expert.space, expert.made_by):
            raise ValueError(
                f"{to}: {name!r}: expected features of {dict(there.made_by)}, got those of {dict(expert.made_by)}"
            )


def _prepare(
    path: Path, experts: Mapping[str, ZeroShotExpert], spaces: Spaces, captions: str | Path | None
) -> ZeroShot:
    """The scales of a new index, and its weights."""
    for name, expert in experts.items():
        if expert.reads == "tower":
            spaces.check_tower(name, expert.space, expert.made_by)
    given = None if captions is None else _some(read_captions(captions))
    ids, vectors = _sample(path, experts, spaces, None if given is None else given.video_ids)
    used = tuple(dict.fromkeys(expert.space for expert in experts.values()))
    bank = {space: spaces.embed(space, bank_sentences() if given is None else given.sentences) for space in used}
    zero_shot = prepare_zero_shot(experts, spaces.encoder if SENTENCES in used else None, bank, vectors)
    if given is None:
        return zero_shot
    row_of = {video: row for row, video in enumerate(ids)}
    rows = [row for row, video in enumerate(given.video_ids) if video in row_of]
    text = zero_shot.embed_texts({space: x[rows] for space, x in bank.items()})
    targets = [row_of[given.video_ids[row]] for row in rows]
    return with_fitted_weights(zero_shot, text, zero_shot.embed_videos(vectors), targets)


def _some(captions: Captions) -> Captions:
    """At most `MOST_CAPTIONS` of the captions, spread over all of them."""
    rows = _evenly(len(captions), MOST_CAPTIONS)
    return Captions(tuple(captions.video_ids[row] for row in rows), tuple(captions.sentences[row] for row in rows))


def _evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, spread over all of them."""
    return np.linspace(0, count - 1, min(count, most)).astype(int).tolist()


def _sample(
    path: Path, experts: Mapping[str, ZeroShotExpert], spaces: Spaces, captioned: Sequence[str] | None
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Some clips with their vectors: the captioned ones, or `MOST_CLIPS` that are spread over the dataset."""
    stored = open_dataset(path).to_table(columns=["id"])["id"].to_pylist()
    if not stored:
        raise ValueError(f"{path}: expected clips, found none")
    if captioned is None:
        rows = _evenly(len(stored), MOST_CLIPS)
    else:
        wanted = set(captioned)
        rows = [row for row, video in enumerate(stored) if video in wanted]
        if not rows:
            raise ValueError(f"captions: expected ids of {path}, such as {stored[0]!r}, got {captioned[0]!r}")
    parts = [vectors for _, vectors in _iter_vectors(path, experts, spaces, rows)]
    return [stored[row] for row in rows], {name: np.concatenate([part[name] for part in parts]) for name in experts}


def _iter_vectors(
    path: Path, experts: Mapping[str, ZeroShotExpert], spaces: Spaces, rows: Sequence[int] | None = None
) -> Iterator[tuple[list[ClipFacts], dict[str, np.ndarray]]]:
    """The clips of a dataset, or some rows, in batches, with {expert: (B, D) float32 in its space, NaN if missing}."""
    label_vectors: dict[str, np.ndarray] = {}
    towers = [name for name, expert in experts.items() if expert.reads == "tower"]
    for clips, arrays in iter_clip_facts(path, towers, rows):
        vectors = {}
        for name, expert in experts.items():
            if expert.reads == "tower":
                vectors[name] = _mean_frames(name, arrays[name], len(spaces.embed(expert.space, ["a"])[0]))
            elif expert.reads == "words":
                vectors[name] = spaces.embed_long([clip.text.get(name) for clip in clips])
            else:
                labels = [clip.labels.get(name) for clip in clips]
                _embed_new(labels, label_vectors, spaces)
                scores = [clip.scores.get(name) for clip in clips]
                vectors[name] = combine_labels(labels, scores, label_vectors, spaces.dim)
        yield clips, vectors


def _mean_frames(name: str, rows: Sequence[np.ndarray | None], dim: int) -> np.ndarray:
    """(B, dim) float32 of vectors, or of tokens, whose mean is taken; NaN where missing."""
    vectors = np.full((len(rows), dim), np.nan, dtype=np.float32)
    for row, x in enumerate(rows):
        if x is None:
            continue
        if x.shape[-1] != dim:
            raise ValueError(
                f"{name!r}: expected features of {dim} numbers, as its text tower has, got {x.shape[-1]}; "
                f"extract with --set {name}.keep=mean"
            )
        vectors[row] = x if x.ndim == 1 else x.mean(0)
    return vectors


def _embed_new(labels: Iterable[Sequence[str] | None], known: dict[str, np.ndarray], spaces: Spaces) -> None:
    """Add the embeddings of labels that are new to `known`."""
    new = sorted({label for names in labels for label in names or ()} - known.keys())
    if new:
        known.update(zip(new, spaces.embed(SENTENCES, new), strict=True))
