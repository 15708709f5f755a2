"""``sessions.use_database``: an app whose sessions are in several databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, session

from flask_hybridsession import (
    Action,
    ConfigError,
    HybridSession,
    Store,
    SyncPayload,
    provider_failed,
)
from flask_hybridsession.core import clock, database
from flask_hybridsession.core.mirror import RESERVED
from flask_hybridsession.core.provider import Lists, Users
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.providers.tiered import TieredProvider


class Archive:
    """The whole of each session, as a database of an app might keep it."""

    def __init__(self) -> None:
        self.rows: dict[str, Store] = {}
        self.told: list[Action] = []
        self.down = False

    def load(self, key: str) -> Store | None:
        return self.rows.get(key)

    def sync(self, payload: SyncPayload) -> None:
        if self.down:
            raise ConnectionError
        self.told.append(payload.action)
        if payload.action is Action.DESTROY:
            self.rows.pop(payload.key, None)
        elif payload.store.lifetime is not None:
            self.rows[payload.key] = payload.store._replace(values=dict(payload.store.values))


_apps: list[Flask] = []


@pytest.fixture(autouse=True)
def _apps_live_as_long_as_a_test() -> Iterator[None]:
    yield
    _apps.clear()


def make_app(sessions: HybridSession, **config: Any) -> Flask:
    app = Flask(__name__)
    _apps.append(app)
    app.config.update(config)
    sessions.init_app(app)

    @app.get("/set/<name>/<value>")
    def set_(name: str, value: str) -> str:
        session[name] = value
        return ""

    @app.get("/drop/<name>")
    def drop(name: str) -> str:
        del session[name]
        return ""

    @app.get("/get")
    def get() -> dict[str, Any]:
        return dict(session)

    @app.get("/login")
    def login() -> str:
        session.login("ann")  # type: ignore[attr-defined]
        return ""

    @app.get("/who")
    def who() -> str:
        return str(session.user_id)  # type: ignore[attr-defined]

    @app.get("/logout")
    def logout() -> str:
        session.logout()  # type: ignore[attr-defined]
        return ""

    return app


@pytest.fixture
def archive() -> Archive:
    return Archive()


@pytest.fixture
def sessions(archive: Archive) -> Iterator[HybridSession]:
    sessions = HybridSession(provider="memory")
    yield sessions
    archive.down = False
    sessions.close()


def test_before_and_after_init_app(sessions: HybridSession, archive: Archive) -> None:
    two, three = Archive(), MemoryProvider()
    sessions.use_database(archive)
    app = make_app(sessions)
    sessions.use_database(two)
    with app.app_context():
        sessions.use_database(three)
        provider = sessions.provider
    assert isinstance(provider, TieredProvider)
    assert type(provider.authority) is MemoryProvider
    assert provider.others == (archive, two, three)
    assert isinstance(provider, Lists)
    assert isinstance(provider, Users)
    app.test_client().get("/set/a/1")
    assert archive.rows == two.rows
    assert set(three.keys(clock.now())) - RESERVED == set(archive.rows)
    assert len(archive.rows) == 1


def test_not_after_the_first_request(sessions: HybridSession, archive: Archive) -> None:
    app = make_app(sessions)
    app.test_client().get("/get")
    with pytest.raises(AssertionError, match="use_database"):
        sessions.use_database(archive)


def test_what_is_no_database(sessions: HybridSession) -> None:
    make_app(sessions)
    with pytest.raises(ConfigError, match="load"):
        sessions.use_database("sqlite:///")
    with pytest.raises(ConfigError, match=r"an object: write Archive\(\)"):
        sessions.use_database(Archive)


def test_the_database_that_is_described() -> None:
    given: dict[str, Any] = {"Action": Action}
    exec((database.__doc__ or "").partition("\n\n")[2], given)
    example = given["Archive"]()
    example.rows = {}
    sessions = HybridSession(provider="memory")
    sessions.use_database(example)
    client = make_app(sessions).test_client()
    client.get("/set/a/1")
    client.get("/set/b/2")
    client.get("/login")
    client.get("/drop/a")
    (before,) = sessions.of_user("ann")
    sessions.provider.authority.destroy(before.key)  # type: ignore[attr-defined]
    assert client.get("/get").json == {"b": "2"}
    assert client.get("/who").text == "ann"
    (after,) = sessions.of_user("ann")
    assert after.expires == before.expires
    client.get("/logout")
    assert example.rows == {}
    sessions.close()


def test_sessions_outlive_the_memory_of_the_app(archive: Archive) -> None:
    cookies: list[str] = []
    for expected in ({}, {"a": "1"}):
        sessions = HybridSession(provider="memory")
        sessions.use_database(archive)
        client = make_app(sessions).test_client()
        for sid in cookies:
            client.set_cookie("session", sid)
        assert client.get("/get").json == expected
        assert client.get("/who").text == ("ann" if expected else "None")
        if not expected:
            client.get("/set/a/1")
            client.get("/login")
            cookie = client.get_cookie("session")
            assert cookie is not None
            cookies.append(cookie.value)
        else:
            assert len(sessions.of_user("ann")) == 1
            client.get("/logout")
        sessions.close()
    assert archive.rows == {}
    sessions = HybridSession(provider="memory")
    sessions.use_database(archive)
    client = make_app(sessions).test_client()
    client.set_cookie("session", cookies[0])
    assert client.get("/get").json == {}
    sessions.close()


def test_a_failure_is_signalled_once(sessions: HybridSession, archive: Archive) -> None:
    sessions.use_database(archive)
    app = make_app(sessions)
    failures: list[Any] = []

    def failed(sender: Flask, error: Exception) -> None:
        failures.append((sender, str(error)))

    client = app.test_client()
    with provider_failed.connected_to(failed, app):
        client.get("/set/a/1")
        assert failures == []
        archive.down = True
        for n in range(3):
            assert client.get(f"/set/a/{n}").status_code == 200
    assert failures == [(app, "Archive 1 is out of date: ConnectionError")]
    assert str(sessions.stats()["Archive 1"]).startswith("behind")
    assert client.get("/get").json == {"a": "2"}


def test_by_settings(tmp_path: Path, archive: Archive) -> None:
    sessions = HybridSession()
    make_app(
        sessions,
        SESSION_TYPE="tiered",
        SESSION_OPTIONS={"authority": "hybrid", "others": ["memory"]},
        SESSION_DIR=str(tmp_path / "sessions"),
    )
    sessions.use_database(archive)
    provider = sessions.provider
    assert isinstance(provider, TieredProvider)
    assert [type(other) for other in provider.others] == [MemoryProvider, Archive]
    sessions.close()
