"""C9 and C10: compaction that is killed at any step, and compaction under four writers."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.core.errors import Conflict
from flask_hybridsession.providers.hybrid import HybridProvider, compact
from flask_hybridsession.providers.hybrid.log import Log
from flask_hybridsession.providers.hybrid.recovery import replay
from tests.model import InProcess
from tests.providers.hybrid.tools import NOW, PATIENCE, content, create, join, key, start

from .crashes import die_before, held, killed, opened

WRITERS = 4
ROUNDS = 200
#: Sessions of each writer that are there from the start: the image is copied in several slices.
OLD = 211


def fill(directory: Path) -> dict[str, Any]:
    provider = HybridProvider(directory)
    for session in range(40):
        create(provider, session, user="s:ann" if session % 2 else None)
    provider.rename(key(1), key("renamed"), NOW, inf)
    provider.destroy(key(2))
    provider.commit(key(3), Change({"b": b"2"}, deadline=NOW + 9), NOW)
    before = content(provider)
    provider.close()
    return before


def come_late(provider: HybridProvider, told: Any = None) -> None:
    """Before the last copying another commit comes: a tail to copy in the turn."""
    write = provider._store.write

    def late(wait: bool, work: Any, *args: Any) -> Any:
        if work is compact.switch:
            create(provider, "late")
            if told is not None:
                told.send("late")
        return write(wait, work, *args)

    provider._store.write = late  # type: ignore[method-assign]


def go_on(provider: HybridProvider, step: int) -> dict[str, Any]:
    """What a killed compaction has left behind is of the past when the next one finds it."""
    provider.destroy(key("late"))
    provider.commit(key(3), Change({"b": b"%d" % step}), NOW)
    provider._check()
    assert provider.stats()["damaged_logs"] == 0
    return content(provider)


def is_whole(directory: Path, old: bytes) -> bool:
    """Whether the log is the old one, perhaps continued, or a new one that lacks nothing."""
    data = (directory / "log").read_bytes()
    log = Log.open(str(directory / "log"))
    assert log is not None
    found = replay(log, same_boot=True)
    return data.startswith(old) or (not found.damage and found.position == len(data))


@pytest.mark.parametrize("then", ["beside a live worker", "restart", "restart without the image"])
def test_c9_killed_at_each_step(tmp_path: Path, then: str) -> None:
    before = fill(tmp_path)
    open_ = partial(HybridProvider, tmp_path)
    # In a process of its own: a fork closes what is open here.
    live = InProcess(open_) if then == "beside a live worker" else None

    def crash(step: int, told: Any) -> None:
        die_before(step)
        provider = open_()
        come_late(provider, told)
        assert provider.compact()
        provider.close()

    step = 0
    went_on = True
    while went_on:
        step += 1
        old = (tmp_path / "log").read_bytes()
        reader, writer = Pipe(False)
        went_on = killed(crash, step, writer)
        assert is_whole(tmp_path, old)
        if live is not None:
            now = live.do(NOW, content)
        else:
            now = held(tmp_path) if then == "restart without the image" else opened(tmp_path)
        assert now.keys() - {key("late")} == before.keys()
        if reader.poll():
            assert key("late") in now, "it was acknowledged"
        assert {name: now[name] for name in before} == before
        if live is not None:
            before = live.do(NOW, go_on, step)
        else:
            provider = open_()
            before = go_on(provider, step)
            provider.close()
    assert step > 30, "the steps were not seen"
    assert not set(os.listdir(tmp_path)) - {"compact", "image", "image-lock", "lock", "log", "sync"}
    if live is not None:
        live.close()
        assert held(tmp_path) == before


def test_c9_killed_within_each_write(tmp_path: Path) -> None:
    before = fill(tmp_path)

    def crash(number: int) -> None:
        write = os.write
        provider = HybridProvider(tmp_path)
        left = [number]

        def half(fd: int, data: bytes) -> int:
            left[0] -= 1
            if not left[0]:
                write(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(fd, data)

        os.write = half
        provider.compact()

    number = 1
    while killed(crash, number):
        assert opened(tmp_path) == before
        assert held(tmp_path) == before
        number += 1
    assert number > 2


def test_c9_the_new_log_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill does not show what a power cut would: here the order itself is looked at."""
    fill(tmp_path)
    provider = HybridProvider(tmp_path)
    done: list[tuple[str, int]] = []

    def noted(name: str) -> None:
        original = getattr(os, name)

        def call(what: Any, *args: Any) -> Any:
            result = original(what, *args)
            target = what if isinstance(what, int) else args[0]
            done.append((name, os.stat(target).st_ino))
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("write", "fdatasync", "fsync", "rename"):
        noted(name)
    come_late(provider)
    assert provider.compact()
    monkeypatch.undo()
    log, directory = (tmp_path / "log").stat().st_ino, tmp_path.stat().st_ino
    named = done.index(("rename", log))
    assert ("write", log) in done[:named]
    assert done[named - 1] == ("fdatasync", log), "everything that was written"
    assert done[named + 1] == ("fsync", directory), "before anybody writes to it"
    assert ("write", log) not in done[named:]
    provider.close()


def work_until_done(directory: Path, part: int) -> None:
    """Count in what all share, create, rename, destroy; compact now and then by itself."""
    provider = HybridProvider(directory, compact_bytes=20_000, compact_factor=1.2)
    for count in range(ROUNDS):
        while True:
            record = provider.load(key("shared"), NOW)
            assert record is not None
            mine = record.values["count"]
            change = Change({"count": b"%d" % (int(mine) + 1)}, expects={"count": mine})
            try:
                provider.commit(key("shared"), change, NOW)
                break
            except Conflict:
                continue
        create(provider, (part, count))
        provider.rename(key((part, count)), key((part, count, "new")), NOW)
        provider.commit(key((part, count, "new")), Change({"b": b"%d" % count}), NOW)
        if count % 3:
            assert provider.destroy(key((part, count, "new")))
        old = old_one(part, count)
        if count % 4 == 0:
            provider.rename(old, key(("moved", old)), NOW)
        elif count % 4 == 1:
            assert provider.destroy(old)
        else:
            provider.commit(old, Change({"b": b"%d" % count}), NOW)
    provider.close()


def old_one(part: int, count: int) -> str:
    """Anywhere among those of this writer, another one in each round."""
    return key(("old", part, count * 37 % OLD))


def begin(provider: HybridProvider, writers: int) -> None:
    create(provider, "shared", puts={"count": b"0"})
    for part in range(writers):
        for number in range(OLD):
            create(provider, ("old", part, number))


def expected(writers: int) -> dict[str, dict[str, bytes]]:
    """What the sessions hold when all of the work is done."""
    left = {key(("old", part, n)): {"a": b"1"} for part in range(writers) for n in range(OLD)}
    left[key("shared")] = {"count": b"%d" % (writers * ROUNDS)}
    for part in range(writers):
        for count in range(ROUNDS):
            old = old_one(part, count)
            if count % 4 == 0:
                left[key(("moved", old))] = left.pop(old)
            elif count % 4 == 1:
                del left[old]
            else:
                left[old]["b"] = b"%d" % count
            if count % 3 == 0:
                left[key((part, count, "new"))] = {"a": b"1", "b": b"%d" % count}
    return left


def values(now: dict[str, Record | None]) -> dict[str, dict[str, bytes] | None]:
    return {name: record and dict(record.values) for name, record in now.items()}


def test_c10_compaction_under_four_writers(
    tmp_path: Path, rounds: Callable[[int], Iterator[int]]
) -> None:
    compactions = 0
    for seed in rounds(3):
        directory = tmp_path / str(seed)
        provider = HybridProvider(directory)
        begin(provider, WRITERS)
        first = provider.stats()["generation"]
        writers = [start(work_until_done, directory, part) for part in range(WRITERS)]
        done = 0
        while any(writer.is_alive() for writer in writers):
            done += provider.compact()
        for writer in writers:
            join(writer)
        assert done
        provider._check()
        live = content(provider)
        compactions += provider.stats()["generation"] - first  # type: ignore[operator]
        provider.close()
        for now in (live, opened(directory), held(directory)):
            assert values(now) == expected(WRITERS)
        shutil.rmtree(directory)
    assert compactions > 3, "one after the other"
    print(f"{compactions} compactions")


def test_c10_threads_of_one_worker_compact_and_write(
    tmp_path: Path, rounds: Callable[[int], Iterator[int]]
) -> None:
    for seed in rounds(1):
        directory = tmp_path / str(seed)
        provider = HybridProvider(directory)
        begin(provider, 2)
        threads = [
            threading.Thread(target=work_until_done, args=(directory, part)) for part in range(2)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            provider.compact()
        provider.close()
        assert values(held(directory)) == expected(2)
        shutil.rmtree(directory)


def test_c10_a_log_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    """The one that was copied is not the log any more: what is written to the next one stays."""
    provider = HybridProvider(tmp_path)
    before = {create(provider, number) for number in range(5)}
    other = InProcess(partial(HybridProvider, tmp_path))
    write = provider._store.write

    def late(wait: bool, work: Any, *args: Any) -> Any:
        if work is compact.switch:
            (tmp_path / "log").unlink()
            other.do(NOW, create, "meanwhile")
        return write(wait, work, *args)

    provider._store.write = late  # type: ignore[method-assign]
    assert not provider.compact()
    assert content(provider).keys() == other.do(NOW, content).keys() == before | {key("meanwhile")}
    provider._check()
    other.close()
    provider.close()
    assert held(tmp_path).keys() == before | {key("meanwhile")}


def test_c10_a_lock_is_held_through_a_compaction(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    with provider.lock(key(1), 0, PATIENCE):
        assert provider.compact()
        with pytest.raises(TimeoutError), provider.lock(key(1), 0, PATIENCE):
            pass
    with provider.lock(key(1), 0, PATIENCE):
        assert provider.compact()
    provider.close()


def test_c10_the_new_image_is_taken_as_it_is(tmp_path: Path) -> None:
    """By those who had the old one open, with its lock file, when it was replaced."""
    provider = HybridProvider(tmp_path)
    other = InProcess(partial(HybridProvider, tmp_path))
    for number in range(8):
        create(provider, number)
        other.do(NOW, create, ("of the other", number))
        assert provider.compact()
        inode = (tmp_path / "image").stat().st_ino
        assert other.do(NOW, content) == content(provider)
        assert (tmp_path / "image").stat().st_ino == inode, "not made again from the log"
    other.close()
    provider.close()
