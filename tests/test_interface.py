from __future__ import annotations

import datetime as dt
import io
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import pytest
from flask import Response, send_file
from flask import session as flask_session
from freezegun import freeze_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_hybridsession import (
    BROWSER,
    UNLIMITED,
    ConfigError,
    CorruptData,
    provider_failed,
    session_destroyed,
    session_rejected,
)
from flask_hybridsession.core import clock, ids
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.session import Session
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.core.test_cookies import DOMAINS, WEIRD_HOSTS
from tests.site import Browser, Site, nothing

__all__ = ["fake_clock"]

session = cast(Session, flask_session)
NOW = 1_800_000_000.0
YEAR_400 = 34_560_000


def write(value: Any = 1) -> Callable[[], None]:
    return lambda: session.update(a=value)


def look() -> Any:
    return session.get("a")


def everything() -> dict[str, Any]:
    return dict(session)


# -- lifetimes, as headers -----------------------------------------------------------------------


def test_a_browser_session_has_no_expiry_in_its_cookie(fake_clock: FakeClock) -> None:
    for config in ({}, {"SESSION_EXPIRES": -1}, {"SESSION_EXPIRES": BROWSER}):
        browser = Site(**config, PERMANENT_SESSION_LIFETIME=1000).browser()
        cookie = browser.visit(write()).cookie
        assert cookie is not None
        assert not {"expires", "max-age"} & cookie.keys()
        fake_clock.advance(999)
        visit = browser.visit(look)
        assert (visit.result, visit.cookie) == (1, None), "touched, and no new cookie"
        fake_clock.advance(999)
        assert browser.do(look) == 1
        fake_clock.advance(1000)
        assert browser.do(look) is None


def test_an_unlimited_session(fake_clock: FakeClock) -> None:
    for expires in (0, UNLIMITED):
        site = Site(SESSION_EXPIRES=expires)
        browser = site.browser()
        fake_clock.set(NOW)
        visit = browser.visit(write())
        assert visit.cookie is not None
        assert int(visit.cookie["max-age"]) == YEAR_400
        assert parsedate_to_datetime(visit.cookie["expires"]).timestamp() == NOW + YEAR_400
        assert site.provider.next_deadline() is None
        fake_clock.advance(19 * 86_400)
        assert browser.visit(look).cookie is None
        fake_clock.advance(2 * 86_400)
        visit = browser.visit(look)
        assert visit.cookie is not None, "renewed as it ages"
        assert int(visit.cookie["max-age"]) == YEAR_400
        fake_clock.advance(10 * 366 * 86_400)
        assert browser.do(look) == 1


def test_a_fixed_session(fake_clock: FakeClock) -> None:
    browser = Site(SESSION_EXPIRES=1000).browser()
    fake_clock.set(NOW)
    cookie = browser.visit(write()).cookie
    assert cookie is not None
    assert cookie["max-age"] == "1000"
    assert parsedate_to_datetime(cookie["expires"]).timestamp() == NOW + 1000
    for _ in range(9):
        fake_clock.advance(100)
        assert browser.visit(lambda: session.increment("n")).cookie is None
    assert browser.visit(lambda: session.regenerate()).cookie["max-age"] == "100"  # type: ignore[index]
    fake_clock.advance(99.5)
    assert browser.do(look) == 1
    fake_clock.advance(0.5)
    assert browser.do(look) is None


def test_a_permanent_session_slides_as_flasks_does(fake_clock: FakeClock) -> None:
    browser = Site(PERMANENT_SESSION_LIFETIME=dt.timedelta(seconds=1000)).browser()
    visit = browser.visit(lambda: (session.update(a=1), setattr(session, "permanent", True)))
    assert visit.cookie is not None
    assert visit.cookie["max-age"] == "1000"
    fake_clock.advance(900)
    visit = browser.visit(look)
    assert visit.cookie is not None
    assert visit.cookie["max-age"] == "1000"
    fake_clock.advance(999)
    assert browser.do(look) == 1
    fake_clock.advance(1000)
    assert browser.do(look) is None


def test_an_idle_limit(fake_clock: FakeClock) -> None:
    browser = Site(SESSION_IDLE_TIMEOUT=100).browser()
    browser.visit(write())
    for _ in range(20):
        fake_clock.advance(99)
        assert browser.do(look) == 1
    fake_clock.advance(100)
    assert browser.do(look) is None


def test_an_idle_limit_within_a_fixed_life(fake_clock: FakeClock) -> None:
    """scs: idle 200 ms, lifetime 1 s; a touch at 100 and 250 ms: alive, alive; 200 later: gone."""
    browser = Site(SESSION_IDLE_TIMEOUT=0.2, SESSION_EXPIRES=1).browser()
    browser.visit(write())
    alive = []
    for wait in (0.1, 0.15, 0.2):
        fake_clock.advance(wait)
        alive.append(browser.do(look))
    assert alive == [1, 1, None]
    browser.visit(write())
    alive = []
    for _ in range(9):
        fake_clock.advance(0.125)
        alive.append(browser.do(look))
    assert alive == [1] * 7 + [None, None]


@pytest.mark.parametrize("known", [True, False])
def test_a_lifetime_of_its_own(fake_clock: FakeClock, known: bool) -> None:
    """iris: 30 minutes, changed to 24 hours, also on a brand-new session."""
    site = Site(SESSION_EXPIRES=dt.timedelta(minutes=30))
    browser = site.browser()

    def day() -> None:
        session["b"] = 1
        session.lifetime = dt.timedelta(hours=24)

    if known:
        first = browser.visit(write()).cookie
        assert first is not None
        assert 29 * 60 <= int(first["max-age"]) <= 30 * 60
        fake_clock.advance(60)
    sid = browser.cookie
    second = browser.visit(day).cookie
    assert second is not None
    assert 23 * 3600 <= int(second["max-age"]) <= 24 * 3600
    assert sid in (None, second["value"])
    fake_clock.advance(23 * 3600)
    assert browser.visit(lambda: session.get("b")).result == 1
    fake_clock.advance(3600)
    assert browser.do(lambda: session.get("b")) is None


def test_a_shorter_and_another_kind_of_lifetime(fake_clock: FakeClock) -> None:
    browser = Site().browser()
    browser.visit(write())

    def visit(value: Any) -> dict[str, str]:
        return browser.visit(lambda: setattr(session, "lifetime", value)).cookie or {}

    assert visit(60)["max-age"] == "60"
    assert visit(UNLIMITED)["max-age"] == str(YEAR_400)
    assert "max-age" not in visit(BROWSER)
    assert visit(10**9)["max-age"] == str(YEAR_400)
    assert visit(30)["max-age"] == "30"
    fake_clock.advance(30)
    assert browser.do(look) is None


def test_lifetimes_with_a_frozen_clock() -> None:
    with freeze_time("2026-01-01 12:00:00") as frozen:
        browser = Site(SESSION_EXPIRES=60).browser()
        cookie = browser.visit(write()).cookie
        assert cookie is not None
        assert cookie["expires"] == "Thu, 01 Jan 2026 12:01:00 GMT"
        frozen.tick(59)
        assert browser.do(look) == 1
        frozen.tick(1)
        assert browser.do(look) is None


# -- how often an unchanged session is touched ---------------------------------------------------


def touches(site: Site, clock: FakeClock, job: Callable[[], Any], step: float, n: int) -> list[int]:
    """Which of the requests, one every ``step`` seconds, stored a touch."""
    browser = site.browser()
    browser.visit(lambda: (session.update(a=1), setattr(session, "permanent", True)))
    touched = []
    for number in range(1, n + 1):
        clock.advance(step)
        site.provider.new_calls()
        visit = browser.visit(job)
        assert (visit.cookie is not None) == ("commit" in site.provider.calls)
        if visit.cookie is not None:
            touched.append(number)
            assert visit.headers.getlist("Vary") == ["Cookie"]
    return touched


@pytest.mark.parametrize(
    ("config", "job", "touched"),
    [
        ({}, look, [5, 10]),
        ({}, nothing, []),
        ({"SESSION_TOUCH_EVERY": 30}, look, [3, 6, 9]),
        ({"SESSION_TOUCH_EVERY": 0}, look, [*range(1, 11)]),
        ({"SESSION_TOUCH_EVERY": 0}, nothing, [*range(1, 11)]),
        ({"SESSION_REFRESH_EACH_REQUEST": False}, look, []),
        ({"SESSION_REFRESH_EACH_REQUEST": False, "SESSION_TOUCH_EVERY": 0}, look, []),
        ({"SESSION_REFRESH_EACH_REQUEST": False, "SESSION_TOUCH_EVERY": 0}, nothing, []),
    ],
    ids=range(8),
)
def test_touches(
    fake_clock: FakeClock, config: dict[str, Any], job: Callable[[], Any], touched: list[int]
) -> None:
    fake_clock.set(NOW)
    site = Site(PERMANENT_SESSION_LIFETIME=1000, **config)
    assert touches(site, fake_clock, job, 10, 10) == touched


def test_a_session_that_is_not_refreshed_ends_on_time(fake_clock: FakeClock) -> None:
    site = Site(PERMANENT_SESSION_LIFETIME=100, SESSION_REFRESH_EACH_REQUEST=False)
    browser = site.browser()
    browser.visit(lambda: (session.update(a=1), setattr(session, "permanent", True)))
    fake_clock.advance(60)
    assert browser.do(look) == 1
    fake_clock.advance(40)
    assert browser.do(look) is None


def test_the_app_may_change_flasks_lifetime_while_it_runs(fake_clock: FakeClock) -> None:
    site = Site()

    def work() -> None:
        session.permanent = True
        site.app.permanent_session_lifetime = dt.timedelta(minutes=5)

    browser = site.browser()
    cookie = browser.visit(work).cookie
    assert cookie is not None
    assert cookie["max-age"] == "300"
    site.app.config["PERMANENT_SESSION_LIFETIME"] = 600
    fake_clock.advance(299)
    cookie = browser.visit(look).cookie
    assert cookie is not None
    assert cookie["max-age"] == "600"


# -- the cookie's attributes ---------------------------------------------------------------------

EVERYTHING = {
    "SESSION_COOKIE_NAME": "id",
    "SESSION_COOKIE_DOMAIN": "example.com",
    "SESSION_COOKIE_PATH": "/app",
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_HTTPONLY": True,
    "SESSION_COOKIE_SAMESITE": "None",
    "SESSION_COOKIE_PARTITIONED": True,
}
ATTRIBUTES = {
    "name": "id",
    "domain": "example.com",
    "path": "/app",
    "secure": "",
    "httponly": "",
    "samesite": "None",
    "partitioned": "",
}


@pytest.mark.parametrize(
    ("config", "attributes"),
    [
        ({}, {"name": "session", "path": "/", "httponly": ""}),
        ({"SESSION_COOKIE_HTTPONLY": False}, {"name": "session", "path": "/"}),
        ({"APPLICATION_ROOT": "/x"}, {"name": "session", "path": "/x", "httponly": ""}),
        (
            {"SESSION_COOKIE_NAME": "__Host-s", "SESSION_COOKIE_SECURE": True},
            {"name": "__Host-s", "path": "/", "httponly": "", "secure": ""},
        ),
        (
            {"SESSION_COOKIE_SAMESITE": "Lax"},
            {"name": "session", "path": "/", "httponly": "", "samesite": "Lax"},
        ),
        (EVERYTHING, ATTRIBUTES),
    ],
    ids=range(6),
)
def test_the_deleting_cookie_has_the_attributes_of_the_other(
    config: dict[str, Any], attributes: dict[str, str]
) -> None:
    browser = Site(**config).browser()
    made = browser.visit(write()).cookie
    assert made is not None
    assert {name: text for name, text in made.items() if name != "value"} == attributes
    new = browser.visit(lambda: session.regenerate()).cookie
    assert new is not None
    assert {name: text for name, text in new.items() if name != "value"} == attributes
    visit = browser.visit(lambda: session.clear())
    assert visit.deletes
    assert visit.cookie == {
        **attributes,
        "value": "",
        "max-age": "0",
        "expires": "Thu, 01 Jan 1970 00:00:00 GMT",
    }


@pytest.mark.parametrize(("host", "domain"), DOMAINS)
def test_the_domain_in_the_header(host: str, domain: str | None) -> None:
    browser = Site(SESSION_COOKIE_SUBDOMAINS=True).browser()
    for job in (write(), lambda: session.clear()):
        cookie = browser.visit(job, headers={"Host": host}).cookie
        assert cookie is not None
        assert cookie.get("domain") == domain


@pytest.mark.parametrize("host", WEIRD_HOSTS, ids=range(len(WEIRD_HOSTS)))
@pytest.mark.parametrize("subdomains", [True, False])
def test_a_weird_host_header_does_no_harm(host: str, subdomains: bool) -> None:
    site = Site(SESSION_COOKIE_SUBDOMAINS=subdomains, testing=False)
    latin = host.encode().decode("latin-1")
    visit = site.visit(write(), environ={"HTTP_HOST": latin})
    assert visit.status < 500
    assert "domain" not in (visit.cookie or {})


def test_without_the_setting_there_is_no_domain() -> None:
    cookie = Site().visit(write(), headers={"Host": "sub.example.com"}).cookie
    assert cookie is not None
    assert "domain" not in cookie


def test_a_shared_session_is_the_same_on_a_subdomain() -> None:
    person = {"Name": "iris", "Months": "4", "Secret": "dsads£2132215£%%Ssdsa"}
    browser = Site(SESSION_COOKIE_SUBDOMAINS=True).browser()
    browser.visit(lambda: session.update(person), headers={"Host": "example.com"})
    for host in ("example.com", "shop.example.com:8080"):
        assert browser.visit(everything, headers={"Host": host}).result == person


# -- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "cookie", "expected"),
    [
        (None, True, {'no-cache="Set-Cookie"'}),
        (None, False, None),
        ("public, max-age=60", False, {"public", "max-age=60"}),
        ("public, max-age=60", True, {"private", "max-age=60"}),
        ("max-age=60", True, {"max-age=60", 'no-cache="Set-Cookie"'}),
        ("no-store", True, {"no-store"}),
        ("private", True, {"private"}),
        ("no-cache", True, {"no-cache"}),
        ("s-maxage=10, public", True, {"private", "s-maxage=10"}),
    ],
)
def test_a_response_with_a_cookie_is_not_cached(
    given: str | None, cookie: bool, expected: set[str] | None
) -> None:
    def work() -> Response:
        response = Response("x")
        if given is not None:
            response.headers["Cache-Control"] = given
        (write() if cookie else look)()
        return response

    control = Site().visit(work).headers.get("Cache-Control")
    assert (None if control is None else {*control.split(", ")}) == expected


@pytest.mark.parametrize("given", [None, "Accept-Encoding", "Cookie", "cookie, Accept", "*"])
def test_vary_once(given: str | None) -> None:
    def work() -> Response:
        response = Response("x")
        if given is not None:
            response.headers["Vary"] = given
        look()
        return response

    for job in (work, lambda: (work(), session.update(a=1))[0]):
        vary = Site().visit(job).headers.getlist("Vary")
        assert len(vary) == 1
        assert [name.strip().lower() for name in vary[0].split(",")].count("cookie") == 1


@pytest.mark.parametrize(
    "job", [look, lambda: "a" in session, lambda: len(session), lambda: [*session], write()]
)
def test_every_look_varies(job: Callable[[], Any]) -> None:
    assert Site().visit(job).headers.getlist("Vary") == ["Cookie"]


# -- signed cookies ------------------------------------------------------------------------------


def signed(**config: Any) -> Site:
    return Site(SESSION_SIGN_COOKIE=True, SECRET_KEY="key", **config)


def test_a_signed_cookie() -> None:
    site = signed()
    browser = site.browser()
    sid = browser.do(lambda: (session.update(a=1), session.sid)[1])
    assert browser.cookie is not None
    assert browser.cookie.startswith(sid + ".")
    assert browser.do(look) == 1
    site.app.secret_key = "new"
    site.app.config["SECRET_KEY_FALLBACKS"] = ["other", "key"]
    assert browser.do(look) == 1
    old = browser.cookie
    browser.visit(lambda: session.regenerate())
    site.app.config["SECRET_KEY_FALLBACKS"] = None
    assert browser.do(look) == 1, "signed by the current key"
    assert site.visit(look, f"session={old}").result is None


def test_a_bad_signature_is_no_storage_call_and_is_announced() -> None:
    site = signed()
    browser = site.browser()
    browser.visit(write())
    cookie = cast(str, browser.cookie)
    reasons: list[str] = []

    def note(sender: object, reason: str, **details: Any) -> None:
        reasons.append(reason)

    site.provider.new_calls()
    with session_rejected.connected_to(note):
        other = "C" if cookie.startswith("B") else "B"
        bad = [
            cookie[:-2],
            cookie + "x",
            cookie.partition(".")[0],
            other + cookie[1:],
            "." + cookie,
        ]
        for text in bad:
            visit = site.visit(lambda: (session.new, everything()), f"session={text}")
            assert visit.result == (True, {})
    assert site.provider.new_calls() == []
    assert reasons == ["malformed"] * len(bad)


def test_signing_without_a_key_is_flasks_null_session() -> None:
    site = Site(SESSION_SIGN_COOKIE=True)
    assert site.visit(look).result is None
    assert site.visit(nothing).status == 200

    def work() -> None:
        with pytest.raises(RuntimeError, match="no secret key was set"):
            session["a"] = 1

    visit = site.visit(work)
    assert (visit.status, visit.cookie, site.provider.new_calls()) == (200, None, [])


def test_without_signing_no_key_is_needed() -> None:
    site = Site()
    assert site.app.secret_key is None
    assert site.visit(write()).cookie is not None


# -- the hook that encodes the cookie ------------------------------------------------------------


def test_the_cookies_value_may_be_encoded() -> None:
    seen: list[tuple[str, str]] = []

    def encode(name: str, sid: str) -> str:
        seen.append((name, sid))
        return "x" + sid[::-1]

    def decode(name: str, text: str) -> str:
        seen.append((name, text))
        return text[:0:-1]

    browser = Site(SESSION_COOKIE_CODEC=(encode, decode), SESSION_COOKIE_NAME="id").browser()
    sid = browser.do(lambda: (session.update(a=1), session.sid)[1])
    assert browser.cookie == "x" + sid[::-1]
    assert browser.do(lambda: (look(), session.sid)) == (1, sid)
    assert seen == [("id", sid), ("id", browser.cookie)]


def fails(name: str, text: str) -> str:
    raise LookupError("secret")


@pytest.mark.parametrize(
    "decode",
    [
        fails,
        *(lambda name, text: "", lambda name, text: None, lambda name, text: "junk"),
        *(lambda name, text: "x" * 10_000, lambda name, text: "\ud800" * 43, lambda n, t: "é" * 43),
        *(lambda name, text: b"A" * 43, lambda name, text: 43, lambda name, text: ["A"] * 43),
    ],
    ids=range(10),
)
def test_a_cookie_that_cannot_be_decoded_is_a_fresh_session(
    decode: Callable[[str, str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(SESSION_COOKIE_CODEC=(lambda name, sid: sid, decode))
    visit = site.visit(lambda: (session.new, everything()), "session=" + "A" * 43)
    assert visit.result == (True, {})
    assert site.provider.new_calls() == []
    assert "secret" not in caplog.text


@pytest.mark.parametrize("value", ["", None, "a b", "a;b", "é", "x" * 5000, b"abc"])
def test_a_hook_that_makes_a_bad_cookie_is_told(value: Any) -> None:
    site = Site(SESSION_COOKIE_CODEC=(lambda name, sid: value, lambda name, text: text))
    with pytest.raises(ConfigError, match=r"cookie|COOKIE"):
        site.visit(write())


# -- bad input -----------------------------------------------------------------------------------

SHAPED = "A" * 43
BAD_COOKIES = [
    *("", ";", "=", "session", "session=", "session=;", 'session=""', "session= ; session=x"),
    *("session=abc", "session=" + "A" * 42, "session=" + "A" * 44, "session=" + "A" * 100_000),
    *("session=" + "%41" * 43, 'session="' + SHAPED + '"', "session=" + "é" * 43),
    *("session=" + "A" * 42 + "\xff", "session=" + "\x00" * 43, "session=" + "/" * 43),
    *("session=../../../etc/passwd", "session=" + "A" * 42 + "=", "session=eyJhIjoxfQ.aaaa.bbbb"),
    *("mysession=" + SHAPED, "session2=" + SHAPED, "=session=" + SHAPED, "Session=" + SHAPED),
    *("x" * 100_000, "session=a; " * 10_000, "session=" + "\u0663".encode().decode("latin-1") * 43),
]


@pytest.mark.parametrize("header", BAD_COOKIES, ids=range(len(BAD_COOKIES)))
def test_a_cookie_of_the_wrong_shape_asks_no_storage(header: str) -> None:
    site = Site()
    assert site.visit(lambda: (session.new, everything()), header).result == (True, {})
    assert site.provider.new_calls() == []
    visit = site.visit(lambda: session.update(a=1), header)
    assert site.provider.new_calls() == ["commit"]
    assert visit.cookie is not None
    assert ids.is_sid(visit.cookie["value"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=80), st.booleans())
def test_a_cookie_of_any_bytes(junk: bytes, sign: bool) -> None:
    site = signed() if sign else Site()
    header = b"session=" + junk
    visit = site.visit(lambda: (session.new, everything()), header.decode("latin-1"))
    assert (visit.status, visit.result) == (200, (True, {}))
    assert site.names()["commit"] == site.records() == 0


def test_a_forged_id_is_never_adopted() -> None:
    site = Site()
    reasons: list[tuple[str, str | None]] = []

    def note(sender: object, reason: str, key: str | None, **details: Any) -> None:
        reasons.append((reason, key))

    with session_rejected.connected_to(note):
        visit = site.visit(lambda: session.update(a=1), f"session={SHAPED}")
    assert visit.cookie is not None
    assert visit.cookie["value"] != SHAPED
    assert reasons == [("unknown", ids.key_of(SHAPED))]
    assert not site.provider.exists(ids.key_of(SHAPED), 0)


def test_forged_ids_and_logouts_make_no_record() -> None:
    site = Site()
    for number in range(50):
        cookie = f"session={number:043d}"
        for job in (nothing, look, lambda: session.logout(), lambda: session.clear()):
            site.visit(job, cookie)
            site.visit(job)
    assert site.records() == 0
    assert site.names()["commit"] == 0


def test_another_users_cookie_is_that_session() -> None:
    site = Site()
    owner = site.browser()
    owner.visit(write("mine"))
    assert site.visit(look, f"session={owner.cookie}").result == "mine"


@pytest.mark.parametrize("order", [1, -1])
def test_two_cookies_of_one_name(order: int) -> None:
    """As after a change of the cookie's domain: the one that names a session counts."""
    site = Site()
    browser = site.browser()
    browser.visit(write())
    for other in (SHAPED, "junk", "", "B" * 44):
        both = [f"session={other}", f"session={browser.cookie}"][::order]
        visit = site.visit(lambda: session.increment("a"), "; ".join(both))
        assert visit.cookie is None
    assert browser.do(look) == 5


def test_a_cookie_from_before_a_change_of_settings() -> None:
    short, long = Site(SESSION_ID_LENGTH=16), Site(SESSION_ID_LENGTH=64)
    plain, sealed = Site(), signed()
    cookies = []
    for site in (short, long, plain, sealed):
        browser = site.browser()
        browser.visit(write())
        site.provider.new_calls()
        cookies.append(browser.cookie)
    for site in (short, long, plain, sealed):
        for cookie in cookies:
            other = Site(site.provider, **{k: v for k, v in site.app.config.items() if v})
            visit = other.visit(look, f"session={cookie}")
            own = cookie == cookies[(short, long, plain, sealed).index(site)]
            assert (visit.status, visit.result) == (200, 1 if own else None)
            assert site.provider.new_calls() == (["load"] if own else [])


# -- outages -------------------------------------------------------------------------------------


def outage(*calls: str, **config: Any) -> tuple[Site, Browser]:
    """A stored session, and a provider that fails these calls from now on."""
    site = Site(testing=False, **config)
    browser = site.browser()
    browser.visit(lambda: (session.update(a=1), setattr(session, "permanent", True)))
    site.provider.down = set(calls)
    return site, browser


@pytest.fixture
def failures() -> Any:
    seen: list[Any] = []

    def note(sender: object, error: Exception) -> None:
        seen.append((sender, error))

    with provider_failed.connected_to(note):
        yield seen


@pytest.mark.parametrize("job", [look, lambda: "a" in session, write(), lambda: session.clear()])
def test_a_read_that_fails_is_a_503_when_it_is_looked_at(
    job: Callable[[], Any], failures: list[Any]
) -> None:
    site, browser = outage("load")
    visit = browser.visit(job)
    assert visit.status == 503
    assert int(visit.headers["Retry-After"]) > 0
    assert visit.cookie is None
    assert [sender for sender, _ in failures] == [site.app]
    site.provider.down = set()
    assert browser.do(look) == 1


@pytest.mark.parametrize("config", [{}, {"SESSION_TOUCH_EVERY": 0}])
def test_a_route_that_does_not_look_is_fine(config: dict[str, Any]) -> None:
    _site, browser = outage("load", "commit", "rename", "destroy", "exists", **config)
    visit = browser.visit()
    assert (visit.status, visit.cookie, visit.response.text) == (200, None, "ok")


@pytest.mark.parametrize("job", [write(2), lambda: session.update(a=[3])])
def test_a_write_that_fails_is_a_503_without_the_views_answer(
    job: Callable[[], Any], failures: list[Any]
) -> None:
    site, browser = outage("commit")

    def work() -> Response:
        job()
        response = Response("saved!", headers={"X-Order": "saved"})
        response.set_cookie("order", "saved")
        return response

    visit = browser.visit(work)
    assert visit.status == 503
    assert int(visit.headers["Retry-After"]) > 0
    assert visit.cookie is None
    assert "saved" not in visit.response.text + str(visit.headers)
    assert len(failures) == 1
    assert site.visit(write()).cookie is None, "a new session, the same"
    site.provider.down = set()
    assert browser.do(look) == 1


def test_a_file_whose_answer_is_not_sent_is_closed() -> None:
    _, browser = outage("commit")
    file = io.BytesIO(b"secret")

    def work() -> Response:
        write(2)()
        return send_file(file, mimetype="text/plain")

    visit = browser.visit(work)
    visit.response.close()
    assert visit.status == 503
    assert "secret" not in visit.response.text
    assert file.closed


def test_a_new_id_without_its_values_is_a_503_with_the_new_cookie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, browser = outage()
    old, rename = browser.cookie, site.provider.rename

    def rename_and_go(*args: Any) -> None:
        rename(*args)
        site.provider.down = {"commit"}

    monkeypatch.setattr(site.provider, "rename", rename_and_go)
    visit = browser.visit(lambda: (session.update(a=2), session.regenerate()))
    assert visit.status == 503
    assert visit.cookie is not None
    assert browser.cookie != old
    site.provider.down = set()
    assert browser.do(look) == 1
    assert site.browser(old).do(look) is None


@pytest.mark.parametrize("work", [lambda: session.update(a=2), lambda: session.regenerate()])
def test_a_session_that_is_damaged_between_load_and_save_is_a_503(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]
) -> None:
    site, browser = outage()

    def damaged(*args: Any) -> None:
        raise CorruptData("a row of garbage")

    monkeypatch.setattr(site.provider, "commit", damaged)
    visit = browser.visit(work)
    assert (visit.status, visit.cookie) == (503, None)


@pytest.mark.parametrize("call", ["commit", "rename"])
def test_a_new_id_that_fails_leaves_all_as_it_was(call: str) -> None:
    site, browser = outage(call)
    old = browser.cookie
    visit = browser.visit(lambda: (session.update(a=2), session.login("bob")))
    assert (visit.status, visit.cookie) == (503, None)
    site.provider.down = set()
    assert site.browser(old).do(lambda: (look(), session.user_id)) == (1, None)


@pytest.mark.parametrize("job", [lambda: session.clear(), lambda: session.logout()])
def test_a_destroy_that_fails_is_not_said_to_be_done(job: Callable[[], Any]) -> None:
    site, browser = outage("destroy")
    destroyed: list[Any] = []

    def note(sender: object, **details: Any) -> None:
        destroyed.append(details)

    with session_destroyed.connected_to(note):
        visit = browser.visit(job)
        assert (visit.status, visit.cookie, destroyed) == (503, None, [])
        site.provider.down = set()
        assert destroyed == []
        assert browser.do(look) is None, "it ends before it is served again"
        browser.visit(job)
    assert len(destroyed) == 1


def test_a_write_that_fails_in_a_failing_view_is_one_503(failures: list[Any]) -> None:
    _, browser = outage("commit")

    def work() -> None:
        write(2)()
        raise ValueError("oops")

    assert browser.visit(work).status == 503
    assert len(failures) == 1


def test_damaged_data_is_a_fresh_session(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    browser = site.browser()
    browser.visit(write())
    reasons: list[Any] = []

    def note(sender: object, reason: str, key: str, **details: Any) -> None:
        reasons.append((reason, key))

    def damaged(key: str, now: float) -> Record | None:
        raise CorruptData("the checksum is wrong")

    site.provider.load = damaged
    with session_rejected.connected_to(note):
        visit = browser.visit(lambda: (session.new, everything()))
    assert (visit.status, visit.result) == (200, (True, {}))
    key = ids.key_of(cast(str, browser.cookie))
    assert reasons == [("corrupt", key)]
    assert key[:12] in caplog.text
    assert cast(str, browser.cookie) not in caplog.text
    del site.provider.load
    assert browser.do(look) == 1, "it stays where it is"


def test_an_undecodable_value_is_announced() -> None:
    site = Site()
    browser = site.browser()
    browser.visit(write())
    record = next(iter(site.provider._records.values()))
    site.provider._records[record.key] = record._replace(values={"a": b"\xc1"})
    reasons: list[Any] = []

    def note(sender: object, reason: str, key: str, **details: Any) -> None:
        reasons.append((reason, key))

    with session_rejected.connected_to(note):
        browser.visit(lambda: (session.pop("a", None), session.get("a")))
    assert reasons == [("corrupt", record.key)]


# -- one cookie ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        lambda: (session.update(a=1), session.commit(), session.update(b=1), session.commit()),
        lambda: (session.update(a=1), session.regenerate(), setattr(session, "lifetime", 9)),
        lambda: (session.update(a=1), session.commit(), session.regenerate(), session.commit()),
        lambda: (session.destroy(), session.update(a=1), session.login("bob")),
        lambda: (session.login("bob"), session.commit(), session.login("eve")),
    ],
    ids=range(5),
)
def test_one_cookie_which_names_the_stored_session(job: Callable[[], Any]) -> None:
    site = Site()
    browser = site.browser()
    assert browser.visit(job).cookie is not None
    for _ in range(2):
        assert browser.do(lambda: session.new) is False
        browser.visit(job)


def test_no_cookie_for_a_session_that_ended_while_it_got_a_new_id() -> None:
    site = Site()
    browser = site.browser()
    browser.visit(lambda: session.login("bob"))
    site.provider.before_commit = lambda: site.sessions.destroy_user("bob")
    visit = browser.visit(lambda: (session.regenerate(), session.update(a=1)))
    assert visit.status == 200
    assert visit.cookie is None or visit.deletes
    assert site.records() == 0


def test_the_key_of_a_colliding_id_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    taken = site.browser()
    taken.visit(write("first"))
    drawn = iter([taken.cookie, taken.cookie, "B" * 43])
    monkeypatch.setattr(ids, "mint", lambda length: next(drawn))
    browser = site.browser()
    browser.visit(write("second"))
    assert browser.cookie == "B" * 43
    assert (taken.do(look), browser.do(look)) == ("first", "second")


def test_the_log_speaks_of_sessions_that_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flask_hybridsession")
    site = Site()
    browser = site.browser()
    browser.visit(write("secret"))
    tab = browser.copy()
    browser.visit(lambda: (session.update(cart="hidden"), tab.visit(lambda: session.logout())))
    assert "cart" in caplog.text
    assert not any(text in caplog.text for text in ("hidden", "secret", str(tab.cookie)))


@pytest.mark.parametrize(
    ("brought_by", "starts"), [({}, 0), ({"SERVER_SOFTWARE": "a server in a test's thread"}, 1)]
)
def test_a_test_client_starts_no_clockwork(
    brought_by: dict[str, str], starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attended: list[bool] = []
    monkeypatch.setattr(clockwork, "runs", False)
    monkeypatch.setattr(clockwork, "attend", lambda: attended.append(True))
    Site().visit(lambda: session.update(a=1), environ=brought_by)
    assert len(attended) == starts


def test_under_a_date_that_a_test_freezes_only_a_purge_destroys() -> None:
    with freeze_time("2024-01-01") as frozen:
        site = Site(SESSION_EXPIRES=60)
        browser = site.browser()
        browser.visit(lambda: session.update(a=1))
        sweep_unasked()
        assert site.records() == 1
        assert browser.do(lambda: session.get("a")) == 1
        frozen.tick(61)
        site.visit(lambda: session.update(b=1))
        sweep_unasked()
        assert site.records() == 2
        assert (site.sessions.purge(), site.records()) == (1, 1)


def sweep_unasked() -> None:
    """What the clockwork's thread does, which does not see freezegun's date but the real one."""
    thread = threading.Thread(target=clockwork.tick, args=(clock.unless_replaced,))
    thread.start()
    thread.join()


AFTER_A_RESTART = """
import sys, threading
from flask import Flask
from flask_hybridsession import HybridSession, session_expired

told = threading.Event()
app = Flask("again")
app.config["SESSION_DIR"] = sys.argv[1]
HybridSession(app)
app.add_url_rule("/", "plain", lambda: "no session here")
session_expired.connect(lambda app, **details: told.set(), app, weak=False)
served = {"SERVER_SOFTWARE": "somebody's"}  # a test client says nothing of the kind
assert app.test_client().get("/", environ_overrides=served).status_code == 200
sys.exit(0 if told.wait(30) else "nobody was told")
"""


def test_what_fell_due_while_nobody_ran_is_told_at_the_first_request_of_any_kind(
    tmp_path: Path,
) -> None:
    provider = HybridProvider(tmp_path)
    now = time.time()
    provider.commit("0" * 64, Change(create=True, deadline=now - 10), now - 20)
    provider.close()
    command = [sys.executable, "-c", AFTER_A_RESTART, str(tmp_path)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 0, ended.stderr
