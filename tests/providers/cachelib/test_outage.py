"""Servers that freeze, die and come back, under the caches whose servers can be run here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cachelib
import pymemcache
import pytest
import redis
import valkey

from flask_hybridsession.core.breaker import begin_budget, end_budget
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.core.provider import Remote
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import create, load, new_key
from tests.overlap.web import wait_for
from tests.providers.cachelib.servers import VALKEY
from tests.servers import MEMCACHED, REDIS, Program, Server, running

NOW = 1_700_000_000.0
#: Seconds that no call of ours comes near, and that each of the clients here would wait.
LONG = 60.0


class Kind(NamedTuple):
    program: Program
    #: Settings for a server, or a cache over a client that would wait for long.
    make: Callable[[Server], Any]


def of_type(name: str) -> Callable[[Server], Any]:
    return lambda server: {"type": name, "host": server.host, "port": server.port}


KINDS = {
    "RedisCache": Kind(REDIS, of_type("RedisCache")),
    "ValkeyCache": Kind(VALKEY, of_type("ValkeyCache")),
    "MemcachedCache": Kind(
        MEMCACHED, lambda server: {"type": "MemcachedCache", "servers": server.address}
    ),
    "a RedisCache": Kind(
        REDIS,
        lambda server: cachelib.RedisCache(
            redis.Redis(server.host, server.port, socket_timeout=LONG)
        ),
    ),
    "a RedisCache over a blocking pool": Kind(
        REDIS,
        lambda server: cachelib.RedisCache(
            redis.Redis(
                connection_pool=redis.BlockingConnectionPool(
                    host=server.host, port=server.port, socket_timeout=LONG
                )
            )
        ),
    ),
    "a ValkeyCache": Kind(
        VALKEY,
        lambda server: cachelib.ValkeyCache(
            valkey.Valkey(server.host, server.port, socket_timeout=LONG)
        ),
    ),
    "a MemcachedCache": Kind(
        MEMCACHED,
        lambda server: cachelib.MemcachedCache(pymemcache.Client(server.address, timeout=LONG)),
    ),
}


class Stage(NamedTuple):
    server: Server
    provider: CachelibProvider
    breaker: Any


@pytest.fixture(params=KINDS)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    program, make = KINDS[request.param]
    with running(program) as server:
        provider = CachelibProvider.from_settings(Settings(cachelib=make(server)))
        assert isinstance(provider, Remote)
        yield Stage(server, provider, provider.breaker)
        provider.close()


def seconds_of(call: Callable[[], object]) -> float:
    start = time.monotonic()
    with pytest.raises(ProviderUnavailable):
        call()
    return time.monotonic() - start


def until_created(provider: CachelibProvider) -> str:
    """A session, on a machine that may be too busy for a quarter of a second."""
    made: list[str] = []

    def done() -> bool:
        try:
            made.append(create(provider, NOW, {"a": b"1"}))
        except ProviderUnavailable:
            return False
        return True

    wait_for(done, "a session")
    return made[0]


def until_found(provider: CachelibProvider, key: str) -> None:
    def found() -> bool:
        try:
            return provider.exists(key, NOW)
        except ProviderUnavailable:
            return False

    wait_for(found, "the session")


def test_a_frozen_server(stage: Stage) -> None:
    server, provider, breaker = stage
    assert breaker.budget == 0.25
    key = until_created(provider)
    server.freeze()
    spent = 0.0
    for _ in range(5):
        spent += seconds_of(lambda: provider.load(key, NOW))
    assert spent < LONG / 4, "one call alone would take longer, were it left to the client"
    assert breaker.is_open
    before = time.process_time()
    for _ in range(100):
        seconds_of(lambda: provider.commit(key, Change(puts={"a": b"2"}), NOW))
        seconds_of(lambda: provider.destroy(new_key()))
    assert time.process_time() - before < 5
    server.thaw()
    until_found(provider, key)
    assert load(provider, key, NOW).values == {"a": b"1"}


def test_the_calls_of_a_request_share_its_time(stage: Stage) -> None:
    server, provider, _ = stage
    key = until_created(provider)
    begin_budget(0.25)
    try:
        server.freeze()
        with pytest.raises(ProviderUnavailable) as first:
            provider.load(key, NOW)
        with pytest.raises(ProviderUnavailable, match="used up its time") as second:
            provider.load(key, NOW)
        assert first.value.__cause__ is not None
        assert second.value.__cause__ is None
    finally:
        server.thaw()
        end_budget()
    until_found(provider, key)


def test_a_server_that_is_killed(stage: Stage) -> None:
    server, provider, breaker = stage
    key = until_created(provider)
    server.kill()
    for _ in range(5):
        seconds_of(lambda: provider.load(key, NOW))
    assert breaker.is_open
    server.start()
    until_created(provider)
    assert provider.load(key, NOW) is None
