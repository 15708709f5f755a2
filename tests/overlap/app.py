"""The app under test, as gunicorn serves it: any of its requests can be held in the middle."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    flash,
    get_flashed_messages,
    request,
    stream_with_context,
)
from flask import session as flask_session
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_hybridsession import HybridSession, flash_value, get_flashes, session_expired
from flask_hybridsession.core import clock
from flask_hybridsession.core.provider import Lists, Users

FOLDER = Path(os.environ["OVERLAP_FOLDER"])
#: The provider, and which database it speaks to: ``redis-cluster``.
PROVIDER, _, DATABASE = os.environ["OVERLAP_PROVIDER"].partition("-")
#: Seconds after which a held request goes on by itself: no test waits so long.
HELD = 60.0

session: Any = flask_session
views = Blueprint("views", __name__)


def sessions() -> HybridSession:
    return cast(HybridSession, current_app.extensions["hybridsession"])


# What a request may do to its session. ``tab`` says who it is: its names are its own.


def append(name: str, tab: str) -> None:
    session.setdefault(name, []).append(tab)


def last(seconds: float) -> None:
    session.lifetime = seconds


def store(tab: str) -> None:
    session[tab] = tab
    session.commit()


def store_and_write(tab: str) -> None:
    store(tab)
    session[f"{tab} again"] = tab


def write_exclusively(tab: str) -> None:
    with session.exclusive():
        session[tab] = tab


def count_exclusively(tab: str) -> None:
    with session.exclusive():
        session["count"] += 1


def drop_all(tab: str) -> None:
    for name in list(session):
        del session[name]


def clear_and_write(tab: str) -> None:
    session.clear()
    session[tab] = tab


def log_in(user: str) -> None:
    """As far as the provider knows users."""
    if isinstance(sessions().provider, Users):
        session.login(user)
    else:
        session.regenerate()


def push_and_log_in(tab: str) -> None:
    append("cart", tab)
    log_in(tab)


ACTIONS: dict[str, Callable[[str], Any]] = {
    "read": lambda tab: session.get("kept"),
    "touch": lambda tab: setattr(session, "modified", True),
    "write": lambda tab: session.update({tab: tab}),
    "delete": lambda tab: session.pop(f"{tab}'s", None),
    "nested": lambda tab: append("cart" if tab == "slow" else "basket", tab),
    "append": lambda tab: append("merged", tab),
    "push": lambda tab: append("cart", tab),
    "count": lambda tab: session.increment("count"),
    "flash": lambda tab: flash(tab),
    "keyed": lambda tab: flash_value(tab, tab),
    "show": lambda tab: [*get_flashed_messages(), *get_flashes()],
    "store": store,
    "commit": store_and_write,
    "exclusive": write_exclusively,
    "careful": count_exclusively,
    "permanent": lambda tab: setattr(session, "permanent", True),
    "lifetime": lambda tab: last(60),
    "unlimited": lambda tab: last(0),
    "drop-all": drop_all,
    "clear": lambda tab: session.clear(),
    "clear-write": clear_and_write,
    "logout": lambda tab: session.logout(),
    "logout-everywhere": lambda tab: session.logout(everywhere=True),
    "regenerate": lambda tab: session.regenerate(),
    "login": log_in,
    "push-login": push_and_log_in,
}


def hold() -> None:
    """Tell the test that this request has come so far, and wait until it lets go."""
    gate = request.args.get("gate")
    if gate is not None:
        with socket.create_connection(("127.0.0.1", int(gate)), HELD) as line:
            line.sendall(b"here")
            line.recv(1)


# The views


@views.get("/<tab>/<action>")
def act(tab: str, action: str) -> Any:
    """Look at everything first; act, before or after being held; answer with what came of it."""
    dict(session)
    if "early" in request.args:
        result = ACTIONS[action](tab)
        hold()
    else:
        hold()
        result = ACTIONS[action](tab)
    return {"result": result, "pid": os.getpid()}


@views.get("/stream/<action>")
def stream(action: str) -> Any:
    """Act in the middle of the body, when the headers are on their way."""
    dict(session)

    def body() -> Iterator[str]:
        yield "begun "
        hold()
        ACTIONS[action]("slow")
        yield "ended"

    return Response(stream_with_context(body()))


@views.get("/unseen")
def unseen() -> Any:
    """Never look at the session."""
    hold()
    return {}


@views.get("/begin")
def begin() -> Any:
    """The one session that there is from now on, of a user if it is not to be anonymous."""
    if isinstance(sessions().provider, Lists):
        sessions().destroy_all()
    session.update({"kept": "old", "slow's": "old", "fast's": "old", "count": 0})
    session.update({"cart": ["old"], "basket": ["old"]})
    session.permanent = "permanent" in request.args
    if "seconds" in request.args:
        last(float(request.args["seconds"]))
    if "anonymous" not in request.args:
        log_in("user")
    return {}


@views.get("/login")
def log_in_again() -> Any:
    """The same user on another device."""
    log_in("user")
    return {}


@views.get("/set")
def set_values() -> Any:
    """Any values; the session lasts for ``seconds``, or ``until`` a time."""
    values = request.args.to_dict()
    if "seconds" in values:
        last(float(values.pop("seconds")))
    if "until" in values:
        last(max(float(values.pop("until")) - clock.now(), 0.001))
    session.update(values)
    return {"key": session.key, "pid": os.getpid()}


@views.get("/purge")
def purge() -> Any:
    return {"purged": sessions().purge()}


@views.get("/look")
def look() -> Any:
    """All there is to see; flashes are shown."""
    sessions().purge()
    lifetime = session.lifetime
    return {
        "values": {n: session[n] for n in session if n not in ("_flashes", "_permanent")},
        "shown": sorted([*get_flashed_messages(), *get_flashes()]),
        "user": session.user_id,
        "lifetime": lifetime.total_seconds() if isinstance(lifetime, timedelta) else None,
        "left": session.expires and session.expires.timestamp() - clock.now(),
        "sessions": sessions().count() if isinstance(sessions().provider, Lists) else None,
        "pid": os.getpid(),
    }


def expired(app: Flask, key: str, **details: Any) -> None:
    with (FOLDER / "expired").open("a") as file:
        file.write(f"{key}\n")


# The apps


def join(base: Any, mine: Any, theirs: Any) -> Any:
    """What both have appended."""
    return [*(theirs or []), *(mine or [])[len(base or []) :]]


def options(name: str) -> dict[str, Any]:
    if PROVIDER == "tiered":
        follower = {"type": "hybrid", "directory": str(FOLDER / f"{name} too")}
        return {"authority": "hybrid", "others": [follower]}
    if PROVIDER == "redis":
        where = {"cluster": {"cluster": True}, "sentinel": {"service": "sessions"}}
        return {"budget": HELD, **where.get(DATABASE, {})}
    if PROVIDER == "sql":
        return {"budget": HELD, "table_prefix": f"{name}_"}
    if PROVIDER == "cachelib":
        return {"type": "FileSystemCache", "cache_dir": str(FOLDER / "cache")}
    if PROVIDER == "functions":
        rows: dict[str, tuple[bytes, Any]] = {}

        def load(key: str) -> bytes | None:
            time.sleep(0)  # as with a database, others have their turn
            return rows.get(key, (None, None))[0]

        return {
            "load": load,
            "save": lambda key, data, deadline, user: rows.__setitem__(key, (data, user)),
            "delete": lambda key: rows.pop(key, None),
            "user_sessions": lambda user: [k for k, row in list(rows.items()) if row[1] == user],
        }
    return {}


def make_app(name: str, **settings: Any) -> Flask:
    app = Flask(name)
    app.config.update(settings, SESSION_TYPE=PROVIDER, SESSION_OPTIONS=options(name))
    app.config["SESSION_DIR"] = str(FOLDER / name)
    app.config["SESSION_REDIS"] = app.config["SESSION_SQLALCHEMY"] = os.environ["OVERLAP_URL"]
    app.config["SESSION_KEY_PREFIX"] = f"{FOLDER.name}:{name}:"
    made = HybridSession(app)
    made.merge("merged", join)
    if PROVIDER == "sql":
        cast(Any, made.provider).create_tables()
    app.register_blueprint(views)
    session_expired.connect(expired, app)
    return app


def share_clock() -> None:
    """All workers take the time from one file: by how many seconds their clock is ahead."""
    with (FOLDER / "clock").open("r+b") as file:
        ahead = mmap.mmap(file.fileno(), 8)
    clock.now = lambda: time.time() + struct.unpack_from("d", ahead)[0]


share_clock()
plain = make_app("plain")
# The cookie goes out with every response, as Flask does it for permanent sessions.
eager = make_app("eager", SESSION_TOUCH_EVERY=0)
if os.environ["OVERLAP_WARM"]:  # with --preload: the sessions are in use before the fork
    plain.test_client().get("/begin?seconds=60")
app = DispatcherMiddleware(plain, {"/eager": eager})
