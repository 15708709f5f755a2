"""What is compared: one app, the same three views, and a way to keep the session for each."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

from flask import Flask, Request, Response, session
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.test import create_environ

from flask_hybridsession import HybridSession

from .sample import COUNT, SESSION
from .servers import Missing, postgresql_server, redis_server

VIEWS = ("never touched", "read", "write")
#: Clients with a session each: nobody profits from serving the same one again and again.
VISITORS = 32


class Place:
    """Where contestants put their files, the servers that they share, and what is shut down."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.root = stack.enter_context(tempfile.TemporaryDirectory())
        self.servers: dict[Any, str] = {}

    def server(self, make: Callable[[], AbstractContextManager[str]]) -> str:
        """The URL of a server: the same one for all who ask for it."""
        if make not in self.servers:
            self.servers[make] = self.stack.enter_context(make())
        return self.servers[make]

    def directory(self) -> str:
        return tempfile.mkdtemp(dir=self.root)


class Runner:
    """One contestant's app, called as a server calls it, by visitors in turn."""

    def __init__(self, name: str, install: Callable[[Flask, Place], object], place: Place) -> None:
        self.name = name
        self.app = make_app()
        install(self.app, place)
        self._headers: list[tuple[str, str]] = []
        self._cookies = ["session=" + "x" * 43] * VISITORS
        self._cookies = [self._visit("/fill", cookie)[1] for cookie in self._cookies]

    def work(self, view: str) -> Callable[[], bytes]:
        """A function that does one request, from the environ to the end of its body."""
        environs = itertools.cycle([_environ(PATHS[view], cookie) for cookie in self._cookies])
        return lambda: self._call(next(environs).copy())

    def check(self) -> None:
        """What is measured is done: a visitor's next request finds what this one has written."""
        write = self.work("write")
        for cookie in self._cookies:
            write()
            cookie = self._cookie_after(cookie)
            assert self._visit("/read", cookie)[0] == SESSION["name"], f"{self.name} does not read"
            assert self._visit("/is-all-there", cookie)[0] == "True", f"{self.name} does not write"

    def _visit(self, path: str, cookie: str) -> tuple[str, str]:
        """The body, and the cookie that a browser presents from then on."""
        return self._call(_environ(path, cookie)).decode(), self._cookie_after(cookie)

    def _cookie_after(self, cookie: str) -> str:
        set_by = [value for header, value in self._headers if header == "Set-Cookie"]
        return set_by[-1].partition(";")[0] if set_by else cookie

    def _call(self, environ: dict[str, Any]) -> bytes:
        body = self.app(environ, self._start)
        try:
            return b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        if status != "200 OK":
            raise AssertionError(f"{self.name} answers {status}")
        self._headers = headers


def _environ(path: str, cookie: str) -> dict[str, Any]:
    """As a server makes it: with one that names none, no clockwork would run."""
    served = {"SERVER_SOFTWARE": "benchmark"}
    return create_environ(path, headers={"Cookie": cookie}, environ_overrides=served)


PATHS = {"never touched": "/untouched", "read": "/read", "write": "/write"}


def make_app() -> Flask:
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

    @app.route("/is-all-there")
    def is_all_there() -> str:
        written = {**SESSION, "count": app.config["LAST_COUNT"]}
        return str({name: session[name] for name in SESSION} == written)

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
        app.config.update(_settled(config, app, place))
        Session(app)

    return install


def simple_cache(app: Flask, place: Place) -> Any:
    from cachelib import SimpleCache

    return SimpleCache()


def file_cache(app: Flask, place: Place) -> Any:
    from cachelib import FileSystemCache

    return FileSystemCache(place.directory())


def redis_client(app: Flask, place: Place) -> Any:
    url = place.server(redis_server)
    import redis

    client = redis.Redis.from_url(url)
    place.stack.callback(client.close)
    return client


def redis_url(app: Flask, place: Place) -> str:
    return place.server(redis_server)


def sqlite_url(app: Flask, place: Place) -> str:
    return f"sqlite:///{place.directory()}/sessions.db"


def postgresql_url(app: Flask, place: Place) -> str:
    return place.server(postgresql_server)


def flask_sqlalchemy(url: Callable[[Flask, Place], str]) -> Callable[[Flask, Place], Any]:
    """An app's database, as Flask-Session wants it."""

    def make(app: Flask, place: Place) -> Any:
        try:
            from flask_sqlalchemy import SQLAlchemy
        except ImportError:
            raise Missing("Flask-SQLAlchemy is not installed") from None
        app.config["SQLALCHEMY_DATABASE_URI"] = url(app, place)
        database = SQLAlchemy(app)
        place.stack.callback(_dispose, app, database)
        return database

    return make


def _dispose(app: Flask, database: Any) -> None:
    with app.app_context():
        database.engine.dispose()


def ours(**config: Any) -> Callable[[Flask, Place], None]:
    """This package, with these settings and the defaults for the rest."""

    def install(app: Flask, place: Place) -> None:
        app.config.update(_settled(config, app, place))
        app.config["SESSION_DIR"] = place.directory()
        sessions = HybridSession(app)
        place.stack.callback(sessions.close)
        if config.get("SESSION_TYPE") == "sql":
            with app.app_context():
                sessions.provider.create_tables()  # type: ignore[attr-defined]

    return install


def _settled(config: Mapping[str, Any], app: Flask, place: Place) -> dict[str, Any]:
    return {name: value(app, place) if callable(value) else value for name, value in config.items()}


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
        flask_session(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=flask_sqlalchemy(sqlite_url)),
    ),
    "fs-postgresql": Contestant(
        "Flask-Session, SQLAlchemy + PostgreSQL",
        flask_session(
            SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=flask_sqlalchemy(postgresql_url)
        ),
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
    "redis": Contestant("`redis`", ours(SESSION_TYPE="redis", SESSION_REDIS=redis_url), True),
    "redis-near": Contestant(
        "`redis`, near cache",
        ours(SESSION_TYPE="redis", SESSION_REDIS=redis_url, SESSION_OPTIONS={"near_cache": 1.0}),
        True,
    ),
    "sql-sqlite": Contestant(
        "`sql`, SQLite", ours(SESSION_TYPE="sql", SESSION_SQLALCHEMY=sqlite_url), True
    ),
    "sql-postgresql": Contestant(
        "`sql`, PostgreSQL", ours(SESSION_TYPE="sql", SESSION_SQLALCHEMY=postgresql_url), True
    ),
}
