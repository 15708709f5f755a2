"""Caches that are made here, from settings. They never evict by number."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import cachelib

from ...core.errors import ConfigError
from .on_dynamodb import MadeDynamoDbCache
from .on_mongodb import MadeMongoDbCache

Made = TypeVar("Made")


def make_cache(options: Mapping[str, Any]) -> cachelib.BaseCache:
    """A cache of the ``type`` that the options name; the rest of them are its parameters.

    Raises ``ConfigError`` for a type, a parameter or a directory that will not do.
    """
    given = dict(options)
    kind = given.pop("type", None)
    make = TYPES.get(kind) if isinstance(kind, str) else None
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
        if not isinstance(directory, str | os.PathLike):
            raise ConfigError("cache_dir must be a path.")
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cache_dir cannot be made: {error.strerror}.") from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigError("cache_dir cannot be written: choose another, or change its owner.")
    return _call(cachelib.FileSystemCache, {"threshold": 0, **given})


def _redis(given: dict[str, Any]) -> cachelib.BaseCache:
    import redis

    return _call(cachelib.RedisCache, given, redis.Redis)


def _valkey(given: dict[str, Any]) -> cachelib.BaseCache:
    import valkey

    return _call(cachelib.ValkeyCache, given, valkey.Valkey)


def _memcached(given: dict[str, Any]) -> cachelib.BaseCache:
    from pymemcache import PooledClient

    servers = given.pop("servers", "127.0.0.1:11211")
    if isinstance(servers, (list, tuple)) and len(servers) == 1:
        (servers,) = servers
    if not isinstance(servers, str):
        # With several, a server that comes back brings back what was logged out meanwhile.
        raise ConfigError('MemcachedCache: write servers = "host:port", one server.')
    prefix = given.pop("key_prefix", None)
    client = _call(PooledClient, {"server": servers, **given})
    return cachelib.MemcachedCache(client, key_prefix=prefix)


def _uwsgi(given: dict[str, Any]) -> cachelib.BaseCache:
    try:
        import uwsgi  # noqa: F401  (a module that only uWSGI's own processes have)
    except ImportError as error:
        raise ConfigError(
            "UWSGICache is the memory of a uWSGI server: run the app in it."
        ) from error
    return _call(cachelib.UWSGICache, given)


def _mongodb(given: dict[str, Any]) -> cachelib.BaseCache:
    import pymongo  # noqa: F401  (so that it is missed here)

    return MadeMongoDbCache(**given)


def _dynamodb(given: dict[str, Any]) -> cachelib.BaseCache:
    from boto3.session import Session

    place = partial(Session.resource, None, "dynamodb")
    _check(cachelib.DynamoDbCache, given, place, MadeDynamoDbCache)
    return MadeDynamoDbCache(**given)


TYPES: Mapping[str, Callable[[dict[str, Any]], cachelib.BaseCache]] = {
    "SimpleCache": _memory,
    "FileSystemCache": _files,
    "RedisCache": _redis,
    "ValkeyCache": _valkey,
    "MemcachedCache": _memcached,
    "UWSGICache": _uwsgi,
    "MongoDbCache": _mongodb,
    "DynamoDbCache": _dynamodb,
}


def _call(make: Callable[..., Made], given: dict[str, Any], *through: Callable[..., Any]) -> Made:
    """Call it. ``through`` is what it hands on the parameters that it does not know."""
    _check(make, given, *through)
    try:
        return make(**given)
    except (TypeError, ValueError) as error:  # its text may have a value in it
        raise ConfigError(
            f"{make.__name__} cannot be made: {type(error).__name__}. Look at {', '.join(given)}."
        ) from None


def _check(make: Callable[..., Any], given: Iterable[str], *through: Callable[..., Any]) -> None:
    accepted = {name: None for call in (make, *through) for name in _parameters(call)}
    wrong = [name for name in given if name not in accepted]
    missing = [name for name in _parameters(make, needed=True) if name not in given]
    if wrong or missing:
        what = f"does not know {', '.join(wrong)}" if wrong else f"needs {', '.join(missing)}"
        raise ConfigError(f"{make.__name__} {what}. It takes {', '.join(accepted)}.")


def _parameters(call: Callable[..., Any], needed: bool = False) -> list[str]:
    return [
        parameter.name
        for parameter in inspect.signature(call).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (parameter.default is parameter.empty or not needed)
    ]
