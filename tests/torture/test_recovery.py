"""C11: several processes find the store in need of recovery at once; and a recovery that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from math import inf
from multiprocessing import Barrier, Pipe
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.providers.hybrid.words import EPOCH, POISONED, SYNCED, Words
from tests.providers.hybrid.tools import NOW, PATIENCE, content, create, join, key, start

from .crashes import die_before, die_before_line, killed, opened, signal_before

WORKERS = 4


def fill(directory: Path, sessions: int = 60) -> None:
    provider = HybridProvider(directory)
    for session in range(sessions):
        create(provider, session, user="s:ann" if session % 3 else None)
        provider.commit(key(session), Change({"b": b"%d" % session}), NOW)
    provider.rename(key(1), key("renamed"), NOW, inf)
    for session in range(2, sessions, 7):
        provider.destroy(key(session))
    provider.close()


def lose_image(directory: Path) -> None:
    (directory / "image").unlink()


def lose_all_but_the_log(directory: Path) -> None:
    for name in ("image", "image-lock", "sync", "lock"):
        (directory / name).unlink(missing_ok=True)


def shorten_image(directory: Path) -> None:
    with (directory / "image").open("r+b") as file:
        file.truncate(8192)


def damage_log(directory: Path) -> None:
    lose_image(directory)
    data = bytearray((directory / "log").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (directory / "log").write_bytes(data)


def lose_end(directory: Path) -> None:
    lose_image(directory)
    with (directory / "log").open("r+b") as file:
        file.truncate((directory / "log").stat().st_size - 10)


def restart_machine(directory: Path) -> None:
    """The numbers and the image are of another boot."""
    words = Words(str(directory / "sync"))
    words.new_boot(b"another boot now")


MISHAPS = [
    lose_image,
    lose_all_but_the_log,
    shorten_image,
    damage_log,
    lose_end,
    restart_machine,
]


def epoch(directory: Path) -> int:
    if not (directory / "sync").exists():
        return 0
    words = Words(str(directory / "sync"))
    return int(words.view[EPOCH])


@pytest.mark.parametrize("mishap", MISHAPS)
def test_c11_one_recovers_and_all_see_the_same(
    tmp_path: Path, mishap: Callable[[Path], None]
) -> None:
    fill(tmp_path)
    mishap(tmp_path)
    before = epoch(tmp_path)
    ready = Barrier(WORKERS)
    pipes = [Pipe(False) for _ in range(WORKERS)]

    def recover(part: int) -> None:
        ready.wait(PATIENCE)
        provider = HybridProvider(tmp_path)
        pipes[part][1].send((content(provider), provider._store.log.inode))
        ready.wait(PATIENCE)  # everybody has looked
        create(provider, ("new", part))
        provider.close()

    workers = [start(recover, part) for part in range(WORKERS)]
    seen: list[Any] = []
    for reader, _ in pipes:
        assert reader.poll(PATIENCE)
        seen.append(reader.recv())
    for worker in workers:
        join(worker)
    assert all(each == seen[0] for each in seen), "one state, one log"
    assert seen[0][0], "something was left to see"
    # Numbers of no boot or another one, a lost lock file, a recovery: each is counted once.
    if mishap is not lose_all_but_the_log:  # then they begin anywhere
        assert epoch(tmp_path) - before == (2 if mishap is restart_machine else 1)
    asides = [path for path in tmp_path.iterdir() if path.name.startswith("damaged-")]
    assert len(asides) == (mishap is damage_log)
    after = opened(tmp_path)
    assert after.keys() == seen[0][0].keys() | {key(("new", part)) for part in range(WORKERS)}


@pytest.mark.parametrize("mishap", [lose_image, damage_log, restart_machine])
def test_c11_killed_in_recovery_at_each_step(
    tmp_path: Path, mishap: Callable[[Path], None]
) -> None:
    """What the next one finds is what an undisturbed recovery finds."""
    fill(tmp_path, 12)
    twin = tmp_path / "twin"
    twin.mkdir()
    mishap(tmp_path)
    for name in ("log", "sync"):
        (twin / name).write_bytes((tmp_path / name).read_bytes())
    expected = opened(twin)
    assert expected

    def crash(step: int) -> None:
        die_before(step)
        provider = HybridProvider(tmp_path)
        provider.count(NOW)
        provider.close()

    step = 1
    while killed(crash, step):
        if mishap is not damage_log:  # which is mended once and for all
            assert opened(tmp_path) == expected
            mishap(tmp_path)
        step += 1
    assert step > 30, "the steps were not seen"
    assert opened(tmp_path) == expected


def test_c11_killed_while_the_numbers_begin_anew(tmp_path: Path) -> None:
    """Those of the boot before are never taken for this one's: they say what is on the disk."""
    path = str(tmp_path / "sync")

    def crash(line: int) -> None:
        words = Words(path)
        die_before_line(line, Words.new_boot)
        words.new_boot(b"another boot now")

    line = 0
    went_on = True
    while went_on:
        words = Words(path)
        words.new_boot(b"the boot before.")
        words.view[SYNCED] = words.view[POISONED] = 7
        line += 1
        went_on = killed(crash, line)
        words = Words(path)
        words.new_boot(b"another boot now")
        assert words.view[SYNCED] == words.view[POISONED] == 0
    assert line > 4, "the lines were not seen"


def test_c11_the_one_who_recovers_is_killed_while_another_waits(tmp_path: Path) -> None:
    fill(tmp_path)
    expected = opened(tmp_path)

    def recover(step: int) -> None:
        signal_before(step, signal.SIGSTOP)
        provider = HybridProvider(tmp_path)
        provider.count(NOW)
        provider.close()

    def wait() -> None:
        assert opened(tmp_path) == expected

    for step in (12, 20, 30):
        lose_image(tmp_path)
        first = start(recover, step)
        ended = os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert ended.si_code == os.CLD_STOPPED
        second = start(wait)
        first.kill()
        first.join(PATIENCE)
        join(second)
