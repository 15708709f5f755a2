"""What lies in Redis, and what happens when something else lies there."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import warnings
from collections.abc import Iterator
from math import inf
from typing import Any

import pytest
import redis

from flask_hybridsession.core.breaker import begin_budget, end_budget
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import (
    ConfigError,
    CorruptData,
    KeyTaken,
    ProviderUnavailable,
    SessionGone,
)
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.redis.scripts import GRACE
from tests.servers import REDIS, Server, running

from .tools import BUDGET, NOW, check, create, key, new_prefix


class Store:
    """A provider, and a client that looks behind it."""

    def __init__(self, server: Server) -> None:
        self.prefix = new_prefix()
        self.url = f"redis://{server.address}"
        self.client: Any = redis.Redis(port=server.port)
        self.provider = RedisProvider(self.url, self.prefix, budget=BUDGET)

    def name(self, name: object = "") -> str:
        return self.prefix + key(name)

    def names(self) -> set[str]:
        return {n.decode().removeprefix(self.prefix) for n in self.client.keys(self.prefix + "*")}

    def close(self) -> None:
        self.provider.close()
        self.client.close()


@pytest.fixture
def store(redis_server: Server) -> Iterator[Store]:
    made = Store(redis_server)
    yield made
    made.close()


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[Store]:
    """On a server of its own, which a test may spoil."""
    with running(REDIS) as server:
        made = Store(server)
        yield made
        made.close()


# What is stored


def test_a_session_is_a_hash(store: Store) -> None:
    create(store.provider, puts={"a": b"1", "": b"2"}, user="s:ann", device="d")
    fields = store.client.hgetall(store.name())
    assert fields.keys() == {b"m", b"u", b"d", b"=a", b"="}
    assert (fields[b"=a"], fields[b"u"], fields[b"d"]) == (b"1", b"s:ann", b"d")
    assert store.names() == {key(), "@due", "@user:s:ann"}


def test_nothing_is_left_when_all_are_gone(store: Store) -> None:
    create(store.provider, 1, user="s:ann")
    create(store.provider, 2, user="s:ann", deadline=NOW + 1)
    store.provider.rename(key(1), key(3), NOW, alias_until=NOW + 99)
    store.provider.commit(key(1), Change(user="s:bob"), NOW)
    assert store.provider.destroy(key(3))
    assert len(store.provider.purge(NOW + 1, 10)) == 1
    assert store.names() == set()


def test_the_server_forgets_what_nobody_purges(store: Store) -> None:
    create(store.provider, user="s:ann", deadline=NOW + 100)
    for name in (store.name(), f"{store.prefix}@user:s:ann"):
        assert GRACE + 95 < store.client.pttl(name) / 1000 <= GRACE + 100
    store.provider.rename(key(), key(2), NOW, alias_until=inf)
    assert store.client.pttl(store.name()) <= (GRACE + 100) * 1000
    store.provider.commit(key(2), Change(deadline=NOW + 1000), NOW)
    for name in (store.name(), store.name(2), f"{store.prefix}@user:s:ann"):
        assert GRACE + 995 < store.client.pttl(name) / 1000 <= GRACE + 1000
    store.provider.commit(key(2), Change(deadline=inf), NOW)
    assert [store.client.pttl(store.name(n)) for n in ("", 2)] == [-1, -1]
    assert store.client.pttl(f"{store.prefix}@user:s:ann") == -1


def test_what_is_due_stays_until_it_is_purged(store: Store) -> None:
    create(store.provider, deadline=NOW - 1e6)
    assert store.client.pttl(store.name()) > (GRACE - 5) * 1000
    assert len(store.provider.purge(NOW, 10)) == 1


def test_what_the_server_forgot_leaves_the_indexes(store: Store) -> None:
    for n in range(3):
        create(store.provider, n, user="s:ann", deadline=NOW + 10 if n else inf)
    store.client.delete(store.name(0), store.name(1))
    assert store.provider.count(NOW) == 3
    assert list(store.provider.keys(NOW)) == [key(2)]
    assert store.provider.count(NOW) == 1
    assert store.provider.keys_of("s:ann", NOW) == [key(2)]
    check(store.provider)


def test_purge_passes_over_what_the_server_forgot(store: Store) -> None:
    for n in range(10):
        create(store.provider, n, deadline=NOW + n)
    store.client.delete(*(store.name(n) for n in range(8)))
    assert [record.key for record in store.provider.purge(NOW + 99, 2)] == [key(8), key(9)]
    assert store.provider.next_deadline() is None


def test_the_list_of_a_busy_user_does_not_grow(store: Store) -> None:
    """Each new session takes along two that have left without a word."""
    for n in range(50):
        create(store.provider, n, user="s:ann", deadline=NOW + 10)
        store.client.delete(store.name(n))
    assert store.client.zcard(f"{store.prefix}@user:s:ann") <= 2


def test_many_aliases_that_ended_are_purged(store: Store) -> None:
    for n in range(600):
        create(store.provider, n, deadline=inf)
        store.provider.rename(key(n), key(f"new {n}"), NOW, alias_until=NOW + 1)
    assert store.provider.next_deadline() == NOW + 1
    assert store.provider.purge(NOW + 1, 10) == []
    assert store.provider.next_deadline() is None
    assert len(store.names()) == 601


def test_a_large_change(store: Store) -> None:
    puts = {f"{n}": b"%d" % n for n in range(20_000)}
    create(store.provider, puts=puts)
    store.provider.commit(key(), Change(puts={"a": b"1"}, drops=list(puts)[:15_000]), NOW)
    record = store.provider.load(key(), NOW)
    assert record is not None
    assert len(record.values) == 5_001
    store.provider.commit(key(), Change(wipe=True, expects=record.values), NOW)
    check(store.provider)


# What else may lie there


@pytest.mark.parametrize(
    "damage",
    [
        lambda client, name: client.set(name, "text"),
        lambda client, name: client.hset(name, "field", "value"),
        lambda client, name: client.hset(name, "m", b"\x01short"),
        lambda client, name: client.hset(name, "m", b"\x02" + bytes(24)),
        lambda client, name: client.hset(name, "m", b"\x01" + b"\xff" * 24),
        lambda client, name: client.hset(name, ">", b"\x01nowhere"),
        lambda client, name: client.hset(name, mapping={"m": b"\x01" + bytes(24), "u": b"\xff"}),
        lambda client, name: client.hset(name, mapping={"m": b"\x01" + bytes(24), b"=\xff": b"1"}),
    ],
    ids=["text", "foreign", "short", "later", "no number", "alias", "user", "name"],
)
def test_damage_is_told_and_can_be_destroyed(store: Store, damage: Any) -> None:
    damage(store.client, store.name())
    with pytest.raises(CorruptData, match=f"{key()[:12]}[.]{{3}} is damaged") as caught:
        store.provider.load(key(), -1.0)
    assert key()[:13] not in str(caught.value)
    assert store.provider.destroy(key()) is True
    assert store.provider.destroy(key()) is False
    assert store.names() == set()


@pytest.mark.parametrize("where", ["text", "foreign"])
def test_nothing_is_written_over_damage(store: Store, where: str) -> None:
    create(store.provider, "other")
    if where == "text":
        store.client.set(store.name(), "text")
    else:
        store.client.hset(store.name(), "field", "value")
    before = store.client.dump(store.name())
    for change in (Change(puts={"a": b"1"}), Change(create=True)):
        with pytest.raises(CorruptData):
            store.provider.commit(key(), change, NOW)
    for old, new in ((key(), key(2)), (key("other"), key())):
        with pytest.raises(CorruptData):
            store.provider.rename(old, new, NOW)
    assert store.client.dump(store.name()) == before
    assert store.provider.exists(key("other"), NOW)


def test_damage_does_not_stop_the_others(store: Store) -> None:
    for n in range(3):
        create(store.provider, n, user="s:ann", deadline=NOW + 1 + n)
    store.client.hset(store.name(0), "m", "damaged")
    store.client.delete(store.name(1))
    store.client.set(store.name(1), "text")
    assert list(store.provider.keys(NOW)) == [key(2)]
    assert store.provider.keys_of("s:ann", NOW) == [key(2)]
    assert [record.key for record in store.provider.purge(NOW + 9, 1)] == [key(2)]


def test_foreign_keys_are_left_alone(store: Store) -> None:
    foreign = f"{store.prefix}x"
    store.client.set(foreign, "1")
    create(store.provider)
    assert list(store.provider.keys(NOW)) == [key()]
    store.provider.destroy(key())
    assert store.client.get(foreign) == b"1"


# What the server may refuse


def test_a_server_that_forgot_the_scripts(own: Store) -> None:
    create(own.provider)
    own.client.script_flush()
    own.provider.commit(key(), Change(puts={"a": b"2"}), NOW)
    own.client.script_flush()
    assert own.provider.next_deadline() == NOW + 1000


def test_out_of_memory(own: Store) -> None:
    create(own.provider)
    own.client.config_set("maxmemory", 1)
    with pytest.raises(ProviderUnavailable, match="out of memory: raise maxmemory"):
        create(own.provider, 2)
    with pytest.raises(ProviderUnavailable, match="out of memory"):
        own.provider.commit(key(), Change(puts={"a": b"2"}), NOW)
    record = own.provider.load(key(), NOW)
    assert record is not None
    assert record.values == {"a": b"1"}
    assert own.provider.destroy(key())
    own.client.config_set("maxmemory", 0)
    assert own.names() == set()


def test_refusals_open_no_breaker(own: Store) -> None:
    create(own.provider)
    own.client.config_set("maxmemory", 1)
    for _ in range(20):
        with pytest.raises(ProviderUnavailable):
            own.provider.commit(key(), Change(puts={"a": b"2"}), NOW)
    assert not own.provider.breaker.is_open
    assert own.provider.load(key(), NOW) is not None


def test_a_replica(own: Store) -> None:
    create(own.provider)
    own.client.replicaof("127.0.0.1", 1)
    with pytest.raises(ProviderUnavailable, match="read-only replica: SESSION_REDIS must lead to"):
        own.provider.commit(key(), Change(puts={"a": b"2"}), NOW)
    own.client.replicaof("no", "one")
    own.provider.commit(key(), Change(puts={"a": b"2"}), NOW)


def test_too_few_replicas(own: Store) -> None:
    own.client.config_set("min-replicas-to-write", 1)
    with pytest.raises(ProviderUnavailable, match="fewer replicas"):
        create(own.provider)


@pytest.mark.parametrize("who", ["", "ann:hunter2@", ":hunter2@"])
def test_a_password_that_is_missing_or_wrong(own: Store, who: str) -> None:
    own.client.config_set("requirepass", "the right one")
    provider = RedisProvider(own.url.replace("//", f"//{who}"), budget=BUDGET)
    with pytest.raises(ProviderUnavailable, match="password") as caught:
        provider.load(key(), NOW)
    assert "SESSION_REDIS" in str(caught.value)
    assert "hunter2" not in repr(
        (caught.value, caught.value.__cause__, provider, provider._servers)
    )
    provider.close()


def test_a_user_who_may_not(own: Store) -> None:
    own.client.acl_setuser("ann", enabled=True, passwords=["+pw"], keys=["*"], categories=["-@all"])
    provider = RedisProvider(own.url.replace("//", "//ann:pw@"), budget=BUDGET)
    for call in (lambda: provider.load(key(), NOW), lambda: create(provider)):
        with pytest.raises(ProviderUnavailable, match=r"does not allow its user .* \+@scripting"):
            call()
    provider.close()


def test_a_user_who_may_what_is_asked_for(own: Store) -> None:
    may = ["-@all", *("+@" + name for name in ("hash", "sortedset", "keyspace", "string"))]
    own.client.acl_setuser(
        "ann",
        enabled=True,
        passwords=["+pw"],
        keys=[own.prefix + "*"],
        categories=[*may, "+@scripting"],
        commands=["+info"],
    )
    provider = RedisProvider(own.url.replace("//", "//ann:pw@"), own.prefix, budget=BUDGET)
    create(provider, user="s:ann")
    provider.rename(key(), key(2), NOW, alias_until=NOW + 9)
    assert provider.keys_of("s:ann", NOW) == list(provider.keys(NOW)) == [key(2)]
    with provider.lock(key(2), 1, 1):
        assert provider.stats()["sessions"] == 1
    assert provider.next_deadline() == NOW + 9
    assert len(provider.purge(NOW + 1e6, 10)) == 1
    provider.close()


def test_a_database_that_is_not_there(redis_server: Server) -> None:
    provider = RedisProvider(f"redis://{redis_server.address}/99", budget=BUDGET)
    with pytest.raises(ProviderUnavailable, match="does not have database"):
        provider.load(key(), NOW)
    provider.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_server_that_throws_away_is_told_of_once(
    own: Store, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    own.client.config_set("maxmemory-policy", policy)
    create(own.provider)
    threads = [threading.Thread(target=own.provider.load, args=(key(), NOW)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (message,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"maxmemory-policy {policy}" in message


def test_nothing_is_said_of_a_server_that_keeps(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    create(store.provider)
    assert caplog.records == []


# Names


@pytest.mark.parametrize("prefix", ["", None, 5])
def test_a_prefix_that_is_none(prefix: Any) -> None:
    with pytest.raises(ConfigError, match="SESSION_KEY_PREFIX"):
        RedisProvider("redis://localhost", prefix)


@pytest.mark.parametrize("prefix", ["{a}:", "a b*?[", "ключ:", "{"])
def test_any_prefix_will_do(redis_server: Server, prefix: str) -> None:
    url = f"redis://{redis_server.address}"
    ours, theirs = (RedisProvider(url, p + prefix, budget=BUDGET) for p in ("", new_prefix()))
    create(ours, user="s:ann", deadline=NOW + 10)
    assert theirs.load(key(), NOW) is None
    assert theirs.count(NOW) == 0
    assert theirs.purge(NOW + 99, 10) == []
    assert len(ours.purge(NOW + 99, 10)) == 1
    ours.close()
    theirs.close()


# Locks


def test_only_its_holder_lets_go_of_a_lock(store: Store) -> None:
    with store.provider.lock(key(), 0, 60):
        name = f"{store.prefix}@lock:{key()}"
        assert 0 < store.client.pttl(name) <= 60_000
        store.client.set(name, "another's")
    assert store.client.get(name) == b"another's"


def test_waiting_for_a_lock_takes_no_budget(redis_server: Server) -> None:
    provider = RedisProvider(f"redis://{redis_server.address}", new_prefix(), budget=5)
    with provider.lock(key(), 0, 60):
        begin_budget(1e-9)
        try:
            with pytest.raises(TimeoutError), provider.lock(key(), 0.1, 1):
                raise AssertionError("two held it")
        finally:
            end_budget()
    provider.close()


# Forks


def ask_in_child(provider: RedisProvider, answers: Any) -> None:
    record = provider.load(key(), NOW)
    client_id = provider._ask(key(), b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n")
    answers.send((record is not None, client_id))


def test_a_fork_makes_connections_of_its_own(store: Store) -> None:
    create(store.provider)
    mine = store.provider._ask(key(), b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n")
    context = multiprocessing.get_context("fork")
    theirs = set()
    for _ in range(3):
        answers, answer = context.Pipe(duplex=False)
        child = context.Process(target=ask_in_child, args=(store.provider, answer))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
            child.start()
        assert answers.poll(BUDGET)
        found, client_id = answers.recv()
        child.join()
        assert found
        theirs.add(client_id)
        assert store.provider.load(key(), NOW) is not None
    assert len(theirs) == 3
    assert mine not in theirs
    assert store.provider._ask(key(), b"*2\r\n$6\r\nCLIENT\r\n$2\r\nID\r\n") == mine


def test_threads_do_not_share_a_connection(store: Store) -> None:
    create(store.provider, puts={"n": b"0"})
    failed: list[object] = []

    def work(number: int) -> None:
        try:
            for n in range(100):
                name = f"{number}"
                store.provider.commit(key(), Change(puts={name: b"%d" % n}), NOW)
                record = store.provider.load(key(), NOW)
                assert record is not None
                assert record.values[name] == b"%d" % n
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_what_is_not_there(store: Store) -> None:
    with pytest.raises(SessionGone, match=key()[:12]):
        store.provider.commit(key(), Change(), NOW)
    create(store.provider)
    with pytest.raises(KeyTaken):
        create(store.provider)
