from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from math import inf

import pytest

from flask_hybridsession.core.change import Change
from flask_hybridsession.core.errors import ConfigError, SessionGone
from flask_hybridsession.core.provider import Provider
from flask_hybridsession.core.settings import Settings
from flask_hybridsession.providers.memory import MemoryProvider, Timetable
from flask_hybridsession.testing import ProviderSuite, create, load, new_key

NOW = 1_000_000.0


class TestMemory(ProviderSuite):
    def make_provider(self) -> Provider:
        return MemoryProvider()


class TestMemoryWithRoom(ProviderSuite):
    def make_provider(self) -> Provider:
        return MemoryProvider(max_sessions=100_000)


# The order of use


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "10", True, inf])
def test_max_sessions_must_be_a_number(wrong: object) -> None:
    with pytest.raises(ConfigError, match="max_sessions must be a whole number"):
        MemoryProvider(max_sessions=wrong)  # type: ignore[arg-type]


def test_max_sessions_as_a_setting() -> None:
    provider = MemoryProvider.from_settings(Settings(type="memory", options={"max_sessions": 1}))
    first, second = create(provider, NOW), create(provider, NOW)
    assert [provider.exists(key, NOW) for key in (first, second)] == [False, True]


def test_no_limit_by_default() -> None:
    provider = MemoryProvider()
    for _ in range(5000):
        create(provider, NOW)
    assert provider.count(NOW) == 5000


def test_what_was_used_least_recently_goes() -> None:
    provider = MemoryProvider(max_sessions=4)
    loaded, committed, looked_at, renamed, moved = (new_key() for _ in range(5))
    for key in (loaded, committed, looked_at, renamed):
        create(provider, NOW, key=key)
    provider.rename(renamed, moved, NOW)
    load(provider, loaded, NOW)
    provider.commit(committed, Change(puts={"a": b"1"}), NOW)
    provider.exists(looked_at, NOW)
    for expected in (looked_at, moved, loaded, committed):
        create(provider, NOW)
        assert not provider.exists(expected, NOW)
        assert provider.count(NOW) == 4
    assert provider.stats()["evicted"] == 4


def test_an_evicted_session_leaves_nothing() -> None:
    provider = MemoryProvider(max_sessions=1)
    old, new = create(provider, NOW, {"a": b"1"}, deadline=NOW + 60, user="s:ann"), new_key()
    provider.rename(old, new, NOW, alias_until=NOW + 60)
    create(provider, NOW)
    for key in (old, new):
        assert provider.load(key, NOW) is None
        with pytest.raises(SessionGone):
            provider.commit(key, Change(puts={"a": b"2"}), NOW)
    assert provider.keys_of("s:ann", NOW) == []
    assert provider.next_deadline() is None
    assert provider.purge(NOW + 60, 10) == []
    assert provider.stats() == {"sessions": 1, "aliases": 0, "users": 0, "evicted": 1}


def test_a_refused_create_evicts_nobody() -> None:
    provider = MemoryProvider(max_sessions=2)
    one, other = create(provider, NOW), create(provider, NOW)
    with pytest.raises(Exception, match="exists already"):
        create(provider, NOW, key=other)
    assert provider.exists(one, NOW)


# Nothing grows that is not there


def inside(provider: MemoryProvider) -> dict[str, int]:
    """The sizes of all that the provider holds."""
    sizes = {
        name: len(part)
        for name, part in vars(provider).items()
        if isinstance(part, (dict, Timetable))
    }
    return sizes | {"due": len(provider._due._heap), "ends": len(provider._ends._heap)}


def churn_touches(provider: MemoryProvider) -> None:
    key = create(provider, NOW)
    for n in range(5000):
        provider.commit(key, Change(deadline=NOW + 60 + n), NOW + n)
    for n in range(5000):
        provider.commit(key, Change(deadline=NOW + 9000 - n), NOW)
    provider.destroy(key)


def churn_sessions(provider: MemoryProvider) -> None:
    for _ in range(5000):
        assert provider.destroy(create(provider, NOW, deadline=NOW + 1e6, user="s:ann"))


def churn_aliases(provider: MemoryProvider) -> None:
    for until in (60.0, 1e6, inf):
        key = create(provider, NOW, deadline=NOW + 1e6)
        for n in range(1000):
            new = new_key()
            provider.rename(key, new, NOW + n, alias_until=NOW + n + until)
            key = new
        provider.destroy(key)


def churn_purges(provider: MemoryProvider) -> None:
    for n in range(1000):
        create(provider, NOW, deadline=NOW + n, user=f"i:{n}")
    while provider.purge(NOW + 1000, 100):
        pass


def churn_locks(provider: MemoryProvider) -> None:
    for n in range(1000):
        with provider.lock(f"{n}", 0, 60):
            pass


@pytest.mark.parametrize(
    "churn", [churn_touches, churn_sessions, churn_aliases, churn_purges, churn_locks]
)
def test_nothing_is_left_behind(churn: Callable[[MemoryProvider], None]) -> None:
    provider = MemoryProvider()
    churn(provider)
    sizes = inside(provider)
    assert max(sizes.pop("due"), sizes.pop("ends")) <= 64
    assert not any(sizes.values())


def test_aliases_of_a_living_session_do_not_pile_up() -> None:
    provider = MemoryProvider()
    key = create(provider, NOW)
    for n in range(1000):
        new = new_key()
        provider.rename(key, new, NOW + n, alias_until=NOW + n + 5)
        key = new
    assert provider.stats()["aliases"] <= 5


# The timetable


def test_the_timetable_keeps_order() -> None:
    table = Timetable()
    times = {f"{n}": float(n * 7919 % 1000) for n in range(1000)}
    for key in times:
        table.set(key, 5000.0)
        table.set(key, 0.5)
        table.set(key, times[key])
    found = []
    while (first := table.first()) is not None:
        found.append(first)
        table.discard(first[1])
    assert found == sorted((at, key) for key, at in times.items())
    assert len(table) == 0


def test_the_timetable_after_a_key_came_back() -> None:
    table = Timetable()
    table.set("a", 5.0)
    table.discard("a")
    table.set("a", 5.0)
    table.set("a", 10.0)
    assert table.due(9.0) is None
    assert table.first() == (10.0, "a")
    table.set("a", inf)
    assert table.first() is None
    table.set("a", 3.0)
    assert table.due(3.0) == "a"


def test_the_timetable_moves_without_growing() -> None:
    table = Timetable()
    for n in range(1000):
        for key in "abcdefgh":
            table.set(key, float(n))
    assert len(table._heap) == 8
    assert table.first() == (999.0, "a")


# Forks


def in_a_child(work: Callable[[], bool]) -> bool:
    """What a forked child makes of it; False if it dies or is stuck."""
    pid = os.fork()
    if pid == 0:
        timer = threading.Timer(20, os._exit, (2,))
        timer.daemon = True
        timer.start()
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_has_a_copy() -> None:
    provider = MemoryProvider()
    key = create(provider, NOW, {"a": b"1"})

    def work() -> bool:
        before = load(provider, key, NOW).values == {"a": b"1"}
        provider.commit(key, Change(puts={"a": b"2"}), NOW)
        return before and load(provider, key, NOW).values == {"a": b"2"}

    assert in_a_child(work)
    assert load(provider, key, NOW).values == {"a": b"1"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_a_change_under_way() -> None:
    provider = MemoryProvider()
    key = create(provider, NOW, {"a": b"1", "b": b"1"})
    amid, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[str]:
        amid.set()
        go_on.wait()
        yield "a"

    def whole() -> bool:
        with provider.lock("a key", 0, 60):
            provider.commit(key, Change(puts={"c": b"1"}), NOW)
        return load(provider, key, NOW).values == {"b": b"1", "c": b"1"}

    change = Change(drops=slowly(), user="s:ann")
    writer = threading.Thread(target=provider.commit, args=(key, change, NOW))
    writer.start()
    amid.wait()
    # Whoever forks waits for the writer; without that, the fork comes long before this.
    timer = threading.Timer(0.1, go_on.set)
    timer.start()
    assert in_a_child(whole)
    for thread in (writer, timer):
        thread.join()
    assert load(provider, key, NOW).values == {"b": b"1"}
    assert create(provider, NOW)
