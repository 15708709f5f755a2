"""A pytest plugin for other packages' tests: every app has our sessions from its first moment.

``HYBRIDSESSION_SETTINGS`` holds the apps' settings, in JSON. Without it Flask's default interface
stays. An app that brings an interface of its own, or is given one later, keeps that.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from _pytest import monkeypatch
from flask import Flask

from flask_hybridsession import HybridSession, session_created

# Read once: some of the tests empty the environment.
_settings: dict[str, Any] | None = json.loads(os.environ.get("HYBRIDSESSION_SETTINGS", "null"))
_report = Path(os.environ["HYBRIDSESSION_CREATED"])

_plain_init = Flask.__init__
_default = Flask.session_interface
_created = 0

# Flask's tests know it by the name that it had before pytest 9.
if not hasattr(monkeypatch, "notset"):
    monkeypatch.notset = monkeypatch.NOTSET  # type: ignore[attr-defined]


def pytest_configure() -> None:
    if _settings is not None:
        Flask.__init__ = _init  # type: ignore[assignment,method-assign]
        session_created.connect(_count)


def _init(app: Flask, *args: Any, **kwargs: Any) -> None:
    _plain_init(app, *args, **kwargs)
    if app.session_interface is _default:
        # Flask's own settings are made by the tests later on, and read when they are needed.
        app.config.update(_settings or {})
        HybridSession(app)


def _count(app: Flask, **details: Any) -> None:
    global _created
    _created += 1


def pytest_sessionfinish() -> None:
    """Tell how many sessions were stored: it shows that ours were in use."""
    _report.write_text(str(_created))
