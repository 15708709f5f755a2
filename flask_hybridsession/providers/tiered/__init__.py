"""``SESSION_TYPE = "tiered"``: one provider that decides, and others that follow it."""

from .provider import TieredProvider

__all__ = ["TieredProvider"]
