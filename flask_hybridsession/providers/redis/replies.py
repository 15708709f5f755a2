"""What each reply of the server may be: a ``Meaning`` returns it, or raises.

What one of these refuses has no meaning: the connection is given up, and the call is an outage.
"""

from __future__ import annotations

import re
from math import isnan
from typing import Final, NoReturn

from ...core.change import Record
from .layout import is_alias, unpack
from .wire import Push, Reply

#: A session's key and the fields of its hash.
Found = tuple[str, list[bytes]]
#: A host and a port.
Place = tuple[str, int]
#: What is stored under an old key.
ALIAS: Final = object()

_is_key = re.compile(rb"[0-9a-f]{64}").fullmatch
_BYTES = {bytes}


def anything(reply: Reply) -> Reply:
    return reply


def number(reply: Reply) -> int:
    return reply if type(reply) is int and reply >= 0 else _none(reply)


def text(reply: Reply) -> bytes:
    return reply if type(reply) is bytes else _none(reply)


def texts(reply: Reply) -> list[bytes]:
    return reply if type(reply) is list and set(map(type, reply)) <= _BYTES else _none(reply)


def okay(reply: Reply) -> bytes:
    return b"OK" if reply == b"OK" else _none(reply)


def okay_or_none(reply: Reply) -> bytes | None:
    return None if reply is None else okay(reply)


def pong(reply: Reply) -> bytes:
    return b"PONG" if reply == b"PONG" else _none(reply)


def key(reply: Reply) -> str:
    return text(reply).decode() if _is_key(reply) else _none(reply)


def key_or_none(reply: Reply) -> str | None:
    return None if reply is None else key(reply)


def keys(reply: Reply) -> list[str]:
    return [key(name) for name in texts(reply)]


def moment_or_none(reply: Reply) -> float | None:
    """A time as sorted sets have it."""
    if reply is None:
        return None
    moment = float(text(reply))
    return _none(reply) if isnan(moment) else moment


def fields(reply: Reply) -> list[bytes]:
    """Names and values of a hash in turn."""
    inside = texts(reply)
    return _none(reply) if len(inside) % 2 else inside


def found(reply: Reply) -> Found:
    name, inside = reply
    return key(name), fields(inside)


def stored(key: str, reply: Reply) -> Record | object | None:
    """What lies under a key: a session, ``ALIAS`` or nothing. Raises ``CorruptData``."""
    inside = fields(reply)
    if not inside:
        return None
    return ALIAS if is_alias(inside) else unpack(key, inside)


def record_or_none(reply: Reply) -> Record | None:
    """Raises ``CorruptData``."""
    return None if reply is None else unpack(*found(reply))


def outcome(reply: Reply) -> str | Record:
    """Of a commit or a rename: the key that it was done to, "gone", "taken", or what is there.

    Raises ``CorruptData``.
    """
    if type(reply) is list:
        return unpack(*found(reply))
    return text(reply).decode() if reply in (b"gone", b"taken") else key(reply)


def claimed(reply: Reply) -> tuple[bool, list[Found]]:
    """Whether there is more to purge, and what was purged now."""
    again, *sessions = reply
    return bool(number(again)), [found(session) for session in sessions]


def scanned(reply: Reply) -> tuple[bytes, list[bytes]]:
    """Where to go on, and names with their scores in turn."""
    cursor, names = reply
    return b"%d" % int(text(cursor)), fields(names)


def invalidated(said: Reply) -> list[bytes] | None:
    """The names of what has changed, of all that the server says unasked; None: of everything."""
    if not isinstance(said, Push):
        return _none(said)
    kind, *rest = said
    if kind != b"invalidate":
        return []
    (names,) = rest
    return None if names is None else texts(names)


def event(said: Reply) -> tuple[bytes, list[str]] | None:
    """What a sentinel publishes: the kind, and the words. None: that it is there."""
    if said[0] in (b"psubscribe", b"pong"):
        return None
    kind, _, channel, words = texts(said)
    return (channel, words.decode().split()) if kind == b"pmessage" else _none(said)


def role(reply: Reply) -> bytes:
    return text(reply[0])


def address_or_none(reply: Reply) -> Place | None:
    """What a sentinel says about where the master is."""
    if reply is None:
        return None
    host, port = texts(reply)
    return host.decode(), _port(int(port))


def place(words: str) -> Place:
    """Of a redirection: the host, which may be missing, and the port."""
    host, _, port = words.rpartition(":")
    return host, _port(int(port))


def slots(reply: Reply) -> list[tuple[int, str, int]]:
    """Where each range of slots starts, and its master; no host: that of whoever was asked."""
    return sorted(_range(*entry) for entry in reply)


def _range(start: Reply, end: Reply, master: Reply, *others: Reply) -> tuple[int, str, int]:
    host = text(master[0] or b"").decode()
    return number(start), "" if host == "?" else host, _port(number(master[1]))


def _port(number: int) -> int:
    return number if 0 < number < 1 << 16 else _none(number)


def _none(reply: Reply) -> NoReturn:
    raise ValueError(f"{type(reply).__name__} is no answer to this")
