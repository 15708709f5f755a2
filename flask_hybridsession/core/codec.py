"""One value <-> bytes: plain types come back as they went in, and nothing is ever pickled.

What else Flask's cookie takes comes back as the plain value that ``plain`` makes of it: an
OrderedDict as a dict, a namedtuple as a tuple, a StrEnum as a str, a dataclass as a dict.

MessagePack through ``ormsgpack``; what MessagePack cannot tell apart travels as an extension type.
Sets are written in a fixed order, so equal values give equal bytes: that is how a session finds
out what changed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import ormsgpack
from markupsafe import Markup

from .errors import CodecError
from .plain import ATOMS, DEEPEST, TOO_DEEP, plain, refusal

#: Values of these types cannot change in place. A tuple is not one: it may hold a list.
IMMUTABLE = ATOMS | {frozenset}

_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

_packb = ormsgpack.packb
_unpackb = ormsgpack.unpackb
_Ext = ormsgpack.Ext

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def encode(value: Any) -> bytes:
    """The bytes of a value. Raises ``CodecError`` for what has no plain value."""
    try:
        packed = _pack(value)
    except ormsgpack.MsgpackEncodeError:
        # It does not say why: a dict whose keys are not text, or a type that is not plain.
        return _pack_lowered(_lowered(value))
    if _maybe_bytes(packed):
        _refuse_buffers(value)
    return packed


def decode(data: bytes) -> Any:
    """The value of the bytes. Raises ``CodecError`` if they are not what ``encode`` wrote."""
    try:
        return _unpackb(data, ext_hook=_restore)
    except CodecError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
        raise CodecError(f"cannot be read: {type(error).__name__}") from None


def _pack(value: Any) -> bytes:
    return _packb(value, _extend, _OPTIONS)


def _pack_lowered(value: Any) -> bytes:
    try:
        return _packb(value, _extend, _OPTIONS)
    except ormsgpack.MsgpackEncodeError:
        raise CodecError(TOO_DEEP) from None


def _lowered(value: Any) -> Any:
    # Most often it is plain: to find that out by making it so would take twice as long.
    with suppress(CodecError):
        return _lower(value)
    return _lower(plain(value))


def _lower(value: Any, depth: int = 0) -> Any:
    """The slow way: each part that ``ormsgpack`` has no words for becomes an extension."""
    kind = type(value)
    if depth > DEEPEST:
        raise CodecError(TOO_DEEP)
    if kind is dict:
        if all(type(key) is str and _is_unicode(key) for key in value):
            return {key: _lower(item, depth + 1) for key, item in value.items()}
        pairs = [_lower(part, depth + 1) for pair in value.items() for part in pair]
        return _Ext(_DICT, _pack_lowered(pairs))
    if kind is list:
        return [_lower(item, depth + 1) for item in value]
    if kind is tuple:
        return _Ext(_TUPLE, _pack_lowered([_lower(item, depth + 1) for item in value]))
    if kind is set or kind is frozenset:
        parts = sorted(_pack_lowered(_lower(item, depth + 1)) for item in value)
        return _Ext(_SET if kind is set else _FROZENSET, _pack(parts))
    if kind is str and not _is_unicode(value):
        return _Ext(_SURROGATES, value.encode("utf-8", "surrogatepass"))
    if kind in _PLAIN and not (kind is int and value.bit_length() > 63):
        return value
    return _extend(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _maybe_bytes(packed: bytes) -> bool:
    return b"\xc4" in packed or b"\xc5" in packed or b"\xc6" in packed


def _refuse_buffers(value: Any) -> None:
    """``ormsgpack`` writes a bytearray as bytes; it would come back as another type."""
    kind = type(value)
    if kind is bytearray or kind is memoryview:
        raise refusal(value)
    if kind is dict:
        for key, item in value.items():
            _refuse_buffers(key)
            _refuse_buffers(item)
    elif kind in (list, tuple, set, frozenset):
        for item in value:
            _refuse_buffers(item)


# What travels as an extension type: a number each, never to be given to another type.

_TUPLE, _SET, _FROZENSET, _DICT, _BIG_INT, _COMPLEX, _MARKUP, _SURROGATES = range(1, 9)
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _UUID, _FRACTION = range(16, 23)


def _pack_datetime(value: dt.datetime) -> bytes:
    return _pack([dt.datetime.isoformat(value), value.fold, _zone_name(value.tzinfo)])


def _restore_datetime(data: bytes) -> dt.datetime:
    text, fold, name = _unpackb(data)
    value = dt.datetime.fromisoformat(text)
    zone = _zone(name)
    if zone is not None:
        return value.replace(tzinfo=zone, fold=fold)
    # Where this machine does not know the zone, its offset of then is kept.
    return value.replace(fold=fold) if fold else value


def _pack_date(value: dt.date) -> bytes:
    return value.isoformat().encode()


def _pack_time(value: dt.time) -> bytes:
    zone = value.tzinfo
    if zone is not None and value.utcoffset() is None and not isinstance(zone, ZoneInfo):
        raise CodecError("holds a time in a zone that cannot be stored: use a ZoneInfo")
    return _pack([value.isoformat(), value.fold, _zone_name(zone)])


def _restore_time(data: bytes) -> dt.time:
    text, fold, name = _unpackb(data)
    value = dt.time.fromisoformat(text)
    zone = _zone(name)
    if zone is not None:
        value = value.replace(tzinfo=zone)
    return value.replace(fold=fold) if fold else value


def _zone(name: str | None) -> ZoneInfo | None:
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _zone_name(zone: dt.tzinfo | None) -> str | None:
    return zone.key if isinstance(zone, ZoneInfo) else None


def _pack_items(value: set[Any] | frozenset[Any]) -> bytes:
    return _pack(sorted(_pack(item) for item in value))


def _restore_items(data: bytes) -> list[Any]:
    return [_unpackb(item, ext_hook=_restore) for item in _unpackb(data)]


def _restore_dict(data: bytes) -> dict[Any, Any]:
    parts = iter(_unpackb(data, ext_hook=_restore))
    return dict(zip(parts, parts, strict=True))


def _restore_big_int(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_EXTENSIONS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    tuple: (_TUPLE, lambda value: _pack(list(value))),
    set: (_SET, _pack_items),
    frozenset: (_FROZENSET, _pack_items),
    int: (_BIG_INT, lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)),
    complex: (_COMPLEX, lambda value: _pack([value.real, value.imag])),
    Markup: (_MARKUP, lambda value: str.encode(value, "utf-8", "surrogatepass")),
    dt.datetime: (_DATETIME, _pack_datetime),
    dt.date: (_DATE, _pack_date),
    dt.time: (_TIME, _pack_time),
    dt.timedelta: (
        _TIMEDELTA,
        lambda value: _pack([value.days, value.seconds, value.microseconds]),
    ),
    Decimal: (_DECIMAL, lambda value: str(value).encode()),
    UUID: (_UUID, lambda value: value.bytes),
    Fraction: (_FRACTION, lambda value: _pack([value.numerator, value.denominator])),
}

_RESTORERS: dict[int, Callable[[bytes], Any]] = {
    _TUPLE: lambda data: tuple(_unpackb(data, ext_hook=_restore)),
    _SET: lambda data: set(_restore_items(data)),
    _FROZENSET: lambda data: frozenset(_restore_items(data)),
    _DICT: _restore_dict,
    _BIG_INT: _restore_big_int,
    _COMPLEX: lambda data: complex(*_unpackb(data)),
    _MARKUP: lambda data: Markup(data.decode("utf-8", "surrogatepass")),
    _SURROGATES: lambda data: data.decode("utf-8", "surrogatepass"),
    _DATETIME: _restore_datetime,
    _DATE: lambda data: dt.date.fromisoformat(data.decode()),
    _TIME: _restore_time,
    _TIMEDELTA: lambda data: dt.timedelta(*_unpackb(data)),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
    _FRACTION: lambda data: Fraction(*_unpackb(data, ext_hook=_restore)),
}


def _extend(value: Any) -> ormsgpack.Ext:
    """What ``ormsgpack`` asks for a type that it has no words for."""
    kind = type(value)
    found = _EXTENSIONS.get(kind) or _stand_in(kind)
    if found is None:
        raise refusal(value)
    tag, pack = found
    return _Ext(tag, pack(value))


def _stand_in(kind: type) -> tuple[int, Callable[[Any], bytes]] | None:
    """A frozen clock puts classes of its own in the place of datetime and date."""
    if kind is dt.datetime:
        return _DATETIME, _pack_datetime
    if kind is dt.date:
        return _DATE, _pack_date
    return None


def _restore(tag: int, data: bytes) -> Any:
    restorer = _RESTORERS.get(tag)
    if restorer is None:
        raise CodecError("cannot be read: its type is unknown to this version")
    return restorer(data)
