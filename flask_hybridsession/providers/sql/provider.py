"""``SESSION_TYPE = "sql"``: sessions in SQLite, PostgreSQL, MariaDB or MySQL."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy.exc import DBAPIError

from ...core import clock
from ...core.breaker import Breaker, begin_budget, own_budgets
from ...core.change import Change, Record, decide
from ...core.errors import (
    ConfigError,
    CorruptData,
    KeyTaken,
    ProviderError,
    ProviderUnavailable,
    SessionGone,
)
from ...core.provider import Lists, Locks, Provider, Remote, Reports, Users
from .drivers import driver_for
from .pool import Duplicate, Link, Links, NoTable, TablesMissing
from .rows import Row, name_of, pack, stored_deadline, user_hash
from .source import Source, connections
from .statements import Statements
from .tables import ddl, make_tables

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from typing_extensions import Self

    from ...core.settings import Settings

T = TypeVar("T")
log = logging.getLogger("flask_hybridsession")

_PAGE = 500
#: Seconds for what looks at all sessions, and no visitor waits for.
_PATIENCE = 5.0
#: Bytes of a session up to which a thread remembers what it has just read.
_REMEMBERED = 1 << 16
#: Seconds between two sweeps of the leases that killed holders left.
_SWEEP_LOCKS = 60.0
#: Seconds between two wipings of what is left of sessions that have ended.
_WIPE = 60.0
#: Each may meet another one of the tables and indexes that somebody else has just made.
_ATTEMPTS = 10
_SYNCHRONOUS = ("FULL", "NORMAL")
_unhex = bytes.fromhex


class SqlProvider(Provider, Lists, Users, Locks, Reports, Remote):
    """Sessions in a database that SQLAlchemy can reach: a URL, an engine, or Flask-SQLAlchemy.

    ``database`` only says how to connect: the connections are our own, at most ``pool_size`` in a
    process, and never part of a transaction of the app's. Nothing is asked of it before the first
    call. The tables are made by ``create_tables`` or ``flask sessions init``, never by themselves;
    their names begin with ``table_prefix``, in ``schema``. ``bind_key`` is Flask-SQLAlchemy's.

    A commit is one UPDATE of the row as it was read, by its version; it holds no lock in between.
    ``budget`` is how many seconds the calls of a request may take in all. ``synchronous`` is
    SQLite's: "FULL" has each commit on the disk before it is acknowledged, with "NORMAL" a power
    cut may take the last ones.

    Raises ``ConfigError`` for what cannot work. When the tables are missing, a call raises what is
    that and ``ProviderUnavailable``.
    """

    breaker: Breaker

    def __init__(
        self,
        database: Any,
        *,
        bind_key: str | None = None,
        table_prefix: str = "hybrid_",
        schema: str | None = None,
        budget: float = 0.25,
        pool_size: int = 8,
        synchronous: str = "FULL",
    ) -> None:
        if type(pool_size) is not int or pool_size < 1:
            raise ConfigError("pool_size must be a whole number from 1.")
        if synchronous not in _SYNCHRONOUS:
            raise ConfigError(f"synchronous must be one of {', '.join(map(repr, _SYNCHRONOUS))}.")
        self.breaker = Breaker(self._probe, budget=budget)
        self._tables = make_tables(prefix=table_prefix, schema=schema)
        self._source = Source(database, bind_key, budget)
        self._options = {"synchronous": synchronous}
        self._size = pool_size
        self._closed = False
        self._last = _Last()
        self._locks_swept = 0.0
        self._wiped = -inf
        #: A session has ended since; before this process began, perhaps.
        self._ended = True

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """``SESSION_SQLALCHEMY`` and the options."""
        options = dict(settings.options)
        return cls(options.pop("database", settings.sqlalchemy), **options)

    # -- tables ---------------------------------------------------------------------------------

    @property
    def metadata(self) -> MetaData:
        """The tables, for the ``target_metadata`` of Alembic."""
        return self._tables.metadata

    def create_tables(self) -> None:
        """Make the tables and indexes that are missing. SQLite's file is set to WAL mode.

        Raises ``ProviderUnavailable``.
        """
        engine = self._source.engine()
        first = "PRAGMA journal_mode = WAL" if engine.dialect.name == "sqlite" else "SELECT 1"
        self._patiently(lambda link, sql: link.rows(first))
        for attempt in range(_ATTEMPTS):
            try:
                with engine.begin() as connection:
                    self._tables.metadata.create_all(connection)
                return
            except DBAPIError as error:
                if attempt == _ATTEMPTS - 1:
                    raise ProviderUnavailable(
                        f"the tables cannot be made ({type(error.orig).__name__})"
                    ) from error
                time.sleep(0.02)  # at first another worker may be making them, too

    def ddl(self) -> str:
        """The statements that make the tables in this database."""
        return ddl(self._tables, self._source.engine())

    # -- the contract ---------------------------------------------------------------------------

    def load(self, key: str, now: float) -> Record | None:
        row = self._call(lambda link, sql: _find(link, sql, _unhex(key), now))
        self._last.remember(row)
        return row.record if row is not None and now < row.record.deadline else None

    def commit(self, key: str, change: Change, now: float) -> None:
        raw = _unhex(key)
        if change.create:
            self._call(lambda link, sql: _create(link, sql, raw, change, now))
            return
        known = self._last.take(raw)
        self._last.remember(
            self._call(lambda link, sql: _commit(link, sql, raw, change, now, known))
        )

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        if alias_until is not None and alias_until <= now:
            alias_until = None
        self._call(lambda link, sql: _rename(link, sql, old, new, now, alias_until))

    def destroy(self, key: str) -> bool:
        destroyed = self._call(lambda link, sql: _destroy(link, sql, _unhex(key), clock.now()))
        self._ended |= destroyed
        return destroyed

    def exists(self, key: str, now: float) -> bool:
        raw = _unhex(key)
        return self._call(lambda link, sql: _find_head(link, sql, raw, now)) is not None

    def next_deadline(self) -> float | None:
        """None as long as Flask-SQLAlchemy has not told where the database is: nobody was there."""
        if not self._source.is_known:
            return None
        row = self._call(lambda link, sql: link.row(sql.next_deadline))
        if row is None:
            return None
        (deadline,) = row
        if type(deadline) is not float:
            raise ProviderUnavailable("the table for sessions holds deadlines that are none")
        return deadline

    def purge(self, now: float, limit: int) -> list[Record]:
        gone: list[Record] = []
        if not self._source.is_known:
            return gone
        while (asked := limit - len(gone)) > 0:
            try:
                due = self._call(lambda link, sql: _claim(link, sql, now, asked))
            except ProviderError:
                if not gone:
                    raise
                break  # those that are gone are the caller's to announce
            gone += _announced([columns for alias_of, *columns in due if alias_of is None], now)
            if len(due) < asked:
                break
        self._sweep_locks()
        self._ended |= bool(gone)
        self._wipe()
        return gone

    def close(self) -> None:
        self._closed = True
        self.breaker.close()
        if "_backend" in vars(self):
            self._ready().links.close()

    # -- abilities ------------------------------------------------------------------------------

    def keys(self, now: float) -> Iterator[str]:
        keys: list[bytes] = [b""]
        while keys:
            keys = self._some_keys(keys[-1], now)
            yield from (key.hex() for key in keys)

    def _some_keys(self, start: bytes, now: float) -> list[bytes]:
        rows = self._call(lambda link, sql: link.rows(sql.some_keys, (start, now, _PAGE)))
        return _keys_in(rows)

    def count(self, now: float) -> int:
        return self._counts()[0]

    def keys_of(self, user: str, now: float) -> list[str]:
        rows = self._call(lambda link, sql: link.rows(sql.keys_of, (user_hash(user), now)))
        return [key.hex() for key in _keys_in(rows)]

    @contextmanager
    def lock(self, key: str, timeout: float, lease: float) -> Iterator[None]:
        """A row of its own, until a time of the wall clock: those of all machines must agree."""
        raw, holder = _unhex(key), secrets.token_bytes(16)
        give_up = time.monotonic() + timeout
        pause = 0.001
        with own_budgets():  # the time that the request has is not for waiting
            while not self._call(lambda link, sql: _lock(link, sql, raw, holder, lease)):
                left = give_up - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the session is locked by another request")
                time.sleep(min(pause, left))
                pause = min(pause * 1.5, 0.025)
        try:
            yield
        finally:
            # Where this fails, the lease ends it: what was done within the lock is done.
            with own_budgets(), suppress(ProviderUnavailable):
                self._call(lambda link, sql: link.write(sql.unlock, (raw, holder)))

    def stats(self) -> dict[str, int | float | str]:
        sessions, aliases = self._counts()
        backend = self._ready()
        return {
            "sessions": sessions,
            "aliases": aliases,
            "database": self._source.engine().dialect.name,
            "idle_connections": backend.links.count_idle(),
        }

    def _counts(self) -> tuple[int, int]:
        (rows, aliases), *_ = self._patiently(lambda link, sql: link.rows(sql.count))
        return rows - aliases, aliases

    # -- calls ----------------------------------------------------------------------------------

    def _call(self, work: Callable[[Link, Statements], T]) -> T:
        backend = self._ready()
        sql, use = backend.sql, backend.links.use
        try:
            return self.breaker.call(lambda seconds: use(seconds, lambda link: work(link, sql)))
        except NoTable as error:  # which is an answer: it opens no breaker
            raise TablesMissing from error

    def _patiently(self, work: Callable[[Link, Statements], T]) -> T:
        """For an operator, who asks about all sessions: a time of its own."""
        context = copy_context()
        context.run(begin_budget, _PATIENCE)
        return context.run(self._call, work)

    def _probe(self, seconds: float) -> None:
        self._ready().links.ping(seconds)

    def _ready(self) -> Backend:
        """What is known once there is an engine; made by whoever comes first."""
        found: Backend | None = vars(self).get("_backend")
        return found or vars(self).setdefault("_backend", self._make_backend())

    def _make_backend(self) -> Backend:
        if self._closed:
            raise ProviderUnavailable("the provider is closed")
        engine = self._source.engine()
        driver = driver_for(engine, self._options, self.breaker.budget)
        pool = connections(engine)

        def connect() -> Any:
            driver.prepare()
            lent = pool.connect()
            raw = lent.dbapi_connection
            lent.detach()
            return raw

        links = Links(driver, connect, self._size)
        return Backend(Statements(self._tables, engine, driver), links, driver.wipe)

    def _sweep_locks(self) -> None:
        now = time.monotonic()
        if now - self._locks_swept > _SWEEP_LOCKS:
            self._locks_swept = now
            with suppress(ProviderUnavailable):  # they do no harm; the next sweep takes them
                self._call(lambda link, sql: link.write(sql.delete_locks, (time.time(),)))

    def _wipe(self) -> None:
        now = time.monotonic()
        if not self._ended or now - self._wiped < _WIPE:
            return
        self._wiped, self._ended = now, False
        if wipe := self._ready().wipe:
            try:
                busy = self._call(lambda link, sql: link.row(wipe))
                self._ended = busy is None or bool(busy[0])  # somebody reads: next time
            except ProviderUnavailable:
                self._ended = True


class Backend(NamedTuple):
    """How to talk to the database."""

    sql: Statements
    links: Links
    wipe: str


class _Last(threading.local):
    """The session that this thread has just read: its next commit need not read it again.

    It may have changed since: the commit is for its version, and reads it again if that is another.
    """

    row: Row | None = None

    def remember(self, row: Row | None) -> None:
        small = row is not None and sum(map(len, row.record.values.values())) <= _REMEMBERED
        self.row = row if small else None

    def take(self, key: bytes) -> Row | None:
        row, self.row = self.row, None
        return row if row is not None and row.key == key else None


# Each of these is the work of one call, on one connection.


def _find(link: Link, sql: Statements, key: bytes, now: float) -> Row | None:
    """The session of the key, or that of a live alias; alive or not."""
    columns = link.row(sql.read, (key,))
    if columns is None:
        return None
    alias_of, *whole = columns
    if alias_of is not None:
        columns = link.row(sql.find, (key, now))
        if columns is None:
            return None
        whole = [*columns]
    return Row.read(whole)


def _find_head(
    link: Link, sql: Statements, key: bytes, now: float
) -> tuple[bytes, int, float] | None:
    """Key, version and creation of the live session of the key, or of a live alias."""
    columns = link.row(sql.find_head, (key, now))
    if columns is None:
        return None
    source, version, created, deadline = columns
    deadline = inf if deadline is None else deadline
    if type(version) is not int or not type(created) is type(deadline) is float:
        raise CorruptData(f"session {name_of(source)[:12]}... is damaged")
    return None if deadline <= now else (source, version, created)


def _commit(
    link: Link, sql: Statements, key: bytes, change: Change, now: float, known: Row | None
) -> Row:
    """The session after the change. Another change in between only costs another try."""
    if known is not None:
        try:
            record = decide(known.record, key.hex(), change, now)
        except ProviderError:
            known = None  # it may be otherwise by now
        else:
            if changed := _replace(link, sql, known, record):
                return changed
    while True:
        row = _find(link, sql, key, now)
        record = decide(None if row is None else row.record, key.hex(), change, now)
        assert row is not None  # noqa: S101  (decide has refused it)
        if record == row.record:
            return row
        if changed := _replace(link, sql, row, record):
            return changed


def _replace(link: Link, sql: Statements, row: Row, record: Record) -> Row | None:
    """Write the record in place of the row, unless that was changed meanwhile."""
    before, version = row.record, row.version + 1
    times = (version, record.touched, stored_deadline(record.deadline))
    if (
        record.values is before.values
        and record.user == before.user
        and record.device == before.device
    ):
        done = link.write(sql.touch, (*times, row.key, row.version))
    else:
        data = pack(record)
        link.refuse_too_large(len(data))
        values = (*times, user_hash(record.user), data, row.key, row.version)
        done = link.write(sql.update, values)
    return Row(row.key, version, record) if done else None


def _create(link: Link, sql: Statements, key: bytes, change: Change, now: float) -> None:
    record = decide(None, key.hex(), change, now)
    data = pack(record)
    link.refuse_too_large(len(data))
    user = user_hash(record.user)
    times = (record.created, record.touched, stored_deadline(record.deadline))
    while not _insert(link, sql.insert, (key, None, _new_version(), *times, user, data)):
        if not _vacate(link, sql, key, now):
            raise KeyTaken(key.hex())


def _insert(link: Link, statement: str, values: tuple[Any, ...]) -> bool:
    """Whether there was no row of that key."""
    try:
        return link.write(statement, values) == 1
    except Duplicate:
        return False


def _new_version() -> int:
    """No version of an earlier session of the same key."""
    return secrets.randbits(62)


def _vacate(link: Link, sql: Statements, key: bytes, now: float) -> bool:
    """Make room for a new session: an expired one, or an alias that leads nowhere, may be there."""
    version = link.row(sql.find_version, (key,))
    if version is None:
        return True
    if _find_head(link, sql, key, now) is not None:
        return False
    if link.write(sql.delete_version, (key, *version)):
        link.write(sql.delete_aliases, (key,))
    return True


def _rename(
    link: Link, sql: Statements, old: str, new: str, now: float, alias_until: float | None
) -> None:
    target = _unhex(new)
    while True:
        head = _find_head(link, sql, _unhex(old), now)
        if head is None:
            raise SessionGone(old)
        if not _vacate(link, sql, target, now):
            raise KeyTaken(new)
        if _move(link, sql, *head, target, alias_until):
            return


def _move(
    link: Link,
    sql: Statements,
    source: bytes,
    version: int,
    created: float,
    target: bytes,
    alias_until: float | None,
) -> bool:
    """Give the session of that version its new key, unless there is such a session by now."""
    link.begin()
    try:
        moved = link.write(sql.rename, (target, version + 1, source, version))
    except Duplicate:
        moved = 0
    if not moved:
        link.roll_back()
        return False
    if alias_until is None:
        link.write(sql.delete_aliases, (source,))
    else:
        link.write(sql.move_aliases, (target, source))
        until = stored_deadline(alias_until)
        alias = (source, target, _new_version(), created, created, until, None, b"")
        if not _insert(link, sql.insert, alias):
            link.roll_back()
            return False
    link.commit()
    return True


def _destroy(link: Link, sql: Statements, key: bytes, now: float) -> bool:
    done = link.write(sql.delete, (key,))
    while not done:
        alias = link.row(sql.find_alias, (key, now))
        if alias is None:
            return False
        target, created = alias
        if link.write(sql.delete_created, (target, created)):
            key, done = target, 1
        elif link.row(sql.find_alias, (key, now)) == alias:
            return False  # it leads nowhere
    # They lead nowhere now; those that stay, should this fail, go when they are due.
    with suppress(ProviderUnavailable):
        link.write(sql.delete_aliases, (key,))
    return True


def _claim(link: Link, sql: Statements, now: float, limit: int) -> list[tuple[Any, ...]]:
    """Delete some rows that are due, sessions and aliases: nobody else gets the same."""
    if link.claims_in_delete:
        due = link.claim(sql.claim_due, (now, limit))
    else:
        link.begin()
        due = link.rows(sql.find_due, (now, limit))
        if due:
            link.write(sql.each(sql.delete_each, len(due)), [columns[1] for columns in due])
        link.commit()
    keys = [columns[1] for columns in due if columns[0] is None]
    if keys:
        with suppress(ProviderUnavailable):  # as above
            link.write(sql.each(sql.delete_aliases_of_each, len(keys)), keys)
    return due


def _announced(rows: list[list[Any]], now: float) -> Iterator[Record]:
    for row in rows:
        try:
            yield Row.read(row).record
        except CorruptData as error:
            log.error("%s; it has expired", error)
            key, _, *times, _ = row
            if type(key) is bytes:
                created, touched, deadline = (at if _is_time(at) else now for at in times)
                yield Record(key.hex(), {}, created, touched, deadline)


def _is_time(at: Any) -> bool:
    return type(at) is float and isfinite(at)


def _keys_in(rows: list[tuple[Any, ...]]) -> list[bytes]:
    keys = [key for (key,) in rows]
    if not set(map(type, keys)) <= {bytes}:
        raise ProviderUnavailable("the table for sessions holds keys that are none")
    return keys


def _lock(link: Link, sql: Statements, key: bytes, holder: bytes, lease: float) -> bool:
    now = time.time()
    until = now + lease
    return _insert(link, sql.lock, (key, holder, until)) or bool(
        link.write(sql.take_lock, (holder, until, key, now))
    )
