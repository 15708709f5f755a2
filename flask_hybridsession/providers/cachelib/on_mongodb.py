"""``MongoDbCache``, made safe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import cachelib

from ...core.errors import ConfigError
from .waits import left


class MongoDb:
    """What it lacks: one round trip a call, an ``add`` in one step, and an end to waiting.

    It reads from the primary, and a write is done when a majority has it: a secondary may be
    behind, and what only a lost primary had is gone. The documents are cachelib's, which lets
    several of them have one time; what is expired is looked past, and removed now and then.
    """

    client: Any
    key_prefix: str
    #: Whether the collection has the index that cachelib makes.
    indexed = True

    def prepare(self) -> None:
        from pymongo import ReadPreference, WriteConcern
        from pymongo.errors import ConnectionFailure, ExecutionTimeout, WTimeoutError

        self.away = (ConnectionFailure, ExecutionTimeout, WTimeoutError, OSError)
        self.client = self.client.with_options(
            read_preference=ReadPreference.PRIMARY, write_concern=WriteConcern("majority")
        )

    def get(self, key: str) -> Any:
        return self.get_many(key)[0]

    def get_many(self, *keys: str) -> list[Any]:
        names = [self.key_prefix + key for key in keys]
        live = {"id": {"$in": names}, "expiration": {"$not": {"$lte": _now()}}}
        with self._in_time() as collection:
            # A document that holds nothing is damaged; None would say that there is none.
            found = {each["id"]: each.get("val") or b"" for each in collection.find(live)}
        return [found.get(name) for name in names]

    def set(self, key: str, value: bytes, timeout: int) -> bool:
        from pymongo.errors import DuplicateKeyError

        document = self._document(key, value, timeout)
        same = {"id": document["id"]}
        with self._in_time() as collection:
            try:
                collection.replace_one(same, document, upsert=True)
            except DuplicateKeyError:  # somebody else made it in the same moment
                return bool(collection.replace_one(same, document).matched_count)
        return True

    def add(self, key: str, value: bytes, timeout: int) -> bool:
        from pymongo.errors import DuplicateKeyError

        document = self._document(key, value, timeout)
        change = {"$setOnInsert": document}
        with self._in_time() as collection:
            try:
                result = collection.update_one({"id": document["id"]}, change, upsert=True)
            except DuplicateKeyError:
                return False
        return result.upserted_id is not None

    def delete(self, key: str) -> bool:
        with self._in_time() as collection:
            return bool(collection.delete_one({"id": self.key_prefix + key}).deleted_count)

    def sweep(self) -> None:
        with self._in_time() as collection:
            collection.delete_many({"expiration": {"$lte": _now()}})

    def largest(self) -> int:
        """Bytes of a document, less what is not the value."""
        return 16 * 2**20 - 4096

    def _document(self, key: str, value: bytes, timeout: int) -> dict[str, Any]:
        document: dict[str, Any] = {"id": self.key_prefix + key, "val": value}
        if timeout:
            document["expiration"] = _now() + timedelta(seconds=timeout)
        return document

    @contextmanager
    def _in_time(self) -> Iterator[Any]:
        """The collection. Within, the client waits no longer than the call may take."""
        import pymongo

        with pymongo.timeout(left()):
            if not self.indexed:
                # Without it, two at once could add one name twice.
                self.client.create_index("id", unique=True)
                self.indexed = True
            yield self.client


class MadeMongoDbCache(cachelib.MongoDbCache):
    """A ``MongoDbCache`` that is made while the server is away, too: its index is made later."""

    def __init__(
        self,
        client: str = "mongodb://127.0.0.1:27017",
        db: str = "cache-db",
        collection: str = "cache-collection",
        key_prefix: str | None = None,
        **options: Any,
    ) -> None:
        from pymongo import MongoClient
        from pymongo.errors import PyMongoError

        cachelib.BaseCache.__init__(self)
        try:
            # Connected at first use: no thread of the client's is there before a fork.
            self.mongo: Any = MongoClient(client, **{"connect": False, **options})
            self.client = self.mongo[db][collection]
        except (PyMongoError, TypeError, ValueError) as error:
            raise ConfigError(f"MongoDbCache cannot be made: {_about(error, options)}") from None
        self.key_prefix = key_prefix or ""
        self.indexed = False

    def disconnect(self) -> None:
        self.mongo.close()


def _about(error: Exception, options: Mapping[str, Any]) -> str:
    """What is wrong, without the address: there may be a password in it."""
    named = [name for name in options if name.lower() in str(error).lower()]
    return f"look at {', '.join(named)}." if named else f"{type(error).__name__}."


def _now() -> datetime:
    return datetime.now(timezone.utc)
