"""Figures of retrieval, from texts to their videos and from videos to their texts.

Recall at K (R@K), median and mean rank (MdR, MnR), and the geometric mean of R@1, R@5 and R@10, in both
directions, as the paper reports them (section 4). Where scores are equal, the order is arbitrary; the figures
are the averages over all orders of the equal ones (for the median: the median of each query's average rank).
A model that gives every pair the same score is at chance, not at 0 or 100%.

Text to video: each caption is a query, its video the only right answer. Video to text: each video that has
captions is a query, ranked by the best of its own captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..base.slices import slices
from .arrays import ArrayLike, as_tensor, real_array
from .embeddings import TextEmbeddings, VideoEmbeddings
from .normalise import QueryBank
from .similarity import TEXTS, check_pair, check_targets, score_tiles

RECALLS = (1, 5, 10, 50)

Tiles = Iterator[tuple[slice, slice, Tensor]]


@dataclass(frozen=True)
class RetrievalMetrics:
    """The figures of one direction. Recalls are percentages of the queries, 0 to 100; ranks begin at 1.

    Attributes:
        r1, r5, r10, r50: share of the queries whose answer is among the first 1, 5, 10, 50.
        median_rank, mean_rank: of the answers.
        geometric_mean: of r1, r5 and r10.
        queries: the number of queries.
    """

    r1: float
    r5: float
    r10: float
    r50: float
    median_rank: float
    mean_rank: float
    geometric_mean: float
    queries: int


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Figures of both directions; printed as a table, in a notebook, too."""

    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics

    def to_dict(self) -> dict[str, dict[str, float]]:
        """{"text_to_video": {"r1": ...}, "video_to_text": {...}}, fit for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = "                R@1    R@5   R@10   R@50    MdR    MnR  geo. mean  queries"
        rows = [
            f"{name:13} {m.r1:5.1f}  {m.r5:5.1f}  {m.r10:5.1f}  {m.r50:5.1f}  {m.median_rank:5.1f}  {m.mean_rank:5.1f}"
            f"  {m.geometric_mean:9.1f}  {m.queries:7,}"
            for name, m in (("text to video", self.text_to_video), ("video to text", self.video_to_text))
        ]
        return "\n".join([head, *rows])

    __repr__ = __str__


def evaluate(
    text: TextEmbeddings,
    video: VideoEmbeddings,
    targets: ArrayLike | None = None,
    query_mask: ArrayLike | None = None,
    bank: QueryBank | None = None,
) -> Evaluation:
    """Figures from embeddings, by CE's own score. The scores are made twice, in tiles, and never held at once.

    Args:
        targets: (T,) integers, the row of the video that each text describes; None where the texts are K
            captions for each video, a video's side by side.
        query_mask: (T,) of 1 and 0; texts with 0 are left out, as queries and as answers. None counts all.
        bank: corrects the scores for hubs before the videos of a text are ranked. The texts of a video are ranked by
            the uncorrected scores: subtracting the same bias from all of them would not change their order.

    Raises:
        TypeError, ValueError: as `similarity`, or targets or mask of another length, type or range.

    >>> import numpy as np
    >>> text = TextEmbeddings({"motion": np.eye(3)}, weights=np.ones((3, 1)))
    >>> video = VideoEmbeddings({"motion": np.eye(3)[[1, 0, 2]]}, available=np.ones((3, 1)))
    >>> evaluate(text, video, targets=[1, 0, 2]).text_to_video.r1
    100.0
    """
    _check_batches(text, video)
    if bank is not None and not isinstance(bank, QueryBank):
        raise TypeError(f"bank: expected a QueryBank, got {type(bank).__name__}")
    if targets is None:
        _check_captions(text, video)
    target, used = _target_rows(targets, len(text), len(video)), _check_mask(query_mask, len(text))

    def tiles() -> Tiles:
        for rows, columns, tile in score_tiles(text, video):
            if bool(tile.isnan().any()):
                raise ValueError("evaluate: expected finite embeddings, got NaN scores")
            yield rows, columns, tile

    correction = None if bank is None else _Correction.of(bank, video)
    return _evaluate(tiles, target, used, len(video), correction)


def evaluate_scores(
    scores: ArrayLike, targets: ArrayLike | None = None, query_mask: ArrayLike | None = None
) -> Evaluation:
    """Figures from a matrix of scores (T, B), texts x videos, higher is better; arguments as in `evaluate`.

    Raises:
        TypeError, ValueError: as `evaluate`, or scores that are no such matrix, or NaN.

    >>> evaluate_scores([[0.9, 0.1], [0.8, 0.2]]).text_to_video.r1
    50.0
    >>> evaluate_scores([[0.9, 0.1], [0.1, 0.8]])
                    R@1    R@5   R@10   R@50    MdR    MnR  geo. mean  queries
    text to video 100.0  100.0  100.0  100.0    1.0    1.0      100.0        2
    video to text 100.0  100.0  100.0  100.0    1.0    1.0      100.0        2
    """
    matrix = as_tensor(real_array(scores, "scores"))
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype == torch.bool:
        raise ValueError(f"scores: expected real numbers (T, B), got {matrix.dtype}, {tuple(matrix.shape)}")
    if bool(matrix.isnan().any()):
        raise ValueError("scores: expected numbers, got NaN")
    texts, videos = matrix.shape
    target, used = _target_rows(targets, texts, videos), _check_mask(query_mask, texts)

    def tiles() -> Tiles:
        for rows in slices(texts, TEXTS):
            yield rows, slice(0, videos), matrix[rows]

    return _evaluate(tiles, target, used, videos)


# --- inside -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Correction:
    """The biases of a query bank.

    Attributes:
        biases: (B,) float64, subtracted from the scores of texts that are corrected.
        activated: (B,) bool; a text is corrected if its best video is activated.
    """

    biases: Tensor
    activated: Tensor

    @classmethod
    def of(cls, bank: QueryBank, video: VideoEmbeddings) -> _Correction:
        return cls(torch.from_numpy(bank.biases(video)), torch.from_numpy(bank.activated(video)))

    def apply(self, scores: Tensor, best: Tensor, columns: slice | Tensor) -> Tensor:
        """Scores of texts whose best videos are given, (n, videos) or (n,), with the videos of `columns`; float64."""
        corrected = self.activated[best].to(scores.device, torch.float64)
        biases = self.biases[columns].to(scores.device)
        return scores.double() - biases * (corrected[:, None] if scores.ndim == 2 else corrected)


def _evaluate(
    tiles: Callable[[], Tiles], target: Tensor, used: Tensor, videos: int, correction: _Correction | None = None
) -> Evaluation:
    """Figures from the tiles of scores, which are asked for twice.

    Args:
        target: (T,) int64, the row of each text's video.
        used: (T,) bool, the texts that count.
        correction: what is subtracted before the videos of a text are ranked.
    """
    target_scores, best_videos = _first_pass(tiles(), target, with_best=correction is not None)
    best_captions, best_count = _best_of_videos(target_scores, target, used, videos)
    counts = _Counts(len(target), videos)
    for rows, columns, tile in tiles():
        scores, limits = _with_target_scores(tile, rows, columns, target_scores, target), target_scores[rows]
        asked = scores if bool(used[rows].all()) else scores[used[rows].to(scores.device)]
        counts.add_to_videos(columns, asked, best_captions[columns])
        if correction is not None:
            limits = correction.apply(limits, best_videos[rows], target[rows])
            scores = correction.apply(scores, best_videos[rows], columns)
        counts.add_to_texts(rows, scores, limits)
    above, ties = counts.of_texts
    text_to_video = _metrics(above[used], ties[used] - 1, torch.ones_like(above[used]))
    has_texts = best_count > 0
    above, ties = counts.of_videos
    video_to_text = _metrics(above[has_texts], (ties - best_count)[has_texts], best_count[has_texts])
    return Evaluation(text_to_video, video_to_text)


def _check_batches(text: TextEmbeddings, video: VideoEmbeddings) -> None:
    check_pair("evaluate", text, video)
    for side, x, array in (("text", text, text.weights), ("video", video, video.available)):
        if array.ndim != 2:
            raise ValueError(f"{side}: expected a batch of embeddings, got those of a single item")
        if not len(x):
            raise ValueError(f"{side}: expected at least one, got none")


def _check_captions(text: TextEmbeddings, video: VideoEmbeddings) -> None:
    captions = text.captions_per_video
    if captions > 1 and len(text) != captions * len(video):
        raise ValueError(
            f"targets: expected the video of each text, since {len(text)} texts are not {captions} captions for each "
            f"of {len(video)} videos"
        )


def _target_rows(targets: ArrayLike | None, texts: int, videos: int) -> Tensor:
    """The row of each text's video; without targets there are as many texts for each video."""
    if targets is not None:
        return check_targets(targets, texts, videos)
    if texts % videos:
        raise ValueError(
            f"targets: expected the video of each text, since {texts} texts are no multiple of {videos} videos"
        )
    return torch.arange(texts, device="cpu") // (texts // videos)


def _check_mask(query_mask: ArrayLike | None, texts: int) -> Tensor:
    if query_mask is None:
        return torch.ones(texts, dtype=torch.bool, device="cpu")
    mask = as_tensor(real_array(query_mask, "query_mask")).cpu()
    if tuple(mask.shape) != (texts,) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"query_mask: expected ({texts},) of 0 and 1, got {tuple(mask.shape)} {mask.dtype}")
    if not bool(mask.any()):
        raise ValueError("query_mask: expected at least one 1, got none")
    return mask.bool()


def _first_pass(tiles: Tiles, target: Tensor, with_best: bool) -> tuple[Tensor, Tensor]:
    """The score of each text with its own video, and, if asked for, the row of its best video; (T,) each."""
    target_scores = best = torch.empty(0, dtype=torch.float32, device="cpu")
    best_videos = torch.zeros_like(target)
    for rows, columns, tile in tiles:
        if not len(target_scores):
            target_scores, best = target.new_empty(2, len(target), dtype=tile.dtype).fill_(_lowest(tile.dtype))
        at_row, at_column = _target_positions(rows, columns, target)
        target_scores[rows.start + at_row] = tile[at_row.to(tile.device), at_column.to(tile.device)].cpu()
        if with_best:
            highest, column = (x.cpu() for x in tile.max(1))
            better = highest > best[rows]
            best[rows] = torch.where(better, highest, best[rows])
            best_videos[rows] = torch.where(better, column + columns.start, best_videos[rows])
    return target_scores, best_videos


def _target_positions(rows: slice, columns: slice, target: Tensor) -> tuple[Tensor, Tensor]:
    """The places in a tile where texts meet their own videos: (row, column) within the tile."""
    column = target[rows] - columns.start
    inside = ((column >= 0) & (column < columns.stop - columns.start)).nonzero().flatten()
    return inside, column[inside]


def _with_target_scores(tile: Tensor, rows: slice, columns: slice, target_scores: Tensor, target: Tensor) -> Tensor:
    """The tile with the texts' scores with their own videos as the first pass gave them.

    The same product may round differently the second time, and no score must be better than itself.
    """
    at_row, at_column = _target_positions(rows, columns, target)
    expected = target_scores[rows.start + at_row]
    if torch.equal(tile[at_row.to(tile.device), at_column.to(tile.device)].cpu(), expected):
        return tile
    tile = tile.clone()
    tile[at_row.to(tile.device), at_column.to(tile.device)] = expected.to(tile.device)
    return tile


def _best_of_videos(target_scores: Tensor, target: Tensor, used: Tensor, videos: int) -> tuple[Tensor, Tensor]:
    """The best score of each video's own texts, (B,), and the number of them that have it, 0 without texts."""
    target, scores = target[used], target_scores[used]
    best = scores.new_full((videos,), _lowest(scores.dtype)).scatter_reduce_(0, target, scores, "amax")
    count = target.new_zeros(videos).index_add_(0, target, (scores == best[target]).long())
    return best, count


def _lowest(dtype: torch.dtype) -> float:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


class _Counts:
    """The numbers of scores above, and equal to, that of the right answer, for each text and each video."""

    def __init__(self, texts: int, videos: int) -> None:
        self.of_texts = torch.zeros(2, texts, dtype=torch.long, device="cpu")
        self.of_videos = torch.zeros(2, videos, dtype=torch.long, device="cpu")

    def add_to_texts(self, rows: slice, scores: Tensor, limits: Tensor) -> None:
        """Count a tile's videos, for texts with the given scores of their right answers, (rows,)."""
        limits = limits[:, None].to(scores.device)
        self.of_texts[:, rows] += torch.stack([(scores > limits).sum(1), (scores == limits).sum(1)]).cpu()

    def add_to_videos(self, columns: slice, scores: Tensor, limits: Tensor) -> None:
        """Count a tile's texts, for videos with the given scores of their right answers, (columns,)."""
        limits = limits.to(scores.device)
        self.of_videos[:, columns] += torch.stack([(scores > limits).sum(0), (scores == limits).sum(0)]).cpu()


def _metrics(above: Tensor, ties: Tensor, answers: Tensor) -> RetrievalMetrics:
    """From each query's number of better, and of equal wrong candidates, and of equal right ones, (Q,) each.

    The equal ones are in random order. The first of g right among h wrong has h / (g + 1) wrong before it on
    average, and none of the first r is right with the probability C(h, r) / C(g + h, r).
    """
    above, ties, answers = above.double(), ties.double(), answers.double()
    ranks = (1 + above + ties / (answers + 1)).numpy()
    r1, r5, r10, r50 = (float(_found_within(k, above, ties, answers).mean()) * 100 for k in RECALLS)
    return RetrievalMetrics(
        r1=r1,
        r5=r5,
        r10=r10,
        r50=r50,
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
        geometric_mean=float((r1 * r5 * r10) ** (1 / 3)),
        queries=len(ranks),
    )


def _found_within(k: int, above: Tensor, ties: Tensor, answers: Tensor) -> Tensor:
    """The probability that a right answer is among the first k; all (Q,) float64."""
    places = k - above
    missed = torch.ones_like(above)
    for i in range(k):
        step = (ties - i).clamp_min(0) / (answers + ties - i).clamp_min(1)
        missed *= torch.where(i < places, step, 1.0)
    return 1 - missed
