"""Query banks: scores corrected for hubs, the videos that many texts find although few describe them.

A bank of training captions tells how high a video scores with texts that are not about it. One number a video, its
bias b_v, is subtracted from its scores:

- "qb": QB-Norm (Bogolin et al., CVPR 2022), the inverted softmax over the bank, beta = 20. The published code
  normalises over the bank alone; the texts that are asked do not enter the sum.
- "qb-dynamic": its dynamic inverted softmax. Only texts whose best video is activated are corrected: a video is
  activated where it is among the k best, k = 1, of some text of the bank.
- "nnn": Nearest Neighbor Normalization (Chowdhury et al., EMNLP 2024, eq. 1 and 2), alpha times the mean of the
  video's k highest scores in the bank. For a bank like the queries the paper finds alpha = 0.75 best, and k from 8 to
  128 alike (appendix B1): k is 16 here.

The inverted softmax of a text t and a video v is a difference under an increasing function:

    exp(beta s(t, v)) / sum_c exp(beta s(c, v)) = exp(beta (s(t, v) - b_v)),   b_v = log(sum_c exp(beta s(c, v))) / beta

so it ranks the videos of a text by s(t, v) - b_v, whatever experts they have. CE's score is s(t, v) = <t, v> / W_p(t),
W_p(t) the text's weight of the experts in the video's availability pattern p. Within one pattern W_p(t) > 0 is the same
for all videos, and the ranking is that of <t, v> - W_p(t) b_v: one more component of the joint vectors. Across patterns
only s(t, v) - b_v compares. A video without any expert scores 0 with every text; its corrected score is -b_v.

A sentence that says little scores high with many videos, and the bank would be about what such sentences find. So a
text of the bank may have a level, which is taken off its scores beforehand: what it scores with videos that are not
its own (`QueryBank.levelled`). With exp(beta s(c, v)) a text that is too general counts a multiple of a precise one,
with exp(beta (s(c, v) - level_c)) each text hands out the same amount among those videos. That is one round of making
rows and columns sum to the same (Sinkhorn), with videos which are known beforehand in place of the searched ones.

b_v of "qb" and "nnn" depends on the bank and that video alone. Videos may be added and deleted one by one. The
activated set depends on all videos. The order of the texts of one video does not change, as all lose the same b_v.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_choice, check_size
from .arrays import ArrayLike, as_numpy, float_array
from .embeddings import TextEmbeddings, VideoEmbeddings, batched
from .similarity import check_pair, check_targets, score_tiles

Method = Literal["qb", "qb-dynamic", "nnn"]

PUBLISHED_BETA = 20.0
PUBLISHED_ALPHA = 0.75
NEIGHBOURS = 16

Tiles = Iterator[tuple[slice, slice, Tensor]]


@dataclass(frozen=True, eq=False)
class QueryBank:
    """Texts, most often the training captions, that tell which videos are hubs.

    Attributes:
        text: embeddings of the N texts, made by the model that embeds queries and videos. A few thousand are enough.
        method: "qb", "qb-dynamic" or "nnn"; see the head of this module.
        beta: inverse temperature of "qb" and "qb-dynamic", above 0.
        alpha: factor of "nnn", above 0.
        k: for "nnn" the number of highest scores that are averaged, None takes 16, or all of a smaller bank; for
            "qb-dynamic" the number of videos that each text activates, None takes 1.
        levels: (N,) float32, for "qb" and "qb-dynamic", what is taken off the scores of each text. Those of `levelled`
            are for this beta. None takes nothing off.

    Raises:
        TypeError, ValueError: no texts, an unknown method, numbers out of range, or levels that do not fit.

    The first video answers both captions of the bank, and so it loses more than the second:

    >>> bank = QueryBank(TextEmbeddings({"motion": [[1.0, 0.0], [0.8, 0.6]]}, weights=[[1.0], [1.0]]), "nnn", k=1)
    >>> bank.biases(VideoEmbeddings({"motion": [[1.0, 0.0], [0.0, 1.0]]}, available=[[1], [1]])).round(3)
    array([0.75, 0.45])
    """

    text: TextEmbeddings
    method: Method = "qb"
    beta: float = PUBLISHED_BETA
    alpha: float = PUBLISHED_ALPHA
    k: int | None = None
    levels: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, TextEmbeddings):
            raise TypeError(f"text: expected TextEmbeddings (encode_text), got {type(self.text).__name__}")
        if self.text.weights.ndim != 2 or not len(self.text):
            raise ValueError(f"text: expected a batch of at least one text, got {self.text!r}")
        check_choice(self.method, get_args(Method), "method")
        for name, value in (("beta", self.beta), ("alpha", self.alpha)):
            _check_positive(value, name)
        default = min(len(self.text), NEIGHBOURS) if self.method == "nnn" else 1
        k = check_size(default if self.k is None else self.k, "k")
        if self.method == "nnn" and k > len(self.text):
            raise ValueError(f"k: expected at most the number of texts in the bank, {len(self.text)}, got {k}")
        object.__setattr__(self, "k", k)
        if self.levels is not None:
            object.__setattr__(self, "levels", self._checked(self.levels))

    def _checked(self, levels: ArrayLike) -> np.ndarray:
        self._check_takes_levels()
        with np.errstate(over="ignore"):
            levels = as_numpy(float_array(levels, "levels")).astype(np.float32)
        if levels.shape != (len(self.text),):
            raise ValueError(f"levels: expected {len(self.text)} numbers, one a text, got {levels.shape}")
        if not np.isfinite(levels).all():
            raise ValueError(f"levels: expected finite numbers, got {levels[~np.isfinite(levels)][0]}")
        return levels

    def _check_takes_levels(self) -> None:
        if self.method == "nnn":
            raise ValueError("levels: expected none with the method 'nnn', whose scores have no temperature")

    def levelled(self, video: VideoEmbeddings, targets: ArrayLike) -> QueryBank:
        """This bank with the level of each text: the soft mean of its scores with the B videos but its own,
        log(mean_v exp(beta s(c, v))) / beta. As everywhere, a video without any expert scores 0.

        Args:
            video: videos like those that are to be searched, most often those that the texts describe.
            targets: (N,) integers, the row of the video that each text describes; -1 for none of them.

        Raises:
            TypeError, ValueError: as `similarity`; no two videos, targets that do not fit, embeddings with NaN, or the
                method "nnn".
        """
        self._check_takes_levels()
        check_pair("QueryBank", self.text, video)
        videos = batched(video)
        if len(videos) < 2:
            raise ValueError(f"levelled: expected two videos or more, got {len(videos)}")
        own = check_targets(targets, len(self.text), len(videos), least=-1)
        levels = _log_mean_exp(score_tiles(self.text, videos), own, len(videos), self.beta)
        _check_finite(levels)
        return replace(self, levels=levels.numpy())

    def biases(self, video: VideoEmbeddings) -> np.ndarray:
        """The bias b_v of each video, (B,) float64, to be subtracted from its scores; accurate as scores are, to 1e-6.

        The bias of a video does not depend on the other videos. Without the axis B for a single video.

        Raises:
            TypeError, ValueError: as `similarity`, or embeddings with NaN.
        """
        check_pair("QueryBank", self.text, video)
        videos = batched(video)
        tiles = score_tiles(self.text, videos)
        if self.method == "nnn":
            biases = self.alpha * _mean_of_highest(tiles, len(videos), self.k or 1)
        else:
            biases = _log_sum_exp(tiles, len(videos), self.beta, self.levels)
        _check_finite(biases)
        return (biases if video.available.ndim == 2 else biases[0]).numpy()

    def lower_bound(self, available: np.ndarray) -> tuple[np.ndarray, float]:
        """A linear bound (slope, least) on the biases of "qb" and "nnn": b_v >= <slope, v> + least for all videos v of
        these experts.

        Both methods take a convex function of the scores, which is at least what the mean score gives: the highest
        scores have a mean that is no less, and log(sum_c exp(x_c)) >= mean_c x_c + log N.

        Args:
            available: (M,) bool.

        Returns:
            slope: (sum of D,) float64, for joint vectors.
        """
        weights = as_numpy(self.text.weights).astype(np.float64) * available
        total = weights.sum(1, keepdims=True)
        shares = weights / np.where(total > 0, total, 1)  # (N, M)
        embds = [as_numpy(x).astype(np.float64) for x in self.text.embds.values()]
        slope = np.concatenate([share @ x for share, x in zip(shares.T, embds, strict=True)]) / len(self.text)
        if self.method == "nnn":
            return self.alpha * slope, 0.0
        level = 0.0 if self.levels is None else float(self.levels.mean(dtype=np.float64))
        return slope, float(np.log(len(self.text))) / self.beta - level

    def activated(self, video: VideoEmbeddings) -> np.ndarray:
        """The videos whose finding makes "qb-dynamic" correct a text, (B,) bool; all videos with the other methods.

        Whether a video is activated depends on the other videos.

        Raises:
            TypeError, ValueError: as `similarity`, or embeddings of a single video.
        """
        check_pair("QueryBank", self.text, video)
        if video.available.ndim != 2:
            raise ValueError("QueryBank: expected a batch of videos, got a single one")
        if self.method != "qb-dynamic":
            return np.ones(len(video), dtype=bool)
        return _among_the_best(score_tiles(self.text, video), len(self.text), len(video), self.k or 1).numpy()


# --- inside -----------------------------------------------------------------------------------------------


def _log_sum_exp(tiles: Tiles, videos: int, beta: float, levels: np.ndarray | None) -> Tensor:
    """log(sum over texts of exp(beta * (score - level))) / beta of each video, (B,) float64."""
    total = torch.full((videos,), -torch.inf, dtype=torch.float64, device="cpu")
    for rows, columns, tile in tiles:
        if levels is not None:
            tile = tile - torch.from_numpy(levels[rows]).to(tile)[:, None]
        total[columns] = total[columns].logaddexp((tile * beta).logsumexp(0).double().cpu())
    return total / beta


def _log_mean_exp(tiles: Tiles, own: Tensor, videos: int, beta: float) -> Tensor:
    """log(mean over videos of exp(beta * score)) / beta of each text without its own video, (N,) float64."""
    total = torch.full((len(own),), -torch.inf, dtype=torch.float64, device="cpu")
    for rows, columns, tile in tiles:
        numbers = torch.arange(columns.start, columns.stop, device="cpu")
        is_own = (own[rows, None] == numbers).to(tile.device)
        scores = (tile * beta).masked_fill(is_own, -torch.inf)
        total[rows] = total[rows].logaddexp(scores.logsumexp(1).double().cpu())
    others = videos - (own >= 0).double()
    return (total - others.log()) / beta


def _mean_of_highest(tiles: Tiles, videos: int, k: int) -> Tensor:
    """The mean of each video's k highest scores, (B,) float64."""
    highest = torch.full((videos, k), -torch.inf, dtype=torch.float32, device="cpu")
    for _, columns, tile in tiles:
        highest[columns] = torch.cat([highest[columns].to(tile.device), tile.T], dim=1).topk(k).values.cpu()
    return highest.double().mean(1)


def _among_the_best(tiles: Tiles, texts: int, videos: int, k: int) -> Tensor:
    """True for each video that is among the k best of some text, (B,)."""
    k = min(k, videos)
    best = torch.full((texts, k), -torch.inf, dtype=torch.float32, device="cpu")
    best_videos = torch.zeros(texts, k, dtype=torch.long, device="cpu")
    for rows, columns, tile in tiles:
        candidates = torch.cat([best[rows].to(tile.device), tile], dim=1)
        best_here = candidates.topk(k)
        numbers = torch.arange(columns.start, columns.stop, device="cpu").expand(len(best[rows]), -1)
        best[rows] = best_here.values.cpu()
        best_videos[rows] = torch.cat([best_videos[rows], numbers], dim=1).gather(1, best_here.indices.cpu())
    activated = torch.zeros(videos, dtype=torch.bool, device="cpu")
    activated[best_videos.flatten()] = True
    return activated


def _check_finite(numbers: Tensor) -> None:
    if not bool(numbers.isfinite().all()):
        raise ValueError("QueryBank: expected finite embeddings, got scores with NaN or Inf")


def _check_positive(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{where}: expected a number above 0, got {value!r}")
    if not 0 < float(value) < float("inf"):
        raise ValueError(f"{where}: expected a number above 0, got {value!r}")
