"""``SESSION_TYPE = "hybrid"``: durable sessions in a directory, shared by all workers."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import isfinite
from struct import Struct
from typing import TYPE_CHECKING, Any
from weakref import finalize

import lmdb

from ...core import clock, threads
from ...core.change import Change, Record, decide
from ...core.errors import ConfigError, CorruptData, KeyTaken, ProviderError, SessionGone
from ...core.forks import begin_anew, ours
from ...core.provider import Checks, Compacts, Lists, Locks, Provider, Reports, Users
from . import look, owners
from .check import faults, problems
from .compact import compact
from .frame import CREATE, DESTROY, FORGET, MODIFY, RENAME, pack_change, pack_rename
from .image import Image, State, decode, decode_due, encode, user_key
from .recovery import renamed
from .store import Tuning, Turn
from .stores import Closed, abandon, acquire, release
from .words import EPOCH, SYNCED

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...core.settings import Settings

logger = logging.getLogger("flask_hybridsession.hybrid")

_DURABILITIES = ("always", "interval", "never")
_LEASE = Struct("<16sd")
_PAGE = 500
#: Leases of killed holders that each lock sweeps away at most.
_LEASES = 4
_unhex = bytes.fromhex


class HybridProvider(Provider, Lists, Users, Locks, Reports, Checks, Compacts):
    """Sessions in ``directory``, made if it is missing (mode 0700, files 0600).

    ``durability`` says when a commit is acknowledged: ``"always"``, when it is on the disk;
    ``"interval"``, when every worker sees it, and it is on the disk within ``sync_interval``
    seconds; ``"never"``, when the operating system sees fit. A killed process loses nothing with
    any of them. Providers of one directory may differ: each waits for its own commits.

    ``patience`` is how many seconds a writer waits for the others before ``ProviderUnavailable``;
    ``compact_bytes`` and ``compact_factor``: the log is rewritten when it is larger than this, and
    than this times its size after the last rewriting; and ``compact_age`` seconds after that, if a
    session has ended since: its values are nowhere then. ``map_bytes`` is the address space to
    begin with. The first provider of a directory in a process sets these, and ``sync_interval``.

    The directory must be this user's or root's, and nobody else may write in it, but a ``group``
    that is named, or given by its number. Raises ``ConfigError`` for one that cannot be used.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        durability: str = "interval",
        sync_interval: float = 1.0,
        patience: float = 5.0,
        compact_bytes: int = 16 << 20,
        compact_factor: float = 2.0,
        compact_age: float = 86_400.0,
        map_bytes: int = 1 << 38,
        group: str | int | None = None,
    ) -> None:
        if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
            raise ConfigError("SESSION_DIR must name a directory.")
        if durability not in _DURABILITIES:
            raise ConfigError(
                f"SESSION_DURABILITY must be one of {', '.join(map(repr, _DURABILITIES))}."
            )
        if not _is_positive(sync_interval):
            raise ConfigError("SESSION_SYNC_INTERVAL must be more than 0 seconds.")
        tuning = Tuning(
            sync_interval, patience, compact_bytes, compact_factor, compact_age, map_bytes
        )
        for name, value in tuning._asdict().items():
            if not _is_positive(value):
                raise ConfigError(f"SESSION_OPTIONS: {name} must be a number, more than 0.")
        owners.check(os.fspath(directory), group)
        self._store = acquire(os.fspath(directory), tuning, group)
        self._abandon = finalize(self, abandon, self._store)
        self._abandon.atexit = False
        self._wait = durability == "always"
        if durability == "interval":
            self._store.syncing = True

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """``SESSION_DIR``, ``SESSION_DURABILITY``, ``SESSION_SYNC_INTERVAL`` and the options."""
        options: dict[str, Any] = {
            "durability": settings.durability,
            "sync_interval": settings.sync_interval,
            **settings.options,
        }
        return cls(options.pop("directory", settings.directory), **options)

    def load(self, key: str, now: float) -> Record | None:
        store = self._store
        raw = _unhex(key)
        if not ours[0]:
            begin_anew()
        blob = None
        image = store.image  # it is not closed while it is in hand
        if image is not None and store.view[EPOCH] == store.epoch:
            try:
                txn = image.begin(image.sessions)
                blob = txn.get(raw)
                txn.abort()
            except lmdb.Error:
                pass  # it is read again below, with all the care
        image = None
        if blob is None:
            return store.read(_find, raw, now)
        record = decode(raw, blob).record
        return record if now < record.deadline else None

    def commit(self, key: str, change: Change, now: float) -> None:
        self._store.write(self._wait, _commit, key, change, now)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        self._store.write(self._wait, _rename, old, new, now, alias_until)

    def destroy(self, key: str) -> bool:
        raw = _unhex(key)
        return self._store.is_there() and self._store.write(self._wait, _destroy, raw)

    def next_deadline(self) -> float | None:
        return self._store.read(_next_deadline) if self._store.is_there() else None

    def purge(self, now: float, limit: int) -> list[Record]:
        gone: list[Record] = []
        while len(gone) < limit:
            # Aliases that end take turns of their own: none is longer than was asked for.
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                break
            try:
                with self._store.sweeping():
                    gone += self._store.write(False, _purge, now, limit - len(gone))
            except ProviderError:
                if not gone:
                    raise
                break  # those that are gone are the caller's to announce
        if gone and self._wait:
            # Should the disk fail, and the power too, they come back past their deadline: never
            # served, and purged again. So they are announced now in any case, at worst twice.
            with suppress(ProviderError):
                self._store.flush()
        if not threads.may_start():  # then no keeper looks for it
            self._store.compact_aged()
        return gone

    def close(self) -> None:
        store, self._store = self._store, _CLOSED
        if self._abandon.detach():
            release(store)

    def keys(self, now: float) -> Iterator[str]:
        start: bytes | None = b"" if self._store.is_there() else None
        while start is not None:
            found, start = self._store.read(_some_keys, start, now)
            yield from found

    def count(self, now: float) -> int:
        return self._store.read(_count) if self._store.is_there() else 0

    def keys_of(self, user: str, now: float) -> list[str]:
        return self._store.read(_keys_of, user, now) if self._store.is_there() else []

    @contextmanager
    def lock(self, key: str, timeout: float, lease: float) -> Iterator[None]:
        """Held by a row in the image: a lease in the machine's monotonic time, never logged."""
        raw = _unhex(key)
        token = secrets.token_bytes(16)
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while not self._try_lock(raw, token, lease):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the session is locked by another request")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, 0.02)
        try:
            yield
        finally:
            self._store.write(False, _unlock, raw, token)

    def _try_lock(self, key: bytes, token: bytes, lease: float) -> bool:
        if self._store.read(_is_locked, key):
            return False
        return self._store.write(False, _lock, key, token, lease)

    def compact(self) -> bool:
        """Rewrite the log now, if there is one. False when another worker is doing it."""
        return not self._store.is_there() or compact(self._store)

    def check(self) -> list[str]:
        """Compare image, indexes and log as they are at one moment; name the logs set aside.

        Changes nothing: of a store that is not open in this process it says what its next start
        will do. Raises ``ConfigError`` if there is none.
        """
        found = look.problems(self._store)
        return problems(self._store) if found is None else found

    def _check(self) -> None:
        """Raise ``CorruptData`` for what is wrong with the log and the image in use."""
        if texts := faults(self._store):
            raise CorruptData("; ".join(texts))

    def stats(self) -> dict[str, int | float | str]:
        store = self._store
        return {
            **(look.figures(store) or self._figures()),
            "durability": "always" if self._wait else "interval" if store.syncing else "never",
            "damaged_logs": look.damaged_logs(store.directory),
        }

    def _figures(self) -> dict[str, int | float | str]:
        store = self._store
        meta = store.meta()
        return {
            "sessions": self.count(0.0),
            "state": "open",
            "generation": meta.generation,
            "log_bytes": meta.position,
            "image_bytes": os.path.getsize(store.path("image")),
            "commits": meta.sequence,
            "unsynced_commits": max(0, meta.sequence - store.view[SYNCED]),
        }


_CLOSED: Any = Closed()


# Each of these runs in one transaction: readers on ``txn`` and ``image``, writers on a ``turn``.


def _find(txn: Any, image: Image, key: bytes, now: float) -> Record | None:
    state = image.get(txn, key)
    if state is None:
        target = image.target(txn, key, now)
        state = None if target is None else image.get(txn, target)
    return state.record if state is not None and now < state.record.deadline else None


def _resolve(turn: Turn, key: bytes, now: float) -> tuple[bytes, State | None]:
    """The stored session that ``key`` or a live alias names, and its own key."""
    state = turn.image.get(turn.txn, key)
    if state is None:
        target = turn.image.target(turn.txn, key, now)
        if target is not None:
            return target, turn.image.get(turn.txn, target)
    return key, state


def _commit(turn: Turn, key: str, change: Change, now: float) -> None:
    raw, state = _resolve(turn, _unhex(key), now)
    record = decide(None if state is None else state.record, key, change, now)
    if state is None or change.create:
        _create(turn, _unhex(key), record)
        return
    turn.add(MODIFY, raw, pack_change(change), state.version)
    turn.image.put(turn.txn, raw, State(turn.sequence, record, state.aliases), state)


def _create(turn: Turn, key: bytes, record: Record) -> None:
    _vacate(turn, key)
    state = State(turn.sequence + 1, record, [])
    turn.add(CREATE, key, encode(key, state), 0)
    turn.image.put(turn.txn, key, state, None)


def _vacate(turn: Turn, key: bytes) -> None:
    """Make room for a new session: an expired one, or an alias that leads nowhere, may be there."""
    expired = turn.image.get(turn.txn, key)
    if expired is not None:
        _remove(turn, key, expired)
    _drop_alias(turn, key)


def _remove(turn: Turn, key: bytes, state: State) -> None:
    turn.add(DESTROY, key, b"", state.version)
    turn.image.remove(turn.txn, key, state)


def _drop_alias(turn: Turn, alias: bytes) -> None:
    """End an alias, if ``alias`` is one."""
    txn, image = turn.txn, turn.image
    entry = txn.get(alias, None, image.aliases)
    if entry is None:
        return
    target = entry[:32]
    state = image.owner(txn, target)
    for name, until in state.aliases:
        if name == alias:
            image.remove_alias(txn, alias, until)
    turn.add(FORGET, target, alias, state.version)
    kept = [pair for pair in state.aliases if pair[0] != alias]
    image.put(txn, target, State(turn.sequence, state.record, kept), state)


def _rename(turn: Turn, old: str, new: str, now: float, alias_until: float | None) -> None:
    txn, image = turn.txn, turn.image
    source, state = _resolve(turn, _unhex(old), now)
    if state is None or now >= state.record.deadline:
        raise SessionGone(old)
    target = _unhex(new)
    taken = _resolve(turn, target, now)[1]
    if taken is not None and now < taken.record.deadline:
        raise KeyTaken(new)
    _vacate(turn, target)
    state = image.owner(txn, source)
    if alias_until is not None and alias_until <= now:
        alias_until = None
    turn.add(RENAME, source, pack_rename(target, alias_until), state.version)
    moved = renamed(state, source, target, turn.sequence, alias_until)
    image.remove(txn, source, state)
    image.put(txn, target, moved, None)
    for alias, until in moved.aliases:
        image.put_alias(txn, alias, target, until)


def _destroy(turn: Turn, key: bytes) -> bool:
    key, state = _resolve(turn, key, clock.now())
    if state is None:
        return False
    _remove(turn, key, state)
    return True


def _purge(turn: Turn, now: float, limit: int) -> list[Record]:
    """Destroy what is due, for a few milliseconds at most. Some may be due and not be seen yet."""
    end = time.perf_counter() + _STRETCH
    if limit >= _MANY and turn.image.is_mostly_due(turn.txn, now):
        return _purge_neighbours(turn, now, limit, end)
    gone: list[Record] = []
    while len(gone) < limit:
        keys, aliases = turn.image.pop_due(turn.txn, now, min(_FEW, limit - len(gone)))
        if not keys and not aliases:
            break
        gone += _purge_these(turn, keys, now)
        for alias in aliases:
            try:
                _drop_alias(turn, alias)
            except CorruptData as error:
                logger.error("an old key of it is dropped: %s", error)
                turn.image.drop_alias(turn.txn, alias)
        if time.perf_counter() > end:
            break
    return gone


#: Seconds that a slice of purge may hold up the writers, the writing of its pages not counted.
_STRETCH = 0.003
#: Sessions that are taken from the index of deadlines in one go.
_FEW = 50
#: From this limit on it pays to look whether most sessions are due.
_MANY = 100


def _purge_these(turn: Turn, keys: list[bytes], now: float) -> list[Record]:
    """Destroy the sessions whose entries were taken from the index."""
    txn, image = turn.txn, turn.image
    gone: list[Record] = []
    turn.dirty = True
    with txn.cursor(image.sessions) as cursor:
        for key in keys:
            blob = cursor.get(key)
            if blob is None:  # the entry led nowhere
                continue
            try:
                state = decode(key, blob)
            except CorruptData as error:
                logger.error("it was due, and is destroyed: %s", error)
                turn.add(DESTROY, key, b"", 0)
                image.remove_unread(txn, key)
                continue
            if state.record.deadline > now:  # the entry was of one that was here before
                continue
            cursor.delete()
            turn.add(DESTROY, key, b"", state.version)
            image.remove_marks(txn, key, state)
            gone.append(state.record)
    return gone


def _purge_neighbours(turn: Turn, now: float, limit: int, end: float) -> list[Record]:
    """Destroy what is due from somewhere on, in the order of keys.

    Neighbours share pages, which become free instead of being written once for each session. Their
    entries in the index of deadlines stay, and lead nowhere: they go together later, cheaply too.
    """
    txn, image = turn.txn, turn.image
    gone: list[Record] = []
    with txn.cursor(image.sessions) as cursor:
        there = cursor.set_range(os.urandom(32)) or cursor.first()
        while there and len(gone) < limit:
            key, blob = cursor.item()
            state = decode_due(key, blob, now)
            if state is None:
                there = cursor.next()
            else:
                there = cursor.delete() and bool(cursor.key())
                turn.add(DESTROY, key, b"", state.version)
                image.remove_marks(txn, key, state)
                gone.append(state.record)
            if time.perf_counter() > end:
                break
    return gone


def _next_deadline(txn: Any, image: Image) -> float | None:
    with txn.cursor(image.deadlines) as cursor:
        return _MOMENT.unpack(cursor.key()[:8])[0] if cursor.first() else None


_MOMENT = Struct(">d")


def _count(txn: Any, image: Image) -> int:
    return int(txn.stat(image.sessions)["entries"])


def _some_keys(txn: Any, image: Image, start: bytes, now: float) -> tuple[list[str], bytes | None]:
    """Live keys from ``start`` on, and where to go on: no transaction waits for the caller."""
    found: list[str] = []
    for count, (key, blob) in enumerate(image.scan(txn, start)):
        if count == _PAGE:
            return found, key
        if now < decode(key, blob).record.deadline:
            found.append(key.hex())
    return found, None


def _keys_of(txn: Any, image: Image, user: str, now: float) -> list[str]:
    prefix = user_key(user)
    found: list[str] = []
    with txn.cursor(image.users) as cursor:
        if cursor.set_range(prefix):
            for entry in cursor.iternext(values=False):
                if not entry.startswith(prefix):
                    break
                state = image.owner(txn, entry[32:])
                if now < state.record.deadline:
                    found.append(entry[32:].hex())
    return found


def _is_locked(txn: Any, image: Image, key: bytes) -> bool:
    lease = txn.get(key, None, image.locks)
    return lease is not None and time.monotonic() < _LEASE.unpack(lease)[1]


def _lock(turn: Turn, key: bytes, token: bytes, lease: float) -> bool:
    txn, image = turn.txn, turn.image
    if _is_locked(txn, image, key):
        return False
    _sweep_locks(txn, image, key)
    txn.put(key, _LEASE.pack(token, time.monotonic() + lease), True, True, False, image.locks)
    turn.dirty = True
    return True


def _sweep_locks(txn: Any, image: Image, key: bytes) -> None:
    """Delete the leases behind ``key`` that have ended: of holders that were killed."""
    with txn.cursor(image.locks) as cursor:
        there = cursor.set_range(key) or cursor.first()
        for _ in range(_LEASES):
            if not there or time.monotonic() < _LEASE.unpack(cursor.value())[1]:
                return
            there = cursor.delete() and bool(cursor.key())


def _unlock(turn: Turn, key: bytes, token: bytes) -> None:
    txn, image = turn.txn, turn.image
    lease = txn.get(key, None, image.locks)
    if lease is not None and lease[:16] == token:
        txn.delete(key, b"", image.locks)
        turn.dirty = True


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and isfinite(value) and value > 0  # type: ignore[arg-type, operator]
