"""Locks that an interrupted thread does not take with it.

An exception may come between any two steps of a thread: the handler of a signal raises one, or
another thread asks for it. It may come between ``acquire()`` and ``try``, or on the way out of a
``with`` before ``__exit__`` is called; then a lock of ``threading`` is held for ever. Here who has
a lock has an object in hand, and when that object is gone, so is the hold.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from types import FrameType, GeneratorType
from typing import Any
from weakref import ref

from .errors import ProviderUnavailable

#: Seconds that one waits who does not say how long.
_PATIENCE = 60.0
#: After so many times that he was woken in vain, or seconds, he goes before those who come by.
#: Not at once: to hand the lock over takes a switch of threads, in which nobody has it.
_VAIN, _HUNGER = 4, 0.25
#: Seconds without any progress after which one who waits looks for what ended calls have kept; and
#: of a nap, at first and at most: whoever was to wake him may have been interrupted.
_DOUBT, _LONGEST = 0.05, 1.0
#: Seconds after which none of that is left: who looks has all of it in hand for a moment.
_CERTAIN = 1.0


class Hold:
    """The right to go on: ``with lock.take():``."""

    __slots__ = ("__weakref__", "_lock")

    def __init__(self, lock: ref[Lock]) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        lock = self._lock()
        if lock is not None:
            if lock._after is not None:
                lock._after()
            lock.holder = 0
            lock.free.append(self)
            if lock._queue:
                lock._wake()

    def __del__(self) -> None:
        lock = self._lock()
        if lock is not None:
            lock._renew()


class Lock:
    """Held by one thread at a time, or by ``number`` of them; not to be nested.

    ``after`` is called before it is free again. Of a hold that is lost that is done by whichever
    thread notices, so it may not wait. ``busy`` is what one is told who waited in vain.
    """

    def __init__(
        self,
        number: int = 1,
        *,
        after: Callable[[], object] | None = None,
        busy: str = "another thread of this process takes too long",
    ) -> None:
        self._after = after
        self._busy = busy
        self._self = ref(self)
        self._number = number
        #: What can be had.
        self.free: list[Hold] = []
        #: Who waits, and for longest first.
        self._queue: list[ref[_Wait]] = []
        #: The thread that has taken it last: it would wait for itself. And how often it was taken.
        self.holder = self.taken = 0
        for _ in range(number):
            self.free.append(Hold(self._self))

    def is_free(self) -> bool:
        """Whether nobody holds it at the moment."""
        return len(self.free) >= self._number

    def try_take(self) -> Hold | None:
        """A hold, if one is free."""
        try:
            return self.free.pop()
        except IndexError:
            return None

    def take(self, patience: float = _PATIENCE) -> Hold:
        """Wait for a hold, ``patience`` seconds at most; then raise ``ProviderUnavailable``."""
        if not self._queue:
            try:
                hold = self.free.pop()
            except IndexError:
                pass
            else:
                self.holder = threading.get_ident()
                self.taken += 1
                return hold
        return self._wait(patience)

    def _wait(self, patience: float) -> Hold:
        wait = _Wait(patience)
        me = ref(wait)
        self._queue.append(me)
        try:
            while True:
                first = self._first()
                if first is None or first is wait or not first.is_hungry():
                    hold = self.try_take()
                    if hold is not None:
                        self.holder = threading.get_ident()
                        self.taken += 1
                        return hold
                if wait.is_over():
                    raise ProviderUnavailable(self._busy)
                wait.sleep()
                if wait.is_in_doubt(self.taken):
                    clear_frames()
                    if wait.seconds() > _CERTAIN and self._is_mine():
                        raise ProviderUnavailable("this very thread is in the middle of it")
        finally:
            with contextlib.suppress(ValueError):
                self._queue.remove(me)
            if self.free:  # for another one
                self._wake()

    def _first(self) -> _Wait | None:
        for there in list(self._queue):
            first = there()
            if first is not None and not first.has_left():
                return first
            with contextlib.suppress(ValueError):
                self._queue.remove(there)
        return None

    def _wake(self) -> None:
        first = self._first()
        if first is not None:
            first.bell.ring()

    def _renew(self) -> None:
        try:
            if self._after is not None:
                self._after()
        finally:
            self.holder = 0
            self.free.append(Hold(self._self))
            self._wake()

    def _is_mine(self) -> bool:
        return self._number == 1 and self.holder == threading.get_ident() and not self.free


def give_back(holds: list[Hold]) -> None:
    """Give back all that somebody has kept, and keep none."""
    while holds:
        with holds.pop():
            pass


class Bell:
    """Wakes one thread that sleeps. To ring it takes no lock that could be kept."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """Wake it, or keep it from the next sleep."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silence.release()

    def wait(self, seconds: float) -> bool:
        """Sleep, but ``seconds`` at most; whether the bell rang."""
        return self._silence.acquire(timeout=max(0.0, min(seconds, threading.TIMEOUT_MAX)))


class _Wait:
    """One who waits: he sleeps until he is woken, or by himself after an ever longer nap."""

    __slots__ = (
        "__weakref__",
        "_begun",
        "_nap",
        "_patience",
        "_seen",
        "_taken",
        "_until",
        "_woken",
        "bell",
    )

    def __init__(self, patience: float) -> None:
        self.bell = Bell()
        self._begun = self._seen = time.monotonic()
        self._patience = patience
        self._nap = _DOUBT
        self._until = self._begun + _DOUBT
        self._taken = -1
        self._woken = 0

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def is_hungry(self) -> bool:
        return self._woken > _VAIN or self.seconds() > _HUNGER

    def is_over(self) -> bool:
        return self.seconds() > self._patience

    def sleep(self) -> None:
        nap = min(self._nap, max(0.0, self._begun + self._patience - time.monotonic()) + 0.001)
        self._seen = time.monotonic() + nap
        if self.bell.wait(nap):
            self._woken += 1
        else:
            self._nap = min(2 * self._nap, _LONGEST)

    def has_left(self) -> bool:
        """Whether he seems to wait no more: he was interrupted, too."""
        return time.monotonic() > self._seen + _LONGEST

    def is_in_doubt(self, taken: int) -> bool:
        """Whether nobody has got on since the last look, some time ago."""
        now = time.monotonic()
        if taken != self._taken:
            self._taken, self._until = taken, now + _DOUBT
            return False
        if now < self._until:
            return False
        self._until = now + (now - self._begun)
        return True


def wait_until_gone(things: list[ref[Any]], patience: float) -> None:
    """Wait until nobody has any of these in hand. Raises ``ProviderUnavailable``."""
    begun = time.monotonic()
    pause, look = 0.00002, _DOUBT
    while any(thing() is not None for thing in things):
        time.sleep(pause)
        pause = min(pause * 1.1, 0.0005)
        waited = time.monotonic() - begun
        if waited > look:
            clear_frames()
            look = 2 * waited
        elif waited > patience:
            raise ProviderUnavailable("another thread of this process takes too long")


def clear_frames() -> None:
    """Let go of what calls of this package that have ended have in hand.

    A traceback that somebody keeps keeps their frames. A call that goes on keeps what it has, and
    so does a generator that has only stopped.
    """
    if (hold := _looks[0].try_take()) is None:
        return  # another thread is at it
    with hold:
        _clear()


def start_over() -> None:
    """In a forked child, where another thread may have been at it."""
    _looks[0] = Lock()


def _clear() -> None:
    there = gc.get_objects()
    # By type(): whether it is an instance, a weak proxy would ask what is gone.
    stopped = {id(thing.gi_frame) for thing in there if type(thing) is GeneratorType}
    for thing in there:
        if type(thing) is FrameType and id(thing) not in stopped and _is_ours(thing):
            with contextlib.suppress(RuntimeError):  # it is running
                thing.clear()
                _ = thing.f_locals  # before Python 3.13 a copy, once looked at: it is made anew


def _is_ours(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith(_HERE) or name == contextlib.__file__  # it has our generators in hand


_looks = [Lock()]
_HERE = os.path.dirname(os.path.dirname(__file__))
