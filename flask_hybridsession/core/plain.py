"""The plain value of any value: made of exact plain types alone, all the way down.

What Flask's cookie takes has one, and its class is forgotten as there: a subclass of a plain type
becomes that type, a dataclass the dict of its fields, what has an ``__html__`` Markup. The tests
for these come in Flask's order. Of a scalar nothing that its class overrides is asked.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any
from uuid import UUID

from markupsafe import Markup

from .errors import CodecError

#: The plain types that hold no others.
ATOMS = frozenset(
    {
        *(str, bytes, int, float, bool, type(None), complex, Markup),
        *(dt.datetime, dt.date, dt.time, dt.timedelta, Decimal, Fraction, UUID),
    }
)

#: How deep lists and dicts may be nested.
DEEPEST = 100
TOO_DEEP = "cannot be stored: it is nested too deeply, or contains itself"


def plain(value: Any, depth: int = 0) -> Any:
    """Raises ``CodecError`` where there is none, or where it would have fewer keys or items."""
    if _is_atom(type(value)):
        return value
    if depth > DEEPEST:
        raise CodecError(TOO_DEEP)
    if isinstance(value, dict):
        return _dict(value.items(), depth + 1)  # a MultiDict has its first values there
    if isinstance(value, tuple):
        return tuple([plain(item, depth + 1) for item in value])
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    return _plain_object(value, depth)


def _is_atom(kind: type) -> bool:
    # A frozen clock puts classes of its own in the place of datetime and date.
    return kind in ATOMS or kind is dt.datetime or kind is dt.date


def refusal(value: object) -> CodecError:
    """What to raise for a value that has no plain one."""
    kind = type(value)
    instead = "its .value or its .name" if isinstance(value, Enum) else "its id, a str or a dict"
    return CodecError(
        f"holds a {kind.__module__}.{kind.__qualname__}, which cannot be stored: "
        f"store a plain value instead, such as {instead}"
    )


def _plain_object(value: Any, depth: int) -> Any:
    kind = type(value)
    if hasattr(kind, "_get_current_object"):  # a LocalProxy
        return plain(value._get_current_object(), depth + 1)
    if issubclass(kind, type):
        raise refusal(value)  # what it has, its objects have
    if issubclass(kind, bytes):
        return bytes.__getitem__(value, slice(None))
    if callable(getattr(value, "__html__", None)):
        return Markup(str(value.__html__()))
    if isinstance(value, (set, frozenset)):
        return _set(value, depth + 1)
    for base, exact in _EXACT.items():
        if issubclass(kind, base):
            return exact(value)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return _dict([(field.name, getattr(value, field.name)) for field in fields], depth + 1)
    if callable(getattr(value, "casefold", None)):  # a lazy string, as translations are
        return str.__str__(str(value))
    raise refusal(value)


def _dict(items: Iterable[tuple[Any, Any]], depth: int) -> dict[Any, Any]:
    pairs = [(plain(key, depth), plain(item, depth)) for key, item in items]
    _check_distinct([key for key, _ in pairs])
    return dict(pairs)


def _set(items: Iterable[Any], depth: int) -> set[Any] | frozenset[Any]:
    parts = [plain(item, depth) for item in items]
    _check_distinct(parts)
    return set(parts) if isinstance(items, set) else frozenset(parts)


def _check_distinct(keys: list[Any]) -> None:
    """Keys and items of sets were distinct and hashable by the rules of their own classes."""
    try:
        count = len(set(keys))
    except TypeError:
        raise CodecError(
            "cannot be stored: a key, or an item of a set, would come back as a dict, list or set"
        ) from None
    if count < len(keys):
        raise CodecError(
            "cannot be stored: two keys, or two items of a set, would come back as one"
        )


def _datetime(value: dt.datetime) -> dt.datetime:
    if value != value:
        raise refusal(value)  # pandas.NaT, which is no moment
    return dt.datetime.combine(dt.datetime.date(value), dt.datetime.timetz(value))


def _time(value: dt.time) -> dt.time:
    return dt.datetime.timetz(dt.datetime.combine(dt.date.min, value))


#: What makes the exact type of a subclass; a datetime is a date, too, and goes first.
_EXACT: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    Decimal: Decimal,
    Fraction: Fraction.__pos__,
    UUID: lambda value: UUID(int=value.int),
    dt.datetime: _datetime,
    dt.date: lambda value: dt.date.fromordinal(dt.date.toordinal(value)),
    dt.time: _time,
    dt.timedelta: dt.timedelta.__pos__,
}
