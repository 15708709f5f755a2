"""A server that is frozen, killed, restarted, or that closes connections; a file that is locked."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from flask_hybridsession.core.breaker import begin_budget, end_budget
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.providers.sql import SqlProvider
from tests.servers import MARIADB, POSTGRESQL, Server, mariadb_url, postgresql_url, running

from .databases import emptied

NOW = 1_000_000.0
KEY = sha256(b"key").hexdigest()
#: Seconds. What is bounded takes a quarter of one, on a machine that has time for it.
SOON = 5.0
LONG = 60.0


class Database:
    """A server of this file's own."""

    def __init__(self, server: Server, url: str, others: str, end: str) -> None:
        self.server = server
        self.url = url
        self._others = text(others)
        self._end = end

    def close_connections(self) -> None:
        """All that there are, as a server does it whose patience is over."""
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        give_up = time.monotonic() + LONG
        with engine.connect() as connection:
            for other in connection.scalars(self._others).all():
                connection.execute(text(f"{self._end.format(other)}"))
            while connection.scalars(self._others).all():
                assert time.monotonic() < give_up
                time.sleep(0.01)
        engine.dispose()


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "postgresql":
        with running(POSTGRESQL) as server:
            yield Database(
                server,
                postgresql_url(server),
                "SELECT pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                "SELECT pg_terminate_backend({})",
            )
    else:
        with running(MARIADB) as server:
            yield Database(
                server,
                mariadb_url(server),
                "SELECT ID FROM information_schema.PROCESSLIST "
                "WHERE USER = 'sessions' AND ID <> CONNECTION_ID()",
                "KILL {}",
            )


@pytest.fixture
def provider(database: Database) -> Iterator[SqlProvider]:
    """One with the budget of every day, and a session."""
    emptied(database.url).close()
    with closing(SqlProvider(database.url, budget=1.0)) as provider:
        provider.commit(KEY, Change(create=True, puts={"n": b"0"}), NOW)
        yield provider


def put(provider: SqlProvider, value: bytes) -> None:
    provider.commit(KEY, Change(puts={"n": value}), NOW)


def value(provider: SqlProvider) -> bytes:
    record = provider.load(KEY, NOW)
    assert record is not None
    return record.values["n"]


def assert_unavailable_soon(call: Callable[[], object]) -> None:
    start = time.monotonic()
    with pytest.raises(ProviderUnavailable) as error:
        call()
    assert time.monotonic() - start < SOON
    assert KEY not in str(error.value)


def wait_until_it_answers(call: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + LONG
    while True:
        try:
            return call()
        except ProviderUnavailable:
            assert time.monotonic() < give_up, "it does not come back"
            time.sleep(0.02)


def test_frozen(database: Database, provider: SqlProvider) -> None:
    assert value(provider) == b"0"
    database.server.freeze()
    try:
        for n in range(5):  # on the connection that it has, and on new ones
            assert not provider.breaker.is_open
            assert_unavailable_soon(
                (lambda: value(provider)) if n % 2 else lambda: put(provider, b"1")
            )
        assert provider.breaker.is_open
        start = time.monotonic()
        for _ in range(100):
            with pytest.raises(ProviderUnavailable):
                value(provider)
        assert time.monotonic() - start < SOON
    finally:
        database.server.thaw()
    before = wait_until_it_answers(lambda: value(provider))
    assert before in (b"0", b"1"), "whether the first one was done nobody could tell"
    wait_until_it_answers(lambda: put(provider, b"2"))
    assert wait_until_it_answers(lambda: value(provider)) == b"2"


def test_frozen_before_the_first_connection(database: Database, provider: SqlProvider) -> None:
    with closing(SqlProvider(database.url)) as late:
        database.server.freeze()
        try:
            assert_unavailable_soon(lambda: value(late))
            begin_budget(0.1)
            assert_unavailable_soon(lambda: value(late))
        finally:
            end_budget()
            database.server.thaw()
        assert wait_until_it_answers(lambda: value(late)) == b"0"


def test_many_threads_at_a_frozen_server(database: Database, provider: SqlProvider) -> None:
    """Each gets its answer in time, and few wait for connections that do not come."""
    before = threading.active_count()
    waited: list[float] = []

    def call() -> None:
        start = time.monotonic()
        with pytest.raises(ProviderUnavailable):
            value(provider)
        waited.append(time.monotonic() - start)

    database.server.freeze()
    try:
        threads = [threading.Thread(target=call) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert len(waited) == 30
        assert max(waited) < SOON
        assert threading.active_count() - before <= 8 + 1  # connecting, and the probe
    finally:
        database.server.thaw()
    assert wait_until_it_answers(lambda: value(provider)) == b"0"


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_restarted(database: Database, provider: SqlProvider, how: str) -> None:
    put(provider, b"1")
    getattr(database.server, how)()
    for _ in range(3):
        assert_unavailable_soon(lambda: value(provider))
        assert_unavailable_soon(lambda: put(provider, b"2"))
    database.server.start()
    assert wait_until_it_answers(lambda: value(provider)) == b"1"
    wait_until_it_answers(lambda: put(provider, b"3"))
    assert wait_until_it_answers(lambda: value(provider)) == b"3"


def test_connections_that_the_server_has_closed(database: Database, provider: SqlProvider) -> None:
    """Nobody notices: neither who reads nor who writes."""
    put(provider, b"1")
    database.close_connections()
    assert value(provider) == b"1"
    database.close_connections()
    put(provider, b"2")
    database.close_connections()
    assert provider.exists(KEY, NOW)
    assert provider.destroy(KEY) is True


def test_a_row_that_another_keeps_locked(database: Database, provider: SqlProvider) -> None:
    """Whoever waits in vain gets an answer in time, and overwrites nothing later."""
    engine = create_engine(database.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("UPDATE hybrid_sessions SET touched = touched"))
        assert value(provider) == b"0", "who only reads does not wait"
        assert_unavailable_soon(lambda: put(provider, b"1"))
        assert provider.purge(NOW, 10) == []
    engine.dispose()
    wait_until_it_answers(lambda: put(provider, b"2"))
    assert value(provider) == b"2"


def test_reads_go_on_beside_a_frozen_writer(database: Database, provider: SqlProvider) -> None:
    """A worker that stops in the middle of a call holds no lock."""
    script = textwrap.dedent(f"""
        import os, signal
        from flask_hybridsession.core.change import Change
        from flask_hybridsession.providers.sql import SqlProvider
        provider = SqlProvider({database.url!r}, budget=10.0)
        print("ready", flush=True)
        for n in range(10**9):
            provider.commit({KEY!r}, Change(puts={{"worker": b"%d" % n}}), {NOW})
    """)
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        wait_until_it_answers(lambda: worker_has_written(provider))
        worker.send_signal(signal.SIGSTOP)
        for n in range(20):
            wait_until_it_answers(lambda n=n: put(provider, b"%d" % n))
        assert wait_until_it_answers(lambda: value(provider)) == b"19"
    finally:
        worker.kill()
        worker.communicate()


def worker_has_written(provider: SqlProvider) -> None:
    record = provider.load(KEY, NOW)
    assert record is not None
    if "worker" not in record.values:
        raise ProviderUnavailable("not yet")


# SQLite


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
def on_file(file: Path) -> Iterator[SqlProvider]:
    with closing(SqlProvider(f"sqlite:///{file}")) as provider:
        provider.create_tables()
        provider.commit(KEY, Change(create=True, puts={"n": b"0"}), NOW)
        yield provider


def test_a_locked_file(file: Path, on_file: SqlProvider) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert value(on_file) == b"0", "who only reads does not wait"
        assert_unavailable_soon(lambda: put(on_file, b"1"))
        assert_unavailable_soon(lambda: on_file.destroy(KEY))
        other.rollback()
    assert value(on_file) == b"0"
    put(on_file, b"2")
    assert value(on_file) == b"2"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "rubbish"
    path.write_bytes(b"rubbish" * 1000)
    with closing(SqlProvider(f"sqlite:///{path}")) as provider:
        for _ in range(2):
            with pytest.raises(Exception, match=r"damaged|cannot be reached"):
                provider.load(KEY, NOW)


def test_a_file_in_no_folder(tmp_path: Path) -> None:
    with closing(SqlProvider(f"sqlite:///{tmp_path}/nowhere/x.db")) as provider:
        assert_unavailable_soon(lambda: provider.load(KEY, NOW))


# After the end


def test_closed(on_file: SqlProvider) -> None:
    on_file.close()
    on_file.close()
    with pytest.raises(ProviderUnavailable, match="closed"):
        on_file.load(KEY, NOW)


# gevent and eventlet

PATCHES = {
    "gevent": """
import gevent
from gevent import monkey
monkey.patch_all()
def spread(work):
    gevent.joinall([gevent.spawn(work, who) for who in range(10)], raise_error=True)
""",
    "eventlet": """
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of eventlet itself
    import eventlet
    eventlet.monkey_patch()
def spread(work):
    for thread in [eventlet.spawn(work, who) for who in range(10)]:
        thread.wait()
""",
}
GREENLETS = """
import sys
from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.sql import SqlProvider
provider = SqlProvider(sys.argv[1], budget=30.0, pool_size=4)
key, now = sys.argv[2], 1_000_000.0
running = most = 0
def work(who):
    global running, most
    for n in range(10):
        running += 1
        most = max(most, running)
        provider.commit(key, Change(puts={f"{who}.{n}": b"1"}), now)
        running -= 1
spread(work)
print(len(provider.load(key, now).values), most)
provider.close()
"""


@pytest.mark.parametrize("kind", PATCHES)
def test_greenlets(database: Database, provider: SqlProvider, kind: str) -> None:
    """While one waits for the database, others go on; with eventlet without ``poll``."""
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    done = subprocess.run(
        [sys.executable, "-c", PATCHES[kind] + GREENLETS, database.url, KEY],
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert done.returncode == 0, done.stderr
    stored, most = map(int, done.stdout.split())
    assert stored == 101
    assert most > 1


# A file that is deleted or replaced

COUNTING = """
import sys, time
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderError
from flask_hybridsession.providers.sql import SqlProvider

provider = SqlProvider(sys.argv[1], budget=2.0, synchronous="NORMAL")
key, mine, now = sys.argv[2], sys.argv[3], 1_000_000.0
for line in sys.stdin:
    try:
        provider.commit(key, Change({mine: line.strip().encode()}), now)
        print("done", flush=True)
    except ProviderError as error:
        print(type(error).__name__, flush=True)
provider.close()
"""


class Counter:
    """Another process, which does one commit at a time."""

    def __init__(self, file: Path, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-c", COUNTING, f"sqlite:///{file}", KEY, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def put(self, number: int) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=LONG)


@pytest.fixture
def counters(file: Path, on_file: SqlProvider) -> Iterator[list[Counter]]:
    made = [Counter(file, f"worker {n}") for n in range(3)]
    yield made
    for counter in made:
        counter.close()


@pytest.mark.parametrize("left", [(), ("-wal", "-shm")], ids=["all", "the file only"])
def test_a_file_that_is_deleted(
    file: Path, on_file: SqlProvider, counters: list[Counter], left: tuple[str, ...]
) -> None:
    """No worker stays on what is no more; one that was idle meanwhile neither."""
    assert [counter.put(0) for counter in counters] == ["done"] * 3
    for ending in {"", "-wal", "-shm"} - set(left):
        Path(f"{file}{ending}").unlink(missing_ok=True)
    busy, other, idle = counters
    wait_until_it_answers(lambda: notices(busy))
    with pytest.raises(ProviderUnavailable):
        value(on_file)
    with closing(SqlProvider(f"sqlite:///{file}")) as init:
        init.create_tables()
    wait_until_it_answers(lambda: notices(other, "SessionGone"))
    with closing(SqlProvider(f"sqlite:///{file}")) as fresh:
        fresh.commit(KEY, Change(create=True, puts={"n": b"new"}), NOW)
        for number in range(200):
            assert busy.put(number) == other.put(number) == "done"
            record = fresh.load(KEY, NOW)
            assert record is not None
            assert record.values[busy.name] == record.values[other.name] == b"%d" % number
        assert idle.put(7) == "done"
        assert value(on_file) == b"new"
        for counter in counters:
            assert counter.put(500) == "done"
        record = fresh.load(KEY, NOW)
        assert record is not None
        assert [record.values[counter.name] for counter in counters] == [b"500"] * 3
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def notices(counter: Counter, answer: str = "TablesMissing") -> None:
    """It looks where its file is every hundredth of a second."""
    if counter.put(0) != answer:
        raise ProviderUnavailable("not yet")


def test_a_file_that_is_replaced(file: Path, on_file: SqlProvider, counters: list[Counter]) -> None:
    assert [counter.put(0) for counter in counters] == ["done"] * 3
    other = file.with_name("other.db")
    with closing(SqlProvider(f"sqlite:///{other}")) as provider:
        provider.create_tables()
        provider.commit(KEY, Change(create=True, puts={"n": b"restored"}), NOW)
    for ending in ("-wal", "-shm"):
        Path(f"{file}{ending}").unlink(missing_ok=True)
    other.rename(file)
    assert value(on_file) == b"restored"
    assert [counter.put(1) for counter in counters] == ["done"] * 3
    record = on_file.load(KEY, NOW)
    assert record is not None
    assert len(record.values) == 4
