"""C6: no room for the log, or for the image. A visitor gets a 5xx and no cookie, the log stays
valid and holds what was acknowledged, and it goes on as soon as there is room."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import lmdb
import pytest
from flask import Flask, session

from flask_hybridsession import HybridSession
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.providers.hybrid.tools import start

from .shim import Shim
from .workers import PATIENCE, ROOT, Crew, gaps, key, perform, seen


def make_app(directory: Path) -> Flask:
    app = Flask(__name__)
    app.config.update(SESSION_DIR=str(directory), SESSION_COOKIE_NAME="sid")
    HybridSession(app)

    @app.get("/visit/<int:size>")
    def visit(size: int) -> str:
        session["visits"] = session.get("visits", 0) + 1
        session["pad"] = "x" * size
        return str(session["visits"])

    @app.get("/see")
    def see() -> str:
        return str(session.get("visits", 0))

    @app.get("/leave")
    def leave() -> str:
        session.destroy()  # type: ignore[attr-defined]
        return "gone"

    @app.get("/public")
    def public() -> str:
        return "public"

    return app


def visit_while_full(directory: Path, full: Callable[[bool], None]) -> None:
    """A visitor's requests before, while and after ``full(True)``."""
    app = make_app(directory)
    known, stranger = app.test_client(), app.test_client()
    assert known.get("/visit/10").text == "1"
    full(True)
    for client in (known, stranger):
        answer = client.get("/visit/20")
        assert answer.status_code == 503
        assert "Set-Cookie" not in answer.headers
    assert known.get("/public").text == "public"
    assert known.get("/see").text == "1"
    assert known.get("/leave").status_code == 503
    assert known.get("/see").text != "1", "who asked to leave is not served, come what may"
    log = HybridProvider(directory)
    assert not gaps(log)
    full(False)
    # What could not be destroyed is denied to its visitor in this worker, or still there: not lost.
    assert log.count(0.0) == 1
    assert stranger.get("/visit/30").text == "1"
    assert stranger.get("/visit/30").text == "2"
    log._check()
    log.close()


@pytest.mark.parametrize("action", ["ENOSPC", "full", "EIO"])
def test_a_visitor_while_the_log_cannot_be_written(tmp_path: Path, shim: Shim, action: str) -> None:
    full = tmp_path / "full"
    env = shim.environment(tmp_path, f"write:{action}:1:1000000", while_=full)
    run_here("log", tmp_path, env)


def test_a_visitor_while_no_file_may_grow(tmp_path: Path) -> None:
    run_here("limit", tmp_path, {})


def run_here(how: str, path: Path, env: dict[str, str]) -> None:
    """This module as a program: the app in a process whose disk is full at times."""
    command = [sys.executable, "-W", "error", "-m", __name__, how, str(path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, timeout=PATIENCE)


def main(how: str, path: Path) -> None:
    def full(yes: bool) -> None:
        if how == "limit":
            limit_files(path / "store" / "log", 30 if yes else None)
        elif yes:
            (path / "full").touch()
        else:
            (path / "full").unlink()

    visit_while_full(path / "store", full)


def limit_files(log: Path, more: int | None) -> None:
    """Let no file become larger than the log and a few bytes more."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (hard if more is None else log.stat().st_size + more, hard)
    )


def test_short_writes_go_on(tmp_path: Path, shim: Shim) -> None:
    with Crew(tmp_path / "crew", 1, shared=False, steps=100) as crew:
        env = shim.environment(tmp_path, "write:short:1:1000000")
        for _ in range(2):
            crew.start(env)
        for worker in crew.workers:
            crew.join(worker)
        assert not crew.judge().failures()


@pytest.mark.parametrize("durability", ["always", "interval", "never"])
def test_workers_on_a_disk_that_is_full_at_times(
    tmp_path: Path, shim: Shim, rounds: Callable[[int], Iterator[int]], durability: str
) -> None:
    """What is refused did not happen, for nobody."""
    for seed in rounds(1):
        path = tmp_path / str(seed)
        full = path / "full"
        options = {"compact_bytes": 20_000, "durability": durability}
        with Crew(path, seed, pause=0.001, options=options) as crew:
            for action in ("full", "ENOSPC"):
                crew.start(shim.environment(path, f"write:{action}:1:1000000", while_=full))
            for _ in range(6):
                for exists in (True, False):
                    full.touch() if exists else full.unlink()
                    for worker in crew.workers:
                        size = (
                            crew.journal(worker).stat().st_size
                            if crew.journal(worker).exists()
                            else 0
                        )
                        crew.wait_until_busy(worker, size + crew.dice.randint(1, 3_000))
            crew.kill_all()
            story = crew.judge()
        assert not story.failures("ProviderUnavailable")
        assert any(entry.failed for entry in story.entries)


def test_files_that_may_not_grow_at_any_byte(tmp_path: Path) -> None:
    """The limit at every byte of the frame of a change, and of the pages of the image."""
    command = [sys.executable, "-W", "error", "-m", __name__, "bytes", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=PATIENCE)


def at_any_byte(directory: Path) -> None:
    provider = HybridProvider(directory)
    log = directory / "log"
    # A log that is larger than the image, so that it is the one that meets the limit.
    perform(provider, "create", key("big"), [1, 3_000_000, False])
    perform(provider, "destroy", key("big"), None)
    perform(provider, "create", key("x"), [1, 10, False])
    refused = more = 0
    while True:
        before, size = seen(provider, key("x")), log.stat().st_size
        limit_files(log, more)
        try:
            perform(provider, "modify", key("x"), [more, 10, "wipe"])
            break
        except ProviderUnavailable:
            refused += 1
        finally:
            limit_files(log, None)
        assert seen(provider, key("x")) == before
        assert log.stat().st_size == size
        assert not gaps(provider)
        more += 1
    assert refused > 100
    provider._check()
    provider.close()


# A file system that is really full: what is mapped must have its blocks.

SMALL = 3 << 20


@pytest.mark.parametrize(
    "case", ["new", "sync", "image-lock", "image", "log", "compaction", "load"]
)
def test_a_full_file_system_kills_nobody(tmp_path: Path, case: str) -> None:
    """Whoever starts, or is at work, is refused in words, and goes on when there is room."""
    full = tmp_path / "full"
    full.mkdir()
    mount = f'mount -t tmpfs -o size={SMALL} none "$0" && exec "$@"'
    inside = ["unshare", "-Urm", "sh", "-c", mount, str(full)]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    program = [sys.executable, "-W", "error", "-m", __name__, f"small:{case}", str(full)]
    subprocess.run([*inside, *program], cwd=ROOT, check=True, timeout=PATIENCE)


def fill_up(path: Path) -> None:
    """Leave not one block, of a small file system."""
    assert path.is_mount()
    with (path / "ballast").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def make_room(path: Path) -> None:
    (path / "ballast").unlink()


def alive(work: Callable[[], None]) -> None:
    """``work`` in a process that may fail, but must not be killed by what it touches."""
    child = start(work)
    child.join(PATIENCE)
    assert child.exitcode == 0, f"it ended by {child.exitcode}"


def on_a_full_start(path: Path, lost: str) -> None:
    """A worker starts where a file of the store is to be made anew."""
    directory = path / "store"

    def refused() -> None:
        with pytest.raises((ProviderUnavailable, ConfigError), match="space"):
            HybridProvider(directory).load(key(0), 0.0)

    def served(count: int) -> None:
        provider = HybridProvider(directory)
        assert provider.count(0.0) == count
        perform(provider, "create", key(count), [1, 10, False])
        provider._check()
        provider.close()

    if lost != "new":
        alive(partial(served, 0))
        alive(partial(served, 1))
        (directory / lost).unlink()
    fill_up(path)
    for _ in range(2):
        alive(refused)
    make_room(path)
    alive(partial(served, 0 if lost == "new" else 2))


def in_compaction(path: Path) -> None:
    """What there is room for is done, and the rest is not, however much is left."""

    def work() -> None:
        provider = HybridProvider(path / "store")
        for number in range(20):
            perform(provider, "create", key(number), [number, 2000, False])
        for left in range(0, 1 << 18, 8192):
            fill_up(path)
            os.truncate(path / "ballast", (path / "ballast").stat().st_size - left)
            with suppress(OSError, ProviderUnavailable, lmdb.Error):
                provider.compact()
            assert provider.count(0.0) == 20
            make_room(path)
            perform(provider, "modify", key(1), [left, 10, "put"])
        assert provider.compact()
        provider._check()
        provider.close()

    alive(work)


def under_load(path: Path) -> None:
    """Workers that compact all the time, while the file system is full at times."""
    (path / "store").mkdir()
    crew_path = path.parent / "crew"  # their journals have room
    crew_path.mkdir()
    (crew_path / "store").symlink_to(path / "store")
    options = {"compact_bytes": 30_000}
    with Crew(crew_path, 1, pause=0.001, purges=False, options=options) as crew:
        for _ in range(3):
            crew.start()
        for worker in crew.workers:
            crew.wait_until_busy(worker)
        for _ in range(8):
            fill_up(path)
            time.sleep(crew.dice.random() / 5)
            make_room(path)
            time.sleep(crew.dice.random() / 10)
        assert all(worker.poll() is None for worker in crew.workers), "a worker died"
        crew.kill_all()
        assert not crew.judge().failures("ProviderUnavailable")


def on_a_small_one(case: str, path: Path) -> None:
    if case == "compaction":
        in_compaction(path)
    elif case == "load":
        under_load(path)
    else:
        on_a_full_start(path, case)


if __name__ == "__main__":
    how, path = sys.argv[1], Path(sys.argv[2])
    if how == "bytes":
        at_any_byte(path / "store")
    elif how.startswith("small:"):
        on_a_small_one(how.removeprefix("small:"), path)
    else:
        main(how, path)
