"""Connections of our own, each used by one call at a time, within the time that the call has."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from random import uniform
from time import monotonic
from typing import Any, TypeVar
from weakref import WeakSet

from ...core import forks
from ...core.errors import ConfigError, ProviderError, ProviderUnavailable
from ...core.locks import Hold, Lock, give_back
from .drivers import Driver, Trouble

T = TypeVar("T")

#: Seconds after which a connection that nobody used is not used again: a firewall may have
#: forgotten it without a word.
IDLE = 300.0
#: Seconds that a fork waits for the calls of other threads, where nothing may be open across it.
_BEFORE_FORK = 1.0
#: Seconds until another try, at most: the others hold their locks for less.
_PAUSE = 0.002


class Again(Exception):
    """Nothing was done, and it may work at once."""


class Duplicate(Exception):
    """There is a row of that key."""


class NoTable(Exception):
    """There is no such table, or it has other columns."""


class TablesMissing(ConfigError, ProviderUnavailable):
    """To who sets a site up a mistake, to a visitor an outage."""

    def __init__(self) -> None:
        super().__init__(
            'the tables for sessions are not there, or of another version: run "flask sessions '
            'init".'
        )


class Link:
    """A connection. ``give_up``, on the monotonic clock, is set anew for each call."""

    def __init__(self, driver: Driver, raw: Any, give_up: float) -> None:
        self._driver = driver
        self._raw = raw
        self._cursor = driver.settle(raw, give_up)
        self._origin = driver.origin(self._cursor)
        self._in_transaction = False
        self._is_trusted = True
        self.give_up = give_up
        self.used = monotonic()
        self.is_open = True

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a statement finds."""
        self._execute(sql, values, reads=not self._in_transaction)
        return self._fetched(reads=not self._in_transaction)

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        found = self.rows(sql, values)
        return found[0] if found else None

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """How many rows a statement changed. Raises ``Duplicate``."""
        self._execute(sql, values)
        return self._cursor.rowcount  # type: ignore[no-any-return]

    def claim(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a statement found and changed."""
        self._execute(sql, values)
        return self._fetched()

    def _fetched(self, reads: bool = False) -> list[tuple[Any, ...]]:
        try:
            return self._cursor.fetchall()  # type: ignore[no-any-return]
        except self._driver.Error as error:
            raise self._meaning(error, reads) from error
        except _NONSENSE as error:
            self.close()
            raise _not_understood(error) from error

    def begin(self) -> None:
        self._execute(self._driver.begin, ())
        self._in_transaction = True

    def commit(self) -> None:
        self._execute("COMMIT", ())
        self._in_transaction = False

    def roll_back(self) -> None:
        self._execute("ROLLBACK", ())
        self._in_transaction = False

    @property
    def claims_in_delete(self) -> bool:
        return self._driver.claims_in_delete

    def refuse_too_large(self, size: int) -> None:
        if self._driver.is_too_large(self._raw, size):
            raise _too_large()

    def is_usable(self) -> bool:
        """Whether an idle connection is still one. What comes first may be lost all the same."""
        self._is_trusted = False
        if monotonic() - self.used > IDLE or self._driver.is_stale(self._raw, self._origin):
            self.close()
        return self.is_open

    def leave(self) -> None:
        """The call is over: nothing of it stays open."""
        if self._in_transaction and self.is_open:
            try:
                self.roll_back()
            except (ProviderError, Again):
                self.close()
        self.used = monotonic()

    def close(self) -> None:
        self.is_open = False
        with suppress(self._driver.Error, OSError):
            self._driver.close(self._raw)

    def _execute(self, sql: str, values: Sequence[Any], reads: bool = False) -> None:
        if monotonic() >= self.give_up:
            raise ProviderUnavailable("the database did not answer in time")
        try:
            self._driver.execute(self._raw, self._cursor, sql, values, self.give_up)
            self._is_trusted = True
        except self._driver.Error as error:
            raise self._meaning(error, reads) from error
        except _NONSENSE as error:
            self.close()
            raise _not_understood(error) from error
        except BaseException:
            self.close()  # interrupted: who knows what it will say next
            raise

    def _meaning(self, error: Exception, reads: bool) -> Exception:
        trouble = self._driver.trouble(error)
        if trouble is Trouble.AGAIN:
            return Again()
        if trouble is Trouble.DUPLICATE:
            return Duplicate()
        if trouble is Trouble.NO_TABLE:
            return NoTable()
        if trouble is Trouble.TOO_LARGE:
            self.close()
            return _too_large()
        if trouble is Trouble.DAMAGED:
            self.close()
            return ProviderUnavailable("the database says that it is damaged")
        self.close()
        if trouble is Trouble.REFUSED:
            state = getattr(error, "sqlstate", None) or type(error).__name__
            return ProviderUnavailable(f"the database refused a statement ({state})")
        if reads and not self._is_trusted and monotonic() < self.give_up:
            return Again()  # it had been closed while it was idle, and nothing was to be written
        return ProviderUnavailable("the database does not answer, or not in time")


#: What a driver raises that comes to grief in an answer, or in a number that does not fit.
_NONSENSE = (ArithmeticError, LookupError, TypeError, ValueError)


def _not_understood(error: Exception) -> ProviderUnavailable:
    return ProviderUnavailable(
        f"the driver does not understand the database ({type(error).__name__})"
    )


def _too_large() -> ProviderError:
    return ProviderError("the session is larger than the database takes")


class Links:
    """At most ``size`` connections; those that are not in use are kept.

    ``connect`` opens a raw one.
    """

    _idle: list[Link]
    _pending: list[_Opening]
    _forking: bool

    def __init__(self, driver: Driver, connect: Callable[[], Any], size: int) -> None:
        self._driver = driver
        self._connect = connect
        self._size = size
        self._closed = False
        self._start_over()
        _pools.add(self)

    def use(self, seconds: float, work: Callable[[Link], T]) -> T:
        """What ``work(link)`` returns; again after a deadlock, if there is time.

        Raises ``ProviderUnavailable`` when the time is up.
        """
        forks.look()
        give_up = monotonic() + seconds
        while self._forking and monotonic() < give_up:
            time.sleep(0.001)
        with self._permits.take(max(give_up - monotonic(), 0)):
            while True:
                link = self._take(give_up)
                try:
                    return work(link)
                except Again as again:
                    if monotonic() >= give_up:
                        raise ProviderUnavailable("the database is too busy") from again
                finally:
                    link.leave()
                    self._put(link)
                time.sleep(uniform(0.0, _PAUSE))  # noqa: S311  (no secret)

    def ping(self, seconds: float) -> None:
        """Whether a connection can be made and answers. Raises ``ProviderUnavailable``."""
        link = self._open(monotonic() + seconds)
        link.rows("SELECT 1")
        self._put(link)

    def count_idle(self) -> int:
        return len(self._idle)

    def close(self) -> None:
        self._closed = True
        self._close_idle()

    def _take(self, give_up: float) -> Link:
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._open(give_up)
            if link.is_usable():
                link.give_up = give_up
                return link

    def _put(self, link: Link) -> None:
        if link.is_open and not self._closed and len(self._idle) < self._size:
            self._idle.append(link)
        elif link.is_open:
            link.close()

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    # -- opening --------------------------------------------------------------------------------

    def _open(self, give_up: float) -> Link:
        if self._closed:
            raise ProviderUnavailable("the provider is closed")
        opening = _Opening(partial(self._make, give_up))
        if self._driver.opens_at_once:
            opening.run()
        else:
            self._open_in_thread(opening, give_up)
        return opening.result(give_up)

    def _open_in_thread(self, opening: _Opening, give_up: float) -> None:
        """Resolving a name, connecting and logging in cannot be given up by who does it."""
        waiting = [other for other in self._pending if not other.done.is_set()]
        if len(waiting) >= self._size:
            raise ProviderUnavailable("the database does not answer")
        self._pending[:] = [*waiting, opening]
        threading.Thread(target=opening.run, name="flask-hybridsession-sql", daemon=True).start()

    def _make(self, give_up: float) -> Link:
        raw = self._connect()
        try:
            return Link(self._driver, raw, give_up)
        except BaseException:
            self._driver.close(raw)
            raise

    # -- forks ----------------------------------------------------------------------------------

    def _start_over(self) -> None:
        self._idle = []
        self._pending = []
        self._held: list[Hold] = []
        self._forking = False
        self._permits = Lock(self._size, busy="all connections to the database are in use")

    def before_fork(self) -> None:
        """SQLite's locks are the process's: a child must not have what its parent has open."""
        if self._driver.opens_at_once:
            self._forking = True  # nobody begins; who has begun ends
            give_up = monotonic() + _BEFORE_FORK
            with suppress(ProviderUnavailable):
                while len(self._held) < self._size:
                    self._held.append(self._permits.take(max(give_up - monotonic(), 0)))
            self._close_idle()

    def after_in_parent(self) -> None:
        give_back(self._held)
        self._forking = False

    def after_in_child(self) -> None:
        # Closing one, or losing the last reference to it, would speak to the parent's server.
        _inherited.extend(self._idle)
        self._start_over()


class _Opening:
    """A connection in the making, which whoever wanted it may have given up."""

    def __init__(self, make: Callable[[], Link]) -> None:
        self._make = make
        self._lock = Lock()
        self._given_up = False
        self._link: Link | None = None
        self._error: BaseException | None = None
        self.done = threading.Event()

    def run(self) -> None:
        try:
            link = self._make()
        except BaseException as error:
            self._error = error
        else:
            with self._lock.take():
                self._link = link
                if self._given_up:
                    link.close()
        finally:
            self.done.set()

    def result(self, give_up: float) -> Link:
        if not self.done.wait(max(give_up - monotonic(), 0)):
            with self._lock.take():
                self._given_up = True
                if self._link is not None:
                    self._link.close()
            raise ProviderUnavailable("the database did not take a connection in time")
        if self._link is None:
            error = self._error
            if isinstance(error, ConfigError | MemoryError):
                raise error
            # Its text may repeat the address or the user's name; its type tells enough.
            raise ProviderUnavailable(
                f"the database cannot be reached ({type(error).__name__})"
            ) from error
        return self._link


_pools: WeakSet[Links] = WeakSet()
_inherited: list[Any] = []


def _before() -> None:
    for pool in list(_pools):
        pool.before_fork()


def _in_parent() -> None:
    for pool in list(_pools):
        pool.after_in_parent()


@forks.in_child
def _in_child() -> None:
    for pool in list(_pools):
        pool.after_in_child()


os.register_at_fork(before=_before, after_in_parent=_in_parent)
