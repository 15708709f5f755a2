"""One database that follows the authority: in step, or behind and catching up."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from weakref import WeakSet

from ...core import clock, forks
from ...core.change import Change, Record
from ...core.errors import HybridSessionError, ProviderUnavailable
from ...core.locks import Lock
from ...core.mirror import MOST_ROUNDS, RESERVED, restless, same
from ...core.provider import Lists, Provider
from .ledger import Ledger
from .targets import Target

log = logging.getLogger("flask_hybridsession")

#: Keys that a worker remembers of what a follower missed. Of more it takes in all sessions.
MOST_MISSED = 10_000
#: Seconds between two attempts to catch up.
REST = 0.5
#: Seconds after which a call that has not returned counts as failed for all others.
STUCK = 5.0
#: Seconds between two signs of life of a worker whose follower is behind.
_SIGN = 5.0
#: Seconds between two looks at who has left a sign.
_LOOK = 10.0

#: What the authority holds under a key of its own, as ``TieredProvider`` sees it.
Read = Callable[[str, float], "Record | None"]


class Follower:
    """Keeps ``target`` equal to the authority, key by key.

    When a call fails, whatever it raises, the follower is *behind*: from then on nobody calls the
    target but a thread of this worker, which tries the missed keys again, in order, and writes what
    the authority holds by then. No request pays for that. It is in step again once nothing is left.
    """

    def __init__(
        self,
        name: str,
        target: Target,
        authority: Provider,
        read: Read,
        ledger: Ledger,
        told: Callable[[ProviderUnavailable], None],
        confirmed: Callable[[str], None],
    ) -> None:
        self.name = name
        self.target = target
        self._authority = authority
        self._read = read
        self._ledger = ledger
        self._told = told
        self._confirmed = confirmed
        self._start_over()
        self._behind = False
        self._missed: dict[str, None] = {}
        self._all = False
        self._failures = 0
        self._signed = -_SIGN
        ledger.resyncs[name] = self.resync
        _followers.add(self)

    def _start_over(self) -> None:
        """At first, and in a child that was forked: threads stay behind, locks may be held."""
        self._lock = Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._calls: dict[int, float] = {}
        self._mark = f"{self.name}/{secrets.token_hex(8)}"
        self._vouched = False
        self._look_at = 0.0
        self._heir: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Nobody but its own thread calls the target then."""
        return self._behind

    def misses(self, key: str) -> bool:
        """Whether this worker knows that ``key`` is not yet in step."""
        with self._lock.take():
            return self._all or key in self._missed

    def stats(self) -> dict[str, int | float | str]:
        with self._lock.take():
            missed = "all" if self._all else str(len(self._missed))
            state = f"behind, {missed} to catch up" if self._behind else "in step"
        if state == "in step" and not self.may_fill():
            state = "behind in another worker"
        return {self.name: state, f"{self.name} failures": self._failures}

    # -- what a request does --------------------------------------------------------------------

    def copy(self, key: str, now: float) -> Record | None:
        """What to fill the authority with: nothing, while it may be out of date."""
        self._look_around()
        found: list[Record | None] = []
        if not self._behind:
            self._attempt((), lambda: found.append(self.target.load(key, now)))
        return found[0] if found else None

    def may_fill(self) -> bool:
        """Whether no worker at all knows that it is behind. A fill asks after ``copy``."""
        return not self._behind and not self._ledger.marks_of(self.name)

    def tell(self, before: Record | None, change: Change, after: Record, now: float) -> bool:
        """Pass on a commit. False: it missed that, and will catch up."""

        def work() -> None:
            self.target.tell(before, change, after, now)
            if not same(after, self._read(after.key, now)):
                self._bring(after.key, now)

        self._look_around()
        return self._attempt((after.key,), work)

    def bring(self, key: str, now: float, fresh: bool = False) -> bool:
        """Pass on what the authority holds under this key. False as for ``tell``."""
        self._look_around()
        return self._attempt((key,), lambda: self._bring(key, now, fresh))

    def sweep(self, now: float, limit: int) -> None:
        self._look_around()
        self._attempt((), lambda: self.target.sweep(now, limit))

    def resync(self) -> None:
        """Take in all sessions of the authority, in the background."""
        self._fall_behind(everything=True)

    def close(self) -> None:
        self._over.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        self.target.close()

    def _bring(self, key: str, now: float, fresh: bool = False) -> None:
        """Whoever writes last has seen afterwards that the authority had not moved."""
        for _ in range(MOST_ROUNDS):
            record = self._read(key, now)
            if record is None:
                self.target.erase(key)
            else:
                self.target.write(record, now, fresh)
                fresh = False
            if same(record, self._read(key, now)):
                return
        raise restless(key)

    def _attempt(self, keys: tuple[str, ...], work: Callable[[], object]) -> bool:
        me = threading.get_ident()
        with self._lock.take():
            first = min(self._calls.values(), default=inf)
            stuck = monotonic() - first > STUCK
            if self._behind:
                self._miss(keys)
                self._need_thread()
                return False
            if not stuck:
                self._calls[me] = monotonic()
        if stuck:
            self._failed(TimeoutError(), keys)
            return False
        try:
            work()
            return True
        except Exception as error:
            # Whatever it is: the request's own work is done, and this is made up for later.
            self._failed(error, keys)
            return False
        finally:
            with self._lock.take():
                self._calls.pop(me, None)

    # -- behind ---------------------------------------------------------------------------------

    def _failed(self, error: Exception, keys: tuple[str, ...]) -> None:
        # What our own errors say has no secrets in it.
        why = error if isinstance(error, HybridSessionError) else type(error).__name__
        if self._fall_behind(keys):
            self._failures += 1
            log.error("%s is out of date until it answers again: %s", self.name, why)
            failure = ProviderUnavailable(f"{self.name} is out of date: {why}")
            failure.__cause__ = error
            self._told(failure)

    def _fall_behind(self, keys: tuple[str, ...] = (), everything: bool = False) -> bool:
        """True for the one who finds out."""
        with self._lock.take():
            first = not self._behind
            self._behind = True
            self._all = self._all or everything
            self._miss(keys)
            self._need_thread()
        if first:
            self._sign()
        return first

    def _need_thread(self) -> None:
        """With the lock held. Again after a fork: the child has the misses, but not the thread."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._catch_up, name=f"sessions: {self.name}", daemon=True
            )
            self._thread.start()

    def _miss(self, keys: tuple[str, ...]) -> None:
        self._missed.update(dict.fromkeys(keys))
        if len(self._missed) > MOST_MISSED:
            self._all = True
            # Those that are gone have graves: none of them is forgotten.
            self._missed.clear()

    def _sign(self) -> None:
        """Write down that it is behind, in case that this worker does not live to catch up."""
        try:
            self._ledger.mark(self._mark)
            self._signed = monotonic()
        except Exception as error:
            self._signed = -_SIGN
            log.warning("%s cannot be marked as out of date: %s", self.name, type(error).__name__)

    def _catch_up(self) -> None:
        over = self._over
        while not over.wait(REST):
            if monotonic() - self._signed >= _SIGN:
                self._sign()
            try:
                if self._caught_up():
                    log.warning("%s is in step again", self.name)
                    return
            except Exception as error:
                log.debug("%s is still out of date: %s", self.name, type(error).__name__)

    def _caught_up(self) -> bool:
        with self._lock.take():
            missed, everything = list(self._missed), self._all
        for key in missed:
            with self._lock.take():  # before it is made up for: it may be missed again meanwhile
                self._missed.pop(key, None)
            try:
                self._make_up(key)
            except BaseException:
                with self._lock.take():
                    self._miss((key,))
                raise
        if everything or self._has_lost_all():
            self._take_in_all()
            self.target.vouch(clock.now())
        with self._lock.take():
            if self._missed or self._all:
                return False
        self._ledger.unmark({self._mark})
        with self._lock.take():
            self._behind = bool(self._missed or self._all)
            caught_up = not self._behind
            if caught_up:
                self._thread = None
        if not caught_up:
            self._sign()
        return caught_up

    def _has_lost_all(self) -> bool:
        """A server that was started again may be empty."""
        lists = isinstance(self._authority, Lists)
        return lists and not self.target.is_whole(clock.now())

    def _make_up(self, key: str) -> None:
        self._bring(key, clock.now())
        self._confirmed(key)

    def _take_in_all(self) -> None:
        if not isinstance(self._authority, Lists):
            raise ProviderUnavailable(f"{type(self._authority).__name__} cannot list its sessions")
        with self._lock.take():
            self._all = False
        try:
            for key in self._ledger.open_graves():
                self._make_up(key)
            for key in self._authority.keys(clock.now()):
                if key not in RESERVED:
                    self._bring(key, clock.now())
        except BaseException:
            with self._lock.take():
                self._all = True
            raise

    def _look_around(self) -> None:
        """Now and then: did workers end that had left this behind? At first, leave the mark."""
        if monotonic() < self._look_at:
            return
        self._look_at = monotonic() + _LOOK
        try:
            marks = self._ledger.marks()
        except Exception:
            self._look_at = 0.0
            return
        if not self._vouched:
            self._vouched = True
            self._attempt((), lambda: self.target.vouch(clock.now()))
        if marks.keys() - {self._mark}:
            self._wait_to_inherit()

    def _wait_to_inherit(self) -> None:
        with self._lock.take():
            if self._heir is None or not self._heir.is_alive():
                self._heir = threading.Thread(
                    target=self._inherit, name=f"sessions: {self.name}", daemon=True
                )
                self._heir.start()

    def _inherit(self) -> None:
        """As long as others have marks: wait for signs of life, do what the dead cannot do."""
        over = self._over
        while True:
            try:
                if self._ledger.adopt(self._mark):
                    # All of them: the one that it names may be another since the settings changed.
                    for resync in self._ledger.resyncs.values():
                        resync()
                if not self._ledger.marks().keys() - {self._mark}:
                    return
            except Exception as error:
                log.debug("nobody knows who is behind: %s", type(error).__name__)
            if over.wait(_SIGN):
                return


_followers: WeakSet[Follower] = WeakSet()


@forks.in_child
def _after_fork() -> None:
    for follower in list(_followers):
        follower._start_over()
