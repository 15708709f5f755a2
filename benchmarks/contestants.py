"""What is compared: one app, the same three views, and a way to keep the session for each."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

from flask import Flask, Request, Response, session
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.test import create_environ

from flask_hybridsession import HybridSession

from .sample import COUNT, SESSION
from .servers import Missing, redis_server

VIEWS = ("never touched", "read", "write")


class Place:
    """Where contestants put their files, and what is to be shut down at the end."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.root = stack.enter_context(tempfile.TemporaryDirectory())

    def directory(self) -> str:
        return tempfile.mkdtemp(dir=self.root)


class Runner:
    """One contestant's app, called as a server calls it, with the cookie of a stored session."""

    def __init__(self, name: str, install: Callable[[Flask, Place], object], place: Place) -> None:
        self.name = name
        self.app = _make_app()
        install(self.app, place)
        self.cookie = "session=" + "x" * 43
        self._last: list[tuple[str, str]] = []
        self._environs: dict[str, dict[str, Any]] = {}
        self.request("/fill")
        self._take_cookie()
        self._environs = {view: self._environ(_PATHS[view]) for view in VIEWS}

    def work(self, view: str) -> Callable[[], bytes]:
        """A function that does one request, from the environ to the end of its body."""
        environ = self._environs[view]
        return lambda: self._call(environ.copy())

    def request(self, path: str) -> str:
        return self._call(self._environ(path)).decode()

    def check(self) -> None:
        """The read gives what was stored, and a fresh client what was written last."""
        self.work("write")()
        self._take_cookie()
        assert self.request("/read") == SESSION["name"], f"{self.name} reads something else"
        written = str(self.app.config["LAST_COUNT"])
        assert self.request("/count") == written, f"{self.name} did not write"
        assert self.request("/all") == "True", f"{self.name} does not keep the whole session"

    def _environ(self, path: str) -> dict[str, Any]:
        return create_environ(path, headers={"Cookie": self.cookie})

    def _take_cookie(self) -> None:
        """As a browser does: present from now on what the last response has set."""
        for header, value in self._last:
            if header == "Set-Cookie":
                self.cookie = value.partition(";")[0]

    def _call(self, environ: dict[str, Any]) -> bytes:
        body = self.app(environ, self._start)
        try:
            return b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if status != "200 OK":
            raise AssertionError(f"{self.name} answers {status}")
        self._last = headers


_PATHS = {"never touched": "/untouched", "read": "/read", "write": "/write"}


def _make_app() -> Flask:
    app = Flask("benchmark")
    app.config.update(SECRET_KEY="k" * 32, PROPAGATE_EXCEPTIONS=True)
    counter = itertools.count(COUNT)

    @app.route("/fill")
    def fill() -> str:
        session.update(SESSION)
        return "filled"

    @app.route("/untouched")
    def untouched() -> str:
        return "nothing"

    @app.route("/read")
    def read() -> str:
        return str(session.get("name", "nobody"))

    @app.route("/write")
    def write() -> str:
        session["count"] = app.config["LAST_COUNT"] = next(counter)
        return "written"

    @app.route("/count")
    def count() -> str:
        return str(session.get("count"))

    @app.route("/all")
    def everything() -> str:
        return str(
            {name: session[name] for name in SESSION} == {**SESSION, "count": session["count"]}
        )

    return app


# The session that does nothing


class NullSession(dict[str, Any], SessionMixin):
    pass


class NullInterface(SessionInterface):
    """Opens an empty dict and saves nothing: what a request costs without any session."""

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return NullSession()

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        pass


def nothing(app: Flask, place: Place) -> None:
    app.session_interface = NullInterface()


# The others


def flask_cookie(app: Flask, place: Place) -> None:
    """What every Flask app has."""


def flask_session(**config: Any) -> Callable[[Flask, Place], None]:
    """Flask-Session. A setting that is a function is called with the app and the place."""

    def install(app: Flask, place: Place) -> None:
        try:
            from flask_session import Session  # type: ignore[import-untyped]
        except ImportError:
            raise Missing("Flask-Session is not installed") from None
        app.config.update(
            {
                name: value(app, place) if callable(value) else value
                for name, value in config.items()
            }
        )
        Session(app)

    return install


def simple_cache(app: Flask, place: Place) -> Any:
    from cachelib import SimpleCache

    return SimpleCache()


def file_cache(app: Flask, place: Place) -> Any:
    from cachelib import FileSystemCache

    return FileSystemCache(place.directory())


def redis_client(app: Flask, place: Place) -> Any:
    return place.stack.enter_context(redis_server())


def sqlite(app: Flask, place: Place) -> Any:
    try:
        from flask_sqlalchemy import SQLAlchemy
    except ImportError:
        raise Missing("Flask-SQLAlchemy is not installed") from None
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{place.directory()}/sessions.db"
    database = SQLAlchemy(app)
    place.stack.callback(_dispose, app, database)
    return database


def _dispose(app: Flask, database: Any) -> None:
    with app.app_context():
        database.engine.dispose()


def ours(**config: Any) -> Callable[[Flask, Place], None]:
    """This package, with these settings and the defaults for the rest."""

    def install(app: Flask, place: Place) -> None:
        app.config.update(config)
        app.config["SESSION_DIR"] = place.directory()
        place.stack.callback(HybridSession(app).close)

    return install


class Contestant(NamedTuple):
    title: str
    install: Callable[[Flask, Place], None]
    ours: bool = False


CONTESTANTS = {
    "cookie": Contestant("Flask's signed cookie", flask_cookie),
    "fs-simplecache": Contestant(
        "Flask-Session, SimpleCache",
        flask_session(SESSION_TYPE="cachelib", SESSION_CACHELIB=simple_cache),
    ),
    "fs-files": Contestant(
        "Flask-Session, files", flask_session(SESSION_TYPE="cachelib", SESSION_CACHELIB=file_cache)
    ),
    "fs-redis": Contestant(
        "Flask-Session, Redis", flask_session(SESSION_TYPE="redis", SESSION_REDIS=redis_client)
    ),
    "fs-sqlite": Contestant(
        "Flask-Session, SQLAlchemy + SQLite",
        flask_session(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=sqlite),
    ),
    "memory": Contestant("`memory`", ours(SESSION_TYPE="memory"), True),
    "hybrid": Contestant("`hybrid`", ours(SESSION_DURABILITY="interval"), True),
    "hybrid-never": Contestant("`hybrid`, never synced", ours(SESSION_DURABILITY="never"), True),
    "hybrid-always": Contestant("`hybrid`, synced always", ours(SESSION_DURABILITY="always"), True),
    "cachelib": Contestant(
        "`cachelib`, SimpleCache",
        ours(SESSION_TYPE="cachelib", SESSION_OPTIONS={"type": "SimpleCache"}),
        True,
    ),
}
