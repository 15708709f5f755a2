"""Settings that change after ``HybridSession(app)``: none is lost without a word."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from flask import Flask
from flask import session as flask_session

from flask_hybridsession import ConfigError, HybridSession
from flask_hybridsession.core import ids
from flask_hybridsession.core.session import Session
from flask_hybridsession.providers.memory import MemoryProvider
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.core.test_live import OTHERS
from tests.site import Site, Visit, nothing

__all__ = ["fake_clock"]

session = cast(Session, flask_session)


def write() -> None:
    session["a"] = 1


def look() -> Any:
    return session.get("a")


# -- what takes effect ---------------------------------------------------------------------------


def new_cookie(site: Site) -> dict[str, str]:
    browser = site.browser()
    cookie = browser.visit(write, headers={"Host": "www.example.com"}).cookie
    assert cookie is not None
    assert browser.do(look) == 1, "the session is found again"
    return cookie


def idle_limit(site: Site) -> float:
    browser = site.browser()
    browser.visit(write)
    ends = browser.do(lambda: (session.expires, session.touched))
    return float((ends[0] - ends[1]).total_seconds())


def touched(site: Site, job: Callable[[], Any], after: float) -> bool:
    browser = site.browser()
    browser.visit(lambda: (write(), setattr(session, "permanent", True)))
    cast(FakeClock, site.app.extensions["clock"]).advance(after)
    return browser.visit(job).cookie is not None


def outage(site: Site) -> int:
    browser = site.browser()
    browser.visit(write)
    site.provider.down = {"load"}
    status = browser.visit(look).status
    site.provider.down = set()
    return status


class Case(NamedTuple):
    before: dict[str, Any]
    after: dict[str, Any]
    seen: Callable[[Site], Any]
    old: Any
    new: Any


def marked(name: str, text: str) -> str:
    return f"x{text}"


def unmarked(name: str, text: str) -> str:
    return text[1:]


CASES = {
    "SESSION_EXPIRES": Case(
        {}, {"SESSION_EXPIRES": 100}, lambda site: new_cookie(site).get("max-age"), None, "100"
    ),
    "SESSION_EXPIRES, another": Case(
        {"SESSION_EXPIRES": 50},
        {"SESSION_EXPIRES": 100},
        lambda site: new_cookie(site).get("max-age"),
        "50",
        "100",
    ),
    "SESSION_IDLE_TIMEOUT": Case(
        {}, {"SESSION_IDLE_TIMEOUT": 100}, idle_limit, 31 * 86400.0, 100.0
    ),
    "SESSION_IDLE_TIMEOUT, another": Case(
        {"SESSION_IDLE_TIMEOUT": 50}, {"SESSION_IDLE_TIMEOUT": 100}, idle_limit, 50.0, 100.0
    ),
    "SESSION_TOUCH_EVERY": Case(
        {}, {"SESSION_TOUCH_EVERY": 30}, lambda site: touched(site, look, 40), False, True
    ),
    "SESSION_TOUCH_EVERY, Flask's way": Case(
        {}, {"SESSION_TOUCH_EVERY": 0}, lambda site: touched(site, nothing, 1), False, True
    ),
    "SESSION_COOKIE_SUBDOMAINS": Case(
        {},
        {"SESSION_COOKIE_SUBDOMAINS": True},
        lambda site: new_cookie(site).get("domain"),
        None,
        "example.com",
    ),
    "SESSION_SIGN_COOKIE": Case(
        {"SECRET_KEY": "key"},
        {"SESSION_SIGN_COOKIE": True},
        lambda site: "." in new_cookie(site)["value"],
        False,
        True,
    ),
    "SESSION_COOKIE_CODEC": Case(
        {},
        {"SESSION_COOKIE_CODEC": (marked, unmarked)},
        lambda site: len(new_cookie(site)["value"]),
        43,
        44,
    ),
    "SESSION_ID_LENGTH": Case(
        {}, {"SESSION_ID_LENGTH": 16}, lambda site: len(new_cookie(site)["value"]), 43, 22
    ),
    "SESSION_ON_OUTAGE": Case({}, {"SESSION_ON_OUTAGE": "ephemeral"}, outage, 503, 200),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def site_for(case: Case, clock: FakeClock) -> Site:
    site = Site(testing=False, **case.before)
    site.app.extensions["clock"] = clock
    return site


def test_a_change_before_the_first_request(case: Case, fake_clock: FakeClock) -> None:
    site = site_for(case, fake_clock)
    site.app.config.update(case.after)
    assert case.seen(site) == case.new


def test_a_change_between_requests_and_back(case: Case, fake_clock: FakeClock) -> None:
    site = site_for(case, fake_clock)
    before = dict(site.app.config)
    for _ in range(2):
        assert case.seen(site) == case.old
        site.app.config.update(case.after)
        assert case.seen(site) == case.new
        site.app.config.clear()
        site.app.config.update(before)


def test_a_request_that_has_looked_keeps_its_settings() -> None:
    site = Site(SESSION_EXPIRES=50)

    def work() -> None:
        session["a"] = 1
        site.app.config["SESSION_EXPIRES"] = 100

    browsers = [site.browser() for _ in range(2)]
    ages = [(browser.visit(work).cookie or {}).get("max-age") for browser in browsers]
    assert ages == ["50", "100"]


def test_a_change_by_the_view_before_it_looks() -> None:
    site = Site()

    def work() -> None:
        site.app.config["SESSION_EXPIRES"] = 100
        session["a"] = 1

    assert (site.visit(work).cookie or {}).get("max-age") == "100"


def test_a_session_transaction_sees_it() -> None:
    app = Flask("app")
    sessions = HybridSession(app, provider="memory")
    client = app.test_client()
    for length in (32, 16, 64):
        app.config["SESSION_ID_LENGTH"] = length
        client = app.test_client()
        with client.session_transaction() as transaction:
            transaction["a"] = 1
        cookie = client.get_cookie("session")
        assert cookie is not None
        assert len(cookie.value) == (length * 4 + 2) // 3
    app.config["SESSION_ID_LENGTH"] = 4
    with pytest.raises(ConfigError, match="SESSION_ID_LENGTH"), client.session_transaction() as one:
        dict(one)
    assert sessions.count() == 3


def test_each_app_has_its_own_settings() -> None:
    sessions = HybridSession(provider="memory")
    ages = []
    for number in range(2):
        app = Flask(f"app{number}")
        sessions.init_app(app)
        app.config["SESSION_EXPIRES"] = 100 + number
        app.add_url_rule("/", view_func=lambda: str(write()), endpoint="write")
        client = app.test_client()
        client.get("/")
        cookie = client.get_cookie("session")
        assert cookie is not None
        ages.append(cookie.max_age)
    assert ages == [100, 101]


def test_what_a_worker_denies_stays_denied() -> None:
    site = Site(testing=False)
    browser = site.browser()
    browser.visit(write)
    other = browser.copy()
    site.provider.down = {"destroy"}
    assert browser.visit(lambda: session.destroy()).status == 503
    site.app.config["SESSION_EXPIRES"] = 100
    assert other.visit(look).status == 503
    site.provider.down = set()
    assert other.visit(look).result is None
    assert site.records() == 0


def test_a_database_that_is_added_after_a_change() -> None:
    site = Site()
    client = site.app.test_client()
    with client.session_transaction() as transaction:
        transaction["a"] = 1
    site.app.config["SESSION_EXPIRES"] = 100
    with client.session_transaction() as transaction:
        transaction["a"] = 2
    second = MemoryProvider()
    site.sessions.use_database(second)
    cookie = site.visit(write).cookie or {}
    assert cookie["max-age"] == "100"
    assert second.load(ids.key_of(cookie["value"]), 0) is not None


# -- what does not -------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({name: value}, f"^{name} changed after the provider was made")
    for name, value in OTHERS.items()
    if name != "SESSION_TYPE"
]
WRONG += [
    ({"SESSION_ENCRYPT": True}, "SESSION_ENCRYPT does not work yet"),
    ({"SESSION_MAX_BYTES": 4096}, "SESSION_MAX_BYTES does not work yet"),
    ({"SESSION_EXPIRES": "1h"}, "SESSION_EXPIRES must be"),
    ({"SESSION_ID_LENGTH": 4, "SESSION_EXPIRES": 100}, "SESSION_ID_LENGTH must be"),
    ({"SESSION_COOKIE_NAME": "__Host-x"}, "needs SESSION_COOKIE_SECURE = True"),
    ({"SESSION_COOKIE_SAMESITE": "None"}, "needs SESSION_COOKIE_SECURE = True"),
    ({"SESSION_COOKIE_PARTITIONED": True}, "needs SESSION_COOKIE_SECURE = True"),
    (
        {"SESSION_COOKIE_SUBDOMAINS": True, "SESSION_COOKIE_DOMAIN": "example.com"},
        "exclude each other",
    ),
]


def undo(app: Flask, good: dict[str, Any]) -> None:
    for name in app.config.keys() - good.keys():
        del app.config[name]
    app.config.update(good)


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_it_is_told_at_the_first_request_of_any_kind(wrong: dict[str, Any], message: str) -> None:
    site = Site()
    good = dict(site.app.config)
    site.app.config.update(wrong)
    for job in (nothing, look, nothing):
        with pytest.raises(ConfigError, match=message):
            site.visit(job)
    undo(site.app, good)
    assert [site.visit(job).status for job in (nothing, write)] == [200, 200]
    assert site.provider.new_calls() == ["commit"]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=range(len(WRONG)))
def test_it_is_told_to_each_later_request_that_looks(wrong: dict[str, Any], message: str) -> None:
    site = Site(SESSION_EXPIRES=50)
    browser = site.browser()
    browser.visit(write)
    site.provider.new_calls()
    good = dict(site.app.config)
    site.app.config.update(wrong)
    for job in (look, write, lambda: session.clear(), lambda: session.commit()):
        with pytest.raises(ConfigError, match=message):
            browser.visit(job)
        with pytest.raises(ConfigError, match=message):
            site.visit(job)
        assert browser.visit(nothing).status == 200
    assert site.provider.new_calls() == []
    assert cast(Any, site.app.session_interface).manager.settings.id_length == 32
    undo(site.app, good)
    assert browser.do(look) == 1
    assert new_cookie(site)["max-age"] == "50"


def test_another_type_of_provider() -> None:
    app = Flask("app")
    app.config["SESSION_TYPE"] = "memory"
    HybridSession(app)
    app.add_url_rule("/", view_func=lambda: str(look()), endpoint="look")
    client = app.test_client()
    app.testing = True
    app.config["SESSION_TYPE"] = "hybrid"
    with pytest.raises(ConfigError, match="SESSION_TYPE changed after the provider was made"):
        client.get("/")
    app.config["SESSION_TYPE"] = "memory"
    assert client.get("/").text == "None"
    app.config["SESSION_TYPE"] = MemoryProvider()
    with pytest.raises(ConfigError, match="SESSION_TYPE changed after the provider was made"):
        client.get("/")


def test_a_provider_that_was_given_wins_later_too(tmp_path: Path) -> None:
    site = Site()
    site.app.config["SESSION_TYPE"] = "no such thing"
    assert site.visit(write).status == 200
    site.app.config["SESSION_TYPE"] = "another"
    site.app.instance_path = str(tmp_path)
    site.app.config["SESSION_ID_LENGTH"] = 16
    assert len(new_cookie(site)["value"]) == 22


def test_options_that_are_changed_in_place() -> None:
    app = Flask("app")
    app.testing = True
    app.config.update(SESSION_TYPE="memory", SESSION_OPTIONS={})
    HybridSession(app)
    app.add_url_rule("/", view_func=lambda: str(look()), endpoint="look")
    client = app.test_client()
    for first in (True, False):
        app.config["SESSION_OPTIONS"]["max_sessions"] = 5
        with pytest.raises(ConfigError, match=r"^SESSION_OPTIONS changed"):
            client.get("/")
        del app.config["SESSION_OPTIONS"]["max_sessions"]
        assert client.get("/").text == "None", first


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("own_page", [True, False])
def test_in_production_it_is_a_500_and_in_the_log(
    early: bool, own_page: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(testing=False)
    if own_page:
        site.app.register_error_handler(500, lambda error: ("our page", 500))
    if not early:
        site.visit(write)
    site.app.config["SESSION_DIR"] = "/elsewhere"
    with caplog.at_level(logging.ERROR):
        visit = site.visit(write)
    assert visit.status == 500
    assert ("our page" if own_page else "Internal Server Error") in visit.response.text
    assert visit.cookie is None
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "SESSION_DIR changed" in str(record.exc_info[1])
    del site.app.config["SESSION_DIR"]
    assert site.visit(write).status == 200


def test_a_renewal_that_nobody_looks_at_is_a_look() -> None:
    site = Site(SESSION_TOUCH_EVERY=0)
    browser = site.browser()
    browser.visit(lambda: (write(), setattr(session, "permanent", True)))
    site.app.config["SESSION_COOKIE_NAME"] = "__Host-x"
    with pytest.raises(ConfigError, match="SESSION_COOKIE_SECURE"):
        browser.visit(nothing)


@pytest.mark.parametrize("first", [True, False])
def test_a_typing_error_warns_once(first: bool) -> None:
    site = Site()
    if not first:
        site.visit(look)
    site.app.config["SESSION_EXPIRE"] = 60
    with pytest.warns(UserWarning, match="^SESSION_EXPIRE is not a setting. Did you mean") as told:
        assert [site.visit(look).status for _ in range(3)] == [200] * 3
    assert len(told) == 1


# -- signing without a key -----------------------------------------------------------------------


def test_signing_that_is_switched_on_without_a_key() -> None:
    early = Site()
    early.app.config["SESSION_SIGN_COOKIE"] = True
    assert early.visit(look).result is None
    later = Site()
    browser = later.browser()
    browser.visit(write)
    later.provider.new_calls()
    later.app.config["SESSION_SIGN_COOKIE"] = True
    with pytest.raises(ConfigError, match="needs a SECRET_KEY"):
        later.visit(write)
    assert later.provider.new_calls() == [], "nothing is stored that no cookie could name"
    for site in (early, later):
        with pytest.raises(RuntimeError, match="no secret key was set"):
            site.visit(write)
        site.app.secret_key = "key"
        assert "." in new_cookie(site)["value"]
        site.app.secret_key = None
        site.app.config["SESSION_SIGN_COOKIE"] = False
        assert "." not in new_cookie(site)["value"]
    assert browser.do(look) == 1


# -- threads -------------------------------------------------------------------------------------


class Visitors:
    """Threads that make a session each, again and again; what is wrong with any of them."""

    def __init__(self, site: Site, count: int) -> None:
        self._site = site
        self._over = threading.Event()
        self.seen: set[str | None] = set()
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._check(self._site.visit(write))
        except Exception as error:
            self.faults.append(repr(error))

    def _check(self, visit: Visit) -> None:
        cookie = visit.cookie or {}
        record = self._site.provider.load(ids.key_of(cookie["value"]), 0)
        kept = str(round(record.deadline - record.created))
        self.seen.add(cookie.get("max-age"))
        if cookie.get("max-age") != kept:
            self.faults.append(f"the cookie says {cookie.get('max-age')}, the store {kept}")

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


def test_threads_never_see_a_mixture(fake_clock: FakeClock) -> None:
    """``fake_clock``: no time passes within a request."""
    site = Site(SESSION_EXPIRES=1000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        visitors = Visitors(site, 8)
        for turn in range(500):
            site.app.config["SESSION_EXPIRES"] = 1000 + turn % 2
            visitors._over.wait(0.001)
        visitors.end()
    finally:
        sys.setswitchinterval(interval)
    assert visitors.faults == []
    assert visitors.seen == {"1000", "1001"}
