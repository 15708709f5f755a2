"""Memory that all workers share, and a write-ahead log: the default provider."""

from .provider import HybridProvider

__all__ = ["HybridProvider"]
