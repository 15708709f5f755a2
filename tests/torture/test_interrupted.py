"""An exception at any bytecode: a soft time limit, Ctrl-C, another thread's wish.

Whatever it interrupts, the next call is served, by this thread, by another one, and by another
process; and what was stored is the state before or after.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from flask import Flask

import flask_hybridsession
from flask_hybridsession import HybridSession, session
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import SessionGone
from flask_hybridsession.providers.hybrid import HybridProvider

NOW = 1_700_000_000.0
PACKAGE = str(Path(flask_hybridsession.__file__).parent)
#: Every so many of the bytecodes are tried; all with --torture-minutes.
STRIDE = 97


class Interrupted(BaseException):
    """From outside, as KeyboardInterrupt is."""


class Tracer:
    """Counts the distinct bytecodes of the package that a call runs, and raises at one of them."""

    def __init__(self, raise_at: int = -1) -> None:
        self.count = 0
        self.place = ""
        self._raise_at = raise_at
        self._seen: set[tuple[CodeType, int]] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if event == "call":
            if not code.co_filename.startswith(PACKAGE) and "contextlib" not in code.co_filename:
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode" and (code, frame.f_lasti) not in self._seen:
            self._seen.add((code, frame.f_lasti))
            self.count += 1
            if self.count == self._raise_at:
                self.place = f"{code.co_filename}:{frame.f_lineno} ({code.co_name})"
                raise Interrupted
        return self

    def run(self, work: Callable[[], object]) -> BaseException | None:
        """Run it; what it was interrupted by."""
        sys.settrace(self)
        try:
            work()
        except Interrupted as error:
            return error
        finally:
            sys.settrace(None)
        return None


def key(number: int) -> str:
    return f"{number:064x}"


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


class Scene:
    """A store, what is done with it, and how it must be afterwards."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        self.directory = directory
        self.provider = HybridProvider(directory, **options)
        self.provider.commit(key(1), Change(create=True, puts={"n": b"0"}, user="ada"), NOW)
        self.number = 1

    def prepare(self) -> None:
        self.number += 1
        self.old = key(self.number)
        self.provider.commit(
            self.old, Change(create=True, puts={"n": b"0"}, deadline=NOW + 1000, user="ada"), NOW
        )
        self.next = key(1_000_000 + self.number)

    def load(self) -> None:
        assert self.provider.load(self.old, NOW) is not None

    def commit(self) -> None:
        self.provider.commit(self.old, Change({"n": b"1"}, deadline=NOW + 2000), NOW)

    def create(self) -> None:
        self.provider.commit(self.next, Change(create=True, puts={"n": b"1"}, user="ada"), NOW)

    def gone(self) -> None:
        with pytest.raises(SessionGone):
            self.provider.commit(self.next, Change({"n": b"1"}), NOW)

    def rename(self) -> None:
        self.provider.rename(self.old, self.next, NOW, NOW + 15)

    def destroy(self) -> None:
        self.provider.destroy(self.old)

    def purge(self) -> None:
        self.provider.purge(NOW + 1500, 10)

    def lock(self) -> None:
        with self.provider.lock(self.old, 0.2, 0.1):
            pass

    def list(self) -> None:
        list(self.provider.keys(NOW))
        self.provider.keys_of("ada", NOW)
        self.provider.count(NOW)

    def open(self) -> None:
        self.provider._store._shut()
        self.provider.load(self.old, NOW)

    def recover(self) -> None:
        self.provider._store._shut()
        (self.directory / "image").unlink(missing_ok=True)
        self.provider.load(self.old, NOW)

    def grow(self) -> None:
        self.provider._store._shut()  # else it would grow with every try
        self.provider.load(self.old, NOW)
        self.provider._store._grow()

    def compact(self) -> None:
        self.provider.compact()

    def others_may_write(self) -> bool:
        with open(self.directory / "lock", "rb") as file:
            try:
                flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def check_is_well(self) -> None:
        """It goes on here, in another thread, and the other processes are let in."""
        record = self.provider.load(self.old, NOW) or self.provider.load(self.next, NOW)
        assert record is None or record.values["n"] in (b"0", b"1")
        self.provider.commit(key(1), Change({"n": b"%d" % self.number}), NOW)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(self.provider.load, key(1), NOW).result(20) is not None
            other.submit(self.provider.commit, key(1), Change({"m": b"1"}), NOW).result(20)
        store = self.provider._store
        for lock in (store._turns, store._syncs, store._starts):
            wait_until(lock.is_free)  # the keeper may be at it
        with store.building():
            pass  # whoever compacts next is let in
        wait_until(self.others_may_write)
        record = self.provider.load(key(1), NOW)
        assert record is not None
        assert record.values["n"] == b"%d" % self.number


@pytest.fixture
def scene(tmp_path: Path, durability: str) -> Iterator[Scene]:
    scene = Scene(tmp_path / "sessions", {"durability": durability, "patience": 10.0})
    yield scene
    scene.provider.close()


WORKS = [
    "load", "commit", "create", "gone", "rename", "destroy", "purge", "lock", "list", "open",
    "recover", "grow", "compact",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # files left open
@pytest.mark.parametrize(
    ("durability", "kept"),
    [("interval", False), ("always", True)],
    ids=["let go of", "traceback kept"],
)
@pytest.mark.parametrize("work", WORKS)
def test_at_any_bytecode(scene: Scene, work: str, kept: bool, minutes: float) -> None:
    do = getattr(scene, work)
    scene.prepare()
    do()  # what is imported and made once
    scene.prepare()
    whole = Tracer()
    assert whole.run(do) is None
    assert whole.count > 20
    errors = []
    for number in range(1, whole.count + 1, 1 if minutes else STRIDE):
        scene.prepare()
        tracer = Tracer(number)
        error = tracer.run(do)
        if kept:
            errors.append(error)
        del error
        try:
            scene.check_is_well()
        except BaseException as problem:
            raise AssertionError(f"interrupted at {tracer.place}, bytecode {number}") from problem
    errors.clear()
    assert scene.provider.check() == []


@pytest.mark.parametrize("durability", ["always"])
def test_who_compacts_next_is_let_in(scene: Scene) -> None:
    """Nobody waits for that lock: what a kept traceback has in hand comes back all the same."""
    scene.prepare()
    scene.compact()
    places = []
    for number in range(1, 100):
        scene.prepare()
        tracer = Tracer(number)
        error = tracer.run(scene.compact)
        if tracer.place.endswith("(building)"):
            places.append(error)
            assert scene.provider.compact()
    assert len(places) > 3


class InRequests:
    """An app, a visitor, and the threads of others."""

    def __init__(self, app: Flask, sessions: HybridSession) -> None:
        self.app = app
        self.sessions = sessions
        self.client = app.test_client()
        self.count = 0

    def count_up(self) -> None:
        self.client.get("/count")

    def log_in(self) -> None:
        self.client.get("/login")

    def log_out(self) -> None:
        self.client.get("/logout")

    def end(self) -> None:
        self.sessions.destroy_user("ada")

    def check_is_well(self) -> None:
        before = int(self.client.get("/look").get_data())
        assert before in (0, self.count, self.count + 1), "it is the state before or after"
        assert self.client.get("/count").get_data() == b"%d" % (before + 1)
        self.count = before + 1
        with ThreadPoolExecutor(1) as other:
            client = self.app.test_client()
            assert other.submit(lambda: client.get("/login").get_data()).result(20) == b"ok"
            assert other.submit(lambda: client.get("/logout").get_data()).result(20) == b"ok"


@pytest.fixture(params=["memory", "hybrid"])
def requests(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InRequests]:
    app = Flask(__name__)
    app.config.update(SESSION_TYPE=request.param, SESSION_DIR=str(tmp_path / "sessions"))
    sessions = HybridSession(app)
    app.testing = True  # what interrupts a view is not caught

    @app.get("/look")
    def look() -> str:
        return str(session.get("n", 0))

    @app.get("/count")
    def count() -> str:
        session["n"] = session.get("n", 0) + 1
        return str(session["n"])

    @app.get("/login")
    def login() -> str:
        session.login("ada")
        return "ok"

    @app.get("/logout")
    def logout() -> str:
        session.logout()
        return "ok"

    yield InRequests(app, sessions)
    sessions.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("work", ["count_up", "log_in", "log_out", "end"])
def test_within_a_request(requests: InRequests, work: str, minutes: float) -> None:
    do = getattr(requests, work)
    requests.log_in()
    requests.check_is_well()
    do()
    requests.log_in()
    requests.check_is_well()
    whole = Tracer()
    assert whole.run(do) is None
    assert whole.count > 100
    for number in range(1, whole.count + 1, 1 if minutes else 3 * STRIDE):
        requests.log_in()
        requests.count = int(requests.client.get("/look").get_data())
        tracer = Tracer(number)
        tracer.run(do)
        try:
            requests.check_is_well()
        except BaseException as problem:
            raise AssertionError(f"interrupted at {tracer.place}, bytecode {number}") from problem
