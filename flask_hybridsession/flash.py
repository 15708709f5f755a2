"""Keyed flashes, beside Flask's own ``flash()`` and ``get_flashed_messages()``.

A flash is stored with the session until it is got; then it is gone at the end of that request.
A new value for the same key, even from a request at the same time, is a new flash.
"""

from __future__ import annotations

from typing import Any, cast

from flask import Flask
from flask import session as flask_session
from jinja2 import Environment
from jinja2.ext import Extension

from .core.names import FLASH
from .core.session import Session


def _session() -> Session:
    return cast(Session, flask_session)


def flash_value(key: str, value: Any) -> None:
    """Keep any storable value under ``key`` until it is got."""
    _session()._put(FLASH + key, value)


def get_flash(key: str, default: Any = None) -> Any:
    """The value; it is gone after this request, in which it may be got again."""
    session = _session()
    name = FLASH + key
    if name not in session:
        return default
    value = session[name]
    session._take(name)
    return value


def peek_flash(key: str, default: Any = None) -> Any:
    """The value, which stays."""
    return _session().get(FLASH + key, default)


def has_flash(key: str | None = None) -> bool:
    """Whether there is a flash of that key, or any at all."""
    session = _session()
    return bool(session._hidden_names(FLASH)) if key is None else FLASH + key in session


def get_flashes() -> dict[str, Any]:
    """All values by key; they are gone after this request."""
    return {key: get_flash(key) for key in _keys()}


def clear_flashes() -> None:
    """Drop all keyed flashes at once."""
    session = _session()
    for name in session._hidden_names(FLASH):
        session._drop(name)


def keep_flashes(*keys: str) -> None:
    """Keep flashes that were got in this request for the next one; all of them without ``keys``."""
    session = _session()
    for key in keys or _keys():
        session._untake(FLASH + key)


def _keys() -> list[str]:
    return [name.removeprefix(FLASH) for name in _session()._hidden_names(FLASH)]


def add_to_templates(app: Flask) -> None:
    """Let templates call these functions, without making the app's Jinja environment too early."""
    extensions = [*app.jinja_options.get("extensions", ()), _Templates]
    app.jinja_options = {**app.jinja_options, "extensions": extensions}
    if "jinja_env" in vars(app):
        app.jinja_env.add_extension(_Templates)


class _Templates(Extension):
    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        for function in (
            *(flash_value, get_flash, peek_flash, has_flash),
            *(get_flashes, clear_flashes, keep_flashes),
        ):
            environment.globals[function.__name__] = function
