"""The one clockwork that destroys what is due: a daemon thread per process, for all providers.

It only sweeps. That a session past its deadline is not served is judged where it is loaded. It
starts by itself in a worker of a server that is known (``workers``), elsewhere with the first
request; in a master, a command or a test there is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from . import clock, forks, threads, workers
from .locks import Bell

log = logging.getLogger("flask_hybridsession")

#: Sessions destroyed in one go; requests get their turn in between.
SLICE = 500
#: Seconds after which it looks again by itself: another process may have died before it swept,
#: or the clock may have been set.
LONGEST_SLEEP = 5.0
#: Seconds that it rests after it has destroyed something: what is due by then goes in one go.
SHORTEST_REST = 0.5
#: Seconds that it leaves a provider alone after an error, at most.
LONGEST_PAUSE = 60.0
#: Milliseconds that one who stores something waits for a sweep, at most.
_PATIENCE = 1000

#: The time; None: it cannot be told, so nothing is destroyed.
Clock = Callable[[], float | None]


class Swept(Protocol):
    """What the clockwork looks after: a ``Manager``."""

    def sweep(self, now: float, limit: int) -> int:
        """Destroy up to ``limit`` sessions that are due; how many there were."""

    def next_deadline(self) -> float | None:
        """When the next one is due, or None."""


class Clockwork:
    """Sleeps until the next deadline, sweeps in slices, survives errors and clock jumps.

    No lock: whoever is interrupted, in whatever step, leaves nothing behind that others wait for.
    """

    def __init__(self) -> None:
        self._swept: list[ref[Swept]] = []
        self._pauses: WeakKeyDictionary[Swept, tuple[float, float]] = WeakKeyDictionary()
        self._start_over()
        forks.in_child(self._start_over)

    def _start_over(self) -> None:
        """A forked child has no thread."""
        #: Whether its thread runs. The thread itself says so.
        self.runs = False
        #: The one place of a thread: who takes it out runs, and puts it back.
        self._place = [True]
        self._bell: Bell  # made by the thread: by then gevent has taken over, if it does
        #: What it has not slept for yet.
        self._noticed: list[float] = []
        #: What is due before that is to be noticed, says the thread. Nothing is while none runs.
        self._wakes_at = -inf
        #: When requests do its work again, where there is no thread.
        self._sweeps_at = -inf
        #: What is due by then is being destroyed.
        self._sweeps_to = -inf

    # -- for who has sessions -------------------------------------------------------------------

    def watch(self, swept: Swept) -> None:
        """Look after ``swept`` until it is let go of."""
        forks.look()
        self._swept.append(ref(swept, self._forget))
        workers.begin_when_ready(self.start)

    def unwatch(self, swept: Swept) -> None:
        self._forget(ref(swept))

    def _forget(self, swept: ref[Swept]) -> None:
        with suppress(ValueError):
            self._swept.remove(swept)

    def notice(self, deadline: float) -> None:
        """Something is due at ``deadline``. Cheap."""
        if not forks.ours[0]:
            forks.begin_anew()
        if deadline < self._wakes_at:
            self._noticed.append(deadline)
            self._bell.ring()

    def let_pass(self, deadline: float) -> None:
        """Before something is stored that is due at ``deadline``: wait for a sweep that takes it.

        There is none unless the clock was put back since it began, by a test.
        """
        left = _PATIENCE
        while deadline <= self._sweeps_to and left:
            left -= 1
            time.sleep(0.001)

    # -- for servers ----------------------------------------------------------------------------

    def start(self) -> bool:
        """Have the thread in this process. False: it may have none."""
        forks.look()
        if not threads.may_start():
            return False
        if not self.runs:
            threading.Thread(
                target=self._run, name="flask-hybridsession-clockwork", daemon=True
            ).start()
        return True

    def attend(self) -> None:
        """For a request, while the thread does not run: start it, or do its work beside it."""
        if not self.start() and self._sweeps_at <= clock.now():
            self._sweeps_at = clock.now() + LONGEST_SLEEP  # not at every request
            self._sweeps_at = clock.now() + max(self.tick(), SHORTEST_REST)

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        place = self._place
        try:
            place.pop()
        except IndexError:  # another one was faster
            return
        try:
            self._bell = Bell()
            self.runs = True
            while self._place is place:  # after a fork, gevent's threads run in the child, too
                self._wakes_at = clock.now() + LONGEST_SLEEP
                self._sleep(self.tick(clock.unless_replaced))
        finally:
            if self._place is place:
                self.runs = False
                self._wakes_at = -inf
                place.append(True)

    def _sleep(self, seconds: float) -> None:
        """Until then, or until what is noticed meanwhile is due."""
        until = clock.now() + seconds
        while True:
            self._wakes_at = until
            while self._noticed:
                until = min(until, self._noticed.pop())
            left = min(until - clock.now(), LONGEST_SLEEP)
            if left <= 0 or not self._bell.wait(left):
                return

    # -- the work -------------------------------------------------------------------------------

    def tick(self, read: Clock | None = None) -> float:
        """Sweep all that is due now. Returns how many seconds it may sleep."""
        read = read or clock.now
        swept = [found for known in list(self._swept) if (found := known()) is not None]
        try:
            return min([LONGEST_SLEEP, *(self._sweep(each, read) for each in swept)])
        finally:
            self._sweeps_to = -inf

    def _sweep(self, swept: Swept, read: Clock) -> float:
        now = read()
        if now is None:
            return LONGEST_SLEEP
        until, pause = self._pauses.get(swept, (0.0, 1.0))
        if now < until <= now + LONGEST_PAUSE:
            return until - now
        try:
            rest, gone = 0.0, SLICE
            while gone == SLICE and (moment := self._now(read)) is not None:
                gone = swept.sweep(moment, SLICE)
                rest = SHORTEST_REST if gone else rest
                time.sleep(0)  # requests of this process come first
            deadline = swept.next_deadline()
        except Exception:
            # Whatever it is, the next session must still be destroyed on time.
            log.exception("destroying expired sessions failed; trying again in %d s", pause)
            self._pauses[swept] = (now + pause, min(2 * pause, LONGEST_PAUSE))
            return pause
        self._pauses.pop(swept, None)
        return LONGEST_SLEEP if deadline is None else max(deadline - clock.now(), rest)

    def _now(self, read: Clock) -> float | None:
        """What is due by then goes. Known before it is sure: see ``let_pass``."""
        self._sweeps_to = clock.now()
        seen = read()
        return None if seen is None else min(seen, self._sweeps_to)


clockwork = Clockwork()
