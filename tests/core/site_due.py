"""The app that ``test_workers`` serves: it takes a while to load, and its last lines say who is
told of sessions that fell due. Everybody writes down what he sees, and when.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from flask import Flask

from flask_hybridsession import HybridSession, session_expired
from flask_hybridsession.core.timers import clockwork

FOLDER = Path(os.environ["DUE_FOLDER"])
uwsgi: Any = sys.modules.get("uwsgi")


def note(name: str, text: str = "") -> None:
    with (FOLDER / name).open("a") as file:
        file.write(f"{os.getpid()} {time.monotonic()} {text}\n")


def load(app: Flask) -> Flask:
    """Seconds pass between the sessions and those who are told of them, as in a large app."""
    app.config["SESSION_DIR"] = str(FOLDER / "store")
    HybridSession(app)
    app.add_url_rule("/", "index", lambda: f"{os.getpid()}")
    app.test_client().get("/")
    time.sleep(0.5)
    note("runs while it loads" if clockwork.runs else "loads")
    session_expired.connect(lambda app, key, **_: note("told", key), app, weak=False)
    note("loaded")
    return app


def make_app() -> Flask:
    return load(Flask(__name__))


if uwsgi and "DUE_NO_THREADS" in os.environ:
    uwsgi.has_threads = 0
if os.environ.get("DUE_HOOK") == "there":
    uwsgi.post_fork_hook = lambda: note("hook")
if "DUE_FACTORY" not in os.environ:
    app = make_app()
if os.environ.get("DUE_HOOK") == "later":
    from uwsgidecorators import postfork

    postfork(lambda: note("hook"))
