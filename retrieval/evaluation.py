"""How well sentences find their videos, and videos their sentences.

Recall at K (R@K), median and mean rank (MdR, MnR), and the geometric mean of R@1, R@5 and R@10, in both
directions, as the paper reports them (section 4). Where scores are equal, the order is arbitrary; the figures
are the averages over all orders of the equal ones (for the median: the median of each query's average rank),
so that a model which gives every pair the same score is at chance and not at 0 or 100%.

Text to video: each caption is a query, its video the only right answer. Video to text: each video that has
captions is a query, ranked by the best of its own captions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .embeddings import Array, TextEmbeddings, VideoEmbeddings, check_pair, similarity_tiles

RECALLS = (1, 5, 10, 50)

Tiles = Iterator[tuple[slice, slice, Tensor]]


@dataclass(frozen=True)
class RetrievalMetrics:
    """One direction's figures. Recalls are percentages of the queries, 0 to 100; ranks begin at 1.

    Attributes:
        r1, r5, r10, r50: queries whose answer is among the first 1, 5, 10, 50.
        median_rank, mean_rank: of the answers.
        geometric_mean: of r1, r5 and r10.
        queries: how many were asked.
    """

    r1: float
    r5: float
    r10: float
    r50: float
    median_rank: float
    mean_rank: float
    geometric_mean: float
    queries: int


@dataclass(frozen=True)
class Evaluation:
    """Figures of both directions; printed as a table."""

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


def evaluate(text: TextEmbeddings, video: VideoEmbeddings, targets: Any = None, query_mask: Any = None) -> Evaluation:
    """Figures from embeddings, by CE's own score; the scores are made twice, in tiles, and never held at once.

    Args:
        targets: (T,) integers, the row of the video that each text describes; None where the texts are K
            captions for each video, a video's side by side.
        query_mask: (T,) of 1 and 0; texts with 0 are left out, as queries and as answers. None counts all.

    Raises:
        TypeError, ValueError: as `similarity`, or targets or mask of another length, type or range.

    >>> import numpy as np
    >>> text = TextEmbeddings({"motion": np.eye(3, dtype=np.float32)}, np.ones((3, 1), dtype=np.float32))
    >>> video = VideoEmbeddings({"motion": np.eye(3, dtype=np.float32)[[1, 0, 2]]}, np.ones((3, 1), dtype=bool))
    >>> evaluate(text, video, targets=[1, 0, 2]).text_to_video.r1
    100.0
    """
    check_pair("evaluate", text, video)
    for side, x, array in (("text", text, text.weights), ("video", video, video.available)):
        if np.ndim(array) != 2:
            raise ValueError(f"{side}: expected a batch of embeddings, got those of a single item")
        if not len(x):
            raise ValueError(f"{side}: expected at least one, got none")

    def tiles() -> Tiles:
        for rows, columns, tile in similarity_tiles(text, video):
            scores = torch.as_tensor(tile)
            if bool(scores.isnan().any()):
                raise ValueError("evaluate: expected finite embeddings, got NaN scores")
            yield rows, columns, scores

    return _evaluate(tiles, len(text), len(video), targets, query_mask)


def evaluate_scores(scores: Array, targets: Any = None, query_mask: Any = None) -> Evaluation:
    """Figures from a matrix of scores (T, B), texts x videos, higher is better; arguments as in `evaluate`.

    Raises:
        TypeError, ValueError: as `evaluate`, or scores that are no such matrix, or NaN.

    >>> evaluate_scores([[0.9, 0.1], [0.8, 0.2]]).text_to_video.r1
    50.0
    """
    matrix = torch.as_tensor(scores)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.dtype == torch.bool or matrix.is_complex():
        raise ValueError(f"scores: expected real numbers (T, B), got {matrix.dtype}, {tuple(matrix.shape)}")
    if bool(matrix.isnan().any()):
        raise ValueError("scores: expected numbers, got NaN")
    size = len(matrix)

    def tiles() -> Tiles:
        for start in range(0, size, 1024):
            rows = slice(start, min(start + 1024, size))
            yield rows, slice(0, matrix.shape[1]), matrix[rows]

    return _evaluate(tiles, *matrix.shape, targets, query_mask)


# --- inside -----------------------------------------------------------------------------------------------


def _evaluate(tiles: Callable[[], Tiles], texts: int, videos: int, targets: Any, query_mask: Any) -> Evaluation:
    target = _check_targets(targets, texts, videos)
    used = _check_mask(query_mask, texts)
    own = _own_scores(tiles(), target)
    best, best_count = _best_of_videos(own, target, used, videos)
    counts = _Counts(texts, videos)
    for rows, columns, tile in tiles():
        counts.add(rows, columns, _with_own(tile, rows, columns, own, target), own, best, used)
    above, ties = counts.of_texts
    text_to_video = _metrics(above[used], ties[used] - 1, torch.ones_like(above[used]))
    asked = best_count > 0
    above, ties = counts.of_videos
    video_to_text = _metrics(above[asked], (ties - best_count)[asked], best_count[asked])
    return Evaluation(text_to_video, video_to_text)


def _check_targets(targets: Any, texts: int, videos: int) -> Tensor:
    if targets is None:
        if texts % videos:
            raise ValueError(
                f"targets: expected the video of each text, since {texts} texts are no multiple of {videos} videos"
            )
        return torch.arange(texts) // (texts // videos)
    targets = targets if isinstance(targets, Tensor) else np.array(targets)
    if isinstance(targets, np.ndarray) and targets.dtype.kind not in "iufcb":
        raise TypeError(f"targets: expected integers, the rows of the videos, got {targets.dtype}")
    target = torch.as_tensor(targets).cpu()
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"targets: expected integers, got {target.dtype}")
    if tuple(target.shape) != (texts,):
        raise ValueError(f"targets: expected ({texts},), the row of each text's video, got {tuple(target.shape)}")
    target = target.long()  # first, since PyTorch does not compare unsigned integers
    wrong = ((target < 0) | (target >= videos)).nonzero().flatten()
    if len(wrong):
        raise ValueError(f"targets, row {wrong[0]}: expected 0 to {videos - 1}, got {target[wrong[0]]}")
    return target


def _check_mask(query_mask: Any, texts: int) -> Tensor:
    if query_mask is None:
        return torch.ones(texts, dtype=torch.bool)
    mask = torch.as_tensor(query_mask).cpu()
    if tuple(mask.shape) != (texts,) or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"query_mask: expected ({texts},) of 0 and 1, got {tuple(mask.shape)} {mask.dtype}")
    if not bool(mask.any()):
        raise ValueError("query_mask: expected at least one 1, got none")
    return mask.bool()


def _own_positions(rows: slice, columns: slice, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where in a tile the texts meet their own videos: (row, column) within the tile."""
    own = target[rows] - columns.start
    inside = ((own >= 0) & (own < columns.stop - columns.start)).nonzero().flatten()
    return inside, own[inside]


def _own_scores(tiles: Tiles, target: Tensor) -> Tensor:
    """(T,): the score of each text with its own video."""
    own = None
    for rows, columns, tile in tiles:
        own = torch.empty(len(target), dtype=tile.dtype) if own is None else own
        at_row, at_column = _own_positions(rows, columns, target)
        own[rows.start + at_row] = tile[at_row.to(tile.device), at_column.to(tile.device)].cpu()
    return own


def _with_own(tile: Tensor, rows: slice, columns: slice, own: Tensor, target: Tensor) -> Tensor:
    """The tile with the own scores as they came the first time: a product is not promised to round alike twice."""
    at_row, at_column = _own_positions(rows, columns, target)
    here = own[rows.start + at_row]
    if torch.equal(tile[at_row.to(tile.device), at_column.to(tile.device)].cpu(), here):
        return tile
    tile = tile.clone()
    tile[at_row.to(tile.device), at_column.to(tile.device)] = here.to(tile.device)
    return tile


def _best_of_videos(own: Tensor, target: Tensor, used: Tensor, videos: int) -> tuple[Tensor, Tensor]:
    """The best score of each video's own texts, (B,), and how many of them have it, 0 without texts."""
    target, own = target[used], own[used]
    lowest = -torch.inf if own.is_floating_point() else torch.iinfo(own.dtype).min
    best = own.new_full((videos,), lowest).scatter_reduce_(0, target, own, "amax")
    count = torch.zeros(videos, dtype=torch.long).index_add_(0, target, (own == best[target]).long())
    return best, count


class _Counts:
    """How many scores are above, and how many equal to, that of the right answer; of texts and of videos."""

    def __init__(self, texts: int, videos: int) -> None:
        self.of_texts = torch.zeros(2, texts, dtype=torch.long)
        self.of_videos = torch.zeros(2, videos, dtype=torch.long)

    def add(self, rows: slice, columns: slice, tile: Tensor, own: Tensor, best: Tensor, used: Tensor) -> None:
        device = tile.device
        mine, theirs = own[rows, None].to(device), best[columns].to(device)
        self.of_texts[:, rows] += torch.stack([(tile > mine).sum(1), (tile == mine).sum(1)]).cpu()
        if not bool(used[rows].all()):
            tile = tile[used[rows].to(device)]
        self.of_videos[:, columns] += torch.stack([(tile > theirs).sum(0), (tile == theirs).sum(0)]).cpu()


def _metrics(above: Tensor, ties: Tensor, answers: Tensor) -> RetrievalMetrics:
    """From each query's number of better, and of equal wrong candidates, and of equal right ones, (Q,) each.

    The equal ones are in random order. The first of g right among h wrong has h / (g + 1) wrong before it on
    average, and none of the first r is right with the probability C(h, r) / C(g + h, r).
    """
    above, ties, answers = above.double(), ties.double(), answers.double()
    ranks = (1 + above + ties / (answers + 1)).numpy()
    recalls = [float(_found_within(k, above, ties, answers).mean()) * 100 for k in RECALLS]
    return RetrievalMetrics(
        *recalls,
        median_rank=float(np.median(ranks)),
        mean_rank=float(ranks.mean()),
        geometric_mean=float(np.prod(recalls[:3]) ** (1 / 3)),
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
