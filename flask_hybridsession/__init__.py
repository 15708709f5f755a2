"""Server-side sessions for Flask: durable, shared by every worker, no server needed."""

from __future__ import annotations

from .core.database import Action, Database, Store, SyncPayload
from .core.errors import (
    CodecError,
    ConfigError,
    Conflict,
    CorruptData,
    HybridSessionError,
    KeyTaken,
    ProviderError,
    ProviderUnavailable,
    SessionGone,
)
from .core.lifetime import BROWSER, UNLIMITED
from .extension import Handle, HybridSession
from .flash import (
    clear_flashes,
    flash_value,
    get_flash,
    get_flashes,
    has_flash,
    keep_flashes,
    peek_flash,
)
from .interface import on_outage, session
from .providers.registry import register_provider
from .signals import (
    provider_failed,
    session_created,
    session_destroyed,
    session_expired,
    session_rejected,
    session_renamed,
)

__version__ = "0.1.0"

__all__ = [
    "Action",
    "BROWSER",
    "CodecError",
    "ConfigError",
    "Conflict",
    "CorruptData",
    "Database",
    "Handle",
    "HybridSession",
    "HybridSessionError",
    "KeyTaken",
    "ProviderError",
    "ProviderUnavailable",
    "SessionGone",
    "Store",
    "SyncPayload",
    "UNLIMITED",
    "clear_flashes",
    "flash_value",
    "get_flash",
    "get_flashes",
    "has_flash",
    "keep_flashes",
    "on_outage",
    "peek_flash",
    "provider_failed",
    "register_provider",
    "session",
    "session_created",
    "session_destroyed",
    "session_expired",
    "session_rejected",
    "session_renamed",
]
