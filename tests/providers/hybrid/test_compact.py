"""Compaction: old or new, complete; never empty, never mixed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from math import inf
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider, compact, frame
from flask_hybridsession.providers.hybrid.image import Image
from flask_hybridsession.providers.hybrid.log import Log

from .tools import NOW, content, create, join, key, run, spoil, start

WRITERS = 4
COMMITS = 250


def test_the_log_becomes_the_live_sessions(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(10):
        create(provider, name)
    provider.rename(key(1), key("renamed"), NOW, inf)
    for count in range(100):
        provider.commit(key(2), Change({"a": b"%d" % count}), NOW)
    for name in range(5, 10):
        provider.destroy(key(name))
    before, size = content(provider), (tmp_path / "log").stat().st_size
    inode = (tmp_path / "log").stat().st_ino
    assert provider.compact()
    assert (tmp_path / "log").stat().st_size < size / 5
    assert (tmp_path / "log").stat().st_ino != inode
    assert not (tmp_path / "log.new").exists()
    log = Log.open(str(tmp_path / "log"))
    assert log is not None
    assert [entry.op for _, entry in log.entries() if isinstance(entry, frame.Frame)] == [
        frame.SNAPSHOT
    ] * 5
    assert content(provider) == before
    provider._check()
    provider.commit(key(1), Change({"b": b"through the alias"}), NOW)
    provider._check()
    before = content(provider)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert content(provider) == before
    assert provider.exists(key(1), NOW)
    provider.close()


def test_others_go_on_with_the_new_log(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)

    def other() -> None:
        mine = HybridProvider(tmp_path)
        assert mine.compact()
        create(mine, 2)
        mine.close()

    run(other)
    create(provider, 3)
    provider._check()
    assert provider.count(NOW) == 3
    provider.close()


def test_one_at_a_time(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    with (tmp_path / "compact").open("w") as held:
        flock(held, LOCK_EX)
        assert not provider.compact()
    assert provider.compact()
    provider.close()


def test_it_happens_by_itself(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, compact_bytes=20_000)
    create(provider, 1)
    count = 0
    while provider.stats()["generation"] == 1:
        count += 1
        assert count < 200_000
        provider.commit(key(1), Change({"a": b"%d" % count}), NOW)
    record = provider.load(key(1), NOW)
    assert record is not None
    assert record.values == {"a": b"%d" % count}
    provider._check()
    provider.close()


def test_a_full_disk_leaves_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    before = (tmp_path / "log").read_bytes()

    def full(log: Log) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Log, "sync", full)
        with pytest.raises(OSError, match="No space"):
            provider.compact()
    assert (tmp_path / "log").read_bytes() == before
    assert not (tmp_path / "log.new").exists()
    provider._check()
    assert provider.compact()
    provider.close()


def dies_before(monkey: pytest.MonkeyPatch, owner: Any, name: str, times: int = 1) -> None:
    left = [times]
    original: Callable[..., Any] = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0:
            os._exit(9)
        return original(*args, **options)

    monkey.setattr(owner, name, call)


@pytest.mark.parametrize("restart", ["same boot", "image lost", "beside a live worker"])
@pytest.mark.parametrize(
    ("owner", "name", "times"),
    [
        (Log, "create", 1),
        (Log, "append", 1),
        (Log, "append", 2),
        (Log, "sync", 1),
        (compact, "switch", 1),
        (Log, "size", 1),
        (Image, "close", 1),
        (Log, "sync", 2),
        (os, "rename", 1),
        (compact, "sync_directory", 1),
        (os, "rename", 2),
        (compact, "next_epoch", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_crash_at_each_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    times: int,
    restart: str,
) -> None:
    provider = HybridProvider(tmp_path)
    for session in range(50):
        create(provider, session)
    provider.rename(key(1), key("renamed"), NOW, inf)
    provider.destroy(key(2))
    before = content(provider)
    if restart != "beside a live worker":
        provider.close()

    def crash() -> None:
        mine = HybridProvider(tmp_path)
        dies_before(monkeypatch, owner, name, times)
        mine.compact()

    run(crash, expected=9)
    if restart == "image lost":
        (tmp_path / "image").unlink()
    if restart != "beside a live worker":
        provider = HybridProvider(tmp_path)
    assert content(provider) == before
    assert provider.exists(key(1), NOW)
    create(provider, "after")
    provider._check()
    assert provider.stats()["damaged_logs"] == 0
    assert provider.compact()
    provider._check()
    assert provider.count(NOW) == len(before) + 1
    provider.close()


def count_up(directory: Path, part: int) -> None:
    provider = HybridProvider(directory, compact_bytes=1 << 40)
    shared = key("shared")
    for count in range(COMMITS):
        provider.commit(shared, Change({f"{part}": b"%d" % count}), NOW)
        create(provider, (part, count))
        if count % 3:
            provider.destroy(key((part, count)))
    provider.close()


def test_under_four_writers(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, "shared")
    writers = [start(count_up, tmp_path, part) for part in range(WRITERS)]
    compactions = 0
    while any(writer.is_alive() for writer in writers):
        compactions += provider.compact()
    for writer in writers:
        join(writer)
    assert compactions
    provider._check()
    before = content(provider)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert content(provider) == before
    assert set(before) == {key("shared")} | {
        key((part, count)) for part in range(WRITERS) for count in range(0, COMMITS, 3)
    }
    record = before[key("shared")]
    assert record is not None
    assert all(record.values[f"{part}"] == b"%d" % (COMMITS - 1) for part in range(WRITERS))
    provider.close()


def per_session(directory: Path) -> float:
    provider = HybridProvider(directory)
    bytes_, sessions = (provider.stats()[name] for name in ("image_bytes", "sessions"))
    provider.close()
    return float(bytes_) / float(sessions)


def test_the_image_is_packed_beside_writers(tmp_path: Path) -> None:
    """Before: pages that a long reader has kept from being used again, and half full ones."""
    sessions, values = 3000, {f"{part}": bytes(50) for part in range(11)}
    provider = HybridProvider(tmp_path, compact_bytes=1 << 40)
    for name in range(sessions):
        create(provider, name, puts=values)
    reader = provider._store.image.begin()
    for name in range(sessions):
        provider.commit(key(name), Change({"0": bytes(50)}), NOW)
    reader.abort()
    assert provider.compact()
    quiet = per_session(tmp_path)
    assert quiet < 571 + 300
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for name in range(0, sessions, 7):
                provider.commit(key(name), Change({"0": bytes(50)}), NOW)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert provider.compact()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert per_session(tmp_path) < 3 * quiet
    provider._check()
    provider.close()


def test_an_image_that_had_to_grow(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, map_bytes=1 << 16)
    for name in range(500):
        create(provider, name, puts={"a": bytes(500)})
    for _ in range(2):
        assert provider.compact()
    assert provider.count(NOW) == 500
    provider._check()
    provider.close()


def test_a_lease_outlives_it(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    with provider.lock(key(1), 1, 60):
        assert provider.compact()
        with pytest.raises(TimeoutError), provider.lock(key(1), 0, 60):
            pass
    with provider.lock(key(1), 0, 60):
        pass
    provider.close()


def test_renamed_beside_it_in_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From keys that are not copied yet to such that were, and back; aliases move with them."""
    monkeypatch.setattr(compact, "_SLICE", 4)
    provider = HybridProvider(tmp_path)
    names = sorted((create(provider, name) for name in range(40)), key=str)
    copied: list[int] = []
    original = compact._some

    def some(*args: Any) -> Any:
        copied.append(0)
        if len(copied) == 6:  # twenty are copied
            threading.Thread(target=move).start()
            assert moved.wait(60)
        return original(*args)

    moved = threading.Event()

    def move() -> None:
        high, low = names[-1], "00" + names[0][2:]
        provider.rename(high, low, NOW, inf)
        provider.rename(names[1], "ff" + names[1][2:], NOW, NOW + 500)
        provider.rename("ff" + names[1][2:], "fe" + names[1][2:], NOW, NOW + 500)
        provider.destroy(names[-2])
        moved.set()

    monkeypatch.setattr(compact, "_some", some)
    before = {name for name in names if name not in (names[-1], names[1])}
    assert provider.compact()
    assert moved.is_set()
    provider._check()
    assert provider.exists(names[-1], NOW)
    assert provider.exists(names[1], NOW)
    assert provider.exists("ff" + names[1][2:], NOW)
    assert len(before & content(provider).keys()) >= 37
    now = content(provider)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert content(provider) == now
    provider.close()


def test_who_forks_gives_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child would keep the unfinished image open for good."""
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    store = provider._store
    begun = threading.Event()
    follow = compact.Successor._follow

    def slow(self: compact.Successor, *args: Any) -> None:
        begun.set()
        while not store.is_leaving():
            time.sleep(0.001)
        self._look_up()
        follow(self, *args)

    done: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(compact.Successor, "_follow", slow)
        thread = threading.Thread(target=lambda: done.append(provider.compact()))
        thread.start()
        assert begun.wait(60)

        def child() -> None:
            assert "image.new" not in Path("/proc/self/maps").read_text()

        run(child)
        thread.join()
    assert done == [False]
    assert not list(tmp_path.glob("*.new*"))
    assert provider.compact()
    provider._check()
    provider.close()


def test_what_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    provider = HybridProvider(tmp_path)
    for name in (1, 2):
        create(provider, name)
    spoil(provider, key(1))
    assert provider.compact()
    assert key(1)[:12] in caplog.text
    assert content(provider).keys() == {key(2)}
    assert provider.stats()["damaged_logs"] == 1, "there it may be whole"
    assert provider.check() == [text for text in provider.check() if "a log that gave way" in text]
    provider.close()
