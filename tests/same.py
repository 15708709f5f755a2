"""When two values are the same: unlike ``==``, the types count, and what ``==`` overlooks."""

from __future__ import annotations

import datetime as dt
from typing import Any


def same(a: Any, b: Any) -> bool:
    """Of one type and one value, all the way down. Unlike ``==``: -0.0, nan, 1 == True, fold."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same([*a], [*b]) and all(same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, set | frozenset):
        return len(a) == len(b) and all(any(same(x, y) for y in b) for x in a)
    if isinstance(a, dt.datetime | dt.time):
        return (
            a.replace(tzinfo=None) == b.replace(tzinfo=None)
            and a.fold == b.fold
            and a.tzinfo == b.tzinfo
        )
    return repr(a) == repr(b) if not isinstance(a, int) else bool(a == b)
