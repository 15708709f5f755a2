"""Each kind of provider, for what must be the same wherever sessions are kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cachelib import FileSystemCache, SimpleCache
from flask import Flask

from flask_hybridsession import HybridSession
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.cachelib import CachelibProvider
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.tiered import TieredProvider
from tests.providers.sql.databases import emptied
from tests.servers import mariadb_url, postgresql_url

#: What was made for the test that runs.
_apps: list[Flask] = []

KINDS = [
    *("memory", "hybrid", "SimpleCache", "FileSystemCache", "functions", "tiered"),
    *("sqlite", "postgresql", "mariadb", "redis", "redis near"),
]


@pytest.fixture(params=KINDS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Provider]:
    """A provider of each kind, with nothing in it."""
    provider = made(request.param, tmp_path, request.getfixturevalue)
    yield provider
    while _apps:
        _apps.pop().extensions["hybridsession"].close()  # its clockwork asks the provider no more
    provider.close()


def made(kind: str, folder: Path, server: Any) -> Provider:
    """A provider of that kind. ``server`` gives a fixture by its name."""
    if kind == "memory":
        return MemoryProvider()
    if kind == "hybrid":
        return HybridProvider(str(folder / "hybrid"))
    if kind == "SimpleCache":
        return CachelibProvider(SimpleCache(threshold=sys.maxsize))
    if kind == "FileSystemCache":
        return CachelibProvider(FileSystemCache(str(folder / "cache"), threshold=0))
    if kind == "functions":
        return _functions()
    if kind == "tiered":
        return TieredProvider(MemoryProvider(), HybridProvider(str(folder / "follower")))
    if kind.startswith("redis"):
        near = {"near_cache": 1.0} if "near" in kind else {}
        url = f"redis://{server('redis_server').address}/0"
        return RedisProvider(url, key_prefix=f"{folder.name}:", budget=30.0, **near)
    if kind == "sqlite":
        return emptied(f"sqlite:///{folder}/sessions.db")
    urls = {"postgresql": postgresql_url, "mariadb": mariadb_url}
    return emptied(urls[kind](server(f"{kind}_server")))


def _functions() -> FunctionsProvider:
    """Functions over a dict, without the list of a user's sessions."""
    kept: dict[str, bytes] = {}

    def save(key: str, data: bytes, deadline: float | None, user_id: object) -> None:
        kept[key] = data

    return FunctionsProvider(
        load=kept.get, save=save, delete=lambda key: kept.pop(key, None) and None
    )


def app_with(provider: Provider, **config: Any) -> Flask:
    """An app that is tested, with its sessions there."""
    app = Flask("everywhere")
    app.testing = True
    app.secret_key = "for what others sign"
    app.config.update(config)
    HybridSession(app, provider=provider)
    _apps.append(app)
    return app
