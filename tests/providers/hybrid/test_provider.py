"""The hybrid provider among processes that die, disks that fail and forks. The contract itself is
judged by the provider suite."""

from __future__ import annotations

import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_EX, flock
from math import inf
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ConfigError, ProviderUnavailable, SessionGone
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.hybrid import HybridProvider, image, stores
from flask_hybridsession.providers.hybrid.log import Log
from flask_hybridsession.providers.hybrid.words import SYNCED

from .tools import NOW, PATIENCE, content, create, files, join, key, run, spoil, start

DURABILITIES = ("always", "interval", "never")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# Settings


def test_from_settings(tmp_path: Path) -> None:
    provider = HybridProvider.from_settings(
        Settings(
            directory=str(tmp_path / "a" / "b"),
            durability="always",
            sync_interval=2.0,
            options={"compact_bytes": 5},
        )
    )
    assert provider.stats()["durability"] == "always"
    assert not (tmp_path / "a").exists(), "nothing was stored yet"
    create(provider, 1)
    assert (tmp_path / "a" / "b" / "log").exists()
    assert provider._store.tuning.sync_interval == 2.0
    assert provider._store.tuning.compact_bytes == 5
    provider.close()


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/nothing/here", ""])
def test_a_directory_that_cannot_be_names_the_setting(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="SESSION_DIR"):
        HybridProvider(tmp_path / name if name else "")


def test_a_directory_is_a_path() -> None:
    with pytest.raises(ConfigError, match="SESSION_DIR"):
        HybridProvider(123)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"durability": "maybe"}, {"sync_interval": 0}, {"sync_interval": "1"}, {"patience": "5"}],
)
def test_other_settings_are_checked(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ConfigError, match="SESSION_"):
        HybridProvider(tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_a_closed_provider_says_so(tmp_path: Path) -> None:
    one, two = HybridProvider(tmp_path), HybridProvider(tmp_path)
    create(one, 1)
    one.close()
    one.close()
    with pytest.raises(ProviderUnavailable, match="closed"):
        one.load(key(1), NOW)
    with pytest.raises(ProviderUnavailable, match="closed"):
        create(one, 2)
    assert two.exists(key(1), NOW)
    two.close()


def test_stats(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, durability="never")
    create(provider, 1)
    stats = provider.stats()
    assert (stats["sessions"], stats["commits"], stats["unsynced_commits"]) == (1, 1, 1)
    assert stats["log_bytes"] == (tmp_path / "log").stat().st_size
    assert stats["damaged_logs"] == 0
    provider.close()


# Processes that die


def write_until_killed(directory: Path, part: int, first: int, durability: str, told: Any) -> None:
    provider = HybridProvider(directory, durability=durability)
    count = first
    while True:
        name = (part, count)
        create(provider, name)
        told.send(("create", count))
        provider.commit(key(("counter", part)), Change({"n": b"%d" % count}), NOW)
        told.send(("count", count))
        if count % 2:
            provider.destroy(key(name))
            told.send(("destroy", count))
        count += 1


@pytest.mark.parametrize("durability", ["always", "interval"])
def test_killed_writers_lose_nothing_that_was_acknowledged(tmp_path: Path, durability: str) -> None:
    dice = random.Random(7)
    provider = HybridProvider(tmp_path, compact_bytes=100_000)
    parts = range(3)
    for part in parts:
        create(provider, ("counter", part))
    acknowledged: dict[int, dict[str, int]] = {part: {} for part in parts}
    for _ in range(4):
        readers, workers = [], []
        for part in parts:
            reader, writer = Pipe(False)
            first = 1 + max(acknowledged[part].values(), default=0)
            arguments = (tmp_path, part, first + 1, durability, writer)
            workers.append(start(write_until_killed, *arguments))
            writer.close()
            readers.append(reader)
        assert all(reader.poll(PATIENCE) for reader in readers)
        time.sleep(dice.random() / 20)
        for worker in workers:
            worker.kill()
        for part, reader in enumerate(readers):
            try:
                while True:
                    what, count = reader.recv()
                    acknowledged[part][what] = count
            except EOFError:
                reader.close()
        for worker in workers:
            join(worker, -signal.SIGKILL)
        for part in parts:
            done = acknowledged[part]
            record = provider.load(key(("counter", part)), NOW)
            assert record is not None
            assert int(record.values.get("n", 0)) >= done.get("count", 0)
            if done["create"] % 2 == 0:  # the others are destroyed sooner or later
                assert provider.exists(key((part, done["create"])), NOW)
            if "destroy" in done:
                assert not provider.exists(key((part, done["destroy"])), NOW)
        provider._check()
    before = content(provider)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert content(provider) == before
    provider.close()


def test_a_writer_killed_within_its_turn_changed_nothing(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    before = content(provider)

    def crash(after: int) -> None:
        mine = HybridProvider(tmp_path)
        original = Log.append

        def append(log: Log, data: bytes) -> None:
            original(log, data[:after] if after else data)
            os.kill(os.getpid(), signal.SIGKILL)

        Log.append = append  # type: ignore[method-assign]
        mine.destroy(key(1))

    for after in (1, 60, 100, 0):
        run(crash, after, expected=-signal.SIGKILL)
        assert content(provider) == before
        provider.commit(key(1), Change({"b": b"%d" % after}), NOW)
        before = content(provider)
        provider._check()
    provider.close()


def test_two_recover_at_once(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(200):
        create(provider, name)
    provider.close()
    (tmp_path / "image").unlink()

    def recover(part: int) -> None:
        mine = HybridProvider(tmp_path)
        assert mine.count(NOW) >= 200
        create(mine, ("new", part))
        mine.close()

    for worker in [start(recover, part) for part in range(4)]:
        join(worker)
    provider = HybridProvider(tmp_path)
    assert provider.count(NOW) == 204
    provider._check()
    provider.close()


def test_a_stopped_writer_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, patience=0.2)
    create(provider, 1)
    parent, child = Pipe()

    def stop() -> None:
        mine = HybridProvider(tmp_path)
        assert child.recv() == "go"
        mine._store.write(False, lambda turn: os.kill(os.getpid(), signal.SIGSTOP))

    worker = start(stop)
    assert provider.exists(key(1), NOW)
    parent.send("go")
    os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(ProviderUnavailable, match="too long"):
        provider.destroy(key(1))
    assert provider.exists(key(1), NOW), "readers wait for nobody"
    worker.kill()
    worker.join(PATIENCE)
    assert provider.destroy(key(1))
    provider._check()
    provider.close()


# Forks


def test_a_fork_after_open(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    assert provider.exists(key(1), NOW)

    def child(part: int) -> None:
        assert provider.exists(key(1), NOW)
        create(provider, ("child", part))
        assert provider._store._keeper is not None, "its thread runs here too"
        assert provider._store._keeper.is_alive()
        provider.close()

    children = [start(child, part) for part in range(4)]
    for name in range(50):
        create(provider, ("parent", name))
    for each in children:
        join(each)
    assert provider.count(NOW) == 55
    provider._check()
    provider.close()


def test_forks_while_other_threads_work(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, durability="always")
    create(provider, 1, puts={"n": b"0"})
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            count = 0
            while not stop.is_set():
                provider.commit(key(1), Change({name: b"%d" % count}), NOW)
                record = provider.load(key(1), NOW)
                assert record is not None
                assert record.values[name] == b"%d" % count
                count += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()

    def child(part: int) -> None:
        provider.commit(key(1), Change({f"c{part}": b"x"}), NOW)
        provider.close()

    for part in range(10):
        run(child, part)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    record = provider.load(key(1), NOW)
    assert record is not None
    assert {f"c{part}" for part in range(10)} <= record.values.keys()
    provider._check()
    provider.close()


# Disks that fail


def test_a_short_write_is_cut_back(tmp_path: Path) -> None:
    def limited() -> None:
        provider = HybridProvider(tmp_path)
        create(provider, 1)
        before = content(provider)
        size = (tmp_path / "log").stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, hard))
        with pytest.raises(ProviderUnavailable):
            create(provider, 2)
        with pytest.raises(ProviderUnavailable):
            provider.destroy(key(1))
        assert (tmp_path / "log").stat().st_size == size
        assert content(provider) == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        create(provider, 2)
        provider._check()
        provider.close()

    run(limited)
    provider = HybridProvider(tmp_path)
    assert provider.count(NOW) == 2
    provider.close()


def test_an_image_that_cannot_grow_cuts_the_log_back(tmp_path: Path) -> None:
    def limited() -> None:
        provider = HybridProvider(tmp_path)
        create(provider, 1)
        before = content(provider)
        size = (tmp_path / "log").stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        image = (tmp_path / "image").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (image, hard))
        with pytest.raises(ProviderUnavailable):
            create(provider, 2, puts={"a": bytes(image - size - 1000)})
        assert (tmp_path / "log").stat().st_size == size
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert content(provider) == before
        create(provider, 2)
        provider._check()
        provider.close()

    run(limited)


def fail_syncs(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The next syncs of data fail, then they would succeed again."""
    left = [times]
    original = os.fdatasync

    def fdatasync(fd: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        original(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return left


def test_a_failed_sync_is_answered_with_a_new_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = HybridProvider(tmp_path, durability="always")
    create(provider, 1)
    inode = (tmp_path / "log").stat().st_ino
    fail_syncs(monkeypatch, 1)
    create(provider, 2)
    assert (tmp_path / "log").stat().st_ino != inode
    assert provider.stats()["unsynced_commits"] == 0
    create(provider, 3)
    provider._check()
    provider.close()


def test_nothing_is_acknowledged_after_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by another worker either, and not because a second try succeeds."""
    other = HybridProvider(tmp_path, durability="always")
    create(other, 1)

    def worker() -> None:
        mine = HybridProvider(tmp_path, durability="always")
        create(mine, 2)
        fail_syncs(monkeypatch, 2)  # of the log, and of the one that should replace it
        with pytest.raises(ProviderUnavailable):
            create(mine, 3)
        os._exit(0)

    inode = (tmp_path / "log").stat().st_ino
    run(worker)
    assert (tmp_path / "log").stat().st_ino == inode
    create(other, 4)
    assert (tmp_path / "log").stat().st_ino != inode
    other._check()
    other.close()


def test_syncs_that_go_on_failing_stop_the_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = HybridProvider(tmp_path, durability="always")
    create(provider, 1)
    left = fail_syncs(monkeypatch, 1000)
    for name in range(2, 5):
        with pytest.raises(ProviderUnavailable):
            create(provider, name)
    assert provider.exists(key(1), NOW)
    left[0] = 0

    def writable() -> bool:
        try:
            provider.commit(key(1), Change({"b": b"2"}), NOW)
        except ProviderUnavailable:
            return False
        return True

    until(writable)
    provider._check()
    provider.close()


# Durability


def test_always_means_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    original = os.fdatasync

    def fdatasync(fd: int) -> None:
        original(fd)
        synced.append(os.fstat(fd).st_size)

    provider = HybridProvider(tmp_path, durability="always")
    provider.load(key(1), NOW)  # it opens with its first use
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    create(provider, 1)
    assert synced == [(tmp_path / "log").stat().st_size]
    provider.rename(key(1), key(2), NOW)
    assert synced[-1] == (tmp_path / "log").stat().st_size
    provider.destroy(key(2))
    assert synced[-1] == (tmp_path / "log").stat().st_size
    with pytest.raises(SessionGone):
        provider.commit(key(2), Change({"a": b"1"}), NOW)
    assert len(synced) == 3
    provider.close()


def test_interval_syncs_soon(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, sync_interval=0.05)
    for name in range(3):
        create(provider, name)
        until(lambda: provider.stats()["unsynced_commits"] == 0)
    provider.close()


def test_interval_syncs_at_close(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path, sync_interval=1000)
    create(provider, 1)
    words = provider._store.words
    assert words.view[SYNCED] == 0
    provider.close()
    assert words.view[SYNCED] == 1


def test_never_does_not_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = HybridProvider(tmp_path, durability="never")
    provider.load(key(1), NOW)
    left = fail_syncs(monkeypatch, 1000)
    create(provider, 1)
    assert not provider._store._bell.wait(0), "nobody is woken for nothing"
    provider.close()
    assert left[0] == 1000


def test_providers_of_one_directory_may_differ(tmp_path: Path) -> None:
    relaxed = HybridProvider(tmp_path, durability="never")
    strict = HybridProvider(tmp_path, durability="always")
    create(relaxed, 1)
    assert relaxed.stats()["unsynced_commits"] == 1
    create(strict, 2)
    assert relaxed.stats()["unsynced_commits"] == 0
    relaxed.close()
    strict.close()


def test_many_wait_for_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    original = os.fdatasync

    def fdatasync(fd: int) -> None:
        calls[0] += 1
        time.sleep(0.01)
        original(fd)

    provider = HybridProvider(tmp_path, durability="always")
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    threads = [threading.Thread(target=create, args=(provider, name)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.count(NOW) == 16
    assert calls[0] < 16
    provider.close()


# Interrupted


def test_an_interrupt_within_a_turn_leaves_no_trace(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    before = files(tmp_path)["log"]
    original = Log.append

    def append(log: Log, data: bytes) -> None:
        original(log, data)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "append", append)
        with pytest.raises(KeyboardInterrupt):
            provider.destroy(key(1))
    assert files(tmp_path)["log"] == before
    assert provider.exists(key(1), NOW)
    provider.destroy(key(1))
    provider._check()
    provider.close()


def test_a_write_within_a_write_is_refused(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    with pytest.raises(ProviderUnavailable, match="in the middle"):
        provider._store.write(False, lambda turn: provider.destroy(key(1)))
    assert provider.destroy(key(1))
    provider.close()


# Aliases, lists and locks


def test_aliases_outlive_a_restart_and_end_on_time(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1, deadline=inf)
    provider.rename(key(1), key(2), NOW, NOW + 10)
    provider.rename(key(2), key(3), NOW, NOW + 20)
    for _ in range(2):
        provider.close()
        provider = HybridProvider(tmp_path)
        for alias, end in ((1, NOW + 10), (2, NOW + 20)):
            record = provider.load(key(alias), end - 0.1)
            assert record is not None
            assert record.key == key(3)
            assert provider.load(key(alias), end) is None
        provider._check()
        (tmp_path / "image").unlink()
    assert provider.next_deadline() == NOW + 10
    assert provider.purge(NOW + 15, 10) == []
    assert provider.next_deadline() == NOW + 20
    assert provider.purge(NOW + 25, 10) == []
    assert provider.next_deadline() is None
    provider._check()
    provider.close()


def test_a_purge_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(30):
        create(provider, name, deadline=NOW + 1)
    writes: list[int] = []
    original = Log.append

    def append(log: Log, data: bytes) -> None:
        writes.append(len(data))
        original(log, data)

    monkeypatch.setattr(Log, "append", append)
    assert len(provider.purge(NOW + 1, 20)) == 20
    assert len(provider.purge(NOW + 1, 20)) == 10
    assert provider.purge(NOW + 1, 20) == []
    assert len(writes) == 2
    provider._check()
    provider.close()


def test_what_cannot_be_read_does_not_stop_a_purge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(5):
        create(provider, name, deadline=NOW + name, user="s:ann")
    provider.rename(key(1), key("renamed"), NOW, NOW + 500)
    for name in ("renamed", 2):
        spoil(provider, key(name))
    gone = [record.key for record in provider.purge(NOW + 10, 10)]
    assert gone == [key(0), key(3), key(4)]
    assert provider.purge(NOW + 10, 10) == []
    assert all(key(name)[:12] in caplog.text for name in ("renamed", 2))
    assert provider.keys_of("s:ann", NOW) == []
    assert provider.next_deadline() is None
    provider._check()
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert provider.count(NOW) == 0, "the log knows it too"
    provider.close()


def test_an_alias_of_what_cannot_be_read_does_not_stop_a_purge(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    create(provider, 2, deadline=NOW + 9)
    provider.rename(key(1), key("renamed"), NOW, NOW + 5)
    spoil(provider, key("renamed"))
    assert [record.key for record in provider.purge(NOW + 10, 10)] == [key(2)]
    assert key("renamed")[:12] in caplog.text
    assert provider.next_deadline() == NOW + 1000
    provider.close()


def test_a_burst_goes_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_CROWD", 50)
    provider = HybridProvider(tmp_path)
    due = {create(provider, name, deadline=NOW + name / 1000, user="s:x") for name in range(400)}
    stays = create(provider, "stays", deadline=NOW + 1000)
    first = [record.key for record in provider.purge(NOW + 10, 100)]
    assert len(set(first)) == 100
    assert sorted(first) != sorted(key(name) for name in range(100)), "they were neighbours"
    provider._check()
    # What takes the place of one whose old entry is still there.
    for again in first[:10]:
        change = Change({"b": b"2"}, create=True, deadline=NOW + 1000)
        provider.commit(again, change, NOW + 10)
    rest = [record.key for _ in range(4) for record in provider.purge(NOW + 10, 100)]
    assert sorted(first + rest) == sorted(due)
    assert provider.purge(NOW + 10, 100) == []
    assert provider.next_deadline() == NOW + 1000
    assert content(provider, NOW + 10).keys() == {stays, *first[:10]}
    provider._check()
    before = content(provider, NOW + 10)
    provider.close()
    (tmp_path / "image").unlink()
    provider = HybridProvider(tmp_path)
    assert content(provider, NOW + 10) == before
    provider.close()


def test_one_worker_purges_at_a_time(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    for name in range(30):
        create(provider, name, deadline=NOW + 1)
    claimed: list[str] = []
    with (tmp_path / "purge").open("w") as held:
        flock(held, LOCK_EX)
        waiting = threading.Thread(
            target=lambda: claimed.extend(record.key for record in provider.purge(NOW + 1, 20))
        )
        waiting.start()
        create(provider, "beside", deadline=NOW + 100)
        waiting.join()  # a worker that is stopped holds the others up, but not for ever
    assert len(set(claimed)) == 20
    assert len(provider.purge(NOW + 1, 20)) == 10
    provider._check()
    provider.close()


def test_what_is_purged_is_announced_though_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = HybridProvider(tmp_path, durability="always")
    for name in range(3):
        create(provider, name, deadline=NOW + 1)
    left = fail_syncs(monkeypatch, 1000)
    assert len(provider.purge(NOW + 1, 20)) == 3
    assert left[0] < 1000
    left[0] = 0
    provider._check()
    provider.close()


def test_leases_of_killed_holders_are_swept_away(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    assert (
        provider.load(key(1), 0.0) is None
    )  # the store is open, so the killed one is not its last user

    def crash() -> None:
        mine = HybridProvider(tmp_path)
        with mine.lock(key(1), 1, 0.2), mine.lock(key(2), 1, 0.2):
            os.kill(os.getpid(), signal.SIGKILL)

    run(crash, expected=-signal.SIGKILL)
    assert leases(provider)

    def swept() -> bool:
        with provider.lock(key("another"), 1, PATIENCE):
            return leases(provider) == 1

    until(swept)
    assert leases(provider) == 0
    provider.close()


def leases(provider: HybridProvider) -> int:
    return provider._store.read(lambda txn, image: int(txn.stat(image.locks)["entries"]))


def test_keys_are_listed_in_slices(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    made = {create(provider, name) for name in range(1201)}
    assert set(provider.keys(NOW)) == made
    listed = iter(provider.keys(NOW))
    next(listed)
    provider.compact()  # nothing that waits for the caller is held open
    assert len(list(listed)) == 1200
    provider.close()


def test_a_lock_outlives_no_lease(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1)
    with provider.lock(key(1), 1, 0.05):
        with provider.lock(key(1), PATIENCE, PATIENCE):
            pass
        with (
            provider.lock(key(1), 1, PATIENCE),
            pytest.raises(TimeoutError),
            provider.lock(key(1), 0.01, 1),
        ):
            pass
    with provider.lock(key(1), 0, 1):
        pass
    provider.close()


def test_one_store_per_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, two = HybridProvider(tmp_path / "real"), HybridProvider(tmp_path / "link")
    assert one._store is two._store
    one.close()
    create(two, 1)
    two.close()
    assert str(tmp_path / "real") not in stores._stores


def test_no_key_or_value_in_a_message(tmp_path: Path) -> None:
    provider = HybridProvider(tmp_path)
    create(provider, 1, puts={"name": b"value"})
    with pytest.raises(SessionGone) as gone:
        provider.commit(key(2), Change({"secret": b"value"}), NOW)
    assert key(2) not in str(gone.value)
    assert "secret" not in str(gone.value)
    provider.close()
