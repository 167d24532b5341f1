"""Ids that do not meet: `7` in one file and `0007` in another are two videos to a program, and one to a person.

Files of different experts describe the same videos, so they share ids; the captions of these videos do too. Where
almost none are shared, the ids are spelled differently or the files are of different data sets.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

HARDLY_ANY = 0.05
"""A smaller share of common ids, of the smaller of two sets, is warned of."""

FEW = 20
"""Fewer ids than this may be asked for without any being there: a rare expert may miss all of a small batch."""


def check_files(files: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a file that shares no ids with the larger files, and warn of one that shares hardly any.

    Args:
        files: {name for messages: ids}. Empty files are left out.
    """
    by_size = sorted((item for item in files.items() if item[1]), key=lambda item: len(item[1]), reverse=True)
    for i in range(1, len(by_size)):
        name, ids = by_size[i]
        _check(name, ids, dict(by_size[:i]))


def check_request(ids: Sequence[str], files: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where no file has any of the ids that were asked for, and warn where hardly any is there.

    Fewer than `FEW` ids are refused only where a file has one of them in another spelling.
    """
    files = {name: file_ids for name, file_ids in files.items() if file_ids}
    if not ids or not files:
        return
    if len(ids) < FEW:
        known = _union(files)
        if known.isdisjoint(ids) and not _find_spelling(ids, known):
            return
    _check("the ids asked for", ids, files)


def _check(name: str, ids: Sequence[str], others: Mapping[str, Sequence[str]]) -> None:
    known, unique = _union(others), set(ids)
    shared, smaller = len(unique & known), min(len(unique), len(known))
    if shared >= HARDLY_ANY * smaller:
        return
    strangers, other_strangers = sorted(unique - known), sorted(known - unique)
    a, b, cause = _find_spelling(strangers, other_strangers) or (strangers[0], other_strangers[0], "")
    other = next(other for other, other_ids in others.items() if b in other_ids)
    both = f"{name} and {other}{' and the other files' if len(others) > 1 else ''}"
    examples = f"such as {a!r} in the first and {b!r} in the second{cause}"
    if not shared:
        raise ValueError(f"features: {both} share no ids, {examples}")
    warnings.warn(f"features: {both} share only {shared:,} of {smaller:,} ids, {examples}", stacklevel=4)


def _union(files: Mapping[str, Sequence[str]]) -> set[str]:
    return set(chain.from_iterable(files.values()))


# --- spellings --------------------------------------------------------------------------------------------


def _without_path(video: str) -> str:
    return re.split(r"[/\\]", video)[-1]


def _without_suffix(video: str) -> str:
    return re.sub(r"\.[A-Za-z]\w{1,4}$", "", video)


def _without_zeros(video: str) -> str:
    return video.lstrip("0") or "0"


_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "upper and lower case": str,
    "leading zeros": _without_zeros,
    "a file suffix": _without_suffix,
    "the path before the name": _without_path,
    "spaces around them": str.strip,
    "path, suffix or leading zeros": lambda video: _without_zeros(_without_suffix(_without_path(video.strip()))),
}
"""{what one side has: the id without it}. Case is ignored in all of them."""


def _find_spelling(ids: Iterable[str], other_ids: Iterable[str]) -> tuple[str, str, str] | None:
    """An id of each side that are one video in two spellings, and a phrase that says how these differ."""
    folded, other_folded = ({video.casefold(): video for video in side} for side in (ids, other_ids))
    for difference, shorten in _SPELLINGS.items():
        phrase = f"; they differ in {difference}"
        for video in folded:
            if shorten(video) in other_folded:
                return folded[video], other_folded[shorten(video)], phrase
        for video in other_folded:
            if shorten(video) in folded:
                return folded[shorten(video)], other_folded[video], phrase
    return None
