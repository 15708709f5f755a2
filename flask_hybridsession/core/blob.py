"""A whole session as one value, for backends that only get and set.

The bytes are a mark, a checksum and MessagePack, never a pickle: whatever else lies under the key
is ``CorruptData``. They name their key, so one session's bytes are no good under another's key.
"""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple
from zlib import crc32

from . import codec
from .change import Record
from .errors import CodecError, CorruptData

#: Starts every blob. The digit is the version of what follows.
MARK = b"hs1"
_HEAD = len(MARK) + 4


class Gone(NamedTuple):
    """What is left of a key whose session was destroyed or renamed.

    After a rename with an alias, ``to`` is the new key and the alias works until ``until``.
    ``created`` is the session's: a later one under the new key is none of the alias's business.
    """

    key: str
    to: str | None = None
    until: float = -inf
    created: float = 0.0

    def __repr__(self) -> str:
        return f"<Gone {self.key[:12]}...>"


class Trail:
    """The way from a key to its session, through the aliases that renames left.

    ``at`` is the key to look under. Only the first alias must still work at ``now``: each was
    promised its own time, and later renames do not cut it short.
    """

    #: Through how many renames it leads.
    LONGEST = 64

    def __init__(self, key: str, now: float) -> None:
        self.at = key
        self._now = now
        self._created: float | None = None
        self._left = self.LONGEST

    def follow(self, gone: Gone) -> bool:
        """Go where the alias leads. False: it leads nowhere, the session is gone."""
        if gone.to is None or self._now >= gone.until or self._created not in (None, gone.created):
            return False
        self.at, self._now, self._created = gone.to, -inf, gone.created
        self._left -= 1
        return self._left > 0

    def own(self, record: Record | None) -> Record | None:
        """The record, unless it is a later session under the same key."""
        mine = record is not None and self._created in (None, record.created)
        return record if mine else None


def pack(entry: Record | Gone) -> bytes:
    """The bytes of what is stored under a key."""
    if isinstance(entry, Record):
        parts = ["record", *entry._replace(values=dict(entry.values))]
    else:
        parts = ["gone", *entry]
    body = codec.encode(parts)
    return MARK + crc32(body).to_bytes(4, "little") + body


def unpack(blob: object, key: str) -> Record | Gone:
    """What ``pack`` was given. Raises ``CorruptData`` for other bytes, and for another key's."""
    if type(blob) is not bytes or not blob.startswith(MARK) or len(blob) < _HEAD:
        raise _corrupt(key)
    body = blob[_HEAD:]
    if crc32(body).to_bytes(4, "little") != blob[len(MARK) : _HEAD]:
        raise _corrupt(key)
    try:
        entry = _entry(codec.decode(body))
    except CodecError:
        raise _corrupt(key) from None
    if entry is None or entry.key != key:
        raise _corrupt(key)
    return entry


def _entry(parts: Any) -> Record | Gone | None:
    match parts:
        case [
            "record",
            str(key),
            dict(values),
            float() | int() as created,
            float() | int() as touched,
            float() | int() as deadline,
            str() | None as user,
            str() | None as device,
        ] if all(type(name) is str and type(value) is bytes for name, value in values.items()):
            return Record(key, values, created, touched, deadline, user, device)
        case [
            "gone",
            str(key),
            str() | None as to,
            float() | int() as until,
            float() | int() as created,
        ]:
            return Gone(key, to, until, created)
    return None


def _corrupt(key: str) -> CorruptData:
    return CorruptData(f"session {key[:12]}... is damaged, or was not written by this package")
