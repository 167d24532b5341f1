"""The answers of a search, printed as a table, in a notebook with pictures."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..base.dependencies import extra
from ..base.files import local_path
from ..features.extract.still import make_still

SHOWN = 10
"""Videos of a text that are printed."""

THUMBNAIL = 90
"""Pixels of the shorter side of a picture."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best videos for T texts, best first; without the axis T for a single text.

    Attributes:
        ids: (T, k) of str; fewer than k where there are fewer videos.
        scores: (T, k) float32, CE's score as `similarity` gives it, less the video's bias in a calibrated index.
        shares: (T, k, M) float32, what each expert adds to the score; 0 where the video lacks it.
        experts: the M experts' names.
        uris: (T, k) of str or None, the media files.
        spans: (T, k, 2) float64, first and last second of the clip in its file; NaN where not known.
        metadata: (T, k) of dict or None.
        exact: False where an approximate search may have missed a better video.
    """

    ids: np.ndarray
    scores: np.ndarray
    shares: np.ndarray
    experts: tuple[str, ...]
    uris: np.ndarray | None = None
    spans: np.ndarray | None = None
    metadata: np.ndarray | None = None
    exact: bool = True

    def __getitem__(self, text: int) -> SearchResult:
        """The answers for one of the T texts."""
        if self.scores.ndim == 1:
            raise TypeError("result: these are the answers for a single text; take result.ids[rank]")
        uris, spans, metadata = (None if x is None else x[text] for x in (self.uris, self.spans, self.metadata))
        return SearchResult(
            self.ids[text], self.scores[text], self.shares[text], self.experts, uris, spans, metadata, self.exact
        )

    def to_dict(self) -> list[Any]:
        """For each text a list of its answers, best first, fit for JSON; for a single text its list alone.

        An answer is {"rank", "id", "score", "shares": {expert: share}}, with "uri", "start_s", "end_s" and "metadata"
        where they are known.
        """
        if self.scores.ndim == 2:
            return [self[text].to_dict() for text in range(len(self.scores))]
        return [self._answer(rank) for rank in range(len(self.scores))]

    def _answer(self, rank: int) -> dict[str, Any]:
        answer: dict[str, Any] = {"rank": rank + 1, "id": str(self.ids[rank]), "score": float(self.scores[rank])}
        answer["shares"] = dict(zip(self.experts, map(float, self.shares[rank]), strict=True))
        if self.uris is not None and self.uris[rank] is not None:
            answer["uri"] = self.uris[rank]
        if self.spans is not None:
            seconds = zip(("start_s", "end_s"), map(float, self.spans[rank]), strict=True)
            answer |= {name: value for name, value in seconds if not np.isnan(value)}
        if self.metadata is not None and self.metadata[rank] is not None:
            answer["metadata"] = self.metadata[rank]
        return answer

    def to_pandas(self) -> Any:
        """A DataFrame of one row an answer: text, rank, id, score, a column `share.EXPERT` each, and what is known of
        the media.

        Raises:
            ImportError: without pandas, naming the extra that brings it.
        """
        answers = [self.to_dict()] if self.scores.ndim == 1 else self.to_dict()
        rows = []
        for text, found in enumerate(answers):
            for answer in found:
                shares = {f"share.{name}": share for name, share in answer.pop("shares").items()}
                rows.append({"text": text} | answer | shares)
        columns = ["text", "rank", "id", "score", *(f"share.{name}" for name in self.experts)]
        return extra("pandas", "index").DataFrame(rows, columns=None if rows else columns)

    def __str__(self) -> str:
        if self.scores.ndim == 2:
            return "\n\n".join(f"text {text}\n{self[text]}" for text in range(len(self.scores))) or "no texts"
        return self.table(SHOWN)

    def table(self, most: int | None = None) -> str:
        """The answers for a single text as a table of lines, all of them or the best `most`."""
        if not len(self.scores):
            return "no videos"
        shown = range(min(len(self.scores), most or len(self.scores)))
        width = max([len("video"), *(len(_name(self, rank)) for rank in shown)])
        lines = [f"rank  {'video':{width}}  {'score':>6}  " + "  ".join(f"{name:>7}" for name in self.experts)]
        for rank in shown:
            shares = "  ".join(f"{share:+{max(7, len(name))}.3f}" for name, share in self._shares(rank))
            lines.append(f"{rank + 1:4}  {_name(self, rank):{width}}  {self.scores[rank]:+6.3f}  {shares}")
        if len(self.scores) > len(shown):
            lines.append(f"... {len(self.scores) - len(shown):,} more")
        if not self.exact:
            lines.append("approximate: better videos may be missing")
        return "\n".join(lines)

    def _shares(self, rank: int) -> list[tuple[str, float]]:
        return list(zip(self.experts, map(float, self.shares[rank]), strict=True))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A notebook's table, with a picture of each video whose file can be read."""
        if self.scores.ndim == 2:
            parts = (f"<p>text {text}</p>{self[text]._repr_html_()}" for text in range(len(self.scores)))
            return "".join(parts)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", "video", "score", *self.experts))
        rows = []
        for rank in range(min(len(self.scores), SHOWN)):
            cells = [_picture(*self._media(rank)), html.escape(_name(self, rank)), f"{self.scores[rank]:+.3f}"]
            cells += [f"{share:+.3f}" for _, share in self._shares(rank)]
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def _media(self, rank: int) -> tuple[str | None, float, float | None]:
        """File, first and last second."""
        uri = None if self.uris is None else self.uris[rank]
        start, end = (np.nan, np.nan) if self.spans is None else map(float, self.spans[rank])
        return uri, 0.0 if np.isnan(start) else start, None if np.isnan(end) else end


def _name(result: SearchResult, rank: int) -> str:
    """The id, shortened where it is very long, and without what would break a table."""
    name = str(result.ids[rank]).encode("unicode_escape").decode() if not str(result.ids[rank]).isprintable() else None
    name = name or str(result.ids[rank])
    return name if len(name) <= 60 else f"{name[:57]}..."


def _picture(uri: str | None, start: float, end: float | None) -> str:
    """A still of a file on this machine as HTML; empty where there is none that can be read, or without PyAV."""
    path = local_path(uri)
    if path is None or not find_spec("av"):
        return ""
    jpeg = make_still(path, start, end, THUMBNAIL)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">' if jpeg else ""
