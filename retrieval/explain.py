"""The share of each expert in a score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..base.checks import video_id as as_id
from ..base.dependencies import extra
from .arrays import as_tensor
from .embeddings import TextEmbeddings, VideoEmbeddings, batched
from .similarity import check_pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The score of one text and one video, expert by expert; printed as a table.

    Attributes:
        experts: the M experts' names.
        weights: (M,) float32, the text's weight of each.
        available: (M,) bool, True where the video has the expert.
        cosines: (M,) float32, inner product of the two embeddings; 0 where missing.
        shares: (M,) float32, the part of the score that each adds.
        score: the sum of the shares, as in `similarity`.
        video_id: the video's id, where `explain` was given ids.
    """

    experts: tuple[str, ...]
    weights: np.ndarray
    available: np.ndarray
    cosines: np.ndarray
    shares: np.ndarray
    score: float
    video_id: str | None = None

    def __str__(self) -> str:
        width = max(len("expert"), *map(len, self.experts))
        lines = [] if self.video_id is None else [f"{'video':{width}}  {self.video_id}"]
        lines.append(f"{'expert':{width}}  weight  cosine   share")
        for name, weight, is_available, cosine, share in self._rows():
            rest = f"{cosine:+7.3f} {share:+7.3f}" if is_available else "missing"
            lines.append(f"{name:{width}}  {weight:6.3f} {rest}")
        return "\n".join([*lines, f"{'score':{width}}  {'':14} {self.score:+7.3f}"])

    __repr__ = __str__

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw bars of the shares, with weights and cosines beside them, and return the matplotlib figure.

        In a notebook, a cell that ends with `.plot()` shows the figure once. In a file: `.plot().savefig("why.png")`.

        Args:
            ax: axes to draw into; None makes a new figure.

        Raises:
            ImportError: without matplotlib, naming the extra that brings it.
        """
        if ax is None:
            ax = _new_axes(len(self.experts))
        rows = range(len(self.experts))
        ax.barh(rows, self.shares, color=["tab:blue" if share >= 0 else "tab:red" for share in self.shares])
        ax.axvline(0, color="black", linewidth=0.8)
        labels = [
            f"{name}\nweight {weight:.2f}, " + (f"cosine {cosine:+.2f}" if is_available else "missing")
            for name, weight, is_available, cosine, _ in self._rows()
        ]
        ax.set_yticks(rows, labels, fontsize="small")
        ax.invert_yaxis()
        ax.set_xlabel("share of the score")
        ax.set_title(f"score {self.score:+.3f}" + ("" if self.video_id is None else f", {self.video_id}"))
        return ax.figure  # type: ignore[return-value]  # or the subfigure of the caller's axes

    def _rows(self) -> Iterator[tuple[str, float, bool, float, float]]:
        return zip(self.experts, self.weights, self.available, self.cosines, self.shares, strict=True)


def explain(
    text: TextEmbeddings,
    video: VideoEmbeddings,
    i: int = 0,
    j: int | str = 0,
    ids: Sequence[str | int] | None = None,
) -> Explanation:
    """The part that each expert adds to the score of text i and video j.

    Args:
        i: row of the text.
        j: row of the video, or its id as text, which needs `ids`.
        ids: the ids of all videos, in the order of `video`, such as `features.ids`.

    Raises:
        TypeError, ValueError: as `similarity`; ids of another number, or an id that is not among them.
        IndexError: there is no such row.

    >>> text = TextEmbeddings({"motion": [[1.0, 0.0]], "audio": [[0.0, 1.0]]}, weights=[[0.75, 0.25]])
    >>> video = VideoEmbeddings({"motion": [[0.6, 0.8]], "audio": [[0.0, 1.0]]}, available=[[1, 1]])
    >>> explain(text, video, j="video7", ids=["video7"])
    video   video7
    expert  weight  cosine   share
    motion   0.750  +0.600  +0.450
    audio    0.250  +1.000  +0.250
    score                   +0.700
    """
    check_pair("explain", text, video)
    texts, videos = batched(text), batched(video)
    names = None if ids is None else _checked_ids(ids, len(videos))
    column = _row_of_id(j, names) if isinstance(j, str) else _checked_row(j, "j", len(videos))
    row = _checked_row(i, "i", len(texts))
    weights = as_tensor(texts.weights)[row].double().cpu()
    available = as_tensor(videos.available)[column].cpu()
    cosines = torch.stack(
        [
            as_tensor(x)[row].double().cpu() @ as_tensor(videos.embds[name])[column].double().cpu()
            for name, x in texts.embds.items()
        ]
    ).masked_fill(~available, 0)
    used = weights * available
    shares = used * cosines / (used.sum() if used.sum() > 0 else 1)
    return Explanation(
        experts=text.experts,
        weights=weights.float().numpy(),
        available=available.numpy(),
        cosines=cosines.float().numpy(),
        shares=shares.float().numpy(),
        score=float(shares.sum()),
        video_id=None if names is None else names[column],
    )


# --- inside -----------------------------------------------------------------------------------------------


def _new_axes(bars: int) -> Axes:
    """Axes of a new figure. A notebook shows the figure that a cell returns, so it must not show all open ones, too."""
    pyplot = extra("matplotlib.pyplot", "plot")
    figure, ax = pyplot.subplots(figsize=(7, 0.4 * bars + 1.2), layout="constrained")
    if "inline" in pyplot.get_backend():
        pyplot.close(figure)
    return ax


def _checked_row(row: int, where: str, size: int) -> int:
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise TypeError(f"{where}: expected a row{' or an id' if where == 'j' else ''}, got {row!r}")
    if not -size <= row < size:
        raise IndexError(f"{where}: expected an index below {size}, got {row}")
    return int(row)


def _checked_ids(ids: Sequence[str | int], size: int) -> list[str]:
    if isinstance(ids, str | bytes):
        raise TypeError(f"ids: expected the ids of all videos, got the single {ids!r}")
    names = [as_id(name) for name in ids]
    if len(names) != size:
        raise ValueError(f"ids: expected one for each of {size} videos, got {len(names)}")
    return names


def _row_of_id(name: str, names: list[str] | None) -> int:
    if names is None:
        raise ValueError(f"j: expected ids= beside the id {name!r}, such as ids=features.ids")
    if name not in names:
        raise ValueError(f"j: expected one of the {len(names)} ids, such as {names[0]!r}, got {name!r}")
    return names.index(name)
