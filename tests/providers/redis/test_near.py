"""The near cache: what it serves, and what it never serves."""

from __future__ import annotations

import logging
import multiprocessing
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from math import inf, nan
from typing import Any

import pytest
import redis

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.redis.near import LARGEST, Near
from flask_hybridsession.testing import ProviderSuite
from tests.servers import HOST, REDIS, Server, running

from .tools import BUDGET, NOW, PATIENCE, create, key, new_prefix, wait_for


class TestSuite(ProviderSuite):
    """Among the threads of one worker nothing is late."""

    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server) -> None:
        self.url = f"redis://{redis_server.address}"

    def make_provider(self) -> RedisProvider:
        made = RedisProvider(self.url, new_prefix(), near_cache=PATIENCE, budget=BUDGET)
        warm(made)
        return made


def warm(provider: RedisProvider) -> None:
    """Wait until it hears."""
    assert provider._near is not None
    provider.load(key("nobody's"), NOW)
    wait_for(lambda: provider._near._fresh_at > -inf, "the bus")  # type: ignore[union-attr]


class Pair:
    """A worker with a near cache, another without, and a client that looks behind them."""

    def __init__(self, server: Server, bound: float = PATIENCE) -> None:
        self.prefix = new_prefix()
        self.url = f"redis://{server.address}"
        self.near = RedisProvider(self.url, self.prefix, near_cache=bound, budget=BUDGET)
        self.other = RedisProvider(self.url, self.prefix, budget=BUDGET)
        self.client: Any = redis.Redis(port=server.port)
        warm(self.near)

    def reads(self) -> int:
        """How often sessions were read from Redis."""
        return int(self.client.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])

    def kept(self) -> int:
        assert self.near._near is not None
        return len(self.near._near)

    def close(self) -> None:
        self.near.close()
        self.other.close()
        self.client.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    with running(REDIS) as server:
        yield server


@pytest.fixture
def pair(own_server: Server) -> Iterator[Pair]:
    pair = Pair(own_server)
    yield pair
    pair.close()


def value(provider: RedisProvider, name: object = "") -> bytes | None:
    record = provider.load(key(name), NOW)
    return None if record is None else record.values.get("a")


def settle(pair: Pair, *names: object) -> None:
    """Wait until the sessions are kept: word of how they were made comes late."""

    def kept() -> bool:
        for name in names or ("",):
            pair.near.load(key(name), NOW)
        return pair.kept() == len(names or ("",))

    asked = time.monotonic()
    wait_for(lambda: pair.near._near._fresh_at > asked, "word of it")  # type: ignore[union-attr]
    wait_for(kept, "it to be kept")


# What it serves


def test_a_second_read_asks_nobody(pair: Pair) -> None:
    create(pair.near)
    settle(pair)
    first = pair.near.load(key(), NOW)
    before = pair.reads()
    assert all(pair.near.load(key(), NOW) == first for _ in range(10))
    assert pair.reads() == before
    assert pair.near.stats()["near_cache"] == 1


def test_what_is_written_here_is_seen_at_once(pair: Pair) -> None:
    create(pair.near)
    for n in range(200):
        pair.near.commit(key(), Change(puts={"a": b"%d" % n}), NOW)
        assert value(pair.near) == b"%d" % n
    pair.near.rename(key(), key(2), NOW, alias_until=NOW + 9)
    assert value(pair.near, 2) == value(pair.near) == b"199"
    pair.near.commit(key(), Change(puts={"a": b"through the alias"}), NOW)
    assert value(pair.near, 2) == b"through the alias"
    assert pair.near.destroy(key(2))
    assert value(pair.near, 2) is value(pair.near) is None


@pytest.mark.parametrize(
    "end",
    [
        lambda pair: pair.other.commit(key(), Change(puts={"a": b"2"}), NOW),
        lambda pair: pair.other.destroy(key()),
        lambda pair: pair.other.rename(key(), key(2), NOW),
        lambda pair: pair.other.purge(NOW + 1e6, 10),
        lambda pair: pair.client.delete(pair.prefix + key()),
        lambda pair: pair.client.pexpire(pair.prefix + key(), 1),
        lambda pair: pair.client.flushall(),
    ],
    ids=["commit", "destroy", "rename", "purge", "delete", "expire", "flush"],
)
def test_what_is_written_elsewhere_is_heard_of(pair: Pair, end: Any) -> None:
    create(pair.other)
    settle(pair)
    end(pair)
    wait_for(lambda: value(pair.near) != b"1", "word of it")
    assert value(pair.near) == value(pair.other)


def test_other_sessions_stay(pair: Pair) -> None:
    for n in range(5):
        create(pair.other, n, user="s:ann")
    settle(pair, *range(5))
    pair.other.commit(key(0), Change(puts={"a": b"2"}, deadline=NOW + 99), NOW)
    wait_for(lambda: value(pair.near, 0) == b"2", "word of it")
    before = pair.reads()
    assert [value(pair.near, n) for n in range(1, 5)] == [b"1"] * 4
    assert pair.reads() == before


def test_a_deadline_is_judged_by_the_clock(pair: Pair) -> None:
    create(pair.near, deadline=NOW + 10)
    settle(pair)
    before = pair.reads()
    assert pair.near.load(key(), NOW + 10) is None
    assert pair.near.load(key(), NOW + 9) is not None
    assert pair.reads() == before


def test_a_lock_begins_with_what_is_stored(pair: Pair) -> None:
    create(pair.near)
    settle(pair)
    with pair.near.lock(key(), 1, 60):
        before = pair.reads()
        assert value(pair.near) == b"1"
        assert pair.reads() == before + 1


# What it never serves


def test_what_changes_while_it_is_read_is_not_kept() -> None:
    near = Near(lambda give_up: pytest.fail("asked"), b"", 1.0)
    record = Record(key(), {}, NOW, NOW, inf)
    token = near.begin(key())
    near.drop(key())
    near.keep(key(), token, record)
    assert len(near) == 0
    token = near.begin(key())
    near.flush()
    near.keep(key(), token, record)
    assert len(near) == 0
    first, second = near.begin(key()), near.begin(key())
    near.keep(key(), first, record._replace(deadline=NOW))
    near.keep(key(), second, record)
    assert list(near._records.values()) == [record]
    assert near._reading == {}


def test_it_is_no_larger_than_it_may_be() -> None:
    near = Near(lambda give_up: pytest.fail("asked"), b"", 1.0, size=3)
    near._fresh_at, near._bus = inf, near  # type: ignore[assignment]
    for n in range(5):
        near.keep(key(n), near.begin(key(n)), Record(key(n), {}, NOW, NOW, inf))
        assert (near.get(key(2)) is None) == (n < 2)
        near.get(key(0))
    assert set(near._records) == {key(0), key(2), key(4)}
    large = Record(key(), {"a": bytes(LARGEST + 1)}, NOW, NOW, inf)
    near.keep(key(), near.begin(key()), large)
    assert near.get(key()) is None
    near._bus = None


def test_readers_and_a_writer_in_another_place(pair: Pair) -> None:
    """Whatever overlaps: once the last change is heard of, the one before is not served again."""
    create(pair.near)
    failed: list[BaseException] = []

    def read(stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                value(pair.near)
        except BaseException as error:
            failed.append(error)

    for n in range(30):
        stop = threading.Event()
        threads = [threading.Thread(target=read, args=(stop,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        last = b"%d" % n
        for step in (b"not yet", b"still not", last):
            pair.other.commit(key(), Change(puts={"a": step}), NOW)
        wait_for(lambda last=last: value(pair.near) == last, "the last change")
        assert {value(pair.near) for _ in range(50)} == {last}
        stop.set()
        for thread in threads:
            thread.join()
        assert {value(pair.near) for _ in range(50)} == {last}
    assert failed == []


# The bound


class Proxy:
    """Passes everything on, until what comes over the bus is held back."""

    def __init__(self, server: Server) -> None:
        self._target = server.port
        self._listener = socket.create_server((HOST, 0))
        self.url = f"redis://{HOST}:{self._listener.getsockname()[1]}"
        self.silent = threading.Event()
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection((HOST, self._target))
                self._sockets += [client, server]
                is_bus = threading.Event()
                self._start(self._pass, client, server, is_bus, True)
                self._start(self._pass, server, client, is_bus, False)

    def _pass(
        self, source: socket.socket, sink: socket.socket, is_bus: threading.Event, up: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if up and b"TRACKING" in data:
                    is_bus.set()
                if not (is_bus.is_set() and self.silent.is_set()):
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        for one in self._sockets:
            one.close()


def test_a_bus_that_falls_silent(own_server: Server) -> None:
    """What is old is served for no longer than the bound after it was changed elsewhere."""
    bound = 0.6
    proxy = Proxy(own_server)
    pair = Pair(own_server)
    near = RedisProvider(proxy.url, pair.prefix, near_cache=bound, budget=BUDGET)
    warm(near)
    create(pair.other)
    for n in range(2):
        wait_for(lambda: value(near) and near.stats()["near_cache"] == 1, "the record to be kept")
        proxy.silent.set()
        old = value(near)
        pair.other.commit(key(), Change(puts={"a": b"new %d" % n}), NOW)
        changed = time.monotonic()
        while True:
            began = time.monotonic()
            if value(near) != old:
                break
            assert began < changed + bound
        assert value(near) == b"new %d" % n
        proxy.silent.clear()
        warm(near)
        assert value(near) == b"new %d" % n
    near.close()
    pair.close()
    proxy.close()


def test_a_server_that_is_frozen(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")
    bound = 0.5
    near = RedisProvider(f"redis://{own_server.address}", near_cache=bound, budget=0.2)
    warm(near)
    create(near)
    assert value(near) == b"1"
    own_server.freeze()
    frozen = time.monotonic()

    def read_on() -> None:
        while True:
            began = time.monotonic()
            value(near)
            assert began < frozen + bound

    with pytest.raises(ProviderUnavailable):
        read_on()
    own_server.thaw()
    wait_for(lambda: not near.breaker.is_open and answers(near) == b"1", "it to answer")
    near.close()


def answers(provider: RedisProvider) -> bytes | None:
    with suppress(ProviderUnavailable):
        return value(provider)
    return None


def test_a_bus_that_is_cut(pair: Pair) -> None:
    """What was missed while nobody listened is not served."""
    create(pair.near)
    for n in range(5):
        assert value(pair.near) is not None
        before = pair.near._near._fresh_at  # type: ignore[union-attr]
        (bus,) = [c["id"] for c in pair.client.client_list() if "t" in c["flags"]]
        with pair.client.pipeline(transaction=True) as both:
            both.client_kill_filter(_id=bus)
            both.hset(pair.prefix + key(), "=a", f"missed {n}")
            both.execute()
        wait_for(lambda n=n: value(pair.near) == b"missed %d" % n, "the new value")
        wait_for(lambda before=before: pair.near._near._fresh_at > before, "the bus")  # type: ignore[union-attr]
        assert value(pair.near) == b"missed %d" % n


def test_a_restart(own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")
    pair = Pair(own_server)
    create(pair.near)
    assert value(pair.near) == b"1"
    own_server.stop()
    own_server.start()
    wait_for(lambda: pair.kept() == 0 and answers(pair.near) is None, "it to forget")
    create(pair.near, puts={"a": b"again"})
    wait_for(lambda: value(pair.near) and pair.kept() == 1, "it to keep again")
    pair.close()


def in_child(provider: RedisProvider, pipe: Any) -> None:
    warm(provider)
    pipe.send(value(provider))
    pipe.recv()
    wait_for(lambda: value(provider) == b"2", "word of the change")
    pipe.send(value(provider))
    provider.close()


def test_a_fork_listens_for_itself(pair: Pair) -> None:
    create(pair.near)
    assert value(pair.near) == b"1"
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=in_child, args=(pair.near, theirs))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        child.start()
    assert mine.poll(PATIENCE)
    assert mine.recv() == b"1"
    pair.near.commit(key(), Change(puts={"a": b"2"}), NOW)
    mine.send("go on")
    assert mine.poll(PATIENCE)
    assert mine.recv() == b"2"
    child.join()
    settle(pair)
    assert value(pair.near) == b"2"


def test_closing_ends_the_thread(pair: Pair) -> None:
    before = threading.active_count()
    pair.near.close()
    pair.near.close()
    assert threading.active_count() == before - 1


# Settings


@pytest.mark.parametrize("bound", [0, -1, True, "1", inf, nan, [1]])
def test_a_bound_that_is_none(bound: Any) -> None:
    with pytest.raises(ConfigError, match="near_cache must be more than 0"):
        RedisProvider("redis://localhost", near_cache=bound)


def test_not_in_a_cluster() -> None:
    with pytest.raises(ConfigError, match="does not work with a cluster"):
        RedisProvider("redis://localhost", cluster=True, near_cache=1.0)
