"""A server that is killed, frozen and back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from flask_hybridsession.core.breaker import begin_budget, end_budget
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.core.provider import Remote
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.redis.wire import pack
from tests.servers import REDIS, Server, running, says

from .tools import BUDGET, NOW, PATIENCE, create, key, wait_for

KEEPING = REDIS._replace(
    command=lambda port, folder: [
        *("redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    ]
)


@pytest.fixture
def server() -> Iterator[Server]:
    """One that keeps its data when it is killed."""
    with running(KEEPING) as server:
        yield server


@pytest.fixture
def provider(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[RedisProvider]:
    caplog.set_level(logging.CRITICAL, "flask_hybridsession")
    provider = RedisProvider(f"redis://{server.address}", budget=BUDGET)
    yield provider
    provider.close()


def client_id(provider: RedisProvider) -> int:
    found = provider._ask(key(), pack(b"CLIENT", b"ID"))
    assert isinstance(found, int)
    return found


def test_it_has_a_breaker(provider: RedisProvider) -> None:
    assert isinstance(provider, Remote)
    assert provider.breaker.budget == BUDGET


def test_a_frozen_server_costs_no_more_than_the_budget(
    server: Server, provider: RedisProvider
) -> None:
    create(provider)
    server.freeze()
    start = time.monotonic()
    begin_budget(0.2)
    try:
        for call in CALLS * 3:
            with pytest.raises(ProviderUnavailable):
                call(provider)
    finally:
        end_budget()
    assert 0.2 <= time.monotonic() - start < PATIENCE / 2
    server.thaw()


CALLS: list[Callable[[RedisProvider], object]] = [
    lambda provider: provider.load(key(), NOW),
    lambda provider: provider.commit(key(), Change(puts={"a": b"2"}), NOW),
    lambda provider: provider.rename(key(), key(2), NOW),
    lambda provider: provider.destroy(key()),
    lambda provider: provider.next_deadline(),
    lambda provider: provider.purge(NOW, 1),
    lambda provider: provider.count(NOW),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_any_call_on_a_killed_server(server: Server, provider: RedisProvider, call: int) -> None:
    create(provider)
    server.kill()
    with pytest.raises(ProviderUnavailable, match="Redis at 127"):
        CALLS[call](provider)
    server.start()
    record = provider.load(key(), NOW)
    assert record is not None
    assert record.values == {"a": b"1"}


def test_a_connection_that_timed_out_is_never_used_again(
    server: Server, provider: RedisProvider
) -> None:
    """Its answer comes late, and would be taken for the next one's (CVE-2023-28858)."""
    create(provider, 1, puts={"whose": b"one's"})
    create(provider, 2, puts={"whose": b"two's"})
    before = client_id(provider)
    server.freeze()
    begin_budget(0.05)
    with pytest.raises(ProviderUnavailable, match="in time"):
        provider.load(key(1), NOW)
    end_budget()
    server.thaw()
    for n, whose in ((2, b"two's"), (1, b"one's"), (2, b"two's")):
        record = provider.load(key(n), NOW)
        assert record is not None
        assert record.values == {"whose": whose}
    assert client_id(provider) != before


def test_a_restart_between_two_calls_is_not_noticed(
    server: Server, provider: RedisProvider
) -> None:
    create(provider)
    for _ in range(3):
        server.stop()
        server.start()
        provider.commit(key(), Change(puts={"a": b"2"}), NOW)
    assert not provider.breaker.is_open


def test_connections_that_the_server_closed_are_not_noticed(
    server: Server, provider: RedisProvider
) -> None:
    create(provider)
    with redis.Redis(port=server.port) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    provider.commit(key(), Change(puts={"a": b"2"}), NOW)


def test_calls_are_refused_until_it_is_back(server: Server, provider: RedisProvider) -> None:
    create(provider)
    recovered: list[bool] = []
    provider.breaker.on_recovery(lambda: recovered.append(provider.destroy(key(9))))
    server.kill()
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            provider.load(key(), NOW)
    assert provider.breaker.is_open
    with pytest.raises(ProviderUnavailable, match="being probed"):
        provider.load(key(), NOW)
    server.start()
    wait_for(lambda: not provider.breaker.is_open, "the breaker to let calls through")
    assert provider.load(key(), NOW) is not None
    assert recovered[-1] is False


def test_a_server_that_loads_its_data_is_away(server: Server, provider: RedisProvider) -> None:
    create(provider)
    with redis.Redis(port=server.port) as client:
        client.config_set("appendfsync", "no")
        client.eval("for n = 1, 40000 do redis.call('SET', 'fill ' .. n, n) end", 0)
    server.stop()
    slow_start = KEEPING._replace(
        command=lambda port, folder: [
            *(*KEEPING.command(port, server._folder), "--key-load-delay", "500"),
        ],
        answers=lambda port: says(port, b"PING\r\n", b"-LOADING"),
    )
    with running(slow_start) as loading:
        slow = RedisProvider(f"redis://{loading.address}", budget=BUDGET)
        with pytest.raises(ProviderUnavailable, match="is loading its data"):
            slow.load(key(), NOW)
        with pytest.raises(ProviderUnavailable, match="is loading its data"):
            slow._servers.check(BUDGET)
        slow.close()


# With gevent: the provider is used before the fork, gevent takes over after that.

GREENLETS = """
import os, sys
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import Conflict
from flask_hybridsession.providers.redis import RedisProvider

provider = RedisProvider(sys.argv[1], budget=20.0)
KEYS = ["%064x" % n for n in range(3)]
for key in KEYS:
    provider.commit(key, Change({"n": b"0", "whose": key.encode()}, create=True), 0.0)
provider.load(KEYS[0], 0.0)

child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

from gevent import monkey

monkey.patch_all()
import gevent

def count():
    for _ in range(10):
        held = provider.load(KEYS[0], 0.0).values["n"]
        while True:
            change = Change({"n": b"%d" % (int(held) + 1)}, expects={"n": held})
            try:
                provider.commit(KEYS[0], change, 0.0)
                break
            except Conflict as conflict:
                held = conflict.current.values["n"]

gevent.joinall([gevent.spawn(count) for _ in range(20)], raise_error=True)
assert provider.load(KEYS[0], 0.0).values["n"] == b"200"

import redis

with redis.Redis.from_url(sys.argv[1]) as client:
    client.client_pause(300, all=True)
for _ in range(3):
    try:
        with gevent.Timeout(0.01):
            provider.load(KEYS[1], 0.0)
        raise AssertionError("no pause")
    except gevent.Timeout:
        pass
assert provider.load(KEYS[2], 0.0).values["whose"] == KEYS[2].encode()
provider.close()
print("done")
"""


def test_greenlets(server: Server, tmp_path: Path) -> None:
    script = tmp_path / "greenlets.py"
    script.write_text(GREENLETS)
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), f"redis://{server.address}"],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
    )
    assert done.stdout == "done\n", done.stderr
