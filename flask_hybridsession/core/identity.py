"""Who is logged in, as far as a session's values tell: by it any login is noticed.

An app that logs in with ``session["user_id"] = 7`` calls nothing of ours. What gives it away is
that the name appears, or that another id is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from uuid import UUID

from .codec import decode
from .errors import CodecError
from .names import HIDDEN

#: What apps and extensions keep of who is logged in.
NAMES = (
    "_user_id",
    "user_id",
    "user",
    "uid",
    "username",
    "logged_in",
    "profile",
    "oidc_auth_profile",
    "*_oauth_token",
)
#: Where Flask-Login keeps the user's id, and whether he gave a password in this session.
FLASK_LOGIN_USER = "_user_id"
FLASK_LOGIN_FRESH = "_fresh"
FLASK_LOGIN = (FLASK_LOGIN_USER, FLASK_LOGIN_FRESH)

#: Where a token against forged requests may be. Who planted one must not know it after a login.
CSRF_NAMES = ("csrf_token", "_csrf_token", "csrf")
#: The setting of Flask-WTF that names another.
CSRF_SETTING = "WTF_CSRF_FIELD_NAME"

#: What tells the user in a dict about him.
_FIELDS = ("sub", "id", "user_id", "email")


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """The question whether a name is one of ``patterns``, in which ``*`` stands for any text."""
    plain = frozenset(pattern for pattern in patterns if "*" not in pattern)
    wild = tuple(pattern.replace("[", "[[]") for pattern in patterns if "*" in pattern)

    @lru_cache(maxsize=1024)
    def matches(name: str) -> bool:
        if name.startswith(HIDDEN):
            return False
        return name in plain or any(fnmatchcase(name, pattern) for pattern in wild)

    return matches


def read(data: bytes | None) -> Any:
    """The value as the next request will see it; None for none, and for what cannot be read."""
    try:
        return None if data is None else decode(data)
    except CodecError:
        return None


def is_nobody(value: Any) -> bool:
    return value is None or value is False


def is_another(before: Any, after: Any) -> bool:
    """Whether ``after`` tells of somebody, and ``before`` of nobody or of somebody else.

    Two dicts tell of the same unless another ``sub``, ``id``, ``user_id`` or ``email`` is in one,
    or in its ``userinfo``; of a list or a tuple the first item counts, as in a row of a table. What
    is neither an id nor one of these tells only that there is somebody.
    """
    if is_nobody(after):
        return False
    if is_nobody(before) or isinstance(before, dict) != isinstance(after, dict):
        return True
    known, fields = _fields(before), _fields(after)
    return any(known.get(field, _MISSING) != fields[field] for field in fields)


_MISSING = object()


def _fields(value: Any) -> Mapping[str, Any]:
    """What tells who it is, each with its type: 1 is not "1", nor True."""
    if isinstance(value, dict):
        inner = value.get("userinfo")  # as OpenID Connect's clients put it beside the tokens
        found = dict(_fields(inner)) if isinstance(inner, dict) else {}
        known = {field: value[field] for field in _FIELDS if not is_nobody(value.get(field))}
        return found | {field: (type(one), one) for field, one in known.items()}
    if isinstance(value, (list, tuple)):
        return _fields(value[0]) if value else {}
    plain = isinstance(value, (str, bytes, int, Decimal, UUID))
    return {"": (type(value), value) if plain else type(value)}
