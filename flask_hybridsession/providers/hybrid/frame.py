"""The bytes of the write-ahead log: a file header, then frames. Pure: no file is touched here.

A frame is a *head* (what, whose, which number), its data, and a *tail* that names number and
session once more. Head and tail are checked each on their own, so one damaged spot still leaves it
known which session the frame belonged to. All checksums start from the file's random salt, so
bytes inside a session's value cannot pose as a frame.

Each head carries a part of the checksum that ends the frame before it, so that these checksums are
a *chain*: the last one stands for all that is in the log, from the header on.
"""

from __future__ import annotations

from collections.abc import Mapping
from mmap import mmap
from struct import Struct
from typing import NamedTuple
from zlib import crc32

from ...core.change import Change
from ...core.packing import dumps, loads

CREATE, DESTROY, RENAME, MODIFY, SNAPSHOT, FORGET = range(6)

#: Set in the sequence of a snapshot frame: the rest is its place in the snapshot, from 1 on.
IN_SNAPSHOT = 1 << 63

#: The format that this code writes, and the newest that it reads. 1: no chain, no store's number,
#: and sessions without a checksum of their own.
VERSION = 2
HEADER_SIZE = 128

_HEADER = Struct("<8sHHIQQQdQ4x")
_MARK = b"HYBRSLOG"

_MAGIC = b"\xf1HS\x0a"
# magic, op, link, length, generation, sequence, previous, synced, key
_HEAD = Struct("<4sB3sIQQQQ32s")
_LINK_AT, _LINK_SIZE = 5, 3
# checksum of head and data, sequence, key
_TAIL = Struct("<IQ32s")
_CRC = Struct("<I")
_HEAD_SIZE = _HEAD.size + _CRC.size
_TAIL_SIZE = _TAIL.size + _CRC.size
OVERHEAD = _HEAD_SIZE + _TAIL_SIZE
CHAIN_SIZE = _CRC.size

_pack_head, _unpack_head = _HEAD.pack, _HEAD.unpack_from
_pack_tail, _unpack_tail = _TAIL.pack, _TAIL.unpack_from
_pack_crc, _unpack_crc = _CRC.pack, _CRC.unpack_from

Buffer = bytes | mmap


class Header(NamedTuple):
    """What a log says about itself.

    The file begins with that many ``snapshots``, the state after commit ``base``;
    the frames ``base + 1``, ``base + 2``, ... follow. ``created`` is in seconds of wall clock.
    ``store`` is the number of the store: all its generations have it, and no other store.
    """

    generation: int
    base: int
    snapshots: int
    salt: int
    created: float
    store: int = 0
    version: int = VERSION

    def pack(self) -> bytes:
        """The header's bytes: the same twice, so that one damaged copy does no harm."""
        copy = _HEADER.pack(
            _MARK,
            self.version,
            HEADER_SIZE,
            self.salt,
            self.generation,
            self.base,
            self.snapshots,
            self.created,
            self.store,
        )
        return (copy + _pack_crc(crc32(copy))) * 2

    @property
    def chain(self) -> bytes:
        """What the first frame is chained to."""
        return chain_of(self.pack())


def parse_header(data: bytes) -> Header | None:
    """The header at the start of ``data``, or None when both copies are damaged."""
    half = HEADER_SIZE // 2
    for start in (0, half):
        copy = data[start : start + half]
        if len(copy) < half or _unpack_crc(copy, half - 4)[0] != crc32(copy[:-4]):
            continue
        mark, version, _, salt, generation, base, count, created, store = _HEADER.unpack_from(copy)
        if mark == _MARK:
            return Header(generation, base, count, salt, created, store, version)
    return None


def chain_of(data: bytes) -> bytes:
    """The checksum that whole frames, or a header, end with."""
    return data[-CHAIN_SIZE:]


class Frame(NamedTuple):
    """One entry of the log.

    ``sequence`` numbers the commits (or see ``IN_SNAPSHOT``), ``previous`` is
    the number of the session's preceding frame, ``synced`` the last number that was known to be on
    disk when the frame was written.
    """

    op: int
    key: bytes
    data: bytes
    sequence: int
    previous: int
    synced: int

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return OVERHEAD + len(self.data)


def pack(frame: Frame, generation: int, salt: int, chain: bytes) -> bytes:
    """The bytes of a frame in the log ``generation``, behind one that ends with ``chain``."""
    return pack_parts(*frame, generation, salt, chain)


def pack_parts(
    op: int,
    key: bytes,
    data: bytes,
    sequence: int,
    previous: int,
    synced: int,
    generation: int,
    salt: int,
    chain: bytes,
) -> bytes:
    """``pack``, for those that have no use for a ``Frame``."""
    # The format takes as much of the chain as there is room for.
    head = _pack_head(_MAGIC, op, chain, len(data), generation, sequence, previous, synced, key)
    check = crc32(head, salt)
    tail = _pack_tail(crc32(data, check), sequence, key)
    return b"".join((head, _pack_crc(check), data, tail, _pack_crc(crc32(tail, salt))))


class Head(NamedTuple):
    """A head that is sound, whatever follows it."""

    op: int
    length: int
    sequence: int
    previous: int
    synced: int
    key: bytes
    check: int


def parse_head(buffer: Buffer, offset: int, generation: int, salt: int) -> Head | None:
    """The head at ``offset``, or None when there is none that belongs to this log."""
    if len(buffer) - offset < _HEAD_SIZE:
        return None
    magic, op, _, length, written, sequence, previous, synced, key = _unpack_head(buffer, offset)
    if magic != _MAGIC or written != generation:
        return None
    check = crc32(buffer[offset : offset + _HEAD.size], salt)
    if check != _unpack_crc(buffer, offset + _HEAD.size)[0]:
        return None
    return Head(op, length, sequence, previous, synced, key, check)


def parse(buffer: Buffer, offset: int, generation: int, salt: int) -> Frame | None:
    """The frame at ``offset``, or None when it is not whole and sound."""
    head = parse_head(buffer, offset, generation, salt)
    if head is None:
        return None
    op, length, sequence, previous, synced, key, check = head
    start = offset + _HEAD_SIZE
    end = start + length
    tail = parse_tail(buffer, end + _TAIL_SIZE, salt)
    if tail is None:
        return None
    data = buffer[start:end]
    if tail != (crc32(data, check), sequence, key):
        return None
    return Frame(op, key, data, sequence, previous, synced)


def continues(buffer: Buffer, offset: int, chain: bytes) -> bool:
    """Whether the frame at ``offset`` was written behind one that ends with ``chain``."""
    start = offset + _LINK_AT
    return buffer[start : start + _LINK_SIZE] == chain[:_LINK_SIZE]


def parse_tail(buffer: Buffer, end: int, salt: int) -> tuple[int, int, bytes] | None:
    """Checksum, sequence and key of the tail that ends at ``end``, or None if it is not sound."""
    start = end - _TAIL_SIZE
    if start < 0 or end > len(buffer):
        return None
    if crc32(buffer[start : end - 4], salt) != _unpack_crc(buffer, end - 4)[0]:
        return None
    check, sequence, key = _unpack_tail(buffer, start)
    return check, sequence, key


class Gap(NamedTuple):
    """Bytes that are no frames. ``lost`` names the frames that were here, as far as is known."""

    start: int
    end: int
    lost: Mapping[int, bytes]
    last: bool


def resync(buffer: Buffer, start: int, after: int, generation: int, salt: int) -> Gap:
    """From a bad spot on to the next sound frame with a number above ``after``, or to the end."""
    lost: dict[int, bytes] = {}
    end = start - 1
    while (end := buffer.find(_MAGIC, end + 1)) >= 0:
        head = parse_head(buffer, end, generation, salt)
        if head is None:
            continue
        frame = parse(buffer, end, generation, salt)
        if frame is not None and frame.sequence > after:
            break
        if end + OVERHEAD + head.length <= len(buffer):
            lost[head.sequence] = head.key
    last = end < 0
    end = len(buffer) if last else end
    tail = parse_tail(buffer, end, salt)
    if tail is not None:
        lost[tail[1]] = tail[2]
    return Gap(start, end, lost, last)


def pack_change(change: Change) -> bytes:
    """The data of a modify frame: what the change does, not the session that it makes."""
    puts, drops, wipe, _, _, deadline, touched, user, device = change
    return dumps(
        (
            puts if type(puts) is dict else dict(puts),
            list(drops),
            wipe,
            deadline,
            touched,
            False if user is ... else user,
            False if device is ... else device,
        )
    )


def parse_change(data: bytes) -> Change:
    """What ``pack_change`` was given."""
    puts, drops, wipe, deadline, touched, user, device = loads(data)
    return Change(
        puts,
        drops,
        wipe,
        deadline=deadline,
        touched=touched,
        user=... if user is False else user,
        device=... if device is False else device,
    )


_RENAME = Struct("<32sd")


def pack_rename(new: bytes, alias_until: float | None) -> bytes:
    """The data of a change-id frame. No alias is an alias that ended at the beginning of time."""
    return _RENAME.pack(new, float("-inf") if alias_until is None else alias_until)


def parse_rename(data: bytes) -> tuple[bytes, float | None]:
    """The new key, and until when the old one is an alias."""
    new, until = _RENAME.unpack(data)
    return new, None if until == float("-inf") else until
