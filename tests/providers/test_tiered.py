from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from flask_hybridsession.core.database import Action, Lifetime, Store, SyncPayload
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.functions import FunctionsProvider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.tiered import TieredProvider
from flask_hybridsession.testing import ProviderSuite


class Rows:
    """Keeps what it is told, and how."""

    def __init__(self) -> None:
        self.rows: dict[str, Store] = {}
        self.told: list[SyncPayload] = []

    def load(self, key: str) -> Store | None:
        return self.rows.get(key)

    def sync(self, payload: SyncPayload) -> None:
        self.told.append(payload)
        if payload.action is Action.DESTROY:
            self.rows.pop(payload.key, None)
        elif payload.store.lifetime is not None:
            self.rows[payload.key] = payload.store._replace(values=dict(payload.store.values))
        elif payload.key in self.rows:
            before = self.rows[payload.key]
            self.rows[payload.key] = before._replace(values=dict(payload.store.values))


class Table:
    """Functions for ``FunctionsProvider``, on a file that processes share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run("CREATE TABLE IF NOT EXISTS sessions (key TEXT PRIMARY KEY, data BLOB)")

    def run(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path, 60.0)) as db, db:
            return db.execute(sql, values).fetchall()

    def load(self, key: str) -> bytes | None:
        rows = self.run("SELECT data FROM sessions WHERE key = ?", key)
        return rows[0][0] if rows else None

    def save(self, key: str, data: bytes, deadline: float | None, user_id: object) -> None:
        self.run("REPLACE INTO sessions VALUES (?, ?)", key, data)

    def delete(self, key: str) -> None:
        self.run("DELETE FROM sessions WHERE key = ?", key)

    def provider(self) -> FunctionsProvider:
        return FunctionsProvider(self.load, self.save, self.delete)


class TestMemoryAndRows(ProviderSuite):
    def make_provider(self) -> Provider:
        return TieredProvider(MemoryProvider(), MemoryProvider(), Rows())


class TestHybridAndHybrid(ProviderSuite):
    shared = "process"
    rounds = 20

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        return TieredProvider(self.hybrid("one"), self.hybrid("two"))

    def hybrid(self, name: str) -> HybridProvider:
        return HybridProvider(self.path / name, sync_interval=0.05)


class TestHybridAndFunctions(ProviderSuite):
    shared = "process"
    rounds = 10

    def make_provider(self) -> Provider:
        return self.open_again()

    def open_again(self) -> Provider:
        table = Table(self.path / "table")
        return TieredProvider(HybridProvider(self.path / "one"), table.provider())
