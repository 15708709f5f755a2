"""Processes that die, or stop, at a chosen step of what they do."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from flask_hybridsession.core.change import Record
from flask_hybridsession.providers.hybrid import HybridProvider
from tests.providers.hybrid.tools import PATIENCE, content, start

#: The calls that leave Python: into the kernel, or into the image.
FILES = frozenset(
    ("open", "write", "ftruncate", "fdatasync", "fsync", "link", "rename", "unlink", "close")
)
STEPS = FILES | {"flock", "begin", "commit", "abort"}


def signal_before(number: int, what: signal.Signals, steps: Collection[str] = STEPS) -> None:
    """Send this process ``what`` before its ``number``th step from now on, counted from 1."""
    left = [number]

    def profile(frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in steps:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), what)

    sys.setprofile(profile)


def die_before(number: int) -> None:
    """Be killed before step ``number``."""
    signal_before(number, signal.SIGKILL)


def die_before_line(number: int, function: Callable[..., Any]) -> None:
    """Be killed before line ``number`` that is executed of ``function``, counted from 1."""
    left = [number]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if event == "line":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def killed(work: Callable[..., None], *args: Any) -> bool:
    """Run ``work`` in a child. Whether it was killed; otherwise it has finished well."""
    child = start(work, *args)
    child.join(PATIENCE)
    assert child.exitcode in (0, -signal.SIGKILL)
    return bool(child.exitcode)


class Stopped:
    """A child that runs ``work(stop)``, and stands still from where it calls ``stop`` on.

    A fork closes the parent's stores. ``first`` is called after the fork, before the child begins:
    there the parent may open them again. After ``PATIENCE`` it is killed, so that a test which
    waits for it without end fails.
    """

    def __init__(
        self, work: Callable[[Callable[[], None]], None], first: Callable[[], object] = bool
    ) -> None:
        self._there, theirs = Pipe()

        def run() -> None:
            def stop() -> None:
                theirs.send("here")
                os.kill(os.getpid(), signal.SIGSTOP)

            theirs.recv()
            work(stop)

        self.process = start(run)
        first()
        self._there.send("begin")
        assert self._there.poll(PATIENCE), "it did not come to its place"
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        self._end = threading.Timer(PATIENCE, self.process.kill)
        self._end.start()

    def go_on(self) -> None:
        """To its end."""
        self._end.cancel()
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        self._end.cancel()
        self.process.kill()
        self.process.join()  # with a time limit, it would wait for those that it forked

    def __enter__(self) -> Stopped:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def held(directory: Path) -> dict[str, Record | None]:
    """What a store that nobody has open holds, by what its log says alone."""
    (directory / "image").unlink(missing_ok=True)
    return opened(directory)


def opened(directory: Path) -> dict[str, Record | None]:
    """What a store holds when it is opened; image, indexes and log agree."""
    provider = HybridProvider(directory)
    try:
        provider._check()
        return content(provider)
    finally:
        provider.close()
