"""Sessions in a cache of cachelib: memory, files, Redis, Valkey, memcached."""

from .provider import CachelibProvider

__all__ = ["CachelibProvider"]
