"""The sets on which the defaults of training are chosen. None holds a test video.

- "trecvid": 196 of TRECVID-VTT's training videos with motion are held out.
- "sequences": one expert that is a token sequence, 20 captions a video, 441 videos to train on: motion as a noisy
  sequence, and the videos' captions with words left out or replaced.
- "many missing": seven experts of 20 to 90% of the videos, each a noisy view of what the captions say.
- "demo N": the corpus of examples/train_demo.py, N videos to train on, where its folder is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from collaborative_experts import (
    CaptionedVideos,
    Features,
    SentenceEncoder,
    caption_videos,
    read_captions,
    read_features,
)

HELD_OUT = 196
CAPTIONS, LEFT_OUT, REPLACED = 20, 0.25, 0.1
LONGEST, FRAME_NOISE = 24, 0.7
VIEWS = {
    "a": (64, 0.9), "b": (128, 0.5), "c": (256, 0.4), "d": (300, 0.3), "e": (512, 0.3), "f": (96, 0.2), "g": (200, 0.2),
}  # fmt: skip
"""Dimension of each made-up expert, and the share of the videos that have it."""
SEEN, MEANINGS = 40, 100
DEMO_SIZES = (100, 200, 400)


def choice_sets(
    data: CaptionedVideos, demo: Path | None = None, fold: int = 0
) -> Iterator[tuple[str, CaptionedVideos, CaptionedVideos]]:
    """Name, training and held-out videos of each set, made of TRECVID-VTT's training videos.

    Args:
        demo: the folder of a demo.
        fold: another one holds out other videos.
    """
    rng = np.random.default_rng(fold)
    yield "trecvid", *split(data, rng.permutation(np.flatnonzero(data.features.ind["motion"]))[:HELD_OUT])
    sequences = as_sequences(data, rng)
    yield "sequences", *split(sequences, rng.permutation(len(sequences))[: len(sequences) // 4])
    views = many_missing(data, rng)
    yield "many missing", *split(views, rng.permutation(len(views))[: len(views) // 5])
    if demo is not None:
        captions = read_captions(demo / "captions.csv", "train")
        corpus = caption_videos(read_features(demo / "features", captions.unique_ids()), captions, SentenceEncoder())
        order = rng.permutation(len(corpus))
        for size in DEMO_SIZES:
            held_out = order[DEMO_SIZES[-1] :]
            yield f"demo {size}", corpus[np.sort(order[:size])], corpus[np.sort(held_out)]


def split(data: CaptionedVideos, held_out: np.ndarray) -> tuple[CaptionedVideos, CaptionedVideos]:
    return data[np.setdiff1d(np.arange(len(data)), held_out)], data[np.sort(held_out)]


def as_sequences(data: CaptionedVideos, rng: np.random.Generator) -> CaptionedVideos:
    """Motion as a sequence whose noise changes slowly, and 20 captions a video."""
    data = data[np.flatnonzero(data.features.ind["motion"])]
    motion = data.features.experts["motion"]
    deviation, sequences = motion.std(0), []
    for row in motion:
        noise = rng.standard_normal((rng.integers(8, LONGEST + 1), motion.shape[1]))
        for i in range(1, len(noise)):
            noise[i] = 0.8 * noise[i - 1] + 0.6 * noise[i]
        sequences.append(np.maximum(row + FRAME_NOISE * deviation * noise, 0).astype(np.float32))
    features = Features(data.features.ids, {"frames": sequences}, {"frames": np.ones(len(data), dtype=np.int64)})
    tokens = np.concatenate([vary(data.tokens[data.targets == row], data.tokens, rng) for row in range(len(data))])
    return CaptionedVideos(features, np.repeat(np.arange(len(data)), CAPTIONS), tokens)


def vary(captions: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """20 captions out of a video's own (K, W, dim): some words are left out, some are words of other videos."""
    varied = np.zeros((CAPTIONS, *captions.shape[1:]), dtype=captions.dtype)
    for k, row in enumerate(varied):
        words = captions[k % len(captions)]
        words = words[(words != 0).any(1)]
        if k >= len(captions):
            words = words[np.append(True, rng.random(len(words) - 1) >= LEFT_OUT)].copy()
            for place in np.flatnonzero(rng.random(len(words)) < REPLACED):
                other = others[rng.integers(len(others))]
                words[place] = other[rng.integers((other != 0).any(1).sum())]
        row[: len(words)] = words
    return varied


def many_missing(data: CaptionedVideos, rng: np.random.Generator) -> CaptionedVideos:
    """Seven experts, each of which sees a part of what the captions say, and of few videos."""
    tokens = np.asarray(data.tokens, dtype=np.float32)
    words = tokens.sum(1) / (tokens != 0).any(2).sum(1, keepdims=True)
    meaning = np.stack([words[data.targets == row].mean(0) for row in range(len(data))])
    left, strengths, _ = np.linalg.svd(meaning - meaning.mean(0), full_matrices=False)
    meaning = left[:, :MEANINGS] * np.sqrt(len(data) * strengths[:MEANINGS] / strengths[0])
    experts, ind = {}, {}
    for k, (name, (dim, share)) in enumerate(VIEWS.items()):
        seen = meaning[:, rng.permutation(MEANINGS)[:SEEN]]
        view = np.tanh(seen @ rng.standard_normal((SEEN, dim)) / 6) * 2
        noise = (0.6 + 0.15 * k) * rng.standard_normal(view.shape)
        experts[name] = ((view + noise) * 10 ** rng.uniform(-1, 1)).astype(np.float32)
        ind[name] = (rng.random(len(data)) < share).astype(np.int64)
    ind["a"] |= ~np.any(list(ind.values()), axis=0)
    return CaptionedVideos(Features(data.features.ids, experts, ind), data.targets, data.tokens)
