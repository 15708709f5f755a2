"""``ValkeyCache`` over its own client, with a real Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import cachelib
import pytest
import valkey

from flask_hybridsession.core.errors import ConfigError
from flask_hybridsession.core.provider import Provider, Remote
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.testing import ProviderSuite, create, load
from tests.providers.cachelib.servers import VALKEY
from tests.servers import Server, running

NOW = 1_700_000_000.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running(VALKEY) as server:
        yield server


class TestValkeyCache(ProviderSuite):
    shared = "process"

    @pytest.fixture(autouse=True)
    def _server(self, server: Server) -> None:
        self.port = server.port

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        options = {"type": "ValkeyCache", "host": "127.0.0.1", "port": self.port, "budget": 30.0}
        prefix = f"{self.path}:"[-80:]
        return CachelibProvider.from_settings(Settings(options=options, key_prefix=prefix))


def test_a_cache_of_the_users(server: Server) -> None:
    client = valkey.Valkey(server.host, server.port)
    cache = cachelib.ValkeyCache(client)
    provider = CachelibProvider(cache, "s:")
    assert isinstance(provider, Remote)
    key = create(provider, NOW, {"a": b"1"}, deadline=NOW + 60)
    assert load(provider, key, NOW).values == {"a": b"1"}
    assert 90 < client.ttl(f"s:{key}") <= 120
    cache.set("theirs", (1, 2))
    assert cache.get("theirs") == (1, 2)
    provider.close()
    client.close()


def test_a_client_that_decodes_is_refused(server: Server) -> None:
    client = valkey.Valkey(server.host, server.port, decode_responses=True)
    with pytest.raises(ConfigError, match="decode_responses"):
        CachelibProvider(cachelib.ValkeyCache(client))
