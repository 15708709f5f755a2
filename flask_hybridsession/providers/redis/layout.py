"""Records and changes as the server knows them. The fields are explained in ``scripts``."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import isfinite, isnan
from typing import Any

from ...core.change import Change, Record
from ...core.errors import CorruptData

_pack_time = struct.Struct("<d").pack
_times = struct.Struct("<ddd")
#: The version that begins the times and an alias.
_VERSION = 1
_LENGTH = 1 + _times.size


def pack_time(seconds: float | None) -> bytes:
    """Exactly that moment; empty for None."""
    return b"" if seconds is None else _pack_time(seconds)


def encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def is_alias(fields: Sequence[bytes]) -> bool:
    return fields[0] == b">"


def unpack(key: str, fields: Sequence[bytes]) -> Record:
    """The record in a hash: names and values in turn. Raises ``CorruptData``."""
    values: dict[str, bytes] = {}
    times: bytes = b""
    user: str | None = None
    device: str | None = None
    try:
        turns = iter(fields)
        for field, value in zip(turns, turns, strict=True):
            if field[:1] == b"=":
                values[field[1:].decode("utf-8", "surrogatepass")] = value
            elif field == b"m":
                times = value
            elif field == b"u":
                user = decode(value)
            elif field == b"d":
                device = decode(value)
        if len(times) != _LENGTH or times[0] != _VERSION:
            raise ValueError("no times")
        created, touched, deadline = _times.unpack_from(times, 1)
        if isnan(deadline) or not (isfinite(created) and isfinite(touched)):
            raise ValueError("no times")
    except (ValueError, TypeError):
        raise corrupt(key) from None
    return Record(key, values, created, touched, deadline, user, device)


def corrupt(key: str) -> CorruptData:
    return CorruptData(f"session {key[:12]}... is damaged, or was not written by this package")


def change_parts(change: Change) -> Iterator[bytes]:
    """What ``scripts.COMMIT`` is told of a change."""
    yield b"create" if change.create else b"wipe" if change.wipe else b""
    yield pack_time(change.deadline)
    yield pack_time(change.touched)
    yield _said(change.user)
    yield _said(change.device)
    yield b"%d" % len(change.expects)
    for name, value in change.expects.items():
        yield b"=" + encode(name)
        yield b"" if value is None else b"=" + value
    yield b"%d" % len(change.drops)
    for name in change.drops:
        yield b"=" + encode(name)
    for name, value in change.puts.items():
        yield b"=" + encode(name)
        yield value


def _said(text: Any) -> bytes:
    """``...`` says nothing, None takes away."""
    if text is ...:
        return b""
    return b"-" if text is None else b"+" + encode(text)
