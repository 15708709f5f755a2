"""The session cookie: what in a header may be a sid, and which domain it is set for. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

from itsdangerous import BadSignature, Signer

from .errors import ConfigError

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

#: Name and value together; a larger cookie is dropped by browsers (RFC 6265bis).
LARGEST = 4096
#: How many cookies of one name are looked at: one a scope (host, domain) and one to spare.
MOST_CANDIDATES = 3


class Action(Enum):
    """What a response does about the cookie."""

    LEAVE = "leave alone"
    SEND = "send"
    DELETE = "delete"


def candidates(header: str | None, name: str) -> list[str]:
    """The values of the cookie ``name`` in a ``Cookie`` header, without decoding anything.

    A browser sends several when the cookie was set for several scopes, as before and after a change
    of ``SESSION_COOKIE_DOMAIN``; the first that names a session counts. A nameless cookie
    (``=__Host-session=evil``) is nobody's (CVE-2023-23934).
    """
    if not header:
        return []
    found: list[str] = []
    wanted = name + "="
    at = header.find(wanted)
    if at == 0 and ";" not in header:
        return [value] if (value := header[len(wanted) :].strip()) else []
    while at >= 0:
        start = at + len(wanted)
        if at == 0 or header[at - 1] in "; ":
            before = header[:at].rstrip(" ")
            if not before or before.endswith(";"):
                end = header.find(";", start)
                value = header[start:] if end < 0 else header[start:end]
                value = value.strip()
                if value and value not in found:
                    found.append(value)
                    if len(found) == MOST_CANDIDATES:
                        break
        at = header.find(wanted, start)
    return found


@lru_cache(maxsize=8)
def _signer(keys: tuple[str | bytes, ...]) -> Signer:
    return Signer(
        [key.encode() if isinstance(key, str) else key for key in keys],
        salt="flask-hybridsession.sid",
        key_derivation="hmac",
        digest_method=sha256,
    )


def sign(sid: str, secret_key: str | bytes, fallbacks: Sequence[str | bytes] = ()) -> str:
    """The sid with a signature by ``secret_key``: never by a fallback (CVE-2025-47278)."""
    return _signer((*fallbacks, secret_key)).sign(sid).decode()


def unsign(text: str, secret_key: str | bytes, fallbacks: Sequence[str | bytes] = ()) -> str | None:
    """The sid, if the signature is by ``secret_key`` or by one of the fallbacks."""
    try:
        return _signer((*fallbacks, secret_key)).unsign(text).decode()
    except (BadSignature, UnicodeError):
        return None


_is_cookie_value = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*").fullmatch


def check_value(name: str, value: object) -> str:
    """The cookie's value, if browsers keep it and send it back unchanged. Else ``ConfigError``."""
    if not isinstance(value, str) or not value or _is_cookie_value(value) is None:
        raise ConfigError(
            "SESSION_COOKIE_CODEC: encode must return a text of visible ASCII characters without "
            'space, comma, semicolon, backslash or ", such as URL-safe base64.'
        )
    if len(name) + len(value) > LARGEST:
        raise ConfigError(f"the session cookie is larger than {LARGEST} bytes: browsers drop it.")
    return value


@lru_cache(maxsize=256)
def shared_domain(host: str) -> str | None:
    """The domain that a host shares with its subdomains, or None: the cookie is the host's only.

    ``host`` may have a port. It is the registrable domain by the public suffix list; an address, a
    single label and a public suffix itself share nothing.
    """
    name = _host_name(host)
    if name is None:
        return None
    return _public_suffixes().privatesuffix(name)


_is_host_name = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))+").fullmatch


def _host_name(host: str) -> str | None:
    """The host without port and final dot, in lower case; None for what is not a domain name."""
    name = host.lower()
    if not name.startswith("["):
        name = name.partition(":")[0]
    name = name.removesuffix(".")
    if _is_host_name(name) is None or len(name) > 253 or name.rpartition(".")[2].isdigit():
        return None  # a last label of digits is an IPv4 address (URL standard)
    return name


@lru_cache(maxsize=1)
def _public_suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList  # read when asked for: it costs 30 ms

    return PublicSuffixList()
