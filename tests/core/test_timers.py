from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flask_hybridsession.core import clock, timers
from flask_hybridsession.core.timers import LONGEST_PAUSE, LONGEST_SLEEP, SLICE, Clockwork
from flask_hybridsession.testing import FakeClock, fake_clock

__all__ = ["fake_clock"]

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"waited {seconds} s for {what}"
        time.sleep(0.005)


class Due:
    """Sessions that are nothing but deadlines."""

    def __init__(self, *deadlines: float) -> None:
        self.deadlines = sorted(deadlines)
        self.swept: list[tuple[float, float]] = []  # when, which
        self.limits: list[int] = []
        self.errors: list[Exception] = []

    def sweep(self, now: float, limit: int) -> int:
        self.limits.append(limit)
        if self.errors:
            raise self.errors[-1]
        due = [deadline for deadline in self.deadlines if deadline <= now][:limit]
        self.deadlines = self.deadlines[len(due) :]
        self.swept += [(now, deadline) for deadline in due]
        return len(due)

    def next_deadline(self) -> float | None:
        return self.deadlines[0] if self.deadlines else None


# -- one tick ------------------------------------------------------------------------------------


def test_it_sleeps_until_the_next_deadline(fake_clock: FakeClock) -> None:
    work, now = Clockwork(), clock.now()
    one, two = Due(now + 3), Due(now + 2)
    work.watch(one)
    work.watch(two)
    assert work.tick() == pytest.approx(2)
    fake_clock.advance(2)
    assert work.tick() == pytest.approx(1)
    assert [deadline for _, deadline in two.swept] == [now + 2]
    fake_clock.advance(1)
    assert work.tick() == LONGEST_SLEEP
    assert [deadline for _, deadline in one.swept] == [now + 3]
    assert one.deadlines == two.deadlines == []


def test_nothing_is_destroyed_before_its_time(fake_clock: FakeClock) -> None:
    work, due = Clockwork(), Due(clock.now() + 1)
    work.watch(due)
    fake_clock.advance(0.999)
    assert 0 < work.tick() < 0.01
    assert due.swept == []


def test_a_burst_is_swept_in_slices(fake_clock: FakeClock) -> None:
    work, now = Clockwork(), clock.now()
    due = Due(*[now - 1] * (3 * SLICE + 5), now + 100)
    work.watch(due)
    work.tick()
    assert len(due.swept) == 3 * SLICE + 5
    assert due.limits == [SLICE] * 4
    exact = Due(*[now - 1] * SLICE)
    work.watch(exact)
    work.tick()
    assert len(exact.swept) == SLICE


def test_of_many_sessions_exactly_those_due_go(fake_clock: FakeClock) -> None:
    work, now = Clockwork(), clock.now()
    due = Due(*(now - n for n in range(412)), *(now + 1 + n for n in range(134)))
    work.watch(due)
    work.tick()
    assert (len(due.swept), len(due.deadlines)) == (412, 134)


def test_an_error_is_logged_and_tried_again(
    fake_clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    work, now = Clockwork(), clock.now()
    bad, good = Due(now), Due(now)
    bad.errors.append(OSError("the disk is gone"))
    work.watch(bad)
    work.watch(good)
    pauses = []
    for _ in range(9):
        pauses.append(work.tick())
        fake_clock.advance(pauses[-1])
    assert good.swept, "the others are swept all the same"
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert max(pauses) <= LONGEST_PAUSE
    assert "the disk is gone" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    bad.errors.clear()
    fake_clock.advance(LONGEST_PAUSE)
    work.tick()
    assert bad.swept
    bad.errors.append(OSError("again"))
    assert work.tick() == 1.0, "the pause begins small again"


def test_while_it_pauses_it_asks_nothing_of_the_one_that_failed(fake_clock: FakeClock) -> None:
    work, bad = Clockwork(), Due()
    bad.errors.append(OSError())
    work.watch(bad)
    work.tick()
    fake_clock.advance(0.5)
    assert work.tick() == pytest.approx(0.5)
    assert len(bad.limits) == 1


@pytest.mark.parametrize("jump", [3600, 86_400, -3600, -86_400])
def test_the_clock_is_set(fake_clock: FakeClock, jump: float) -> None:
    work, start = Clockwork(), clock.now()
    due, bad = Due(start + 10), Due()
    bad.errors.append(OSError())
    work.watch(due)
    work.watch(bad)
    work.tick()
    fake_clock.advance(jump)
    bad.errors.clear()
    assert 0 <= work.tick() <= LONGEST_SLEEP
    assert len(bad.limits) >= 2, "a pause does not grow with the jump"
    assert bool(due.swept) == (jump > 0)
    fake_clock.set(start + 10)
    work.tick()
    assert len(due.swept) == 1


def test_it_lets_go(fake_clock: FakeClock) -> None:
    work, gone, kept = Clockwork(), Due(), Due()
    work.watch(gone)
    work.watch(kept)
    work.unwatch(gone)
    work.unwatch(gone)
    work.tick()
    assert (gone.limits, kept.limits) == ([], [SLICE])
    del kept
    assert work.tick() == LONGEST_SLEEP


# -- the thread ----------------------------------------------------------------------------------


def threads_of(work: Clockwork) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if vars(thread).get("_target") == work._run]


def test_only_a_start_starts_it_and_once() -> None:
    work = Clockwork()
    work.watch(Due())
    work.notice(clock.now())
    assert not threads_of(work)
    many = [threading.Thread(target=work.start) for _ in range(8)]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    wait_for(lambda: work.runs and len(threads_of(work)) == 1, "one thread")
    assert threads_of(work)[0].daemon


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_end_that_nobody_expects_it_starts_again() -> None:
    work, due = Clockwork(), Due()
    due.errors.append(SystemExit())  # type: ignore[arg-type]
    work.watch(due)
    for _ in range(3):
        seen = len(due.limits)
        work.start()
        wait_for(lambda seen=seen: len(due.limits) > seen and not threads_of(work), "its end")
        assert not work.runs
    due.errors.clear()
    work.start()
    wait_for(lambda: work.runs, "the start")


class Interrupted(BaseException):
    """From outside, as KeyboardInterrupt is."""


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_start_makes_neither_two_nor_none(
    begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, start = Clockwork(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if begun:
            start(thread)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        for _ in range(3):
            with suppress(Interrupted):
                work.start()
    work.start()
    wait_for(lambda: work.runs and len(threads_of(work)) == 1, "one thread")


def test_interrupted_at_any_bytecode_it_goes_on() -> None:
    """Whoever is interrupted on the way of a request, the next one finds all in order."""
    work, due = Clockwork(), Due()
    work.watch(due)
    work.start()
    wait_for(lambda: work.runs, "the start")

    def request() -> None:
        work.start()
        work.let_pass(clock.now() + 100)
        work.notice(clock.now() - 1)

    for number in range(1, interrupted_at(request, 0) + 1):
        interrupted_at(request, number)
        due.swept.clear()
        due.deadlines = [clock.now()]
        request()
        wait_for(lambda: due.swept, f"the sweep after {number}", LONGEST_SLEEP * 0.8)
    assert len(threads_of(work)) == 1


def interrupted_at(request: Callable[[], object], number: int) -> int:
    """Raise at that bytecode of this module's; how many there were until then."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != timers.__file__:
            return None
        frame.f_trace_opcodes = True
        count += event == "opcode"
        if event == "opcode" and count == number:
            raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        request()
    except Interrupted:
        pass
    finally:
        sys.settrace(None)
    return count


def test_a_sweep_is_waited_for_when_the_clock_was_put_back(fake_clock: FakeClock) -> None:
    """What is stored now is long past by the clock by which that sweep began."""
    work, due = Clockwork(), Due(clock.now())
    begun, go_on = threading.Event(), threading.Event()
    sweep = due.sweep

    def slowly(now: float, limit: int) -> int:
        begun.set()
        assert go_on.wait(30)
        return sweep(now, limit)

    due.sweep = slowly  # type: ignore[method-assign]
    work.watch(due)
    sweeping = threading.Thread(target=work.tick)
    sweeping.start()
    assert begun.wait(30)
    work.let_pass(clock.now() + 1)
    fake_clock.advance(-3600)
    threading.Timer(0.05, go_on.set).start()
    work.let_pass(clock.now() + 1)
    assert go_on.is_set()
    sweeping.join()


def test_what_is_noticed_is_destroyed_on_time() -> None:
    work, due = Clockwork(), Due()
    work.watch(due)
    work.start()
    wait_for(lambda: due.limits, "the first sweep")
    for wait in (0.15, 0.05, 0.1):
        due.swept.clear()
        deadline = clock.now() + wait
        due.deadlines = [deadline]
        work.notice(deadline)
        wait_for(lambda: due.swept, "the sweep", LONGEST_SLEEP * 0.8)
        assert due.swept[0][0] >= deadline


def test_a_nearer_deadline_wakes_it_and_a_later_one_does_not() -> None:
    work, now = Clockwork(), clock.now()
    due = Due(now + 1000)
    work.watch(due)
    work.start()
    wait_for(lambda: due.limits, "the first sweep")
    sweeps = len(due.limits)
    for later in range(100):
        work.notice(now + 2000 + later)
    due.deadlines = [now]
    work.notice(now)
    wait_for(lambda: due.swept, "the sweep", LONGEST_SLEEP * 0.8)
    assert len(due.limits) - sweeps <= 3


def test_it_survives_what_a_provider_raises(caplog: pytest.LogCaptureFixture) -> None:
    work, bad = Clockwork(), Due()
    bad.errors.append(RuntimeError("no luck"))
    work.watch(bad)
    work.start()
    wait_for(lambda: "no luck" in caplog.text, "the error")
    bad.errors.clear()
    bad.deadlines = [clock.now()]
    wait_for(lambda: bad.swept, "the next try")


def test_a_forked_child_starts_its_own() -> None:
    work, due = Clockwork(), Due()
    work.watch(due)
    work.start()
    wait_for(lambda: due.limits, "the first sweep")
    due.deadlines = [clock.now() + 0.05]
    child = os.fork()
    if child == 0:
        try:
            alone = not work.runs
            work.notice(due.deadlines[0])
            work.start()
            wait_for(lambda: due.swept, "the sweep")
            os._exit(0 if alone else 2)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run(code: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_thread_before_the_first_request_of_a_server() -> None:
    code = """
import threading
from flask import Flask, session
from flask_hybridsession import HybridSession
names = lambda: [t.name for t in threading.enumerate() if "clockwork" in t.name]
print(len(names()))
app = Flask("app")
app.config["SESSION_TYPE"] = "memory"
HybridSession(app)
app.add_url_rule("/", view_func=lambda: "")
app.add_url_rule("/write", endpoint="w", view_func=lambda: str(session.update(a=1)))
print(len(names()))
client = app.test_client()
client.get("/write")
print(len(names()))
served = {"SERVER_SOFTWARE": "somebody's"}
client.get("/", environ_overrides=served)
print(len(names()))
for _ in range(3):
    client.get("/write", environ_overrides=served)
print(len(names()))
"""
    assert run(code).split() == ["0", "0", "0", "1", "1"]


# -- with real providers and servers -------------------------------------------------------------

APP = """
import os, sys
from flask import Flask, session
from flask_hybridsession import HybridSession, session_expired

def make_app(directory, out):
    app = Flask("app")
    app.config["SESSION_DIR"] = directory
    HybridSession(app)

    @session_expired.connect_via(app)
    def expired(sender, key, **details):
        with open(out, "a") as file:
            file.write(f"{os.getpid()} {key}\\n")

    app.extensions["keep"] = expired

    @app.get("/")
    def index():
        return str(os.getpid())

    @app.get("/new")
    def new():
        session["a"] = 1
        session.lifetime = 0.3
        return session.key

    return app
"""

TWO = (
    APP
    + """
import time
directory, out, count = sys.argv[1:]
apps = [make_app(directory, out) for _ in range(2)]
served = {"SERVER_SOFTWARE": "one of two"}
keys = [
    apps[n % 2].test_client().get("/new", environ_overrides=served).text for n in range(int(count))
]
print(*keys, sep="\\n", flush=True)
sys.stdin.read()
"""
)


def announced(out: Path) -> list[str]:
    return [line.split()[1] for line in out.read_text().splitlines()] if out.exists() else []


def test_each_expiry_is_announced_once_over_all_apps_and_processes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(tmp_path / "store"), str(out), "10"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        made: list[str] = []
        for process in processes:
            assert process.stdout is not None
            made += [process.stdout.readline().strip() for _ in range(10)]
        assert len(set(made)) == 20
        wait_for(lambda: len(announced(out)) >= 20, "all to be announced")
    finally:
        for process in processes:
            process.communicate("")
    assert sorted(announced(out)) == sorted(made)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def serve(tmp_path: Path, port: int) -> Iterator[Callable[..., Callable[[str], str]]]:
    """Start a server; the function that is returned gets a path from it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> Callable[[str], str]:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        log = (tmp_path / "server.log").open("wb")
        with log:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stderr=log, stdout=log))

        def get(path: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return str(answer.read().decode())

        def answers() -> bool:
            assert started[-1].poll() is None, (tmp_path / "server.log").read_text()
            try:
                return bool(get("/"))
            except OSError:
                return False

        wait_for(answers, "the server")
        return get

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


def test_under_gunicorn_with_preload(tmp_path: Path, port: int, serve: Any) -> None:
    gunicorn = Path(sys.executable).with_name("gunicorn")
    assert gunicorn.exists() or shutil.which("gunicorn"), "gunicorn is not installed"
    out = tmp_path / "out"
    made_in_the_master = 'app.test_client().get("/new")\n'  # its thread does not live in a worker
    (tmp_path / "served.py").write_text(
        f"{APP}\napp = make_app({str(tmp_path / 'store')!r}, {str(out)!r})\n{made_in_the_master}"
    )
    get = serve(
        *(str(gunicorn), "--preload", "-w", "2", "-b", f"127.0.0.1:{port}", "served:app"),
    )
    made = [get("/new") for _ in range(12)]
    wait_for(lambda: {*made} <= {*announced(out)}, "all to be announced")
    assert len(announced(out)) == len({*announced(out)})
    assert len(announced(out)) == 13


def test_under_gevent(tmp_path: Path, port: int, serve: Any) -> None:
    out = tmp_path / "out"
    code = f"""
from gevent import monkey
monkey.patch_all()
{APP}
from gevent.pywsgi import WSGIServer
app = make_app({str(tmp_path / "store")!r}, {str(out)!r})
WSGIServer(("127.0.0.1", {port}), app, log=None).serve_forever()
"""
    get = serve(sys.executable, "-c", code)
    made = [get("/new") for _ in range(5)]
    wait_for(lambda: {*made} <= {*announced(out)}, "all to be announced")
    assert sorted(announced(out)) == sorted(made)
    get("/")
