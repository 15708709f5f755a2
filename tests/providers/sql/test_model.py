"""Any calls in any order, on four handles of each database: see ``tests.model``."""

from __future__ import annotations

import multiprocessing
from functools import partial
from typing import Any

import pytest
from hypothesis.stateful import rule

from tests.model import Handle, InProcess, InThread, WorkersMachine, machine_case
from tests.servers import Server, mariadb_url, postgresql_url

from .databases import emptied, opened

# Importing SQLAlchemy anew in each process takes longer than all that it does.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["flask_hybridsession.providers.sql", "psycopg", "pymysql", "tests.model"]
)


class Sql(WorkersMachine):
    """Two providers in this process, and two in others."""

    url: str

    def open_handles(self) -> list[Handle]:
        emptied(self.url).close()
        open_ = partial(opened, self.url)
        return [Handle(open_), InThread(open_), InProcess(open_), InProcess(open_)]

    @rule()
    def all_restart(self) -> None:
        for handle in self.handles:
            handle.close()
        for handle in self.handles:
            handle.reopen()


class Sqlite(Sql):
    def open_handles(self) -> list[Handle]:
        self.url = f"sqlite:///{self.path}/sessions.db"
        return super().open_handles()


class Postgresql(Sql):
    pass


class Mariadb(Sql):
    pass


_Postgresql: Any = machine_case(Postgresql, steps=120)
_Mariadb: Any = machine_case(Mariadb, steps=80)
TestSqlite = machine_case(Sqlite, steps=240)


class TestPostgresql(_Postgresql):
    @pytest.fixture(autouse=True)
    def _on(self, postgresql_server: Server) -> None:
        Postgresql.url = postgresql_url(postgresql_server)


class TestMariadb(_Mariadb):
    @pytest.fixture(autouse=True)
    def _on(self, mariadb_server: Server) -> None:
        Mariadb.url = mariadb_url(mariadb_server)


del _Postgresql, _Mariadb
