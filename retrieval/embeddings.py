"""What the operator computes, and how the two sides compare.

The score of text t and video v is the sum of their embeddings' inner products per expert, weighted by the
text's expert weights w over the experts that are available in the video (paper, section 3.2, eq. 6):

    s(t, v) = sum_m w_tm a_vm <t_m, v_m> / sum_m w_tm a_vm

One joint vector per text and per video gives the numerator as a plain inner product.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..base.dependencies import extra
from ..base.linear import packed_linear
from ..base.slices import slices

Array = Tensor | np.ndarray
"""A torch tensor or a NumPy array; every function returns the type it was given."""

TEXTS, VIDEOS = 1024, 1024
"""Size of a tile of scores: large enough for fast matrix products, small enough to be added up in the cache."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model made an embedding: only those of the same one can be compared.

    Attributes:
        config: the model's config as JSON.
        weights: fingerprint of its parameters (`checkpoint.fingerprint`).
    """

    config: str
    weights: str


@dataclass(frozen=True)
class VideoEmbeddings:
    """Embeddings of B videos; without the axis B for a single one. `embeddings[rows]` are those of some.

    Attributes:
        embds: {expert: (B, D)} float32 in the model's order, L2-normalised; finite, but meaningless where missing.
        available: (B, M) bool, which experts each video has.
        model: what made them; None for embeddings from elsewhere.
    """

    embds: dict[str, Array]
    available: Array
    model: ModelIdentity | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def __len__(self) -> int:
        return len(self.available)

    def __getitem__(self, rows: Any) -> VideoEmbeddings:
        return VideoEmbeddings({name: x[rows] for name, x in self.embds.items()}, self.available[rows], self.model)

    def joint(self) -> Array:
        """(B, M * D): the experts' embeddings side by side, missing ones zeroed."""
        return _joint(self.embds, self.available)


@dataclass(frozen=True)
class TextEmbeddings:
    """Embeddings of T texts; without the axis T for a single one. `embeddings[rows]` are those of some.

    Attributes:
        embds: {expert: (T, D)} float32 in the model's order, L2-normalised.
        weights: (T, M) float32, the weight of each expert in the score; rows sum to 1.
        captions: K, where the T = B * K texts are K captions for each of B videos, a video's side by side.
        model: what made them; None for embeddings from elsewhere.
    """

    embds: dict[str, Array]
    weights: Array
    captions: int = 1
    model: ModelIdentity | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self.embds)

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, rows: Any) -> TextEmbeddings:
        return TextEmbeddings({name: x[rows] for name, x in self.embds.items()}, self.weights[rows], model=self.model)

    def joint(self) -> Array:
        """(T, M * D): the experts' embeddings side by side, each scaled by its weight.

        Its inner product with a video's joint vector is the score times the summed weight of the video's
        experts: the exact ranking among videos with the same experts, not among others.
        """
        return _joint(self.embds, self.weights)


def concatenate(parts: Sequence[VideoEmbeddings] | Sequence[TextEmbeddings]) -> VideoEmbeddings | TextEmbeddings:
    """The embeddings of several batches as one, in the given order.

    Raises:
        TypeError: not all parts are embeddings of videos, nor all of texts.
        ValueError: no parts, or parts of different models, experts or numbers of captions.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("concatenate: expected at least one batch of embeddings, got none")
    kind = type(parts[0])
    if kind not in (VideoEmbeddings, TextEmbeddings) or any(type(part) is not kind for part in parts):
        found = ", ".join(sorted({type(part).__name__ for part in parts}))
        raise TypeError(f"concatenate: expected VideoEmbeddings only, or TextEmbeddings only, got {found}")
    for part in parts[1:]:
        _check_same_model("concatenate", parts[0], part)
    embds = {name: _cat([part.embds[name] for part in parts]) for name in parts[0].experts}
    if kind is VideoEmbeddings:
        return VideoEmbeddings(embds, _cat([part.available for part in parts]), parts[0].model)
    captions = {part.captions for part in parts}
    if len(captions) > 1:
        raise ValueError(f"concatenate: expected the same number of captions a video, got {sorted(captions)}")
    return TextEmbeddings(embds, _cat([part.weights for part in parts]), captions.pop(), parts[0].model)


def similarity(text: TextEmbeddings, video: VideoEmbeddings, captions: Literal["each", "mean"] = "each") -> Array:
    """CE's score of every text with every video, (T, B) float32; exact with missing experts.

    A video without any expert scores 0. The axis of a single text or video is left out. The scores are on
    the texts' device; `similarity_tiles` gives them piece by piece where all of them are too many.

    Args:
        captions: 'mean' gives one row for each K captions of a video (`text.captions`), the mean of their
            scores (CENet's "avg"), (T / K, B).

    Raises:
        TypeError: the arguments are not embeddings of texts and of videos, in this order.
        ValueError: the two do not have the same experts in the same order, or are of different models.
    """
    if captions not in ("each", "mean"):
        raise ValueError(f"captions: expected 'each' or 'mean', got {captions!r}")
    check_pair("similarity", text, video)
    one_text, one_video = np.ndim(text.weights) == 1, np.ndim(video.available) == 1
    texts, videos = _batch(text), _batch(video)
    scores = torch.empty(len(texts), len(videos), dtype=torch.float32, device=texts.weights.device)
    for rows, columns, tile in _tiles(texts, videos):
        scores[rows, columns] = tile
    if captions == "mean":
        scores = scores.unflatten(0, (-1, text.captions)).mean(1)
    scores = scores[0] if one_text else scores
    scores = scores[..., 0] if one_video else scores
    return scores.numpy() if isinstance(text.weights, np.ndarray) else scores


def similarity_tiles(text: TextEmbeddings, video: VideoEmbeddings) -> Iterator[tuple[slice, slice, Array]]:
    """The scores that `similarity` gives, in tiles of at most 1024 texts x 1024 videos: (texts, videos, scores).

    Working memory does not grow with the number of texts or videos. Raises as `similarity`.
    """
    check_pair("similarity_tiles", text, video)
    tiles = _tiles(_batch(text), _batch(video))
    if isinstance(text.weights, np.ndarray):
        return ((rows, columns, tile.numpy()) for rows, columns, tile in tiles)
    return tiles


@dataclass(frozen=True)
class Explanation:
    """How the score of one text and one video comes about, expert by expert.

    Attributes:
        experts: the M experts' names.
        weights: (M,) float32, the text's weight of each.
        available: (M,) bool, whether the video has it.
        cosines: (M,) float32, inner product of the two embeddings; 0 where missing.
        shares: (M,) float32, what each adds to the score.
        score: their sum, as in `similarity`.
    """

    experts: tuple[str, ...]
    weights: np.ndarray
    available: np.ndarray
    cosines: np.ndarray
    shares: np.ndarray
    score: float

    def __str__(self) -> str:
        width = max(len("expert"), *map(len, self.experts))
        lines = [f"{'expert':{width}}  weight  cosine   share"]
        for name, weight, there, cosine, share in zip(
            self.experts, self.weights, self.available, self.cosines, self.shares, strict=True
        ):
            rest = f"{cosine:+7.3f} {share:+7.3f}" if there else "missing"
            lines.append(f"{name:{width}}  {weight:6.3f} {rest}")
        return "\n".join([*lines, f"{'score':{width}}  {'':14} {self.score:+7.3f}"])

    def plot(self, ax: Any = None) -> Any:
        """Bars of the shares, with weights and cosines beside them; returns the matplotlib axes.

        Raises:
            ImportError: without matplotlib, naming the extra that brings it.
        """
        if ax is None:
            ax = extra("matplotlib.pyplot", "plot").subplots(figsize=(7, 0.4 * len(self.experts) + 1.2))[1]
        rows = range(len(self.experts))
        ax.barh(rows, self.shares, color=["tab:blue" if share >= 0 else "tab:red" for share in self.shares])
        ax.axvline(0, color="black", linewidth=0.8)
        labels = [
            f"{name}\nweight {weight:.2f}, " + (f"cosine {cosine:+.2f}" if there else "missing")
            for name, weight, there, cosine in zip(
                self.experts, self.weights, self.available, self.cosines, strict=True
            )
        ]
        ax.set_yticks(rows, labels, fontsize="small")
        ax.invert_yaxis()
        ax.set_xlabel("share of the score")
        ax.set_title(f"score {self.score:+.3f}")
        ax.figure.tight_layout()
        return ax


def explain(text: TextEmbeddings, video: VideoEmbeddings, i: int = 0, j: int = 0) -> Explanation:
    """What each expert adds to the score of text i and video j.

    Raises:
        TypeError, ValueError: as `similarity`.
        IndexError: there is no such text or video.
    """
    check_pair("explain", text, video)
    texts, videos = _batch(text), _batch(video)
    for name, at, size in (("i", i, len(texts)), ("j", j, len(videos))):
        if not -size <= at < size:
            raise IndexError(f"{name}: expected an index below {size}, got {at}")
    weights, available = texts.weights[i].cpu(), videos.available[j].cpu()
    cosines = torch.stack([x[i].cpu() @ videos.embds[name][j].cpu().to(x.dtype) for name, x in texts.embds.items()])
    cosines = cosines.masked_fill(~available, 0)
    used = weights * available
    shares = used * cosines / (used.sum() if used.sum() > 0 else 1)
    return Explanation(
        text.experts, weights.numpy(), available.numpy(), cosines.numpy(), shares.numpy(), float(shares.sum())
    )


def check_pair(where: str, text: Any, video: Any) -> None:
    """Raise TypeError or ValueError unless these are embeddings of texts and of videos that can be compared."""
    if not isinstance(text, TextEmbeddings) or not isinstance(video, VideoEmbeddings):
        raise TypeError(
            f"{where}: expected TextEmbeddings and VideoEmbeddings (encode_text, encode_video), got "
            f"{type(text).__name__} and {type(video).__name__}"
        )
    _check_same_model(where, text, video)


# --- inside -----------------------------------------------------------------------------------------------


def _tiles(text: TextEmbeddings, video: VideoEmbeddings) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of scores of batches of tensors, on the texts' device. No copy of the embeddings is made but of the
    texts of a tile: a missing expert is masked in its scores, of which there are fewer numbers."""
    device = text.weights.device
    for rows in slices(len(text), TEXTS):
        weights = text.weights[rows].float()
        layers = [
            packed_linear(embd[rows] * weights[:, m, None], None, torch.float32, device)
            for m, embd in enumerate(text.embds.values())
        ]
        for columns in slices(len(video), VIDEOS):
            available = video.available[columns].to(device)
            tile = weights.new_zeros(len(available), len(weights))
            for layer, embd, there in zip(layers, video.embds.values(), available.unbind(1), strict=True):
                product = layer(embd[columns].to(tile))
                tile += product if bool(there.all()) else product.masked_fill_(~there[:, None], 0)
            total = available.to(tile.dtype) @ weights.T
            yield rows, columns, tile.div_(total.masked_fill_(total == 0, 1)).T


def _batch(x: Any) -> Any:
    """The same embeddings as tensors with a batch axis; nothing is copied."""
    single = np.ndim(x.weights if isinstance(x, TextEmbeddings) else x.available) == 1

    def convert(array: Array) -> Tensor:
        tensor = _tensor(array)
        return tensor[None] if single else tensor

    embds = {name: convert(array) for name, array in x.embds.items()}
    if isinstance(x, TextEmbeddings):
        return TextEmbeddings(embds, convert(x.weights))
    return VideoEmbeddings(embds, convert(x.available).bool())


def _check_same_model(where: str, a: Any, b: Any) -> None:
    if a.experts != b.experts:
        raise ValueError(f"{where}: expected the same experts in the same order, got {a.experts} and {b.experts}")
    if a.model and b.model and a.model != b.model:
        what = "config" if a.model.config != b.model.config else "weights"
        raise ValueError(f"{where}: expected embeddings of one model, got those of two with different {what}")


def _joint(embds: dict[str, Array], scale: Array) -> Array:
    blocks = [_tensor(embd) for embd in embds.values()]
    scales = _tensor(scale).to(blocks[0].dtype).split(1, dim=-1)
    joint = torch.cat([block * by for block, by in zip(blocks, scales, strict=True)], dim=-1)
    return joint.numpy() if isinstance(scale, np.ndarray) else joint


def _cat(arrays: list[Array]) -> Array:
    return np.concatenate(arrays) if isinstance(arrays[0], np.ndarray) else torch.cat(arrays)


def _tensor(x: Array) -> Tensor:
    if not isinstance(x, np.ndarray):
        return x
    with warnings.catch_warnings():  # PyTorch warns about read-only memory, although nothing here writes to it
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x)
