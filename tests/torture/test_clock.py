"""C13: the wall clock is set, forth and back, under workers of a site.

Nobody sets the machine's clock here: a small library is preloaded into the workers.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, session

from flask_hybridsession import HybridSession
from flask_hybridsession.core import clock
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import opening, store
from flask_hybridsession.providers.hybrid.words import Words
from tests.providers.hybrid.tools import PATIENCE

ROOT = Path(__file__).parents[2]
HOUR, DAY = 3600.0, 86400.0
STEPS = (HOUR, DAY)
#: Seconds of a session that a test waits to see end.
SOON = 0.5


def serve(directory: str, config: str, boot: str) -> None:
    """A worker: reads requests from its input, one line each, and answers them."""
    if boot:
        opening.boot_id = store.boot_id = lambda: bytes.fromhex(boot)
    app = Flask(__name__)
    app.config.update(json.loads(config), SESSION_DIR=directory)
    sessions = HybridSession(app)

    @app.get("/count")
    def count() -> str:
        session["count"] = session.get("count", 0) + 1
        return str(session["count"])

    @app.get("/read")
    def read() -> str:
        return str(session.get("count"))

    @app.get("/logout")
    def logout() -> str:
        session.destroy()
        return "gone"

    @app.get("/left")
    def left() -> str:
        """Seconds that the session has, counted from when it was made."""
        return str((session.expires - session.created).total_seconds())

    @app.get("/sweep")
    def sweep() -> str:
        clockwork.tick()  # what its thread does when it wakes
        return str(sessions.count())

    @app.get("/clock")
    def now() -> str:
        return str(clock.now())

    for line in sys.stdin:
        path, cookie = json.loads(line)
        client = app.test_client(use_cookies=False)
        answer = client.get(path, headers={"Cookie": cookie} if cookie else {})
        given = answer.headers.get("Set-Cookie", "").partition(";")[0]
        print(json.dumps([answer.status_code, answer.text, given]), flush=True)
    sessions.close()


class Site:
    """Two workers, and the clock that both of them read."""

    def __init__(self, path: Path, library: Path, **config: Any) -> None:
        self._clock = path / "clock"
        self._clock.write_bytes(bytes(8))
        env = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_FILE": str(self._clock)}
        self.store = path / "store"
        self._command = [sys.executable, "-m", __name__, str(self.store), json.dumps(config)]
        self._boot = ""
        self._env = env
        self.workers: list[subprocess.Popen[str]] = []
        for _ in range(2):
            self.start()

    def start(self) -> None:
        """One more worker."""
        worker = subprocess.Popen(
            [*self._command, self._boot],
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.workers.append(worker)

    def reboot(self) -> None:
        """All workers end; others start when the machine is up again."""
        self.stop()
        self._boot = os.urandom(16).hex()
        self.start()

    def stop(self) -> None:
        self.close()
        self.workers.clear()

    def clocks(self) -> list[float]:
        """By how many seconds each worker's clock is ahead of that of this process."""
        return [
            float(self.get("/clock", worker=number)[0]) - time.time()
            for number in range(len(self.workers))
        ]

    def set_clock(self, seconds: float) -> None:
        """The wall clock is wrong by so much."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("d", seconds))

    def get(self, path: str, cookie: str = "", worker: int = 0) -> tuple[str, str]:
        process = self.workers[worker]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([path, cookie]) + "\n")
        process.stdin.flush()
        status, text, given = json.loads(process.stdout.readline())
        assert status == 200, text
        return text, given

    def visit(self) -> str:
        """A new session: its cookie."""
        text, cookie = self.get("/count")
        assert text == "1"
        return cookie

    def all_read(self, cookie: str) -> set[str]:
        """What the workers say of a session."""
        return {self.get("/read", cookie, number)[0] for number in range(len(self.workers))}

    def sweep(self) -> int:
        """Destroy what the workers believe to be due; how many sessions are left."""
        return [int(self.get("/sweep", worker=number)[0]) for number in range(2)][-1]

    def close(self) -> None:
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.close()
        for worker in self.workers:
            assert worker.wait(PATIENCE) == 0
            assert worker.stdout is not None
            worker.stdout.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("there is no C compiler (cc)")
        pytest.skip("there is no C compiler (cc)")
    built = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", built, source, "-ldl"]
    subprocess.run(command, check=True)
    return built


@pytest.fixture
def config() -> dict[str, Any]:
    return {"SESSION_EXPIRES": HOUR / 2}


@pytest.fixture
def site(tmp_path: Path, library: Path, config: dict[str, Any]) -> Iterator[Site]:
    site = Site(tmp_path, library, **config)
    yield site
    site.close()


short = pytest.mark.parametrize("config", [{"SESSION_EXPIRES": SOON}])


def wait_until_over() -> None:
    """Until every short session is past its time, whatever clocks say."""
    began = time.monotonic()
    while time.monotonic() < began + SOON:
        time.sleep(0.01)


def test_the_clock_is_another_one(site: Site) -> None:
    """The tests below are about something: the wall clock can be set, and it alone."""
    site.set_clock(-DAY)
    code = "import time; print(time.time(), time.monotonic())"
    texts = subprocess.run(
        [sys.executable, "-c", code], env=site._env, capture_output=True, text=True, check=True
    ).stdout.split()
    assert abs(float(texts[0]) + DAY - time.time()) < PATIENCE
    assert abs(float(texts[1]) - time.monotonic()) < PATIENCE


def test_c13_forward_ends_no_session(site: Site) -> None:
    cookies = [site.visit() for _ in range(5)]
    for step in STEPS:
        site.set_clock(step)
        assert site.sweep() == 5
        assert {text for cookie in cookies for text in site.all_read(cookie)} == {"1"}
    site.start()
    assert site.all_read(cookies[0]) == {"1"}, "of one who starts now, too"


def test_c13_forward_and_back_ends_no_session(site: Site) -> None:
    cookie = site.visit()
    for step in STEPS:
        site.set_clock(step)
        site.sweep()
        site.set_clock(0.0)
        assert site.all_read(cookie) == {"1"}


def test_c13_forward_and_back_between_two_sweeps_ends_no_session(site: Site) -> None:
    cookie = site.visit()
    for step in STEPS:
        site.set_clock(step)
        site.get("/read")
        site.set_clock(0.0)
        assert site.sweep() == 1
        assert site.all_read(cookie) == {"1"}


@pytest.mark.parametrize("config", [{"SESSION_EXPIRES": 7 * DAY, "SESSION_IDLE_TIMEOUT": 2 * DAY}])
def test_c13_what_lives_for_longer_than_the_step_lives_on(site: Site) -> None:
    cookie = site.visit()
    for wrong in (HOUR, -HOUR, 0.0, DAY, 0.0, -DAY):
        site.set_clock(wrong)
        assert site.sweep() == 1
        assert site.all_read(cookie) == {"1"}


@short
def test_c13_back_revives_nothing_that_was_swept(site: Site) -> None:
    cookie, gone = site.visit(), site.visit()
    assert site.get("/logout", gone)[0] == "gone"
    wait_until_over()
    assert site.sweep() == 0
    for step in STEPS:
        site.set_clock(-step)
        assert site.all_read(cookie) == {"None"}
        assert site.all_read(gone) == {"None"}


@short
def test_c13_back_revives_nothing_that_was_over(site: Site) -> None:
    """Also if the clockwork has not come to it yet."""
    cookie = site.visit()
    wait_until_over()
    assert site.all_read(cookie) == {"None"}
    for step in STEPS:
        site.set_clock(-step)
        assert site.all_read(cookie) == {"None"}


@short
def test_c13_back_makes_no_session_longer(site: Site) -> None:
    cookies = []
    for step in STEPS:
        cookies.append(site.visit())
        site.set_clock(-step)
    wait_until_over()
    assert {text for cookie in cookies for text in site.all_read(cookie)} == {"None"}


def test_c13_those_who_start_later_agree_with_those_before(site: Site) -> None:
    cookie = site.visit()
    for wrong in (DAY, -DAY, HOUR, -HOUR):
        site.set_clock(wrong)
        site.start()
        assert all(abs(ahead) < HOUR / 2 for ahead in site.clocks())
        assert site.get("/sweep", worker=len(site.workers) - 1)[0] == "1"
        assert site.all_read(cookie) == {"1"}
        newest, _ = site.get("/count", cookie, len(site.workers) - 1)
        assert site.all_read(cookie) == {newest}
        site.get("/logout", cookie)
        cookie = site.visit()


@short
def test_c13_the_session_of_one_who_starts_later_ends_for_all(site: Site) -> None:
    site.visit()
    for wrong in (DAY, -DAY):
        site.set_clock(wrong)
        site.start()
        text, cookie = site.get("/count", worker=len(site.workers) - 1)
        assert text == "1"
        wait_until_over()
        assert site.all_read(cookie) == {"None"}


def test_c13_without_the_shared_numbers_the_live_ones_pass_their_clock_on(site: Site) -> None:
    cookie = site.visit()
    site.all_read(cookie)
    site.set_clock(DAY)
    (site.store / "sync").unlink()
    assert site.get("/count", cookie)[0] == "2"  # a writer notices
    site.start()
    assert all(abs(ahead) < HOUR for ahead in site.clocks())
    assert site.sweep() == 1
    assert site.all_read(cookie) == {"2"}


def test_c13_without_workers_and_shared_numbers_the_wall_clock_counts(site: Site) -> None:
    """The way to put the clock right without a reboot."""
    cookie = site.visit()
    site.set_clock(DAY)
    site.stop()
    (site.store / "sync").unlink()
    site.start()
    assert all(abs(ahead - DAY) < HOUR / 2 for ahead in site.clocks())
    assert site.all_read(cookie) == {"None"}


@pytest.mark.parametrize("wrong", [DAY, -DAY])
def test_c13_after_a_reboot_the_wall_clock_counts_anew(site: Site, wrong: float) -> None:
    cookie = site.visit()
    site.set_clock(wrong)
    site.reboot()
    site.start()
    assert all(abs(ahead - wrong) < HOUR / 2 for ahead in site.clocks())
    assert site.all_read(cookie) == {"None" if wrong > 0 else "1"}
    site.set_clock(0.0)
    assert all(abs(ahead - wrong) < HOUR / 2 for ahead in site.clocks())
    site.reboot()
    assert all(abs(ahead) < HOUR / 2 for ahead in site.clocks())


def test_c13_a_damaged_anchor_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that the shared numbers say, only this one would end sessions when it is wrong."""
    path = tmp_path / "sync"
    words = Words(str(path))
    words.new_boot(b"one of many boot")
    monkeypatch.setattr(clock, "_anchor", 1000.0)
    assert words.anchor() == 1000.0
    monkeypatch.setattr(clock, "_anchor", 2000.0)
    assert Words(str(path)).anchor() == 1000.0
    sound = path.read_bytes()
    kept = 0
    for bit in range(8 * 64):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        told = Words(str(path)).anchor()
        assert told in (1000.0, 2000.0)
        kept += told == 1000.0
    assert kept == 6 * 64, "all but those of the anchor and its complement"


@pytest.mark.parametrize(
    "config",
    [{"SESSION_EXPIRES": 2 * DAY, "SESSION_IDLE_TIMEOUT": 2 * DAY, "SESSION_TOUCH_EVERY": 1}],
)
def test_c13_use_under_a_wrong_clock_moves_no_absolute_limit(site: Site) -> None:
    cookie = site.visit()
    for wrong in (HOUR, -HOUR, DAY, -DAY, 0.0):
        site.set_clock(wrong)
        site.get("/count", cookie)
        assert float(site.get("/left", cookie)[0]) <= 2 * DAY


if __name__ == "__main__":
    serve(*sys.argv[1:])
