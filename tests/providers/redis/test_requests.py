"""How often a request asks the server, counted there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from flask import Flask, flash, get_flashed_messages
from flask import session as flask_session
from flask.testing import FlaskClient

from flask_hybridsession import HybridSession
from flask_hybridsession.core.timers import clockwork
from tests.servers import REDIS, Server, running

from .tools import BUDGET

session: Any = flask_session


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Nobody else is counted."""
    with running(REDIS) as server:
        yield server


@pytest.fixture
def calls(server: Server) -> Iterator[Callable[[], int]]:
    """How many commands have come from clients since it was last asked."""
    with redis.Redis(port=server.port) as client:

        def count() -> int:
            stats: Any = client.info("commandstats")
            found = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ASKED)
            assert not {name.removeprefix("cmdstat_") for name in stats} - KNOWN, stats.keys()
            client.config_resetstat()
            return int(found)

        yield count


#: What comes from clients. The rest is what scripts do within the server.
ASKED = ("evalsha", "eval", "hgetall", "set", "zscan", "ping")
KNOWN = {
    *ASKED,
    *("hmget", "hget", "hset", "hdel", "hkeys", "exists", "del", "rename", "pexpire", "persist"),
    *(
        "zadd",
        "zrem",
        "zcard",
        "zrange",
        "zrangebyscore",
        "info",
        "config|resetstat",
        "client|setinfo",
    ),
    "hello",  # of the client that counts
}


@pytest.fixture
def browser(server: Server) -> Iterator[FlaskClient]:
    app = Flask(__name__)
    app.config["SESSION_TYPE"] = "redis"
    app.config["SESSION_REDIS"] = f"redis://{server.address}"
    app.config["SESSION_OPTIONS"] = {"budget": BUDGET}
    sessions = HybridSession(app)
    clockwork.unwatch(sessions._managers[app])  # it would ask in between

    browser = app.test_client()

    @app.get("/<action>")
    def act(action: str) -> str:
        return str(ACTIONS[action]())

    # The server gets to know each script once.
    for action in ("write", "regenerate", "logout"):
        browser.get(f"/{action}")
    browser.get("/write")
    yield browser
    sessions.close()


def append() -> None:
    session.setdefault("cart", []).append("apple")


ACTIONS: dict[str, Callable[[], object]] = {
    "untouched": lambda: None,
    "read": lambda: dict(session),
    "get": lambda: session.get("a"),
    "write": lambda: session.update(a=time.monotonic()),
    "nested": append,
    "count": lambda: session.increment("n"),
    "flash": lambda: flash("hello"),
    "show": get_flashed_messages,
    "regenerate": lambda: session.regenerate(),
    "login": lambda: session.login(7),
    "destroy": lambda: session.destroy(),
    "logout": lambda: session.logout(),
}

#: The most that each may ask.
MOST = {
    "untouched": 0,
    "read": 1,
    "get": 1,
    "write": 2,
    "nested": 2,
    "count": 2,
    "flash": 2,
    "regenerate": 4,
    "login": 4,
    "destroy": 2,
    "logout": 2,
}


@pytest.mark.parametrize("action", MOST)
def test_round_trips(browser: FlaskClient, calls: Callable[[], int], action: str) -> None:
    calls()
    assert browser.get(f"/{action}").status_code == 200
    assert calls() == MOST[action]


def test_the_first_write_of_a_visitor(browser: FlaskClient, calls: Callable[[], int]) -> None:
    visitor = browser.application.test_client()
    calls()
    visitor.get("/get")
    assert calls() == 0
    visitor.get("/write")
    assert calls() == 1
