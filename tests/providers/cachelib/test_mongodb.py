"""``MongoDbCache``: what can be tested without a MongoDB, which neither Debian nor PyPI has.

``mongomock``, an emulator within this process, shows that we ask for what we mean; the real pymongo
meets servers that are not there or do not answer. None of it shows what a MongoDB does.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import cachelib
import mongomock
import pymongo
import pytest

from flask_hybridsession.core.blob import MARK
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import CorruptData, ProviderUnavailable
from flask_hybridsession.core.provider import Provider, Remote
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import ProviderSuite, create, new_key
from tests.servers import HOST, free_port

NOW = 1_700_000_000.0


def over(client: Any) -> cachelib.MongoDbCache:
    return cachelib.MongoDbCache(client, key_prefix="c:")


class TestMongoDbCache(ProviderSuite):
    """What the suite asks one after the other. At once: mongomock is no judge of that."""

    @pytest.fixture
    def crew(self) -> None:
        pytest.skip("needs a MongoDB: mongomock is not safe to use from several threads")

    def make_provider(self) -> Provider:
        return CachelibProvider(over(mongomock.MongoClient()), budget=30.0)


@pytest.fixture
def client() -> Any:
    return mongomock.MongoClient()


@pytest.fixture
def documents(client: Any) -> Any:
    """A back door."""
    return client["cache-db"]["cache-collection"]


@pytest.fixture
def provider(client: Any) -> CachelibProvider:
    return CachelibProvider(over(client), "s:")


def test_what_is_stored_is_bytes_of_ours(provider: CachelibProvider, documents: Any) -> None:
    now = time.time()
    key = create(provider, now, {"a": b"1"}, deadline=now + 60)
    document = documents.find_one({"id": f"c:s:{key}"})
    assert document["val"].startswith(MARK)
    until = document["expiration"].replace(tzinfo=timezone.utc).timestamp()
    assert now + 90 < until < now + 150


def test_what_may_stay_for_ever_loses_its_time(provider: CachelibProvider, documents: Any) -> None:
    now = time.time()
    key = create(provider, now, deadline=now + 60)
    provider.commit(key, Change(deadline=now + 1e12), now)
    assert "expiration" not in documents.find_one({"id": f"c:s:{key}"})


def test_what_is_past_its_time_is_looked_past_and_removed(
    provider: CachelibProvider, documents: Any
) -> None:
    key = new_key()
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    for name in f"c:s:{key}", f"c:s:gone:{key}":
        documents.insert_one({"id": name, "val": b"\0", "expiration": past})
    assert provider.load(key, NOW) is None
    assert documents.count_documents({}) == 2
    stays = create(provider, NOW)
    provider.purge(NOW, 10)
    assert documents.count_documents({}) == 1
    assert provider.exists(stays, NOW)


@pytest.mark.parametrize("value", ["text", 7, b"\x80\x04\x95", None, {"a": 1}])
def test_what_is_not_ours_is_not_served(
    provider: CachelibProvider, documents: Any, value: object
) -> None:
    key = new_key()
    documents.insert_one({"id": f"c:s:{key}", "val": value})
    with pytest.raises(CorruptData):
        provider.load(key, NOW)
    assert provider.destroy(key)
    assert provider.load(key, NOW) is None


def test_a_mark_is_made_once(provider: CachelibProvider) -> None:
    cache = provider._cache
    assert cache.add("a", b"first", 0) is True
    assert cache.add("a", b"second", 0) is False
    assert cache.get("a") == b"first"
    assert cache.delete("a") is True
    assert cache.delete("a") is False


def test_the_users_own_cache_stays_as_it_was(client: Any, provider: CachelibProvider) -> None:
    cache = over(client)
    CachelibProvider(cache, "s:")
    cache.set("theirs", {"a": (1, 2.5)})
    assert cache.get("theirs") == {"a": (1, 2.5)}


def test_reads_are_the_primarys_and_writes_a_majoritys() -> None:
    client: Any = pymongo.MongoClient(
        "mongodb://127.0.0.1:1", connect=False, readPreference="secondary", w=0
    )
    cache = object.__new__(cachelib.MongoDbCache)
    cache.client, cache.key_prefix = client["db"]["c"], ""
    private = CachelibProvider(cache)._cache
    assert private.client.read_preference == pymongo.ReadPreference.PRIMARY
    assert private.client.write_concern.document == {"w": "majority"}
    assert cache.client.write_concern.document == {"w": 0}
    client.close()


# Away


@pytest.fixture(params=["nobody listens", "nobody answers"])
def away(request: pytest.FixtureRequest) -> Iterator[CachelibProvider]:
    with socket.socket() as silent:
        port = free_port()
        if request.param == "nobody answers":
            silent.bind((HOST, port))
            silent.listen()
        options = {"type": "MongoDbCache", "client": f"mongodb://u:s3cret@{HOST}:{port}"}
        provider = CachelibProvider.from_settings(Settings(options=options))
        yield provider
        provider.close()


def test_it_is_made_while_its_server_is_away_and_says_so_in_time(away: CachelibProvider) -> None:
    assert isinstance(away, Remote)
    start = time.monotonic()
    with pytest.raises(ProviderUnavailable) as error:
        away.load(new_key(), NOW)
    # It would be 30 seconds, were it left to the client.
    assert time.monotonic() - start < 10
    assert isinstance(error.value.__cause__, pymongo.errors.ConnectionFailure)
    assert "s3cret" not in str(error.value)
    for _ in range(5):
        with pytest.raises(ProviderUnavailable):
            away.destroy(new_key())
    assert away.breaker.is_open
