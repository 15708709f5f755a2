"""Four gunicorn workers of every kind on the default provider: one store, whoever answers."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .overlap.web import Browser, Server, at_once, wait_for, watched

KINDS = {
    "sync": ("--worker-class", "sync"),
    "gthread": ("--worker-class", "gthread", "--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}
WORKERS = 4


@pytest.fixture(scope="module", params=[(kind, load) for kind in KINDS for load in ("", "preload")])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    kind, preload = request.param
    flags = [*KINDS[kind], "--workers", str(WORKERS), *(["--preload"] if preload else [])]
    server = Server(tmp_path_factory.mktemp(kind), "hybrid", *flags)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    yield from watched(running)


def ask_all(server: Server, ask: Callable[[], Any]) -> list[Any]:
    """What everybody answers, asked again and again until each worker has answered."""
    answers: list[Any] = []

    def everybody_answered() -> bool:
        answers.extend(at_once(*[ask] * 8))
        return {answer["pid"] for answer in answers} >= server.workers()

    wait_for(lambda: len(server.workers()) == WORKERS, "four workers")
    wait_for(everybody_answered, "an answer of each worker")
    return answers


def test_a_session_is_seen_by_all(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/set?name=Ada")
    for seen in ask_all(server, partial(browser.ok, "/look")):
        assert seen["values"] == {"name": "Ada"}


def test_a_change_is_seen_by_all(server: Server) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    for number in range(10):
        browser.ok(f"/set?number={number}")
        for seen in at_once(*[partial(browser.ok, "/look")] * 4):
            assert seen["values"]["number"] == str(number)


@pytest.mark.parametrize("action", ["logout", "regenerate"])
def test_the_old_cookie_is_dead_everywhere(server: Server, action: str) -> None:
    browser = Browser(server)
    browser.ok("/begin")
    old = browser.with_cookie(browser.cookie)
    ask_all(server, partial(old.ok, "/look"))
    browser.ok(f"/fast/{action}")
    for seen in ask_all(server, partial(old.ok, "/look")):
        assert (seen["values"], seen["user"]) == ({}, None)


def test_workers_count_together(server: Server) -> None:
    count_together(Browser(server))


@pytest.mark.parametrize("provider", ["memory", "functions"])
def test_greenlets_of_one_worker_count_together(provider: str, tmp_path: Path) -> None:
    """What was made before the fork was made before gevent took over."""
    one = ("--workers", "1", "--worker-class", "gevent", "--preload")
    server = Server(tmp_path, provider, *one)
    try:
        for _ in watched(server):
            count_together(Browser(server))
    finally:
        server.stop()


def count_together(browser: Browser) -> None:
    browser.ok("/begin")

    def click() -> None:
        mine = browser.with_cookie(browser.cookie)
        for _ in range(15):
            mine.ok("/fast/count")

    at_once(*[click] * 8)
    assert browser.ok("/look")["values"]["count"] == 120


class Visitor:
    """Counts in one session with the others, and begins sessions; survives the end of a worker."""

    def __init__(self, shared: Browser) -> None:
        self._shared = shared
        self.done = 0
        self.unknown = 0
        self.begun: list[Browser] = []

    def stay(self, over: threading.Event) -> None:
        while not over.is_set():
            begun = self._shared.with_cookie("")
            if self._try(begun, "/set?name=Ada"):
                self.begun.append(begun)
            if self._try(self._shared.with_cookie(self._shared.cookie), "/fast/count"):
                self.done += 1
            else:
                self.unknown += 1

    def _try(self, browser: Browser, path: str) -> bool:
        """False: the worker died before its answer was there."""
        try:
            browser.ok(path)
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):
            return False
        return True


def test_a_killed_worker_loses_nothing(server: Server) -> None:
    shared = Browser(server)
    shared.ok("/begin")
    visitors = [Visitor(shared) for _ in range(4)]
    over = threading.Event()

    def done() -> int:
        return sum(visitor.done for visitor in visitors)

    def kill() -> None:
        try:
            for victim in sorted(server.workers()):
                enough = done() + 15
                wait_for(lambda enough=enough: done() >= enough, "requests to be answered")
                os.kill(victim, signal.SIGKILL)
        finally:
            over.set()

    at_once(kill, *(partial(visitor.stay, over) for visitor in visitors))
    unknown = sum(visitor.unknown for visitor in visitors)
    assert done() <= shared.ok("/look")["values"]["count"] <= done() + unknown
    for visitor in visitors:
        for browser in visitor.begun:
            assert browser.ok("/look")["values"] == {"name": "Ada"}


def test_expiry_is_announced_once(server: Server) -> None:
    """By whichever process comes first: the clockworks of all wake up in the same moment."""

    def expire() -> set[str]:
        """Sessions begun in every worker, all of which end at one time."""
        path = f"/set?name=Ada&until={server.now() + 2.5}"
        begin = partial(ask_all, server, lambda: Browser(server).ok(path))
        keys = {answer["key"] for _ in range(4) for answer in begin()}
        wait_for(lambda: keys <= announced().keys(), "the sessions to expire")
        return keys

    def announced() -> Counter[str]:
        return Counter((server.folder / "expired").read_text().split())

    keys = expire()
    expire()  # by then, what is announced too often is there
    assert {announced()[key] for key in keys} == {1}
