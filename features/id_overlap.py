"""Checks that feature files share ids with each other and with the ids that are asked for.

Files of different experts describe the same videos, so their ids are mostly the same. Where almost none are, they are
spelled differently (`7` and `0007`, `vid` and `vid.mp4`) or belong to different data sets.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain

HARDLY_ANY = 0.05
"""A smaller share of common ids brings a warning. It is the share of the smaller of two sets."""

FEW = 20
"""Fewer ids than this may all be absent: a small batch may hold only videos without features."""


def check_files(files: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError for a file that shares no ids with the larger files, and warn of one that shares hardly any.

    Args:
        files: {name for messages: ids}. Empty files pass.
    """
    by_size = dict(sorted(files.items(), key=lambda item: len(item[1]), reverse=True))
    known: set[str] = set()
    for name, ids in by_size.items():
        _check(name, set(ids), known, by_size)
        known.update(ids)


def check_request(ids: Sequence[str], files: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where no file has any of the ids that were asked for, and warn where hardly any is there.

    Fewer than `FEW` ids are refused only where a file has one of them in another spelling.
    """
    known = set(chain.from_iterable(files.values()))
    if len(ids) < FEW and known.isdisjoint(ids) and not _find_spelling(ids, known):
        return
    _check("the ids asked for", set(ids), known, files)


def _check(name: str, ids: set[str], known: set[str], files: Mapping[str, Sequence[str]]) -> None:
    """Raise or warn where both sets hold ids, and hardly any in common. `files` say whose id stands in the message."""
    shared, smaller = len(ids & known), min(len(ids), len(known))
    if shared >= HARDLY_ANY * smaller:
        return
    strangers, known_strangers = sorted(ids - known), sorted(known - ids)
    a, b, cause = _find_spelling(strangers, known_strangers) or (strangers[0], known_strangers[0], "")
    other = next(other for other, other_ids in files.items() if b in other_ids)
    examples = f"such as {a!r} in the first and {b!r} in the second{cause}"
    if not shared:
        raise ValueError(f"features: {name} and {other} share no ids, {examples}")
    warnings.warn(f"features: {name} and {other} share only {shared:,} of {smaller:,} ids, {examples}", stacklevel=4)


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
    "the span of a clip: name clips, or extract with --clips whole": lambda video: video.partition("#t=")[0],
    "path, suffix or leading zeros": lambda video: _without_zeros(_without_suffix(_without_path(video.strip()))),
}
"""{a difference between two spellings: the shorter spelling}. Case is ignored in all of them."""


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
