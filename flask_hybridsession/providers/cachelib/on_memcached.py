"""``MemcachedCache``, made safe."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from math import inf
from typing import Any
from weakref import WeakSet

from ...core import forks
from ...core.errors import ConfigError
from .names import checked_prefix
from .waits import left


class Memcached:
    """What it lacks: a client that neither unpickles nor says "not there" of what failed."""

    _client: Any
    key_prefix: str | None

    def prepare(self) -> None:
        from pymemcache.client.base import Client, PooledClient
        from pymemcache.exceptions import MemcacheUnexpectedCloseError

        if not isinstance(self._client, (Client, PooledClient)):
            raise ConfigError(
                "MemcachedCache unpickles what it finds, or misses what it cannot reach, over this "
                "client. Write MemcachedCache(pymemcache.PooledClient(server)), or "
                'SESSION_OPTIONS = {"type": "MemcachedCache", "servers": "host:port"}.'
            )
        checked_prefix(self.key_prefix or "", "key_prefix of MemcachedCache")
        self.away = (OSError, MemcacheUnexpectedCloseError)
        client = _own_client(self._client)
        self._client = client
        self._client_context = partial(nullcontext, client)
        self.disconnect = client.close
        _clients.add(client)

    def largest(self) -> int:
        """Bytes that memcached takes. It drops what it has when it is sent more."""
        return int(self._client.stats("settings")[b"item_size_max"]) - 1024


def _own_client(given: Any) -> Any:
    """A client with the parameters of this one that waits no longer than the call may take."""
    from pymemcache.client.base import Client, PooledClient

    class Timed(Client):  # type: ignore[misc]
        def _connect(self) -> None:
            self.connect_timeout = self.timeout = _limit(given)
            super()._connect()
            self.sock.settimeout(_limit(given))

    class Pooled(PooledClient):  # type: ignore[misc]
        client_class = Timed

    same = (
        *("no_delay", "socket_module", "socket_keepalive"),
        *("key_prefix", "encoding", "tls_context"),
    )
    client = Pooled(
        given.server,
        serde=_Raw(),
        default_noreply=False,
        **{name: getattr(given, name) for name in same},
    )
    client.patience = partial(_limit, given)
    client.client_pool = _pool(client)
    return client


def _limit(given: Any) -> float:
    return min(left(), given.timeout or inf)


def _pool(client: Any) -> Any:
    from pymemcache.pool import ObjectPool

    class TimedPool(ObjectPool):  # type: ignore[misc]
        def get(self) -> Any:
            seconds = client.patience()
            connection = super().get()
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            return connection

    return TimedPool(client._create_client, after_remove=lambda connection: connection.close())


class _Raw:
    """pymemcache's serializer, for bytes that stay as they are, whatever their flags say."""

    def serialize(self, key: object, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: object, value: bytes, flags: int) -> bytes:
        return value


_clients: WeakSet[Any] = WeakSet()


@forks.in_child
def _disconnect_child() -> None:
    # Two processes on one connection would read each other's answers.
    for client in list(_clients):
        pool = client.client_pool
        for connection in (*pool.free, *pool.used):
            connection.close()
        client.client_pool = _pool(client)
