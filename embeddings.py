"""What the operator computes, and how the two sides compare.

The score of text t and video v is the sum of their embeddings' inner products per expert, weighted by the
text's expert weights w over the experts that are available in the video (paper, section 3.2, eq. 6):

    s(t, v) = sum_m w_tm a_vm <t_m, v_m> / sum_m w_tm a_vm

One joint vector per text and per video gives the numerator as a plain inner product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Array = Tensor | np.ndarray
"""A torch tensor or a NumPy array; every function returns the type it was given."""


@dataclass(frozen=True)
class VideoEmbeddings:
    """Embeddings of B videos; without the axis B for a single one.

    Attributes:
        embds: {expert: (B, D)} float32 in the model's order, L2-normalised; finite, but meaningless where missing.
        available: (B, M) bool, which experts each video has.
    """

    embds: dict[str, Array]
    available: Array

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def joint(self) -> Array:
        """(B, M * D): the experts' embeddings side by side, missing ones zeroed."""
        return _joint(self.embds, self.available)


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of T texts; without the axis T for a single one.

    Attributes:
        embds: {expert: (T, D)} float32 in the model's order, L2-normalised.
        weights: (T, M) float32, the weight of each expert in the score; rows sum to 1.
    """

    embds: dict[str, Array]
    weights: Array

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def joint(self) -> Array:
        """(T, M * D): the experts' embeddings side by side, each scaled by its weight.

        Its inner product with a video's joint vector is the score times the summed weight of the video's
        experts: the exact ranking among videos with the same experts, not among others.
        """
        return _joint(self.embds, self.weights)


def similarity(text: TextEmbeddings, video: VideoEmbeddings) -> Array:
    """CE's score of every text with every video, (T, B) float32; exact with missing experts.

    A video without any expert scores 0. The axis of a single text or video is left out.

    Raises:
        TypeError: the arguments are not embeddings of texts and of videos, in this order.
        ValueError: the two do not have the same experts in the same order.
    """
    if not isinstance(text, TextEmbeddings) or not isinstance(video, VideoEmbeddings):
        raise TypeError(
            "similarity: expected TextEmbeddings and VideoEmbeddings (encode_text, encode_video), got "
            f"{type(text).__name__} and {type(video).__name__}"
        )
    if text.experts != video.experts:
        raise ValueError(f"similarity: expected the same experts on both sides, got {text.experts} and {video.experts}")
    t, v, weights, available = (_tensor(x) for x in (text.joint(), video.joint(), text.weights, video.available))
    available = available.to(weights.dtype)
    if v.ndim == 2:
        v, available = v.T, available.T
    total = weights @ available
    scores = (t @ v) / total.masked_fill(total == 0, 1)
    return scores.numpy() if isinstance(text.weights, np.ndarray) else scores


def _joint(embds: dict[str, Array], scale: Array) -> Array:
    blocks = [_tensor(embd) for embd in embds.values()]
    scales = _tensor(scale).to(blocks[0].dtype).split(1, dim=-1)
    joint = torch.cat([block * by for block, by in zip(blocks, scales, strict=True)], dim=-1)
    return joint.numpy() if isinstance(scale, np.ndarray) else joint


def _tensor(x: Array) -> Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x
