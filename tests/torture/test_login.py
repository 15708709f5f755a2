"""A page with many requests under way while another one logs its browser in.

Whatever the order, the login's id is what the browser ends with: no answer of the old id changes
the cookie once the login has answered, and none is an error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.overlap.web import Answer, Browser, Server, at_once, watched
from tests.servers import Server as Backend

#: How many requests a page makes.
MANY = 32
#: What they do: look, write a name of their own, change one inside, count, or begin anew.
PAGE = ("read", "write", "nested", "count", "touch", "flash", "set", "commit")


@pytest.fixture(scope="module", params=["hybrid", "redis"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: Backend
) -> Iterator[Server]:
    url = f"redis://{redis_server.address}" if request.param == "redis" else ""
    size = ("--worker-class", "gthread", "--workers", "4", "--threads", "12")
    server = Server(tmp_path_factory.mktemp(request.param), request.param, *size, url=url)
    yield from watched(server)
    server.stop()


@pytest.mark.parametrize("permanent", ["", "&permanent=1"])
@pytest.mark.parametrize("begun", ["anonymous=1", "of-another-user=1"])
def test_a_login_beside_a_page(
    server: Server, rounds: Callable[[int], Iterator[int]], begun: str, permanent: str
) -> None:
    for number in rounds(5):
        browser = Browser(server)
        browser.ok(f"/begin?{begun}{permanent}")
        log_in_beside_a_page(browser, number)


def log_in_beside_a_page(browser: Browser, number: int) -> None:
    """``browser.cookie`` is what it has, as answers arrive."""
    old = browser.cookie
    logged_in = threading.Event()
    lock = threading.Lock()

    def ask(path: str) -> Answer:
        mine = browser.with_cookie(old)  # sent before anything has arrived
        answer = mine.get(path)
        with lock:
            for cookie in answer.cookies:
                assert path == "/me/login" or not logged_in.is_set(), "it overwrites the login's"
                browser.cookie = cookie
            if path == "/me/login":
                logged_in.set()
        return answer

    page = [f"/tab{tab}/{PAGE[(tab + number) % len(PAGE)]}" for tab in range(MANY)]
    page = [path if not path.endswith("/set") else f"/set?{number}=new" for path in page]
    page.insert(number % MANY, "/me/login")
    answers = at_once(*(partial(ask, path) for path in page))
    assert {answer.status for answer in answers} == {200}, {answer.text for answer in answers}
    login = answers[number % MANY]
    assert [browser.cookie] == login.cookies
    assert browser.cookie != old
    seen = browser.ok("/look")
    assert seen["user"] == "me"
    assert browser.with_cookie(old).ok("/look")["user"] is None
    assert seen["sessions"] == 1, "and no other session was made"
