"""What a condition on stored videos may look like, so that asking with it ends in an answer or an error.

Lance's parser and planner call themselves once for each sign of a chain such as `1 + 1 + 1`: some 700 signs overflow
their stack, and the process is gone. So a condition is short, apart from lists such as `id IN ('a', 'b')`, which are
flat. What would hide a part of it from the count (comments, texts with escapes) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST_CONDITION = 100_000
"""Characters of a condition."""

MOST_PARTS = 300
"""Names, values and signs of a condition, without commas and the values after them."""

_OTHERS = r"(?P<name> \w[\w.]* | `[^`]*` ) | (?P<sign> <> | [!<>=]=? | :: | \|\| | [^\s\w'\"`$] )"

_SQL = re.compile(rf"""\s+ | (?P<text> '(?:[^']|'')*' ) | (?P<quoted> "(?:[^"]|"")*" ) | {_OTHERS}""", re.VERBOSE)

_MILVUS = re.compile(
    rf"""\s+ | (?P<text> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" ) | (?P<quoted> (?!) ) | {_OTHERS}""",
    re.VERBOSE | re.DOTALL,
)


class Part(NamedTuple):
    """A piece of a condition: "name" (numbers and words of SQL, too), "text" in quotes, or "sign"."""

    kind: str
    content: str


def check_condition(where: object, sql: bool = True) -> list[Part]:
    """The parts of a condition that can be asked.

    Args:
        sql: False for the expressions of Milvus, whose texts have other quotes.

    Raises:
        TypeError, ValueError: it is no text, too long, or its quotes or brackets do not match.
    """
    if not isinstance(where, str):
        raise TypeError(f"where: expected a condition as text, got {where!r:.60}")
    if len(where) > LONGEST_CONDITION:
        raise ValueError(f"where: expected at most {LONGEST_CONDITION:,} characters, got {len(where):,}")
    parts = [Part("sign", "")]
    depth = count = 0
    for part in _parts(where, _SQL if sql else _MILVUS):
        count += "," not in (part.content, parts[-1].content)
        depth += {"(": 1, ")": -1}.get(part.content, 0)
        if count > MOST_PARTS:
            raise ValueError(f"where: expected at most {MOST_PARTS} names, values and signs beside lists, got more")
        if depth < 0:
            break
        parts.append(part)
    if depth:
        raise ValueError("where: expected brackets in pairs")
    return parts[1:]


def _parts(where: str, grammar: re.Pattern[str]) -> Iterator[Part]:
    place = 0
    while place < len(where):
        found = grammar.match(where, place)
        if found is None or where.startswith(("--", "/*"), place):
            raise ValueError(f"where: expected comparisons of columns, got {where[place : place + 20]!r} in it")
        is_prefixed = bool(re.match(r"\w", where[place - 1 : place]))  # as E'...', where a backslash hides a quote
        if found["text"] and is_prefixed:
            raise ValueError(f"where: expected a space before {found['text'][:20]!r}")
        if found.lastgroup:
            yield Part("name" if found.lastgroup == "quoted" else found.lastgroup, found[0])
        place = found.end()
