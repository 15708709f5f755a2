"""Everything this package raises on purpose.

HybridSessionError
├── ConfigError               a setting is wrong; the message says what to write instead
├── CodecError                a value that cannot be stored; names the session key
└── ProviderError
    ├── ProviderUnavailable   the provider cannot answer now; try again later
    ├── SessionGone           destroyed, expired, renamed or never there
    ├── KeyTaken              a create met a session that exists
    ├── Conflict              an expected value was not there; carries the current record
    └── CorruptData           stored bytes that are not what was written

No message carries a sid or a value: the key is a hash of the sid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .change import Record


class HybridSessionError(Exception):
    """The root of all errors here."""


class ConfigError(HybridSessionError):
    """A setting, or a combination of settings, that cannot work."""


class CodecError(HybridSessionError):
    """A value that cannot be stored, or stored bytes that cannot be read.

    ``name`` is the session key, once it is known.
    """

    def __init__(self, reason: str, name: str | None = None) -> None:
        self.reason = reason
        self.name = name
        where = "a session value" if name is None else f"session[{name!r}]"
        super().__init__(f"{where} {reason}")

    def named(self, name: str) -> CodecError:
        """The same error, for the session key ``name``."""
        return CodecError(self.reason, name)


class ProviderError(HybridSessionError):
    """The root of what a provider raises."""


class ProviderUnavailable(ProviderError):
    """The provider cannot answer now: it is down, full, or locked for too long."""


class _AboutKey(ProviderError):
    text = "{key}"

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(self.text.format(key=key[:12]))


class SessionGone(_AboutKey):
    """The session does not exist, or no longer: nothing was written."""

    text = "session {key}... does not exist (any more)"


class KeyTaken(_AboutKey):
    """A session with that key exists already: nothing was written."""

    text = "session {key}... exists already"


class Conflict(ProviderError):
    """A value named in ``Change.expects`` is another one by now: nothing was written."""

    def __init__(self, current: Record) -> None:
        self.current = current
        super().__init__(f"session {current.key[:12]}... was changed by another request")


class CorruptData(ProviderError):
    """Stored bytes are damaged. What could not be proven intact is not served."""
