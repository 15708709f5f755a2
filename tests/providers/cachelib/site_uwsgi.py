"""The app that ``test_uwsgi`` serves with four workers."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, session

from flask_hybridsession import HybridSession

app = Flask(__name__)
app.config["SESSION_TYPE"] = "cachelib"
app.config["SESSION_CACHELIB"] = {"type": "UWSGICache", "cache": "sessions"}
HybridSession(app)


@app.get("/add/<name>")
def add(name: str) -> dict[str, Any]:
    session[name] = os.getpid()
    return look()


@app.get("/look")
def look() -> dict[str, Any]:
    return {"names": sorted(session), "pid": os.getpid()}


@app.get("/clear")
def clear() -> dict[str, Any]:
    session.clear()
    return look()
