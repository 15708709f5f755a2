"""Clients that work on the same sessions while workers are killed: an order explains it all."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPException
from math import inf
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.provider import Provider
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.redis import RedisProvider
from flask_hybridsession.providers.sql import SqlProvider
from tests.overlap.web import Browser, Server
from tests.providers.sql.databases import emptied
from tests.servers import Server as Backend
from tests.servers import children, postgresql_url, running

from .clerks import hire, read_journals
from .history import UNKNOWN, Op, State, explains, smallest, story
from .test_disk_full import SMALL, fill_up, make_room
from .test_uwsgi import program as uwsgi

SITE = Path(__file__).with_name("site_history.py")
#: Sessions of a round, clients of each, and requests of a client.
SESSIONS, CLIENTS, REQUESTS = 6, 3, 12
KINDS = ["put", "put", "add", "add", "drop", "read", "read", "read", "rename", "login"]
ENDS = ["logout", "clear"]


class Uwsgi:
    """The same app under uWSGI: its workers are made by a fork that Python knows nothing of."""

    def __init__(self, backend: Backend) -> None:
        assert backend._process is not None
        self.port = backend.port
        self._master = backend._process.pid

    def workers(self) -> list[int]:
        return children(self._master)


@contextmanager
def under_uwsgi(folder: Path) -> Iterator[Uwsgi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OVERLAP_FOLDER", str(folder))
        patch.setenv("OVERLAP_PROVIDER", "hybrid")
        patch.setenv("OVERLAP_URL", "")
        asked = uwsgi("--processes", "3", "--threads", "4", site=SITE.stem, ready="/begin")
        with running(asked) as backend:
            yield Uwsgi(backend)


@pytest.fixture(scope="module", params=["hybrid", "hybrid, uwsgi", "redis", "sql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "hybrid, uwsgi":
        with under_uwsgi(tmp_path_factory.mktemp("s")) as server:
            yield server
        return
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

    def __init__(self, server: Server | Uwsgi, seed: int) -> None:
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
def killed(server: Server | Uwsgi, seed: int) -> Iterator[None]:
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
    server: Server | Uwsgi, rounds: Callable[[int], Iterator[int]]
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


# The providers themselves


class Firm:
    """Processes that work on a provider, and what goes wrong for them meanwhile."""

    def __init__(self, make: Callable[[], Provider], folder: Path, stretch: float) -> None:
        self.make = make
        self.folder = folder
        self.stretch = stretch
        self.hired = 0
        self.pids: list[int] = []

    def hire(self, until: float) -> None:
        self.hired += 1
        name = f"{self.hired:06}"
        self.pids.append(hire(self.make, self.folder, name, self.stretch, until))

    def kill(self, pid: int) -> None:
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGKILL)

    def end(self) -> None:
        for pid in self.pids:
            assert os.waitpid(pid, 0)[1] == 0

    def judge(self) -> int:
        count = 0
        for ops in read_journals(self.folder):
            count += len(ops)
            if not explains(State(None), ops):
                few = story(smallest(State(None), ops))
                pytest.fail(f"no order explains:\n{few}\n\nAll of it:\n{story(ops)}")
        return count


class Copies:
    """Older files of a store, put in the place of those that are there."""

    def __init__(self, directory: Path, folder: Path) -> None:
        self.directory = directory
        self.folder = folder
        self.again_at = 0.0
        folder.mkdir()

    def __call__(self, random_: random.Random) -> None:
        if time.monotonic() < self.again_at:
            return  # two at once, and nothing tells what was there
        self.again_at = time.monotonic() + 0.4
        name = random_.choice(["log", "image", "image-lock", "sync"])
        old = self.folder / name
        if old.exists() and name != "sync":
            old.replace(self.directory / name)
        with suppress(FileNotFoundError):
            shutil.copy(self.directory / name, old)


class Fills:
    """A file system that is full now and then."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount

    def __call__(self, random_: random.Random) -> None:
        fill_up(self.mount)
        time.sleep(random_.uniform(0.01, 0.1))
        make_room(self.mount)


@contextmanager
def small_file_system(path: Path) -> Iterator[Path]:
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "none", str(path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def nothing(_: random.Random) -> None:
    """Only workers are killed."""


PLACES = [
    *("hybrid", "hybrid, older files", "hybrid, full disk"),
    *("redis", "redis, frozen"),
    "postgresql",
]


@pytest.fixture(params=PLACES)
def place(
    request: pytest.FixtureRequest, fast_path: Path, tmp_path: Path
) -> Iterator[tuple[Callable[[], Provider], float, Callable[[random.Random], None]]]:
    """How a provider is made; how long clerks work on one session; and what goes wrong."""
    if request.param != "hybrid, full disk":
        yield _place(request, fast_path, tmp_path)
        return
    with small_file_system(fast_path / "full") as mount:
        make = partial(HybridProvider, mount / "store", compact_bytes=50_000, compact_factor=1.1)
        yield make, 0.01, Fills(mount)


def _place(
    request: pytest.FixtureRequest, fast_path: Path, tmp_path: Path
) -> tuple[Callable[[], Provider], float, Callable[[random.Random], None]]:
    kind, _, fault = request.param.partition(", ")
    if kind == "hybrid":
        directory = fast_path / "sessions"
        make = partial(HybridProvider, directory, compact_bytes=200_000, compact_factor=1.1)
        copies = Copies(directory, fast_path / "older")
        return make, 0.01, copies if fault else nothing
    if kind == "postgresql":
        url = postgresql_url(request.getfixturevalue("postgresql_server"))
        emptied(url).close()
        return partial(SqlProvider, url, budget=20.0), 0.04, nothing
    server: Backend = request.getfixturevalue("redis_server")
    make = partial(
        RedisProvider, f"redis://{server.address}/0", key_prefix=f"{tmp_path.name}:", budget=2.0
    )

    def freeze(random_: random.Random) -> None:
        server.freeze()
        time.sleep(random_.uniform(0.01, 0.3))
        server.thaw()

    return make, 0.02, freeze if fault else nothing


def test_an_order_explains_what_providers_do(
    place: Any, fast_path: Path, rounds: Callable[[int], Iterator[int]], minutes: float
) -> None:
    make, stretch, fault = place
    count = 0
    for seed in rounds(1):
        random_ = random.Random(seed)
        folder = fast_path / f"journals-{seed}"
        folder.mkdir()
        firm = Firm(make, folder, stretch)
        until = time.monotonic() + (10 if minutes else 1.5)
        for _ in range(3):
            firm.hire(until)
        while time.monotonic() < until - 0.3:
            time.sleep(random_.uniform(0.02, 0.2))
            fault(random_)
            if random_.random() < 0.5:
                firm.kill(random_.choice(firm.pids))
                firm.hire(until)
        firm.end()
        count += firm.judge()
        shutil.rmtree(folder)
        print(f"{count} operations, all explained")
    assert count > 100
