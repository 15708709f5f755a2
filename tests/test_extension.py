from __future__ import annotations

import datetime as dt
import gc
import weakref
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Flask
from flask import session as flask_session

import flask_hybridsession
from flask_hybridsession import ConfigError, Handle, HybridSession
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.core.session import Session
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.site import Counting, Site

__all__ = ["fake_clock"]

session = cast(Session, flask_session)


class Bare(Provider):
    """Keeps sessions and has no ability besides."""

    def __init__(self) -> None:
        self._kept = MemoryProvider()

    def load(self, key: str, now: float) -> Record | None:
        return self._kept.load(key, now)

    def commit(self, key: str, change: Change, now: float) -> None:
        self._kept.commit(key, change, now)

    def rename(self, old: str, new: str, now: float, alias_until: float | None = None) -> None:
        self._kept.rename(old, new, now, alias_until)

    def destroy(self, key: str) -> bool:
        return self._kept.destroy(key)

    def next_deadline(self) -> float | None:
        return self._kept.next_deadline()

    def purge(self, now: float, limit: int) -> list[Record]:
        return self._kept.purge(now, limit)


def test_the_public_names() -> None:
    assert flask_hybridsession.__all__ == sorted(flask_hybridsession.__all__)
    for name in flask_hybridsession.__all__:
        assert getattr(flask_hybridsession, name) is not None


# -- which provider ------------------------------------------------------------------------------


def test_the_default_is_the_hybrid_provider_in_the_instance_folder(tmp_path: Path) -> None:
    app = Flask("app", instance_path=str(tmp_path / "instance"))
    sessions = HybridSession(app)
    assert isinstance(sessions.provider, HybridProvider)
    assert not (tmp_path / "instance").exists(), "to load an app makes nothing"
    app.add_url_rule("/", view_func=lambda: str(flask_session.setdefault("n", 1)))
    assert app.test_client().get("/").text == "1"
    assert (tmp_path / "instance" / "sessions").is_dir()
    assert app.extensions["hybridsession"] is sessions
    sessions.close()


def test_sessions_outlive_the_app(tmp_path: Path) -> None:
    cookie = None
    for visits in (1, 2, 3):
        site = Site(HybridProvider(str(tmp_path)))
        browser = site.browser(cookie)
        assert browser.do(lambda: (session.increment("n"), session.login("bob"))[0]) == visits
        assert browser.do(lambda: (session["n"], session.user_id)) == (visits, "bob")
        cookie = browser.cookie
        site.sessions.close()


def test_a_provider_given_wins() -> None:
    app = Flask("app")
    app.config["SESSION_TYPE"] = "no such thing"
    assert isinstance(HybridSession(app, provider="memory").provider, MemoryProvider)
    mine = Counting()
    app = Flask("app")
    assert HybridSession(app, provider=mine).provider is mine
    app = Flask("app")
    app.config["SESSION_TYPE"] = mine
    assert HybridSession(app).provider is mine


def test_bad_settings_are_told_at_the_start() -> None:
    app = Flask("app")
    app.config.update(SESSION_TYPE="memory", SESSION_ID_LENGTH=4)
    with pytest.raises(ConfigError, match="SESSION_ID_LENGTH"):
        HybridSession(app)
    assert "hybridsession" not in app.extensions


# -- whose app -----------------------------------------------------------------------------------


def test_without_an_app() -> None:
    with pytest.raises(RuntimeError, match=r"call init_app\(app\)"):
        HybridSession().count()


def test_with_several_apps_it_speaks_of_the_current_one() -> None:
    sessions = HybridSession()
    apps = [Flask(f"app{n}") for n in range(2)]
    for app in apps:
        app.config["SESSION_TYPE"] = "memory"
        sessions.init_app(app)
    with pytest.raises(RuntimeError, match=r"within app\.app_context\(\)"):
        sessions.count()
    with apps[0].app_context():
        first = sessions.provider
    with apps[1].app_context():
        assert sessions.provider is not first


def test_an_app_that_is_dropped_is_let_go() -> None:
    site = Site()
    site.visit(lambda: session.update(a=1))
    gone = weakref.ref(site.app)
    watched = len(clockwork._swept)
    del site
    for _ in range(3):
        gc.collect()
    assert gone() is None
    assert len(clockwork._swept) < watched


# -- what an operator asks -----------------------------------------------------------------------

T = 1_800_000_000.0


def at(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(T + seconds, dt.timezone.utc)


def test_of_user(fake_clock: FakeClock) -> None:
    fake_clock.set(T)
    site = Site(SESSION_EXPIRES=1000)
    first, second = site.browser(), site.browser()
    key = first.do(lambda: (session.login("bob"), session.key))[1]
    fake_clock.advance(10)
    second.visit(lambda: (session.login("bob"), setattr(session, "lifetime", 0)))
    handles = site.sessions.of_user("bob")
    assert handles[1] == Handle(key, at(0), at(0), at(1000), None)
    assert (handles[0].created, handles[0].expires) == (at(10), None)
    assert first.cookie not in repr(handles)
    assert [handle.key for handle in handles] == [second.do(lambda: session.key), key]
    assert site.sessions.of_user("eve") == []
    fake_clock.advance(990)
    assert [handle.key for handle in site.sessions.of_user("bob")] == [handles[0].key]


def test_destroy() -> None:
    site = Site()
    browsers = [site.browser() for _ in range(4)]
    for browser in browsers:
        browser.visit(lambda: session.login("bob"))

    def living() -> list[bool]:
        return [browser.do(lambda: session.user_id) == "bob" for browser in browsers]

    keys = [browser.do(lambda: session.key) for browser in browsers]
    handles = {handle.key: handle for handle in site.sessions.of_user("bob")}
    assert site.sessions.destroy(handles[keys[0]])
    assert not site.sessions.destroy(handles[keys[0]])
    assert not site.sessions.destroy(keys[0])
    assert living() == [False, True, True, True]
    assert site.sessions.destroy(keys[1])
    assert site.sessions.destroy_user("bob", keep=handles[keys[3]]) == 1
    assert living() == [False, False, False, True]
    assert site.sessions.destroy_user("bob", keep=keys[3]) == 0
    assert site.sessions.destroy_user("bob") == 1
    assert living() == [False] * 4


def test_a_user_may_end_all_sessions_but_this_one() -> None:
    site = Site()
    here, there = site.browser(), site.browser()
    for browser in (here, there):
        browser.visit(lambda: session.login("bob"))
    assert here.do(lambda: site.sessions.destroy_user("bob", keep=session.key)) == 1
    assert [b.do(lambda: session.user_id) for b in (here, there)] == ["bob", None]


def test_destroy_all_count_and_purge(fake_clock: FakeClock) -> None:
    site = Site()
    for _ in range(250):
        site.visit(lambda: (session.update(a=1), setattr(session, "lifetime", 60)))
    site.visit(lambda: session.update(a=1))
    assert site.sessions.count() == 251
    fake_clock.advance(60)
    assert site.sessions.purge() == 250
    assert site.sessions.purge() == 0
    assert site.sessions.count() == 1
    assert site.sessions.destroy_all() == 1
    assert site.sessions.count() == 0


def test_stats() -> None:
    site = Site()
    secrets = site.visit(lambda: (session.login("bob"), session.update(pin="1234"), session.sid))
    stats = site.sessions.stats()
    assert stats["provider"] == "Counting"
    assert stats["sessions"] == 1
    text = str(stats)
    assert not any(secret in text for secret in ("bob", "1234", secrets.result[2]))


def test_a_provider_without_abilities_says_what_it_lacks() -> None:
    site = Site(Bare())
    browser = site.browser()
    browser.visit(lambda: session.update(a=1))
    assert browser.do(lambda: session["a"]) == 1
    asked: list[tuple[Any, str]] = [
        (lambda: site.sessions.of_user("bob"), "Users"),
        (lambda: site.sessions.destroy_user("bob"), "Users"),
        (lambda: site.sessions.count(), "Lists"),
        (lambda: site.sessions.destroy_all(), "Lists"),
    ]
    for ask, ability in asked:
        with pytest.raises(ConfigError, match=f"{ability}; Bare does not have it"):
            ask()

    def work() -> None:
        with pytest.raises(ConfigError, match="Users; Bare"):
            session.login("bob", exclusive=True)
        with pytest.raises(ConfigError, match="Locks; Bare"), session.exclusive():
            pass

    old = browser.cookie
    assert browser.visit(work).cookie is None, "a login that failed gives no new id"
    assert browser.cookie == old
    browser.visit(lambda: session.login("bob"))
    assert browser.do(lambda: session.user_id) == "bob", "who is logged in needs no index"

    def leave() -> None:
        with pytest.raises(ConfigError, match="Users; Bare"):
            session.logout(everywhere=True)

    browser.visit(leave)
    assert browser.do(lambda: session.user_id) == "bob"
    assert browser.do(lambda: (session.logout(), dict(session))) == (None, {})
    assert site.sessions.stats() == {"provider": "Bare"}


def test_close_is_harmless_twice(tmp_path: Path) -> None:
    site = Site(HybridProvider(str(tmp_path)))
    site.visit(lambda: session.update(a=1))
    site.sessions.close()
    site.sessions.close()


def test_damaged_bytes_hide_no_other_session_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    keys = []
    for _ in range(3):
        keys.append(site.visit(lambda: (session.login("bob"), session.key)).result[1])
    load = site.provider.load

    def damaged(key: str, now: float) -> Record | None:
        if key == keys[1]:
            raise flask_hybridsession.CorruptData("damaged")
        return cast("Record | None", load(key, now))

    monkeypatch.setattr(site.provider, "load", damaged)
    assert {handle.key for handle in site.sessions.of_user("bob")} == {keys[0], keys[2]}
