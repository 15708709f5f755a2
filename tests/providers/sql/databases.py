"""The three databases that the tests of this folder run on, each emptied for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from flask_hybridsession.providers.sql import SqlProvider
from tests.servers import Server, mariadb_url, postgresql_url

#: Seconds: the tests are about what happens, not about how busy this machine is.
BUDGET = 30.0


def opened(url: str) -> SqlProvider:
    """A provider for which nothing needs to be on the disk."""
    return SqlProvider(url, budget=BUDGET, synchronous="NORMAL")


def emptied(url: str) -> SqlProvider:
    """A provider with its tables, and nothing in them."""
    provider = opened(url)
    provider.create_tables()
    engine = create_engine(url)
    with engine.begin() as connection:
        for table in provider.metadata.sorted_tables:
            connection.execute(table.delete())
    engine.dispose()
    return provider


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of each of the databases, one after the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sessions.db"
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return {"postgresql": postgresql_url, "mariadb": mariadb_url}[request.param](server)


@pytest.fixture
def provider(url: str) -> Iterator[SqlProvider]:
    provider = emptied(url)
    yield provider
    provider.close()
