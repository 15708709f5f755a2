"""What SESSION_REDIS may be."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from redis.backoff import ConstantBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from flask_hybridsession import HybridSession
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.redis.connect import Sentinels, read
from tests.redis_servers import Watched
from tests.servers import HOST, REDIS, Server, running

from .tools import BUDGET, NOW, create, key, new_prefix


def works(client: Any, **options: Any) -> None:
    provider = RedisProvider(client, new_prefix(), budget=BUDGET, **options)
    create(provider, user="s:ann")
    record = provider.load(key(), NOW)
    assert record is not None
    assert record.values == {"a": b"1"}
    assert record.user == "s:ann"
    assert provider.destroy(key())
    provider.close()


def test_a_client(redis_server: Server) -> None:
    """Whatever its own ways are."""
    with redis.Redis(
        port=redis_server.port,
        db=2,
        decode_responses=True,
        protocol=3,
        health_check_interval=1,
        client_name="theirs",
        retry=Retry(ConstantBackoff(60), 3),
        retry_on_error=[redis.ResponseError],
        max_connections=1,
    ) as client:
        works(client)
        provider = RedisProvider(client, "p:", budget=BUDGET)
        create(provider)
        assert client.exists(f"p:{key()}")
        assert client.type(f"p:{key()}") == "hash"
        provider.close()
        client.delete(f"p:{key()}", "p:@due")


def test_a_client_by_url(redis_server: Server) -> None:
    with redis.Redis.from_url(f"redis://{redis_server.address}/1?socket_timeout=99") as client:
        works(client)


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    at_socket = REDIS._replace(
        command=lambda port, folder: [*REDIS.command(port, folder), "--unixsocket", str(path)]
    )
    with running(at_socket), redis.Redis(unix_socket_path=str(path)) as client:
        works(client)
        works(f"unix://{path}?db=1")


def test_a_sentinel(redis_sentinels: Watched) -> None:
    sentinel = Sentinel([(HOST, 1), (HOST, redis_sentinels.sentinel.port)], socket_timeout=30)
    works(sentinel, service="sessions")
    with sentinel.master_for("sessions", decode_responses=True, db=1) as client:
        works(client)
    works(f"redis://{redis_sentinels.sentinel.address}/1", service="sessions")
    with sentinel.slave_for("sessions") as client, pytest.raises(ConfigError, match="master_for"):
        RedisProvider(client)
    with pytest.raises(ConfigError, match='"service"'):
        RedisProvider(sentinel)
    for client in sentinel.sentinels:
        client.close()


def test_a_service_that_no_sentinel_knows(redis_sentinels: Watched) -> None:
    url = f"redis://{redis_sentinels.sentinel.address}"
    provider = RedisProvider(url, service="other", budget=BUDGET)
    with pytest.raises(ProviderUnavailable, match="service 'other'"):
        provider.load(key(), NOW)


def test_a_sentinel_names_no_master(redis_sentinels: Watched) -> None:
    """What a sentinel names is asked whether it is one."""
    given = read(f"redis://{redis_sentinels.sentinel.address}", "sessions")

    class Mistaken(Sentinels):
        def _ask(self, sentinel: Any, give_up: float) -> tuple[str, int]:
            return HOST, redis_sentinels.replica.port

    with pytest.raises(ProviderUnavailable, match="no sentinel knows a master"):
        Mistaken(given).connect(time.monotonic() + BUDGET)


def test_a_cluster(redis_cluster: list[Server]) -> None:
    with RedisCluster(host=HOST, port=redis_cluster[1].port, decode_responses=True) as client:
        works(client)
    works([f"redis://{HOST}:1", f"redis://{redis_cluster[2].address}"], cluster=True)


def test_a_server_that_is_no_cluster(redis_server: Server) -> None:
    provider = RedisProvider(f"redis://{redis_server.address}", cluster=True, budget=BUDGET)
    with pytest.raises(ProviderUnavailable, match="no node"):
        provider.load(key(), NOW)


def test_a_node_that_is_taken_for_a_server(redis_cluster: list[Server]) -> None:
    provider = RedisProvider(f"redis://{redis_cluster[0].address}", budget=BUDGET)

    def load_some() -> None:
        for n in range(20):
            provider.load(key(n), NOW)

    with pytest.raises(ProviderUnavailable, match=r'"cluster": True'):
        load_some()
    provider.close()


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (None, {}, "must be a URL"),
        (5, {}, "must be a URL"),
        ([], {}, "must be a URL"),
        (["redis://a", 5], {}, "must be a URL"),
        (b"redis://a", {}, "must be a URL"),
        ("localhost", {}, "no URL of a Redis"),
        ("http://a", {}, "no URL of a Redis"),
        ("redis://:hunter2@host:port/0", {}, "no URL of a Redis"),
        (["redis://a", "redis://b"], {}, "several sentinels or nodes"),
        ("redis://a", {"cluster": True, "service": "m"}, "exclude each other"),
        ("redis://a", {"budget": 0}, "budget"),
    ],
)
def test_what_it_may_not_be(given: Any, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        RedisProvider(given, **options)
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_secrets_are_not_shown() -> None:
    given = read("redis://ann:hunter2@localhost:6379/1")
    assert "hunter2" not in repr(given)
    assert "localhost:6379" in repr(given)


# Through Flask


@pytest.fixture
def app() -> Iterator[Flask]:
    app = Flask(__name__)
    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_KEY_PREFIX"] = new_prefix()
    app.config["SESSION_OPTIONS"] = {"budget": BUDGET}
    yield app
    if "hybridsession" in app.extensions:
        app.extensions["hybridsession"].close()


def test_it_must_be_said(app: Flask) -> None:
    with pytest.raises(ConfigError, match="SESSION_REDIS"):
        HybridSession(app)


def test_an_app_starts_while_redis_is_down(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with running(REDIS) as server:
        server.stop()
        app.config["SESSION_REDIS"] = f"redis://{server.address}"
        caplog.set_level(logging.CRITICAL, "flask_hybridsession")
        sessions = HybridSession(app)
        with pytest.raises(ProviderUnavailable, match="cannot be reached"):
            sessions.provider.load(key(), NOW)
        server.start()
        assert sessions.provider.load(key(), NOW) is None


def test_options_that_it_does_not_know(app: Flask) -> None:
    app.config["SESSION_REDIS"] = "redis://localhost"
    app.config["SESSION_OPTIONS"] = {"host": "x"}
    with pytest.raises(ConfigError, match="SESSION_OPTIONS do not fit"):
        HybridSession(app)
