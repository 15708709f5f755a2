"""The names under which caches keep things."""

from __future__ import annotations

import re

from ...core.errors import ConfigError


def checked_prefix(prefix: str, setting: str) -> str:
    """The prefix, if memcached takes it; through cachelib, another one reads as "not there"."""
    if not isinstance(prefix, str) or not re.fullmatch(r"[!-~]{0,80}", prefix):
        raise ConfigError(f"{setting} must be up to 80 ASCII characters without spaces.")
    return prefix
