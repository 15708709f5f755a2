"""What is stored of a session, how it changes, and who may change it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import inf
from types import EllipsisType, MappingProxyType
from typing import NamedTuple

from .errors import Conflict, KeyTaken, SessionGone

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


class Record(NamedTuple):
    """One stored session. Never changed in place: a change makes a new one.

    Times are wall-clock seconds; ``deadline`` is ``inf`` when there is none. A session lives while
    ``now < deadline``. ``user`` is what ``ids.user_token`` made of the user's id.
    """

    key: str
    values: Mapping[str, bytes]
    created: float
    touched: float
    deadline: float
    user: str | None = None
    device: str | None = None

    def __repr__(self) -> str:
        return f"<Record {self.key[:12]}... of {len(self.values)} values>"


class Change(NamedTuple):
    """What one commit does: ``wipe`` first, then ``drops``, then ``puts``.

    ``create`` makes the session. ``expects`` maps a name to the bytes that it must hold for the
    commit to happen (``None``: it must be absent). ``None`` leaves ``deadline`` and ``touched`` as
    they are, ``...`` leaves ``user`` and ``device``. A name in both ``drops`` and ``puts`` is put.
    """

    puts: Mapping[str, bytes] = _NOTHING
    drops: Collection[str] = ()
    wipe: bool = False
    create: bool = False
    expects: Mapping[str, bytes | None] = _NOTHING
    deadline: float | None = None
    touched: float | None = None
    user: str | None | EllipsisType = ...
    device: str | None | EllipsisType = ...

    def __repr__(self) -> str:
        verb = "create" if self.create else "change"
        return f"<Change: {verb}, {len(self.puts)} puts, wipe={self.wipe}>"


def apply(record: Record, change: Change) -> Record:
    """The record after the change. Judges nothing: see ``decide``."""
    puts, drops, wipe, _, _, deadline, touched, user, device = change
    values = record.values
    if wipe:
        values = dict(puts)
    elif puts or drops:
        values = merged = {**values}
        for name in drops:
            merged.pop(name, None)
        merged.update(puts)
    return Record(
        record.key,
        values,
        record.created,
        record.touched if touched is None else touched,
        record.deadline if deadline is None else deadline,
        record.user if user is ... else user,
        record.device if device is ... else device,
    )


def decide(current: Record | None, key: str, change: Change, now: float) -> Record:
    """The judgement that every provider makes of a commit: the new record, or an error.

    ``current`` is what is stored, expired or not. Call it where nobody else can write ``key``.
    Raises ``KeyTaken``, ``SessionGone`` or ``Conflict``.
    """
    alive = current is not None and now < current.deadline
    if change.create:
        if alive:
            raise KeyTaken(key)
        return apply(Record(key, {}, now, now, inf), change)
    if current is None or not alive:
        raise SessionGone(key)
    for name, expected in change.expects.items():
        if current.values.get(name) != expected:
            raise Conflict(current)
    return apply(current, change)
