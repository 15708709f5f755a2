"""The contract on SQLite, PostgreSQL and MariaDB, among threads and processes."""

from __future__ import annotations

import pytest

from flask_hybridsession.core.provider import Provider
from flask_hybridsession.testing import ProviderSuite
from tests.servers import Server, mariadb_url, postgresql_url

from .databases import emptied, opened


class SqlSuite(ProviderSuite):
    shared = "process"
    url: str

    def make_provider(self) -> Provider:
        return emptied(self.url)

    def open_again(self) -> Provider:
        return opened(self.url)


class TestSqlite(SqlSuite):
    rounds = 20

    def make_provider(self) -> Provider:
        self.url = f"sqlite:///{self.path}/sessions.db"
        return super().make_provider()


class TestPostgresql(SqlSuite):
    rounds = 20

    @pytest.fixture(autouse=True)
    def _on(self, postgresql_server: Server) -> None:
        self.url = postgresql_url(postgresql_server)


class TestMariadb(SqlSuite):
    rounds = 10

    @pytest.fixture(autouse=True)
    def _on(self, mariadb_server: Server) -> None:
        self.url = mariadb_url(mariadb_server)
