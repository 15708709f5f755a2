"""``RedisCache`` and ``ValkeyCache``, made safe."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from math import inf
from typing import Any

from ...core.errors import ConfigError
from .waits import UNHURRIED, left


class RedisLike:
    """What they lack: to add a value and its time in one step, and to give up in time."""

    #: The module of the client: ``redis`` or ``valkey``.
    library: str
    _write_client: Any
    _read_client: Any
    _get_prefix: Callable[[], str]

    def prepare(self) -> None:
        client = self._write_client
        if client.get_encoder().decode_responses:
            raise ConfigError("the client must not have decode_responses: sessions are bytes.")
        library = importlib.import_module(self.library)
        self.away = (library.ConnectionError, library.TimeoutError, OSError)
        # A replica may be behind: what was logged out would still be there.
        self._write_client = self._read_client = _own_client(client, library)

    def set(self, key: str, value: bytes, timeout: int, nx: bool = False) -> Any:
        return self._write_client.set(self._get_prefix() + key, value, ex=timeout or None, nx=nx)

    def add(self, key: str, value: bytes, timeout: int) -> Any:
        return self.set(key, value, timeout, nx=True)

    def disconnect(self) -> None:
        pool = self._write_client.connection_pool
        if issubclass(pool.connection_class, _Timed):
            pool.disconnect()


class Redis(RedisLike):
    library = "redis"


class Valkey(RedisLike):
    library = "valkey"


def _own_client(client: Any, library: Any) -> Any:
    """A client like this one that waits no longer than the call may take.

    What is more than a client of one server (a cluster, a sentinel's, a look-alike) is used as it
    is, with the timeouts that it has.
    """
    kind = getattr(library, library.__name__.capitalize())
    pool: Any = getattr(client, "connection_pool", None)
    blocking = type(pool) is library.BlockingConnectionPool
    if not isinstance(client, kind) or not (blocking or type(pool) is library.ConnectionPool):
        return client
    retry = importlib.import_module(f"{library.__name__}.retry").Retry
    backoff = importlib.import_module(f"{library.__name__}.backoff").NoBackoff
    given = pool.connection_kwargs
    # One more try, at once, is for the connection that a restarted server has closed.
    again = retry(backoff(), 1, supported_errors=(library.ConnectionError,))
    own = type(pool)(
        connection_class=type("TimedConnection", (_Timed, pool.connection_class), {}),
        max_connections=pool.max_connections,
        **{**given, "retry": again, "retry_on_timeout": False},
        **({"timeout": UNHURRIED} if blocking else {}),
    )
    return kind(connection_pool=own)


class _Timed:
    """A connection that waits no longer than the call may take."""

    socket_timeout: float | None
    _sock: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._patience = self.socket_timeout or inf

    def _connect(self) -> Any:
        self.socket_timeout = self.socket_connect_timeout = min(left(), self._patience)
        return super()._connect()  # type: ignore[misc]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._sock is not None:
            self._sock.settimeout(min(left(), self._patience))
        super().send_packed_command(command, check_health)  # type: ignore[misc]
