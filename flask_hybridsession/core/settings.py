"""``app.config`` -> a frozen ``Settings``, checked once, with errors that say what to write."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import identity
from .errors import ConfigError, ProviderUnavailable
from .ids import DEFAULT_LENGTH, LEAST_LENGTH
from .lifetime import Lifetime, parse_lifetime, seconds


class CookieCodec(NamedTuple):
    """The hook that encodes the cookie's value and decodes it again (seed 003).

    ``encode(name, sid)`` gives the cookie's value; ``decode(name, value)`` gives the sid back, or
    raises, or returns an empty value, for a cookie that is not ours.
    """

    encode: Callable[[str, str], str]
    decode: Callable[[str, str], str | None]


#: What a request gets whose session the provider cannot give: one of ``OUTAGE_POLICIES``, or a
#: function of the error that returns one of them, or a response.
OnOutage = str | Callable[[ProviderUnavailable], Any]

OUTAGE_POLICIES = ("unavailable", "ephemeral")


class SameSiteError(ConfigError, ValueError):
    """Flask raises a ``ValueError`` for it, when it sends the cookie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Our own settings. Flask's (``SESSION_COOKIE_*`` and so on) stay where Flask reads them.

    Times are seconds. ``directory`` is where the hybrid provider keeps its files.
    """

    type: Any = "hybrid"
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold passwords
    directory: str = ""
    durability: str = "interval"
    sync_interval: float = 1.0
    expires: Lifetime | None = None
    idle_timeout: float | None = None
    touch_every: float | None = None
    subdomains: bool = False
    sign_cookie: bool = False
    cookie_codec: CookieCodec | None = None
    id_length: int = DEFAULT_LENGTH
    key_prefix: str = "session:"
    redis: Any = field(default=None, repr=False)
    sqlalchemy: Any = field(default=None, repr=False)
    cachelib: Any = field(default=None, repr=False)
    on_outage: OnOutage = "unavailable"
    rotate_on: tuple[str, ...] = identity.NAMES
    flask_login: bool = True


DURABILITIES = ("always", "interval", "never")

#: Names that are kept for later, with the value that means "off".
RESERVED: Mapping[str, object] = {
    "SESSION_ROTATE_EVERY": None,
    "SESSION_ROTATE_GRACE": 60,
    "SESSION_BIND_IP": 0,
    "SESSION_BIND_USER_AGENT": False,
    "SESSION_ENCRYPT": False,
    "SESSION_MAX_PER_USER": None,
    "SESSION_REVOKE_ON_REUSE": False,
    "SESSION_ON_TOO_MANY": "oldest",
    "SESSION_MAX_BYTES": None,
    "SESSION_DEVICE_IP": 0,
    "SESSION_ANONYMOUS_LIFETIME": None,
    "SESSION_MIGRATE_FROM": None,
    "SESSION_HEADER": None,
    "SESSION_ID_GENERATOR": None,
    "SESSION_PROFILE": None,
}

#: Settings of Flask-Session that do nothing here, and what to write instead.
ELSEWHERE: Mapping[str, str] = {
    "SESSION_PERMANENT": "set session.permanent, or SESSION_EXPIRES",
    "SESSION_USE_SIGNER": "write SESSION_SIGN_COOKIE",
    "SESSION_SERIALIZATION_FORMAT": "leave it out: every plain type is kept as it is",
    "SESSION_CLEANUP_N_REQUESTS": "leave it out: expired sessions are destroyed on time",
    "SESSION_FILE_DIR": "write SESSION_DIR",
    "SESSION_FILE_MODE": "leave it out: files are readable by their owner only",
    "SESSION_FILE_THRESHOLD": "leave it out: no session is thrown out",
    "SESSION_MEMCACHED": 'write SESSION_TYPE = "cachelib" and SESSION_CACHELIB',
}

_OURS = {
    "SESSION_TYPE",
    "SESSION_OPTIONS",
    "SESSION_DIR",
    "SESSION_DURABILITY",
    "SESSION_SYNC_INTERVAL",
    "SESSION_EXPIRES",
    "SESSION_IDLE_TIMEOUT",
    "SESSION_TOUCH_EVERY",
    "SESSION_COOKIE_SUBDOMAINS",
    "SESSION_COOKIE_CODEC",
    "SESSION_SIGN_COOKIE",
    "SESSION_ID_LENGTH",
    "SESSION_KEY_PREFIX",
    "SESSION_REDIS",
    "SESSION_SQLALCHEMY",
    "SESSION_CACHELIB",
    "SESSION_ON_OUTAGE",
    "SESSION_ROTATE_ON",
    "SESSION_FLASK_LOGIN",
}
_FLASKS = {
    "SESSION_COOKIE_NAME",
    "SESSION_COOKIE_DOMAIN",
    "SESSION_COOKIE_PATH",
    "SESSION_COOKIE_HTTPONLY",
    "SESSION_COOKIE_SECURE",
    "SESSION_COOKIE_SAMESITE",
    "SESSION_COOKIE_PARTITIONED",
    "SESSION_REFRESH_EACH_REQUEST",
}
KNOWN = frozenset(_OURS | _FLASKS | RESERVED.keys())


def read_settings(config: Mapping[str, Any], directory: str) -> Settings:
    """Read and check ``config``; ``directory`` is the default of ``SESSION_DIR``.

    Raises ``ConfigError``; warns of names that look like a typing error.
    """
    warn_of_unknown(config)
    return check_settings(config, directory)


def check_settings(config: Mapping[str, Any], directory: str) -> Settings:
    """``read_settings`` without the warnings."""
    refuse_reserved(config)
    check_cookie(config)
    expires = config.get("SESSION_EXPIRES")
    kind = config.get("SESSION_TYPE")
    return Settings(
        type="hybrid" if kind is None else kind,  # an empty provider may be false
        options=_options(config),
        directory=str(config.get("SESSION_DIR") or directory),
        durability=_one_of(config, "SESSION_DURABILITY", "interval", DURABILITIES),
        sync_interval=_positive(config, "SESSION_SYNC_INTERVAL") or 1.0,
        expires=None if expires is None else parse_lifetime(expires, "SESSION_EXPIRES"),
        idle_timeout=_positive(config, "SESSION_IDLE_TIMEOUT"),
        touch_every=_touch_every(config),
        subdomains=_flag(config, "SESSION_COOKIE_SUBDOMAINS"),
        sign_cookie=_flag(config, "SESSION_SIGN_COOKIE"),
        cookie_codec=_cookie_codec(config),
        id_length=_id_length(config),
        key_prefix=_text(config, "SESSION_KEY_PREFIX", "session:"),
        redis=config.get("SESSION_REDIS"),
        sqlalchemy=config.get("SESSION_SQLALCHEMY"),
        cachelib=config.get("SESSION_CACHELIB"),
        on_outage=outage_policy(
            config.get("SESSION_ON_OUTAGE", "unavailable"), "SESSION_ON_OUTAGE"
        ),
        rotate_on=_names(config, "SESSION_ROTATE_ON", identity.NAMES),
        flask_login=_flag(config, "SESSION_FLASK_LOGIN", True),
    )


def warn_of_unknown(config: Mapping[str, Any]) -> None:
    """Warn of a ``SESSION_*`` name one typing error away from a real one, or from Flask-Session."""
    for name in config:
        if not isinstance(name, str) or name in KNOWN:
            continue
        if name in ELSEWHERE:
            _warn(f"{name} is a setting of Flask-Session and does nothing here: {ELSEWHERE[name]}.")
        elif near := [known for known in KNOWN if _one_edit_apart(name, known)]:
            _warn(f"{name} is not a setting. Did you mean {' or '.join(sorted(near))}?")


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=2)


def _one_edit_apart(a: str, b: str) -> bool:
    """One letter added, left out, replaced, or two neighbours swapped."""
    a, b = _after_common_start(a, b)
    a, b = _after_common_start(a[::-1], b[::-1])
    return max(len(a), len(b)) == 1 or (len(a) == len(b) == 2 and a == b[::-1])


def _after_common_start(a: str, b: str) -> tuple[str, str]:
    differ = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    start = min(len(a), len(b)) if differ is None else differ
    return a[start:], b[start:]


def refuse_reserved(config: Mapping[str, Any]) -> None:
    """A name kept for later must not be set: it would promise what does not happen yet."""
    for name, off in RESERVED.items():
        if name in config and config[name] != off:
            raise ConfigError(f"{name} does not work yet. Remove it, or write {name} = {off!r}.")


def check_cookie(config: Mapping[str, Any]) -> None:
    """Refuse what browsers refuse (RFC 6265bis): a session that never comes back."""
    name = config.get("SESSION_COOKIE_NAME", "session")
    if not isinstance(name, str) or not _is_token(name):
        raise ConfigError(
            "SESSION_COOKIE_NAME must be a token: letters, digits and !#$%&'*+-.^_`|~, no spaces."
        )
    secure = bool(config.get("SESSION_COOKIE_SECURE"))
    domain = config.get("SESSION_COOKIE_DOMAIN") or config.get("SESSION_COOKIE_SUBDOMAINS")
    path = config.get("SESSION_COOKIE_PATH") or config.get("APPLICATION_ROOT") or "/"
    prefix = name.lower()
    samesite = config.get("SESSION_COOKIE_SAMESITE")
    if samesite is not None and str(samesite).title() not in ("Lax", "Strict", "None"):
        raise SameSiteError('SESSION_COOKIE_SAMESITE must be None, "Lax", "Strict" or "None".')
    if not secure:
        needs = {
            "a cookie named __Host-...": prefix.startswith("__host-"),
            "a cookie named __Secure-...": prefix.startswith("__secure-"),
            'SESSION_COOKIE_SAMESITE = "None"': str(samesite).lower() == "none"
            and samesite is not None,
            "SESSION_COOKIE_PARTITIONED": bool(config.get("SESSION_COOKIE_PARTITIONED")),
        }
        for what, asked in needs.items():
            if asked:
                raise ConfigError(f"{what} needs SESSION_COOKIE_SECURE = True: browsers refuse it.")
    if prefix.startswith("__host-") and (domain or path != "/"):
        raise ConfigError(
            "a cookie named __Host-... may have no domain and no path but /: set "
            "SESSION_COOKIE_DOMAIN = None, SESSION_COOKIE_SUBDOMAINS = False and "
            'SESSION_COOKIE_PATH = "/", or choose another SESSION_COOKIE_NAME.'
        )
    if config.get("SESSION_COOKIE_DOMAIN") and config.get("SESSION_COOKIE_SUBDOMAINS"):
        raise ConfigError(
            "SESSION_COOKIE_DOMAIN and SESSION_COOKIE_SUBDOMAINS exclude each other: "
            "the second works the domain out from each request. Remove one."
        )


def _is_token(text: str) -> bool:
    return bool(text) and all(
        char.isascii() and (char.isalnum() or char in "!#$%&'*+-.^_`|~") for char in text
    )


def _options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    options = config.get("SESSION_OPTIONS") or {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ConfigError(
            'SESSION_OPTIONS must be a dict of parameters, as {"max_sessions": 1000}.'
        )
    return dict(options)


def _one_of(config: Mapping[str, Any], name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = config.get(name, default)
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}.")
    return str(value)


def _positive(config: Mapping[str, Any], name: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    number = seconds(value, name)
    if number <= 0:
        raise ConfigError(f"{name} must be more than 0 seconds, or None.")
    return number


def _touch_every(config: Mapping[str, Any]) -> float | None:
    value = config.get("SESSION_TOUCH_EVERY")
    if value is None:
        return None
    number = seconds(value, "SESSION_TOUCH_EVERY")
    if number < 0:
        raise ConfigError("SESSION_TOUCH_EVERY must be 0 (every response) or more seconds.")
    idle = config.get("SESSION_IDLE_TIMEOUT")
    if idle is not None and number >= seconds(idle, "SESSION_IDLE_TIMEOUT"):
        raise ConfigError(
            "SESSION_TOUCH_EVERY must be less than SESSION_IDLE_TIMEOUT: "
            "a session in use would end between two touches."
        )
    return number


def _names(config: Mapping[str, Any], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = config.get(name, default)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f'{name} must be several names, as ("user_id",); () for none.')
    names = tuple(value)
    for one in names:
        if not isinstance(one, str) or not one:
            raise ConfigError(f"{name} must hold texts: names in the session, not {one!r}.")
    return names


def _flag(config: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not a {type(value).__name__}.")
    return value


def _text(config: Mapping[str, Any], name: str, default: str) -> str:
    value = config.get(name, default)
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text, not a {type(value).__name__}.")
    return value


def _cookie_codec(config: Mapping[str, Any]) -> CookieCodec | None:
    value = config.get("SESSION_COOKIE_CODEC")
    if value is None:
        return None
    if config.get("SESSION_SIGN_COOKIE"):
        raise ConfigError(
            "SESSION_COOKIE_CODEC and SESSION_SIGN_COOKIE exclude each other: sign in the codec."
        )
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return CookieCodec(*value)
    encode, decode = getattr(value, "encode", None), getattr(value, "decode", None)
    if callable(encode) and callable(decode):
        return CookieCodec(encode, decode)
    raise ConfigError(
        "SESSION_COOKIE_CODEC must be a pair (encode, decode) or an object with these two methods; "
        "both are called with the cookie's name and a text."
    )


def outage_policy(value: Any, name: str) -> OnOutage:
    """The policy, checked. ``name`` is what the error calls it. Raises ``ConfigError``."""
    if value in OUTAGE_POLICIES or (callable(value) and _takes_one(value)):
        policy: OnOutage = value
        return policy
    raise ConfigError(
        f'{name} must be "unavailable", "ephemeral", or a function that takes the error and '
        "returns one of these words or a response."
    )


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def _id_length(config: Mapping[str, Any]) -> int:
    value = config.get("SESSION_ID_LENGTH", DEFAULT_LENGTH)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError("SESSION_ID_LENGTH must be a whole number of bytes.")
    if not LEAST_LENGTH <= value <= 256:
        raise ConfigError(
            f"SESSION_ID_LENGTH must be between {LEAST_LENGTH} and 256 bytes: fewer can be guessed."
        )
    return value
