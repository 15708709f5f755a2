"""A cache of any origin, made safe: it never unpickles, and a failure is not taken for a miss."""

from __future__ import annotations

import copy
import os
import re
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from io import BytesIO
from typing import Any
from weakref import WeakSet

import cachelib

from ...core.errors import ConfigError, CorruptData, ProviderUnavailable


def tame(cache: cachelib.BaseCache) -> Any:
    """A private copy of the cache, on the same store, that neither pickles nor hides a failure."""
    if not isinstance(cache, cachelib.BaseCache):
        raise ConfigError("the cachelib provider needs a cache of cachelib.")
    if isinstance(cache, (cachelib.NullCache, cachelib.DynamoDbCache)):
        raise ConfigError(f"{type(cache).__name__} cannot keep sessions: choose another cache.")
    private: Any = copy.copy(cache)
    if isinstance(cache, cachelib.MemcachedCache):
        _tame_memcached(private)
        return private
    if not hasattr(cache, "serializer"):
        name = type(cache).__name__
        raise ConfigError(f"{name} may unpickle what it finds: it has no serializer to replace.")
    private.serializer = _Bytes()
    for kind, better in _BETTER.items():
        if isinstance(cache, getattr(cachelib, kind)):
            private.__class__ = type(kind, (better, type(cache)), {})
            private.prepare()
    return private


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


class _Redis:
    """What ``RedisCache`` and ``ValkeyCache`` lack: to add a value and its time in one step."""

    _write_client: Any
    _get_prefix: Callable[[], str]

    def prepare(self) -> None:
        if self._write_client.get_encoder().decode_responses:
            raise ConfigError("the client must not have decode_responses: sessions are bytes.")

    def set(self, key: str, value: bytes, timeout: int, nx: bool = False) -> Any:
        return self._write_client.set(self._get_prefix() + key, value, ex=timeout or None, nx=nx)

    def add(self, key: str, value: bytes, timeout: int) -> Any:
        return self.set(key, value, timeout, nx=True)


_BETTER: Mapping[str, type] = {
    "SimpleCache": _Memory,
    "FileSystemCache": _Files,
    "RedisCache": _Redis,
    "ValkeyCache": _Redis,
}


def _tame_memcached(private: Any) -> None:
    """Give it a client of its own, with the parameters of the one that it has."""
    from pymemcache.client.base import Client, PooledClient

    given = private._client
    if not isinstance(given, (Client, PooledClient)):
        raise ConfigError(
            "MemcachedCache unpickles what it finds, or misses what it cannot reach, over this "
            "client. Write MemcachedCache(pymemcache.PooledClient(server)), or "
            'SESSION_OPTIONS = {"type": "MemcachedCache", "servers": "host:port"}.'
        )
    checked_prefix(private.key_prefix or "", "key_prefix of MemcachedCache")
    same = (
        *("connect_timeout", "timeout", "no_delay", "socket_module", "socket_keepalive"),
        *("key_prefix", "encoding", "tls_context"),
    )
    client = PooledClient(
        given.server,
        serde=_Raw(),
        default_noreply=False,
        **{name: getattr(given, name) for name in same},
    )
    private._client = client
    private._client_context = partial(nullcontext, client)
    private.disconnect = client.close
    private.largest = partial(_largest_item, client)
    _clients.add(client)


class _Raw:
    """pymemcache's serializer, for bytes that stay as they are, whatever their flags say."""

    def serialize(self, key: object, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: object, value: bytes, flags: int) -> bytes:
        return value


def _largest_item(client: Any) -> int:
    """Bytes that memcached takes. It drops what it has when it is sent more."""
    return int(client.stats("settings")[b"item_size_max"]) - 1024


_clients: WeakSet[Any] = WeakSet()


def _disconnect_child() -> None:
    # Two processes on one connection would read each other's answers.
    for client in list(_clients):
        pool = client.client_pool
        for connection in (*pool.free, *pool.used):
            connection.close()
        client.client_pool = type(pool)(
            client._create_client, after_remove=lambda connection: connection.close()
        )


os.register_at_fork(after_in_child=_disconnect_child)


def checked_prefix(prefix: str, setting: str) -> str:
    """The prefix, if memcached takes it; through cachelib, another one reads as "not there"."""
    if not isinstance(prefix, str) or not re.fullmatch(r"[!-~]{0,80}", prefix):
        raise ConfigError(f"{setting} must be up to 80 ASCII characters without spaces.")
    return prefix


def failed(why: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"the cache failed: {why}")
