"""A cache of any origin, made safe: it never unpickles, and a failure is not taken for a miss."""

from __future__ import annotations

import copy
import os
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BytesIO
from typing import Any

import cachelib

from ...core.errors import ConfigError, CorruptData
from .on_dynamodb import DynamoDb
from .on_memcached import Memcached
from .on_mongodb import MongoDb
from .on_redis import Redis, Valkey
from .on_uwsgi import UWSGI
from .waits import failed


def tame(cache: cachelib.BaseCache) -> Any:
    """A private copy of the cache, on the same store, that neither pickles nor hides a failure.

    What it raises when its server is away is in ``away``, if it has one.
    """
    if not isinstance(cache, cachelib.BaseCache):
        raise ConfigError("the cachelib provider needs a cache of cachelib.")
    name = type(cache).__name__
    if isinstance(cache, cachelib.NullCache):
        raise ConfigError(f"{name} cannot keep sessions: choose another cache.")
    private: Any = copy.copy(cache)
    better = _kind(cache, _BETTER)
    if better is None and not hasattr(cache, "serializer"):
        raise ConfigError(f"{name} may unpickle what it finds: it has no serializer to replace.")
    private.serializer = _Bytes()
    if better is not None:
        private.__class__ = type(better, (_BETTER[better], type(cache)), {})
        private.prepare()
    return private


def is_remote(cache: object) -> bool:
    """Whether it talks to a server."""
    return _kind(cache, _REMOTE) is not None


def _kind(cache: object, kinds: Iterable[str]) -> str | None:
    return next((kind for kind in kinds if isinstance(cache, getattr(cachelib, kind))), None)


def _lift_threshold(private: Any, unlimited: int) -> None:
    threshold, private._threshold = private._threshold, unlimited
    if threshold != unlimited:
        warnings.warn(
            f"This cache holds up to {threshold} entries and then throws some away. Sessions are "
            "stored without that limit, but whatever else uses the cache may throw away sessions: "
            'give them a cache of their own, such as SESSION_OPTIONS = {"type": ...}.',
            UserWarning,
            stacklevel=5,
        )


class _Bytes:
    """A serializer in cachelib's shape that leaves bytes as they are."""

    def dumps(self, value: bytes) -> bytes:
        return value

    def loads(self, data: bytes | None) -> bytes | None:
        return data

    def dump(self, value: bytes, file: Any) -> None:
        file.write(value)

    def load(self, file: Any) -> Any:
        return file.read()


class _Memory:
    """What ``SimpleCache`` lacks: it removes what is expired only when it is full."""

    _cache: dict[str, tuple[float, object]]

    def prepare(self) -> None:
        _lift_threshold(self, sys.maxsize)

    def sweep(self) -> None:
        lock: AbstractContextManager[object] = getattr(self, "_lock", nullcontext())
        now = time.time()
        with lock:
            for name, (expires, _) in self._cache.copy().items():
                if 0 < expires < now:
                    del self._cache[name]


class _Files:
    """What ``FileSystemCache`` lacks: to it, a file that cannot be read is one that is not there.

    Like ``SimpleCache`` it removes what is expired only when it is full.
    """

    _list_dir: Callable[[], Iterator[str]]

    def prepare(self) -> None:
        _lift_threshold(self, 0)

    @contextmanager
    def _safe_stream_open(self, path: str, mode: str) -> Iterator[BytesIO]:
        try:
            with open(path, mode) as file:
                data = file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failed(f"a file cannot be read: {error.strerror}") from error
        if len(data) < _TIME.size:
            raise CorruptData("a file of the cache is cut short")
        yield BytesIO(data)

    def _run_safely(self, call: Callable[..., object], *args: object) -> object:
        return call(*args)  # cachelib's own gives up after ten seconds, as if it had succeeded

    def sweep(self) -> None:
        now = time.time()
        for path in self._list_dir():
            with suppress(FileNotFoundError), open(path, "rb") as file:
                head = file.read(_TIME.size)
                if len(head) == _TIME.size and 0 < _TIME.unpack(head)[0] < now:
                    os.remove(path)


#: The time at the head of each of its files.
_TIME = struct.Struct("I")


_BETTER: Mapping[str, type] = {
    "SimpleCache": _Memory,
    "FileSystemCache": _Files,
    "RedisCache": Redis,
    "ValkeyCache": Valkey,
    "MemcachedCache": Memcached,
    "UWSGICache": UWSGI,
    "MongoDbCache": MongoDb,
    "DynamoDbCache": DynamoDb,
}

#: Those that talk to a server, which may be away.
_REMOTE = ("RedisCache", "ValkeyCache", "MemcachedCache", "MongoDbCache", "DynamoDbCache")
