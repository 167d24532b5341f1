"""The filters of the page as a condition in SQL on the columns of a Lance store, from fixed templates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def condition(
    names: Sequence[str],
    experts: Iterable[str] = (),
    shortest_s: float | None = None,
    longest_s: float | None = None,
    id_contains: str | None = None,
    where: str | None = None,
) -> str | None:
    """The condition for `VideoIndex.search(where=...)`; None where nothing is asked.

    Args:
        names: the experts of the store, in its order.
        experts: those that a clip must have.
        shortest_s, longest_s: the length of a clip in seconds, both included.
        id_contains: text in the id, in small or capital letters.
        where: a condition of the caller's own, beside the others.

    Raises:
        ValueError: the store has no such expert.

    >>> condition(["motion", "ocr"], ["ocr"], longest_s=9.5, id_contains="o'clock")
    "pattern LIKE '_1' AND end_s - start_s <= 9.5 AND strpos(lower(id), lower('o''clock')) > 0"
    """
    wanted = list(experts)
    for name in wanted:
        if name not in names:
            raise ValueError(f"filters: experts: expected some of {', '.join(names)}, got {name!r}")
    parts = []
    if wanted:
        parts.append(f"pattern LIKE '{''.join('1' if name in wanted else '_' for name in names)}'")
    if shortest_s is not None:
        parts.append(f"end_s - start_s >= {float(shortest_s)!r}")
    if longest_s is not None:
        parts.append(f"end_s - start_s <= {float(longest_s)!r}")
    if id_contains:
        quoted = id_contains.replace("'", "''")
        parts.append(f"strpos(lower(id), lower('{quoted}')) > 0")
    if where:
        parts.append(f"({where})" if parts else where)
    return " AND ".join(parts) or None
