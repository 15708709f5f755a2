"""From what the app gives - a URL, a client, a sentinel, a cluster - to connections of our own.

A client that is given is asked for its parameters only, never used: its connections may wait for
minutes, decode what they read, or be the app's in the middle of something.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from redis.cluster import RedisCluster
from redis.connection import Connection, SSLConnection
from redis.sentinel import Sentinel, SentinelConnectionPool

from ...core.errors import ConfigError, ProviderUnavailable
from . import replies
from .wire import NONSENSE, Nonsense, Refused, Wire, pack

if TYPE_CHECKING:
    from .watch import Watch

log = logging.getLogger("flask_hybridsession")

#: Parameters of a client that concern its own way of using a connection, not how to make one.
_ITS_OWN = frozenset(
    (
        *("cache", "cache_config", "connection_class", "connection_pool", "decode_responses"),
        *(
            "driver_info",
            "encoding",
            "encoding_errors",
            "event_dispatcher",
            "health_check_interval",
        ),
        *("himport_registry", "legacy_responses", "lib_name", "lib_version", "max_connections"),
        *("maint_notifications_config", "maint_notifications_pool_handler", "maintenance_state"),
        *("maintenance_notification_hash", "oss_cluster_maint_notifications_handler"),
        *("orig_host_address", "orig_socket_connect_timeout", "orig_socket_timeout"),
        *("parser_class", "protocol", "retry", "retry_on_error", "retry_on_timeout"),
        *("socket_connect_timeout", "socket_read_size", "socket_timeout", "ssl", "timeout"),
    )
)
#: What a cluster puts into the parameters of its nodes' connections.
_CLUSTERS = frozenset(("redis_connect_func", "response_callbacks", "read_from_replicas", "db"))

Connect = Callable[[float], Wire]


class Address(NamedTuple):
    """How to connect to one server."""

    kind: Callable[..., Any]
    parameters: Mapping[str, Any]

    def at(self, host: str, port: int) -> Address:
        """The same for another server."""
        return Address(self.kind, {**self.parameters, "host": host, "port": port})

    def connect(self, give_up: float, protocol: int = 2) -> Wire:
        """A connection, ready to be used, before ``give_up``. Raises ``ProviderUnavailable``."""
        left = give_up - monotonic()
        try:
            if left <= 0:
                raise TimeoutError("timed out")
            times = {"socket_timeout": left, "socket_connect_timeout": left}
            connection = self.kind(**{**self.parameters, **times, "protocol": protocol})
            return self._opened(connection)
        except redis.exceptions.ResponseError as error:
            # Its text may repeat what it was sent: a password.
            missing = "database" if "DB index" in str(error) else "what our driver asks for"
            raise ProviderUnavailable(f"{self} does not have {missing}") from None
        except (redis.RedisError, OSError) as error:
            raise unavailable(self, error) from error

    def _opened(self, connection: Any) -> Wire:
        try:
            return Wire(connection)
        except NONSENSE as error:  # a name that is none, or what redis-py does not understand
            raise Nonsense from error

    def __str__(self) -> str:
        given = self.parameters
        if "path" in given:
            return f"Redis at {given['path']}"
        return f"Redis at {given.get('host', 'localhost')}:{given.get('port', 6379)}"

    def __repr__(self) -> str:
        return f"<{self}>"


def unavailable(address: object, error: Exception) -> ProviderUnavailable:
    """What failed, in words that hold no secret."""
    if isinstance(error, redis.AuthenticationError):
        return ProviderUnavailable(
            f"{address} refuses the user name or the password: check those in SESSION_REDIS"
        )
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return ProviderUnavailable(f"{address} does not answer in time")
    if isinstance(error, ConnectionResetError):
        return ProviderUnavailable(f"{address} closed the connection")
    return ProviderUnavailable(f"{address} cannot be reached: {type(error).__name__}")


class Given(NamedTuple):
    """What the app gave. With a ``service``, ``addresses`` are sentinels."""

    addresses: Sequence[Address]
    #: Of the servers that a sentinel or a cluster names.
    behind: Address
    service: str | None = None
    cluster: bool = False
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None


def read(client: Any, service: str | None = None, cluster: bool = False) -> Given:
    """Understand what SESSION_REDIS is. Connects to nothing. Raises ``ConfigError``."""
    if service is not None and cluster:
        raise ConfigError('"service" (Sentinel) and "cluster" exclude each other: remove one.')
    if isinstance(client, Sentinel):
        return _read_sentinel(client, service)
    if isinstance(client, RedisCluster):
        return _read_cluster(client)
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, SentinelConnectionPool):
        if not pool.is_master:
            raise ConfigError("SESSION_REDIS reads from replicas: make it with master_for().")
        kind = SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection
        behind = _address(kind, pool.connection_kwargs)
        return Given(_sentinels(pool.sentinel_manager), behind, str(pool.service_name))
    if isinstance(client, redis.Redis) and pool is not None:
        address = _address(pool.connection_class, pool.connection_kwargs)
        return Given([address], address, service, cluster)
    urls = [client] if isinstance(client, str) else client
    if isinstance(urls, list | tuple) and urls and all(isinstance(url, str) for url in urls):
        return _read_urls(urls, service, cluster)
    raise ConfigError(
        'SESSION_REDIS must be a URL, as "redis://localhost:6379/0", a list of URLs (of sentinels '
        "or of a cluster's nodes), or a client: redis.Redis, redis.cluster.RedisCluster, "
        "redis.sentinel.Sentinel."
    )


def _read_urls(urls: Sequence[str], service: str | None, cluster: bool) -> Given:
    if len(urls) > 1 and service is None and not cluster:
        raise ConfigError(
            'several URLs are several sentinels or nodes: write SESSION_OPTIONS = {"service": '
            '"the master\'s name"} or {"cluster": True}.'
        )
    addresses = [_parse(url) for url in urls]
    if service is None:
        return Given(addresses, addresses[0], cluster=cluster)
    behind = addresses[0]
    # Name, password and database are those of the servers behind: sentinels have none of their own.
    aside = ("username", "password", "db")
    sentinels = [
        Address(a.kind, {name: v for name, v in a.parameters.items() if name not in aside})
        for a in addresses
    ]
    return Given(sentinels, behind, service)


def _parse(url: str) -> Address:
    try:
        pool = redis.ConnectionPool.from_url(url)
    except ValueError as error:  # its text may hold the password
        raise ConfigError(
            'SESSION_REDIS is no URL of a Redis: write "redis://host:port/0", "rediss://..." for '
            'TLS, or "unix:///path".'
        ) from (None if "@" in url else error)
    return _address(pool.connection_class, pool.connection_kwargs)


def _read_sentinel(sentinel: Sentinel, service: str | None) -> Given:
    if service is None:
        raise ConfigError(
            'a Sentinel knows several masters: write SESSION_OPTIONS = {"service": "its name"}.'
        )
    kind = SSLConnection if sentinel.connection_kwargs.get("ssl") else Connection
    return Given(_sentinels(sentinel), _address(kind, sentinel.connection_kwargs), service)


def _sentinels(sentinel: Sentinel) -> list[Address]:
    pools = [client.connection_pool for client in sentinel.sentinels]
    return [_address(pool.connection_class, pool.connection_kwargs) for pool in pools]


def _read_cluster(client: RedisCluster) -> Given:
    nodes = client.nodes_manager
    given = {name: v for name, v in nodes.connection_kwargs.items() if name not in _CLUSTERS}
    kind = SSLConnection if given.get("ssl") else Connection
    hook = getattr(client, "user_on_connect_func", None)
    behind = _address(kind, {**given, **({"redis_connect_func": hook} if hook else {})})
    starts = [behind.at(node.host, int(node.port)) for node in nodes.startup_nodes.values()]
    return Given(starts, behind, cluster=True, remap=getattr(nodes, "address_remap", None))


def _address(kind: Any, parameters: Mapping[str, Any]) -> Address:
    return Address(kind, {name: v for name, v in parameters.items() if name not in _ITS_OWN})


class Sentinels:
    """Finds the master: the first sentinel that knows it is asked, and the master asked back."""

    def __init__(self, given: Given, watch: Watch | None = None) -> None:
        self._watch = watch
        self._sentinels = list(given.addresses)
        self._behind = given.behind
        self._service = str(given.service)

    def connect(self, give_up: float, protocol: int = 2) -> Wire:
        """A connection to the master. Raises ``ProviderUnavailable``."""
        failed: Exception | None = None
        for number, sentinel in enumerate(list(self._sentinels)):
            left = give_up - monotonic()
            rest = len(self._sentinels) - number
            # A sentinel that is frozen must leave time for the next one, and for the master.
            try:
                node = self._ask(sentinel, monotonic() + left / (rest + 1))
                if self._watch is not None and self._watch.has_left(node):
                    continue
                wire = self._behind.at(*node).connect(give_up, protocol)
            except ProviderUnavailable as error:
                failed = error
                continue
            if _is_master(wire, give_up):
                self._prefer(sentinel)
                if self._watch is not None:
                    self._watch.found(node)
                return wire
            wire.close()
        raise ProviderUnavailable(
            f"no sentinel knows a master of the service {self._service!r} that can be reached"
        ) from failed

    def _ask(self, sentinel: Address, give_up: float) -> tuple[str, int]:
        return ask_for_master(sentinel, self._service, give_up)

    def _prefer(self, sentinel: Address) -> None:
        if self._sentinels[0] is not sentinel:
            self._sentinels = [sentinel, *(s for s in self._sentinels if s is not sentinel)]


def ask_for_master(sentinel: Address, service: str, give_up: float) -> tuple[str, int]:
    """Where this sentinel believes the master to be. Raises ``ProviderUnavailable``."""
    wire = sentinel.connect(give_up)
    command = pack(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service.encode())
    try:
        (reply,) = wire.ask(command, [replies.address_or_none], give_up)
    except OSError as error:
        raise unavailable(sentinel, error) from error
    finally:
        wire.close()
    if reply is None or isinstance(reply, Refused):
        raise ProviderUnavailable(f"a sentinel does not know the service {service!r}")
    host, port = reply
    return host, port


def _is_master(wire: Wire, give_up: float) -> bool:
    """A sentinel that was cut off may still name a master of before."""
    try:
        (role,) = wire.ask(pack(b"ROLE"), [replies.role], give_up)
    except OSError:
        return False
    return bool(role == b"master")
