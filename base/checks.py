"""Checks of single values that a caller passed. Each raises TypeError or ValueError with expected and found."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from reprlib import repr as shortened
from typing import Any

import numpy as np


def nearest(name: object, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for a misspelt name, else the list of known ones."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(repr, known))}"


def check_keys(given: Iterable[str], known: Iterable[str], where: str, below: Iterable[str] = ()) -> None:
    """Raise ValueError for a key that is not known, with the nearest one that is.

    Args:
        below: dotted names of keys in tables below, `training.steps`, which are found by their last part.
    """
    known = list(known)
    dotted = {name.rpartition(".")[2]: name for name in below}
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), [*known, *dotted], n=1)
            hint = f"; did you mean {dotted.get(close[0], close[0])!r}?" if close else nearest(key, known)
            raise ValueError(f"{where}: unknown key {key!r}{hint}")


def check_size(value: object, where: str, least: int = 1, most: int | None = None) -> int:
    """The value as Python's integer, or TypeError or ValueError unless it is an integer from `least` to `most`.

    NumPy's integers become Python's, since they overflow, and JSON does not know them.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{where}: expected an integer, got {value!r}")
    value = int(value)
    if value < least:
        raise ValueError(f"{where}: expected at least {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{where}: expected at most {most:,}, got {value if value < 10**18 else 'far more'}")
    return value


def set_size(of: object, name: str, where: str, least: int = 1, most: int | None = None) -> None:
    """Replace an attribute of a frozen dataclass by what `check_size` makes of it; raises as it does."""
    object.__setattr__(of, name, check_size(getattr(of, name), where, least, most))


def set_flag(of: object, name: str, where: str) -> None:
    """Replace an attribute of a frozen dataclass by True or False; TypeError for what is neither, nor 0 or 1, which
    Towhee's dict has."""
    value = getattr(of, name)
    if not isinstance(value, int | np.integer | np.bool_) or value not in (0, 1):
        raise TypeError(f"{where}: expected True or False, got {value!r}")
    object.__setattr__(of, name, bool(value))


def check_mapping(value: object, where: str) -> Mapping[str, Any]:
    """The value, or TypeError unless it is a dict."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: expected a dict, got {type(value).__name__}")
    return value


def check_unmasked(value: object, where: str, remedy: str) -> None:
    """Raise TypeError for a masked array of NumPy, also one in lists: as a plain array it would lose its mask."""
    if _is_masked(value):
        raise TypeError(f"{where}: expected an array, got a masked one; {remedy}")


def _is_masked(value: object, most: int = 5) -> bool:
    """Lists are followed `most` deep, one more than any argument has: a list may hold itself."""
    if not isinstance(value, list | tuple) or not most:
        return isinstance(value, np.ma.MaskedArray)
    kinds = set(map(type, value))  # of a long list of numbers there is one
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    return any(issubclass(kind, list | tuple) for kind in kinds) and any(_is_masked(x, most - 1) for x in value)


def check_choice(value: object, choices: Collection[object], where: str) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str | None) or value not in choices:
        shown = repr(value) if isinstance(value, str | int) else type(value).__name__
        raise ValueError(f"{where}: expected one of {', '.join(map(repr, choices))}, got {shown}")


def is_unicode(text: str) -> bool:
    """False for text with halves of characters, as a file name that is no UTF-8 and a text that was cut may have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_sentences(sentences: Any) -> tuple[list[str], int | list[int]]:
    """The different sentences, and the place of each that was given among them; one number for a single sentence that
    is not in a list.

    What is computed of a sentence depends on its batch in the last digits, and equal ones are to have equal scores.

    Raises:
        TypeError: anything but text.
        ValueError: no sentence at all.
    """
    if isinstance(sentences, str):
        return [sentences], 0
    try:
        iterator = iter(sentences)
    except TypeError:  # nothing to go through
        iterator = iter([sentences])
    listed = list(iterator)
    if not all(isinstance(sentence, str) for sentence in listed):
        raise TypeError(f"sentences: expected text or a list of texts, got {shortened(sentences)}")
    if not listed:
        raise ValueError("sentences: expected at least one")
    places = {sentence: place for place, sentence in enumerate(dict.fromkeys(listed))}
    return list(places), [places[sentence] for sentence in listed]


def object_hint(value: object) -> str:
    """What to do about an array of objects, for the end of a message; nothing for any other value."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return ""
    return "; pass list(x) where its objects are arrays, x.astype(float) where they are numbers"


def video_id(value: object) -> str:
    """The id of a video as text. Integers count as their decimal digits, bytes as UTF-8.

    Raises:
        TypeError, ValueError: anything else, or text that is not Unicode.
    """
    if type(value) not in (str, int):  # most are, and there may be a million
        value = value.as_py() if hasattr(value, "as_py") else value  # Arrow's
        if isinstance(value, bool | np.bool_) or not isinstance(value, str | bytes | int | np.integer):
            raise TypeError(f"ids: expected text or integers, got {value!r}")
        if isinstance(value, bytes):
            value = value.decode(errors="surrogateescape")
    name = str(value)
    if not is_unicode(name):
        raise ValueError(f"ids: expected text in Unicode, got {name!r}")
    return name


def check_unique(ids: Sequence[str], where: str) -> None:
    """Raise ValueError where an id stands twice, naming it."""
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"{where}: expected each video once, got {twice!r} twice")
