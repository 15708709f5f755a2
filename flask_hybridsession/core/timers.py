"""The one clockwork that destroys what is due: a daemon thread per process, for all providers.

It only sweeps. That a session past its deadline is not served is judged where it is loaded.
"""

from __future__ import annotations

import logging
import threading
import time
from math import inf
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from . import clock, forks, threads

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


class Swept(Protocol):
    """What the clockwork looks after: a ``Manager``."""

    def sweep(self, now: float, limit: int) -> int:
        """Destroy up to ``limit`` sessions that are due; how many there were."""

    def next_deadline(self) -> float | None:
        """When the next one is due, or None."""


class Clockwork:
    """Sleeps until the next deadline, sweeps in slices, survives errors and clock jumps."""

    def __init__(self) -> None:
        self._swept: WeakSet[Swept] = WeakSet()
        self._pauses: WeakKeyDictionary[Swept, tuple[float, float]] = WeakKeyDictionary()
        self._start_over()
        forks.in_child(self._start_over)

    def _start_over(self) -> None:
        """A forked child has no thread, and may have inherited a held lock."""
        vars(self).pop("_condition", None)
        self._thread: threading.Thread | None = None
        self._wakes_at = inf
        self._sweeps_at = -inf
        self._frozen_at: float | None = None

    def __getattr__(self, name: str) -> threading.Condition:
        # Made when first used: after a fork, gevent may take over before that, and not before.
        if name != "_condition":
            raise AttributeError(name)
        return vars(self).setdefault(name, threading.Condition())  # type: ignore[no-any-return]

    def watch(self, swept: Swept) -> None:
        """Look after ``swept`` until it is let go of."""
        forks.look()
        with self._condition:  # a set must not grow while ``tick`` goes through it
            self._swept.add(swept)

    def unwatch(self, swept: Swept) -> None:
        forks.look()
        with self._condition:
            self._swept.discard(swept)

    def notice(self, deadline: float = inf) -> None:
        """Something is due at ``deadline``; starts the thread on first use. Cheap."""
        if not forks.ours[0]:
            forks.begin_anew()
        if clock.is_frozen():
            self._frozen_at = clock.now()
        if self._thread is None:
            self._start()
        if deadline < self._wakes_at:
            with self._condition:
                self._wakes_at = min(deadline, self._wakes_at)
                self._condition.notify()

    def _start(self) -> None:
        if not threads.may_start():
            self._sweep_here()
            return
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="flask-hybridsession-clockwork", daemon=True
                )
                self._thread.start()

    def _sweep_here(self) -> None:
        """In a request, without a thread: what is due by now, and not at every request."""
        with self._condition:
            if clock.now() < self._sweeps_at:
                return
            self._sweeps_at = clock.now() + LONGEST_SLEEP
        wait = self.tick()
        with self._condition:
            self._sweeps_at = clock.now() + max(wait, SHORTEST_REST)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._wakes_at = inf
            wait = self.tick()
            with self._condition:
                now = clock.now()
                # What was noticed during the sweep may be due before what the sweep found next.
                self._wakes_at = min(self._wakes_at, now + wait)
                self._condition.wait(max(self._wakes_at - now, 0.0))

    def tick(self) -> float:
        """Sweep all that is due now. Returns how many seconds it may sleep."""
        with self._condition:
            swept = list(self._swept)
        return min([LONGEST_SLEEP, *map(self._sweep, swept)])

    def _now(self) -> float | None:
        """The time as requests see it; None: no request has said yet what it is.

        freezegun shows threads the real time, in which what a test has made may be long past.
        """
        if clock.is_frozen():
            return self._frozen_at
        self._frozen_at = None
        return clock.now()

    def _sweep(self, swept: Swept) -> float:
        until, pause = self._pauses.get(swept, (0.0, 1.0))
        now = self._now()
        if now is None:
            return LONGEST_SLEEP
        if now < until <= now + LONGEST_PAUSE:
            return until - now
        try:
            rest = 0.0
            while gone := swept.sweep(self._now() or now, SLICE):
                rest = SHORTEST_REST
                if gone < SLICE:
                    break
                time.sleep(0)  # requests of this process come first
            deadline = swept.next_deadline()
        except Exception:
            # Whatever it is, the next session must still be destroyed on time.
            log.exception("destroying expired sessions failed; trying again in %d s", pause)
            self._pauses[swept] = (now + pause, min(2 * pause, LONGEST_PAUSE))
            return pause
        self._pauses.pop(swept, None)
        return LONGEST_SLEEP if deadline is None else max(deadline - (self._now() or now), rest)


clockwork = Clockwork()
