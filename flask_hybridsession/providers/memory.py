"""Sessions in this process's memory: for development, tests and servers of one process.

They are shared by threads and end with the process. A fork gives the child a copy that goes its
own way from then on, so several workers need another provider.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from math import inf
from weakref import WeakSet

from ..core import clock, forks
from ..core.change import Change, Record, decide
from ..core.errors import ConfigError, KeyTaken, SessionGone
from ..core.locks import Hold, Lock, give_back
from ..core.provider import Lists, Locks, Provider, Reports, Users

# One lock for all stores of the process, held across a fork: the child never inherits a store that
# another thread was in the middle of changing, nor a lock that nobody is left to release.
_lock = Lock()
_paused: list[Hold] = []
os.register_at_fork(
    before=lambda: _paused.append(_lock.take()),
    after_in_parent=lambda: give_back(_paused),
    after_in_child=lambda: _forget_lock(),
)
log = logging.getLogger("flask_hybridsession")


class MemoryProvider(Provider, Lists, Users, Locks, Reports):
    """A list of sessions ordered by use.

    With ``max_sessions`` a new session pushes out the one that was not used for the longest time
    (not expired: nobody announces it). By default there is no limit. Raises ``ConfigError`` unless
    it is a whole number from 1, or None. Every call costs O(log n) at most, spread over the calls;
    only ``keys`` looks at all sessions.
    """

    def __init__(self, max_sessions: int | None = None) -> None:
        if max_sessions is not None and (type(max_sessions) is not int or max_sessions < 1):
            raise ConfigError("max_sessions must be a whole number from 1, or None: no limit.")
        self._max = inf if max_sessions is None else max_sessions
        self._clear()
        _providers.add(self)

    def _clear(self) -> None:
        self._evicted = 0
        self._records: OrderedDict[str, Record] = OrderedDict()  # the last one was used last
        self._due = Timetable()
        self._users: dict[str, dict[str, None]] = {}
        self._targets: dict[str, str] = {}  # alias -> key
        self._aliases: dict[str, dict[str, float]] = {}  # key -> its aliases, and their ends
        self._ends = Timetable()
        self._locks: dict[str, tuple[object, float]] = {}  # key -> who holds it, until when

    def load(self, key: str, now: float) -> Record | None:
        with _alone():
            record = self._alive(key, now)
            if record is not None:
                self._records.move_to_end(record.key)
            return record

    def commit(self, key: str, change: Change, now: float) -> None:
        with _alone():
            current = self._records.get(self._resolve(key, now))
            record = decide(current, key, change, now)
            if change.create:
                self._vacate(key)
            self._store(record)
            self._evict()

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        with _alone():
            record = self._alive(old, now)
            if record is None:
                raise SessionGone(old)
            if self._alive(new, now) is not None:
                raise KeyTaken(new)
            aliases = {} if alias_until is None else self._aliases.get(record.key, {})
            aliases = {alias: end for alias, end in aliases.items() if now < end}
            if alias_until is not None and now < alias_until:
                aliases[record.key] = alias_until
            self._vacate(new)
            self._store(record._replace(key=new))
            self._remove(record)
            for alias, end in aliases.items():
                self._add_alias(alias, new, end)
            self._drop_ended_aliases(now)

    def destroy(self, key: str) -> bool:
        with _alone():
            record = self._records.get(self._resolve(key, clock.now()))
            if record is not None:
                self._remove(record)
            return record is not None

    def exists(self, key: str, now: float) -> bool:
        with _alone():
            return self._alive(key, now) is not None

    def next_deadline(self) -> float | None:
        with _alone():
            first = self._due.first()
            return None if first is None else first[0]

    def purge(self, now: float, limit: int) -> list[Record]:
        claimed: list[Record] = []
        with _alone():
            self._drop_ended_aliases(now)
            while len(claimed) < limit and (key := self._due.due(now)) is not None:
                record = self._records.get(key)
                if record is None:
                    self._due.discard(key)
                else:
                    self._remove(record)
                    claimed.append(record)
        return claimed

    def close(self) -> None:
        """Nothing to do: what is here ends with the process."""

    def keys(self, now: float) -> list[str]:
        with _alone():
            records = list(self._records.values())
        return [record.key for record in records if now < record.deadline]

    def count(self, now: float) -> int:
        return len(self._records)

    def keys_of(self, user: str, now: float) -> list[str]:
        with _alone():
            found = map(self._records.get, self._users.get(user, ()))
            return [record.key for record in found if record and now < record.deadline]

    @contextmanager
    def lock(self, key: str, timeout: float, lease: float) -> Iterator[None]:
        me = object()
        give_up = time.monotonic() + timeout
        pause = 0.0005
        while (wait := self._try_lock(key, me, lease)) > 0:
            left = give_up - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"session {key[:12]}... is locked by another request")
            time.sleep(min(pause, wait, left))
            pause = min(pause * 1.5, 0.02)
        try:
            yield
        finally:
            with _alone():
                if self._locks.get(key, (None, 0.0))[0] is me:
                    del self._locks[key]

    def _try_lock(self, key: str, me: object, lease: float) -> float:
        """Have the lock, or the seconds for which somebody may still hold it."""
        with _alone():
            now = time.monotonic()
            _, until = self._locks.get(key, (None, 0.0))
            if until <= now:
                self._locks[key] = (me, now + lease)
            return until - now

    def stats(self) -> dict[str, int | float | str]:
        with _alone():
            return {
                "sessions": len(self._records),
                "aliases": len(self._targets),
                "users": len(self._users),
                "evicted": self._evicted,
            }

    def _resolve(self, key: str, now: float) -> str:
        """The key that a live alias stands for; any other key is itself."""
        target = self._targets.get(key)
        return target if target is not None and now < self._aliases[target][key] else key

    def _alive(self, key: str, now: float) -> Record | None:
        record = self._records.get(self._resolve(key, now))
        return record if record is not None and now < record.deadline else None

    def _store(self, record: Record) -> None:
        before = self._records.get(record.key)
        # Who is interrupted leaves marks that lead nowhere, but no session without them.
        self._due.set(record.key, record.deadline)
        if record.user is not None:
            self._users.setdefault(record.user, {})[record.key] = None
        self._records[record.key] = record
        self._records.move_to_end(record.key)
        if before is not None and before.user != record.user:
            self._forget_user(before)

    def _evict(self) -> None:
        while len(self._records) > self._max:
            self._remove(next(iter(self._records.values())))
            self._evicted += 1

    def _remove(self, record: Record) -> None:
        """Take out the session with its aliases."""
        del self._records[record.key]
        self._due.discard(record.key)
        self._forget_user(record)
        for alias in list(self._aliases.get(record.key, ())):
            self._drop_alias(alias)

    def _vacate(self, key: str) -> None:
        """Make room for a new session: an expired one or an alias that ended may lie there."""
        self._drop_alias(key)
        expired = self._records.get(key)
        if expired is not None:
            self._remove(expired)

    def _forget_user(self, record: Record) -> None:
        if record.user is not None:
            keys = self._users.get(record.user, {})
            keys.pop(record.key, None)
            if not keys:
                self._users.pop(record.user, None)

    def _add_alias(self, alias: str, key: str, end: float) -> None:
        self._ends.set(alias, end)
        self._aliases.setdefault(key, {})[alias] = end
        self._targets[alias] = key

    def _drop_alias(self, alias: str) -> None:
        key = self._targets.pop(alias, None)
        if key is not None:
            self._ends.discard(alias)
            aliases = self._aliases.get(key, {})
            aliases.pop(alias, None)
            if not aliases:
                self._aliases.pop(key, None)

    def _drop_ended_aliases(self, now: float) -> None:
        while (alias := self._ends.due(now)) is not None:
            self._drop_alias(alias)
            self._ends.discard(alias)


_providers: WeakSet[MemoryProvider] = WeakSet()


def _alone() -> Hold:
    """The lock, and if this process is a fork one that nobody holds."""
    if not forks.ours[0]:
        forks.begin_anew()
    return _lock.take()


def _forget_lock() -> None:
    """In a child, threads that wait for it are not there."""
    global _lock
    _lock = Lock()
    _paused.clear()


@forks.in_child
def _start_over() -> None:
    if _paused or _lock.is_free():
        return
    # Forked without Python's hooks while another thread was in the middle of a change.
    _forget_lock()
    for provider in list(_providers):
        provider._clear()
    log.warning("this process was forked within a change of its sessions: it begins with none")


class Timetable:
    """Keys and their times, the earliest first: a heap that entries leave late.

    A key that moves to a later time, as a session in use does all day, costs no work on the heap
    until its old time comes up. What discards leave behind never outgrows what is there.
    """

    def __init__(self) -> None:
        self._times: dict[str, tuple[float, float]] = {}  # key -> its time, the time in the heap
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._times)

    def set(self, key: str, at: float) -> None:
        """Give the key its time. ``inf`` is no time at all."""
        if at == inf:
            self.discard(key)
            return
        queued = self._times.get(key, _NEVER)[1]
        if at < queued:
            heappush(self._heap, (at, key))
            queued = at
        self._times[key] = (at, queued)
        self._shrink()

    def discard(self, key: str) -> None:
        self._times.pop(key, None)
        self._shrink()

    def first(self) -> tuple[float, str] | None:
        """The earliest time and its key."""
        while self._heap:
            queued, key = self._heap[0]
            at, known = self._times.get(key, _NEVER)
            if known != queued:
                heappop(self._heap)
            elif at > queued:
                heappush(self._heap, (at, key))  # what was there leaves in the next round
                self._times[key] = (at, at)
            else:
                return queued, key
        return None

    def due(self, now: float) -> str | None:
        """The key of the earliest time, if that has come."""
        first = self.first()
        return first[1] if first is not None and first[0] <= now else None

    def _shrink(self) -> None:
        if len(self._heap) > 2 * len(self._times) + 64:
            heap = [(at, key) for key, (at, _) in self._times.items()]
            heapify(heap)
            times = {key: (at, at) for at, key in heap}
            vars(self).update(_heap=heap, _times=times)  # both or none


_NEVER = (inf, inf)
