"""Locks by key, within this process, for backends that cannot judge and write in one step.

They keep the threads of a process from overwriting one another; other processes they do not see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from . import forks
from .locks import Lock

#: Enough that two sessions at once seldom share a lock.
_SIZE = 256
_locks: dict[int, Lock] = {}


@contextmanager
def held(*keys: str) -> Iterator[None]:
    """Hold the locks of these keys. Not to be nested: who needs several asks for all at once."""
    forks.look()
    with ExitStack() as stack:
        for index in sorted({hash(key) % _SIZE for key in keys}):
            lock = _locks.get(index) or _locks.setdefault(index, Lock())
            stack.enter_context(lock.take())
        yield


# A lock held by another thread at a fork would never be released in the child.
forks.in_child(_locks.clear)
