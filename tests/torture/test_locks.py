"""C12: whoever holds a lock of the store is killed, or stands still."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import LOCK_EX, flock
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, session

from flask_hybridsession import HybridSession, provider_failed
from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ProviderUnavailable
from flask_hybridsession.providers.hybrid import HybridProvider, compact, store
from flask_hybridsession.providers.hybrid.log import Log
from tests.model import InProcess
from tests.providers.hybrid.tools import NOW, PATIENCE, content, create, key

from .crashes import Stopped, held

#: Seconds: long enough for a call of a busy machine, short enough to wait for in a test.
SHORT = 0.3

Stop = Callable[[], None]


def in_a_turn(directory: Path) -> Callable[[Stop], None]:
    """Stands still as the only writer, having changed the image and not logged it yet."""

    def work(stop: Stop) -> None:
        append = Log.append

        def before(log: Log, data: bytes) -> None:
            stop()
            append(log, data)

        provider = HybridProvider(directory, patience=PATIENCE)
        Log.append = before  # type: ignore[method-assign]
        create(provider, "of the one who stood still")
        Log.append = append  # type: ignore[method-assign]
        provider.close()

    return work


def in_a_sync(directory: Path) -> Callable[[Stop], None]:
    """Stands still while others wait for it to bring the log to the disk."""

    def work(stop: Stop) -> None:
        provider = HybridProvider(directory, durability="always", patience=PATIENCE)
        fdatasync, left = os.fdatasync, [1]

        def slow(fd: int) -> None:
            if left and left.pop():
                stop()
            fdatasync(fd)

        os.fdatasync = slow
        create(provider, "of the one who stood still")
        provider.close()

    return work


def in_a_read(directory: Path) -> Callable[[Stop], None]:
    def work(stop: Stop) -> None:
        provider = HybridProvider(directory)
        provider._store.read(lambda txn, image: stop())
        provider.close()

    return work


def in_a_compaction(directory: Path) -> Callable[[Stop], None]:
    def work(stop: Stop) -> None:
        provider = HybridProvider(directory)
        snapshot = compact.snapshot

        def slow(*args: Any) -> Log:
            log = snapshot(*args)
            stop()
            return log

        compact.snapshot = slow
        provider.compact()
        provider.close()

    return work


PLACES = [in_a_turn, in_a_sync, in_a_read, in_a_compaction]


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[HybridProvider]:
    # So long a wait, should it be needed, would show as a failure.
    provider = HybridProvider(tmp_path, durability="always", patience=PATIENCE)
    create(provider, 1)
    yield provider
    provider.close()


@pytest.mark.parametrize("place", PLACES)
def test_c12_killed(tmp_path: Path, provider: HybridProvider, place: Any) -> None:
    """Those who wait for it proceed: their patience is longer than that of the test."""
    with Stopped(place(tmp_path)) as stopped:
        answers: list[str] = []

        def wait() -> None:
            provider.commit(key(1), Change({"b": b"2"}), NOW)
            answers.append("written")

        waiter = threading.Thread(target=wait)
        waiter.start()
        stopped.kill()
        waiter.join(PATIENCE / 2)
        assert answers == ["written"]
    provider._check()
    create(provider, 2)
    assert provider.compact()
    here = content(provider)
    assert key(2) in here
    assert (key("of the one who stood still") in here) == (place is in_a_sync)


def test_c12_a_killed_reader_leaves_no_slot(tmp_path: Path, provider: HybridProvider) -> None:
    """Of the few that there are; and no page that it looked at could be used again."""
    live = InProcess(partial(HybridProvider, tmp_path))  # the last to close would leave no slots
    with Stopped(in_a_read(tmp_path)) as stopped:
        stopped.kill()
    assert provider.exists(key(1), NOW)
    assert provider._store.image.env.reader_check() == 0, "whoever opens it has looked"
    live.close()


def test_c12_a_child_of_the_killed_one_keeps_no_lock(tmp_path: Path) -> None:
    """Started in the middle of a turn, it lives on with all that it has inherited."""
    provider = HybridProvider(tmp_path, patience=PATIENCE / 2)
    pid = tmp_path / "pid"

    def work(stop: Stop) -> None:
        mine = HybridProvider(tmp_path)

        def turn(_: Any) -> None:
            child = subprocess.Popen(["sleep", "600"], close_fds=False)
            pid.write_text(str(child.pid))
            stop()

        mine._store.write(False, turn)

    with Stopped(work) as stopped:
        stopped.kill()
        child = int(pid.read_text())
        try:
            create(provider, 1)
            provider._check()
        finally:
            os.kill(child, signal.SIGKILL)
    provider.close()


def test_c12_a_fork_of_the_killed_one_keeps_no_lock(tmp_path: Path) -> None:
    """Forked before the turn, with all that was open then: a lock is shared with the copy."""
    provider = HybridProvider(tmp_path, patience=PATIENCE / 2)
    create(provider, 1)
    end, theirs = Pipe()

    def work(stop: Stop) -> None:
        mine = HybridProvider(tmp_path)
        create(mine, 2)
        if not os.fork():
            theirs.recv()
            os._exit(0)
        in_a_turn(tmp_path)(stop)

    try:
        with Stopped(work) as stopped:
            stopped.kill()
            create(provider, 3)
            provider._check()
    finally:
        end.send("end")
    provider.close()


@pytest.mark.parametrize("place", [in_a_sync, in_a_read, in_a_compaction])
def test_c12_stopped_elsewhere_than_in_a_turn_holds_up_nobody(tmp_path: Path, place: Any) -> None:
    provider = HybridProvider(tmp_path, durability="always", patience=SHORT)
    create(provider, 1)
    with Stopped(place(tmp_path)) as stopped:
        for number in range(20):
            provider.commit(key(1), Change({"b": b"%d" % number}), NOW)
        if place is in_a_compaction:
            assert not provider.compact(), "another one is at it"
        assert provider.stats()["unsynced_commits"] == 0
        provider._check()
        stopped.go_on()
    provider._check()
    before = content(provider)
    provider.close()
    assert held(tmp_path) == before


def test_c12_stopped_in_a_turn(tmp_path: Path) -> None:
    """Writers give up after their patience, readers do not notice, nothing is lost or half."""
    provider = HybridProvider(tmp_path, patience=SHORT)
    create(provider, 1, deadline=NOW + 1)
    before = content(provider)
    with Stopped(in_a_turn(tmp_path), lambda: content(provider)) as stopped:
        for call in (
            lambda: provider.commit(key(1), Change({"b": b"2"}), NOW),
            lambda: provider.rename(key(1), key(2), NOW),
            lambda: provider.destroy(key(1)),
            lambda: provider.purge(NOW + 2, 10),
            provider.compact,
        ):
            with pytest.raises(ProviderUnavailable, match="too long"):
                call()
            assert content(provider) == before
        stopped.go_on()
    # What was refused has not happened, what was under way has.
    assert content(provider).keys() == before.keys() | {key("of the one who stood still")}
    assert provider.destroy(key(1))
    provider._check()
    provider.close()


def test_c12_a_worker_that_starts_meanwhile(tmp_path: Path, monkeypatch: Any) -> None:
    """It reads, or says after its patience that it cannot: it neither hangs nor begins anew."""
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    before = content(provider)
    provider.close()
    monkeypatch.setattr(store, "_RECOVERY", SHORT)
    with Stopped(in_a_turn(tmp_path)) as stopped:
        with suppress(ProviderUnavailable):
            provider = HybridProvider(tmp_path, patience=SHORT)
            assert content(provider) == before
            provider.close()
        stopped.go_on()
    assert held(tmp_path).keys() == before.keys() | {key("of the one who stood still")}


def test_c12_a_site_whose_store_is_held_up_answers_503(tmp_path: Path) -> None:
    app = Flask(__name__)
    app.config.update(
        SESSION_DIR=str(tmp_path), SESSION_OPTIONS={"patience": SHORT}, SESSION_TOUCH_EVERY=3600
    )
    sessions = HybridSession(app)
    failures: list[Any] = []

    def note(sender: Any, **details: Any) -> None:
        failures.append(details)

    provider_failed.connect(note, app)

    @app.get("/write")
    def write() -> str:
        session["count"] = session.get("count", 0) + 1
        return "stored"

    @app.get("/logout")
    def logout() -> str:
        session.destroy()
        return "gone"

    @app.get("/read")
    def read() -> str:
        return str(session.get("count"))

    @app.get("/other")
    def other() -> str:
        return "no session"

    client, leaver, stranger = app.test_client(), app.test_client(), app.test_client()
    assert client.get("/write").text == leaver.get("/write").text == "stored"
    with Stopped(in_a_turn(tmp_path), sessions.provider.next_deadline) as stopped:
        for path, visitor in (("/write", client), ("/logout", leaver), ("/write", stranger)):
            answer = visitor.get(path)
            assert answer.status_code == 503
            assert "Set-Cookie" not in answer.headers
            assert int(answer.headers["Retry-After"])
            assert answer.text not in ("stored", "gone")
        assert len(failures) == 3
        assert client.get("/read").text == "1", "not written"
        assert leaver.get("/read").status_code == 503, "denied until it can be logged out"
        assert client.get("/other").text == "no session"
        stopped.go_on()
    assert leaver.get("/read").text == "None", "logged out at last"
    assert client.get("/write").text == "stored"
    assert client.get("/read").text == "2"
    assert client.get("/logout").text == "gone"
    assert client.get("/read").text == "None"
    sessions.close()


def test_c12_a_lock_file_that_others_hold_is_no_deadlock(tmp_path: Path) -> None:
    """Whatever program takes the lock: the wait ends, and so does closing."""
    provider = HybridProvider(tmp_path, patience=SHORT)
    create(provider, 1)
    with (tmp_path / "lock").open("rb") as file:
        flock(file, LOCK_EX)
        with pytest.raises(ProviderUnavailable, match="too long"):
            create(provider, 2)
        assert provider.exists(key(1), NOW)
        provider.close()
    assert held(tmp_path).keys() == {key(1)}
