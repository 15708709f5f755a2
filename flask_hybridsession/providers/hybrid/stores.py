"""Which stores this process has: one per directory, shared by all its providers; and its forks.

Nothing is opened before it is used. All are closed before a fork that Python makes, and opened
again when they are used. What crosses any other fork is left alone in the child.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from typing import Any

from ...core import clock, forks
from ...core.errors import ProviderUnavailable
from ...core.locks import Hold, Lock, give_back
from .store import Store, Tuning

_stores: dict[str, Store] = {}
# Stores of providers that nobody closed before they were let go of. Closed by the next to open one:
# the garbage collector may come by in the middle of anything.
_abandoned: deque[Store] = deque()
_guard = Lock()
#: The guard, during a fork.
_paused: list[Hold] = []


class Closed:
    """What a provider has in place of its store after ``close``."""

    def __getattr__(self, name: str) -> Any:
        raise ProviderUnavailable("this provider was closed")


def acquire(directory: str, tuning: Tuning, group: str | int | None = None) -> Store:
    """The process's store of a directory. Give it back with ``release``, or ``abandon`` it."""
    forks.look()
    while _abandoned:
        release(_abandoned.popleft())
    path = os.path.realpath(directory)
    with _guard.take():
        store = _stores.get(path)
        if store is None:
            store = _stores[path] = Store(path, tuning, group)
            # What is first used may be given the time, and that of the others counts.
            clock.expect(store.adopt_clock)
        store.users += 1
        return store


def release(store: Store) -> None:
    """The last one to leave closes the files."""
    forks.look()
    with _guard.take():
        store.users -= 1
        if not store.users:
            del _stores[store.directory]
            store.close()


def abandon(store: Store) -> None:
    """Give it back some time later."""
    _abandoned.append(store)


@atexit.register
def _flush_all() -> None:
    forks.look()
    for store in list(_stores.values()):
        store.close()


def _before_fork() -> None:
    """Close all: nothing of LMDB may cross a fork, not even a reader's slot. Reopened when used."""
    forks.look()
    _paused.append(_guard.take())
    for store in _stores.values():
        store.pause()


def _after_fork_in_parent() -> None:
    for store in _stores.values():
        store.resume()
    give_back(_paused)


@forks.in_child
def _after_fork_in_child() -> None:
    global _guard
    _guard = Lock()
    _paused.clear()
    for store in _stores.values():
        store.forget()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
