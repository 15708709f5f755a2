"""A test freezes the date: what has not ended by the app's clock is served, what has is not, and
nothing is destroyed behind the test's back, by whatever clock it is long past.
"""

from __future__ import annotations

import datetime as dt
import importlib.util
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask, session
from freezegun import freeze_time

from flask_hybridsession import HybridSession, session_expired
from flask_hybridsession.core import clock
from flask_hybridsession.core.timers import clockwork
from tests.servers import Server

Move = Callable[[float], object]
#: Requests under each clock, in a short run and in a long one.
SHORT, LONG = 50, 1000
DATES = ["1999-12-31", "2024-01-01", "2039-06-01"]


@contextmanager
def freezegun(date: str) -> Iterator[Move]:
    with freeze_time(date) as frozen:
        yield frozen.tick


@contextmanager
def patched(date: str) -> Iterator[Move]:
    now = [dt.datetime.fromisoformat(f"{date}T00:00+00:00").timestamp()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now[0])
        yield lambda seconds: now.append(now.pop() + seconds)


@contextmanager
def time_machine(date: str) -> Iterator[Move]:
    """Beneath Python, and for all threads."""
    import time_machine

    with time_machine.travel(date, tick=False) as traveller:
        yield traveller.shift


CLOCKS = [freezegun, patched]
if importlib.util.find_spec("time_machine"):
    CLOCKS.append(time_machine)


class Visitor(NamedTuple):
    cookie: str
    value: str
    #: By the clock under which the session was made.
    ends: float


class Site:
    def __init__(self, path: Path, provider: str, redis: str) -> None:
        app = Flask(__name__)
        app.config.update(SESSION_TYPE=provider, SESSION_DIR=str(path / "store"))
        app.config["SESSION_SQLALCHEMY"] = f"sqlite:///{path / 'sessions.db'}"
        app.config.update(SESSION_REDIS=f"redis://{redis}", SESSION_KEY_PREFIX=f"{path}:")
        self.sessions = HybridSession(app)
        if provider == "sql":
            self.sessions.provider.create_tables()  # type: ignore[attr-defined]
        self.expired: list[str] = []
        session_expired.connect(self._hear, app)
        app.add_url_rule("/begin/<value>/<int:seconds>", view_func=self._begin)
        app.add_url_rule("/", view_func=lambda: session.get("value", ""))
        self.app = app

    def _hear(self, app: Flask, key: str, **_: Any) -> None:
        self.expired.append(key)

    @staticmethod
    def _begin(value: str, seconds: int) -> str:
        session["value"] = value
        session.lifetime = seconds  # type: ignore[attr-defined]
        return ""

    def get(self, path: str, cookie: str = "") -> Any:
        headers = {"Cookie": cookie} if cookie else {}
        answer = self.app.test_client(use_cookies=False).get(path, headers=headers)
        assert answer.status_code == 200
        clockwork.notice(0.0)  # something is due: its thread looks at once
        return answer

    def begin(self, value: str, seconds: int) -> Visitor:
        answer = self.get(f"/begin/{value}/{seconds}")
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return Visitor(cookie, value, clock.now() + seconds)

    def serves(self, visitor: Visitor) -> bool:
        text = self.get("/", visitor.cookie).text
        assert text in ("", visitor.value)
        return bool(text)


class Look:
    """One more thing to sweep: tells that the clockwork came by."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def sweep(self, now: float, limit: int) -> int:
        self.done.set()
        return 0

    def next_deadline(self) -> None:
        return None


@pytest.fixture(params=["memory", "hybrid", "redis", "sql"])
def site(request: pytest.FixtureRequest, tmp_path: Path, redis_server: Server) -> Iterator[Site]:
    site = Site(tmp_path, request.param, redis_server.address)
    clockwork.start()  # in a test nobody else does
    yield site
    clockwork.unwatch(site.sessions._managers[site.app])
    look = Look()
    clockwork.watch(look)
    clockwork.notice(0.0)
    assert look.done.wait(30), "it asks the provider no more"
    site.sessions.close()


@pytest.mark.parametrize("date", DATES)
@pytest.mark.parametrize("freeze", CLOCKS)
def test_what_has_not_ended_is_served_and_nothing_is_destroyed(
    freeze: Callable[[str], Any], date: str, site: Site, minutes: float, torture_seed: int
) -> None:
    dice = random.Random(torture_seed)
    real = site.begin("before", 3600)
    with freeze(date) as move:
        assert site.serves(real) == (clock.now() < real.ends)
        visitors = [site.begin("first", 60)]
        for number in range(LONG if minutes else SHORT):
            throw = dice.random()
            if throw < 0.2:
                visitors.append(site.begin(f"{number}", dice.randint(5, 600)))
            elif throw < 0.4:
                move(dice.randint(1, 30))
            else:
                visitor = dice.choice(visitors)
                assert site.serves(visitor) == (clock.now() < visitor.ends), number
        assert not site.expired
        over = [visitor for visitor in [*visitors, real] if visitor.ends <= clock.now()]
        assert site.sessions.purge() == len(site.expired) == len(over)
        assert site.sessions.count() == len(visitors) + 1 - len(over)
        assert all(site.serves(visitor) for visitor in visitors if visitor not in over)


@pytest.mark.parametrize("freeze", CLOCKS)
def test_afterwards_the_real_clock_counts(freeze: Callable[[str], Any], site: Site) -> None:
    living = site.begin("living", 3600)
    with freeze("2039-06-01"):
        assert not site.serves(living)
    assert site.serves(living)
    with freeze("1999-12-31"):
        past = site.begin("past", 60)
        assert site.serves(past)
    assert not site.serves(past)
    give_up = time.monotonic() + 30
    while not site.expired:
        assert time.monotonic() < give_up, "the clockwork goes on"
        time.sleep(0.01)
    assert site.serves(living)
