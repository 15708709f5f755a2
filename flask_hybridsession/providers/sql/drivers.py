"""What differs between the three drivers: limits in time, settings, and what their errors mean."""

from __future__ import annotations

import logging
import os
import re
import select
import sqlite3
import stat
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from enum import Enum, auto
from math import ceil, inf
from random import uniform
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, Engine

log = logging.getLogger("flask_hybridsession")

#: Seconds after which a server ends the transaction of a client that stands still.
_IDLE_IN_TRANSACTION = 5
#: The part of the budget that a statement waits for a lock before it is tried again: the server
#: shall not do much later what its client has given up.
_LOCK_PART = 0.2
#: Seconds between two looks at whether SQLite's file is still where it was.
_LOOK_AGAIN = 0.01


class Trouble(Enum):
    """What an error of a driver means."""

    AWAY = auto()  # nobody answers, or not in time, or it is full: the connection is of no use
    AGAIN = auto()  # nothing was done, and it may work at once: a deadlock, a lock that was held
    DUPLICATE = auto()
    NO_TABLE = auto()
    TOO_LARGE = auto()
    DAMAGED = auto()
    REFUSED = auto()  # anything else, such as a missing privilege


class Driver(ABC):
    """How to deal with the raw connections of one driver."""

    #: A parameter in a statement.
    mark = "%s"
    #: Opening a connection waits for nobody.
    opens_at_once = False
    begin = "BEGIN"
    #: What comes behind a SELECT of rows that are to be claimed.
    claim = " FOR UPDATE SKIP LOCKED"
    #: Whether a DELETE can do so by itself and tell what it deleted.
    claims_in_delete = False
    #: What comes behind an INSERT that may meet a row of the same key.
    unless_there = ""
    #: What removes the last copies of rows that are gone; its first column tells if it could not.
    wipe = ""

    Error: type[Exception]

    def __init__(self, engine: Engine, budget: float) -> None:
        self.Error = engine.dialect.loaded_dbapi.Error
        self.budget = budget

    def prepare(self) -> None:  # noqa: B027  (most have nothing to do)
        """Before a connection is opened."""

    @abstractmethod
    def settle(self, raw: Any, give_up: float) -> Any:
        """Set a new connection to our ways, whatever its engine did with it, and get a cursor."""

    @abstractmethod
    def execute(self, raw: Any, cursor: Any, sql: str, values: Any, give_up: float) -> None:
        """Run one statement, until ``give_up`` on the monotonic clock, or raise ``Error``."""

    @abstractmethod
    def trouble(self, error: Exception) -> Trouble:
        """What the error means."""

    def origin(self, cursor: Any) -> Any:
        """What ``is_stale`` wants to know of a new connection."""
        return None

    def is_stale(self, raw: Any, origin: Any) -> bool:
        """Whether the server has closed an idle connection, or says something unasked."""
        return False

    def is_too_large(self, raw: Any, size: int) -> bool:
        """Whether the server is known to refuse so many bytes in one statement."""
        return False

    def close(self, raw: Any) -> None:
        raw.close()


def driver_for(engine: Engine, options: dict[str, Any], budget: float) -> Driver:
    """The ways of the engine's driver. ``options`` are those for one kind of database."""
    name = engine.dialect.name
    if name == "sqlite":
        return Sqlite(engine, budget, **options)
    return Postgresql(engine, budget) if name == "postgresql" else Mysql(engine, budget)


class Sqlite(Driver):
    """The file is locked by one writer at a time; the others try again until it is free."""

    mark = "?"
    opens_at_once = True
    begin = "BEGIN IMMEDIATE"
    claim = ""
    unless_there = " ON CONFLICT DO NOTHING"
    #: Beside the file, WAL mode keeps pages as they were written until they are overwritten.
    wipe = "PRAGMA wal_checkpoint(TRUNCATE)"

    def __init__(self, engine: Engine, budget: float, synchronous: str) -> None:
        super().__init__(engine, budget)
        self._synchronous = synchronous
        self._path = _path_of(engine.url)
        self._warned = False

    def prepare(self) -> None:
        """Make the file for its user alone; SQLite gives those beside it the same mode."""
        if self._path is None:
            return
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            self._judge(self._path)
        except OSError:
            pass  # SQLite says what is wrong

    def _judge(self, path: str) -> None:
        with suppress(OSError):
            if not self._warned and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
                self._warned = True
                log.warning("others may open the sessions in %s: chmod 600 %s", path, path)

    def settle(self, raw: Any, give_up: float) -> Any:
        raw.isolation_level = None
        raw.row_factory = None
        raw.text_factory = bytes  # a text that is none shall not fail here
        cursor = raw.cursor()
        # SQLite's own waiting sleeps longer and longer, and keeps gevent's other greenlets waiting.
        cursor.execute("PRAGMA busy_timeout = 0").fetchall()
        cursor.execute("PRAGMA secure_delete = ON").fetchall()  # what is deleted is overwritten
        self.execute(raw, cursor, f"PRAGMA synchronous = {self._synchronous}", (), give_up)
        return cursor

    def execute(self, raw: Any, cursor: Any, sql: str, values: Any, give_up: float) -> None:
        pause = 0.0002
        while True:
            try:
                cursor.execute(sql, values)
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or monotonic() + pause > give_up:
                    raise
            time.sleep(uniform(0.5, 1.0) * pause)  # noqa: S311  (no secret)
            pause = min(pause * 1.5, 0.003)

    def origin(self, cursor: Any) -> Any:
        (_, _, path), *_ = cursor.execute("PRAGMA database_list").fetchall()
        return _File(path)

    def is_stale(self, raw: Any, origin: Any) -> bool:
        """Whether its file was deleted or replaced: nobody reads what is written there."""
        return bool(origin.has_moved())

    def trouble(self, error: Exception) -> Trouble:
        text = str(error)
        if isinstance(error, sqlite3.IntegrityError):
            return Trouble.DUPLICATE if text.startswith("UNIQUE") else Trouble.REFUSED
        if isinstance(error, sqlite3.OperationalError):
            return Trouble.NO_TABLE if _NO_TABLE.match(text) else Trouble.AWAY
        if isinstance(error, sqlite3.DataError) or "too big" in text:
            return Trouble.TOO_LARGE
        if "malformed" in text or "not a database" in text:
            return Trouble.DAMAGED
        return Trouble.REFUSED


def _path_of(url: URL) -> str | None:
    """The file that SQLite would make; None if it would not."""
    path = url.database or ""
    if not path.startswith("file:"):
        return path or None
    return None if url.query.get("mode") in ("ro", "rw") else unquote(urlsplit(path).path)


class _File:
    """Which file a path led to."""

    __slots__ = ("_inode", "_looked", "_path")

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._inode = self._find()
        self._looked = monotonic()

    def has_moved(self) -> bool:
        now = monotonic()
        if now - self._looked < _LOOK_AGAIN:
            return False
        self._looked = now
        return self._find() != self._inode

    def _find(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_dev


_NO_TABLE = re.compile("no such (table|column)|table .* has no column")


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return "is locked" in str(error)


class Postgresql(Driver):
    """psycopg 3, told when to give up by a ``wait`` of our own."""

    mark = "%b"
    claims_in_delete = True
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
    unless_there = " ON CONFLICT DO NOTHING"

    def settle(self, raw: Any, give_up: float) -> Any:
        raw.rollback()
        raw.autocommit = True
        raw.execute(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE;"
            f"SET lock_timeout = {ceil(self.budget * 1000 * _LOCK_PART)};"
            f"SET idle_in_transaction_session_timeout = {_IDLE_IN_TRANSACTION * 1000}"
        )
        raw.row_factory = _tuples
        raw.wait = Waiting(raw.pgconn)
        return raw.cursor(binary=True)

    def execute(self, raw: Any, cursor: Any, sql: str, values: Any, give_up: float) -> None:
        raw.wait.give_up = give_up
        cursor.execute(sql, values)

    def trouble(self, error: Exception) -> Trouble:
        state = getattr(error, "sqlstate", None)
        if state is None:
            return Trouble.REFUSED if type(error).__name__ == "ProgrammingError" else Trouble.AWAY
        return _STATES.get(state) or _CLASSES.get(state[:2], Trouble.REFUSED)

    def is_stale(self, raw: Any, origin: Any) -> bool:
        return bool(raw.closed) or _is_readable(raw.pgconn.socket)


_STATES = {
    **dict.fromkeys(("40001", "40P01", "55P03"), Trouble.AGAIN),
    **dict.fromkeys(("42P01", "42703", "3F000"), Trouble.NO_TABLE),
    **{"23505": Trouble.DUPLICATE, "54000": Trouble.TOO_LARGE},
    "25006": Trouble.AWAY,  # read only: the former primary
}
#: Connection, authorization, database, resources, operator, system.
_CLASSES = dict.fromkeys(("08", "28", "3D", "53", "57", "58"), Trouble.AWAY)
_CLASSES["XX"] = Trouble.DAMAGED


def _tuples(cursor: Any) -> Any:
    return tuple


class Waiting:
    """Instead of a psycopg connection's ``wait``, which may wait for ever."""

    def __init__(self, pgconn: Any) -> None:
        self._pgconn = pgconn
        self.give_up = inf

    def __call__(self, generator: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            wanted = next(generator)
            while True:
                wanted = generator.send(self._until_ready(wanted))
        except StopIteration as end:
            return end.value

    def _until_ready(self, wanted: int) -> int:
        left = min(self.give_up - monotonic(), 3600.0)
        if left > 0:
            ready = _ready(self._pgconn.socket, wanted, left)
            if ready:
                return ready & wanted or wanted  # what went wrong shows when it is tried
        self._pgconn.finish()
        raise _timeout()


_READ, _WRITE = 1, 2  # psycopg's numbers for what to wait for, and for what is ready


def _ready(fileno: int, wanted: int, seconds: float) -> int:
    """What can be done with a socket, once something can that is wanted; 0: nothing in time."""
    if not hasattr(select, "poll"):  # eventlet takes it away; its select takes any number
        reads = [fileno] if wanted & _READ else []
        writes = [fileno] if wanted & _WRITE else []
        readable, writable, _ = select.select(reads, writes, [], seconds)
        return (_READ if readable else 0) | (_WRITE if writable else 0)
    poll = select.poll()
    poll.register(fileno, _EVENTS[wanted])
    for _, event in poll.poll(ceil(seconds * 1000)):
        return (event & select.POLLOUT and _WRITE) | (event & ~select.POLLOUT and _READ)
    return 0


_EVENTS = {
    _READ: select.POLLIN,
    _WRITE: select.POLLOUT,
    _READ | _WRITE: select.POLLIN | select.POLLOUT,
}


def _timeout() -> Exception:
    from psycopg import OperationalError

    return OperationalError("no answer in time")


class Mysql(Driver):
    """PyMySQL, whose socket gets its timeout with each statement."""

    begin = "START TRANSACTION"

    def settle(self, raw: Any, give_up: float) -> Any:
        raw.rollback()
        raw.autocommit(True)
        cursor = raw.cursor()
        cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        cursor.execute("SET SESSION TRANSACTION READ WRITE")
        cursor.execute("SET SESSION sql_mode = 'STRICT_TRANS_TABLES'")  # nothing is cut to fit
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")  # with 0, MariaDB errs at times
        if "MariaDB" in raw.get_server_info():
            cursor.execute(f"SET SESSION idle_transaction_timeout = {_IDLE_IN_TRANSACTION}")
        cursor.execute("SELECT @@max_allowed_packet")
        raw.largest = int(cursor.fetchone()[0])
        return cursor

    def execute(self, raw: Any, cursor: Any, sql: str, values: Any, give_up: float) -> None:
        raw._read_timeout = raw._write_timeout = max(give_up - monotonic(), 0.001)
        cursor.execute(sql, values)

    def trouble(self, error: Exception) -> Trouble:
        number = error.args[0] if error.args else None
        known = _NUMBERS.get(number) if isinstance(number, int) else None
        if known is not None:
            return known
        away = type(error).__name__ in ("OperationalError", "InterfaceError", "InternalError")
        return Trouble.AWAY if away else Trouble.REFUSED

    def is_stale(self, raw: Any, origin: Any) -> bool:
        return not raw.open or _is_readable(raw._sock.fileno())

    def is_too_large(self, raw: Any, size: int) -> bool:
        """At worst each byte is sent as two."""
        return bool(2 * size + 4096 > raw.largest)

    def close(self, raw: Any) -> None:
        # No farewell: whom it is for may not be listening.
        raw._force_close()


_NUMBERS = {
    1213: Trouble.AGAIN,  # a deadlock
    1205: Trouble.AGAIN,  # waited too long for a lock
    1020: Trouble.AGAIN,  # a row has changed since it was read
    1062: Trouble.DUPLICATE,
    1146: Trouble.NO_TABLE,
    1054: Trouble.NO_TABLE,  # an unknown column
    1153: Trouble.TOO_LARGE,
    1142: Trouble.REFUSED,  # a missing privilege
    1194: Trouble.DAMAGED,
}


def _is_readable(fileno: int) -> bool:
    return fileno < 0 or bool(_ready(fileno, _READ, 0.0))
