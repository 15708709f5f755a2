"""Sessions in Redis or Valkey: one server, one under Sentinel, or a cluster."""

from .provider import RedisProvider

__all__ = ["RedisProvider"]
