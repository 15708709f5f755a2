"""Sessions by the number: whose key, what is in them, and what a request changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from math import inf
from typing import Protocol

from flask_hybridsession.core import codec
from flask_hybridsession.core.change import Change

from .sample import COUNT, SESSION

VALUES = {name: codec.encode(value) for name, value in SESSION.items()}


class Store(Protocol):
    """The part of the contract that is measured everywhere."""

    def commit(self, key: str, change: Change, now: float) -> None: ...


def key(number: int) -> str:
    """A key as a provider sees it: a hash, so neighbours in time are none in the file."""
    return sha256(b"%d" % number).hexdigest()


def fill(
    store: Store, start: int, end: int, now: float, due: float = inf, gap: float = 0.001
) -> None:
    """Make the sessions with these numbers, the first of them ``due`` then, each a ``gap`` later.

    ``gap`` is in seconds.
    """
    for number in range(start, end):
        deadline = due + (number - start) * gap
        change = Change(VALUES, create=True, touched=now, deadline=deadline)
        store.commit(key(number), change, now)


def visitors(count: int, seed: int, first: int = 0) -> Iterator[str]:
    """Keys of ``count`` sessions, at random, for ever."""
    number = random.Random(seed).randrange
    while True:
        yield key(first + number(count))


def changes() -> Iterator[Change]:
    """Each changes one key of a session to what it was not."""
    while True:
        for count in range(COUNT, COUNT + 1000):
            yield Change({"count": codec.encode(count)})
