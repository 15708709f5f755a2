"""The app that ``test_uwsgi`` serves: counts, logs out, and compacts all the time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flask import Flask, session

from flask_hybridsession import HybridSession

STORE = Path(os.environ["TORTURE_FOLDER"]) / "store"

app = Flask(__name__)
app.config.update(
    SESSION_DIR=str(STORE),
    SESSION_OPTIONS={"compact_bytes": 60_000, "compact_factor": 1.1},
)
sessions = HybridSession(app)


@app.get("/count")
def count() -> dict[str, Any]:
    session.increment("count")  # type: ignore[attr-defined]
    return look()


@app.get("/look")
def look() -> dict[str, Any]:
    return {"count": session.get("count", 0), "pid": os.getpid()}


@app.get("/logout")
def logout() -> dict[str, Any]:
    session.destroy()  # type: ignore[attr-defined]
    return {"pid": os.getpid()}


@app.get("/sessions")
def number() -> dict[str, Any]:
    return {"sessions": sessions.count(), "pid": os.getpid()}


@app.get("/open")
def what_is_open() -> dict[str, Any]:
    return {"files": open_files(os.getppid())}


def open_files(process: int) -> list[str]:
    """The files of the store that a process has open or mapped."""
    folder = Path(f"/proc/{process}")
    names = [os.readlink(fd) for fd in (folder / "fd").iterdir() if fd.is_symlink()]
    names += [line.split()[-1] for line in (folder / "maps").read_text().splitlines()]
    return sorted({name for name in names if name.startswith(str(STORE))})


if "TORTURE_TOUCH" in os.environ:
    # The store is in use in the master, with threads of its own, when it forks.
    app.test_client().get("/count")
