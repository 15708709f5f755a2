from __future__ import annotations

import datetime as dt
import logging
import re
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from flask import session as flask_session

from flask_hybridsession import BROWSER, UNLIMITED, CodecError, ConfigError
from flask_hybridsession.core import ids
from flask_hybridsession.core.edits import merge_flashes
from flask_hybridsession.core.names import FLASH, LIFETIME
from flask_hybridsession.core.session import Session
from flask_hybridsession.testing import FakeClock, fake_clock
from tests.site import Browser, Site

__all__ = ["fake_clock"]

session = cast(Session, flask_session)


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def browser(site: Site) -> Browser:
    return site.browser()


def store(values: dict[str, Any]) -> Callable[[], None]:
    return lambda: session.update(values)


def everything() -> dict[str, Any]:
    return dict(session)


# -- nothing is done that need not be ------------------------------------------------------------


def test_a_view_that_does_not_look_costs_nothing(site: Site, browser: Browser) -> None:
    for _ in range(2):
        visit = browser.visit()
        assert site.provider.new_calls() == []
        assert visit.cookie is None
        assert "Vary" not in visit.headers
        browser.visit(store({"a": 1}))
        site.provider.new_calls()


@pytest.mark.parametrize(
    "look",
    [
        *(lambda: session.get("a"), lambda: "a" in session, lambda: len(session)),
        *(lambda: list(session), lambda: session.permanent, lambda: session.new),
        *(lambda: session.sid, lambda: session.user_id, lambda: session.lifetime),
        *(lambda: session.created, lambda: session.expires, lambda: session.logged_in_at),
        *(lambda: session == {}, everything, lambda: session.copy()),
    ],
    ids=range(15),
)
def test_a_look_is_one_load(site: Site, browser: Browser, look: Callable[[], Any]) -> None:
    browser.visit(look)
    assert site.provider.new_calls() == [], "without a cookie there is nothing to load"
    browser.visit(store({"a": 1}))
    assert site.provider.new_calls() == ["commit"]
    visit = browser.visit(lambda: (look(), look()))
    assert site.provider.new_calls() == ["load"]
    assert visit.cookie is None
    assert visit.headers.getlist("Vary") == ["Cookie"]


def test_a_write_is_one_load_and_one_commit(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1, "b": [1]}))
    assert site.provider.new_calls() == ["commit"]
    browser.visit(store({"c": 2}))
    assert site.provider.new_calls() == ["load", "commit"]
    change = site.provider.changes[-1]
    assert (set(change.puts), list(change.drops), change.wipe) == ({"c"}, [], False)


@pytest.mark.parametrize("value", [1, "x", None, [1, [2]], (1, [2]), {"a": {1}}, {1, 2}])
def test_an_assignment_of_the_same_value_is_no_write(
    site: Site, browser: Browser, value: Any
) -> None:
    browser.visit(store({"a": value}))
    site.provider.new_calls()
    browser.visit(store({"a": value}))
    browser.visit(lambda: session["a"])
    browser.visit(lambda: (session.update(a="other"), session.update(a=value)))
    assert site.provider.new_calls() == ["load"] * 3


def test_a_value_set_and_dropped_is_no_write(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1}))
    site.provider.new_calls()
    browser.visit(lambda: (session.update(b=1), session.pop("b")))
    assert site.provider.new_calls() == ["load"]


# -- changes are found ---------------------------------------------------------------------------

NESTED: list[tuple[Any, Callable[[Any], object]]] = [
    ([], lambda v: v.append(1)),
    ([3, 1, 2], lambda v: v.sort()),
    ([[1], [2]], lambda v: v[1].append(3)),
    ({}, lambda v: v.update(a=1)),
    ({"a": {"b": {"c": []}}}, lambda v: v["a"]["b"]["c"].append(1)),
    ({"a": 1}, lambda v: v.clear()),
    ({1: 2}, lambda v: v.pop(1)),
    ({"a": 1}, lambda v: v.update(a=True)),
    ({"a": 1}, lambda v: v.update(a=1.0)),
    ({1, 2}, lambda v: v.discard(1)),
    (({1}, [2]), lambda v: v[1].append(3)),
    (((([1],),),), lambda v: v[0][0][0].append(2)),
    ([{"a": ({"b"},)}], lambda v: v[0]["a"][0].add("c")),
]


@pytest.mark.parametrize(("value", "change"), NESTED, ids=range(len(NESTED)))
def test_a_nested_change_is_found(
    site: Site, browser: Browser, value: Any, change: Callable[[Any], object]
) -> None:
    def nested() -> tuple[bool, bool]:
        mine = session["v"]
        before = session.modified
        change(mine)
        return before, session.modified

    browser.visit(store({"v": value, "w": [1], "x": 1}))
    before = browser.do(everything)["v"]
    assert browser.do(nested) == (False, True)
    assert set(site.provider.changes[-1].puts) == {"v"}
    assert site.provider.changes[-1].drops == []
    after = browser.do(everything)["v"]
    change(before)
    assert repr(after) == repr(before)


def test_what_is_changed_after_it_was_set(browser: Browser) -> None:
    def work() -> None:
        session["v"] = line = [1]
        line.append(2)
        session.setdefault("w", {}).update(a=1)
        session.setdefault("w", {}).update(b=2)

    browser.visit(work)
    assert browser.do(everything) == {"v": [1, 2], "w": {"a": 1, "b": 2}}


def test_mapping_methods(site: Site, browser: Browser) -> None:
    def work() -> list[Any]:
        seen: list[Any] = [session.pop("a"), session.pop("missing", 7), session.setdefault("b", 9)]
        del session["c"]
        for missing in ("c", "missing"):
            with pytest.raises(KeyError, match=missing):
                del session[missing]
            with pytest.raises(KeyError, match=missing):
                session[missing]
            with pytest.raises(KeyError, match=missing):
                session.pop(missing)
        session.update({"d": 4}, e=5)
        session["f"] = 6
        session["f"] = 7
        seen.append((sorted(session), len(session), "c" in session, session.get("c", "no")))
        return seen

    browser.visit(store({"a": 1, "b": 2, "c": 3}))
    assert browser.do(work) == [1, 7, 2, (["b", "d", "e", "f"], 4, False, "no")]
    assert browser.do(everything) == {"b": 2, "d": 4, "e": 5, "f": 7}
    assert browser.do(lambda: {session.popitem()[0] for _ in range(4)}) == {*"bdef"}
    assert browser.cookie is None
    assert site.records() == 0


def test_a_dropped_value_set_again(browser: Browser) -> None:
    browser.visit(store({"a": 1, "b": [1]}))
    browser.visit(lambda: (session.pop("a"), session.update(a=2), session.pop("b")))
    assert browser.do(everything) == {"a": 2}


def test_numbers_of_other_types_are_other_values(browser: Browser) -> None:
    browser.visit(store({"a": 1, "b": 0.0, "c": "x"}))
    browser.visit(store({"a": True, "b": -0.0}))
    assert repr(browser.do(everything)) == "{'a': True, 'b': -0.0, 'c': 'x'}"


def test_modified(site: Site, browser: Browser) -> None:
    def force() -> None:
        session.modified = True

    def prevent() -> None:
        session["a"] = 2
        session.modified = False

    browser.visit(force)
    assert site.provider.new_calls() == []
    assert browser.cookie is None
    assert browser.do(lambda: session.modified) is False
    assert browser.do(lambda: (session.update(a=1), session.modified)[1]) is True
    browser.visit(prevent)
    assert browser.do(everything) == {"a": 1}
    site.provider.new_calls()
    browser.visit(lambda: (session.get("a"), force()))
    assert site.provider.new_calls() == ["load", "commit"]


def test_accessed(browser: Browser) -> None:
    assert browser.do(lambda: session.accessed) is True


def test_new(browser: Browser) -> None:
    assert browser.do(lambda: (session.new, session.update(a=1), session.new)) == (True, None, True)
    assert browser.do(lambda: session.new) is False
    assert browser.do(lambda: (session.destroy(), session.new)[1]) is True


def test_the_sid_is_the_cookie_and_the_key_is_its_hash(browser: Browser) -> None:
    seen = browser.do(lambda: (session.sid, session.key, session.update(a=1), session.sid))
    assert seen[0] == seen[3] == browser.cookie
    assert seen[1] == ids.key_of(seen[0])
    assert browser.do(lambda: (session.key, session.sid)) == (seen[1], seen[0])


def test_a_look_at_the_sid_alone_stores_nothing(site: Site, browser: Browser) -> None:
    browser.visit(lambda: session.sid)
    assert browser.cookie is None
    assert site.records() == 0


# -- what cannot be stored -----------------------------------------------------------------------


def test_a_bad_value_is_refused_where_it_is_assigned(site: Site, browser: Browser) -> None:
    class Basket:
        pass

    def work() -> None:
        session["good"] = 1
        with pytest.raises(CodecError, match=r"session\['cart'\] holds a .*Basket") as caught:
            session["cart"] = {"items": [Basket()]}
        assert caught.value.name == "cart"
        assert "cart" not in session

    browser.visit(work)
    assert browser.do(everything) == {"good": 1}


def test_a_value_made_bad_later_stops_the_save(site: Site, browser: Browser) -> None:
    browser.visit(store({"cart": [], "other": 1}))
    site.provider.new_calls()

    def work() -> None:
        session["other"] = 2
        session["cart"].append(object())

    with pytest.raises(CodecError, match=r"session\['cart'\] holds a builtins\.object"):
        browser.visit(work)
    assert site.provider.new_calls() == ["load"]
    assert browser.do(everything) == {"cart": [], "other": 1}


def test_a_failed_save_is_a_500_without_a_cookie() -> None:
    site = Site(testing=False)

    def work() -> None:
        session["cart"] = cart = []  # type: ignore[var-annotated]
        cart.append(object())

    visit = site.visit(work)
    assert (visit.status, visit.cookie, site.records()) == (500, None, 0)


@pytest.mark.parametrize("name", [1, None, b"a", ("a",), 1.5, True])
def test_names_are_text(browser: Browser, name: Any) -> None:
    def work() -> None:
        with pytest.raises(CodecError, match="names are text"):
            session[name] = 1
        with pytest.raises(CodecError, match="names are text"):
            session.increment(name)
        assert name not in session
        assert session.get(name) is None

    browser.visit(work)
    assert browser.cookie is None


@pytest.mark.parametrize("name", ["_hybrid.", "_hybrid.x", LIFETIME, FLASH + "x"])
def test_reserved_names_are_refused(browser: Browser, name: str) -> None:
    def work() -> None:
        with pytest.raises(CodecError, match="reserved"):
            session[name] = 1
        with pytest.raises(CodecError, match="reserved"):
            session.setdefault(name, 1)

    browser.visit(work)


@pytest.mark.parametrize("name", ["", "a\0b", "é 😀", "_hybrid", "_x", "x" * 5000, "a.b['c']"])
def test_any_other_text_is_a_name(browser: Browser, name: str) -> None:
    browser.visit(store({name: name}))
    assert browser.do(everything) == {name: name}


def test_a_name_that_is_no_unicode(browser: Browser) -> None:
    def work() -> None:
        with pytest.raises(CodecError, match="not valid Unicode"):
            session["\ud800"] = 1

    browser.visit(work)


def test_the_packages_own_values_are_not_seen(browser: Browser) -> None:
    def work() -> None:
        session.lifetime = 60
        session.login("bob")
        session["a"] = 1

    browser.visit(work)
    for _ in range(2):
        assert browser.do(lambda: (everything(), len(session), list(session.items()))) == (
            {"a": 1},
            1,
            [("a", 1)],
        )


# -- secrets -------------------------------------------------------------------------------------


def test_nothing_secret_is_shown_or_logged(
    site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    sids: list[str] = []

    def note() -> None:
        shown.extend([repr(flask_session), str(session), format(session), f"{session!r}"])
        sids.append(session.sid)

    def write() -> None:
        note()
        session["password"] = "hunter2"
        session.lifetime = 60
        note()

    def fail() -> None:
        for bad in ({"hunter2": object()}, ["hunter2", bytearray(b"hunter2")]):
            with pytest.raises(CodecError) as caught:
                session["bad"] = bad
            shown.extend([str(caught.value), repr(caught.value)])
        note()

    def slow() -> None:
        note()
        session["password"] = "hunter2!"
        tab.visit(lambda: session.logout())

    tab = browser.copy()
    browser.visit(lambda: shown.append(repr(session._get_current_object())))  # type: ignore[attr-defined]
    browser.visit(write)
    browser.visit(fail)
    tab.cookie = browser.cookie
    browser.visit(slow)
    browser.visit(note)
    shown += [repr(change) for change in site.provider.changes]
    shown += [record.getMessage() for record in caplog.records]
    assert any("ended during the request" in text for text in shown)
    assert len({*sids}) >= 2
    for text in shown:
        assert "hunter2" not in text
        assert not any(sid in text for sid in sids)


# -- numbers -------------------------------------------------------------------------------------


def test_increment(browser: Browser) -> None:
    def work() -> list[Any]:
        return [
            session.increment("n"),
            session.increment("n", 4),
            session.increment("n", -2),
            session.increment("f", 0.5),
            session["n"],
        ]

    assert browser.do(work) == [1, 5, 3, 0.5, 3]
    assert browser.do(lambda: session.increment("n", by=10)) == 13
    assert browser.do(everything) == {"n": 13, "f": 0.5}
    browser.visit(store({"d": Decimal("1.5")}))
    assert browser.do(lambda: session.increment("d", 2)) == Decimal("3.5")


@pytest.mark.parametrize("value", ["1", b"1", [1], (1,), {"a": 1}, {1}, None, True])
def test_increment_of_what_is_no_number(browser: Browser, value: Any) -> None:
    def work() -> None:
        with pytest.raises(TypeError, match=r"session\['n'\] is no number: it holds a"):
            session.increment("n")

    browser.visit(store({"n": value}))
    browser.visit(work)
    assert browser.do(everything) == {"n": value}


def test_increments_at_once_all_count(site: Site, browser: Browser) -> None:
    browser.visit(store({"n": 10}))
    tab = browser.copy()

    def slow() -> None:
        session.increment("n")
        session.increment("n")
        tab.visit(lambda: session.increment("n", 5))
        session.increment("n")

    browser.visit(slow)
    assert browser.do(everything) == {"n": 18}
    browser.visit(lambda: session.pop("n"))
    browser.visit(store({"other": 1}))
    tab.cookie = browser.cookie
    browser.visit(lambda: (session.increment("n"), tab.visit(lambda: session.increment("n"))))
    assert browser.do(everything) == {"n": 2, "other": 1}


def test_an_increment_and_a_delete_at_once(browser: Browser) -> None:
    browser.visit(store({"n": 10, "o": 1}))
    tab = browser.copy()
    browser.visit(lambda: (session.increment("n"), tab.visit(lambda: session.pop("n"))))
    assert browser.do(everything) == {"n": 1, "o": 1}


def test_a_number_set_and_then_incremented_is_as_it_was_set(browser: Browser) -> None:
    browser.visit(store({"n": 10}))
    tab = browser.copy()

    def slow() -> None:
        session["n"] = 100
        tab.visit(lambda: session.increment("n", 7))
        session.increment("n")

    browser.visit(slow)
    assert browser.do(everything) == {"n": 101}


def test_an_increment_that_meets_another_type_loses(browser: Browser) -> None:
    browser.visit(store({"n": 10}))
    tab = browser.copy()
    visit = browser.visit(lambda: (session.increment("n"), tab.visit(store({"n": "text"}))))
    assert visit.status == 200
    assert browser.do(everything) in ({"n": 11}, {"n": "text"})


# -- requests at once ----------------------------------------------------------------------------


def counted(base: Any, mine: Any, theirs: Any) -> Any:
    return [*(theirs or []), *[item for item in mine or [] if item not in (base or [])]]


def test_a_merge_function_joins_what_two_requests_made(site: Site, browser: Browser) -> None:
    calls: list[tuple[Any, Any, Any]] = []

    def merge(base: Any, mine: Any, theirs: Any) -> Any:
        calls.append((base, mine, theirs))
        return counted(base, mine, theirs)

    site.sessions.merge("cart", merge)
    browser.visit(store({"cart": ["a"], "other": 1}))
    tabs = [browser.copy() for _ in range(2)]

    def slow() -> None:
        session["cart"].append("slow")
        for number, tab in enumerate(tabs):
            tab.visit(lambda number=number: session["cart"].append(f"fast{number}"))

    browser.visit(slow)
    assert calls == [(["a"], ["a", "slow"], ["a", "fast0", "fast1"])]
    assert browser.do(everything)["cart"] == ["a", "fast0", "fast1", "slow"]


def test_a_merge_is_tried_until_nobody_is_faster(site: Site, browser: Browser) -> None:
    site.sessions.merge("cart", counted)
    browser.visit(store({"cart": []}))
    tab = browser.copy()
    left = [*"abcd"]

    def faster() -> None:
        if left:
            item = left.pop(0)
            tab.visit(lambda: session["cart"].append(item))
            site.provider.before_commit = faster

    def slow() -> None:
        session["cart"].append("slow")
        site.provider.before_commit = faster

    browser.visit(slow)
    assert left == []
    assert browser.do(everything) == {"cart": ["a", "b", "c", "d", "slow"]}


def test_a_merge_with_a_value_that_is_gone_or_new(site: Site, browser: Browser) -> None:
    seen: list[tuple[Any, Any, Any]] = []
    site.sessions.merge("v", lambda *three: seen.append(three))
    browser.visit(store({"v": 1, "keep": 1}))
    tab = browser.copy()
    browser.visit(lambda: (session.update(v=2), tab.visit(lambda: session.pop("v"))))
    browser.visit(lambda: (session.update(v=3), tab.visit(store({"v": 4}))))
    tab.visit(store({"v": 5}))
    browser.visit(lambda: (session.pop("v"), tab.visit(store({"v": 6}))))
    assert seen == [(1, 2, None), (None, 3, 4), (5, None, 6)]
    assert browser.do(everything) == {"keep": 1}


def test_flashes_are_merged_by_what_was_shown_and_what_was_added() -> None:
    a, b, c = ("message", "a"), ("message", "b"), ("info", "c")
    for base, mine, theirs, merged in [
        (None, [a], [b], [b, a]),
        ([a], None, [a, b], [b]),
        ([a], [a, b], None, [b]),
        ([a], [a, b], [a, c], [a, c, b]),
        ([a], None, None, None),
        ([a], [b], [a], [b]),
        ([a, b], [c], [a, b, b], [b, c]),
        ([a], [a, a], [a], [a, a]),
    ]:
        assert merge_flashes(base, mine, theirs) == merged


SLOW: dict[str, Callable[[], Any]] = {
    "read": lambda: session.get("a"),
    "write": lambda: session.update(mine=1),
    "delete": lambda: session.pop("a"),
    "nested": lambda: session["list"].append("mine"),
    "increment": lambda: session.increment("n"),
    "touch": lambda: (session.get("a"), setattr(session, "modified", True)),
    "lifetime": lambda: setattr(session, "lifetime", 600),
}
FINAL: dict[str, Callable[[], Any]] = {
    "clear": lambda: session.clear(),
    "logout": lambda: session.logout(),
    "destroy": lambda: session.destroy(),
    "regenerate": lambda: session.regenerate(),
    "login": lambda: session.login("bob"),
}
START = {"a": 1, "list": ["x"], "n": 1, "b": 2}


@pytest.mark.parametrize("slow", SLOW)
def test_other_keys_are_kept(browser: Browser, slow: str) -> None:
    browser.visit(store(START))
    tab = browser.copy()

    def work() -> None:
        SLOW[slow]()
        tab.visit(lambda: (session.update(theirs=[1]), session.pop("b")))

    visit = browser.visit(work)
    assert visit.status == 200
    after = browser.do(everything)
    assert after["theirs"] == [1]
    assert "b" not in after
    assert ("mine" in after, "a" in after) == (slow == "write", slow != "delete")
    assert after["list"] == (["x", "mine"] if slow == "nested" else ["x"])
    assert after["n"] == (2 if slow == "increment" else 1)


@pytest.mark.parametrize("fast", FINAL)
@pytest.mark.parametrize("slow", SLOW)
def test_what_has_ended_does_not_come_back(
    site: Site, browser: Browser, slow: str, fast: str
) -> None:
    browser.visit(store(START))
    tab = browser.copy()

    def work() -> None:
        SLOW[slow]()
        tab.visit(FINAL[fast])

    old = browser.cookie
    visit = browser.visit(work)
    assert (visit.status, visit.cookie) == (200, None), "the cookie belongs to the faster request"
    lives_on = fast in ("regenerate", "login")
    assert site.records() == lives_on
    assert tab.do(everything) == (START if lives_on else {})
    assert site.browser(old).do(everything) == {}


@pytest.mark.parametrize("slow", SLOW)
def test_what_has_expired_does_not_come_back(
    browser: Browser, slow: str, fake_clock: FakeClock
) -> None:
    browser.visit(lambda: (session.update(START), setattr(session, "lifetime", 60)))
    visit = browser.visit(lambda: (SLOW[slow](), fake_clock.advance(60)))
    assert (visit.status, visit.cookie) == (200, None)
    assert browser.do(everything) == {}


def test_a_login_to_a_session_that_ended_meanwhile_gets_a_new_one(
    site: Site, browser: Browser
) -> None:
    browser.visit(store({"secret": 1}))
    tab = browser.copy()

    def work() -> None:
        assert session["secret"] == 1
        session["mine"] = 2
        session.login("bob")
        tab.visit(lambda: session.logout())

    browser.visit(work)
    assert browser.do(lambda: (everything(), session.user_id)) == ({"mine": 2}, "bob")
    assert site.records() == 1


def test_a_lifetime_set_by_one_request_is_kept_by_another(fake_clock: FakeClock) -> None:
    site = Site(SESSION_IDLE_TIMEOUT=100_000)
    browser = site.browser()
    browser.visit(store({"a": 1}))
    tab = browser.copy()

    def slow() -> None:
        session["b"] = 2
        tab.visit(lambda: setattr(session, "lifetime", 60))
        fake_clock.advance(10)

    fake_clock.advance(10)
    browser.visit(slow)
    fake_clock.advance(49)
    assert browser.do(everything) == {"a": 1, "b": 2}
    fake_clock.advance(2)
    assert browser.do(everything) == {}, "the shorter lifetime holds"


def test_a_permanence_set_by_one_request_is_kept_by_another(fake_clock: FakeClock) -> None:
    site = Site(PERMANENT_SESSION_LIFETIME=1000, SESSION_IDLE_TIMEOUT=50)
    browser = site.browser()
    browser.visit(lambda: (session.update(a=1), setattr(session, "lifetime", 30)))
    tab = browser.copy()

    def slow() -> None:
        session["b"] = 2
        tab.visit(lambda: setattr(session, "lifetime", 500))
        fake_clock.advance(1)

    fake_clock.advance(10)
    browser.visit(slow)
    fake_clock.advance(45)
    assert browser.do(everything) == {"a": 1, "b": 2}, "the longer lifetime holds"


def test_a_session_emptied_by_one_request_and_filled_by_another(
    site: Site, browser: Browser
) -> None:
    browser.visit(store({"a": 1}))
    tab = browser.copy()
    visit = browser.visit(lambda: (session.pop("a"), tab.visit(store({"b": 2}))))
    assert visit.cookie is None
    assert browser.do(everything) == {"b": 2}


# -- its life ------------------------------------------------------------------------------------


def test_clear_is_how_flask_apps_log_out(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.update(a=1), session.login("bob")))
    old = browser.cookie
    visit = browser.visit(lambda: session.clear())
    assert visit.deletes
    assert site.records() == 0
    assert site.browser(old).do(lambda: (everything(), session.user_id)) == ({}, None)


def test_clear_and_write_keeps_the_session_without_its_user(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.update(a=1), session.login("bob")))
    old = browser.cookie
    visit = browser.visit(lambda: (session.clear(), session.update(b=2), session.user_id))
    assert (visit.result[2], visit.cookie) in [(None, None), (None, visit.cookie)]
    assert browser.cookie == old
    assert browser.do(lambda: (everything(), session.user_id)) == ({"b": 2}, None)
    assert site.sessions.of_user("bob") == []


def test_clear_and_login(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.update(a=1), session.login("bob")))
    browser.visit(lambda: (session.clear(), session.login("eve"), session.update(b=2)))
    assert browser.do(lambda: (everything(), session.user_id)) == ({"b": 2}, "eve")
    assert site.records() == 1
    assert len(site.sessions.of_user("eve")) == 1
    assert site.sessions.of_user("bob") == []


def test_login_and_clear(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1}))
    browser.visit(lambda: (session.login("bob"), session.clear()))
    assert (site.records(), browser.cookie) == (0, None)


def test_a_session_from_which_the_last_value_was_removed_ends(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1, "b": 2}))
    assert browser.visit(lambda: session.pop("a")).cookie is None
    assert browser.visit(lambda: session.pop("b")).deletes
    assert site.records() == 0


def test_a_new_session_left_empty_is_none(site: Site, browser: Browser) -> None:
    for work in (
        lambda: (session.update(a=1), session.clear()),
        lambda: (session.update(a=1), session.pop("a")),
        lambda: session.clear(),
        lambda: setattr(session, "lifetime", 60),
        lambda: session.regenerate(),
        lambda: session.commit(),
    ):
        assert browser.visit(work).cookie is None
    assert site.records() == 0
    assert site.provider.new_calls() == []


def test_regenerate(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.update(a=[1]), setattr(session, "lifetime", 60)))
    old = browser.cookie
    sids = browser.do(lambda: (session.sid, session.regenerate(), session.sid))
    assert sids[0] == old
    assert sids[2] == browser.cookie != old
    assert browser.do(everything) == {"a": [1]}
    assert site.browser(old).do(everything) == {}
    assert site.records() == 1


def test_regenerate_twice_and_with_a_write(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1}))
    browser.visit(lambda: (session.regenerate(), session.update(b=2), session.regenerate()))
    assert browser.do(everything) == {"a": 1, "b": 2}
    assert site.records() == 1
    site.browser().visit(lambda: (session.regenerate(), session.update(a=1), session.regenerate()))
    assert site.records() == 2


def test_destroy(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1}))

    def work() -> None:
        session.destroy()
        assert site.records() == 0, "at once"
        assert everything() == {}
        session.destroy()

    old = browser.cookie
    assert browser.visit(work).deletes
    assert site.provider.new_calls().count("destroy") == 1
    assert site.browser(old).do(everything) == {}


def test_destroy_and_write_begins_a_new_session(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.update(a=1), session.login("bob")))
    old = browser.cookie
    browser.visit(lambda: (session.destroy(), session.update(b=2)))
    assert browser.cookie not in (old, None)
    assert browser.do(lambda: (everything(), session.user_id)) == ({"b": 2}, None)
    assert site.records() == 1


def test_commit_stores_now(site: Site, browser: Browser) -> None:
    def work() -> int:
        session["a"] = 1
        session.commit()
        session.commit()
        return site.records()

    assert browser.do(work) == 1
    assert site.provider.new_calls() == ["commit"]
    assert browser.do(everything) == {"a": 1}


@pytest.mark.parametrize("known", [False, True])
def test_what_is_done_after_a_commit_is_stored_too(
    site: Site, browser: Browser, known: bool
) -> None:
    if known:
        browser.visit(store({"z": 0, "gone": 1}))

    def work() -> None:
        session["a"] = [1]
        session["b"] = 1
        session.commit()
        session["c"] = 2
        session["a"].append(2)
        del session["b"]
        session.increment("n")
        session.commit()
        session.increment("n")
        session.pop("gone", None)

    browser.visit(work)
    assert browser.do(everything) == {"a": [1, 2], "c": 2, "n": 2} | ({"z": 0} if known else {})


def test_what_is_first_looked_at_after_a_commit_is_watched_too(browser: Browser) -> None:
    browser.visit(store({"list": [1]}))

    def work() -> None:
        session["a"] = 1
        session.commit()
        session["list"].append(2)

    browser.visit(work)
    assert browser.do(everything) == {"list": [1, 2], "a": 1}


def test_a_touch_asked_for_after_a_commit(site: Site, browser: Browser) -> None:
    def force() -> None:
        session["a"] = 1
        session.commit()
        session.modified = True

    browser.visit(force)
    assert site.provider.new_calls() == ["commit", "commit"]


@pytest.mark.parametrize(
    ("then", "after"),
    [
        (lambda: session.clear(), ({}, None)),
        (lambda: session.destroy(), ({}, None)),
        (lambda: session.login("bob"), ({"a": 1}, "bob")),
        (lambda: session.regenerate(), ({"a": 1}, None)),
        (lambda: (session.clear(), session.update(b=2)), ({"b": 2}, None)),
        (lambda: (session.destroy(), session.update(b=2)), ({"b": 2}, None)),
        (lambda: session.pop("a"), ({}, None)),
    ],
    ids=["clear", "destroy", "login", "regenerate", "clear and write", "destroy and write", "pop"],
)
@pytest.mark.parametrize("known", [False, True])
def test_an_end_or_a_new_id_after_a_commit(
    site: Site, browser: Browser, known: bool, then: Callable[[], Any], after: Any
) -> None:
    if known:
        browser.visit(store({"a": 0}))
    old = browser.cookie
    browser.visit(lambda: (session.update(a=1), session.commit(), then()))
    assert browser.do(lambda: (everything(), session.user_id)) == after
    assert (browser.cookie is None) == (after == ({}, None))
    assert site.records() == (after != ({}, None))
    if after[1] is not None:
        assert browser.cookie != old


def test_a_commit_in_the_middle_lets_others_see(browser: Browser) -> None:
    browser.visit(store({"z": 0}))
    tab = browser.copy()
    assert browser.do(lambda: (session.update(a=1), session.commit(), tab.do(everything)))[2] == {
        "z": 0,
        "a": 1,
    }


def test_modified_and_times_after_a_commit(browser: Browser, fake_clock: FakeClock) -> None:
    def work() -> tuple[Any, ...]:
        session["a"] = [1]
        session.commit()
        first = session.modified
        fake_clock.advance(5)
        session["a"].append(2)
        return first, session.modified, session.touched == session.created

    fake_clock.set(1_800_000_000.0)
    assert browser.do(work) == (False, True, True)


# -- users ---------------------------------------------------------------------------------------


def who() -> Any:
    return (session.user_id, session.get("cart"))


@pytest.mark.parametrize("user", ["bob", "", "1", 1, 0, 2**70, UUID(int=1), "x" * 2000, "é\0"])
def test_login_gives_a_new_id_and_keeps_the_data(
    site: Site, browser: Browser, user: ids.UserId
) -> None:
    browser.visit(store({"cart": [1]}))
    old = browser.cookie
    assert browser.do(lambda: (session.login(user), who(), session.sid != old)[1:]) == (
        (user, [1]),
        True,
    )
    assert browser.cookie != old
    assert browser.do(who) == (user, [1])
    assert type(browser.do(who)[0]) is type(user)
    assert site.browser(old).do(who) == (None, None)
    assert len(site.sessions.of_user(user)) == 1


def test_user_ids_stay_apart(site: Site) -> None:
    users: list[ids.UserId] = ["1", 1, UUID(int=1), str(UUID(int=1))]
    for user in users:
        site.visit(lambda user=user: session.login(user))
    for user in users:
        assert len(site.sessions.of_user(user)) == 1
    assert site.sessions.destroy_user(1) == 1
    assert [len(site.sessions.of_user(user)) for user in users] == [1, 0, 1, 1]


def test_login_on_a_new_session_and_again(site: Site, browser: Browser) -> None:
    browser.visit(lambda: session.login("bob"))
    first = browser.cookie
    assert first is not None
    assert browser.do(who) == ("bob", None)
    browser.visit(lambda: (session.login("x"), session.login("bob")))
    assert browser.cookie != first
    assert site.records() == 1
    browser.visit(lambda: session.login("eve"))
    assert browser.do(who) == ("eve", None)
    assert site.sessions.of_user("bob") == []


def test_a_bad_user_id_changes_nothing(site: Site, browser: Browser) -> None:
    browser.visit(store({"a": 1}))
    old = browser.cookie

    def work() -> None:
        with pytest.raises(TypeError, match="a user id is a str, an int or a UUID"):
            session.login(None)  # type: ignore[arg-type]

    site.provider.new_calls()
    browser.visit(work)
    assert browser.cookie == old
    assert "commit" not in site.provider.new_calls()


def test_an_exclusive_login_ends_the_others(site: Site) -> None:
    phone, laptop, eve = site.browser(), site.browser(), site.browser()
    for device, user in [(phone, "bob"), (laptop, "bob"), (eve, "eve")]:
        device.visit(lambda user=user: session.login(user))
    phone.visit(lambda: session.login("bob", exclusive=True))
    assert [device.do(who)[0] for device in (phone, laptop, eve)] == ["bob", None, "eve"]
    new = site.browser()
    new.visit(lambda: session.login("bob", exclusive=True))
    assert [device.do(who)[0] for device in (new, phone, eve)] == ["bob", None, "eve"]


def test_logout(site: Site, browser: Browser) -> None:
    other = site.browser()
    for device in (browser, other):
        device.visit(lambda: (session.login("bob"), session.update(cart=[1])))
    old = browser.cookie
    assert browser.visit(lambda: session.logout()).deletes
    assert site.browser(old).do(who) == (None, None)
    assert other.do(who) == ("bob", [1])


def test_logout_everywhere(site: Site, browser: Browser) -> None:
    others = [site.browser() for _ in range(3)]
    for device in (browser, *others):
        device.visit(lambda: session.login("bob"))
    others[0].visit(lambda: session.logout())  # one has vanished already
    assert browser.visit(lambda: session.logout(everywhere=True)).deletes
    assert [device.do(who)[0] for device in (browser, *others)] == [None] * 4
    assert site.records() == 0


def test_logout_of_nobody(site: Site, browser: Browser) -> None:
    for everywhere in (False, True):
        visit = browser.visit(lambda everywhere=everywhere: session.logout(everywhere))
        assert visit.status == 200
    assert site.records() == 0
    assert "commit" not in site.provider.new_calls()


def test_login_and_logout_in_one_request(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.login("bob"), session.logout()))
    assert (site.records(), browser.cookie) == (0, None)
    browser.visit(lambda: (session.login("bob"), session.logout(), session.login("eve")))
    assert browser.do(who) == ("eve", None)


def test_user_is_loaded_once_a_request(site: Site, browser: Browser) -> None:
    loaded: list[ids.UserId] = []

    @site.sessions.user_loader
    def load(user_id: ids.UserId) -> str | None:
        loaded.append(user_id)
        return None if user_id == "ghost" else f"user {user_id}"

    def work() -> list[Any]:
        seen = [session.user, session.user]
        session.login("ghost")
        return [*seen, session.user, session.user]

    assert browser.do(lambda: session.user) is None
    browser.visit(lambda: session.login(7))
    assert loaded == []
    assert browser.do(work) == ["user 7", "user 7", None, None]
    assert loaded == [7, "ghost"]


def test_user_without_a_loader_says_what_to_write(browser: Browser) -> None:
    def work() -> None:
        with pytest.raises(ConfigError, match=r"@sessions\.user_loader"):
            _ = session.user

    browser.visit(lambda: session.login("bob"))
    browser.visit(work)


def test_logged_in_at(browser: Browser, fake_clock: FakeClock) -> None:
    fake_clock.set(1_800_000_000.0)
    assert browser.do(lambda: session.logged_in_at) is None
    browser.visit(lambda: session.login("bob"))
    fake_clock.advance(100)
    at = dt.datetime.fromtimestamp(1_800_000_000, dt.timezone.utc)
    assert browser.do(lambda: session.logged_in_at) == at
    browser.visit(lambda: (session.clear(), session.update(a=1)))
    assert browser.do(lambda: session.logged_in_at) is None


def test_an_empty_session_of_somebody_is_a_session(site: Site, browser: Browser) -> None:
    browser.visit(lambda: (session.login("bob"), session.update(a=1)))
    assert browser.visit(lambda: session.pop("a")).cookie is None
    assert browser.do(who) == ("bob", None)


# -- times ---------------------------------------------------------------------------------------

T = 1_800_000_000.0


def at(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(T + seconds, dt.timezone.utc)


def test_times(browser: Browser, fake_clock: FakeClock) -> None:
    fake_clock.set(T)
    browser.visit(store({"a": 1}))
    fake_clock.advance(100)
    assert browser.do(lambda: (session.created, session.touched)) == (at(0), at(0))
    fake_clock.advance(2 * 86_400)
    browser.visit(store({"a": 2}))
    fake_clock.advance(100)
    now = 2 * 86_400 + 100
    assert browser.do(lambda: (session.created, session.touched)) == (at(0), at(now))
    assert browser.do(lambda: session.created.tzinfo) is dt.timezone.utc


def test_expires_whatever_is_looked_at_first(fake_clock: FakeClock) -> None:
    fake_clock.set(T)
    browser = Site(SESSION_EXPIRES=1000).browser()
    assert browser.do(lambda: session.expires) == at(1000)
    browser.visit(store({"a": 1}))
    fake_clock.advance(100)
    assert browser.do(lambda: session.expires) == at(1000)
    assert browser.do(lambda: (session.get("a"), session.expires)[1]) == at(1000)
    assert browser.do(lambda: (setattr(session, "lifetime", 50), session.expires)[1]) == at(150)
    assert browser.do(lambda: session.expires) == at(150)
    assert browser.do(lambda: (setattr(session, "lifetime", 0), session.expires)[1]) is None
    assert browser.do(lambda: session.expires) is None


@pytest.mark.parametrize(
    ("value", "lifetime"),
    [
        (UNLIMITED, UNLIMITED),
        (0, UNLIMITED),
        (BROWSER, BROWSER),
        (-5, BROWSER),
        (60, dt.timedelta(seconds=60)),
        (0.25, dt.timedelta(seconds=0.25)),
        (dt.timedelta(days=1), dt.timedelta(days=1)),
    ],
)
def test_lifetime(browser: Browser, value: Any, lifetime: Any) -> None:
    def work() -> Any:
        session["a"] = 1
        session.lifetime = value
        return session.lifetime

    assert browser.do(lambda: session.lifetime) is BROWSER
    assert browser.do(work) == lifetime
    assert browser.do(lambda: session.lifetime) == lifetime


@pytest.mark.parametrize("value", [None, "1h", True, float("nan"), 1e300])
def test_a_bad_lifetime_is_a_value_error(browser: Browser, value: Any) -> None:
    def work() -> None:
        with pytest.raises(ValueError, match=r"session\.lifetime must be UNLIMITED"):
            session.lifetime = value

    browser.visit(work)


def test_lifetime_of_flask_and_of_the_settings(browser: Browser) -> None:
    browser.visit(lambda: setattr(session, "permanent", True))
    assert browser.do(lambda: (session.permanent, session.lifetime)) == (True, dt.timedelta(31))
    browser.visit(lambda: setattr(session, "permanent", False))
    assert browser.do(lambda: (session.permanent, session.lifetime)) == (False, BROWSER)
    fixed = Site(SESSION_EXPIRES=60).browser()
    assert fixed.do(lambda: session.lifetime) == dt.timedelta(seconds=60)


# -- one request at a time -----------------------------------------------------------------------


def test_exclusive_sees_what_others_stored(browser: Browser) -> None:
    browser.visit(store({"n": 1, "z": [0]}))
    tab = browser.copy()

    def work() -> None:
        assert session["n"] == 1
        session["mine"] = 1
        tab.visit(store({"n": 5}))
        with session.exclusive() as same:
            assert same["n"] == 5
            same["n"] += 1
            session["z"].append(1)
        assert tab.do(everything) == {"n": 6, "mine": 1, "z": [0, 1]}, "it ends with a commit"

    browser.visit(work)
    assert browser.do(everything) == {"n": 6, "mine": 1, "z": [0, 1]}


def test_exclusive_lets_one_in_at_a_time(site: Site, browser: Browser) -> None:
    browser.visit(store({"n": 0, "keep": 1}))

    def work() -> None:
        for _ in range(5):
            with session.exclusive():
                session["n"] = session["n"] + 1

    tabs = [browser.copy() for _ in range(6)]
    threads = [threading.Thread(target=tab.visit, args=(work,)) for tab in tabs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert browser.do(everything) == {"n": 30, "keep": 1}


def test_exclusive_gives_up(browser: Browser) -> None:
    browser.visit(store({"n": 0}))
    tab = browser.copy()

    def try_it() -> None:
        with session.exclusive(timeout=0.01):
            raise AssertionError("both were in")

    def work() -> int:
        with session.exclusive():
            return tab.visit(try_it).status

    assert browser.do(work) == 503
    assert browser.do(lambda: session.exclusive(timeout=0.01).__enter__()["n"]) == 0


def test_exclusive_on_a_session_that_ended_meanwhile(site: Site, browser: Browser) -> None:
    browser.visit(store({"secret": 1}))
    tab = browser.copy()

    def work() -> Any:
        assert session["secret"] == 1
        tab.visit(lambda: session.logout())
        with session.exclusive():
            return everything()

    visit = browser.visit(work)
    assert (visit.status, visit.result, site.records()) == (200, {}, 0)


def test_exclusive_after_a_new_id(browser: Browser) -> None:
    browser.visit(store({"n": 0}))

    def work() -> None:
        session.login("bob")
        with session.exclusive():
            session["n"] += 1
        session["n"] += 1

    browser.visit(work)
    assert browser.do(lambda: (session["n"], session.user_id)) == (2, "bob")


# -- stored bytes that cannot be read ------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda: session.get("bad"),
        lambda: session.pop("bad", None),
        lambda: dict(session),
        lambda: list(session.items()),
        lambda: list(session.values()),
        lambda: session.setdefault("bad", None) and None,
        lambda: session == {},
    ],
    ids=["get", "pop", "dict", "items", "values", "setdefault", "=="],
)
def test_an_undecodable_value_gives_a_fresh_session(
    site: Site, browser: Browser, look: Callable[[], Any]
) -> None:
    browser.visit(store({"good": 1, "bad": 2}))
    record = next(iter(site.provider._records.values()))
    site.provider._records[record.key] = record._replace(values={**record.values, "bad": b"\xc1"})
    visit = browser.visit(lambda: (look(), session.get("good"), session.new))
    assert visit.status == 200
    assert visit.result[1:] == (None, True)
    browser.visit(lambda: (look(), session.update(fresh=1)))
    assert browser.do(lambda: session.get("fresh")) == 1


def test_a_bad_value_that_is_not_looked_at_does_no_harm(site: Site, browser: Browser) -> None:
    browser.visit(store({"good": 1, "bad": 2}))
    record = next(iter(site.provider._records.values()))
    site.provider._records[record.key] = record._replace(values={**record.values, "bad": b"\xc1"})
    assert browser.do(lambda: session["good"]) == 1
    browser.visit(store({"bad": 3}))
    assert browser.do(everything) == {"good": 1, "bad": 3}


def test_the_shape_of_a_repr(browser: Browser) -> None:
    browser.visit(store({"b": 1, "a": 2}))
    assert browser.do(lambda: (len(session), repr(session))[1]) == (
        "<HybridSessionMapping ['b', 'a']>"
    )
    assert re.fullmatch(r"<\w+, not looked at>", browser.do(lambda: repr(session)))
