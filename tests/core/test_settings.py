from __future__ import annotations

import dataclasses
import string
import warnings
from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from flask import Flask

from flask_hybridsession import BROWSER, UNLIMITED, ConfigError
from flask_hybridsession.core.settings import (
    ELSEWHERE,
    KNOWN,
    RESERVED,
    CookieCodec,
    Settings,
    _one_edit_apart,
    read_settings,
)


def read(**config: Any) -> Settings:
    return read_settings(config, "/instance/sessions")


def turned(name: str, sid: str) -> str:
    return sid[::-1]


class Codec:
    encode = staticmethod(turned)
    decode = staticmethod(turned)


def test_without_any_setting() -> None:
    assert read() == Settings(directory="/instance/sessions")
    settings = read()
    assert (settings.type, settings.durability, settings.sync_interval) == ("hybrid", "interval", 1)
    assert (settings.expires, settings.idle_timeout, settings.touch_every) == (None, None, None)
    assert (settings.subdomains, settings.sign_cookie, settings.cookie_codec) == (
        False,
        False,
        None,
    )
    assert (settings.id_length, settings.key_prefix, settings.options) == (32, "session:", {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.id_length = 1  # type: ignore[misc]


def test_flasks_own_config_is_fine() -> None:
    app = Flask("defaults")
    assert read_settings(app.config, "d") == Settings(directory="d")


@pytest.mark.parametrize(
    ("name", "value", "field", "read_as"),
    [
        ("SESSION_TYPE", "memory", "type", "memory"),
        ("SESSION_TYPE", None, "type", "hybrid"),
        ("SESSION_OPTIONS", {"a": 1}, "options", {"a": 1}),
        ("SESSION_OPTIONS", None, "options", {}),
        ("SESSION_DIR", "/x", "directory", "/x"),
        ("SESSION_DIR", None, "directory", "/instance/sessions"),
        ("SESSION_DURABILITY", "always", "durability", "always"),
        ("SESSION_DURABILITY", "never", "durability", "never"),
        ("SESSION_SYNC_INTERVAL", 0.5, "sync_interval", 0.5),
        ("SESSION_SYNC_INTERVAL", timedelta(seconds=2), "sync_interval", 2.0),
        ("SESSION_EXPIRES", None, "expires", None),
        ("SESSION_EXPIRES", 0, "expires", UNLIMITED),
        ("SESSION_EXPIRES", UNLIMITED, "expires", UNLIMITED),
        ("SESSION_EXPIRES", -1, "expires", BROWSER),
        ("SESSION_EXPIRES", BROWSER, "expires", BROWSER),
        ("SESSION_EXPIRES", 60, "expires", timedelta(seconds=60)),
        ("SESSION_EXPIRES", timedelta(hours=1), "expires", timedelta(hours=1)),
        ("SESSION_IDLE_TIMEOUT", 60, "idle_timeout", 60.0),
        ("SESSION_IDLE_TIMEOUT", timedelta(minutes=1), "idle_timeout", 60.0),
        ("SESSION_TOUCH_EVERY", 0, "touch_every", 0.0),
        ("SESSION_TOUCH_EVERY", timedelta(seconds=5), "touch_every", 5.0),
        ("SESSION_COOKIE_SUBDOMAINS", True, "subdomains", True),
        ("SESSION_SIGN_COOKIE", True, "sign_cookie", True),
        ("SESSION_COOKIE_CODEC", (turned, turned), "cookie_codec", CookieCodec(turned, turned)),
        ("SESSION_COOKIE_CODEC", Codec(), "cookie_codec", CookieCodec(turned, turned)),
        ("SESSION_COOKIE_CODEC", Codec, "cookie_codec", CookieCodec(turned, turned)),
        ("SESSION_ID_LENGTH", 16, "id_length", 16),
        ("SESSION_ID_LENGTH", 256, "id_length", 256),
        ("SESSION_KEY_PREFIX", "", "key_prefix", ""),
        ("SESSION_REDIS", "redis://x", "redis", "redis://x"),
        ("SESSION_ON_OUTAGE", "unavailable", "on_outage", "unavailable"),
        ("SESSION_ON_OUTAGE", "ephemeral", "on_outage", "ephemeral"),
        ("SESSION_ON_OUTAGE", repr, "on_outage", repr),
        ("SESSION_ON_OUTAGE", dict, "on_outage", dict),
    ],
)
def test_good_values(name: str, value: object, field: str, read_as: object) -> None:
    assert getattr(read(**{name: value}), field) == read_as


BAD: list[tuple[dict[str, Any], str]] = [
    ({"SESSION_OPTIONS": [1]}, "SESSION_OPTIONS must be a dict"),
    ({"SESSION_OPTIONS": {1: 2}}, "SESSION_OPTIONS must be a dict"),
    ({"SESSION_DURABILITY": "sometimes"}, "must be one of 'always', 'interval', 'never'"),
    ({"SESSION_DURABILITY": None}, "must be one of 'always', 'interval', 'never'"),
    ({"SESSION_DURABILITY": ["always"]}, "must be one of 'always', 'interval', 'never'"),
    ({"SESSION_SYNC_INTERVAL": 0}, "SESSION_SYNC_INTERVAL must be more than 0 seconds"),
    ({"SESSION_SYNC_INTERVAL": "1"}, "SESSION_SYNC_INTERVAL must be a timedelta or a number"),
    ({"SESSION_EXPIRES": "1h"}, "SESSION_EXPIRES must be UNLIMITED"),
    ({"SESSION_EXPIRES": True}, "SESSION_EXPIRES must be UNLIMITED"),
    ({"SESSION_EXPIRES": nan}, "SESSION_EXPIRES must be UNLIMITED"),
    ({"SESSION_EXPIRES": inf}, "SESSION_EXPIRES must be UNLIMITED"),
    ({"SESSION_IDLE_TIMEOUT": 0}, "SESSION_IDLE_TIMEOUT must be more than 0 seconds, or None"),
    ({"SESSION_IDLE_TIMEOUT": -1}, "SESSION_IDLE_TIMEOUT must be more than 0 seconds, or None"),
    ({"SESSION_IDLE_TIMEOUT": "60"}, "SESSION_IDLE_TIMEOUT must be a timedelta or a number"),
    ({"SESSION_TOUCH_EVERY": -1}, "SESSION_TOUCH_EVERY must be 0"),
    ({"SESSION_TOUCH_EVERY": "0"}, "SESSION_TOUCH_EVERY must be a timedelta or a number"),
    (
        {"SESSION_TOUCH_EVERY": 60, "SESSION_IDLE_TIMEOUT": 60},
        "SESSION_TOUCH_EVERY must be less than SESSION_IDLE_TIMEOUT",
    ),
    ({"SESSION_COOKIE_SUBDOMAINS": "yes"}, "SESSION_COOKIE_SUBDOMAINS must be True or False"),
    ({"SESSION_COOKIE_SUBDOMAINS": None}, "SESSION_COOKIE_SUBDOMAINS must be True or False"),
    ({"SESSION_SIGN_COOKIE": 1}, "SESSION_SIGN_COOKIE must be True or False, not a int"),
    ({"SESSION_COOKIE_CODEC": "base64"}, r"must be a pair \(encode, decode\)"),
    ({"SESSION_COOKIE_CODEC": (turned,)}, r"must be a pair \(encode, decode\)"),
    ({"SESSION_COOKIE_CODEC": (turned, 1)}, r"must be a pair \(encode, decode\)"),
    ({"SESSION_COOKIE_CODEC": (turned, turned), "SESSION_SIGN_COOKIE": True}, "exclude each other"),
    ({"SESSION_ID_LENGTH": 15}, "SESSION_ID_LENGTH must be between 16 and 256 bytes"),
    ({"SESSION_ID_LENGTH": 257}, "SESSION_ID_LENGTH must be between 16 and 256 bytes"),
    ({"SESSION_ID_LENGTH": "32"}, "SESSION_ID_LENGTH must be a whole number"),
    ({"SESSION_ID_LENGTH": 32.0}, "SESSION_ID_LENGTH must be a whole number"),
    ({"SESSION_ID_LENGTH": True}, "SESSION_ID_LENGTH must be a whole number"),
    *(
        ({"SESSION_ON_OUTAGE": policy}, "SESSION_ON_OUTAGE must be")
        for policy in ("", "503", None, 503, False, ["ephemeral"], lambda: "", turned)
    ),
    ({"SESSION_KEY_PREFIX": None}, "SESSION_KEY_PREFIX must be a text"),
    ({"SESSION_KEY_PREFIX": b"x"}, "SESSION_KEY_PREFIX must be a text"),
    *(
        ({"SESSION_COOKIE_NAME": name}, "SESSION_COOKIE_NAME must be a token")
        for name in ("", "a b", "a;b", "a=b", 'a"', "é", "a\n", "a,b", "(a)", None, 1, b"session")
    ),
    ({"SESSION_COOKIE_SAMESITE": "Loose"}, "SESSION_COOKIE_SAMESITE must be None"),
    ({"SESSION_COOKIE_SAMESITE": False}, "SESSION_COOKIE_SAMESITE must be None"),
    *(
        ({"SESSION_COOKIE_SAMESITE": none}, "needs SESSION_COOKIE_SECURE = True")
        for none in ("None", "none", "NONE")
    ),
    *(
        ({"SESSION_COOKIE_NAME": name}, "needs SESSION_COOKIE_SECURE = True")
        for name in ("__Host-s", "__host-s", "__HOST-S", "__Secure-s", "__secure-s", "__SECURE-s")
    ),
    ({"SESSION_COOKIE_PARTITIONED": True}, "needs SESSION_COOKIE_SECURE = True"),
    *(
        (
            {"SESSION_COOKIE_NAME": name, "SESSION_COOKIE_SECURE": True, **more},
            "may have no domain and no path but /",
        )
        for name in ("__Host-s", "__host-S")
        for more in (
            {"SESSION_COOKIE_DOMAIN": "example.com"},
            {"SESSION_COOKIE_SUBDOMAINS": True},
            {"SESSION_COOKIE_PATH": "/app"},
            {"APPLICATION_ROOT": "/app"},
        )
    ),
    (
        {"SESSION_COOKIE_DOMAIN": "example.com", "SESSION_COOKIE_SUBDOMAINS": True},
        "exclude each other",
    ),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=range(len(BAD)))
def test_bad_values_say_what_to_write(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**config)


@pytest.mark.parametrize(
    "config",
    [
        {"SESSION_COOKIE_NAME": "__Host-s", "SESSION_COOKIE_SECURE": True},
        {
            "SESSION_COOKIE_NAME": "__Host-s",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_PATH": "/",
            "APPLICATION_ROOT": "/app",
        },
        {
            "SESSION_COOKIE_NAME": "__Secure-s",
            "SESSION_COOKIE_SECURE": True,
            "SESSION_COOKIE_DOMAIN": "example.com",
        },
        {"SESSION_COOKIE_SAMESITE": "None", "SESSION_COOKIE_SECURE": True},
        {"SESSION_COOKIE_SAMESITE": "lax"},
        {"SESSION_COOKIE_SAMESITE": "Strict"},
        {"SESSION_COOKIE_PARTITIONED": True, "SESSION_COOKIE_SECURE": True},
        {"SESSION_COOKIE_NAME": "my!#$%&'*+-.^_`|~session"},
    ],
)
def test_cookies_that_browsers_take(config: dict[str, Any]) -> None:
    read(**config)


# -- names kept for later -----------------------------------------------------------------------


@pytest.mark.parametrize("name", RESERVED)
def test_a_name_kept_for_later_is_refused(name: str) -> None:
    off = RESERVED[name]
    read(**{name: off})
    for value in (5, "x", timedelta(1), *([True] if off is not True else [])):
        with pytest.raises(ConfigError, match=f"{name} does not work yet"):
            read(**{name: value})


# -- typing errors ------------------------------------------------------------------------------


def typos(name: str) -> set[str]:
    made: set[str] = set()
    for at in range(len(name) + 1):
        for letter in {*"XS_", *name[max(at - 1, 0) : at + 1]}:
            made.add(name[:at] + letter + name[at:])
            made.add(name[:at] + letter + name[at + 1 :])
        made.add(name[:at] + name[at + 1 :])
        made.add(name[:at] + name[at + 1 : at + 2] + name[at : at + 1] + name[at + 2 :])
    return made - {name}


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_each_single_typing_error_is_seen(name: str) -> None:
    missed = {typo for typo in typos(name) if not _one_edit_apart(typo, name)}
    assert not missed


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("SESSION_TYP", "SESSION_TYPE"),
        ("SESSION_TYPES", "SESSION_TYPE"),
        ("SESSION_TPYE", "SESSION_TYPE"),
        ("SESSION_TIPE", "SESSION_TYPE"),
        ("SESION_EXPIRES", "SESSION_EXPIRES"),
        ("SESSION_EXPIRE", "SESSION_EXPIRES"),
        ("SESSION_IDLE_TIMOUT", "SESSION_IDLE_TIMEOUT"),
        ("SESSION_COOKIE_SAMSITE", "SESSION_COOKIE_SAMESITE"),
    ],
)
def test_a_typing_error_warns(typo: str, meant: str) -> None:
    with pytest.warns(UserWarning, match=f"^{typo} is not a setting. Did you mean {meant}"):
        read(**{typo: 1})


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_a_setting_of_flask_session_warns(name: str) -> None:
    with pytest.warns(UserWarning, match=f"^{name} is a setting of Flask-Session"):
        read(**{name: 1})


@pytest.mark.parametrize(
    "name",
    [
        *("SESSION_PROTECTION", "SESSION_USER", "SESSION_TTL", "SESSION", "SESSION_", "SESSIONS"),
        *("SESSION_COOKIE", "SESSION_COOKIE_AGE", "SESSION_ENGINE", "SESSION_FOLDER", "SESSION_DB"),
        *("REMEMBER_COOKIE_NAME", "WTF_CSRF_ENABLED", "CACHE_TYPE", "MY_SESSION_TYPE", "DIR"),
    ],
)
def test_names_of_others_are_left_alone(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(**{name: 1})


def test_one_edit_is_not_two() -> None:
    for a, b in [("ABCD", "AXCY"), ("ABCD", "AB"), ("ABCD", "DCBA"), ("ABCD", "BCDA"), ("", "AB")]:
        assert not _one_edit_apart(a, b)
    alphabet = string.ascii_uppercase
    assert not any(_one_edit_apart(a + "SESSION", "SESSION" + b) for a in alphabet for b in "XYZ")


def test_odd_names_are_no_matter() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_settings({1: 2, None: 3, "SESSION_TYPE": "memory"}, "d")  # type: ignore[dict-item]
