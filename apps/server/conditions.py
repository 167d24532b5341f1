"""The conditions that a caller may ask by `where`: comparisons of columns, and no more.

A condition of strangers can take any memory, by functions such as `repeat`. So the functions in it are listed here.
"""

from __future__ import annotations

import re

from ...retrieval.conditions import Part, check_condition

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

_SIGNS = frozenset(["<>", "!", "<", ">", "=", "!=", "<=", ">=", "==", "::", *"-+*/%(),.[]"])


def check_functions(where: str) -> None:
    """Raise ValueError for a condition that no index takes, or with more than comparisons and listed functions."""
    last = Part("", "")
    for part in check_condition(where):
        if part.kind == "sign" and part.content not in _SIGNS:
            raise ValueError(f"where: expected comparisons of columns, got {part.content!r} in it")
        if part.content == "(" and _is_function(last) and last.content.lower() not in FUNCTIONS:
            listed = ", ".join(sorted(FUNCTIONS))
            raise ValueError(f"where: expected one of the functions {listed}, got {last.content[:40]!r}")
        last = part


def _is_function(before: Part) -> bool:
    """True for a name, which stands before a bracket."""
    is_name = before.kind == "name" and not re.match(r"\d", before.content)
    return is_name and before.content.lower() not in _KEYWORDS
