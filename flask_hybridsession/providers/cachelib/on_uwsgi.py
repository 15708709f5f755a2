"""``UWSGICache``, made safe."""

from __future__ import annotations

from typing import Any

from ...core.errors import ConfigError
from .waits import RefusedError


class UWSGI:
    """What it lacks: a word when there is no cache, or no room in it.

    It is memory of the uWSGI server, shared by its workers, with a fixed number of ``items``, each
    of ``blocksize`` bytes at most. When it is full nothing new is stored, and that is an error.
    """

    cache: str
    _uwsgi: Any

    def prepare(self) -> None:
        if "@" in self.cache:
            raise ConfigError(
                'UWSGICache says "not there" of what it cannot reach: give the name of a cache of '
                "this uWSGI server, without @."
            )
        try:
            self._uwsgi.cache_keys(self.cache)
        except ValueError as error:
            raise ConfigError(
                f"this uWSGI server has no cache {self.cache!r}: start it with "
                "--cache2 name=sessions,items=100000,blocksize=8192 and give that name."
            ) from error
        forgets = {"purge_lru", "lru", "clear_on_full"} & set(_options(self._uwsgi.opt, self.cache))
        if forgets:
            raise ConfigError(
                f"the cache {self.cache!r} throws sessions away when it is full: remove "
                f"{', '.join(sorted(forgets))} from its cache2, and give it more items."
            )

    def get_many(self, *keys: str) -> list[Any]:
        # One after the other: a mark counts if it was there after the session was read.
        return [self._uwsgi.cache_get(key, self.cache) for key in keys]

    def set(self, key: str, value: bytes, timeout: int) -> bool:
        if not self._uwsgi.cache_update(key, value, timeout, self.cache):
            raise RefusedError("it is full, or the session is larger than its blocksize")
        return True

    def add(self, key: str, value: bytes, timeout: int) -> bool:
        return bool(self._uwsgi.cache_set(key, value, timeout, self.cache))


def _options(given: dict[Any, Any], name: str) -> list[str]:
    """The names of the options that are on, of the cache's definition, as uWSGI was started."""
    found = given.get("cache2", given.get(b"cache2", []))
    for definition in found if isinstance(found, list) else [found]:
        text = definition.decode() if isinstance(definition, bytes) else str(definition)
        options = dict(part.partition("=")[::2] for part in text.split(","))
        if name in ("", options.get("name")):
            return [option for option, value in options.items() if value not in ("", "0")]
    return []
