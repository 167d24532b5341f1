"""The score of a text and a video.

It is the sum of their embeddings' inner products per expert, weighted by the text's expert weights w over the experts
that are available in the video (paper, section 3.2, eq. 6):

    s(t, v) = sum_m w_tm a_vm <t_m, v_m> / sum_m w_tm a_vm
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..base.linear import packed_linear
from ..base.slices import slices
from .arrays import Array, ArrayLike, as_tensor, real_array
from .embeddings import TextEmbeddings, VideoEmbeddings, batched, check_same_model

TEXTS, VIDEOS = 1024, 1024
"""Size of a tile of scores: large enough for fast matrix products, small enough to be added up in the cache."""


def similarity(text: TextEmbeddings, video: VideoEmbeddings, captions: Literal["each", "mean"] = "each") -> Array:
    """CE's score of every text with every video, (T, B) float32; exact with missing experts.

    A video without any expert scores 0. The axis of a single text or video is left out. The scores are on
    the texts' device, in NumPy where the texts are. `similarity_tiles` gives them piece by piece where all of them are
    too many.

    Args:
        captions: 'mean' gives one row for each K captions of a video (`text.captions_per_video`), the mean of their
            scores (CENet's "avg"), (T / K, B).

    Raises:
        TypeError: the arguments are not embeddings of texts and of videos, in this order.
        ValueError: the two do not have the same experts in the same order, or are of different models.

    >>> text = TextEmbeddings({"motion": [[1.0, 0.0]], "audio": [[0.0, 1.0]]}, weights=[[0.75, 0.25]])
    >>> video = VideoEmbeddings({"motion": [[1.0, 0.0]] * 2, "audio": [[0.0, 0.0]] * 2}, available=[[1, 1], [1, 0]])
    >>> similarity(text, video)
    array([[0.75, 1.  ]], dtype=float32)
    """
    if captions not in ("each", "mean"):
        raise ValueError(f"captions: expected 'each' or 'mean', got {captions!r}")
    check_pair("similarity", text, video)
    texts, videos = batched(text), batched(video)
    scores = torch.empty(len(texts), len(videos), dtype=torch.float32, device=as_tensor(texts.weights).device)
    for rows, columns, tile in score_tiles(texts, videos):
        scores[rows, columns] = tile
    if captions == "mean":
        count = text.captions_per_video
        scores = scores.reshape(len(texts) // count, count, len(videos)).mean(1)
    scores = scores[0] if text.weights.ndim == 1 else scores
    scores = scores[..., 0] if video.available.ndim == 1 else scores
    return scores.numpy() if isinstance(text.weights, np.ndarray) else scores


def similarity_tiles(text: TextEmbeddings, video: VideoEmbeddings) -> Iterator[tuple[slice, slice, Array]]:
    """The scores that `similarity` gives, in tiles of at most 1024 texts x 1024 videos: (texts, videos, scores).

    Working memory does not grow with the number of texts or videos. All tiles of some texts come before those of the
    next. Raises as `similarity`.
    """
    check_pair("similarity_tiles", text, video)
    tiles = score_tiles(batched(text), batched(video))
    if isinstance(text.weights, np.ndarray):
        return ((rows, columns, tile.numpy()) for rows, columns, tile in tiles)
    return tiles


def check_pair(where: str, text: object, video: object) -> None:
    """Raise TypeError or ValueError unless these are embeddings of texts and of videos that can be compared."""
    if not isinstance(text, TextEmbeddings) or not isinstance(video, VideoEmbeddings):
        raise TypeError(
            f"{where}: expected TextEmbeddings and VideoEmbeddings (encode_text, encode_video), got "
            f"{type(text).__name__} and {type(video).__name__}"
        )
    check_same_model(where, text, video)


def check_targets(targets: ArrayLike, texts: int, videos: int, least: int = 0) -> Tensor:
    """The row of each text's video, (texts,) int64 on the CPU.

    Args:
        least: -1 where a text may have no video, which that number says.

    Raises:
        TypeError, ValueError: no integers, of another number, or rows that the videos do not have.
    """
    target = as_tensor(real_array(targets, "targets")).cpu()
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"targets: expected integers, the rows of the videos, got {target.dtype}")
    if tuple(target.shape) != (texts,):
        raise ValueError(f"targets: expected ({texts},), the row of each text's video, got {tuple(target.shape)}")
    target = target.long()
    wrong = ((target < least) | (target >= videos)).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"targets, row {wrong[0]}: expected {least} to {videos - 1}, got {target[wrong[0]]}")
    return target


def score_tiles(text: TextEmbeddings, video: VideoEmbeddings) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles of `similarity_tiles` as tensors on the texts' device, of a checked pair of batches.

    The videos' embeddings are not copied. A missing expert is masked in its scores, of which there are fewer numbers.
    """
    text_weights, video_available = as_tensor(text.weights), as_tensor(video.available)
    text_embds = [as_tensor(x) for x in text.embds.values()]
    video_embds = [as_tensor(x) for x in video.embds.values()]
    device = text_weights.device
    for rows in slices(len(text), TEXTS):
        weights = text_weights[rows].float()
        layers = [
            packed_linear(embd[rows] * weights[:, m, None], None, torch.float32, device)
            for m, embd in enumerate(text_embds)
        ]
        for columns in slices(len(video), VIDEOS):
            available = video_available[columns].to(device)
            tile = weights.new_zeros(len(available), len(weights))
            for layer, embd, has_expert in zip(layers, video_embds, available.unbind(1), strict=True):
                product = layer(embd[columns].to(tile))
                tile += product if bool(has_expert.all()) else product.masked_fill_(~has_expert[:, None], 0)
            total = available.to(tile.dtype) @ weights.T
            yield rows, columns, tile.div_(total.masked_fill_(total == 0, 1)).T
