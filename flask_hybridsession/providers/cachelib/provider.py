"""One session is one value of the cache, and one mark once it is gone.

For whoever has such a cache already. A cache gets and sets whole values and does nothing on
condition: of two processes that change one session in the same moment, the later one wins whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from math import ceil, inf
from typing import TYPE_CHECKING, Any, TypeVar

import cachelib

from ...core import clock
from ...core.blob import Gone, Trail, pack, unpack
from ...core.breaker import Breaker
from ...core.change import Change, Record, decide
from ...core.errors import ConfigError, CorruptData, KeyTaken, ProviderError, SessionGone
from ...core.keylocks import held
from ...core.lifetime import COOKIE_CAP
from ...core.provider import Promise, Provider, Remote
from .make import make_cache
from .names import checked_prefix
from .tame import is_remote, tame
from .waits import RefusedError, failed, within

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...core.settings import Settings

Entry = TypeVar("Entry", Record, Gone)

#: Seconds that a cache keeps a session beyond its end: ``load`` judges the end, exactly, and no
#: coarse clock of a cache may come before it.
GRACE = 60.0
#: Seconds that a mark is kept beyond the time that its session could have lived.
MARK_GRACE = 3600.0
#: A time further away than this many seconds is "for ever": memcached cannot count beyond 2038.
FAR = 5 * 366 * 86400.0
#: Bytes that any cache takes as one value.
SMALL = 100_000
#: Seconds between two removals of what is expired, where the cache does not see to it.
SWEEP_EVERY = 600.0


class CachelibProvider(Provider):
    """Sessions in ``cache``, any cache of cachelib that keeps what it was told to keep.

    Each session is one value under ``key_prefix`` and its key: bytes of our own, written and read
    past the cache's serializer, so nothing is pickled and nothing found there is ever unpickled.
    (For that we work on a private copy of ``cache``; yours stays as it is.)

    A logout or a rename leaves a mark, kept for as long as the session could have lived, and each
    commit looks for one after it wrote: hence ``Promise.FINAL``, as long as the cache forgets
    nothing. One that is emptied, or evicts when memory is short, may lose sessions, and marks.
    Among the threads of one process ``CONDITIONAL`` and ``DESTROY_ONCE`` hold too; between
    processes they do not.

    Expired sessions go without being announced. A call that the cache says it failed at, or fails
    at silently, is ``ProviderUnavailable``; so is a session larger than its items may be.

    Where the cache talks to a server, ``CachelibProvider(cache)`` makes a provider that is
    ``Remote``: the calls of a request take ``budget`` seconds at most, whatever timeouts the
    clients of Redis, Valkey, memcached and MongoDB have (a cluster's or a sentinel's client keeps
    its own). For DynamoDB that holds if the cache is made from settings. For MongoDB it may be half
    a second: pymongo looks that long for a server that is not there, whatever it is told.

    Raises ``ConfigError`` for what no care of ours can make safe: ``NullCache``, a uWSGI cache of
    another server or one that evicts, a Redis client that decodes what it reads, and
    ``MemcachedCache`` over any client but pymemcache's, which alone neither unpickles nor answers
    "not there" when it means "not reached".
    """

    promises = frozenset({Promise.FINAL})

    def __new__(cls, cache: cachelib.BaseCache, *_: Any, **__: Any) -> Self:
        remote = is_remote(cache) and not issubclass(cls, Remote)
        return super().__new__(type(cls.__name__, (_Remote, cls), {}) if remote else cls)

    def __init__(
        self, cache: cachelib.BaseCache, key_prefix: str = "session:", budget: float = 0.25
    ) -> None:
        self._cache = tame(cache)
        self._prefix = checked_prefix(key_prefix, "SESSION_KEY_PREFIX")
        self._sweep: Callable[[], object] | None = getattr(self._cache, "sweep", None)
        self._sweep_at = -inf
        self._largest: Callable[[], int] | None = getattr(self._cache, "largest", None)
        self._disconnect: Callable[[], object] = getattr(self._cache, "disconnect", bool)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take ``SESSION_CACHELIB``, or ``cache`` in ``SESSION_OPTIONS``, or make one by them.

        Each may say which to make: ``{"type": "FileSystemCache", "cache_dir": "..."}``, that is one
        of ``make.TYPES`` and its parameters. ``budget`` may stand beside them. Raises
        ``ConfigError``.
        """
        options = dict(settings.options)
        budget = {"budget": options.pop("budget")} if "budget" in options else {}
        if settings.cachelib is not None:
            given = settings.cachelib
        elif "cache" in options and "type" not in options:
            given = options.pop("cache")
        else:
            given, options = options, {}
        if options:
            raise ConfigError(
                "SESSION_OPTIONS says more than the cache that is given: "
                f"remove {', '.join(sorted(options))}."
            )
        if isinstance(given, Mapping):
            given = make_cache(
                {**given, **budget} if given.get("type") == "DynamoDbCache" else given
            )
        if budget and isinstance(given, cachelib.BaseCache) and not is_remote(given):
            raise ConfigError(f"{type(given).__name__} waits for no server: remove budget.")
        return cls(given, settings.key_prefix, **budget)

    def load(self, key: str, now: float) -> Record | None:
        trail = Trail(key, now)
        while True:
            record, gone = self._look(trail.at)
            if gone is None:
                record = trail.own(record)
                return record if record is not None and now < record.deadline else None
            if not trail.follow(gone):
                return None

    def commit(self, key: str, change: Change, now: float) -> None:
        if change.create:
            self._create(key, change, now)
            return

        def write(record: Record | None) -> Gone | None:
            changed = decide(record, key, change, now)
            if record is not None and changed.deadline <= now:
                return self._bury(record, Gone(record.key))
            return self._write(changed, now)

        if not self._wherever_it_is(key, now, write):
            raise SessionGone(key)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        def move(record: Record | None) -> Gone | None:
            if record is None or now >= record.deadline:
                raise SessionGone(old)
            if self.exists(new, now):
                raise KeyTaken(new)
            return self._move(record, new, now, alias_until)

        if not self._wherever_it_is(old, now, move):
            raise SessionGone(old)

    def destroy(self, key: str) -> bool:
        def bury(record: Record | None) -> Gone | None:
            return Gone(key) if record is None else self._bury(record, Gone(record.key))

        try:
            return self._wherever_it_is(key, clock.now(), bury)
        except CorruptData:
            # No other mark may stand in the way: what it says cannot be read either.
            self._put(self._mark_name(key), Gone(key), COOKIE_CAP)
            self._erase(key)
            return True

    def next_deadline(self) -> float | None:
        """None: a cache cannot tell."""
        return None

    def purge(self, now: float, limit: int) -> list[Record]:
        """Nothing to announce. Removes what is expired now and then, where the cache does not."""
        if self._sweep is not None and time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_EVERY
            self._ask(self._sweep)
        return []

    def close(self) -> None:
        self._disconnect()

    def _wherever_it_is(
        self, key: str, now: float, work: Callable[[Record | None], Gone | None]
    ) -> bool:
        """Do the work on the session, under the key that it has by now. False: it is gone.

        ``work`` returns None once it is done, or the mark that it met.
        """
        trail = Trail(key, now)
        while True:
            with held(trail.at):
                record, gone = self._look(trail.at)
                if gone is None:
                    gone = work(trail.own(record))
            if gone is None:
                return True
            if not trail.follow(gone):
                return False

    def _create(self, key: str, change: Change, now: float) -> None:
        with held(key):
            record, gone = self._look(key)
            if gone is not None:
                record = self.load(key, now)
            record = decide(record, key, change, now)
            if gone is not None:
                self._unmark(key)
            self._put(self._name(key), record, record.deadline - now)

    def _write(self, record: Record, now: float) -> Gone | None:
        """Write, then look again: who marked the key before we wrote has the last word."""
        written = self._set(self._name(record.key), record, record.deadline - now)
        gone = self._gone(record.key)
        if gone is not None:
            self._erase(record.key)
        elif not written:
            raise failed("it did not store")
        return gone

    def _move(self, record: Record, new: str, now: float, alias_until: float | None) -> Gone | None:
        # Nobody knows the new key yet: if this ends half way, the old one still works, alone.
        if self._gone(new) is not None:
            self._unmark(new)
        self._put(self._name(new), record._replace(key=new), record.deadline - now)
        until = -inf if alias_until is None else alias_until
        mark = Gone(record.key, None if alias_until is None else new, until, record.created)
        first = self._mark(mark, max(_could_live(record), until - now))
        if first is None:
            # From here on every commit to the old key fails. One that came before us counts.
            latest, first = self._look(record.key)
            first = None if first == mark else first
            if first is None and latest is not None and latest != record:
                self._put(self._name(new), latest._replace(key=new), latest.deadline - now)
        self._erase(record.key if first is None else new)
        return first

    def _bury(self, record: Record, mark: Gone) -> Gone | None:
        first = self._mark(mark, _could_live(record))
        self._erase(record.key)
        return first

    def _mark(self, mark: Gone, seconds: float) -> Gone | None:
        """Mark the key as gone. Returns the mark of whoever did it before."""
        name = self._mark_name(mark.key)
        if self._ask(self._cache.add, name, pack(mark), _timeout(seconds + MARK_GRACE)):
            return None
        first = self._gone(mark.key)
        if first is None:
            self._put(name, mark, seconds + MARK_GRACE)
        return first

    # The cache

    def _name(self, key: str) -> str:
        return self._prefix + key

    def _mark_name(self, key: str) -> str:
        return f"{self._prefix}gone:{key}"

    def _look(self, key: str) -> tuple[Record | None, Gone | None]:
        """What is stored of a session, and the mark that it is gone, which outweighs it."""
        names = self._name(key), self._mark_name(key)
        blob, mark = self._ask(self._cache.get_many, *names)
        return _read(Record, blob, key), _read(Gone, mark, key)

    def _gone(self, key: str) -> Gone | None:
        return _read(Gone, self._ask(self._cache.get, self._mark_name(key)), key)

    def _put(self, name: str, entry: Record | Gone, seconds: float) -> None:
        if not self._set(name, entry, seconds):
            raise failed("it did not store")

    def _set(self, name: str, entry: Record | Gone, seconds: float) -> bool:
        blob = pack(entry)
        if len(blob) > SMALL and self._largest and len(blob) > self._ask(self._largest):
            raise failed("the session is larger than its items may be")
        return bool(self._ask(self._cache.set, name, blob, _timeout(seconds)))

    def _erase(self, key: str) -> None:
        """Make room. If the cache fails at it, the mark still holds."""
        self._ask(self._cache.delete, self._name(key))

    def _unmark(self, key: str) -> None:
        if not self._ask(self._cache.delete, self._mark_name(key)) and self._gone(key) is not None:
            raise failed("it did not delete")

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the cache. Whatever it raises means that it did not do what was asked."""
        try:
            return call(*args)
        except ProviderError:
            raise
        except RefusedError as error:
            raise failed(str(error)) from error
        except Exception as error:
            raise failed(type(error).__name__) from error


class _Remote(CachelibProvider, Remote):
    """Over a cache that talks to a server."""

    def __init__(
        self, cache: cachelib.BaseCache, key_prefix: str = "session:", budget: float = 0.25
    ) -> None:
        super().__init__(cache, key_prefix)
        self._away: tuple[type[Exception], ...] = self._cache.away
        self.breaker = Breaker(self._probe, budget=budget)

    def close(self) -> None:
        self.breaker.close()
        super().close()

    def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        if call == self._sweep:
            return super()._ask(call, *args)  # nobody waits for it, and it may take long
        return super()._ask(self.breaker.call, partial(self._in_time, call, args))

    def _in_time(self, call: Callable[..., Any], args: tuple[Any, ...], seconds: float) -> Any:
        try:
            return within(seconds, call, *args)
        except self._away as error:
            raise failed(type(error).__name__) from error

    def _probe(self, seconds: float) -> None:
        with suppress(RefusedError):  # a no is an answer
            self._in_time(self._cache.get, (self._prefix + "probe",), seconds)


def _read(kind: type[Entry], blob: object, key: str) -> Entry | None:
    if blob is None:
        return None
    if not isinstance(blob, bytes):
        raise CorruptData(f"session {key[:12]}... is stored as something else than bytes")
    entry = unpack(blob, key)
    if not isinstance(entry, kind):
        raise CorruptData(f"session {key[:12]}... has a mark and a record mixed up")
    return entry


def _could_live(record: Record) -> float:
    """Seconds for which a commit under way may still prolong the session: it slides by as much."""
    return max(record.deadline - record.touched, 0.0)


def _timeout(seconds: float) -> int:
    """What caches understand: whole seconds, 0 for ever."""
    return 0 if seconds > FAR else ceil(max(seconds, 0.0) + GRACE)
