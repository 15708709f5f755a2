"""Clients that work on the same sessions while workers are killed: an order explains it all."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.overlap.web import Browser, Server
from tests.servers import Server as Backend
from tests.servers import postgresql_url

from .history import UNKNOWN, Op, State, explains, smallest, story

SITE = Path(__file__).with_name("site_history.py")
#: Sessions of a round, clients of each, and requests of a client.
SESSIONS, CLIENTS, REQUESTS = 6, 3, 12
KINDS = ["put", "put", "add", "add", "drop", "read", "read", "read", "rename", "login"]
ENDS = ["logout", "clear"]


@pytest.fixture(scope="module", params=["hybrid", "redis", "sql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    backend: Callable[[str], Backend] = request.getfixturevalue
    url = ""
    if request.param == "redis":
        url = f"redis://{backend('redis_server').address}"
    if request.param == "sql":
        url = postgresql_url(backend("postgresql_server"))
    size = ("--worker-class", "gthread", "--workers", "4", "--threads", "4")
    server = Server(tmp_path_factory.mktemp("s"), request.param, *size, url=url, site=SITE)
    yield server
    server.stop()


class Session:
    """One session, and what its clients noted."""

    def __init__(self, server: Server, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = server
        self.ops: list[Op] = []
        self.sids = [self._begun()]
        self.first = State(self.sids[0], (("begun", 1),))

    def _begun(self) -> str:
        while True:  # until a worker lives long enough
            try:
                answer = Browser(self.server).get("/begin")
            except (OSError, ValueError, HTTPException):
                continue
            if answer.status == 200:
                return str(answer.json["answer"])

    def work(self) -> None:
        for _ in range(REQUESTS):
            kind = self.random.choice(KINDS if self.random.random() < 0.97 else ENDS)
            self.ask(kind, self.random.choice(self.sids[-2:] + self.sids[-1:] * 4))

    def ask(self, kind: str, sid: str) -> None:
        args: tuple[Any, ...] = ()
        if kind in ("put", "add", "drop"):
            args = (self.random.choice("xy"), self.random.randrange(1000))[: 2 - (kind == "drop")]
        elif kind == "login":
            args = (self.random.choice(["ada", "bob"]),)
        names = ("user",) if kind == "login" else ("name", "number")
        query = "&".join(f"{name}={arg}" for name, arg in zip(names, args, strict=False))
        began = time.monotonic()
        ended, answer = inf, UNKNOWN
        try:
            got = Browser(self.server, sid).get(f"/{kind}?{query}")
            assert got.status in (200, 503), got.text
            if got.status == 200:
                ended, answer = time.monotonic(), got.json["answer"]
        except (OSError, ValueError, HTTPException):
            pass  # the worker was killed: who knows what it did
        if kind == "read" and isinstance(answer, list):
            answer = tuple(answer)
        if kind in ("login", "rename") and isinstance(answer, str):
            self.sids.append(answer)
        self.ops.append(Op(kind, sid, args, began, ended, answer))

    def judge(self) -> None:
        for sid in self.sids[-3:]:
            for _ in range(2):
                self.ask("read", sid)
        if not explains(self.first, self.ops):
            few = story(smallest(self.first, self.ops))
            pytest.fail(f"no order explains:\n{few}\n\nAll of it:\n{story(self.ops)}")


@contextmanager
def killed(server: Server, seed: int) -> Iterator[None]:
    """Workers are killed at random meanwhile."""
    over, random_ = threading.Event(), random.Random(seed)

    def kill() -> None:
        while not over.wait(random_.uniform(0.1, 0.6)):
            workers = sorted(server.workers())
            if len(workers) > 1:
                os.kill(random_.choice(workers), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_an_order_explains_all_answers(
    server: Server, rounds: Callable[[int], Iterator[int]]
) -> None:
    count = 0
    for seed in rounds(2):
        sessions = [Session(server, seed * 1000 + number) for number in range(SESSIONS)]
        with killed(server, seed), ThreadPoolExecutor(SESSIONS * CLIENTS) as pool:
            for work in [pool.submit(one.work) for one in sessions for _ in range(CLIENTS)]:
                work.result()
        for session in sessions:
            session.judge()
            count += len(session.ops)
    print(f"{count} operations, all explained")
