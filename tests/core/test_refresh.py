"""A session that ends elsewhere while a socket or a long task holds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flask_hybridsession import session
from tests.site import Browser, Site, nothing


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def browser(site: Site) -> Browser:
    browser = site.browser()
    browser.visit(lambda: (session.login("ada"), session.update(a=1)))
    return browser


ENDS: dict[str, Callable[[], Any]] = {
    "logout": lambda: session.logout(),
    "clear": lambda: session.clear(),
    "regenerate": lambda: session.regenerate(),
    "login": lambda: session.login("ada"),
    "another login": lambda: session.login("bob"),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("work", [lambda: session.update(b=2), lambda: session.regenerate()])
def test_a_commit_tells_that_the_session_has_ended(
    browser: Browser, end: Callable[[], Any], work: Callable[[], Any]
) -> None:
    def hold() -> list[Any]:
        seen: list[Any] = [session.user_id]
        browser.visit(end)
        work()
        seen += [session.commit(), session.user_id, dict(session)]
        session["more"] = 1
        return [*seen, session.commit()]

    tab = browser.copy()
    visit = tab.visit(hold)
    assert visit.result == ["ada", False, None, {}, False]
    assert visit.cookie is None
    assert browser.do(lambda: session.get("more")) is None


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_refresh_tells_it_without_a_change(browser: Browser, end: Callable[[], Any]) -> None:
    def hold() -> list[Any]:
        seen: list[Any] = [session.user_id, session.refresh()]
        browser.visit(end)
        return [*seen, session.refresh(), session.user_id, dict(session), session.refresh()]

    assert browser.copy().do(hold) == ["ada", True, False, None, {}, False]


def test_a_refresh_shows_what_others_wrote_and_loses_nothing(browser: Browser) -> None:
    def hold() -> list[Any]:
        session["mine"] = 1
        browser.visit(lambda: session.update(a=5, theirs=2))
        return [session["a"], session.refresh(), dict(session)]

    assert browser.copy().do(hold) == [1, True, {"a": 5, "theirs": 2, "mine": 1}]
    assert browser.do(lambda: session["mine"]) == 1


def test_a_refresh_is_the_first_look(browser: Browser) -> None:
    assert browser.do(lambda: (session.refresh(), session["a"])) == (True, 1)


def test_there_is_nothing_to_refresh(site: Site) -> None:
    assert site.visit(lambda: session.refresh()).result is False
    seen = site.visit(lambda: (session.update(a=1), session.refresh(), dict(session))).result
    assert seen[1:] == (True, {"a": 1})


def test_a_commit_that_stores_says_so(site: Site, browser: Browser) -> None:
    def work() -> list[bool]:
        answers = [session.commit()]
        session["b"] = 2
        answers.append(session.commit())
        session.regenerate()
        return [*answers, session.commit(), session.refresh()]

    assert browser.do(work) == [True] * 4
    assert site.browser().do(work)[1:] == [True] * 3


def test_what_is_held_by_a_socket_is_not_begun_anew(site: Site) -> None:
    def work() -> bool:
        session["a"] = 1
        return session.commit()

    visit = site.visit(work, environ={"wsgi.websocket": object()})
    assert (visit.result, visit.cookie, site.records()) == (False, None, 0)


def test_who_logs_in_afterwards_has_a_session(site: Site, browser: Browser) -> None:
    def hold() -> list[Any]:
        len(session)
        browser.visit(lambda: session.logout())
        session["b"] = 2
        answers: list[Any] = [session.commit()]
        session.login("bob")
        return [*answers, session.commit(), session.user_id]

    tab = browser.copy()
    assert tab.do(hold) == [False, True, "bob"]
    assert tab.do(lambda: (session.user_id, dict(session))) == ("bob", {})
    assert browser.visit(nothing).cookie is None
