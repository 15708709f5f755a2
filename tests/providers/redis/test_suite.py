"""Every promise, on one server, under Sentinel, and in a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.testing import ProviderSuite
from tests.redis_servers import Watched
from tests.servers import Server

from .tools import BUDGET, new_prefix


class RedisSuite(ProviderSuite):
    shared = "process"
    urls: Any
    options: ClassVar[Mapping[str, Any]] = {}

    def make_provider(self) -> Provider:
        self.prefix = new_prefix()
        return self.open_again()

    def open_again(self) -> Provider:
        return RedisProvider(self.urls, self.prefix, budget=BUDGET, **self.options)


class TestRedis(RedisSuite):
    @pytest.fixture(autouse=True)
    def _server(self, redis_server: Server) -> None:
        self.urls = f"redis://{redis_server.address}/3"


class TestSentinel(RedisSuite):
    options: ClassVar[Mapping[str, Any]] = {"service": "sessions"}

    @pytest.fixture(autouse=True)
    def _server(self, redis_sentinels: Watched) -> None:
        # The first one is nobody's: the next one is asked.
        self.urls = ["redis://127.0.0.1:1/0", f"redis://{redis_sentinels.sentinel.address}"]


class TestCluster(RedisSuite):
    options: ClassVar[Mapping[str, Any]] = {"cluster": True}

    @pytest.fixture(autouse=True)
    def _server(self, redis_cluster: list[Server]) -> None:
        self.urls = [f"redis://{node.address}" for node in redis_cluster]
