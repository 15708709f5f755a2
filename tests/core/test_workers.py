"""What fell due while nobody ran is told as soon as a worker is ready, before any request."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.overlap.web import wait_for
from tests.servers import HOST, Program, Server, children, needs, running

ROOT = Path(__file__).parents[2]
SITE = "tests.core.site_due"
DUE = 1000
#: Seconds in which all must be told.
SOON = 1.0

GUNICORN = {
    "sync": (),
    "gthread": ("--worker-class", "gthread", "--threads", "4"),
    "gevent": ("--worker-class", "gevent"),
}
UWSGI = {
    "default": ("--master", "--processes", "2"),
    "threads": ("--master", "--processes", "2", "--enable-threads", "--threads", "4"),
    "lazy-apps": ("--master", "--processes", "2", "--lazy-apps"),
    "no master": ("--processes", "1"),
    "osafterfork": ("--master", "--processes", "2", "--py-call-osafterfork"),
}


class Site:
    """A store with sessions that fell due, and what the workers write down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        provider, now = HybridProvider(folder / "store"), time.time()
        self.keys = {f"{number:064x}" for number in range(DUE)}
        for key in self.keys:
            provider.commit(key, Change(create=True, deadline=now - 10), now - 20)
        provider.close()

    def noted(self, name: str) -> list[tuple[int, float, str]]:
        """Who noted it, when, and what."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            (int(pid), float(when), text)
            for pid, when, text in (line.split(" ", 2) for line in lines)
        ]

    def told(self) -> list[str]:
        return [key for _, _, key in self.noted("told")]

    def is_loaded(self, _port: int) -> bool:
        return bool(self.noted("loaded"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("DUE_FOLDER", str(tmp_path))
    return Site(tmp_path)


def gunicorn(site: Site, *options: str, app: str = "app") -> Program:
    return Program(
        sys.executable,
        "pip install gunicorn",
        lambda port, folder: [
            *(sys.executable, "-m", "gunicorn", "--chdir", str(ROOT), "--workers", "4"),
            # One that is told to end while it begins waits for all of this.
            *("--graceful-timeout", "2", "--no-control-socket"),
            *("--bind", f"{HOST}:{port}", *options, f"{SITE}:{app}"),
        ],
        site.is_loaded,
    )


def uwsgi(site: Site, *options: str) -> Program:
    binary = str(Path(sys.prefix) / "bin" / "uwsgi")
    return Program(
        binary,
        "pip install uwsgi",
        lambda port, folder: [
            *(binary, "--need-app", "--die-on-term", "--disable-logging"),
            *("--virtualenv", sys.prefix, "--pythonpath", str(ROOT), "--chdir", str(ROOT)),
            *("--http-socket", f"{HOST}:{port}", "--module", f"{SITE}:app", *options),
        ],
        site.is_loaded,
    )


@contextmanager
def serving(program: Program) -> Iterator[Server]:
    with running(program) as server:
        yield server
        output = (server._folder / "output").read_text(errors="replace")
    assert "Traceback" not in output, output


def all_are_told(site: Site) -> None:
    """Each once, by a worker, within a second; nobody asked for anything."""
    wait_for(lambda: len(site.told()) >= DUE, "all to be told")
    assert sorted(site.told()) == sorted(site.keys)
    ready = min(when for _, when, _ in site.noted("loaded"))
    assert max(when for _, when, _ in site.noted("told")) < ready + SOON
    assert not site.noted("runs while it loads")


@pytest.mark.parametrize("load", ["", "preload"])
@pytest.mark.parametrize("kind", GUNICORN)
def test_gunicorn(kind: str, load: str, site: Site) -> None:
    options = [*GUNICORN[kind], *(["--preload"] if load else [])]
    with serving(gunicorn(site, *options)) as server:
        all_are_told(site)
        assert server._process is not None
        assert {pid for pid, _, _ in site.noted("told")} <= {*children(server._process.pid)}


@pytest.mark.parametrize("load", ["", "preload"])
def test_a_factory(load: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUE_FACTORY", "1")
    options = ["--preload"] if load else []
    with serving(gunicorn(site, *options, app="make_app()")):
        all_are_told(site)


@pytest.mark.parametrize("load", ["", "preload"])
def test_a_hook_of_gunicorn_that_is_set_is_called(load: str, site: Site) -> None:
    hooks = site.folder / "hooks.py"
    hooks.write_text(
        f"def post_worker_init(worker):\n"
        f"    open({str(site.folder / 'hook')!r}, 'a').write(f'{{worker.pid}} 0 called\\n')\n"
    )
    options = ["--config", str(hooks), *(["--preload"] if load else [])]
    with serving(gunicorn(site, *options)):
        all_are_told(site)
        wait_for(lambda: len(site.noted("hook")) == 4, "the hook of all workers")


@pytest.mark.parametrize("command", ["routes", "sessions stats", "shell"])
def test_a_command_tells_nobody(command: str, site: Site) -> None:
    run = [sys.executable, "-m", "flask", "--app", SITE, *command.split()]
    subprocess.run(run, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    assert site.noted("loaded")
    assert not site.told()
    assert not site.noted("runs while it loads")


def test_a_reloader_tells_nobody_and_its_child_at_the_first_request(site: Site) -> None:
    flask = [sys.executable, "-m", "flask", "--app", SITE, "run", "--reload", "--no-debugger"]
    program = Program(
        sys.executable,
        "pip install flask",
        lambda port, folder: ["env", "--chdir", str(ROOT), *flask, "--port", str(port)],
        is_open,
    )
    with serving(program) as server:
        assert not site.told()
        child = int(get(server.port))
        wait_for(lambda: len(site.told()) >= DUE, "all to be told")
        assert {pid for pid, _, _ in site.noted("told")} == {child}
        assert server._process is not None
        assert child != server._process.pid
        os.kill(child, signal.SIGTERM)


@pytest.mark.parametrize("mode", UWSGI)
def test_uwsgi(mode: str, site: Site) -> None:
    needs(uwsgi(site))
    with serving(uwsgi(site, *UWSGI[mode])) as server:
        all_are_told(site)
        assert server._process is not None
        master = server._process.pid
        assert mode == "no master" or master not in {pid for pid, _, _ in site.noted("told")}
        if mode == "lazy-apps":  # one that is told to end while it loads does not hear it
            wait_for(lambda: len(site.noted("loaded")) == 2, "all to load")


@pytest.mark.parametrize("when", ["there", "later"])
def test_a_hook_of_uwsgi_that_is_set_is_called(
    when: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one only: ``uwsgidecorators`` replaces what is set."""
    monkeypatch.setenv("DUE_HOOK", when)
    needs(uwsgi(site))
    with serving(uwsgi(site, *UWSGI["default"])):
        all_are_told(site)
        wait_for(lambda: len(site.noted("hook")) == 2, "the hook of both workers")


def test_in_a_mule_and_a_spooler_nobody_begins(site: Site) -> None:
    needs(uwsgi(site))
    (site.folder / "spool").mkdir()
    options = ("--mule", "--mule", "--spooler", str(site.folder / "spool"))
    with serving(uwsgi(site, *UWSGI["default"], *options)) as server:
        all_are_told(site)
        assert server._process is not None
        workers = {pid for pid, _, _ in site.noted("told")}
        assert workers <= {*children(server._process.pid)}


@pytest.mark.parametrize("mode", ["default", "lazy-apps"])
def test_uwsgi_without_threads(mode: str, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in older versions unless it is told otherwise: the work is done beside requests."""
    monkeypatch.setenv("DUE_NO_THREADS", "1")
    needs(uwsgi(site))
    with serving(uwsgi(site, *UWSGI[mode])) as server:
        wait_for(lambda: get(server.port), "an answer")
        assert sorted(site.told()) == sorted(site.keys)
        assert len({pid for pid, _, _ in site.noted("told")}) == 1
        output = (server._folder / "output").read_text()
        loads = len(site.noted("loaded"))
        assert 1 <= output.count("uWSGI runs no threads here") <= loads + len(UWSGI["default"])


def is_open(port: int) -> bool:
    """Whether it serves: asked without a request."""
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def get(port: int) -> str:
    try:
        with urlopen(f"http://{HOST}:{port}/", timeout=10) as answer:
            return str(answer.read().decode())
    except ConnectionError:
        return ""
