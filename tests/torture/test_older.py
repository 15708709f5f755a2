"""Each file of a store becomes an older one, another store's, empty, shorter, or loses its head.

While workers are at work, as one starts, between a stop and a start, and after all were killed.
Nothing that was acknowledged is lost, and nothing comes back. The copies are taken while the store
is in use, and it may be compacted after that.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change, Record
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.model import InProcess, ask
from tests.providers.hybrid.tools import NOW, PATIENCE, content, key

from .crashes import held, opened

FILES = ("image", "log", "sync", "image-lock", "lock")
MAPPED = ("image", "sync", "image-lock")


def by_mv(directory: Path, name: str, copy: Path) -> None:
    shutil.copy(copy, directory / "copy")
    (directory / "copy").rename(directory / name)


def by_cp(directory: Path, name: str, copy: Path) -> None:
    shutil.copyfile(copy, directory / name)


def empty(directory: Path, name: str, copy: Path) -> None:
    os.truncate(directory / name, 0)


def shorten(directory: Path, name: str, copy: Path) -> None:
    os.truncate(directory / name, (directory / name).stat().st_size // 2)


def behead(directory: Path, name: str, copy: Path) -> None:
    with (directory / name).open("r+b") as file:
        file.write(bytes(min(128, (directory / name).stat().st_size)))


Damage = Callable[[Path, str, Path], None]
#: What is done, with which copy.
DAMAGES: dict[str, tuple[Damage, str]] = {
    "older by mv": (by_mv, "older"),
    "older by cp": (by_cp, "older"),
    "another store's by mv": (by_mv, "foreign"),
    "another store's by cp": (by_cp, "foreign"),
    "emptied": (empty, ""),
    "truncated": (shorten, ""),
    "header zeroed": (behead, ""),
}


class History:
    """Random changes by several workers, and what the store must hold after them."""

    def __init__(self, path: Path, seed: str, may_die: bool) -> None:
        self.path = path
        self.directory = path / "store"
        self.dice = random.Random(seed)
        self.sessions: dict[str, tuple[dict[str, bytes], str | None]] = {}
        self.count = 0
        self.may_die = may_die
        self.workers: list[InProcess] = []

    def start(self) -> InProcess:
        # By the clock of the tests a log is old at once, and would be compacted at any time.
        worker = InProcess(
            partial(HybridProvider, self.directory, sync_interval=0.2, compact_age=1e12)
        )
        self.workers.append(worker)
        return worker

    def call(self, worker: InProcess, name: str, *args: Any) -> Any:
        return worker.do(NOW, ask, name, *args)[1]

    def go_on(self, steps: int) -> None:
        for _ in range(steps):
            self.step(self.dice.choice(self.workers))

    def step(self, worker: InProcess) -> None:
        """One change. A worker that dies in it has done it, or not."""
        self.count += 1
        kinds = (self.login, self.put, self.increment, self.logout, self.rename)
        kind = self.dice.choices(kinds, (4, 3, 3, 2, 2))[0]
        if not self.sessions:
            kind = self.login
        before = dict(self.sessions)
        name, *call = kind()
        try:
            answer = self.call(worker, *call)
        except (EOFError, ConnectionError):
            self.bury(worker)
            found = self.look(worker)
            assert found in (before, self.sessions), "half of a change"
            self.sessions = found
        except AssertionError as error:  # a page that is no page: a 503, and the image is made anew
            if not self.may_die or "ProviderUnavailable" not in str(error):
                raise
            self.sessions = before
        else:
            assert answer is (True if name == "logout" else None), (name, answer)

    def login(self) -> tuple[Any, ...]:
        new = key(("login", self.count))
        self.sessions[new] = ({"a": b"%d" % self.count}, f"s:{self.count % 3}")
        puts, user = self.sessions[new]
        change = Change(puts, expects={}, create=True, deadline=inf, user=user)
        return "login", "commit", new, change, NOW

    def any(self) -> str:
        return self.dice.choice(sorted(self.sessions))

    def put(self) -> tuple[Any, ...]:
        name, puts = self.any(), {f"n{self.count % 4}": bytes(self.dice.randint(0, 400))}
        self.change(name, puts)
        return "put", "commit", name, Change(puts, expects={}), NOW

    def increment(self) -> tuple[Any, ...]:
        name = self.any()
        old = self.sessions[name][0].get("count")
        puts = {"count": b"%d" % (int(old or 0) + 1)}
        self.change(name, puts)
        return "increment", "commit", name, Change(puts, expects={"count": old}), NOW

    def change(self, name: str, puts: dict[str, bytes]) -> None:
        values, user = self.sessions[name]
        self.sessions[name] = ({**values, **puts}, user)

    def logout(self) -> tuple[Any, ...]:
        name = self.any()
        del self.sessions[name]
        return "logout", "destroy", name

    def rename(self) -> tuple[Any, ...]:
        name, new = self.any(), key(("renamed", self.count))
        self.sessions[new] = self.sessions.pop(name)
        return "rename", "rename", name, new, NOW

    def bury(self, worker: InProcess) -> None:
        """Memory that is cut off kills who reads it; another worker takes the place."""
        assert self.may_die, "a worker died"
        worker._leave()
        assert worker._process.exitcode in (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT)
        worker.reopen()

    def look(self, worker: InProcess) -> dict[str, tuple[dict[str, bytes], str | None]]:
        try:
            return plain(worker.do(NOW, content))
        except (EOFError, ConnectionError):
            self.bury(worker)
            return plain(worker.do(NOW, content))

    def stop(self) -> None:
        for worker in self.workers:
            try:
                worker.close()
            except (EOFError, ConnectionError):
                self.bury(worker)
                worker.close()
        self.workers.clear()

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.workers.clear()


def plain(records: dict[str, Record | None]) -> dict[str, tuple[dict[str, bytes], str | None]]:
    return {name: (dict(found.values), found.user) for name, found in records.items() if found}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another store, with more commits than those of the tests."""
    path = tmp_path_factory.mktemp("foreign")
    provider = HybridProvider(path)
    for number in range(150):
        provider.commit(key(("foreign", number)), Change({"a": b"f"}, create=True), NOW)
    assert provider.compact()
    provider.commit(key("foreign"), Change({"a": b"f"}, create=True), NOW)
    provider.close()
    return path


def prepared(history: History, name: str, damage: str, foreign: Path, compacted: bool) -> Any:
    """A history at work, and the mishap that is to come."""
    path, dice = history.path, history.dice
    for _ in range(2):
        history.start()
    history.go_on(dice.randint(1, 20))
    do, which = DAMAGES[damage]
    copy = path / "older"
    shutil.copy(history.directory / name, copy)
    history.go_on(dice.randint(1, 20))
    if compacted:
        assert history.call(history.workers[0], "compact")
        history.go_on(dice.randint(0, 5))
    return partial(do, history.directory, name, copy if which != "foreign" else foreign / name)


@pytest.mark.parametrize("how", ["live", "a worker starts", "stopped", "killed"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_newest_wins(
    fast_path: Path,
    foreign: Path,
    rounds: Callable[[int], Iterator[int]],
    name: str,
    damage: str,
    how: str,
) -> None:
    for seed in rounds(1):
        path = fast_path / str(seed)
        path.mkdir()
        in_place = not damage.endswith("mv")
        may_die = name in MAPPED and in_place and how in ("live", "a worker starts")
        history = History(path, f"{seed} {name} {damage} {how}", may_die)
        compacted = bool((seed + len(name) + len(damage)) % 2)
        mishap = prepared(history, name, damage, foreign, compacted)
        one_round(history, mishap, how)
        told = opened_check(history.directory)
        asides = list(history.directory.glob("damaged-*"))
        assert all(any(aside.name in text for text in told) for aside in asides)
        if name == "log" and damage != "emptied":
            assert asides, "the log that was found is kept"
        elif name != "log":
            assert not asides, "nothing was wrong with the log"
        assert plain(opened(history.directory)) == history.sessions
        assert plain(held(history.directory)) == history.sessions


def one_round(history: History, mishap: Callable[[], None], how: str) -> None:
    if how == "stopped":
        history.stop()
    elif how == "killed":
        history.kill()
    mishap()
    if how != "live":
        assert history.look(history.start()) == history.sessions, "at once"
    for worker in list(history.workers):
        history.step(worker)
        assert history.look(worker) == history.sessions, "who writes looks"
    for worker in history.workers:
        assert history.look(worker) == history.sessions
    history.go_on(10)
    history.stop()


def becomes(history: History, condition: Callable[[], bool]) -> bool:
    """Whether it comes true while the workers only read."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        right = [history.look(worker) == history.sessions for worker in history.workers]
        if all(right) and condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("damage", ["older by mv", "older by cp", "header zeroed"])
@pytest.mark.parametrize("name", ["image", "log"])
def test_readers_notice(
    fast_path: Path, foreign: Path, name: str, damage: str, compacted: bool
) -> None:
    """Within a second or two, without a write."""
    history = History(fast_path, damage, may_die=name == "image")
    mishap = prepared(history, name, damage, foreign, compacted)
    mishap()
    assert becomes(history, lambda: name == "image" or any(history.directory.glob("damaged-*")))
    history.stop()
    assert plain(held(history.directory)) == history.sessions


def opened_check(directory: Path) -> list[str]:
    provider = HybridProvider(directory)
    try:
        provider.load("0" * 64, 0.0)  # who only looks would mend nothing
        return provider.check()
    finally:
        provider.close()
