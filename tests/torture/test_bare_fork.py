"""Forks behind Python's back: no hook is called, neither before nor after them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider, compact
from tests.providers.hybrid.tools import NOW, PATIENCE, content, create, key

from .crashes import held, opened

ROOT = Path(__file__).parents[2]
TIMES = 60


def fork() -> int:
    """As a C library does it. Python's lock is held, so the child can go on."""
    return int(ctypes.PyDLL(None).fork())


def child(work: Callable[[], object], leave: Callable[[int], Any] = os._exit) -> int:
    """Run ``work`` in a bare child; ``leave(0)`` ends it."""
    pid = fork()
    if pid:
        return pid
    code = 9
    try:
        work()
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(code)
        leave(0)
    raise AssertionError


def ended(pid: int) -> int:
    """Its exit code, or the signal that killed it, negative."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        there, status = os.waitpid(pid, os.WNOHANG)
        if there:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 99


def count(provider: HybridProvider, name: str, times: int = TIMES) -> None:
    """One by one, reading each back."""
    for number in range(1, times + 1):
        provider.commit(key("shared"), Change({name: b"%d" % number}), NOW)
        record = provider.load(key("shared"), NOW)
        assert record is not None
        assert record.values[name] == b"%d" % number


def in_a_commit(provider: HybridProvider) -> tuple[threading.Thread, threading.Event]:
    """A thread in the middle of a turn, and what lets it go on."""
    inside, go = threading.Event(), threading.Event()

    def work(turn: Any) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    thread = threading.Thread(target=provider._store.write, args=(False, work), daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    return thread, go


def beside_a_commit(path: Path) -> None:
    provider = HybridProvider(path)
    create(provider, "shared")
    count(provider, "before")
    assert content(provider)
    slots = provider._store.image.env.readers()
    thread, go = in_a_commit(provider)

    leaves = [os._exit, sys.exit, lambda _: os.kill(os.getpid(), signal.SIGKILL)]
    writers = [
        child(lambda part=part: count(provider, f"child {part}"), leave)  # type: ignore[misc]
        for part, leave in enumerate(leaves)
    ]
    assert content(provider).keys() == {key("shared")}
    assert provider._store.image.env.readers() == slots, "the parent's are as they were"
    go.set()
    thread.join(PATIENCE)
    count(provider, "parent")
    assert [ended(pid) for pid in writers] == [0, 0, -signal.SIGKILL]
    record = provider.load(key("shared"), NOW)
    assert record is not None
    names = ["before", "parent", "child 0", "child 1", "child 2"]
    assert {name: record.values[name] for name in names} == dict.fromkeys(names, b"%d" % TIMES)
    provider._check()
    provider.close()


def parent_dies_in_its_commit(path: Path) -> None:
    """What a child has inherited keeps nobody waiting."""
    provider = HybridProvider(path)
    create(provider, "shared")
    in_a_commit(provider)
    ready, told = os.pipe()

    def outlive() -> None:
        os.write(told, b"x")
        began = time.monotonic()
        count(provider, "child")
        provider.close()
        assert time.monotonic() - began < 4, "before its patience ends"
        (path / "done").touch()

    child(outlive)
    os.read(ready, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def beside_a_compaction(path: Path) -> None:
    """Its lock is the parent's, and nobody's when the parent has let go of it."""
    provider = HybridProvider(path)
    for number in range(2000):
        create(provider, number)
    create(provider, "shared")
    done: list[bool] = []
    resting, rested = threading.Event(), threading.Event()
    rest = compact.Successor._rest

    def long_rest(successor: compact.Successor) -> None:
        resting.set()
        assert rested.wait(PATIENCE)
        rest(successor)

    compact.Successor._rest = long_rest  # type: ignore[method-assign]
    thread = threading.Thread(target=lambda: done.append(provider.compact()))
    thread.start()
    assert resting.wait(PATIENCE)
    ready, go = os.pipe()

    def work() -> None:
        count(provider, "child", 5)
        os.read(ready, 1)
        rested.set()
        assert provider.compact()
        provider.close()

    pid = child(work)
    count(provider, "parent", 5)
    rested.set()
    thread.join()
    assert done == [True]
    assert provider.compact(), "not kept from it by what the child has inherited"
    os.write(go, b"x")
    assert ended(pid) == 0
    provider._check()
    provider.close()


def first_used_by_many_threads(path: Path) -> None:
    provider = HybridProvider(path)
    create(provider, "shared")
    thread, go = in_a_commit(provider)
    go.set()
    thread.join(PATIENCE)

    def work() -> None:
        failures: list[BaseException] = []

        def one(part: int) -> None:
            try:
                count(provider, f"thread {part}")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not failures, failures
        grandchild = child(lambda: count(provider, "grandchild"))
        count(provider, "child")
        assert ended(grandchild) == 0

    assert ended(child(work)) == 0
    count(provider, "parent")
    record = provider.load(key("shared"), NOW)
    assert record is not None
    names = {"parent", "child", "grandchild", *(f"thread {part}" for part in range(4))}
    assert {name for name, value in record.values.items() if value == b"%d" % TIMES} == names
    provider._check()
    provider.close()


def never_used_by_the_child(path: Path) -> None:
    """Its end, with all that Python does at an end, takes nothing from the parent."""
    provider = HybridProvider(path)
    create(provider, "shared")
    assert content(provider)
    thread, go = in_a_commit(provider)
    assert ended(child(lambda: None, sys.exit)) == 0
    assert content(provider)
    go.set()
    thread.join(PATIENCE)
    count(provider, "parent")
    provider.close()


SCENES = [
    beside_a_commit,
    parent_dies_in_its_commit,
    beside_a_compaction,
    first_used_by_many_threads,
    never_used_by_the_child,
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_c14(scene: Callable[[Path], None], tmp_path: Path, rounds: Callable[[int], Any]) -> None:
    """In a Python of its own: the test's has threads that no child should inherit."""
    for seed in rounds(1):
        path = tmp_path / str(seed)
        code = f"from {__name__} import *; {scene.__name__}(Path({str(path)!r}))"
        found = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        dies = scene is parent_dies_in_its_commit
        assert found.returncode == (-signal.SIGKILL if dies else 0), found.stderr
        if dies:
            give_up = time.monotonic() + PATIENCE
            while not (path / "done").exists():
                assert time.monotonic() < give_up, found.stderr
                time.sleep(0.01)
        assert not found.stderr
        assert opened(path).keys() == held(path).keys()
        assert not list(path.glob("damaged-*"))
