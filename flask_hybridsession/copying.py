"""All sessions from one provider to another, while they go on being used: ``flask sessions copy``.

A pass goes through the sessions of both, and makes what the target holds equal to the source; the
next one finds what has changed meanwhile. A session is read again after it was written, so what
ends or changes under the copy is taken back at once. Keys stay as they are: every cookie goes on
working. Aliases, which some renames leave for a short time, are not copied: nobody can list them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import inf
from typing import Any, NamedTuple, TypeVar

from .core import clock
from .core.breaker import own_budgets
from .core.change import Change
from .core.errors import ConfigError, CorruptData, KeyTaken, ProviderUnavailable, SessionGone
from .core.mirror import COPYING, RESERVED, bring, own, same
from .core.provider import Lists, Provider

T = TypeVar("T")

#: Passes after which the rest is left to the next run: the sessions change as fast as they are
#: copied.
MOST_PASSES = 20
#: Seconds for which a provider that is away is waited for.
PATIENCE = 30.0
#: Seconds for which a target counts as the copy that was begun, if its copying was interrupted.
RESUMABLE = 86_400.0

_TRIES = 100

#: Wraps what a pass goes through, to show how far it is: (pass number, keys, how many).
Progress = Callable[[int, Iterable[str], int], Iterator[str]]


class Pass(NamedTuple):
    """What one pass found."""

    number: int
    sessions: int
    written: int
    destroyed: int
    #: The keys of sessions that cannot be read, or that did not stay what was written.
    bad: tuple[str, ...] = ()

    @property
    def changes(self) -> int:
        return self.written + self.destroyed


class Copy:
    """A copy of ``source`` in ``target``. Raises ``ConfigError`` unless both ``Lists``.

    ``mirror``: a target that holds sessions already is made equal to the source, whatever is in it.
    """

    def __init__(self, source: Provider, target: Provider, *, mirror: bool = False) -> None:
        for provider in (source, target):
            if not isinstance(provider, Lists):
                raise ConfigError(f"{type(provider).__name__} cannot list its sessions.")
        self._source: Any = source
        self._target: Any = target
        self._mirror = mirror
        self._passes = 0

    def begin(self) -> None:
        """Mark the target as a copy under way, so that a later run may go on with it.

        Raises ``ConfigError`` if it holds sessions and is no such copy, or the source has none: a
        mistake in its name would empty the target.
        """
        if _holds_sessions(self._target):
            if not (self._mirror or self._target.load(COPYING, clock.now())):
                raise ConfigError("the target holds sessions already. --mirror makes it equal.")
            if not _holds_sessions(self._source):
                raise ConfigError(
                    "the source holds no sessions, the target does: see that the source is right."
                )
        self._mark()

    def passes(self, progress: Progress) -> Iterator[Pass]:
        """Passes until one finds little more to do than the one before."""
        before = inf
        for _ in range(MOST_PASSES):
            one = self.run(progress)
            yield one
            if one.changes == 0 or one.changes > before / 2:
                return
            before = one.changes

    def run(self, progress: Progress, check: bool = False) -> Pass:
        """One pass. With ``check``, whatever was written is read again."""
        self._mark()
        self._passes += 1
        seen: set[bytes] = set()
        bad: list[str] = []
        written = destroyed = 0
        for key in progress(self._passes, self._source.keys(clock.now()), self._count()):
            if key in RESERVED:
                continue
            seen.add(bytes.fromhex(key))
            try:
                written += _patiently(partial(self._bring, key))
                if check and not _patiently(partial(self._stays_equal, key)):
                    bad.append(key)
            except CorruptData:
                bad.append(key)
        for key in self._target.keys(clock.now()):
            if key in RESERVED:
                continue
            if bytes.fromhex(key) not in seen:
                destroyed += _patiently(partial(self._bring, key))
            elif check:
                written += _patiently(partial(self._bring, key))
        return Pass(self._passes, len(seen), written, destroyed, tuple(bad))

    def end(self) -> None:
        """The target is complete: no copy under way any more."""
        _patiently(partial(self._target.destroy, COPYING))

    def _bring(self, key: str) -> bool:
        return bring(self._source, self._target, key, clock.now())

    def _stays_equal(self, key: str) -> bool:
        """Whether the target keeps what is written. A session in use may need several tries."""
        for _ in range(_TRIES):
            now = clock.now()
            here = own(self._source.load(key, now), key)  # renamed, it may be an alias by now
            if same(here, self._target.load(key, now)):
                return True
            self._bring(key)
        return False

    def _count(self) -> int:
        count: int = self._source.count(clock.now())
        return count

    def _mark(self) -> None:
        now = clock.now()
        change = Change(deadline=now + RESUMABLE)

        def mark() -> None:
            try:
                self._target.commit(COPYING, change, now)
            except SessionGone:
                self._target.commit(COPYING, change._replace(create=True), now)

        try:
            _patiently(mark)
        except KeyTaken:
            raise ConfigError("another copy into this target is under way.") from None


def _holds_sessions(provider: Lists) -> bool:
    return any(key not in RESERVED for key in provider.keys(clock.now()))


def _patiently(work: Callable[[], T]) -> T:
    """Wait for a provider that is away for a moment."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            with own_budgets():
                return work()
        except ProviderUnavailable:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)
