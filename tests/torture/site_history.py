"""The app whose answers the checker of histories judges: a request does one thing, and says it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, request

from flask_hybridsession import HybridSession, session

FOLDER = Path(os.environ["OVERLAP_FOLDER"])
PROVIDER = os.environ["OVERLAP_PROVIDER"]

app = Flask("history")
app.config.update(
    SESSION_TYPE=PROVIDER,
    SESSION_DIR=str(FOLDER / "sessions"),
    SESSION_REDIS=os.environ["OVERLAP_URL"],
    SESSION_SQLALCHEMY=os.environ["OVERLAP_URL"],
    SESSION_KEY_PREFIX=f"{FOLDER.name}:",
)
app.config["SESSION_OPTIONS"] = (
    {"compact_bytes": 60_000, "compact_factor": 1.1}  # its log is written anew again and again
    if PROVIDER == "hybrid"
    else {"budget": 10.0}
)
sessions = HybridSession(app)
if PROVIDER == "sql":
    sessions.provider.create_tables()  # type: ignore[attr-defined]


def put() -> bool:
    session[request.args["name"]] = int(request.args["number"])
    return session.commit()


def add() -> bool:
    session.increment(request.args["name"], int(request.args["number"]))
    return session.commit()


def drop() -> bool:
    session.pop(request.args["name"], None)
    return session.commit()


def read() -> Any:
    return [{name: session[name] for name in session}, session.user_id]


def logout() -> bool:
    session.logout()
    return True


def clear() -> bool:
    session.clear()
    return session.commit()


def rename() -> str | None:
    session.regenerate()
    return session.sid if session.commit() else None


def login() -> str | None:
    before = session.created
    session.login(request.args["user"])
    return session.sid if session.commit() and session.created == before else None


JOBS: dict[str, Callable[[], Any]] = {
    job.__name__: job for job in (put, add, drop, read, logout, clear, rename, login)
}


@app.get("/begin")
def begin() -> dict[str, Any]:
    session["begun"] = 1
    return {"answer": session.sid}


@app.get("/<job>")
def work(job: str) -> dict[str, Any]:
    return {"answer": None if session.new else JOBS[job]()}
