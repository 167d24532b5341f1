"""The conditions that a caller may ask by `where`: comparisons of columns, and no more.

A condition of strangers can take a process down: deep ones overflow the stack of Lance's parser, and functions such as
`repeat` take any memory. So a condition is short, and the functions in it are listed here.
"""

from __future__ import annotations

import re

MOST_PARTS = 300
"""Names, numbers, texts and signs of a condition; three times as many overflow the stack."""

FUNCTIONS = frozenset(
    [
        *("abs", "ceil", "floor", "round", "cast", "coalesce"),
        *("char_length", "contains", "ends_with", "length", "lower", "starts_with", "strpos", "upper"),
        *("json_array_contains", "json_exists", "json_extract"),
        *("json_get_bool", "json_get_float", "json_get_int", "json_get_string"),
    ]
)

_KEYWORDS = frozenset(["and", "between", "case", "else", "ilike", "in", "is", "like", "not", "or", "then", "when"])
"""Words that a bracket may follow without being functions."""

_PART = re.compile(
    r"""\s+
    | (?P<text> '(?:[^']|'')*' )
    | (?P<name> \w[\w.]* | "(?:[^"]|"")*" | `[^`]*` )
    | (?P<sign> <> | [!<>=]=? | :: | [-+*/%(),.\[\]] )""",
    re.VERBOSE,
)


def check_condition(where: str) -> None:
    """Raise ValueError for a condition that is long, or holds anything but comparisons and the listed functions."""
    place, parts, last = 0, 0, ""
    while place < len(where):
        found = _PART.match(where, place)
        if found is None or where.startswith(("--", "/*"), place):
            raise ValueError(f"expected comparisons of columns, got {where[place : place + 20]!r} in it")
        if found["text"] and re.search(r"\w$", where[:place]):  # such as E'...', where a backslash hides a quote
            raise ValueError(f"expected a space before {found['text'][:20]!r}")
        if found["sign"] == "(" and _is_function(last) and last.lower() not in FUNCTIONS:
            raise ValueError(f"expected one of the functions {', '.join(sorted(FUNCTIONS))}, got {last[:40]!r}")
        if found.lastgroup:
            last, parts = found[0], parts + 1
        place = found.end()
    if parts > MOST_PARTS:
        raise ValueError(f"expected at most {MOST_PARTS} names, values and signs, got {parts}")


def _is_function(name: str) -> bool:
    """True for a name before a bracket."""
    return bool(re.match(r"[^\W\d]|[\"`]", name)) and name.lower() not in _KEYWORDS
