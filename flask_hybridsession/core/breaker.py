"""A circuit breaker for a backend across a network, and the time that a request may wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from enum import Enum
from random import uniform
from time import monotonic
from typing import TypeVar
from weakref import WeakSet, ref

from . import forks
from .errors import ConfigError, ProviderUnavailable
from .locks import Lock

log = logging.getLogger("flask_hybridsession")

T = TypeVar("T")


class Breaker:
    """Keeps requests from waiting for a backend that is away.

    After ``failures`` calls in a row that ended with ``ProviderUnavailable``, whichever threads
    made them, it opens: calls raise at once. Meanwhile a thread calls ``probe(seconds)`` about
    every ``rest`` seconds, so that no request pays for finding out. Once that succeeds, the
    recovery functions run, then one single call is let through; its outcome closes the breaker or
    opens it again.

    ``probe`` is one cheap call that raises ``ProviderUnavailable`` without an answer in time.
    ``budget`` is how many seconds the storage calls of a request may take in all. Raises
    ``ConfigError`` unless it is more than 0.
    """

    _prober: tuple[threading.Thread, threading.Event] | None

    def __init__(
        self,
        probe: Callable[[float], object],
        *,
        budget: float = 0.25,
        failures: int = 5,
        rest: float = 0.5,
    ) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
            raise ConfigError("budget must be more than 0 seconds, as 0.25.")
        self.budget = budget
        self._probe = probe
        self._failures = failures
        self._rest = rest
        self._recovery: list[Callable[[], None]] = []
        self._phase = _Phase(_State.CLOSED)
        self._start_over()
        _breakers.add(self)

    def call(self, work: Callable[[float], T]) -> T:
        """What ``work(seconds_left)`` returns. Calls do not nest.

        ``work`` must return or raise within that time. Its ``ProviderUnavailable`` is a failure;
        any other outcome is an answer. Raises ``ProviderUnavailable`` without calling it when the
        breaker is open, or when this request has used up its budget.
        """
        forks.look()
        request = _request.get()
        left = self.budget if request is None else request.left(self.budget)
        phase = self._phase
        if phase.state is not _State.CLOSED:
            phase = self._admit(left)
        start = monotonic()
        try:
            result = work(left)
        except ProviderUnavailable:
            self._failed(phase)
            raise
        except Exception:
            self._answered(phase)
            raise
        finally:
            if request is not None:
                request.used += monotonic() - start
        if phase.failures or phase.state is not _State.CLOSED:
            self._answered(phase)
        return result

    @property
    def is_open(self) -> bool:
        """Whether calls are refused until the backend has answered a probe."""
        return self._phase.state is _State.OPEN

    def on_recovery(self, function: Callable[[], None]) -> None:
        """Call ``function`` when the backend answers again, before any request may.

        It runs in the probe's thread; its own calls get through. If one of them fails, the breaker
        stays open.
        """
        self._recovery.append(function)

    def close(self) -> None:
        """Stop probing. Harmless twice."""
        forks.look()
        with self._lock.take():
            if self._prober is not None:
                self._prober[1].set()
                self._prober = None

    # -- from phase to phase --------------------------------------------------------------------

    def _admit(self, left: float) -> _Phase:
        """The phase that a call belongs to; or raises, because it may not be made now."""
        with self._lock.take():
            phase = self._phase
            if phase.state is _State.OPEN and _recovering.get() is not self:
                self._start_probing()
                raise ProviderUnavailable("the session storage does not answer; it is being probed")
            if phase.state is _State.HALF_OPEN:
                now = monotonic()
                if now < phase.tried_until:
                    raise ProviderUnavailable("the session storage is being tried out")
                phase.tried_until = now + left  # a call that vanishes does not block for ever
            return phase

    def _failed(self, phase: _Phase) -> None:
        with self._lock.take():
            phase.failures += 1
            enough = phase.state is _State.HALF_OPEN or phase.failures >= self._failures
            if phase is not self._phase or phase.state is _State.OPEN or not enough:
                return
            self._phase = _Phase(_State.OPEN)
            self._start_probing()
        log.error("the session storage does not answer: calls are refused until it does")

    def _answered(self, phase: _Phase) -> None:
        with self._lock.take():
            phase.failures = 0
            if phase is not self._phase or phase.state is not _State.HALF_OPEN:
                return
            self._phase = _Phase(_State.CLOSED)
        log.warning("the session storage answers again")

    # -- probing --------------------------------------------------------------------------------

    def _start_probing(self) -> None:
        if self._prober is not None and self._prober[0].is_alive():
            return
        stop = threading.Event()
        thread = threading.Thread(
            target=_probe_until_back,
            args=(ref(self), stop, self._rest),
            name="flask-hybridsession-probe",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread can be had now: the next call tries again
            log.error("the session storage cannot be probed: %s", error)
        else:
            self._prober = (thread, stop)

    def _is_back(self, stop: threading.Event) -> bool:
        """Probe once; if the backend answers, let one call through from here on."""
        _recovering.set(self)
        try:
            self._probe(self.budget)
            self._recover()
        except ProviderUnavailable:
            return False
        except Exception:
            # Whatever it is, there must be another probe: nothing else closes the breaker.
            if not stop.is_set():
                log.exception("probing the session storage failed")
            return False
        with self._lock.take():
            if not stop.is_set():
                self._prober = None
                self._phase = _Phase(_State.HALF_OPEN)
        return True

    def _recover(self) -> None:
        phase = self._phase
        phase.failures = 0
        for function in list(self._recovery):
            try:
                function()
            except Exception as error:
                if phase.failures:
                    raise
                # The backend answers, if only to refuse this: that must not keep all else away.
                log.error("what is due when storage is back failed: %s", error, exc_info=True)

    def _start_over(self) -> None:
        """A forked child has no thread, and may have inherited a held lock."""
        self._lock = Lock()
        self._prober = None


def begin_budget(seconds: float | None = None) -> None:
    """From here on the calls in this context share one budget: ``seconds``, or the breaker's.

    Without it, each call has a whole one.
    """
    _request.set(_Budget(seconds))


def end_budget() -> None:
    """From here on each call in this context has a whole budget again."""
    _request.set(None)


@contextmanager
def own_budgets() -> Iterator[None]:
    """Within it each call has a whole budget, for work of many calls that is done bit by bit."""
    token = _request.set(None)
    try:
        yield
    finally:
        _request.reset(token)


class _Budget:
    """The time that one request may spend on storage; the view's own does not count."""

    __slots__ = ("seconds", "used")

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.used = 0.0

    def left(self, default: float) -> float:
        left = (default if self.seconds is None else self.seconds) - self.used
        if left <= 0:
            raise ProviderUnavailable("this request has used up its time for session storage")
        return left


class _State(Enum):
    CLOSED = "calls get through"
    OPEN = "calls are refused, the backend is probed"
    HALF_OPEN = "one call at a time is tried"


class _Phase:
    """A stretch of time in one state. The outcome of a call counts for the phase it began in."""

    __slots__ = ("failures", "state", "tried_until")

    def __init__(self, state: _State) -> None:
        self.state = state
        self.failures = 0  # in a row
        self.tried_until = 0.0


_request: ContextVar[_Budget | None] = ContextVar("budget", default=None)
#: The breaker whose recovery functions run in this context.
_recovering: ContextVar[Breaker | None] = ContextVar("recovering", default=None)
_breakers: WeakSet[Breaker] = WeakSet()


def _probe_until_back(breaker: ref[Breaker], stop: threading.Event, rest: float) -> None:
    # Workers that lost the backend at one moment must not all come back at one moment.
    while not stop.wait(rest * uniform(0.8, 1.2)):  # noqa: S311  (no secret)
        alive = breaker()
        if alive is None or Context().run(alive._is_back, stop):
            return
        del alive


@forks.in_child
def _start_over() -> None:
    for breaker in list(_breakers):
        breaker._start_over()
