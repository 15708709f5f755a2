"""What a follower writes to: one of our providers, or a database of the app's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Any

from ...core import mirror
from ...core.breaker import own_budgets
from ...core.change import Change, Record
from ...core.database import end, payloads, record_of, whole
from ...core.errors import ConfigError, KeyTaken
from ...core.provider import Provider


class Target(ABC):
    """Any call raises what it likes: the follower sees to that."""

    #: Whether it is told each entry, and needs to know how the session was before.
    by_entry = False

    @abstractmethod
    def load(self, key: str, now: float) -> Record | None:
        """What it holds that lives."""

    @abstractmethod
    def tell(self, before: Record | None, change: Change, after: Record, now: float) -> None:
        """What one commit did."""

    @abstractmethod
    def write(self, record: Record, now: float, fresh: bool) -> None:
        """All of a session. ``fresh``: it has nothing under that key."""

    @abstractmethod
    def erase(self, key: str) -> None: ...

    def vouch(self, now: float) -> None:  # noqa: B027  (nothing can be asked of a database)
        """Leave a mark, by which it is known later that it has not lost everything."""

    def is_whole(self, now: float) -> bool:
        """Whether the mark is there."""
        return True

    def sweep(self, now: float, limit: int) -> None:  # noqa: B027  (a database has its own ways)
        """Remove what is past its deadline."""

    def close(self) -> None:  # noqa: B027  (whoever made a database closes it)
        """Let go of it."""


class ProviderTarget(Target):
    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.kind = type(provider).__name__

    def load(self, key: str, now: float) -> Record | None:
        with own_budgets():
            return mirror.own(self.provider.load(key, now), key)

    def tell(self, before: Record | None, change: Change, after: Record, now: float) -> None:
        self.write(after, now, before is None)

    def write(self, record: Record, now: float, fresh: bool) -> None:
        with own_budgets():
            mirror.put(self.provider, record, now)

    def erase(self, key: str) -> None:
        with own_budgets():
            self.provider.destroy(key)

    def vouch(self, now: float) -> None:
        with own_budgets(), suppress(KeyTaken):
            if not self.provider.exists(mirror.COMPLETE, now):
                self.provider.commit(mirror.COMPLETE, Change(create=True), now)

    def is_whole(self, now: float) -> bool:
        with own_budgets():
            return self.provider.exists(mirror.COMPLETE, now)

    def sweep(self, now: float, limit: int) -> None:
        with own_budgets():
            self.provider.purge(now, limit)

    def close(self) -> None:
        self.provider.close()


class DatabaseTarget(Target):
    by_entry = True

    def __init__(self, database: Any) -> None:
        if isinstance(database, type):
            raise ConfigError(f"a database is an object: write {database.__name__}().")
        for name in ("load", "sync"):
            if not callable(getattr(database, name, None)):
                raise ConfigError(
                    "a database is a provider, or an object with the methods load(key) and "
                    f"sync(payload); {type(database).__name__} has no {name}."
                )
        self._database = database
        self.kind = type(database).__name__

    def load(self, key: str, now: float) -> Record | None:
        return record_of(key, self._database.load(key), now)

    def tell(self, before: Record | None, change: Change, after: Record, now: float) -> None:
        for payload in payloads(before, change, after):
            self._database.sync(payload)

    def write(self, record: Record, now: float, fresh: bool) -> None:
        for payload in whole(record, fresh):
            self._database.sync(payload)

    def erase(self, key: str) -> None:
        self._database.sync(end(key))


def target_of(database: Any) -> ProviderTarget | DatabaseTarget:
    """Raises ``ConfigError`` for what is no database."""
    if isinstance(database, Provider):
        return ProviderTarget(database)
    return DatabaseTarget(database)
