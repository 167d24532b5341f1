"""Answers as one HTML file that can be mailed: pictures, ranks, and what each expert adds, without a script.

`search --html` shows the answers to some sentences. `evaluate --html` shows how captions of the test videos fare, the
worst first, as CE's authors looked at their results: the ranking, the right video marked in it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..base.files import local_path, replacing
from ..features.extract.still import make_still
from ..retrieval.result import SearchResult

STYLES = [Path(__file__).parent / "server" / "page" / name for name in ("page.css", "report.css")]
COLOURS = 10
"""Of experts, in page.css."""

SIDE = 120
"""Pixels of the shorter side of a picture."""


@dataclass(frozen=True)
class Answer:
    """A video in a ranking.

    Attributes:
        rank: from 1 on.
        shares: {expert: its part of the score}.
        uri, start_s, end_s: the clip, for its picture.
        text: shown below it, such as a caption.
        is_right: True for the video that the sentence was written for.
    """

    rank: int
    id: str
    score: float
    shares: Mapping[str, float]
    uri: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    text: str = ""
    is_right: bool = False


@dataclass(frozen=True)
class Query:
    """A sentence and the videos found for it, best first. `note` says how it fared."""

    sentence: str
    answers: Sequence[Answer]
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The content of a page. `figures` is a table, its first row and column being names."""

    title: str
    experts: Sequence[str]
    queries: Sequence[Query]
    note: str = ""
    figures: Sequence[Sequence[str]] = field(default_factory=list)


def write_report(report: Report, path: str | Path) -> None:
    """Write the page, complete or not at all.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_text(render(report), encoding="utf-8")


def report_search(sentences: Sequence[str], found: SearchResult) -> Report:
    """The report of the answers to T sentences."""
    queries = []
    for sentence, answers in zip(sentences, found.to_dict(), strict=True):
        queries.append(Query(sentence, [_answer(answer) for answer in answers]))
    note = "" if found.exact else "approximate: better videos may be missing"
    return Report("Videos found", found.experts, queries, note)


def _answer(answer: dict[str, Any]) -> Answer:
    metadata = answer.pop("metadata", None) or {}
    text = metadata.get("text")  # of `extract` {expert: text}; that of users may be anything
    texts = [metadata.get("caption"), *(text.values() if isinstance(text, dict) else [text])]
    return Answer(**answer, text=" · ".join(text for text in texts if isinstance(text, str) and text))


def render(report: Report) -> str:
    """The page as HTML."""
    pictures = _Pictures()
    scale = _scale(answer.shares for query in report.queries for answer in query.answers)
    place = {name: i % COLOURS for i, name in enumerate(report.experts)}
    body = [_query(query, place, scale, pictures) for query in report.queries]
    legend = "".join(f"<li>{_swatch(i)}<span>{escape(name)}</span></li>" for name, i in place.items())
    styles = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    colours = "".join(f".e{i}{{--colour:var(--expert-{i})}}" for i in range(COLOURS))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(report.title)}</title>'
        f"<style>{styles}{colours}{pictures.styles}</style></head>\n<body><main class='wide'><div class='found'>"
        f"<h1>{escape(report.title)}</h1><p>{escape(report.note)}</p>"
        f"<ul class='legend' aria-label='Experts and their colours'>{legend}</ul></div>\n"
        f"{_figures(report.figures)}{''.join(body)}</main></body></html>\n"
    )


# --- parts ------------------------------------------------------------------------------------------------


def _query(query: Query, place: Mapping[str, int], scale: tuple[float, float], pictures: _Pictures) -> str:
    cards = "".join(_card(answer, place, scale, pictures) for answer in query.answers)
    note = f"<p class='muted'>{escape(query.note)}</p>" if query.note else ""
    return f"<section class='query'><h2>{escape(query.sentence)}</h2>{note}<ol class='grid'>{cards}</ol></section>\n"


def _card(answer: Answer, place: Mapping[str, int], scale: tuple[float, float], pictures: _Pictures) -> str:
    has_span = answer.start_s is not None and answer.end_s is not None
    span = f"{answer.start_s:.1f} to {answer.end_s:.1f} s" if has_span else ""
    shares = ", ".join(f"{name} {share:+.3f}" for name, share in answer.shares.items() if share)
    return (
        f"<li class='card{' is-right' if answer.is_right else ''}'><div class='still {pictures.name_of(answer)}'>"
        f"{_tag('rank', str(answer.rank))}{_tag('right', 'the right one' if answer.is_right else '')}"
        f"{_tag('span', span)}</div>"
        f"<div class='about'><h3 title='{escape(answer.id)}'>{escape(answer.id)}</h3>"
        f"<p class='score'>{answer.score:.3f}</p>"
        f"<div class='bar' role='img' aria-label='Shares of the score: {escape(shares or 'none')}' "
        f"title='{escape(shares)}'>{_bar(answer.shares, place, scale)}</div>"
        f"<p class='text'>{escape(answer.text)}</p></div></li>"
    )


def _tag(kind: str, text: str) -> str:
    return f"<span class='tag {kind}'>{text}</span>" if text else ""


def _bar(shares: Mapping[str, float], place: Mapping[str, int], scale: tuple[float, float]) -> str:
    """Parts of a bar: negative shares left of the zero line, positive ones right of it."""
    low, high = scale
    length = high - low

    def part(name: str) -> str:
        return f"<span class='part e{place[name]}' style='width:{100 * abs(shares[name]) / length:.2f}%'></span>"

    below, above = ([name for name in place if sign * shares.get(name, 0) > 0] for sign in (-1, 1))
    lead = 100 * (sum(shares[name] for name in below) - low) / length
    zero = "<span class='zero'></span>" if low < 0 else ""
    return f"<span style='width:{lead:.2f}%'></span>{''.join(map(part, below))}{zero}{''.join(map(part, above))}"


def _figures(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    lines = []
    for name, *cells in rows[1:]:
        lines.append(
            f"<tr><th scope='row'>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        )
    return f"<table class='shares figures'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>\n"


def _swatch(place: int) -> str:
    return f"<span class='swatch e{place}' aria-hidden='true'></span>"


def _scale(shares: Iterable[Mapping[str, float]]) -> tuple[float, float]:
    """The sums of negative and of positive shares that are farthest from 0: all bars have one scale."""
    low, high = 0.0, 1e-9
    for one in shares:
        low = min(low, sum(x for x in one.values() if x < 0))
        high = max(high, sum(x for x in one.values() if x > 0))
    return low, high


class _Pictures:
    """Each picture stands once in the page, as a class of its style, however many rankings show it."""

    def __init__(self) -> None:
        self._names: dict[tuple[Any, ...], str] = {}
        self._styles: list[str] = []

    def name_of(self, answer: Answer) -> str:
        """The class that shows the answer's picture; "none" where there is none."""
        key = (answer.uri, answer.start_s, answer.end_s)
        if key not in self._names:
            path = local_path(answer.uri)
            still = make_still(path, answer.start_s or 0.0, answer.end_s, SIDE) if path and find_spec("av") else None
            self._names[key] = f"p{len(self._styles)}" if still else "none"
            if still:
                url = f"data:image/jpeg;base64,{base64.b64encode(still).decode()}"
                self._styles.append(f".p{len(self._styles)}{{background-image:url({url})}}")
        return self._names[key]

    @property
    def styles(self) -> str:
        return "".join(self._styles)
