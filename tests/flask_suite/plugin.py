"""A pytest plugin for Flask's own tests: every app has our sessions from its first moment.

``HYBRIDSESSION_TYPE`` names the provider, ``HYBRIDSESSION_DIR`` the directory that all apps share.
Without them Flask's default interface stays. An app that brings an interface of its own keeps it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from _pytest import monkeypatch
from flask import Flask

from flask_hybridsession import HybridSession, session_created

# Read once: some of the tests empty the environment.
_provider = os.environ.get("HYBRIDSESSION_TYPE")
_directory = os.environ.get("HYBRIDSESSION_DIR")
_report = Path(os.environ["HYBRIDSESSION_CREATED"])

_plain_init = Flask.__init__
_default = Flask.session_interface
_created = 0

# Flask's tests know it by the name that it had before pytest 9.
if not hasattr(monkeypatch, "notset"):
    monkeypatch.notset = monkeypatch.NOTSET


def pytest_configure() -> None:
    if _provider is not None:
        Flask.__init__ = _init  # type: ignore[method-assign]
        session_created.connect(_count)


def _init(app: Flask, *args: Any, **kwargs: Any) -> None:
    _plain_init(app, *args, **kwargs)
    if app.session_interface is _default:
        # Flask's own settings are made by the tests later on, and read when they are needed.
        app.config.update(
            SESSION_TYPE=_provider,
            SESSION_DIR=_directory,
            SESSION_SIGN_COOKIE=True,
            SESSION_TOUCH_EVERY=0,
        )
        HybridSession(app)


def _count(app: Flask, **details: Any) -> None:
    global _created
    _created += 1


def pytest_sessionfinish() -> None:
    """Tell how many sessions were stored: it shows that ours were in use."""
    _report.write_text(str(_created))
