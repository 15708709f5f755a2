"""From the log to the sessions: replay, and what may be believed of a log that is damaged.

- An unfinished end is cut: what remains is the exact state after some commit.
- A gap with sound frames behind it is damage if those bytes are known to have been on the disk
  (a later frame says so, or the machine was not restarted since). Frames lost there may have
  changed or destroyed any session, so a session is served only if it is *proven*: a later frame
  continues the state that we have, or gives it whole, or every lost frame is known to be another's.
- A gap in what was never synced is a power cut that kept later writes and dropped earlier ones:
  the log ends at the gap.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import lmdb

from ...core.change import apply
from .frame import (
    CREATE,
    DESTROY,
    FORGET,
    HEADER_SIZE,
    IN_SNAPSHOT,
    MODIFY,
    SNAPSHOT,
    Frame,
    Gap,
    parse_change,
    parse_rename,
)
from .image import Image, State, decode, encode, index, seal
from .log import Log


@dataclass
class Recovered:
    """What a log holds. ``position`` is where its sound part ends."""

    sessions: dict[bytes, bytes | State] = field(default_factory=dict)
    position: int = HEADER_SIZE
    sequence: int = 0
    #: Names the frame that ends at ``position``.
    chain: bytes = b""
    #: Texts about damage: then the log must not be continued.
    damage: list[str] = field(default_factory=list)
    #: Bytes behind ``position`` that are cut.
    cut: int = 0
    doubted: set[bytes] = field(default_factory=set)

    def state(self, key: bytes) -> State | None:
        """The session under ``key``, decoded."""
        found = self.sessions.get(key)
        return decode(key, found) if isinstance(found, bytes) else found

    def doubt(self, gap: Gap, missing: int, before: int) -> None:
        """Believe no session that the ``missing`` frames lost in ``gap`` may have been about."""
        known = {gap.lost[number] for number in gap.lost if self.sequence < number < before}
        names = sum(self.sequence < number < before for number in gap.lost)
        self.doubted |= known if names >= missing else set(self.sessions)

    def end(self, gap: Gap, size: int, same_boot: bool) -> None:
        """Judge a gap that the log ends with: an unfinished write, unless it names whole frames."""
        lost = [number for number in gap.lost if self.sequence < number < IN_SNAPSHOT]
        if same_boot and lost:
            self.damage.append(_place(gap))
            self.doubt(gap, len(lost), max(lost) + 1)
            self.sequence = max(lost)
        self.cut = size - self.position

    def play(self, frame: Frame) -> None:
        """Do again what a frame says."""
        op, key, data, sequence, previous, _ = frame
        if op in (SNAPSHOT, CREATE):
            self.sessions[key] = data
            self.doubted.discard(key)
            return
        if op == DESTROY:  # whatever it was
            self.sessions.pop(key, None)
            return
        state = self.state(key)
        if state is None or state.version != previous:
            self.sessions.pop(key, None)
            self.damage.append(f"commit {sequence} continues {_named(key)}, which is lost")
            return
        del self.sessions[key]
        self.doubted.discard(key)
        key, state = advance(key, state, frame)
        self.sessions[key] = state
        self.doubted.discard(key)


def advance(key: bytes, state: State, frame: Frame) -> tuple[bytes, State]:
    """The session after a modify, forget or change-id frame, and its key."""
    op, _, data, sequence, _, _ = frame
    record, aliases = state.record, state.aliases
    if op == MODIFY:
        return key, State(sequence, apply(record, parse_change(data)), aliases)
    if op == FORGET:
        return key, State(sequence, record, [pair for pair in aliases if pair[0] != data])
    new, until = parse_rename(data)
    return new, renamed(state, key, new, sequence, until)


def renamed(state: State, old: bytes, new: bytes, sequence: int, until: float | None) -> State:
    """The session under its new key. Without a new alias the earlier ones end too."""
    aliases = [] if until is None else [*state.aliases, (old, until)]
    return State(sequence, state.record._replace(key=new.hex()), aliases)


def replay(log: Log, same_boot: bool, end: int = sys.maxsize) -> Recovered:
    """Read a log up to ``end``. ``same_boot``: nothing written to it can have been lost."""
    header = log.header
    size = min(log.size(), end)
    found = Recovered(sequence=header.base, chain=header.chain)
    snapshots, place, gap = 0, IN_SNAPSHOT, _NO_GAP
    for offset, entry in log.entries(end=end):
        if isinstance(entry, Gap):
            gap = entry
            if entry.last:
                break
            if snapshots == header.snapshots and not (same_boot or _was_synced(log, gap, found)):
                break
            found.damage.append(_place(gap))
            continue
        if entry.op == SNAPSHOT:
            if entry.sequence <= place or found.sequence != header.base:
                # A snapshot stands at the beginning, each session once: this is a copy of it.
                gap = Gap(offset, size, gap.lost, True)
                break
            place = entry.sequence
            snapshots += 1
        else:
            missing = entry.sequence - found.sequence - 1
            if missing < 0:
                gap = Gap(offset, size, gap.lost, True)
                break
            if missing:
                found.damage.append(f"{missing} commits before {entry.sequence} are lost")
                found.doubt(gap, missing, entry.sequence)
            found.sequence = entry.sequence
        found.play(entry if header.version > 1 else _sealed(entry))
        found.position = offset + entry.size
        gap = _NO_GAP
    if found.position > HEADER_SIZE:
        found.chain = log.chain_at(found.position)
    if snapshots < header.snapshots:
        found.damage.append(f"{header.snapshots - snapshots} sessions of the snapshot are lost")
    if gap is not _NO_GAP:
        found.end(gap, size, same_boot)
    for key in found.doubted & found.sessions.keys():
        del found.sessions[key]
    return found


def _sealed(frame: Frame) -> Frame:
    """A frame of format 1, whose sessions have no checksum of their own, as it would be now."""
    if frame.op in (SNAPSHOT, CREATE):
        return frame._replace(data=seal(frame.key, frame.data))
    return frame


def _place(gap: Gap) -> str:
    """Where a gap is, and which frames are known to have been there."""
    text = f"bytes {gap.start} to {gap.end} hold no sound frame"
    lost = [
        f"{_numbered(number)} of {_named(gap.lost[number])}" for number in sorted(gap.lost)[:_NAMED]
    ]
    return f"{text} ({', '.join(lost)})" if lost else text


def _numbered(number: int) -> str:
    if number > IN_SNAPSHOT:
        return f"snapshot frame {number - IN_SNAPSHOT}"
    return f"commit {number}"


def _named(key: bytes) -> str:
    return f"session {key.hex()[:12]}..."


#: Frames of a gap that are named.
_NAMED = 10

_NO_GAP = Gap(0, 0, {}, False)


def _was_synced(log: Log, gap: Gap, found: Recovered) -> bool:
    """Whether a sound frame behind the gap knew the first lost one to be on the disk."""
    return any(
        isinstance(entry, Frame) and entry.synced > found.sequence
        for _, entry in log.entries(gap.end)
    )


_CHUNK = 50_000


def fill(image: Image, found: Recovered) -> None:
    """Write what was recovered into an empty image, in the order of each index."""
    due: list[tuple[bytes, bytes]] = []
    users: list[tuple[bytes, bytes]] = []
    aliases: list[tuple[bytes, bytes]] = []

    def sessions() -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(found.sessions):
            kept = found.sessions[key]
            blob, state = (
                (kept, decode(key, kept)) if isinstance(kept, bytes) else (encode(key, kept), kept)
            )
            index(key, state, due, users, aliases)
            yield key, blob

    _append(image, image.sessions, sessions())
    for database, entries in (
        (image.deadlines, due),
        (image.users, users),
        (image.aliases, aliases),
    ):
        entries.sort()
        _append(image, database, iter(entries))


def _append(image: Image, database: Any, entries: Iterator[tuple[bytes, bytes]]) -> None:
    while chunk := list(islice(entries, _CHUNK)):
        while True:
            txn = image.begin(write=True)
            try:
                for key, value in chunk:
                    txn.put(key, value, True, True, True, database)
                txn.commit()
                break
            except lmdb.MapFullError:
                txn.abort()
                image.grow()
            except BaseException:
                txn.abort()
                raise
