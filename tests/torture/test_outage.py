"""Redis killed, frozen and back again, under four gunicorn workers: what their visitors get."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import pytest
from flask import Flask, request
from flask import session as flask_session
from redis import Redis

from flask_hybridsession import HybridSession, on_outage
from flask_hybridsession.core.ids import key_of
from flask_hybridsession.core.provider import Remote
from tests.overlap.web import Gate, pool, wait_for
from tests.servers import HOST, REDIS, Server, free_port, running, says

ROOT = Path(__file__).parents[2]
WORKERS = 4
LONG = 30.0
#: What the settings ask for by default.
BUDGET = 0.25
#: Seconds that a busy machine may add to the median; who waits for a store waits for longer.
BUSY = 0.05

#: Workers in which a request that waits keeps no other from being answered.
KINDS = {
    "gthread": ("--threads", "8"),
    "gevent": ("--worker-class", "gevent", "--preload"),
}

#: Redis that has after a crash what it acknowledged before.
DURABLE = REDIS._replace(
    command=lambda port, folder: [
        *("redis-server", "--bind", HOST, "--port", str(port), "--dir", str(folder)),
        *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
    ]
)


# -- the app, in the workers ---------------------------------------------------------------------

session: Any = flask_session


def closed(error: Exception) -> tuple[str, int]:
    return "closed", 502


ACTIONS: dict[str, Callable[[], Any]] = {
    "logout": lambda: session.logout(),
    "everywhere": lambda: session.logout(everywhere=True),
    "destroy": lambda: session.destroy(),
    "regenerate": lambda: session.regenerate(),
    "login": lambda: session.login("another"),
    "write": lambda: session.update(n=1, m=1),
}


class Signed:
    """Says in each answer which worker gave it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], *rest)

        return self._app(environ, start)


def make_app() -> Flask:
    app = Flask(__name__)
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=os.environ["OUTAGE_REDIS"])
    sessions = HybridSession(app)
    app.wsgi_app = Signed(app.wsgi_app)  # type: ignore[method-assign]

    def seen() -> dict[str, Any]:
        return {"user": session.user_id, "n": session.get("n"), "m": session.get("m")}

    @app.get("/begin")
    def begin() -> dict[str, Any]:
        session.update(n=0, m=0)
        session.login(request.args["user"])
        return {}

    @app.get("/look")
    def look() -> dict[str, Any]:
        return seen()

    @app.get("/count")
    def count() -> dict[str, Any]:
        session.increment("n")
        return seen()

    @app.get("/free")
    def free() -> dict[str, Any]:
        return {}

    @app.get("/open")
    def is_open() -> dict[str, Any]:
        return {"open": cast(Remote, sessions.provider).breaker.is_open}

    @app.get("/ephemeral")
    @on_outage("ephemeral")
    def ephemeral() -> dict[str, Any]:
        return {"ephemeral": session.ephemeral, **seen()}

    @app.get("/function")
    @on_outage(closed)
    def function() -> dict[str, Any]:
        return seen()

    @app.get("/logout")
    def logout() -> dict[str, Any]:
        session.logout()
        return {}

    @app.get("/act/<action>")
    def act(action: str) -> dict[str, Any]:
        assert session.user_id
        with socket.create_connection((HOST, int(request.args["gate"])), LONG) as line:
            line.sendall(b"here")
            line.recv(1)
        ACTIONS[action]()
        return seen()

    return app


# -- the visitors --------------------------------------------------------------------------------


class Reply(NamedTuple):
    path: str
    status: int
    headers: http.client.HTTPMessage
    text: str
    begun: float
    ended: float

    @property
    def took(self) -> float:
        return self.ended - self.begun

    @property
    def worker(self) -> str:
        return str(self.headers["X-Worker"])

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Site:
    """The workers, and the Redis that their sessions are in."""

    def __init__(self, redis: Server, port: int) -> None:
        self.redis = redis
        self.port = port

    def visit(self, path: str, cookie: str = "") -> Reply:
        begun = time.monotonic()
        line = http.client.HTTPConnection(HOST, self.port, timeout=LONG)
        try:
            line.request("GET", path, headers={"Cookie": cookie} if cookie else {})
            answer = line.getresponse()
            text = answer.read().decode()
            return Reply(path, answer.status, answer.headers, text, begun, time.monotonic())
        finally:
            line.close()

    def begin(self, user: str) -> str:
        """The cookie of a new session."""
        replies: list[Reply] = []

        def begun() -> bool:  # on a busy machine a healthy server may be too slow
            replies.append(self.visit(f"/begin?user={user}"))
            return replies[-1].status == 200

        wait_for(begun, "a session")
        return str(replies[-1].headers["Set-Cookie"]).partition(";")[0]

    def of_each_worker(self, path: str, cookie: str = "") -> list[Reply]:
        """Answers until there is one of each worker."""
        replies: list[Reply] = []

        def complete() -> bool:
            replies.extend(pool.map(lambda _: self.visit(path, cookie), range(8)))
            return len({reply.worker for reply in replies}) == WORKERS

        wait_for(complete, "an answer of each worker")
        return replies

    def all_open(self) -> bool:
        return all(reply.json["open"] for reply in self.of_each_worker("/open"))

    def all_open_after_visits(self, cookie: str) -> bool:
        self.of_each_worker("/look", cookie)
        return self.all_open()

    def all_serve(self, cookie: str) -> bool:
        return all(reply.status == 200 for reply in self.of_each_worker("/look", cookie))

    def sessions(self) -> int:
        """How many Redis has."""
        with socket.create_connection((HOST, self.redis.port), LONG) as line:
            line.sendall(b"ZCARD session:@due\r\n")
            return int(line.recv(64).strip().lstrip(b":"))

    @contextmanager
    def away(self, fault: str) -> Iterator[None]:
        FAULTS[fault].begin(self.redis)
        try:
            yield
        finally:
            FAULTS[fault].end(self.redis)

    @contextmanager
    def struck(self, path: str, cookie: str, fault: str) -> Iterator[Reply]:
        """The answer to a request that had Redis at first and lost it in the middle of its view."""
        gate = Gate()
        try:
            visit = pool.submit(self.visit, f"{path}?gate={gate.port}", cookie)
            gate.wait_for(1, cast(Any, visit))
            with self.away(fault):
                gate.open()
                yield visit.result(LONG)
        finally:
            gate.open()


@contextmanager
def site(folder: Path, kind: str) -> Iterator[Site]:
    with running(DURABLE) as redis, ExitStack() as after:
        port = free_port()
        command = [
            *(sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), *KINDS[kind]),
            *("--bind", f"{HOST}:{port}", "tests.torture.test_outage:make_app()"),
        ]
        url = f"redis://{HOST}:{redis.port}/0"
        with (folder / "output").open("wb") as output:
            server = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "OUTAGE_REDIS": url},
                stdout=output,
                stderr=output,
            )
        after.callback(server.wait)
        after.callback(server.send_signal, signal.SIGINT)
        wait_for(lambda: says(port, b"GET /free HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"), "gunicorn")
        made = Site(redis, port)
        made.of_each_worker("/free")
        yield made


@pytest.fixture(scope="module", params=KINDS)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("outage"), request.param) as made:
        yield made


class Fault(NamedTuple):
    begin: Callable[[Server], None]
    end: Callable[[Server], None]


FAULTS = {
    "killed": Fault(lambda redis: redis.kill(), lambda redis: redis.start()),
    "frozen": Fault(lambda redis: redis.freeze(), lambda redis: redis.thaw()),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(shared: Site) -> Iterator[Site]:
    """The site, with Redis there and every worker knowing it."""
    cookie = shared.begin("a-first-visitor")
    yield shared
    wait_for(lambda: shared.all_serve(cookie), "all workers to serve again")


# -- the rows ------------------------------------------------------------------------------------


def test_a_read_that_fails(here: Site, fault: str) -> None:
    cookie = here.begin("ada")
    with here.away(fault):
        for reply in here.of_each_worker("/look", cookie):
            assert (reply.status, reply.headers["Set-Cookie"]) == (503, None)
            assert int(reply.headers["Retry-After"]) > 0
        for reply in here.of_each_worker("/free", cookie):
            assert (reply.status, reply.headers["Set-Cookie"]) == (200, None)
        for reply in here.of_each_worker("/ephemeral", cookie):
            assert (reply.status, reply.headers["Set-Cookie"]) == (200, None)
            assert reply.json == {"ephemeral": True, "user": None, "n": None, "m": None}
        for reply in here.of_each_worker("/function", cookie):
            assert (reply.status, reply.text) == (502, "closed")
    wait_for(lambda: here.all_serve(cookie), "all workers to serve again")
    for reply in here.of_each_worker("/ephemeral", cookie):
        assert reply.json == {"ephemeral": False, "user": "ada", "n": 0, "m": 0}


def test_a_write_that_fails(here: Site, fault: str) -> None:
    cookie = here.begin("ada")
    with here.struck("/act/write", cookie, fault) as reply:
        assert (reply.status, reply.headers["Set-Cookie"]) == (503, None)
        new = here.visit("/begin?user=eve")
        assert (new.status, new.headers["Set-Cookie"]) == (503, None)
    wait_for(lambda: here.all_serve(cookie), "all workers to serve again")
    seen = {(reply.json["n"], reply.json["m"]) for reply in here.of_each_worker("/look", cookie)}
    # What a frozen server finds in its inbox it does later: whole.
    assert seen in ({(0, 0)}, {(1, 1)})
    if fault == "killed":
        assert seen == {(0, 0)}


@pytest.mark.parametrize("action", ["logout", "everywhere", "destroy"])
def test_a_destroy_that_fails(here: Site, fault: str, action: str) -> None:
    cookie = here.begin("ada")
    with here.struck(f"/act/{action}", cookie, fault) as reply:
        assert (reply.status, reply.headers["Set-Cookie"]) == (503, None)
        assert {other.status for other in here.of_each_worker("/look", cookie)} == {503}
    by_that_worker: list[Reply] = []

    def nobody_is_logged_in() -> bool:
        found = here.of_each_worker("/look", cookie)
        by_that_worker.extend(other for other in found if other.worker == reply.worker)
        return all(other.status == 200 and other.json["user"] is None for other in found)

    wait_for(nobody_is_logged_in, "the session to end for all workers")
    for other in by_that_worker:
        assert other.status == 503 or other.json["user"] is None


@pytest.mark.parametrize("action", ["regenerate", "login"])
def test_a_new_id_that_fails(here: Site, fault: str, action: str) -> None:
    cookie = here.begin("ada")
    before = here.sessions()
    with here.struck(f"/act/{action}", cookie, fault) as reply:
        assert (reply.status, reply.headers["Set-Cookie"]) == (503, None)
    wait_for(lambda: here.all_serve(cookie), "all workers to serve again")
    seen = {reply.json["user"] for reply in here.of_each_worker("/look", cookie)}
    assert here.sessions() == before, "old xor new"
    assert seen in ({"ada"}, {None})
    if fault == "killed":
        assert seen == {"ada"}


def test_logged_out_while_nobody_can_tell(here: Site, fault: str) -> None:
    """The breakers are open: the session cannot even be loaded. On recovery it goes, unvisited."""
    before = here.sessions()
    cookies = [here.begin(f"user-{number}") for number in range(12)]
    with here.away(fault):
        wait_for(lambda: here.all_open_after_visits(cookies[0]), "all breakers to open")
        for cookie in cookies[1:]:
            assert here.visit("/logout", cookie).status == 503
    wait_for(lambda: here.sessions() == before + 1, "those that were to end to be destroyed")
    wait_for(lambda: here.all_serve(cookies[0]), "all workers to serve again")
    for cookie in cookies[1:]:
        assert here.visit("/look", cookie).json["user"] is None
    assert here.visit("/look", cookies[0]).json["user"] == "user-0"


# -- under load ----------------------------------------------------------------------------------


def test_what_cannot_be_read_concerns_its_session_only(here: Site) -> None:
    spoiled, other = here.begin("ada"), here.begin("eve")
    sid = spoiled.partition("=")[2]
    with Redis(HOST, here.redis.port) as client:
        client.hset(f"session:{key_of(sid)}", "m", b"no times")
    for reply in here.of_each_worker("/look", spoiled):
        assert reply.status == 200
        assert reply.json == {"user": None, "n": None, "m": None}
    for reply in here.of_each_worker("/look", other):
        assert reply.json == {"user": "eve", "n": 0, "m": 0}
    again = here.visit("/begin?user=ada", spoiled)
    assert again.status == 200
    assert str(again.headers["Set-Cookie"]).partition(";")[0] != spoiled
    assert not any(reply.json["open"] for reply in here.of_each_worker("/open"))


class Load:
    """Visitors who come again and again, each with a session of his own; some need none."""

    def __init__(self, site: Site, looking: int = 6, free: int = 2) -> None:
        self._site = site
        self._over = threading.Event()
        self.cookies = [site.begin(f"user-{number}") for number in range(looking)]
        self.replies: list[tuple[int, Reply]] = []
        self._threads = ThreadPoolExecutor(looking + free)
        self._tasks = [self._threads.submit(self._look, number) for number in range(looking)]
        self._tasks += [self._threads.submit(self._free) for _ in range(free)]

    def _look(self, number: int) -> None:
        while not self._over.is_set():
            for path in ("/look", "/count"):
                self.replies.append((number, self._site.visit(path, self.cookies[number])))

    def _free(self) -> None:
        while not self._over.is_set():
            self.replies.append((-1, self._site.visit("/free")))
            time.sleep(0.005)

    def stop(self) -> None:
        self._over.set()
        for task in self._tasks:
            task.result(LONG)
        self._threads.shutdown()

    def between(self, begun: float, ended: float, session: bool) -> list[Reply]:
        return [
            reply
            for number, reply in list(self.replies)
            if (number >= 0) == session and begun <= reply.begun and reply.ended <= ended
        ]

    def lasts(self, count: int) -> None:
        enough = len(self.replies) + count
        wait_for(lambda: len(self.replies) >= enough, "answers")


def slowest(replies: list[Reply]) -> float:
    return max(reply.took for reply in replies)


def waited(replies: list[Reply]) -> list[float]:
    """How long those took that found out; others met a breaker that was open by then."""
    return [reply.took for reply in replies if reply.took >= BUDGET]


def test_how_long_it_takes(here: Site) -> None:
    """One visitor at a time, to a frozen Redis; the others' time is taken beside it."""
    cookie = here.begin("ada")
    until_open: list[Reply] = []
    with here.away("frozen"):
        free = [here.visit("/free") for _ in range(20)]
        while not here.all_open():
            until_open.append(here.visit("/look", cookie))
        once_open = [here.visit("/look", cookie) for _ in range(100)]
        free += [here.visit("/free") for _ in range(100)]
    assert {reply.status for reply in (*until_open, *once_open)} == {503}
    print(f"free: {figures(free)}")
    print(f"503 until open, the first {1000 * until_open[0].took:.1f}: {figures(until_open)}")
    print(f"503 once open: {figures(once_open)}")
    assert BUDGET <= until_open[0].took <= 2 * (BUDGET + slowest(free))
    assert median(waited(until_open)) <= BUDGET + 0.05
    assert median(r.took for r in once_open) <= 0.01 + 2 * median(r.took for r in free)


def test_under_load(here: Site, fault: str) -> None:
    load = Load(here)
    try:
        began = time.monotonic()
        load.lasts(400)
        healthy = time.monotonic()
        FAULTS[fault].begin(here.redis)
        lost = time.monotonic()
        wait_for(here.all_open, "all breakers to open")
        opened = time.monotonic()
        load.lasts(600)
        still = time.monotonic()
        FAULTS[fault].end(here.redis)
        wait_for(
            lambda: all(here.all_serve(cookie) for cookie in load.cookies), "all to be served again"
        )
        back = time.monotonic()
        load.lasts(400)
    finally:
        load.stop()
    end = time.monotonic()

    counts: dict[int, int] = {}
    for number, reply in load.replies:
        assert reply.headers["Set-Cookie"] is None
        assert reply.status in (200, 503), reply.text
        if number < 0:
            assert reply.status == 200
        elif reply.status == 200:
            assert reply.json["user"] == f"user-{number}", "never anonymous"
            counts[number] = max(counts.get(number, 0), reply.json["n"])
        else:
            assert int(reply.headers["Retry-After"]) > 0
    for begun, ended in ((began, healthy), (back, end)):
        served = [reply.status == 200 for reply in load.between(begun, ended, session=True)]
        assert sum(served) >= 0.95 * len(served), "but for what a busy machine delays"
    assert {reply.status for reply in load.between(lost, still, session=True)} == {503}
    for number, cookie in enumerate(load.cookies):
        # A count that was answered with a 503 may have been done all the same.
        assert here.visit("/look", cookie).json["n"] >= counts[number]

    free = {
        "before": load.between(began, healthy, session=False),
        "until open": load.between(lost, opened, session=False),
        "open": load.between(opened, still, session=False),
        "after": load.between(back, end, session=False),
    }
    first = load.between(lost, opened, session=True)
    quick = load.between(opened, still, session=True)
    for name, replies in free.items():
        print(f"{fault}: free, {name}: {figures(replies)}")
    print(f"{fault}: 503 until open: {figures(first)}")
    print(f"{fault}: 503 once open: {figures(quick)}")
    # What the machine is busy with costs every route the same; what a store costs, only some.
    if fault == "frozen":
        assert median(waited(first)) <= BUDGET + 0.05 + slowest(free["until open"])
    for replies, bound in (
        (first, 2 * (BUDGET + slowest(free["until open"]))),
        (quick, BUDGET + slowest(free["open"])),
    ):
        late = [reply for reply in replies if reply.took > bound]
        assert len(late) <= 1 + len(replies) // 100, "but for what a busy machine delays"
    assert median(r.took for r in quick) <= BUSY + 2 * median(r.took for r in free["open"])
    usual = median(reply.took for reply in free["before"])
    for name in ("until open", "open"):
        assert median(reply.took for reply in free[name]) <= BUSY + 3 * usual


def figures(replies: list[Reply]) -> str:
    times = sorted(1000 * reply.took for reply in replies)
    return (
        f"{len(times)} answers, ms: median {median(times):.1f}, "
        f"p99 {times[len(times) * 99 // 100]:.1f}, slowest {times[-1]:.1f}"
    )
