"""How long a session lives: unlimited, browser or fixed, with an idle limit or without. Pure.

The rule of the seeds: 0 is unlimited, a negative time is a browser session, a positive time is
fixed. A fixed lifetime never moves by use (ASVS 5.0 7.3.2); an idle limit slides.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from math import ceil, inf, isfinite
from typing import Literal, NamedTuple

from .errors import ConfigError

#: Browsers keep no cookie for longer (RFC 6265bis): 400 days, in seconds.
COOKIE_CAP = 34_560_000.0
#: An unchanged session is touched once in this part of the time it slides by.
TOUCH_PART = 1 / 20


class Mark(Enum):
    """Lifetimes that are not a length of time."""

    UNLIMITED = "unlimited"
    BROWSER = "browser"

    def __repr__(self) -> str:
        return self.name


#: No deadline; the cookie lasts as long as browsers allow and is renewed.
UNLIMITED = Mark.UNLIMITED
#: Until the browser closes; on the server, until it is idle for too long.
BROWSER = Mark.BROWSER

Lifetime = Literal[Mark.UNLIMITED, Mark.BROWSER] | timedelta


def seconds(value: object, name: str) -> float:
    """A number or a timedelta as seconds. ``name`` is the setting, for the ``ConfigError``."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    raise ConfigError(f"{name} must be a timedelta or a number of seconds.")


def parse_lifetime(value: object, name: str) -> Lifetime:
    """By the rule of the seeds. Raises ``ConfigError``, which names the setting ``name``."""
    if isinstance(value, Mark):
        return value
    try:
        number = seconds(value, name)
        if number == 0:
            return UNLIMITED
        return BROWSER if number < 0 else timedelta(seconds=number)
    except (ConfigError, OverflowError):
        raise ConfigError(
            f"{name} must be UNLIMITED (or 0), BROWSER (or a negative number), "
            "a timedelta or a number of seconds."
        ) from None


class Terms(NamedTuple):
    """When one session ends, and what its cookie says. Seconds; ``inf`` where there is no limit.

    ``absolute`` is the moment that use never moves. ``idle`` is the time without a touch.
    ``span`` is the Max-Age of a cookie that slides; 0 where it has none, or a fixed one.
    """

    absolute: float = inf
    idle: float = inf
    span: float = 0.0

    def deadline(self, touched: float) -> float:
        """The moment from which the session is not served, if it was last touched then."""
        return min(self.absolute, touched + self.idle)

    def max_age(self, now: float) -> int | None:
        """The cookie's Max-Age in whole seconds, or None: it goes when the browser closes."""
        if self.span:
            return ceil(min(self.span, COOKIE_CAP))
        if self.absolute == inf:
            return None
        return ceil(min(max(self.absolute - now, 0), COOKIE_CAP))

    def touch_every(self) -> float:
        """How often a session that only slides is written, unless a setting says otherwise."""
        return min(self.idle, self.span or inf) * TOUCH_PART


def terms(
    lifetime: Lifetime | None,
    since: float,
    *,
    permanent: bool,
    flask_lifetime: float,
    idle: float | None,
) -> Terms:
    """The terms of a session.

    ``lifetime`` is its own or ``SESSION_EXPIRES``; None leaves it to Flask's ``permanent``.
    ``since`` is when a fixed lifetime began, ``flask_lifetime`` is ``PERMANENT_SESSION_LIFETIME``,
    ``idle`` is ``SESSION_IDLE_TIMEOUT``.
    """
    limit = inf if idle is None else idle
    if isinstance(lifetime, timedelta):
        return Terms(absolute=since + lifetime.total_seconds(), idle=limit)
    if lifetime is UNLIMITED:
        return Terms(idle=limit, span=COOKIE_CAP)
    if lifetime is None and permanent:
        return Terms(idle=min(limit, flask_lifetime), span=flask_lifetime)
    return Terms(idle=flask_lifetime if idle is None else idle)
