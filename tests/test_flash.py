from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import flash, get_flashed_messages, render_template_string, session

from flask_hybridsession import (
    clear_flashes,
    flash_value,
    get_flash,
    get_flashes,
    has_flash,
    keep_flashes,
    peek_flash,
)
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.site import Browser, Site


@pytest.fixture
def browser() -> Browser:
    return Site().browser()


# -- Flask's own ---------------------------------------------------------------------------------


def test_messages_are_shown_once(browser: Browser) -> None:
    browser.visit(lambda: (flash("foo"), flash("bar")))
    assert browser.do(lambda: (get_flashed_messages(), get_flashed_messages())) == (
        ["foo", "bar"],
        ["foo", "bar"],
    ), "as often as they are asked for in one request"
    assert browser.do(get_flashed_messages) == []


def test_categories(browser: Browser) -> None:
    def show(**options: Any) -> Callable[[], Any]:
        return lambda: get_flashed_messages(**options)

    messages = (("foo", "message"), ("baz", "custom"), ("<b>", "error"))
    browser.visit(lambda: [flash(text, category) for text, category in messages])
    assert browser.do(show(with_categories=True)) == [(c, text) for text, c in messages]
    browser.visit(lambda: [flash(text, category) for text, category in messages])
    assert browser.do(show(category_filter=["custom", "error"])) == ["baz", "<b>"]
    assert browser.do(show()) == [], "those that were filtered out are gone too, as in Flask"


def test_a_template_shows_them(browser: Browser) -> None:
    page = "{% for m in get_flashed_messages() %}[{{ m }}]{% endfor %}{{ session.get('a') }}"
    browser.visit(lambda: (flash("<one>"), session.update(a=1)))
    assert browser.do(lambda: render_template_string(page)) == "[&lt;one&gt;]1"
    assert browser.do(lambda: render_template_string(page)) == "1"


def test_flashes_of_requests_at_once_are_all_kept(browser: Browser) -> None:
    browser.visit(lambda: flash("first"))
    tabs = [browser.copy() for _ in range(3)]

    def slow() -> None:
        flash("slow")
        for number, tab in enumerate(tabs):
            tab.visit(lambda number=number: flash(f"fast {number}"))

    browser.visit(slow)
    assert browser.do(get_flashed_messages) == ["first", "fast 0", "fast 1", "fast 2", "slow"]
    assert browser.do(get_flashed_messages) == []


def test_flashes_that_are_overtaken_again_and_again_are_kept_once(browser: Browser) -> None:
    provider = browser.site.provider
    browser.visit(lambda: session.update(a=1))
    tab = browser.copy()
    left = [*"abcde"]

    def faster() -> None:
        if left:
            tab.visit(lambda: flash(left.pop(0)))
            provider.before_commit = faster

    def slow() -> None:
        flash("slow")
        provider.before_commit = faster

    browser.visit(slow)
    assert browser.do(get_flashed_messages) == [*"abcde", "slow"]


def test_the_same_message_twice_at_once_is_two(browser: Browser) -> None:
    browser.visit(lambda: session.update(a=1))
    tab = browser.copy()
    browser.visit(lambda: (flash("same"), tab.visit(lambda: flash("same"))))
    assert browser.do(get_flashed_messages) == ["same", "same"]


@pytest.mark.parametrize(
    "slow",
    [
        lambda: flash("new"),
        lambda: (session.get("a"), session.update(a=2)),
        lambda: session.get("_flashes"),
        lambda: (session["_flashes"], flash("new")),
    ],
    ids=["flash", "write", "look", "look and flash"],
)
def test_what_was_shown_is_not_shown_again_by_an_older_request(
    browser: Browser, slow: Callable[[], Any]
) -> None:
    browser.visit(lambda: (flash("old"), session.update(a=1)))
    tab = browser.copy()
    shown: list[Any] = []

    def work() -> None:
        slow()
        shown.append(tab.do(get_flashed_messages))

    browser.visit(work)
    shown += [browser.do(get_flashed_messages), browser.do(get_flashed_messages)]
    assert sum(messages.count("old") for messages in shown) == 1
    flashed = "new" in str(slow.__code__.co_consts)
    assert sum(messages.count("new") for messages in shown) == flashed


def test_a_message_flashed_while_others_are_shown_is_kept(browser: Browser) -> None:
    browser.visit(lambda: (flash("old"), session.update(a=1)))
    tab = browser.copy()
    browser.visit(lambda: (get_flashed_messages(), tab.visit(lambda: flash("new"))))
    assert browser.do(get_flashed_messages) == ["new"]
    assert browser.do(get_flashed_messages) == []


def test_a_visitor_with_a_flash_only(browser: Browser) -> None:
    browser.visit(lambda: flash("hello"))
    assert browser.cookie is not None
    assert browser.do(get_flashed_messages) == ["hello"]
    assert browser.visit(lambda: flash("again")).status == 200
    assert browser.do(get_flashed_messages) == ["again"]


# -- keyed ---------------------------------------------------------------------------------------


def test_a_flash_is_got_in_one_request(browser: Browser) -> None:
    assert browser.do(lambda: (get_flash("k"), get_flash("k", 7))) == (None, 7)
    browser.visit(lambda: flash_value("k", {1, (2,)}))
    browser.visit(lambda: session.get("other"))
    assert browser.do(lambda: (get_flash("k"), get_flash("k"))) == ({1, (2,)}, {1, (2,)})
    assert browser.do(lambda: (get_flash("k"), has_flash("k"), has_flash())) == (None, False, False)


def test_a_flash_may_be_got_in_the_request_that_made_it(browser: Browser) -> None:
    assert browser.do(lambda: (flash_value("k", 1), get_flash("k"))) == (None, 1)
    assert browser.do(lambda: get_flash("k")) is None
    assert browser.site.records() == 0


def test_a_flash_of_none_or_nothing(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("none", None), flash_value("", 0)))
    assert browser.do(lambda: (has_flash("none"), get_flash("none", 7), get_flash(""))) == (
        True,
        None,
        0,
    )
    assert browser.do(lambda: has_flash()) is False


def test_a_flash_set_again_after_it_was_got_survives(browser: Browser) -> None:
    browser.visit(lambda: flash_value("k", 1))
    assert browser.do(lambda: (get_flash("k"), flash_value("k", 2), peek_flash("k"))) == (
        1,
        None,
        2,
    )
    assert browser.do(lambda: get_flash("k")) == 2
    assert browser.do(lambda: get_flash("k")) is None


def test_the_same_value_set_again_after_it_was_got_survives(browser: Browser) -> None:
    browser.visit(lambda: flash_value("k", 1))
    browser.visit(lambda: (get_flash("k"), flash_value("k", 1)))
    assert browser.do(lambda: get_flash("k")) == 1


def test_a_peek_leaves_it(browser: Browser) -> None:
    browser.visit(lambda: flash_value("k", 1))
    for _ in range(3):
        assert browser.do(lambda: (peek_flash("k"), peek_flash("x", 5), has_flash("k"))) == (
            1,
            5,
            True,
        )
    assert browser.do(lambda: (has_flash("x"), has_flash())) == (False, True)


def test_all_at_once(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("a", 1), flash_value("b", [2]), session.update(c=3)))
    assert browser.do(get_flashes) == {"a": 1, "b": [2]}
    assert browser.do(get_flashes) == {}
    assert browser.do(lambda: dict(session)) == {"c": 3}


def test_clear(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("a", 1), flash_value("b", 2), session.update(c=3)))
    assert browser.do(lambda: (clear_flashes(), has_flash(), get_flash("a"))) == (None, False, None)
    assert browser.do(lambda: (get_flashes(), dict(session))) == ({}, {"c": 3})


def test_keep(browser: Browser) -> None:
    def values() -> None:
        for key in "abc":
            flash_value(key, key)

    browser.visit(values)
    assert browser.do(lambda: (get_flashes(), keep_flashes("a", "missing"))[0]) == {
        "a": "a",
        "b": "b",
        "c": "c",
    }
    assert browser.do(lambda: (get_flashes(), keep_flashes())[0]) == {"a": "a"}
    assert browser.do(get_flashes) == {"a": "a"}
    assert browser.do(get_flashes) == {}


def test_flashes_are_not_among_the_values(browser: Browser) -> None:
    browser.visit(lambda: flash_value("k", 1))
    assert browser.do(lambda: (dict(session), len(session), bool(session))) == ({}, 0, False)


def test_an_untouched_or_peeked_flash_keeps_the_session(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("k", 1), session.update(a=1)))
    browser.visit(lambda: session.pop("a"))
    assert browser.do(lambda: get_flash("k")) == 1


def test_keyed_flashes_of_requests_at_once(browser: Browser) -> None:
    browser.visit(lambda: session.update(a=1))
    tab = browser.copy()
    browser.visit(lambda: (flash_value("x", 1), tab.visit(lambda: flash_value("y", 2))))
    assert browser.do(get_flashes) == {"x": 1, "y": 2}


def test_a_new_flash_from_another_request_is_not_dropped_with_the_old_one(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("k", "old"), session.update(a=1)))
    tab = browser.copy()
    browser.visit(lambda: (get_flash("k"), tab.visit(lambda: flash_value("k", "new"))))
    assert browser.do(lambda: get_flash("k")) == "new"
    assert browser.do(lambda: get_flash("k")) is None


def test_a_flash_that_was_got_does_not_come_back(browser: Browser) -> None:
    browser.visit(lambda: (flash_value("k", ["old"]), session.update(a=1)))
    tab = browser.copy()
    for slow in (lambda: peek_flash("k"), lambda: session.update(a=2)):
        browser.visit(lambda: flash_value("k", ["old"]))
        browser.visit(lambda slow=slow: (slow(), tab.visit(lambda: get_flash("k"))))
        assert browser.do(lambda: has_flash("k")) is False


def test_templates_have_them_all(browser: Browser) -> None:
    page = """
    {{- has_flash() }} {{ peek_flash('k') }} {{ get_flash('k') }} {{ get_flashes() }}
    {{- flash_value('n', 1) or '' }}{{ keep_flashes('n') or '' }}{{ clear_flashes() or '' -}}
    """
    browser.visit(lambda: flash_value("k", 1))
    text = browser.do(lambda: render_template_string(page))
    assert text == "True 1 1 {&#39;k&#39;: 1}"
    assert browser.do(get_flashes) == {}


def test_flashes_outlive_a_restart(tmp_path: Path) -> None:
    first = Site(HybridProvider(str(tmp_path)))
    browser = first.browser()
    browser.visit(lambda: (flash("message"), flash_value("k", (1, 2))))
    first.sessions.close()
    second = Site(HybridProvider(str(tmp_path)))
    again = Browser(second, browser.cookie)
    assert again.do(lambda: (get_flashed_messages(), get_flash("k"))) == (["message"], (1, 2))
    assert again.do(lambda: (get_flashed_messages(), get_flash("k"))) == ([], None)
    second.sessions.close()
