"""Tables that are changed, dropped or filled by others while an app runs: no error but ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from typing import Any

import pytest
from flask import Flask, session
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from flask_hybridsession import HybridSession
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import (
    ConfigError,
    CorruptData,
    KeyTaken,
    ProviderError,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.providers.sql import SqlProvider

from .databases import BUDGET

NOW = 1_000_000.0
PREFIX = "odd_"
TABLE = f"{PREFIX}sessions"


def key_of(name: str) -> str:
    return sha256(name.encode()).hexdigest()


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def odd(url: str, engine: Engine) -> Iterator[SqlProvider]:
    """A provider with tables of its own, and two sessions of one user."""
    with closing(SqlProvider(url, budget=BUDGET, table_prefix=PREFIX)) as provider:
        drop(provider, engine)
        provider.create_tables()
        fill(provider)
        yield provider
        drop(provider, engine)


def drop(provider: SqlProvider, engine: Engine) -> None:
    run(engine, "DROP TABLE IF EXISTS odd_elsewhere")
    provider.metadata.drop_all(engine)


def fill(provider: SqlProvider) -> None:
    for name in ("one", "two"):
        change = Change({"a": b"1"}, create=True, user="s:ann", deadline=NOW + 1000)
        provider.commit(key_of(name), change, NOW)


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


CALLS: dict[str, Callable[[SqlProvider], object]] = {
    "load": lambda provider: provider.load(key_of("one"), NOW),
    "exists": lambda provider: provider.exists(key_of("one"), NOW),
    "commit": lambda provider: provider.commit(key_of("one"), Change({"a": b"2"}), NOW),
    "create": lambda provider: provider.commit(key_of("new"), Change(create=True), NOW),
    "rename": lambda provider: provider.rename(key_of("one"), key_of("n"), NOW, NOW + 9),
    "keys_of": lambda provider: provider.keys_of("s:ann", NOW),
    "keys": lambda provider: list(provider.keys(NOW)),
    "count": lambda provider: provider.count(NOW),
    "next_deadline": lambda provider: provider.next_deadline(),
    "purge": lambda provider: provider.purge(NOW + 2000, 9),
    "lock": lambda provider: _lock(provider),
    "destroy": lambda provider: provider.destroy(key_of("one")),
}


def _lock(provider: SqlProvider) -> None:
    with provider.lock(key_of("one"), 0.0, 1.0):
        pass


GONE = {
    "dropped": (f"DROP TABLE {TABLE}", f"DROP TABLE {PREFIX}session_locks"),
    "renamed": (f"ALTER TABLE {TABLE} RENAME TO odd_elsewhere",),
    "without a column": (f"ALTER TABLE {TABLE} RENAME COLUMN data TO elsewhere",),
}


@pytest.mark.parametrize("how", GONE)
def test_tables_that_go_are_an_outage(odd: SqlProvider, engine: Engine, how: str) -> None:
    odd.load(key_of("one"), NOW)
    run(engine, *GONE[how])
    told = []
    for call in CALLS.values():
        try:
            call(odd)
        except ProviderUnavailable as error:
            told.append(error)
    assert len(told) >= (4 if how == "without a column" else 11)
    assert all(isinstance(error, ConfigError) for error in told)
    assert all("flask sessions init" in str(error) for error in told)
    assert not odd.breaker.is_open
    drop(odd, engine)
    odd.create_tables()
    fill(odd)
    assert odd.load(key_of("one"), NOW) is not None


def test_a_visitor_gets_a_503(url: str, engine: Engine) -> None:
    app = Flask("shop")
    app.config.update(
        SESSION_TYPE="sql",
        SESSION_SQLALCHEMY=url,
        SESSION_OPTIONS={"budget": BUDGET, "table_prefix": PREFIX},
    )
    sessions = HybridSession(app)
    provider: Any = sessions.provider

    @app.get("/")
    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    provider.create_tables()
    browser = app.test_client()
    assert browser.get("/").text == "1"
    drop(provider, engine)
    for visitor in (browser, app.test_client()):
        answer = visitor.get("/")
        assert answer.status_code == 503
        assert "Set-Cookie" not in answer.headers
    printed = app.test_cli_runner().invoke(args=["sessions", "purge"])
    assert printed.exit_code == 2
    assert 'run "flask sessions init"' in printed.output
    assert app.test_cli_runner().invoke(args=["sessions", "init"]).exit_code == 0
    assert browser.get("/").text == "1"
    drop(provider, engine)
    sessions.close()


ALTERED = {
    "sqlite": {
        "not null": f"ALTER TABLE {TABLE} RENAME TO odd_elsewhere; CREATE TABLE {TABLE} "
        "(session_key, alias_of, version, created, touched, deadline, user_hash, data, more "
        "NOT NULL)",
        "view": f"ALTER TABLE {TABLE} RENAME TO odd_elsewhere; "
        f"CREATE VIEW {TABLE} AS SELECT * FROM odd_elsewhere LIMIT 1",
    },
    "postgresql": {
        "text": f"ALTER TABLE {TABLE} ALTER data TYPE text USING encode(data, 'base64')",
        "key": f"ALTER TABLE {TABLE} ALTER session_key TYPE text USING 'x' || version",
        "deadline": f"ALTER TABLE {TABLE} ALTER deadline TYPE text USING deadline::text",
        "created": f"ALTER TABLE {TABLE} ALTER created TYPE numeric",
        "version": f"ALTER TABLE {TABLE} ALTER version TYPE text USING 'x'",
        "touched": f"ALTER TABLE {TABLE} ALTER touched TYPE timestamptz USING 'infinity'",
        "not null": f"ALTER TABLE {TABLE} ADD COLUMN more text NOT NULL DEFAULT 'x' "
        "CHECK (more = 'x' OR more = '')",
        "view": f"ALTER TABLE {TABLE} RENAME TO odd_elsewhere; "
        f"CREATE VIEW {TABLE} AS SELECT * FROM odd_elsewhere LIMIT 1",
    },
    "mariadb": {
        "text": f"ALTER TABLE {TABLE} MODIFY data LONGTEXT CHARACTER SET latin1",
        "deadline": f"ALTER TABLE {TABLE} MODIFY deadline VARCHAR(40)",
        "created": f"ALTER TABLE {TABLE} MODIFY created DECIMAL(20, 3)",
        "version": f"ALTER TABLE {TABLE} MODIFY version VARCHAR(40)",
        "touched": f"ALTER TABLE {TABLE} MODIFY touched VARCHAR(40)",
        "not null": f"ALTER TABLE {TABLE} ADD COLUMN more INT NOT NULL",
    },
}


def test_columns_of_other_types(odd: SqlProvider, engine: Engine, url: str) -> None:
    """Whatever it is, it is right, damaged or an outage."""
    for how, statement in ALTERED[engine.dialect.name if "maria" not in url else "mariadb"].items():
        for call in CALLS.values():  # psycopg prepares what comes often
            with suppress(ProviderError):
                call(odd)
        odd.destroy(key_of("one"))
        odd.destroy(key_of("two"))
        odd.destroy(key_of("n"))
        fill(odd)
        run(engine, *statement.split("; "))
        for call in CALLS.values():
            with suppress(ProviderUnavailable, CorruptData, KeyTaken, SessionGone):
                call(odd)
        if how == "view":
            run(engine, f"DROP VIEW {TABLE}")
        drop(odd, engine)
        odd.create_tables()
        fill(odd)
        for _ in range(9):  # the breaker may have opened, or a connection may be of before
            with suppress(ProviderError):
                odd.load(key_of("one"), NOW)


GARBAGE = {
    "version": ("'x'", "x'00'", "1.5", "9223372036854775807"),
    "created": ("'x'", "x'00'", "1e999", "-1e999"),
    "touched": ("'x'", "x'ff'", "1e999"),
    "deadline": ("'x'", "x'ff'"),
    "data": ("''", "'hs1'", "5", "1e9", "1000000000000", "cast(x'ff' as text)", "x'ff'"),
    "alias_of": ("'x'", "5", "x''", "cast(x'ff' as text)"),
    "user_hash": ("'x'", "5"),
}


@pytest.mark.parametrize("column", GARBAGE)
def test_rows_of_garbage(tmp_path: Any, column: str) -> None:
    """SQLite keeps anything anywhere."""
    url = f"sqlite:///{tmp_path}/sessions.db"
    engine = create_engine(url, poolclass=NullPool)
    key = bytes.fromhex(key_of("one"))
    with closing(SqlProvider(url, budget=BUDGET, synchronous="NORMAL")) as provider:
        provider.create_tables()
        for garbage in GARBAGE[column]:
            for call in CALLS.values():
                provider.destroy(key_of("one"))
                provider.destroy(key_of("two"))
                provider.destroy(key_of("n"))
                run(engine, "DELETE FROM hybrid_sessions")
                fill(provider)
                row = f"WHERE session_key = x'{key.hex()}'"
                run(engine, f"UPDATE hybrid_sessions SET {column} = {garbage} {row}")
                with suppress(ProviderError):
                    call(provider)
                provider.purge(NOW + 5000, 9)
    engine.dispose()


@pytest.mark.parametrize("column", ["version", "created", "touched", "deadline", "data"])
def test_a_row_of_garbage_is_a_damaged_session(tmp_path: Any, column: str) -> None:
    url = f"sqlite:///{tmp_path}/sessions.db"
    engine = create_engine(url, poolclass=NullPool)
    with closing(SqlProvider(url, budget=BUDGET, synchronous="NORMAL")) as provider:
        provider.create_tables()
        fill(provider)
        row = f"WHERE session_key = x'{key_of('one')}'"
        run(engine, f"UPDATE hybrid_sessions SET {column} = 'x' {row}")
        for call in ("load", "commit"):
            with pytest.raises(CorruptData):
                CALLS[call](provider)
        assert provider.load(key_of("two"), NOW) is not None
        assert provider.keys_of("s:ann", NOW)
        assert provider.destroy(key_of("one"))
    engine.dispose()
