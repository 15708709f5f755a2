"""``DynamoDbCache`` over the real boto3, with an emulator in DynamoDB's place (moto's server).

That shows that we ask for what we mean, and what becomes of answers and of failures. It does not
show that Amazon's own answers are the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import boto3
import cachelib
import pytest
from botocore.config import Config

from flask_hybridsession.core.blob import MARK
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ConfigError, CorruptData, ProviderUnavailable
from flask_hybridsession.core.provider import Provider, Remote
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import ProviderSuite, create, load, new_key
from tests.providers.cachelib.servers import MOTO
from tests.servers import HOST, Server, free_port, running

NOW = 1_700_000_000.0
ACCOUNT = {
    "region_name": "eu-central-1",
    "aws_access_key_id": "nobody",
    "aws_secret_access_key": "nothing",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(MOTO) as server:
        yield server


def at(server: Server) -> dict[str, Any]:
    return {**ACCOUNT, "endpoint_url": f"http://{server.address}"}


def made(server: Server, prefix: str = "s:", **options: Any) -> CachelibProvider:
    given = {"type": "DynamoDbCache", "budget": 30.0, **at(server), **options}
    return CachelibProvider.from_settings(Settings(options=given, key_prefix=prefix))


class TestDynamoDbCache(ProviderSuite):
    """What the suite asks one after the other. At once: an emulator is no judge of that."""

    shared = "process"

    @pytest.fixture
    def crew(self) -> None:
        pytest.skip("needs DynamoDB itself")

    @pytest.fixture(autouse=True)
    def _server(self, server: Server) -> None:
        self.server = server

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return made(self.server, f"{self.path}:"[-80:])

    @pytest.mark.parametrize("size", [0, 1, 255, 65_536, 300_000])  # an item has 400 KB
    def test_values_of_any_size(
        self, provider: Provider, again: Provider, now: float, size: int
    ) -> None:
        super().test_values_of_any_size(provider, again, now, size)


@pytest.fixture
def provider(server: Server) -> Iterator[CachelibProvider]:
    provider = made(server)
    yield provider
    provider.close()


@pytest.fixture
def table(server: Server, provider: CachelibProvider) -> Any:
    """A back door."""
    return boto3.resource("dynamodb", **at(server)).Table("python-cache")


def test_reads_are_consistent_and_only_of_a_session(provider: CachelibProvider) -> None:
    asked: list[dict[str, Any]] = []
    events = provider._cache._client.meta.events
    events.register(
        "before-call.dynamodb.GetItem",
        lambda params, **_: asked.append(params["body"]),
    )
    assert provider.load(new_key(), NOW) is None
    assert len(asked) == 2
    assert all(b'"ConsistentRead": true' in body for body in asked)


def test_what_is_stored_is_bytes_of_ours(provider: CachelibProvider, table: Any) -> None:
    now = time.time()
    key = create(provider, now, {"a": b"1"}, deadline=now + 60)
    item = table.get_item(Key={"cache_key": f"s:{key}"})["Item"]
    assert item["response"].value.startswith(MARK)
    assert now + 90 < item["expiration_time"] < now + 150
    for_ever = create(provider, now)
    assert "expiration_time" not in table.get_item(Key={"cache_key": f"s:{for_ever}"})["Item"]


def test_a_table_is_made_with_a_time_to_live(server: Server, provider: CachelibProvider) -> None:
    made(server, table_name="another").close()
    client = boto3.client("dynamodb", **at(server))
    answer = client.describe_time_to_live(TableName="another")["TimeToLiveDescription"]
    assert answer == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expiration_time"}


def test_what_is_past_its_time_is_looked_past(provider: CachelibProvider, table: Any) -> None:
    key, now = new_key(), int(time.time())
    junk = {"response": b"\0", "created_at": "x"}
    table.put_item(Item={"cache_key": f"s:{key}", "expiration_time": now - 1, **junk})
    table.put_item(Item={"cache_key": f"s:gone:{key}", "expiration_time": now - 1, **junk})
    assert provider.load(key, NOW) is None
    create(provider, NOW, {"a": b"1"}, key=key)
    assert load(provider, key, NOW).values == {"a": b"1"}
    assert provider.destroy(key)
    assert not provider.destroy(key)


@pytest.mark.parametrize("value", ["text", 7, b"\x80\x04\x95", None, {"a": 1}])
def test_what_is_not_ours_is_not_served(
    provider: CachelibProvider, table: Any, value: object
) -> None:
    key = new_key()
    table.put_item(Item={"cache_key": f"s:{key}", "response": value})
    with pytest.raises(CorruptData):
        provider.load(key, NOW)
    assert provider.destroy(key)
    assert provider.load(key, NOW) is None


def test_a_mark_is_made_once(provider: CachelibProvider) -> None:
    cache = provider._cache
    name = f"s:gone:{new_key()}"
    assert cache.add(name, b"first", 0) is True
    assert cache.add(name, b"second", 0) is False
    assert cache.get(name) == b"first"
    assert cache.delete(name) is True
    assert cache.delete(name) is False


def test_a_session_that_is_too_large_stays_as_it_was(provider: CachelibProvider) -> None:
    key = create(provider, NOW, {"a": b"1"})
    with pytest.raises(ProviderUnavailable, match="larger than its items"):
        provider.commit(key, Change(puts={"b": bytes(400 * 1024)}), NOW)
    assert load(provider, key, NOW).values == {"a": b"1"}


def test_a_refusal_is_said_in_its_own_words(provider: CachelibProvider, table: Any) -> None:
    provider._cache._table_name = "nowhere"
    with pytest.raises(ProviderUnavailable, match="ResourceNotFoundException"):
        provider.load(new_key(), NOW)
    assert isinstance(provider, Remote)
    for _ in range(6):  # the server is there: this is no outage
        with pytest.raises(ProviderUnavailable, match="ResourceNotFoundException"):
            provider.destroy(new_key())
    assert not provider.breaker.is_open


def test_a_cache_of_the_users(server: Server, provider: CachelibProvider) -> None:
    quick = Config(connect_timeout=0.2, read_timeout=0.2)
    cache = cachelib.DynamoDbCache(config=quick, **at(server))
    key = create(provider, NOW, {"a": b"1"})
    theirs = CachelibProvider(cache, "s:")
    assert load(theirs, key, NOW).values == {"a": b"1"}
    cache.set("theirs", (1, 2))
    assert cache.get("theirs") == (1, 2)
    theirs.close()


def test_a_client_that_waits_for_a_minute_is_warned_of(server: Server) -> None:
    with pytest.warns(UserWarning, match="may wait 60 seconds"):
        CachelibProvider(cachelib.DynamoDbCache(**at(server)))


def test_a_server_that_freezes() -> None:
    with running(MOTO) as server:
        made(server).close()  # the table is there
        hurried = made(server, budget=0.25)
        assert isinstance(hurried, Remote)
        assert hurried._cache._client.meta.config.read_timeout == 0.125
        assert hurried._cache._client.meta.config.retries["total_max_attempts"] == 1
        server.freeze()
        start = time.monotonic()
        for _ in range(5):
            with pytest.raises(ProviderUnavailable) as error:
                hurried.load(new_key(), NOW)
            assert error.value.__cause__ is not None
        assert time.monotonic() - start < 30, "one call would take 60, were it left to the client"
        assert hurried.breaker.is_open
        hurried.close()


def test_it_is_made_while_its_server_is_away() -> None:
    nowhere = {**ACCOUNT, "endpoint_url": f"http://{HOST}:{free_port()}"}
    options = {"type": "DynamoDbCache", **nowhere}
    provider = CachelibProvider.from_settings(Settings(options=options))
    with pytest.raises(ProviderUnavailable, match="EndpointConnectionError") as error:
        provider.load(new_key(), NOW)
    assert ACCOUNT["aws_secret_access_key"] not in str(error.value)
    provider.close()


def test_it_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(ConfigError, match="cannot be made: NoRegionError"):
        CachelibProvider.from_settings(Settings(options={"type": "DynamoDbCache"}))
