"""Locks by key, within this process, for backends that cannot judge and write in one step.

They keep the threads of a process from overwriting one another; other processes they do not see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

#: Enough that two sessions at once seldom share a lock.
_SIZE = 256
_locks: list[Lock] = []


@contextmanager
def held(*keys: str) -> Iterator[None]:
    """Hold the locks of these keys. Not to be nested: who needs several asks for all at once."""
    with ExitStack() as stack:
        for index in sorted({hash(key) % _SIZE for key in keys}):
            stack.enter_context(_locks[index])
        yield


def _renew() -> None:
    # A lock held by another thread at a fork would never be released in the child.
    _locks[:] = [Lock() for _ in range(_SIZE)]


_renew()
os.register_at_fork(after_in_child=_renew)
