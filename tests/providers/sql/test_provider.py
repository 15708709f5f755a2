"""What the suite does not ask: tables, engines, forks, damage, round trips."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask, session
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.pool import NullPool

from flask_hybridsession import HybridSession
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import (
    ConfigError,
    CorruptData,
    KeyTaken,
    ProviderError,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.providers.sql import SqlProvider, make_tables
from tests.servers import Server, free_port, mariadb_url, postgresql_url

from .databases import BUDGET, emptied, opened

NOW = 1_000_000.0


def key_of(number: int) -> str:
    return sha256(b"%d" % number).hexdigest()


KEY, OTHER = key_of(1), key_of(2)


def create(provider: SqlProvider, key: str = KEY, **change: Any) -> None:
    provider.commit(key, Change(create=True, **{"puts": {"a": b"1"}, **change}), NOW)


def values(provider: SqlProvider, key: str = KEY) -> dict[str, bytes]:
    record = provider.load(key, NOW)
    assert record is not None
    return dict(record.values)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


# Tables


@pytest.fixture
def bare(url: str, engine: Engine) -> Iterator[SqlProvider]:
    """A provider whose tables are not there."""
    provider = SqlProvider(url, budget=BUDGET, table_prefix="bare_")
    provider.metadata.drop_all(engine)
    yield provider
    provider.close()
    provider.metadata.drop_all(engine)


def test_missing_tables_are_told(bare: SqlProvider) -> None:
    for call in (
        lambda: bare.load(KEY, NOW),
        lambda: create(bare),
        lambda: bare.destroy(KEY),
        lambda: bare.purge(NOW, 9),
        bare.next_deadline,
    ):
        with pytest.raises(ConfigError, match="flask sessions init"):
            call()
    assert not bare.breaker.is_open


def test_tables_are_made_by_a_call(bare: SqlProvider) -> None:
    bare.create_tables()
    create(bare)
    bare.create_tables()  # harms nothing
    assert values(bare) == {"a": b"1"}


def test_tables_are_made_by_many_at_once(bare: SqlProvider, url: str) -> None:
    providers = [SqlProvider(url, budget=BUDGET, table_prefix="bare_") for _ in range(4)]
    errors: list[BaseException] = []

    def make(provider: SqlProvider) -> None:
        try:
            with closing(provider):
                provider.create_tables()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(provider,)) for provider in providers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    create(bare)


def test_tables_are_made_from_the_ddl(bare: SqlProvider, engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in bare.ddl().split(";")[:-1]:
            connection.execute(text(statement))
    create(bare, deadline=NOW + 9, user="s:ann")
    assert list(bare.keys_of("s:ann", NOW)) == [KEY]
    with engine.begin() as connection:
        assert differences(connection, bare.metadata) == []


def test_alembic_sees_no_difference(provider: SqlProvider, engine: Engine) -> None:
    with engine.begin() as connection:
        assert differences(connection, provider.metadata) == []
        found = differences(connection, MetaData())
    assert {"remove_table", "remove_index"} == {kind for kind, *_ in found}


def differences(connection: Any, metadata: MetaData) -> list[Any]:
    """What Alembic would change in our tables."""
    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_name": lambda name, kind, parents: kind != "table" or "session" in str(name),
        "target_metadata": metadata,
    }
    context = MigrationContext.configure(connection, opts=options)
    known = {*metadata.tables}
    return [
        entry
        for entry in compare_metadata(context, metadata)
        if not (
            entry[0] in ("remove_table", "remove_index")
            and known
            and (entry[1].name if entry[0] == "remove_table" else entry[1].table.name) not in known
        )
    ]


def test_tables_can_be_described_in_an_apps_metadata(engine: Engine, url: str) -> None:
    metadata = MetaData()
    Table("users", metadata, Column("id", Integer, primary_key=True))
    tables = make_tables(metadata, prefix="app_")
    assert set(metadata.tables) == {"users", "app_sessions", "app_session_locks"}
    metadata.create_all(engine)
    with closing(SqlProvider(url, budget=BUDGET, table_prefix="app_")) as provider:
        create(provider)
    with engine.begin() as connection:
        assert connection.scalar(select(func.count()).select_from(tables.sessions)) == 1
    metadata.drop_all(engine)
    with pytest.raises(ConfigError, match="table_prefix"):
        make_tables(metadata, prefix="app_")


def test_a_schema(postgresql_server: Server) -> None:
    url = postgresql_url(postgresql_server)
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA elsewhere"))
    with closing(SqlProvider(url, budget=BUDGET, schema="elsewhere")) as provider:
        assert "elsewhere.hybrid_sessions" in provider.ddl()
        provider.create_tables()
        create(provider)
        assert provider.count(NOW) == 1
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA elsewhere CASCADE"))


# Engines


def test_making_one_asks_nothing() -> None:
    for scheme in ("postgresql", "mysql", "mariadb", "postgresql+psycopg", "mariadb+pymysql"):
        with closing(SqlProvider(f"{scheme}://a:b@127.0.0.1:{free_port()}/c")) as provider:
            assert "CREATE TABLE" in provider.ddl()
            with pytest.raises(ProviderUnavailable):
                provider.load(KEY, NOW)


@pytest.mark.parametrize(
    ("database", "options", "said"),
    [
        (None, {}, "SESSION_SQLALCHEMY must be"),
        (42, {}, "SESSION_SQLALCHEMY must be"),
        ("no url, but a secret", {}, "SESSION_SQLALCHEMY must be"),
        ("nosuch://secret@host/x", {}, "no driver"),
        ("sqlite://", {}, "memory"),
        ("sqlite:///:memory:", {}, "memory"),
        ("sqlite:///file:x?mode=memory&uri=true", {}, "memory"),
        ("sqlite+aiosqlite:///secret.db", {}, "cannot use|aiosqlite"),
        ("sqlite:///x.db", {"pool_size": 0}, "pool_size"),
        ("sqlite:///x.db", {"pool_size": True}, "pool_size"),
        ("sqlite:///x.db", {"budget": 0}, "budget"),
        ("sqlite:///x.db", {"synchronous": "OFF"}, "synchronous"),
        ("sqlite:///x.db", {"table_prefix": "x; DROP"}, "table_prefix"),
        ("sqlite:///x.db", {"schema": "%"}, "schema"),
        ("sqlite:///x.db", {"bind_key": "other"}, "bind_key"),
    ],
)
def test_what_cannot_work_is_told(database: Any, options: Any, said: str) -> None:
    with pytest.raises((ConfigError, ModuleNotFoundError), match=said) as error:
        SqlProvider(database, **options)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("level", ["SERIALIZABLE", "READ UNCOMMITTED", "AUTOCOMMIT"])
def test_an_engine_of_any_kind(
    provider: SqlProvider, url: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody's changes are lost, whatever its isolation; its own pool stays its own."""
    engine = create_engine(make_url(url), isolation_level=level, pool_size=1, max_overflow=0)
    caplog.set_level(logging.DEBUG)
    with closing(SqlProvider(engine, budget=BUDGET)) as mine, engine.connect() as theirs:
        theirs.execute(text("SELECT 1"))
        create(mine, puts={"secret": b"do not tell"})
        commit_at_once([mine, provider], 20)
        provider.rename(KEY, OTHER, NOW, NOW + 9)
        assert len(values(mine)) == 81
        assert mine.destroy(OTHER)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()
    assert "do not tell" not in caplog.text


def commit_at_once(providers: list[SqlProvider], rounds: int) -> None:
    errors: list[BaseException] = []

    def work(who: int) -> None:
        try:
            for n in range(rounds):
                providers[who % 2].commit(KEY, Change(puts={f"{who}.{n}": b"x"}), NOW)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_engines_listeners_are_heard(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/sessions.db")
    heard: list[Any] = []
    event.listen(engine, "connect", lambda connection, record: heard.append(connection))
    with closing(SqlProvider(engine, budget=BUDGET)) as provider:
        provider.create_tables()
        heard.clear()
        create(provider)
        assert values(provider) == {"a": b"1"}
    assert len(heard) <= 1, "connections are kept"
    engine.dispose()


# Flask-SQLAlchemy


@pytest.fixture
def shop(url: str) -> Iterator[tuple[Flask, Any]]:
    """An app with a table of its own, and sessions in the same database."""
    app = Flask("shop")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SESSION_TYPE="sql")
    db = SQLAlchemy()
    sessions = HybridSession()
    app.config["SESSION_SQLALCHEMY"] = db
    app.config["SESSION_OPTIONS"] = {"table_prefix": "shop_", "budget": BUDGET}
    sessions.init_app(app)
    provider: Any = app.extensions["hybridsession"].provider
    assert provider.next_deadline() is None, "nobody has told it yet where the database is"
    assert provider.purge(NOW, 10) == []
    db.init_app(app)
    orders = Table("orders", db.metadata, Column("id", Integer, primary_key=True))
    with app.app_context():
        db.metadata.drop_all(db.engine)
        db.metadata.create_all(db.engine)
        provider.create_tables()

    @app.get("/order/<int:number>/<end>")
    def order(number: int, end: str) -> str:
        db.session.execute(orders.insert().values(id=number))
        session["order"] = number
        session.commit()  # type: ignore[attr-defined]
        (db.session.commit if end == "commit" else db.session.rollback)()
        return str(db.session.scalar(select(func.count()).select_from(orders)))

    @app.get("/last")
    def last() -> str:
        return str(session.get("order"))

    yield app, db
    with app.app_context():
        sessions.close()
        db.metadata.drop_all(db.engine)
        provider.metadata.drop_all(db.engine)
        db.engine.dispose()


def test_the_apps_transaction_is_its_own(shop: tuple[Flask, Any], url: str) -> None:
    app, _ = shop
    if url.startswith("sqlite"):
        pytest.skip("the file has one writer: the app's open transaction keeps all others waiting")
    client = app.test_client()
    assert client.get("/order/1/rollback").text == "0"
    assert client.get("/last").text == "1"
    assert client.get("/order/2/commit").text == "1"
    assert client.get("/last").text == "2"


MARK = b"the values of a session that has ended"


@pytest.mark.parametrize("how", ["destroyed", "expired"])
def test_sqlite_keeps_nothing_of_what_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/sessions.db")

    @event.listens_for(engine, "connect")
    def as_it_is_elsewhere(raw: Any, _: Any) -> None:
        raw.execute("PRAGMA secure_delete = OFF")  # Debian's SQLite has it on

    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir() if MARK in path.read_bytes())

    provider = SqlProvider(engine, budget=BUDGET)
    provider.create_tables()
    create(provider, puts={"a": MARK}, deadline=NOW + 10)
    create(provider, OTHER, puts={"a": b"2"}, deadline=NOW + 100)
    provider.purge(NOW, 10)
    provider.commit(KEY, Change({"a": MARK * 200}), NOW)
    provider.commit(KEY, Change({"a": MARK}), NOW)
    assert "sessions.db" in files(), "it was brought there"
    if how == "destroyed":
        provider.destroy(KEY)
        assert provider.purge(NOW, 10) == []
    else:
        assert [record.key for record in provider.purge(NOW + 11, 10)] == [KEY]
    assert files(), "until the next wiping"
    soon = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: soon)
    provider.purge(NOW, 10)
    assert files() == []
    assert provider.exists(OTHER, NOW)
    provider.close()


def test_sqlite_waits_with_it_for_who_reads(tmp_path: Path) -> None:
    provider = emptied(f"sqlite:///{tmp_path}/sessions.db")
    create(provider, puts={"a": MARK}, deadline=NOW + 10)
    with closing(sqlite3.connect(tmp_path / "sessions.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM hybrid_sessions").fetchone()
        provider.destroy(KEY)
        began = time.monotonic()
        provider.purge(NOW, 10)
        assert time.monotonic() - began < 5
    assert (tmp_path / "sessions.db-wal").stat().st_size
    provider._wiped = float("-inf")
    provider.purge(NOW, 10)
    assert (tmp_path / "sessions.db-wal").stat().st_size == 0
    provider.close()


@pytest.mark.parametrize(
    "address", ["{path}", "file:{path}?uri=true", "file:{path}?uri=true&mode=rwc"]
)
def test_the_file_of_sqlite_is_its_users_alone(tmp_path: Path, address: str) -> None:
    provider = SqlProvider(f"sqlite:///{address.format(path=tmp_path / 'a b.db')}", budget=BUDGET)
    before = os.umask(0o022)
    try:
        provider.create_tables()
        create(provider)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["a b.db", "a b.db-wal", "a b.db-shm"], 0o600)
    provider.close()


def test_a_file_of_sqlite_that_is_there_is_left_and_judged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sessions.db"
    path.touch()
    path.chmod(0o644)
    provider = emptied(f"sqlite:///{path}")
    create(provider)
    provider._ready().links._close_idle()
    provider.destroy(KEY)
    assert path.stat().st_mode & 0o777 == 0o644
    said = [record.message for record in caplog.records]
    assert said == [f"others may open the sessions in {path}: chmod 600 {path}"]
    provider.close()


def test_on_sqlite_the_apps_writes_come_after_the_sessions(tmp_path: Path) -> None:
    """Where only one can write, a request that keeps a transaction open keeps itself waiting."""
    app = Flask("shop")
    db = SQLAlchemy()
    url = f"sqlite:///{tmp_path}/sessions.db"
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SESSION_TYPE="sql", SESSION_SQLALCHEMY=db)
    sessions = HybridSession(app)
    db.init_app(app)
    with app.app_context():
        db.session.execute(text("CREATE TABLE orders (id INTEGER)"))
        db.session.commit()
        sessions.provider.create_tables()  # type: ignore[attr-defined]

    @app.get("/")
    def index() -> str:
        db.session.execute(text("INSERT INTO orders VALUES (1)"))
        session["order"] = 1
        db.session.rollback()
        return str(db.session.scalar(text("SELECT count(*) FROM orders")))

    client = app.test_client()
    assert client.get("/").text == "0"
    with client.session_transaction() as stored:
        assert stored["order"] == 1
    with app.app_context():
        sessions.close()
        db.engine.dispose()


def test_a_bind_key(tmp_path: Path) -> None:
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    app.config["SQLALCHEMY_BINDS"] = {"sessions": f"sqlite:///{tmp_path}/sessions.db"}
    db = SQLAlchemy(app)
    provider = SqlProvider(db, bind_key="sessions")
    wrong = SqlProvider(db, bind_key="nosuch")
    with app.app_context():
        provider.create_tables()
        with pytest.raises(ConfigError, match="nosuch"):
            wrong.create_tables()
    create(provider)  # also outside the app, from now on
    assert values(provider) == {"a": b"1"}
    provider.close()
    wrong.close()
    assert not (tmp_path / "app.db").exists()
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_init_on_the_command_line(shop: tuple[Flask, Any], url: str) -> None:
    app, db = shop
    with app.app_context():
        provider: Any = app.extensions["hybridsession"].provider
        provider.metadata.drop_all(db.engine)
    runner = app.test_cli_runner()
    printed = runner.invoke(args=["sessions", "init", "--print"])
    assert printed.exit_code == 0
    assert "CREATE TABLE shop_sessions" in printed.output
    with pytest.raises(ConfigError, match="flask sessions init"):
        provider.load(KEY, NOW)
    assert runner.invoke(args=["sessions", "init"]).exit_code == 0
    assert runner.invoke(args=["sessions", "init"]).exit_code == 0
    assert provider.load(KEY, NOW) is None


def test_init_is_for_providers_with_tables() -> None:
    app = Flask("memory")
    app.config["SESSION_TYPE"] = "memory"
    HybridSession(app)
    result = app.test_cli_runner().invoke(args=["sessions", "init"])
    assert result.exit_code == 2
    assert "MemoryProvider" in result.output


# Round trips


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[tuple[SqlProvider, list[str]]]:
    """A provider, and the statements that the database was given."""
    engine = create_engine(f"sqlite:///{tmp_path}/sessions.db")
    statements: list[str] = []
    event.listen(engine, "connect", lambda raw, record: raw.set_trace_callback(statements.append))
    with closing(SqlProvider(engine, budget=BUDGET)) as provider:
        provider.create_tables()
        provider.load(KEY, NOW)
        statements.clear()
        yield provider, statements
    engine.dispose()


def test_how_many_round_trips(counted: tuple[SqlProvider, list[str]]) -> None:
    provider, statements = counted

    def count(call: Callable[[], object]) -> int:
        statements.clear()
        call()
        return len(statements)

    assert count(lambda: create(provider)) == 1
    assert count(lambda: provider.load(KEY, NOW)) == 1
    change = Change(puts={"a": b"2"})
    assert count(lambda: provider.commit(KEY, change, NOW)) == 1, "it was just read"
    assert count(lambda: provider.commit(KEY, change._replace(puts={"b": b"3"}), NOW)) == 1
    provider.load(OTHER, NOW)
    assert count(lambda: provider.commit(KEY, change._replace(puts={"a": b"4"}), NOW)) == 2
    provider.load(OTHER, NOW)
    assert count(lambda: provider.commit(KEY, Change(), NOW)) == 1, "nothing is different"
    provider.rename(KEY, OTHER, NOW, NOW + 9)
    assert count(lambda: provider.load(KEY, NOW)) == 2, "through an alias"


def test_a_round_trip_is_one_question_to_the_server(mariadb_server: Server) -> None:
    url = mariadb_url(mariadb_server)
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with closing(emptied(url)) as provider, engine.connect() as watcher:

        def asked() -> int:
            row = watcher.execute(text("SHOW GLOBAL STATUS LIKE 'Questions'")).one()
            return int(row[1])

        create(provider)
        before = asked()
        for _ in range(10):
            provider.load(KEY, NOW)
        between = asked()
        for n in range(10):
            provider.load(KEY, NOW)
            provider.commit(KEY, Change(puts={"a": b"%d" % n}), NOW)
        after = asked()
    watching = 1
    assert between - before == 10 + watching
    assert after - between == 20 + watching
    engine.dispose()


def test_what_a_thread_remembers_is_checked(provider: SqlProvider, url: str) -> None:
    """A commit right after a read is for what was read, or reads again."""
    create(provider)
    with closing(opened(url)) as other:
        provider.load(KEY, NOW)
        other.commit(KEY, Change(puts={"b": b"2"}), NOW)
        provider.commit(KEY, Change(puts={"c": b"3"}), NOW)
        assert values(provider) == {"a": b"1", "b": b"2", "c": b"3"}
        provider.load(KEY, NOW)
        other.destroy(KEY)
        create(other, puts={"later": b"1"})
        provider.commit(KEY, Change(puts={"d": b"4"}), NOW)
        assert values(provider) == {"later": b"1", "d": b"4"}
        provider.load(KEY, NOW)
        other.destroy(KEY)
        for change in (Change(puts={"e": b"5"}), Change(), Change(expects={"d": b"4"})):
            with pytest.raises(SessionGone):
                provider.commit(KEY, change, NOW)


# Data


def test_large_sessions(provider: SqlProvider) -> None:
    value = bytes(range(256)) * 20_000  # 5 MB
    create(provider)
    provider.commit(KEY, Change(puts={"large": value}), NOW)
    provider.commit(KEY, Change(deadline=NOW + 9), NOW)
    assert values(provider) == {"a": b"1", "large": value}


def test_what_is_too_large_is_told(mariadb_server: Server) -> None:
    with closing(emptied(mariadb_url(mariadb_server))) as provider:
        create(provider)
        change = Change(puts={"large": b"'" * 10_000_000})
        for _ in range(2):
            with pytest.raises(ProviderError, match="larger than"):
                provider.commit(KEY, change, NOW)
        with pytest.raises(ProviderError, match="larger than"):
            provider.commit(OTHER, change._replace(create=True), NOW)
        assert values(provider) == {"a": b"1"}
        assert not provider.breaker.is_open


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "pickle"])
def test_damage_is_told(provider: SqlProvider, engine: Engine, damage: str) -> None:
    table = provider.metadata.tables["hybrid_sessions"]
    create(provider, deadline=NOW + 5)
    create(provider, OTHER, deadline=NOW + 6)
    with engine.begin() as connection:
        mine = table.c.session_key == bytes.fromhex(KEY)
        data = bytes(connection.scalar(select(table.c.data).where(mine)))
        bad = {
            "flip": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[:-1],
            "empty": b"",
            "pickle": b"\x80\x04N.",
        }[damage]
        connection.execute(table.update().where(mine).values(data=bad))
    for call in (
        lambda: provider.load(KEY, NOW),
        lambda: provider.commit(KEY, Change(puts={"a": b"2"}), NOW),
    ):
        with pytest.raises(CorruptData, match=KEY[:12]) as error:
            call()
        assert KEY not in str(error.value)
    with pytest.raises(KeyTaken):
        create(provider)
    assert values(provider, OTHER) == {"a": b"1"}
    gone = sorted(provider.purge(NOW + 9, 10))
    assert [record.key for record in gone] == [KEY, OTHER]
    assert gone[0] == Record(KEY, {}, NOW, NOW, NOW + 5)
    create(provider)


def test_a_damaged_session_can_be_destroyed(provider: SqlProvider, engine: Engine) -> None:
    create(provider)
    with engine.begin() as connection:
        connection.execute(provider.metadata.tables["hybrid_sessions"].update().values(data=b"?"))
    assert provider.exists(KEY, NOW)
    assert provider.destroy(KEY) is True


# Locks


def test_leases_of_the_dead_are_swept(provider: SqlProvider, engine: Engine) -> None:
    left = provider.lock(KEY, 0, -1.0)
    left.__enter__()
    provider.purge(NOW, 1)
    with engine.begin() as connection:
        locks = provider.metadata.tables["hybrid_session_locks"]
        assert connection.scalar(select(func.count()).select_from(locks)) == 0


# Forks


def test_a_fork_connects_for_itself(provider: SqlProvider) -> None:
    create(provider)
    for n in range(3):
        values(provider)
        pipe, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=answer_in_child, args=(provider, f"child {n}", theirs)
        )
        child.start()
        provider.commit(KEY, Change(puts={f"parent {n}": b"1"}), NOW)
        assert pipe.poll(30)
        assert pipe.recv() == "done"
        child.join(30)
        assert child.exitcode == 0
        provider.commit(KEY, Change(puts={f"after {n}": b"1"}), NOW)
    names = {f"{who} {n}" for who in ("parent", "child", "after") for n in range(3)}
    assert set(values(provider)) == {"a", *names}


def answer_in_child(provider: SqlProvider, name: str, pipe: Any) -> None:
    try:
        provider.commit(KEY, Change(puts={name: b"1"}), NOW)
        provider.close()
        pipe.send("done")
    except BaseException as error:
        pipe.send(repr(error))


def test_a_fork_beside_threads_at_work(provider: SqlProvider) -> None:
    create(provider)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            provider.commit(KEY, Change(puts={"a": b"%f" % time.monotonic()}), NOW)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for n in range(4):
            pipe, theirs = multiprocessing.Pipe()
            child = multiprocessing.get_context("fork").Process(
                target=answer_in_child, args=(provider, f"child {n}", theirs)
            )
            child.start()
            assert pipe.poll(30)
            assert pipe.recv() == "done"
            child.join(30)
            assert child.exitcode == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(values(provider)) == {"a", *(f"child {n}" for n in range(4))}
