"""MessagePack for what a provider stores around the values: names, times, a user.

The values themselves are bytes by then, see ``codec``. Part of the formats of the log and of the
tables: what was written once must be read for ever.
"""

from __future__ import annotations

from typing import Any

import ormsgpack


def dumps(value: object) -> bytes:
    """MessagePack, of any ``str`` that Python can hold."""
    try:
        return ormsgpack.packb(value)
    except TypeError:
        return ormsgpack.packb(_spell(value))


def loads(data: bytes) -> Any:
    """What ``dumps`` was given, tuples as lists."""
    return ormsgpack.unpackb(data, ext_hook=_unspell)


_TEXT, _DICT = 1, 2


def _spell(value: object) -> object:
    """Lone surrogates are legal in a str and not in UTF-8: such texts are written another way."""
    if isinstance(value, str):
        return ormsgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        pairs = [[_spell(name), item] for name, item in value.items()]
        return ormsgpack.Ext(_DICT, ormsgpack.packb(pairs))
    if isinstance(value, (list, tuple)):
        return [_spell(item) for item in value]
    return value


def _unspell(tag: int, data: bytes) -> object:
    if tag == _TEXT:
        return bytes(data).decode("utf-8", "surrogatepass")
    return dict(ormsgpack.unpackb(data, ext_hook=_unspell))
