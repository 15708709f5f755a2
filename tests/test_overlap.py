"""Overlapping requests of one session, through real HTTP, on every provider that promises them.

The slow request looks at its session first and is then held in the middle of its view; the fast one
runs from end to end meanwhile. Nothing here waits for time to pass.
"""

from __future__ import annotations

import copy
import resource
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import pytest

from flask_hybridsession.core.provider import Promise
from flask_hybridsession.providers.registry import BUILT_IN

from .overlap.web import Answer, Browser, Server, at_once, held, send_all, wait_for, watched
from .redis_servers import Watched
from .servers import Server as Backend
from .servers import mariadb_url, postgresql_url

#: What comes behind a hyphen is the database.
REDIS = ("redis", "redis-sentinel", "redis-cluster")
SQL = ("sql-sqlite", "sql-postgresql", "sql-mariadb")
CONDITIONAL = ("memory", "hybrid", "tiered", *REDIS, *SQL)
#: How many processes serve each provider. ``cachelib`` and ``functions`` promise nothing between
#: processes, but say in their docstrings that the threads of one may rely on them.
WORKERS = {
    **{"memory": 1, "hybrid": 2, "tiered": 2, "cachelib": 1, "functions": 1},
    **dict.fromkeys((*REDIS, *SQL), 2),
}
#: More than any test holds at once, even if one worker gets them all.
THREADS = 40
DAY = 86400.0


def test_no_provider_is_left_out() -> None:
    conditional = {name.partition("-")[0] for name in CONDITIONAL}
    for name, path in BUILT_IN.items():
        module, _, attribute = path.partition(":")
        promises = getattr(import_module(module), attribute).promises
        assert (Promise.CONDITIONAL in promises) == (name in conditional), name


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory,
    redis_server: Backend,
    redis_sentinels: Watched,
    redis_cluster: list[Backend],
    postgresql_server: Backend,
    mariadb_server: Backend,
) -> Iterator[dict[str, Server]]:
    urls = {
        "redis": f"redis://{redis_server.address}",
        "redis-sentinel": f"redis://{redis_sentinels.sentinel.address}",
        "redis-cluster": f"redis://{redis_cluster[0].address}",
        "sql-sqlite": f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/sessions.db",
        "sql-postgresql": postgresql_url(postgresql_server),
        "sql-mariadb": mariadb_url(mariadb_server),
    }
    running: dict[str, Server] = {}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(files[0], min(files[1], 4096)), files[1]))
    try:
        for name, workers in WORKERS.items():
            size = ("--workers", str(workers), "--threads", str(THREADS))
            folder = tmp_path_factory.mktemp(name)
            url = urls.get(name, "")
            running[name] = Server(folder, name, "--worker-class", "gthread", *size, url=url)
        yield running
    finally:
        for server in running.values():
            server.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, files)


@pytest.fixture(params=CONDITIONAL)
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Iterator[Server]:
    yield from watched(servers[request.param])


@pytest.fixture(params=[name for name in WORKERS if name not in CONDITIONAL])
def lesser_server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Iterator[Server]:
    yield from watched(servers[request.param])


# What a session holds, and what the requests do to it


class Seen(NamedTuple):
    """The values, what the next request shows and no request after that, and who is logged in."""

    values: dict[str, Any]
    shown: list[str]
    user: str | None


BEFORE = {
    **{"kept": "old", "slow's": "old", "fast's": "old", "count": 0},
    **{"cart": ["old"], "basket": ["old"]},
}
EMPTY = Seen({}, [], None)


def nothing(seen: Seen, tab: str) -> None:
    pass


def write(seen: Seen, tab: str) -> None:
    seen.values[tab] = tab


def write_twice(seen: Seen, tab: str) -> None:
    seen.values[tab] = seen.values[f"{tab} again"] = tab


def delete(seen: Seen, tab: str) -> None:
    del seen.values[f"{tab}'s"]


def nested(seen: Seen, tab: str) -> None:
    seen.values["cart" if tab == "slow" else "basket"].append(tab)


def count(seen: Seen, tab: str) -> None:
    seen.values["count"] += 1


def flash(seen: Seen, tab: str) -> None:
    seen.shown.append(tab)


#: The views of the app, and their effects.
EFFECTS: dict[str, Callable[[Seen, str], None]] = {
    **dict.fromkeys(("read", "touch", "lifetime", "regenerate", "login"), nothing),
    **dict.fromkeys(("write", "exclusive"), write),
    **dict.fromkeys(("flash", "keyed"), flash),
    **{"commit": write_twice, "delete": delete, "nested": nested, "count": count},
}


def after(user: str | None, **actions: str) -> Seen:
    """What is there after ``fast="write"`` or the like."""
    seen = Seen(copy.deepcopy(BEFORE), [], user)
    for tab, action in actions.items():
        EFFECTS[action](seen, tab)
    return Seen(seen.values, sorted(seen.shown), user)


def look(browser: Browser) -> Seen:
    """Looks twice: what was shown is gone, all else is as it was."""
    first, second = browser.ok("/look"), browser.ok("/look")
    assert {**first, "shown": [], "pid": 0, "left": 0} == {**second, "pid": 0, "left": 0}
    return Seen(first["values"], first["shown"], first["user"])


# One pair


class Style(NamedTuple):
    """How the app treats its cookies, and whether the slow view acts before it is held or after."""

    prefix: str = ""
    permanent: bool = False
    early: bool = False


LATE = Style()
#: The cookie goes out with every response, as Flask does it.
EARLY_EAGER = Style("/eager", permanent=True, early=True)


class Pair:
    """One browser's session, an overlapping pair of requests in it, and what came of them."""

    def __init__(self, server: Server, style: Style, slow: str, fast: str) -> None:
        self.server, self.slow, self.fast = server, slow, fast
        self.browser = Browser(server, prefix=style.prefix)
        # Over another user's session a login begins with nothing.
        anonymous = "anonymous=1&" * ("login" in (slow, fast) and fast != "logout-elsewhere")
        timed = "seconds=60&" * (fast in TIMED)
        self.browser.ok(f"/begin?{anonymous}{timed}" + "permanent=1" * style.permanent)
        self.old = self.browser.with_cookie(self.browser.cookie)
        self.user = self.old.ok("/look")["user"]
        self.first = self.browser.cookie
        assert self.first
        with held(self.browser, f"/slow/{slow}" + "?early=1" * style.early) as (request,):
            self.run_fast()
            self.meanwhile = self.browser.cookie
        self.answer = request.result()
        assert self.answer.status == 200, self.answer

    def run_fast(self) -> None:
        if self.fast == "logout-elsewhere":
            elsewhere = self.old.with_cookie("")
            elsewhere.ok("/login")
            elsewhere.ok("/fast/logout-everywhere")
        elif self.fast == "expiry":
            self.server.advance(61)
        elif self.fast == "purge":
            self.server.advance(61)
            self.old.ok("/purge")
        elif self.fast == "idle":
            self.server.advance(32 * DAY)
        else:
            self.browser.ok(f"/fast/{self.fast}")

    def sessions(self) -> int | None:
        """How many there are; None: the provider does not know."""
        found: int | None = self.browser.ok("/look")["sessions"]
        return found


def both(pair: Pair) -> None:
    assert set(pair.answer.cookies) <= {pair.first}
    assert pair.browser.cookie == pair.first
    assert look(pair.browser) == after(pair.user, slow=pair.slow, fast=pair.fast)
    assert pair.sessions() in (1, None)


def gone(pair: Pair) -> None:
    assert pair.answer.cookies == []
    ended(pair)


def ended(pair: Pair) -> None:
    assert set(pair.answer.cookies) <= {""}
    assert look(pair.browser) == look(pair.old) == EMPTY
    assert pair.sessions() in (0, None)


def moved(pair: Pair) -> None:
    assert pair.answer.cookies == []
    assert pair.browser.cookie not in ("", pair.first)
    user = "fast" if pair.fast == "login" else pair.user
    assert look(pair.browser) == after(user, fast=pair.fast)
    assert look(pair.old) == EMPTY
    assert pair.sessions() in (1, None)


def renamed(pair: Pair) -> None:
    assert pair.answer.cookies == [pair.browser.cookie]
    assert pair.browser.cookie not in ("", pair.first)
    user = "slow" if pair.slow == "login" else pair.user
    assert look(pair.browser) == after(user, fast=pair.fast)
    assert look(pair.old) == EMPTY
    assert pair.sessions() in (1, None)


def afresh(pair: Pair) -> None:
    assert pair.answer.cookies == [pair.browser.cookie]
    assert pair.browser.cookie not in ("", pair.first, pair.meanwhile)
    assert look(pair.browser) == Seen({}, [], "slow")
    assert look(pair.old) == EMPTY


def signed_out(pair: Pair) -> None:
    assert pair.answer.cookies == [""]
    moved_to = pair.old.with_cookie(pair.meanwhile)
    assert look(pair.browser) == look(pair.old) == look(moved_to) == EMPTY
    assert pair.sessions() in (0, None)


def replaced(pair: Pair) -> None:
    assert set(pair.answer.cookies) <= {pair.browser.cookie}
    assert look(pair.browser) == Seen({"fast": "fast"}, [], None)
    assert pair.sessions() in (1, None)


def added(pair: Pair) -> None:
    assert pair.answer.cookies == []
    assert look(pair.browser) == Seen({"fast": "fast", "slow": "slow"}, [], None)


def rewritten(pair: Pair) -> None:
    assert look(pair.browser) == Seen({"slow": "slow"}, [], None)
    assert pair.sessions() in (1, None)


TIMED = ("expiry", "purge")
CHANGES = ("write", "delete", "nested", "flash", "keyed", "count")
GROUPS = {
    "changes": CHANGES,
    "any of these": ("read", "touch", *CHANGES, "commit"),
    "ends": ("clear", "logout", "logout-elsewhere", *TIMED, "idle"),
}

OUTCOMES = {
    check.__name__: check
    for check in (both, gone, ended, replaced, added, moved, renamed, afresh, rewritten, signed_out)
}

#: both        what both did, under the same cookie
#: gone        nothing, under any cookie, and the slow answer has no cookie
#: ended       nothing, under any cookie
#: replaced    what the fast one wrote after it had cleared, under the cookie that the browser has
#: added       the same, and what the slow one did then
#: moved       the fast one's new cookie has all that was there before, and nothing of the slow one;
#:             the old one is dead; the slow answer has no cookie
#: renamed     the slow one's new cookie has all that was there before, and what the fast one did
#: afresh      the slow one's new cookie has a login and nothing of the old session
#: rewritten   what the slow one wrote after it had cleared, and nothing else
#: signed_out  the browser has no cookie: who asks to leave has left
TABLE = """
slow \\ fast  | changes   | ends   | clear-write | regenerate | login
--------------+-----------+--------+-------------+------------+-----------
any of these  | both      | gone   | replaced    | moved      | moved
exclusive     | both      | gone   | added       | moved      | moved
regenerate    | renamed   | gone   | replaced    | moved      | moved
login         | renamed   | afresh | afresh      | afresh     | afresh
clear-write   | rewritten | gone   | rewritten   | moved      | moved
clear         | ended     | ended  | ended       | signed_out | signed_out
logout        | ended     | ended  | ended       | signed_out | signed_out
"""


Case = tuple[str, str, str]


def pairs() -> list[Case]:
    heads, _, *rows = ([cell.strip() for cell in row.split("|")] for row in TABLE.split("\n")[1:-1])
    return [
        (slow, fast, outcome)
        for first, *outcomes in rows
        for head, outcome in zip(heads[1:], outcomes, strict=True)
        for slow in GROUPS.get(first, (first,))
        for fast in GROUPS.get(head, (head,))
    ]


@pytest.mark.parametrize(("slow", "fast", "outcome"), pairs())
def test_pair(server: Server, slow: str, fast: str, outcome: str) -> None:
    OUTCOMES[outcome](Pair(server, LATE, slow, fast))


@pytest.mark.parametrize(
    ("slow", "fast", "outcome"),
    [case for case in pairs() if case[0] in ("read", "touch", *CHANGES)],
)
def test_pair_early_and_eager(server: Server, slow: str, fast: str, outcome: str) -> None:
    OUTCOMES[outcome](Pair(server, EARLY_EAGER, slow, fast))


#: What is asked of providers that have not every ability.
FEW = (
    {"read", "write", "delete", "nested", "flash"},
    {"write", "flash", "clear", "logout", "regenerate", "expiry"},
)


@pytest.mark.parametrize(
    ("slow", "fast", "outcome"),
    [case for case in pairs() if case[0] in FEW[0] and case[1] in FEW[1]],
)
def test_pair_in_one_process(lesser_server: Server, slow: str, fast: str, outcome: str) -> None:
    OUTCOMES[outcome](Pair(lesser_server, LATE, slow, fast))


# A session of one value, and nobody logged in: taking the value out ends it


@pytest.fixture
def small(server: Server) -> Browser:
    browser = Browser(server)
    browser.ok("/set?only=value")
    return browser


def drop_all(browser: Browser, *fast: str) -> tuple[Answer, Browser]:
    """The slow answer, and whoever has the cookie from before."""
    old = browser.with_cookie(browser.cookie)
    with held(browser, "/slow/drop-all") as (request,):
        for action in fast:
            browser.ok(f"/fast/{action}")
    return request.result(), old


def test_taking_the_last_value_out_ends_the_session(small: Browser) -> None:
    answer, old = drop_all(small)
    assert (answer.status, answer.cookies) == (200, [""])
    assert look(old) == EMPTY


@pytest.mark.parametrize(
    ("fast", "seen"),
    [("write", Seen({"fast": "fast"}, [], None)), ("flash", Seen({}, ["fast"], None))],
)
def test_the_last_value_goes_while_another_comes(small: Browser, fast: str, seen: Seen) -> None:
    answer, old = drop_all(small, fast)
    assert (answer.status, answer.cookies) == (200, [])
    assert small.cookie == old.cookie
    assert look(small) == seen


def test_the_last_value_goes_in_both(small: Browser) -> None:
    answer, old = drop_all(small, "drop-all")
    assert (answer.status, answer.cookies) == (200, [])
    assert look(small) == look(old) == EMPTY


def test_the_last_value_is_not_taken_out_of_a_later_session(small: Browser) -> None:
    answer, old = drop_all(small, "clear", "write")
    assert (answer.status, answer.cookies) == (200, [])
    assert look(small) == Seen({"fast": "fast"}, [], None)
    assert look(old) == EMPTY


@pytest.mark.parametrize(("fast", "user"), [("regenerate", None), ("login", "fast")])
def test_the_last_value_is_not_taken_out_of_a_renamed_session(
    small: Browser, fast: str, user: str | None
) -> None:
    answer, old = drop_all(small, fast)
    assert (answer.status, answer.cookies) == (200, [])
    assert look(small) == Seen({"only": "value"}, [], user)
    assert look(old) == EMPTY


def test_a_view_that_never_looks_brings_no_cookie_back(server: Server) -> None:
    """Also where every response renews the cookie, which is worked out at the end."""
    browser = Browser(server, prefix="/eager")
    browser.ok("/begin?permanent=1")
    with held(browser, "/unseen") as (slow,):
        browser.ok("/fast/logout")
    assert slow.result().cookies == []
    assert browser.cookie == ""


# How long a session lasts


@pytest.mark.parametrize("slow", ["read", "touch", "write", "nested", "flash"])
@pytest.mark.parametrize("style", [LATE, Style("/eager"), EARLY_EAGER])
def test_a_slow_request_does_not_prolong_a_session_that_was_cut_short(
    server: Server, style: Style, slow: str
) -> None:
    pair = Pair(server, style, slow, "lifetime")
    assert 0 < pair.old.ok("/look")["left"] <= 60


@pytest.mark.parametrize("slow", ["read", "touch", "write", "nested", "flash"])
@pytest.mark.parametrize("style", [LATE, Style("/eager")])
def test_a_slow_request_does_not_make_a_permanent_session_idle_sooner(
    server: Server, style: Style, slow: str
) -> None:
    browser = Browser(server, prefix=style.prefix)
    browser.ok("/begin?seconds=60")
    with held(browser, f"/slow/{slow}") as (request,):
        browser.ok("/fast/unlimited")
    assert request.result().status == 200
    assert browser.ok("/look")["left"] is None


def test_a_change_of_lifetime_keeps_what_was_written_meanwhile(server: Server) -> None:
    both(Pair(server, LATE, "lifetime", "write"))


@pytest.mark.parametrize("fast", ["clear", "logout", "expiry", "regenerate"])
def test_a_login_brings_nothing_of_the_old_session_along(server: Server, fast: str) -> None:
    afresh(Pair(server, LATE, "push-login", fast))


# Logins


def test_a_second_click_on_login(server: Server) -> None:
    """Both answers log in, the one that comes last is the browser's."""
    browser = Browser(server)
    browser.ok("/set?cart=full")
    first = browser.cookie
    with held(browser, "/slow/login") as (slow,):
        browser.ok("/fast/login")
        meanwhile = browser.cookie
        assert look(browser) == Seen({"cart": "full"}, [], "fast")
    assert slow.result().status == 200
    assert browser.cookie not in (first, meanwhile)
    assert browser.ok("/look")["user"] == "slow"
    assert look(browser.with_cookie(first)) == EMPTY


@pytest.mark.parametrize("stored", [True, False])
def test_clicks_on_login_at_once(server: Server, stored: bool) -> None:
    for _ in range(10):
        browser = Browser(server)
        if stored:
            browser.ok("/set?cart=full")
        clicks = [browser.with_cookie(browser.cookie) for _ in range(3)]
        at_once(*(partial(click.ok, "/fast/login") for click in clicks))
        assert len({browser.cookie, *(click.cookie for click in clicks)}) == 4
        assert [click.ok("/look")["user"] for click in clicks] == ["fast"] * 3
        carts = [click.ok("/look")["values"].get("cart") for click in clicks]
        assert carts.count("full") == stored
        assert look(browser) == EMPTY


def test_login_of_others_is_not_undone_by_logout_everywhere(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    other = browser.with_cookie("")
    other.ok("/fast/login")
    with held(other, "/slow/write") as (slow,):
        browser.ok("/fast/logout-everywhere")
    assert slow.result().status == 200
    assert look(other) == Seen({"slow": "slow"}, [], "fast")


# Flashes


@pytest.mark.parametrize("kind", ["flash", "keyed"])
def test_many_flashes_at_once_are_all_shown_once(server: Server, kind: str) -> None:
    browser = Browser(server)
    browser.ok("/set?some=value")
    names = sorted(f"tab{number}" for number in range(30))
    with held(browser, *[f"/{name}/{kind}" for name in names]):
        pass
    assert look(browser) == Seen({"some": "value"}, names, None)


@pytest.mark.parametrize("kind", ["flash", "keyed"])
def test_two_requests_show_the_same_flash(server: Server, kind: str) -> None:
    """Both began when it was there, so both may show it; nobody shows it again."""
    browser = Browser(server)
    browser.ok("/set?some=value")
    browser.ok(f"/once/{kind}")
    with held(browser, "/slow/show") as (slow,):
        assert browser.ok("/fast/show")["result"] == ["once"]
        assert look(browser).shown == []
    assert slow.result().json["result"] == ["once"]
    assert look(browser) == Seen({"some": "value"}, [], None)


@pytest.mark.parametrize("early", ["?early=1", ""])
@pytest.mark.parametrize("kind", ["flash", "keyed"])
def test_a_flash_that_comes_while_others_are_shown(server: Server, kind: str, early: str) -> None:
    browser = Browser(server)
    browser.ok("/set?some=value")
    browser.ok(f"/once/{kind}")
    with held(browser, f"/slow/show{early}") as (slow,):
        browser.ok(f"/later/{kind}")
    assert slow.result().json["result"] == ["once"]
    assert look(browser) == Seen({"some": "value"}, ["later"], None)


# Many at once


def test_increments_are_exact(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")

    def click() -> None:
        mine = browser.with_cookie(browser.cookie)
        for _ in range(50):
            mine.ok("/fast/count")

    at_once(*[click] * 8)
    assert browser.ok("/look")["values"]["count"] == 400


def test_exclusive_requests_wait_for_one_another(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")

    def click() -> None:
        mine = browser.with_cookie(browser.cookie)
        for _ in range(10):
            mine.ok("/fast/careful")

    at_once(*[click] * 8)
    assert browser.ok("/look")["values"]["count"] == 80


def test_many_writers_of_different_keys(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/set?kept=value")
    names = [f"tab{number}" for number in range(30)]
    with held(browser, *[f"/{name}/write" for name in names]):
        pass
    assert look(browser).values == {"kept": "value", **{name: name for name in names}}


def test_merged_lists_keep_what_every_tab_appended(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    browser.ok("/first/append")
    names = [f"tab{number}" for number in range(10)]
    with held(browser, *[f"/{name}/append" for name in names]):
        pass
    first, *others = look(browser).values["merged"]
    assert (first, sorted(others)) == ("first", names)


def test_without_a_merge_the_later_list_counts_whole(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    with held(browser, "/slow/push") as (slow,):
        browser.ok("/fast/push")
    assert slow.result().status == 200
    assert look(browser).values["cart"] == ["old", "slow"]


@pytest.mark.parametrize("prefix", ["", "/eager"])
def test_many_changes_of_lifetime_at_once(server: Server, prefix: str) -> None:
    """One sid, at most one cookie in each answer, no error; the last one counts."""
    browser = Browser(server, prefix=prefix)
    browser.ok("/set?kept=value")
    sid = browser.cookie
    paths = [f"/set?seconds={1000 + number}" for number in range(300)]
    answers = send_all(browser, paths)
    assert {(answer.status, *answer.cookies) for answer in answers} == {(200, sid)}
    seen = browser.ok("/look")
    assert seen["values"] == {"kept": "value"}
    assert browser.cookie == sid
    assert seen["lifetime"] - 30 < seen["left"] <= seen["lifetime"]


LEAVING = ("regenerate", "login", "clear", "logout")


def test_whatever_happens_at_once_no_error(server: Server) -> None:
    """Sixteen clients of one cookie do everything; the cookie of who leaves is dead."""
    browser = Browser(server)
    browser.ok("/begin")
    actions = [*EFFECTS, "append", "push", "show", "permanent", "drop-all", "clear-write", *LEAVING]

    def visit(number: int) -> None:
        mine = browser.with_cookie(browser.cookie)
        start = number % len(actions)
        for action in actions[start:] + actions[:start]:
            before = mine.with_cookie(mine.cookie)
            mine.ok(f"/tab{number}/{action}")
            if action in LEAVING:
                seen = before.ok("/look")
                assert (seen["values"], seen["user"]) == ({}, None), action

    at_once(*(partial(visit, number) for number in range(16)))


@pytest.mark.parametrize("action", LEAVING)
def test_who_leaves_has_left_while_others_write(server: Server, action: str) -> None:
    browser = Browser(server)
    browser.ok("/begin?anonymous=1")
    old = browser.with_cookie(browser.cookie)
    left = threading.Event()

    def write() -> None:
        while not left.is_set():
            old.with_cookie(old.cookie).ok("/slow/nested")

    def leave() -> None:
        browser.ok(f"/fast/{action}")
        left.set()

    at_once(*[write] * 8, leave)
    assert look(old) == EMPTY
    if action in ("clear", "logout"):
        assert look(browser) == EMPTY
    else:
        assert look(browser).values["cart"][0] == "old"


# Streams


def test_a_stream_does_not_undo_what_was_written_meanwhile(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    with held(browser, "/stream/read") as (slow,):
        for action in ("write", "delete", "nested", "flash"):
            browser.ok(f"/fast/{action}")
    assert slow.result() == Answer(200, "begun ended", [])
    seen = after("user", fast="write")
    for action in ("delete", "nested", "flash"):
        EFFECTS[action](seen, "fast")
    assert look(browser) == seen


@pytest.mark.parametrize("fast", ["write", "nested", "flash"])
def test_a_stream_that_commits(server: Server, fast: str) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    with held(browser, "/stream/store") as (slow,):
        browser.ok(f"/fast/{fast}")
    assert slow.result() == Answer(200, "begun ended", [])
    assert look(browser) == after("user", fast=fast, slow="write")


@pytest.mark.parametrize("slow", ["read", "store"])
@pytest.mark.parametrize("fast", ["clear", "logout", "regenerate", "login"])
def test_a_stream_brings_nothing_back(server: Server, slow: str, fast: str) -> None:
    browser = Browser(server)
    browser.ok("/begin?anonymous=1")
    old = browser.with_cookie(browser.cookie)
    with held(browser, f"/stream/{slow}") as (request,):
        browser.ok(f"/fast/{fast}")
    assert request.result() == Answer(200, "begun ended", [])
    assert look(old) == EMPTY
    if fast in ("clear", "logout"):
        assert look(browser) == EMPTY
    else:
        assert look(browser) == after("fast" if fast == "login" else None)


def test_what_a_stream_leaves_unsaved_is_reported(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    before = len(server.log())
    with held(browser, "/stream/write") as (slow,):
        browser.ok("/fast/write")
    assert slow.result() == Answer(200, "begun ended", [])
    assert look(browser) == after("user", fast="write")
    wait_for(lambda: "session['slow']" in server.log()[before:], "the error in the log")
