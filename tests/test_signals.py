from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from blinker import Signal
from flask import Flask, current_app
from flask import session as flask_session

from flask_hybridsession import signals
from flask_hybridsession.core import ids
from flask_hybridsession.core.session import Session
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.core.test_timers import wait_for
from tests.site import Browser, Site

__all__ = ["fake_clock"]

session = cast(Session, flask_session)
ALL: dict[str, Signal] = {
    name.removeprefix("session_"): signal
    for name, signal in vars(signals).items()
    if isinstance(signal, Signal)
}
Heard = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def heard(site: Site) -> Iterator[Heard]:
    """What was announced: (event, details), in order."""
    events: Heard = []
    receivers = []
    for name, signal in ALL.items():

        def receive(sender: Flask, name: str = name, **details: Any) -> None:
            assert sender is site.app
            assert current_app._get_current_object() is site.app  # type: ignore[attr-defined]
            events.append((name, details))

        receivers.append(receive)
        signal.connect(receive)
    yield events
    for signal, receive in zip(ALL.values(), receivers, strict=True):
        signal.disconnect(receive)


def names(heard: Heard) -> list[str]:
    events = [name for name, _ in heard]
    heard.clear()
    return events


def test_a_life(site: Site, heard: Heard) -> None:
    browser = site.browser()
    browser.visit(lambda: session.get("a"))
    assert names(heard) == []
    browser.visit(lambda: session.update(a=1))
    first = ids.key_of(cast(str, browser.cookie))
    assert heard == [("created", {"key": first, "user_id": None})]
    names(heard)
    for job in (lambda: session.get("a"), lambda: session.update(a=2)):
        browser.visit(job)
    assert names(heard) == []
    browser.visit(lambda: session.login(7))
    second = ids.key_of(cast(str, browser.cookie))
    assert heard[0][0] == "renamed"
    assert (heard[0][1]["key"], heard[0][1]["old_key"]) == (second, first)
    assert names(heard) == ["renamed"]
    browser.visit(lambda: session.regenerate())
    third = ids.key_of(cast(str, browser.cookie))
    assert heard == [("renamed", {"key": third, "old_key": second, "user_id": 7})]
    names(heard)
    tab = browser.copy()
    browser.visit(lambda: session.logout())
    assert heard == [("destroyed", {"key": third, "user_id": 7})]
    names(heard)
    tab.visit(lambda: session.get("a"))
    assert heard == [("rejected", {"key": third, "reason": "unknown", "user_id": None})]


def test_a_login_on_a_new_session(site: Site, heard: Heard) -> None:
    browser = site.browser()
    browser.visit(lambda: session.login("bob"))
    key = ids.key_of(cast(str, browser.cookie))
    assert heard == [("created", {"key": key, "user_id": "bob"})]


@pytest.mark.parametrize(
    ("cookie", "reason"), [("x", "malformed"), ("A" * 43, "unknown"), ('"', "malformed")]
)
def test_rejected(site: Site, heard: Heard, cookie: str, reason: str) -> None:
    browser = Browser(site, cookie)
    browser.visit()
    assert names(heard) == []
    browser.visit(lambda: session.get("a"))
    ((event, details),) = heard
    assert (event, details["reason"]) == ("rejected", reason)
    assert details["key"] == (None if reason == "malformed" else ids.key_of(cookie))
    assert cookie not in {str(value) for value in details.values()}


def test_expired(site: Site, heard: Heard, fake_clock: FakeClock) -> None:
    browser = site.browser()
    browser.visit(lambda: (session.login("bob"), session.update(a=1)))
    browser.visit(lambda: setattr(session, "lifetime", 60))
    key = ids.key_of(cast(str, browser.cookie))
    names(heard)
    fake_clock.advance(60)
    assert site.sessions.purge() == 1
    ((event, details),) = heard
    assert event == "expired"
    assert (details["key"], details["user_id"]) == (key, "bob")
    assert details["record"].key == key
    assert site.sessions.purge() == 0
    assert len(heard) == 1


def test_expiry_is_announced_by_itself(site: Site, heard: Heard) -> None:
    clockwork.start()  # as servers do, and tests do not
    site.visit(lambda: (session.update(a=1), setattr(session, "lifetime", 0.05)))
    wait_for(lambda: any(name == "expired" for name, _ in heard), "the clockwork")
    assert names(heard) == ["created", "expired"]
    assert site.records() == 0


def test_destroyed_once_by_several_at_once(site: Site, heard: Heard) -> None:
    browser = site.browser()
    browser.visit(lambda: session.login("bob"))
    names(heard)
    jobs = [lambda: session.logout(), lambda: session.logout(everywhere=True)] * 4
    threads = [threading.Thread(target=browser.copy().visit, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [name for name in names(heard) if name != "rejected"] == ["destroyed"]


def test_what_an_operator_destroys(site: Site, heard: Heard) -> None:
    for user in ("bob", "bob", "eve"):
        site.visit(lambda user=user: session.login(user))
    names(heard)
    assert site.sessions.destroy(site.sessions.of_user("bob")[0])
    assert site.sessions.destroy_user("bob") == 1
    assert site.sessions.destroy_all() == 1
    assert names(heard) == ["destroyed"] * 3


def test_a_receiver_that_fails_keeps_no_expiry_from_the_others(
    site: Site, fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        site.visit(lambda: (session.update(a=1), setattr(session, "lifetime", 60)))
    seen: list[str] = []

    def receive(sender: Flask, key: str, **details: Any) -> None:
        seen.append(key)
        if len(seen) == 2:
            raise ValueError("a bug in a receiver")

    fake_clock.advance(60)
    with ALL["expired"].connected_to(receive):
        assert site.sessions.purge() == 5
    assert len(set(seen)) == 5
    assert "a bug in a receiver" in caplog.text


def test_a_receiver_that_fails_keeps_no_session_of_a_user_alive(site: Site) -> None:
    for _ in range(3):
        site.visit(lambda: session.login("bob"))

    def receive(sender: Flask, **details: Any) -> None:
        raise ValueError("a bug in a receiver")

    with ALL["destroyed"].connected_to(receive), contextlib.suppress(ValueError):
        site.sessions.destroy_user("bob")
    assert site.sessions.of_user("bob") == []


def test_each_app_hears_of_its_own(site: Site) -> None:
    other = Site()
    senders: list[Any] = []

    def receive(sender: Flask, **details: Any) -> None:
        senders.append(sender)

    with ALL["created"].connected_to(receive):
        other.visit(lambda: session.update(a=1))
        site.visit(lambda: session.update(a=1))
    assert senders == [other.app, site.app]
