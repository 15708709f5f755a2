from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession import ConfigError
from flask_hybridsession.core.live import MADE_FROM, LiveSettings
from flask_hybridsession.core.settings import RESERVED, read_settings
from tests.core.test_settings import BAD


def follow(config: dict[str, Any], given: Any = None) -> LiveSettings:
    settings = read_settings(config, "/sessions")
    return LiveSettings(config, settings, "/sessions", given)


def test_nothing_changed() -> None:
    for config in ({}, {"SESSION_TYPE": "memory"}, {"SESSION_OPTIONS": {"a": [1]}, "OTHER": 1}):
        live = follow(config)
        assert live.current() is live.current()
        assert live.current() == read_settings(config, "/sessions")


def test_another_setting() -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory"}
    live = follow(config)
    first = live.current()
    config["SESSION_ID_LENGTH"] = 16
    second = live.current()
    assert second == read_settings(config, "/sessions")
    assert second.id_length == 16
    assert live.current() is second
    config["SESSION_ID_LENGTH"] = 17
    assert live.current().id_length == 17
    del config["SESSION_ID_LENGTH"]
    assert live.current() == first


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(OTHER=2),
        lambda config: config.update(MORE=1),
        lambda config: config.pop("OTHER"),
        lambda config: config.update(SESSION_IDLE_TIMEOUT=timedelta(minutes=1)),
        lambda config: config.update(SESSION_EXPIRES=None),
        lambda config: config.update(SESSION_OPTIONS={}),
        lambda config: config.update(SESSION_TYPE=None),
        lambda config: config.update(SESSION_DIR=Path("/sessions")),
        lambda config: config.update(SESSION_SYNC_INTERVAL=timedelta(seconds=1)),
    ],
)
def test_the_same_in_other_words(change: Callable[[dict[str, Any]], Any]) -> None:
    config: dict[str, Any] = {"OTHER": 1, "SESSION_IDLE_TIMEOUT": 60}
    live = follow(config)
    before = live.current()
    change(config)
    assert live.current() is before


def test_one_name_comes_as_another_goes() -> None:
    config: dict[str, Any] = {"OTHER": 1, "SESSION_TYPE": "memory", "SESSION_ID_LENGTH": 16}
    live = follow(config)
    del config["OTHER"]
    config["SESSION_EXPIRES"] = 60
    assert live.current().expires == timedelta(seconds=60)
    del config["SESSION_ID_LENGTH"]
    config["MORE"] = 1
    assert live.current().id_length == 32
    config["MORE"] = config.pop("MORE")
    assert live.current().id_length == 32


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_told_as_at_the_start(change: dict[str, Any], message: str) -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory"}
    live = follow(config)
    before = live.current()
    good = dict(config)
    config.update(change)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            live.current()
    config.clear()
    config.update(good)
    assert live.current() is before


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_name(name: str) -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory"}
    live = follow(config)
    config[name] = "x"
    with pytest.raises(ConfigError, match=f"{name} does not work yet"):
        live.current()
    config[name] = RESERVED[name]
    live.current()


# -- what the provider is made from --------------------------------------------------------------

OTHERS: dict[str, Any] = {
    "SESSION_TYPE": "hybrid",
    "SESSION_OPTIONS": {"max_sessions": 5},
    "SESSION_DIR": "/elsewhere",
    "SESSION_DURABILITY": "always",
    "SESSION_SYNC_INTERVAL": 2,
    "SESSION_KEY_PREFIX": "mine:",
    "SESSION_REDIS": "redis://elsewhere",
    "SESSION_SQLALCHEMY": "sqlite://",
    "SESSION_CACHELIB": {"type": "SimpleCache"},
}
assert OTHERS.keys() == MADE_FROM.keys()


@pytest.mark.parametrize("name", OTHERS)
def test_a_change_that_comes_too_late(name: str) -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory", "SESSION_EXPIRES": 60}
    live = follow(config)
    before, good = live.current(), dict(config)
    config.update({name: OTHERS[name], "SESSION_EXPIRES": 120})
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"^{name} changed .* HybridSession\(app\), or call"):
            live.current()
    config.clear()
    config.update(good)
    assert live.current() is before
    config.update({name: OTHERS[name], "SESSION_EXPIRES": 120})
    live = follow(config)
    assert live.current().expires == timedelta(seconds=120)


def test_all_that_comes_too_late_is_named_and_no_value() -> None:
    config: dict[str, Any] = {}
    live = follow(config)
    config.update(SESSION_REDIS="redis://:secret@x", SESSION_DIR="/secret")
    with pytest.raises(ConfigError, match=r"^SESSION_DIR, SESSION_REDIS changed") as caught:
        live.current()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "change", "back"),
    [
        ("SESSION_OPTIONS", {}, lambda v: v.update(x=1), lambda v: v.clear()),
        ("SESSION_OPTIONS", {"x": 1}, lambda v: v.update(x=2), lambda v: v.update(x=1)),
        ("SESSION_OPTIONS", {"x": [1]}, lambda v: v["x"].append(2), lambda v: v["x"].pop()),
        (
            "SESSION_OPTIONS",
            {"others": [{"type": "redis", "url": "a"}]},
            lambda v: v["others"][0].update(url="b"),
            lambda v: v["others"][0].update(url="a"),
        ),
        ("SESSION_CACHELIB", {"type": "a"}, lambda v: v.update(x=2), lambda v: v.pop("x")),
    ],
    ids=range(5),
)
def test_a_change_within(
    name: str, value: Any, change: Callable[[Any], Any], back: Callable[[Any], Any]
) -> None:
    config = {name: value, "SESSION_TYPE": "memory"}
    live = follow(config)
    before = live.current()
    change(value)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^{name} changed"):
            live.current()
    back(value)
    assert live.current() is before


def test_objects_are_what_they_are_whatever_is_in_them() -> None:
    store: UserDict[str, int] = UserDict()
    live = follow({"SESSION_OPTIONS": {"store": store}, "SESSION_TYPE": "memory"})
    before = live.current()
    assert before.options["store"] is store
    store["a"] = 1
    assert live.current() is before


def test_the_provider_that_was_given_wins() -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory"}
    live = follow(config, "memory")
    before = live.current()
    config["SESSION_TYPE"] = "whatever"
    assert live.current() is before
    config["SESSION_ID_LENGTH"] = 16
    assert live.current().type == "memory"
    config["SESSION_DIR"] = "/elsewhere"
    with pytest.raises(ConfigError, match=r"^SESSION_DIR changed"):
        live.current()


# -- typing errors -------------------------------------------------------------------------------


def test_a_typing_error_warns_once() -> None:
    config: dict[str, Any] = {"SESSION_TYPE": "memory"}
    live = follow(config)
    config["SESSION_EXPIRE"] = 60
    with pytest.warns(UserWarning, match="^SESSION_EXPIRE is not a setting. Did you mean"):
        live.current()
    for number in range(3):
        config["SESSION_EXPIRES"] = 60 + number
        config.pop("SESSION_EXPIRE", None)
        live.current()
        config["SESSION_EXPIRE"] = number
        live.current()
    config["SESSION_FILE_DIR"] = "x"
    with pytest.warns(UserWarning, match="^SESSION_FILE_DIR is a setting of Flask-Session"):
        live.current()


def test_a_warning_that_is_an_error_holds_nothing_up() -> None:
    config: dict[str, Any] = {}
    live = follow(config)
    config.update(SESSION_EXPIRE=1, SESSION_ID_LENGTH=16)
    with pytest.raises(UserWarning, match="SESSION_EXPIRE is not"):
        live.current()
    assert live.current().id_length == 16


def test_what_was_warned_of_at_the_start_is_not_again() -> None:
    with pytest.warns(UserWarning, match="SESSION_TYP is not a setting"):
        live = follow(config := {"SESSION_TYP": "memory"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.update(SESSION_EXPIRES=60, OTHER=1)  # type: ignore[call-overload]
        live.current()
