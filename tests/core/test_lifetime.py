from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest

from flask_hybridsession.core.errors import ConfigError
from flask_hybridsession.core.lifetime import (
    BROWSER,
    COOKIE_CAP,
    UNLIMITED,
    Terms,
    parse_lifetime,
    seconds,
    terms,
)

DAY = 86_400.0
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("value", "lifetime"),
    [
        (UNLIMITED, UNLIMITED),
        (BROWSER, BROWSER),
        (0, UNLIMITED),
        (0.0, UNLIMITED),
        (-0.0, UNLIMITED),
        (timedelta(0), UNLIMITED),
        (-1, BROWSER),
        (-0.001, BROWSER),
        (timedelta(days=-1), BROWSER),
        (0.2, timedelta(seconds=0.2)),
        (3600, HOUR),
        (HOUR, HOUR),
    ],
)
def test_the_rule(value: object, lifetime: object) -> None:
    assert parse_lifetime(value, "X") == lifetime


@pytest.mark.parametrize("value", [None, True, False, "3600", nan, inf, -inf, 1e300, [], b"1", 1j])
def test_what_is_no_lifetime(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^SESSION_EXPIRES must be UNLIMITED \(or 0\), BROWSER"):
        parse_lifetime(value, "SESSION_EXPIRES")


def test_seconds() -> None:
    assert [seconds(v, "X") for v in (2, 0.5, HOUR, -1)] == [2.0, 0.5, 3600.0, -1.0]
    for value in (None, True, "1", nan, inf):
        with pytest.raises(ConfigError, match=r"^X must be a timedelta or a number of seconds\.$"):
            seconds(value, "X")


def make(lifetime: Any = None, permanent: bool = False, idle: float | None = None) -> Terms:
    """The terms of a session that began at 1000."""
    return terms(lifetime, 1000.0, permanent=permanent, flask_lifetime=31 * DAY, idle=idle)


@pytest.mark.parametrize(
    ("kind", "touched", "deadline", "max_age"),
    [
        # the session, last touched at, ends at, the cookie's Max-Age at that time
        (make(), 1000, 1000 + 31 * DAY, None),
        (make(), 5000, 5000 + 31 * DAY, None),
        (make(idle=60), 5000, 5060, None),
        (make(BROWSER), 5000, 5000 + 31 * DAY, None),
        (make(BROWSER, idle=60), 5000, 5060, None),
        (make(BROWSER, permanent=True, idle=60), 5000, 5060, None),
        (make(UNLIMITED), 5000, inf, 34_560_000),
        (make(UNLIMITED, idle=60), 5000, 5060, 34_560_000),
        (make(HOUR), 1000, 4600, 3600),
        (make(HOUR), 4000, 4600, 600),
        (make(HOUR), 4000.5, 4600, 600),
        (make(HOUR), 4600, 4600, 0),
        (make(HOUR), 9999, 4600, 0),
        (make(HOUR, idle=60), 1000, 1060, 3600),
        (make(HOUR, idle=60), 4590, 4600, 10),
        (make(timedelta(days=500)), 1000, 1000 + 500 * DAY, 34_560_000),
        (make(permanent=True), 1000, 1000 + 31 * DAY, 31 * DAY),
        (make(permanent=True), 5000, 5000 + 31 * DAY, 31 * DAY),
        (make(permanent=True, idle=60), 5000, 5060, 31 * DAY),
        (make(permanent=True, idle=100 * DAY), 5000, 5000 + 31 * DAY, 31 * DAY),
        (make(HOUR, permanent=True), 4000, 4600, 600),
    ],
)
def test_deadline_and_max_age(
    kind: Terms, touched: float, deadline: float, max_age: int | None
) -> None:
    assert kind.deadline(touched) == deadline
    assert kind.max_age(touched) == max_age


def test_a_permanent_session_longer_than_browsers_allow() -> None:
    long = terms(None, 0.0, permanent=True, flask_lifetime=1000 * DAY, idle=None)
    assert long.max_age(0) == COOKIE_CAP == 400 * DAY
    assert long.deadline(0) == 1000 * DAY


def test_use_never_moves_a_fixed_end() -> None:
    fixed = make(HOUR, idle=600)
    assert [fixed.deadline(at) for at in (1000, 2000, 4100, 4599)] == [1600, 2600, 4600, 4600]


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        (make(), 31 * DAY / 20),
        (make(idle=60), 3),
        (make(permanent=True), 31 * DAY / 20),
        (make(permanent=True, idle=60), 3),
        (make(UNLIMITED), 20 * DAY),
        (make(UNLIMITED, idle=60), 3),
        (make(HOUR, idle=60), 3),
        (make(HOUR), inf),
    ],
)
def test_touches_are_a_twentieth_apart(kind: Terms, every: float) -> None:
    assert kind.touch_every() == pytest.approx(every)


def test_the_marks_say_what_they_are() -> None:
    assert (repr(UNLIMITED), repr(BROWSER)) == ("UNLIMITED", "BROWSER")
