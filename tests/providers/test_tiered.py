from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core import clock, ids, mirror
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.codec import encode
from flask_hybridsession.core.database import Action, Lifetime, Store, SyncPayload
from flask_hybridsession.core.errors import (
    ConfigError,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.core.provider import (
    Checks,
    Compacts,
    Lists,
    Locks,
    Promise,
    Provider,
    Remote,
    Reports,
    Users,
)
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.registry import make_provider, with_database
from flask_hybridsession.providers.tiered import TieredProvider, follower, ledger
from flask_hybridsession.testing import FakeClock, ProviderSuite, new_key
from tests.servers import REDIS, Server, running

PATIENCE = 30.0


class Rows:
    """A database of the app's own: keeps what it is told, and how. ``down``: it raises."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.told: list[SyncPayload] = []
        self.down = False
        self.calls = 0

    def load(self, key: str) -> Any:
        self._answer()
        return self.rows.get(key)

    def sync(self, payload: SyncPayload) -> None:
        self._answer()
        self.told.append(payload)
        store = payload.store
        if payload.action is Action.DESTROY:
            self.rows.pop(payload.key, None)
        elif store.lifetime is not None:
            self.rows[payload.key] = store._replace(values=dict(store.values))
        elif payload.key in self.rows:  # deleted or cleared: its lifetime is left as it is
            before = self.rows[payload.key]
            self.rows[payload.key] = before._replace(values=dict(store.values))

    def _answer(self) -> None:
        self.calls += 1
        if self.down:
            raise ConnectionError("secret")


class Table:
    """Functions for ``FunctionsProvider``, on a file that processes share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run("CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, data BLOB)")

    def run(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path, 60.0)) as db, db:
            db.execute("PRAGMA synchronous = OFF")
            return db.execute(sql, values).fetchall()

    def load(self, key: str) -> bytes | None:
        rows = self.run("SELECT data FROM sessions WHERE key = ?", key)
        return rows[0][0] if rows else None

    def save(self, key: str, data: bytes, deadline: float | None, user_id: object) -> None:
        self.run("REPLACE INTO sessions VALUES (?, ?)", key, data)

    def delete(self, key: str) -> None:
        self.run("DELETE FROM sessions WHERE key = ?", key)

    def provider(self) -> FunctionsProvider:
        return FunctionsProvider(self.load, self.save, self.delete)


class TestMemoryAndRows(ProviderSuite):
    def make_provider(self) -> Provider:
        return TieredProvider(MemoryProvider(), MemoryProvider(), Rows())


class TestHybridAndHybrid(ProviderSuite):
    shared = "process"
    rounds = 20

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return TieredProvider(self.hybrid("one"), self.hybrid("two"))

    def hybrid(self, name: str) -> HybridProvider:
        return HybridProvider(self.path / name, sync_interval=0.05)


class TestHybridAndFunctions(ProviderSuite):
    shared = "process"
    rounds = 5

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        table = Table(self.path / "table")
        return TieredProvider(HybridProvider(self.path / "one"), table.provider())


class TestHybridAndRedis(ProviderSuite):
    shared = "process"
    rounds = 10

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server) -> None:
        self.url = f"redis://{redis_server.address}/6"

    def make_provider(self) -> Provider:
        self.prefix = f"tiered-{new_key()[:12]}:"
        return self.open_again()

    def open_again(self) -> Provider:
        redis = RedisProvider(self.url, self.prefix, budget=5.0)
        return TieredProvider(HybridProvider(self.path / "one", durability="never"), redis)


class TestRedisAndHybrid(TestHybridAndRedis):
    def open_again(self) -> Provider:
        redis = RedisProvider(self.url, self.prefix, budget=5.0)
        return TieredProvider(redis, HybridProvider(self.path / "one", durability="never"))


class TestFunctionsAndMemory(ProviderSuite):
    """An authority that promises little, and lists nothing."""

    def make_provider(self) -> Provider:
        rows: dict[str, bytes] = {}
        functions = FunctionsProvider(
            rows.get,
            lambda key, data, *_: rows.__setitem__(key, data),
            lambda key: rows.pop(key, 0),
        )
        return TieredProvider(functions, MemoryProvider())


@pytest.fixture
def now() -> float:
    return clock.now()


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def tiered(rows: Rows) -> Iterator[TieredProvider]:
    provider = TieredProvider(MemoryProvider(), rows)
    yield provider
    rows.down = False
    provider.close()


def values(**named: object) -> dict[str, bytes]:
    return {name: encode(value) for name, value in named.items()}


def create(provider: Provider, now: float, life: float = 60, **named: object) -> str:
    key = new_key()
    change = Change(values(**named), create=True, deadline=now + life, touched=now)
    provider.commit(key, change, now)
    return key


def until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, "it does not come true"
        time.sleep(0.005)


def in_step(provider: Any) -> bool:
    return not any(one.is_behind for one in provider._followers)


def plain(record: Record | None) -> Record | None:
    return record and record._replace(values=dict(record.values))


def loads(provider: Any, key: str) -> dict[str, bytes]:
    record = provider.load(key, clock.now())
    assert record is not None
    return dict(record.values)


def there(provider: Provider, key: str) -> bool:
    return provider.exists(key, clock.now())


# What it is


ABILITIES = (Lists, Users, Locks, Reports, Checks, Compacts, Remote)


def able(provider: Provider) -> set[type]:
    return {ability for ability in ABILITIES if isinstance(provider, ability)}


def test_it_is_able_to_do_what_its_authority_is(tmp_path: Path) -> None:
    some = [MemoryProvider(), HybridProvider(tmp_path), FunctionsProvider()]
    for authority in some:
        tiered = TieredProvider(authority, MemoryProvider(), Rows())
        assert able(tiered) == able(authority) | {Reports}
        assert tiered.promises == authority.promises
        assert type(tiered).__name__ == "TieredProvider"
        tiered.close()
    assert not TieredProvider(FunctionsProvider()).promises
    assert Promise.PURGE in TieredProvider(MemoryProvider()).promises


def test_databases_are_providers_or_have_load_and_sync() -> None:
    with pytest.raises(ConfigError, match="int has no load"):
        TieredProvider(MemoryProvider(), 7)
    with pytest.raises(ConfigError, match="authority must be a provider"):
        TieredProvider(Rows(), MemoryProvider())  # type: ignore[arg-type]

    class Half:
        def load(self, key: str) -> None: ...

    with pytest.raises(ConfigError, match="Half has no sync"):
        with_database(MemoryProvider(), Half())


def test_one_database_after_the_other() -> None:
    memory, one, two = MemoryProvider(), Rows(), Rows()
    both: Any = with_database(with_database(memory, one), two)
    assert (both.authority, both.others) == (memory, (one, two))


def test_from_settings(tmp_path: Path) -> None:
    rows = Rows()
    options = {
        "authority": {"type": "memory", "max_sessions": 7},
        "others": ["hybrid", rows, MemoryProvider()],
    }
    settings = Settings(type="tiered", options=options, directory=str(tmp_path / "sessions"))
    with closing(make_provider(settings)) as provider:  # type: ignore[type-var]
        assert isinstance(provider, TieredProvider)
        assert type(provider.authority) is MemoryProvider
        assert provider.authority._max == 7
        kinds = [type(other) for other in provider.others]
        assert kinds == [HybridProvider, Rows, MemoryProvider]
        create(provider.others[0], 0.0)
        assert (tmp_path / "sessions" / "log").exists()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"others": ["memory"]},
        {"authority": "memory", "others": "hybrid"},
        {"authority": "memory", "others": {"type": "memory"}},
        {"authority": "memory", "max_sessions": 7},
        {"authority": {"max_sessions": 7}},
        pytest.param({"authority": Rows()}, id="no provider"),
    ],
    ids=str,
)
def test_settings_that_say_something_else(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_provider(Settings(type="tiered", options=options))


# What a database is told


def said(rows: Rows) -> list[tuple[str, Any, Any]]:
    told = [(p.action.name.lower(), p.entry.name, p.entry.value) for p in rows.told]
    rows.told.clear()
    return told


def test_the_actions_of_the_seed(tiered: TieredProvider, rows: Rows, now: float) -> None:
    key = create(tiered, now, a=1)
    assert said(rows) == [("create", "a", 1)]
    for change, expected in [
        (Change(values(b=[2])), [("insert", "b", [2])]),
        (Change(values(a="one")), [("update", "a", "one")]),
        (Change(drops=("a",)), [("delete", "a", None)]),
        (Change(drops=("a",)), [("delete", "a", None)]),
        (Change(wipe=True), [("clear", None, None)]),
        (Change(values(c=3)), [("create", "c", 3)]),
        (Change(values(d=4, c=5), drops=("c",)), [("insert", "d", 4), ("update", "c", 5)]),
        (Change(values(e=6), wipe=True), [("clear", None, None), ("create", "e", 6)]),
        (Change(deadline=now + 99), [("update", None, None)]),
    ]:
        tiered.commit(key, change, now)
        assert said(rows) == expected
    assert tiered.destroy(key)
    assert not tiered.destroy(key)
    assert [action for action, _, _ in said(rows)][:1] == ["destroy"]


def test_an_empty_session_is_told_too(tiered: TieredProvider, rows: Rows, now: float) -> None:
    create(tiered, now)
    assert said(rows) == [("create", None, None)]


def test_a_rename_is_an_end_and_a_beginning(tiered: TieredProvider, rows: Rows, now: float) -> None:
    old, new = create(tiered, now, a=1, b=2), new_key()
    rows.told.clear()
    tiered.rename(old, new, now, alias_until=now + 60)
    told = [(payload.key, payload.action, payload.entry.name) for payload in rows.told]
    assert told == [
        (old, Action.DESTROY, None),
        (new, Action.CREATE, "a"),
        (new, Action.INSERT, "b"),
    ]


def test_the_whole_store_comes_along(tiered: TieredProvider, rows: Rows, now: float) -> None:
    key = new_key()
    change = Change(values(a=1, b=[2]), create=True, deadline=now + 60, user="i:7", device="d")
    tiered.commit(key, change, now)
    for payload in rows.told:
        assert payload.key == key
        assert payload.store.values == {"a": 1, "b": [2]}
        assert payload.store.lifetime == Lifetime(now, now, now + 60)
        assert (payload.store.user_id, payload.store.device) == (7, "d")
    first = rows.told[0].store.values
    with pytest.raises(TypeError):
        first["a"] = 2  # type: ignore[index]
    first["b"].append("not theirs to change")
    assert first["b"] == [2]
    rows.told.clear()
    tiered.commit(key, Change(drops=("a",)), now)
    (payload,) = rows.told
    assert payload.store.values == {"b": [2]}
    assert payload.store.lifetime is None
    tiered.commit(key, Change(wipe=True), now)
    assert rows.told[-1].store == Store({})


def test_nothing_secret_is_shown(tiered: TieredProvider, rows: Rows, now: float) -> None:
    key = create(tiered, now, name="a value")
    first = rows.told[0]
    for shown in (repr(rows.told), repr(first.store), str(first), repr(first.entry)):
        assert key not in shown
        assert "a value" not in shown


def test_expiry_is_told(tiered: TieredProvider, rows: Rows, now: float) -> None:
    key = create(tiered, now, a=1)
    rows.told.clear()
    assert [record.key for record in tiered.purge(now + 60, 10)] == [key]
    assert said(rows) == [("destroy", None, None)]


# Filling


def test_the_first_that_has_it_fills_the_authority(now: float) -> None:
    rows, empty, full = Rows(), Rows(), MemoryProvider()
    key = new_key()
    full.commit(key, Change(values(a=0), create=True), now)
    life = Lifetime(now - 9, now - 3, now + 60)
    rows.rows[key] = Store({"a": 1, "b": [2]}, life, "ann", "d")
    empty.rows[key] = Store({}, life)
    tiered: Any = TieredProvider(MemoryProvider(), empty, rows, full)
    expected = Record(key, values(a=1, b=[2]), *life, "s:ann", "d")
    assert plain(tiered.load(key, now)) == expected
    assert plain(tiered.authority.load(key, now)) == expected
    calls = rows.calls
    assert plain(tiered.load(key, now)) == expected
    assert rows.calls == calls
    assert list(tiered.keys_of("s:ann", now)) == [key]
    assert (list(tiered.keys(now)), tiered.count(now)) == ([key], 1)
    assert tiered.load(key, now + 60) is None


def test_values_alone_begin_a_new_life(tiered: TieredProvider, rows: Rows, now: float) -> None:
    key = new_key()
    rows.rows[key] = {"a": 1}
    record = tiered.load(key, now)
    assert record is not None
    assert (record.values, record.created, record.user) == (values(a=1), now, None)
    assert now < record.deadline < inf


def test_a_change_fills_first(tiered: TieredProvider, rows: Rows, now: float) -> None:
    keys = [new_key() for _ in range(4)]
    for key in keys:
        rows.rows[key] = Store({"a": 1}, Lifetime(now, now, inf))
    one, two, three, four = keys
    tiered.commit(one, Change(values(b=2)), now)
    assert loads(tiered, one) == values(a=1, b=2)
    renamed = new_key()
    tiered.rename(two, renamed, now)
    assert loads(tiered, renamed) == values(a=1)
    assert not there(tiered, two)
    assert tiered.destroy(three)
    assert not tiered.destroy(three)
    assert there(tiered, four)
    assert set(rows.rows) == {one, renamed, four}


@pytest.mark.parametrize("answer", [7, [1], {1: 2}, {"a": object()}, Store({"a": 1}, (0, 0))])  # type: ignore[arg-type]
def test_an_answer_that_is_no_session(
    tiered: TieredProvider, rows: Rows, now: float, answer: object
) -> None:
    key = new_key()
    rows.rows[key] = answer
    assert tiered.load(key, now) is None
    assert not in_step(tiered)
    until(lambda: in_step(tiered))


def test_expired_sessions_are_not_filled(tiered: TieredProvider, rows: Rows, now: float) -> None:
    expired, kept = new_key(), create(tiered, now, a=1)
    rows.rows[expired] = Store({"a": 1}, Lifetime(now - 9, now - 9, now))
    rows.rows[kept] = {"a": 1}  # a database that knows no lifetimes
    assert tiered.load(expired, now) is None
    assert tiered.load(kept, now + 60) is None
    tiered.purge(now + 60, 10)
    rows.rows[kept] = {"a": 1}
    assert tiered.load(kept, now + 60) is None


def test_a_filler_that_died_stands_in_nobodys_way(rows: Rows, now: float) -> None:
    memory = MemoryProvider()
    tiered = TieredProvider(memory, rows)
    key = new_key()
    rows.rows[key] = Store({"a": 1}, Lifetime(now - 9, now, now + 600))
    copy = tiered._followers[0].copy(key, now)
    assert copy is not None
    tiered._claim(copy, now)
    assert memory.exists(key, now)  # unborn
    assert loads(tiered, key) == values(a=1)
    tiered.authority.destroy(key)
    tiered._claim(copy, now)
    with FakeClock(now + 31):
        assert tiered.purge(now + 31, 10) == []
        assert loads(tiered, key) == values(a=1)
    with pytest.raises(KeyTaken):
        tiered.commit(key, Change(create=True), now)


def test_many_fill_at_once(tmp_path: Path, now: float) -> None:
    tiered = TieredProvider(HybridProvider(tmp_path), old := Rows())
    keys = [new_key() for _ in range(20)]
    for key in keys:
        old.rows[key] = Store({"n": 0}, Lifetime(now, now, inf))
    barrier = threading.Barrier(4)

    def work(name: str) -> None:
        for key in keys:
            barrier.wait(PATIENCE)
            tiered.commit(key, Change(values(**{name: 1})), now)

    in_threads(*(partial(work, f"t{n}") for n in range(4)))
    for key in keys:
        assert loads(tiered, key) == values(n=0, t0=1, t1=1, t2=1, t3=1)
        assert set(old.rows[key].values) == {"n", "t0", "t1", "t2", "t3"}
    tiered.close()


def in_threads(*works: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


# What ended stays so


def end_by_destroy(provider: Provider, key: str, now: float) -> None:
    assert provider.destroy(key)


def end_by_rename(provider: Provider, key: str, now: float) -> None:
    provider.rename(key, new_key(), now)


def end_by_commit(provider: Provider, key: str, now: float) -> None:
    provider.commit(key, Change(deadline=now), now)


def end_by_purge(provider: Provider, key: str, now: float) -> None:
    provider.commit(key, Change(deadline=now + 1e-6), now)
    with FakeClock(now + 1):
        assert [record.key for record in provider.purge(now + 1, 10)] == [key]


ENDS = [end_by_destroy, end_by_rename, end_by_commit, end_by_purge]


@pytest.mark.parametrize("end", ENDS)
def test_what_a_follower_missed_does_not_come_back(
    tmp_path: Path, rows: Rows, now: float, end: Callable[[Provider, str, float], None]
) -> None:
    """The follower is away when the session ends; then all workers restart; then it is back."""
    first = TieredProvider(HybridProvider(tmp_path), rows)
    key = create(first, now, a=1)
    stale = rows.rows[key]._replace(lifetime=Lifetime(now, now, inf))
    rows.down = True
    end(first, key, now)
    assert not there(first, key)
    first.close()
    with FakeClock(now + 3600):
        second = TieredProvider(HybridProvider(tmp_path), rows)
        assert not there(second, key)
        rows.down, rows.rows[key] = False, stale
        for _ in range(3):
            assert not there(second, key)
            with pytest.raises(SessionGone):
                second.commit(key, Change(values(b=1)), clock.now())
        second.resync()
        until(lambda: in_step(second))
        assert key not in rows.rows
        second.close()


def test_a_session_made_and_ended_under_a_late_write(tmp_path: Path, now: float) -> None:
    """A worker stands between its commit and its telling while others end the session."""
    rows = Rows()
    held, go_on = threading.Event(), threading.Event()

    class Slow(Rows):
        def sync(self, payload: SyncPayload) -> None:
            held.set()
            assert go_on.wait(PATIENCE)
            rows.sync(payload)

        def load(self, key: str) -> Any:
            return rows.load(key)

    late = TieredProvider(HybridProvider(tmp_path), Slow())
    quick = TieredProvider(HybridProvider(tmp_path), rows)
    key = new_key()
    revived: list[bool] = []

    def watch() -> None:
        assert held.wait(PATIENCE)
        assert quick.destroy(key)
        go_on.set()
        while thread.is_alive():
            revived.append(there(quick, key))

    thread = threading.Thread(target=late.commit, args=(key, Change(values(a=1), create=True), now))
    thread.start()
    watch()
    thread.join()
    assert revived
    assert not any(revived)
    assert not there(late, key)
    assert rows.rows == {}
    late.close()
    quick.close()


def test_a_session_that_ends_while_it_is_filled(tmp_path: Path, now: float) -> None:
    rows = Rows()
    held, go_on = threading.Event(), threading.Event()

    class Slow(Rows):
        def load(self, key: str) -> Any:
            found = rows.load(key)
            held.set()
            assert go_on.wait(PATIENCE)
            return found

        def sync(self, payload: SyncPayload) -> None:
            rows.sync(payload)

    slow = TieredProvider(HybridProvider(tmp_path), Slow())
    quick = TieredProvider(HybridProvider(tmp_path), rows)
    key = new_key()
    rows.rows[key] = Store({"a": 1}, Lifetime(now, now, inf))
    found: list[Record | None] = []
    thread = threading.Thread(target=lambda: found.append(slow.load(key, now)))
    thread.start()
    assert held.wait(PATIENCE)
    assert quick.destroy(key)
    go_on.set()
    thread.join()
    assert found == [None]
    assert not there(quick, key)
    slow.close()
    quick.close()


def test_an_end_after_the_claim(tmp_path: Path, now: float) -> None:
    """Between the claim of a fill and its last commit."""
    rows = Rows()
    slow = TieredProvider(HybridProvider(tmp_path), rows)
    quick = TieredProvider(HybridProvider(tmp_path), rows)
    key = new_key()
    rows.rows[key] = Store({"a": 1}, Lifetime(now, now, inf))
    claim = slow._claim

    def claim_then_end(copy: Record, now: float) -> Any:
        token = claim(copy, now)
        assert quick.destroy(key)
        return token

    slow._claim = claim_then_end  # type: ignore[method-assign]
    assert slow.load(key, now) is None
    assert not there(quick, key)
    assert rows.rows == {}
    slow.close()
    quick.close()


def test_a_late_filler_overwrites_nothing(tmp_path: Path, rows: Rows, now: float) -> None:
    slow = TieredProvider(HybridProvider(tmp_path), rows)
    quick = TieredProvider(HybridProvider(tmp_path), rows)
    key = new_key()
    rows.rows[key] = Store({"a": 1}, Lifetime(now, now, inf))
    claim = slow._claim

    def claim_and_be_late(copy: Record, now: float) -> Any:
        token = claim(copy, now)
        quick.commit(key, Change(values(a=2)), now)
        return token

    slow._claim = claim_and_be_late  # type: ignore[method-assign]
    record = slow.load(key, now)
    assert record is not None
    assert record.values == loads(quick, key) == values(a=2)
    slow.close()
    quick.close()


class JsonFile:
    """A database that processes share: one file. Killed where ``die`` says."""

    def __init__(self, path: Path, die: Action | None = None) -> None:
        self.path = path
        self.die = die
        if not path.exists():
            path.write_text("{}")

    def load(self, key: str) -> Any:
        row = json.loads(self.path.read_text()).get(key)
        return None if row is None else Store(row[0], Lifetime(*row[1]))

    def sync(self, payload: SyncPayload) -> None:
        if payload.action is self.die:
            os._exit(77)
        rows = json.loads(self.path.read_text())
        if payload.action is Action.DESTROY:
            rows.pop(payload.key, None)
        elif payload.store.lifetime is not None:
            rows[payload.key] = [dict(payload.store.values), payload.store.lifetime]
        self.path.write_text(json.dumps(rows))


def test_a_worker_killed_between_an_end_and_its_telling(tmp_path: Path, now: float) -> None:
    key = new_key()

    def open_(die: Action | None = None) -> TieredProvider:
        return TieredProvider(HybridProvider(tmp_path / "one"), JsonFile(tmp_path / "rows", die))

    def log_out() -> None:
        provider = open_(Action.DESTROY)
        provider.commit(key, Change(values(a=1), create=True), now)
        provider.destroy(key)

    worker = multiprocessing.get_context("fork").Process(target=log_out)
    worker.start()
    worker.join(PATIENCE)
    assert worker.exitcode == 77
    rows = JsonFile(tmp_path / "rows")
    assert rows.load(key) is not None  # it was never told
    provider = open_()
    for ahead in (0, 3600):
        with FakeClock(now + ahead):
            assert not there(provider, key)
            assert not provider.destroy(key)
    provider.resync()
    until(lambda: in_step(provider))
    assert rows.load(key) is None
    provider.close()


def test_graves_do_not_pile_up(tiered: Any, now: float) -> None:
    keys = [new_key() for _ in range(300)]
    with FakeClock(now) as time_:
        for key in keys:
            tiered.commit(key, Change(create=True), now)
            tiered.destroy(key)
        assert sum(map(tiered._ledger.holds, keys)) == 300
        assert tiered.count(now) == 0
        assert list(tiered.keys(now)) == []
        assert tiered.next_deadline() is None
        assert list(tiered._ledger.open_graves()) == []
        time_.advance(ledger.GRACE)
        assert not any(map(tiered._ledger.holds, keys))
        for number in range(256):
            tiered._ledger.close(f"{number:02x}" + "0" * 62)
        left = sum(len(tiered._ledger._values(shard)) for shard in mirror.SHARDS)
        assert left == 256


# Followers that fail


def test_a_failing_follower_fails_no_request(
    tiered: TieredProvider, rows: Rows, now: float, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[ProviderUnavailable] = []
    tiered.on_failure = reported.append
    kept, ended = create(tiered, now, a=1), create(tiered, now)
    assert tiered.stats()["Rows 1"] == "in step"  # type: ignore[attr-defined]
    rows.down = True
    for n in range(5):
        tiered.commit(kept, Change(values(a=n)), now)
    new, renamed = create(tiered, now, b=2), new_key()
    assert tiered.destroy(ended)
    tiered.rename(new, renamed, now)
    assert not there(tiered, new_key())
    assert len(reported) == 1
    assert "Rows 1 is out of date" in str(reported[0])
    assert isinstance(reported[0].__cause__, ConnectionError)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 1
    assert "secret" not in caplog.text
    assert str(tiered.stats()["Rows 1"]).startswith("behind")  # type: ignore[attr-defined]
    rows.told.clear()
    rows.down = False
    until(lambda: in_step(tiered))
    assert {key: dict(row.values) for key, row in rows.rows.items()} == {
        kept: {"a": 4},
        renamed: {"b": 2},
    }
    assert list(tiered._ledger.open_graves()) == []
    assert tiered._ledger.marks() == {}
    assert tiered.stats()["Rows 1"] == "in step"  # type: ignore[attr-defined]


def test_stats_know_what_other_workers_miss(rows: Rows, now: float) -> None:
    """``flask sessions stats`` is a process of its own."""
    authority = MemoryProvider()
    worker, stats = TieredProvider(authority, rows), TieredProvider(authority, rows)
    rows.down = True
    create(worker, now, a=1)
    assert stats.stats()["Rows 1"] == "behind in another worker"
    rows.down = False
    until(lambda: in_step(worker))
    assert stats.stats()["Rows 1"] == "in step"
    worker.close()


def test_what_our_own_errors_say_is_passed_on(now: float, caplog: pytest.LogCaptureFixture) -> None:
    class NeedsTables(MemoryProvider):
        def commit(self, key: str, change: Change, now: float) -> None:
            raise ConfigError("run this and that.")

    tiered = TieredProvider(MemoryProvider(), NeedsTables())
    create(tiered, now)
    assert "run this and that." in caplog.text
    tiered.close()


def test_requests_do_not_wait_for_a_frozen_follower(tiered: Any, rows: Rows, now: float) -> None:
    key = create(tiered, now, a=1)
    rows.down = True
    tiered.commit(key, Change(values(a=2)), now)
    tiered._followers[0]._over.set()  # its thread rests
    until(lambda: not tiered._followers[0]._thread.is_alive())
    tiered._followers[0]._need_thread = lambda: None
    calls = rows.calls
    for n in range(100):
        tiered.commit(key, Change(values(a=n)), now)
        assert not there(tiered, new_key())
    assert rows.calls == calls


def test_others_pass_by_a_call_that_hangs(
    rows: Rows, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "STUCK", 0.05)
    held, go_on = threading.Event(), threading.Event()

    class Hangs(Rows):
        def sync(self, payload: SyncPayload) -> None:
            if payload.action is Action.UPDATE and not held.is_set():
                held.set()
                assert go_on.wait(PATIENCE)
            super().sync(payload)

    rows = Hangs()
    tiered = TieredProvider(MemoryProvider(), rows)
    one, two = create(tiered, now, a=1), create(tiered, now, a=1)
    thread = threading.Thread(target=tiered.commit, args=(one, Change(values(a=2)), now))
    thread.start()
    assert held.wait(PATIENCE)

    def passed_by() -> bool:
        tiered.commit(two, Change(values(a=3)), now)
        return not in_step(tiered)

    until(passed_by)
    assert thread.is_alive()
    go_on.set()
    thread.join()
    until(lambda: in_step(tiered))
    assert [rows.rows[key].values for key in (one, two)] == [{"a": 2}, {"a": 3}]
    tiered.close()


def test_too_many_misses_mean_all(
    tiered: TieredProvider, rows: Rows, now: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MOST_MISSED", 10)
    ended = [create(tiered, now) for _ in range(20)]
    rows.down = True
    keys = {create(tiered, now, n=n) for n in range(30)}
    for key in ended:
        tiered.destroy(key)
    assert str(tiered.stats()["Rows 1"]) == "behind, all to catch up"  # type: ignore[attr-defined]
    rows.down = False
    until(lambda: in_step(tiered))
    assert set(rows.rows) == keys
    assert not any(there(tiered, key) for key in ended)


@pytest.mark.parametrize("before", [(), (Rows(),)], ids=["as it was", "one more in front"])
def test_a_worker_that_ends_leaves_its_misses_to_others(
    before: tuple[Rows, ...], tmp_path: Path, rows: Rows, now: float
) -> None:
    """Whatever the name that the database has by now: it has its place in it."""
    first = TieredProvider(HybridProvider(tmp_path), rows)
    key = create(first, now, a=1)
    rows.down = True
    first.commit(key, Change(values(a=2)), now)
    first.close()
    rows.down = False
    with FakeClock(now + ledger.SILENCE + 1):
        second = TieredProvider(HybridProvider(tmp_path), *before, rows)
        other = create(second, clock.now(), b=1)
        until(lambda: rows.rows[key].values == {"a": 2})
        until(lambda: in_step(second) and not second._ledger.marks())
        assert other in rows.rows
        second.close()


class Workers:
    """Each with the same databases; the clock of all is this one's."""

    def __init__(self, path: Path, rows: Rows, time_: FakeClock) -> None:
        self.path = path
        self.rows = rows
        self.time = time_
        self.all: list[Any] = []

    def start(self) -> Any:
        worker: Any = TieredProvider(HybridProvider(self.path), self.rows)
        self.all.append(worker)
        return worker

    def dies_behind(self, number: int) -> str:
        """One that leaves a commit untold. The key."""
        worker = self.start()
        key = create(worker, clock.now(), 10_000, n=0)
        self.rows.down = True
        worker.commit(key, Change(values(n=number)), clock.now())
        worker.close()
        self.rows.down = False
        return key

    def told(self, *keys: str) -> bool:
        return all(self.rows.rows[key].values["n"] for key in keys)

    def marks(self) -> dict[str, bool]:
        marks: dict[str, bool] = self.all[-1]._ledger.marks()
        return marks


@pytest.fixture
def workers(
    tmp_path: Path, rows: Rows, now: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Workers]:
    for name in ("_SIGN", "_LOOK"):
        monkeypatch.setattr(follower, name, 0.02)
    with FakeClock(now) as time_:
        made = Workers(tmp_path, rows, time_)
        yield made
        for worker in made.all:
            worker.close()


def test_all_that_died_are_inherited_from(workers: Workers) -> None:
    """Those that have not been silent for long, too, once they have."""
    early = workers.dies_behind(1)
    workers.time.advance(ledger.SILENCE - 5)
    late = workers.dies_behind(2)
    workers.time.advance(10)
    heir = workers.start()
    create(heir, clock.now(), n=3)
    until(lambda: workers.told(early))
    until(lambda: True not in workers.marks().values())
    workers.time.advance(ledger.SILENCE)
    until(lambda: workers.told(early, late) and in_step(heir) and not workers.marks())
    assert heir.stats()["Rows 1"] == "in step"


def test_those_that_live_on_inherit(workers: Workers) -> None:
    """Without a restart, and without a request."""
    living = workers.start()
    create(living, clock.now(), n=1)
    key = workers.dies_behind(2)
    workers.time.advance(ledger.SILENCE + 1)

    def inherited() -> bool:
        living.purge(clock.now(), 1)  # as the clockwork does
        return workers.told(key) and in_step(living) and not living._ledger.marks()

    until(inherited)
    until(lambda: living.stats()["Rows 1"] == "in step")


def test_heirs_that_die_are_inherited_from(workers: Workers) -> None:
    """All workers are started again, more than once."""
    keys = [workers.dies_behind(n) for n in (1, 2)]
    for _ in range(3):
        workers.time.advance(ledger.SILENCE + 1)
        heir = workers.start()
        workers.rows.down = True
        keys.append(create(heir, clock.now(), 10_000, n=1))
        until(lambda heir=heir: set(heir._ledger.marks()) == {heir._followers[0]._mark})
        heir.close()
        workers.rows.down = False
        workers.time.advance(ledger.SILENCE / 2)
    workers.time.advance(ledger.SILENCE)
    last = workers.start()
    create(last, clock.now(), n=1)
    until(lambda: workers.told(*(key for key in keys if key in workers.rows.rows)))
    until(lambda: in_step(last) and not workers.marks())
    assert set(keys) <= set(workers.rows.rows)


def test_each_is_inherited_from_once(workers: Workers) -> None:
    workers.dies_behind(1)
    workers.time.advance(ledger.SILENCE + 1)
    book = workers.start()._ledger
    adopted: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: adopted.append(book.adopt(f"Rows 1/{n}")))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(adopted) == [False] * 7 + [True]
    assert list(book.marks().values()) == [False]


def test_a_follower_that_is_behind_elsewhere_fills_nothing(tmp_path: Path, now: float) -> None:
    here, elsewhere = Rows(), Rows()
    one = TieredProvider(HybridProvider(tmp_path), here)
    other = TieredProvider(HybridProvider(tmp_path), elsewhere)
    elsewhere.down = True
    create(other, now)
    key = new_key()
    here.rows[key] = Store({"a": 1}, Lifetime(now, now, inf))
    assert not there(one, key)
    elsewhere.down = False
    until(lambda: in_step(other))
    assert there(one, key)
    one.close()
    other.close()


def test_a_provider_that_follows_is_mended(now: float) -> None:
    memory = MemoryProvider()
    tiered: Any = TieredProvider(MemoryProvider(), memory)
    lost, changed = create(tiered, now, a=1), create(tiered, now, a=1)
    memory.destroy(lost)
    memory.commit(changed, Change(values(a="else", b=1)), now)
    tiered.resync()
    until(lambda: in_step(tiered))
    for key in (lost, changed):
        assert plain(memory.load(key, now)) == plain(tiered.load(key, now))
    assert set(memory.keys(now)) - mirror.RESERVED == {lost, changed}


def follows_redis(path: Path, server: Server) -> tuple[TieredProvider, RedisProvider]:
    url = f"redis://{server.address}/0"
    tiered = TieredProvider(HybridProvider(path, durability="never"), RedisProvider(url))
    return tiered, RedisProvider(url, budget=PATIENCE)


def test_a_frozen_server_follows_again(tmp_path: Path, now: float) -> None:
    with running(REDIS) as server:
        tiered, redis = follows_redis(tmp_path, server)
        kept, ended = create(tiered, now, a=1), create(tiered, now)
        server.freeze()
        for n in range(200):  # all but the first pass it by
            tiered.commit(kept, Change(values(a=n)), now)
        assert tiered.destroy(ended)
        new = create(tiered, now, b=1)
        assert not in_step(tiered)
        assert not there(tiered, ended)
        server.thaw()
        until(lambda: in_step(tiered))
        assert set(redis.keys(now)) - mirror.RESERVED == {kept, new}
        for key in (kept, new):
            assert plain(redis.load(key, now)) == plain(tiered.load(key, now))
        tiered.close()
        redis.close()


def test_a_server_that_lost_everything_gets_all_again(tmp_path: Path, now: float) -> None:
    with running(REDIS) as server:
        tiered, redis = follows_redis(tmp_path, server)
        keys = {create(tiered, now, n=n) for n in range(50)}
        server.kill()
        for n in range(3):
            keys.add(create(tiered, now, n=n))
        server.start()
        until(lambda: in_step(tiered))
        assert set(redis.keys(now)) - mirror.RESERVED == keys
        tiered.close()
        redis.close()


# Several workers


def hammer(path: Path, keys: list[str], name: str, rounds: int) -> None:
    provider = TieredProvider(
        HybridProvider(path / "one", durability="never"),
        HybridProvider(path / "two", durability="never"),
    )
    now = clock.now()
    for n in range(rounds):
        for key in keys:
            provider.commit(key, Change({name: b"%d" % n, "same": f"{name} {n}".encode()}), now)
    provider.close()


def test_the_last_writer_wins_in_all_databases(tmp_path: Path, now: float) -> None:
    one, two = HybridProvider(tmp_path / "one"), HybridProvider(tmp_path / "two")
    keys = [create(one, now) for _ in range(3)]
    context = multiprocessing.get_context("forkserver")
    workers = [
        context.Process(target=hammer, args=(tmp_path, keys, f"w{n}", 100)) for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * PATIENCE)
        assert worker.exitcode == 0
    for key in keys:
        record = one.load(key, now)
        assert record is not None
        assert {f"w{n}" for n in range(4)} < set(record.values)
        assert plain(two.load(key, now)) == plain(record)
    one.close()
    two.close()


class Unreliable(Table):
    """A database that processes share, which fails now and then; and a list of what has ended."""

    def __init__(self, path: Path, fails: float = 0.0) -> None:
        super().__init__(path)
        self.run("CREATE TABLE IF NOT EXISTS ended (key TEXT)")
        self.chance, self.fails = random.Random(), fails

    def load(self, key: str) -> Any:
        self.answer()
        data = super().load(key)
        row = None if data is None else json.loads(data)
        return row and Store(row[0], Lifetime(*row[1]))

    def sync(self, payload: SyncPayload) -> None:
        self.answer()
        if payload.action is Action.DESTROY:
            self.delete(payload.key)
        elif payload.store.lifetime is not None:
            data = json.dumps([dict(payload.store.values), payload.store.lifetime])
            self.save(payload.key, data.encode(), None, None)
        self.answer()

    def answer(self) -> None:
        if self.chance.random() < self.fails:
            raise ConnectionError


def come_and_go(path: Path) -> None:
    """Make, change, rename and end sessions; look at those that any worker has ended."""
    table = Unreliable(path / "table", 0.02)
    provider = TieredProvider(HybridProvider(path / "one", durability="never"), table)
    mine: list[str] = []
    while True:
        now = clock.now()
        act = random.randrange(5)
        if act == 0 or len(mine) < 5:
            mine.append(create(provider, now, 3600, n=0))
            continue
        key = random.choice(mine)
        if act == 1:
            provider.commit(key, Change(values(n=random.randrange(99))), now)
        elif act == 2:
            mine.append(new_key())
            provider.rename(key, mine[-1], now)
        elif act == 3:
            assert provider.destroy(key)
        if act in (2, 3):
            mine.remove(key)
            table.run("INSERT INTO ended VALUES (?)", key)
        for (ended,) in table.run("SELECT key FROM ended ORDER BY random() LIMIT 3"):
            if there(provider, ended):
                table.run("INSERT INTO ended VALUES ('revived')")


def test_workers_that_are_killed_and_a_database_that_fails(tmp_path: Path) -> None:
    """Whatever happens, what has ended is alive for nobody, and in the end all are equal."""
    table = Unreliable(tmp_path / "table")
    context = multiprocessing.get_context("forkserver")

    def start() -> Any:
        worker = context.Process(target=come_and_go, args=(tmp_path,))
        worker.start()
        return worker

    workers = [start() for _ in range(3)]

    def ended() -> int:
        return table.run("SELECT count(*) FROM ended")[0][0]

    for n in range(6):
        before = ended()
        until(lambda before=before: ended() > before + 30)
        workers[n % 3].kill()
        workers[n % 3].join()
        workers[n % 3] = start()
    for worker in workers:
        assert worker.is_alive()
        worker.kill()
        worker.join()
    keys = [key for (key,) in table.run("SELECT key FROM ended")]
    assert "revived" not in keys
    authority = HybridProvider(tmp_path / "one", durability="never")
    with FakeClock(clock.now() + ledger.SILENCE + ledger.GRACE + 1):
        now = clock.now()
        provider = TieredProvider(authority, table)
        assert not any(there(provider, key) for key in keys)
        provider.resync()
        until(lambda: in_step(provider) and not provider._ledger.marks())
        rows = {key: json.loads(data) for key, data in table.run("SELECT * FROM sessions")}
        assert set(rows) == set(provider.keys(now))  # type: ignore[attr-defined]
        for key, (row, life) in rows.items():
            record = authority.load(key, now)
            assert record is not None
            assert values(**row) == record.values
            assert life == [record.created, record.touched, record.deadline]
        provider.close()


def test_after_a_fork_the_child_catches_up_too(tmp_path: Path, now: float) -> None:
    table = Table(tmp_path / "table")
    tiered: Any = TieredProvider(HybridProvider(tmp_path / "one"), rows := Rows(), table.provider())
    rows.down = True
    key = create(tiered, now, a=1)

    def child() -> None:
        rows.down = False
        tiered.commit(key, Change(values(a=2)), now)
        until(lambda: in_step(tiered))
        assert rows.rows[key].values == {"a": 2}
        os._exit(0)

    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        worker = multiprocessing.get_context("fork").Process(target=child)
        worker.start()
    worker.join(PATIENCE)
    assert worker.exitcode == 0
    rows.down = False
    until(lambda: in_step(tiered))
    tiered.close()


def test_no_sid_leads_to_what_is_reserved() -> None:
    assert len(mirror.RESERVED) == 259
    for text in ("tiered:behind", "tiered:graves:0", "tiered:complete", "sessions:copying"):
        assert ids.key_of(text) in mirror.RESERVED
        assert not any(ids.is_sid(text, length) for length in range(16, 257))
