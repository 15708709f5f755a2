"""A row of a session, and the bytes in it: what no query asks for, behind a checksum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import inf, isfinite
from typing import Any, NamedTuple
from zlib import crc32

from ...core.change import Record
from ...core.errors import CorruptData
from ...core.packing import dumps, loads

#: Starts the bytes. The digit is the version of what follows.
MARK = b"hs1"
_HEAD = len(MARK) + 4


class Row(NamedTuple):
    """A session as it was read; ``version`` is another one after each change."""

    key: bytes
    version: int
    record: Record

    @classmethod
    def read(cls, columns: Sequence[Any]) -> Row:
        """Of key, version, created, touched, deadline and data. Raises ``CorruptData``."""
        key, version, created, touched, deadline, data = columns
        name = name_of(key)
        deadline = inf if deadline is None else deadline
        if not (
            type(version) is int
            and type(created) is type(touched) is type(deadline) is float
            and isfinite(created)
            and isfinite(touched)
            and deadline == deadline
        ):
            raise _damaged(name)
        user, device, values = unpack(data, name)
        return cls(key, version, Record(name, values, created, touched, deadline, user, device))


def name_of(key: Any) -> str:
    """The key as all others know it. Raises ``CorruptData``."""
    if type(key) is not bytes:
        raise CorruptData("a row of the table for sessions has no key")
    return key.hex()


def stored_deadline(deadline: float) -> float | None:
    """As it stands in its column, where an index finds what is due and nothing else."""
    return None if deadline == inf else deadline


def user_hash(user: str | None) -> bytes | None:
    """What stands for a user: of one size for any id, and in no alphabet."""
    return None if user is None else sha256(user.encode("utf-8", "surrogatepass")).digest()


def pack(record: Record) -> bytes:
    """The values, the user and the device."""
    values = record.values
    body = dumps((record.user, record.device, values if type(values) is dict else dict(values)))
    return MARK + crc32(body).to_bytes(4, "little") + body


def unpack(data: Any, key: str) -> tuple[str | None, str | None, Mapping[str, bytes]]:
    """User, device and values. Raises ``CorruptData`` for what ``pack`` did not make."""
    if type(data) is not bytes:
        raise _damaged(key)
    body = data[_HEAD:]
    if not data.startswith(MARK) or crc32(body).to_bytes(4, "little") != data[len(MARK) : _HEAD]:
        raise _damaged(key)
    try:
        user, device, values = loads(body)
    except (ValueError, TypeError):
        raise CorruptData(f"session {key[:12]}... cannot be read") from None
    if type(values) is not dict:
        raise _damaged(key)
    return user, device, values


def _damaged(key: str) -> CorruptData:
    return CorruptData(f"session {key[:12]}... is damaged, or was not written by this package")
