"""Noticing that this process is a fork, whoever forked it, and beginning anew in it.

``os.register_at_fork`` hears of the forks that Python makes. uWSGI and C libraries make theirs
without a word. So who uses what must not cross a fork looks first: ``look()``, or where each
nanosecond counts ``if not ours[0]: begin_anew()``.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from .locks import Lock, start_over

#: Linux's MADV_WIPEONFORK: a child finds zeros, however it was made. Python does not name it.
_WIPE_ON_FORK = 18


class _ByPid:
    """What ``ours`` is where no page can be wiped: a system call at each look."""

    _pid = 0

    def __getitem__(self, _: int) -> int:
        return self._pid == os.getpid()

    def __setitem__(self, _: int, value: int) -> None:
        self._pid = os.getpid()


def _page() -> Any:
    """A number that is 0 in a process that has not begun anew."""
    if sys.platform != "linux":
        return _ByPid()
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_WIPE_ON_FORK)
    except OSError:  # before Linux 4.14
        return _ByPid()
    return memoryview(page).cast("Q")


#: ``ours[0]`` is true in the process that made what there is.
ours = _page()
ours[0] = 1
_functions: list[Callable[[], None]] = []
#: By process: one from before the fork may be held by a thread that is not here.
_locks: dict[int, Lock] = {}


def in_child(function: Callable[[], None]) -> Callable[[], None]:
    """Call ``function`` once in each forked child, before anything else is done there. A decorator.

    It may not look, and nothing may be closed, unlocked or joined that the parent goes on with.
    Those that were registered first are called first.
    """
    _functions.append(function)
    return function


in_child(start_over)


def look() -> None:
    """Begin anew if this process is a fork that has not done so."""
    if not ours[0]:
        begin_anew()


def begin_anew() -> None:
    """Let go of what was the parent's. One thread does, the others wait for it."""
    me = os.getpid()
    with _locks.setdefault(me, Lock()).take():
        if ours[0]:
            return
        for function in _functions:
            function()
        ours[0] = 1
    for pid in list(_locks):
        if pid != me:
            _locks.pop(pid, None)


os.register_at_fork(after_in_child=begin_anew)
