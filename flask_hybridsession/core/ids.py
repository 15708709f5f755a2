"""Session ids and user ids.

The *sid* is the secret in the cookie; the *key* is its SHA-256 and the only thing that a provider,
a file, a log line or an error ever sees. A lookup by hash leaks nothing by its timing
(CVE-2019-16782).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

UserId = str | int | UUID


class HasId(Protocol):
    """A user object that tells its id, as those of Flask-Login do."""

    def get_id(self) -> Any:
        """A str, an int or a UUID."""


#: Random bytes in a sid. 128 bits are the least that ASVS 5.0 7.2.3 accepts.
DEFAULT_LENGTH = 32
LEAST_LENGTH = 16


def mint(length: int = DEFAULT_LENGTH) -> str:
    """A new sid of ``length`` random bytes, in the base64url alphabet without padding."""
    return secrets.token_urlsafe(length)


@lru_cache(maxsize=8)
def shape_of(length: int = DEFAULT_LENGTH) -> Callable[[str], object]:
    """The check whether a text could be a sid of ours, made before any storage is asked."""
    return re.compile(rf"[A-Za-z0-9_-]{{{(length * 4 + 2) // 3}}}").fullmatch


def is_sid(text: str, length: int = DEFAULT_LENGTH) -> bool:
    """Whether ``text`` could be a sid of ``length`` random bytes."""
    return shape_of(length)(text) is not None


def key_of(sid: str) -> str:
    """The key under which the session of ``sid`` is stored: 64 hexadecimal characters."""
    return sha256(sid.encode()).hexdigest()


def user_token(user: UserId | HasId, texts: bool = False, method: str = "get_id") -> str:
    """A user id as text that keeps its type: 1 is not "1", but where all ids are ``texts``.

    A user object is asked by ``get_id()``, or by another ``method``. Raises ``TypeError`` for other
    types, ``ValueError`` for text that is not valid Unicode.
    """
    get_id = None if isinstance(user, (str, int, UUID)) else getattr(user, method, None)
    user_id = get_id() if callable(get_id) else user
    kind = type(user_id)
    if isinstance(user_id, UUID):
        return f"s:{user_id}" if texts else f"u:{user_id.hex}"
    if kind is int:
        return f"s:{user_id}" if texts else f"i:{user_id}"
    if kind is str or (texts and issubclass(kind, str)):
        text = str.__str__(user_id)
        text.encode()
        return f"s:{text}"
    asked = f", which {type(user).__name__}.{method}() returned" if callable(get_id) else ""
    raise TypeError(
        f"a user id is a str, an int or a UUID, not {kind.__name__}{asked}: "
        f"give the id, or a user object with a {method}() that returns it"
    )


def user_id(token: str) -> UserId:
    """What ``user_token`` was given."""
    kind, _, text = token.partition(":")
    if kind == "s":
        return text
    if kind == "i":
        return int(text)
    if kind == "u":
        return UUID(text)
    raise ValueError("not a user token")
