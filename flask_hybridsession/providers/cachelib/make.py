"""Caches that are made here, from settings. They never evict by number."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cachelib

from ...core.errors import ConfigError

Made = TypeVar("Made")


def make_cache(options: Mapping[str, Any]) -> cachelib.BaseCache:
    """A cache of the ``type`` that the options name; the rest of them are its parameters.

    Raises ``ConfigError`` for a type, a parameter or a directory that will not do.
    """
    given = dict(options)
    make = TYPES.get(given.pop("type", ""))
    if make is None:
        raise ConfigError(
            "the cachelib provider needs a cache: write SESSION_CACHELIB = a cache of yours, or "
            f'SESSION_OPTIONS = {{"type": ...}} with one of {", ".join(TYPES)}.'
        )
    return make(given)


def _memory(given: dict[str, Any]) -> cachelib.BaseCache:
    return _call(cachelib.SimpleCache, {"threshold": sys.maxsize, **given})


def _files(given: dict[str, Any]) -> cachelib.BaseCache:
    directory = given.get("cache_dir")
    if directory:
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache_dir cannot be made: {error.strerror}.") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigError("cache_dir cannot be written: choose another, or change its owner.")
    return _call(cachelib.FileSystemCache, {"threshold": 0, **given})


def _redis(given: dict[str, Any]) -> cachelib.BaseCache:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    # Left to itself the client makes a visitor wait for seconds before it says that Redis is down.
    # One more try is for the connection that a restarted server has closed.
    waits = {
        "socket_timeout": 1.0,
        "socket_connect_timeout": 1.0,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    }
    return _call(cachelib.RedisCache, {**waits, **given}, redis.Redis)


def _memcached(given: dict[str, Any]) -> cachelib.BaseCache:
    from pymemcache import PooledClient

    servers = given.pop("servers", "127.0.0.1:11211")
    if isinstance(servers, (list, tuple)) and len(servers) == 1:
        (servers,) = servers
    if not isinstance(servers, str):
        # With several, a server that comes back brings back what was logged out meanwhile.
        raise ConfigError('MemcachedCache: write servers = "host:port", one server.')
    prefix = given.pop("key_prefix", None)
    waits = {"timeout": 1.0, "connect_timeout": 1.0}
    client = _call(PooledClient, {"server": servers, **waits, **given})
    return cachelib.MemcachedCache(client, key_prefix=prefix)


TYPES: Mapping[str, Callable[[dict[str, Any]], cachelib.BaseCache]] = {
    "SimpleCache": _memory,
    "FileSystemCache": _files,
    "RedisCache": _redis,
    "MemcachedCache": _memcached,
}


def _call(make: Callable[..., Made], given: dict[str, Any], *through: Callable[..., Any]) -> Made:
    """Call it. ``through`` is what it hands on the parameters that it does not know."""
    accepted = {name: None for call in (make, *through) for name in _parameters(call)}
    wrong = [name for name in given if name not in accepted]
    missing = [name for name in _parameters(make, needed=True) if name not in given]
    if wrong or missing:
        what = f"does not know {', '.join(wrong)}" if wrong else f"needs {', '.join(missing)}"
        raise ConfigError(f"{make.__name__} {what}. It takes {', '.join(accepted)}.")
    return make(**given)


def _parameters(call: Callable[..., Any], needed: bool = False) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(call).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (parameter.default is parameter.empty or not needed)
    ]
