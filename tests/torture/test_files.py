"""C15 to C17: files that somebody takes away, a newer format, two apps of different settings."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from math import inf
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from flask import Flask, session

from flask_hybridsession import ConfigError, HybridSession, session_expired
from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import ProviderError
from flask_hybridsession.core.timers import clockwork
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.hybrid.frame import HEADER_SIZE, VERSION
from flask_hybridsession.providers.hybrid.image import Image
from tests.model import InProcess, ask
from tests.providers.hybrid.tools import NOW, PATIENCE, content, key

from .crashes import held, opened

Handles = list[InProcess]


@contextmanager
def workers(directory: Path, *options: dict[str, Any]) -> Iterator[Handles]:
    """Processes that have the store open."""
    handles = [InProcess(partial(HybridProvider, directory, **each)) for each in options]
    try:
        yield handles
    finally:
        for handle in handles:
            handle.close()


def call(worker: InProcess, name: str, *args: Any) -> Any:
    return worker.do(NOW, ask, name, *args)[1]


def put(worker: InProcess, name: object) -> None:
    change = Change({"a": repr(name).encode()}, expects={}, create=True, deadline=inf)
    assert call(worker, "commit", key(name), change, NOW) is None


def sees(worker: InProcess) -> dict[str, Record | None]:
    now: dict[str, Record | None] = worker.do(NOW, content)
    return now


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it was not noticed"
        time.sleep(0.01)


# C15


def unlink_log(directory: Path) -> None:
    (directory / "log").unlink()


def replace_log_by_its_copy(directory: Path) -> None:
    shutil.copy(directory / "log", directory / "copy")
    (directory / "copy").rename(directory / "log")


def replace_log_by_nothing(directory: Path) -> None:
    (directory / "empty").touch(0o600)
    (directory / "empty").rename(directory / "log")


def move_log_away(directory: Path) -> None:
    (directory / "log").rename(directory / "elsewhere")


def swap_log(directory: Path) -> None:
    """The old one stays where it can be written to."""
    (directory / "log").rename(directory / "elsewhere")
    shutil.copy(directory / "elsewhere", directory / "log")


def cut_log(directory: Path) -> None:
    os.truncate(directory / "log", HEADER_SIZE + 10)


def empty_log(directory: Path) -> None:
    os.truncate(directory / "log", 0)


def append_to_log(directory: Path) -> None:
    with (directory / "log").open("ab") as file:
        file.write(b"garbage" * 10)


def unlink_words(directory: Path) -> None:
    (directory / "sync").unlink()


def unlink_image(directory: Path) -> None:
    (directory / "image").unlink()


def unlink_image_lock(directory: Path) -> None:
    (directory / "image-lock").unlink()


def replace_image_by_its_copy(directory: Path) -> None:
    shutil.copy(directory / "image", directory / "copy")
    (directory / "copy").rename(directory / "image")


def replace_image_lock_by_its_copy(directory: Path) -> None:
    shutil.copy(directory / "image-lock", directory / "copy")
    (directory / "copy").rename(directory / "image-lock")


def replace_words_by_their_copy(directory: Path) -> None:
    shutil.copy(directory / "sync", directory / "copy")
    (directory / "copy").rename(directory / "sync")


TO_THE_LOG = [
    unlink_log,
    replace_log_by_its_copy,
    replace_log_by_nothing,
    move_log_away,
    swap_log,
    cut_log,
    empty_log,
    append_to_log,
]


TO_THE_REST = [
    unlink_words,
    unlink_image,
    unlink_image_lock,
    replace_image_by_its_copy,
    replace_image_lock_by_its_copy,
    replace_words_by_their_copy,
]


@pytest.mark.parametrize("mishap", [*TO_THE_LOG, *TO_THE_REST])
def test_c15_live_workers_stay_of_one_mind(tmp_path: Path, mishap: Callable[[Path], None]) -> None:
    """Nothing is lost, and what one writes all see, also one who starts afterwards."""
    with workers(tmp_path, {}, {}) as (one, two):
        for number in range(5):
            put(one, number)
        put(two, "two")
        before = sees(one)
        mishap(tmp_path)
        put(one, "after")
        put(two, "after that")
        expected = before.keys() | {key("after"), key("after that")}
        assert sees(one) == sees(two)
        assert sees(one).keys() == expected
        with workers(tmp_path, {}) as (newcomer,):
            assert sees(newcomer).keys() == expected
            put(newcomer, "new")
            assert call(newcomer, "destroy", key(0))
        expected = (expected | {key("new")}) - {key(0)}
        put(one, "last")
        assert sees(one) == sees(two)
        assert sees(two).keys() == expected | {key("last")}
    assert opened(tmp_path).keys() == expected | {key("last")}
    assert held(tmp_path).keys() == expected | {key("last")}


@pytest.mark.parametrize(
    "mishaps", list(permutations([unlink_words, unlink_image, unlink_image_lock, unlink_log], 2))
)
def test_c15_one_mishap_after_the_other(
    tmp_path: Path, mishaps: tuple[Callable[[Path], None], ...]
) -> None:
    """Whoever did not see the first one must see the second."""
    with workers(tmp_path, {}, {}) as (one, two):
        put(one, "first")
        put(two, "second")
        expected = {key("first"), key("second")}
        for number, mishap in enumerate(mishaps):
            mishap(tmp_path)
            with workers(tmp_path, {}) as (newcomer,):
                put(newcomer, number)
            assert key(number) in sees(one), "at once"
            put(one, ("one", number))
            put(two, ("two", number))
            expected |= {key(number), key(("one", number)), key(("two", number))}
            assert sees(one) == sees(two)
            assert sees(one).keys() == expected
            assert not one.do(NOW, strays, tmp_path)
            assert not two.do(NOW, strays, tmp_path)
    assert held(tmp_path).keys() == expected


def test_c15_without_the_words_no_log_is_believed(tmp_path: Path) -> None:
    """They say whether it ever failed to sync; such a log is not written to any more."""
    with workers(tmp_path, {"durability": "always"}) as (one,):
        put(one, 1)
        inode = (tmp_path / "log").stat().st_ino
    (tmp_path / "sync").unlink()
    with workers(tmp_path, {"durability": "always"}) as (two,):
        put(two, 2)
        assert (tmp_path / "log").stat().st_ino != inode
        assert sees(two).keys() == {key(1), key(2)}
    assert held(tmp_path).keys() == {key(1), key(2)}


def strays(provider: HybridProvider, directory: Path) -> list[str]:
    """What this process has open of the store that is not the store's any more."""
    links = [os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [text for text in targets if text.startswith(f"{directory}/") and "(deleted)" in text]


@pytest.mark.parametrize("mishap", TO_THE_LOG[:5])
def test_c15_is_noticed_without_a_write(tmp_path: Path, mishap: Callable[[Path], None]) -> None:
    """A store that nobody writes to has a log again: else a power cut would take it all."""
    with workers(tmp_path, {"sync_interval": 0.1}) as (one,):
        put(one, 1)
        mishap(tmp_path)
        inode = (tmp_path / "log").stat().st_ino if (tmp_path / "log").exists() else 0
        until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").stat().st_ino != inode)
        one.kill()
        assert held(tmp_path).keys() == {key(1)}
        one.reopen()


@pytest.mark.parametrize("name", ["log", "image", "sync", "lock"])
def test_c15_files_of_everybody_become_private_again(tmp_path: Path, name: str) -> None:
    """At the latest when the next worker starts."""
    with workers(tmp_path, {}) as (one,):
        put(one, 1)
        (tmp_path / name).chmod(0o666)
        with workers(tmp_path, {}) as (two,):
            put(two, 2)
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
            assert sees(one) == sees(two)


def test_c15_a_file_without_any_rights_stops_no_worker_that_has_it(tmp_path: Path) -> None:
    with workers(tmp_path, {}, {}) as (one, two):
        put(one, 1)
        (tmp_path / "log").chmod(0)
        put(one, 2)
        put(two, 3)
        assert sees(one) == sees(two)
    (tmp_path / "log").chmod(0o600)
    assert held(tmp_path).keys() == {key(1), key(2), key(3)}


@pytest.mark.parametrize("how", ["removed", "recreated", "moved", "put back"])
def test_c15_a_directory_that_goes_away(tmp_path: Path, how: str) -> None:
    """It is another store then, and all workers are in the same one."""
    directory = tmp_path / "store"
    with workers(directory, {"sync_interval": 0.1}, {"sync_interval": 0.1}) as (one, two):
        put(one, 1)
        shutil.copytree(directory, tmp_path / "backup")
        put(two, 2)
        if how == "removed":
            shutil.rmtree(directory)
        elif how == "recreated":
            shutil.rmtree(directory)
            directory.mkdir(0o700)
        else:
            directory.rename(tmp_path / "moved")
        if how == "put back":
            (tmp_path / "backup").rename(directory)
        rest = {key(1)} if how == "put back" else set()
        until(lambda: sees(one).keys() == sees(two).keys() == rest)
        put(one, "a")
        put(two, "b")
        assert sees(one) == sees(two)
        assert sees(one).keys() == rest | {key("a"), key("b")}
        for worker in (one, two):
            assert not worker.do(NOW, strays, directory)
            assert not worker.do(NOW, strays, tmp_path / "moved")
    assert held(directory).keys() == rest | {key("a"), key("b")}
    if how == "moved":
        assert held(tmp_path / "moved").keys() == {key(1), key(2)}


# C16


def everything(directory: Path) -> dict[str, Any]:
    """All that can be known of a directory's files."""
    return {
        path.name: (
            path.read_bytes(),
            *(path.stat()[n] for n in (0, 1, 6, 8)),
            path.stat().st_mtime_ns,
        )
        for path in directory.iterdir()
    }


def make_newer(directory: Path) -> None:
    """Let the log say that a later format wrote it."""
    data = bytearray((directory / "log").read_bytes())
    half = HEADER_SIZE // 2
    for start in (0, half):
        struct.pack_into("<H", data, start + 8, VERSION + 1)
        struct.pack_into("<I", data, start + half - 4, crc32(data[start : start + half - 4]))
    (directory / "log").write_bytes(data)


@pytest.mark.parametrize("lost", [(), ("image", "image-lock"), ("image", "sync", "lock")])
def test_c16_a_newer_format_is_refused_untouched(tmp_path: Path, lost: tuple[str, ...]) -> None:
    directory = tmp_path / "store"
    with workers(directory, {}) as (one,):
        put(one, 1)
    make_newer(directory)
    for name in lost:
        (directory / name).unlink(missing_ok=True)
    before = everything(directory)
    app = Flask(__name__)
    app.config["SESSION_DIR"] = str(directory)
    for start in (lambda: HybridProvider(directory), lambda: HybridSession(app)):
        with pytest.raises(ConfigError, match=r"newer version.*Nothing was changed"):
            start()
        assert everything(directory) == before


def test_c16_a_newer_format_under_a_live_worker(tmp_path: Path) -> None:
    """Of a rolling upgrade: whoever is older may fail, and must not touch the newer log."""
    directory = tmp_path / "store"
    live = HybridProvider(directory)
    live.commit(key(1), Change({"a": b"1"}, create=True), NOW)
    shutil.copy(directory / "log", directory / "next")
    (directory / "next").rename(directory / "log")
    make_newer(directory)
    data, inode = (directory / "log").read_bytes(), (directory / "log").stat().st_ino
    for _ in range(3):
        with pytest.raises((ProviderError, ConfigError)):
            live.commit(key(1), Change({"a": b"2"}), NOW)
        with pytest.raises((ProviderError, ConfigError)):
            live.destroy(key(1))
    live.close()
    assert (directory / "log").read_bytes() == data
    assert (directory / "log").stat().st_ino == inode
    with pytest.raises(ConfigError, match="newer version"):
        HybridProvider(directory)


def test_c16_an_image_of_another_format_is_made_again(tmp_path: Path) -> None:
    with workers(tmp_path, {}) as (one,):
        put(one, 1)
    newer = Image(str(tmp_path / "image"))
    meta = newer.meta()
    assert meta is not None
    newer.set_meta(meta._replace(format=99))
    newer.close()
    with (tmp_path / "image").open("rb") as older:  # so that its inode is not used again
        assert opened(tmp_path).keys() == {key(1)}
        assert os.fstat(older.fileno()).st_ino != (tmp_path / "image").stat().st_ino


# C17


def test_c17_workers_of_different_settings(tmp_path: Path) -> None:
    """Each is as durable as it was told, and all write one log."""
    settings = [
        {"durability": "always", "map_bytes": 1 << 20},
        {"durability": "never", "compact_bytes": 20_000, "compact_factor": 1.1},
        {"durability": "interval", "sync_interval": 0.01, "map_bytes": 1 << 30},
    ]
    large = bytes(20_000)
    with workers(tmp_path, *settings) as handles:
        for number in range(120):
            put(handles[number % 3], number)
            change = Change({"b": large}, expects={})
            call(handles[(number + 1) % 3], "commit", key(number), change, NOW)
            if number % 3 == 2:
                assert call(handles[0], "destroy", key(number - 1))
        put(handles[0], "synced")
        assert call(handles[0], "stats")["unsynced_commits"] == 0
        assert all(sees(each) == sees(handles[0]) for each in handles)
        before = sees(handles[0])
        assert len(before) == 81
    assert opened(tmp_path) == before
    assert held(tmp_path) == before


def test_c17_a_reader_of_a_smaller_map(tmp_path: Path) -> None:
    """It sees what others have written beyond what it has mapped."""
    with workers(tmp_path, {"map_bytes": 1 << 20}, {"map_bytes": 1 << 30}) as (small, large):
        put(small, 1)
        change = Change({"b": bytes(3 << 20)}, expects={})
        call(large, "commit", key(1), change, NOW)
        assert sees(small) == sees(large)


def site(directory: Path, **config: Any) -> tuple[Any, HybridSession]:
    app = Flask(__name__)
    app.config.update(SESSION_DIR=str(directory), **config)
    sessions = HybridSession(app)

    @app.get("/count")
    def count() -> str:
        session["count"] = session.get("count", 0) + 1
        return str(session["count"])

    @app.get("/read")
    def read() -> str:
        return str(session.get("count"))

    return app, sessions


def cookie(client: Any) -> str:
    return str(client.get_cookie("session").value)


def test_c17_two_apps_of_one_process(tmp_path: Path) -> None:
    """A sid is a sid in both; what one app does not recognise it neither adopts nor harms."""
    short, two = site(tmp_path, SESSION_DURABILITY="never", SESSION_ID_LENGTH=16)
    plain, one = site(tmp_path, SESSION_DURABILITY="always")
    signed, three = site(tmp_path, SESSION_SIGN_COOKIE=True, SECRET_KEY="k")
    visitor = plain.test_client()
    visitor.get("/count")
    visitor.get("/count")
    assert one.provider.stats()["unsynced_commits"] == 0
    for other in (short, signed):
        guest = other.test_client()
        guest.set_cookie("session", cookie(visitor))
        assert guest.get("/read").text == "None", "not of this app's shape"
        assert guest.get("/count").text == "1"
        assert cookie(guest) != cookie(visitor)
        assert guest.get("/count").text == "2"
    assert visitor.get("/read").text == "2"
    assert one.count() == two.count() == three.count() == 3
    for sessions in (one, two, three):
        sessions.close()


def test_c17_each_expiry_is_told_by_one_app(tmp_path: Path) -> None:
    plain, one = site(tmp_path, SESSION_EXPIRES=0.05)
    other, two = site(tmp_path, SESSION_EXPIRES=3600)
    told: list[str] = []

    def note(sender: Any, *, key: str, **details: Any) -> None:
        told.append(key)

    session_expired.connect(note, plain)
    session_expired.connect(note, other)
    clockwork.start()  # in a test it does not by itself
    for _ in range(20):
        plain.test_client().get("/count")
        other.test_client().get("/count")
    until(lambda: len(told) >= 20)
    until(lambda: two.provider.count(0.0) == 20)
    assert len(told) == len(set(told)) == 20
    one.close()
    two.close()


def test_c17_a_directory_that_is_a_link_is_the_same_store(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "store")
    one, first = site(tmp_path / "store")
    two, second = site(tmp_path / "link")
    # Opened twice in one process, the image's locks would go with the first one that is closed.
    assert first.provider._store is second.provider._store  # type: ignore[attr-defined]
    visitor, same = one.test_client(), two.test_client()
    visitor.get("/count")
    same.set_cookie("session", cookie(visitor))
    assert same.get("/count").text == "2"
    assert visitor.get("/count").text == "3"
    first.close()
    second.close()
