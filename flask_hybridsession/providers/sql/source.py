"""Where the database is: ``SESSION_SQLALCHEMY`` -> an engine, which opens connections for us."""

from __future__ import annotations

from math import ceil
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool, Pool

from ...core.errors import ConfigError

#: What a URL without a driver means here.
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_KNOWN = {("sqlite", "pysqlite"), ("postgresql", "psycopg"), ("mysql", "pymysql")}
_KNOWN.add(("mariadb", "pymysql"))

_WRONG = (
    "SESSION_SQLALCHEMY must be a database URL, such as "
    '"postgresql+psycopg://user:password@host/name", a SQLAlchemy Engine, '
    "or the SQLAlchemy object of Flask-SQLAlchemy."
)


class Source:
    """An engine, now or as soon as there is an app to ask for it.

    Of an engine only the way to connect is used: we have connections of our own, never one that a
    transaction of the app is on.
    """

    def __init__(self, given: Any, bind_key: str | None, budget: float) -> None:
        self._extension: Any = None
        self._bind_key = bind_key
        self._engine: Engine | None = None
        if isinstance(given, str | URL):
            self._engine = checked(_make(given, budget))
        elif isinstance(given, Engine):
            self._engine = checked(given)
        elif hasattr(type(given), "engines"):  # of the object itself it cannot be asked yet
            self._extension = given
        else:
            raise ConfigError(_WRONG)
        if bind_key is not None and self._extension is None:
            raise ConfigError("bind_key is for Flask-SQLAlchemy: leave it out with an engine.")

    @property
    def is_known(self) -> bool:
        """Whether there is an engine by now. Flask-SQLAlchemy tells it only within an app."""
        if self._engine is None:
            try:
                self.engine()
            except RuntimeError:
                return False
        return True

    def engine(self) -> Engine:
        """Raises ``ConfigError``; and ``RuntimeError`` outside an app that has not told it yet."""
        if self._engine is None:
            engines = self._extension.engines
            if self._bind_key not in engines:
                raise ConfigError(f"Flask-SQLAlchemy has no bind {self._bind_key!r}.")
            self._engine = checked(engines[self._bind_key])
        return self._engine


def checked(engine: Engine) -> Engine:
    """The engine, if we can work with its database and driver."""
    dialect = engine.dialect
    if dialect.is_async or (dialect.name, dialect.driver) not in _KNOWN:
        raise ConfigError(
            f"SESSION_SQLALCHEMY cannot use {dialect.name}+{dialect.driver}: write "
            "sqlite, postgresql+psycopg, mysql+pymysql or mariadb+pymysql."
        )
    if dialect.name == "sqlite" and _is_in_memory(engine.url):
        raise ConfigError(
            "SESSION_SQLALCHEMY names a SQLite database in memory, which each connection has for "
            'itself: name a file, or write SESSION_TYPE = "memory".'
        )
    return engine


def connections(engine: Engine) -> Pool:
    """What opens connections as the engine does, with its listeners, and shares none with it."""
    return engine.pool.recreate()


def _is_in_memory(url: URL) -> bool:
    file = url.database or ""
    return file in ("", ":memory:") or ":memory:" in file or url.query.get("mode") == "memory"


def _make(given: str | URL, budget: float) -> Engine:
    try:
        url = make_url(given)
    except ArgumentError:  # its text repeats the URL, and so the password
        raise ConfigError(_WRONG) from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    try:
        return create_engine(
            url, poolclass=NullPool, hide_parameters=True, connect_args=_limits(url, budget)
        )
    except NoSuchModuleError:
        raise ConfigError(f"SESSION_SQLALCHEMY: there is no driver {url.drivername!r}.") from None


def _limits(url: URL, budget: float) -> dict[str, Any]:
    """So that a thread that waits for a connection ends some time after nobody waits for it."""
    seconds = ceil(max(2.0, budget))
    names: tuple[str, ...] = ()
    if url.drivername.endswith("+psycopg"):
        names = ("connect_timeout",)
    elif url.drivername.endswith("+pymysql"):
        names = ("connect_timeout", "read_timeout", "write_timeout")
    return {name: seconds for name in names if name not in url.query}
