"""Providers by name: the built-in ones, those that were registered, and installed packages' own."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ..core.errors import ConfigError
from ..core.provider import Provider

if TYPE_CHECKING:
    from ..core.settings import Settings

Made = TypeVar("Made", bound=Provider)

#: The group of entry points in which a package names its providers: ``name = module:Class``.
GROUP = "flask_hybridsession.providers"

#: name -> module and class, imported on use: nobody needs the drivers of what is not used.
BUILT_IN = {
    "cachelib": f"{__package__}.cachelib:CachelibProvider",
    "functions": f"{__package__}.functions:FunctionsProvider",
    "hybrid": f"{__package__}.hybrid:HybridProvider",
    "memory": f"{__package__}.memory:MemoryProvider",
    "sql": f"{__package__}.sql:SqlProvider",
    "redis": f"{__package__}.redis:RedisProvider",
    "tiered": f"{__package__}.tiered:TieredProvider",
}

#: The module of a driver -> the extra that installs it.
EXTRAS = {
    "boto3": "dynamodb",
    "psycopg": "postgresql",
    "pymemcache": "memcached",
    "pymongo": "mongodb",
    "pymysql": "mariadb",
    "redis": "redis",
    "sqlalchemy": "sql",
    "valkey": "valkey",
}

_registered: dict[str, type[Provider]] = {}


def make_provider(settings: Settings) -> Provider:
    """The provider that ``SESSION_TYPE`` asks for, a new one each time.

    A provider instance is returned as it is. Raises ``ConfigError`` for an unknown name, a missing
    driver, and ``SESSION_OPTIONS`` that the class does not take.
    """
    name = settings.type
    if isinstance(name, Provider):
        return name
    if not isinstance(name, str):
        raise ConfigError(
            "SESSION_TYPE must be the name of a provider, or a provider instance, "
            f"not a {type(name).__name__}."
        )
    with _driver_for(name):
        return _make(_find(name), settings)


def with_database(provider: Provider, database: Any) -> Provider:
    """The provider, followed by one more database. Use what it returns in its place.

    Raises ``ConfigError`` for what is neither a provider nor has ``load`` and ``sync``.
    """
    tiered: Any = _find("tiered")
    if isinstance(provider, tiered):
        both: Provider = provider.with_database(database)
    else:
        both = tiered(provider, database)
    return both


@overload
def register_provider(name: str) -> Callable[[type[Made]], type[Made]]: ...
@overload
def register_provider(name: str, cls: type[Made]) -> type[Made]: ...
def register_provider(name: str, cls: type[Made] | None = None) -> Any:
    """Let ``SESSION_TYPE = name`` mean the provider class ``cls``. Also a decorator.

    Raises ``ConfigError`` if the name is taken by another class.
    """
    if cls is None:
        return lambda cls: register_provider(name, cls)
    _checked(cls, name)
    if not isinstance(name, str) or not name:
        raise ConfigError("a provider is registered by a name, as in register_provider('mine').")
    paths = [BUILT_IN[name]] if name in BUILT_IN else []
    paths += [point.value for point in _entry_points(name)]
    if _registered.get(name, cls) is not cls or not all(_leads_to(path, cls) for path in paths):
        raise ConfigError(f"there is another provider {name!r}: register yours by another name.")
    _registered[name] = cls
    return cls


def _find(name: str) -> type[Provider]:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return _checked(getattr(import_module(module), attribute), name)
    if name in _registered:
        return _registered[name]
    points = _entry_points(name)
    if not points:
        raise ConfigError(_unknown(name))
    if len({point.value for point in points}) > 1:
        whose = ", ".join(sorted(point.value for point in points))
        raise ConfigError(
            f"several packages have a provider {name!r}: {whose}. Remove all but one."
        )
    return _checked(points[0].load(), name)


def _unknown(name: str) -> str:
    known = sorted({*BUILT_IN, *_registered, *(point.name for point in entry_points(group=GROUP))})
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no provider {name!r}.{hint} SESSION_TYPE may be: {', '.join(known)}."


def _entry_points(name: str) -> list[EntryPoint]:
    return list(entry_points(group=GROUP, name=name))


def _leads_to(path: str, cls: type) -> bool:
    """Whether ``module:Class`` is this class, as its package names it. Imports nothing."""
    module, _, attribute = path.partition(":")
    return attribute == cls.__qualname__ and _package(module) == _package(cls.__module__)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _checked(cls: Any, name: str) -> type[Provider]:
    if isinstance(cls, type) and issubclass(cls, Provider):
        return cls
    raise ConfigError(f"what is registered as provider {name!r} is not a subclass of Provider.")


@contextmanager
def _driver_for(name: str) -> Iterator[None]:
    """Say what to install, but only when it is a driver itself that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        raise ConfigError(
            f"the provider {name!r} needs the module {error.name}: "
            f'pip install "flask-hybridsession[{extra}]"'
        ) from error


def _make(cls: type[Provider], settings: Settings) -> Provider:
    try:
        return cls.from_settings(settings)
    except TypeError as error:
        if not _refused_at_call(error, cls):
            raise
        accepted = ", ".join(inspect.signature(cls).parameters)
        raise ConfigError(
            f"SESSION_OPTIONS do not fit {cls.__name__}: {error}. It takes: {accepted or 'none'}."
        ) from error


def _refused_at_call(error: TypeError, cls: type[Provider]) -> bool:
    """Whether the arguments did not fit: then no line of the constructor itself was run."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_code if trace is not None else None
    return where is cls.from_settings.__code__ and not inspect.isabstract(cls)
