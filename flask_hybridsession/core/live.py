"""The settings as they are now: ``app.config`` may change after they were read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from .errors import ConfigError
from .settings import KNOWN, Settings, check_settings, warn_of_unknown

#: What the provider is made from, with the field of ``Settings`` that holds it.
MADE_FROM: Mapping[str, str] = {
    "SESSION_TYPE": "type",
    "SESSION_OPTIONS": "options",
    "SESSION_DIR": "directory",
    "SESSION_DURABILITY": "durability",
    "SESSION_SYNC_INTERVAL": "sync_interval",
    "SESSION_KEY_PREFIX": "key_prefix",
    "SESSION_REDIS": "redis",
    "SESSION_SQLALCHEMY": "sqlalchemy",
    "SESSION_CACHELIB": "cachelib",
}

#: Flask's own that may have any value: it reads them when it needs them.
_ANY_VALUE = {"SESSION_COOKIE_HTTPONLY", "SESSION_REFRESH_EACH_REQUEST"}
#: ``APPLICATION_ROOT`` is the path of a cookie that has none of its own.
_WATCHED = (KNOWN - _ANY_VALUE) | {"APPLICATION_ROOT"}


class _Seen(NamedTuple):
    """``settings``, and how the config looked that they were read from."""

    settings: Settings
    pick: Callable[[Mapping[str, Any]], Any]
    values: Any
    size: int
    last: object


class LiveSettings:
    """Follows ``config`` from the ``settings`` that were read from it, and made a provider.

    ``given`` stands for ``SESSION_TYPE``, whatever the config says; ``directory`` is the default
    of ``SESSION_DIR``.
    """

    def __init__(
        self, config: dict[str, Any], settings: Settings, directory: str, given: Any = None
    ) -> None:
        self._config = config
        self._directory = directory
        self._given = {} if given is None else {"SESSION_TYPE": given}
        self._watched = _WATCHED - self._given.keys()
        self._made_from = {name: _kept(getattr(settings, MADE_FROM[name])) for name in MADE_FROM}
        self._known = set(config)
        self._seen = _look(dict(config), settings, self._watched)

    def current(self) -> Settings:
        """What the config says now: the same object until that is something else.

        Raises ``ConfigError`` for what cannot work or comes too late, each time until the config
        is right. Warns of a new name that looks like a typing error.
        """
        config = self._config
        settings, pick, values, size, last = self._seen
        try:
            # A new name comes last in a dict.
            same = (
                pick(config) == values
                and len(config) == size
                and next(reversed(config), None) == last
            )
        except (KeyError, RuntimeError):  # a name is gone; another thread is at it
            same = False
        return settings if same else self._read()

    def _read(self) -> Settings:
        # No lock: what is read, and kept, is of one moment. An older one shows at the next look.
        config = dict(self._config)
        self._warn_of_new(config)
        settings = check_settings({**config, **self._given}, self._directory)
        self._refuse_late(settings)
        if settings == self._seen.settings:
            settings = self._seen.settings
        self._seen = _look(config, settings, self._watched)
        return settings

    def _warn_of_new(self, config: Mapping[str, Any]) -> None:
        new = {name: value for name, value in config.items() if name not in self._known}
        self._known.update(new)
        warn_of_unknown(new)

    def _refuse_late(self, settings: Settings) -> None:
        """Another provider would not have the sessions of this one."""
        late = [
            name
            for name, value in self._made_from.items()
            if getattr(settings, MADE_FROM[name]) != value
        ]
        if late:
            raise ConfigError(
                f"{', '.join(late)} changed after the provider was made: configure it before "
                "HybridSession(app), or call init_app after the configuration."
            )


def _look(config: dict[str, Any], settings: Settings, watched: Collection[str]) -> _Seen:
    names = [name for name in config if name in watched]
    pick = itemgetter(*names) if len(names) > 1 else lambda config: tuple(map(config.get, names))
    last = next(reversed(config), None)
    return _Seen(settings, pick, _kept(pick(config)), len(config), last)


def _kept(value: Any) -> Any:
    """Equal to ``value`` as it is now, also when what it is made of changes."""
    kind = type(value)
    if kind is dict:
        return {name: _kept(one) for name, one in value.items()}
    if kind in (list, tuple, set):
        return kind(map(_kept, value))
    return value
