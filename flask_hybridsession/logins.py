"""Flask-Login: whom it logs in is whose the session is, without a line in the app.

Who it is, the session reads where Flask-Login keeps it. Its signals say what that does not tell.
Nothing here imports Flask-Login: an app that uses it has done so.
"""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask
from flask import session as flask_session

from .core.session import Session


def id_method(app: Flask | None) -> str | None:
    """The method by which it asks a user object for his id; None: the app does not use it."""
    known = sys.modules.get("flask_login")
    manager = getattr(app, "login_manager", None)
    if known is None or not isinstance(manager, known.LoginManager):
        return None
    return str(manager.id_attribute)


def listen(app: Flask) -> None:
    """Hear of its logins and logouts in that app. To be called when the app is set up."""
    if id_method(app) is None:
        return
    known = sys.modules["flask_login"]
    known.user_logged_in.connect(_on_login, app, weak=False)
    known.user_loaded_from_cookie.connect(_on_remembered, app, weak=False)
    known.user_logged_out.connect(_on_logout, app, weak=False)


def _on_login(app: Flask, **details: Any) -> None:
    session = _followed()
    if session is not None:
        session._need_storage()
        session._confirm()


def _on_remembered(app: Flask, **details: Any) -> None:
    session = _followed()
    if session is not None:
        session._confirm()


def _on_logout(app: Flask, **details: Any) -> None:
    session = _followed()
    if session is not None:
        session._leave()


def _followed() -> Session | None:
    session = flask_session._get_current_object()  # type: ignore[attr-defined]
    return session if isinstance(session, Session) and session._manager.follows() else None
