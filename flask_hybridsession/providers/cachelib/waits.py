"""How long a call may wait for a server, and what is said when it failed."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

from ...core.errors import ProviderUnavailable

T = TypeVar("T")

#: Seconds that a call may take which nobody waits for, such as a removal of what is expired.
UNHURRIED = 10.0

_until: ContextVar[float | None] = ContextVar("until", default=None)


def within(seconds: float, call: Callable[..., T], *args: Any) -> T:
    """Call it. Its clients ask ``left()`` how long they may wait."""
    token = _until.set(monotonic() + seconds)
    try:
        return call(*args)
    finally:
        _until.reset(token)


def left() -> float:
    """Seconds that the call under way may still take. Raises ``TimeoutError`` when none are."""
    until = _until.get()
    if until is None:
        return UNHURRIED
    seconds = until - monotonic()
    if seconds <= 0:
        raise TimeoutError("no time is left")
    return seconds


def failed(why: str) -> ProviderUnavailable:
    return ProviderUnavailable(f"the cache failed: {why}")


class RefusedError(Exception):
    """The server's answer is a no. The text is its own word for why: no name and no value."""
