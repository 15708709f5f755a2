"""The one place that reads the time.

Call it through the module (``clock.now()``), so that a test can put another clock in its place.

The wall clock may be set at any moment, and sessions must neither end nor live on because of that.
So whoever shares them counts from an *anchor*: the moment of the machine's boot by the wall clock,
taken once per boot. All workers of a store adopt the same one; until then the wall clock counts.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import BuiltinFunctionType

log = logging.getLogger("flask_hybridsession")

#: Goes on while the machine sleeps, where there is such a clock; nobody can set it.
_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
#: The kernel's wall clock. On Linux CLOCK_REALTIME_COARSE, which Python does not name: time_machine
#: puts its own in the place of all that Python does name.
_KERNELS = 5 if sys.platform == "linux" else time.CLOCK_REALTIME
#: Seconds between two readings of it, at most.
_LAG = 1.0
#: Seconds by which the wall clock may be off unnoticed.
_OFF = 60.0
_loaded = sys.modules
_anchor: float | None = None
#: Each adopts an anchor, if there is one by now.
_expected: list[Callable[[], None]] = []


def now() -> float:
    """Seconds since the epoch; once there is an anchor, not moved by setting the wall clock."""
    # Who replaces the wall clock means it. time_machine does so beneath Python.
    if _anchor is None or type(time.time) is not BuiltinFunctionType or "time_machine" in _loaded:
        return _wall()
    return _anchor + time.clock_gettime(_SINCE_BOOT)


def unless_replaced() -> float | None:
    """``now()``, or None while a test has another clock in the place of the wall clock.

    For who acts unasked: what a test has made may be long past by another clock than the test's.
    """
    before, seen, after = _is_replaced(), now(), _is_replaced()
    return None if before or after else seen


def _is_replaced() -> bool:
    """Whether the wall clock is not the kernel's: freezegun's, a mock, time_machine's."""
    if type(time.time) is not BuiltinFunctionType:
        return True
    return not -_LAG < time.time() - time.clock_gettime(_KERNELS) < _LAG


def _wall() -> float:
    if _anchor is None and _expected:
        for adopt_anchor in list(_expected):
            adopt_anchor()
        if _anchor is not None:
            _expected.clear()
            return now()
    return time.time()


def anchor() -> float:
    """What the others are to adopt, in seconds since the epoch: this process's own, if it has one.

    Never that of a frozen ``time.time``: it is kept for the whole boot.
    """
    if _anchor is not None:
        return _anchor
    return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(_SINCE_BOOT)


def expect(adopt_anchor: Callable[[], None]) -> None:
    """Call this whenever the time is read, until there is an anchor: it may ``adopt`` one."""
    if _anchor is None:
        _expected.append(adopt_anchor)


def adopt(shared: float) -> None:
    """Count from this anchor. The first one holds as long as the process lives."""
    global _anchor
    if _anchor is None:
        _anchor = shared
        if abs(off := time.time() - now()) > _OFF:
            log.warning(
                "the wall clock was set by %+.0f seconds after the first worker of this boot "
                "started: sessions go by the clock from before until the machine restarts",
                off,
            )
