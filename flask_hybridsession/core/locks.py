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
#: Seconds between two tries, at first at most.
_PAUSE = 0.0005
#: Seconds after which one who waits is let in before those who come by.
_HUNGER = 0.003
#: Seconds after which one who waits looks for holds that ended calls have kept.
_DOUBT = 0.05
#: Seconds after which none of them is left: who looks has them all in hand for a moment.
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
        #: The thread that has taken it last: it would wait for itself.
        self.holder = 0
        # Who has waited for long: threads in a tight loop would keep him out for ever.
        self._hungry: ref[_Wait] | None = None
        for _ in range(number):
            self.free.append(Hold(self._self))

    def _renew(self) -> None:
        try:
            if self._after is not None:
                self._after()
        finally:
            self.holder = 0
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
        if self._hungry is None:
            try:
                hold = self.free.pop()
            except IndexError:
                pass
            else:
                self.holder = threading.get_ident()
                return hold
        return self._wait(patience)

    def _wait(self, patience: float) -> Hold:
        wait = _Wait(patience)
        while True:
            wait.sleep()
            first = self._hungry() if self._hungry is not None else None
            if first is None or first is wait or first.has_left():
                try:
                    hold = self.free.pop()
                except IndexError:
                    if wait.seconds() > _HUNGER:
                        self._hungry = ref(wait)
                else:
                    self._hungry = None
                    self.holder = threading.get_ident()
                    return hold
            if wait.is_in_doubt():
                clear_frames()
                if wait.seconds() > _CERTAIN and self._is_mine():
                    raise ProviderUnavailable("this very thread is in the middle of it")
            if wait.is_over():
                raise ProviderUnavailable(self._busy)

    def _is_mine(self) -> bool:
        return self._number == 1 and self.holder == threading.get_ident() and not self.free


class _Wait:
    """One who waits: ever longer naps, and a look at what is wrong now and then."""

    __slots__ = ("__weakref__", "_begun", "_looks_at", "_patience", "_pause", "_seen")

    def __init__(self, patience: float) -> None:
        self._begun = self._seen = time.monotonic()
        self._patience = patience
        self._looks_at = self._begun + min(_DOUBT, patience)
        self._pause = 0.0

    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def sleep(self) -> None:
        self._seen = time.monotonic() + self._pause
        time.sleep(self._pause)
        self._pause = min(self._pause * 1.1 or 0.00002, max(_PAUSE, self.seconds() / 50))

    def has_left(self) -> bool:
        """Whether he seems to wait no more: he was interrupted, too."""
        return time.monotonic() > self._seen + _DOUBT

    def is_in_doubt(self) -> bool:
        """Whether it is time to look for what ended calls have kept: ever more seldom."""
        now = time.monotonic()
        if now < self._looks_at:
            return False
        self._looks_at = now + (now - self._begun)
        return True

    def is_over(self) -> bool:
        return self.seconds() > self._patience


def wait_until_gone(things: list[ref[Any]], patience: float) -> None:
    """Wait until nobody has any of these in hand. Raises ``ProviderUnavailable``."""
    wait = _Wait(patience)
    while any(thing() is not None for thing in things):
        wait.sleep()
        if wait.is_in_doubt():
            clear_frames()
        elif wait.is_over():
            raise ProviderUnavailable("another thread of this process takes too long")


def clear_frames() -> None:
    """Let go of what calls of this package that have ended have in hand.

    A traceback that somebody keeps keeps their frames. A call that goes on keeps what it has, and
    so does a generator that has only stopped.
    """
    if (hold := _looks.try_take()) is None:
        return  # another thread is at it
    with hold:
        _clear()


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


_looks = Lock()
_HERE = os.path.dirname(os.path.dirname(__file__))


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
