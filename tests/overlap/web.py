"""A real server, and clients that treat their cookie as a browser does."""

from __future__ import annotations

import http.client
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).with_name("app.py")
#: Seconds that nobody waits in a test that passes.
LONG = 30.0

pool = ThreadPoolExecutor(64)


def wait_for(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up, f"waited {LONG} s for {what}"
        time.sleep(0.01)


class Server:
    """gunicorn with an app, this folder's, on a socket that listens before it starts."""

    def __init__(
        self, folder: Path, provider: str, *flags: str, url: str = "", site: Path = SITE
    ) -> None:
        self.folder = folder
        self.ahead = 0.0
        self._log = folder / "log"
        (folder / "clock").write_bytes(bytes(8))
        (folder / "expired").touch()
        with (
            socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
            self._log.open("wb") as log,
        ):
            self.port: int = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--chdir", str(site.parent)),
                    *("--bind", f"fd://{listener.fileno()}", "--no-control-socket"),
                    *("--graceful-timeout", "5", "--keep-alive", "1", *flags, f"{site.stem}:app"),
                ],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OVERLAP_FOLDER": str(folder),
                    "OVERLAP_PROVIDER": provider,
                    "OVERLAP_URL": url,
                    "OVERLAP_WARM": "1" if "--preload" in flags else "",
                },
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def now(self) -> float:
        """What the workers' clock says."""
        return time.time() + self.ahead

    def advance(self, seconds: float) -> None:
        """Move the clock of all workers."""
        self.ahead += seconds
        with (self.folder / "clock").open("r+b") as file:
            file.write(struct.pack("d", self.ahead))

    def workers(self) -> set[int]:
        """The process ids of those that run."""
        found = set()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == self.process.pid and fields[0] != "Z":
                found.add(int(stat.parent.name))
        return found

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # gunicorn's quick way
        try:
            self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            for pid in self.workers():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            raise


def watched(server: Server) -> Iterator[Server]:
    """For a fixture: nothing goes wrong behind the answers."""
    before = len(server.log())
    yield server
    log = server.log()[before:]
    assert "Traceback" not in log, log


class Answer(NamedTuple):
    status: int
    text: str
    #: The headers that set the session's cookie: its new value; empty: it is deleted.
    cookies: list[str]

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Browser:
    """One cookie, sent as it is when a request begins, and changed as answers arrive."""

    def __init__(self, server: Server, cookie: str = "", prefix: str = "") -> None:
        self.address = ("127.0.0.1", server.port)
        self.cookie = cookie
        self._server = server
        self._prefix = prefix

    def get(self, path: str, gate: Gate | None = None) -> Answer:
        """Any status is an answer. Raises ``OSError`` when there is none."""
        if gate is not None:
            path += f"{'&' if '?' in path else '?'}gate={gate.port}"
        with socket.create_connection(self.address, LONG) as line:
            line.sendall(self.request(path))
            return self.answer(line)

    def ok(self, path: str, gate: Gate | None = None) -> Any:
        """The JSON of an answer that went well."""
        answer = self.get(path, gate)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text[:500]}"
        return answer.json

    def with_cookie(self, cookie: str) -> Browser:
        """Another one, who has got hold of a cookie."""
        return Browser(self._server, cookie, self._prefix)

    def request(self, path: str) -> bytes:
        cookie = f"Cookie: session={self.cookie}\r\n" if self.cookie else ""
        lines = f"GET {self._prefix}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        return f"{lines}{cookie}\r\n".encode()

    def answer(self, line: socket.socket) -> Answer:
        """The next one on the line; it changes the cookie as soon as it is there."""
        with http.client.HTTPResponse(line) as response:
            response.begin()
            text = response.read().decode()
        found = list(map(_value, response.headers.get_all("Set-Cookie", [])))
        assert len(found) <= 1, "several cookies in one response"
        for value in found:
            self.cookie = value
        return Answer(response.status, text, found)


def _value(header: str) -> str:
    morsel = SimpleCookie(header)["session"]
    assert (morsel["max-age"] == "0") == (morsel.value == ""), header
    return morsel.value


class Gate:
    """Where views wait in the middle, until the test opens it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listener.settimeout(0.05)
        self._lines: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]

    def wait_for(self, count: int, *requests: Future[Answer]) -> None:
        """Until so many views are there; fails if one of the requests ends before."""
        give_up = time.monotonic() + LONG
        while len(self._lines) < count:
            try:
                line, _ = self._listener.accept()
            except TimeoutError:
                for ended in (request for request in requests if request.done()):
                    raise AssertionError(f"never came to the gate: {ended.result()}") from None
                assert time.monotonic() < give_up, f"waited {LONG} s for {count} at the gate"
            else:
                line.settimeout(LONG)
                assert line.recv(4) == b"here"
                self._lines.append(line)

    def open(self) -> None:
        """Let go of all that wait, and of those that still come."""
        self._listener.close()
        for line in self._lines:
            line.close()
        self._lines.clear()


@contextmanager
def held(browser: Browser, *paths: str) -> Iterator[list[Future[Answer]]]:
    """Requests that are each in the middle of their view while the ``with`` block runs."""
    gate = Gate()
    requests: list[Future[Answer]] = []
    try:
        requests += [pool.submit(browser.get, path, gate) for path in paths]
        gate.wait_for(len(paths), *requests)
        yield requests
        assert not any(request.done() for request in requests), "it did not wait"
    finally:
        gate.open()
    for request in requests:
        request.result(LONG)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What they returned, all started in the same moment."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait(LONG)
        return call()

    return [future.result(LONG) for future in [pool.submit(start, call) for call in calls]]


def send_all(browser: Browser, paths: list[str]) -> list[Answer]:
    """The answers, as they come, to requests that are all sent before the first is read."""
    answers: list[Answer] = []
    with ExitStack() as lines, selectors.DefaultSelector() as selector:
        for _ in paths:
            line = lines.enter_context(socket.create_connection(browser.address, LONG))
            selector.register(line, selectors.EVENT_READ)
        for key, path in zip(list(selector.get_map().values()), paths, strict=True):
            key.fileobj.sendall(browser.request(path))
        while len(answers) < len(paths):
            ready = selector.select(LONG)
            assert ready, f"{len(answers)} of {len(paths)} answers"
            for key, _ in ready:
                selector.unregister(key.fileobj)
                with key.fileobj:  # the server waits for it
                    answers.append(browser.answer(key.fileobj))
    return answers
