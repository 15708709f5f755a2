"""uWSGI forks without Python's hooks, after it has loaded the app: all of its modes, with workers
killed, reloaded and cheaped. What was acknowledged is there, what was logged out is not.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.overlap.web import wait_for
from tests.servers import HOST, Program, Server, children, needs, running, says

from .crashes import opened

ROOT = Path(__file__).parents[2]
VISITORS = 6
#: Seconds of a short run.
SHORT = 3.0
MODES = {
    "default": ("--processes", "4"),
    "threads": ("--processes", "2", "--threads", "4"),
    "lazy-apps": ("--processes", "4", "--lazy-apps"),
    "cheaper": ("--processes", "4", "--cheaper", "1", "--cheaper-overload", "1"),
    "osafterfork": ("--processes", "4", "--py-call-osafterfork"),
}


def program(*options: str, site: str = "site_uwsgi", ready: str = "/look") -> Program:
    binary = str(Path(sys.prefix) / "bin" / "uwsgi")
    return Program(
        binary,
        "pip install uwsgi",
        lambda port, folder: [
            *(binary, "--master", "--need-app", "--die-on-term", "--disable-logging"),
            *("--virtualenv", sys.prefix, "--pythonpath", str(ROOT), "--chdir", str(ROOT)),
            *("--http-socket", f"{HOST}:{port}", "--module", f"tests.torture.{site}:app"),
            *options,
        ],
        lambda port: says(port, f"GET {ready} HTTP/1.0\r\n\r\n".encode(), b"HTTP/1.0 200"),
    )


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Iterator[Server]:
    monkeypatch.setenv("TORTURE_FOLDER", str(folder))
    needs(program())
    with running(program(*options)) as server:
        yield server
        output = (server._folder / "output").read_text(errors="replace")
    assert "Traceback" not in output, output
    assert "damaged" not in output, output
    assert not list((folder / "store").glob("damaged-*"))
    opened(folder / "store")


class Visitor:
    """One cookie. Knows what was acknowledged, and how often it was not told."""

    def __init__(self, port: int, cookie: str = "") -> None:
        self._port = port
        self.cookie = cookie
        self.done = self.unknown = 0
        self.wrong: list[str] = []

    def get(self, path: str) -> Any:
        """The answer; None: the worker died before it was there."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=30)
        try:
            connection.request("GET", path, headers={"Cookie": self.cookie} if self.cookie else {})
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if response.status != 200:
            self.wrong.append(f"{path} is a {response.status}")
            return None
        cookie = response.headers["Set-Cookie"]
        if cookie is not None:
            self.cookie = cookie.partition(";")[0]
        return json.loads(body)

    def count(self) -> None:
        answer = self.get("/count")
        if answer is None:
            self.unknown += 1
        else:
            self.done += 1

    def check(self) -> None:
        """The number in the session is that of the acknowledged counts."""
        answer = self.get("/look")
        if answer and not self.done <= answer["count"] <= self.done + self.unknown:
            self.wrong.append(f"{answer['count']}, but {self.done} + {self.unknown} were counted")

    def end(self) -> None:
        """Log out; whoever comes with the old cookie finds nothing."""
        old = self.cookie
        if self.get("/logout") is None:
            return
        for _ in range(4):
            self.cookie = old
            answer = self.get("/look")
            if answer and answer["count"]:
                self.wrong.append("it is there after its logout")


def visit(port: int, shared: Visitor, over: threading.Event, dice: random.Random) -> list[Visitor]:
    """Sessions of one's own, counted in and logged out, and one that is shared."""
    visitors = [together := Visitor(port, shared.cookie)]
    while not over.is_set():
        visitors.append(mine := Visitor(port))
        for _ in range(dice.randint(1, 12)):
            mine.count()
            together.count()
            if dice.random() < 0.3:
                mine.check()
        if mine.cookie:
            mine.check()
            if dice.random() < 0.7:
                mine.end()
    return visitors


def disturb(master: int, end: float, dice: random.Random) -> tuple[int, int]:
    """Kill workers at random, and now and then reload all of them."""
    kills = reloads = 0
    again_at = 0.0
    while time.monotonic() < end:
        time.sleep(dice.random() / 4)
        workers = children(master)
        if time.monotonic() > again_at:
            os.kill(master, signal.SIGHUP)
            reloads += 1
            time.sleep(0.7)
            # It starts itself anew, and has no handler until then: another SIGHUP would end it.
            again_at = time.monotonic() + dice.uniform(4, 8)
        elif workers:
            with suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
            kills += 1
    return kills, reloads


def at_once(works: list[Callable[[], list[Visitor]]], meanwhile: Callable[[], Any]) -> list[Any]:
    found: list[Visitor] = []
    threads = [threading.Thread(target=lambda work=work: found.extend(work())) for work in works]
    for thread in threads:
        thread.start()
    try:
        told = meanwhile()
    finally:
        over.set()
    for thread in threads:
        thread.join()
    return [told, found]


over = threading.Event()


@pytest.mark.parametrize("touched", [False, True], ids=["loaded", "used in the master"])
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_lost(
    mode: str,
    touched: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    torture_seed: int,
) -> None:
    if touched:
        monkeypatch.setenv("TORTURE_TOUCH", "1")
    over.clear()
    dice = random.Random(torture_seed)
    with serving(tmp_path, monkeypatch, *MODES[mode]) as server:
        assert server._process is not None
        master, port = server._process.pid, server.port
        shared = Visitor(port)
        while not shared.cookie:
            shared.count()
        end = time.monotonic() + (60 * minutes or SHORT)
        works = [
            lambda part=part: visit(port, shared, over, random.Random(torture_seed + part))
            for part in range(VISITORS)
        ]
        (kills, reloads), visitors = at_once(works, lambda: disturb(master, end, dice))
        for other in visitors:
            if other.cookie == shared.cookie:
                shared.done += other.done
                shared.unknown += other.unknown
        wait_for(lambda: shared.wrong or shared.get("/look") is not None, "an answer")
        shared.check()
    wrong = [text for each in (shared, *visitors) for text in each.wrong]
    assert not wrong, (len(wrong), wrong[:10])
    done = sum(each.done for each in visitors)
    print(f"{done} counts, {kills} kills, {reloads} reloads")
    assert done > 100
    assert kills
    assert reloads


def test_a_master_that_only_loads_the_app_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch, "--processes", "1") as server:
        visitor = Visitor(server.port)
        visitor.count()
        assert visitor.get("/open") == {"files": []}
        assert (tmp_path / "store" / "log").exists(), "its worker has"


def test_a_master_that_used_the_store_has_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uWSGI forks without Python's lock: who is made while a thread has it waits for ever."""
    monkeypatch.setenv("TORTURE_TOUCH", "1")
    with serving(tmp_path, monkeypatch, "--processes", "1") as server:
        visitor = Visitor(server.port)
        visitor.count()
        assert visitor.get("/open")["files"], "it has opened them"
        assert server._process is not None
        (worker,) = children(server._process.pid)
        assert [tasks(server._process.pid), tasks(worker)] == [1, 3]


def tasks(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))
