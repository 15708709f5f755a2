"""What has ended leaves the disk, within a day or what ``compact_age`` says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flask_hybridsession import ConfigError
from flask_hybridsession.core.change import Change
from flask_hybridsession.providers.hybrid import HybridProvider
from flask_hybridsession.testing import FakeClock

from ...remote import until
from .tools import create, key, run

DAY = 86_400.0
MARK = b"the values of a session that has ended"


def leave_one(path: Path, how: str = "destroyed", now: float = 0.0) -> None:
    """A store in which a session ended, and another one lives."""
    provider = HybridProvider(path)
    create(provider, "gone", puts={"secret": MARK}, deadline=now + 60)
    provider.commit(key("gone"), Change({"more": MARK + b", changed"}), now)
    create(provider, "here", puts={"a": b"1"}, deadline=now + 100 * DAY)
    if how == "destroyed":
        assert provider.destroy(key("gone"))
    else:
        assert [record.key for record in provider.purge(now + 61, 10)] == [key("gone")]
    provider.close()


def where(path: Path) -> list[str]:
    """The files that hold what has ended."""
    return sorted(file.name for file in path.iterdir() if MARK in file.read_bytes())


def generation(provider: HybridProvider) -> object:
    return provider.stats()["generation"]


def look(provider: HybridProvider) -> None:
    """As its keeper does."""
    provider._store.compact_aged()
    if (compactor := provider._store._compactor) is not None:
        compactor.join()


@pytest.mark.parametrize("how", ["destroyed", "expired"])
def test_a_day_later_it_is_in_no_file(tmp_path: Path, how: str) -> None:
    with FakeClock() as clock:
        leave_one(tmp_path, how, clock.now())
        assert where(tmp_path) == ["image", "log"]
        clock.advance(DAY - 1)
        provider = HybridProvider(tmp_path)
        assert provider.load(key("here"), clock.now())
        look(provider)
        assert generation(provider) == 1
        clock.advance(2)
        until(lambda: generation(provider) == 2)  # its keeper looks
        record = provider.load(key("here"), clock.now())
        assert record is not None
        assert record.values == {"a": b"1"}
        provider._check()
        assert where(tmp_path) == []
        provider.close()


def test_restarts_do_not_put_it_off(tmp_path: Path) -> None:
    with FakeClock() as clock:
        leave_one(tmp_path, now=clock.now())
        for _ in range(4):
            clock.advance(DAY / 4 + 1)
            (tmp_path / "image").unlink()  # and nobody knows but the log
            provider = HybridProvider(tmp_path)
            assert provider.load(key("here"), clock.now())
            look(provider)
            provider.close()
        assert where(tmp_path) == []


def test_where_nothing_ended_nothing_is_done(tmp_path: Path) -> None:
    with FakeClock() as clock:
        provider = HybridProvider(tmp_path)
        made = create(provider, 1, deadline=clock.now() + 100 * DAY)
        for number in range(10):
            provider.commit(made, Change({"a": b"%d" % number}), clock.now())
            clock.advance(DAY)
            look(provider)
        assert generation(provider) == 1
        provider.destroy(made)
        look(provider)
        assert generation(provider) == 1, "it was looked through a moment ago"
        clock.advance(60)
        look(provider)
        assert generation(provider) == 2
        clock.advance(2 * DAY)
        look(provider)
        assert generation(provider) == 2, "in this one nothing ended"
        provider.close()


def test_one_worker_does_it(tmp_path: Path) -> None:
    with FakeClock() as clock:
        leave_one(tmp_path, now=clock.now())
        clock.advance(DAY + 1)

        def work() -> None:
            provider = HybridProvider(tmp_path)
            assert provider.load(key("here"), clock.now())
            look(provider)
            provider.close()

        first = HybridProvider(tmp_path)
        assert first.load(key("here"), clock.now())
        run(work)
        look(first)
        assert first.load(key("here"), clock.now())
        assert generation(first) == 2
        first.close()
        assert where(tmp_path) == []


def test_the_age_is_a_setting(tmp_path: Path) -> None:
    with FakeClock() as clock:
        leave_one(tmp_path, now=clock.now())
        clock.advance(11)
        provider = HybridProvider(tmp_path, compact_age=10)
        assert provider.load(key("here"), clock.now())
        look(provider)
        assert generation(provider) == 2
        provider.close()


@pytest.mark.parametrize("age", [0, -1, "1 day", float("inf"), None, True])
def test_the_age_is_a_number_of_seconds(tmp_path: Path, age: object) -> None:
    with pytest.raises(ConfigError, match="compact_age must be a number, more than 0"):
        HybridProvider(tmp_path, compact_age=age)  # type: ignore[arg-type]


def test_a_worker_that_ends_does_not_wait_for_it(tmp_path: Path) -> None:
    with FakeClock() as clock:
        provider = HybridProvider(tmp_path)
        for name in range(3000):
            create(provider, name, deadline=clock.now() + 100 * DAY)
        clock.advance(2 * DAY)
        provider._store.compact_aged()
        began = time.monotonic()
        provider.close()
        assert time.monotonic() - began < 10
