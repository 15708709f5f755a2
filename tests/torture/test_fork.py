"""C14: forks after the store was opened, as ``gunicorn --preload`` does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from flask import Flask, request, session

from flask_hybridsession import HybridSession, session_expired
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import HybridProvider, compact
from tests.providers.hybrid.tools import NOW, PATIENCE, content, create, join, key, run, start
from tests.servers import free_port

from .crashes import held, opened

ROOT = Path(__file__).parents[2]
WORKERS = 2


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def make_app() -> Flask:
    """Uses the store at once, in the master; writes down which process announces an expiry."""
    folder = Path(os.environ["TORTURE_FOLDER"])
    app = Flask(__name__)
    app.config.update(SESSION_DIR=str(folder / "store"), SESSION_EXPIRES=0.3)
    sessions = HybridSession(app)

    @app.get("/")
    def index() -> dict[str, Any]:
        session["count"] = session.get("count", 0) + 1
        return {"count": session["count"], "pid": os.getpid(), "master": os.getppid()}

    @app.get("/threads")
    def threads() -> dict[str, Any]:
        names = sorted(thread.name for thread in threading.enumerate())
        return {"pid": os.getpid(), "threads": names, "sessions": sessions.count()}

    def note(sender: Any, **details: Any) -> None:
        with (folder / "expired").open("a") as file:
            file.write(f"{os.getpid()}\n")

    session_expired.connect(note, app, weak=False)
    # In the master: the store is open, and its keeper runs, when it forks.
    assert app.test_client().get("/").json["count"] == 1
    assert not clockwork.runs
    return app


@contextmanager
def gunicorn(folder: Path) -> Iterator[str]:
    port = free_port()
    command = [
        *(sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS)),
        *("--bind", f"127.0.0.1:{port}", "tests.torture.test_fork:make_app()"),
    ]
    env = {**os.environ, "TORTURE_FOLDER": str(folder)}
    with (folder / "output").open("wb") as output:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
    try:
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        server.wait()


def get(url: str, cookie: str = "") -> tuple[Any, str]:
    """What a page says, and its cookie. Waits for the server to be there."""

    def answer() -> Any:
        try:
            return urlopen(Request(url, headers={"Cookie": cookie}), timeout=PATIENCE)
        except ConnectionError:
            return None
        except OSError as error:
            if isinstance(getattr(error, "reason", None), ConnectionError):
                return None
            raise

    with until(answer) as response:
        return json.load(response), (response.headers["Set-Cookie"] or "").partition(";")[0]


def test_c14_gunicorn_preload(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as url:
        first, cookie = get(f"{url}/")
        pids = {first["pid"]}
        seen = {first["pid"]: first["count"]}

        def another() -> bool:
            answer, _ = get(f"{url}/", cookie)
            pids.add(answer["pid"])
            seen[answer["pid"]] = answer["count"]
            return len(pids) == WORKERS

        until(another)
        assert first["master"] not in pids
        for pid in pids:
            page = until(lambda pid=pid: _page_of(url, pid))
            assert "hybridsession-keeper" in page["threads"]
            assert "flask-hybridsession-clockwork" in page["threads"]
        # Nobody asks for anything any more: a worker's own clockwork ends what is due.
        until(lambda: get(f"{url}/threads")[0]["sessions"] == 0)
        expired = (tmp_path / "expired").read_text().split()
        assert expired, "announced"
    assert opened(tmp_path / "store") == {}


def _page_of(url: str, pid: int) -> Any:
    page, _ = get(f"{url}/threads")
    return page if page["pid"] == pid else None


def test_c14_only_the_children_live_on(tmp_path: Path) -> None:
    """The one that opened the store is gone; what it wrote and what they write is there."""

    def master() -> None:
        provider = HybridProvider(tmp_path)
        create(provider, "master")

        def child(part: int) -> None:
            assert provider.exists(key("master"), NOW)
            create(provider, ("child", part))
            provider.close()

        children = [start(child, part) for part in range(3)]
        create(provider, "after the fork")
        for each in children:
            join(each)
        os.kill(os.getpid(), signal.SIGKILL)

    run(master, expected=-signal.SIGKILL)
    expected = {key("master"), key("after the fork")} | {key(("child", part)) for part in range(3)}
    assert opened(tmp_path).keys() == expected
    assert held(tmp_path).keys() == expected


def test_c14_a_fork_within_reads_and_writes_of_other_threads(tmp_path: Path) -> None:
    """No lock that a thread held at the fork is held in the child, and the parent goes on."""
    provider = HybridProvider(tmp_path)
    create(provider, "shared")
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            count = 0
            while not stop.is_set():
                count += 1
                provider.commit(key("shared"), Change({f"{part}": b"%d" % count}), NOW)
                assert content(provider)
        except BaseException as error:
            failures.append(error)

    def child(part: int) -> None:
        provider.commit(key("shared"), Change({f"child {part}": b""}), NOW)
        assert provider.compact() in (True, False)
        os._exit(0)  # as a worker ends that is killed: nothing is closed

    threads = [threading.Thread(target=work, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    for part in range(8):
        run(child, part)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    provider._check()
    record = provider.load(key("shared"), NOW)
    assert record is not None
    assert {f"child {part}" for part in range(8)} <= record.values.keys()
    provider.close()


def test_c14_a_fork_within_a_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up: what it had open would be in the child's way."""
    provider = HybridProvider(tmp_path)
    for number in range(1000):
        create(provider, number)
    monkeypatch.setattr(compact, "_REST", PATIENCE / 100)
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(provider.compact()))
    thread.start()
    until(lambda: (tmp_path / "image.new").exists())

    def child() -> None:
        monkeypatch.undo()
        assert provider.compact()
        provider.close()

    run(child)
    thread.join()
    assert done == [False]
    provider._check()
    provider.close()
    assert len(held(tmp_path)) == 1000


def test_c14_any_thread_of_a_child_opens_and_closes(tmp_path: Path) -> None:
    """The one that forked held back all others; it alone lives on in the child."""
    provider = HybridProvider(tmp_path / "one")
    create(provider, 1)

    def child() -> None:
        opened: list[HybridProvider] = []

        def work() -> None:
            opened.append(HybridProvider(tmp_path / "two"))
            assert provider.exists(key(1), NOW)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(PATIENCE / 4)
        os._exit(not opened)

    run(child)
    provider.close()


def test_c14_a_process_that_only_loads_the_app_opens_nothing(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from flask import Flask
from flask_hybridsession import HybridSession
app = Flask("loaded")
app.config["SESSION_DIR"] = sys.argv[1]
sessions = HybridSession(app)
files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
assert not [name for name in files if name.startswith(sys.argv[1])], files
assert sys.argv[1] not in open("/proc/self/maps").read()
assert threading.active_count() == 1
assert sessions.count() == 0
assert not os.path.exists(sys.argv[1])
sessions.provider.load("0" * 64, 0.0)
assert "log" in os.listdir(sys.argv[1])
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, str(tmp_path / "store")]
    subprocess.run(command, check=True, timeout=PATIENCE, cwd=ROOT)


def test_c14_a_process_made_in_a_request(tmp_path: Path) -> None:
    app = Flask(__name__)
    app.config.update(SESSION_DIR=str(tmp_path))
    sessions = HybridSession(app)

    def count() -> int:
        return int(session.increment("count"))  # type: ignore[attr-defined]

    app.add_url_rule("/count", "count", lambda: {"count": count()})

    @app.get("/fork")
    def fork() -> dict[str, Any]:
        count()
        session.commit()  # type: ignore[attr-defined]
        cookie = request.headers["Cookie"]

        def child() -> None:
            client = app.test_client(use_cookies=False)
            for _ in range(20):
                client.get("/count", headers={"Cookie": cookie})

        children = [start(child) for _ in range(2)]
        for _ in range(20):
            session.increment("mine")  # type: ignore[attr-defined]
            session.commit()  # type: ignore[attr-defined]
        for each in children:
            join(each)
        return {"count": count()}

    client = app.test_client()
    client.get("/count")
    client.get("/fork")
    with client:
        client.get("/count")
        assert (session["count"], session["mine"]) == (44, 20)
    sessions.close()
    assert len(held(tmp_path)) == 1


def test_c14_the_clockwork_of_a_child_sweeps(tmp_path: Path) -> None:
    """The parent's thread is not there: without one of its own nobody would end the session."""
    app = Flask(__name__)
    app.config.update(SESSION_DIR=str(tmp_path), SESSION_EXPIRES=3600)
    sessions = HybridSession(app)

    @app.get("/")
    def index() -> str:
        session["a"] = 1
        if "short" in app.config:
            session.lifetime = 0.2
        return "stored"

    app.test_client().get("/")
    clockwork.start()
    until(lambda: clockwork.runs)

    manager = sessions._manager()
    clockwork.unwatch(manager)  # here nobody sweeps from now on

    def child() -> None:
        assert not clockwork.runs
        clockwork.watch(manager)
        clockwork.start()
        app.config["short"] = True
        app.test_client().get("/")
        assert sessions.count() == 2
        until(lambda: sessions.count() == 1)
        sessions.close()

    run(child)
    assert sessions.count() == 1
    sessions.close()
